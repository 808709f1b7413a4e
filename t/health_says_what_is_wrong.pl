# An operator looks at one function, and trusts it.  Each check of health()
# must appear when its trouble is there and go away with it, and no trouble may
# keep health() itself from answering: not a keystore that hangs, not a broker
# that stands still, not a standby.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Troubles;

my $node = nomp_node('main', allows_streaming => 1);
my $dir = $node->{nomp_dir};
# a service is looked at several times before a key is said to be gone, and a
# machine may be busy with other things
my $timeout = '5s';

$node->append_conf('postgresql.conf', <<"CONF");
nomp_crypt.keystore = '@{[ frail_keystore($dir, 'nomp') ]}'
nomp_crypt.keystore_timeout = $timeout
nomp_crypt.key_check_interval = 1s
nomp_crypt.max_cached_keys = 16
log_statement = none
ssl = off
session_preload_libraries = 'auto_explain'
CONF
$node->start;
create_nomp($node, qw(one two));
$node->safe_psql('postgres',
		'INSERT INTO pupil (id, school, name)'
	  . " SELECT row_number() OVER (), id, nomp_crypt.encrypt('Anna', id)"
	  . ' FROM nomp_crypt.tenants');

# What a check says: "severity: detail", or "ok".
sub check
{
	my ($name, $on) = @_;

	return ($on // $node)->safe_psql('postgres',
		"SELECT concat_ws(': ', severity, detail) FROM nomp_crypt.health() WHERE name = '$name'"
	);
}

# trouble(NAME, CHECK, MAKE, EXPECTED, UNMAKE): ok, then EXPECTED, then ok.
sub trouble
{
	return said_while(\&check, @_);
}

sub set
{
	return setting($node, @_);
}

is( $node->safe_psql(
		'postgres',
		"SELECT count(*) FROM nomp_crypt.health() WHERE severity = 'critical'"
	),
	0,
	'nothing is critical in a server that is well');
like(
	check('keystore_software'),
	qr/^warning: the keystore is software/,
	'SoftHSM proves nothing');

# ---- the keystore ----

is(outcome($node, in_tenant('one', "SELECT name FROM pupil WHERE id = 1")),
	'Anna', 'a key is in memory');
trouble(
	'a keystore that hangs',
	'keystore',
	sub {
		keystore_has_trouble(everything => 'hangs');
		restart_helper($node);
	},
	# a helper that waits for a service says so itself, in time
	over_kms()
	? qr/^critical: it cannot be reached, or does not prove who it is/
	: qr/^critical: it did not answer in time/,
	sub { keystore_recovers() });
trouble(
	'keys in memory, and the keystore is away',
	'leases',
	sub {
		keystore_has_trouble(everything => 'fails');
		restart_helper($node);
	},
	qr/^critical: the keystore does not confirm the \d+ keys in memory; the first lease ends at 20/,
	sub { keystore_recovers() });
trouble(
	'no keystore is configured',
	'keystore',
	set('nomp_crypt.keystore', ''),
	qr/^critical: none is configured/,
	set('nomp_crypt.keystore'));
trouble(
	'the token is another one',
	'canary',
	sub {
		token_goes($dir, 'nomp');
		make_token($dir, 'nomp');
		restart_helper($node);
	},
	qr/^critical: the token is not this installation's/,
	sub {
		token_returns($dir, 'nomp');
		restart_helper($node);
	});
if (over_kms())
{
	trouble(
		'a time limit that is too short for a key service',
		'keystore',
		set('nomp_crypt.keystore_timeout', '4999ms'),
		qr/^warning: nomp_crypt.keystore_timeout is 4999ms: too short/,
		set('nomp_crypt.keystore_timeout'));
}
else
{
	# which is a second here
	is(check('keystore'), 'ok', 'a token needs no long time limit');
	trouble(
		'a PIN file that others may read',
		'credentials',
		sub { chmod 0644, "$dir/pin" },
		qr/^critical: the PIN file is accessible to group or others/,
		sub { chmod 0600, "$dir/pin" });
	trouble(
		'a PIN file that is gone',
		'credentials',
		sub { rename "$dir/pin", "$dir/pin.away" },
		qr/^critical: the PIN file cannot be found/,
		sub { rename "$dir/pin.away", "$dir/pin" });
	trouble(
		'a PIN that is old',
		'credentials',
		sub { utime 1, 86400 * 365 * 30, "$dir/pin" },
		qr/^warning: the PIN file has not changed since 1999-12-2/,
		sub { utime undef, undef, "$dir/pin" });
}

