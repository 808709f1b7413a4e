# A key service destroys a key days after it was asked, and until then anybody
# with the right can cancel that there.  An erasure must not say "erased"
# before the keys are seen to be gone; must notice a cancellation, say so
# loudly and leave the school unreadable until somebody decides, also when the
# deletion was asked for again and only its date tells; and must end
# in the same state wherever it was interrupted, also over a restart and in a
# restored dump.  Keys that no backup needs any more go the same way.  Against
# a stand-in for AWS KMS whose keys can be aged.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use JSON::PP ();
use KmsDouble;
use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $folder = PostgreSQL::Test::Utils::tempdir() . '/kms';
start_double($folder);
my @steps = qw(disable submit destroy);
my @crash_schools = map { "crash_$_" } qw(fenced disabled submitted
  scheduling pending gone settled);

$ENV{AWS_SHARED_CREDENTIALS_FILE} = "$folder/credentials";
$ENV{AWS_CONFIG_FILE} = "$folder/config";

my $node = nomp_node('main');
my $uri = double_uri($folder);
$node->append_conf('postgresql.conf', <<"CONF");
nomp_crypt.keystore = '$uri'
nomp_crypt.keystore_timeout = '60s'
nomp_crypt.backup_retention = 0
CONF
$node->start;
create_nomp(
	$node,
	qw(plain saved twice again sooner both before early paused retired back),
	qw(living dumped),
	@crash_schools);
$node->safe_psql('postgres',
		'INSERT INTO pupil (id, school, name)'
	  . " SELECT row_number() OVER (), id, nomp_crypt.encrypt('Anna i ' || id, id)"
	  . ' FROM nomp_crypt.tenants');

sub one
{
	my ($sql) = @_;

	return $node->safe_psql('postgres', $sql);
}

sub case_of
{
	my ($school, $columns) = @_;

	return one("SELECT $columns FROM nomp_crypt.erasure e"
		  . " JOIN nomp_crypt.tenant t ON t.uuid = e.tenant"
		  . " WHERE t.id = '$school' AND e.state <> 'withdrawn'");
}

# A procedure's SQLSTATE ('' for none) and what it said.
sub called
{
	my ($call) = @_;
	my ($out, $err);
	my $status = $node->psql(
		'postgres', "\\set VERBOSITY verbose\nCALL nomp_crypt.$call;",
		stdout => \$out,
		stderr => \$err,
		on_error_stop => 0);

	return ($err =~ /ERROR:  (\w{5}):/ ? $1 : '', $err);
}

sub code_of
{
	return (called(@_))[0];
}

sub erase
{
	my ($school) = @_;

	return called("erase_tenant('$school', 'agreement_ended', 'PUB-1')");
}

# The school's keys in the service: their states.
sub states
{
	my ($school) = @_;
	my $uuid = one("SELECT uuid FROM nomp_crypt.tenant WHERE id = '$school'");

	return join ' ', sort map { $_->{state} }
	  grep { join(' ', values %{ $_->{tag} }) =~ /\Q$uuid\E/ }
	  double_keys($folder);
}

sub key_of
{
	my ($school) = @_;
	my $uuid = one("SELECT uuid FROM nomp_crypt.tenant WHERE id = '$school'");
	my ($key) =
	  grep { join(' ', values %{ $_->{tag} }) =~ /\Q$uuid\E/ }
	  double_keys($folder);

	return $key->{id};
}

# Somebody uses a key whose deletion is pending, and leaves it pending.
sub cancel_and_ask_again
{
	my ($key, $days) = @_;

	double_says($folder, 'call', action => $_, KeyId => $key)
	  for qw(CancelKeyDeletion EnableKey);
	double_says(
		$folder, 'call',
		action => 'ScheduleKeyDeletion',
		KeyId => $key,
		PendingWindowInDays => $days);
	return;
}

