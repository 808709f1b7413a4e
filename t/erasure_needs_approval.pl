# One person alone must not be able to erase a school, whatever roles he can
# take on; a court's hold, data that was not given back, a grace period and a
# limit for a day stand in the way as well.  Whatever does is named, in the
# refusal and in a view, and nothing is destroyed as long as it does.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my @schools = qw(two hats lowered held returned limit1 limit2 limit3 taken);
my $sum = 'ab' x 32;

my $node = nomp_node('main');
$node->start;
create_nomp($node, @schools);
$node->safe_psql('postgres',
		'INSERT INTO pupil SELECT row_number() OVER (), id,'
	  . " nomp_crypt.encrypt('Anna i ' || id, id), NULL FROM nomp_crypt.tenants"
);

# Four people with logins of their own, and a role that two of them can take on.
$node->safe_psql('postgres', <<'SQL');
CREATE ROLE anna LOGIN; CREATE ROLE bertil LOGIN; CREATE ROLE cecilia LOGIN;
CREATE ROLE root LOGIN SUPERUSER; CREATE ROLE dpo;
GRANT dpo TO bertil, cecilia; GRANT bertil TO anna;
SELECT nomp_crypt.grant_admin(r) FROM unnest('{anna,bertil,cecilia,dpo}'::name[]) r;
SQL

# as(WHO, SQL): SQLSTATE of the first error, '' for none, with that login.
sub as
{
	my ($who, @sql) = @_;
	my ($out, $err) = ('', '');

	$node->psql(
		'postgres', $_,
		stdout => \$out,
		stderr => \$err,
		connstr => $node->connstr('postgres') . " user=$who",
		extra_params => [ '-v', 'VERBOSITY=verbose' ]) for join ";\n", @sql;
	return $err =~ /ERROR:\s+(\w{5}): (.*)/ ? "$1 $2" : '';
}

sub set
{
	my ($name, $value) = @_;

	$node->safe_psql('postgres',
		"ALTER SYSTEM SET nomp_crypt.$name = '$value'");
	$node->reload;
	$node->poll_query_until('postgres', "SHOW nomp_crypt.$name", $value)
	  or die "nomp_crypt.$name";
	return;
}

sub call
{
	my ($school) = @_;

	return
	  "CALL nomp_crypt.erase_tenant('$school', 'agreement_ended', 'PUB-1')";
}

sub approve
{
	my ($school) = @_;

	return
	  "SELECT nomp_crypt.approve_erasure((SELECT case_id::text FROM nomp_crypt.erasures"
	  . " WHERE tenant = '$school' AND state = 'requested'))";
}

sub state_of
{
	my ($school) = @_;

	return $node->safe_psql('postgres',
		"SELECT state FROM nomp_crypt.tenants WHERE id = '$school'");
}

sub next_of
{
	my ($school) = @_;

	return $node->safe_psql('postgres',
		"SELECT next FROM nomp_crypt.erasures WHERE tenant = '$school' AND state <> 'withdrawn'"
	);
}

# Two approvals.
set('erasure_approvals', 2);
is(as('anna', call('two')), '', 'a request needs nobody else');
is(state_of('two'), 'suspended', 'and suspends the school');
like(
	next_of('two'),
	qr/^it waits for 2 of 2 approvals, by roles other than anna$/,
	'the view says who is missing');
like(
	as('anna', call('two')),
	qr/^55000 the erasure of tenant "two" waits for 2 of 2 approvals, by roles other than anna/,
	'the call again is refused, and says so');
like(
	as('anna', approve('two')),
	qr/^55000 .*asked for by anna, who cannot approve/,
	'who asks cannot approve');
like(
	as('anna', 'SET ROLE bertil', approve('two')),
	qr/^55000 .*asked for by anna/,
	'nor under a role that was granted to her');
is(as('bertil', approve('two')), '', 'another approves');
like(as('bertil', approve('two')),
	qr/^55000 .*approved this already, as bertil/, 'once');
like(
	as('bertil', 'SET ROLE dpo', approve('two')),
	qr/^55000 .*approved this already, as bertil/,
	'and not again under another role');
like(
	as('bertil', call('two')),
	qr/^55000 .*waits for 1 of 2 approvals, by roles other than anna, bertil/,
	'one is still missing');
like(
	as( 'anna',
		"SELECT nomp_crypt._erase_fence((SELECT case_id FROM nomp_crypt.erasures WHERE tenant = 'two'))"
	),
	qr/^55000/,
	'the fence itself cannot be passed by its own function');