# ---- the broker ----

trouble(
	'a broker that stands still',
	'keystore',
	sub { kill 'STOP', broker_pid($node) },
	qr/^critical: it did not answer in time/,
	sub { kill 'CONT', broker_pid($node) });

# ---- the keyring ----

trouble(
	'leases that end before they are renewed',
	'leases',
	set('nomp_crypt.key_lease', '1s'),
	qr/^warning: leases end before they are renewed/,
	set('nomp_crypt.key_lease'));
trouble(
	'very long leases',
	'leases',
	set('nomp_crypt.key_lease', '24h'),
	qr/^info: a node that cannot ask the keystore can read an erased school for up to 1d/,
	set('nomp_crypt.key_lease'));
is(check('keyring'), 'ok', 'the keyring is large enough for two schools');
$node->safe_psql(
	'postgres',
	sprintf "CALL nomp_crypt.create_tenants('{%s}')",
	join(',', map { "many$_" } 1 .. 10));
like(
	check('keyring'),
	qr/^info: 16 places for the 24 keys of 12 active schools/,
	'and too small for twelve');
$node->safe_psql('postgres',
	'SELECT nomp_crypt.encrypt(id, id) FROM nomp_crypt.tenants');
like(
	check('keyring'),
	qr/^warning: \d+ of 16 places are taken, \d+ keys were evicted/,
	'it says when keys were evicted');
is( $node->safe_psql(
		'postgres',
		'SELECT evictions > 0, entries = capacity, capacity FROM nomp_crypt.stat_keyring'
	),
	't|t|16',
	'stat_keyring says so, too');
$node->append_conf('postgresql.conf', 'nomp_crypt.max_cached_keys = 100');
$node->restart;
is(check('keyring'), 'ok', 'a larger one is ok');

# ---- rows, rights, keys ----

trouble(
	'rights of a predefined role',
	'grants',
	sub {
		$node->safe_psql('postgres',
			"SELECT nomp_crypt.grant_all_tenants('pg_monitor', '{decrypt}')");
	},
	qr/^warning: \d+ rights are held by superusers or predefined roles: .*pg_monitor/,
	sub {
		$node->safe_psql('postgres',
			"SELECT nomp_crypt.revoke_all_tenants('pg_monitor')");
	});
like(
	check('grants'),
	qr/^info: 1 rights are held by superusers/,
	'a superuser with rights is an information');
trouble(
	'an erasure that waits to be executed',
	'erasures',
	sub {
		set('nomp_crypt.erasure_grace', '1d')->();
		$node->poll_query_until('postgres',
			"SELECT current_setting('nomp_crypt.erasure_grace') = '1d'");
		$node->safe_psql('postgres',
			"CALL nomp_crypt.erase_tenant('many1', 'test')");
		is(check('erasures'), 'ok', 'not while its grace period lasts');
		set('nomp_crypt.erasure_grace', '0')->();
	},
	qr/^warning: 1 erasures are due or were interrupted: 'many1'/,
	sub {
		$node->safe_psql('postgres',
			"CALL nomp_crypt.erase_tenant('many1', 'test')");
	});
$node->safe_psql('postgres',
	"BEGIN; SELECT nomp_crypt.create_tenant('never'); ROLLBACK");
is(check('provisional_keys'),
	'ok', 'a key that was just made may be provisional');
{
	local $ENV{LD_PRELOAD} = "$FindBin::RealBin/../test/clock_shim.so";
	local $ENV{NOMP_CLOCK_JUMP} = "$dir/jump";

	$node->restart;
	trouble(
		'a key that was made an hour ago and not confirmed',
		'provisional_keys',
		sub { append_to_file("$dir/jump", '') },
		qr/^info: 1 keys in the keystore were made more than an hour ago/,
		sub {
			$node->safe_psql('postgres',
				"SELECT nomp_crypt.reconcile_keystore(remove => true, older_than => '0')"
			);
		});
}
$node->restart;

# a role's tenant is refused by ALTER ROLE; it can have come another way
trouble(
	'a tenant among the settings of a role',
	'tenant_setting',
	sub {
		$node->safe_psql('postgres',
				'INSERT INTO pg_db_role_setting'
			  . " SELECT 0, oid, '{nomp_crypt.tenant=one}' FROM pg_roles WHERE rolname = 'pg_monitor'"
		);
	},
	qr/^critical: nomp_crypt.tenant is among the settings of 1 roles/,
	sub {
		$node->safe_psql('postgres', 'DELETE FROM pg_db_role_setting');
	});

