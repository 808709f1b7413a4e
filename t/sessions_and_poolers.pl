# A session is not a school: connections are pooled, statements are prepared
# once and run for years, cursors outlive transactions, transactions outlive
# sessions, and queries run in several processes.  In each of these a value or
# a tenant could end up where it does not belong.  And some sessions are not
# people's: replication and dumps must carry ciphertext, whatever a setting
# says that came along with the connection.
#
# First the pooler, because there the neighbour is another client: pgbouncer in
# transaction mode with a single server connection, so that everybody follows
# everybody.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IPC::Run;
use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $pupils = 30;
my @schools = qw(ribersborg slottsstaden);

my $node = nomp_node('main', allows_streaming => 'logical');
$node->append_conf('postgresql.conf', <<'CONF');
max_prepared_transactions = 10
parallel_setup_cost = 0
parallel_tuple_cost = 0
min_parallel_table_scan_size = 0
max_parallel_workers_per_gather = 2
max_worker_processes = 16
CONF
$node->start;
create_nomp($node, @schools);
$node->safe_psql('postgres', <<"SQL");
CREATE ROLE app LOGIN;
CREATE ROLE careful LOGIN;
ALTER ROLE careful SET nomp_crypt.tenant_scope = 'transaction';
GRANT ALL ON pupil TO app, careful;
SELECT nomp_crypt.grant_all_tenants(role, '{encrypt,decrypt}')
	FROM unnest('{app,careful}'::name[]) role;
SQL
for my $school (@schools)
{
	my $base = $school eq 'ribersborg' ? 0 : 1000;

	$node->safe_psql(
		'postgres',
		in_tenant(
			$school,
			"INSERT INTO pupil SELECT $base + i, '$school', '$school ' || i"
			  . " FROM generate_series(1, $pupils) i"));
}

# ---- the pooler ----

my $temp = PostgreSQL::Test::Utils::tempdir_short();
my $port = PostgreSQL::Test::Cluster::get_free_port();

PostgreSQL::Test::Utils::append_to_file("$temp/users",
	join '', map { "\"$_\" \"\"\n" } qw(app careful));
PostgreSQL::Test::Utils::append_to_file("$temp/pgbouncer.ini", <<"INI");
[databases]
postgres = host=@{[ $node->host ]} port=@{[ $node->port ]}
[pgbouncer]
listen_port = $port
unix_socket_dir = $temp
auth_type = trust
auth_file = $temp/users
logfile = $temp/log
pidfile = $temp/pid
pool_mode = transaction
default_pool_size = 1
max_client_conn = 100
ignore_startup_parameters = extra_float_digits, options
INI
PostgreSQL::Test::Utils::system_or_bail('pgbouncer', '-q', '-d',
	"$temp/pgbouncer.ini");

END
{
	my $status = $?;

	if (defined $temp && -e "$temp/pid")
	{
		chomp(my $pid = PostgreSQL::Test::Utils::slurp_file("$temp/pid"));
		kill 'TERM', $pid;
	}
	$? = $status;
}

sub pooled
{
	my ($user, $options) = @_;

	return "host=$temp port=$port dbname=postgres user=$user"
	  . (defined $options ? " options='$options'" : '');
}

sub client
{
	my ($user, $options) = @_;
	my $session = $node->background_psql(
		'postgres',
		on_error_stop => 0,
		extra_params => [ '-d', pooled($user, $options) ]);

	$session->query_safe('\set VERBOSITY sqlstate');
	return $session;
}

wait_until(
	sub {
		my $out = '';
		IPC::Run::run(
			[ 'psql', '-XAtq', '-d', pooled('app'), '-c', 'SELECT 1' ],
			'>', \$out, '2>', \my $err);
		return $out eq "1\n";
	},
	'pgbouncer');

# One pupil of each school, as a session sees them: the name, or "ciphertext".
sub shown
{
	my ($school) = @_;
	my $id = $school eq 'ribersborg' ? 1 : 1001;

	return
		"SELECT CASE WHEN format('%s', name) LIKE 'nc1:%' THEN 'ciphertext'"
	  . " ELSE format('%s', name) END FROM pupil WHERE id = $id";
}

