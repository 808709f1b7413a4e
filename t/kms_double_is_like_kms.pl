# What the tests of AWS KMS rest on is a stand-in of ours.  A client that
# nobody here wrote, boto3, finds in it the shapes, errors, states, pages and
# signatures that the documentation of KMS gives; what a test can make it do
# wrong, it does.  test/kms_examiner.py has the questions.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use ClientTest;
use KmsDouble;
use PostgreSQL::Test::Utils;
use Test::More;

my $dir = PostgreSQL::Test::Utils::tempdir() . '/aws';
my @examiner =
  ('/usr/bin/python3', "$FindBin::RealBin/../test/kms_examiner.py");

start_double($dir);
run_client('boto3', @examiner, $dir);

# Keys, and dates, outlive it.
double_says($dir, 'advance', seconds => 86400);
my @before = double_keys($dir);
kill_double($dir);
start_double($dir);
is_deeply([ double_keys($dir) ],
	\@before, 'a double that was killed has the same keys when it returns');
run_client('boto3, after a restart', @examiner, $dir, 'again');

done_testing();
