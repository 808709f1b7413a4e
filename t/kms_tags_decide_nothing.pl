# What a key service says of a key by its tags can be changed by whoever may tag
# keys, and shows late.  That a key is gone is said of the key itself, by its
# ARN: an erasure does not end, and a certificate is not given, as long as a key
# that was witnessed is there, whatever its tags say, or before the date that
# the service gave for it.  Whose it is, is what it was made as: tagged as another
# school's, it is read as before, and no call for that other school touches it.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use KmsDouble;
use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $folder = PostgreSQL::Test::Utils::tempdir() . '/kms';
start_double($folder);

$ENV{AWS_SHARED_CREDENTIALS_FILE} = "$folder/credentials";
$ENV{AWS_CONFIG_FILE} = "$folder/config";

my $node = nomp_node('main');
$node->append_conf('postgresql.conf', <<"CONF");
nomp_crypt.keystore = '@{[ double_uri($folder) ]}'
nomp_crypt.keystore_timeout = '60s'
nomp_crypt.backup_retention = 0
nomp_crypt.key_lease = '1s'
CONF
$node->start;
create_nomp($node,
	qw(cancelled late two one retired certified living mine theirs));
$node->safe_psql('postgres',
		'INSERT INTO pupil (id, school, name)'
	  . " SELECT row_number() OVER (), id, nomp_crypt.encrypt('Anna i ' || id, id)"
	  . ' FROM nomp_crypt.tenants');

sub one { return $node->safe_psql('postgres', $_[0]) }

sub called
{
	my ($call) = @_;
	my ($out, $err) = ('', '');

	$node->psql(
		'postgres', "\\set VERBOSITY verbose\nCALL nomp_crypt.$call;",
		stdout => \$out,
		stderr => \$err,
		on_error_stop => 0);
	return $err;
}

sub erase { return called("erase_tenant('$_[0]', 'agreement_ended', 'P-1')") }

sub in_kms
{
	my ($action, $key, @values) = @_;

	double_says(
		$folder, 'call',
		action => $action,
		KeyId => $key->{id},
		@values);
	return;
}

