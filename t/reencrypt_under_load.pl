# Re-encrypting a table is for every day: others write meanwhile, hold rows, cut
# the power, and have standbys that are slow. No value is lost or changed, what
# was interrupted is done by the same call again, and nobody waits for it.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my @schools = qw(a b);
my $rows = 1500;    # of each school, at the start
my $node = nomp_node('primary', allows_streaming => 1);
my $dir = $node->{nomp_dir};
$node->start;
create_nomp($node, @schools);

sub one
{
	my ($sql) = @_;

	return $node->safe_psql('postgres', $sql);
}

# The truth is kept beside the table, written in the same transactions.
one(<<'SQL');
ALTER TABLE pupil ADD ssn encrypted(text, searchable) UNIQUE, ADD class int NOT NULL DEFAULT 0;
CREATE INDEX ON pupil (class);
CREATE TRIGGER tenant BEFORE INSERT OR UPDATE ON pupil
FOR EACH ROW EXECUTE FUNCTION nomp_crypt.enforce_tenant('school');
CREATE TRIGGER keep BEFORE UPDATE ON pupil
FOR EACH ROW EXECUTE FUNCTION nomp_crypt.keep_unchanged();
CREATE TABLE truth (id bigint PRIMARY KEY, school text, name text, ssn text, notes text);
CREATE TABLE stop (now boolean);
CREATE PROCEDURE fill(school text, first int, n int) LANGUAGE plpgsql AS $$
BEGIN
	PERFORM set_config('nomp_crypt.tenant', fill.school, true);
	INSERT INTO truth SELECT i, fill.school, 'Anna ' || i, 'S-' || i, CASE WHEN i % 50 = 0 THEN repeat('x', 5000) END
	FROM generate_series(first, first + n - 1) i;
	INSERT INTO pupil (id, school, name, ssn, notes)
	SELECT t.id, t.school, t.name, t.ssn, t.notes FROM truth t WHERE t.school = fill.school;
END
$$;
-- Writes until it is told to stop: names, plain columns (so that old values
-- move to other places), new rows; and deletes some.
CREATE PROCEDURE writer(school text, first int) LANGUAGE plpgsql AS $$
DECLARE
	n int := 0;
	target bigint;
BEGIN
	WHILE NOT EXISTS (SELECT FROM stop) LOOP
		PERFORM set_config('nomp_crypt.tenant', writer.school, true);
		n := n + 1;
		SELECT t.id INTO target FROM truth t WHERE t.school = writer.school
		OFFSET floor(random() * 1000) LIMIT 1;
		IF n % 4 = 0 THEN
			UPDATE pupil SET name = 'Bo ' || n WHERE id = target;
			UPDATE truth SET name = 'Bo ' || n WHERE id = target AND EXISTS (SELECT FROM pupil p WHERE p.id = target);
		ELSIF n % 4 = 1 THEN
			UPDATE pupil SET class = class + 1 WHERE id = target;
		ELSIF n % 4 = 2 THEN
			INSERT INTO pupil (id, school, name, ssn) VALUES (first + n, writer.school, 'Cia ' || n, 'N-' || first + n);
			INSERT INTO truth VALUES (first + n, writer.school, 'Cia ' || n, 'N-' || first + n);
		ELSE
			DELETE FROM pupil WHERE id = target;
			DELETE FROM truth WHERE id = target;
		END IF;
		COMMIT;
	END LOOP;
END
$$;
CALL fill('a', 1, 1500);
CALL fill('b', 100001, 1500);
SQL