# ---- settings ----

trouble(
	'slow statements are logged',
	'log',
	set('log_min_duration_statement', '250ms'),
	qr/^warning: statements are logged with the values in them and in their parameters: log_min_duration_statement$/,
	set('log_min_duration_statement'));
set('log_parameter_max_length', '0')->();
trouble(
	'slow statements are logged without parameters',
	'log',
	set('log_min_duration_statement', '250ms'),
	qr/^info: statements are logged with the values that are written in them as literals/,
	set('log_min_duration_statement'));
trouble(
	'auto_explain logs plans',
	'log',
	set('auto_explain.log_min_duration', '0'),
	qr/^info: .*: auto_explain.log_min_duration$/,
	set('auto_explain.log_min_duration'));
trouble(
	'TLS is required and off',
	'tls',
	set('nomp_crypt.require_tls', 'on'),
	qr/^warning: nomp_crypt.require_tls is on and ssl is off/,
	set('nomp_crypt.require_tls'));

# ---- the register directory ----

{
	my $register = "$dir/register-main";
	my $inside = $node->data_dir . '/register';

	trouble(
		'no register directory',
		'register',
		sub { rename $register, "$register.away" or die $! },
		qr/^warning: could not open the register directory "\.\.\.": No such file/,
		sub { rename "$register.away", $register or die $! });
	trouble(
		'a register directory that others may write to',
		'register',
		sub { chmod 0777, $register },
		qr/^warning: register directory "\.\.\." has the wrong owner or permissions/,
		sub { chmod 0700, $register });
	trouble(
		"no file of the register",
		'register',
		sub { rename "$register/register", "$register/away" or die $! },
		qr/^critical: the register is missing/,
		sub { rename "$register/away", "$register/register" or die $! });
	my $by_force = sub {
		my ($statement) = @_;

		$node->safe_psql('postgres',
				'ALTER TABLE nomp_crypt.register DISABLE TRIGGER USER;'
			  . " $statement;"
			  . ' ALTER TABLE nomp_crypt.register ENABLE ALWAYS TRIGGER append_only;'
			  . ' ALTER TABLE nomp_crypt.register ENABLE ALWAYS TRIGGER append_only_rows'
		);
	};
	trouble(
		'a record that the table has forgotten',
		'reconcile',
		sub {
			$by_force->(
				'DELETE FROM nomp_crypt.register WHERE number = (SELECT max(number) FROM nomp_crypt.register)'
			);
		},
		qr/^critical: the register has 1 things that this database does not know/,
		sub {
			$node->safe_psql('postgres',
				'SELECT * FROM nomp_crypt.reconcile()');
		});
	trouble(
		'a record of last month that nobody copied away',
		'register_archive',
		sub {
			$by_force->(
				"UPDATE nomp_crypt.register SET at = at - interval '30 days' WHERE number = 1"
			);
		},
		qr/^warning: register not archived: 1 records/,
		sub {
			$node->safe_psql('postgres',
				'SELECT nomp_crypt.register_archived(1)');
		});
	mkdir $inside, 0700 or die $!;
	trouble(
		'a register directory inside the data directory',
		'register',
		set('nomp_crypt.register_directory', $inside),
		qr/^warning: register directory "\.\.\." lies in the data directory/,
		set('nomp_crypt.register_directory'));
	mkdir "$dir/empty", 0700 or die $!;
	trouble(
		'a register directory that does not name this database',
		'register',
		set('nomp_crypt.register_directory', "$dir/empty"),
		qr/^warning: the register directory does not name this database/,
		set('nomp_crypt.register_directory'));
	append_to_file("$dir/empty/installation",
		"nomp_crypt installation 1\n11111111-2222-4333-8444-555555555555\n");
	trouble(
		'a register directory of another installation',
		'register',
		set('nomp_crypt.register_directory', "$dir/empty"),
		qr/^critical: the register directory belongs to another installation/,
		set('nomp_crypt.register_directory'));
	trouble(
		'a register file that is damaged',
		'register',
		sub {
			rename "$register/installation", "$register/away" or die $!;
			append_to_file("$register/installation", "garbage\n");
		},
		qr/^warning: file "\.\.\.\/installation" is malformed/,
		sub { rename "$register/away", "$register/installation" or die $! });
}
like(
	check('register'),
	qr/^info: .* on the data directory's file system/,
	'here the register directory is beside the data') if same_file_system();

