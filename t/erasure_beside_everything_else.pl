# A school is erased while it is being used: read, written, rotated, dumped,
# with cursors and transactions that are open or prepared.  Each of these ends
# before the fence or fails with the error that says why, and never with
# another school's data or none; nothing holds the erasure up for ever, and
# what does for a while is named.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IPC::Run;
use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my @schools = qw(cursor writer prepared locked held dump busy other);
my $node = nomp_node('main');
$node->start;
create_nomp($node, @schools);
$node->safe_psql('postgres', 'CREATE TABLE plain (id int)');
my $n = 0;
for my $school (@schools)
{
	my $from = 10000 * $n++;
	$node->safe_psql(
		'postgres',
		in_tenant(
			$school,
			"INSERT INTO pupil SELECT $from + i, '$school', 'Anna i $school', 'x' FROM generate_series(1, 2000) i"
		));
}

sub erase
{
	my ($school) = @_;

	return sqlstate($node, "CALL nomp_crypt.erase_tenant('$school', 'test')");
}

sub state_of
{
	my ($school) = @_;

	return $node->safe_psql('postgres',
		"SELECT state FROM nomp_crypt.tenants WHERE id = '$school'");
}

# What a session that was open answers now: a value of an erased school, or the
# end of the session, which could not be made to forget its keys.
my $gone = qr/^(?:NC001|NC002|57P01|)$/;

# A cursor that has fetched a part, in a snapshot of its own.
my $cursor = open_session($node);
says($cursor,
	"BEGIN ISOLATION LEVEL REPEATABLE READ; SET LOCAL nomp_crypt.tenant = 'cursor';"
	  . " DECLARE c CURSOR FOR SELECT name FROM pupil WHERE school = 'cursor'"
);
is(says($cursor, 'FETCH 1 FROM c'), 'Anna i cursor', 'a cursor reads');
my $held = open_session($node);
says($held,
	"BEGIN; SET LOCAL nomp_crypt.tenant = 'cursor'; DECLARE h CURSOR WITH HOLD FOR SELECT id FROM pupil WHERE school = 'cursor' ORDER BY id; COMMIT"
);
is(erase('cursor'), '', 'its school is erased');
like(says($cursor, 'FETCH 1 FROM c'),
	$gone, 'it reads no more, its snapshot notwithstanding');
is(says($held, 'FETCH 1 FROM h'), '1',
	'a held cursor without values goes on');
$_->quit for $held;

# A transaction that has written and is open.
my $writer = open_session($node);
says($writer,
	"BEGIN; SET LOCAL nomp_crypt.tenant = 'writer'; INSERT INTO pupil VALUES (90001, 'writer', 'Sent', NULL)"
);
is(erase('writer'), '', 'a school is erased beside its writer');
my $again =
  says($writer, "INSERT INTO pupil VALUES (90002, 'writer', 'Senare', NULL)");
like($again, $gone, 'who writes no more');
# it may have been ended
eval { says($writer, 'COMMIT') };
is( $node->safe_psql(
		'postgres', 'SELECT count(*) FROM pupil WHERE id = 90002'),
	'0',
	'nothing was written after the erasure');

# A prepared transaction with its values.
$node->safe_psql('postgres', <<'SQL');
BEGIN;
SET LOCAL nomp_crypt.tenant = 'prepared';
INSERT INTO pupil VALUES (90003, 'prepared', 'Anna', NULL);
PREPARE TRANSACTION 'with values';
SQL
is(erase('prepared'), '',
	'a prepared transaction with values does not hold it up');
$node->safe_psql('postgres', "COMMIT PREPARED 'with values'");
is( outcome(
		$node,
		in_tenant('prepared', 'SELECT name FROM pupil WHERE id = 90003')),
	'NC001',
	'and its values are as erased as the others');

# A prepared transaction that has the school's own row: a rotation.
$node->safe_psql('postgres',
	"BEGIN; SELECT nomp_crypt.rotate_tenant('held'); PREPARE TRANSACTION 'a rotation'"
);
my $said = failure($node, "CALL nomp_crypt.erase_tenant('held', 'test')");
like(
	$said,
	qr/^55P03: the tenant's row has been held by another transaction for 30 seconds/,
	'one that has changed its keys does, for a while');
like($said, qr/prepared transaction "a rotation" of \w+/, 'and is named');
is(state_of('held'), 'active', 'nothing has happened');
is(sqlstate($node, "CALL nomp_crypt.erase_tenant('locked', 'test')"),
	'', 'other schools are erased meanwhile');
$node->safe_psql('postgres', "COMMIT PREPARED 'a rotation'");
is(erase('held'), '', 'when it has ended, the erasure goes on');
is( $node->safe_psql(
		'postgres',
		"SELECT count(*) FROM nomp_crypt.tenant_key k JOIN nomp_crypt.tenant t ON t.uuid = k.tenant WHERE t.id = 'held' AND k.state <> 'erased'"
	),
	'0',
	'with the key that it made');

