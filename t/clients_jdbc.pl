# The same for Java: PostgreSQL's JDBC driver, with clients/java/.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use ClientTest;
use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $driver = '/usr/share/java/postgresql.jar';
my $classes = PostgreSQL::Test::Utils::tempdir();
my $node = client_node();

command_ok(
	[
		'javac',
		'-Xlint:all',
		'-Werror',
		'-encoding',
		'UTF-8',
		'-d',
		$classes,
		"$FindBin::RealBin/../clients/java/NompCrypt.java",
		client_program('JdbcApp.java')
	],
	'the helper class compiles without a warning');
run_client(
	'JDBC',
	'java',
	'-Duser.timezone=UTC',
	'-cp',
	"$classes:$driver",
	'JdbcApp',
	'jdbc:postgresql://127.0.0.1:' . $node->port . '/postgres?user=app');

# What it wrote is encrypted.
is( $node->safe_psql(
		'postgres',
		"SELECT string_agg(DISTINCT left(encode(encrypted_send(name), 'hex'), 2), ',')"
		  . ' FROM person'),
	'10',
	'what it wrote is encrypted');

$node->stop;
done_testing();
