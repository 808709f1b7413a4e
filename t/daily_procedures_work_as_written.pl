# The procedures of docs/operations.md that an administrator does on an
# ordinary day, step by step as they are written down: schools come, get new
# keys, are suspended, lose a pupil to another school, and leave.

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
create_nomp($node, 'first');

sub one
{
	my ($sql) = @_;

	return $node->safe_psql('postgres', $sql);
}

sub state_of
{
	my ($id) = @_;

	return one("SELECT state FROM nomp_crypt.tenants WHERE id = '$id'");
}

one(<<'SQL');
CREATE TABLE school (id text PRIMARY KEY);
INSERT INTO school VALUES ('s-0180-42'), ('s-0180-43'), ('s-0181-07');
ALTER TABLE pupil ADD ssn encrypted(text, searchable);
CREATE TABLE mark (pupil bigint, school text, mark encrypted(text));
CREATE TRIGGER enforce BEFORE INSERT OR UPDATE ON pupil FOR EACH ROW
EXECUTE FUNCTION nomp_crypt.enforce_tenant('school');
CREATE TRIGGER enforce BEFORE INSERT OR UPDATE ON mark FOR EACH ROW
EXECUTE FUNCTION nomp_crypt.enforce_tenant('school');
SQL

# ---- schools come ----

run_procedure('onboarding', $server);
is(one('SELECT count(*) FROM nomp_crypt.tenants WHERE id LIKE \'s-%\''),
	3, 'onboarding: each school has its keys');
one(<<'SQL');
INSERT INTO pupil (id, school, name, ssn)
SELECT 4710 + n, id, nomp_crypt.encrypt('Anna i ' || id, id),
	nomp_crypt.encrypt('2014-' || n, id)::encrypted(text, searchable)
FROM (SELECT id, row_number() OVER (ORDER BY id) n FROM school) s;
INSERT INTO mark SELECT id, school, nomp_crypt.encrypt('A', school) FROM pupil;
SQL

# ---- they get new keys ----

{
	my @said;

	one("SELECT nomp_crypt.rotate_tenant('s-0180-42')");
	@said = run_procedure('reencrypt', $server);
	is($said[0], "0\n",
		're-encrypting: nothing is left, and nothing goes on');
	is( one("SELECT DISTINCT (nomp_crypt.key_info(name)).version FROM pupil WHERE school = 's-0180-42'"
		),
		2,
		'values have the new key');
	# ages are a year and two in the document
	one(q(UPDATE nomp_crypt.tenant_key SET created_at = '2020-01-01' WHERE purpose = 'values')
	);
	one(q(UPDATE nomp_crypt.kek SET created_at = '2020-01-01'));
	run_procedure('policy', $server);
	is( one("SELECT string_agg(id || ' ' || key_version || ' ' || kek_generation, ', ' ORDER BY id)"
			  . " FROM nomp_crypt.tenants"),
		'first 2 2, s-0180-42 3 2, s-0180-43 2 2, s-0181-07 2 2',
		'the policy: every school has a new data key and a new KEK');
	is( school_reads($node, 's-0180-42'),
		'Anna i s-0180-42',
		'and reads what it has');
	run_procedure('index-key', $server);
	is( one(in_tenant(
				's-0180-42', "SELECT id FROM pupil WHERE ssn = '2014-1'")),
		4711,
		'a new index key: values are found');
}

# ---- looked after ----

is((run_procedure('prewarm', $server))[0] =~ /^\d+\n0\n0\n$/,
	1, 'warming up: the second and third call find nothing to do');
is((run_procedure('verify', $server))[0], "0\n", 'verifying: no problems');
is((run_procedure('reconcile', $server))[0], '', 'no keys that nobody owns');
like(
	(run_procedure('watching', $server))[0],
	qr/^keystore_software\|warning\|/m,
	'health() knows what SoftHSM is');
run_procedure('suspend', $server);
is( school_reads($node, 's-0180-42'),
	'Anna i s-0180-42',
	'suspended, resumed, and readable');

# ---- a pupil changes school ----

is((run_procedure('change-school', $server))[0],
	"1\n1\n", 'a pupil and a mark are moved');
is( one(in_tenant(
			's-0181-07',
			"SELECT name, mark FROM pupil JOIN mark ON mark.pupil = pupil.id"
			  . " WHERE ssn = '2014-1' AND mark.school = 's-0181-07'")),
	'Anna i s-0180-42|A',
	'the new school reads them, and finds the pupil');

# ---- a school leaves ----

$node->append_conf('postgresql.conf', 'nomp_crypt.erasure_grace = 1d');
$node->reload;
$node->poll_query_until('postgres',
	q(SELECT current_setting('nomp_crypt.erasure_grace') = '1d'))
  or die 'no grace period';
run_procedure('erase', $server);
is(state_of('s-0180-42'), 'suspended', 'requested');
run_procedure('withdraw', $server);
is(state_of('s-0180-42'), 'active', 'and taken back');
$node->append_conf('postgresql.conf', 'nomp_crypt.erasure_grace = 0');
$node->reload;
$node->poll_query_until('postgres',
	q(SELECT current_setting('nomp_crypt.erasure_grace') = '0'))
  or die 'a grace period';
run_procedure('erase', $server);
is(state_of('s-0180-42'), 'erased', 'erased by the call as it is written');
is( one(in_tenant('s-0181-07', 'SELECT name FROM pupil WHERE id = 4711')),
	'Anna i s-0180-42',
	'the pupil who has moved is with the other school');

$node->stop;
done_testing();
