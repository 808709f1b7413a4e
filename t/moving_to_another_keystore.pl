# Schools move to another keystore while they are in use: their keys are
# wrapped by a new KEK there, opened again, and used from the commit on.  No
# value changes, nothing stops, and a crash at any point is repaired by the
# same call.  The old KEK stays where it was, for backups; and an erasure
# destroys both, each in its own token.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = nomp_node('main', allows_streaming => 1);
my $dir = $node->{nomp_dir};

make_token($dir, 'new');

# Only the new keystore goes through the shim.
my $old_uri = keystore_uri($dir, 'nomp');
my $new_uri = keystore_uri($dir, 'new', shim_module($dir));
my $old = serial_of($dir, 'nomp');
my $new = serial_of($dir, 'new');

shim_says();
$node->append_conf('postgresql.conf', <<"CONF");
nomp_crypt.keystore = '$old_uri'
nomp_crypt.other_keystores = '$new_uri'
nomp_crypt.max_cached_keys = 16
nomp_crypt.keystore_timeout = 600s
nomp_crypt.backup_retention = 35d
CONF
$node->start;

my @schools = map { "school$_" } 1 .. 30;
create_nomp($node, @schools);
$node->safe_psql('postgres',
		'INSERT INTO pupil (id, school, name)'
	  . " SELECT row_number() OVER (), id, nomp_crypt.encrypt('Anna i ' || id, id)"
	  . ' FROM nomp_crypt.tenants');
$node->backup('before');

sub keystore_tokens
{
	my ($where) = @_;

	return ($where // $node)->safe_psql('postgres',
		q(SELECT string_agg(token, ' ') FROM nomp_crypt.keystore_status() WHERE keystore IS NOT NULL)
	);
}

sub follow
{
	my ($where, @uris) = @_;
	my @tokens = map { /token=(\w+)/ } @uris;

	set_keystores($where, @uris);
	wait_until(sub { keystore_tokens($where) eq "@tokens" },
		"keystores @tokens");
	return;
}

sub decrypt_school
{
	my ($school) = @_;

	return
	  "SELECT nomp_crypt.decrypt(name) FROM pupil WHERE school = '$school'";
}

