# At the end of June an agreement ends for fifty schools: they are erased
# together, approved once, without the limit for a day standing in the way; a
# school that must be kept does not keep the others, and other agreements'
# schools are not touched.  The token is looked through for all of them at
# once, and not for each.  What is due is executed by pg_cron; a case that fails
# fails alone.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use Procedures;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = nomp_node('main');
my $counted =
  keystore_uri($node->{nomp_dir}, 'nomp', shim_module($node->{nomp_dir}));
shim_says();
$node->append_conf('postgresql.conf', <<"CONF");
nomp_crypt.keystore = '$counted'
shared_preload_libraries = 'nomp_crypt, pg_cron'
cron.database_name = 'postgres'
cron.use_background_workers = on
max_worker_processes = 20
CONF
$node->start;
create_nomp($node, qw(other stray));
$node->safe_psql('postgres', <<'SQL');
SELECT nomp_crypt.create_tenant('m-' || to_char(i, 'FM00'), agreement => 'PUB-50') FROM generate_series(1, 50) i;
INSERT INTO pupil SELECT row_number() OVER (), id, nomp_crypt.encrypt('Anna i ' || id, id), NULL FROM nomp_crypt.tenants;
CREATE ROLE anna LOGIN; CREATE ROLE bertil LOGIN;
SELECT nomp_crypt.grant_admin(r) FROM unnest('{anna,bertil}'::name[]) r;
ALTER SYSTEM SET nomp_crypt.erasure_approvals = 1;
ALTER SYSTEM SET nomp_crypt.max_erasures_per_day = 1;
SELECT pg_reload_conf();
SQL
$node->poll_query_until('postgres', 'SHOW nomp_crypt.erasure_approvals', '1')
  or die;

