# A suspended school is unreadable at once and everywhere: in sessions that
# have read it, in this node's memory, on standbys, on those that have not
# replayed it, and in a restored backup; and readable again when it is resumed.
# What interrupts it leaves it suspended, and the same call goes on.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my @crash_schools = qw(stated wiped disabled enabled);
my $node = nomp_node('primary', allows_streaming => 1);
my $dir = $node->{nomp_dir};
my $uri = frail_keystore($dir, 'nomp');
$node->append_conf('postgresql.conf', <<"CONF");
nomp_crypt.keystore = '$uri'
shared_buffers = 2MB
nomp_crypt.max_cached_keys = 100
CONF
$node->start;
create_nomp($node, 'school', 'living', @crash_schools);
my $number = 0;

for my $school ('school', 'living', @crash_schools)
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

sub read_sql
{
	my ($school) = @_;

	return "SELECT name FROM pupil WHERE school = '$school'";
}

sub reading
{
	my ($school, $where) = @_;

	return outcome($where // $node, in_tenant($school, read_sql($school)));
}

sub state_of
{
	my ($school, $where) = @_;

	return ($where // $node)
	  ->safe_psql('postgres',
		"SELECT state FROM nomp_crypt.tenants WHERE id = '$school'");
}

# What the keystore says, whatever the database does.
sub by_keystore
{
	my ($school) = @_;
	my $was = state_of($school);

	one("UPDATE nomp_crypt.tenant SET state = 'active' WHERE id = '$school'");
	my $read = reading($school);
	one("UPDATE nomp_crypt.tenant SET state = '$was' WHERE id = '$school'");
	one("SELECT nomp_crypt._wipe(uuid) FROM nomp_crypt.tenants WHERE id = '$school'"
	);
	return $read;
}

sub traces
{
	my ($where, %keys) = @_;
	my $found = find_in_memory($where, grep { length == 32 } values %keys);

	return scalar map { @$_ } values %$found;
}

sub reader
{
	my ($where, $school) = @_;
	my $session = open_session($where);

	$session->query_safe("BEGIN ISOLATION LEVEL REPEATABLE READ;"
		  . " SET LOCAL nomp_crypt.tenant = '$school'");
	is($session->query_safe(read_sql($school)),
		'Anna', "a session inside $school reads");
	return $session;
}

my $suspend = "CALL nomp_crypt.suspend_tenant('%s')";
my $resume = "CALL nomp_crypt.resume_tenant('%s')";

one("SELECT nomp_crypt.rewrap_tenant('school')");
$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->append_conf('postgresql.conf', <<"CONF");
nomp_crypt.register_directory = '$dir/register-standby'
nomp_crypt.key_check_interval = 1h
CONF
$standby->start;
$node->wait_for_catchup($standby);

# Here, and on a standby that replays.
{
	my %keys = school_keys($node, $dir, 'school');
	my @sessions = (reader($node, 'school'), reader($standby, 'school'));
	my @others = (reader($node, 'living'), reader($standby, 'living'));
	my $busy = reader($node, 'school');

	starts($busy, "SELECT pg_sleep(600)");
	$node->poll_query_until('postgres',
		"SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep')"
	) or die 'the busy session does not begin';
	cmp_ok(traces($node, %keys), '>', 0, 'its keys are in memory');
	is(sqlstate($node, sprintf $suspend, 'school'), '', 'it is suspended');
	is(traces($node, %keys), 0, 'then no process here has its keys');
	is(reading('school'), 'NC002', 'nobody reads');
	$busy->{run}->finish;
	$node->wait_for_catchup($standby);
	is(reading('school', $standby), 'NC002', 'nor on the standby');
	ok( wait_until(
			sub { traces($standby, %keys) == 0 },
			'the standby to wipe'),
		'where no process has its keys any more');
	is(says($_, read_sql('school')),
		'NC002', 'a session that had read it stops')
	  for @sessions;
	is(says($_, read_sql('living')), 'Anna', "another school's reads on")
	  for @others;
	$_->quit for @sessions, @others;
	is(by_keystore('school'), 'NC002', 'the keystore has disabled its keys');

	is(sqlstate($standby, sprintf $resume, 'school'),
		'25006', 'a standby resumes nothing');
	is(sqlstate($node, sprintf $resume, 'school'), '', 'it is resumed');
	is(reading('school'), 'Anna', 'it reads');
	$node->wait_for_catchup($standby);
	is(reading('school', $standby), 'Anna', 'on the standby too');
}

# A standby that does not replay, and a restored backup.
{
	$standby->append_conf('postgresql.conf',
		'nomp_crypt.key_check_interval = 1s');
	$standby->reload;
	$standby->safe_psql('postgres', 'SELECT pg_wal_replay_pause()');
	$standby->poll_query_until('postgres',
		'SELECT pg_get_wal_replay_pause_state()', 'paused')
	  or die 'replay does not pause';
	my $session = reader($standby, 'school');
	my $other = reader($standby, 'living');

	is(sqlstate($node, sprintf $suspend, 'school'), '', 'it is suspended');
	is(state_of('school', $standby),
		'active', 'the standby has not heard of it');
	wait_until(sub { reading('school', $standby) ne 'Anna' },
		'the standby to ask the keystore');
	is(reading('school', $standby),
		'NC002', 'the keystore tells it, and it says suspended');
	is(says($session, read_sql('school')),
		'NC002', 'in a session that had read it as well');
	is(says($other, read_sql('living')), 'Anna', "another school's reads on");
	$_->quit for $session, $other;
	like(
		slurp_file($standby->logfile),
		qr/is disabled in the keystore: its school's keys are wiped/,
		'its log says so');

	my $restored = PostgreSQL::Test::Cluster->new('restored');
	$restored->init_from_backup($node, 'base');
	$restored->start;
	is(state_of('school', $restored),
		'active', 'in a restored backup it is active');
	is(reading('school', $restored), 'NC002',
		'and not readable all the same');
	is(reading('living', $restored), 'Anna', 'another school is');
	$restored->stop;

	is(sqlstate($node, sprintf $resume, 'school'), '', 'it is resumed');
	is(reading('school', $standby),
		'Anna', 'the standby reads it without having heard of either');
	$standby->safe_psql('postgres', 'SELECT pg_wal_replay_resume()');
	$node->wait_for_catchup($standby);
	is(reading('school', $standby), 'Anna', 'and after it has');
}

# The power goes after each of the steps.
my $uuid = "(SELECT uuid FROM nomp_crypt.tenants WHERE id = '%s')";
for my $school (qw(stated wiped disabled))
{
	one("SELECT nomp_crypt._suspend('$school')");
	one(sprintf "SELECT nomp_crypt._suspend_wipe($uuid)", $school)
	  if $school ne 'stated';
	one(sprintf "SELECT nomp_crypt._suspend_keys($uuid)", $school)
	  if $school eq 'disabled';
	crash($node);
	$node->start;
	is(reading($school), 'NC002', "$school: suspended after the crash");
	is(sqlstate($node, sprintf $suspend, $school),
		'', "$school: the call can be repeated");
	is(by_keystore($school), 'NC002', "$school: its keys are disabled");
	is(reading('living'), 'Anna', "$school: another school reads");
	is(sqlstate($node, sprintf $resume, $school), '', "$school: resumed");
	is(reading($school), 'Anna', "$school: it reads");
}
one(sprintf $suspend, 'enabled');
one("SELECT nomp_crypt._resume_keys('enabled')");
crash($node);
$node->start;
is(reading('enabled'), 'NC002', 'half resumed: suspended after the crash');
is(sqlstate($node, sprintf $resume, 'enabled'),
	'', 'half resumed: the call can be repeated');
is(reading('enabled'), 'Anna', 'half resumed: it reads');

# The keystore is away.
{
	token_goes($dir, 'nomp');
	restart_helper($node);
	is(sqlstate($node, sprintf $suspend, 'school'),
		'NC004', 'without a keystore the call fails');
	is(reading('school'), 'NC002', 'and the school is suspended');
	is(sqlstate($node, sprintf $resume, 'school'),
		'NC004', 'nor is it resumed without');
	is(reading('school'), 'NC002', 'it stays suspended');
	token_returns($dir, 'nomp');
	restart_helper($node);
	wait_until(sub { keystore_state($node) eq 'ok' },
		'the keystore to be back');
	is(by_keystore('school'), 'Anna', 'its keys had not been disabled');
	is(sqlstate($node, sprintf $suspend, 'school'),
		'', 'when it is back the same call goes on');
	is(by_keystore('school'), 'NC002', 'and disables them');
}

# A token that does not let a key be changed.
{
	keystore_has_trouble(enable => 'forbids');
	is(sqlstate($node, sprintf $resume, 'school'),
		'NC004', 'a token that does not enable the keys');
	is(reading('school'), 'NC002', 'leaves the school suspended');
	keystore_recovers();
	is(sqlstate($node, sprintf $resume, 'school'), '', 'until it does');
	is(reading('school'), 'Anna', 'then it reads');

	keystore_has_trouble(enable => 'forbids');
	my $err = '';
	$node->psql('postgres', sprintf($suspend, 'school'), stderr => \$err);
	like(
		$err,
		over_kms()
		? qr/ERROR:  the keystore is unavailable: it does not allow this/
		: qr/NOTICE:  the keystore does not disable all keys:/,
		'a token that does not disable them: the call says so');
	is(reading('school'), 'NC002', 'and the school is suspended here');
	is(by_keystore('school'), 'Anna', 'but not for whoever asks the token');
	is(sqlstate($node, sprintf $resume, 'school'), '', 'it is resumed');
	is(reading('school'), 'Anna', 'and reads');
	keystore_has_trouble(enable => 'fails');
	is(sqlstate($node, sprintf $suspend, 'school'),
		'NC004', 'a token that fails is another matter');
	keystore_recovers();
	is(sqlstate($node, sprintf $suspend, 'school'), '', 'the call goes on');
	is(by_keystore('school'), 'NC002', 'when it works again');
}

# A key that is disabled, on a token whose canary is gone, is no verdict.
{
	one("UPDATE nomp_crypt.tenant SET state = 'active' WHERE id = 'school'");
	my ($canary) = grep { /:canary$/ } token_labels($dir, 'nomp');
	delete_from_token($dir, 'nomp', $canary);
	is(reading('school'), 'NC004',
		'without its canary the token is not believed');
}

$standby->stop;
$node->stop;
done_testing();
