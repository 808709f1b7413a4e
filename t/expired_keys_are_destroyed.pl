# The KEK that a school had before a rewrap is destroyed when no backup can
# need it any more: seen first, on record first, on the right server, and only
# when every standby and every slot has what replaced it.  Nobody who reads
# notices, and whatever interrupts it, the same call ends in the same state.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my @crash_schools = qw(submitted destroying destroyed erased);
my $node = nomp_node('primary', allows_streaming => 1);
my $dir = $node->{nomp_dir};
$node->append_conf('postgresql.conf', <<'CONF');
wal_level = logical
nomp_crypt.backup_retention = 0
CONF
$node->start;
create_nomp($node, 'school', 'copied', 'suspended', @crash_schools);
my $number = 0;
for my $school ('school', 'copied', 'suspended', @crash_schools)
{
	$number++;
	one(in_tenant(
			$school,
			"INSERT INTO pupil VALUES ($number, '$school', 'Anna', '')"));
}

sub one
{
	my ($sql) = @_;

	return $node->safe_psql('postgres', $sql);
}

sub reading
{
	my ($school, $where) = @_;

	return outcome(
		$where // $node,
		in_tenant($school, "SELECT name FROM pupil WHERE school = '$school'")
	);
}

sub kek_of
{
	my ($school, $generation) = @_;

	return
	  "(SELECT k.uuid FROM nomp_crypt.kek k JOIN nomp_crypt.tenant t ON t.uuid = k.tenant"
	  . " WHERE t.id = '$school' AND k.generation = $generation)";
}

# What a school's KEKs are in the table, and which of them the token has.
sub keks_of
{
	my ($school) = @_;
	my $uuid =
	  one("SELECT uuid FROM nomp_crypt.tenants WHERE id = '$school'");

	return one(
		"SELECT string_agg(generation || ' ' || state, ', ' ORDER BY generation)"
		  . " FROM nomp_crypt.kek WHERE tenant = '$uuid'")
	  . '; token: '
	  . join ', ',
	  sort map { /:\Q$uuid\E:(\d+)/ ? $1 : () } token_labels($dir, 'nomp');
}

sub rewrap
{
	my ($school) = @_;

	return one("SELECT nomp_crypt.rewrap_tenant('$school')");
}

my $destroy = 'CALL nomp_crypt.destroy_expired_keks()';

# The power goes after each of the steps.
for my $school (qw(submitted destroying destroyed))
{
	my $session;

	rewrap($school);
	one('SELECT nomp_crypt._expire_submit(' . kek_of($school, 1) . ')');
	if ($school eq 'destroying')
	{
		$session = open_session($node);
		$session->query_safe('BEGIN');
		$session->query_safe(
			'SELECT nomp_crypt._expire_destroy(' . kek_of($school, 1) . ')');
		is( keks_of($school),
			'1 retired, 2 active; token: 2',
			"$school: the key is gone before the commit");
	}
	one('SELECT nomp_crypt._expire_destroy(' . kek_of($school, 1) . ')')
	  if $school eq 'destroyed';
	crash($node);
	$session->{run}->finish if defined $session;
	$node->start;
	is(reading($school), 'Anna', "$school: readable after the crash");
	is(sqlstate($node, $destroy), '', "$school: the call can be repeated");
	is( keks_of($school),
		'1 destroyed, 2 active; token: 2',
		"$school: and ends in the same state");
	is( one("SELECT keystore_serial IS NOT NULL AND submitted_at < destroyed_at"
			  . " FROM nomp_crypt.kek WHERE uuid = @{[ kek_of($school, 1) ]}"
		),
		't',
		"$school: which is on record");
}

# A call that waits for the keystore while the power goes.
{
	rewrap('submitted');
	is(keystore_state($node), 'ok', 'the keystore is there');
	kill 'STOP', helper_pid($node);
	my $query = start_query($node, $destroy);
	$node->poll_query_until('postgres',
		"SELECT count(*) = 1 FROM pg_stat_activity WHERE query ~ '^CALL nomp_crypt.destroy' AND wait_event = 'Extension'"
	) or die 'the call did not begin';
	crash($node);
	end_query($query);
	$node->start;
	is( keks_of('submitted'),
		'1 destroyed, 2 retired, 3 active; token: 2, 3',
		'crash while the keystore is asked: nothing was destroyed');
	is(sqlstate($node, $destroy), '', 'the call can be repeated');
	is( keks_of('submitted'),
		'1 destroyed, 2 destroyed, 3 active; token: 3',
		'and ends in the same state');
}

# Erased when the destruction of a KEK had been lost in a crash.
{
	rewrap('erased');
	one('SELECT nomp_crypt._expire_submit(' . kek_of('erased', 1) . ')');
	one(    'BEGIN; SELECT nomp_crypt._expire_destroy('
		  . kek_of('erased', 1)
		  . '); ROLLBACK');
	is( keks_of('erased'),
		'1 retired, 2 active; token: 2',
		'a KEK that was seen and is gone');
	is(sqlstate($node, "CALL nomp_crypt.erase_tenant('erased', 'test')"),
		'', 'does not keep its school from being erased');
	is( keks_of('erased'),
		'1 destroyed, 2 destroyed; token: ',
		'with its other KEKs');
	is(reading('erased'), 'NC001', 'it is erased');
}