# A dump that has begun, and tables that are locked.
my $dump = open_session($node);
says($dump, 'BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY');
my $snapshot = says($dump, 'SELECT pg_export_snapshot()');
my $locker = open_session($node);
says($locker, 'BEGIN; LOCK TABLE plain');
is(erase('dump'), '', 'a school is erased beside a dump');
my $file = PostgreSQL::Test::Utils::tempdir() . '/dump';
$locker->quit;
$node->command_ok(
	[
		'pg_dump', '--snapshot', $snapshot, '-Fc', '-f', $file,
		$node->connstr('postgres')
	],
	'the dump of before ends');
$dump->quit;
$node->safe_psql('postgres', 'CREATE DATABASE copy');
$node->command_ok(
	[ 'pg_restore', '--no-owner', '-d', $node->connstr('copy'), $file ],
	'and is restored');
is( outcome(
		$node,
		in_tenant(
			'dump', "SELECT name FROM pupil WHERE school = 'dump' LIMIT 1"),
		dbname => 'copy'),
	'NC003',
	'it has the wrapped key, and no key opens it');
is( outcome(
		$node,
		in_tenant(
			'other', "SELECT name FROM pupil WHERE school = 'other' LIMIT 1"),
		dbname => 'copy'),
	'Anna i other',
	'others are read there');

# Everything at once: readers, writers, a rotation and a re-encryption in loops.
my $dir = PostgreSQL::Test::Utils::tempdir();
my %script = (
	read =>
	  "SET nomp_crypt.tenant = 'busy'; SELECT count(*) FROM (SELECT name::text FROM pupil WHERE school = 'busy') t WHERE name <> 'Anna i busy';\n",
	write =>
	  "SET nomp_crypt.tenant = 'busy'; UPDATE pupil SET notes = 'y' WHERE id = 60001;\n",
	rotate => "SELECT nomp_crypt.rotate_tenant('busy');\n",
	other =>
	  "SET nomp_crypt.tenant = 'other'; UPDATE pupil SET notes = 'z' WHERE id = 70001; SELECT 1 / (CASE name::text WHEN 'Anna i other' THEN 1 ELSE 0 END) FROM pupil WHERE id = 70001;\n"
);
my @loops;
for my $name (sort keys %script)
{
	my $loop = { name => $name, out => '', err => '' };
	PostgreSQL::Test::Utils::append_to_file("$dir/$name",
		$script{$name} x ($name eq 'other' ? 400 : 2000));
	$loop->{run} = IPC::Run::start(
		[
			'psql', '-XAtq',
			'-v', 'VERBOSITY=sqlstate',
			'-d', $node->connstr('postgres'),
			'-f', "$dir/$name"
		],
		'>',
		\$loop->{out},
		'2>',
		\$loop->{err},
		IPC::Run::timeout(600));
	push @loops, $loop;
}
$node->poll_query_until('postgres',
	"SELECT count(*) >= 3 FROM nomp_crypt.tenant_key k JOIN nomp_crypt.tenant t ON t.uuid = k.tenant WHERE t.id = 'busy'"
) or die 'nothing rotates';
my $reencrypt =
  start_query($node, "CALL nomp_crypt.reencrypt('pupil', batch_size => 10)");
is(erase('busy'), '', 'a busy school is erased');
is(state_of('busy'), 'erased', 'to the end');
for my $loop (@loops)
{
	$loop->{run}->finish;
	my %states =
	  map { $_ => 1 } $loop->{err} =~ /(?:ERROR|FATAL):\s+(\w{5})/g;
	my @wrong = grep { !/^(?:NC001|NC002|57P01)$/ } sort keys %states;

	is(join(' ', @wrong), '', "$loop->{name}: no other error than it should");
	isnt(join(' ', sort keys %states), '', "$loop->{name}: and such an error")
	  unless $loop->{name} eq 'other';
	is(join(' ', sort keys %states), '', 'another school notices nothing')
	  if $loop->{name} eq 'other';
	unlike($loop->{out}, qr/^[1-9]\d*$/m, 'no reader has seen a wrong value')
	  if $loop->{name} eq 'read';
}
is((end_query($reencrypt))[0],
	'', 're-encrypting goes on with the other schools');
is( outcome(
		$node,
		"SELECT count(nomp_crypt.try_decrypt(name)) FROM pupil WHERE school = 'busy'"
	),
	'0',
	'nothing of it can be read');
is( outcome(
		$node,
		in_tenant(
			'other',
			"SELECT count(*) FROM pupil WHERE school = 'other' AND name = 'Anna i other'"
		)),
	'2000',
	'everything of the other can');

$node->stop;
done_testing();