my $ribersborg = shown('ribersborg');
my $slottsstaden = shown('slottsstaden');

# What goes wrong without tenant_scope = transaction, or this test would show
# nothing: the pooler hands the setting on.
my ($first, $second) = (client('app'), client('app'));
is( says($first, 'SELECT pg_backend_pid()'),
	says($second, 'SELECT pg_backend_pid()'),
	'two clients share one server connection');
says($first, "SET nomp_crypt.tenant = 'ribersborg'");
is(says($second, $ribersborg),
	'ribersborg 1',
	'with tenant_scope = session one client is inside the other\'s school');
says($first, 'RESET nomp_crypt.tenant');
$_->quit for $first, $second;

my ($anna, $bo, $nobody) = map { client('careful') } 1 .. 3;
is( says($anna, 'SELECT pg_backend_pid()'),
	says($bo, 'SELECT pg_backend_pid()'),
	'again two clients share one server connection');
for my $set (
	"SET nomp_crypt.tenant = 'ribersborg'",
	"SELECT set_config('nomp_crypt.tenant', 'ribersborg', false)",
	"BEGIN; SET nomp_crypt.tenant = 'ribersborg'; COMMIT",
	"BEGIN; SELECT set_config('nomp_crypt.tenant', 'ribersborg', false); COMMIT",
	"BEGIN; SAVEPOINT s; SET nomp_crypt.tenant = 'ribersborg'; RELEASE s; COMMIT",
	"DO \$\$ BEGIN PERFORM set_config('nomp_crypt.tenant', 'ribersborg', false); END \$\$"
  )
{
	says($anna, $set);
	is(says($bo, 'SHOW nomp_crypt.tenant'),
		'ribersborg', "$set: the setting reaches the next client");
	is(says($bo, $ribersborg), 'ciphertext', '... the school does not');
	is(says($bo, "BEGIN; $ribersborg"),
		'ciphertext', '... nor in a transaction');
	is(says($bo, "INSERT INTO pupil VALUES (5000, 'x', 'x')"),
		'NC006', '... where it cannot write');
	says($bo, 'ROLLBACK');
	is(says($anna, $ribersborg),
		'ciphertext', '... and has ended for the client who set it');
}

my $own_only = 1;
for my $round (1 .. 20)
{
	for my $turn (
		[ $anna, 'ribersborg', $ribersborg, $slottsstaden ],
		[ $bo, 'slottsstaden', $slottsstaden, $ribersborg ])
	{
		my ($who, $school, $own, $other) = @$turn;

		says($who, "BEGIN; SET LOCAL nomp_crypt.tenant = '$school'");
		$own_only = 0 if says($who, $own) ne "$school 1";
		says($who, 'SAVEPOINT s');
		$own_only = 0 if says($who, $other) ne '55000';
		says($who, 'ROLLBACK TO s');
		$own_only = 0
		  if says($who,
				"UPDATE pupil SET notes = '$school $round'"
			  . " WHERE school = '$school' RETURNING notes") !~
		  /^(?:\Q$school $round\E\n?){$pupils}$/;
		says($who, $round % 3 ? 'COMMIT' : 'ROLLBACK');
		$own_only = 0 if says($nobody, $own) ne 'ciphertext';
	}
}
ok($own_only, 'clients that take turns see their own school, and no other');

# A client that vanishes in the middle of its transaction.
says($anna, "BEGIN; SET LOCAL nomp_crypt.tenant = 'ribersborg'; $ribersborg");
$anna->quit;
is(says($bo, $ribersborg),
	'ciphertext', 'a client that vanishes takes its school along');

# What a client asks for in its connection string, the pooler cannot pass on.
$anna = client('careful', '-c nomp_crypt.tenant=ribersborg');
is(says($anna, $ribersborg),
	'ciphertext',
	'a tenant as a connection option has no effect through the pooler');
