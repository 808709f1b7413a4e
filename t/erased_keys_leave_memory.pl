# When CALL erase_tenant returns, no process of the server holds the school's
# keys any more: not the data keys, not the working keys, not the keys derived
# from them, whatever the sessions that had them are doing.  Otherwise a
# snapshot of the machine, or a core dump, would still read an erased school.
#
# The keys are unwrapped outside the server, with a second reader of
# docs/format.md, and looked for in the memory of all its processes: before,
# where they must be found, or the search would prove nothing, and after.  No
# key is ever sent to the server.
#
# The helper of a token is replaced, because a module may remember keys.  That of
# AWS KMS stays, so it must have forgotten them by itself: they came to it as
# texts, in base64.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use IPC::Run;
use MIME::Base64 qw(encode_base64);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = nomp_node('main');
my $dir = $node->{nomp_dir};

# little memory to search
$node->append_conf('postgresql.conf', <<'CONF');
shared_buffers = 2MB
nomp_crypt.max_cached_keys = 100
CONF
$node->start;
create_nomp($node, 'erased', 'held');
$node->safe_psql('postgres', 'CREATE TABLE bulk (name encrypted(text))');

sub one
{
	my ($sql) = @_;

	return $node->safe_psql('postgres', $sql);
}

# Sessions are told apart by 8 bits of the school's uuid, and one that shares
# them with the erased school may be ended with it: not the one we look at.
{
	my $first = "substr(uuid::text, 1, 2)";
	my $differs = "SELECT count(DISTINCT $first) = 2 FROM nomp_crypt.tenants"
	  . " WHERE id IN ('erased', 'living')";

	one("SELECT nomp_crypt.create_tenant('living')");
	while (one($differs) ne 't')
	{
		one("UPDATE nomp_crypt.tenant SET id = id || uuid WHERE id = 'living'"
		);
		one("SELECT nomp_crypt.create_tenant('living')");
	}
}
for my $school ('erased', 'living', 'held')
{
	one(in_tenant(
			$school,
			"INSERT INTO pupil SELECT n, '$school', 'Anna', 'Anteckning'"
			  . " FROM generate_series((SELECT count(*) FROM pupil) + 1,"
			  . " (SELECT count(*) FROM pupil) + 10) n"));
}

# search(KEYS): which of them, and which of their halves and round keys, are
# where.  Names => places.
sub search
{
	my (%keys) = @_;
	my %names;
	my %result;

	for my $name (keys %keys)
	{
		my $key = $keys{$name};
		for (my $at = 0; $at < length $key; $at += 16)
		{
			$names{ substr $key, $at, 16 } = "$name\[$at]";
		}
		$names{$key} = $name if length $key == 32;
		$names{ substr encode_base64($key, ''), 0, 40 } = "$name in base64"
		  if $name =~ /\.dek/;
	}
	my $found = find_in_memory($node, keys %names);
	for my $needle (keys %names)
	{
		my $places = $found->{ unpack 'H*', $needle };
		$result{ $names{$needle} } = $places if @$places;
	}
	return \%result;
}

