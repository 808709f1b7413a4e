# Schools move between a token and a key service and back, while sessions read
# them, and an erasure afterwards must reach every key that a school ever had
# in either: at once in the token, in its time in the service, and it says
# "erased" only when the last is gone; the same between two accounts of a
# service, in two regions.  The regions that a key service is
# allowed can be changed by a reload, which also takes keys out of reach.

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

my $kms = double_uri($folder);
my $node = nomp_node('main');
my $dir = $node->{nomp_dir};
my $token = keystore_uri($dir, 'nomp');

$node->append_conf('postgresql.conf', <<"CONF");
nomp_crypt.keystore = '$token'
nomp_crypt.keystore_timeout = '60s'
CONF
$node->start;
create_nomp($node, qw(moves returns stays));
$node->safe_psql('postgres',
		'INSERT INTO pupil (id, school, name)'
	  . " SELECT row_number() OVER (), id, nomp_crypt.encrypt('Anna i ' || id, id)"
	  . ' FROM nomp_crypt.tenants');

sub one
{
	my ($sql) = @_;

	return $node->safe_psql('postgres', $sql);
}

sub uuid_of
{
	my ($school) = @_;

	return one("SELECT uuid FROM nomp_crypt.tenant WHERE id = '$school'");
}

# How many keys the token has for a school, and the states of the service's.
sub keys_of
{
	my ($school) = @_;
	my $uuid = uuid_of($school);

	return join ' ',
	  scalar(grep { /:\Q$uuid\E:/ } token_labels($dir, 'nomp')),
	  sort map { $_->{state} }
	  grep     { join(' ', values %{ $_->{tag} }) =~ /\Q$uuid\E/ }
	  double_keys($folder);
}

sub kek_of
{
	my ($school) = @_;

	return one(
		"SELECT k.keystore FROM nomp_crypt.kek k WHERE k.tenant = '@{[ uuid_of($school) ]}' AND k.state = 'active'"
	);
}

sub erase
{
	my ($school) = @_;

	return sqlstate($node,
		"CALL nomp_crypt.erase_tenant('$school', 'agreement_ended', 'PUB-1')"
	);
}

sub case_state
{
	my ($school) = @_;

	return one(
		"SELECT state FROM nomp_crypt.erasure WHERE tenant = '@{[ uuid_of($school) ]}'"
	);
}

# The keystores that answer and are this installation's, in the settings' order.
sub await_keystores
{
	my ($wanted) = @_;

	return $node->poll_query_until('postgres',
		"SELECT string_agg(state, ',') FROM nomp_crypt.keystore_status()",
		$wanted);
}

# ---- a key service is added ----

set_keystores($node, $token, $kms);
ok( await_keystores("ok,the token is not this installation's"),
	'a key service without a key of ours is said to be so');
is(school_reads($node, 'moves'), 'Anna i moves', 'which disturbs nobody');
is(sqlstate($node, "SELECT nomp_crypt.add_keystore('')"),
	'', 'it has no serial: it can be added by that');
is(sqlstate($node, "SELECT nomp_crypt.add_keystore('$kms')"),
	'', 'and, again, by its URI');
is( sqlstate($node, "SELECT nomp_crypt.add_keystore('aws-kms://eu-west-1')"),
	'42704',
	'but not by another');
ok(await_keystores('ok,ok'), 'it has a canary now');
my $arn = one(
	"SELECT serial FROM nomp_crypt.keystore_status() WHERE keystore LIKE 'aws%'"
);
like($arn, qr/^arn:aws:kms:eu-north-1:\d{12}$/, 'and an account');

# ---- there, and back ----

my $reader = $node->background_psql('postgres');
$reader->query_safe(
	"BEGIN; SET LOCAL nomp_crypt.tenant = 'moves'; SELECT name FROM pupil WHERE school = 'moves'"
);
one("SELECT nomp_crypt.migrate_tenant('$_', '$arn')") for qw(moves returns);
is($reader->query_safe("SELECT name FROM pupil WHERE school = 'moves'"),
	'Anna i moves', 'a session that has the key notices nothing');
$reader->quit;
is(kek_of('moves'), $arn, 'the key in use is in the service');
is(keys_of('moves'), '1 Enabled', 'the old one is kept');
$node->restart;
is(school_reads($node, $_), "Anna i $_", "$_ reads from cold")
  for qw(moves returns stays);
one("SELECT nomp_crypt.migrate_tenant('returns', '@{[ one(q{SELECT serial FROM nomp_crypt.keystore_status() WHERE keystore LIKE 'pkcs11%'}) ]}')"
);
like(kek_of('returns'), qr/^pkcs11:serial=/, 'one moves back');
is(keys_of('returns'), '2 Enabled', 'and has a key in each, and the old one');
$node->restart;
is(school_reads($node, 'returns'), 'Anna i returns', 'and reads from cold');

# ---- regions ----

one("ALTER SYSTEM SET nomp_crypt.keystore_regions = 'eu-west-1'");
$node->reload;
ok(await_keystores('ok,it is not in a region that is allowed'),
	'a reload takes its region away');
$node->restart;
is(school_reads($node, 'moves'), 'NC004', 'a school there cannot be read');
is(school_reads($node, 'returns'), 'Anna i returns', 'the others can');
is(sqlstate($node, "ALTER SYSTEM SET nomp_crypt.keystore_regions = '$_'"),
	'22023', "not a region: $_")
  for 'EU-north-1', 'eu-north', 'north', 'eu-north-1; eu-west-1',
  'eu--north-1', 'eu-north-1x';
