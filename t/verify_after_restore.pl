# After a restore somebody wants to know whether everything is there: verify
# says so, of a primary, a standby and a restored backup, writes nothing, and
# tells what is damaged from what only cannot be looked at now.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IPC::Run;
use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = nomp_node('primary', allows_streaming => 1);
my $dir = $node->{nomp_dir};
$node->append_conf('postgresql.conf', 'autovacuum = off');
$node->start;
create_nomp($node, 'a', 'b', 'gone', 'halted');
$node->safe_psql('postgres', <<'SQL');
CREATE TRIGGER tenant BEFORE INSERT OR UPDATE ON pupil
FOR EACH ROW EXECUTE FUNCTION nomp_crypt.enforce_tenant('school');
SQL
for my $school ('a', 'b', 'gone', 'halted')
{
	my $first = { a => 1, b => 101, gone => 201, halted => 301 }->{$school};

	$node->safe_psql('postgres', in_tenant($school, <<"SQL"));
INSERT INTO pupil SELECT i, '$school', 'Anna ' || i, repeat('x', 3000) FROM generate_series($first, $first + 9) i
SQL
}

# What the call says, by notices and result.
sub verify
{
	my ($where, $table) = @_;
	my ($out, $err) = ('', '');

	IPC::Run::run(
		[
			'psql', '-XAtq',
			'-v', 'VERBOSITY=verbose',
			'-d', $where->connstr('postgres'),
			'-c', "CALL nomp_crypt.verify(" . ($table // "'pupil'") . ')'
		],
		'>',
		\$out,
		'2>',
		\$err);
	chomp $out;
	return ($out, join "\n",
		map { /(?:NOTICE|ERROR):\s+(.*)/ ? $1 : () } split /\n/, $err);
}

my ($problems, $said) = verify($node);
is($problems, 0, 'all is well');
like(
	$said,
	qr/public\.pupil\.name, tenant "a", opens: 10/,
	'which is said per column and school');
like($said, qr/public\.pupil\.notes, tenant "gone", opens: 10/, 'of each');

# A backup from before a school is erased, and another suspended.
$node->backup('base');
$node->safe_psql('postgres', "CALL nomp_crypt.erase_tenant('gone', 'test')");
$node->safe_psql('postgres', "CALL nomp_crypt.suspend_tenant('halted')");
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
mkdir "$dir/register-standby", 0700;
$standby->append_conf('postgresql.conf',
	"nomp_crypt.register_directory = '$dir/register-standby'");
$standby->start;
my $restored = PostgreSQL::Test::Cluster->new('restored');
$restored->init_from_backup($node, 'base');
mkdir "$dir/register-restored", 0700;
$restored->append_conf('postgresql.conf',
	"nomp_crypt.register_directory = '$dir/register-restored'");
$restored->start;

($problems, $said) = verify($restored);
is($problems, 20,
	'in a backup from before an erasure its values do not open');
like(
	$said,
	qr/pupil\.name, tenant "gone", unknown: 10 in rows \(0,\d+\) id=201; /,
	'their key is unknown, and they are named');
like($said, qr/pupil\.name, tenant "b", opens: 10/, 'all others open');
like(
	$said,
	qr/pupil\.name, tenant "halted", suspended: 10/,
	'of a suspended school the keystore knows, though the backup does not');
$restored->stop;

# Damage, strangers, and values in other schools' rows.
$node->safe_psql('postgres', <<'SQL');
ALTER TABLE pupil DISABLE TRIGGER tenant;
UPDATE pupil SET name = ('nc1:' || translate(encode(overlay(encrypted_send(name) PLACING '\x00ff' FROM 40), 'base64'), E'\n', ''))::encrypted WHERE id = 1;
UPDATE pupil SET notes = ('nc1:' || translate(encode(overlay(encrypted_send(notes) PLACING '\x00ff' FROM 2000), 'base64'), E'\n', ''))::encrypted WHERE id = 2;
UPDATE pupil SET name = ('nc1:' || translate(encode(overlay(encrypted_send(name) PLACING '\x0102030405060708' FROM 3), 'base64'), E'\n', ''))::encrypted WHERE id = 3;
UPDATE pupil SET school = 'b' WHERE id = 4;
ALTER TABLE pupil ENABLE TRIGGER tenant;
SQL
$node->wait_for_catchup($standby);
for my $where ($node, $standby)
{
	my $name = $where->name;

	($problems, $said) = verify($where);
	is($problems, 5, "$name: what is wrong is counted");
	like(
		$said,
		qr/name, unknown: 1 in rows \(\d+,\d+\) id=3$/m,
		"$name: an unknown key");
	like(
		$said,
		qr/name, tenant "a", damaged: 1 in rows \(\d+,\d+\) id=1$/m,
		"$name: a damaged value");
	like(
		$said,
		qr/notes, tenant "a", damaged: 1 in rows \(\d+,\d+\) id=2$/m,
		"$name: a damaged value that lies out of line");
	like(
		$said,
		qr/name, tenant "a", foreign: 1 in rows \(\d+,\d+\) id=4$/m,
		"$name: another school's value");
	like(
		$said,
		qr/notes, tenant "a", foreign: 1 in rows \(\d+,\d+\) id=4$/m,
		"$name: in each column");
	like($said, qr/name, tenant "a", opens: 7$/m,
		"$name: what is right, too");
	like(
		$said,
		qr/name, tenant "gone", erased: 10$/m,
		"$name: erased is not wrong");
	like(
		$said,
		qr/name, tenant "halted", suspended: 10$/m,
		"$name: nor is suspended");
	unlike($said, qr/Anna|xxx/, "$name: no plaintext is shown");
	is( $where->safe_psql(
			'postgres',
			"SELECT string_agg(concat_ws(' ', column_name, tenant, \"values\"), ', ' ORDER BY column_name, tenant) FROM nomp_crypt.verify_values() WHERE status = 'damaged'"
		),
		'name a 1, notes a 1',
		"$name: the function says the same, of all tables");
}
is($standby->safe_psql('postgres', 'SELECT pg_is_in_recovery()'),
	't', 'the standby is one');

# A key's row that was changed.
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE kept AS SELECT * FROM nomp_crypt.tenant_key;
UPDATE nomp_crypt.tenant_key k SET wrapped = set_byte(wrapped, 20, get_byte(wrapped, 20) # 1)
FROM nomp_crypt.tenant t WHERE t.uuid = k.tenant AND t.id = 'b' AND k.purpose = 'values';
SQL
$node->restart;
($problems, $said) = verify($node);
like(
	$said,
	qr/name, tenant "b", damaged: 10 in rows/,
	'a key that does not open: its values do not');
like($said, qr/name, tenant "a", opens: 7/, 'the others do');
$node->safe_psql('postgres', <<'SQL');
UPDATE nomp_crypt.tenant_key k SET wrapped = o.wrapped FROM kept o WHERE o.key_id = k.key_id;
SQL

# And one that does not even fit its own id.
$node->safe_psql('postgres', <<'SQL');
UPDATE nomp_crypt.tenant_key k SET key_check = set_byte(key_check, 0, get_byte(key_check, 0) # 1)
FROM nomp_crypt.tenant t WHERE t.uuid = k.tenant AND t.id = 'b' AND k.purpose = 'values';
SQL
($problems, $said) = verify($node);
like(
	$said,
	qr/name, damaged: 10 in rows/,
	'a row that contradicts itself is nobody\'s key');
like($said, qr/name, tenant "a", opens: 7/, 'the others open');
$node->safe_psql('postgres', <<'SQL');
UPDATE nomp_crypt.tenant_key k SET key_check = o.key_check FROM kept o WHERE o.key_id = k.key_id;
SQL

# A keystore that is away: that says nothing about values.
set_keystore($node, '');
$node->restart;
($problems, $said) = verify($node);
is($problems, '', 'without the keystore there is no result');
like(
	$said,
	qr/^NC004: the keystore is unavailable/m,
	'but the error that says so');
is(sqlstate($node, 'SELECT * FROM nomp_crypt.verify_values()'),
	'NC004', 'of the function, too');
set_keystore($node, keystore_uri($dir, 'nomp'));
wait_until(sub { keystore_state($node) eq 'ok' }, 'the keystore');
($problems, $said) = verify($node);
is($problems, 5, 'when it is there again all is as it was');

$_->stop for $standby, $node;
done_testing();