# The certificate of a school's erasure: what it says, and in English.
sub certified
{
	my ($school) = @_;
	my $case = case_of($school, 'e.case_id');

	one("SELECT nomp_crypt.acknowledge_lease('$case')");
	is(code_of("certify_erasure('$school')"), '', "$school: it is certified");
	my $payload = one(
		"SELECT payload FROM nomp_crypt.verify_certificate(nomp_crypt.certificate('$case')) WHERE valid"
	);
	my $errors = '';
	IPC::Run::run(
		[
			'/usr/bin/python3',
			'-c',
			'import json, jsonschema, sys; schema = json.load(open(sys.argv[1]));'
			  . ' print(*[e.message for e in jsonschema.Draft202012Validator(schema).iter_errors(json.load(sys.stdin))])',
			"$FindBin::RealBin/../docs/certificate.schema.json"
		],
		'<',
		\$payload,
		'>',
		\$errors) or die 'jsonschema';
	is($errors, "\n", "$school: the certificate is as its schema says");
	return (
		JSON::PP->new->utf8->decode($payload)->{data},
		one("SELECT nomp_crypt.certificate_html('$case', 'en')"));
}

sub erased_ok
{
	my ($school, $what) = @_;

	is(case_of($school, 'e.state'),
		'destroyed', "$what: the case is at its end");
	is(school_reads($node, $school), 'NC001', "$what: erased");
	is(states($school), '', "$what: the service has none of its keys");
	is( one("SELECT count(*) FROM nomp_crypt.kek k JOIN nomp_crypt.tenant t ON t.uuid = k.tenant"
			  . " WHERE t.id = '$school' AND k.state <> 'destroyed'"),
		'0',
		"$what: no key is on record");
	return;
}

# ---- as it should go ----

my ($state, $said) = erase('plain');

is($state, '', 'an erasure is asked for');
like(
	$said,
	qr/NOTICE: .*the keystore will destroy the last key of the tenant at \d{4}-/,
	'and says when it will be done');
is(case_of('plain', 'e.state'), 'pending', 'the case is pending');
is( case_of(
		'plain',
		"e.pending_until BETWEEN now() + interval '6 days 23 hours' AND now() + interval '7 days 1 hour'"
	),
	't',
	'for a week');
is(states('plain'), 'PendingDeletion', 'and so is the key');
is( case_of(
		'plain',
		"(SELECT string_agg(concat_ws(' ', k.value ->> 'disabled', k.value -> 'pending' -> 0 ->> 'state',"
		  . " (k.value -> 'pending' -> 0 ->> 'reference') LIKE 'arn:aws:kms:eu-north-1:%'), ',')"
		  . ' FROM jsonb_each(e.keystores) k)'),
	'1 pending t',
	'what was seen is on record: disabled, pending, under which name');
is(school_reads($node, 'plain'), 'NC002', 'the school is not readable');
is(one("SELECT severity FROM nomp_crypt.health() WHERE name = 'erasures'"),
	'ok', 'a case that is pending is no trouble');
($state, $said) = erase('plain');
is($state, '', 'the call can be repeated');
is(case_of('plain', 'e.state'), 'pending', 'and the case is still pending');
is(code_of("resubmit_erasure('plain')"), '55000', 'nothing was cancelled');
is(code_of("resubmit_erasure('living')"), '42704', 'nor is there a case');
is(school_reads($node, 'living'), 'Anna i living', 'another school reads');

$node->restart;
is(school_reads($node, 'plain'), 'NC002', 'after a restart it is as before');
days_pass($folder, 6, $node);
erase('plain');
is(case_of('plain', 'e.state'), 'pending', 'a day before, too');
days_pass($folder, 2, $node);
is(case_of('plain', 'e.state'), 'pending', 'nothing happens by itself');
is(code_of("erase_tenant('plain', 'agreement_ended', 'PUB-1')"),
	'', 'after that date the call ends it');
