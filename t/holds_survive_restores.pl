# A court's hold must not be lost with a backup that is older than it, nor with
# a row that somebody deletes: the register has it, and what the register says
# against an erasure stops it.  A request that was taken back stays taken back.
# What lets an erasure happen, approvals and the data's return, is given again.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my @schools = qw(held lifted again taken_back approved living);
my $node = nomp_node('main', allows_streaming => 1);
$node->append_conf('postgresql.conf', 'restart_after_crash = on');
$node->start;
create_nomp($node, @schools);
one($node, <<'SQL');
INSERT INTO pupil SELECT row_number() OVER (), id, nomp_crypt.encrypt('Anna i ' || id, id), NULL FROM nomp_crypt.tenants;
CREATE ROLE anna LOGIN; CREATE ROLE bertil LOGIN;
SELECT nomp_crypt.grant_admin(r) FROM unnest('{anna,bertil}'::name[]) r;
SQL

sub one { return $_[0]->safe_psql('postgres', $_[1]) }

sub call
{
	return
	  "CALL nomp_crypt.erase_tenant('$_[0]', 'agreement_ended', 'PUB-1')";
}

sub request
{
	my ($of, $school) = @_;

	return one($of,
		"SELECT nomp_crypt._erase_request('$school', 'agreement_ended', 'PUB-1')"
	);
}

# With that login; a hat would not do.
sub approve
{
	my ($of, $school, $who) = @_;

	local $ENV{PGUSER} = $who;
	return sqlstate($of,
			'SELECT nomp_crypt.approve_erasure(case_id::text)'
		  . " FROM nomp_crypt.erasures WHERE tenant = '$school' AND state = 'requested'"
	);
}

# What is on record of a school: types, and what they say beside the school.
sub on_record
{
	my ($school, $types) = @_;

	return one($node,
		"SELECT string_agg(r.type || ' ' || (r.data - 'school' - 'case'), ', ' ORDER BY r.number)"
		  . ' FROM nomp_crypt.tenants t, nomp_crypt._register_of(t.uuid) r'
		  . " WHERE t.id = '$school' AND r.type = ANY ('{$types}')");
}

# What is put on record.
one($node, "SELECT nomp_crypt.hold_tenant('held', 'T-0')");
one($node, "SELECT nomp_crypt.release_hold('held', 'T-0')");
is( on_record('held', 'hold,released'),
	'hold {"reference": "T-0"}, released {"reference": "T-0"}',
	'a hold and its end are on record');
is( sqlstate(
		$node,
		"BEGIN; SELECT nomp_crypt.hold_tenant('held', 'T-1'); ROLLBACK"),
	'',
	'a hold that is rolled back');
is( on_record('held', 'hold,released'),
	'hold {"reference": "T-0"}, released {"reference": "T-0"}',
	'is on no record');

# A hold that was signed and written, and not committed, counts once.
append_to_file("$node->{nomp_dir}/register-main/crash", 'written');
restarts($node,
	sub { sqlstate($node, "SELECT nomp_crypt.hold_tenant('living', 'T-5')") }
);
ok(!-e "$node->{nomp_dir}/register-main/crash", 'killed where it should be');
is( one($node,
		'SELECT count(*) FROM nomp_crypt.legal_hold WHERE released_at IS NULL'
	),
	'0',
	'the table has no hold');
is(failure($node, "SELECT nomp_crypt.hold_tenant('living', 'T-5')"),
	'', 'it is placed again');
is( on_record('living', 'hold,released'),
	'hold {"reference": "T-5"}, hold {"reference": "T-5"}',
	'and is on record twice');
is(one($node, 'SELECT count(*) FROM nomp_crypt.reconcile()'),
	'0', 'there is nothing to set right');
one($node, "SELECT nomp_crypt.release_hold('living', 'T-5')");
is(one($node, 'SELECT count(*) FROM nomp_crypt.reconcile()'),
	'0', 'nor when it is released, once');

# The backup.
one($node, "SELECT nomp_crypt.hold_tenant('lifted', 'T-2')");
one($node, "SELECT nomp_crypt.hold_tenant('again', 'T-3')");
request($node, 'taken_back');
$node->append_conf('postgresql.conf', <<'CONF');
nomp_crypt.erasure_approvals = 1
nomp_crypt.erasure_requires_return = on
CONF
$node->reload;
$node->poll_query_until('postgres', 'SHOW nomp_crypt.erasure_approvals', '1')
  or die;
request($node, 'approved');
$node->backup('before');

# What happens after it.
one($node, "SELECT nomp_crypt.hold_tenant('held', 'T-1')");
one($node, "SELECT nomp_crypt.hold_tenant('held', 'T-1')");
one($node, "SELECT nomp_crypt.release_hold('lifted', 'T-2')");
one($node, "SELECT nomp_crypt.release_hold('again', 'T-3')");
one($node, "SELECT nomp_crypt.hold_tenant('again', 'T-3')");
one($node, "SELECT nomp_crypt.withdraw_erasure('taken_back')");
is(approve($node, 'approved', 'anna'), '', 'an approval');
one($node, "SELECT nomp_crypt.data_returned('approved', repeat('ab', 32))");
one($node, "SELECT nomp_crypt.data_returned('lifted', 'not wanted')");
is( on_record('approved', 'approved,returned'),
	'approved {"given": 1, "needed": 1}, returned {"wanted": true, "manifest_sha256": "'
	  . 'ab' x 32 . '"}',
	'approval and return are on record');
is( on_record('lifted', 'returned'),
	'returned {"wanted": false}',
	'and so is that it is not wanted');
