# What speaks to the keystore, somebody else's module or a client of a service, is
# in a process of its own, so that it may crash, hang or be killed without any
# session noticing more than a delay; and whoever waits for it can be cancelled like any other query.
# Only the broker is attached to the server's shared memory: killed hard, it
# is an ordinary crash restart, after which everything reads.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use KmsDouble;
use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $kills = 100;

my $node = nomp_node('main');
my $dir = $node->{nomp_dir};
my $uri = frail_keystore($dir, 'nomp');

# No request ends because of the time it takes: not before this test gives up.
$node->append_conf('postgresql.conf', <<"CONF");
nomp_crypt.keystore = '$uri'
nomp_crypt.keystore_timeout = 600s
restart_after_crash = on
CONF
$node->start;

# Schools whose keys are not in the server's memory until they are read.
my @cold = map { "cold$_" } 1 .. $kills + 40;
cold_schools($node, @cold);

sub reads
{
	my ($school, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is($node->safe_psql('postgres', read_school($school)),
		"Anna i $school", $name);
}

# A session that must live through all but the broker's crash.
my $session = open_session($node);
my $session_pid = says($session, 'SELECT pg_backend_pid()');

# Have it enter a school, and return the statement that reads it.
sub session_enters
{
	my ($school) = @_;

	says($session, "SET nomp_crypt.tenant = '$school'");
	return "SELECT name FROM pupil WHERE school = '$school'";
}

my $started = "SELECT pg_postmaster_start_time()";
my $broker = broker_pid($node);

sub wait_for_calls
{
	my ($operation, $n) = @_;

	wait_until(sub { keystore_calls($operation) >= $n },
		"call $n of $operation");
	return;
}

sub keys_in_token
{
	my @labels = token_labels($dir, 'nomp');

	return scalar @labels;
}

sub is_waiting
{
	my ($what) = @_;

	$node->poll_query_until('postgres',
			"SELECT count(*) = 1 FROM pg_stat_activity WHERE $what"
		  . " AND state = 'active' AND wait_event_type = 'Extension'")
	  or die "nobody waits: $what";
	return;
}

# ---- the helper dies while nobody needs it ----

for my $signal ('KILL', 'SEGV', 'TERM')
{
	my $helper = helper_pid($node);
	my $school = shift @cold;

	kill $signal, $helper;
	wait_until(sub { !-e "/proc/$helper" }, 'the helper to be gone');
	is( says($session, session_enters($school)),
		"Anna i $school",
		"after SIG$signal of the idle helper a school reads");
	isnt(helper_pid($node), $helper, 'through another helper');
}

# ---- the helper dies over a request ----

for my $signal ('KILL', 'SEGV')
{
	my $school = shift @cold;
	my $calls = keystore_calls('unwrap');
	my $query;

	keystore_has_trouble(unwrap => 'once hangs');
	$query = start_query($node, read_school($school));
	wait_for_calls('unwrap', $calls + 1);
	kill $signal, helper_pid($node);
	is_deeply(
		[ end_query($query) ],
		[ '', "Anna i $school" ],
		"SIG$signal over a request: it is repeated and answered");
}
{
	my $school = shift @cold;
	my $calls = keystore_calls('unwrap');
	my $query;

	keystore_has_trouble(unwrap => 'hangs');
	$query = start_query($node, read_school($school));
	for my $attempt (1 .. 2)
	{
		my $helper;

		wait_for_calls('unwrap', $calls + $attempt);
		$helper = helper_pid($node);
		kill 'KILL', $helper;
	}
	is((end_query($query))[0],
		'NC004', 'killed again over the same request: it fails cleanly');
	is(keystore_calls('unwrap') - $calls, 2, 'after two attempts');
	keystore_recovers();
	reads($school, 'asked again, it is answered');
}
{
	my $calls = keystore_calls('unwrap');
	my @schools = splice @cold, 0, 5;
	my @queries;

	keystore_has_trouble(unwrap => 'once hangs');
	@queries = map { start_query($node, read_school($_)) } @schools;
	wait_for_calls('unwrap', $calls + 1);
	kill 'KILL', helper_pid($node);
	is_deeply(
		[ map { [ end_query($_) ] } @queries ],
		[ map { [ '', "Anna i $_" ] } @schools ],
		'requests behind the one that was under way are answered too');
}

# Creating a key is not repeated: nobody knows how far it came.  A module that
# hangs has made none; a service may have made one, when nobody hears of it any
# more, or before its answer is there.
my %creations = ('the keystore hangs' =>
	  sub { keystore_has_trouble(create => 'once hangs') });
$creations{'the answer is on its way'} = sub {
	double_says(
		"$dir/aws-nomp", 'fault',
		action => 'CreateKey',
		kind => 'drip',
		times => 1);
  }
  if over_kms();
for my $what (sort keys %creations)
{
	my $id = $what =~ tr/ /_/r;
	my $calls = keystore_calls('create');
	my $keys = keys_in_token();
	my $left = over_kms() ? 1 : 0;
	my $query;

	$creations{$what}->();
	$query = start_query($node, "SELECT nomp_crypt.create_tenant('$id')");
	wait_for_calls('create', $calls + 1);
	kill 'KILL', helper_pid($node);
	is((end_query($query))[0],
		'NC004', "$what: a school half created is refused");
	is(keystore_calls('create') - $calls,
		1, "$what: its key is not made twice");
	keystore_recovers();
	wait_until(
		sub { keys_in_token() >= $keys + $left },
		'the keystore to make a key that nobody waits for') if $left;
	is(keys_in_token() - $keys,
		$left, "$what: so many keys are left over: $left");
	$node->safe_psql('postgres', "SELECT nomp_crypt.create_tenant('$id')");
	is( $node->safe_psql(
			'postgres',
			in_tenant(
				$id,
				"INSERT INTO pupil (id, school, name) VALUES (-$calls, '$id', 'Bo');"
				  . "SELECT name FROM pupil WHERE id = -$calls")),
		'Bo',
		"$what: created again, it works");
	is( $node->safe_psql(
			'postgres',
			"SELECT string_agg(action, ' ') FROM nomp_crypt.reconcile_keystore(remove => true, older_than => '0')"
		),
		join(' ', ('removed') x $left),
		"$what: what is left over is found, and removed");
	is(keys_in_token() - $keys,
		1, "$what: and the school's key is there, alone");
	is(school_reads($node, $id), 'Bo', "$what: and reads");
}

# ---- helpers die all the time ----

{
	my @wrong;
	my %seen;

	for my $i (1 .. $kills)
	{
		my $school = shift @cold;
		my ($helper) = NompTest::children($broker);
		my $got;

		kill 'KILL', $helper if $helper;
		$seen{ $helper // '' } = 1;
		$got = says($session, session_enters($school));
		push @wrong, "$school: $got" if $got ne "Anna i $school";
	}
	is_deeply(\@wrong, [], "$kills helpers killed, and $kills schools read");
	is(scalar(keys %seen), $kills, 'each of them through another helper');
}

# ---- those who wait are not stuck ----

{
	my ($first, $second, $third, $fourth) = splice @cold, 0, 4;
	my $calls = keystore_calls('unwrap');
	my $sql;
	my $query;

	keystore_has_trouble(unwrap => 'holds');
	$sql = session_enters($first);
	starts($session, $sql);
	wait_for_calls('unwrap', $calls + 1);
	is_waiting("pid = $session_pid");
	$node->safe_psql('postgres', "SELECT pg_cancel_backend($session_pid)");
	is(says($session, ''),
		'57014', 'pg_cancel_backend ends the wait for a keystore that hangs');

	$sql = session_enters($second);
	says($session, "SET statement_timeout = '2s'");
	is(says($session, $sql), '57014', 'so does statement_timeout');
	says($session, 'RESET statement_timeout');

	$query = start_query($node, '/* doomed */ ' . read_school($third));
	is_waiting("query LIKE '/* doomed */%'");
	$node->safe_psql('postgres',
			'SELECT pg_terminate_backend(pid) FROM pg_stat_activity'
		  . " WHERE query LIKE '/* doomed */%'");
	is((end_query($query))[0], '57P01', 'so does pg_terminate_backend');

	keystore_recovers();
	is( says($session, session_enters($fourth)),
		"Anna i $fourth",
		'the same session is served when the keystore is back');
	reads($_, "$_ reads") for $first, $second, $third;
}

# An answer that comes too late must not be taken for the next one's.
for my $n (1 .. 3)
{
	my ($given_up, $asked_next) = splice @cold, 0, 2;
	my $calls = keystore_calls('unwrap');

	keystore_has_trouble(unwrap => 'holds');
	starts($session, session_enters($given_up));
	wait_for_calls('unwrap', $calls + 1);
	is_waiting("pid = $session_pid");
	$node->safe_psql('postgres', "SELECT pg_cancel_backend($session_pid)");
	is(says($session, ''), '57014', 'a request is given up');
	starts($session, session_enters($asked_next));
	is_waiting("pid = $session_pid");
	keystore_recovers();
	is( says($session, ''),
		"Anna i $asked_next",
		'the next one gets its own answer');
	# two keys each: nothing of this is left for the next round
	wait_for_calls('unwrap', $calls + 4);
}

# ---- the broker is told to go ----

{
	my ($school, $other) = splice @cold, 0, 2;
	my $calls = keystore_calls('unwrap');
	my $started_at = $node->safe_psql('postgres', $started);
	my $helper;
	my $query;

	keystore_has_trouble(unwrap => 'once hangs');
	$query = start_query($node, read_school($school));
	wait_for_calls('unwrap', $calls + 1);
	$helper = helper_pid($node);
	is( $node->safe_psql('postgres', "SELECT pg_terminate_backend($broker)"),
		't',
		'the broker is sent SIGTERM over a request');
	is_deeply(
		[ end_query($query) ],
		[ '', "Anna i $school" ],
		'who waited is answered by the next broker');
	isnt(broker_pid($node), $broker, 'which is another process');
	ok(!-e "/proc/$helper", 'with another helper');
	reads($other, 'and serves the next');
	is($node->safe_psql('postgres', $started),
		$started_at, 'the server did not restart');
	$broker = broker_pid($node);
}

is(says($session, 'SELECT pg_backend_pid()'),
	$session_pid, 'through all of this, no session was lost');

# ---- the broker is killed ----

{
	my $log_start = -s $node->logfile;
	my $started_at = $node->safe_psql('postgres', $started);
	my $helper = helper_pid($node);
	my $schools = $node->safe_psql('postgres',
		q(SELECT string_agg(school, ' ' ORDER BY id) FROM pupil WHERE id > 0)
	);
	my $all =
	  q(SELECT string_agg(nomp_crypt.decrypt(name), ' ' ORDER BY id) FROM pupil WHERE id > 0);

	restarts($node, sub { kill 'KILL', $broker });
	$node->wait_for_log(qr/all server processes terminated; reinitializing/,
		$log_start);
	wait_until(sub { !-e "/proc/$helper" }, 'the helper to go with it');
	is($node->safe_psql('postgres', $started),
		$started_at, 'SIGKILL of the broker: the server restarts by itself');
	is( $node->safe_psql('postgres', $all),
		join(' ', map { "Anna i $_" } split / /, $schools),
		'and every school reads');
	is(keystore_state($node), 'ok', 'the keystore is there');
	$node->safe_psql('postgres', q(SELECT nomp_crypt.create_tenant('new')));
	pass('and schools can be created');
}

# the crash took it away: that is no failure
$session->{run}->kill_kill;
is(broken_rules(), '', "the helper keeps to PKCS#11's rules");
$node->stop;
done_testing();
