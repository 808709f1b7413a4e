# Whatever two sessions do with one school's keys at the same time - read,
# write, rotate, rewrap, suspend, erase - the second goes on, or waits for the
# first and then does or says what is right; no value is lost, none wrong, and
# who was first never sees more than the second left.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my @acts = qw(read write rotate rewrap suspend erase);
my $node = nomp_node('main');
$node->append_conf('postgresql.conf', 'nomp_crypt.keystore_timeout = 2min');
$node->start;
create_nomp(
	$node,
	map {
		my $a = $_;
		map { "$a-$_" } @acts
	} @acts);

my %sql = (
	read =>
	  in_tenant('SCHOOL', "SELECT name FROM pupil WHERE school = 'SCHOOL'"),
	write => in_tenant(
		'SCHOOL',
		"INSERT INTO pupil SELECT 1000 + max(id), 'SCHOOL', 'Berit', '' FROM pupil"
	),
	rotate => "SELECT nomp_crypt.rotate_tenant('SCHOOL')",
	rewrap => "SELECT nomp_crypt.rewrap_tenant('SCHOOL')",
	suspend => "CALL nomp_crypt.suspend_tenant('SCHOOL')",
	erase => "CALL nomp_crypt.erase_tenant('SCHOOL', 'test')");

sub for_school
{
	my ($sql, $school) = @_;

	return $sql =~ s/SCHOOL/$school/gr;
}

sub one
{
	my ($sql) = @_;

	return $node->safe_psql('postgres', $sql);
}

# Does a session that works for that school wait for another's lock?
sub waits
{
	my ($school) = @_;

	return $node->poll_query_until('postgres',
			"SELECT count(*) = 1 FROM pg_stat_activity"
		  . " WHERE query ~ '$school' AND wait_event_type = 'Lock'");
}

# What the school is in the end: its names, or why they cannot be read.
sub names_of
{
	my ($school) = @_;

	return outcome(
		$node,
		in_tenant(
			$school,
			"SELECT string_agg(name::text, ' ' ORDER BY id) FROM pupil WHERE school = '$school'"
		));
}

# The first is a transaction, REPEATABLE READ, that has done it and is open.
# The second, whether it waits; how the first goes on, and what can be read in
# the end.
my @open = (
	[ 'read', 'read', 0, 'Anna', 'Anna', 'Anna' ],
	[ 'read', 'write', 0, '', 'Anna', 'Anna Berit' ],
	[ 'read', 'rotate', 0, '2', 'Anna', 'Anna' ],
	[ 'read', 'rewrap', 0, '2', 'Anna', 'Anna' ],
	[ 'read', 'suspend', 0, '', 'NC002', 'NC002' ],
	[ 'read', 'erase', 0, '', 'NC001', 'NC001' ],
	[ 'write', 'read', 0, 'Anna', 'Anna Berit', 'Anna Berit' ],
	[ 'write', 'write', 0, '', 'Anna Berit', 'Anna Berit Berit' ],
	[ 'write', 'rotate', 0, '2', 'Anna Berit', 'Anna Berit' ],
	[ 'write', 'rewrap', 0, '2', 'Anna Berit', 'Anna Berit' ],
	[ 'write', 'suspend', 0, '', 'NC002', 'NC002' ],
	[ 'write', 'erase', 0, '', 'NC001', 'NC001' ],
	[ 'rotate', 'read', 0, 'Anna', 'Anna', 'Anna' ],
	[ 'rotate', 'write', 0, '', 'Anna', 'Anna Berit' ],
	[ 'rotate', 'rotate', 1, '3', 'Anna', 'Anna' ],
	[ 'rotate', 'rewrap', 1, '2', 'Anna', 'Anna' ],
	[ 'rotate', 'suspend', 1, '', 'Anna', 'NC002' ],
	[ 'rotate', 'erase', 1, '', 'Anna', 'NC001' ],
	[ 'rewrap', 'read', 0, 'Anna', 'Anna', 'Anna' ],
	[ 'rewrap', 'write', 0, '', 'Anna', 'Anna Berit' ],
	[ 'rewrap', 'rotate', 1, '2', 'Anna', 'Anna' ],
	[ 'rewrap', 'rewrap', 1, '3', 'Anna', 'Anna' ],
	[ 'rewrap', 'suspend', 1, '', 'Anna', 'NC002' ],
	[ 'rewrap', 'erase', 1, '', 'Anna', 'NC001' ]);

