# Who used what: the server log says who read and wrote how many values of
# which school, on a primary and on a standby, also for transactions that fail.
# Who did what: administrative acts are in the log, and their table survives a
# dump.  And keys are not used over connections that anybody can listen to.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $primary = nomp_node('primary', allows_streaming => 1);
my $dir = $primary->{nomp_dir};
my $tcp_port = PostgreSQL::Test::Cluster::get_free_port();

$primary->append_conf('postgresql.conf', <<'CONF');
log_line_prefix = '%u '
log_statement = none
log_min_duration_statement = -1
CONF
$primary->start;
create_nomp($primary, qw(ribersborg slottsstaden));
$primary->safe_psql('postgres', <<'SQL');
CREATE ROLE app LOGIN;
CREATE ROLE owner_of_function;
SELECT nomp_crypt.grant_all_tenants('app', '{encrypt,decrypt}');
SELECT nomp_crypt.grant_tenant('ribersborg', 'owner_of_function', '{decrypt}');
GRANT ALL ON pupil TO app, owner_of_function;
INSERT INTO pupil VALUES (1, 'ribersborg', nomp_crypt.encrypt('Anna', 'ribersborg')),
	(2, 'ribersborg', nomp_crypt.encrypt('Bo', 'ribersborg')),
	(3, 'slottsstaden', nomp_crypt.encrypt('Cia', 'slottsstaden'));
CREATE FUNCTION names() RETURNS SETOF text LANGUAGE sql SECURITY DEFINER
AS $$SELECT nomp_crypt.decrypt(name) FROM pupil WHERE school = 'ribersborg'$$;
ALTER FUNCTION names() OWNER TO owner_of_function;
SQL
$primary->backup('base');

# new_lines(NODE): the lines of the log since the last call that say who used
# or did what, without "LOG:  nomp_crypt: ".
my %seen;