sub as
{
	my ($who, $sql) = @_;
	my ($out, $err) = ('', '');

	$node->psql(
		'postgres', $sql,
		stdout => \$out,
		stderr => \$err,
		connstr => $node->connstr('postgres') . " user=$who",
		extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	return $err =~ /ERROR:\s+(\w{5}): (.*)/ ? "$1 $2" : $out;
}

sub states
{
	my ($where) = @_;

	return $node->safe_psql('postgres',
		"SELECT state, count(*) FROM nomp_crypt.tenants WHERE $where GROUP BY 1 ORDER BY 1"
	);
}

# A school's key is gone from the keystore.
sub lose_key
{
	my ($school) = @_;

	delete_from_token($node->{nomp_dir}, 'nomp', kek_label($node, $school));
	return;
}

my $mine = "agreement = 'PUB-50'";
my $call =
  "CALL nomp_crypt.erase_agreement('PUB-50', 'agreement_ended', 'PUB-50')";

like(as('anna', "CALL nomp_crypt.erase_agreement('PUB-51', 'test')"),
	qr/^42704/, 'an agreement that nobody has is refused');
like(as('anna', "CALL nomp_crypt.erase_agreement('PUB-50', 'because')"),
	qr/^22023/, 'and a reason that is none');
is(states($mine), 'active|50', 'nothing has happened');
like(as('anna', "BEGIN; $call; COMMIT"),
	qr/^2D000/, 'it cannot be part of a transaction');

is(as('anna', $call), '', 'the erasure of all is asked for');
is(states($mine), 'suspended|50', 'all are suspended');
is( $node->safe_psql(
		'postgres',
		'SELECT count(DISTINCT group_id), count(*) FROM nomp_crypt.erasures'),
	'1|50',
	'a case each, under one number');
like(
	as('anna', $call),
	qr/^55000 the erasure of 50 tenants \(m-01, \.\.\.\) waits for 1 of 1 approvals, by roles other than anna/,
	'the call again is refused, in one sentence');
like(
	as('anna', "SELECT nomp_crypt.approve_erasure('PUB-50')"),
	qr/^55000 .*asked for by anna/,
	'who asks cannot approve');
is(as('bertil', "SELECT nomp_crypt.approve_erasure('PUB-50')"),
	'50', 'one approval is for all');
is(as('bertil', "SELECT nomp_crypt.hold_tenant('m-07', 'T-1')"),
	'', 'one of them is held');
is( $node->safe_psql(
		'postgres',
		"SELECT nomp_crypt.create_tenant('m-51', agreement => 'PUB-50') IS NOT NULL"
	),
	't',
	'a school comes to the agreement late');
my $labels = shim_calls('C_GetAttributeValue');
like(
	as('anna', $call),
	qr/^55000 the erasure of 1 tenants \(m-51\) waits for .*approvals.*; the erasure of 1 tenants \(m-07\) waits for the release of legal hold T-1|^55000 the erasure of 1 tenants \(m-07\) waits for the release of legal hold T-1.*; the erasure of 1 tenants \(m-51\) waits for .*approvals/,
	'the call again says what two wait for');
$labels = shim_calls('C_GetAttributeValue') - $labels;
is(states($mine), "erased|49\nsuspended|2", 'the others are erased');
cmp_ok($labels, '<', 49 * 49,
	"the token was not looked through for each: $labels labels read");
is(states("id IN ('other', 'stray')"), 'active|2', 'and nobody else');
is(school_reads($node, 'other'), 'Anna i other', 'other schools read on');
is(school_reads($node, 'm-33'), 'NC001', 'these do not');
is( $node->safe_psql(
		'postgres',
		"SELECT count(*) FROM nomp_crypt.kek WHERE state = 'active'"),
	'4',
	'the keys of two living and two waiting are left');
is(as('bertil', "SELECT nomp_crypt.release_hold('m-07', 'T-1')"),
	'', 'the hold is released');
is(as('bertil', "SELECT nomp_crypt.approve_erasure('PUB-50')"),
	'1', 'the late school is approved, and no other again');

# What is due is executed by pg_cron, as a role that may; not before that is set.
run_procedure(
	'due-erasures',
	{ server => $node },
	'*/10 * * * *' => '0 0 31 2 *');
$node->safe_psql('postgres',
	"UPDATE cron.job SET username = 'anna', schedule = '* * * * *'");
wait_until(sub { states($mine) eq 'erased|51' }, 'pg_cron to erase the rest');
is( $node->safe_psql(
		'postgres',
		"SELECT DISTINCT role FROM nomp_crypt.audit WHERE act = 'erase_destroy' AND tenant = 'm-07'"
	),
	'anna',
	'pg_cron has done the rest, as the role of its job');
$node->poll_query_until('postgres',
	"SELECT count(*) > 0 FROM cron.job_run_details WHERE status = 'succeeded'"
);
is( $node->safe_psql(
		'postgres',
		"SELECT count(*) FROM cron.job_run_details WHERE status = 'failed'"),
	'0',
	'no run of it failed');
$node->safe_psql('postgres', "DELETE FROM cron.job");
wait_until(
	sub {
		$node->safe_psql('postgres',
			"SELECT count(*) FROM cron.job_run_details WHERE status NOT IN ('succeeded', 'failed')"
		) == 0;
	},
	'a last run to end');
like(as('anna', $call), qr/^$/, 'the call again finds nothing to do');

# One that fails, between two that do not.
$node->safe_psql('postgres', <<'SQL');
ALTER SYSTEM SET nomp_crypt.erasure_approvals = 0;
ALTER SYSTEM SET nomp_crypt.max_erasures_per_day = 0;
SELECT pg_reload_conf();
SELECT nomp_crypt.create_tenant('f-' || i) FROM generate_series(1, 3) i;
SELECT nomp_crypt._erase_request('f-' || i, 'test', NULL) FROM generate_series(1, 3) i;
SQL
lose_key('f-2');
my ($out, $err) = ('', '');
$node->psql(
	'postgres', 'CALL nomp_crypt.run_due_erasures()',
	stdout => \$out,
	stderr => \$err,
	extra_params => [ '-v', 'VERBOSITY=verbose' ]);
like(
	$err,
	qr/WARNING:\s+NC003: the erasure of tenant "f-2" has not come to its end: key \S+ is not in the keystore/,
	'a key that is not there is one case\'s failure');
like(
	$err,
	qr/ERROR:\s+NC003: 1 of 3 erasures have not come to their end/,
	'the call fails when all others are done');
is(states("id LIKE 'f-%'"), "erased|2\nsuspended|1", 'which they are');
is(sqlstate($node, 'CALL nomp_crypt.run_due_erasures()'),
	'NC003', 'another run fails again, for as long as it does');
is(sqlstate($node, 'BEGIN; CALL nomp_crypt.run_due_erasures(); COMMIT'),
	'2D000', 'it cannot be part of a transaction');

# The same in an agreement: what is tried for all of its schools together fails,
# and then each goes alone.
$node->safe_psql('postgres',
	"SELECT nomp_crypt.create_tenant('g-' || i, agreement => 'PUB-G') FROM generate_series(1, 3) i"
);
lose_key('g-2');
is(sqlstate($node, "CALL nomp_crypt.erase_agreement('PUB-G', 'test')"),
	'NC003', 'an agreement with a key that is not there');
is(states("agreement = 'PUB-G'"),
	"erased|2\nsuspended|1", 'is erased but for that school');
$node->safe_psql('postgres', "SELECT nomp_crypt.withdraw_erasure('g-2')");

# A run that is cancelled is cancelled, and not taken for a failed case.
$node->safe_psql('postgres', "SELECT nomp_crypt.withdraw_erasure('f-2')");
$node->safe_psql('postgres',
	"SELECT nomp_crypt._erase_request('stray', 'test', NULL)");
my $blocker = open_session($node);
says($blocker,
	"BEGIN; SELECT FROM nomp_crypt.tenant WHERE id = 'stray' FOR UPDATE");
{
	local $ENV{PGOPTIONS} = '-c statement_timeout=2s';
	is(sqlstate($node, 'CALL nomp_crypt.run_due_erasures()'),
		'57014', 'a timeout ends the run');
}
says($blocker, 'ROLLBACK');
$blocker->quit;
is(sqlstate($node, 'CALL nomp_crypt.run_due_erasures()'), '', 'the next one');
is(states("id = 'stray'"), 'erased|1', 'does what is left');

# The procedures as they are written.
$node->safe_psql('postgres', <<'SQL');
ALTER SYSTEM SET nomp_crypt.erasure_approvals = 1;
SELECT pg_reload_conf();
SELECT nomp_crypt.create_tenant(id, agreement => 'PUB-2024-117') FROM unnest('{s-0180-42,s-0180-43}'::text[]) id;
SQL
$node->poll_query_until('postgres', 'SHOW nomp_crypt.erasure_approvals', '1')
  or die;
run_procedure('erase-agreement', { server => $node });
{
	local $ENV{PGUSER} = 'bertil';
	run_procedure('approve', { other => $node });
}
as('bertil', "SELECT nomp_crypt.approve_erasure('PUB-2024-117')");
run_procedure('erase-agreement', { server => $node });
is(states("agreement = 'PUB-2024-117'"),
	'erased|2', 'requested, approved and erased as it is written');

$node->stop;
done_testing();
