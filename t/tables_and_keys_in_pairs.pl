# Whatever happens to a school's keys or rows at the same time - read, write,
# rotate, rewrap, suspend, erase, re-encrypt, move - re-encrypting a table and
# moving rows go on, or wait, and no value is lost or wrong in the end.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = nomp_node('main');
$node->start;
create_nomp($node, 'target');

# Two pupils; what each act does, in a table of its own for each pair.
my %sql = (
	read => in_tenant('SCHOOL', 'NAMES'),
	write => in_tenant(
		'SCHOOL',
		"UPDATE SCHOOL SET name = 'Berit' WHERE id = 1 AND school = 'SCHOOL'"
	),
	rotate => "SELECT nomp_crypt.rotate_tenant('SCHOOL')",
	rewrap => "SELECT nomp_crypt.rewrap_tenant('SCHOOL')",
	suspend => "CALL nomp_crypt.suspend_tenant('SCHOOL')",
	erase => "CALL nomp_crypt.erase_tenant('SCHOOL', 'test')",
	reencrypt => "CALL nomp_crypt.reencrypt('SCHOOL', patience => '0')",
	move => "CALL nomp_crypt.move_rows('SCHOOL', 'id = 1', 'target')");

sub for_school
{
	my ($sql, $school) = @_;

	$sql =~
	  s/NAMES/SELECT string_agg(name::text, ' ' ORDER BY id) FROM SCHOOL WHERE school = nomp_crypt.current_tenant()/g;
	return $sql =~ s/SCHOOL/$school/gr;
}

sub one
{
	my ($sql) = @_;

	return $node->safe_psql('postgres', $sql);
}

sub new_school
{
	my ($school) = @_;

	one(<<"SQL");
SELECT nomp_crypt.create_tenant('$school');
CREATE TABLE $school (id int PRIMARY KEY, school text, name encrypted(text), ssn encrypted(text, searchable) UNIQUE);
CREATE TRIGGER tenant BEFORE INSERT OR UPDATE ON $school FOR EACH ROW EXECUTE FUNCTION nomp_crypt.enforce_tenant('school');
SQL
	one(in_tenant(
			$school,
			"INSERT INTO $school VALUES (1, '$school', 'Anna', '1'), (2, '$school', 'Bo', '2')"
		));
	one("SELECT nomp_crypt.rotate_tenant('$school')");
	return;
}

# The names in a school, or why they cannot be read.
sub names_in
{
	my ($school, $tenant) = @_;

	return outcome($node, in_tenant($tenant, for_school('NAMES', $school)));
}

# The versions of the school's values, by id.
sub versions
{
	my ($school) = @_;

	return one(
		"SELECT string_agg((nomp_crypt.key_info(name)).version::text, ' ' ORDER BY id) FROM $school WHERE school = '$school'"
	);
}

sub check_end
{
	my ($school, $what, $names, $moved, $versions) = @_;

	is(names_in($school, $school),
		$names, "$what: in the end the school's are right");
	is(names_in($school, 'target'), $moved, "$what: and the other's");
	is(versions($school), $versions, "$what: and their keys")
	  if defined $versions;
	return;
}