$_->quit for $anna, $bo, $nobody;

# Parameters of the protocol.
my $hex = sub { return unpack 'H*', $_[0] };
my $round_trip = sub {
	my ($school, $id) = @_;

	return (
		{ sql => "BEGIN; SET LOCAL nomp_crypt.tenant = '$school'" },
		{
			sql => 'INSERT INTO pupil VALUES ($1, $2, $3)'
			  . ' RETURNING name, nomp_crypt.tenant_of(name)',
			params => [ map { $hex->($_) } $id, $school, "Ny på $school" ]
		},
		{ sql => 'COMMIT' });
};
my @answers = libpq_calls(
	pooled('careful'),
	$round_trip->('ribersborg', 500),
	$round_trip->('slottsstaden', 1500));
is_deeply(
	[ map { $_->{state} } @answers ],
	[ ('') x 6 ],
	'statements with parameters pass the pooler');
is_deeply(
	[
		map { pack 'H*', $_ } @{ $answers[1]{rows}[0] },
		@{ $answers[4]{rows}[0] }
	],
	[
		'Ny på ribersborg', 'ribersborg', 'Ny på slottsstaden',
		'slottsstaden'
	],
	'... each for its own school');

# Many at once. Each transaction checks what it sees, and fails by dividing by
# zero.
for my $school (@schools, '')
{
	my $sees = $school eq '' ? 'nc1:%' : "$school %";
	my $where = $school eq '' ? 'true' : "school = '$school'";
	my $count = $school eq '' ? 2 * $pupils : $pupils;

	PostgreSQL::Test::Utils::append_to_file(
		"$temp/script$school",
		join "\n",
		'BEGIN;',
		$school eq '' ? () : ("SET LOCAL nomp_crypt.tenant = '$school';"),
		"SELECT 1 / (count(*) = $count)::int FROM pupil WHERE $where"
		  . " AND id NOT IN (500, 1500) AND format('%s', name) LIKE '$sees';",
		'COMMIT;',
		'');
}
my ($out, $err) = ('', '');
IPC::Run::run(
	[
		'pgbench', '-n', '-c', '9', '-j', '2', '-t', '40',
		(map { ('-f', "$temp/script$_") } @schools, ''),
		pooled('careful')
	],
	'>',
	\$out,
	'2>',
	\$err);
like(
	$out,
	qr{actually processed: 360/360},
	'nine clients of three kinds at once: none sees another\'s'
) or diag($err);

# ---- sessions ----

sub psql_with_options
{
	my ($options, $sql) = @_;
	my ($out, $err) = ('', '');

	local $ENV{PGOPTIONS} = $options;
	IPC::Run::run(
		[
			'psql', '-XAtq',
			'-v', 'VERBOSITY=sqlstate',
			'-d', $node->connstr('postgres'),
			'-c', $sql
		],
		'>',
		\$out,
		'2>',
		\$err);
	chomp $out;
	return $err =~ /(?:ERROR|FATAL):\s+(\w{5})/ ? $1 : $out;
}
is(psql_with_options('-c nomp_crypt.tenant=ribersborg', $ribersborg),
	'ribersborg 1', 'a tenant as a connection option');
is(psql_with_options('-c nomp_crypt.tenant=nowhere', $ribersborg),
	'42704', '... one that does not exist is an error when it is used');
is( psql_with_options(
		'-c nomp_crypt.tenant=ribersborg -c nomp_crypt.tenant_scope=transaction',
		$ribersborg),
	'ciphertext',
	'... and with tenant_scope = transaction it is no transaction\'s');

# SET LOCAL and savepoints.
my $session = open_session($node);
says($session, "BEGIN; SET LOCAL nomp_crypt.tenant = 'ribersborg'");
is(says($session, $ribersborg), 'ribersborg 1', 'SET LOCAL');
says($session, "SAVEPOINT s; SET LOCAL nomp_crypt.tenant = 'slottsstaden'");
is( says($session, $slottsstaden),
	'slottsstaden 1',
	'... another within a savepoint');