# Every value, and how many there are.
sub all_read
{
	my ($where, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is(
		outcome(
			$where,
			q(SELECT count(*) FROM pupil WHERE nomp_crypt.decrypt(name) = 'Anna i ' || school)
		),
		30, $name);
}

# generation, keystore, state and whether it is to be destroyed in time
sub keks
{
	my ($school) = @_;

	return $node->safe_psql('postgres', <<"SQL");
SELECT string_agg(concat_ws(' ', k.generation, CASE k.keystore WHEN 'pkcs11:serial=$old' THEN 'old' WHEN 'pkcs11:serial=$new' THEN 'new' END,
	k.state, CASE WHEN k.destroy_after > now() + interval '34 days' AND k.destroy_after < now() + interval '36 days' THEN 'kept' END), ', ' ORDER BY k.generation)
FROM nomp_crypt.kek k JOIN nomp_crypt.tenant t ON t.uuid = k.tenant WHERE t.id = '$school'
SQL
}

sub labels_of
{
	my ($token, $school) = @_;
	my $uuid = $node->safe_psql('postgres',
		"SELECT uuid FROM nomp_crypt.tenants WHERE id = '$school'");

	# whether it is lasting by now or not
	return join ' ', sort map { /:$uuid:(\d+)/ } token_labels($dir, $token);
}

sub migrate
{
	my ($school, $serial) = @_;

	return outcome($node,
			"SELECT nomp_crypt.migrate_tenant('$school'"
		  . (defined $serial ? ", '$serial'" : '')
		  . ')');
}

sub elsewhere
{
	return $node->safe_psql('postgres',
		"SELECT count(*) FROM nomp_crypt.kek WHERE state = 'active' AND keystore = 'pkcs11:serial=$old'"
	);
}

# ---- what does not work ----

is(migrate('school1', $new),
	'NC004', 'nothing moves to a keystore that is not the installation\'s');
is(labels_of('new', 'school1'), '', 'no key is made there');
$node->safe_psql('postgres', "SELECT nomp_crypt.add_keystore('$new')");
is(migrate('school1', '0123456789abcdef'),
	'42704', 'nor to one that is not configured');
is(migrate('nobody', $new), '42704', 'nor a school that is none');
is(sqlstate($node, 'BEGIN; CALL nomp_crypt.migrate_tenants(); COMMIT'),
	'2D000', 'all of them do not move in one transaction');
is(sqlstate($node, q(CALL nomp_crypt.migrate_tenants('0123456789abcdef'))),
	'42704', 'nor to a keystore that is not configured');
is(scalar(my @made = token_labels($dir, 'new')),
	1, 'of all this no key was made');

# ---- one school ----

is(migrate('school1', $new), '2', 'a school moves to the other keystore');
is( keks('school1'),
	'1 old retired kept, 2 new active',
	'its old key is kept where it was, for backups');
is(labels_of('new', 'school1'), '2', 'the new one is in the new token');
is(labels_of('nomp', 'school1'), '1', 'the old one in the old token');
is(migrate('school1', $new), '2', 'again, nothing happens');
is(migrate('school1'), '3',
	'without a name it moves to the first keystore, here back again');
is( keks('school1'),
	'1 old retired kept, 2 new retired kept, 3 old active',
	'with a third key');
is( $node->safe_psql(
		'postgres',
		q(SELECT tenant, detail->>'serial' FROM nomp_crypt.audit WHERE act = 'migrate_tenant' ORDER BY at)
	),
	"school1|$new\nschool1|$old",
	'both are on record');
all_read($node, 'all read');
is(sqlstate($node, q(SELECT nomp_crypt.rotate_tenant('school1'))),
	'', 'it gets a new data key');
is(migrate('school1', $new), '4', 'and moves again, with all of them');
all_read($node, 'all read');

# A key that does not open is not wrapped, and nothing changes.
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE whole AS SELECT k.* FROM nomp_crypt.tenant_key k
	JOIN nomp_crypt.tenant t ON t.uuid = k.tenant WHERE t.id = 'school2';
UPDATE nomp_crypt.tenant_key k SET wrapped = set_byte(k.wrapped, 20, get_byte(k.wrapped, 20) # 1)
FROM whole WHERE whole.key_id = k.key_id AND k.purpose = 'index';
SQL
is(migrate('school2', $new),
	'NC005', 'a key that was tampered with is not moved');
is(keks('school2'), '1 old active', 'nor is anything else of that school');
$node->safe_psql('postgres',
	'UPDATE nomp_crypt.tenant_key k SET wrapped = whole.wrapped FROM whole WHERE whole.key_id = k.key_id'
);
is( $node->safe_psql(
		'postgres',
		q(SELECT action FROM nomp_crypt.reconcile_keystore(true, '0 s'))),
	'removed',
	'the key that was made for it is removed');

# ---- the new keystore hangs in the middle ----

for my $function ('C_GenerateKey', 'C_Encrypt', 'C_Decrypt')
{
	my $calls = shim_calls($function);
	my $query;

	shim_says("$function hang");
	$query = start_query($node,
		"SELECT nomp_crypt.migrate_tenant('school3', '$new')");
	wait_until(sub { shim_calls($function) > $calls }, "$function to hang");
	all_read_but_new($function);
	$node->safe_psql('postgres',
		q(SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE '%migrate_tenant%' AND pid <> pg_backend_pid())
	);
	is((end_query($query))[0], '57014', "$function: it can be cancelled");
	shim_says();
	kill 'KILL', shim_pid();
	is(keks('school3'), '1 old active', "$function: nothing has changed");
}
is(migrate('school3', $new) > 1 ? 'moved' : '', 'moved', 'then it moves');
like(keks('school3'), qr/^1 old retired kept, \d new active$/, 'whole');

sub all_read_but_new
{
	my ($function) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is(
		outcome($node, decrypt_school('school4')),
		'Anna i school4',
		"$function hangs: the old keystore serves");
}

# ---- a crash in the middle, and the same call again ----

follow($node, $new_uri, $old_uri);
for my $function ('C_GenerateKey', 'C_Encrypt', 'C_SetAttributeValue',
	'C_Decrypt')
{
	my $left = elsewhere();
	my $calls = shim_calls($function);
	my $query;

	shim_says("$function hang once");
	$query = start_query($node, 'CALL nomp_crypt.migrate_tenants()');
	wait_until(sub { shim_calls($function) > $calls }, "$function to hang");
	crash($node);
	end_query($query);
	shim_says();
	$node->start;
	all_read($node, "after a crash in $function all read");
	cmp_ok(elsewhere(), '<=', $left, 'and no school has moved back');
}

# ---- all of them, while they are read and written ----

{
	my $reader = q(DO $$ BEGIN
		FOR i IN 1 .. 10 LOOP
			IF (SELECT count(*) FROM pupil WHERE nomp_crypt.decrypt(name) = 'Anna i ' || school) <> 30 THEN
				RAISE EXCEPTION 'wrong';
			END IF;
			COMMIT;
		END LOOP;
	END $$);
	my $writer = q(DO $$ DECLARE s record; BEGIN
		FOR i IN 1 .. 10 LOOP
			FOR s IN SELECT id, school FROM pupil LOOP
				UPDATE pupil SET name = nomp_crypt.encrypt('Anna i ' || s.school, s.school) WHERE id = s.id;
				COMMIT;
			END LOOP;
		END LOOP;
	END $$);
	my @queries =
	  map { start_query($node, $_) } $reader, $writer, $reader,
	  'CALL nomp_crypt.migrate_tenants()',
	  'CALL nomp_crypt.migrate_tenants()';

	is_deeply(
		[ map { (end_query($_))[0] } @queries ],
		[ ('') x @queries ],
		'all move, in two calls at once, while they are read and written');
	is(elsewhere(), 0, 'none is left');
	all_read($node, 'all read');
	$node->restart;
	all_read($node, 'after a restart too');
	follow($node, $old_uri, $new_uri);
	all_read($node, 'and in the other order of the settings');
	follow($node, $new_uri, $old_uri);
	$node->safe_psql('postgres',
		q(SELECT nomp_crypt.reconcile_keystore(true, '0 s')));
	is( $node->safe_psql(
			'postgres',
			q(SELECT count(*) FROM nomp_crypt.reconcile_keystore())),
		0,
		'the keys that crashes left are removed');
	all_read($node, 'and all read');
}

# ---- nodes that have both keystores, and one that lacks the new one ----

my $backup = PostgreSQL::Test::Cluster->new('restored');
$backup->init_from_backup($node, 'before');
mkdir "$dir/register-restored", 0700;
$backup->append_conf('postgresql.conf', <<"CONF");
nomp_crypt.register_directory = '$dir/register-restored'
nomp_crypt.keystore = '$old_uri'
nomp_crypt.other_keystores = ''
CONF
unlink $backup->data_dir . '/postgresql.auto.conf';
$backup->start;
is(keystore_tokens($backup),
	'nomp', 'a backup from before is restored with the old keystore');
all_read($backup, 'it reads, with the keys that were kept for it');
$backup->stop;

$node->backup('after');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'after', has_streaming => 1);
mkdir "$dir/register-standby", 0700;
$standby->append_conf('postgresql.conf',
	"nomp_crypt.register_directory = '$dir/register-standby'");
$standby->start;
$node->wait_for_catchup($standby);
all_read($standby, 'a standby that has both reads');
follow($standby, $old_uri);
$standby->restart;
like(
	failure($standby, decrypt_school('school5')),
	qr/^NC004: +the keystore is unavailable: the one that holds the key is not configured$/m,
	'one that lacks the new keystore says so');
follow($standby, $new_uri);
all_read($standby, 'and reads as soon as it has it');
is(sqlstate($standby, "SELECT nomp_crypt.migrate_tenant('school5')"),
	'25006', 'a standby moves nothing');
is(sqlstate($standby, "SELECT nomp_crypt.add_keystore('$new')"),
	'25006', 'nor adds a keystore');
follow($standby, $new_uri, $old_uri);

# ---- suspension, in both ----

$backup->start;
is( outcome($backup, decrypt_school('school11')),
	'Anna i school11',
	'a restored server reads a school that has moved');
is(sqlstate($node, q(CALL nomp_crypt.suspend_tenant('school11'))),
	'', 'which is then suspended');
$backup->restart;
is(sqlstate($backup, decrypt_school('school11')),
	'NC002', 'where it was too, its keys are disabled');
is(sqlstate($node, q(CALL nomp_crypt.resume_tenant('school11'))),
	'', 'it is resumed');
is(outcome($node, decrypt_school('school11')), 'Anna i school11', 'it reads');
is( outcome($backup, decrypt_school('school11')),
	'Anna i school11',
	'and on the restored server');
$backup->stop;

# ---- the end of the old keys ----

{
	my $session;
	my $calls;

	follow($node, $old_uri, $new_uri);
	$node->safe_psql('postgres', q(SELECT nomp_crypt.create_tenant('hot')));
	follow($node, $new_uri, $old_uri);
	$node->append_conf('postgresql.conf', <<'CONF');
nomp_crypt.key_check_interval = 1s
nomp_crypt.backup_retention = 0
CONF
	$node->reload;
	$session = open_session($node);
	$session->query_safe(
		q(BEGIN; SET LOCAL nomp_crypt.tenant = 'hot'; CREATE TEMP TABLE t (name encrypted(text)); INSERT INTO t VALUES ('Anna'))
	);
	wait_until(
		sub {
			$node->safe_psql('postgres', 'SHOW nomp_crypt.backup_retention')
			  eq '0';
		},
		'the setting');
	# as if they were older than any backup
	$node->safe_psql('postgres',
		q(UPDATE nomp_crypt.kek SET destroy_after = now(), retired_at = now() WHERE state = 'retired')
	);
	is(migrate('hot'), '2', 'a school moves while a session reads it');
	$calls = shim_calls('C_FindObjectsInit');
	is(sqlstate($node, 'CALL nomp_crypt.destroy_expired_keks()'),
		'', 'keys that no backup needs are destroyed');
	is(join(' ', grep { !/canary/ } token_labels($dir, 'nomp')),
		'', 'in the old token, where none is left');
	is( $node->safe_psql(
			'postgres',
			q(SELECT keys FROM nomp_crypt.keystore_status() WHERE token = 'nomp')
		),
		'0',
		'keystore_status() says so');
	# the old key is gone, and a later one is looked for in the other keystore
	wait_until(sub { shim_calls('C_FindObjectsInit') > $calls + 1 },
		'the background check');
	is(says($session, 'SELECT name FROM t'),
		'Anna', 'the session goes on, with the key of the new keystore');
	$session->quit;
	unlike(
		slurp_file($node->logfile),
		qr/no longer has the key/,
		'and no school was taken for gone');
	follow($node, $new_uri);
	all_read($node, 'without the old keystore all read');
	$node->restart;
	all_read($node, 'after a restart too');
	is( $node->safe_psql(
			'postgres', 'SELECT state FROM nomp_crypt.keystore_status()'),
		'ok',
		'nothing is missing');
	follow($node, $new_uri, $old_uri);
	$node->append_conf('postgresql.conf',
		'nomp_crypt.backup_retention = 35d');
	$node->reload;
	wait_until(
		sub {
			$node->safe_psql('postgres', 'SHOW nomp_crypt.backup_retention')
			  eq '35d';
		},
		'the setting');
}

# Once more there and back, so that the schools below have keys in both.
is( sqlstate($node, "CALL nomp_crypt.migrate_tenants('$old')")
	  . sqlstate($node, 'CALL nomp_crypt.migrate_tenants()'),
	'',
	'all move back, and to the new keystore again');

# ---- erasure, in both ----

is( scalar(my @in_old = split / /, labels_of('nomp', 'school5')) . '/'
	  . scalar(my @in_new = split / /, labels_of('new', 'school5')),
	'1/2',
	'a school has keys in both tokens');
is(sqlstate($node, q(CALL nomp_crypt.erase_tenant('school5', 'test'))),
	'', 'it is erased');
is(labels_of('nomp', 'school5') . '/' . labels_of('new', 'school5'),
	'/', 'its keys are in neither any more');
is( $node->safe_psql('postgres', <<"SQL"),
SELECT e.state, e.keystore_serial = (SELECT string_agg(s, ' ' ORDER BY s) FROM unnest('{$old,$new}'::text[]) s),
	e.keystores -> '$old' -> 'seen' = e.keystores -> '$old' -> 'destroyed',
	jsonb_array_length(e.keystores -> '$old' -> 'destroyed'),
	e.keystores -> '$new' -> 'seen' = e.keystores -> '$new' -> 'destroyed',
	jsonb_array_length(e.keystores -> '$new' -> 'destroyed'), cardinality(e.keys_destroyed)
FROM nomp_crypt.erasure e JOIN nomp_crypt.tenant t ON t.uuid = e.tenant WHERE t.id = 'school5'
SQL
	'destroyed|t|t|1|t|2|3',
	'each was seen and destroyed in its own token');
is( $node->safe_psql(
		'postgres',
		q(SELECT DISTINCT k.state, k.destroyed_at IS NOT NULL FROM nomp_crypt.kek k JOIN nomp_crypt.tenant t ON t.uuid = k.tenant WHERE t.id = 'school5')
	),
	'destroyed|t',
	'both stay on record as destroyed');
is(sqlstate($node, decrypt_school('school5')),
	'NC001', 'its values are erased');
$node->wait_for_catchup($standby);
is(sqlstate($standby, decrypt_school('school5')),
	'NC001', 'on the standby too');

# The server dies when the keys are destroyed in the one and not the other.
{
	my $calls = shim_calls('C_DestroyObject');
	my $query;

	shim_says('C_DestroyObject hang once');
	$query =
	  start_query($node, q(CALL nomp_crypt.erase_tenant('school6', 'test')));
	wait_until(sub { shim_calls('C_DestroyObject') > $calls },
		'the destruction to hang');
	crash($node);
	end_query($query);
	shim_says();
	$node->start;
	is(sqlstate($node, decrypt_school('school6')),
		'NC002',
		'after a crash in the middle of its erasure it is suspended');
	is(sqlstate($node, q(CALL nomp_crypt.erase_tenant('school6', 'test'))),
		'', 'the same call completes it');
	is(labels_of('nomp', 'school6') . '/' . labels_of('new', 'school6'),
		'/', 'its keys are in neither any more');
	is( $node->safe_psql('postgres', <<"SQL"),
SELECT e.state, e.keystores -> '$old' -> 'seen' = e.keystores -> '$old' -> 'destroyed',
	e.keystores -> '$new' -> 'seen' = e.keystores -> '$new' -> 'destroyed'
FROM nomp_crypt.erasure e JOIN nomp_crypt.tenant t ON t.uuid = e.tenant WHERE t.id = 'school6'
SQL
		'destroyed|t|t',
		'and both were witnessed, each once');
}

# One of them is missing: nothing is destroyed in the other.
follow($node, $new_uri);
is(sqlstate($node, q(CALL nomp_crypt.erase_tenant('school7', 'test'))),
	'NC004', 'without the old keystore a school is not erased');
isnt(labels_of('new', 'school7'), '', 'nothing is destroyed in the new one');
follow($node, $new_uri, $old_uri);
is(sqlstate($node, q(CALL nomp_crypt.erase_tenant('school7', 'test'))),
	'', 'with it, it is');
is(labels_of('nomp', 'school7') . '/' . labels_of('new', 'school7'),
	'/', 'in both');

# A suspended school stays where it is, and the call says so.
{
	my ($out, $err) = ('', '');

	$node->append_conf('postgresql.conf', 'nomp_crypt.erasure_grace = 1d');
	$node->reload;
	wait_until(
		sub {
			$node->safe_psql('postgres', 'SHOW nomp_crypt.erasure_grace') eq
			  '1d';
		},
		'the grace period');
	$node->safe_psql('postgres',
		q(CALL nomp_crypt.erase_tenant('school8', 'test')));
	delete_from_token(
		$dir, 'new',
		$node->safe_psql(
			'postgres',
			q(SELECT k.label FROM nomp_crypt.kek k JOIN nomp_crypt.tenant t ON t.uuid = k.tenant WHERE t.id = 'school9' AND k.state = 'active')
		));
	$node->psql(
		'postgres',
		"CALL nomp_crypt.migrate_tenants('$old')",
		stderr => \$err);
	like(
		$err,
		qr/WARNING: +tenant "school9" was not moved: the keystore has no key for tenant "school9"$/m,
		'a school whose key is gone is left, with a warning');
	like(
		$err,
		qr/NOTICE: +26 tenants moved, 1 failed, 1 suspended ones left$/m,
		'a suspended one too; the others move');
}

# ---- a token of another maker ----

{
	my ($softokn) =
	  grep { -e }
	  glob
	  '/usr/lib/*/libsoftokn3.so /usr/lib/*/nss/libsoftokn3.so /usr/lib64/libsoftokn3.so /usr/lib/libsoftokn3.so';
	my $init = "configDir='sql:$dir/nss' certPrefix='' keyPrefix='' "
	  . q(secmod='secmod.db' flags=);

	die 'libsoftokn3.so not found: install libnss3' unless $softokn;
	mkdir "$dir/nss", 0700;
	append_to_file("$dir/nss.pin", "Pin-0123456789\n");
	chmod 0600, "$dir/nss.pin";
	system_or_bail('certutil', '-N', '-d', "sql:$dir/nss", '-f',
		"$dir/nss.pin");
	$init =~ s/([^A-Za-z0-9.:\/_-])/sprintf '%%%02X', ord $1/ge;
	set_keystores(
		$node,
		'pkcs11:token=NSS%20Certificate%20DB?module-path='
		  . "$softokn&pin-source=file:$dir/nss.pin&x-init-reserved=$init",
		$old_uri,
		$new_uri);
	wait_until(sub { keystore_tokens() eq 'NSS Certificate DB nomp new' },
		'NSS to be the first keystore');
	$node->safe_psql('postgres',
		q(SELECT nomp_crypt.add_keystore((SELECT serial FROM nomp_crypt.keystore_status() LIMIT 1)))
	);
	is(migrate('school10') > 1 ? 'moved' : '',
		'moved', 'a school moves from SoftHSM to NSS');
	$node->restart;
	is( outcome($node, decrypt_school('school10')),
		'Anna i school10',
		'where it reads');
	is(migrate('school10', $new) > 2 ? 'moved' : '', 'moved', 'and back');
	is( outcome($node, decrypt_school('school10')),
		'Anna i school10',
		'where it reads');
	is( sqlstate($node, q(CALL nomp_crypt.erase_tenant('school10', 'test'))),
		'',
		'its erasure is requested');
	$node->append_conf('postgresql.conf', 'nomp_crypt.erasure_grace = 0');
	$node->reload;
	wait_until(
		sub {
			$node->safe_psql('postgres', 'SHOW nomp_crypt.erasure_grace') eq
			  '0';
		},
		'no grace period');
	is( sqlstate($node, q(CALL nomp_crypt.erase_tenant('school10', 'test'))),
		'',
		'and executed');
	is( $node->safe_psql('postgres', <<'SQL'),
SELECT e.state, count(*), bool_and(s.value -> 'seen' = s.value -> 'destroyed' AND s.value -> 'seen' <> '[]')
FROM nomp_crypt.erasure e JOIN nomp_crypt.tenant t ON t.uuid = e.tenant, jsonb_each(e.keystores) s
WHERE t.id = 'school10' GROUP BY 1
SQL
		'destroyed|3|t',
		'in all three tokens');
	my ($list) = run_command(
		[ 'symkeyutil', '-L', '-d', "sql:$dir/nss", '-f', "$dir/nss.pin" ]);
	is(scalar(my @left = $list =~ /(nomp_crypt:\S+)/g),
		1, 'NSS holds the canary and nothing else');
}

$standby->stop;
$node->stop;
done_testing();
