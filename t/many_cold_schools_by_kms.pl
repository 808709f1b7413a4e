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

my $schools = 300;
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
	my ($from) = @_;
	my @mine = grep { $_ % $sessions == $from } 1 .. $schools;

	return join ';', map { read_school("s$_") } @mine;
}

double_says($aws, 'latency', action => 'Decrypt', seconds => 0.01);
double_says($aws, 'forget_calls');
my $began = time;
my @queries = map { start_query($node, share($_)) } 0 .. $sessions - 1;
my @read;

for my $query (@queries)
{
	my ($error, $out) = end_query($query);

	is($error, '', 'a session ends well');
	push @read, split /\n/, $out;
}
my $taken = time - $began;
my $asked = double_says($aws, 'counts')->{Decrypt};

is( join(' ', sort @read),
	join(' ', sort map { "Anna i s$_" } 1 .. $schools),
	'every school reads what is its own');
cmp_ok($asked, '>=', $schools, 'each school was asked for');
cmp_ok($asked, '<=', 2 * $schools + 10, 'no more often than it has keys');
note sprintf '%d schools, %d calls of 10 ms, in %.1f s', $schools, $asked,
  $taken;

done_testing();
