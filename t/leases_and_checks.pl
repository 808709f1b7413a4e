# Keys in a server's memory have two clocks.  By the short one the keystore is
# asked again for keys in use: a key that was destroyed there stops working
# here, also for a session in the middle of a transaction.  By the long one,
# the lease, a keystore that cannot be asked is lived without, but not for
# ever and whatever else happens: not if a key is used all the time, and not
# if the process that keeps the clocks stands still.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Troubles;

my @schools = qw(deleted kept other);
my @cold = map { "cold$_" } 1 .. 20;

my $node = nomp_node('main');
my $dir = $node->{nomp_dir};
my $uri = frail_keystore($dir, 'nomp');

$node->append_conf('postgresql.conf', <<"CONF");
nomp_crypt.keystore = '$uri'
nomp_crypt.keystore_timeout = 5s
nomp_crypt.key_check_interval = 1s
log_statement = none
CONF
$node->start;
cold_schools($node, @schools, @cold);
$node->safe_psql('postgres',
	'INSERT INTO pupil SELECT id + 1000 * i, school, name FROM pupil, generate_series(1, 2) i'
);

# What reading a school gives in a session of its own: plaintext or SQLSTATE.
sub reading
{
	my ($school) = @_;
	my ($state, $out) = end_query(start_query($node, read_school($school)));

	return $state ne '' ? $state : $out;
}

# A session in a transaction inside the school, which has read a value.
sub enter
{
	my ($school) = @_;
	my $session = open_session($node);

	says($session, 'BEGIN');
	says($session, "SET LOCAL nomp_crypt.tenant = '$school'");
	is( again($session, $school),
		"Anna i $school",
		"a session in a transaction reads $school");
	return $session;
}

# It reads again, in the same transaction, which survives an error.
sub again
{
	my ($session, $school) = @_;
	my $got;

	says($session, 'SAVEPOINT s');
	$got = says($session,
		"SELECT name FROM pupil WHERE school = '$school' LIMIT 1");
	says($session, 'ROLLBACK TO s');
	return $got;
}

# Time has to pass where leases end; the server's clock says how much.
sub let_pass
{
	my ($seconds) = @_;
	my $then = $node->safe_psql('postgres',
		"SELECT clock_timestamp() + interval '$seconds s'");

	$node->poll_query_until('postgres', "SELECT clock_timestamp() > '$then'")
	  or die 'time stands still';
	return;
}

# ---- a key destroyed in the keystore stops working here ----

{
	my $log_start = -s $node->logfile;
	my $label = kek_label($node, 'deleted');
	my $new = shift @cold;
	my $inside = enter('deleted');
	my $fetching = open_session($node);
	my $busy = enter('kept');

	says($fetching, 'BEGIN');
	says($fetching, q(SET LOCAL nomp_crypt.tenant = 'deleted'));
	says($fetching,
		q(DECLARE c CURSOR FOR SELECT name FROM pupil WHERE school = 'deleted')
	);
	is( says($fetching, 'FETCH 1 FROM c'),
		'Anna i deleted',
		'another is in the middle of a cursor');

	token_is_backed_up($dir, 'nomp');
	delete_from_token($dir, 'nomp', $label);
	$node->wait_for_log(qr/the keystore no longer has the key "\Q$label\E"/,
		$log_start);
	pass('a key that was deleted from the keystore is noticed, and logged');
	is(again($inside, 'deleted'),
		'NC003',
		'the session in a transaction gets an error at its next value');
	is(says($fetching, 'FETCH 1 FROM c'), 'NC003', 'so does the cursor');
	is(reading('deleted'), 'NC003', 'so do new sessions');
	is(again($busy, 'kept'), 'Anna i kept', 'another school goes on');
	is(reading('other'), 'Anna i other', 'for new sessions too');
	is(keystore_state($node), 'ok', 'and the keystore is well');
	$_->quit for $inside, $fetching, $busy;

	# all keys and the canary gone is not a verdict on any school
	$log_start = -s $node->logfile;
	$busy = enter('kept');
	# the canary first: a check may come at any time
	delete_from_token($dir, 'nomp', $_)
	  for sort { ($b =~ /:canary$/) <=> ($a =~ /:canary$/) }
	  token_labels($dir, 'nomp');
	$node->wait_for_log(qr/could not check the keys in use/, $log_start);
	is(again($busy, 'kept'),
		'Anna i kept', 'a token that lost its canary wipes nothing');
	is(reading('kept'), 'Anna i kept', 'for new sessions either');
	is(reading($new), 'NC004', 'but gives no new key');
	unlike(
		slurp_file($node->logfile, $log_start),
		qr/no longer has the key/,
		'and proves no key gone');

	token_is_restored($dir, 'nomp');
	restart_helper($node);
	wait_until(sub { reading('deleted') eq 'Anna i deleted' },
		'the restored token to read');
	pass('with the token restored from its backup, all read again');
	is(reading($_), "Anna i $_", "$_ reads") for 'kept', $new;
	$busy->quit;
}

# ---- a keystore that cannot be asked ----

