# NompTest.pm: what the TAP tests share.
#
# A test's server is preloaded with nomp_crypt and has a keystore of its own in
# the test's temporary folder: a SoftHSM2 token that is strict about forks or,
# if NOMP_TEST_KEYSTORE is aws-kms, a double of AWS KMS.  "Token" stands for
# either.  scripts/keystores says which tests are run over which.

package NompTest;

use strict;
use warnings;

use Exporter 'import';
use FindBin;
use IPC::Run;
use JSON::PP ();
use KmsKeystore;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SoftHsm;
use Test::More;

our @EXPORT = qw(
  make_token keystore_uri nomp_node nomp_conf create_nomp
  sqlstate in_tenant wait_until helper_pid broker_pid server_pids
  find_in_memory school_keys fingerprint crash token_labels
  delete_from_token keys_are_lasting make_key
  shim_module shim_says shim_calls set_keystore keystore_state failure
  start_query end_query open_session says starts libpq_calls
  restart_helper restarts tampered flips outcome
  cold_schools read_school school_reads kek_label broken_rules own_register
  serial_of shim_pid set_keystores frail_keystore
  keystore_has_trouble keystore_recovers keystore_is_sick keystore_calls
  over_kms
  token_goes token_returns token_refuses token_is_backed_up token_is_restored
);

# A program that ends before it has read what it was given - psql, when a server
# refuses its connection - says so by its status and its output, as in a shell.
# IPC::Run would die of it, if the program is quicker than we are.
{
	no warnings 'redefine';
	my $write = \&IPC::Run::_write;

	*IPC::Run::_write = sub {
		my $written = eval { $write->(@_) };

		return $written if $written;
		die $@ unless $@ =~ /^Broken pipe/;
		return length $_[1];
	};
}

# A machine that is busy with other things may take longer than pg_ctl's minute.
$ENV{PGCTLTIMEOUT} //= 600;

# For a command that somebody waits for, in seconds.
my $patience = 600;

my %keystores = (softhsm => 'SoftHsm', 'aws-kms' => 'KmsKeystore');
our $keystore = $keystores{ $ENV{NOMP_TEST_KEYSTORE} || 'softhsm' }
  // die 'NOMP_TEST_KEYSTORE is neither softhsm nor aws-kms';

sub over_kms { return $keystore eq 'KmsKeystore' }

# make_token(DIR, LABEL, PIN): an empty token in DIR, for servers that are
# started from now on.
sub make_token { return $keystore->make_token(@_) }

# keystore_uri(DIR, LABEL): the setting for make_token's token.  With a module
# of PKCS#11 as the third argument, by way of that.
sub keystore_uri { return $keystore->uri(@_) }

# frail_keystore(DIR, LABEL): the same, for one that can have trouble.
sub frail_keystore { return $keystore->frail_uri(@_) }

# keystore_has_trouble(OPERATION => WHAT...): from now on.  Operations are open,
# find, unwrap, wrap, create, destroy, enable, everything; what they do: "hangs"
# (never answers), "holds" (answers when there is no trouble any more), "fails",
# "forbids", "crashes", "answers wrong", or a number, of milliseconds by which it
# is late; any of these with "once" before it.
sub keystore_has_trouble { return $keystore->trouble(@_) }
sub keystore_recovers    { return $keystore->trouble() }

# keystore_is_sick(SEED, PERCENT): so many of all calls, by chance, fail in one
# way or another, hang, are late, or are done though their answer is lost.
sub keystore_is_sick { return $keystore->chance(@_) }

# keystore_calls(OPERATION): how often it was tried, in the frail keystore.
sub keystore_calls { return $keystore->calls(@_) }

# serial_of(DIR, LABEL): the serial number of make_token's token.
sub serial_of { return $keystore->serial(@_) }

# token_labels(DIR, LABEL): the labels of all keys in make_token's token.
sub token_labels { return $keystore->labels(@_) }