# The first is a call that has committed its first step and waits for the
# keystore. The second, what it says (at once, or when the first is done) and
# what can be read in the end.
my @under_way = (
	[ 'suspend', 'read', 'NC002', 'NC002' ],
	[ 'suspend', 'write', 'NC002', 'NC002' ],
	[ 'suspend', 'rotate', 'NC002', 'NC002' ],
	[ 'suspend', 'rewrap', 'NC002', 'NC002' ],
	[ 'suspend', 'suspend', '', 'NC002' ],
	[ 'suspend', 'erase', '', 'NC001' ],
	[ 'erase', 'read', 'NC002', 'NC001' ],
	[ 'erase', 'write', 'NC002', 'NC001' ],
	[ 'erase', 'rotate', 'NC002 or NC001', 'NC001' ],
	[ 'erase', 'rewrap', 'NC002 or NC001', 'NC001' ],
	[ 'erase', 'suspend', '55000 or NC001', 'NC001' ],
	[ 'erase', 'erase', '', 'NC001' ]);

is(@open + @under_way, @acts * @acts, 'every pair is there');
my $number = 0;
for my $pair (@open, @under_way)
{
	my $school = "$pair->[0]-$pair->[1]";

	$number++;
	one(in_tenant(
			$school,
			"INSERT INTO pupil VALUES ($number, '$school', 'Anna', '')"));
}

for my $pair (@open)
{
	my ($first, $second, $wait, $says, $goes_on, $end) = @$pair;
	my $school = "$first-$second";
	my $session = open_session($node);
	my $read = "SELECT string_agg(name::text, ' ' ORDER BY id)"
	  . " FROM pupil WHERE school = '$school'";
	my %does = (
		%sql,
		read => $read,
		write =>
		  "INSERT INTO pupil SELECT 2000 + max(id), '$school', 'Berit', '' FROM pupil"
	);

	$session->query_safe("BEGIN ISOLATION LEVEL REPEATABLE READ;"
		  . " SET LOCAL nomp_crypt.tenant = '$school'");
	$session->query_safe(for_school($does{$first}, $school));
	my $query = start_query($node, for_school($sql{$second}, $school));
	if ($wait)
	{
		ok(waits($school), "$second waits for an open $first");
		is(says($session, $read), $goes_on, "which goes on: $goes_on");
		$session->query_safe('COMMIT');
		is(join('', end_query($query)), $says, "then it is done: '$says'");
	}
	else
	{
		is(join('', end_query($query)),
			$says, "$second beside an open $first: '$says'");
		is(says($session, $read), $goes_on, "which goes on: $goes_on");
		says($session, 'COMMIT');
	}
	$session->quit;
	is(names_of($school), $end, "$school: in the end $end");
}

for my $pair (@under_way)
{
	my ($first, $second, $says, $end) = @$pair;
	my $school = "$first-$second";
	my $at_once = $second eq 'read' || $second eq 'write';
	my $got;

	is(keystore_state($node), 'ok', 'the keystore is there');
	my $helper = helper_pid($node);
	kill 'STOP', $helper;
	my $one = start_query($node, for_school($sql{$first}, $school));
	$node->poll_query_until('postgres',
		"SELECT state = 'suspended' FROM nomp_crypt.tenants WHERE id = '$school'"
	) or die 'the first does not begin';
	my $two = start_query($node, for_school($sql{$second}, $school));
	$got = join '', end_query($two) if $at_once;
	kill 'CONT', $helper;
	is(join('', end_query($one)), '', "$first goes on to its end");
	$got = join '', end_query($two) unless $at_once;
	ok(($got eq $says or scalar grep { $got eq $_ } split / or /, $says),
		"$second while $first is under way: '$got'");
	is(names_of($school), $end, "$school: in the end $end");
}

# Nothing is half done.
is( one("SELECT count(*) FROM nomp_crypt.tenant t WHERE t.state = 'active' AND NOT ("
		  . "(SELECT count(*) FROM nomp_crypt.kek k WHERE k.tenant = t.uuid AND k.state = 'active') = 1"
		  . " AND (SELECT count(*) FROM nomp_crypt.tenant_key k WHERE k.tenant = t.uuid AND k.state = 'active') = 2"
		  . " AND NOT EXISTS (SELECT FROM nomp_crypt.tenant_key k JOIN nomp_crypt.kek e ON e.uuid = k.kek"
		  . " WHERE k.tenant = t.uuid AND e.state <> 'active'))"),
	0,
	'every active school has one KEK, which wraps all its keys, and two keys to write with'
);
$node->stop;
done_testing();
