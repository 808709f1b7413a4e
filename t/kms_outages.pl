# AWS KMS is away, slow, throttled, late to show what was done, or loses its
# answers; credentials expire and are renewed; a deletion waits for its date, or
# is cancelled by somebody.  Sessions whose keys are in memory notice nothing,
# and afterwards all goes on where it was.
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
my $dir = $node->{nomp_dir};
my $aws = "$dir/aws-nomp";
my $double = start_double($aws);

# tests of windows are told what is asked for; the rest of the suite is not
double_says($aws, 'at_once', on => JSON::PP::false());
$node->append_conf('postgresql.conf', <<'CONF');
nomp_crypt.keystore_timeout = 10s
nomp_crypt.key_check_interval = 1h
CONF
$node->start;
create_nomp($node, qw(warm cold));
add_pupils();

sub one
{
	my ($sql) = @_;

	return $node->safe_psql('postgres', $sql);
}

sub add_pupils
{
	$node->safe_psql('postgres', <<'SQL');
INSERT INTO pupil (id, school, name)
SELECT (SELECT coalesce(max(id), 0) FROM pupil) + row_number() OVER (), id, nomp_crypt.encrypt('Anna i ' || id, id)
FROM nomp_crypt.tenants t
WHERE state = 'active' AND NOT EXISTS (SELECT FROM pupil WHERE school = t.id)
SQL
	return;
}

sub chill
{
	my ($id) = @_;

	one("SELECT nomp_crypt._wipe(uuid) FROM nomp_crypt.tenants WHERE id = '$id'"
	);
	return;
}

sub set_timeout
{
	my ($time) = @_;

	one("ALTER SYSTEM SET nomp_crypt.keystore_timeout = '$time'");
	$node->reload;
	$node->poll_query_until('postgres',
		"SELECT current_setting('nomp_crypt.keystore_timeout')::interval = '$time'"
	);
	return;
}

# The server's environment changes with a restart.
sub restart_with
{
	my ($uri, %environment) = @_;

	local @ENV{ keys %environment } = values %environment;
	delete @ENV{ grep { !defined $environment{$_} } keys %environment };
	$node->safe_psql('postgres',
		"ALTER SYSTEM SET nomp_crypt.keystore = '$uri'");
	$node->restart;
	return;
}

# ---- away ----

{
	is(school_reads($node, 'warm'), 'Anna i warm', 'a key is in memory');
	chill('cold');
	kill_double($aws);
	is(school_reads($node, 'warm'),
		'Anna i warm', 'the service is away: a key in memory');
	is(school_reads($node, 'cold'), 'NC004', 'a key that is not');
	is(sqlstate($node, "SELECT nomp_crypt.create_tenant('never')"),
		'NC004', 'no new school');
	start_double($aws);
	double_says($aws, 'at_once', on => JSON::PP::false());
	wait_until(sub { school_reads($node, 'cold') eq 'Anna i cold' },
		'the service to be back');
	pass('it is back, and reads');
	is(sqlstate($node, "SELECT nomp_crypt.create_tenant('late')"),
		'', 'and makes a school');
}

# ---- slow, and late to show ----

{
	double_says($aws, 'latency', seconds => 0.3);
	chill('cold');
	is(school_reads($node, 'cold'), 'Anna i cold', 'slow: it reads');
	double_says($aws, 'recover');

	double_says($aws, 'lag', seconds => 1);
	is(sqlstate($node, "SELECT nomp_crypt.create_tenant('lagging')"),
		'', 'a key that is not shown at once becomes a school');
	add_pupils();
	chill('lagging');
	is(school_reads($node, 'lagging'), 'Anna i lagging', 'which reads');
	double_says($aws, 'recover');
}

# ---- throttled ----