# token_goes(DIR, LABEL), token_returns(DIR, LABEL): out of reach, with its
# keys, and back; between them make_token makes an empty one in its place.
sub token_goes    { return $keystore->goes(@_) }
sub token_returns { return $keystore->returns(@_) }

# token_is_backed_up(DIR, LABEL), token_is_restored(DIR, LABEL)
sub token_is_backed_up { return $keystore->back_up(@_) }
sub token_is_restored  { return $keystore->restore(@_) }

# keys_are_lasting(DIR, LABEL): waits until no key has its provisional mark any
# more; that is taken off in the background, when a school has been committed.
sub keys_are_lasting
{
	my ($dir, $label) = @_;

	return wait_until(
		sub {
			!grep { /:provisional@/ } $keystore->labels($dir, $label);
		},
		'all keys to be lasting');
}

# delete_from_token(DIR, LABEL, KEY): somebody deletes a key behind our back,
# when it is called that.
sub delete_from_token
{
	my ($dir, $label, $key) = @_;

	wait_until(
		sub {
			grep { $_ eq $key } $keystore->labels($dir, $label);
		},
		"key $key to be lasting");
	return $keystore->delete_key($dir, $label, $key);
}

# token_refuses(DIR, LABEL, KEY): the keystore is well, and that key, though it
# is there, is not used, for a reason that no other key has.
sub token_refuses { return $keystore->refuse_key(@_) }

# make_key(DIR, LABEL, KEY): somebody makes a key of that label.
sub make_key { return $keystore->make_key(@_) }

# set_keystore(NODE, URI): by reload; the broker follows in its own time.
sub set_keystore
{
	my ($node, $uri) = @_;

	$node->safe_psql('postgres',
		"ALTER SYSTEM SET nomp_crypt.keystore = '$uri'");
	$node->reload;
	return;
}

# set_keystores(NODE, FIRST, OTHERS...): the same for all of them.
sub set_keystores
{
	my ($node, $first, @others) = @_;

	$node->safe_psql('postgres',
		"ALTER SYSTEM SET nomp_crypt.other_keystores = '@others'");
	set_keystore($node, $first);
	return;
}

# keystore_state(NODE): what keystore_status() says, 'ok' or the trouble.
sub keystore_state
{
	my ($node) = @_;

	return $node->safe_psql('postgres',
		'SELECT state FROM nomp_crypt.keystore_status()');
}

# nomp_conf(NODE, DIR, LABEL): preload and settings; the register directory is
# DIR/register-NAME.  No key is loaded that nobody has asked for.  Standbys, which
# have these settings from a backup, cancel no query for what they replay: what
# their sessions see is not pruned, and replay waits.
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
nomp_crypt.max_erasures_per_day = 0
nomp_crypt.warm_interval = 0
max_prepared_transactions = 10
hot_standby_feedback = on
max_standby_archive_delay = -1
max_standby_streaming_delay = -1
CONF
	return;
}

# nomp_node(NAME, %options of init): an initialised node with a token, not
# yet started. Its token's folder is $node->{nomp_dir}, the label 'nomp'; its
# PIN may be given as the option "pin".
sub nomp_node
{
	my ($name, %options) = @_;
	my $pin = delete $options{pin};
	my $node = PostgreSQL::Test::Cluster->new($name);
	my $dir = PostgreSQL::Test::Utils::tempdir();

	$node->init(extra => [ '--encoding=UTF8', '--no-locale' ], %options);
	make_token($dir, 'nomp', $pin);
	nomp_conf($node, $dir, 'nomp');
	$node->{nomp_dir} = $dir;
	return $node;
}