erased_ok('plain', 'a week later');
is( case_of('plain', "keys_destroyed = keys_seen AND pending_until IS NULL"),
	't',
	'every key that was seen was seen to be gone');
{
	my ($data, $page) = certified('plain');

	is($data->{cancelled}, undef, 'the certificate tells of no cancellation');
	is( join(' ', grep { /request/ } @{ $data->{observed} }),
		'every_key_destroyed_on_request',
		'and that the keys were destroyed on request');
	unlike($page, qr/id="cancelled"|already pending/, 'and so does the page');
}

# ---- the setting ----

is( sqlstate($node, "ALTER SYSTEM SET nomp_crypt.key_deletion_window = '6d'"),
	'22023',
	'no window is shorter than a week');
is( sqlstate(
		$node, "ALTER SYSTEM SET nomp_crypt.key_deletion_window = '31d'"),
	'22023',
	'nor longer than thirty days');
one("ALTER SYSTEM SET nomp_crypt.key_deletion_window = '697h'");
$node->reload;

# ---- somebody cancels it ----

is(code_of("erase_tenant('saved', 'agreement_ended', 'PUB-1')"),
	'', 'the next erasure');
is(case_of('saved', "e.pending_until > now() + interval '29 days 1 hour'"),
	't', 'the window is rounded up to days');
one('ALTER SYSTEM RESET nomp_crypt.key_deletion_window');
$node->reload;
double_says(
	$folder, 'call',
	action => 'CancelKeyDeletion',
	KeyId => key_of('saved'));
($state, $said) = erase('saved');
is($state, '', 'its destruction was cancelled: the call fails not');
like(
	$said,
	qr/WARNING: .*the destruction of key nomp_crypt:\S+ of an erased tenant was cancelled in the keystore/,
	'but warns');
is(case_of('saved', 'e.state'), 'pending', 'the case is where it was');
is( case_of(
		'saved', 'e.voided_at IS NOT NULL AND cardinality(e.voided_keys) = 1'
	),
	't',
	'and says since when it is void, and for which key');
is(states('saved'), 'Disabled', 'the key is as it was left');
is(school_reads($node, 'saved'), 'NC002', 'the school is not readable');
is( one("SELECT severity || ': ' || detail FROM nomp_crypt.health() WHERE name = 'erasures'"
	),
	"critical: the destruction of keys of 1 tenants under erasure was cancelled in the keystore: 'saved'",
	'health() says so');
is( one("SELECT count(*) FROM nomp_crypt.audit WHERE act = 'erase_voided' AND tenant = 'saved'"
	),
	'1',
	'it is on the audit record');
double_says(
	$folder, 'call',
	action => 'EnableKey',
	KeyId => key_of('saved'));
($state, $said) = erase('saved');
like($said, qr/WARNING: .*was cancelled/, 'each call says it again');
is(states('saved'), 'Enabled', 'and leaves the key alone');
is( one("SELECT count(*) FROM nomp_crypt.audit WHERE act = 'erase_voided' AND tenant = 'saved'"
	),
	'1',
	'once on record');
days_pass($folder, 40, $node);
erase('saved');
is(case_of('saved', 'e.state'), 'pending', 'time alone decides nothing');
($state, $said) = called("resubmit_erasure('saved')");
is($state, '', 'somebody decides');
is(states('saved'), 'PendingDeletion', 'the service is asked again');
is( case_of(
		'saved',
		"e.state || ' ' || (e.voided_at IS NULL) || ' ' || (SELECT jsonb_array_length(k.value -> 'cancelled') FROM jsonb_each(e.keystores) k)"
	),
	'pending true 1',
	'the try that was cancelled stays on record');
days_pass($folder, 1, $node);
erase('saved');
is(case_of('saved', 'e.voided_at IS NULL'),
	't', 'the date that our own new request has is no cancellation');
days_pass($folder, 7, $node);
is(code_of("erase_tenant('saved', 'agreement_ended', 'PUB-1')"),
	'', 'and after a week');
erased_ok('saved', 'cancelled once');

