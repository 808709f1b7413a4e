# Logical replication carries stored values, in text and in binary, and a
# foreign table shows what its server says: ciphertext, because nobody sets a
# tenant there.  And parallel workers compare and sort what is inside as their
# leader does.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $school = 'ribersborg';
my $inside = "SET nomp_crypt.tenant = '$school'";
my $temp = PostgreSQL::Test::Utils::tempdir();
my $node = nomp_node('publisher', allows_streaming => 'logical');
my $columns =
	'id int PRIMARY KEY, name encrypted(text), born encrypted(date),'
  . ' ssn encrypted(text, searchable) UNIQUE, notes encrypted(jsonb)';

$node->start;
create_nomp($node, $school);

# a second server with the same keystore and key tables
my $second = PostgreSQL::Test::Cluster->new('subscriber');
$second->init(extra => [ '--encoding=UTF8', '--no-locale' ]);
nomp_conf($second, $node->{nomp_dir}, 'nomp');
$second->start;
$node->command_ok(
	[ 'pg_dump', '-f', "$temp/all.sql", '-d', $node->connstr('postgres') ],
	'dump of the extension and its keys');
$node->command_ok(
	[
		'psql', '-Xq',
		'-v', 'ON_ERROR_STOP=1',
		'-d', $second->connstr('postgres'),
		'-f', "$temp/all.sql"
	],
	'restore on the second server');

# ---- logical replication ----

foreach my $binary (qw(off on))
{
	my $table = "replicated_$binary";

	$_->safe_psql('postgres', "CREATE TABLE $table ($columns)")
	  foreach $node, $second;
	$node->safe_psql('postgres', <<"SQL");
$inside;
INSERT INTO $table VALUES (1, 'Anna', '2014-05-01', '111', '{"a": 1}'), (2, 'Bo', NULL, NULL, '[]');
CREATE PUBLICATION pub_$binary FOR TABLE $table;
SQL
	my $from = $node->connstr('postgres');
	$second->safe_psql('postgres',
		"CREATE SUBSCRIPTION sub_$binary CONNECTION \$\$$from\$\$ PUBLICATION pub_$binary WITH (binary = $binary)"
	);
	$second->wait_for_subscription_sync($node, "sub_$binary");
	$node->safe_psql('postgres',
		"$inside; INSERT INTO $table VALUES (3, 'Åsa', '2015-01-01', '333', NULL);"
		  . " UPDATE $table SET name = 'Bosse' WHERE id = 2; DELETE FROM $table WHERE ssn = '111';"
		  . " UPDATE $table SET ssn = '444' WHERE ssn = '333'");
	$node->wait_for_catchup("sub_$binary");

	my $all = "SELECT id, name, born, ssn, notes FROM $table ORDER BY id";
	is( $second->safe_psql('postgres', $all),
		$node->safe_psql('postgres', $all),
		"binary = $binary: the same bytes arrive");
	is( $second->safe_psql('postgres', "$inside; $all"),
		"2|Bosse|||[]\n3|Åsa|2015-01-01|444|",
		"binary = $binary: and can be read");
	is( $second->safe_psql(
			'postgres', "$inside; SELECT id FROM $table WHERE ssn = '444'"),
		'3',
		"binary = $binary: and found");
	$second->safe_psql('postgres', "DROP SUBSCRIPTION sub_$binary");
}

# ---- foreign tables ----

my ($host, $port) = ($node->host, $node->port);
my $user = $node->safe_psql('postgres', 'SELECT current_user');
$second->safe_psql('postgres', <<"SQL");
CREATE EXTENSION postgres_fdw;
CREATE SERVER other FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '$host', port '$port', dbname 'postgres');
CREATE USER MAPPING FOR CURRENT_USER SERVER other OPTIONS (user '$user');
CREATE FOREIGN TABLE far (id int, name encrypted(text), born encrypted(date), ssn encrypted(text, searchable))
	SERVER other OPTIONS (table_name 'replicated_off');
SQL
like($second->safe_psql('postgres', 'SELECT name FROM far WHERE id = 3'),
	qr/^nc1:/, 'foreign table, outside a tenant: ciphertext');
is( $second->safe_psql(
		'postgres', 'SELECT name::text, born::date + 1 FROM far ORDER BY id'),
	"Bosse|\nÅsa|2015-01-02",
	'... and casts decrypt');
is( $second->safe_psql(
		'postgres',
		"SELECT id FROM far WHERE ssn = ANY (nomp_crypt.search_values('444'))"
	),
	'3',
	'... and search values find');
like(
	failure($second, "$inside; SELECT name FROM far"),
	qr/^22023: value is encrypted already.*HINT:  .*tenant/s,
	'inside a tenant: an error that says what to do');
is(sqlstate($second, "$inside; INSERT INTO far VALUES (9, 'Plain')"),
	'NC006',
	'nothing is sent that the other server would store as plain text');
is( $node->safe_psql(
		'postgres', 'SELECT count(*) FROM replicated_off WHERE id = 9'),
	'0',
	'and nothing is');
$second->safe_psql('postgres',
	"INSERT INTO far (id, name) VALUES (10, nomp_crypt.encrypt('Far', '$school'))"
);
is( $node->safe_psql(
		'postgres', "$inside; SELECT name FROM replicated_off WHERE id = 10"),
	'Far',
	'ciphertext is stored');

# ---- parallel workers ----

$node->safe_psql('postgres', <<"SQL");
CREATE TABLE many (id int, name encrypted(text), n encrypted(int), ssn encrypted(text, searchable));
$inside;
INSERT INTO many SELECT i, 'name ' || i % 100, i % 1000, 'ssn ' || i FROM generate_series(1, 20000) i;
ANALYZE many;
SQL
my $parallel =
	"$inside; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0;"
  . ' SET min_parallel_table_scan_size = 0; SET max_parallel_workers_per_gather = 2';
foreach my $query (
	[ "SELECT count(*) FROM many WHERE name = 'name 7'", '200' ],
	[ 'SELECT count(*) FROM many WHERE n BETWEEN 10 AND 19', '200' ],
	[ "SELECT id FROM many WHERE ssn = 'ssn 19999'", '19999' ],
	[ 'SELECT min(n), max(name) FROM many', '0|name 99' ],
	[ 'SELECT n FROM many ORDER BY n DESC, id LIMIT 2', "999\n999" ],
	[
		"SELECT count(*) FROM many a JOIN many b ON a.ssn = b.ssn WHERE a.name LIKE 'name 1%'",
		'2200'
	])
{
	my ($sql, $expected) = @$query;

	like(
		$node->safe_psql('postgres', "$parallel; EXPLAIN $sql"),
		qr/Workers Planned/,
		"in parallel: $sql");
	is($node->safe_psql('postgres', "$parallel; $sql"),
		$expected, '... answers');
}

$second->stop;
$node->stop;
done_testing();