# A process that kills every helper as soon as it sees it; ends with this test.
sub kill_helpers
{
	my $broker = broker_pid($node);
	my $test = $$;
	my $pid = fork // die "cannot fork: $!";

	return $pid if $pid;
	while (getppid() == $test)
	{
		kill 'KILL', NompTest::children($broker);
		select undef, undef, undef, 0.1;
	}
	POSIX::_exit(0);
}

# outage(NAME, BREAK, REPAIR, what the log says of a check that failed)
sub outage
{
	my ($name, $break, $repair, $check_failed) = @_;
	my $new = shift @cold;
	my $inside;
	my $log_start;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_until(sub { reading('kept') eq 'Anna i kept' }, 'the keystore');
	$inside = enter('kept');
	$log_start = -s $node->logfile;
	$break->();
	for my $check (1 .. 2)
	{
		$node->wait_for_log($check_failed, $log_start);
		$log_start = -s $node->logfile;
	}
	is(again($inside, 'kept'),
		'Anna i kept', "$name: a key in use works under its lease");
	is(reading('kept'), 'Anna i kept', "$name: for new sessions too");
	is(reading($new), 'NC004', "$name: a new key is unavailable");
	$repair->();
	wait_until(sub { reading($new) ne 'NC004' }, "$name to be over");
	is(reading($new), "Anna i $new", "$name: when it is over, it reads");
	is(again($inside, 'kept'),
		'Anna i kept', "$name: the transaction noticed nothing");
	$inside->quit;
	return;
}

outage(
	'keystore hangs',
	sub {
		keystore_has_trouble(everything => 'hangs');
	},
	sub { keystore_recovers() },
	# a helper that waits for a service says so itself, in time
	over_kms()
	? qr/could not check the keys in use/
	: qr/helper did not answer in time/);
# no service can crash the helper: somebody kills each, and none gets an answer
my $killer;
outage(
	'helper crashes',
	sub {
		keystore_has_trouble(everything => over_kms() ? 'hangs' : 'crashes');
		$killer = kill_helpers() if over_kms();
	},
	sub {
		keystore_recovers();
		kill 'KILL', $killer if $killer;
	},
	qr/helper ended unexpectedly/);
outage(
	'keystore fails',
	sub {
		keystore_has_trouble(everything => 'fails');
	},
	sub { keystore_recovers() },
	qr/could not check the keys in use/);
outage(
	'token gone',
	sub { token_goes($dir, 'nomp');    restart_helper($node) },
	sub { token_returns($dir, 'nomp'); restart_helper($node) },
	qr/could not check the keys in use/);
outage(
	'token replaced by an empty one',
	sub {
		token_goes($dir, 'nomp');
		make_token($dir, 'nomp');
		restart_helper($node);
	},
	sub { token_returns($dir, 'nomp'); restart_helper($node) },
	qr/could not check the keys in use/);

# ---- leases end ----

set_and_reload($node, 'nomp_crypt.key_lease', '5s');

{
	my $school = shift @cold;
	my $inside = enter($school);

	let_pass(8);
	is( again($inside, $school),
		"Anna i $school",
		'while the keystore answers, a lease ends unnoticed');

	keystore_has_trouble(everything => 'hangs');
	wait_until(sub { again($inside, $school) ne "Anna i $school" },
		'the lease to end');
	is(again($inside, $school),
		'NC004',
		'without checks it ends, used as it is, within one transaction');
	is(reading($school), 'NC004', 'for new sessions too');

	keystore_recovers();
	wait_until(sub { again($inside, $school) ne 'NC004' },
		'the keystore to be back');
	is( again($inside, $school),
		"Anna i $school",
		'with the keystore back, the same transaction reads on');
	is(reading($school), "Anna i $school", 'so do new sessions');
	$inside->quit;
}

# ---- the broker stands still ----

{
	my $school = shift @cold;
	my $broker = broker_pid($node);
	my $inside = enter($school);

	kill 'STOP', $broker;
	wait_until(sub { again($inside, $school) ne "Anna i $school" },
		'the lease to end');
	is(again($inside, $school),
		'NC004',
		'a lease ends, in a transaction, though the broker is stopped');
	is(reading($school),
		'NC004', 'and what is left in the keyring is not used either');
	kill 'CONT', $broker;
	wait_until(sub { again($inside, $school) ne 'NC004' },
		'the broker to go on');
	is( again($inside, $school),
		"Anna i $school",
		'when the broker goes on, so does the transaction');
	is(reading($school), "Anna i $school", 'and everybody else');
	$inside->quit;
}

# ---- without checks, use alone renews nothing ----

set_and_reload($node, 'nomp_crypt.key_check_interval', '1d');
{
	my $school = shift @cold;
	my $inside = enter($school);
	my $calls = keystore_calls('unwrap');

	wait_until(
		sub {
			again($inside, $school);
			keystore_calls('unwrap') > $calls;
		},
		'the keystore to be asked again');
	pass(
		'a key that is used all the time is asked for again after its lease');
	$inside->quit;
}

is(broken_rules(), '', "the helper keeps to PKCS#11's rules");
$node->stop;
done_testing();