# How many rows are not what the truth says.
sub wrong
{
	my ($where) = @_;

	return ($where // $node)->safe_psql('postgres', <<'SQL');
SELECT count(*) FROM pupil p FULL JOIN truth t USING (id)
WHERE (nomp_crypt.decrypt(p.name), nomp_crypt.decrypt(p.ssn), nomp_crypt.decrypt(p.notes))
	IS DISTINCT FROM (t.name, t.ssn, t.notes)
SQL
}

# How many values are not of that version.
sub not_of
{
	my ($version) = @_;

	return one(<<"SQL");
SELECT count(*) FROM pupil p, unnest(ARRAY[p.name, p.ssn, p.notes]) v
WHERE (nomp_crypt.key_info(v)).version <> $version
SQL
}

my $writers = 0;

sub start_writers
{
	one('TRUNCATE stop');
	return map {
		start_query($node,
			"CALL writer('$_', " . 1_000_000 * ++$writers . ')')
	} (@schools, @schools);
}

sub stop_writers
{
	my (@queries) = @_;

	one('INSERT INTO stop VALUES (true)');
	is(join(' ', grep { $_ ne '' } map { (end_query($_))[0] } @queries),
		'', 'no writer met an error');
	return;
}

sub phase
{
	return one(
		"SELECT phase FROM nomp_crypt.progress WHERE command = 'reencrypt'");
}

# With the power cut in the middle.
{
	my @running = start_writers();

	one("SELECT nomp_crypt.rotate_tenant('$_')") for @schools;
	my $call = start_query($node,
		"CALL nomp_crypt.reencrypt('pupil', batch_size => 20, delay => '1 second')"
	);
	wait_until(
		sub {
			one('SELECT count(*) FROM nomp_crypt.progress WHERE done > 3') >
			  0;
		},
		'some blocks to be done');
	is( one("SELECT command, object, phase, unit, done < total, rate > 0, time_left > '0' FROM nomp_crypt.progress"
		),
		'reencrypt|public.pupil|re-encrypting|blocks|t|t|t',
		'progress shows how far it is');
	crash($node);
	end_query($_) for $call, @running;
	$node->start;
	is(wrong(), 0, 'after a power cut no value is lost or changed');
	cmp_ok(not_of(2), '>', 0, 'not all values are of the new version yet');
	cmp_ok(not_of(1), '>', 0, 'but some are');
	is(one('SELECT count(*) FROM nomp_crypt.progress'),
		0, 'nothing is under way any more');

	@running = start_writers();
	my ($state, $remaining) = end_query(
		start_query(
			$node, "CALL nomp_crypt.reencrypt('pupil', batch_size => 50)"));
	is("$state $remaining", ' 0', 'the same call, beside writers, ends');
	is(not_of(2), 0, 'and then all values are of the new version');
	stop_writers(@running);
	is(not_of(2), 0, 'and stay so, whatever is written');
	is(wrong(), 0, 'no value is lost or changed');
	is( one(in_tenant(
				'a',
				"SELECT count(*) FROM truth t JOIN pupil p ON p.ssn = t.ssn AND p.id = t.id WHERE t.school = 'a'"
			)),
		one("SELECT count(*) FROM truth WHERE school = 'a'"),
		'and all are found by their fingerprints');
}

# Rows that others hold.
{
	my $holder = open_session($node);

	one("SELECT nomp_crypt.rotate_tenant('a')");
	my $id = one("SELECT min(id) FROM pupil WHERE school = 'a'");
	$holder->query_safe("BEGIN; SELECT FROM pupil WHERE id = $id FOR UPDATE");
	my (undef, $remaining) = end_query(
		start_query(
			$node, "CALL nomp_crypt.reencrypt('pupil', patience => '0')"));
	is($remaining, 1, 'a row that is locked is left, without waiting for it');
	is( one("SELECT (nomp_crypt.key_info(name)).version FROM pupil WHERE id = $id"
		),
		2,
		'as it was');
	my $call = start_query($node,
		"CALL nomp_crypt.reencrypt('pupil', patience => '1 day')");
	wait_until(sub { phase() eq 'waiting for rows that others hold' },
		'the call to wait');
	$holder->query_safe(
		"UPDATE pupil SET class = class + 1 WHERE id = $id; COMMIT");
	is((end_query($call))[1], 0, 'it comes back to it when it is free');
	is( one("SELECT (nomp_crypt.key_info(name)).version FROM pupil WHERE id = $id"
		),
		3,
		'and then it is new');
	is(wrong(), 0, 'no value is lost or changed');
	$holder->quit;
}

# A call that is cancelled.
{
	one("SELECT nomp_crypt.rotate_tenant('b')");
	my $call = start_query($node,
		"CALL nomp_crypt.reencrypt('pupil', batch_size => 1, delay => '1 hour')"
	);
	wait_until(sub { one('SELECT count(*) FROM nomp_crypt.progress') > 0 },
		'the call to start');
	one('SELECT pg_cancel_backend(pid) FROM nomp_crypt.progress');
	is((end_query($call))[0], '57014', 'a call can be cancelled');
	is(one('SELECT count(*) FROM nomp_crypt.progress'),
		0, 'and is not under way any more');
	is(wrong(), 0, 'no value is lost or changed');
}

# A standby that is behind.
{
	$node->backup('base');
	my $standby = PostgreSQL::Test::Cluster->new('standby');
	$standby->init_from_backup($node, 'base', has_streaming => 1);
	mkdir "$dir/register-standby", 0700;
	$standby->append_conf('postgresql.conf',
		"nomp_crypt.register_directory = '$dir/register-standby'");
	$standby->start;
	$node->wait_for_catchup($standby);
	$standby->safe_psql('postgres', 'SELECT pg_wal_replay_pause()');

	my $call = start_query($node,
		"CALL nomp_crypt.reencrypt('pupil', batch_size => 20, max_lag => '16kB')"
	);
	wait_until(
		sub { phase() eq 'waiting for standbys' },
		'the call to wait for the standby');
	my $left = one(
		'SELECT count(*) FROM pupil p, unnest(ARRAY[p.name, p.ssn, p.notes]) v'
		  . " WHERE (nomp_crypt.key_info(v)).version < 3");
	cmp_ok($left, '>', 0, 'it waits for a standby that does not replay');
	one('SELECT pg_sleep(1)');
	is( one('SELECT count(*) FROM pupil p, unnest(ARRAY[p.name, p.ssn, p.notes]) v'
			  . " WHERE (nomp_crypt.key_info(v)).version < 3"),
		$left,
		'and writes nothing meanwhile');
	is(phase(), 'waiting for standbys', 'it is waiting still');
	$standby->safe_psql('postgres', 'SELECT pg_wal_replay_resume()');
	is((end_query($call))[1], 0, 'it goes on when the standby has followed');
	is(sqlstate($standby, "CALL nomp_crypt.reencrypt('pupil')"),
		'25006', 'on a standby it is refused');
	$node->wait_for_catchup($standby);
	is(wrong($standby), 0, 'the standby has every value');
	is($standby->safe_psql('postgres', "CALL nomp_crypt.verify('pupil')"),
		0, 'and verifies them');
	$standby->stop;
}

$node->stop;
done_testing();