{
	double_says($aws, 'quota', action => 'CreateKey', per_second => 5);
	double_says($aws, 'forget_calls');
	set_timeout('60s');
	is( sqlstate(
			$node, sprintf "CALL nomp_crypt.create_tenants('{%s}')",
			join ',', map { "many$_" } 1 .. 20),
		'',
		'twenty schools, where five keys a second may be made');
	set_timeout('10s');
	is( one("SELECT count(*) FROM nomp_crypt.tenants WHERE id LIKE 'many%' AND state = 'active'"
		),
		20,
		'all are there');
	my $throttled =
	  grep { ($_->{error} // '') eq 'ThrottlingException' }
	  @{ double_says($aws, 'calls', action => 'CreateKey') };
	note "CreateKey was throttled $throttled times";
	double_says($aws, 'recover');
}

# ---- an answer that gets lost ----

{
	my $keys = double_keys($aws);

	double_says(
		$aws, 'fault',
		action => 'CreateKey',
		kind => 'lost',
		times => 1);
	my $outcome = sqlstate($node, "SELECT nomp_crypt.create_tenant('lost')");
	like($outcome, qr/^(NC004|)$/,
		"CreateKey is done, and nobody hears of it: '$outcome'");
	my $new = double_keys($aws) - $keys;
	my $schools = $outcome eq '' ? 1 : 0;
	cmp_ok($new, '<=', 2, 'at most one key too many is made');
	my $orphans = one(
		"SELECT count(*) FROM nomp_crypt.reconcile_keystore(remove => true, older_than => '0') WHERE action = 'removed'"
	);
	is( $orphans,
		$new - $schools,
		'which reconcile_keystore finds by its tags');
	is( scalar(grep { $_->{state} eq 'Enabled' } double_keys($aws)),
		$keys + $schools,
		'and removes');
}

# ---- one key's trouble ----

{
	my $log_start = -s $node->logfile;
	my ($key) =
	  grep {
		($_->{tag}->{'nomp_crypt:label'} // '') eq kek_label($node, 'cold')
	  } double_keys($aws);

	double_says(
		$aws, 'fault',
		action => 'Decrypt',
		key => $key->{id},
		error => 'DisabledException');
	chill($_) for qw(cold late);
	for (1 .. 2)
	{
		is(school_reads($node, 'cold'),
			'NC004', 'a key that is enabled, and not used by the service');
	}
	is(school_reads($node, 'late'), 'Anna i late', 'another is read');
	unlike(
		slurp_file($node->logfile, $log_start),
		qr/the keystore does not answer/,
		'and it is no outage');
	double_says($aws, 'recover');
	is(school_reads($node, 'cold'), 'Anna i cold', 'it is over');
}

# ---- credentials ----

{
	my $uri = double_uri($aws, '&account=111122223333');
	my $metadata = "http://127.0.0.1:$double->{plain}";
	my %none = (
		AWS_SHARED_CREDENTIALS_FILE => "$dir/nothing",
		AWS_CONFIG_FILE => "$dir/nothing",
		AWS_EC2_METADATA_DISABLED => undef);
	my %sources = (
		'the metadata service' =>
		  { %none, AWS_EC2_METADATA_SERVICE_ENDPOINT => $metadata },
		'a container' => {
			%none,
			AWS_CONTAINER_CREDENTIALS_FULL_URI =>
			  "$metadata/v2/credentials/double",
			AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE => "$aws/container-token"
		},
		'a web identity' => {
			%none,
			AWS_ROLE_ARN => 'arn:aws:iam::111122223333:role/database',
			AWS_WEB_IDENTITY_TOKEN_FILE => "$aws/web-identity-token",
			AWS_ENDPOINT_URL_STS => $metadata
		});

	for my $source (sort keys %sources)
	{
		restart_with($uri, %{ $sources{$source} });
		is(school_reads($node, 'cold'),
			'Anna i cold', "credentials from $source");
		double_says($aws, 'expire_sessions');
		chill('cold');
		is(school_reads($node, 'cold'),
			'Anna i cold', "$source: renewed when the service says so");
	}
	restart_with($uri, %none, AWS_EC2_METADATA_DISABLED => 'true');
	like(
		failure($node, read_school('cold')),
		qr/^NC004: .*no credentials/,
		'without credentials nothing is read');

	# Who may not destroy, and who may; who may only look.
	restart_with($uri);
	double_says(
		$aws, 'identity',
		name => 'default',
		deny => ['kms:ScheduleKeyDeletion']);
	is(school_reads($node, 'cold'), 'Anna i cold', 'the everyday set reads');
	is(sqlstate($node, "CALL nomp_crypt.erase_tenant('many1', 'test')"),
		'NC004', 'and does not destroy');
	restart_with("$uri&destroy-profile=destroyer");
	is(sqlstate($node, "CALL nomp_crypt.erase_tenant('many1', 'test')"),
		'', 'the set that may destroys');
	double_says($aws, 'identity', name => 'default', deny => []);

	restart_with("$uri&profile=reader");
	is(school_reads($node, 'cold'), 'Anna i cold', 'a read-only set reads');
	is(sqlstate($node, "SELECT nomp_crypt.create_tenant('never')"),
		'NC004', 'and makes nothing');
	restart_with($uri);
}

# ---- deletions that wait ----

sub case_of
{
	my ($id) = @_;

	return one(
		"SELECT e.state FROM nomp_crypt.erasure e JOIN nomp_crypt.tenants t ON t.uuid = e.tenant WHERE t.id = '$id'"
	);
}

sub state_in_kms
{
	my ($uuid) = @_;

	return join ' ', map { $_->{state} }
	  grep               { ($_->{tag}->{'nomp_crypt:school'} // '') eq $uuid }
	  double_keys($aws);
}

add_pupils();
for my $id (qw(many2 many3))
{
	is(school_reads($node, $id), "Anna i $id", "$id: it reads");
	my $uuid = one("SELECT uuid FROM nomp_crypt.tenants WHERE id = '$id'");

	is(sqlstate($node, "CALL nomp_crypt.erase_tenant('$id', 'test')"),
		'', "$id: an erasure");
	is(state_in_kms($uuid), 'PendingDeletion', "$id: its key waits");
	is(case_of($id), 'pending', "$id: and the case with it");
	like(school_reads($node, $id), qr/^NC00[12]$/, "$id: nobody reads");
	if ($id eq 'many2')
	{
		days_pass($aws, 8, $node);
		is(state_in_kms($uuid), '', "$id: its date comes");
	}
	else
	{
		my ($key) =
		  grep { ($_->{tag}->{'nomp_crypt:school'} // '') eq $uuid }
		  double_keys($aws);

		double_says(
			$aws, 'call',
			action => 'CancelKeyDeletion',
			KeyId => $key->{id});
		$node->psql(
			'postgres',
			"CALL nomp_crypt.erase_tenant('$id', 'test')",
			stderr => \my $said);
		isnt(case_of($id), 'destroyed',
			"$id: a deletion that was cancelled is no erasure");
	}
}
is(school_reads($node, 'cold'), 'Anna i cold', 'the others read as ever');

done_testing();