# own_register(NODE, COPY): a register directory of the copy's own, with what
# the original's says now, as a machine has that was restored from its backup.
sub own_register
{
	my ($node, $copy) = @_;
	my $from = "$node->{nomp_dir}/register-" . $node->name;
	my $own = "$node->{nomp_dir}/register-" . $copy->name;

	mkdir $own, 0700;
	for my $file ('installation', 'register', 'register.keys')
	{
		append_to_file("$own/$file", slurp_file("$from/$file"))
		  if -e "$from/$file";
		chmod 0600, "$own/$file";
	}
	$copy->append_conf('postgresql.conf',
		"nomp_crypt.register_directory = '$own'\narchive_mode = off\n");
	return;
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
SELECT nomp_crypt.grant_all_tenants('$user', '{encrypt,decrypt,search,load}');
CREATE TABLE pupil (id bigint PRIMARY KEY, school text NOT NULL,
	name encrypted(text), notes encrypted(text));
SQL
	return;
}

# cold_schools(NODE, IDS...): as create_nomp, each school with a pupil "Anna i
# ID", and none of their keys in the server's memory.
sub cold_schools
{
	my ($node, @ids) = @_;

	create_nomp($node, @ids);
	$node->safe_psql('postgres',
			'INSERT INTO pupil (id, school, name)'
		  . " SELECT row_number() OVER (), id, nomp_crypt.encrypt('Anna i ' || id, id)"
		  . ' FROM nomp_crypt.tenants');
	# a broker that is stopped leaves that to each key's first use
	keys_are_lasting($node->{nomp_dir}, 'nomp') if $node->{nomp_dir};
	$node->restart;
	return;
}

# read_school(ID): SQL that reads a value of that school, inside it.
sub read_school
{
	my ($id) = @_;

	return in_tenant($id,
		"SELECT name FROM pupil WHERE school = '$id' LIMIT 1");
}

# school_reads(NODE, ID): what that gives: plaintext, or an SQLSTATE.
sub school_reads
{
	my ($node, $id) = @_;

	return outcome($node, read_school($id));
}

