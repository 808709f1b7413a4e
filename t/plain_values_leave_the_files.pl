# After a column was converted by one rewrite, nothing plain is in the table's
# files, but samples of it are in PostgreSQL's statistics until those are
# written anew, too; which must wait for whoever could still see them. Until
# then the inventory must not say that the column is encrypted on disk.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $marker = 'Synlig' . join '', map { ('a' .. 'z')[ rand 26 ] } 1 .. 12;
my $node = nomp_node('main', allows_streaming => 1);

$node->append_conf('postgresql.conf', 'autovacuum = off');
$node->start;
create_nomp($node, 'a');

sub one
{
	my ($sql) = @_;

	return $node->safe_psql('postgres', $sql);
}

# How often the marker is in the file of a relation.
sub found_in
{
	my ($relation) = @_;
	my $file = one("CHECKPOINT; SELECT pg_relation_filepath('$relation')");
	my $content =
	  PostgreSQL::Test::Utils::slurp_file($node->data_dir . "/$file");

	return scalar(() = $content =~ /$marker/g);
}

sub state_of
{
	return one(
		"SELECT state || (encrypted_on_disk_since IS NULL) FROM nomp_crypt.inventory WHERE table_name = 'public.person'"
	);
}

# Few values, so that statistics have them all, and uncompressed.
one(<<"SQL");
CREATE TABLE person (id int PRIMARY KEY, school text, name text);
INSERT INTO person SELECT i, 'a', '$marker' || i % 20 FROM generate_series(1, 1000) i;
CREATE INDEX person_name ON person (name);
ANALYZE person;
SQL
cmp_ok(found_in('person'), '>=', 1000, 'plain values are in the table');
cmp_ok(found_in('person_name'), '>', 0, 'in the index');
cmp_ok(found_in('pg_statistic'), '>=', 20, 'and in the statistics');

one("SELECT nomp_crypt.encrypt_column('person', 'name', 'school', searchable => true)"
);
is(found_in('person'), 0, 'after encrypt_column none are in the table');
is(found_in('person_name'), 0, 'nor in the index');
cmp_ok(found_in('pg_statistic'),
	'>', 0, 'but in the statistics, though deleted');
is( state_of(),
	'plain values may be left in pg_statistictrue',
	'and the inventory says so');

my $holder = open_session($node);
$holder->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
one("SELECT pg_current_xact_id()");
my ($stdout, $stderr);
$node->psql(
	'postgres', "CALL nomp_crypt.rewrite_table('person', patience => '0')",
	stdout => \$stdout,
	stderr => \$stderr);
like(
	$stderr,
	qr/WARNING:  plain values may be left in pg_statistic/,
	'while somebody could see them they are left');
is( state_of(),
	'plain values may be left in pg_statistictrue',
	'and on record');
$holder->query_safe('COMMIT');
one("CALL nomp_crypt.rewrite_table('person')");
is(found_in('pg_statistic'), 0, 'afterwards none are in the statistics');
is(state_of(), 'rewrittenfalse', 'and the inventory says since when');

# a lock that is not to be had
$holder->query_safe('BEGIN; SELECT count(*) FROM person');
is( sqlstate(
		$node,
		"CALL nomp_crypt.rewrite_table('person', force => true, lock_timeout => '50ms', tries => 2)"
	),
	'55P03',
	'a lock that is not to be had is given up');
$holder->query_safe('COMMIT');
$holder->quit;

# files by another way are not believed
one(<<"SQL");
CREATE TABLE other (id int, school text, name text);
INSERT INTO other SELECT i, 'a', '$marker' || i FROM generate_series(1, 1000) i;
SQL
one("CALL nomp_crypt.encrypt_column_online('other', 'name', 'school')");
cmp_ok(found_in('other'), '>', 0,
	'converted while others write, a table has plain values in its file');
my $file = one("SELECT pg_relation_filepath('other')");
one("CALL nomp_crypt.rewrite_table('other')");
isnt(one("SELECT pg_relation_filepath('other')"),
	$file, 'it is written into another file');
is(found_in('other'), 0, 'without them');
$file = one("SELECT pg_relation_filepath('other')");
one("CALL nomp_crypt.rewrite_table('other')");
is(one("SELECT pg_relation_filepath('other')"),
	$file, 'and not again for nothing');
$node->stop;
done_testing();
