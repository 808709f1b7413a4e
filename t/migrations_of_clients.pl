# The migrations in examples/migrations, run by the tools that they are for:
# Django, ActiveRecord, Knex, and psql in Flyway's manner. They convert one column
# in the migration's transaction and one while others write, and go back; the
# values are the same. Without the line that takes the transaction away, the
# second is refused and nothing has happened.

use strict;
use warnings;

use File::Copy 'copy';
use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $temp = PostgreSQL::Test::Utils::tempdir();
my $node = nomp_node('main');

$node->start;
$node->safe_psql('postgres', 'CREATE ROLE migrator LOGIN');
system_or_bail('cp', '-R', "$FindBin::RealBin/../examples", "$temp/examples");
mkdir "$temp/clients";
system_or_bail('cp', '-R', "$FindBin::RealBin/../clients/python",
	"$temp/clients/python");
my $examples = "$temp/examples/migrations";

local %ENV = (
	%ENV,
	PGHOST => $node->host,
	PGPORT => $node->port,
	HOME => $temp,
	PYTHONDONTWRITEBYTECODE => 1);

# A command of a tool in its folder: did it end well? What it said is kept.
my $said;

sub runs
{
	my ($folder, @command) = @_;
	my ($out, $err) = ('', '');
	local $ENV{PGUSER} = 'migrator';
	my $good = IPC::Run::run(
		[ 'sh', '-c', 'cd "$0" && exec "$@"', "$examples/$folder", @command ],
		'<', \'', '>', \$out, '2>', \$err, IPC::Run::timeout(300));

	$said = "$out$err";
	return $good;
}

# Flyway runs each file as one transaction, or as it is if the file's .conf says
# so, while a session holds its lock.
sub flyway
{
	my ($file) = @_;
	my $conf = "$examples/flyway/$file.conf";
	my $alone =
	  -e $conf && slurp_file($conf) =~ /^executeInTransaction=false$/m;

	return runs('flyway', 'psql', '-X', '-v',
		'ON_ERROR_STOP=1', ($alone ? () : '-1'),
		'-f', $file);
}

sub django
{
	return runs('django', '/usr/bin/python3', 'manage.py', 'migrate',
		'school', $_[0]);
}
sub rails { return runs('rails', 'ruby', 'migrate.rb', $_[0]) }
sub knex  { return runs('knex', 'node_modules/.bin/knex', @_) }

# Removes lines from a file.
sub without
{
	my ($pattern, $file) = @_;
	my $text = slurp_file("$examples/$file");

	$text =~ s/$pattern//m or die "$file has no $pattern";
	open my $fh, '>', "$examples/$file" or die $!;
	print $fh $text;
	close $fh;
	return;
}

ok( runs(
		'knex', 'npm', 'ci', '--ignore-scripts',
		'--no-audit', '--no-fund', '--cache', "$temp/cache"),
	'npm has Knex') or diag($said);

my @tools = (
	{
		name => 'Django',
		table => 'school_pupil',
		to => [
			map {
				my $to = $_;
				sub { django($to) }
			} qw(0001 0002 0003)
		],
		back => sub { django('0001') },
		spoil => sub {
			without('^    atomic = False\n',
				'django/school/migrations/0003_encrypt_ssn_online.py');
		}
	},
	{
		name => 'ActiveRecord',
		table => 'pupils',
		to => [
			map {
				my $to = "2026112700000$_";
				sub { rails($to) }
			} 1 .. 3
		],
		back => sub { rails('20261127000001') },
		spoil => sub {
			without('^  disable_ddl_transaction!\n',
				'rails/db/migrate/20261127000003_encrypt_ssn_online.rb');
		}
	},
	{
		name => 'Knex',
		table => 'pupil',
		to => [ (sub { knex('migrate:up') }) x 3 ],
		back => sub { knex('migrate:down') && knex('migrate:down') },
		spoil => sub {
			without('^exports.config.*\n',
				'knex/migrations/20261127000003_encrypt_ssn_online.js');
		}
	},
	{
		name => 'Flyway\'s manner',
		table => 'pupil',
		to => [
			sub { flyway('sql/V1__pupil.sql') },
			sub { flyway('sql/V2__encrypt_name.sql') },
			sub { flyway('sql/V3__encrypt_ssn_online.sql') }
		],
		back => sub { flyway('back/V4__decrypt.sql') },
		spoil => sub {
			unlink "$examples/flyway/sql/V3__encrypt_ssn_online.sql.conf"
			  or die $!;
		}
	});