# The first is a transaction that has done it and is open. The second, whether
# it waits for the first, and what it says; then the names in the school, in the
# other one, and the versions of the school's values.
my @open = (
	[ 'read', 'reencrypt', 0, 0, 'Anna Bo', '', '2 2' ],
	[ 'write', 'reencrypt', 0, 1, 'Berit Bo', '', '2 2' ],
	[ 'rotate', 'reencrypt', 0, 0, 'Anna Bo', '', '2 2' ],
	[ 'rewrap', 'reencrypt', 0, 0, 'Anna Bo', '', '2 2' ],
	[ 'move', 'reencrypt', 0, 1, 'Bo', 'Anna', '2' ],
	[ 'read', 'move', 0, 1, 'Bo', 'Anna', '1' ],
	[ 'write', 'move', 1, 1, 'Bo', 'Berit', '1' ],
	[ 'rotate', 'move', 0, 1, 'Bo', 'Anna', '1' ],
	[ 'rewrap', 'move', 0, 1, 'Bo', 'Anna', '1' ],
	[ 'move', 'move', 1, 0, 'Bo', 'Anna', '1' ],
	[ 'move', 'read', 0, 'Anna Bo', 'Bo', 'Anna', '1' ],
	[ 'move', 'write', 1, '', 'Bo', 'Anna', '1' ],
	[ 'move', 'rotate', 0, 3, 'Bo', 'Anna', '1' ],
	[ 'move', 'rewrap', 0, 2, 'Bo', 'Anna', '1' ],
	[ 'move', 'suspend', 0, '', 'NC002', 'Anna', '1' ],
	[ 'move', 'erase', 0, '', 'NC001', 'Anna', '1' ]);

for my $pair (@open)
{
	my ($first, $second, $wait, $says, @end) = @$pair;
	my $school = "${first}_$second";
	my $session = open_session($node);

	new_school($school);
	my $sql = for_school($sql{$first}, $school);
	$sql =~ s/ COMMIT;$// or $sql = "BEGIN; $sql";
	$session->query_safe($sql);
	my $query = start_query($node, for_school($sql{$second}, $school));
	$node->poll_query_until('postgres',
		"SELECT count(*) = 1 FROM pg_stat_activity WHERE query ~ '$school' AND wait_event_type = 'Lock'"
	  )
	  or die "$second does not wait"
	  if $wait;
	my $answer = $wait ? undef : join '', end_query($query);
	is(says($session, 'COMMIT'), '', "$school: the first commits");
	$answer //= join '', end_query($query);
	is($answer, $says, "$school: the second does what it should");
	check_end($school, $school, @end);
	$session->quit;
}

# The first is a call that re-encrypts and waits for a row that another session
# holds. What the second says at once; what the first returns when the row is
# free; and the end.
my @under_way = (
	[ 'read', 'Anna Bo', 0, 'Anna Bo', '', '2 2' ],
	[ 'write', '', 0, 'Berit Bo', '', '2 2' ],
	[ 'rotate', 3, 0, 'Anna Bo', '', '3 3' ],
	[ 'rewrap', 2, 0, 'Anna Bo', '', '2 2' ],
	[ 'reencrypt', 1, 0, 'Anna Bo', '', '2 2' ],
	[ 'move', 1, 0, 'Bo', 'Anna', '2' ],
	[ 'suspend', '', 0, 'NC002', '', '2 1' ],
	[ 'erase', '', 0, 'NC001', '', '2 1' ]);

for my $pair (@under_way)
{
	my ($second, $says, $remaining, @end) = @$pair;
	my $school = "under_way_$second";
	my $holder = open_session($node);

	new_school($school);
	$holder->query_safe("BEGIN; SELECT FROM $school WHERE id = 2 FOR UPDATE");
	my $call = start_query($node,
		"CALL nomp_crypt.reencrypt('$school', patience => '1 day')");
	$node->poll_query_until('postgres',
		"SELECT count(*) = 1 FROM nomp_crypt.progress WHERE phase = 'waiting for rows that others hold'"
	) or die 'the call does not wait';
	is(versions($school), '2 1', "$school: the first is under way");
	is( join('',
			end_query(start_query($node, for_school($sql{$second}, $school)))
		),
		$says,
		"$school: the second does what it should");
	$holder->query_safe('COMMIT');
	is(join('', end_query($call)), $remaining, "$school: the first ends");
	check_end($school, $school, @end);
	$holder->quit;
}

is( $node->safe_psql(
		'postgres',
		'SELECT count(*) FROM nomp_crypt.verify_values() WHERE status IN ($$damaged$$, $$unknown$$, $$foreign$$, $$misfit$$, $$fingerprint$$)'
	),
	0,
	'nothing is wrong anywhere');
$node->stop;
done_testing();
