# The same for Node.js: node-postgres, and Sequelize as an ORM on top of it,
# with what is in clients/node/.  The packages come from npm, in the versions
# of clients/node/package-lock.json, into a temporary folder.

use strict;
use warnings;

use File::Copy 'copy';
use FindBin;
use lib "$FindBin::RealBin/lib";

use ClientTest;
use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $adapters = "$FindBin::RealBin/../clients/node";
my $packages = PostgreSQL::Test::Utils::tempdir();

for my $file (qw(package.json package-lock.json))
{
	copy("$adapters/$file", "$packages/$file") or die "$file: $!";
}
unlike(slurp_file("$packages/package-lock.json"),
	qr/"resolved"/, 'the lock file names no registry');

my ($out, $err) = ('', '');
my $installed = IPC::Run::run(
	[
		'npm', 'ci', '--prefix', $packages,
		'--ignore-scripts', '--no-audit', '--no-fund', '--cache',
		"$packages/cache"
	],
	'<',
	\'',
	'>',
	\$out,
	'2>',
	\$err,
	IPC::Run::timeout(300));
ok($installed, 'npm has the packages') or diag("npm ci: $out$err");

my $node = client_node();
local $ENV{NODE_PATH} = "$packages/node_modules";

run_client('node-postgres', 'node', client_program('node_pg.js'),
	$adapters, '127.0.0.1', $node->port);
run_client('Sequelize', 'node', client_program('node_sequelize.js'),
	$adapters, '127.0.0.1', $node->port);

# What they wrote is encrypted.
for my $table (qw(person sq_pupil))
{
	is( $node->safe_psql(
			'postgres',
			"SELECT string_agg(DISTINCT left(encode(encrypted_send(name), 'hex'), 2), ',')"
			  . " FROM $table"),
		'10',
		"what is in $table is encrypted");
}

$node->stop;
done_testing();