sub new_lines
{
	my ($node) = @_;
	my $log = PostgreSQL::Test::Utils::slurp_file($node->logfile,
		$seen{ $node->name } // 0);

	# somebody may be writing the last one
	$log =~ s/[^\n]*\z//;
	$seen{ $node->name } += length $log;
	return $log =~ /LOG:  nomp_crypt: ((?:access )?[^\n]*)/g;
}

sub is_new
{
	my ($node, $expected, $name) = @_;

	is_deeply([ sort(new_lines($node)) ], [ sort @$expected ], $name);
	return;
}

# of(ROLE, TENANT, WHEN, READ, WRITTEN): a line, nothing searched.
sub of
{
	my ($role, $tenant, $when, $read, $written) = @_;

	return
	  qq(access by role "$role" in database "postgres" to tenant "$tenant", )
	  . "$when: $read read, $written written, 0 searched";
}

# as_app(NODE, SQL, OPTIONS): in a session of app; its first error's SQLSTATE
# or what it printed.
sub as_app
{
	my ($node, $sql, $options) = @_;

	local $ENV{PGUSER} = 'app';
	local $ENV{PGOPTIONS} = $options // '';
	return outcome($node, $sql);
}

sub set_log_access
{
	my ($node, $mode) = @_;

	$node->append_conf('postgresql.conf', "nomp_crypt.log_access = $mode");
	$node->reload;
	$node->poll_query_until('postgres', 'SHOW nomp_crypt.log_access', $mode)
	  or die 'the setting did not change';
	return;
}

# away_from_the_hour(): not just before its end, when what is compared might
# fall into two.
sub away_from_the_hour
{
	my ($second, $minute) = localtime;

	sleep 61 - $second if $minute == 59;
	return;
}

# Administrative acts.
{
	my $me = $primary->safe_psql('postgres', 'SELECT current_user');
	my @lines = new_lines($primary);

	ok( (   grep {
				/^create_tenant tenant "ribersborg" by role "$me", session of "$me", \{.*"key": "nomp_crypt:/
			} @lines),
		'the log says who created a tenant');
	ok( (   grep {
				/^grant_tenant tenant "ribersborg" by role "$me", .*"role": "owner_of_function"/
			} @lines),
		'and who gave a right');
	$primary->psql(
		'postgres',
		"SET client_min_messages = log; SELECT nomp_crypt.create_tenant('seen-by-nobody')",
		stderr => \my $stderr);
	unlike($stderr, qr/create_tenant/, 'the client does not see the line');
	is(scalar(new_lines($primary)), 1, 'which was written');
	$primary->safe_psql('postgres',
		"BEGIN; SELECT nomp_crypt.create_tenant('undone'); ROLLBACK;");
	like(
		join("\n", new_lines($primary)),
		qr/^create_tenant tenant "undone"/,
		'an act that is rolled back has its line');
	is( $primary->safe_psql(
			'postgres',
			"SELECT count(*) FROM nomp_crypt.audit WHERE tenant = 'undone'"),
		0,
		'and no row');
}

# none: nothing.
as_app($primary,
	in_tenant('ribersborg', 'SELECT name FROM pupil WHERE id = 1'));
is_new($primary, [], 'by default nothing is logged');

# Each transaction.
set_log_access($primary, 'transaction');
{
	my $one = 'one transaction';

	is( as_app(
			$primary,
			in_tenant(
				'ribersborg',
				"SELECT name FROM pupil WHERE school = 'ribersborg' ORDER BY id"
			)),
		"Anna\nBo",
		'app reads');
	is_new(
		$primary,
		[ of('app', 'ribersborg', $one, 2, 0) ],
		'and that is logged');
	as_app($primary,
		in_tenant('ribersborg', 'SELECT count(*), min(id) FROM pupil'));
	is_new($primary, [], 'nothing is, where no value is used');
	as_app($primary, 'SELECT name FROM pupil');
	is_new($primary, [], 'and ciphertext is no use');
	as_app($primary, 'SELECT nomp_crypt.decrypt(name) FROM pupil');
	is_new(
		$primary,
		[
			of('app', 'ribersborg', $one, 2, 0),
			of('app', 'slottsstaden', $one, 1, 0)
		],
		'a line for each tenant');
	as_app($primary,
		"INSERT INTO pupil VALUES (10, 'ribersborg', nomp_crypt.encrypt('Dan', 'ribersborg'), nomp_crypt.encrypt('x', 'ribersborg'))"
	);
	is_new($primary, [ of('app', 'ribersborg', $one, 0, 2) ], 'writing');
	as_app(
		$primary,
		in_tenant(
			'ribersborg',
			"INSERT INTO pupil VALUES (11, 'ribersborg', 'Eva')"));
	is_new(
		$primary,
		[ of('app', 'ribersborg', $one, 0, 1) ],
		'writing plain text');
	# what keep_unchanged compares is read: who writes guesses leaves a line
	$primary->safe_psql('postgres',
		'CREATE TRIGGER keep BEFORE UPDATE ON pupil FOR EACH ROW EXECUTE FUNCTION nomp_crypt.keep_unchanged()'
	);
	for my $guess (qw(Eva Ewa))
	{
		as_app(
			$primary,
			in_tenant(
				'ribersborg',
				"UPDATE pupil SET name = '$guess' WHERE id = 11"));
		is_new(
			$primary,
			[ of('app', 'ribersborg', $one, 1, 1) ],
			"comparing with $guess is reading");
	}
	$primary->safe_psql('postgres', 'DROP TRIGGER keep ON pupil');
	is( as_app(
			$primary,
			'SELECT nomp_crypt.decrypt(name), 1 / (id - 2) FROM pupil WHERE id < 3 ORDER BY id'
		),
		'22012',
		'a statement fails');
	is_new(
		$primary,
		[ of('app', 'ribersborg', $one, 2, 0) ],
		'what it had read is logged');
	as_app($primary,
		'BEGIN; SAVEPOINT s; SELECT nomp_crypt.decrypt(name) FROM pupil WHERE id = 1; ROLLBACK TO s; COMMIT'
	);
	is_new(
		$primary,
		[ of('app', 'ribersborg', $one, 1, 0) ],
		'and what a savepoint took back');
	is( as_app(
			$primary,
			"BEGIN; SELECT nomp_crypt.decrypt(name) FROM pupil WHERE id = 1; PREPARE TRANSACTION 'p'"
		),
		'Anna',
		'a transaction is prepared');
	$primary->safe_psql('postgres', "ROLLBACK PREPARED 'p'");
	is_new(
		$primary,
		[ of('app', 'ribersborg', $one, 1, 0) ],
		'it is logged once, then');
	as_app($primary,
		'DO $$BEGIN PERFORM nomp_crypt.decrypt(name) FROM pupil WHERE id = 1; COMMIT; PERFORM nomp_crypt.decrypt(name) FROM pupil WHERE id = 3; END$$'
	);
	is_new(
		$primary,
		[
			of('app', 'ribersborg', $one, 1, 0),
			of('app', 'slottsstaden', $one, 1, 0)
		],
		'a procedure that commits has several transactions');
	as_app($primary, 'SELECT * FROM names()');
	is_new(
		$primary,
		[ of('owner_of_function', 'ribersborg', $one, 4, 0) ],
		"a definer function's use is its owner's");
	as_app(
		$primary,
		'SELECT nomp_crypt.decrypt(name) FROM pupil WHERE id = 3',
		'-c default_transaction_read_only=on');
	is_new(
		$primary,
		[ of('app', 'slottsstaden', $one, 1, 0) ],
		'a read-only transaction can be logged');
	is(as_app($primary, 'SET nomp_crypt.log_access = none'),
		'42501', 'app cannot switch it off');
}

# Searching.
{
	$primary->safe_psql('postgres',
		"SELECT nomp_crypt.grant_all_tenants('app', '{search}')");
	new_lines($primary);
	as_app($primary, "SELECT cardinality(nomp_crypt.search_values('Anna'))");
	my @lines = new_lines($primary);

	is( scalar(
			grep { /role "app".*: 0 read, 0 written, 1 searched$/ } @lines),
		3,
		'a search across schools is one in each');
	is(scalar(@lines), 3, 'and nothing else');
}

# Parallel workers.
{
	$primary->safe_psql('postgres', <<'SQL');
CREATE TABLE many AS SELECT nomp_crypt.encrypt('Elev', 'ribersborg')::encrypted(text) AS name FROM generate_series(1, 1000);
ALTER TABLE many SET (parallel_workers = 2);
GRANT SELECT ON many TO app;
SQL
	new_lines($primary);
	is( as_app(
			$primary,
			q(SELECT count(*) FROM many WHERE nomp_crypt.decrypt(name) = 'Elev'),
			join ' ',
			map { "-c $_" }
			  qw(parallel_setup_cost=0 parallel_tuple_cost=0 min_parallel_table_scan_size=0
			  parallel_leader_participation=off)),
		1000,
		'parallel workers read');
	my @lines = new_lines($primary);
	my $sum = 0;

	$sum += $_ for map { /: (\d+) read/ } @lines;
	is($sum, 1000, 'their lines add up to what was read');
	is( scalar(
			grep {
				/^access by role "app" .* to tenant "ribersborg", a transaction's parallel worker: /
			} @lines),
		scalar(@lines),
		'and say that they are workers');
}

# Each hour.
away_from_the_hour();
set_log_access($primary, 'hourly');
{
	my $hourly =
	  'SELECT role, tenant, sum(read), sum(written) FROM nomp_crypt.access GROUP BY 1, 2 ORDER BY 1, 2';

	as_app($primary, 'SELECT nomp_crypt.decrypt(name) FROM pupil') for 1 .. 3;
	as_app($primary,
		"SELECT nomp_crypt.encrypt('x', 'ribersborg'), 1 / 0 FROM pupil");
	as_app($primary,
		'SELECT 1 / (id - 2) FROM (SELECT id, nomp_crypt.decrypt(name) IS NULL AS n FROM pupil WHERE id < 3 ORDER BY id OFFSET 0) p WHERE NOT n'
	);
	is( $primary->safe_psql('postgres', $hourly),
		"app|ribersborg|14|0\napp|slottsstaden|3|0",
		'use adds up, failed transactions included');
	is_new($primary, [], 'it is not in the log while the hour lasts');
	is( $primary->safe_psql(
			'postgres',
			q(SELECT bool_and(hour IN (date_trunc('hour', now()), date_trunc('hour', now()) - interval '1 hour')) FROM nomp_crypt.access)
		),
		't',
		'the hour is this one');
	$primary->safe_psql('postgres', 'CREATE DATABASE another');
	$primary->safe_psql('another', 'CREATE EXTENSION nomp_crypt');
	is($primary->safe_psql('another', $hourly),
		'', "another database does not see this one's");

	$primary->stop;
	my @lines = new_lines($primary);
	my %sum;

	for my $line (@lines)
	{
		like(
			$line,
			qr/^access by role "app" in database "postgres" to tenant "\w+", hour from 20\d\d-\d\d-\d\d \d\d:00 UTC: \d+ read, \d+ written, 0 searched$/,
			'a line for an hour');
		$sum{$1} += $2 if $line =~ /to tenant "(\w+)".*: (\d+) read/;
	}
	is_deeply(
		\%sum,
		{ ribersborg => 14, slottsstaden => 3 },
		'the lines are written when the server stops');
	$primary->start;
	is($primary->safe_psql('postgres', $hourly), '', 'and once only');
}

# A session that ends after the broker has gone writes its own line.
{
	my $session = open_session($primary);

	$session->query_safe(
		'BEGIN; SELECT nomp_crypt.decrypt(name) FROM pupil WHERE id = 1');
	new_lines($primary);
	$primary->stop('fast');
	my @lines = new_lines($primary);

	is(scalar(@lines), 1, 'a session that the shutdown ends is logged');
	like(
		$lines[0],
		qr/to tenant "ribersborg", hour from .*: 1 read/,
		'with what it had read');
	$session->{run}->finish;
	$primary->start;
}

# An hour that is over is written, by the broker.
{
	my $shim = "$FindBin::RealBin/../test/clock_shim.so";
	my $view = 'SELECT role, tenant, read FROM nomp_crypt.access';

	die "$shim is not built: make test-programs" unless -e $shim;
	$primary->stop;
	{
		local $ENV{LD_PRELOAD} = $shim;
		local $ENV{NOMP_CLOCK_JUMP} = "$dir/clock.jump";
		$primary->start;
	}
	away_from_the_hour();
	as_app($primary,
		'SELECT nomp_crypt.decrypt(name) FROM pupil WHERE id = 3');
	new_lines($primary);
	is($primary->safe_psql('postgres', $view),
		'app|slottsstaden|1', 'a value is read in one hour');
	PostgreSQL::Test::Utils::append_to_file("$dir/clock.jump", '');
	as_app($primary,
		'SELECT nomp_crypt.decrypt(name) FROM pupil WHERE id = 1');
	my @lines;

	wait_until(sub { @lines = (@lines, new_lines($primary)) },
		'the hour to be written');
	is(scalar(@lines), 1, 'when the next begins, there is one line');
	like(
		$lines[0],
		qr/to tenant "slottsstaden", hour from .*: 1 read/,
		'for the hour that is over');
	is($primary->safe_psql('postgres', $view),
		'app|ribersborg|1', 'and the next is counted');
	$primary->stop;
	unlink "$dir/clock.jump";
	$primary->start;
	new_lines($primary);
}

# More roles and tenants than the table holds: nothing is lost.
{
	$primary->safe_psql('postgres', <<'SQL');
CREATE ROLE everybody;
GRANT SELECT ON pupil TO everybody;
SELECT nomp_crypt.grant_tenant('ribersborg', 'everybody', '{decrypt}');
DO $$BEGIN
	FOR i IN 1 .. 8300 LOOP
		EXECUTE format('CREATE ROLE r%s IN ROLE everybody', i);
	END LOOP;
END$$;
SQL
	new_lines($primary);
	away_from_the_hour();
	$primary->safe_psql('postgres', <<'SQL');
DO $$BEGIN
	FOR i IN 1 .. 8300 LOOP
		EXECUTE format('SET LOCAL ROLE r%s', i);
		PERFORM nomp_crypt.decrypt(name) FROM pupil WHERE id = 1;
	END LOOP;
END$$;
SQL
	my %roles;

	wait_until(
		sub {
			for my $line (new_lines($primary))
			{
				$roles{$1}++
				  if $line =~ /by role "(r\d+)" .*, hour from .*: 1 read/;
			}
			return keys %roles == 8300;
		},
		'all to be written');
	is(scalar(grep { $_ != 1 } values %roles),
		0, 'every role of a crowded hour is logged, once');
	is( $primary->safe_psql(
			'postgres', 'SELECT count(*) FROM nomp_crypt.access'),
		0,
		'without waiting for the end of the hour');
}

# A standby, which writes no table.
{
	my $standby = PostgreSQL::Test::Cluster->new('standby');

	$standby->init_from_backup($primary, 'base', has_streaming => 1);
	mkdir "$dir/register-standby", 0700;
	$standby->append_conf('postgresql.conf',
			"nomp_crypt.register_directory = '$dir/register-standby'\n"
		  . 'nomp_crypt.log_access = transaction');
	$standby->start;
	$primary->wait_for_catchup($standby);
	new_lines($standby);
	is( as_app(
			$standby,
			in_tenant('ribersborg', 'SELECT name FROM pupil WHERE id = 1')),
		'Anna',
		'the standby reads');
	is_new($standby, [ of('app', 'ribersborg', 'one transaction', 1, 0) ],
		'and logs it');
	is( $standby->safe_psql(
			'postgres', 'SELECT count(*) > 5 FROM nomp_crypt.audit'),
		't',
		"it has the primary's administrative acts");
	away_from_the_hour();
	set_log_access($standby, 'hourly');
	as_app($standby,
		'SELECT nomp_crypt.decrypt(name) FROM pupil WHERE id = 3');
	is( $standby->safe_psql(
			'postgres', 'SELECT role, tenant, read FROM nomp_crypt.access'),
		'app|slottsstaden|1',
		'and counts by the hour');
	$standby->stop;
	like(
		join("\n", new_lines($standby)),
		qr/^access by role "app" .* to tenant "slottsstaden", hour from .*: 1 read/m,
		'which it writes when it stops');
}

# The table of acts goes with a dump.
{
	my $acts =
	  'SELECT md5(string_agg(audit::text, chr(10) ORDER BY at, uuid)), count(*) FROM nomp_crypt.audit';
	my $before = $primary->safe_psql('postgres', $acts);
	my $dump = "$dir/audit.dump";

	$primary->command_ok([ 'pg_dump', '-Fc', '-f', $dump, 'postgres' ],
		'a dump');
	for my $jobs (1, 2)
	{
		$primary->safe_psql('postgres', "CREATE DATABASE restored_$jobs");
		$primary->command_ok(
			[ 'pg_restore', '-j', $jobs, '-d', "restored_$jobs", $dump ],
			"is restored with $jobs at a time");
		is($primary->safe_psql("restored_$jobs", $acts),
			$before, 'with every act');
		is( sqlstate(
				$primary,
				'DELETE FROM nomp_crypt.audit',
				dbname => "restored_$jobs"),
			'55000',
			'and append-only');
	}
	my ($sql) = run_command(
		[ 'pg_dump', '--inserts', '-d', $primary->connstr('postgres') ]);
	my $file = "$dir/audit.sql";

	PostgreSQL::Test::Utils::append_to_file($file, $sql);
	$primary->safe_psql('postgres', 'CREATE DATABASE restored_sql');
	$primary->command_ok(
		[
			'psql', '-qX', '-v', 'ON_ERROR_STOP=1',
			'-d', 'restored_sql', '-f', $file
		],
		'a plain dump with INSERTs is restored');
	is($primary->safe_psql('restored_sql', $acts), $before, 'with every act');
}

# Connections without encryption.
{
	my $pgdata = $primary->data_dir;

	PostgreSQL::Test::Utils::system_or_bail(
		'openssl', 'req', '-new', '-x509',
		'-days', '10', '-nodes', '-subj',
		'/CN=localhost', '-newkey', 'rsa:2048', '-keyout',
		"$pgdata/server.key", '-out', "$pgdata/server.crt");
	chmod 0600, "$pgdata/server.key";
	$primary->append_conf('pg_hba.conf', 'host all all 127.0.0.1/32 trust');
	$primary->append_conf('postgresql.conf', <<"CONF");
ssl = on
listen_addresses = '127.0.0.1'
port = $tcp_port
nomp_crypt.require_tls = on
nomp_crypt.log_access = none
CONF
	$primary->{_port} = $tcp_port;
	$primary->restart;

	my $sockets = $primary->host;
	my %to = (
		'TCP in the clear' =>
		  "host=127.0.0.1 sslmode=disable gssencmode=disable",
		'TCP with TLS' => "host=127.0.0.1 sslmode=require",
		'a unix socket' => "host=$sockets");
	my $set = "SET nomp_crypt.tenant = 'ribersborg'; ";
	my $parallel =
	  'SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0; SET parallel_leader_participation = off; ';
	my %uses = (
		reading => "${set}SELECT name FROM pupil WHERE id = 1",
		casting => 'SELECT name::text FROM pupil WHERE id = 1',
		decrypting =>
		  'SELECT nomp_crypt.decrypt(name) FROM pupil WHERE id = 1',
		'decrypting tolerantly' =>
		  'SELECT nomp_crypt.try_decrypt(name) FROM pupil WHERE id = 1',
		searching =>
		  "SELECT CASE WHEN cardinality(nomp_crypt.search_values('x')) > 0 THEN 'Anna' END",
		encrypting =>
		  "SELECT 'Anna' FROM (SELECT nomp_crypt.encrypt('x', 'ribersborg')) e",
		writing =>
		  "${set}BEGIN; INSERT INTO pupil VALUES (99, 'ribersborg', 'x'); ROLLBACK; SELECT 'Anna'",
		'reading in parallel workers' => $parallel
		  . "SELECT CASE count(*) WHEN 1000 THEN 'Anna' END FROM many WHERE nomp_crypt.decrypt(name) = 'Elev'"
	);

	my $asked = sub {
		my ($how, $sql) = @_;
		my ($out, $err) = ('', '');

		IPC::Run::run(
			[
				'psql', '-XAtq', '-v', 'VERBOSITY=verbose', '-d',
				"$to{$how} port=$tcp_port dbname=postgres user=app",
				'-f', '-'
			],
			'<',
			\$sql,
			'>',
			\$out,
			'2>',
			\$err);
		chomp $out;
		return $err =~ /ERROR:\s+(\w{5})/ ? $1 : $out;
	};

	is( $asked->(
			'TCP with TLS',
			'SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()'),
		't',
		'the one connection is encrypted');
	is( $asked->(
			'TCP in the clear',
			'SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()'),
		'f',
		'the other is not');
	for my $use (sort keys %uses)
	{
		is($asked->('TCP in the clear', $uses{$use}),
			'28000', "$use over TCP in the clear is refused");
		is($asked->($_, $uses{$use}), 'Anna', "$use over $_ works")
		  for 'TCP with TLS', 'a unix socket';
	}
	like($asked->('TCP in the clear', 'SELECT name FROM pupil WHERE id = 1'),
		qr/^nc1:/, 'ciphertext needs no key');
	is( $asked->(
			'TCP in the clear',
			'SELECT nomp_crypt.tenant_of(name) FROM pupil WHERE id = 1'),
		'ribersborg',
		'nor does whose it is');
	is($asked->('TCP in the clear', 'SET nomp_crypt.require_tls = off'),
		'42501', 'a session cannot switch it off');
	# switched on in the middle of a transaction, by a superuser
	is( $primary->safe_psql(
			'postgres',
			"SELECT nomp_crypt.decrypt(name) FROM pupil WHERE id = 1"),
		'Anna',
		'the superuser, by socket');
	my $superuser = $primary->safe_psql('postgres', 'SELECT current_user');
	my ($out, $err) = ('', '');
	my $sql =
	  "SET nomp_crypt.require_tls = off; BEGIN; SELECT nomp_crypt.decrypt(name) FROM pupil WHERE id = 1; "
	  . 'SET LOCAL nomp_crypt.require_tls = on; SELECT nomp_crypt.decrypt(name) FROM pupil WHERE id = 1';

	IPC::Run::run(
		[
			'psql',
			'-XAtq',
			'-v',
			'VERBOSITY=sqlstate',
			'-d',
			"$to{'TCP in the clear'} port=$tcp_port dbname=postgres user=$superuser",
			'-f',
			'-'
		],
		'<',
		\$sql,
		'>',
		\$out,
		'2>',
		\$err);
	is($out, "Anna\n", 'what is not required works in the clear');
	like($err, qr/ERROR:\s+28000/, 'until it is required');
}

$primary->stop;
done_testing();