sub same_file_system
{
	return (stat $node->data_dir)[0] == (stat $dir)[0];
}

# ---- the machine ----

{
	my $swap = slurp_file('/proc/meminfo') =~ /^SwapTotal:\s+[1-9]/m;
	my $piped = slurp_file('/proc/sys/kernel/core_pattern') =~ /^\|/;

	is( check('swap') =~ /^info: the machine swaps/ ? 1 : 0,
		$swap                                       ? 1 : 0,
		'swap space is seen if there is any');

	# a server that is started with other limits
	limited('-c', '0');
	is( check('core_dumps') =~ /^info: a crash can leave a core dump/ ? 1 : 0,
		$piped                                                        ? 1 : 0,
		'no core dumps without room for one, unless piped');
	limited('-c', 'unlimited');
	like(
		check('core_dumps'),
		qr/^info: a crash can leave a core dump/,
		'core dumps are possible');
	limited('-l', '0');
	like(
		check('memory'),
		qr/^warning: the pages that hold keys could not be locked/,
		'memory that could not be locked');
	$node->restart;
	is(check('memory'), 'ok', 'memory that could');
}

sub limited
{
	my (@limit) = @_;

	$node->stop;
	system_or_bail(
		'bash', '-c',
		'ulimit "$1" "$2" || exit 1; shift 2; exec "$@"', 'limited',
		@limit, 'pg_ctl',
		'-w', '-D',
		$node->data_dir, '-l',
		$node->logfile, '-o',
		'--cluster-name=main', 'start');
	$node->_update_pid(1);
	return;
}

# ---- a standby ----

$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
nomp_conf($standby, $dir, 'nomp');
$standby->start;
$node->wait_for_catchup($standby);

is( $standby->safe_psql(
		'postgres', 'SELECT count(*) FROM nomp_crypt.health()'),
	$node->safe_psql('postgres', 'SELECT count(*) FROM nomp_crypt.health()'),
	'a standby answers as many checks');
is(check($_, $standby), 'ok', "on a standby: $_")
  for qw(library broker keystore canary replication);
unlike(check('register', $standby),
	qr/^(warning|critical)/,
	'on a standby it needs not be named in the register');
is( $standby->safe_psql(
		'postgres',
		'SELECT count(*) FROM nomp_crypt.stat_tenants, nomp_crypt.stat_keystore, nomp_crypt.stat_keyring'
	),
	$node->safe_psql('postgres', 'SELECT count(*) FROM nomp_crypt.tenant'),
	'it has the statistics');
$standby->safe_psql('postgres', 'SELECT pg_wal_replay_pause()');
$standby->poll_query_until('postgres',
	"SELECT pg_get_wal_replay_pause_state() = 'paused'")
  or die;
like(
	check('replication', $standby),
	qr/^warning: replay is paused/,
	'it says when replay is paused');
$standby->safe_psql('postgres', 'SELECT pg_wal_replay_resume()');
is(check('replication', $standby), 'ok', 'and when it goes on');
$node->stop;
wait_until(
	sub { check('replication', $standby) =~ /^warning: .* does not stream/ },
	'the standby to miss its primary');
pass('it says when its primary is gone');
$standby->promote;
is(check('replication', $standby), 'ok', 'promoted, it needs none');
like(
	check('register', $standby),
	qr/^warning: the register directory does not name this database/,
	'promoted, it must be adopted');
$standby->safe_psql('postgres', 'SELECT nomp_crypt.adopt_keystore()');
unlike(check('register', $standby), qr/^warning/, 'and is, then');
$standby->stop;

# ---- without the library, and with another version of it ----

$node->start;
$node->safe_psql('postgres',
	"UPDATE pg_extension SET extversion = '0.9' WHERE extname = 'nomp_crypt'"
);
like(
	check('library'),
	qr/^critical: the library is for version 1.0, this database has version 0.9/,
	'another version of the SQL objects');
$node->safe_psql('postgres',
	"UPDATE pg_extension SET extversion = '1.0' WHERE extname = 'nomp_crypt'"
);
is(check('library'), 'ok', 'the right version');
$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$node->restart;
is( $node->safe_psql(
		'postgres', 'SELECT name, severity, detail FROM nomp_crypt.health()'),
	'library|critical|nomp_crypt must be loaded when the server starts',
	'without the library that is all it says');
$node->stop;
done_testing();
