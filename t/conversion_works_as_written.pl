# The procedure of docs/operations.md that converts a table, step by step as it is
# written down, and the way back.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Procedures;
use Test::More;

my $node = nomp_node('main');
my $server = { server => $node };

$node->start;
create_nomp($node, 'a', 'b');

sub one
{
	my ($sql) = @_;

	return $node->safe_psql('postgres', $sql);
}

one(<<'SQL');
CREATE ROLE migrator;
GRANT CREATE ON SCHEMA public TO migrator;
SET ROLE migrator;
CREATE TABLE person (id int PRIMARY KEY, school text NOT NULL, ssn text UNIQUE);
INSERT INTO person SELECT i, CASE WHEN i % 2 = 0 THEN 'a' ELSE 'b' END, '2014-' || i FROM generate_series(1, 500) i;
SQL

my @said = run_procedure('convert-look', $server);
like(
	$said[0],
	qr/tenant\|all\|2 known tenants/,
	'looking: all rows are of known schools');
like(
	$said[0],
	qr/unique constraint person_ssn_key.*\|kept/,
	'and the unique constraint stays');
run_procedure('convert', $server);
is( one("SELECT count(*) FROM person WHERE nomp_crypt.decrypt(ssn) = '2014-' || id AND nomp_crypt.tenant_of(ssn) = school"
	),
	500,
	'converting: each value is its school\'s');
is( one("SELECT encrypted_on_disk_since IS NULL FROM nomp_crypt.inventory WHERE table_name = 'public.person'"
	),
	't',
	'but plain ones may be left');
@said = run_procedure('convert-rewrite', $server);
like($said[0], qr/^ssn\|rewritten\|20/m, 'rewriting: none are');
is(one("SELECT count(*) FROM nomp_crypt.rights WHERE role = 'migrator'"),
	0, 'and the rights are taken back');
run_procedure('convert-back', $server);
is(one("SELECT count(*) FROM person WHERE ssn = '2014-' || id"),
	500, 'back: the same values, plain');
$node->stop;
done_testing();
