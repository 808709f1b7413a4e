# The same for what all of them are made of, libpq, in a program in C; and for
# psql: what somebody types, scripts and \copy does.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use ClientTest;
use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $temp = PostgreSQL::Test::Utils::tempdir();
my $node = client_node();
my $conninfo = $node->connstr('postgres') . ' user=app';

run_client('libpq', "$FindBin::RealBin/../test/libpq_client", $conninfo);

# script(SCRIPT): what psql prints as an application inside the school south.
sub script
{
	my ($script) = @_;

	return $node->safe_psql('postgres', $script,
		connstr => "$conninfo options='-c nomp_crypt.tenant=south'");
}

is( script(<<'PSQL'),
INSERT INTO person (name, born, points, ssn)
	VALUES ('Ada', '1815-12-10', 1, 'p-1'), ('Bo', '1999-01-01', 2, 'p-2');
\set who 'Ada'
SELECT name, born FROM person WHERE school = 'south' AND name = :'who';
SELECT name AS found, born::date + 1 AS born FROM person WHERE ssn = 'p-2' \gset
\echo :found :born
SELECT name, points FROM person WHERE school = 'south' AND ssn LIKE 'p-%'
ORDER BY born DESC;
PSQL
	"Ada|1815-12-10\nBo 1999-01-02\nBo|2\nAda|1",
	'psql: statements, variables, \gset');

my $described = $node->safe_psql('postgres', '\d person');
for my $type (
	'text', 'date',
	'bool', "'numeric(6,2)'",
	'timestamptz', "'text[]'",
	'text, searchable', 'text, searchable, nocase')
{
	like(
		$described,
		qr/\|encrypted\(\Q$type\E\)\|/,
		"psql: \\d says encrypted($type)");
}

# \copy out and in again, as text and as CSV: the same pupils.
my $columns = 'name, born, active, points, ssn';
my $rows =
  "SELECT $columns FROM person WHERE school = 'south' AND ssn LIKE 'p-%' ORDER BY name";
my $before = script($rows);
for my $form ('text', 'csv')
{
	unlink "$temp/$form";
	script("\\copy ($rows) TO '$temp/$form' (FORMAT $form)");
	like(slurp_file("$temp/$form"),
		qr/^Ada[\t,]1815-12-10/, "psql: \\copy to $form writes plaintext");
	is( script(<<"PSQL"),
DELETE FROM person WHERE ssn IN ('p-1', 'p-2');
\\copy person ($columns) FROM '$temp/$form' (FORMAT $form)
$rows;
PSQL
		$before,
		"psql: \\copy from $form reads it");
}

is( sqlstate(
		$node, "INSERT INTO person (school, name) VALUES ('south', 'x')"),
	'NC006',
	'psql: outside a tenant nothing is written');

$node->stop;
done_testing();
