# The keystore's module is somebody else's code, and runs in the helper.  What it
# finds there is what it could take: of the server, nothing.  The module of the
# tests tells what it sees from within.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = nomp_node('main');
my $dir = $node->{nomp_dir};
my $uri = keystore_uri($dir, 'nomp', shim_module($dir));

shim_says();
$node->append_conf('postgresql.conf', "nomp_crypt.keystore = '$uri'");
$node->start;
cold_schools($node, 'cold');
is(school_reads($node, 'cold'), 'Anna i cold', 'a school reads');

my $helper = helper_pid($node);
my @report = split /\n/, slurp_file("$dir/shim.report");
my %open = map { /^fd (\d+) (.*)/ ? ($1 => $2) : () } @report;
my @maps = grep { /^map / } @report;
my $theirs = slurp_file('/proc/' . broker_pid($node) . '/maps');
my $shared = qr{\srw-s\s|/dev/zero|/SYSV|/dev/shm/PostgreSQL|/pgdata/};

is($report[0], "pid $helper", 'the helper tells what it has');
is_deeply(
	[ sort keys %open ],
	[ 0 .. 3 ],
	'it has four open descriptors and no more');
is_deeply([ @open{ 0, 1 } ], [ '/dev/null', '/dev/null' ],
	'two lead nowhere');
like($open{3}, qr/^socket:/, 'one to the broker');
unlike($open{2}, qr{/pgdata/|socket:}, 'one to the log');
like($theirs, $shared, 'shared memory shows in a map of the broker');
is_deeply([ grep { /$shared/ } @maps ], [], 'and not in one of the helper');
is_deeply([ grep { m{/postgres$|nomp_crypt\.so} } @maps ],
	[], 'which is not a copy of the server');
cmp_ok(scalar(@maps), '>', 10, 'there was something to look at');

is(broken_rules(), '', "the helper keeps to PKCS#11's rules");
$node->stop;
done_testing();