{
	my ($data, $page) = certified('saved');

	is(join(' ', map { $_->{found} } @{ $data->{cancelled} }),
		'not_pending', 'the certificate tells of the cancellation');
	like(
		$page,
		qr/id="cancelled".*Cancelled in between.*could have been used.*not to be about to destroy it, \d{4}-/s,
		'and so does the page');
}

# twice, and a resubmission that is interrupted
erase('twice');
for my $time (1, 2)
{
	double_says(
		$folder, 'call',
		action => 'CancelKeyDeletion',
		KeyId => key_of('twice'));
	erase('twice');
	is(case_of('twice', 'e.voided_at IS NOT NULL'), 't', "cancelled: $time");
	one("SELECT nomp_crypt._erase_resubmit('twice')");
	crash($node);
	$node->start;
	is(states('twice'), 'Disabled', 'a crash before the service is asked');
	is(code_of("resubmit_erasure('twice')"), '', 'the call goes on');
	is(states('twice'), 'PendingDeletion', 'and asks it');
}
is( case_of(
		'twice',
		"(SELECT jsonb_array_length(k.value -> 'cancelled') FROM jsonb_each(e.keystores) k)"
	),
	'2',
	'both are on record');
days_pass($folder, 8, $node);
erase('twice');
erased_ok('twice', 'cancelled twice');

# ---- somebody cancels it, and asks for it again ----

erase('again');
days_pass($folder, 3, $node);
erase('again');
is(case_of('again', 'e.voided_at IS NULL'), 't', 'a deletion is pending');
cancel_and_ask_again(key_of('again'), 7);
($state, $said) = erase('again');
is($state, '', 'cancelled, and asked for again: the call fails not');
like(
	$said,
	qr/WARNING: .*the destruction of key nomp_crypt:\S+:1 of an erased tenant was cancelled in the keystore.*Key nomp_crypt:\S+:1 is pending again, by somebody else's request: until \d{4}-.*, not \d{4}-.* In between it could be used/s,
	'but warns, by the date alone');
is( case_of(
		'again',
		"concat_ws(' ', e.state, e.voided_at IS NOT NULL, cardinality(e.voided_keys))"
	),
	'pending t 1',
	'the case is void');
is( one("SELECT string_agg(jsonb_array_length(detail -> 'pending_again')::text, ',') FROM nomp_crypt.audit WHERE act = 'erase_voided' AND tenant = 'again'"
	),
	'1',
	'that is on the audit record');
is(one("SELECT severity FROM nomp_crypt.health() WHERE name = 'erasures'"),
	'critical', 'and health() says so');
days_pass($folder, 8, $node);
is(states('again'), '', 'the key is gone by then');
($state, $said) = erase('again');
like(
	$said,
	qr/WARNING: .*was cancelled.*is pending again/s,
	'each call says it again');
is(case_of('again', 'e.state'),
	'pending', 'and time alone decides nothing, though the key is gone');
is(code_of("resubmit_erasure('again')"), '', 'somebody decides');
erased_ok('again', 'cancelled and asked for again');
{
	my ($data, $page) = certified('again');
	my ($gap) = @{ $data->{cancelled} };

	is( join(' ', scalar @{ $data->{cancelled} }, $gap->{found}),
		'1 pending_until_another_date',
		'the certificate tells of it');
	is($gap->{key}, $data->{keys}[0]{label}, 'of which key');
	ok( $gap->{scheduled_at} lt $gap->{noticed_at}
		  && $gap->{noticed_at} lt $gap->{scheduled_again_at},
		'and between which dates it could be used');
	is( join(' ', grep { /request/ } @{ $data->{observed} }),
		'destroyed_on_request_unless_already_pending',
		'and not that it was destroyed on our request');
	like(
		$page,
		qr/Cancelled in between.*could have been used.*on another date, by somebody else&#39;s request.*its destruction was already pending when/s,
		'and so does the page');
	like(
		one("SELECT nomp_crypt.certificate_html('@{[ case_of('again', 'e.case_id') ]}', 'sv')"
		),
		qr/id="cancelled"><h2>Avbruten .*kunde nyckeln ha anv/s,
		'in Swedish, too');
	is( one("SELECT r.data -> 'keystores' @? '\$.*.cancelled.saved.until' FROM nomp_crypt.register g, nomp_crypt._record(g.jws) r WHERE r.type = 'destroyed' AND r.data ->> 'case' = '$data->{case}'"
		),
		't',
		'and the record of the destruction');
}