is( on_record('held', 'hold,released'),
	'hold {"reference": "T-0"}, released {"reference": "T-0"}, hold {"reference": "T-1"}',
	'a hold that is repeated is on record once');
# keys and their names are letters by chance
unlike(
	one($node,
		'SELECT string_agg(nomp_crypt._register_verify(jws), $$ $$) FROM nomp_crypt.register'
	) =~ s/"[\w-]{43}"//gr,
	qr/anna|bertil|@{[ one($node, 'SELECT current_user') ]}/,
	'no record says who it was');

# Rows changed by hand, where nothing was restored.
is( sqlstate(
		$node, "DELETE FROM nomp_crypt.legal_hold WHERE reference = 'T-1'"),
	'',
	'somebody deletes a hold');
one($node, "SELECT nomp_crypt.data_returned('held', 'not wanted')");
request($node, 'held');
is(approve($node, 'held', 'anna'), '', 'and has the erasure approved');
like(
	failure($node, call('held')),
	qr/^55000: tenant "held" is under legal hold T-1, by record \d+ of the register/,
	'the register has it, and stops the erasure');
is( one($node,
		"SELECT severity FROM nomp_crypt.health() WHERE name = 'reconcile'"),
	'critical',
	'health() says so');
is(one($node, 'SELECT tenant, action FROM nomp_crypt.reconcile()'),
	'held|held', 'it is put back');
like(
	failure($node, call('held')),
	qr/^55000: .* waits for the release of legal hold T-1, placed at \S+ \S+\n/,
	'and waited for');
request($node, 'living');
one($node, <<'SQL');
SELECT nomp_crypt.data_returned('living', 'not wanted');
INSERT INTO nomp_crypt.erasure_approval (case_id, role, actors)
SELECT case_id, 'nobody', '{nobody}' FROM nomp_crypt.erasures WHERE tenant = 'living';
SQL
like(
	failure($node, call('living')),
	qr/^55000: 1 of 1 approvals of the erasure of tenant "living" are not on record in the register/,
	'an approval written by hand does not count');
one($node, "SELECT nomp_crypt.withdraw_erasure('living')");
one($node,
	"UPDATE nomp_crypt.erasure e SET state = 'requested' FROM nomp_crypt.tenant t"
	  . " WHERE t.uuid = e.tenant AND t.id = 'living'");
like(
	failure($node, call('living')),
	qr/^55000: erasure case \S+ of tenant "living" was withdrawn, by record/,
	'nor does a case that was withdrawn come back by hand');
is(one($node, 'SELECT tenant, action FROM nomp_crypt.reconcile()'),
	'living|withdrawn', 'it is withdrawn again');
is(school_reads($node, 'living'), 'Anna i living', 'and reads');

# The restored database takes the original's place.
my $copy = PostgreSQL::Test::Cluster->new('restored');
$copy->init_from_backup($node, 'before');
own_register($node, $copy);
$node->stop;
$copy->start;
is(sqlstate($copy, "SELECT nomp_crypt.hold_tenant('living', 'T-9')"),
	'55000', 'a copy holds nothing');
one($copy, 'SELECT nomp_crypt.adopt_keystore()');
one($copy, "SELECT nomp_crypt.data_returned('$_', 'not wanted')")
  for 'held', 'taken_back';
request($copy, 'held');
is(approve($copy, $_, 'bertil'), '', "$_: approved") for 'held', 'taken_back';
like(
	failure($copy, call('held')),
	qr/^55000: tenant "held" is under legal hold T-1, by record \d+ of the register/,
	'restored: a hold that was placed later stops the erasure');
like(
	failure($copy, 'CALL nomp_crypt.run_due_erasures()'),
	qr/^55000: 2 of 2 erasures.*The first one: /s,
	'restored: nothing is due that was held or taken back');
is( one($copy,
		"SELECT string_agg(tenant || ' ' || action, ', ' ORDER BY tenant, action)"
		  . ' FROM nomp_crypt.reconcile()'),
	'held held, lifted released, taken_back withdrawn',
	'reconcile() says what it has set right');
is(one($copy, 'SELECT count(*) FROM nomp_crypt.reconcile()'),
	'0', 'once is enough');
is( one($copy,
		"SELECT string_agg(t.id || ' ' || l.reference || coalesce(' by ' || l.placed_by, ''), ', ' ORDER BY t.id)"
		  . ' FROM nomp_crypt.legal_hold l JOIN nomp_crypt.tenant t ON t.uuid = l.tenant'
		  . " WHERE l.released_at IS NULL AND t.id <> 'again'"),
	'held T-1',
	'the hold holds again, the lifted one does not');
is( one($copy, "SELECT held FROM nomp_crypt.erasures WHERE tenant = 'held'"),
	't',
	'and is seen');
is( school_reads($copy, 'taken_back'),
	'Anna i taken_back',
	'what was taken back reads');
like(
	failure($copy, call('approved')),
	qr/^55000: .* waits for 1 of 1 approvals.*; the data's return/,
	'approval and return must be given again');
is(approve($copy, 'approved', 'anna'), '', 'by whoever gave it before');
one($copy, "SELECT nomp_crypt.data_returned('approved', repeat('ab', 32))");
is(failure($copy, call('approved')), '', 'then it is erased');
is(school_reads($copy, 'approved'), 'NC001', 'as it should be');
one($copy, "SELECT nomp_crypt.release_hold('held', 'T-1')");
is(failure($copy, call('held')), '', 'and the held one when it is released');
is(school_reads($copy, 'held'), 'NC001', 'to the end');
is(one($copy, 'SELECT state FROM nomp_crypt.register_status()'),
	'ok', 'the register is whole');

$copy->stop;
done_testing();