says($session, 'ROLLBACK TO s');
is(says($session, $ribersborg), 'ribersborg 1',
	'... back with the savepoint');
is(says($session, $slottsstaden), '55000', '... and not in both');
says($session, 'ROLLBACK TO s');
says($session,
	"SET LOCAL nomp_crypt.tenant = 'slottsstaden'; RELEASE SAVEPOINT s");
is( says($session, $slottsstaden),
	'slottsstaden 1',
	'... a released savepoint keeps it');
says($session, 'COMMIT');
is(says($session, $slottsstaden),
	'ciphertext', '... and the transaction\'s end ends it');
says($session, <<'SQL');
DO $$ BEGIN
	PERFORM set_config('nomp_crypt.tenant', 'ribersborg', false);
	BEGIN
		PERFORM set_config('nomp_crypt.tenant', 'slottsstaden', false);
		RAISE EXCEPTION 'back';
	EXCEPTION WHEN OTHERS THEN
	END;
END $$
SQL
is(says($session, $ribersborg),
	'ribersborg 1', 'an exception block in PL/pgSQL goes back as well');
says($session, 'RESET nomp_crypt.tenant');

# Prepared statements: the plan stays, the school changes.
for my $mode (qw(force_custom_plan force_generic_plan))
{
	says($session, <<"SQL");
SET plan_cache_mode = $mode;
PREPARE typed(bigint, encrypted) AS INSERT INTO pupil VALUES (\$1, 'x', \$2)
	RETURNING nomp_crypt.tenant_of(name) || ': ' || format('%s', name);
PREPARE untyped AS INSERT INTO pupil VALUES (\$1, 'x', \$2)
	RETURNING nomp_crypt.tenant_of(name) || ': ' || format('%s', name);
PREPARE by_text(bigint, text) AS INSERT INTO pupil VALUES (\$1, 'x', \$2)
	RETURNING nomp_crypt.tenant_of(name) || ': ' || format('%s', name);
PREPARE search(text) AS SELECT count(*) FROM pupil
	WHERE school = current_setting('nomp_crypt.tenant') AND name::text = \$1;
SQL
	my $id = 2000;
	for my $school (@schools, @schools)
	{
		says($session, "SET nomp_crypt.tenant = '$school'");
		for my $statement (qw(typed untyped by_text))
		{
			$id++;
			is(says($session, "EXECUTE $statement($id, 'Kim')"),
				"$school: Kim", "$mode: $statement, inside $school");
		}
		is(says($session, "EXECUTE search('$school 7')"),
			1, "$mode: search, inside $school");
	}
	says($session, 'RESET nomp_crypt.tenant');
	is(says($session, "EXECUTE by_text(1, 'Kim')"),
		'NC006', "$mode: and outside");
	says($session, 'DELETE FROM pupil WHERE id >= 2000; DEALLOCATE ALL');
}
says($session, 'RESET plan_cache_mode');

# The same as drivers do it, with the protocol's own prepared statements.
@answers = libpq_calls(
	$node->connstr('postgres'),
	{
		prepare => 'add',
		sql => 'INSERT INTO pupil VALUES ($1, $2, $3) RETURNING name'
	},
	(   map {
			(   { sql => "SET nomp_crypt.tenant = '$_'" },
				{
					execute => 'add',
					params => [
						$hex->($_ eq 'ribersborg' ? 501 : 1501), $hex->($_),
						$hex->("Åsa på $_")
					]
				})
		} @schools),
	{
		execute => 'add',
		params => [ $hex->(502), $hex->('x'), undef ],
		result => 1
	},
	{ sql => 'DELETE FROM pupil WHERE id IN (501, 502, 1501)' });
is_deeply(
	[ map { $_->{state} } @answers ],
	[ ('') x 7 ],
	'a statement that a driver prepared');
is_deeply(
	[ map { pack 'H*', $answers[$_]{rows}[0][0] } 2, 4 ],
	[ 'Åsa på ribersborg', 'Åsa på slottsstaden' ],
	'... writes for the school of the moment');
