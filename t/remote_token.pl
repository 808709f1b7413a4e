# p11-kit can put a token on another machine: "p11-kit server" there, and here
# p11-kit-client.so as the module.  So: a token reached that way, a server that
# is killed, away, and started again, and a school that is created and erased in
# it.  Debian 12's p11-kit does not carry AES-GCM; Debian 13's is used, on both
# sides, from where scripts/fetch-debian-13 has put it.  With Debian 12's on the
# other side the error must say what is missing.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $debian = $ENV{NOMP_DEBIAN_13}
  // die 'NOMP_DEBIAN_13 is not set: scripts/fetch-debian-13 DIR';
my ($libs) = glob "$debian/usr/lib/*-linux-gnu";
my ($loader) = glob "$libs/ld-linux-*.so.*";
my $with_its_libs = "$loader --library-path $libs";
my $temp = PostgreSQL::Test::Utils::tempdir();
my $socket = PostgreSQL::Test::Utils::tempdir_short() . '/p11';

sub program
{
	my ($path, $text) = @_;

	PostgreSQL::Test::Utils::append_to_file($path, "#!/bin/sh\n$text\n");
	chmod 0755, $path;
	return;
}

# A copy of the server whose helper runs with Debian 13's libraries.
my ($bin) = run_command([ 'pg_config', '--bindir' ]);
my ($root) = $bin =~ m{^(.*)/usr/lib/postgresql/\d+/bin$}
  or die "$bin is not where Debian has it";
my $server = "$temp/pg" . substr $bin, length $root;
$server =~ s{/bin$}{};
mkdir "$temp/pg";
system_or_bail('cp', '-a', "$root/usr", "$temp/pg/usr");
rename "$server/lib/nomp_crypt-keystore", "$server/lib/helper" or die $!;
program(
	"$server/lib/nomp_crypt-keystore",
	"exec $with_its_libs $server/lib/helper");

# The other machine.
my $server_pid;
mkdir "$temp/p11-kit";
program("$temp/p11-kit/p11-kit-remote",
	"exec $with_its_libs $debian/usr/libexec/p11-kit/p11-kit-remote \"\$@\"");

sub start_token_server
{
	my ($module, @command) = @_;

	$server_pid = fork // die "cannot fork: $!";
	if ($server_pid == 0)
	{
		setpgrp 0, 0;
		$ENV{P11_KIT_PRIVATEDIR} = "$temp/p11-kit"
		  if $command[0] =~ /^\Q$libs/;
		open STDOUT, '>>', "$PostgreSQL::Test::Utils::log_path/p11-kit.log";
		open STDERR, '>&', \*STDOUT;
		# not to be left behind by a test that is killed
		exec 'setpriv', '--pdeathsig', 'KILL', @command, '-f', '-n', $socket,
		  '--provider', $module, 'pkcs11:token=nomp'
		  or POSIX::_exit(127);
	}
	wait_until(sub { -S $socket }, 'the token server');
	return;
}

# With the processes that serve its connections.
sub kill_token_server
{
	return unless $server_pid;
	kill 'KILL', -$server_pid;
	waitpid $server_pid, 0;
	undef $server_pid;
	unlink $socket;
	return;
}

END { my $status = $?; kill_token_server(); $? = $status; }

my @debian_13 = (
	"$debian/usr/lib/softhsm/libsofthsm2.so",
	split(/ /, $with_its_libs),
	"$debian/usr/libexec/p11-kit/p11-kit-server");

$ENV{P11_KIT_SERVER_ADDRESS} = "unix:path=$socket";
my $node = PostgreSQL::Test::Cluster->new('main', install_path => $server);
my $dir = PostgreSQL::Test::Utils::tempdir();
$node->init(extra => [ '--encoding=UTF8', '--no-locale' ]);
make_token($dir, 'nomp');
nomp_conf($node, $dir, 'nomp');
$node->append_conf('postgresql.conf',
		"nomp_crypt.keystore = '"
	  . keystore_uri($dir, 'nomp', "$libs/pkcs11/p11-kit-client.so") . "'\n"
	  . 'nomp_crypt.keystore_timeout = 5s');

start_token_server(@debian_13);
$node->start;
cold_schools($node, map { "s$_" } 1 .. 6);
is( $node->safe_psql(
		'postgres',
		'SELECT state, token, manufacturer, canary FROM nomp_crypt.keystore_status()'
	),
	'ok|nomp|SoftHSM project|t',
	'a token behind p11-kit server');
is(school_reads($node, 's1'), 'Anna i s1', 'a school reads');

# The server dies, and its connections with it.
kill_token_server();
is(school_reads($node, 's1'),
	'Anna i s1', 'the token server is killed: a school in use reads on');
is(school_reads($node, 's2'), 'NC004', 'another is unavailable');
isnt(keystore_state($node), 'ok', 'and so says the status');
start_token_server(@debian_13);
wait_until(sub { keystore_state($node) eq 'ok' }, 'the keystore to be back');
is(school_reads($node, 's2'), 'Anna i s2', 'started again, it reads');

# So quickly that nobody notices.
kill_token_server();
start_token_server(@debian_13);
wait_until(sub { school_reads($node, 's3') ne 'NC004' },
	'the keystore to be back');
is(school_reads($node, 's3'),
	'Anna i s3', 'killed and started at once, it reads');

# Stopped, it hangs.
kill 'STOP', -$server_pid;
is(school_reads($node, 's4'), 'NC004', 'a token server that hangs');
kill 'CONT', -$server_pid;
wait_until(sub { keystore_state($node) eq 'ok' }, 'the keystore to be back');
is(school_reads($node, 's4'), 'Anna i s4', 'when it goes on, it reads');

is(sqlstate($node, "SELECT nomp_crypt.create_tenant('new')"),
	'', 'a school is created there');
is(sqlstate($node, "CALL nomp_crypt.erase_tenant('s5', 'test')"),
	'', 'and one erased');
is(school_reads($node, 's5'), 'NC001', 'so that it is erased');
is(scalar(grep { !/canary/ } token_labels($dir, 'nomp')),
	6, 'in the token itself');

# The other side is this system's p11-kit.
my ($version) = run_command([ 'p11-kit', '--version' ]);
my $expected =
  $version =~ / 0\.(\d+)/ && $1 < 25
  ? qr/^the token lacks AES key generation or AES-GCM\|.*lacks CKM_AES_GCM/
  : qr/^ok\|/;

kill_token_server();
start_token_server($SoftHsm::softhsm, '/usr/libexec/p11-kit/p11-kit-server');
wait_until(sub { keystore_state($node) !~ /error|did not answer|ended/ },
	'the keystore to be judged');
like(
	$node->safe_psql(
		'postgres', 'SELECT state, detail FROM nomp_crypt.keystore_status()'),
	$expected,
	"what an older p11-kit on the other side lacks is named");
$node->stop;
done_testing();
