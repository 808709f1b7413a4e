# PKCS#11 modules differ where the standard is vague: in what they call a
# failed tag or a stale handle, how much room they ask for, when they want a
# login.  What works with one may work by luck.  So a school's whole life is
# lived here on NSS softokn, which shares no line of code with SoftHSM2, and
# which another program (symkeyutil) can look into; and a token that lacks
# AES-GCM, as several do, is refused by name.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($softokn) =
  grep { -e }
  glob
  '/usr/lib/*/libsoftokn3.so /usr/lib/*/nss/libsoftokn3.so /usr/lib64/libsoftokn3.so /usr/lib/libsoftokn3.so';

die 'libsoftokn3.so not found: install libnss3' unless $softokn;

# ---- a token of NSS, and a server that knows no other ----

my $node = nomp_node('main');
my $dir = $node->{nomp_dir};
my $pin = sprintf 'Pin-%08x', int rand 2**32;

mkdir "$dir/nss", 0700;
append_to_file("$dir/nss.pin", "$pin\n");
chmod 0600, "$dir/nss.pin";
system_or_bail('certutil', '-N', '-d', "sql:$dir/nss", '-f', "$dir/nss.pin");

my $init = "configDir='sql:$dir/nss' certPrefix='' keyPrefix='' "
  . q(secmod='secmod.db' flags=);
$init =~ s/([^A-Za-z0-9.:\/_-])/sprintf '%%%02X', ord $1/ge;

my $uri =
	'pkcs11:token=NSS%20Certificate%20DB?module-path='
  . shim_module($dir, $softokn)
  . "&pin-source=file:$dir/nss.pin&x-init-reserved=$init";

# What symkeyutil says: the names of the keys in the token.
sub labels
{
	my ($list) =
	  run_command(
		[ 'symkeyutil', '-L', '-d', "sql:$dir/nss", '-f', "$dir/nss.pin" ]);

	return $list =~ /(nomp_crypt:\S+)/g;
}