# an earlier date than the one witnessed
one("ALTER SYSTEM SET nomp_crypt.key_deletion_window = '30d'");
$node->reload;
erase('sooner');
one('ALTER SYSTEM RESET nomp_crypt.key_deletion_window');
$node->reload;
is(case_of('sooner', "e.pending_until > now() + interval '29 days'"),
	't', 'in thirty days');
cancel_and_ask_again(key_of('sooner'), 7);
erase('sooner');
is(case_of('sooner', 'e.voided_at IS NOT NULL'),
	't', 'an earlier date is noticed');
double_says($folder, 'forget_calls');
is(code_of("resubmit_erasure('sooner')"), '', 'submitted again');
is(double_says($folder, 'counts')->{ScheduleKeyDeletion} // 0,
	0, 'what is pending is not asked for again');
is( case_of(
		'sooner',
		"e.voided_at IS NULL AND e.pending_until BETWEEN now() + interval '6 days' AND now() + interval '8 days'"
	),
	't',
	'but waited for until the date that it has now');
erase('sooner');
is(case_of('sooner', 'e.voided_at IS NULL'), 't', 'which is the one');
days_pass($folder, 2, $node);
cancel_and_ask_again(key_of('sooner'), 7);
erase('sooner');
is(case_of('sooner', 'e.voided_at IS NOT NULL'),
	't', 'and once more: noticed, too');
is(code_of("resubmit_erasure('sooner')"), '', 'submitted again');
days_pass($folder, 8, $node);
erase('sooner');
erased_ok('sooner', 'cancelled and asked for again, twice');
is(scalar @{ (certified('sooner'))[0]{cancelled} },
	2, 'the certificate has both');

# one of two keys
one("SELECT nomp_crypt.rewrap_tenant('both')");
erase('both');
is(states('both'), 'PendingDeletion PendingDeletion', 'two keys are pending');
days_pass($folder, 3, $node);
cancel_and_ask_again(key_of('both'), 20);
erase('both');
is(case_of('both', 'cardinality(e.voided_keys)'),
	'1', 'one of them has another date');
is(code_of("resubmit_erasure('both')"), '', 'submitted again');
days_pass($folder, 8, $node);
erase('both');
is( case_of(
		'both',
		"concat_ws(' ', e.state, e.pending_until > now() + interval '11 days', e.voided_at IS NULL)"
	),
	'pending t t',
	'the one is gone, the other is waited for');
days_pass($folder, 13, $node);
erase('both');
erased_ok('both', 'one of two');
is( join(' ', map { $_->{end}{how} } @{ (certified('both'))[0]{keys} }),
	'destroyed destroyed',
	'both are on the certificate');

# ---- somebody had asked for it before ----

double_says(
	$folder, 'call',
	action => 'ScheduleKeyDeletion',
	KeyId => key_of('before'),
	PendingWindowInDays => 10);
is((erase('before'))[0], '', 'a key that is pending before the erasure');
is( case_of(
		'before',
		"concat_ws(' ', e.state, e.pending_until > now() + interval '9 days')"
	),
	'pending t',
	'has the date that it has');
