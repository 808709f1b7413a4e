# PatroniTest.pm: clusters run by patroni, with etcd, on loopback.
#
# Nodes are PostgreSQL::Test::Cluster objects that patroni starts and stops, so
# that what asks a node works as everywhere.  Everything is killed at the end,
# also if the test dies.

package PatroniTest;

use strict;
use warnings;

use Exporter 'import';
use FindBin;
use HTTP::Tiny;
use NompTest;
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

our @EXPORT = qw(
  start_etcd patroni_node start_patroni kill_machine
  leader wait_for_leader wait_for_standby patronictl
);

my %pids;    # name => process that this file started
my @nodes;
my $etcd_port;

sub spawn
{
	my ($name, $log, @command) = @_;
	my $pid = fork // die "cannot fork: $!";

	if ($pid == 0)
	{
		open STDIN, '<', '/dev/null' or POSIX::_exit(126);
		open STDOUT, '>>', $log or POSIX::_exit(126);
		open STDERR, '>&', \*STDOUT or POSIX::_exit(126);
		# not to be left behind by a test that is killed
		exec 'setpriv', '--pdeathsig', 'KILL', @command or POSIX::_exit(127);
	}
	$pids{$name} = $pid;
	return;
}

# reap(NAME, SIGNAL): end one of them.
sub reap
{
	my ($name, $signal) = @_;
	my $pid = delete $pids{$name} or return;

	kill $signal, $pid;
	waitpid $pid, 0;
	return;
}

sub get
{
	my ($port, $path) = @_;

	return HTTP::Tiny->new(timeout => 5)->get("http://127.0.0.1:$port$path");
}

# start_etcd(): where the nodes agree on who leads.
sub start_etcd
{
	my $dir = PostgreSQL::Test::Utils::tempdir();
	my ($client, $peer) =
	  map { PostgreSQL::Test::Cluster::get_free_port() } 1 .. 2;

	$etcd_port = $client;
	spawn(
		'etcd',
		"$PostgreSQL::Test::Utils::log_path/etcd.log",
		'etcd',
		'--name',
		'etcd',
		'--data-dir',
		"$dir/etcd",
		'--listen-client-urls',
		"http://127.0.0.1:$client",
		'--advertise-client-urls',
		"http://127.0.0.1:$client",
		'--listen-peer-urls',
		"http://127.0.0.1:$peer",
		'--initial-advertise-peer-urls',
		"http://127.0.0.1:$peer",
		'--initial-cluster',
		"etcd=http://127.0.0.1:$peer");
	wait_until(sub { get($client, '/health')->{success} }, 'etcd');
	return;
}

# patroni_node(NAME, KEYSTORE): a node that is not yet started; its folder is
# $node->{nomp_dir}.  From test/patroni/node.yml.
sub patroni_node
{
	my ($name, $keystore) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);
	my $dir = $node->basedir;
	my $yml = PostgreSQL::Test::Utils::slurp_file(
		"$FindBin::RealBin/../test/patroni/node.yml");
	my ($bin) =
	  PostgreSQL::Test::Utils::run_command([ 'pg_config', '--bindir' ]);
	my %of = (
		name => $name,
		etcd => $etcd_port,
		port => $node->port,
		restapi => PostgreSQL::Test::Cluster::get_free_port(),
		bin_dir => $bin,
		dir => $dir,
		socket => $node->host,
		keystore => $keystore);

	$yml =~ s/@(\w+)@/$of{$1} \/\/ die "no $1"/ge;
	mkdir "$dir/register", 0700;
	PostgreSQL::Test::Utils::append_to_file("$dir/node.yml", $yml);
	$node->{restapi} = $of{restapi};
	$node->{_logfile} = "$PostgreSQL::Test::Utils::log_path/$name.log";
	push @nodes, $node;
	return $node;
}

# start_patroni(NODE): does not wait.
sub start_patroni
{
	my ($node) = @_;

	spawn($node->name, $node->logfile, '/usr/bin/patroni',
		$node->basedir . '/node.yml');
	return;
}

sub postmaster
{
	my ($node) = @_;

	return -e $node->data_dir . '/postmaster.pid'
	  ? NompTest::postmaster_pid($node)
	  : undef;
}

# kill_machine(NODE): patroni and every process of its server, at once.
sub kill_machine
{
	my ($node) = @_;

	reap($node->name, 'KILL');
	if (my $postmaster = postmaster($node))
	{
		kill 'STOP', $postmaster;
		my @children = NompTest::children($postmaster);
		kill 'KILL', $postmaster, @children,
		  map { NompTest::children($_) } @children;
		wait_until(sub { !kill 0, $postmaster }, 'the server to be gone');
	}
	return;
}

# leader(): the node that patroni says leads, undef if none does.
sub leader
{
	my ($leader) = grep { get($_->{restapi}, '/leader')->{success} } @nodes;

	return $leader;
}

# wait_for_leader(NODE): until it leads, and writes.
sub wait_for_leader
{
	my ($node) = @_;

	wait_until(
		sub {
			my $leader = leader();

			defined $leader
			  && $leader == $node
			  && outcome($node, 'SELECT pg_is_in_recovery()') eq 'f';
		},
		$node->name . ' to lead');
	return;
}

# wait_for_standby(NODE): until it is the synchronous standby.
sub wait_for_standby
{
	my ($node) = @_;

	wait_until(
		sub { get($node->{restapi}, '/sync')->{success} },
		$node->name . ' to be the synchronous standby');
	return;
}

# patronictl(ARGS...): what an operator types.
sub patronictl
{
	my (@args) = @_;

	return PostgreSQL::Test::Utils::run_command(
		[
			'/usr/bin/patronictl', '-c',
			$nodes[0]->basedir . '/node.yml', @args
		]);
}

END
{
	my $status = $?;

	kill_machine($_) for @nodes;
	reap('etcd', 'KILL');
	$? = $status;
}

1;
