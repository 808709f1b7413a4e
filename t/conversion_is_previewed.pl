# Before a table is converted its owner wants to know which of the application's
# statements will be refused. They are taken from pg_stat_statements, analysed
# and never run: what other people put there must not be executed by him.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = nomp_node('main');
$node->append_conf('postgresql.conf',
	"shared_preload_libraries = 'nomp_crypt,pg_stat_statements'");
$node->start;

sub one
{
	my ($sql) = @_;

	return $node->safe_psql('postgres', $sql);
}

sub refused
{
	my ($more) = @_;

	return one(
		"SELECT subject, detail FROM nomp_crypt.encrypt_column_preview('people.pupil', 'name', 'school'$more)"
		  . " WHERE topic = 'statement' AND verdict = 'refused' ORDER BY subject COLLATE \"C\""
	);
}

one(<<'SQL');
CREATE EXTENSION nomp_crypt;
SELECT nomp_crypt.create_tenant('a');
SELECT nomp_crypt.grant_all_tenants(current_user, '{encrypt,decrypt,search}');
CREATE SCHEMA people;
CREATE TABLE people.pupil (id int, school text, name text);
INSERT INTO people.pupil VALUES (1, 'a', 'Anna');
SQL
is(refused(''), '', 'without pg_stat_statements the rest is shown');
is( one("SELECT count(*) > 4 FROM nomp_crypt.encrypt_column_preview('people.pupil', 'name', 'school')"
	),
	't',
	'namely that');

one(<<'SQL');
CREATE SCHEMA watching;
CREATE EXTENSION pg_stat_statements SCHEMA watching;
SELECT watching.pg_stat_statements_reset();
CREATE TABLE trap (executed boolean);
CREATE FUNCTION evil(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO trap VALUES (true);
	RETURN $1;
END
$$;
SQL
$node->psql('postgres',
	'SET search_path = people, public; SELECT name, count(*) FROM pupil GROUP BY name'
);
one('SELECT name FROM people.pupil WHERE name LIKE \'A%\' ORDER BY name');
$node->psql('postgres',
	'SELECT name FROM people.pupil WHERE id = public.evil(7)');
one('TRUNCATE trap');

is( $node->safe_psql(
		'postgres', <<'SQL'
SET search_path = people, public;
SELECT subject, detail FROM nomp_crypt.encrypt_column_preview('pupil', 'name', 'school') WHERE topic = 'statement';
SQL
	),
	'SELECT name, count(*) FROM pupil GROUP BY name|encrypted values cannot be grouped; called 1 times',
	'what will be refused is named, as the owner\'s search_path has it');
is(refused(', true'), '', 'nothing is, if the column is searchable');
is(one('SELECT count(*) FROM trap'), '0', 'and nothing of it was run');
is( one("SELECT count(*) FROM pg_class WHERE relname LIKE 'nomp\\_crypt\\_%' AND relpersistence = 't'"
	),
	'0',
	'and nothing is left');
$node->stop;
done_testing();
