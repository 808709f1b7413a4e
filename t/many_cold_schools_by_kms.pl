# After a restart no key is in memory, and hundreds of schools are asked for at
# once.  AWS KMS answers each call in its time, several at a time: all read what
# is theirs.  How long it takes is printed, not judged.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

BEGIN { $ENV{NOMP_TEST_KEYSTORE} = 'aws-kms' }

use KmsDouble;
use NompTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $schools = $ENV{NOMP_COLD_SCHOOLS} || 300;
my $sessions = 30;
my $node = nomp_node('main');
my $aws = "$node->{nomp_dir}/aws-nomp";

$node->append_conf('postgresql.conf', <<"CONF");
nomp_crypt.keystore_timeout = 120s
nomp_crypt.max_cached_keys = 2000
max_connections = @{[ $sessions + 20 ]}
CONF
$node->start;
cold_schools($node, map { "s$_" } 1 .. $schools);

# A session goes through its share of the schools, each in a transaction.
sub share
{
	my ($from, $of) = @_;
	my @mine = grep { $_ % $of == $from } 1 .. $schools;

	return join ';', map { read_school("s$_") } @mine;
}

# read_by(SESSIONS): all schools, by so many sessions at once; how long that
# took, and what they read.
sub read_by
{
	my ($at_once) = @_;
	my $began = time;
	my @queries =
	  map { start_query($node, share($_, $at_once)) } 0 .. $at_once - 1;
	my @read;

	for my $query (@queries)
	{
		my ($error, $out) = end_query($query);

		is($error, '', 'a session ends well');
		push @read, split /\n/, $out;
	}
	return (time - $began, sort @read);
}

my @right = sort map { "Anna i s$_" } 1 .. $schools;

double_says($aws, 'latency', action => 'Decrypt', seconds => 0.01);
double_says($aws, 'forget_calls');
my ($together, @read) = read_by($sessions);
my $asked = double_says($aws, 'counts')->{Decrypt};

is_deeply(\@read, \@right, 'every school reads what is its own');
cmp_ok($asked, '>=', $schools, 'each school was asked for');
cmp_ok($asked, '<=', 2 * $schools + 10, 'no more often than it has keys');

$node->restart;
(my $alone, @read) = read_by(1);
is_deeply(\@read, \@right, 'one after another as well');
note sprintf
  '%d schools, %d calls of 10 ms: %.1f s by %d sessions, %.1f s by one (%.1f times)',
  $schools, $asked, $together, $sessions, $alone, $alone / $together;

done_testing();