# A suspended school's.
{
	rewrap('suspended');
	one("CALL nomp_crypt.suspend_tenant('suspended')");
	is(sqlstate($node, $destroy), '', "a suspended school's KEK");
	is( keks_of('suspended'),
		'1 destroyed, 2 active; token: 2',
		'is destroyed like any other');
	one("CALL nomp_crypt.resume_tenant('suspended')");
	is(reading('suspended'), 'Anna',
		'and the school resumes with its new one');
}

# A copy of the server.
{
	rewrap('copied');
	$node->backup('copy');
	my $copy = PostgreSQL::Test::Cluster->new('copy');

	$copy->init_from_backup($node, 'copy');
	$copy->start;
	is(reading('copied', $copy), 'Anna', 'a copy reads');
	is(sqlstate($copy, $destroy), '55000', 'but destroys nothing');
	is( keks_of('copied'),
		'1 retired, 2 active; token: 1, 2',
		'the KEK is there');
	$copy->stop;
	is(sqlstate($node, $destroy), '', 'the original destroys it');
	is(keks_of('copied'), '1 destroyed, 2 active; token: 2', 'it is gone');
}

# Standbys and slots.
$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->append_conf('postgresql.conf', <<"CONF");
nomp_crypt.register_directory = '$dir/register-standby'
nomp_crypt.key_check_interval = 1s
wal_receiver_status_interval = 1s
CONF
$standby->start;
$node->wait_for_catchup($standby);
{
	my $old = kek_of('school', 1);
	my $busy = open_session($standby);
	my $idle = open_session($standby);
	my $read = "SELECT name FROM pupil WHERE school = 'school'";

	# both have the school's keys, from the KEK that will go
	for my $session ($busy, $idle)
	{
		$session->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ;'
			  . " SET LOCAL nomp_crypt.tenant = 'school'");
		is($session->query_safe($read),
			'Anna', 'a session on the standby reads');
	}
	$standby->safe_psql('postgres', 'SELECT pg_wal_replay_pause()');
	$standby->poll_query_until('postgres',
		'SELECT pg_get_wal_replay_pause_state()', 'paused')
	  or die 'replay does not pause';
	is(rewrap('school'), 2, 'a new KEK, which the standby has not heard of');
	one("SELECT nomp_crypt._expire_submit($old)");
	like(
		failure($node, "SELECT nomp_crypt._expire_destroy($old)"),
		qr/^55000: key \S+ may still be needed: standby "standby" has not replayed/,
		'a standby that has not replayed it is named');
	is( keks_of('school'),
		'1 retired, 2 active; token: 1, 2',
		'and the KEK stays');
	is(reading('school', $standby), 'Anna', 'so the standby reads on');
	$standby->safe_psql('postgres', 'SELECT pg_wal_replay_resume()');

	one("SELECT pg_create_physical_replication_slot('away', true)");
	one("SELECT pg_create_logical_replication_slot('subscriber', 'test_decoding')"
	);
	# another database's subscribers have none of these rows
	one('CREATE DATABASE elsewhere');
	$node->safe_psql('elsewhere',
		"SELECT pg_create_logical_replication_slot('elsewhere', 'test_decoding')"
	);
	rewrap('school');
	$old = kek_of('school', 2);
	one("SELECT nomp_crypt._expire_submit($old)");
	$node->wait_for_catchup($standby);
	like(
		failure($node, "SELECT nomp_crypt._expire_destroy($old)"),
		qr/: .*slot "away", slot "subscriber"/,
		'slots that are behind are named');
	one("SELECT pg_drop_replication_slot('away')");
	is(sqlstate($node, "SELECT nomp_crypt._expire_destroy($old)"),
		'55000', 'one is enough');

	one("SELECT count(*) FROM pg_logical_slot_get_changes('subscriber', NULL, NULL)"
	);

	starts($busy, "SELECT pg_sleep(5), 'slept'");
	is(sqlstate($node, $destroy), '', 'when all have it, it goes on');
	is( keks_of('school'),
		'1 destroyed, 2 destroyed, 3 active; token: 3',
		'and destroys both');
	one("SELECT pg_drop_replication_slot('subscriber')");
	$node->safe_psql('elsewhere',
		"SELECT pg_drop_replication_slot('elsewhere')");
	is(reading('school'), 'Anna', 'the primary reads');
	# the standby's background check finds the old KEK gone, and makes no fuss
	is(says($busy, ''), '|slept', 'a busy session on the standby lives');
	is(says($busy, $read), 'Anna', 'and reads on');
	is(says($idle, $read), 'Anna', 'so does one that was idle');
	is(reading('school', $standby), 'Anna', 'and a new one');
	unlike(
		slurp_file($standby->logfile),
		qr/no longer has the key|terminating/,
		'its log has no alarm');
	$_->quit for $busy, $idle;
}

# Backups from before are beyond their retention now; those after are not.
{
	my $early = PostgreSQL::Test::Cluster->new('early');

	$early->init_from_backup($node, 'base');
	$early->start;
	is(reading('school', $early),
		'NC003', 'a backup from before needs the key that is gone');
	is(reading('copied', $early),
		'Anna', 'what has not changed since is readable');
	$early->stop;
}

$standby->stop;
$node->stop;
done_testing();
