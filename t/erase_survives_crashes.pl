# The erasure of a school is a promise about something that cannot be undone,
# made in several transactions and outside the database.  Whatever interrupts
# it - a power cut between or inside any two of its steps, a grace period, a
# missing key, a standby that has not followed - it must end in the same state
# when the call is repeated, or refuse and say so; and never touch another
# school.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Certified;
use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my @crash_schools = qw(requested wiped fenced fenced_wiped submitted
  destroying destroyed);
my @other_schools = qw(graced refused witness synced again living);

my $node = nomp_node('main', allows_streaming => 1);
my $dir = $node->{nomp_dir};
$node->start;
create_nomp($node, @crash_schools, @other_schools);

my $number = 0;
for my $school (@crash_schools, @other_schools)
{
	$number++;
	$node->safe_psql(
		'postgres',
		in_tenant(
			$school,
			"INSERT INTO pupil VALUES ($number, '$school', 'Anna i $school', '')"
		));
}

# What reading that school's values gives: SQLSTATE, or the plaintext.
sub reading
{
	my ($school) = @_;

	return outcome($node,
		in_tenant($school, "SELECT name FROM pupil WHERE school = '$school'")
	);
}

sub one
{
	my ($sql) = @_;

	return $node->safe_psql('postgres', $sql);
}

sub uuid_of
{
	my ($school) = @_;

	return one("SELECT uuid FROM nomp_crypt.tenants WHERE id = '$school'"
		  . " ORDER BY created_at DESC LIMIT 1");
}

# How many keys the token has for a tenant, asked with a program of another
# make.
sub keys_in_token
{
	my ($uuid) = @_;

	return scalar grep { /:\Q$uuid\E:/ } token_labels($dir, 'nomp');
}

sub case_of
{
	my ($school, $columns) = @_;

	return one("SELECT $columns FROM nomp_crypt.erasure"
		  . " WHERE tenant = '@{[ uuid_of($school) ]}' AND state <> 'withdrawn'"
	);
}

sub erase_call
{
	my ($school, $reference) = @_;

	$reference //= 'PUB-1';
	return
	  "CALL nomp_crypt.erase_tenant('$school', 'agreement_ended', '$reference')";
}

sub erase { return sqlstate($node, erase_call(@_)) }

# The state in which every erasure ends.
sub erased_ok
{
	my ($school, $what) = @_;
	my $uuid = uuid_of($school);

	subtest "$what: the school is erased" => sub {
		is(reading($school), 'NC001', 'its values are erased');
		is(case_of($school, 'state'), 'destroyed', 'the case says so');
		is( case_of(
				$school,
				'fenced_at <= submitted_at AND submitted_at <= destroyed_at'),
			't',
			'its steps are on record');
		is( case_of($school, 'array_to_string(keys_seen, $$,$$)'),
			one("SELECT label FROM nomp_crypt.kek WHERE tenant = '$uuid'"),
			'its key was seen before it was destroyed');
		is(one("SELECT state FROM nomp_crypt.kek WHERE tenant = '$uuid'"),
			'destroyed', 'the key-encryption key is marked destroyed');
		is( one(    "SELECT count(*) FROM nomp_crypt.tenant_key"
				  . " WHERE tenant = '$uuid' AND (state <> 'erased' OR wrapped IS NOT NULL)"
			),
			'0',
			'no wrapped key is left');
		is(keys_in_token($uuid), 0, 'no key is left in the token');
		is(reading('living'), 'Anna i living', 'another school reads on');
	};
	return;
}

# Each step's functions are run in a transaction of their own up to a point,
# the server loses power, and the call is repeated.
my $request = "SELECT nomp_crypt._erase_request('%s', 'school_closed', NULL)";
my $step =
	"SELECT nomp_crypt._erase_%s((SELECT e.case_id"
  . " FROM nomp_crypt.erasure e JOIN nomp_crypt.tenant t ON t.uuid = e.tenant"
  . " WHERE t.id = '%s'))";
