# Rotation and rewrapping are for every day: whoever reads or writes meanwhile,
# on the primary or on a standby, sees no error and no wrong value; whatever
# interrupts them, the same call, repeated, ends in the same state.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IPC::Run;
use File::Copy 'copy';
use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my @crash_schools = qw(made half committed prepared);
# what may happen to a call that changes keys, and what ends it
my @bearable = (
	[ wrap => 'once crashes' ],
	[ unwrap => 'once crashes' ],
	[ wrap => 'once fails' ]);
my @unbearable = (
	[ wrap => 'fails' ],
	[ unwrap => 'answers wrong' ],
	# in KMS there is no IV to see
	over_kms() ? () : ([ iv => 'hidden' ], [ iv => 'zero' ]));
my $node = nomp_node('primary', allows_streaming => 1);
my $dir = $node->{nomp_dir};
my $uri = frail_keystore($dir, 'nomp');
$node->append_conf('postgresql.conf', "nomp_crypt.keystore = '$uri'");
$node->start;
create_nomp($node, 'busy', 'twins', @crash_schools);

sub one
{
	my ($sql) = @_;

	return $node->safe_psql('postgres', $sql);
}

# purpose, version, generation of the KEK: of a school's keys, in that order;
# and its KEKs' generations and states.
sub keys_of
{
	my ($school) = @_;

	return one(<<"SQL");
SELECT string_agg(concat_ws(' ', k.purpose, k.version, k.state, e.generation), ', ' ORDER BY k.purpose, k.version)
FROM nomp_crypt.tenant_key k JOIN nomp_crypt.kek e ON e.uuid = k.kek JOIN nomp_crypt.tenants t ON t.uuid = k.tenant
WHERE t.id = '$school'
SQL
}

sub keks_of
{
	my ($school) = @_;

	return one(<<"SQL");
SELECT string_agg(concat_ws(' ', e.generation, e.state), ', ' ORDER BY e.generation)
FROM nomp_crypt.kek e JOIN nomp_crypt.tenants t ON t.uuid = e.tenant WHERE t.id = '$school'
SQL
}

# How many keys with a provisional mark the token has for a generation.
sub marked
{
	my ($school, $generation) = @_;
	my $uuid =
	  one("SELECT uuid FROM nomp_crypt.tenants WHERE id = '$school'");

	return
	  scalar grep { /:$uuid:$generation:provisional/ }
	  token_labels($dir, 'nomp');
}

sub reading
{
	my ($school, $where) = @_;

	return outcome(
		$where // $node,
		in_tenant($school, "SELECT name FROM pupil WHERE school = '$school'")
	);
}

