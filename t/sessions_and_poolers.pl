# Which school a session works for is a setting, and whatever hands sessions
# around - a pooler, a cursor that outlives its transaction, a prepared
# statement, a savepoint, a parallel worker, a dump or a replica's connection -
# could carry one school's into another's work.  Text must come out as plain
# text for whoever said in this transaction (or session) which school he works
# for, and for nobody else.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $rows = 4000;
my $pooler;

END
{
	my $status = $?;

	$pooler->kill_kill if defined $pooler;
	$? = $status;
}

my $node = nomp_node('main', allows_streaming => 'logical');
$node->start;
create_nomp($node, 'anna', 'berta');
my $super = one('SELECT current_user');
one(<<"SQL");
CREATE ROLE app LOGIN;
CREATE ROLE pooled LOGIN;
CREATE ROLE careless LOGIN;
ALTER ROLE pooled SET nomp_crypt.tenant_scope = 'transaction';
SELECT nomp_crypt.grant_all_tenants(r, '{encrypt,decrypt}') FROM unnest('{app,pooled,careless}'::text[]) r;
GRANT SELECT, INSERT, UPDATE, DELETE ON pupil TO app, pooled, careless;
INSERT INTO pupil VALUES (1, 'anna', nomp_crypt.encrypt('Anna', 'anna'), NULL),
	(2, 'berta', nomp_crypt.encrypt('Berta', 'berta'), NULL);
SQL

