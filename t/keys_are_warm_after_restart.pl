# After a restart, or a failover, all sessions come at once, and the keystore
# may be what is down.  So a node remembers which schools are in use and loads
# their keys before anybody asks, the busiest first, and a standby keeps warm
# what its primary uses.  What is remembered is ids: whatever else it may say,
# no school gets readable by it that is not.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# 16 keys, two for each school: eight schools fit
my @used = map { "used$_" } 1 .. 4;
my @unused = map { "unused$_" } 1 .. 2;

my $node = nomp_node('main', allows_streaming => 1);
my $dir = $node->{nomp_dir};
my $uri = frail_keystore($dir, 'nomp');
# a service is looked at several times before a key is said to be gone, and a
# machine may be busy with other things
my $timeout = '5s';

sub configure
{
	my ($on) = @_;

	$on->append_conf('postgresql.conf', <<"CONF");
nomp_crypt.keystore = '$uri'
nomp_crypt.keystore_timeout = $timeout
nomp_crypt.warm_interval = 1s
nomp_crypt.max_cached_keys = 16
log_statement = none
CONF
	return;
}

configure($node);
$node->start;
create_nomp($node, @used, @unused, qw(erased suspended));
$node->safe_psql('postgres', 'CREATE DATABASE without_extension');
$node->safe_psql('postgres',
		'INSERT INTO pupil (id, school, name)'
	  . " SELECT row_number() OVER (), id, nomp_crypt.encrypt('Anna', id)"
	  . ' FROM nomp_crypt.tenants');

# What reading a school gives: plaintext or SQLSTATE.
sub reading
{
	my ($school, $on) = @_;

	return outcome(
		$on // $node,
		in_tenant($school, "SELECT name FROM pupil WHERE school = '$school'")
	);
}

# The schools that have keys in memory.
sub warm
{
	my ($on) = @_;

	return ($on // $node)->safe_psql('postgres',
		"SELECT string_agg(id, ' ' ORDER BY id) FROM nomp_crypt.stat_tenants WHERE cached_keys > 0"
	);
}

sub becomes_warm
{
	my ($expected, $name, $on) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_until(sub { warm($on) eq $expected },
		"$expected to be warm, not " . warm($on));
	return pass($name);
}

sub remembered
{
	return $node->safe_psql(
		'postgres',
		q(SELECT string_agg(t.id, ' ' ORDER BY u.n) FROM nomp_crypt.busy b, unnest(b.tenants) WITH ORDINALITY u(tenant, n)
		  LEFT JOIN nomp_crypt.tenant t ON t.uuid = u.tenant WHERE b.cluster ~ '^\d+$')
	);
}

sub sorted { return join ' ', sort split / /, $_[0] }

# Wait until the warmer has gone by as often again.
sub warmer_goes_by
{
	my ($times) = @_;
	for (1 .. $times)
	{
		my $log_start = -s $node->logfile;

		$node->wait_for_log(
			qr/starting background worker process "nomp_crypt warmer".*exited with exit code 0/s,
			$log_start);
	}
	return;
}

# the keys of all schools are in memory now; forget them
$node->safe_psql('postgres', 'DELETE FROM nomp_crypt.busy');
$node->append_conf('postgresql.conf', 'nomp_crypt.warm_interval = 0');
$node->restart;
$node->safe_psql('postgres', 'DELETE FROM nomp_crypt.busy');
$node->restart;
is(warm(), '', 'with an interval of 0 nothing is loaded');
is(reading($_), 'Anna', "$_ is used") for @used;

# ---- remembered, and loaded ----

$node->append_conf('postgresql.conf',
	"nomp_crypt.warm_interval = 1s\nlog_min_messages = debug1");