for my $i (0 .. $#crash_schools)
{
	one(in_tenant(
			$crash_schools[$i],
			"INSERT INTO pupil VALUES ($i, '$crash_schools[$i]', 'Anna i $crash_schools[$i]', '')"
		));
}

# Under load.
my $standby = PostgreSQL::Test::Cluster->new('standby');
my ($all, $count);
{
	$node->append_conf('postgresql.conf', 'max_connections = 40');
	$node->restart;
	$node->backup('base');
	$standby->init_from_backup($node, 'base', has_streaming => 1);
	mkdir "$dir/register-standby", 0700;
	$standby->append_conf('postgresql.conf',
		"nomp_crypt.register_directory = '$dir/register-standby'");
	$standby->start;
	one('CREATE TABLE load (id bigserial PRIMARY KEY, name encrypted(text),'
		  . ' ssn encrypted(text, searchable) UNIQUE)');
	one(in_tenant(
			'busy',
			"INSERT INTO load (id, name, ssn) SELECT -i, 'n' || -i, 's' || -i FROM generate_series(1, 50) i"
		));
	$node->wait_for_catchup($standby);

	my %scripts = (
		# every value is what it must be, or this divides by zero
		read => in_tenant(
			'busy',
			"SELECT 1 / (count(*) FILTER (WHERE name::text = 'n' || id AND ssn::text = 's' || id)"
			  . " = count(*))::int, 1 / (count(*) > 0)::int FROM load"),
		find => in_tenant(
			'busy',
			"SELECT 1 / count(*) FROM load WHERE ssn = 's-7' AND name = 'n-7'"
		),
		insert => in_tenant(
			'busy',
			"INSERT INTO load SELECT i, 'n' || i, 's' || i FROM nextval('load_id_seq') i"
		),
		update => in_tenant(
			'busy',
			"UPDATE load SET name = 'n' || id, ssn = 's' || id WHERE id = -7"
		),
		rotate => "SELECT nomp_crypt.rotate_tenant('busy');",
		rewrap => "SELECT nomp_crypt.rewrap_tenant('busy');");
	for my $name (keys %scripts)
	{
		append_to_file(
			"$dir/$name.sql", join "\n",
			split /(?<=;)\s*/, $scripts{$name});
		append_to_file("$dir/$name.sql", "\n");
	}
	my @weights = (read => 4, find => 4, insert => 6, update => 4);
	my %report;
	my %run;
	my %err;
	my $pgbench = sub {
		my ($name, $where, $clients, $transactions, %weights) = @_;

		$run{$name} = IPC::Run::start(
			[
				'pgbench',
				'-n', '-M',
				'prepared',
				'-c', $clients, '-j', 2, '-t',
				$transactions,
				(   map { ('-f', "$dir/$_.sql\@$weights{$_}") }
					sort keys %weights),
				$where->connstr('postgres')
			],
			'>',
			\$report{$name},
			'2>',
			\$err{$name},
			IPC::Run::timeout(600));
	};

	$pgbench->(
		'primary', $node, 8, 120, @weights,
		rotate => 1,
		rewrap => 1);
	$pgbench->('standby', $standby, 3, 120, read => 1, find => 1);
	for my $name (sort keys %run)
	{
		$run{$name}->finish;
		is($run{$name}->result(0),
			0, "$name: no error and no wrong value under load");
		is($err{$name}, '', "$name: nor a warning");
	}
	my $rotated = one(
		"SELECT count(*) FROM nomp_crypt.audit WHERE act = 'rotate_tenant'");
	my $rewrapped = one(
		"SELECT count(*) FROM nomp_crypt.audit WHERE act = 'rewrap_tenant'");

	cmp_ok($rotated, '>', 3, "keys were rotated meanwhile: $rotated times");
	cmp_ok($rewrapped, '>', 3, "and wrapped anew: $rewrapped times");
	is( one("SELECT key_version, kek_generation FROM nomp_crypt.tenants WHERE id = 'busy'"
		),
		($rotated + 1) . '|' . ($rewrapped + 1),
		'each of them counts');
	is( one("SELECT count(*) FROM nomp_crypt.tenant_key WHERE purpose = 'values'"
			  . " AND state = 'active' AND tenant = (SELECT uuid FROM nomp_crypt.tenants WHERE id = 'busy')"
		),
		1,
		'one version is for writing');
	my $versions = one(
		'SELECT count(DISTINCT (nomp_crypt.key_info(name)).version) FROM load'
	);
	cmp_ok($versions, '>', 2, "values of $versions versions are there");
	$all = in_tenant('busy',
		"SELECT count(*), count(*) FILTER (WHERE name::text = 'n' || id AND ssn::text = 's' || id) FROM load"
	);
	my $right;
	($count, $right) = split /\|/, one($all);

	is($right, $count, "all $count values are right");
	$node->wait_for_catchup($standby);
	is($standby->safe_psql('postgres', $all),
		"$count|$count", 'on the standby too');
	restart_helper($node);
	$node->restart;
	is(one($all), "$count|$count", 'and for a server that starts anew');
	$standby->stop;
}

# Two at once: each gives a version, neither an error.
{
	my $session = open_session($node);

	for my $act ('rotate', 'rewrap')
	{
		$session->query_safe('BEGIN');
		is(says($session, "SELECT nomp_crypt.${act}_tenant('twins')"),
			2, "$act: the first");
		my $second =
		  start_query($node, "SELECT nomp_crypt.${act}_tenant('twins')");
		$node->poll_query_until('postgres',
			"SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
		) or die 'the second does not wait';
		$session->query_safe('COMMIT');
		my ($state, $out) = end_query($second);

		is("$state$out", '3', "$act: the second waits, and is another");
	}
	is( keys_of('twins'),
		'index 1 active 3, values 1 closed 3, values 2 closed 3, values 3 active 3',
		'all keys are under the last KEK');
	$session->quit;
}

# The power goes: before the new KEK is made, while keys are wrapped, after
# the commit and before the KEK is confirmed; with the transaction prepared.
sub rewrapped_ok
{
	my ($school, $generation, $keks) = @_;

	subtest "$school: the school is rewrapped" => sub {
		is(reading($school), "Anna i $school", 'it reads');
		is( keys_of($school),
			"index 1 active $generation, values 1 active $generation",
			'all keys are under the new KEK');
		is(keks_of($school), $keks, 'the one before is retired');
		one(in_tenant(
				$school,
				"UPDATE pupil SET notes = 'written' WHERE school = '$school'")
		);
		restart_helper($node);
		one("SELECT nomp_crypt._wipe(uuid) FROM nomp_crypt.tenants WHERE id = '$school'"
		);
		is(reading($school), "Anna i $school", 'a new helper opens its keys');
	};
	return;
}

{
	my $session = open_session($node);
	my $rewrap = "SELECT nomp_crypt.rewrap_tenant('%s')";

	# wrapped, not committed
	$session->query_safe('BEGIN');
	$session->query_safe(sprintf $rewrap, 'made');
	crash($node);
	$session->{run}->finish;
	$node->start;
	is(reading('made'), 'Anna i made', 'before the commit: readable after');
	is(keks_of('made'), '1 active', 'with the KEK it had');
	one(sprintf $rewrap, 'made');
	rewrapped_ok('made', 3, '1 retired, 3 active');

	# while the keystore is asked
	my $helper = helper_pid($node);
	kill 'STOP', $helper;
	my $query = start_query($node, sprintf $rewrap, 'half');
	$node->poll_query_until('postgres',
		"SELECT count(*) = 1 FROM pg_stat_activity WHERE query ~ 'rewrap_tenant' AND wait_event = 'Extension'"
	) or die 'the call did not begin';
	crash($node);
	end_query($query);
	$node->start;
	is(reading('half'), 'Anna i half', 'in the middle: readable after');
	one(sprintf $rewrap, 'half');
	rewrapped_ok('half', 2, '1 retired, 2 active');

	# committed; the mark was not taken off
	$session = open_session($node);
	$session->query_safe('BEGIN');
	$session->query_safe(sprintf $rewrap, 'committed');
	# the keystore signs the register's record now, and not when it is stopped
	$session->query_safe('SET CONSTRAINTS ALL IMMEDIATE');
	$helper = helper_pid($node);
	kill 'STOP', $helper;
	$session->query_safe('COMMIT');
	crash($node);
	$session->{run}->finish;
	$node->start;
	is(marked('committed', 2),
		1, 'after the commit: the KEK still has its mark');
	rewrapped_ok('committed', 2, '1 retired, 2 active');
	is(marked('committed', 2), 0, 'which its first use took off');

	# prepared
	one("BEGIN; SELECT nomp_crypt.rewrap_tenant('prepared'); PREPARE TRANSACTION 'rewrap';"
	);
	is(reading('prepared'), 'Anna i prepared', 'prepared: readable');
	crash($node);
	$node->start;
	is(reading('prepared'), 'Anna i prepared', 'after a crash as well');
	is( sqlstate(
			$node,
			"SET lock_timeout = '1s'; SELECT nomp_crypt.rotate_tenant('prepared')"
		),
		'55P03',
		'others wait for it');
	one("COMMIT PREPARED 'rewrap'");
	rewrapped_ok('prepared', 2, '1 retired, 2 active');
}

# A helper that dies in the middle, and a keystore that is away.
{
	my $query;

	kill 'STOP', helper_pid($node);
	$query = start_query($node, "SELECT nomp_crypt.rotate_tenant('made')");
	$node->poll_query_until('postgres',
		"SELECT count(*) = 1 FROM pg_stat_activity WHERE query ~ 'rotate_tenant' AND wait_event = 'Extension'"
	) or die 'the call did not begin';
	restart_helper($node);
	is(join('', end_query($query)),
		2, 'a helper that dies is replaced, and the call goes on');

	# a keystore that crashes, fails or lies on the way
	for my $trouble (@bearable)
	{
		keystore_has_trouble(@$trouble);
		like(outcome($node, "SELECT nomp_crypt.rewrap_tenant('half')"),
			qr/^\d$/, "@$trouble: the call goes on");
	}
	my $keys = keys_of('half');
	for my $trouble (@unbearable)
	{
		keystore_has_trouble(@$trouble);
		is(sqlstate($node, "SELECT nomp_crypt.rewrap_tenant('half')"),
			'NC004', "@$trouble: no KEK is taken");
		is(sqlstate($node, "SELECT nomp_crypt.rotate_tenant('half')"),
			'NC004', "@$trouble: nor a data key");
	}
	keystore_recovers();
	wait_until(sub { keystore_state($node) eq 'ok' },
		'the keystore to be well');
	is(keys_of('half'), $keys, 'the keys are what they were');
	one("SELECT nomp_crypt._wipe(uuid) FROM nomp_crypt.tenants WHERE id = 'half'"
	);
	is(reading('half'), 'Anna i half', 'and open');

	token_goes($dir, 'nomp');
	restart_helper($node);
	is(sqlstate($node, "SELECT nomp_crypt.rotate_tenant('made')"),
		'NC004', 'without a keystore there is no new key');
	is(sqlstate($node, "SELECT nomp_crypt.rewrap_tenant('made')"),
		'NC004', 'nor a new KEK');
	token_returns($dir, 'nomp');
	restart_helper($node);
	wait_until(sub { keystore_state($node) eq 'ok' },
		'the keystore to be back');
	is(reading('made'), 'Anna i made', 'and nothing is lost');
	is(one("SELECT nomp_crypt.rotate_tenant('made')"),
		3, 'when it is back it goes on');
}

# The primary is lost with a rewrap that the standby never got.
{
	my $heir = $standby;

	$heir->start;
	$node->wait_for_catchup($heir);
	$heir->stop;
	is(one("SELECT nomp_crypt.rewrap_tenant('twins')"), 4, 'a rewrap');
	is(one("SELECT nomp_crypt.rotate_tenant('twins')"), 4, 'and a rotation');
	crash($node);
	$heir->start;
	$heir->promote;
	is($heir->safe_psql('postgres', $all),
		"$count|$count", 'after a failover all values are right');
	$heir->safe_psql(
		'postgres',
		in_tenant(
			'twins',
			"INSERT INTO pupil VALUES (100, 'twins', 'Anna i twins', '')"));
	$heir->safe_psql('postgres', 'SELECT nomp_crypt.adopt_keystore()');
	is(sqlstate($heir, "SELECT nomp_crypt.rewrap_tenant('twins')"),
		'55000', 'no KEK is made before the register knows of those');
	copy("$dir/register-primary/register", "$dir/register-standby/register")
	  or die $!;
	$heir->safe_psql('postgres', 'SELECT * FROM nomp_crypt.reconcile()');
	is( $heir->safe_psql(
			'postgres', "SELECT nomp_crypt.rewrap_tenant('twins')"),
		6,
		'the next KEK is neither of those, nor the one that was refused');
	is( $heir->safe_psql(
			'postgres', "SELECT nomp_crypt.rotate_tenant('twins')"),
		4,
		'a version of that number is another key');
	is(reading('twins', $heir), 'Anna i twins', 'its values are read');
	$heir->stop;
}

done_testing();