is($answers[5]{rows}[0][0], undef, '... and NULL for none');

# Cursors: what they show is decided when they are read.
says($session, "SET nomp_crypt.tenant = 'ribersborg'");
says($session, <<'SQL');
BEGIN;
DECLARE c SCROLL CURSOR WITH HOLD FOR SELECT name FROM pupil
	WHERE school = 'ribersborg' AND id <= 30 ORDER BY id;
SQL
is(says($session, 'FETCH 2 FROM c'),
	"ribersborg 1\nribersborg 2", 'a cursor');
says($session, 'COMMIT');
is(says($session, 'FETCH 1 FROM c'), 'ribersborg 3',
	'... held over a commit');
is(says($session, 'FETCH BACKWARD 1 FROM c'), 'ribersborg 2',
	'... backwards');
says($session, 'RESET nomp_crypt.tenant');
like(says($session, 'FETCH 1 FROM c'),
	qr/^nc1:/, '... shows ciphertext when the school has been left');
says($session, "SET nomp_crypt.tenant = 'slottsstaden'");
is(says($session, 'FETCH 1 FROM c'), '55000', '... and an error in another');
says($session, 'CLOSE c; RESET nomp_crypt.tenant');

# Prepared transactions: the values are written, the keys are not.
says($session, "BEGIN; SET LOCAL nomp_crypt.tenant = 'ribersborg'");
says($session, "INSERT INTO pupil VALUES (600, 'ribersborg', 'Prepared')");
is(says($session, "PREPARE TRANSACTION 'pupil'"), '', 'PREPARE TRANSACTION');
is(says($session, 'SHOW nomp_crypt.tenant'), '', '... ends SET LOCAL');
says($session, <<'SQL');
BEGIN;
SELECT nomp_crypt.create_tenant('monbijou');
INSERT INTO pupil VALUES (601, 'monbijou', nomp_crypt.encrypt('New', 'monbijou'));
PREPARE TRANSACTION 'school';
SQL
$session->quit;
$node->restart;
$session = open_session($node);
is(says($session, "COMMIT PREPARED 'pupil'; COMMIT PREPARED 'school'"),
	'', 'COMMIT PREPARED after a restart');
is( says(
		$session,
		"SELECT string_agg(nomp_crypt.decrypt(name), ', ' ORDER BY id)"
		  . ' FROM pupil WHERE id IN (600, 601)'),
	'Prepared, New',
	'... what was written can be read, a school of that transaction too');
says($session, 'DELETE FROM pupil WHERE id IN (600, 601)');

# Parallel query: workers have their own keys and check the same rights. The
# server has just been restarted: they are the first to ask.
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE many (school text, name encrypted(text)) WITH (parallel_workers = 2);
INSERT INTO many SELECT 'ribersborg', nomp_crypt.encrypt('Elev ' || i, 'ribersborg')
	FROM generate_series(1, 3000) i;
ANALYZE many;
GRANT SELECT ON many TO app, careful;
CREATE ROLE stranger LOGIN;
GRANT SELECT ON many TO stranger;
SQL
$node->restart;
$session = open_session($node);
my $decrypting = "SELECT count(*) FROM many WHERE name::text LIKE 'Elev 1%'";
my $showing =
  "SELECT count(*) FROM many WHERE format('%s', name) LIKE 'Elev 1%'";

# Not a single row is left to the leader.
says($session, 'SET parallel_leader_participation = off');
like(
	says($session, "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) $decrypting"),
	qr/Workers Launched: [12].*Parallel Seq Scan on many.*::text ~~/s,
	'parallel workers decrypt');
is(says($session, $decrypting), 1111, '... outside a school, by a cast');
is(says($session, $showing), 0, '... where they show ciphertext');
says($session, "SET nomp_crypt.tenant = 'ribersborg'");
is(says($session, $showing), 1111, '... and plaintext inside');
says($session, "SET nomp_crypt.tenant = 'slottsstaden'");
is(says($session, $showing), '55000', '... of no other school');
says($session, 'RESET nomp_crypt.tenant');
says($session, 'SET nomp_crypt.tenant_scope = transaction');
says($session, "SET nomp_crypt.tenant = 'ribersborg'");
is(says($session, $showing),
	0, '... and not with a tenant of an earlier transaction');