is(as('cecilia', approve('two')), '', 'a third approves');
is(as('bertil', call('two')), '', 'and anybody can execute');
is(state_of('two'), 'erased', 'the school is erased');
like(as('cecilia', "SELECT nomp_crypt.approve_erasure('nothing')"),
	qr/^42704/, 'what does not exist cannot be approved');
like(
	as( 'cecilia',
		"SELECT nomp_crypt.approve_erasure((SELECT case_id::text FROM nomp_crypt.erasures WHERE tenant = 'two'))"
	),
	qr/^55000 .*it is destroyed/,
	'nor what is done');
is( $node->safe_psql(
		'postgres',
		"SELECT string_agg(role || ' ' || (detail->>'actors'), ', ' ORDER BY at) FROM nomp_crypt.audit WHERE act = 'approve_erasure'"
	),
	'bertil ["bertil"], cecilia ["cecilia"]',
	'both are on record');

# One person with many hats: a superuser can take on any role, and can become
# another session's user; the login stays his.
is(as('root', call('hats')), '', 'a superuser asks');
for my $hat (
	'SET ROLE bertil',
	'SET SESSION AUTHORIZATION cecilia',
	'SET SESSION AUTHORIZATION bertil; SET ROLE dpo')
{
	like(
		as('root', $hat, approve('hats')),
		qr/^55000 .*asked for by root/,
		"not after $hat");
}
is(as('bertil', 'SET ROLE dpo', approve('hats')),
	'', 'a person approves as dpo');
like(
	as('cecilia', 'SET ROLE dpo', approve('hats')),
	qr/^55000 .*as dpo/,
	'that role counts once, whoever has it');
$node->safe_psql('postgres', <<'SQL');
CREATE FUNCTION wrapped(text) RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT nomp_crypt.approve_erasure($1)';
ALTER FUNCTION wrapped(text) OWNER TO cecilia;
SQL
like(
	as( 'root',
		"SELECT wrapped((SELECT case_id::text FROM nomp_crypt.erasures WHERE tenant = 'hats'))"
	),
	qr/^55000 .*asked for by root/,
	'not through a function that is another\'s');
set('erasure_approvals', 0);
like(
	as('root', call('hats')),
	qr/^55000 .*waits for 1 of 2 approvals/,
	'lowering the setting does not help a case that is open');
is(as('root', "SELECT nomp_crypt.withdraw_erasure('hats')"),
	'', 'it is withdrawn');
set('erasure_approvals', 1);
is(as('anna', call('hats')), '', 'and asked for again');
like(
	next_of('hats'),
	qr/waits for 1 of 1 approvals, by roles other than anna$/,
	'earlier approvals do not count for the new case');
is(as('anna', "SELECT nomp_crypt.withdraw_erasure('hats')"),
	'', 'withdrawn again');
set('erasure_approvals', 0);
is(as('anna', call('lowered')), '', 'without approvals one person is enough');
is(state_of('lowered'), 'erased', 'at once');

# A legal hold.
is(as('bertil', "SELECT nomp_crypt.hold_tenant('held', 'T-123-26')"),
	'', 'a hold');
is(as('bertil', "SELECT nomp_crypt.hold_tenant('held', 'T-123-26')"),
	'', 'is harmless when repeated');
is(as('bertil', "SELECT nomp_crypt.hold_tenant('held', 'T-9-26')"),
	'', 'a second one');
like(as('bertil', "SELECT nomp_crypt.hold_tenant('held', 'Annas ärende')"),
	qr/^22023/, 'no free text');
like(as('bertil', "SELECT nomp_crypt.hold_tenant('held', NULL)"),
	qr/^22023/, 'and a reference');
like(as('bertil', "SELECT nomp_crypt.hold_tenant('nowhere', 'T-1')"),
	qr/^42704/, 'of a school that there is');
is(school_reads($node, 'held'), 'Anna i held',
	'the school is read as before');
is(as('anna', call('held')), '', 'its erasure is asked for');
is(state_of('held'), 'suspended', 'and not executed');
like(
	as('anna', call('held')),
	qr/^55000 .*waits for the release of legal hold T-123-26, placed at \S+ \S+ by bertil; the release of legal hold T-9-26/,
	'the refusal names the holds');
is(as('anna', 'CALL nomp_crypt.run_due_erasures()'),
	'', 'a run passes it over');