sub one
{
	my ($sql, $dbname) = @_;

	return $node->safe_psql($dbname // 'postgres', $sql);
}

sub conninfo
{
	my ($user, $options) = @_;

	return
		$node->connstr('postgres')
	  . " user=$user"
	  . (defined $options ? " options='$options'" : '');
}

# A session of its own.  answer(SESSION, SQL): what it prints, or its error's
# SQLSTATE.
sub session
{
	my ($conninfo) = @_;

	return $node->background_psql(
		'postgres',
		on_error_stop => 0,
		timeout => 600,
		extra_params => [ '-v', 'VERBOSITY=sqlstate', '-d', $conninfo ]);
}

sub answer
{
	my ($session, $sql) = @_;

	$session->{stderr} = '';
	my $output = $session->query($sql);

	return $session->{stderr} =~ /(?:ERROR|FATAL|PANIC):\s+(\w{5})/
	  ? $1
	  : $output;
}

# The row of a school as a session sees it: 'Anna', or 'ciphertext'.
my $anna = "SELECT name FROM pupil WHERE id = 1;";
my $berta = "SELECT name FROM pupil WHERE id = 2;";

sub sees
{
	my ($session, $sql) = @_;

	return answer($session, $sql // $anna) =~ s/^nc1:\S+$/ciphertext/mgr;
}

# ---- pgbouncer ----

my $pooler_dir = PostgreSQL::Test::Utils::tempdir_short();
my $pooler_port = 6432;

sub pooled_conninfo
{
	my ($user) = @_;

	return "host=$pooler_dir port=$pooler_port dbname=postgres user=$user";
}

sub start_pooler
{
	my ($pool_size) = @_;

	unlink "$pooler_dir/pgbouncer.ini", "$pooler_dir/users";
	append_to_file("$pooler_dir/users",
		join '', map { "\"$_\" \"\"\n" } qw(pooled careless));
	append_to_file("$pooler_dir/pgbouncer.ini", <<"INI");
[databases]
postgres = host=@{[ $node->host ]} port=@{[ $node->port ]} dbname=postgres
[pgbouncer]
pool_mode = transaction
default_pool_size = $pool_size
auth_type = trust
auth_file = $pooler_dir/users
unix_socket_dir = $pooler_dir
listen_port = $pooler_port
INI
	$pooler =
	  IPC::Run::start([ '/usr/sbin/pgbouncer', "$pooler_dir/pgbouncer.ini" ],
		'<', \'', '>&', "$pooler_dir/log");
	wait_until(
		sub {
			my ($out, $err);

			$pooler->pumpable
			  or die 'pgbouncer: ' . slurp_file("$pooler_dir/log");
			return IPC::Run::run(
				[
					'psql', '-XAtq',
					'-d', pooled_conninfo('pooled'),
					'-c', 'SELECT 1'
				],
				'>',
				\$out,
				'2>',
				\$err);
		},
		'pgbouncer');
	return;
}

sub stop_pooler
{
	$pooler->signal('INT');
	$pooler->finish;
	undef $pooler;
	return;
}

# Rows for pupil by COPY, as one more client; the SQLSTATE.
sub copy_pooled
{
	my ($lines) = @_;
	my ($out, $err) = ('', '');

	IPC::Run::run(
		[
			'psql', '-XAtq',
			'-v', 'VERBOSITY=sqlstate',
			'-d', pooled_conninfo('pooled'),
			'-c', 'COPY pupil FROM STDIN'
		],
		'<',
		\$lines,
		'>',
		\$out,
		'2>',
		\$err,
		IPC::Run::timeout(180));
	return $err =~ /ERROR:\s+(\w{5})/ ? $1 : '';
}

start_pooler(1);

# One server connection, two clients.
{
	my $first = session(pooled_conninfo('pooled'));
	my $second = session(pooled_conninfo('pooled'));
	my $pid = answer($first, 'SELECT pg_backend_pid();');
	my $number = 10;

	is(answer($second, 'SELECT pg_backend_pid();'),
		$pid, 'pooler: two clients share a connection');
	is(answer($first, 'SHOW nomp_crypt.tenant_scope;'),
		'transaction', 'pooler: its role has tenant_scope = transaction');

	# what the first client leaves behind
	my @left = (
		[ 'SET outside a transaction', "SET nomp_crypt.tenant = 'anna';" ],
		[
			'set_config outside a transaction',
			"SELECT set_config('nomp_crypt.tenant', 'anna', false);"
		],
		[
			'SET in a transaction',
			"BEGIN; SET nomp_crypt.tenant = 'anna'; $anna COMMIT;", 'Anna'
		],
		[
			'SET in a savepoint',
			"BEGIN; SAVEPOINT s; SET nomp_crypt.tenant = 'anna'; RELEASE s; $anna COMMIT;",
			'Anna'
		],
		[
			'SET LOCAL over SET',
			"SET nomp_crypt.tenant = 'anna'; BEGIN; SET LOCAL nomp_crypt.tenant = 'berta'; $berta COMMIT;",
			'Berta'
		],
		[
			'SET undone by ROLLBACK',
			"SET nomp_crypt.tenant = 'anna'; BEGIN; SET nomp_crypt.tenant = 'berta'; $berta ROLLBACK;",
			'Berta'
		]);

	for my $left (@left)
	{
		my ($what, $sql, $seen) = @$left;

		like(
			answer($first, $sql),
			defined $seen ? qr/^\Q$seen\E$/ : qr/^(?:anna)?$/,
			"pooler: $what");
		is(answer($second, 'SHOW nomp_crypt.tenant;'),
			'anna', "$what: the next client inherits the setting");
		is(sees($second), 'ciphertext', "$what: and sees ciphertext");
		is(sees($second, "BEGIN; $anna COMMIT;"),
			'ciphertext', "$what: in a transaction too");
		is( answer(
				$second,
				"INSERT INTO pupil VALUES ($number, 'anna', 'text', NULL);"),
			'NC006',
			"$what: it cannot write plaintext");
		is(answer($second, "UPDATE pupil SET name = 'text' WHERE id = 1;"),
			'NC006', "$what: not by UPDATE either");
		is(copy_pooled("$number\tanna\ttext\t\\N\n"),
			'NC006', "$what: nor by COPY");
		is( answer(
				$second,
				"BEGIN; SET LOCAL nomp_crypt.tenant = 'berta'; $berta COMMIT;"
			),
			'Berta',
			"$what: inside its own school it reads");
		is(sees($second), 'ciphertext', "$what: and not beyond");
		answer($second, 'RESET nomp_crypt.tenant;');
	}

	# a client that goes away in the middle
	answer($first, "BEGIN; SET nomp_crypt.tenant = 'anna'; $anna");
	is(answer($first, 'SELECT 1 / 0;'),
		'22012', 'pooler: a failed transaction');
	$first->quit;
	is(sees($second), 'ciphertext',
		'pooler: a client that goes away leaves nothing');

	# statements outlive their client too
	$first = session(pooled_conninfo('pooled'));
	is( answer(
			$first,
			"BEGIN; SET LOCAL nomp_crypt.tenant = 'anna';"
			  . ' PREPARE add (bigint, text, text) AS INSERT INTO pupil VALUES ($1, $2, $3, NULL);'
			  . " EXECUTE add (20, 'anna', 'first'); COMMIT;"),
		'',
		'pooler: a client prepares a statement');
	is(answer($second, "EXECUTE add (21, 'berta', 'second');"),
		'NC006', 'another cannot use it outside a school');
	$pid = answer($second, 'SELECT pg_backend_pid();');
	is( answer(
			$second,
			"BEGIN; SET LOCAL nomp_crypt.tenant = 'berta';"
			  . " EXECUTE add (21, 'berta', 'second'); COMMIT;"),
		'',
		'and in its own school');
	is( one("SELECT nomp_crypt.tenant_of(name), name::text FROM pupil WHERE id IN (20, 21) ORDER BY id"
		),
		"anna|first\nberta|second",
		'each row belongs to its writer');
	is( answer(
			$first,
			"BEGIN; SET LOCAL nomp_crypt.tenant = 'anna';"
			  . " PREPARE fixed (bigint) AS INSERT INTO pupil VALUES (\$1, 'anna', 'literal', NULL);"
			  . ' EXECUTE fixed (22); COMMIT;'),
		'',
		'pooler: a client prepares a statement with a literal');
	is( answer(
			$second,
			"BEGIN; SET LOCAL nomp_crypt.tenant = 'berta'; EXECUTE fixed (23);"
			  . ' SELECT nomp_crypt.tenant_of(name) FROM pupil WHERE id = 23;'
		),
		'berta',
		'in another school the literal is that school\'s');
	answer($second, 'ROLLBACK;');
	is(answer($second, 'EXECUTE fixed (23);'),
		'NC006', 'somebody who is in none cannot use it');
	is(one('SELECT count(*) FROM pupil WHERE id = 23'),
		'0', 'and nothing was written');
	answer($second, 'DEALLOCATE ALL;');

	# a cursor cannot be left open, one WITH HOLD can
	answer($first,
			"BEGIN; SET LOCAL nomp_crypt.tenant = 'anna';"
		  . " DECLARE held CURSOR WITH HOLD FOR $anna COMMIT;");
	is(sees($second, 'FETCH held;'),
		'ciphertext', "pooler: another client's cursor gives ciphertext");
	$_->quit for $first, $second;

	# without tenant_scope it would not do
	$first = session(pooled_conninfo('careless'));
	$second = session(pooled_conninfo('careless'));
	answer($first, "SET nomp_crypt.tenant = 'anna';");
	is(sees($second), 'Anna',
		'pooler: with tenant_scope = session the next client is inside');
	$_->quit for $first, $second;
}
stop_pooler();

# Many clients of two schools on few connections, with the extended protocol.
{
	my $school = "CASE :client_id % 2 WHEN 0 THEN 'anna' ELSE 'berta' END";
	my $script = "$pooler_dir/script.sql";
	my ($out, $err);

	one(<<"SQL");
CREATE TABLE shared (id bigserial, school text, name encrypted(text));
GRANT SELECT, INSERT ON shared TO pooled;
GRANT USAGE ON SEQUENCE shared_id_seq TO pooled;
SQL
	append_to_file($script, <<"SCRIPT");
-- no tenant counts: everything is ciphertext
SELECT 1 / (NOT EXISTS (SELECT FROM shared WHERE format('%s', name) NOT LIKE 'nc1:%'))::int;
-- something to leak
SELECT set_config('nomp_crypt.tenant', $school, false);
BEGIN;
SELECT 1 / (NOT EXISTS (SELECT FROM shared WHERE format('%s', name) NOT LIKE 'nc1:%'))::int;
SELECT set_config('nomp_crypt.tenant', $school, true);
INSERT INTO shared (school, name) VALUES ($school, 'text of ' || $school);
SELECT 1 / (NOT EXISTS (SELECT FROM shared WHERE school = $school
	AND format('%s', name) <> 'text of ' || school))::int;
END;
SCRIPT
	start_pooler(3);
	ok( IPC::Run::run(
			[
				'pgbench', '-n', '-M', 'extended', '-c', 8, '-j', 2, '-t', 15,
				'-f', $script, pooled_conninfo('pooled')
			],
			'>',
			\$out,
			'2>',
			\$err),
		'pooler: many clients of two schools') or diag($err);
	stop_pooler();
	is( one('SELECT school, count(*) FROM shared WHERE nomp_crypt.tenant_of(name) = school'
			  . " AND name::text = 'text of ' || school GROUP BY school ORDER BY school"
		),
		"anna|60\nberta|60",
		"every row is its school's");
}

# ---- one client ----

# Prepared statements of the protocol: the plan is made once, the school is the
# execution's.
{
	my @calls = (
		{
			sql => 'INSERT INTO pupil VALUES ($1, $2, $3, NULL)',
			prepare => 'add'
		},
		{ sql => 'SELECT name FROM pupil WHERE id = $1', prepare => 'read' });
	my @should = ('', '');
	my $hex = sub {
		return map { unpack 'H*', $_ } @_;
	};

	# more often than it takes to get a generic plan
	for my $n (1 .. 8)
	{
		for my $school ('anna', 'berta')
		{
			my $id = 100 + 2 * $n + ($school eq 'anna' ? 0 : 1);
			my $other = $school eq 'anna' ? $n > 1 ? $id - 1 : 2 : $id - 1;

			push @calls,
			  { sql => 'BEGIN' },
			  { sql => "SET LOCAL nomp_crypt.tenant = '$school'" },
			  {
				execute => 'add',
				params => [ $hex->($id, $school, "$school $n") ]
			  },
			  { execute => 'read', params => [ $hex->($id) ] },
			  { execute => 'read', params => [ $hex->($other) ] },
			  { sql => 'ROLLBACK' },
			  { sql => 'BEGIN' },
			  { sql => "SET LOCAL nomp_crypt.tenant = '$school'" },
			  {
				execute => 'add',
				params => [ $hex->($id, $school, "$school $n") ]
			  },
			  { sql => 'COMMIT' },
			  { execute => 'read', params => [ $hex->($id) ] },
			  {
				execute => 'add',
				params => [ $hex->($id + 1000, $school, 'nobody') ]
			  };
			push @should, '', '', '', "$school $n", '55000', '', '', '', '',
			  '', 'ciphertext', 'NC006';
		}
	}
	for my $scope ('session', 'transaction')
	{
		my @answers =
		  libpq_calls(conninfo('app', "-c nomp_crypt.tenant_scope=$scope"),
			@calls);
		my @said = map {
			my $row = $_->{rows}[0];
			my $text = defined $row ? pack 'H*', $row->[0] : '';

			$_->{state} || $text =~ s/^nc1:.*/ciphertext/r
		} @answers;

		is_deeply(\@said, \@should,
			"prepared statements with parameters, tenant_scope = $scope");
		is( one("SELECT count(*) FROM pupil WHERE id > 100 AND nomp_crypt.tenant_of(name) = school"
				  . " AND name::text LIKE school || ' %'"),
			'16',
			'each row belongs to its writer');
		one('DELETE FROM pupil WHERE id > 100');
	}
}

# Savepoints, SET LOCAL, cursors, in both scopes.
for my $scope ('session', 'transaction')
{
	my $session =
	  session(conninfo('app', "-c nomp_crypt.tenant_scope=$scope"));
	my $in_scope = $scope eq 'session';
	my $left = $in_scope ? 'Anna' : 'ciphertext';
	my $say = sub { return answer($session, $_[0]) };

	is( sees(
			$session,
			"BEGIN; SET LOCAL nomp_crypt.tenant = 'anna'; $anna COMMIT; $anna"
		),
		"Anna\nciphertext",
		"$scope: SET LOCAL lasts to the end of the transaction");
	is( sees(
			$session,
			"BEGIN; SET LOCAL nomp_crypt.tenant = 'anna'; $anna ROLLBACK; $anna"
		),
		"Anna\nciphertext",
		"$scope: or to its rollback");
	is( sees(
			$session,
			"BEGIN; SAVEPOINT s; SET LOCAL nomp_crypt.tenant = 'anna'; $anna"
			  . " ROLLBACK TO s; $anna COMMIT;"),
		"Anna\nciphertext",
		"$scope: ROLLBACK TO takes a tenant back");
	is( sees(
			$session,
			"BEGIN; SET LOCAL nomp_crypt.tenant = 'anna'; SAVEPOINT s;"
			  . " SET LOCAL nomp_crypt.tenant = 'berta'; $berta ROLLBACK TO s; $anna"
			  . " SAVEPOINT t; SET LOCAL nomp_crypt.tenant = 'berta'; RELEASE t; $berta COMMIT; $anna"
		),
		"Berta\nAnna\nBerta\nciphertext",
		"$scope: and gives back the one that this transaction had set before"
	);
	$say->("SET nomp_crypt.tenant = 'anna';");
	is(sees($session, "BEGIN; $anna COMMIT;"),
		$left, "$scope: one of an earlier transaction");
	is( sees(
			$session,
			"BEGIN; SAVEPOINT s; SET LOCAL nomp_crypt.tenant = 'berta'; $berta"
			  . " ROLLBACK TO s; $anna COMMIT;"),
		"Berta\n$left",
		"$scope: ROLLBACK TO one of an earlier transaction");
	is( sees(
			$session,
			"BEGIN; SET LOCAL nomp_crypt.tenant = 'berta'; $berta"
			  . " RESET nomp_crypt.tenant; $anna COMMIT; $anna"),
		"Berta\nciphertext\nciphertext",
		"$scope: RESET");
	is( answer(
			$session,
			"SET nomp_crypt.tenant = 'anna'; DISCARD ALL; SHOW nomp_crypt.tenant;"
		),
		'',
		"$scope: DISCARD ALL");

	$say->(
		"INSERT INTO pupil SELECT 30 + n, 'anna', nomp_crypt.encrypt('pupil ' || n, 'anna'), NULL"
		  . " FROM generate_series(0, 9) n ON CONFLICT DO NOTHING;");
	my $cursor =
	  "CURSOR %s FOR SELECT name%s FROM pupil WHERE id BETWEEN 30 AND 39 ORDER BY id;";
	is( sees(
			$session,
			"BEGIN; SET LOCAL nomp_crypt.tenant = 'anna'; DECLARE c "
			  . sprintf($cursor, '', '')
			  . " FETCH 2 FROM c; SAVEPOINT s; SET LOCAL nomp_crypt.tenant = ''; FETCH c;"
			  . " ROLLBACK TO s; FETCH c; COMMIT;"),
		"pupil 0\npupil 1\nciphertext\npupil 3",
		"$scope: a cursor gives what the session is inside when it fetches");
	is(answer($session, 'FETCH c;'),
		'34000', "$scope: and ends with its transaction");
	is( sees(
			$session,
			"BEGIN; SET LOCAL nomp_crypt.tenant = 'anna'; DECLARE h "
			  . sprintf($cursor, 'WITH HOLD', '')
			  . " FETCH h; COMMIT; FETCH h;"
			  . " BEGIN; SET LOCAL nomp_crypt.tenant = 'anna'; FETCH h; COMMIT;"
			  . " BEGIN; SET LOCAL nomp_crypt.tenant = 'berta'; FETCH h; COMMIT;"
		),
		'55000',
		"$scope: a cursor WITH HOLD does not bring a school into another");
	$say->('ROLLBACK;');
	is( sees(
			$session,
			"FETCH h; BEGIN; SET LOCAL nomp_crypt.tenant = 'anna'; FETCH h; COMMIT; CLOSE h;"
		),
		"ciphertext\npupil 5",
		"$scope: it gives ciphertext outside, plaintext inside");
	is( sees(
			$session,
			"BEGIN; DECLARE t "
			  . sprintf($cursor, 'WITH HOLD', '::text')
			  . " COMMIT; FETCH t; CLOSE t;"),
		'pupil 0',
		"$scope: what a cursor WITH HOLD decrypted itself stays so");
	$session->quit;
}

# PREPARE TRANSACTION
{
	my $session = session(conninfo('app'));

	is( sees(
			$session,
			"BEGIN; SET LOCAL nomp_crypt.tenant = 'anna';"
			  . " INSERT INTO pupil VALUES (50, 'anna', 'prepared', NULL);"
			  . " PREPARE TRANSACTION 'one'; $anna"),
		'ciphertext',
		'PREPARE TRANSACTION ends a SET LOCAL');
	$session->quit;
	$session =
	  session(conninfo('app', '-c nomp_crypt.tenant_scope=transaction'));
	is( sees(
			$session,
			"BEGIN; SET nomp_crypt.tenant = 'anna';"
			  . " INSERT INTO pupil VALUES (51, 'anna', 'prepared too', NULL);"
			  . " PREPARE TRANSACTION 'two'; SHOW nomp_crypt.tenant; $anna"),
		"anna\nciphertext",
		'and with tenant_scope = transaction a SET too');
	$session->quit;
	$node->restart;
	one("COMMIT PREPARED 'one'");
	is( sqlstate(
			$node,
			"SET nomp_crypt.tenant = 'berta'; COMMIT PREPARED 'two'; ROLLBACK PREPARED 'two'"
		),
		'42704',
		'COMMIT PREPARED in a session that is inside another school');
	is( one('SELECT nomp_crypt.tenant_of(name), name::text FROM pupil WHERE id IN (50, 51) ORDER BY id'
		),
		"anna|prepared\nanna|prepared too",
		'both rows are those of the school that wrote them');
}

# Parallel query: the workers alone scan, so all that is read is theirs.
{
	one(<<"SQL");
CREATE TABLE many (id int, name encrypted(text));
INSERT INTO many SELECT n, nomp_crypt.encrypt('pupil ' || n, 'anna') FROM generate_series(1, $rows) n;
ANALYZE many;
GRANT SELECT ON many TO app;
SQL
	my $parallel =
	  'SET max_parallel_workers_per_gather = 2; SET parallel_setup_cost = 0;'
	  . ' SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;'
	  . ' SET parallel_leader_participation = off;';
	my $serial = 'SET max_parallel_workers_per_gather = 0;';
	my $casts =
	  "SELECT count(*), sum(hashtext(name::text)) FROM many WHERE name::text LIKE '%7%'";
	my $shown =
		"SELECT count(*) FILTER (WHERE format('%s', name) LIKE 'nc1:%'),"
	  . " count(*) FILTER (WHERE format('%s', name) = 'pupil ' || id) FROM many";
	my $open = "BEGIN; SET LOCAL nomp_crypt.tenant = 'anna';";

	for my $scope ('session', 'transaction')
	{
		my $session =
		  session(conninfo('app', "-c nomp_crypt.tenant_scope=$scope"));
		my $expected = answer($session, "$serial $casts;");

		like($expected, qr/^\d{3,}\|-?\d+$/, "$scope: without workers");
		answer($session, $parallel);
		for my $sql ($casts, $shown)
		{
			like(
				answer(
					$session,
					"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) $sql;"
				),
				qr/Gather.*Workers Launched: 2.*Parallel Seq Scan/s,
				"$scope: the plan is parallel");
		}
		is(answer($session, "$casts;"),
			$expected, "$scope: workers decrypt the same outside a tenant");
		is(answer($session, "$open $casts; COMMIT;"),
			$expected, "$scope: and inside one");
		is(answer($session, "$shown;"),
			"$rows|0", "$scope: outside, workers show ciphertext");
		is(answer($session, "$open $shown; COMMIT;"),
			"0|$rows", "$scope: inside, plaintext");
		is( answer(
				$session,
				"$open SAVEPOINT s; SET LOCAL nomp_crypt.tenant = 'berta'; ROLLBACK TO s; $shown; COMMIT;"
			),
			"0|$rows",
			"$scope: and after ROLLBACK TO");
		is( answer(
				$session,
				"BEGIN; SET LOCAL nomp_crypt.tenant = 'berta'; $shown; COMMIT;"
			),
			'55000',
			"$scope: another school's are an error");
		answer($session, "ROLLBACK; SET nomp_crypt.tenant = 'anna';");
		is( answer($session, "$shown;"),
			$scope eq 'session' ? "0|$rows" : "$rows|0",
			"$scope: a tenant of an earlier transaction");
		$session->quit;
	}
}

# A school that the transaction itself has made: its rows are nobody else's to
# see yet, but its workers' and, once prepared, whoever commits it.
{
	my $session = session(conninfo($super));
	my $pupils =
	  "CREATE TABLE newer WITH (parallel_workers = 2) AS SELECT nomp_crypt.encrypt('pupil ' || n, 'carla')::encrypted(text) AS name FROM generate_series(1, 300) n;";

	answer($session,
		'SET parallel_leader_participation = off; SET min_parallel_table_scan_size = 0;'
		  . ' SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0;');
	is( answer(
			$session,
			"BEGIN; SELECT nomp_crypt.create_tenant('carla') IS NOT NULL; $pupils"
			  . " SELECT count(*) FROM newer WHERE name::text LIKE 'pupil%'; ROLLBACK;"
		),
		"t\n300",
		'workers read a school of their own transaction');
	is( answer(
			$session,
			"BEGIN; SELECT nomp_crypt.create_tenant('carla') IS NOT NULL; $pupils"
			  . " PREPARE TRANSACTION 'school';"),
		't',
		'and a prepared transaction keeps it');
	$session->quit;
	$node->restart;
	is( one("COMMIT PREPARED 'school'; SELECT count(*) FROM newer WHERE name::text LIKE 'pupil%'"
		),
		300,
		'over a restart');
}

# A tenant in the connection's options.
{
	my $session = session(conninfo('app', '-c nomp_crypt.tenant=anna'));

	is(sees($session), 'Anna', 'connection option: the session is inside');
	is(answer($session, $berta),
		'55000', 'connection option: and in no other');
	is( sees(
			$session,
			"BEGIN; SET LOCAL nomp_crypt.tenant = 'berta'; $berta COMMIT; $anna"
		),
		"Berta\nAnna",
		'connection option: SET LOCAL goes before it');
	is(sees($session, "SET nomp_crypt.tenant = ''; $anna"),
		'ciphertext', 'connection option: it can be left');
	is(sees($session, "RESET nomp_crypt.tenant; $anna"),
		'Anna', 'connection option: RESET goes back to it');
	$session->quit;

	$session = session(conninfo('pooled', '-c nomp_crypt.tenant=anna'));
	is(sees($session), 'ciphertext',
		'connection option: with tenant_scope = transaction it never counts');
	is(sees($session, "RESET nomp_crypt.tenant; $anna"),
		'ciphertext', 'connection option: nor does RESET make it count');
	$session->quit;

	$session = session(conninfo('app', '-c nomp_crypt.tenant=nobody'));
	is(answer($session, $anna),
		'42704', 'connection option: a school that there is not');
	$session->quit;
}

# Nowhere else can a tenant be set.
{
	my %refused = (
		'ALTER ROLE app SET nomp_crypt.tenant = %s' => '22023',
		'ALTER ROLE ALL SET nomp_crypt.tenant = %s' => '22023',
		'ALTER ROLE app IN DATABASE postgres SET nomp_crypt.tenant = %s' =>
		  '22023',
		'ALTER DATABASE postgres SET nomp_crypt.tenant = %s' => '22023',
		"CREATE FUNCTION f() RETURNS int LANGUAGE sql SET nomp_crypt.tenant = %s AS 'SELECT 1'"
		  => '22023',
		'ALTER FUNCTION look() SET nomp_crypt.tenant = %s' => '22023',
		'ALTER SYSTEM SET nomp_crypt.tenant = %s' => '55P02');

	one("CREATE FUNCTION look() RETURNS int LANGUAGE sql AS 'SELECT 1'");
	for my $sql (sort keys %refused)
	{
		is(sqlstate($node, sprintf $sql, "'anna'"),
			$refused{$sql}, sprintf "refused: $sql", "'anna'");
	}
	for my $sql (grep { !/SYSTEM/ } sort keys %refused)
	{
		is( sqlstate(
				$node,
				"SET nomp_crypt.tenant = 'anna'; " . (sprintf $sql, 'x') =~
				  s/= x|TO x/FROM CURRENT/r),
			'22023',
			sprintf "refused: $sql",
			'FROM CURRENT');
	}
	is( one("SELECT count(*) FROM pg_db_role_setting WHERE setconfig::text LIKE '%nomp_crypt.tenant=%'"
		),
		'0',
		'nothing of it was stored');

	$node->append_conf('postgresql.conf', "nomp_crypt.tenant = 'anna'");
	my $before = -s $node->logfile;
	$node->reload;
	$node->wait_for_log(qr/"nomp_crypt.tenant" cannot be set/, $before);
	is(one('SHOW nomp_crypt.tenant'), '', 'refused: in postgresql.conf');
	$node->append_conf('postgresql.conf', "nomp_crypt.tenant = ''");
	$node->reload;
}

# pg_dump: outside a tenant ciphertext, also with a tenant's setting elsewhere.
# Who puts a tenant into its connection asks for plaintext, and gets it: of that
# school alone.
{
	my ($out, $err);
	my @dump = (
		'pg_dump', '-d', $node->connstr('postgres'),
		'--data-only', '-t', 'only_anna');

	one("CREATE TABLE only_anna AS SELECT name FROM pupil WHERE school = 'anna'"
	);
	IPC::Run::run([@dump], '>', \$out, '2>', \$err);
	unlike($out, qr/^Anna$|prepared/m, 'pg_dump has no plaintext');
	is( scalar(() = $out =~ /^nc1:/mg),
		one('SELECT count(*) FROM only_anna'),
		'pg_dump has ciphertext');
	{
		local $ENV{PGOPTIONS} = '-c nomp_crypt.tenant=anna';

		IPC::Run::run([@dump], '>', \$out, '2>', \$err);
		like($out, qr/^Anna$/m,
			'pg_dump that is told a tenant dumps its plaintext');
		unlike($out, qr/^nc1:/m, 'and nothing else');
		ok( !IPC::Run::run(
				[
					'pg_dump', '-d', $node->connstr('postgres'), '-t',
					'pupil'
				],
				'>',
				\$out,
				'2>',
				\$err),
			'with rows of another school it fails');
		like($err, qr/value belongs to tenant "berta"/, 'and says why');
		unlike($out, qr/Berta/, 'without their plaintext');
	}
	{
		local $ENV{PGOPTIONS} =
		  '-c nomp_crypt.tenant=anna -c nomp_crypt.tenant_scope=transaction';

		IPC::Run::run([@dump], '>', \$out, '2>', \$err);
		unlike($out, qr/^Anna$/m,
			'with tenant_scope = transaction it dumps ciphertext');
	}
}

# Replication works with what is stored, whatever its connection says.
{
	local $ENV{PGOPTIONS} = '-c nomp_crypt.tenant=anna';
	my ($out, $err);
	my @recv =
	  ('pg_recvlogical', '-d', $node->connstr('postgres'), '-S', 'slot');

	$node->command_ok([ @recv, '-P', 'test_decoding', '--create-slot' ],
		'pg_recvlogical: a slot');
	one("INSERT INTO pupil VALUES (60, 'anna', 'replicated', NULL)");
	one("UPDATE pupil SET name = 'replicated again' WHERE id = 60");
	my $end = one('SELECT pg_current_wal_lsn()');
	IPC::Run::run(
		[ @recv, '--start', '--no-loop', '-f', '-', '--endpos', $end ],
		'>', \$out, '2>', \$err, IPC::Run::timeout(180));
	is( scalar(
			() =
			  $out =~ /name\[(?:[^\]]*\.)?encrypted(?:\(text\))?\]:'?nc1:/g),
		2,
		'pg_recvlogical: inside a tenant it gets ciphertext'
	) or diag("$out\n$err");
	unlike($out, qr/replicated/, 'pg_recvlogical: and no plaintext');
	one("UPDATE pupil SET name = 'decoded' WHERE id = 60");
	like(
		one("SELECT string_agg(data, ' ') FROM pg_logical_slot_peek_changes('slot', NULL, NULL)"
		),
		qr/:'decoded'/,
		'the same, read by a query inside a tenant, is what queries there show'
	);
	{
		local $ENV{PGOPTIONS} = '';
		my $seen = one(
			"SELECT string_agg(data, ' ') FROM pg_logical_slot_peek_changes('slot', NULL, NULL)"
		);

		like($seen, qr/nc1:/, 'and outside one ciphertext');
		unlike($seen, qr/decoded/, 'alone');
	}
	$node->command_ok([ @recv, '--drop-slot' ], 'pg_recvlogical: the end');

	my $session = session(conninfo($super) . ' replication=database');
	is(sees($session), 'ciphertext',
		'a query over a replication connection gets ciphertext');
	is(sees($session, "SET nomp_crypt.tenant = 'anna'; $anna"),
		'ciphertext', 'whatever it sets');
	is(answer($session, "UPDATE pupil SET name = 'text' WHERE id = 1;"),
		'NC006', 'and cannot write plaintext');
	$session->quit;
}

# Two databases of one server: the same names, other schools.
{
	one('CREATE DATABASE second');
	one(<<"SQL", 'second');
CREATE EXTENSION nomp_crypt;
SELECT nomp_crypt.create_tenant('anna');
SELECT nomp_crypt.grant_all_tenants('$super', '{encrypt,decrypt,load}');
CREATE TABLE pupil (id int, name encrypted(text));
SQL
	one(in_tenant('anna', "INSERT INTO pupil VALUES (1, 'Anna of another')"),
		'second');
	is( one(in_tenant('anna', 'SELECT name FROM pupil WHERE id = 1'),
			'second'),
		'Anna of another',
		'second database: a school of the same name');
	is(one(in_tenant('anna', $anna)),
		'Anna', 'the first one reads on beside it');

	my ($here) = one($anna);
	my ($there) = one('SELECT name FROM pupil', 'second');

	is( sqlstate(
			$node,
			"INSERT INTO pupil VALUES (2, '$here');"
			  . ' SELECT nomp_crypt.decrypt(name) FROM pupil WHERE id = 2',
			dbname => 'second'),
		'NC003',
		"second database: the first one's values are of unknown keys");
	is( sqlstate(
			$node,
			"INSERT INTO pupil VALUES (70, 'anna', '$there', NULL);"
			  . ' SELECT nomp_crypt.decrypt(name) FROM pupil WHERE id = 70'),
		'NC003',
		"and the second one's in the first");
	is( sqlstate(
			$node,
			in_tenant('berta', "INSERT INTO pupil VALUES (3, 'text')"),
			dbname => 'second'),
		'42704',
		'second database: it has not the same schools');
	is( sqlstate(
			$node,
			"CALL nomp_crypt.erase_tenant('anna', 'test')",
			dbname => 'second'),
		'',
		'second database: its school is erased');
	is( sqlstate(
			$node,
			in_tenant('anna', 'SELECT name FROM pupil WHERE id = 1'),
			dbname => 'second'),
		'NC001',
		'second database: and dead');
	is(one(in_tenant('anna', $anna)), 'Anna', "the first one's is alive");
}

# A query that is cancelled in the middle of decrypting.
{
	my $session = session(conninfo('app'));
	my $pid = answer($session, 'SELECT pg_backend_pid();');
	my $long =
		"SELECT count(*) FROM many, many b, many c"
	  . " WHERE CASE WHEN nextval('seen') > 0 THEN many.name::text || c.id = 'nobody' END";

	one('CREATE SEQUENCE seen; GRANT USAGE ON SEQUENCE seen TO app');
	for my $how ('pg_cancel_backend', 'statement_timeout')
	{
		my $from = one('SELECT last_value FROM seen');

		$session->{stderr} = '';
		answer($session, "SET statement_timeout = '5s';")
		  if $how eq 'statement_timeout';
		$session->query_until(qr/^begun/,
			"\\echo begun\n$long;\n\\warn ended\n");
		$node->poll_query_until('postgres',
			"SELECT last_value > $from + 1000 FROM seen")
		  or die 'nothing was decrypted';
		one("SELECT pg_cancel_backend($pid)") if $how eq 'pg_cancel_backend';
		wait_until(
			sub {
				$session->{run}->pump_nb;
				return $session->{stderr} =~ /ended/;
			},
			'the query to end');
		like($session->{stderr}, qr/ERROR:\s+57014/,
			"$how: a query is cancelled while it decrypts");
		$session->{stdout} = '';
		is( sees(
				$session,
				"SET statement_timeout = 0; BEGIN; SET LOCAL nomp_crypt.tenant = 'anna'; $anna COMMIT; $anna"
			),
			"Anna\nciphertext",
			"$how: the session goes on");
	}
	$session->quit;
}

unlike(
	slurp_file($node->logfile),
	qr/terminated by signal|PANIC|TRAP:|XX000/,
	'the log knows of no crash and of no internal error');

$node->stop;
done_testing();