one('ALTER SYSTEM RESET nomp_crypt.keystore_regions');
$node->reload;
ok(await_keystores('ok,ok'), 'a reload gives it back');
is(school_reads($node, 'moves'), 'Anna i moves', 'and it can');

# ---- erasure reaches all ----

for my $school (qw(moves returns))
{
	is(erase($school), '', "$school: an erasure");
	is(case_state($school), 'pending', "$school: is pending");
	is( keys_of($school),
		'0 PendingDeletion',
		"$school: the token has destroyed its keys, the service will");
	is( one("SELECT string_agg(concat_ws(' ', CASE WHEN k.key LIKE 'arn:%' THEN 'service' ELSE 'token' END,"
			  . " k.value ? 'destroyed', k.value ? 'pending', k.value ->> 'at_once'), ', ' ORDER BY k.key LIKE 'arn:%' DESC)"
			  . " FROM nomp_crypt.erasure e, jsonb_each(e.keystores) k WHERE e.tenant = '@{[ uuid_of($school) ]}'"
		),
		'service f t false, token t f true',
		"$school: what happened where is on record");
	is(school_reads($node, $school), 'NC002', "$school: is not readable");
}
double_says($folder, 'down', on => \1);
is(erase('moves'), 'NC004', 'the service cannot be asked: nothing is said');
is(case_state('moves'), 'pending', 'and nothing changes');
double_says($folder, 'recover');
days_pass($folder, 8, $node);
for my $school (qw(moves returns))
{
	is(erase($school), '', "$school: a week later");
	is(case_state($school), 'destroyed', "$school: the last key is gone");
	is(keys_of($school), '0', "$school: none anywhere");
	is(school_reads($node, $school), 'NC001', "$school: erased");
}
is(school_reads($node, 'stays'), 'Anna i stays', 'the third was left alone');
is(keys_of('stays'), '1', 'with its key');

# ---- from one account to another ----

my $west_folder = "$folder-west";
start_double($west_folder, '--region', 'eu-west-1', '--account',
	'444455556666');
my $west = double_uri($west_folder);
my $west_arn = 'arn:aws:kms:eu-west-1:444455556666';

# The states of a school's keys in the one, and in the other.
sub keys_north_and_west
{
	my ($school) = @_;
	my $uuid = uuid_of($school);

	return join ', ', map {
		join ' ', sort map { $_->{state} }
		  grep             { join(' ', values %{ $_->{tag} }) =~ /\Q$uuid\E/ }
		  double_keys($_)
	} $folder, $west_folder;
}

set_keystores($node, $kms, $west, $token);
ok(await_keystores("ok,the token is not this installation's,ok"),
	'an account of another region is added');
one("SELECT nomp_crypt.add_keystore('$west')");
ok(await_keystores('ok,ok,ok'), 'it has a canary now');
for my $school (qw(wanders resides))
{
	one("SELECT nomp_crypt.create_tenant('$school')");
	one("INSERT INTO pupil (id, school, name) SELECT max(id) + 1, '$school', nomp_crypt.encrypt('Anna i $school', '$school') FROM pupil"
	);
	is(kek_of($school), $arn, "$school: its key is in the north");
}
{
	my $migrate = "SELECT nomp_crypt.migrate_tenant('wanders', '$west_arn')";

	# a key is made there, and its answer is on its way
	double_says(
		$west_folder, 'fault',
		action => 'CreateKey',
		kind => 'drip',
		times => 1);
	my $call = start_query($node, $migrate);
	wait_until(sub { keys_north_and_west('wanders') eq 'Enabled, Enabled' },
		'a key in the west');
	crash($node);
	end_query($call);
	$node->start;
	is(kek_of('wanders'), $arn, 'a power cut in the middle of its move');
	is( school_reads($node, 'wanders'),
		'Anna i wanders',
		'it reads where it was');
	is(sqlstate($node, $migrate), '', 'the call is repeated');
	is( one("SELECT string_agg(action, ' ') FROM nomp_crypt.reconcile_keystore(remove => true, older_than => '0')"
		),
		'removed',
		'what the first call left behind is found, and removed');
	is( keys_north_and_west('wanders'),
		'Enabled, Enabled PendingDeletion',
		'a key in each, and that one');
}
is(kek_of('wanders'), $west_arn, 'the key in use is in the west');
$node->restart;
is(school_reads($node, $_), "Anna i $_", "$_ reads from cold")
  for qw(wanders resides);

is(erase('wanders'), '', 'it is erased');
is(case_state('wanders'), 'pending', 'which is pending');
is( keys_north_and_west('wanders'),
	'PendingDeletion, PendingDeletion PendingDeletion',
	'in both accounts');
days_pass($folder, 8, $node);
is(erase('wanders'), '', 'the one has destroyed its key');
is(case_state('wanders'), 'pending', 'which is not enough');
days_pass($west_folder, 8, $node);
is(erase('wanders'), '', 'and so has the other');
is(case_state('wanders'), 'destroyed', 'the last key is gone');
is(keys_north_and_west('wanders'), ', ', 'none anywhere');
is(school_reads($node, 'wanders'), 'NC001', 'erased');
is(school_reads($node, $_), "Anna i $_", "$_ was left alone")
  for qw(resides stays);
$node->stop;
done_testing();
