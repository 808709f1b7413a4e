# A key that a school had before a rewrap, and that no backup needs any more,
# waits in AWS KMS for its end, and is refused there as one that somebody has
# disabled.  Nodes that have what it wraps in memory forget that, no more: their
# sessions go on.  But a school whose later key is disabled too is suspended, and
# one of which nobody says that it has a later key might be: those are wiped.
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

my @rewrapped = qw(living suspended);
my $node = nomp_node('main');
my $aws = "$node->{nomp_dir}/aws-nomp";

double_says($aws, 'at_once', on => JSON::PP::false());
$node->append_conf('postgresql.conf', <<'CONF');
nomp_crypt.key_check_interval = 1h
nomp_crypt.backup_retention = 0
CONF
$node->start;
cold_schools($node, @rewrapped, qw(disabled unseen));

my %first =
  map { $_ => kek_label($node, $_) } @rewrapped, qw(disabled unseen);

sub key_of
{
	my ($label) = @_;
	my ($key) = grep { ($_->{tag}->{'nomp_crypt:label'} // '') eq $label }
	  double_keys($aws);

	return $key->{id};
}

sub check_every
{
	my ($interval) = @_;

	$node->safe_psql('postgres',
		"ALTER SYSTEM SET nomp_crypt.key_check_interval = '$interval'");
	$node->reload;
	return;
}

sub cached
{
	my ($school) = @_;

	return $node->safe_psql('postgres',
		"SELECT cached_keys FROM nomp_crypt.stat_tenants WHERE id = '$school'"
	);
}

# A session in a transaction in which it has read.
my $session = open_session($node);
my $reads = "SELECT name FROM pupil WHERE school = 'living' LIMIT 1";

says($session, 'BEGIN');
says($session, "SET LOCAL nomp_crypt.tenant = 'living'");
is(says($session, $reads), 'Anna i living', 'a session reads');
is(school_reads($node, $_), "Anna i $_", "$_ is in memory")
  for qw(suspended disabled);

$node->safe_psql('postgres', "SELECT nomp_crypt.rewrap_tenant('$_')")
  for @rewrapped;
is(sqlstate($node, 'CALL nomp_crypt.destroy_expired_keks()'),
	'', 'the keys of before are destroyed');
for my $school (@rewrapped)
{
	my ($key) =
	  grep { $_->{id} eq key_of($first{$school}) } double_keys($aws);
	my $second = key_of($first{$school} =~ s/:1$/:2/r);

	is($key->{state}, 'PendingDeletion', "$school: its first key waits");
	double_says($aws, 'change', key => $second, state => 'Disabled')
	  if $school eq 'suspended';
}
double_says(
	$aws, 'change',
	key => key_of($first{disabled}),
	state => 'Disabled');

my $log_start = -s $node->logfile;
my $wiped = 'is disabled in the keystore: its school\'s keys are wiped';

# ---- the school is as it was ----

check_every('1s');
for my $school (qw(suspended disabled))
{
	$node->wait_for_log(qr/"\Q$first{$school}\E" $wiped/, $log_start);
	is(cached($school), 0, "$school: nothing is left in memory");
	is(school_reads($node, $school), 'NC002', "$school: nobody reads");
}
wait_until(sub { cached('living') == 0 },
	'what the first key had wrapped to be forgotten');
unlike(
	slurp_file($node->logfile, $log_start),
	qr/"\Q$first{living}\E" $wiped/,
	'living: without alarm');
is( says($session, $reads),
	'Anna i living',
	'the session reads on in its transaction');
is( school_reads($node, 'living'),
	'Anna i living',
	'another one by the second key');
says($session, 'COMMIT');
$session->quit;

# ---- it cannot be seen ----

check_every('1h');
$node->restart;
is(school_reads($node, 'unseen'), 'Anna i unseen', 'unseen is in memory');
$node->safe_psql('postgres', "SELECT nomp_crypt.rewrap_tenant('unseen')");
is(sqlstate($node, 'CALL nomp_crypt.destroy_expired_keks()'),
	'', 'its first key is destroyed');
$log_start = -s $node->logfile;
double_says(
	$aws, 'fault',
	action => 'ListKeys',
	error => 'AccessDeniedException');
check_every('1s');
$node->wait_for_log(qr/"\Q$first{unseen}\E" $wiped/, $log_start);
is(cached('unseen'), 0, 'whose later key is not shown is wiped');
is( school_reads($node, 'unseen'),
	'Anna i unseen',
	'and asks for its keys again');

$node->stop;
done_testing();
