# NompTest.pm: what the TAP tests share.
#
# A test's server is preloaded with nomp_crypt and has a SoftHSM2 token of its
# own, strict about forks, in the test's temporary folder.

package NompTest;

use strict;
use warnings;

use Exporter 'import';
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(
  make_token keystore_uri nomp_node nomp_conf create_nomp
  sqlstate in_tenant wait_until helper_pid broker_pid server_pids
  find_in_memory crash token_labels delete_from_token
);

our $softhsm = '/usr/lib/softhsm/libsofthsm2.so';

# make_token(DIR, LABEL): a SoftHSM2 token and a PIN file in DIR; sets
# SOFTHSM2_CONF for servers that are started from now on.
sub make_token
{
	my ($dir, $label) = @_;

	mkdir $dir;
	mkdir "$dir/tokens";
	PostgreSQL::Test::Utils::append_to_file("$dir/softhsm2.conf",
			"directories.tokendir = $dir/tokens\n"
		  . "objectstore.backend = file\nlog.level = ERROR\n"
		  . "library.reset_on_fork = true\n")
	  unless -e "$dir/softhsm2.conf";
	PostgreSQL::Test::Utils::append_to_file("$dir/pin", "1234\n")
	  unless -e "$dir/pin";
	chmod 0600, "$dir/pin";
	$ENV{SOFTHSM2_CONF} = "$dir/softhsm2.conf";
	PostgreSQL::Test::Utils::system_or_bail(
		'softhsm2-util', '--init-token', '--free', '--label',
		$label, '--pin', '1234', '--so-pin',
		'4321');
	return $dir;
}

# keystore_uri(DIR, LABEL): the setting for make_token's token.
sub keystore_uri
{
	my ($dir, $label, $module) = @_;

	$module //= $softhsm;
	return "pkcs11:token=$label?module-path=$module&pin-source=file:$dir/pin";
}

# nomp_conf(NODE, DIR, LABEL): preload and settings; the register directory is
# DIR/register-NAME.
sub nomp_conf
{
	my ($node, $dir, $label) = @_;
	my $register = "$dir/register-" . $node->name;

	mkdir $register, 0700;
	$node->append_conf('postgresql.conf', <<"CONF");
shared_preload_libraries = 'nomp_crypt'
nomp_crypt.keystore = '@{[ keystore_uri($dir, $label) ]}'
nomp_crypt.register_directory = '$register'
nomp_crypt.erasure_grace = 0
max_prepared_transactions = 10
CONF
	return;
}

# nomp_node(NAME, %options of init): an initialised node with a token, not
# yet started. Its token's folder is $node->{nomp_dir}, the label 'nomp'.
sub nomp_node
{
	my ($name, %options) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);
	my $dir = PostgreSQL::Test::Utils::tempdir();

	$node->init(extra => [ '--encoding=UTF8', '--no-locale' ], %options);
	make_token($dir, 'nomp');
	nomp_conf($node, $dir, 'nomp');
	$node->{nomp_dir} = $dir;
	return $node;
}

# create_nomp(NODE, IDS...): extension, tenants, every right for the test's
# superuser, and a table pupil (id, school, name, notes).
sub create_nomp
{
	my ($node, @ids) = @_;
	my $user = $node->safe_psql('postgres', 'SELECT current_user');

	$node->safe_psql('postgres', <<"SQL");
CREATE EXTENSION nomp_crypt;
SELECT nomp_crypt.create_tenant(id) FROM unnest('{@{[ join ',', @ids ]}}'::text[]) id;
SELECT nomp_crypt.grant_all_tenants('$user', '{encrypt,decrypt,load}');
CREATE TABLE pupil (id bigint PRIMARY KEY, school text NOT NULL,
	name encrypted(text), notes encrypted(text));
SQL
	return;
}

# sqlstate(NODE, SQL): the SQLSTATE of its first error, '' if there is none.
sub sqlstate
{
	my ($node, $sql, %options) = @_;
	my $stderr = '';
	my $stdout = '';

	$node->psql(
		$options{dbname} // 'postgres', $sql,
		stderr => \$stderr,
		stdout => \$stdout,
		extra_params => [ '-v', 'VERBOSITY=sqlstate' ],
		on_error_stop => 0);
	return $stderr =~ /(?:ERROR|FATAL|PANIC):\s+(\w{5})/ ? $1 : '';
}

# in_tenant(ID, SQL): the SQL in a transaction inside that tenant.
sub in_tenant
{
	my ($id, $sql) = @_;

	return "BEGIN; SET LOCAL nomp_crypt.tenant = '$id'; $sql; COMMIT;";
}

# wait_until(CODE, WHAT): poll until CODE is true; dies after three minutes.
sub wait_until
{
	my ($code, $what) = @_;

	for (1 .. 1800)
	{
		return 1 if $code->();
		select undef, undef, undef, 0.1;
	}
	die "timed out waiting for $what";
}