is(state_of('held'), 'suspended', 'it stays');
like(as('anna', "SELECT nomp_crypt.release_hold('held', 'T-1')"),
	qr/^42704/, 'only a hold that is there is released');
is(as('anna', "SELECT nomp_crypt.release_hold('held', 'T-9-26')"),
	'', 'one is released');
like(
	as('anna', call('held')),
	qr/^55000 .*legal hold T-123-26/,
	'the other is in force');
is(as('anna', "SELECT nomp_crypt.release_hold('held', 'T-123-26')"),
	'', 'it is released');
is(as('anna', call('held')), '', 'the call goes on');
is(state_of('held'), 'erased', 'to the end');
like(
	as('anna', "SELECT nomp_crypt.hold_tenant('held', 'T-1')"),
	qr/^55000 .*is erased: its erasure is final/,
	'a hold comes too late then');

# Data that must be given back first.
set('erasure_requires_return', 'on');
is(as('anna', call('returned')), '', 'asked for');
like(
	as('anna', call('returned')),
	qr/^55000 .*waits for the data's return to the controller, or word that it is not wanted/,
	'it waits for the data\'s return');
like(as('anna', "SELECT nomp_crypt.data_returned('returned', '$_')"),
	qr/^22023/, "\"$_\" is no sum")
  for 'AB' x 32, 'ab' x 31, 'yes', '';
like(as('anna', "SELECT nomp_crypt.data_returned('returned', NULL)"),
	qr/^22023/, 'nor is nothing');
is(as('anna', "SELECT nomp_crypt.data_returned('returned', '$sum')"),
	'', 'the manifest\'s sum is put on record');
is( $node->safe_psql(
		'postgres',
		"SELECT data_returned FROM nomp_crypt.erasures WHERE tenant = 'returned'"
	),
	$sum,
	'and shown');
is(as('anna', call('returned')), '', 'the call goes on');
is(state_of('returned'), 'erased', 'to the end');
is(as('anna', "SELECT nomp_crypt.data_returned('taken', 'not wanted')"),
	'', 'or it is not wanted, also before the request');
is(as('anna', call('taken')), '', 'asked for');
is(state_of('taken'), 'erased', 'and executed');
set('erasure_requires_return', 'off');

# A limit for a day.
my $done = $node->safe_psql('postgres',
	"SELECT count(*) FROM nomp_crypt.erasure WHERE fenced_at IS NOT NULL");
set('max_erasures_per_day', $done + 1);
is(as('anna', call('limit1')), '', 'one more today');
is(state_of('limit1'), 'erased', 'is erased');
is(as('anna', call('limit2')), '', 'the next is asked for');
is(state_of('limit2'), 'suspended', 'and suspended only');
like(
	as('anna', call('limit2')),
	qr/^55000 .*waits for room in nomp_crypt.max_erasures_per_day \(\d+\), until \d{4}-/,
	'the refusal says how long');
$node->safe_psql('postgres',
	"UPDATE nomp_crypt.erasure SET fenced_at = fenced_at - interval '25 hours'"
);
is(as('anna', call('limit2')), '', 'a day later it is executed');
is(state_of('limit2'), 'erased', 'to the end');

# Two at once, with room for one.
$node->safe_psql('postgres',
	"SELECT nomp_crypt._erase_request(id, 'test', NULL) FROM unnest('{limit3,hats}'::text[]) id"
);
set('max_erasures_per_day', 2);
my @both = map {
	start_query($node,
		"BEGIN; SELECT nomp_crypt._erase_fence((SELECT case_id FROM nomp_crypt.erasures"
		  . " WHERE tenant = '$_' AND state = 'requested')); SELECT pg_sleep(2); COMMIT"
	)
} qw(limit3 hats);
is(join(',', sort map { (end_query($_))[0] } @both),
	',55000', 'of two fences at once one is refused');

# The grace period is a matter of time, and no error.
set('max_erasures_per_day', 0);
my ($rest) = grep { state_of($_) eq 'suspended' } qw(limit3 hats);
set('erasure_grace', '1d');
is(as('anna', call($rest)), '', 'a call during the grace period is no error');
like(
	next_of($rest),
	qr/^it can be executed from \d{4}-/,
	'the view says from when on');
like(as('anna', "SELECT nomp_crypt._erase_refuse(NULL)"),
	qr/^42704/, 'no case, no refusal');

$node->stop;
done_testing();
