# A literal belongs to the school that the session is in when the statement
# runs, although PostgreSQL makes its value when it parses: prepared
# statements, PL/pgSQL and SQL functions, with the school changed in between
# in every way there is.  Only plans that hold such literals are made again.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my @schools = qw(anna berta);
my $node = nomp_node('main');

$node->start;
create_nomp($node, @schools);
$node->safe_psql('postgres', <<'SQL');
CREATE FUNCTION whose_in_plpgsql() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	v encrypted(text) := 'literal';
BEGIN
	RETURN nomp_crypt.tenant_of(v);
END $$;
CREATE FUNCTION whose_in_sql() RETURNS text LANGUAGE sql AS $$ SELECT nomp_crypt.tenant_of('literal') $$;
CREATE FUNCTION found() RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
	RETURN (SELECT count(*) FROM pupil WHERE school = nomp_crypt.current_tenant() AND name = 'Same');
END $$;
CREATE FUNCTION tour() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	seen text := '';
	s text;
BEGIN
	FOR i IN 1..3 LOOP
		FOREACH s IN ARRAY '{anna,berta}'::text[] LOOP
			PERFORM set_config('nomp_crypt.tenant', s, true);
			seen := seen || whose_in_plpgsql() || whose_in_sql() || found() || ' ';
		END LOOP;
	END LOOP;
	RETURN seen;
END $$;
INSERT INTO pupil VALUES (1, 'anna', nomp_crypt.encrypt('Same', 'anna')), (2, 'berta', nomp_crypt.encrypt('Same', 'berta')),
	(3, 'berta', nomp_crypt.encrypt('Same', 'berta'));
SQL

# ---- every way to change the school ----

my $literal = "SELECT nomp_crypt.tenant_of('literal'::encrypted)";
my @changes = (
	[ 'SET', "SET nomp_crypt.tenant = 'berta'", 'berta' ],
	[
		'SET LOCAL', "BEGIN; SET LOCAL nomp_crypt.tenant = 'berta'",
		'berta', 'COMMIT'
	],
	[
		'SET LOCAL and COMMIT',
		"BEGIN; SET LOCAL nomp_crypt.tenant = 'berta'; EXECUTE fixed; COMMIT",
		'anna'
	],
	[
		'SET LOCAL and ROLLBACK',
		"BEGIN; SET LOCAL nomp_crypt.tenant = 'berta'; EXECUTE fixed; ROLLBACK",
		'anna'
	],
	[
		'SET and ROLLBACK',
		"BEGIN; SET nomp_crypt.tenant = 'berta'; EXECUTE fixed; ROLLBACK",
		'anna'
	],
	[
		'ROLLBACK TO',
		"BEGIN; SAVEPOINT s; SET LOCAL nomp_crypt.tenant = 'berta'; EXECUTE fixed; ROLLBACK TO s",
		'anna',
		'COMMIT'
	],
	[
		'set_config',
		"SELECT set_config('nomp_crypt.tenant', 'berta', false)", 'berta'
	],
	[ 'RESET', 'RESET nomp_crypt.tenant', 'NC006' ],
	[ 'DISCARD of nothing but the settings', 'RESET ALL', 'NC006' ],
	[
		'another transaction, with tenant_scope = transaction',
		'SET nomp_crypt.tenant_scope = transaction',
		'NC006'
	]);
foreach my $change (@changes)
{
	my ($name, $commands, $expected, $after) = @$change;
	my $session = open_session($node);

	says($session, "SET nomp_crypt.tenant = 'anna'");
	says($session, "PREPARE fixed AS $literal");
	is(says($session, 'EXECUTE fixed'), 'anna', "$name: at first");
	says($session, $_) foreach split /; /, $commands;
	is(says($session, 'EXECUTE fixed'), $expected, "$name: then");
	says($session, $after) if defined $after;
	says($session, 'RESET nomp_crypt.tenant_scope');
	says($session, "SET nomp_crypt.tenant = 'anna'");
	is(says($session, 'EXECUTE fixed'), 'anna', "$name: and back");
	$session->quit;
}

is( $node->safe_psql('postgres', 'SELECT tour()'),
	'annaanna1 bertaberta2 ' x 3,
	'functions called in turns, their plans kept');

# a plan kept for all executions, with a literal compared with a column
is( $node->safe_psql(
		'postgres',
		"SET plan_cache_mode = force_generic_plan; SET nomp_crypt.tenant = 'anna';"
		  . " PREPARE q AS SELECT id FROM pupil WHERE school = nomp_crypt.current_tenant() AND name = 'Same' ORDER BY id;"
		  . " EXECUTE q; SET nomp_crypt.tenant = 'berta'; EXECUTE q; SET nomp_crypt.tenant = 'anna'; EXECUTE q"
	),
	"1\n2\n3\n1",
	'a generic plan finds each school\'s');

# ---- only plans with literals are made again ----

# how often each statement is analyzed and planned, over ten changes
sub counted
{
	my ($prepare, $execute) = @_;
	my $sql =
	  "SET plan_cache_mode = force_generic_plan; SET nomp_crypt.tenant = 'anna'; $prepare; $execute;"
	  . ' SET client_min_messages = log; SET log_parser_stats = on; SET log_planner_stats = on;'
	  . join ';',
	  map { "SET nomp_crypt.tenant = '$schools[$_ % 2]'; $execute" } 1 .. 10;
	my ($out, $err) = ('', '');

	$node->psql(
		'postgres', $sql,
		stdout => \$out,
		stderr => \$err,
		on_error_die => 1);
	return scalar(() = $err =~ /PLANNER STATISTICS/g);
}

is(counted("PREPARE p AS $literal", 'EXECUTE p'),
	10, 'a statement with a literal is planned after each change');
is( counted(
		'PREPARE p(text) AS SELECT nomp_crypt.tenant_of($1::encrypted)',
		"EXECUTE p('x')"),
	0,
	'one with a parameter is not');
is( counted(
		'PREPARE p AS SELECT count(name) FROM pupil WHERE id = 1',
		'EXECUTE p'),
	0,
	'nor one that reads a column');
is(counted('PREPARE p AS SELECT 1', 'EXECUTE p'), 0, 'nor any other');

$node->stop;
done_testing();
