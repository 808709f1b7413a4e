# Whoever is woken at night because schools cannot be read must learn from the
# error what to repair, must not make it worse (a PIN tried until the token
# locks), and must never be told that a school has been erased when a cable
# is loose.  So: every trouble that a keystore can have, one after the other,
# on a running server.  Each must give its own message and SQLSTATE, show in
# keystore_status(), leave its reason in the log, and be over as soon as it is
# repaired, without a restart.  And no trouble may give the PIN away.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::RecursiveCopy;
use PostgreSQL::Test::Utils;
use Test::More;

my $pin = sprintf 'hemlig%08x', int rand 2**32;
my $wrong_pin = sprintf 'fel%08x', int rand 2**32;

my $node = nomp_node('main', pin => $pin);
my $dir = $node->{nomp_dir};
my $uri = keystore_uri($dir, 'nomp', shim_module($dir));

shim_says();
$node->append_conf('postgresql.conf', <<"CONF");
nomp_crypt.keystore = '$uri'
log_statement = none
CONF
$node->start;

# One school per trouble: its keys are not in the server's memory, and will be
# asked for while the trouble lasts.
my @schools = map { "cold$_" } 1 .. 40;
cold_schools($node, 'warm', @schools);

sub plaintext
{
	my ($school) = @_;

	return $node->safe_psql('postgres', read_school($school));
}

is(plaintext('warm'), 'Anna i warm', 'before any trouble, a school reads');

sub write_pin
{
	my ($value, $mode) = @_;

	unlink "$dir/pin";
	append_to_file("$dir/pin", $value);
	chmod $mode, "$dir/pin";
	return;
}

# trouble(NAME, %how): start it with "break", end it with "repair".  "state" is
# what the keystore is said to suffer from, "log" the reason.  "hidden" if only
# unwrapping shows it, and keystore_status() says ok.
my %message_of;

sub trouble
{
	my ($name, %how) = @_;
	my $school = shift @schools;
	my $log_start = -s $node->logfile;
	my $shown = $how{hidden} ? 'ok' : $how{state};
	my $failure;
	my $log;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$how{break}->();
	wait_until(
		sub { keystore_state($node) eq $shown },
		"keystore_status() to say \"$shown\"");
	$failure = failure($node, read_school($school));
	like(
		$failure,
		qr/^NC004: +the keystore is unavailable: \Q$how{state}\E$/m,
		"$name: a cold school is unavailable, and the message says why");
	like($failure, qr/^HINT: /m, "$name: it says what to do");
	unlike($failure, qr/erase/i, "$name: nothing is said to be erased");
	is(keystore_state($node), $shown, "$name: keystore_status() agrees");
	is(plaintext('warm'), 'Anna i warm', "$name: a school in use goes on");

	if ($how{log})
	{
		$node->wait_for_log($how{log}, $log_start);
		pass("$name: the log has the reason");
	}
	$how{meanwhile}->() if $how{meanwhile};

	$how{repair}->();
	wait_until(
		sub { keystore_state($node) eq 'ok' },
		"keystore_status() to say ok after: $name");
	is(plaintext($school), "Anna i $school",
		"$name: once repaired, it reads");
	$message_of{ $how{state} }{$1} = 1
	  if $failure =~ /unavailable: (.*)\nHINT/;
	return;
}

# ---- the setting ----

my $set_right = sub { set_keystore($node, $uri) };

trouble(
	'no keystore set',
	break => sub { set_keystore($node, '') },
	repair => $set_right,
	state => 'none is configured');