# The school's keys in the service, by generation, while they are tagged.
sub keys_of
{
	my ($school) = @_;
	my $uuid = one("SELECT uuid FROM nomp_crypt.tenant WHERE id = '$school'");

	return sort {
		$a->{tag}->{'nomp_crypt:label'} cmp $b->{tag}->{'nomp_crypt:label'}
	  }
	  grep { ($_->{tag}->{'nomp_crypt:school'} // '') eq $uuid }
	  double_keys($folder);
}

sub state_of
{
	my ($key) = @_;
	my ($now) = grep { $_->{id} eq $key->{id} } double_keys($folder);

	return $now ? $now->{state} : 'gone';
}

sub strip
{
	in_kms('UntagResource', $_[0],
		TagKeys => [ 'nomp_crypt:label', 'nomp_crypt:school' ]);
	return;
}

sub tag_again
{
	my ($key) = @_;

	in_kms(
		'TagResource',
		$key,
		Tags => [
			map { { TagKey => $_, TagValue => $key->{tag}->{$_} } }
			  qw(nomp_crypt:label nomp_crypt:school)
		]);
	return;
}

sub tag_as
{
	my ($key, $other) = @_;

	in_kms(
		'TagResource',
		$key,
		Tags => [
			{
				TagKey => 'nomp_crypt:label',
				TagValue => $other->{tag}->{'nomp_crypt:label'}
			}
		]);
	return;
}

# Nothing of a school is remembered, nor of what the service said.
sub forget
{
	one("SELECT nomp_crypt._wipe(uuid) FROM nomp_crypt.tenant WHERE id = '$_[0]'"
	);
	restart_helper($node);
	return;
}

# The school's case: its state, whether it is void, and how many of the keys
# that were seen were seen to be gone.
sub case_of
{
	return one(
		"SELECT concat_ws(' ', e.state, CASE WHEN e.voided_at IS NOT NULL THEN 'void' END,"
		  . " coalesce(cardinality(e.keys_destroyed), 0) || '/' || cardinality(e.keys_seen))"
		  . " FROM nomp_crypt.erasure e JOIN nomp_crypt.tenant t ON t.uuid = e.tenant"
		  . " WHERE t.id = '$_[0]' AND e.state <> 'withdrawn'");
}

# Up to before the keystore is asked.
sub submit
{
	my ($school) = @_;
	my $case =
	  one(
		"SELECT nomp_crypt._erase_request('$school', 'school_closed', NULL)");

	one("SELECT nomp_crypt._erase_$_('$case')") for qw(fence disable submit);
	return;
}

my $told =
  qr/ERROR:\s+NC004: the keystore is unavailable: it has key nomp_crypt:\S+ \(arn:aws:kms:\S+\), whose tags were changed, and is not asked to destroy it/;

# ---- cancelled, and the tags taken off ----

my ($key) = keys_of('cancelled');

is(erase('cancelled') =~ /ERROR/, '', 'an erasure is pending');
in_kms('CancelKeyDeletion', $key);
strip($key);
like(
	erase('cancelled'),
	qr/WARNING: .*the destruction of key nomp_crypt:\S+ of an erased tenant was cancelled/,
	'cancelled, and its tags taken off: that is noticed');
is(case_of('cancelled'), 'pending void 0/1', 'the case is void');
is(state_of($key), 'Disabled', 'for the key is there');
days_pass($folder, 8, $node);
erase('cancelled');
is(case_of('cancelled'), 'pending void 0/1', 'whatever the time');
like(called("resubmit_erasure('cancelled')"),
	$told, 'the service is not asked to destroy what is not tagged');
is(case_of('cancelled'), 'submitted 0/1', 'nothing is said to be destroyed');
tag_again($key);
is(called("resubmit_erasure('cancelled')") =~ /ERROR/,
	'', 'tagged as it was, it is asked again');
is(state_of($key), 'PendingDeletion', 'and will destroy it');
days_pass($folder, 8, $node);
is(erase('cancelled') =~ /ERROR/, '', 'a week later');
is(case_of('cancelled'), 'destroyed 1/1', 'it is destroyed');

# ---- an answer that is late ----

($key) = keys_of('late');
erase('late');
for my $action (qw(ListResourceTags DescribeKey))
{
	double_says(
		$folder, 'fault',
		action => $action,
		key => $key->{id},
		times => 1,
		error => 'NotFoundException');
	erase('late');
	is(case_of('late'), 'pending 0/1',
		"$action does not know the key, once: it is not believed");
	double_says($folder, 'recover');
}
double_says(
	$folder, 'fault',
	action => '*',
	key => $key->{id},
	error => 'NotFoundException');
erase('late');
is(case_of('late'), 'pending 0/1', 'nor at any time before its date');
double_says($folder, 'recover');
in_kms('CancelKeyDeletion', $key);
erase('late');
is( case_of('late'),
	'pending void 0/1',
	'until then it could be saved, and is seen to be');

# ---- tags taken off before the service was asked ----

one("SELECT nomp_crypt.rewrap_tenant('two')");
submit('two');
my ($first, $second) = keys_of('two');
strip($first);
like(erase('two'), $told, 'of two keys one lost its tags: it is missed');
is(case_of('two'), 'submitted 0/2', 'the case goes on when it is found');
is(state_of($second), 'PendingDeletion', 'the other will be destroyed');
in_kms('ScheduleKeyDeletion', $first, PendingWindowInDays => 10);
is(erase('two') =~ /ERROR/, '', 'asked for by hand, it counts');
is(case_of('two'), 'pending 0/2', 'as pending');
days_pass($folder, 8, $node);
erase('two');
is(state_of($second), 'gone', 'one is gone');
is(case_of('two'), 'pending 0/2', 'the other has three days more');
days_pass($folder, 3, $node);
erase('two');
is(case_of('two'), 'destroyed 2/2', 'then both are destroyed');

($key) = keys_of('one');
submit('one');
strip($key);
like(erase('one'), $told, 'the only key lost its tags');
days_pass($folder, 8, $node);
one("UPDATE nomp_crypt.erasure SET submitted_at = submitted_at - interval '8 days' WHERE state = 'submitted'"
);
like(erase('one'), $told, 'time does not make it gone');
# nor does a row that was changed by hand: the register has what was seen
one("UPDATE nomp_crypt.erasure SET keystores = regexp_replace(keystores::text, '\"reference\": \"[^\"]*\"', '\"reference\": \"arn:aws:kms:eu-north-1:111122223333:key/00000000-0000-4000-8000-000000000000\"', 'g')::jsonb WHERE state = 'submitted'"
);
like(erase('one'), $told, 'nor what the table says by now');
is(case_of('one'), 'submitted 0/1', 'the case stays');

# ---- a key that no backup needs ----

{
	my $kek =
		"FROM nomp_crypt.kek k JOIN nomp_crypt.tenant t ON t.uuid = k.tenant"
	  . " WHERE t.id = 'retired' AND k.generation = 1";

	($key) = keys_of('retired');
	one("SELECT nomp_crypt.rewrap_tenant('retired')");
	called('destroy_expired_keks()');
	is( one("SELECT k.state || ' ' || (k.pending_until IS NULL) $kek"),
		'retired false',
		'a key that no backup needs will be destroyed');
	in_kms('CancelKeyDeletion', $key);
	strip($key);
	like(
		called('destroy_expired_keks()'),
		qr/WARNING: .*the destruction of key \S+:1 was cancelled in the keystore/,
		'cancelled, and its tags taken off');
	is(one("SELECT k.state || ' ' || (k.pending_until IS NULL) $kek"),
		'retired true', 'it is not said to be destroyed');
	is( one("SELECT count(*) FROM nomp_crypt.register r WHERE r.type = 'expired'"
		),
		'0',
		'nor in the register');
	like(erase('retired'), $told, 'and an erasure of the school misses it');
	in_kms('ScheduleKeyDeletion', $key, PendingWindowInDays => 7);
	is(erase('retired') =~ /ERROR/, '', 'until somebody has it destroyed');
	is(case_of('retired'), 'pending 0/2', 'it belongs to the case');
	days_pass($folder, 8, $node);
	erase('retired');
	is(case_of('retired'), 'destroyed 2/2', 'and ends with it');
}

# ---- the certificate ----

# by the database's clock the date has come; the service, whose clock says
# otherwise, does not know the key, and then does
($key) = keys_of('certified');
erase('certified');
days_pass($folder, 8, $node);
double_says($folder, 'advance', seconds => -8 * 86400);
double_says(
	$folder, 'fault',
	action => '*',
	key => $key->{id},
	error => 'NotFoundException');
erase('certified');
is( case_of('certified'),
	'destroyed 1/1',
	'what is past its date, and not known as often as it is asked for, is gone'
);
double_says($folder, 'recover');
is(state_of($key), 'PendingDeletion', 'though it is there');
in_kms('CancelKeyDeletion', $key);
strip($key);
$node->poll_query_until('postgres',
	"SELECT clock_timestamp() > max(destroyed_at) + interval '2 s' FROM nomp_crypt.erasure"
);
like(
	called("certify_erasure('certified')"),
	qr/ERROR:\s+55000: a key of the school is in the keystore: nothing is certified/,
	'and then nothing is certified');

is(school_reads($node, 'living'), 'Anna i living', 'another school reads');

# ---- tagged as another school's ----

{
	my ($mine) = keys_of('mine');
	my ($theirs) = keys_of('theirs');
	my $refused =
	  qr/ERROR:\s+NC004: the keystore is unavailable: it refused the request/;
	my $log = -s $node->logfile;

	tag_as($theirs, $mine);
	forget('theirs');
	is( school_reads($node, 'theirs'),
		'Anna i theirs',
		'a school whose key is tagged as another\'s is read');
	like(erase('mine'), $refused,
		'that other school is not erased with a key that is not its own');
	ok( $node->log_contains(
			qr/\Q$theirs->{arn}\E was made as "\Q$theirs->{tag}->{'nomp_crypt:label'}\E", but its tag nomp_crypt:label is another/,
			$log),
		'which the log names');
	is(case_of('mine'), 'requested', 'its case goes no further');
	is( join(' ', map { state_of($_) } $mine, $theirs),
		'Enabled Enabled',
		'and no key is touched');
	like(
		erase('theirs'),
		qr/ERROR:\s+NC003: key \Q$theirs->{tag}->{'nomp_crypt:label'}\E is not in the keystore, so its destruction cannot be witnessed/,
		'nor is the school erased whose key is not found by its tag');
	is(case_of('theirs'), 'requested', 'nothing is said of it');
	one("SELECT nomp_crypt.withdraw_erasure('theirs')");

	tag_again($theirs);
	is(erase('mine') =~ /ERROR/, '', 'tagged as it was, the erasure goes on');
	is( join(' ', map { state_of($_) } $mine, $theirs),
		'PendingDeletion Enabled',
		'with the right key, and no other');
	tag_as($theirs, $mine);
	restart_helper($node);
	days_pass($folder, 8, $node);
	like(erase('mine'), $refused, 'tagged so meanwhile, it hinders the end');
	is(case_of('mine'), 'pending 0/1', 'which is not said to have come');
	tag_again($theirs);
	is(erase('mine') =~ /ERROR/, '', 'and does not, tagged as it was');
	is(case_of('mine'), 'destroyed 1/1', 'one key is destroyed');
	forget('theirs');
	is( school_reads($node, 'theirs'),
		'Anna i theirs',
		'the other school is read');

	my ($living) = keys_of('living');
	submit('theirs');
	tag_as($theirs, $living);
	restart_helper($node);
	like(erase('theirs'), $told,
		'a key that was seen is missed, tagged as another school\'s');
	is(case_of('theirs'), 'submitted 0/1', 'and not said to be destroyed');
	is( join(' ', map { state_of($_) } $theirs, $living),
		'Disabled Enabled',
		'nor is either asked for');
	forget('living');
	is( school_reads($node, 'living'),
		'Anna i living',
		'the school of that name is read');
	like(called("suspend_tenant('living')"),
		$refused, 'and suspended, but its keys are not disabled');
	is( join(' ', map { state_of($_) } $theirs, $living),
		'Disabled Enabled',
		'none of the two is');
	tag_again($theirs);
	is(called("resume_tenant('living')") =~ /ERROR/, '', 'it is resumed');

	tag_as($living, $theirs);
	restart_helper($node);
	like(
		called("suspend_tenant('living')"),
		qr/NOTICE:  \w+: the keystore does not disable all keys/,
		'suspended with a key that is not found by its tag: that is said');
	tag_again($living);
	restart_helper($node);
	is(called("suspend_tenant('living')"),
		'', 'tagged as it was, it is disabled');
	is(state_of($living), 'Disabled', 'in KMS');
	is(called("resume_tenant('living')"), '', 'and enabled again');
	is(erase('theirs') =~ /ERROR/, '', 'tagged as it was, it is found');
	is( join(' ', map { state_of($_) } $theirs, $living),
		'PendingDeletion Enabled',
		'and will be destroyed');
}

$node->stop;
done_testing();