is( says(
		$session,
		"BEGIN; SET LOCAL nomp_crypt.tenant = 'ribersborg'; $showing; COMMIT"
	),
	1111,
	'... but with this one\'s');
says($session, 'SET ROLE stranger');
is(says($session, $decrypting), '42501', 'a worker checks rights too');
says($session, 'RESET ALL; RESET ROLE');
says($session, 'SET parallel_leader_participation = off');
is(says($session, <<'SQL'), 500, 'a school of this very transaction');
BEGIN;
DO $$ BEGIN PERFORM nomp_crypt.create_tenant('brand-new'); END $$;
CREATE TABLE newer WITH (parallel_workers = 2) AS SELECT
	nomp_crypt.encrypt('Elev ' || i, 'brand-new')::encrypted(text) AS name
	FROM generate_series(1, 500) i;
SELECT count(*) FROM newer WHERE name::text LIKE 'Elev%';
ROLLBACK;
SQL
$session->quit;

# ---- sessions that are not people's ----

$node->safe_psql('postgres',
	"SELECT pg_create_logical_replication_slot('decoded', 'test_decoding')");
$node->safe_psql(
	'postgres',
	in_tenant(
		'ribersborg',
		"INSERT INTO pupil VALUES (700, 'ribersborg', 'Decoded')"));
my $changes =
	"SELECT data FROM pg_logical_slot_peek_changes('decoded', NULL, NULL)"
  . " WHERE data LIKE '%INSERT%'";
like($node->safe_psql('postgres', $changes),
	qr/name\[.*\]:'nc1:/, 'logical decoding outside a school: ciphertext');
like(
	psql_with_options('-c nomp_crypt.tenant=ribersborg', $changes),
	qr/name\[.*\]:'Decoded'/,
	'... as a query inside a school: what every query shows there');
my $end = $node->safe_psql('postgres', 'SELECT pg_current_wal_lsn()');
{
	local $ENV{PGOPTIONS} = '-c nomp_crypt.tenant=ribersborg';
	my $stream = $node->pg_recvlogical_upto('postgres', 'decoded', $end, 180);

	like($stream, qr/name\[.*\]:'nc1:/,
		'pg_recvlogical gets ciphertext, even if it asks for a tenant');
	unlike($stream, qr/Decoded/, '... and no plaintext');
}

# A dump is an ordinary session that reads: with a school's right and setting
# it is that school's data in the clear, and nobody else's.
sub dump_with_options
{
	my ($options, @args) = @_;
	my ($out, $err) = ('', '');

	local $ENV{PGOPTIONS} = $options;
	my $ok = IPC::Run::run(
		[ 'pg_dump', '-d', $node->connstr('postgres'), '-t', 'pupil', @args ],
		'>', \$out, '2>', \$err);
	return ($ok, $out, $err);
}
my ($ok, $dump, $why) = dump_with_options('');
ok($ok, 'pg_dump');
like($dump, qr/^1\tribersborg\tnc1:/m, '... has ciphertext');
unlike($dump, qr/ribersborg 1\b/, '... and no plaintext');
($ok, $dump, $why) = dump_with_options('-c nomp_crypt.tenant=ribersborg');
ok(!$ok,
	'pg_dump that was told a school fails at the first value of another');
like($why, qr/belongs to tenant "slottsstaden"/, '... and says so');
($ok, $dump, $why) = dump_with_options(
	'-c nomp_crypt.tenant=ribersborg -c nomp_crypt.tenant_scope=transaction');
ok($ok, 'with tenant_scope = transaction it is not told anything');
like($dump, qr/^1\tribersborg\tnc1:/m, '... and has ciphertext');
unlike($dump, qr/ribersborg 1\b/, '... and no plaintext');

done_testing();
