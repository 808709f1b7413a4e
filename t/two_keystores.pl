# Schools move from one keystore to another while both are configured.  So:
# every key is asked of the keystore that it was made in, whatever the order
# of the settings; a keystore that hangs, or is not the installation's yet,
# keeps nobody waiting but those who need it; and that a key is gone is
# believed of its own keystore alone.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = nomp_node('main');
my $dir = $node->{nomp_dir};
my $not_ours = q(the token is not this installation's);

make_token($dir, $_) for 'second', 'third';

# Only the second keystore goes through the shim.
my $first = keystore_uri($dir, 'nomp');
my $second = keystore_uri($dir, 'second', shim_module($dir));
my $third = keystore_uri($dir, 'third');
my %serial = map { $_ => serial_of($dir, $_) } qw(nomp second third);

# So little memory for keys that the keystores are asked all the time; and no
# request ends because of the time it takes.
shim_says();
$node->append_conf('postgresql.conf', <<'CONF');
nomp_crypt.max_cached_keys = 16
nomp_crypt.keystore_timeout = 600s
CONF
$node->start;

my @old = map { "old$_" } 1 .. 20;
my @new = map { "new$_" } 1 .. 20;

create_nomp($node, @old);

sub write_school
{
	my ($school) = @_;

	$node->safe_psql('postgres',
			'INSERT INTO pupil (id, school, name)'
		  . ' SELECT 1 + coalesce(max(id), 0),'
		  . " '$school', nomp_crypt.encrypt('Anna i $school', '$school') FROM pupil"
	);
	return;
}

sub decrypt_school
{
	my ($school) = @_;

	return
	  "SELECT nomp_crypt.decrypt(name) FROM pupil WHERE school = '$school'";
}

sub reads
{
	my ($school, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is(outcome($node, decrypt_school($school)), "Anna i $school",
		$name);
}

# All rows that can be read, in one query.
sub all_read
{
	my ($name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is(
		outcome(
			$node,
			q(SELECT count(*) FILTER (WHERE nomp_crypt.decrypt(name) = 'Anna i ' || school) - count(*) FROM pupil)
		),
		'0', $name);
}

sub status
{
	my ($columns) = @_;

	return $node->safe_psql('postgres',
		"SELECT $columns FROM nomp_crypt.keystore_status()");
}

sub keystore_of
{
	my ($school) = @_;

	return $node->safe_psql('postgres',
			'SELECT k.keystore FROM nomp_crypt.kek k, nomp_crypt.tenant t'
		  . " WHERE k.tenant = t.uuid AND t.id = '$school'");
}

sub label_of
{
	my ($school) = @_;

	return $node->safe_psql('postgres',
			'SELECT k.label FROM nomp_crypt.kek k, nomp_crypt.tenant t'
		  . " WHERE k.tenant = t.uuid AND t.id = '$school'");
}

# The broker has followed when keystore_status() shows these serials.
sub follow
{
	my ($first_uri, @others) = @_;
	my @labels = map { /token=(\w+)/ } $first_uri, @others;

	set_keystores($node, $first_uri, @others);
	wait_until(
		sub {
			$node->safe_psql('postgres',
				q(SELECT string_agg(token, ' ') FROM nomp_crypt.keystore_status())
				  . ' WHERE keystore IS NOT NULL') eq "@labels";
		},
		"keystores @labels");
	return;
}

write_school($_) for @old;
is(status('state, serial, keys'),
	"ok|$serial{nomp}|20", 'one keystore is one row of keystore_status()');

# ---- settings ----

for my $bad (
	[ 'pkcs11:token=a?pin-value=1234', 'a PIN' ],
	[
		'pkcs11:a pkcs11:b pkcs11:c pkcs11:d',
		'more keystores than there may be'
	])
{
	is( sqlstate(
			$node,
			"ALTER SYSTEM SET nomp_crypt.other_keystores = '$bad->[0]'"),
		'22023',
		"$bad->[1] is refused");
}

# ---- a keystore that is configured and not yet the installation's ----

follow($first, $second);
is( status('state, serial, canary, keys'),
	"ok|$serial{nomp}|t|20\n$not_ours|$serial{second}|f|0",
	'another keystore is another row; it is not the installation\'s');
all_read('schools read');
is(sqlstate($node, q(SELECT nomp_crypt.reconcile_keystore())),
	'NC004', 'what nobody owns cannot be looked for in it');

follow($second, $first);
like(
	failure($node, q(SELECT nomp_crypt.create_tenant('early'))),
	qr/^NC004: +the keystore is unavailable: \Q$not_ours\E$/m,
	'no key is made in it');
all_read('schools read in any order of the settings');

is(sqlstate($node, q(SELECT nomp_crypt.add_keystore('0123456789abcdef'))),
	'42704', 'only what is configured can be added');
is( outcome(
		$node, "SELECT nomp_crypt.add_keystore('$serial{second}') IS NULL"),
	'f',
	'the keystore is added');
is( outcome(
		$node, "SELECT nomp_crypt.add_keystore('$serial{second}') IS NULL"),
	'f',
	'again, which changes nothing');
is(scalar(my @canaries = token_labels($dir, 'second')),
	1, 'it has one key, the canary');
is(status('state, canary'), "ok|t\nok|t", 'and is the installation\'s');
is( $node->safe_psql(
		'postgres',
		q(SELECT DISTINCT detail->>'serial' FROM nomp_crypt.audit WHERE act = 'add_keystore')
	),
	$serial{second},
	'that is on record');

follow($third, $second);
is( outcome(
		$node,
		"BEGIN; UPDATE nomp_crypt.installation SET uuid = gen_random_uuid();"
		  . " SELECT nomp_crypt.add_keystore('$serial{third}')"),
	'55000',
	'another installation cannot add one');
follow($third);
like(
	failure($node, "SELECT nomp_crypt.add_keystore('$serial{third}')"),
	qr/^NC004: .*no token is this installation's$/m,
	'nor can be added what stands alone');
follow($first, $first =~ s/nomp/nomp;serial=$serial{nomp}/r);
is(sqlstate($node, "SELECT nomp_crypt.add_keystore('$serial{nomp}')"),
	'55000', 'nor one token twice');

# ---- keys are made in the first, and read wherever they are ----

follow($second, $first);
$node->safe_psql('postgres', "SELECT nomp_crypt.create_tenant('$_')")
  for @new;
write_school($_) for @new;
is(keystore_of('old1'), "pkcs11:serial=$serial{nomp}",
	'an old school\'s key is where it was made');
is( keystore_of('new1'),
	"pkcs11:serial=$serial{second}",
	'a new one\'s in the first keystore');
is( status('serial, keys'),
	"$serial{second}|20\n$serial{nomp}|20",
	'keystore_status() counts them');
all_read('all read');
$node->restart;
all_read('after a restart too');
follow($first, $second);
all_read('and in the other order');

# An aborted creation leaves its key in the one keystore, and is found there
# in any order.
$node->safe_psql('postgres',
	q(BEGIN; SELECT nomp_crypt.create_tenant('aborted'); ROLLBACK));
follow($second, $first);
$node->safe_psql('postgres',
	q(BEGIN; SELECT nomp_crypt.create_tenant('aborted'); ROLLBACK));
is( $node->safe_psql(
		'postgres',
		q(SELECT action FROM nomp_crypt.reconcile_keystore(true, '0 s'))),
	"removed\nremoved",
	'reconcile_keystore() looks into both');

# ---- the order changes while all are busy ----

{
	my $reader = q(DO $$ BEGIN
		FOR i IN 1 .. 20 LOOP
			IF (SELECT count(*) FROM pupil WHERE nomp_crypt.decrypt(name) <> 'Anna i ' || school) > 0 THEN
				RAISE EXCEPTION 'wrong';
			END IF;
			COMMIT;
		END LOOP;
	END $$);
	my $creator = "CALL nomp_crypt.create_tenants('{"
	  . join(',', map { "busy$_" } 1 .. 300) . "}')";
	my @queries =
	  map { start_query($node, $_) } $reader, $reader, $reader, $creator;

	for (1 .. 10)
	{
		follow($first, $second);
		follow($second, $first);
	}
	is_deeply(
		[ map { [ end_query($_) ] } @queries ],
		[ map { [ '', '' ] } @queries ],
		'readers and a creator notice nothing of it');
	is( $node->safe_psql(
			'postgres',
			q(SELECT count(DISTINCT keystore) FROM nomp_crypt.kek k JOIN nomp_crypt.tenant t ON t.uuid = k.tenant WHERE t.id LIKE 'busy%')
		),
		2,
		'and the creator has made keys in both');
	is( $node->safe_psql(
			'postgres',
			q(SELECT count(*) FROM nomp_crypt.reconcile_keystore())),
		0,
		'all of which are confirmed');
}

# ---- one hangs ----

{
	my $calls = shim_calls('C_Decrypt');
	my $waiting;

	shim_says('C_Decrypt hang');
	$waiting = start_query($node, decrypt_school('new1'));
	wait_until(sub { shim_calls('C_Decrypt') > $calls },
		'the second keystore to hang');
	reads($_, "the other serves: $_ reads") for @old;
	shim_says();
	kill 'KILL', shim_pid();
	is_deeply(
		[ end_query($waiting) ],
		[ '', 'Anna i new1' ],
		'who waited is answered when it is back');
}

# It hangs before it has said which token it has.
{
	my $logins = shim_calls('C_Login');
	my $waiting;

	shim_says('C_Login hang');
	$node->restart;
	$waiting = start_query($node, decrypt_school('new2'));
	wait_until(sub { shim_calls('C_Login') > $logins },
		'the second keystore to hang');
	reads($_, "the other serves at once: $_ reads") for @old;
	shim_says();
	kill 'KILL', shim_pid();
	is_deeply(
		[ end_query($waiting) ],
		[ '', 'Anna i new2' ],
		'who waited is answered when it is back');
}

# In trouble, it is in trouble, and its keys are not unknown.
{
	shim_says('C_Login rv=0x30');
	restart_shim();
	like(
		failure($node, decrypt_school('new3')),
		qr/^NC004: +the keystore is unavailable: the PKCS#11 module or the key service reported an error$/m,
		'its schools raise its error');
	reads('old3', 'the others read');
	is( status('state'),
		"the PKCS#11 module or the key service reported an error\nok",
		'keystore_status() says of each how it is');
	like(
		failure($node, q(CALL nomp_crypt.erase_tenant('old20', 'test'))),
		qr/^NC004: .*reported an error$/m,
		'no school is erased while one keystore cannot be seen');
	shim_says();
	wait_until(sub { status('state') eq "ok\nok" }, 'it to be well again');
	reads('new3', 'well again, it reads');
}

sub restart_shim
{
	my $pid = shim_pid();

	kill 'KILL', $pid;
	wait_until(sub { !-e "/proc/$pid" }, 'the helper to be gone');
	return;
}

# ---- one is missing ----

$node->restart;
reads('new4', 'a school whose keys are in memory');
follow($first);
like(
	failure($node, decrypt_school('new5')),
	qr/^NC004: +the keystore is unavailable: the one that holds the key is not configured$/m,
	'without its keystore a school\'s key is not unknown, but not to be had');
is( sqlstate(
		$node,
		"SELECT nomp_crypt.try_decrypt(name) FROM pupil WHERE school = 'new5'"
	),
	'NC004',
	'for try_decrypt() too');
reads('new4', 'what is in memory goes on');
reads('old5', 'the others read');
is( status('state, serial, keys'),
	"ok|$serial{nomp}|"
	  . (
		$node->safe_psql(
			'postgres',
			"SELECT count(*) FROM nomp_crypt.kek WHERE keystore = 'pkcs11:serial=$serial{nomp}'"
		))
	  . "\nthe one that holds the key is not configured|$serial{second}|"
	  . (
		$node->safe_psql(
			'postgres',
			"SELECT count(*) FROM nomp_crypt.kek WHERE keystore = 'pkcs11:serial=$serial{second}'"
		)),
	'keystore_status() shows what is missing');
{
	my $label = label_of('new6');

	like(
		failure($node, q(CALL nomp_crypt.erase_tenant('new6', 'test'))),
		qr/^NC004: .*the one with serial number $serial{second} is not configured\n.*HINT: .*\Q$label\E/s,
		'its erasure says where the key is');
	ok((grep { $_ eq $label } token_labels($dir, 'second')),
		'and destroys nothing');
}
follow($third);
like(
	failure($node, decrypt_school('new5')),
	qr/^NC004: +the keystore is unavailable: \Q$not_ours\E$/m,
	'a token without a canary is believed nothing');
follow($first, $second);
reads('new5', 'with its keystore it reads');

# ---- one key is missing ----

delete_from_token($dir, 'second', label_of('new7'));
is(sqlstate($node, decrypt_school('new7')),
	'NC003', 'a key that its own keystore has no longer is unknown');
$node->safe_psql('postgres',
		"UPDATE nomp_crypt.kek SET keystore = 'pkcs11:serial=feedface'"
	  . " WHERE label = '"
	  . label_of($_) . "'")
  for 'new7', 'new8';
reads('new8',
	'a key that is found in a token of another serial is used, as after a restore'
);
like(
	failure($node, decrypt_school('new7')),
	qr/^NC004: +the keystore is unavailable: the one that holds the key is not configured$/m,
	'one that is not found there is not called unknown');

# ---- erasure sees all keystores ----

{
	my $label = label_of('new9');

	is(sqlstate($node, q(CALL nomp_crypt.erase_tenant('new9', 'test'))),
		'', 'a school of the second keystore is erased');
	is( $node->safe_psql('postgres', <<"SQL"),
SELECT e.state, e.keys_destroyed, e.keystores -> '$serial{second}' -> 'seen',
	e.keystores -> '$serial{second}' -> 'destroyed', e.keystores -> '$serial{nomp}' -> 'destroyed'
FROM nomp_crypt.erasure e JOIN nomp_crypt.tenant t ON t.uuid = e.tenant WHERE t.id = 'new9'
SQL
		qq(destroyed|{$label}|["$label"]|["$label"]|[]),
		'its key was destroyed there, and nothing found in the other');
	ok(!(grep { $_ eq $label } token_labels($dir, 'second')),
		'it is no longer there');
	is(sqlstate($node, decrypt_school('new9')),
		'NC001', 'its values are erased');
	reads('new10', 'another school of that keystore reads');
	reads('old10', 'and one of the other');
}

$node->stop;
done_testing();
