# A key's destruction is asked of AWS KMS with credentials of its own, and may
# take its time to fail, or never be answered.  That is the trouble of whoever
# erases: everybody else reads, whose key is in memory and whose is not, makes
# schools, and erases others.  And what the helper knows of other schools' keys
# it knows afterwards: in a large account nobody has the time to read all tags
# anew for each erasure.
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

my @readers = map { "reader$_" } 1 .. 6;
my $node = nomp_node('main');
my $dir = $node->{nomp_dir};
my $aws = "$dir/aws-nomp";

double_says($aws, 'at_once', on => JSON::PP::false());
$node->append_conf('postgresql.conf', <<'CONF');
nomp_crypt.keystore_timeout = 60s
nomp_crypt.key_check_interval = 1h
CONF
$node->start;
cold_schools($node, qw(first second hung beside awaited never bad good role),
	@readers);

sub one
{
	my ($sql) = @_;

	return $node->safe_psql('postgres', $sql);
}

my %key = map { $_->{tag}->{'nomp_crypt:school'} // '' => $_->{id} }
  double_keys($aws);
my %key_of = map { split /\|/ }
  split /\n/,
  one('SELECT id, uuid FROM nomp_crypt.tenant');
$key_of{$_} = $key{ $key_of{$_} } for keys %key_of;

sub erase
{
	my ($school) = @_;

	return "CALL nomp_crypt.erase_tenant('$school', 'test')";
}

sub case_of
{
	my ($school) = @_;

	return one(
		'SELECT e.state FROM nomp_crypt.erasure e JOIN nomp_crypt.tenant t ON t.uuid = e.tenant'
		  . " WHERE t.id = '$school'");
}

sub calls
{
	my ($action) = @_;

	return double_says($aws, 'counts')->{$action} // 0;
}

# An erasure whose request to the service hangs.
sub begin_hanging
{
	my ($school) = @_;
	my $before = calls('ScheduleKeyDeletion');

	double_says(
		$aws, 'fault',
		action => 'ScheduleKeyDeletion',
		kind => 'hang',
		key => $key_of{$school});
	my $query = start_query($node, erase($school));
	wait_until(sub { calls('ScheduleKeyDeletion') > $before },
		"$school: its keys to be destroyed");
	return $query;
}

sub still_erasing
{
	my ($school) = @_;

	return one("SELECT count(*) FROM pg_stat_activity"
		  . " WHERE state = 'active' AND query = "
		  . "'CALL nomp_crypt.erase_tenant(''$school'', ''test'')'");
}

# ---- what the helper knows ----

{
	is(sqlstate($node, erase('first')), '', 'an erasure');
	is(case_of('first'), 'pending', 'whose keys wait for their date');
	my $helper = helper_pid($node);

	double_says($aws, 'forget_calls');
	is(sqlstate($node, erase('second')), '', 'and another');
	my %read =
	  map { $_->{key} => 1 }
	  @{ double_says($aws, 'calls', action => 'ListResourceTags') };

	is(join(' ', grep { $read{ $key_of{$_} } } sort keys %key_of),
		'second',
		'which reads the tags of that school\'s key and of no other');
	is(helper_pid($node), $helper, 'with the same helper');
}

# ---- while a key is being destroyed ----

{
	my $hanging = begin_hanging('hung');

	is( school_reads($node, 'reader1'),
		'Anna i reader1',
		'a school whose key is not in memory reads');
	is(sqlstate($node, "SELECT nomp_crypt.create_tenant('new')"),
		'', 'a school is made');
	is(sqlstate($node, erase('beside')), '', 'another one is erased');
	is(case_of('beside'), 'pending', 'and its keys wait for their date');
	is(still_erasing('hung'), 1, 'all that beside a request that hangs');

	# an outage begins, and is over
	my $log_start = -s $node->logfile;
	double_says($aws, 'latency', action => 'Decrypt', seconds => 1.2);
	for my $school (qw(reader2 reader3))
	{
		double_says(
			$aws, 'fault',
			action => 'Decrypt',
			kind => 'array',
			key => $key_of{$school});
		is(school_reads($node, $school), 'NC004', "$school cannot be read");
	}
	$node->wait_for_log(qr/the keystore does not answer/, $log_start);
	is( school_reads($node, 'reader4'),
		'Anna i reader4',
		'in an outage it is a reader that tries, not the request that hangs');
	is(still_erasing('hung'), 1, 'which still does');
	$node->wait_for_log(qr/the keystore answers again/, $log_start);

	double_says($aws, 'recover');
	is((end_query($hanging))[0], '', 'it comes to its end');
	is(case_of('hung'), 'pending', 'and so does its case');
}

# ---- the school's own keys ----

{
	my $before = calls('ScheduleKeyDeletion');

	double_says(
		$aws, 'fault',
		action => 'Decrypt',
		kind => 'hang',
		key => $key_of{awaited});
	my $decrypts = calls('Decrypt');
	my $reading = start_query($node, read_school('awaited'));
	wait_until(sub { calls('Decrypt') > $decrypts }, 'a key to be asked for');
	my $erasing = start_query($node, erase('awaited'));
	wait_until(
		sub {
			return case_of('awaited') eq 'submitted'
			  && one('SELECT max(queue) FROM nomp_crypt.stat_keystore') > 0;
		},
		'its destruction to wait');
	is(sqlstate($node, erase('reader6')), '', 'another school is erased');
	is( calls('ScheduleKeyDeletion'),
		$before + 1,
		'no key is destroyed while the helper is about to have what it wraps'
	);
	double_says($aws, 'recover');
	is((end_query($reading))[1], '', 'who asked for it does not get it');
	is((end_query($erasing))[0], '', 'and the erasure goes on');
	is(case_of('awaited'), 'pending', 'to its end');
}

# ---- it fails slowly ----

one("ALTER SYSTEM SET nomp_crypt.keystore_timeout = '5s'");
$node->reload;

{
	my $log_start = -s $node->logfile;

	double_says(
		$aws, 'fault',
		action => 'ScheduleKeyDeletion',
		kind => 'hang',
		key => $key_of{never});
	is(sqlstate($node, erase('never')),
		'NC004', 'a key\'s destruction is never answered');
	double_says(
		$aws, 'latency',
		action => 'ScheduleKeyDeletion',
		seconds => 1.2);
	for my $school (qw(bad good))
	{
		double_says(
			$aws, 'fault',
			action => 'ScheduleKeyDeletion',
			key => $key_of{$school});
		is( sqlstate($node, erase($school)),
			'NC004',
			"$school: the service has an error, and takes its time to say so"
		);
	}
	unlike(
		slurp_file($node->logfile, $log_start),
		qr/the keystore does not answer/,
		'that is no outage');
	is(school_reads($node, 'reader5'), 'Anna i reader5', 'a school reads');

	double_says($aws, 'recover');
	double_says(
		$aws, 'fault',
		action => 'ScheduleKeyDeletion',
		key => $key_of{bad});
	is(sqlstate($node, 'CALL nomp_crypt.run_due_erasures()'),
		'NC004', 'the first of those that are due fails again');
	is(case_of('bad'), 'submitted', 'it stays where it was');
	is(case_of('good'), 'pending', 'the other one has come to its end');
	double_says($aws, 'recover');
}

# ---- its credentials are not to be had ----

{
	my $log_start = -s $node->logfile;

	append_to_file("$aws/config", <<'CONF');

[profile erases]
role_arn = arn:aws:iam::111122223333:role/erases
source_profile = destroyer
CONF
	my $uri = double_uri($aws, '&destroy-profile=erases');
	one("ALTER SYSTEM SET nomp_crypt.keystore = '$uri'");
	$node->restart;
	is( school_reads($node, 'reader1'),
		'Anna i reader1',
		'a school reads with the everyday set');
	double_says($aws, 'fault', action => 'sts', kind => 'hang');
	is(sqlstate($node, erase('role')),
		'NC004', 'an erasure whose role is not given out fails');
	cmp_ok(calls('sts'), '>', 0, 'after it was asked for');
	is(school_reads($node, 'reader4'), 'Anna i reader4', 'a school reads');
	unlike(
		slurp_file($node->logfile, $log_start),
		qr/the keystore does not answer/,
		'and that is no outage');
	double_says($aws, 'recover');
	is(sqlstate($node, erase('role')), '', 'with the role it is erased');
	is(case_of('role'), 'pending', 'and its keys wait for their date');
}

$node->stop;
done_testing();
