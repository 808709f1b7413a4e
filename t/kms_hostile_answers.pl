# AWS KMS answers with an error, with nonsense, with another's key, or somebody
# else answers in its place.  Each has its SQLSTATE and a hint that fits; no
# answer ever yields wrong data, and no key in memory is lost by it.  When it is
# over, everything reads again.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

BEGIN { $ENV{NOMP_TEST_KEYSTORE} = 'aws-kms' }

use JSON::PP ();
use KmsDouble;
use NompTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = nomp_node('main');
my $aws = "$node->{nomp_dir}/aws-nomp";
my $plain = start_double($aws)->{plain};

$node->append_conf('postgresql.conf', <<'CONF');
nomp_crypt.keystore_timeout = 5s
nomp_crypt.key_check_interval = 1h
CONF
$node->start;
create_nomp($node, qw(warm cold other));
$node->safe_psql('postgres', <<'SQL');
INSERT INTO pupil (id, school, name)
SELECT row_number() OVER (), id, nomp_crypt.encrypt('Anna i ' || id, id)
FROM nomp_crypt.tenants;
SQL

# key_of(ID): the school's key in KMS.
sub key_of
{
	my ($id) = @_;
	my $label = kek_label($node, $id);
	my ($key) =
	  grep { ($_->{tag}->{'nomp_crypt:label'} // '') eq $label }
	  double_keys($aws);

	return $key->{id};
}

# No node has the school's keys in memory.
sub chill
{
	my ($id) = @_;

	$node->safe_psql('postgres',
		"SELECT nomp_crypt._wipe(uuid) FROM nomp_crypt.tenants WHERE id = '$id'"
	);
	return;
}

# answers_with(NAME, BREAK, EXPECTED, REPAIR): what a cold school's reader is
# told while BREAK lasts.
sub answers_with
{
	my ($name, $break, $expected, $repair) = @_;

	is(school_reads($node, 'warm'), 'Anna i warm', "$name: a key in memory");
	chill('cold');
	$break->();
	my $failure = failure($node, read_school('cold'));
	like($failure, $expected, "$name: the error");
	unlike(
		$failure,
		qr/AKIADOUBLE|Anna|secret of/,
		"$name: nothing in it that must not be");
	is(school_reads($node, 'warm'),
		'Anna i warm', "$name: the key in memory is still there");
	double_says($aws, 'recover');
	$repair->() if $repair;
	# a machine that is busy with other things may take longer than it has
	wait_until(sub { school_reads($node, 'cold') ne 'NC004' },
		"$name to be over");
	is(school_reads($node, 'cold'), 'Anna i cold', "$name: over");
	return;
}

sub fault
{
	my (%rules) = @_;

	return sub { double_says($aws, 'fault', action => 'Decrypt', %rules) };
}

sub tells
{
	my (@what) = @_;

	return sub { double_says($aws, @what) };
}

my $cold = key_of('cold');
my $other = key_of('other');
my $arn = "arn:aws:kms:eu-north-1:111122223333:key";

# ---- what KMS itself says ----

my %errors = (
	AccessDeniedException =>
	  qr/^NC004: .*does not allow this.*HINT:.*IAM policy/s,
	ThrottlingException => qr/^NC004: .*come back later.*HINT:.*quota/s,
	KMSInternalException => qr/^NC004: /,
	DependencyTimeoutException => qr/^NC004: /,
	KeyUnavailableException => qr/^NC004: /,
	ServiceUnavailableException => qr/^NC004: /,
	ExpiredTokenException => qr/^NC004: .*no credentials.*HINT:.*expired/s,
	UnrecognizedClientException => qr/^NC004: .*no credentials/s,
	InvalidSignatureException => qr/^NC004: /,
	InvalidCiphertextException => qr/^NC005: /,
	SomethingNewException => qr/^NC004: /);

for my $error (sort keys %errors)
{
	my $status = $error =~ /Internal|Timeout|Unavailable/ ? 500 : 400;

	answers_with($error,
		fault(error => $error, status => $status, key => $cold),
		$errors{$error});
}
# if no key decrypts, it is not the ciphertext
answers_with(
	'InvalidCiphertextException for every key',
	fault(error => 'InvalidCiphertextException'),
	qr/^NC004: /);
for my $error (qw(ThrottlingException KMSInternalException))
{
	chill('cold');
	double_says(
		$aws, 'fault',
		action => 'Decrypt',
		error => $error,
		status => $error =~ /Internal/ ? 500 : 400,
		times => 2);
	is(school_reads($node, 'cold'),
		'Anna i cold', "$error, twice: it is tried again");
	double_says($aws, 'recover');
}
for my $hours (-1, 1)
{
	answers_with(
		"a clock that is wrong by $hours h",
		tells('skew', seconds => $hours * 3600),
		qr/^NC004: .*clock differs.*HINT:.*NTP/s);
}

# ---- who answers ----

for my $certificate (qw(other-host expired self-signed))
{
	answers_with(
		"a certificate that is $certificate",
		tells('present', certificate => $certificate),
		qr/^NC004: .*cannot be reached, or does not prove who it is/);
}
answers_with('nobody', tells('down'),
	qr/^NC004: .*cannot be reached, or does not prove who it is/);
answers_with(
	'a redirection',
	fault(kind => 'redirect', location => "http://127.0.0.1:$plain/"),
	qr/^NC004: /);

# ---- nonsense ----

for my $kind (
	qw(huge endless_head truncated drip close not_json empty garbage cut array
	twice deep nul wrong_types))
{
	answers_with(
		"an answer that is $kind",
		fault(kind => $kind),
		qr/^NC004: /);
}

# ---- lies ----

my %lies = (
	'another key' => { KeyId => "$arn/$other" },
	'another region' =>
	  { KeyId => "arn:aws:kms:us-east-1:111122223333:key/$cold" },
	'another account' =>
	  { KeyId => "arn:aws:kms:eu-north-1:999999999999:key/$cold" },
	'an alias' =>
	  { KeyId => 'arn:aws:kms:eu-north-1:111122223333:alias/school' },
	'no key' => { KeyId => undef },
	'a short plaintext' => { Plaintext => 'AAAA' },
	'no plaintext' => { Plaintext => undef },
	'a plaintext that is no base64' => { Plaintext => '*' x 44 });

for my $lie (sort keys %lies)
{
	answers_with(
		"an answer with $lie",
		fault(kind => 'patch', values => $lies{$lie}),
		qr/^NC004: /);
}
answers_with(
	'a data key of zeros',
	fault(kind => 'patch', values => { Plaintext => 'A' x 43 . '=' }),
	qr/^NC005: /);
chill('other');
is(school_reads($node, 'other'), 'Anna i other', 'another school reads');
answers_with(
	"another school's data key",
	fault(kind => 'other_plaintext'),
	qr/^NC005: /);

# ---- what became of the key ----

answers_with(
	'a key that is disabled',
	tells('call', action => 'DisableKey', KeyId => $cold),
	qr/^NC002: .*suspended.*HINT:.*disabled in the keystore/s,
	tells('call', action => 'EnableKey', KeyId => $cold));
answers_with(
	'a key that waits to be deleted',
	tells(
		'change',
		key => $cold,
		state => 'PendingDeletion',
		deletion => time + 86400 * 7),
	qr/^NC002: /,
	sub {
		double_says(
			$aws, 'call',
			action => 'CancelKeyDeletion',
			KeyId => $cold);
		double_says($aws, 'call', action => 'EnableKey', KeyId => $cold);
	});
for my $kind ([ multi_region => JSON::PP::true(), 'false' ],
	[ origin => 'EXTERNAL', 'AWS_KMS' ])
{
	my ($field, $bad) = @$kind;

	answers_with(
		"a key whose $field is $bad",
		sub {
			double_says($aws, 'change', key => $cold, $field => $bad);
			restart_helper($node);
		},
		qr/^NC004: /,
		sub {
			double_says(
				$aws, 'change',
				key => $cold,
				$field => $field eq 'origin' ? 'AWS_KMS' : JSON::PP::false());
			restart_helper($node);
		});
}

# A school's key that is another's: rows changed by somebody in the database.
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE kept AS SELECT * FROM nomp_crypt.tenant_key;
UPDATE nomp_crypt.tenant_key k SET wrapped = o.wrapped
FROM nomp_crypt.tenant_key o, nomp_crypt.tenants t, nomp_crypt.tenants u
WHERE t.id = 'cold' AND k.tenant = t.uuid AND u.id = 'other' AND o.tenant = u.uuid
	AND k.purpose = o.purpose;
SQL
chill('cold');
is(school_reads($node, 'cold'),
	'NC005', "another school's ciphertext is damage");
$node->safe_psql('postgres', <<'SQL');
UPDATE nomp_crypt.tenant_key k SET wrapped = o.wrapped FROM kept o WHERE o.key_id = k.key_id;
SQL
is(school_reads($node, 'cold'), 'Anna i cold', 'when it is back it reads');

# that a key is absent is said only after several looks
$node->safe_psql('postgres',
	"ALTER SYSTEM SET nomp_crypt.keystore_timeout = '30s'");
$node->reload;
double_says($aws, 'delete', key => key_of('other'));
chill('other');
like(
	failure($node, read_school('other')),
	qr/^NC003: .*no key for tenant "other"/,
	'a key that somebody deleted is unknown');

# Where is what the server knows of its keystore when that lies?
for my $action (qw(DescribeKey ListKeys ListResourceTags))
{
	for my $kind (qw(not_json wrong_types huge deep))
	{
		chill('cold');
		restart_helper($node);
		double_says($aws, 'fault', action => $action, kind => $kind);
		like(
			outcome($node, read_school('cold')),
			qr/^(NC004|Anna i cold)$/,
			"$action that is $kind: no wrong verdict");
		double_says($aws, 'recover');
	}
}
is(school_reads($node, 'cold'), 'Anna i cold', 'and it reads');
is(school_reads($node, 'warm'), 'Anna i warm', 'as the other does');

my $log = PostgreSQL::Test::Utils::slurp_file($node->logfile);
ok( $log !~ qr{everyday/secret|Anna i cold},
	'no secret and no plaintext in the log');

done_testing();