$node->reload;
wait_until(sub { sorted(remembered() // '') eq "@used" },
	'the used schools to be remembered');
pass('the schools that are used are remembered, and no others');
{
	my $state = "SELECT at, xmin FROM nomp_crypt.busy";
	my $today = 'SELECT current_date';
	my ($before, $day);

	# on which day each was used is remembered: not over midnight
	do
	{
		$day = $node->safe_psql('postgres', $today);
		warmer_goes_by(2);
		$before = $node->safe_psql('postgres', $state);
		warmer_goes_by(3);
	} while ($node->safe_psql('postgres', $today) ne $day);
	is($node->safe_psql('postgres', $state),
		$before, 'while they are the same nothing is written');
}

my $unwraps =
  'SELECT unwraps, misses, hits FROM nomp_crypt.stat_keystore, nomp_crypt.stat_keyring';
$node->restart;
becomes_warm("@used", 'after a restart their keys are loaded');
is($node->safe_psql('postgres', $unwraps),
	'4|0|0', 'with one request each, and no session that asked');
is( $node->safe_psql(
		'postgres',
		'SELECT count(*) FROM nomp_crypt.stat_tenants WHERE last_used IS NOT NULL'
	),
	0,
	'loading is no use');
keystore_has_trouble(everything => 'hangs');
restart_helper($node);
is(reading($_), 'Anna', "$_ can be read while the keystore hangs") for @used;
is(reading('unused1'), 'NC004', 'a school that was not used cannot');

# ---- an outage at the start does not make it forget ----

$node->restart;
is(reading($used[0]), 'NC004',
	'nothing can be loaded from a keystore that hangs');
warmer_goes_by(2);
is(sorted(remembered()), "@used", 'who was busy is still remembered');
keystore_recovers();
becomes_warm("@used", 'when the keystore is back they are loaded');

$node->teardown_node;  # kill -9 would do the same: nothing is kept at the end
$node->start;
becomes_warm("@used", 'after an immediate shutdown, too');

# ---- whatever it remembers, no harm ----

$node->safe_psql('postgres',
	"CALL nomp_crypt.erase_tenant('erased', 'test')");
$node->safe_psql('postgres',
	"UPDATE nomp_crypt.tenant SET state = 'suspended' WHERE id = 'suspended'"
);
# unloaded by being erased and suspended; now remembered as if by an old list
$node->safe_psql('postgres', <<'SQL');
INSERT INTO nomp_crypt.busy (cluster, tenants)
SELECT 'another', array_agg(uuid) || '{00000000-0000-0000-0000-000000000000,12345678-1234-1234-1234-123456789abc}'::uuid[]
	|| NULL::uuid FROM nomp_crypt.tenant WHERE id IN ('erased', 'suspended');
INSERT INTO nomp_crypt.busy (cluster, tenants)
SELECT 'twice', array_agg(uuid) || array_agg(uuid) FROM nomp_crypt.tenant WHERE id = 'unused1';
INSERT INTO nomp_crypt.busy (cluster, tenants) VALUES ('empty', '{}');
SQL
my $log_start = -s $node->logfile;
$node->restart;
becomes_warm("unused1 @used",
	'what another cluster remembers is loaded as well');
warmer_goes_by(2);
is( warm(),
	"unused1 @used",
	'erased, suspended and unknown schools are not loaded');
unlike(slurp_file($node->logfile, $log_start),
	qr/ERROR/, 'and nothing is said of it in the log');
is(reading('erased'), 'NC001', 'the erased one is erased');
is(reading('suspended'), 'NC002', 'the suspended one suspended');
$node->safe_psql('postgres',
	'ALTER DATABASE postgres SET default_transaction_read_only = on');
$log_start = -s $node->logfile;
warmer_goes_by(2);
unlike(slurp_file($node->logfile, $log_start),
	qr/ERROR/, 'nor where transactions are read-only by default');
$node->safe_psql('postgres',
	'SET default_transaction_read_only = off; ALTER DATABASE postgres RESET default_transaction_read_only'
);
$node->safe_psql('postgres',
	"DELETE FROM nomp_crypt.busy WHERE cluster IN ('another', 'twice', 'empty')"
);

# ---- what nobody uses is forgotten, and clusters that have gone silent ----

$node->safe_psql('postgres', <<'SQL');
UPDATE nomp_crypt.busy SET at = now() - interval '2 days',
	used_on = array_fill(current_date - 7, ARRAY[cardinality(tenants)]);
INSERT INTO nomp_crypt.busy (cluster, tenants, at)
SELECT 'silent', array_agg(uuid), now() - interval '31 days' FROM nomp_crypt.tenant WHERE id = 'unused2';
SQL
$node->restart;
becomes_warm("unused1 @used", 'what was used before is loaded');
is(reading('used1'), 'Anna', 'one is used');
wait_until(sub { (remembered() // '') eq 'used1' },
	'schools that nobody used for a week to be forgotten');
pass('schools that nobody used for a week are forgotten');
unlike(warm(), qr/unused2/,
	'those of a cluster that wrote nothing for a month are not loaded');
$node->safe_psql('postgres',
	"DELETE FROM nomp_crypt.busy WHERE cluster = 'silent'");
is(reading($_), 'Anna', "$_ is used again") for @used, 'unused1';
wait_until(sub { sorted(remembered()) eq "unused1 @used" },
	'all used schools to be remembered');

# ---- a standby ----

$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
nomp_conf($standby, $dir, 'nomp');
configure($standby);
$standby->start;
becomes_warm("unused1 @used",
	'a standby that nobody has asked anything loads what its primary uses',
	$standby);
is(reading('unused2'), 'Anna',
	'another school comes into use on the primary');
becomes_warm("unused1 unused2 @used", 'the standby follows', $standby);
$node->safe_psql('postgres',
	"CALL nomp_crypt.erase_tenant('unused1', 'test')");
$node->wait_for_catchup($standby);
is(reading('unused1', $standby), 'NC001', 'a school is erased');
becomes_warm("unused2 @used",
	'its keys are gone from the standby, too', $standby);
$node->stop;
keystore_has_trouble(everything => 'hangs');
restart_helper($standby);
$standby->promote;
is(reading($_, $standby),
	'Anna', "after a failover in an outage of the keystore, $_ reads")
  for @used, 'unused2';
keystore_recovers();
$standby->stop;
$node->start;

# ---- the busiest come first ----

$node->safe_psql(
	'postgres',
	sprintf "CALL nomp_crypt.create_tenants('{%s}')",
	join(',', map { "later$_" } 1 .. 8));
$node->append_conf('postgresql.conf', 'nomp_crypt.warm_interval = 0');
$node->restart;
$node->safe_psql('postgres', <<'SQL');
UPDATE nomp_crypt.busy SET at = 'infinity', tenants =
	ARRAY(SELECT uuid FROM nomp_crypt.tenant WHERE state = 'active' ORDER BY id NOT IN ('used3', 'later7', 'used2'), id);
SQL
$node->append_conf('postgresql.conf', 'nomp_crypt.warm_interval = 1h');
$node->restart;
becomes_warm(
	'later1 later2 later3 later4 later5 later7 used2 used3',
	'the first ones on the list are loaded, as many as there is room for');
is( $node->safe_psql(
		'postgres', 'SELECT entries, evictions FROM nomp_crypt.stat_keyring'),
	'16|0',
	'and none is evicted for another');

# who is used all the time is busier than who was used once
$node->append_conf('postgresql.conf',
	"nomp_crypt.warm_interval = 0\nnomp_crypt.max_cached_keys = 100");
$node->restart;
is(reading('used1'), 'Anna', 'a school is used once');
{
	my $busier =
	  q(SELECT max(busyness) FILTER (WHERE id = 'used4') > 2 + max(busyness) FILTER (WHERE id = 'used1')
		FROM nomp_crypt._keyring_uses() u JOIN nomp_crypt.tenant t ON t.uuid = u.tenant);

	wait_until(
		sub {
			reading('used4') eq 'Anna'
			  and $node->safe_psql('postgres', $busier) eq 't';
		},
		'the busyness of a school');
	$node->safe_psql('postgres', 'DELETE FROM nomp_crypt.busy');
	$node->safe_psql('postgres', 'SELECT nomp_crypt._keep_warm()');
	is(remembered(), 'used4 used1', 'another for seconds: it comes first');
}

# ---- by hand ----

$node->restart;
is(outcome($node, q(SELECT nomp_crypt.prewarm('{used1,used2}'))),
	4, 'two schools are loaded on request');
is(warm(), 'used1 used2', 'they are in memory');
is(outcome($node, q(SELECT nomp_crypt.prewarm('{used1,used2}'))),
	0, 'there is nothing to load again');
is(outcome($node, q(SELECT nomp_crypt.prewarm('{used1,nowhere}'))),
	'42704', 'an unknown school is an error');
is(outcome($node, q(SELECT nomp_crypt.prewarm('{suspended}'))),
	0, 'a suspended one is not loaded');
is(outcome($node, q(SELECT nomp_crypt.prewarm(max => 1))),
	2, 'the busiest one');
is(warm(), 'used1 used2 used4', 'is the one that is remembered first');
is( outcome($node, q(SELECT nomp_crypt.prewarm() / 2)),
	$node->safe_psql(
		'postgres',
		"SELECT count(*) - 3 FROM nomp_crypt.tenant WHERE state = 'active'"),
	'then all others');
keystore_has_trouble(everything => 'fails');
$node->restart;
is(outcome($node, q(SELECT nomp_crypt.prewarm())),
	'NC004', 'without a keystore that is an error');
$node->safe_psql('postgres', 'CREATE ROLE app');
is(outcome($node, q(SET ROLE app; SELECT nomp_crypt.prewarm())),
	'42501', 'it is for administrators');
$node->stop;
done_testing();
