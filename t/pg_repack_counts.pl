# pg_repack's work counts as the last step of a conversion: it gives the table a
# file in which nothing plain is, while others write, and the inventory dates
# it. What it did before the conversion does not count, nor does a file that was
# copied block by block.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IPC::Run;
use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $marker = 'Synlig' . join '', map { ('a' .. 'z')[ rand 26 ] } 1 .. 12;
my $node = nomp_node('main');
my $bin = $node->config_data('--bindir');
$node->start;
create_nomp($node, 'a', 'b');

sub one
{
	my ($sql) = @_;

	return $node->safe_psql('postgres', $sql);
}

one(<<"SQL");
CREATE EXTENSION pg_repack;
CREATE TABLE person (id int PRIMARY KEY, school text NOT NULL, ssn text UNIQUE, story text, n int NOT NULL DEFAULT 0);
ALTER TABLE person ALTER story SET STORAGE EXTERNAL;
INSERT INTO person SELECT i, CASE WHEN i % 2 = 0 THEN 'a' ELSE 'b' END, '$marker-' || i, repeat('$marker ' || i, 300)
FROM generate_series(1, 3000) i;
ANALYZE person;
SQL

sub repack
{
	$node->command_ok(
		[
			"$bin/pg_repack", '--no-superuser-check',
			'-t', 'person',
			'postgres'
		],
		$_[0]);
	return;
}

# The files of the table, of what lies out of line, and of both's indexes.
sub files_with_marker
{
	one('CHECKPOINT');
	my @files = split /\n/, one(<<'SQL');
WITH t AS (SELECT c.oid FROM pg_class c WHERE c.oid = 'person'::regclass
	UNION SELECT c.reltoastrelid FROM pg_class c WHERE c.oid = 'person'::regclass)
SELECT pg_relation_filepath(r) FROM (SELECT oid FROM t UNION SELECT i.indexrelid FROM pg_index i JOIN t ON t.oid = i.indrelid) f(r)
SQL
	return grep { slurp_file($node->data_dir . "/$_") =~ /$marker/ } @files;
}

sub state_of
{
	return one(
		"SELECT string_agg(DISTINCT state, '; ') FROM nomp_crypt.inventory WHERE table_name = 'public.person' AND column_name IN ('ssn', 'story')"
	);
}

sub file
{
	return one("SELECT pg_relation_filenode('person')");
}

my $left = "plain values may be left in the table's files";

repack('pg_repack works on a table that is still plain');
one("CALL nomp_crypt.encrypt_column_online('person', '$_', 'school')")
  for 'story';
one("CALL nomp_crypt.encrypt_column_online('person', 'ssn', 'school', searchable => true)"
);
is(state_of(), $left, 'converted: plain values may be left');
isnt(join(' ', files_with_marker()), '', 'and are');
{
	my $place = PostgreSQL::Test::Utils::tempdir();
	my $before = file();

	one("CREATE TABLESPACE elsewhere LOCATION '$place'");
	one('ALTER TABLE person SET TABLESPACE elsewhere');
	isnt(file(), $before, 'a copy of the file has another name');
	isnt(join(' ', files_with_marker()), '', 'and plain values in it');
	is(one('SELECT nomp_crypt._needs_rewrite(\'person\', false)'),
		't', 'so it does not count');
}

# ---- pg_repack, while somebody writes ----
my $writer = start_query($node, <<'SQL');
DO $$
BEGIN
	FOR i IN 1 .. 100000 LOOP
		PERFORM set_config('nomp_crypt.tenant', 'a', false);
		UPDATE person SET n = n + 1, ssn = ssn::text WHERE id = 2 * (1 + i % 1500);
		COMMIT;
		EXIT WHEN EXISTS (SELECT FROM pg_class WHERE relname = 'enough');
	END LOOP;
END
$$
SQL
my $before = file();
repack('pg_repack works on encrypted columns under load');
one('CREATE TABLE enough ()');
is((end_query($writer))[0], '', 'and the writer met no error');
isnt(file(), $before, 'the table has another file');
is(join(' ', files_with_marker()), '', 'with nothing plain in it');
is(state_of(), $left, 'the inventory does not know yet');
my $oid = one("SELECT 'person'::regclass::oid");
is( one("CREATE TABLE repack.table_$oid (); SELECT nomp_crypt._needs_rewrite('person', false); DROP TABLE repack.table_$oid"
	),
	't',
	'nor would it while the old file is still there');
my $repacked = file();
one("CALL nomp_crypt.rewrite_table('person')");
is(file(), $repacked, 'rewrite_table believes it, and does not write again');
is(state_of(), 'rewritten', 'and the inventory does');
is( one("SELECT bool_and(encrypted_on_disk_since > now() - interval '10 minutes' AND encrypted_on_disk_since >= "
		  . "(SELECT max(at) FROM nomp_crypt.column_history WHERE table_name LIKE 'repack.%')) FROM nomp_crypt.inventory WHERE table_name = 'public.person' AND column_name IN ('ssn', 'story')"
	),
	't',
	'with a date after it');
is( one("SELECT count(*) FROM person WHERE ssn::text = '$marker-' || id AND story::text = repeat('$marker ' || id, 300) AND nomp_crypt.tenant_of(ssn) = school"
	),
	3000,
	'no value is lost or changed');

# ---- what comes later needs it again ----
one("ALTER TABLE person ADD nick text; UPDATE person SET nick = '$marker'");
one("CALL nomp_crypt.encrypt_column_online('person', 'nick', 'school')");
is(one('SELECT nomp_crypt._needs_rewrite(\'person\', false)'),
	't', 'an older repacking does not count for a column that came later');
one("CALL nomp_crypt.rewrite_table('person')");
isnt(file(), $repacked, 'so the file is written');
is(join(' ', files_with_marker()), '', 'and has nothing plain in it');

$node->stop;
done_testing();