my @steps = qw(wipe fence wipe submit destroy);
my %steps_done = (
	requested => 0,
	wiped => 1,
	fenced => 2,
	fenced_wiped => 3,
	submitted => 4,
	destroying => 4,
	destroyed => 5);

for my $school (@crash_schools)
{
	my $last = $steps_done{$school};
	my $destroyed = $school eq 'destroyed';
	my $session;

	is(reading($school), "Anna i $school", "$school: readable before");
	one(sprintf $request, $school);
	one(sprintf $step, $_, $school) for @steps[ 0 .. $last - 1 ];
	is( keys_in_token(uuid_of($school)),
		$destroyed ? 0 : 1,
		"$school: the key is there until it is destroyed");
	if ($school eq 'destroying')
	{
		# the key is destroyed, and the transaction that knows it is lost
		$session = $node->background_psql('postgres', on_error_stop => 0);
		$session->query_safe('BEGIN');
		$session->query_safe(sprintf $step, 'destroy', $school);
		is(keys_in_token(uuid_of($school)),
			0, "$school: the key is gone before the commit");
	}
	crash($node);
	$session->{run}->finish if defined $session;
	$node->start;
	is( reading($school),
		$destroyed ? 'NC001' : 'NC002',
		"$school: not readable after the crash");
	if ($school eq 'destroying')
	{
		repeats_lost_destruction($node, erase_call($school), $school,
			$school);
	}
	else
	{
		is(erase($school), '', "$school: the call can be repeated");
	}
	erased_ok($school, "crash when $school");
}

# A call that waits for the keystore while the power goes.
{
	my $helper = helper_pid($node);
	my $session = $node->background_psql('postgres', on_error_stop => 0);

	kill 'STOP', $helper;
	$session->query_until(qr/^$/,
		"CALL nomp_crypt.erase_tenant('witness', 'test');\n");
	$node->poll_query_until('postgres',
		"SELECT EXISTS (SELECT FROM nomp_crypt.tenant WHERE id = 'witness' AND state = 'suspended')"
	) or die 'the call did not begin';
	crash($node);
	$session->{run}->finish;
	$node->start;
	is(reading('witness'), 'NC002',
		'crash while the keystore is asked: the school is suspended');
	is(case_of('witness', 'state'), 'requested', 'and nothing more');
	is(keys_in_token(uuid_of('witness')), 1, 'its key is there');
}