erase('before');
is(case_of('before', 'e.voided_at IS NULL'), 't', 'nothing was cancelled');
days_pass($folder, 11, $node);
erase('before');
erased_ok('before', 'asked for by somebody else');
{
	my ($data, $page) = certified('before');

	is($data->{cancelled}, undef, 'nothing was cancelled');
	is( join(' ',
			(grep { /request/ } @{ $data->{observed} }),
			$data->{keys}[0]{end}{already_pending}),
		'destroyed_on_request_unless_already_pending 1',
		'the certificate does not say that we asked for it');
	like(
		$page,
		qr/already pending: that was somebody else&#39;s request/,
		'nor does the page');
}

# ---- gone without having been witnessed pending ----

{
	my $request =
	  one("SELECT nomp_crypt._erase_request('early', 'school_closed', NULL)");

	one("SELECT nomp_crypt._erase_$_('$request')")
	  for qw(fence disable submit);
	double_says($folder, 'delete', key => key_of('early'));
	is(code_of("erase_tenant('early', 'agreement_ended', 'PUB-1')"),
		'NC003', 'a key that was never pending is not believed to be gone');
	is(case_of('early', 'e.state'),
		'submitted', 'and the case stays where it is');
	one("UPDATE nomp_crypt.erasure SET submitted_at = submitted_at - interval '8 days'"
		  . " WHERE case_id = '$request'");
	is(code_of("erase_tenant('early', 'agreement_ended', 'PUB-1')"),
		'', 'but if a call may have asked for it a week ago');
	erased_ok('early', 'asked for by a call that was lost');
}

# ---- interrupted between any two steps, or within one ----

{
	my %cases;
	my $step = sub {
		my ($school, @names) = @_;
		one("SELECT nomp_crypt._erase_$_('$cases{$school}')") for @names;
	};
	my $session;

	for my $school (@crash_schools)
	{
		$cases{$school} =
		  one(
			"SELECT nomp_crypt._erase_request('$school', 'school_closed', NULL)"
		  );
		$step->($school, 'fence');
	}
	$step->('crash_disabled', 'disable');
	$step->("crash_$_", 'disable', 'submit') for qw(submitted scheduling);
	$step->("crash_$_", @steps) for qw(pending gone settled);

	# the service is asked, and the transaction that knows it is lost
	$session = $node->background_psql('postgres', on_error_stop => 0);
	$session->query_safe('SET client_min_messages = warning; BEGIN');
	$session->query_safe(
		"SELECT nomp_crypt._erase_destroy('$cases{crash_scheduling}')");
	crash($node);
	$session->{run}->finish;
	$node->start;
	is(states('crash_scheduling'),
		'PendingDeletion', 'the service was asked before the crash');
	is(case_of('crash_scheduling', 'e.state'),
		'submitted', 'which nobody knows');

	for my $school (grep { !/gone|settled/ } @crash_schools)
	{
		is(school_reads($node, $school), 'NC002', "$school: not readable");
		is(code_of("erase_tenant('$school', 'agreement_ended', 'PUB-1')"),
			'', "$school: the call goes on");
		is(case_of($school, 'e.state'), 'pending', "$school: pending");
		is(states($school), 'PendingDeletion', "$school: its key, too");
	}
	days_pass($folder, 8, $node);
	# seen to be gone, and the transaction that knows it is lost
	$session = $node->background_psql('postgres', on_error_stop => 0);
	$session->query_safe('SET client_min_messages = warning; BEGIN');
	$session->query_safe(
		"SELECT nomp_crypt._erase_destroy('$cases{crash_gone}')");
	$step->('crash_settled', 'destroy');
	crash($node);
	$session->{run}->finish;
	$node->start;
	is(case_of('crash_gone', 'e.state'),
		'pending', 'what was seen is forgotten');

	for my $school (@crash_schools)
	{
		is(code_of("erase_tenant('$school', 'agreement_ended', 'PUB-1')"),
			'', "$school: the call ends it");
		erased_ok($school, $school);
	}
}

# ---- a case that is pending, in a restored dump ----

