# A table partitioned by school over two shards, sessions inside a school on a
# coordinator, all set up as docs/operations.md says.  What people write must
# work as if the table were here; nothing but ciphertext may reach a shard; and
# when a school is erased, one call on each node must leave no key of it in any
# of them, and no node may call erased what it does not know to be.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Procedures;
use Test::More;

my @schools = qw(s-1 s-2 s-3);
my $node = nomp_node('coordinator', allows_streaming => 'logical');
my $dir = $node->{nomp_dir};
my @shards = map { PostgreSQL::Test::Cluster->new("shard$_") } 1, 2;

$node->start;
create_nomp($node, @schools);
$node->safe_psql('postgres',
		'DROP TABLE pupil; CREATE ROLE app LOGIN;'
	  . " SELECT nomp_crypt.grant_all_tenants('app', '{encrypt,decrypt,search}')"
);

# the second shard has no keystore
for my $shard (@shards)
{
	$shard->init(
		allows_streaming => 'logical',
		extra => [ '--encoding=UTF8', '--no-locale' ]);
	nomp_conf($shard, $dir, 'nomp');
	$shard->append_conf('postgresql.conf', <<'CONF');
log_min_duration_statement = 0
log_parameter_max_length = -1
CONF
}
$shards[1]->append_conf('postgresql.conf', "nomp_crypt.keystore = ''");
$_->start for @shards;
my %nodes =
  (coordinator => $node, shard1 => $shards[0], shard2 => $shards[1]);

run_procedure(
	'shards',
	\%nodes,
	'host=coordinator dbname=school user=replicator' => $node->connstr
	  . ' dbname=postgres',
	"host 'shard1', port '5432', dbname 'school'" => sprintf(
		"host '%s', port '%d', dbname 'postgres'",
		$shards[0]->host, $shards[0]->port),
	"host 'shard2', port '5432', dbname 'school'" => sprintf(
		"host '%s', port '%d', dbname 'postgres'",
		$shards[1]->host, $shards[1]->port),
	"password '...'" => "password_required 'false'");
$shards[0]->wait_for_subscription_sync($node, 'shard1');
$shards[1]->wait_for_subscription_sync($node, 'shard2');

# What the application's role gets on the coordinator.
sub app
{
	my ($sql) = @_;

	return outcome($node, "SET ROLE app; $sql");
}

sub inside
{
	my ($school, $sql) = @_;

	return app(in_tenant($school, $sql));
}

# ---- as if it were here ----

for my $school (@schools)
{
	is( inside(
			$school,
			"INSERT INTO pupil VALUES (1, '$school', 'Anna i $school', '20140501-1234'),"
			  . " (2, '$school', 'Bo i $school', '20150101-1111'),"
			  . " (3, '$school', NULL, NULL)"),
		'',
		"$school: rows are written");
	is( inside(
			$school,
			"SELECT id, name, ssn FROM pupil WHERE school = '$school' ORDER BY name"
		),
		"1|Anna i $school|20140501-1234\n2|Bo i $school|20150101-1111\n3||",
		"$school: read, and ordered");
	is( inside(
			$school,
			"SELECT id FROM pupil WHERE school = '$school' AND ssn = '20150101-1111'"
		),
		'2',
		"$school: found by searchable equality");
}
my $one = "school = 's-1'";
is( inside(
		's-1',
		"PREPARE p (text, text, bigint) AS SELECT id FROM pupil WHERE school = \$1 AND ssn = \$2 AND id < \$3;"
		  . ' SET LOCAL plan_cache_mode = force_generic_plan;'
		  . " EXECUTE p ('s-1', '20140501-1234', 5)"),
	'1',
	'by a prepared statement with a generic plan');
is(inside('s-1', "SELECT id FROM pupil WHERE $one AND name LIKE 'Bo%'"),
	'2', 'by a pattern');
is( inside(
		's-1',
		"SELECT a.id, b.id FROM pupil a JOIN pupil b ON a.ssn = b.ssn WHERE a.$one AND b.$one ORDER BY 1"
	),
	"1|1\n2|2",
	'joined');
is( inside(
		's-1',
		"SELECT a.id, b.name FROM pupil a JOIN pupil b ON a.id = b.id WHERE a.$one AND b.$one AND a.id = (SELECT 2)"
	),
	'2|Bo i s-1',
	'joined on the shard, with a parameter');
is(inside('s-1', "SELECT count(*), max(name) FROM pupil WHERE $one"),
	'3|Bo i s-1', 'aggregated');
is( inside(
		's-1',
		"UPDATE pupil SET name = 'Bosse' WHERE $one AND ssn = '20150101-1111' RETURNING name, ssn"
	),
	'Bosse|20150101-1111',
	'changed, and returned');
is( inside(
		's-1',
		"UPDATE pupil SET name = nomp_crypt.encrypt('Bo i s-1', 's-1') WHERE $one AND id = 2; SELECT name FROM pupil WHERE $one AND id = 2"
	),
	'Bo i s-1',
	'and changed back');
is( inside(
		's-1', "INSERT INTO pupil VALUES (4, 's-1', 'Eva', '20140501-1234')"),
	'23505',
	'a value that must be unique is refused');
is( inside(
		's-1', "DELETE FROM pupil WHERE $one AND name IS NULL RETURNING id"),
	'3',
	'deleted');
is( inside(
		's-1',
		"INSERT INTO pupil SELECT id + 100, school, name, NULL FROM pupil WHERE $one; SELECT count(*) FROM pupil WHERE $one"
	),
	'4',
	'copied within the school');
is(inside('s-1', 'SELECT name FROM pupil'),
	'55000', 'rows of other schools are refused, as in any table');