# kek_label(NODE, ID): what the school's KEK is called in the token.
sub kek_label
{
	my ($node, $id) = @_;

	return $node->safe_psql('postgres',
			'SELECT k.label FROM nomp_crypt.kek k, nomp_crypt.tenant t'
		  . " WHERE k.tenant = t.uuid AND t.id = '$id'");
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

# outcome(NODE, SQL): its first error's SQLSTATE, or what it printed.
sub outcome
{
	my ($node, $sql, %options) = @_;
	my ($stdout, $stderr) = ('', '');

	$node->psql(
		$options{dbname} // 'postgres', $sql,
		stderr => \$stderr,
		stdout => \$stdout,
		extra_params => [ '-v', 'VERBOSITY=sqlstate' ]);
	return $stderr =~ /(?:ERROR|FATAL|PANIC):\s+(\w{5})/ ? $1 : $stdout;
}

# in_tenant(ID, SQL): the SQL in a transaction inside that tenant.
sub in_tenant
{
	my ($id, $sql) = @_;

	return "BEGIN; SET LOCAL nomp_crypt.tenant = '$id'; $sql; COMMIT;";
}

# failure(NODE, SQL): its first error in full, "SQLSTATE: message, HINT: ..."
# as psql prints it, '' if there is none.
sub failure
{
	my ($node, $sql, %options) = @_;
	my $stderr = '';

	$node->psql(
		$options{dbname} // 'postgres',
		$sql,
		stderr => \$stderr,
		extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	return $stderr =~ /(?:ERROR|FATAL|PANIC):\s+(.*)/s ? $1 : '';
}

# start_query(NODE, SQL): in a session of its own, without waiting.
# end_query(QUERY): waits; its first error's SQLSTATE ('' if there is none)
# and what it printed.
sub start_query
{
	my ($node, $sql) = @_;
	my $query = { out => '', err => '' };

	$query->{run} = IPC::Run::start(
		[
			'psql', '-XAtq',
			'-v', 'VERBOSITY=sqlstate',
			'-d', $node->connstr('postgres'),
			'-c', $sql
		],
		'<',
		\'',
		'>',
		\$query->{out},
		'2>',
		\$query->{err},
		IPC::Run::timeout($patience));
	return $query;
}

sub end_query
{
	my ($query) = @_;

	$query->{run}->finish;
	chomp $query->{out};
	return ($query->{err} =~ /(?:ERROR|FATAL|PANIC):\s+(\w{5})/ ? $1 : '',
		$query->{out});
}

# libpq_calls(CONNINFO, CALLS...): an answer for each, in one connection. Calls
# and answers as test/libpq_calls.py describes them.
sub libpq_calls
{
	my ($conninfo, @calls) = @_;
	my $json = JSON::PP->new->canonical;
	my $in = join '', map { $json->encode($_) . "\n" } @calls;
	my ($out, $err) = ('', '');

	IPC::Run::run(
		[
			'/usr/bin/python3', "$FindBin::RealBin/../test/libpq_calls.py",
			$conninfo
		],
		'<',
		\$in,
		'>',
		\$out,
		'2>',
		\$err,
		IPC::Run::timeout($patience)) or die "libpq_calls.py: $err";
	return map { $json->decode($_) } split /\n/, $out;
}

# open_session(NODE): a session to talk to, which survives errors, for as long as
# each answer takes its time and no longer.
sub open_session
{
	my ($node) = @_;
	my $session = $node->background_psql(
		'postgres',
		on_error_stop => 0,
		timeout => $patience);

	$session->set_query_timer_restart;
	$session->query_safe('\set VERBOSITY sqlstate');
	return $session;
}

# says(SESSION, SQL): what it prints, or its first error's SQLSTATE, also if that
# ends it.  With empty SQL, the answer to what it was told with "starts".
sub says
{
	my ($session, $sql) = @_;
	my $out = eval { $session->query($sql) };
	my $failure = $@;
	my $err = $session->{stderr};

	$session->{stderr} = '';
	return $1 if $err =~ /(?:ERROR|FATAL|PANIC):\s+(\w{5})/;
	die $failure unless defined $out;
	return $out;
}

# starts(SESSION, SQL): without waiting for an answer.
sub starts
{
	my ($session, $sql) = @_;

	$session->{timeout}->start;
	$session->{stdin} .= "$sql;\n";
	$session->{run}->pump_nb;
	return;
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

my $find_broker =
  q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'nomp_crypt broker');

sub broker_pid
{
	my ($node) = @_;

	return $node->safe_psql('postgres', $find_broker);
}

# helper_pid(NODE): the keystore helper, a child of the broker; undef if none.
sub helper_pid
{
	my ($node) = @_;
	my ($pid) = children(broker_pid($node));

	return $pid;
}

# restart_helper(NODE): the next request gets a helper that has opened nothing
# yet.
sub restart_helper
{
	my ($node) = @_;
	my $helper = helper_pid($node);

	return unless $helper;
	kill 'KILL', $helper;
	wait_until(sub { !-e "/proc/$helper" }, 'the helper to be gone');
	return;
}

# restarts(NODE, CODE): after CODE the server restarts by itself; until it is up
# again, with another broker.  What is asked meanwhile is in psql's command line:
# psql may be gone before it could be given anything else.
sub restarts
{
	my ($node, $code) = @_;
	my $before = broker_pid($node);

	$code->();
	wait_until(
		sub {
			my ($broker) = run_command(
				[
					'psql', '-XAtq',
					'-d', $node->connstr('postgres'),
					'-c', $find_broker
				]);
			return $broker && $broker ne $before;
		},
		'the server to restart');
	return;
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
	my @helpers = children(broker_pid($node));
	my $postmaster = postmaster_pid($node);

	kill 'STOP', $postmaster;    # so that nobody reaps, forks or cleans up
	my @pids = (children($postmaster), @helpers);
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

# What test/school_keys.py answers about a school's keys in make_token's token
# 'nomp', and those lines: name => bytes.
sub ask_school_keys
{
	my ($node, $dir, $id, @questions) = @_;
	my $lines = $node->safe_psql('postgres', <<"SQL");
SELECT concat_ws(' ', 'key', k.purpose, e.label, k.tenant, k.purpose,
	k.version, encode(k.wrapped, 'hex'))
FROM nomp_crypt.tenant_key k
JOIN nomp_crypt.kek e ON e.uuid = k.kek
JOIN nomp_crypt.tenant t ON t.uuid = k.tenant
WHERE t.id = '$id' ORDER BY k.purpose
SQL
	my ($out, $err) = ('', '');
	my %keys;

	$lines = join "\n", $lines, @questions;
	IPC::Run::run(
		[
			"$FindBin::RealBin/../test/school_keys.py",
			$keystore->unwrapper($dir)
		],
		'<',
		\$lines,
		'>',
		\$out,
		'2>',
		\$err) or die "school_keys.py: $err";
	for my $line (split /\n/, $out)
	{
		my ($name, $hex) = split / /, $line;

		$keys{$name} = pack 'H*', $hex;
	}
	return %keys;
}

# school_keys(NODE, DIR, ID, NAME => VALUE IN HEX...): that school's keys,
# unwrapped outside the server, with the keys derived from them for those
# values: name => bytes.
sub school_keys
{
	my ($node, $dir, $id, %values) = @_;

	return ask_school_keys($node, $dir, $id,
		map { "value $_ $values{$_}" } sort keys %values);
}

# fingerprint(NODE, DIR, ID, KIND, TEXT): in hex, of a canonical text (a perl
# string of bytes in UTF-8), made outside the server.
sub fingerprint
{
	my ($node, $dir, $id, $kind, $text) = @_;
	my %answer = ask_school_keys($node, $dir, $id,
		"text asked $kind " . unpack 'H*', $text);

	return unpack 'H*', $answer{asked};
}

# tampered(NODE, SCHOOL, CHANGES): the row of the school's key for values is
# changed by each of the SET clauses that CHANGES, a query, returns, its value
# in table pupil is read, and the row put back.  How often each SQLSTATE came,
# as "SQLSTATE|number"; 'data' if it ever could be read.
sub tampered
{
	my ($node, $school, $changes) = @_;

	$node->safe_psql('postgres', <<"SQL");
CREATE TABLE outcome (change text, state text);
DO \$\$
DECLARE
	change text;
	owner uuid := (SELECT uuid FROM nomp_crypt.tenant WHERE id = '$school');
	secret encrypted := (SELECT name FROM pupil WHERE school = '$school');
	whole nomp_crypt.tenant_key;
	got text;
BEGIN
	SELECT * INTO whole FROM nomp_crypt.tenant_key k
	WHERE k.tenant = owner AND k.purpose = 'values';
	FOR change IN $changes LOOP
		EXECUTE 'UPDATE nomp_crypt.tenant_key SET ' || change || ' WHERE key_id = \$1'
		USING whole.key_id;
		COMMIT;
		BEGIN
			got := nomp_crypt.decrypt(secret);
			INSERT INTO outcome VALUES (change, 'data');
		EXCEPTION WHEN OTHERS THEN
			INSERT INTO outcome VALUES (change, SQLSTATE);
		END;
		UPDATE nomp_crypt.tenant_key
		SET tenant = whole.tenant, purpose = whole.purpose, version = whole.version, scope = whole.scope,
			kek = whole.kek, wrapped = whole.wrapped, key_check = whole.key_check
		WHERE key_id = whole.key_id;
		COMMIT;
	END LOOP;
END
\$\$;
SQL
	my $outcome = $node->safe_psql('postgres',
		"SELECT state, count(*) FROM outcome GROUP BY 1 ORDER BY 1");
	$node->safe_psql('postgres', 'DROP TABLE outcome');
	return $outcome;
}

# flips(COLUMN, LENGTH): such a query; every byte of a column, with one bit
# changed, with another, and with all.
sub flips
{
	my ($column, $length) = @_;

	return
	  "SELECT format('$column = set_byte($column, %s, get_byte($column, %s) # %s)', i, i, bits)"
	  . ' FROM generate_series(0, '
	  . ($length - 1)
	  . ') i, unnest(ARRAY[1, 128, 255]) bits';
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