{
	my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump';

	is(code_of("erase_tenant('dumped', 'agreement_ended', 'PUB-1')"),
		'', 'an erasure is pending');
	$node->command_ok(
		[ 'pg_dump', '-Fc', '-f', $dump, $node->connstr('postgres') ],
		'a dump of it');
	one('CREATE DATABASE restored');
	$node->command_ok(
		[ 'pg_restore', '-d', $node->connstr('restored'), $dump ],
		'is restored');
	days_pass($folder, 8, $node, 'postgres', 'restored');
	is( $node->safe_psql(
			'restored', "SELECT nomp_crypt.adopt_keystore() IS NOT NULL"),
		't',
		'that database may destroy');
	is( sqlstate(
			$node,
			"CALL nomp_crypt.erase_tenant('dumped', 'agreement_ended', 'PUB-1')",
			dbname => 'restored'),
		'',
		'there the call ends it');
	is( $node->safe_psql(
			'restored',
			"SELECT e.state FROM nomp_crypt.erasure e JOIN nomp_crypt.tenant t ON t.uuid = e.tenant WHERE t.id = 'dumped'"
		),
		'destroyed',
		'by what was witnessed before the dump');
	is(code_of("erase_tenant('dumped', 'agreement_ended', 'PUB-1')"),
		'', 'and here');
	erased_ok('dumped', 'dumped');
}

# ---- suspension ----

is(code_of("suspend_tenant('paused')"), '', 'a school is suspended');
is(states('paused'), 'Disabled', 'its key is disabled');
double_says(
	$folder, 'call',
	action => 'ScheduleKeyDeletion',
	KeyId => key_of('paused'),
	PendingWindowInDays => 7);
($state, $said) = called("resume_tenant('paused')");
is($state, 'NC004', 'somebody scheduled its deletion: it cannot be resumed');
like(
	$said,
	qr/key nomp_crypt:\S+ of tenant "paused" will be destroyed by its keystore at \d{4}-.*Cancel the destruction/s,
	'and the error says why, and what to do');
double_says(
	$folder, 'call',
	action => 'CancelKeyDeletion',
	KeyId => key_of('paused'));
is(code_of("resume_tenant('paused')"), '', 'cancelled, it can be');
is(school_reads($node, 'paused'), 'Anna i paused', 'and reads');
double_says(
	$folder, 'call',
	action => 'ScheduleKeyDeletion',
	KeyId => key_of('paused'),
	PendingWindowInDays => 7);
$node->restart;
is(school_reads($node, 'paused'),
	'NC002', 'a key that is pending opens nothing');
double_says(
	$folder, 'call',
	action => 'CancelKeyDeletion',
	KeyId => key_of('paused'));
double_says(
	$folder, 'call',
	action => 'EnableKey',
	KeyId => key_of('paused'));

# ---- the end of a key that no backup needs ----

