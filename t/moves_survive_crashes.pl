# Moving many rows to another school: a power cut in the middle leaves each row
# in one school or the other, with all its values, and the same call does the
# rest. Collisions that come up meanwhile stop a batch, and nothing of it is done.

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
create_nomp($node, 'old', 'new');

sub one
{
	my ($sql) = @_;

	return $node->safe_psql('postgres', $sql);
}

# Each update takes a while, so that there is a middle.
one(<<'SQL');
ALTER TABLE pupil ADD ssn encrypted(text, searchable), ADD UNIQUE (school, ssn);
CREATE TRIGGER tenant BEFORE INSERT OR UPDATE ON pupil
FOR EACH ROW EXECUTE FUNCTION nomp_crypt.enforce_tenant('school');
CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.2); RETURN NEW; END';
CREATE TRIGGER slowly BEFORE UPDATE ON pupil FOR EACH ROW EXECUTE FUNCTION slowly();
SQL
one(in_tenant(
		'old',
		"INSERT INTO pupil SELECT i, 'old', 'Anna ' || i, 'note', 'S-' || i FROM generate_series(1, 100) i"
	));

# Rows that are not wholly in one school, or not as they were.
sub wrong
{
	return one(<<'SQL');
SELECT count(*) FROM pupil p
WHERE school <> ALL (ARRAY[nomp_crypt.tenant_of(name), nomp_crypt.tenant_of(notes), nomp_crypt.tenant_of(ssn)])
	OR (nomp_crypt.decrypt(name), nomp_crypt.decrypt(notes), nomp_crypt.decrypt(ssn))
		IS DISTINCT FROM ('Anna ' || id, 'note', 'S-' || id)
SQL
}

sub in_school
{
	my ($school) = @_;

	return one("SELECT count(*) FROM pupil WHERE school = '$school'");
}

my $move =
  "CALL nomp_crypt.move_rows('pupil', 'school = ''old''', 'new', batch_size => 10)";
my $call = start_query($node, $move);
wait_until(sub { in_school('new') >= 20 }, 'some batches');
is( one('SELECT command, object, phase, unit, done > 0 FROM nomp_crypt.progress'
	),
	'move_rows|pupil|moving|rows|t',
	'progress shows how far it is');
crash($node);
end_query($call);
$node->start;
my $moved = in_school('new');
ok( $moved >= 20 && $moved < 100 && $moved % 10 == 0,
	"after a power cut whole batches have moved ($moved rows)");
is(wrong(), 0, 'each row is in one school');

# Somebody enters a pupil of the last batch in the new school meanwhile.
$call = start_query($node, $move);
wait_until(sub { in_school('new') > $moved }, 'more batches');
one(in_tenant(
		'new',
		"INSERT INTO pupil SELECT 1000 + max(id), 'new', 'Anna', '', 'S-' || max(id) FROM pupil WHERE school = 'old'"
	));
is((end_query($call))[0],
	'23505', 'a collision that comes up meanwhile stops it');
cmp_ok(in_school('old'), '>', 0, 'with the batch undone');
like(
	failure($node, $move),
	qr/23505: rows cannot be moved to tenant "new": 1 would collide/,
	'and is named by the next call');
one('DELETE FROM pupil WHERE id > 1000; DROP TRIGGER slowly ON pupil');
is((end_query(start_query($node, $move)))[0],
	'', 'the same call does the rest');
is(in_school('new'), 100, 'all have moved');
is(wrong(), 0, 'each with all its values');
is( one(in_tenant(
			'new',
			"SELECT count(*) FROM pupil p JOIN generate_series(1, 100) i ON p.ssn = 'S-' || i"
		)),
	100,
	'and all are found');
$node->stop;
done_testing();
