# The keystore remembers the register's head, so that nobody can cut records off.
# AWS KMS answers many requests at once, each in its time: what it remembers in
# the end is the last head all the same, also if an earlier one was held up.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

BEGIN { $ENV{NOMP_TEST_KEYSTORE} = 'aws-kms' }

use KmsDouble;
use NompTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = nomp_node('main');
my $aws = "$node->{nomp_dir}/aws-nomp";

$node->append_conf('postgresql.conf', <<'CONF');
nomp_crypt.keystore_timeout = 120s
nomp_crypt.key_check_interval = 1h
CONF
$node->start;
create_nomp($node, qw(a b));

sub one
{
	my ($sql) = @_;

	return $node->safe_psql('postgres', $sql);
}

my $holds = 0;

# A record more in the register.
sub record
{
	$holds++;
	return one("SELECT nomp_crypt.hold_tenant('a', 'T-$holds')");
}

# The number of the record that the keystore remembers.
sub remembered
{
	my ($canary) =
	  grep { ($_->{tag}->{'nomp_crypt:label'} // '') =~ /:canary$/ }
	  double_keys($aws);

	return ($canary->{tag}->{'nomp_crypt:head'} // '') =~ /^(\d+) / ? $1 : 0;
}

sub last_record { return one('SELECT max(number) FROM nomp_crypt.register') }

sub heads_sent { return double_says($aws, 'counts')->{TagResource} // 0 }

record();
wait_until(sub { remembered() == last_record() }, 'the head of a record');
pass('the keystore is told of a record');

# ---- an earlier one is held up ----

double_says($aws, 'forget_calls');
double_says(
	$aws, 'fault',
	kind => 'hang',
	action => 'TagResource',
	times => 1);
record();
wait_until(sub { heads_sent() == 1 }, 'the first head to be on its way');
record() for 1 .. 5;
double_says($aws, 'recover');
wait_until(sub { remembered() == last_record() }, 'the last head');
# one that was overtaken would come now
wait_until(
	sub {
		@{ double_says($aws, 'calls', action => 'TagResource') } ==
		  heads_sent();
	},
	'all that was sent to be answered');
is(remembered(), last_record(),
	'an earlier head that is held up does not replace a later one');
is(heads_sent(), 2, 'and of those that wait only the last is sent');

# ---- the helper dies with one under way ----

double_says($aws, 'forget_calls');
double_says(
	$aws, 'fault',
	kind => 'hang',
	action => 'TagResource',
	seconds => 2,
	times => 1);
record();
wait_until(sub { heads_sent() == 1 }, 'a head to be on its way');
record();
restart_helper($node);
wait_until(sub { remembered() == last_record() }, 'the last head');
pass('one that is repeated after the helper died does not replace a later one'
);
is(one('SELECT state FROM nomp_crypt.register_status()'),
	'ok', 'the register is well');

$node->stop;
done_testing();