sub postmaster_pid
{
	my ($node) = @_;
	my $file = $node->data_dir . '/postmaster.pid';

	open my $fh, '<', $file or die "no $file";
	my $pid = <$fh>;
	close $fh;
	return $pid + 0;
}

sub children
{
	my ($parent) = @_;
	my @found;

	for my $stat (glob '/proc/[0-9]*/stat')
	{
		open my $fh, '<', $stat or next;
		my $line = <$fh> // '';
		close $fh;
		push @found, $1
		  if $line =~ /^(\d+) \(.*\) \S (\d+) / && $2 == $parent;
	}
	return @found;
}

sub broker_pid
{
	my ($node) = @_;

	return $node->safe_psql('postgres',
		"SELECT pid FROM pg_stat_activity WHERE backend_type = 'nomp_crypt broker'"
	);
}

# helper_pid(NODE): the keystore helper, a child of the broker; undef if none.
sub helper_pid
{
	my ($node) = @_;
	my ($pid) = children(broker_pid($node));

	return $pid;
}

# server_pids(NODE): the postmaster and all its children, without the helper.
sub server_pids
{
	my ($node) = @_;
	my $postmaster = postmaster_pid($node);

	return ($postmaster, children($postmaster));
}

# crash(NODE): a power cut, as far as processes go: SIGKILL for all of them at
# once.  The node is down afterwards and can be started.
sub crash
{
	my ($node) = @_;
	my $helper = helper_pid($node);
	my $postmaster = postmaster_pid($node);

	kill 'STOP', $postmaster;    # so that nobody reaps, forks or cleans up
	my @pids = (children($postmaster), grep { defined } $helper);
	kill 'KILL', $postmaster, @pids;
	$node->{_pid} = undef;
	# not even zombies: a dead postmaster that is not reaped keeps its lock file
	wait_until(
		sub {
			!grep { -e "/proc/$_" } $postmaster, @pids;
		},
		'killed processes to be gone');
	return;
}

# pkcs11_tool(DIR, LABEL, ARGS...): OpenSC's view of make_token's token.
sub pkcs11_tool
{
	my ($dir, $label, @args) = @_;
	my ($out, $err) = ('', '');

	local $ENV{SOFTHSM2_CONF} = "$dir/softhsm2.conf";
	IPC::Run::run(
		[
			'pkcs11-tool', '--module', $softhsm, '--token-label',
			$label, '--login', '--pin', '1234',
			@args
		],
		'>',
		\$out,
		'2>',
		\$err) or die "pkcs11-tool @args: $err";
	return $out;
}

# token_labels(DIR, LABEL): the labels of all keys in make_token's token.
sub token_labels
{
	my ($dir, $label) = @_;
	my $list =
	  pkcs11_tool($dir, $label, '--list-objects', '--type', 'secrkey');

	return $list =~ /^\s*label:\s+(\S+)\s*$/mg;
}

# delete_from_token(DIR, LABEL, KEY): somebody deletes a key behind our back.
sub delete_from_token
{
	my ($dir, $label, $key) = @_;

	pkcs11_tool($dir, $label, '--delete-object', '--type', 'secrkey',
		'--label', $key);
	return;
}

# find_in_memory(NODE, NEEDLES...): a hash ref, needle in hex => list of where
# its bytes were found, in any process of the server: "PID MAPPING", or
# "shared MAPPING" for shared memory, which is read once.
sub find_in_memory
{
	my ($node, @needles) = @_;
	my %found = map { unpack('H*', $_) => [] } @needles;
	my %seen;

	for my $pid (server_pids($node))
	{
		open my $maps, '<', "/proc/$pid/maps" or next;
		open my $mem, '<:raw', "/proc/$pid/mem" or do
		{
			next if $!{ENOENT} || $!{ESRCH};
			die "cannot read the memory of process $pid: $!";
		};
		while (my $line = <$maps>)
		{
			my ($from, $to, $rights, $file, $name) =
			  $line =~ /^([0-9a-f]+)-([0-9a-f]+) (\S+) (\S+ \S+ \d+)\s*(.*)$/
			  or next;
			my $shared = $rights =~ /s$/;
			next if $rights !~ /^rw/ || $name =~ /^\[v/;
			next if $shared && $seen{"$from-$to $file $name"}++;
			search_mapping($mem, hex($from), hex($to), \@needles, \%found,
				($shared ? 'shared' : $pid) . " $name");
		}
		close $mem;
		close $maps;
	}
	return \%found;
}

sub search_mapping
{
	my ($mem, $from, $to, $needles, $found, $where) = @_;
	my $step = 16 * 1024 * 1024;
	my $overlap = 256;

	for (my $at = $from; $at < $to; $at += $step)
	{
		my $length =
		  $to - $at < $step + $overlap ? $to - $at : $step + $overlap;
		my $data = '';

		sysseek $mem, $at, 0 or next;
		my $got = sysread $mem, $data, $length;
		next unless defined $got;
		for my $needle (@$needles)
		{
			push @{ $found->{ unpack('H*', $needle) } }, $where
			  if index($data, $needle) >= 0;
		}
	}
	return;
}

1;