for my $tool (@tools)
{
	my ($name, $table) = @$tool{qw(name table)};
	my $db = lc($name =~ s/\W.*//r);
	my $one = sub { return $node->safe_psql($db, $_[0]) };
	my $types = sub {
		return $one->(
			"SELECT string_agg(format_type(atttypid, atttypmod), ' ' ORDER BY attname) FROM pg_attribute WHERE attrelid = '$table'::regclass AND attname IN ('name', 'ssn')"
		);
	};
	my $plain =
	  "SELECT md5(string_agg(concat_ws('|', id, school, name, ssn), ',' ORDER BY id)) FROM $table";

	local $ENV{PGDATABASE} = $db;
	$node->safe_psql('postgres', "CREATE DATABASE $db");
	$one->(<<'SQL');
CREATE EXTENSION nomp_crypt;
SELECT nomp_crypt.create_tenant(id) FROM unnest('{north,south}'::text[]) id;
SELECT nomp_crypt.grant_all_tenants('migrator', '{encrypt,decrypt}');
GRANT CREATE ON SCHEMA public TO migrator;
SQL
	ok($tool->{to}[0]->(), "$name: the table as it was") or diag($said);
	$one->(<<"SQL");
INSERT INTO $table (school, name, ssn)
SELECT CASE WHEN i % 2 = 0 THEN 'north' ELSE 'south' END, 'Anna ' || i, '20140501-' || i FROM generate_series(1, 500) i
SQL
	my $before = $one->($plain);

	ok($tool->{to}[1]->(), "$name: a column in the migration's transaction")
	  or diag($said);
	is($types->(), 'encrypted(text) text', "$name: it is encrypted");
	ok($tool->{to}[2]->(), "$name: a column while others write")
	  or diag($said);
	is( $types->(),
		'encrypted(text) encrypted(text, searchable)',
		"$name: it is encrypted too");
	is( $one->(
			'SELECT string_agg(column_name || state, \',\') FROM nomp_crypt.conversion'
		),
		'ssndone',
		"$name: by the procedure for that");
	is( $one->(
			"SET ROLE migrator; SELECT count(*) FROM $table WHERE nomp_crypt.decrypt(name) = 'Anna ' || id AND nomp_crypt.decrypt(ssn) LIKE '20140501-%' AND nomp_crypt.tenant_of(name) = school AND nomp_crypt.tenant_of(ssn) = school"
		),
		500,
		"$name: each value is there, and its school's");
	is( $one->(
			"SELECT count(*) FROM pg_index WHERE indrelid = '$table'::regclass AND indisunique AND NOT indisprimary"
		),
		1,
		"$name: and unique");
	ok( runs(
			'django', '/usr/bin/python3',
			'manage.py', 'makemigrations',
			'--check', '--dry-run'),
		'Django: the models are what the migrations made')
	  or diag($said)
	  if $name eq 'Django';

	# db/structure.sql, as Rails dumps and loads it
	$node->command_ok(
		[
			'pg_dump', '--schema-only',
			'--no-privileges', '--no-owner',
			'-f', "$temp/$db.sql",
			$db
		],
		"$name: the schema is dumped");
	$node->safe_psql('postgres', "CREATE DATABASE ${db}_test");
	$node->command_ok(
		[
			'psql', '-XAtq',
			'-v', 'ON_ERROR_STOP=1',
			'-U', $one->('SELECT current_user'),
			'-d', "${db}_test",
			'-f', "$temp/$db.sql"
		],
		"$name: and loads into an empty database");

	ok($tool->{back}->(), "$name: back") or diag($said);
	is($types->(), 'text text', "$name: the columns are plain");
	is($one->($plain), $before, "$name: and say what they said");

	# once more, by somebody who forgot the line
	$tool->{spoil}->();
	ok($tool->{to}[1]->(), "$name: forth again") or diag($said);
	ok(!$tool->{to}[2]->(), "$name: in a transaction it is refused");
	like(
		$said,
		qr/cannot run inside a transaction block/,
		"$name: and says so");
	is($types->(), 'encrypted(text) text', "$name: and nothing has happened");
}
$node->stop;
done_testing();