{
	my $kek =
		"FROM nomp_crypt.kek k JOIN nomp_crypt.tenant t ON t.uuid = k.tenant"
	  . " WHERE t.id = 'retired' AND k.generation = 1";
	my $old = key_of('retired');

	one("SELECT nomp_crypt.rewrap_tenant('retired')");
	($state, $said) = called('destroy_expired_keks()');
	is($state, '', 'keys that no backup needs are ended');
	like(
		$said,
		qr/keys destroyed that no backup needs any more: 0; their keystore will destroy: 1/,
		'none is gone yet');
	is( one("SELECT k.state || ' ' || (k.pending_until > now() + interval '6 days') $kek"
		),
		'retired true',
		'until when is on record');
	is(states('retired'), 'Enabled PendingDeletion', 'only the old key');
	is( one("SELECT severity FROM nomp_crypt.health() WHERE name = 'old_keks'"
		),
		'ok',
		'that is no trouble');
	is(code_of("suspend_tenant('retired')"), '',
		'such a school is suspended');
	is(code_of("resume_tenant('retired')"), '', 'and resumed, beside it');
	double_says(
		$folder, 'call',
		action => 'CancelKeyDeletion',
		KeyId => $old);
	one("ALTER SYSTEM SET nomp_crypt.backup_retention = '1d'");
	$node->reload;
	one("UPDATE nomp_crypt.kek SET retired_at = retired_at - interval '2 days', destroy_after = destroy_after - interval '2 days' WHERE state = 'retired'"
	);
	($state, $said) = called('destroy_expired_keks()');
	like(
		$said,
		qr/WARNING: .*the destruction of key \S+:1 was cancelled in the keystore/,
		'a cancellation is said');
	is( one("SELECT k.state || ' ' || (k.pending_until IS NULL) || ' ' || (k.destroy_after > now() + interval '23 hours') $kek"
		),
		'retired true true',
		'and the key is kept for as long again');
	is(states('retired'), 'Disabled Enabled', 'nothing else happens to it');
	one("UPDATE nomp_crypt.kek SET destroy_after = now() - interval '1 hour' WHERE state = 'retired'"
	);
	is(code_of('destroy_expired_keks()'), '', 'then it is ended again');
	is(states('retired'), 'Enabled PendingDeletion', 'as before');
	days_pass($folder, 8, $node);
	($state, $said) = called('destroy_expired_keks()');
	like(
		$said,
		qr/keys destroyed that no backup needs any more: 1$/m,
		'and counts when it is gone');
	is( one("SELECT k.state || ' ' || (k.pending_until IS NULL) $kek"),
		'destroyed true',
		'and is on record so');
	is(school_reads($node, 'retired'), 'Anna i retired', 'the school reads');
}

# cancelled and asked for again: the service will destroy it all the same
{
	my $kek =
		"FROM nomp_crypt.kek k JOIN nomp_crypt.tenant t ON t.uuid = k.tenant"
	  . " WHERE t.id = 'back' AND k.generation = 1";
	my $old = key_of('back');

	one('ALTER SYSTEM SET nomp_crypt.backup_retention = 0');
	$node->reload;
	one("SELECT nomp_crypt.rewrap_tenant('back')");
	called('destroy_expired_keks()');
	days_pass($folder, 3, $node);
	($state, $said) = called('destroy_expired_keks()');
	unlike($said, qr/WARNING/, 'a key that no backup needs is pending');
	cancel_and_ask_again($old, 7);
	($state, $said) = called('destroy_expired_keks()');
	like(
		$said,
		qr/WARNING: .*the destruction of key \S+:1 was cancelled in the keystore.*It is pending again, by somebody else's request: until \d.*their keystore will destroy: 1/s,
		'cancelled and asked for again: it is said');
	is( one("SELECT k.state || ' ' || (k.pending_until > now() + interval '6 days') $kek"
		),
		'retired true',
		'the new date is on record');
	is( one("SELECT count(*) FROM nomp_crypt.audit WHERE act = 'expire_cancelled' AND tenant = 'back'"
		),
		'1',
		'and that it was cancelled');
	($state, $said) = called('destroy_expired_keks()');
	unlike($said, qr/WARNING/, 'it is said once');
	days_pass($folder, 8, $node);
	like(
		(called('destroy_expired_keks()'))[1],
		qr/keys destroyed that no backup needs any more: 1$/m,
		'then it is gone');
	is(one("SELECT k.state $kek"), 'destroyed', 'and on record so');
	is((erase('back'))[0], '', 'and its school can be erased');
}

is( school_reads($node, 'living'),
	'Anna i living',
	'through all of this another school was left alone');
is( one("SELECT concat_ws(' ', destroys_at_once, credentials, lasting_credentials) FROM nomp_crypt.keystore_status()"
	),
	'f shared file t',
	'what kind of keystore it is is shown');
like(
	one("SELECT severity || ': ' || detail FROM nomp_crypt.health() WHERE name = 'credentials'"
	),
	qr/^warning: the key service's credentials do not expire/,
	'and health() warns of credentials that do not expire');
$node->stop;
done_testing();