for my $bad (
	[ 'no URI at all', 'somewhere' ],
	[ 'a URI of another kind', 'https://kms.example/' ],
	[ 'a URI that does not parse', 'pkcs11:token=%zz' ],
	[ 'a URI without a module', 'pkcs11:token=nomp' ],
	[ 'a URI that names an object', "$uri&object=x" =~ s/\?/;object=x?/r ])
{
	trouble(
		$bad->[0],
		break => sub { set_keystore($node, $bad->[1]) },
		repair => $set_right,
		state => 'the keystore setting is not valid',
		log => qr/keystore's URI /);
}

trouble(
	'module missing',
	break =>
	  sub { set_keystore($node, keystore_uri($dir, 'nomp', "$dir/no.so")) },
	repair => $set_right,
	state => 'the PKCS#11 module cannot be loaded',
	log => qr/no\.so/);
trouble(
	'module is no module',
	break => sub {
		set_keystore($node, keystore_uri($dir, 'nomp', "$dir/softhsm2.conf"));
	},
	repair => $set_right,
	state => 'the PKCS#11 module cannot be loaded',
	log => qr/softhsm2\.conf/);
trouble(
	'module does not start',
	break => sub { shim_says('C_Initialize rv=0x5'); restart_helper($node) },
	repair => sub { shim_says() },
	state => 'the PKCS#11 module cannot be loaded',
	log => qr/C_Initialize: .*0x5/);

# ---- the token ----

trouble(
	'token missing',
	break => sub {
		set_keystore($node, keystore_uri($dir, 'other', shim_module($dir)));
	},
	repair => $set_right,
	state => 'the token is not there',
	log => qr/no token matches .*\(\d+ tokens present, \d+ of them not init/);

sub put_away_token
{
	rename "$dir/tokens", "$dir/tokens.away" or die $!;
	mkdir "$dir/tokens", 0700;
	return;
}

sub put_back_token
{
	system_or_bail('rm', '-rf', "$dir/tokens");
	rename "$dir/tokens.away", "$dir/tokens" or die $!;
	restart_helper($node);
	return;
}

trouble(
	'token folder empty',
	break => sub { put_away_token(); restart_helper($node) },
	repair => \&put_back_token,
	state => 'the token is not there',
	log => qr/no token matches/);
trouble(
	'another, empty token of the same name',
	break => sub {
		put_away_token();
		make_token($dir, 'nomp', $pin);
		restart_helper($node);
	},
	repair => \&put_back_token,
	state => q(the token is not this installation's),
	log => qr/does not hold this installation's canary/,
	meanwhile => sub {
		like(
			failure($node, "SELECT nomp_crypt.create_tenant('elsewhere')"),
			qr/^NC004: .*the token is not this installation's/,
			'no school is created on an empty token');
	});
trouble(
	q(another installation's token of the same name),
	break => sub {
		put_away_token();
		make_token($dir, 'nomp', $pin);
		restart_helper($node);
		$node->safe_psql('postgres',
			'SELECT nomp_crypt._keystore_setup(gen_random_uuid())');
	},
	repair => \&put_back_token,
	state => q(the token is not this installation's),
	log => qr/does not hold this installation's canary/);
trouble(
	'two tokens of the same name',
	break => sub {
		PostgreSQL::Test::RecursiveCopy::copypath("$dir/tokens",
			"$dir/tokens.away");
		make_token($dir, 'nomp', $pin);
		restart_helper($node);
	},
	repair => \&put_back_token,
	state => 'the token is not there',
	log => qr/2 tokens match .* name the serial too/);
trouble(
	'mechanism missing',
	break => sub { shim_says('hide CKM_AES_GCM'); restart_helper($node) },
	repair => sub { shim_says() },
	state => 'the token lacks AES key generation or AES-GCM',
	log => qr/lacks CKM_AES_GCM/);

# ---- the PIN ----

trouble(
	'PIN file missing',
	break =>
	  sub { rename "$dir/pin", "$dir/pin.away"; restart_helper($node) },
	repair => sub { rename "$dir/pin.away", "$dir/pin" },
	state => 'the PIN file cannot be used',
	log => qr/PIN file ".*" cannot be opened: No such file/);
trouble(
	'PIN file readable by the group',
	break => sub { write_pin("$pin\n", 0640); restart_helper($node) },
	repair => sub { chmod 0600, "$dir/pin" },
	state => 'the PIN file cannot be used',
	log => qr/PIN file ".*" is accessible to group or others/);
trouble(
	'PIN file empty',
	break => sub { write_pin('', 0600); restart_helper($node) },
	repair => sub { write_pin("$pin\n", 0600) },
	state => 'the PIN file cannot be used',
	log => qr/PIN file ".*" is empty/);
trouble(
	'PIN file is a folder',
	break => sub {
		unlink "$dir/pin";
		mkdir "$dir/pin", 0700;
		restart_helper($node);
	},
	repair => sub { rmdir "$dir/pin"; write_pin("$pin\n", 0600) },
	state => 'the PIN file cannot be used',
	log => qr/PIN file ".*" is not a regular file/);

{
	my $logins;

	trouble(
		'PIN wrong',
		break => sub {
			$logins = shim_calls('C_Login');
			write_pin("$wrong_pin\n", 0600);
			restart_helper($node);
		},
		meanwhile => sub {
			for my $helper (1 .. 3)
			{
				is(sqlstate($node, read_school($schools[0])),
					'NC004', "helper $helper has no PIN either")
				  for 1 .. 5;
				restart_helper($node);
			}
			is( keystore_state($node),
				'the PIN is wrong',
				'so says the status');
			is(shim_calls('C_Login') - $logins,
				1, 'a wrong PIN is tried once, whoever asks how often');
		},
		repair => sub { write_pin("$pin\n", 0600) },
		state => 'the PIN is wrong',
		log => qr/the token refused the PIN|refused before/);
}

# Its session goes on; the next login needs the new one.
my $new_pin = sprintf 'nyhemlig%08x', int rand 2**32;
trouble(
	'PIN changed in the token',
	break => sub {
		SoftHsm::pkcs11_tool($dir, 'nomp', '--change-pin', '--new-pin',
			$new_pin);
		is( plaintext(shift @schools) =~ /^Anna/ ? 'reads' : 'does not read',
			'reads',
			'a changed PIN does not end the session that is open');
		restart_helper($node);
	},
	repair => sub { write_pin("$new_pin\n", 0600); $pin = $new_pin },
	state => 'the PIN is wrong',
	log => qr/the token refused the PIN|refused before/);

trouble(
	'PIN locked',
	break => sub { shim_says('C_Login rv=0xa4'); restart_helper($node) },
	repair => sub { shim_says() },
	state => 'the PIN is locked',
	log => qr/the token has locked its PIN/);

# ---- the module ----

sub set_timeout
{
	my ($value) = @_;

	$node->safe_psql('postgres',
		"ALTER SYSTEM SET nomp_crypt.keystore_timeout = $value");
	$node->reload;
	return;
}

trouble(
	'module reports an error',
	break => sub { shim_says('C_FindObjectsInit rv=0x30') },
	repair => sub { shim_says() },
	state => 'the PKCS#11 module or the key service reported an error',
	log => qr/C_FindObjectsInit: .*0x30/);
trouble(
	'module cannot decrypt',
	break => sub { shim_says('C_Decrypt rv=0x54') },
	repair => sub { shim_says() },
	state => 'the PKCS#11 module or the key service reported an error',
	hidden => 1,
	log => qr/C_Decrypt: .*0x54/);

# SoftHSM says "general error" for a wrapped key that was changed.  A module
# that says so for all keys must not make good rows look damaged.
trouble(
	'module fails as it does for a damaged key',
	break => sub { shim_says('C_Decrypt rv=0x5') },
	repair => sub { shim_says() },
	state => 'the PKCS#11 module or the key service reported an error',
	hidden => 1,
	log => qr/C_Decrypt: .*0x5/);
trouble(
	'module crashes',
	break => sub { shim_says('C_FindObjectsInit crash') },
	repair => sub { shim_says() },
	state => 'the keystore helper ended unexpectedly',
	log => qr/keystore helper ended unexpectedly; it is replaced/);
trouble(
	'module crashes at each decryption',
	break => sub { shim_says('C_Decrypt crash') },
	repair => sub { shim_says() },
	state => 'the keystore helper ended unexpectedly',
	hidden => 1,
	log => qr/keystore helper ended unexpectedly; it is replaced/);
trouble(
	'module hangs',
	break =>
	  sub { set_timeout(q('1s')); shim_says('C_FindObjectsInit hang') },
	repair => sub { shim_says(); set_timeout('DEFAULT') },
	state => 'it did not answer in time',
	log => qr/keystore helper did not answer in time; it is replaced/);
trouble(
	'module hangs while it starts',
	break => sub {
		set_timeout(q('1s'));
		shim_says('C_Initialize hang');
		restart_helper($node);
	},
	repair => sub { shim_says(); set_timeout('DEFAULT') },
	state => 'it did not answer in time',
	log => qr/keystore helper did not answer in time; it is replaced/);

is(scalar(keys %message_of), 12, 'all kinds of trouble were seen');
is_deeply([ grep { keys %{ $message_of{$_} } != 1 } keys %message_of ],
	[], 'each has one message');

# ---- a key that is gone is not a keystore that is ----

{
	my $school = shift @schools;
	my $label = $node->safe_psql('postgres',
			'SELECT k.label FROM nomp_crypt.kek k, nomp_crypt.tenant t'
		  . " WHERE k.tenant = t.uuid AND t.id = '$school'");
	my $failure;

	system_or_bail('cp', '-a', "$dir/tokens", "$dir/backup");
	delete_from_token($dir, 'nomp', $label);
	$failure = failure($node, read_school($school));
	like(
		$failure,
		qr/^NC003: +the keystore has no key for tenant "$school"$/m,
		'a key that was deleted from the token is unknown');
	unlike($failure, qr/unavailable/, 'and the keystore is not unavailable');
	is(keystore_state($node), 'ok', 'keystore_status() finds nothing wrong');
	is(plaintext('warm'), 'Anna i warm', 'other schools go on');

	# all keys gone, and the canary with them: that is no verdict on a school
	delete_from_token($dir, 'nomp', $_) for token_labels($dir, 'nomp');
	is(sqlstate($node, read_school($school)),
		'NC004', 'in a token without canary a missing key proves nothing');

	system_or_bail('rm', '-rf', "$dir/tokens");
	rename "$dir/backup", "$dir/tokens" or die $!;
	restart_helper($node);
	is( plaintext($school),
		"Anna i $school",
		'restored from its backup, the token reads again');
}

# ---- rows of wrapped keys that somebody changed ----

{
	my $school = shift @schools;
	my $length = $node->safe_psql('postgres',
		'SELECT max(octet_length(wrapped)) FROM nomp_crypt.tenant_key');

	is($length, 61, 'a wrapped key has 61 bytes');
	is(tampered($node, $school, flips('wrapped', $length)),
		'NC005|183', 'every byte changed of a wrapped key is an error');
	is( tampered(
			$node,
			$school,
			"VALUES ('wrapped = wrapped || ''\\x00''::bytea'),"
			  . " ('wrapped = substr(wrapped, 1, 60)'), ('wrapped = ''\\x01''')"
		),
		'NC005|3',
		'so is a wrapped key cut or prolonged');
	is(tampered($node, $school, flips('key_check', 32)),
		'NC005|96', 'and every byte changed of a key_check');
	is( tampered(
			$node, $school,
			"VALUES ('version = 2'), ('purpose = ''index'', version = 2')"),
		'NC005|2',
		'and another version or purpose');
	is(plaintext($school), "Anna i $school", 'unchanged again, it reads');
	is(tampered($node, $school, flips('key_check', 32)),
		'NC005|96', 'key_check counts for a key in use, too');

	$node->safe_psql('postgres',
		'UPDATE nomp_crypt.tenant_key k SET wrapped = set_byte(wrapped, 20,'
		  . ' get_byte(wrapped, 20) # 1) FROM nomp_crypt.tenant t'
		  . " WHERE k.tenant = t.uuid AND t.id = '$schools[0]' AND purpose = 'index'"
	);
	is( plaintext($schools[0]),
		"Anna i $schools[0]",
		'an index key that was changed does not take the values with it');
	shift @schools;
}

# ---- rows of one school's keys passed off as another's ----

for my $temperature ('cold', 'in use')
{
	my ($mine, $theirs) = splice @schools, 0, 2;
	my $other = "(SELECT uuid FROM nomp_crypt.tenant WHERE id = ''$mine'')";
	my $my_kek = "(SELECT uuid FROM nomp_crypt.kek WHERE tenant = $other)";
	my $my_key =
	  "(SELECT wrapped FROM nomp_crypt.tenant_key WHERE tenant = $other AND purpose = ''values'')";

	# another scope or version, so that the other school may have two
	plaintext($theirs) if $temperature eq 'in use';
	is( tampered(
			$node,
			$theirs,
			"VALUES ('tenant = $other, scope = ''x'''),"
			  . " ('tenant = $other, version = 2'),"
			  . " ('tenant = $other, scope = ''x'', kek = $my_kek'),"
			  . " ('tenant = $other, scope = ''x'', kek = $my_kek, wrapped = $my_key')"
		),
		'NC005|4',
		"a key ($temperature) relabelled to another school opens nothing");
	is(plaintext($_), "Anna i $_", "unchanged again, $_ reads")
	  for $mine, $theirs;
}
{
	my ($mine, $theirs) = splice @schools, 0, 2;
	my $other = "(SELECT uuid FROM nomp_crypt.tenant WHERE id = ''$mine'')";

	is( tampered(
			$node,
			$theirs,
			"VALUES ('wrapped = (SELECT wrapped FROM nomp_crypt.tenant_key"
			  . " WHERE tenant = $other AND purpose = ''values'')'),"
			  . " ('kek = (SELECT uuid FROM nomp_crypt.kek WHERE tenant = $other)')"
		),
		'NC005|2',
		q(another school's wrapped key, or KEK, opens nothing));
}

# ---- the PIN stays in its file ----

# shown_of(PID, WHAT): the path in /proc, and what it says; nothing of a session
# that has just ended.
sub shown_of
{
	my ($pid, $what) = @_;
	my $path = "/proc/$pid/$what";
	my $content;

	wait_until(
		sub {
			$content = eval { slurp_file($path) } // '';
			return $content ne ''
			  || (eval { slurp_file("/proc/$pid/stat") } // 'Z') =~
			  /^(?:Z|\d+ \(.*\) [ZX])/;
		},
		"$path to be read");
	return $content eq '' ? () : ($path => $content);
}

{
	my $with_pin = "pkcs11:token=nomp?module-path=/x.so&pin-value=$pin";
	my $log_start = -s $node->logfile;

	for my $setting ($with_pin, $with_pin =~ s/pin-value/PIN-Value/r)
	{
		my $failure =
		  failure($node, "ALTER SYSTEM SET nomp_crypt.keystore = '$setting'");

		like(
			$failure,
			qr/^22023: +a PIN must not stand in "nomp_crypt.keystore"$/m,
			'ALTER SYSTEM refuses a PIN in the setting');
		unlike($failure, qr/\Q$pin\E/, 'without repeating it in the message');
	}
	like(
		slurp_file($node->logfile, $log_start),
		qr/a PIN must not stand in/,
		'the log has the refusal');

	$log_start = -s $node->logfile;
	$node->append_conf('postgresql.auto.conf',
		"nomp_crypt.keystore = '$with_pin'");
	$node->reload;
	$node->wait_for_log(qr/a PIN must not stand in/, $log_start);
	is(keystore_state($node), 'ok',
		'so does a reload, which changes nothing');
	$set_right->();
	is(plaintext('warm'), 'Anna i warm', 'and leaves the server as it was');
}

{
	my @told = (
		log => slurp_file($node->logfile),
		'SHOW ALL' => $node->safe_psql('postgres', 'SHOW ALL'),
		'keystore_status()' => $node->safe_psql(
			'postgres', 'SELECT s FROM nomp_crypt.keystore_status() s'),
		pg_settings =>
		  $node->safe_psql('postgres', 'SELECT s FROM pg_settings s'),
		pg_stat_activity =>
		  $node->safe_psql('postgres', 'SELECT a FROM pg_stat_activity a'),
		q(the helper's environment) => join("\n",
			grep { /^env / } split /\n/,
			slurp_file("$dir/shim.report")));
	my $helper = helper_pid($node);

	for my $pid (server_pids($node), $helper)
	{
		push @told, shown_of($pid, 'cmdline');
		push @told, shown_of($pid, 'environ') if $pid != $helper;
	}
	while (my ($where, $what) = splice @told, 0, 2)
	{
		isnt($what, '', "$where was searched");
		ok($what !~ /\Q$pin\E|\Q$wrong_pin\E/, "no PIN in $where");
	}
	ok(!open(my $memory, '<', "/proc/$helper/mem"),
		q(another process of the same user cannot read the helper's memory));
	ok(!open(my $environment, '<', "/proc/$helper/environ"),
		'nor its environment');
}

is(broken_rules(), '', "the helper keeps to PKCS#11's rules");
$node->stop;
done_testing();