# Outside.
like(app("SELECT name FROM pupil WHERE $one AND id = 1"),
	qr/^nc1:/, 'outside a school: ciphertext');
is( app("SELECT school, name::text FROM pupil WHERE ssn = ANY (nomp_crypt.search_values('20140501-1234')) ORDER BY 1"
	),
	"s-1|Anna i s-1\ns-2|Anna i s-2\ns-3|Anna i s-3",
	'a person is looked up in all schools');

# ---- what travels ----

for my $shard (@shards)
{
	my $log = slurp_file($shard->logfile);

	like(
		$log,
		qr/INSERT INTO public\.pupil.*nc1:/s,
		$shard->name . "'s log has ciphertext that was sent");
	# ciphertext is letters by chance
	unlike(
		$log =~ s/nc1:[A-Za-z0-9+\/=]+/nc1:/gr,
		qr/Anna|Bosse|Eva|20140501|20150101/,
		'... and no plaintext');
	is( $shard->safe_psql('postgres', 'SELECT name FROM pupil LIMIT 1') =~
		  /^nc1:/ ? 'ciphertext' : '',
		'ciphertext',
		'it stores ciphertext');
}
unlike(
	$node->safe_psql(
		'postgres',
		in_tenant(
			's-1',
			"EXPLAIN (VERBOSE) SELECT id FROM pupil WHERE $one AND ssn = '20140501-1234'"
		)),
	qr/Remote SQL:.*2014/,
	'nor is plaintext in what is asked of it');

# Whoever finds a ciphertext cannot read it by way of a foreign table.
my $found = app("SELECT name FROM pupil WHERE $one AND id = 1");
$_->safe_psql('postgres',
	"CREATE TABLE planted (id int, name text); INSERT INTO planted VALUES (1, '$found'); GRANT SELECT ON planted TO coordinator"
) for $shards[0];
$node->safe_psql('postgres', <<'SQL');
CREATE ROLE thief;
SELECT nomp_crypt.grant_all_tenants('thief', '{encrypt,decrypt}');
GRANT USAGE ON FOREIGN SERVER shard1 TO thief;
CREATE SCHEMA thief AUTHORIZATION thief;
CREATE USER MAPPING FOR thief SERVER shard1 OPTIONS (user 'coordinator', password_required 'false');
SQL
is( outcome(
		$node,
		"SET ROLE thief; CREATE FOREIGN TABLE thief.planted (id int, name encrypted(text)) SERVER shard1 OPTIONS (schema_name 'public', table_name 'planted');"
		  . in_tenant('s-1', 'SELECT name FROM thief.planted')),
	'42501',
	'ciphertext in a foreign table of one who may not load it is refused');

# Nor by code that runs while the rows of a table that he may read are fetched.
$node->safe_psql('postgres', <<"SQL");
GRANT SELECT ON pupil_north TO thief;
CREATE TABLE shape (name encrypted(text));
GRANT SELECT ON shape TO thief;
SET ROLE thief;
CREATE FUNCTION thief.load() RETURNS int LANGUAGE plpgsql VOLATILE AS \$\$
BEGIN
	PERFORM jsonb_populate_record(NULL::public.shape, '{"name": "$found"}');
	RETURN 1;
END
\$\$;
SQL
is( outcome(
		$node,
		'SET ROLE thief; '
		  . in_tenant(
			's-1',
			'SELECT id FROM pupil_north WHERE id = (SELECT thief.load())')),
	'22023',
	'a query for a parameter does not run under the right of the owner');

# ---- a school is erased ----

my %keys = school_keys($node, $dir, 's-2');
is(sqlstate($shards[0], "CALL nomp_crypt.erase_tenant('s-2', 'test')"),
	'55000', 'a shard does not erase of its own accord');
is( $shards[0]->safe_psql(
		'postgres',
		"SELECT nomp_crypt.grant_all_tenants('postgres', '{decrypt}') WHERE false;"
		  . " SELECT count(*) FROM nomp_crypt.erasure"),
	'0',
	'and leaves no trace of it');
my @steps = procedure_steps('shards-erase');
is(scalar(@steps), 3, 'one call on each of three nodes');
is(inside('s-2', "SELECT name FROM pupil WHERE school = 's-2' AND id = 1"),
	'Anna i s-2', 'before it, the school reads');
{
	# the shards are told in their own time, so the procedure waits for them
	my ($first, @others) = @steps;

	$node->safe_psql('postgres', $first->[2]);
	$node->wait_for_catchup($_) for 'shard1', 'shard2';
	run_procedure('shards-erase', \%nodes);
}
is(inside('s-2', "SELECT name FROM pupil WHERE school = 's-2' AND id = 1"),
	'NC001', 'it is erased');
is( $_->safe_psql(
		'postgres', "SELECT state FROM nomp_crypt.tenants WHERE id = 's-2'"),
	'erased',
	$_->name . ' knows') for @shards;
for my $each ($node, @shards)
{
	my $in_memory = find_in_memory($each, grep { length == 32 } values %keys);

	is(scalar(map { @$_ } values %$in_memory),
		0, $each->name . ' has no key of it in memory');
}
is_deeply(
	[ sort grep { !/:canary$|:register:/ } token_labels($dir, 'nomp') ],
	[ sort map { kek_label($node, $_) } qw(s-1 s-3) ],
	'the token has the keys of the other two');
is(inside($_, "SELECT name FROM pupil WHERE school = '$_' AND id = 1"),
	"Anna i $_", "$_ reads on")
  for 's-1', 's-3';

$_->stop for @shards, $node;
done_testing();