sub places
{
	my ($result, $name) = @_;

	return @{ $result->{$name} // [] };
}

sub list
{
	my ($result) = @_;

	return map { "$_: " . join(', ', @{ $result->{$_} }) }
	  sort keys %$result;
}

# Sessions of every kind.
my %session;
my %pid;

sub new_session
{
	my ($name) = @_;
	my $psql = $node->background_psql(
		'postgres',
		on_error_stop => 0,
		timeout => 1800,    # all of this test
		extra_params => [ '-v', 'VERBOSITY=sqlstate' ]);

	$session{$name} = $psql;
	$pid{$name} = $psql->query_safe('SELECT pg_backend_pid()');
	return $psql;
}

# Send and do not wait: what it does is seen in pg_stat_activity.
sub start_statement
{
	my ($name, $sql, $wait_for) = @_;

	$session{$name}->{stdin} .= "$sql\n";
	$session{$name}->{run}->pump_nb;
	wait_until(
		sub {
			$session{$name}->{run}->pump_nb;
			return one(
				"SELECT $wait_for FROM pg_stat_activity WHERE pid = $pid{$name}"
			) eq 't';
		},
		"session $name");
	return;
}

# The next statement's SQLSTATE, '' if it succeeds.
sub state_of
{
	my ($name, $sql) = @_;

	$session{$name}->{stderr} = '';
	$session{$name}->query($sql);
	return $session{$name}->{stderr} =~ /(?:ERROR|FATAL):\s+(\w{5})/
	  ? $1
	  : '';
}

my $enter = "SET LOCAL nomp_crypt.tenant = 'erased'";
my $read = "SELECT name FROM pupil WHERE school = 'erased' AND id = 1";

new_session('idle');
is($session{idle}->query_safe("BEGIN; $enter; $read; COMMIT"),
	'Anna', 'a session reads and is idle');

new_session('in_transaction');
is($session{in_transaction}->query_safe("BEGIN; $enter; $read"),
	'Anna', 'a session reads and is idle in its transaction');

new_session('prepared');
$session{prepared}->query_safe("BEGIN; $enter; UPDATE pupil SET notes = 'Ny'"
	  . " WHERE id = 2; $read; PREPARE TRANSACTION 'waiting'");

new_session('writer');
my $written =
  $session{writer}->query_safe("BEGIN; $enter;"
	  . " INSERT INTO bulk VALUES ('Anna')"
	  . " RETURNING encode(encrypted_send(name), 'hex')");

new_session('sleeping');
start_statement(
	'sleeping',
	"BEGIN; $enter; SELECT nomp_crypt.decrypt(name), pg_sleep(3600)"
	  . " FROM pupil WHERE school = 'erased' AND id = 1;",
	"wait_event = 'PgSleep'");

new_session('busy');
start_statement(
	'busy',
	"BEGIN; $enter; DO \$\$DECLARE n bigint := 0; BEGIN"
	  . " PERFORM nomp_crypt.decrypt(name) FROM pupil WHERE school = 'erased';"
	  . " PERFORM pg_notify('busy', ''); PERFORM set_config('application_name', 'looping', false);"
	  . " LOOP n := n + 1; END LOOP; END\$\$;",
	"application_name = 'looping'");

# A client that never reads: psql would, so this one speaks for itself.  One
# row that is larger than all buffers, so that the session stays where it is.
my $stalled = $node->raw_connect;
{
	my $startup = pack 'NZ*Z*Z*Z*Z*Z*x', 196608,
	  user => one('SELECT user'),
	  database => 'postgres',
	  application_name => 'stalled';
	my $query = pack 'Z*',
	  "BEGIN; $enter; COPY (SELECT name, repeat('x', 20000000) FROM pupil"
	  . " WHERE school = 'erased' AND id = 1) TO STDOUT";

	$stalled->syswrite(pack('N', 4 + length $startup) . $startup);
	$stalled->syswrite('Q' . pack('N', 4 + length $query) . $query);
	$node->poll_query_until('postgres',
			"SELECT EXISTS (SELECT FROM pg_stat_activity"
		  . " WHERE application_name = 'stalled' AND wait_event = 'ClientWrite')"
	) or die 'the session did not stall';
	$pid{stalled} = one(
		"SELECT pid FROM pg_stat_activity WHERE application_name = 'stalled'"
	);
}

for my $name ('other_in_transaction', 'other_busy')
{
	new_session($name);
}
$session{other_in_transaction}
  ->query_safe("BEGIN; SET LOCAL nomp_crypt.tenant = 'living';"
	  . " SELECT name FROM pupil WHERE school = 'living'");
start_statement(
	'other_busy',
	"BEGIN; SET LOCAL nomp_crypt.tenant = 'living'; DO \$\$DECLARE n text; BEGIN"
	  . " SELECT nomp_crypt.decrypt(name) INTO n FROM pupil WHERE school = 'living';"
	  . " PERFORM set_config('application_name', 'looping', false);"
	  . " WHILE NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory') LOOP"
	  . " PERFORM pg_stat_clear_snapshot(); END LOOP;"
	  . " SELECT nomp_crypt.decrypt(name) INTO n FROM pupil WHERE school = 'living';"
	  . " RAISE NOTICE 'still %', n; END\$\$;",
	"application_name = 'looping'");

# the writer writes slowly, so that it has not done when the others are ready
start_statement(
	'writer',
	"INSERT INTO bulk SELECT 'Anna ' || n || pg_sleep(0.001)"
	  . " FROM generate_series(1, 10000000) n;",
	"state = 'active'");

my $stored = one("SELECT encode(encrypted_send(name), 'hex') FROM pupil"
	  . " WHERE school = 'erased' AND id = 1");
my $others = one("SELECT encode(encrypted_send(name), 'hex') FROM pupil"
	  . " WHERE school = 'living' LIMIT 1");
my %keys =
  school_keys($node, $dir, 'erased', stored => $stored, written => $written);
my %other_keys = school_keys($node, $dir, 'living', stored => $others);

# Before.
{
	my $result = search(%keys);

	note join "\n", list($result);
	ok( (grep { /^shared / } places($result, 'values.work')),
		'before: the working key is found in shared memory');
	ok((grep { /^shared / } places($result, 'values.work[0]')),
		'so is half of it');
	for my $name (qw(in_transaction sleeping busy stalled writer))
	{
		ok( (grep { /^$pid{$name} / } places($result, 'values.work')),
			"before: the working key is found in the session that is $name");
	}
	for my $name (qw(in_transaction sleeping busy stalled))
	{
		ok( (grep { /^$pid{$name} / } places($result, 'stored')),
			"before: the derived key is found in the session that is $name");
		ok((grep { /^$pid{$name} / } places($result, 'stored.rounds[0]')),
			'with its round keys');
	}
	ok( (grep { /^$pid{writer} / } places($result, 'written')),
		'before: the derived key of new values is found in the writer');
	for my $name (qw(idle prepared))
	{
		my @places =
		  grep { /\b$pid{$name} / } map { places($result, $_) } keys %$result;

		is("@places", '', "the session that is $name holds no key");
	}
	my @dek = map { places($result, $_) } grep { /\.dek/ } keys %$result;
	is("@dek", '', 'no process holds a data key');
}

my $helper = helper_pid($node);
is( sqlstate(
		$node, "CALL nomp_crypt.erase_tenant('erased', 'agreement_ended')"),
	'',
	'the school is erased while all this goes on');

# After.
is(join("\n", list(search(%keys))),
	'', 'after: none of its keys, nor half of one, is in any process');
wait_until(sub { defined helper_pid($node) }, 'a helper');
if (over_kms())
{
	is(helper_pid($node), $helper, 'the keystore helper is the same');
}
else
{
	isnt(helper_pid($node), $helper, 'the keystore helper was replaced');
	ok(!-e "/proc/$helper", 'and is gone');
}

my $result = search(%other_keys);
ok( (grep { /^$pid{other_busy} / } places($result, 'values.work')),
	'the other school is still in the memory of its sessions');

is(state_of('in_transaction', 'SELECT 1'),
	'', 'the session that was idle in a transaction has survived');
is(state_of('in_transaction', $read), 'NC001', 'and reads no more');
$session{in_transaction}->query('ROLLBACK');
is(state_of('idle', "BEGIN; $enter; $read; COMMIT"),
	'NC001', 'nor does the one that was idle');
$session{idle}->query('ROLLBACK');
is(state_of('prepared', "COMMIT PREPARED 'waiting'"),
	'', 'the prepared transaction commits');
is( sqlstate(
		$node, in_tenant('erased', 'SELECT notes FROM pupil WHERE id = 2')),
	'NC001',
	'and what it wrote is erased');

# these could not wipe and were ended, or failed at their next value
for my $name (qw(sleeping busy stalled))
{
	ok( $node->poll_query_until(
			'postgres',
			"SELECT NOT EXISTS (SELECT FROM pg_stat_activity"
			  . " WHERE pid = $pid{$name})"),
		"the session that was $name has been ended");
}
wait_until(
	sub {
		$session{writer}->{run}->pump_nb;
		return $session{writer}->{stderr} =~ /\n\z/;
	},
	'the writer to fail');
like($session{writer}->{stderr},
	qr/ERROR:\s+NC00[12]/, 'the writer failed at its next value');

is( state_of(
		'other_in_transaction',
		"SELECT name FROM pupil WHERE school = 'living'"),
	'',
	'a session of another school that was idle in a transaction reads on');
{
	my $gate = $node->background_psql('postgres');

	$gate->query_safe('SELECT pg_advisory_lock(1)');
	wait_until(
		sub {
			$session{other_busy}->{run}->pump_nb;
			return $session{other_busy}->{stderr} =~ /\n\z/;
		},
		'the busy session of another school');
	like(
		$session{other_busy}->{stderr},
		qr/^\S*:? ?NOTICE:\s+00000$/,
		'a busy session of another school reads on');
	$gate->quit;
}

# A process that cannot be reached at all: no success without it.
{
	my $reader = new_session('stopped');
	my $eraser = new_session('eraser');

	$reader->query_safe("BEGIN; SET LOCAL nomp_crypt.tenant = 'held';"
		  . " SELECT name FROM pupil WHERE school = 'held'");
	kill 'STOP', $pid{stopped};
	start_statement(
		'eraser',
		"CALL nomp_crypt.erase_tenant('held', 'test');",
		"EXISTS (SELECT FROM nomp_crypt.tenant WHERE id = 'held'"
		  . " AND state = 'suspended') AND state = 'active'");
	one("SELECT pg_cancel_backend($pid{eraser})");
	wait_until(
		sub {
			$eraser->{run}->pump_nb;
			return $eraser->{stderr} =~ /\n\z/;
		},
		'the cancelled call');
	like($eraser->{stderr}, qr/ERROR:\s+57014/,
		'while a process cannot wipe, erasing waits, and can be cancelled');
	my %held = school_keys($node, $dir, 'held');
	ok((grep { /^$pid{stopped} / } places(search(%held), 'values.work')),
		'that process has the key');
	is(one("SELECT state FROM nomp_crypt.tenant WHERE id = 'held'"),
		'suspended', 'nothing is destroyed');
	kill 'CONT', $pid{stopped};
	is(state_of('eraser', "CALL nomp_crypt.erase_tenant('held', 'test')"),
		'', 'when it goes on, so does the erasure');
	is(join("\n", list(search(%held))),
		'', 'and none of the keys is in any process');
}

$session{$_}->{run}->kill_kill for qw(sleeping busy stopped);
$session{$_}->quit for grep { !/^(sleeping|busy|stopped)$/ } keys %session;
$stalled->close;
$node->stop;
done_testing();
