# The keystore is asked again for every key in use.  One that it will not use,
# by a key's own policy or because somebody gave two keys one name, is nobody
# else's trouble: keys that are gone are noticed, whichever are refused, and
# however many there are between them.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Utils;
use Test::More;

# more than are asked for in a row, in one round, without an answer
my @refused = map { "refused$_" } 1 .. 40;
my @gone = map { "gone$_" } 1 .. 3;

my $node = nomp_node('main');
my $dir = $node->{nomp_dir};

$node->append_conf('postgresql.conf', <<'CONF');
nomp_crypt.key_check_interval = 1h
CONF
$node->start;
cold_schools($node, @refused, @gone);

# in this order they are in memory, and asked for
my @read = map { school_reads($node, $_) } @refused, @gone;
is_deeply(\@read, [ map { "Anna i $_" } @refused, @gone ],
	'all schools read');

my %label = map { $_ => kek_label($node, $_) } @refused, @gone;
my $log_start = -s $node->logfile;

token_refuses($dir, 'nomp', $label{$_})     for @refused;
delete_from_token($dir, 'nomp', $label{$_}) for @gone;
# one that has found a key does not look for it again
restart_helper($node);
$node->safe_psql('postgres',
	q(ALTER SYSTEM SET nomp_crypt.key_check_interval = '1s'));
$node->reload;

$node->wait_for_log(qr/could not check the keys in use/, $log_start);
pass('that a key is refused is logged');
for my $school (@gone)
{
	$node->wait_for_log(qr/no longer has the key "\Q$label{$school}\E"/,
		$log_start);
	is(school_reads($node, $school),
		'NC003', "$school is gone, and nobody reads it");
}

@read = map { school_reads($node, $_) } @refused;
is_deeply(
	\@read,
	[ map { "Anna i $_" } @refused ],
	'those that are refused go on under their leases');
is(keystore_state($node), 'ok', 'and the keystore is well');

$node->stop;
done_testing();