sub reads
{
	my ($school, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is($node->safe_psql('postgres', read_school($school)),
		"Anna i $school", $name);
}

shim_says();
$node->append_conf('postgresql.conf', "nomp_crypt.keystore = '$uri'");
$node->start;

# ---- a school is created, written and read ----

my @schools = qw(first second third tampered deleted);
create_nomp($node, @schools);
$node->safe_psql(
	'postgres',
	in_tenant(
		$schools[$_],
		"INSERT INTO pupil (id, school, name) VALUES ($_, '$schools[$_]', 'Anna i $schools[$_]')"
	)) for 0 .. $#schools;
reads('first', 'a school is written and read');
is( $node->safe_psql(
		'postgres',
		'SELECT state, token, manufacturer, software, canary FROM nomp_crypt.keystore_status()'
	),
	'ok|NSS Certificate DB|Mozilla Foundation|t|t',
	'keystore_status() knows the token, and that it is software');

$node->restart;
reads('second', 'after a restart its keys are unwrapped again');
restart_helper($node);
reads('third', 'and by another helper');

my %present = map { $_ => 1 } labels();
is( scalar(keys %present),
	@schools + 1,
	'symkeyutil sees a key per school, and the canary');
ok($present{ kek_label($node, $_) }, "that of $_ under its label")
  for @schools;

# ---- an interrupted creation leaves a key that is found and removed ----

$node->safe_psql('postgres',
	q(BEGIN; SELECT nomp_crypt.create_tenant('aborted'); ROLLBACK));
is( scalar(my @now = labels()),
	@schools + 2,
	'an aborted creation leaves its key');
is( $node->safe_psql(
		'postgres',
		q(SELECT action FROM nomp_crypt.reconcile_keystore(true, '0 s'))),
	'removed',
	'which reconcile_keystore() removes');
is_deeply([ sort(labels()) ], [ sort keys %present ], 'and nothing else');

# ---- tampering ----

{
	my $length = $node->safe_psql('postgres',
		'SELECT max(octet_length(wrapped)) FROM nomp_crypt.tenant_key');

	$node->restart;
	is( tampered($node, 'tampered', flips('wrapped', $length)),
		'NC005|' . 3 * $length,
		'every byte changed of a wrapped key is an integrity error');
	is(tampered($node, 'tampered', flips('key_check', 32)),
		'NC005|96', 'and every byte changed of a key_check');
	reads('tampered', 'unchanged again, it reads');
}

# ---- trouble ----

# cold(NAME, BREAK, STATE, REPAIR)
sub cold
{
	my ($name, $break, $state, $repair) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$break->();
	$node->restart;
	is(keystore_state($node), $state, "$name: says keystore_status()");
	like(
		failure($node, read_school('second')),
		qr/^NC004: +the keystore is unavailable: \Q$state\E$/m,
		"$name: so does the error");
	$repair->();
	wait_until(sub { keystore_state($node) eq 'ok' }, "$name to be over");
	reads('second', "$name: repaired, it reads");
	return;
}

{
	my $logins;

	cold(
		'PIN wrong',
		sub {
			rename "$dir/nss.pin", "$dir/right.pin";
			append_to_file("$dir/nss.pin", "Wrong-$pin\n");
			chmod 0600, "$dir/nss.pin";
			$logins = shim_calls('C_Login');
		},
		'the PIN is wrong',
		sub {
			is(shim_calls('C_Login') - $logins,
				1, 'PIN wrong: it was tried once');
			rename "$dir/right.pin", "$dir/nss.pin";
		});
}
cold(
	'AES-GCM missing',
	sub { shim_says('hide CKM_AES_GCM') },
	'the token lacks AES key generation or AES-GCM',
	sub { shim_says() });
like(
	slurp_file($node->logfile),
	qr/the token lacks CKM_AES_GCM/,
	'AES-GCM missing: the log names it');
cold(
	'database of keys missing',
	sub { rename "$dir/nss", "$dir/nss.away" or die $! },
	'the PKCS#11 module cannot be loaded',
	sub {
		rename "$dir/nss.away", "$dir/nss"
		  or die $!;
		restart_helper($node);
	});

# Somebody else deletes a key, and the helper holds a handle to it.
{
	my $label = kek_label($node, 'deleted');

	$node->restart;
	is(keystore_state($node), 'ok', 'a helper knows all keys');
	run_command(
		[
			'symkeyutil', '-D', '-n', $label,
			'-d', "sql:$dir/nss", '-f', "$dir/nss.pin"
		]);
	is(scalar(grep { $_ eq $label } labels()),
		0, 'one is deleted behind its back');
	is(sqlstate($node, read_school('deleted')),
		'NC003', 'it is unknown, not erased, nor unavailable');
	reads('first', 'another school reads');
}

# ---- erasure ----

{
	my $label = kek_label($node, 'third');

	reads('third', 'a school in use');
	$node->safe_psql('postgres',
		q(CALL nomp_crypt.erase_tenant('third', 'agreement_ended', 'PUB-1')));
	is( $node->safe_psql(
			'postgres',
			'SELECT state, keys_seen, keys_destroyed FROM nomp_crypt.erasure'
		),
		"destroyed|{$label}|{$label}",
		'is erased: its key was seen, and destroyed');
	is( $node->safe_psql(
			'postgres',
			'SELECT keystore_serial = serial AND serial <> \'\''
			  . ' FROM nomp_crypt.erasure, nomp_crypt.keystore_status()'),
		't',
		'on this token');
	is(scalar(grep { $_ eq $label } labels()),
		0, 'symkeyutil sees it no longer');
	is(sqlstate($node, read_school('third')),
		'NC001', 'its values are erased');
	reads('first', 'another school reads');
	is( sqlstate($node, q(CALL nomp_crypt.erase_tenant('deleted', 'test'))),
		'NC003',
		'a key that was not witnessed is not certified as destroyed');
	$node->restart;
	is(sqlstate($node, read_school('third')),
		'NC001', 'after a restart it is as erased');
	reads($_, "and $_ reads") for 'first', 'second', 'tampered';
}

is(broken_rules(), '', "the helper keeps to PKCS#11's rules");
$node->stop;
done_testing();