# The key is not where it was.
{
	my $uuid = uuid_of('witness');
	my ($label) = grep { /:\Q$uuid\E:/ } token_labels($dir, 'nomp');
	my ($out, $err) = ('', '');

	delete_from_token($dir, 'nomp', $label);
	is(keys_in_token($uuid), 0, 'a key was deleted behind our back');
	$node->psql(
		'postgres',
		"CALL nomp_crypt.erase_tenant('witness', 'test')",
		stdout => \$out,
		stderr => \$err,
		extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	like(
		$err,
		qr/NC003: key \Q$label\E is not in the keystore/,
		'a destruction that nobody can witness is refused');
	like($err, qr/cannot be witnessed.*stays suspended/s, 'and says why');
	is(erase('witness'), 'NC003', 'repeating it changes nothing');
	is(reading('witness'), 'NC002', 'the school stays suspended');
	is(case_of('witness', 'state'),
		'requested', 'its case is not past the point of no return');
	is(reading('living'), 'Anna i living', 'another school reads on');
}

# A grace period.
{
	one("ALTER SYSTEM SET nomp_crypt.erasure_grace = '1d'");
	$node->reload;
	$node->poll_query_until('postgres', 'SHOW nomp_crypt.erasure_grace', '1d')
	  or die 'the setting did not change';
	my $uuid = uuid_of('graced');

	for my $time ('first', 'second')
	{
		my ($out, $err) = ('', '');

		is( $node->psql(
				'postgres',
				"CALL nomp_crypt.erase_tenant('graced', 'test')",
				stdout => \$out,
				stderr => \$err),
			0,
			"within the grace period the $time call succeeds");
		like(
			$err,
			qr/NOTICE: .*suspended; its erasure can be executed from/,
			'and says from when on it will erase');
		is(reading('graced'), 'NC002', 'the school is suspended');
		is(case_of('graced', 'state'), 'requested', 'the case is on record');
		is(keys_in_token($uuid), 1, 'nothing is destroyed');
	}
	is(sqlstate($node, sprintf $step, 'fence', 'graced'),
		'55000', 'nor does it help to run the next step by hand');
	is(sqlstate($node, "SELECT nomp_crypt.withdraw_erasure('graced')"),
		'', 'within the grace period the request can be withdrawn');
	is(reading('graced'), 'Anna i graced', 'the school is readable again');
	is(sqlstate($node, "SELECT nomp_crypt.withdraw_erasure('graced')"),
		'55000', 'there is nothing more to withdraw');
	is(erase('graced'), '', 'it can be requested again');
	is(reading('graced'), 'NC002', 'and is suspended again');

	one("ALTER SYSTEM SET nomp_crypt.erasure_grace = 0");
	$node->reload;
	$node->poll_query_until('postgres', 'SHOW nomp_crypt.erasure_grace', '0')
	  or die 'the setting did not change';
	is(erase('graced'), '', 'after the grace period it is executed');
	erased_ok('graced', 'grace period');
	is(sqlstate($node, "SELECT nomp_crypt.withdraw_erasure('graced')"),
		'55000', 'an erasure cannot be withdrawn');
}

# Erasing twice.
{
	my $case = case_of('graced', 'md5(erasure::text)');
	my ($out, $err) = ('', '');

	is( $node->psql(
			'postgres', "CALL nomp_crypt.erase_tenant('graced', 'test')",
			stdout => \$out,
			stderr => \$err),
		0,
		'erasing an erased school succeeds');
	like($err, qr/NOTICE: .*"graced" was erased at/, 'and says when it was');
	is(case_of('graced', 'md5(erasure::text)'),
		$case, 'its case is as it was');
}

# Where it cannot commit, it does not begin.
{
	my $call = "CALL nomp_crypt.erase_tenant('refused', 'test')";

	one(    "CREATE FUNCTION eraser() RETURNS void LANGUAGE plpgsql AS"
		  . " \$\$BEGIN $call; END\$\$");
	my %refused = (
		'a transaction block' => "BEGIN; $call; COMMIT;",
		'a string of several statements' => "SELECT 1\\; $call;",
		'a function' => 'SELECT eraser();',
		'a DO block in a transaction' =>
		  "BEGIN; DO \$\$BEGIN $call; END\$\$; COMMIT;");
	for my $where (sort keys %refused)
	{
		is(sqlstate($node, $refused{$where}),
			'2D000', "the call is refused in $where");
	}
	my %wrong = (
		'42704' => "CALL nomp_crypt.erase_tenant('nobody', 'test')",
		'22023' => "CALL nomp_crypt.erase_tenant('refused', 'because')");
	for my $state (sort keys %wrong)
	{
		is(sqlstate($node, $wrong{$state}), $state, "$wrong{$state}: $state");
	}
	is( sqlstate(
			$node,
			"CALL nomp_crypt.erase_tenant('refused', 'test', 'Anna Svensson, 7b')"
		),
		'22023',
		'a reference that could hold personal data is refused');
	is( one(    "SELECT count(*) FROM nomp_crypt.erasure"
			  . " WHERE tenant = '@{[ uuid_of('refused') ]}'"),
		'0',
		'no refused call left a case');
	is( sqlstate(
			$node,
			join ' ',
			'BEGIN;',
			sprintf("$request;", 'refused'),
			sprintf("$step;", 'fence', 'refused'),
			sprintf("$step;", 'submit', 'refused'),
			sprintf("$step;", 'destroy', 'refused'),
			'ROLLBACK;'),
		'55000',
		'the steps cannot be run in one transaction and rolled back');
	is(reading('refused'), 'Anna i refused', 'the school reads on');
	is(keys_in_token(uuid_of('refused')), 1, 'and has its key');
}

# A DO block that is no transaction block may commit, and so may the call.
{
	is( sqlstate(
			$node,
			"DO \$\$BEGIN CALL nomp_crypt.erase_tenant('refused', 'test'); END\$\$"
		),
		'',
		'in a DO block outside a transaction the call goes through');
	erased_ok('refused', 'DO block');
}

# A synchronous standby that has not got the fence.
{
	my $uuid = uuid_of('synced');

	one("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
	$node->reload;
	$node->poll_query_until('postgres', 'SHOW synchronous_standby_names',
		'nobody')
	  or die 'the setting did not change';

	my $session = $node->background_psql(
		'postgres',
		on_error_stop => 0,
		extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	my $pid = $session->query_safe('SELECT pg_backend_pid()');
	my $cancelled = 0;

	$session->{stdin} .=
	  "CALL nomp_crypt.erase_tenant('synced', 'test');\n\\echo end\n";
	# every commit waits; each wait is cancelled, once
	wait_until(
		sub {
			$session->{run}->pump_nb;
			return 1 if $session->{stdout} =~ /^end/m;
			my $warned = () = slurp_file($node->logfile) =~
			  /canceling wait for synchronous replication/g;
			return 0 if $warned < $cancelled;
			$cancelled++
			  if one("SELECT pg_cancel_backend(pid) FROM pg_stat_activity"
				  . " WHERE pid = $pid AND wait_event = 'SyncRep'") eq 't';
			return 0;
		},
		'the call to give up');
	like(
		$session->{stderr},
		qr/ERROR:  55000: the last step has not reached the synchronous standbys/,
		'a standby that has not got the fence: refused');
	like($session->{stderr}, qr/Nothing was destroyed/, 'and says so');
	$session->quit;
	like(case_of('synced', 'state'),
		qr/^(?:fenced|submitted)$/,
		'the case is past the point of no return');
	is(reading('synced'), 'NC002', 'the school is not readable');
	is(keys_in_token($uuid), 1, 'its key is there');

	one('ALTER SYSTEM RESET synchronous_standby_names');
	$node->reload;
	$node->poll_query_until('postgres', 'SHOW synchronous_standby_names', '')
	  or die 'the setting did not change';
	is(erase('synced'), '', 'when nothing is to be waited for it goes on');
	erased_ok('synced', 'synchronous standby');
}

# The school signs a new agreement.
{
	my $old = uuid_of('again');

	is(erase('again'), '', 'a school is erased');
	erased_ok('again', 'before it comes back');
	my $new = one("SELECT nomp_crypt.create_tenant('again')");
	isnt($new, $old, 'onboarded again it has a new uuid');
	is(sqlstate($node, "SELECT nomp_crypt.create_tenant('again')"),
		'42710', 'and has it once');
	one(in_tenant(
			'again', "INSERT INTO pupil VALUES (1000, 'again', 'Berit', '')")
	);
	is(one(in_tenant('again', 'SELECT name FROM pupil WHERE id = 1000')),
		'Berit', 'new values are readable');
	is(reading('again'), 'NC001',
		'the old values are erased, as the school itself sees them');
	is( sqlstate(
			$node,
			"SELECT nomp_crypt.decrypt(name) FROM pupil WHERE school = 'again' AND id < 1000"
		),
		'NC001',
		'and as seen from outside');
	is(keys_in_token($old), 0, 'the old key is gone');
	is(keys_in_token($new), 1, 'the new key is there');
	is(erase('again'), '', 'the old call, repeated, succeeds');
	is(keys_in_token($new), 1, 'and does not reach the new key');
	is(erase('again', 'PUB-2'),
		'', 'under a reference of its own it is erased again');
	is(keys_in_token($new), 0, 'with the new key');
	is( sqlstate(
			$node,
			in_tenant('again', 'SELECT name FROM pupil WHERE id = 1000')),
		'NC001',
		'and the new values');
}

is( reading('living'),
	'Anna i living',
	'the living school reads on to the end');
is(keys_in_token(uuid_of('living')), 1, 'with its key');

$node->stop;
done_testing();
