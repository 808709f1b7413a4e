# The wrapped keys are rows, so that a dump carries them with the values they
# open; the keys that unwrap them are not, so that a dump alone opens nothing.
# From that follows what somebody may expect who restores: in the same
# installation everything reads as before, whatever the dump's form; elsewhere
# it says what is missing and does no harm to what lives there; and a copy,
# wherever it is, destroys no key of the original until somebody has said that
# it takes its place.  The same holds for two databases side by side: they
# share a keystore, and neither pupils nor rights.

use strict;
use warnings;

use File::Copy 'copy';
use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my @extension_tables =
  qw(attestation audit column_history conversion data_return erasure
  erasure_approval installation kek legal_hold lint_accepted original_key register tenant tenant_key
  tenant_right);
my $temp = PostgreSQL::Test::Utils::tempdir();

my $node = nomp_node('main', allows_streaming => 1);
my $dir = $node->{nomp_dir};
$node->start;

sub one
{
	my ($sql, $dbname) = @_;

	return $node->safe_psql($dbname // 'postgres', $sql);
}

# What is stored, and what it says, of the schools that live.
sub stored
{
	my ($server, $dbname) = @_;

	return $server->safe_psql($dbname,
			"SELECT count(*) || ' ' || md5(string_agg("
		  . "format('%s %s %s', id, name, notes), ';' ORDER BY id)) FROM pupil"
	);
}

sub plaintext
{
	my ($server, $dbname) = @_;

	return $server->safe_psql($dbname,
			"SELECT count(*) || ' ' || md5(string_agg("
		  . "format('%s %s %s', id, name::text, notes::text), ';' ORDER BY id))"
		  . " FROM pupil WHERE school <> 'erased'");
}

# What the extension's tables hold.
sub keys_and_rights
{
	my ($server, $dbname) = @_;
	my $sql = join " || ' ' || ", map {
		"(SELECT md5(string_agg(t::text, ';' ORDER BY t::text)) FROM nomp_crypt.$_ t)"
	} @extension_tables;

	return $server->safe_psql($dbname, "SELECT $sql");
}

sub uuid_of
{
	my ($school, $dbname) = @_;

	return one("SELECT uuid FROM nomp_crypt.tenants WHERE id = '$school'",
		$dbname);
}

sub keys_in_token
{
	my ($uuid) = @_;

	return scalar grep { /:\Q$uuid\E:/ } token_labels($dir, 'nomp');
}

sub dump_as
{
	my ($what, $file, @options) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	$node->command_ok(
		[
			'pg_dump', @options, '-f', $file, '-d', $node->connstr('postgres')
		],
		"pg_dump, $what");
	return;
}

# restore_into(SERVER, DBNAME, FILE, OPTIONS...): the command, to run.
sub restore_into
{
	my ($server, $dbname, $file, @options) = @_;
	my @into = ('-d', $server->connstr($dbname), @options);

	return $file =~ /\.sql$/
	  ? ('psql', '-Xq', '-v', 'ON_ERROR_STOP=1', @into, '-f', $file)
	  : ('pg_restore', '--exit-on-error', @into, $file);
}

sub restore_ok
{
	my ($what, $server, $dbname, @rest) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	$server->safe_psql('postgres',
		"CREATE DATABASE $dbname TEMPLATE template0")
	  unless $server->safe_psql('postgres',
		"SELECT EXISTS (SELECT FROM pg_database WHERE datname = '$dbname')")
	  eq 't';
	$server->command_ok([ restore_into($server, $dbname, @rest) ],
		"restore, $what");
	return;
}

sub refused
{
	my ($server, $dbname, $state, $sql, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	is(sqlstate($server, $sql, dbname => $dbname), $state, $what);
	return;
}

# A copy may neither create nor destroy.
sub owns_nothing
{
	my ($server, $dbname, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $before = keys_and_rights($server, $dbname);

	refused(
		$server, $dbname, '55000',
		"SELECT nomp_crypt.create_tenant('new')",
		"$what: a tenant cannot be created");
	refused(
		$server, $dbname, '55000',
		"CALL nomp_crypt.erase_tenant('north', 'test')",
		"$what: nor erased");
	refused(
		$server, $dbname, '55000',
		'SELECT nomp_crypt.reconcile_keystore(true)',
		"$what: nor the keystore be tidied up");
	is(keys_and_rights($server, $dbname),
		$before, "$what: nothing is changed by trying");
	return;
}

# Two schools that live, one that is erased, and one that a copy will erase.
create_nomp($node, 'north', 'south', 'erased', 'leaving');
for my $school (
	[ 'north', 1 ],
	[ 'south', 101 ],
	[ 'erased', 201 ],
	[ 'leaving', 301 ])
{
	my ($id, $from) = @$school;

	one(in_tenant(
			$id,
			"INSERT INTO pupil SELECT $from + i, '$id', 'Åsa ' || i || E' i \\\\t''$id''',"
			  . " CASE mod(i, 3) WHEN 0 THEN '' WHEN 1 THEN repeat('Lång ' || i, 2000) END"
			  . " FROM generate_series(0, 99) i"));
}
one(<<'SQL');
CREATE ROLE reader LOGIN;
GRANT SELECT ON pupil TO reader;
SELECT nomp_crypt.grant_tenant('north', 'reader', '{decrypt}');
CREATE INDEX ON pupil (name);
CREATE TABLE numbered (n int PRIMARY KEY, pupil bigint REFERENCES pupil);
SQL
one("CALL nomp_crypt.erase_tenant('erased', 'test', 'PUB-1')");

# pg_dump.
my $plaintext = plaintext($node, 'postgres');
my $stored = stored($node, 'postgres');
my $keys = keys_and_rights($node, 'postgres');

is( one(    "SELECT string_agg(c.relname, ',' ORDER BY c.relname)"
		  . " FROM pg_extension e CROSS JOIN unnest(e.extconfig) t"
		  . " JOIN pg_class c ON c.oid = t WHERE e.extname = 'nomp_crypt'"),
	join(',', @extension_tables),
	'the extension has tables for every dump');
is( one("SELECT string_agg(c.relname, ',' ORDER BY c.relname) FROM pg_class c"
		  . " WHERE c.relkind = 'r' AND c.relnamespace = 'nomp_crypt'::regnamespace"
	),
	join(',',
		sort 'busy', 'made_up_number',
		'register_pending', @extension_tables),
	'and three that each server fills anew');

my @forms = (
	[ 'plain', 'plain.sql', [], [] ],
	[ 'custom', 'custom', ['-Fc'], ['-j2'] ],
	[ 'directory', 'directory', [ '-Fd', '-j2' ], ['-j2'] ],
	[ 'inserts', 'inserts.sql', ['--inserts'], [] ],
	[
		'column_inserts',
		'column_inserts.sql',
		[
			'--column-inserts', '--rows-per-insert=50',
			'--on-conflict-do-nothing'
		],
		['-1']
	]);
for my $form (@forms)
{
	my ($name, $file, $dump, $restore) = @$form;

	dump_as($name, "$temp/$file", @$dump);
	restore_ok($name, $node, $name, "$temp/$file", @$restore);
	is(stored($node, $name), $stored, "$name: the same ciphertext");
	is(keys_and_rights($node, $name),
		$keys, "$name: the same keys, rights and records");
	is(plaintext($node, $name), $plaintext, "$name: it decrypts");
	refused(
		$node, $name, 'NC001',
		"SELECT name::text FROM pupil WHERE school = 'erased'",
		"$name: an erased school stays erased");
	owns_nothing($node, $name, $name);
}
my $dump = slurp_file("$temp/plain.sql");
like($dump, qr/^COPY nomp_crypt\.$_ /m, "the dump has nomp_crypt.$_")
  for @extension_tables;
unlike(
	$dump,
	qr/^CREATE (?:TABLE|FUNCTION|TYPE) (?:nomp_crypt|public\.encrypted)/m,
	'and not what CREATE EXTENSION makes');
unlike($dump, qr/Åsa|Lång/, 'and no plaintext');

# Rights travel by the role's name.
is( $node->safe_psql(
		'plain',
		"SELECT count(name::text) FROM pupil WHERE school = 'north'",
		connstr => $node->connstr('plain') . ' user=reader'),
	'100',
	'in a copy a role reads what it read');
is( sqlstate(
		$node,
		"SET ROLE reader; SELECT name::text FROM pupil WHERE school = 'south'",
		dbname => 'plain'),
	'42501',
	'and no more');

# A copy that takes the original's place.
{
	my $uuid = uuid_of('leaving');

	is( one('SELECT nomp_crypt.adopt_keystore()', 'custom'),
		one('SELECT uuid FROM nomp_crypt.installation'),
		'a copy can adopt the installation');
	is( sqlstate(
			$node,
			"SELECT nomp_crypt.create_tenant('new')",
			dbname => 'custom'),
		'',
		'then it creates tenants');
	is( sqlstate(
			$node,
			in_tenant('new', "INSERT INTO pupil VALUES (9999, 'new', 'Åsa')"),
			dbname => 'custom'),
		'',
		'which can be written to');
	is(one("SELECT count(*) FROM nomp_crypt.tenant WHERE id = 'new'"),
		'0', 'and which the original does not have');
	owns_nothing($node, 'directory', 'another copy');
	is(keys_in_token($uuid), 1, 'a school has its key');
	is( sqlstate(
			$node,
			"CALL nomp_crypt.erase_tenant('leaving', 'test')",
			dbname => 'custom'),
		'',
		'the copy erases it');
	is(keys_in_token($uuid), 0, 'and the key is gone');
	my $read = "SELECT name::text FROM pupil WHERE school = 'leaving'";
	refused($node, 'custom', 'NC001', $read, 'in the copy it is erased');
	refused($node, 'postgres', 'NC003', $read,
		'the original, which has not heard of it, lost the key');
	refused($node, 'plain', 'NC003', $read, 'and so have other copies');
	one("DELETE FROM pupil WHERE school = 'leaving'");
	$plaintext = plaintext($node, 'postgres');
	restore_ok('from before the erasure',
		$node, 'late', "$temp/directory", '-j2');
	is(stored($node, 'late'), $stored, 'a late restore has the rows');
	refused($node, 'late', 'NC003', $read, 'and cannot read them');
	is( one("SELECT count(name::text) FROM pupil WHERE school = 'south'",
			'late'),
		'100',
		'but those of others');
}

# The original goes on.
is(sqlstate($node, "SELECT nomp_crypt.create_tenant('another')"),
	'', 'the original creates tenants');

# DROP EXTENSION would take the keys.
for my $dbname ('postgres', 'plain')
{
	refused($node, $dbname, '2BP01', $_, "in $dbname: $_ is refused")
	  for 'DROP EXTENSION nomp_crypt', 'DROP EXTENSION nomp_crypt CASCADE',
	  'DROP SCHEMA nomp_crypt CASCADE', 'DROP OWNED BY CURRENT_USER CASCADE';
}
is(plaintext($node, 'postgres'), $plaintext, 'after which all is there');

# A second database, with schools of its own.
one('CREATE DATABASE second TEMPLATE template0');
one(<<'SQL', 'second');
CREATE EXTENSION nomp_crypt;
SELECT nomp_crypt.create_tenant('north');
CREATE TABLE pupil (id bigint PRIMARY KEY, school text NOT NULL,
	name encrypted(text), notes encrypted(text));
GRANT ALL ON pupil TO reader;
SQL
is( one('SELECT uuid FROM nomp_crypt.installation', 'second'),
	one('SELECT uuid FROM nomp_crypt.installation'),
	'a second database joins the installation by itself');
isnt(uuid_of('north', 'second'),
	uuid_of('north'), 'its school of the same name is another one');
my $write =
  in_tenant('north', "INSERT INTO pupil VALUES (1, 'north', 'Eva')");
refused($node, 'second', '42501', $write,
	'rights in one database are none in another');
refused($node, 'second', '42501', "SET ROLE reader; $write", 'for nobody');
one("SELECT nomp_crypt.grant_tenant('north', 'reader', '{encrypt,decrypt}')",
	'second');
one("SET ROLE reader; $write", 'second');
is(one('SET ROLE reader; SELECT name::text FROM pupil', 'second'),
	'Eva', 'where they are granted they count');
refused(
	$node, 'second', '42501',
	'SELECT name::text FROM pupil',
	'and for him to whom they are granted');
refused(
	$node, 'postgres', '42501',
	"SET ROLE reader; $write",
	'not in the first database');

# A value that is carried over by hand.
{
	my $value = one('SELECT name FROM pupil WHERE id = 1');

	one("INSERT INTO pupil VALUES (2, 'north', '$value')", 'second');
	refused(
		$node,
		'second',
		'NC003',
		'SET ROLE reader; SELECT name::text FROM pupil WHERE id = 2',
		'a value of one database has no key in the other');
	one('DELETE FROM pupil WHERE id = 2', 'second');
}
refused(
	$node, 'second', '42704',
	"CALL nomp_crypt.erase_tenant('south', 'test')",
	"the first database's schools do not exist in the second");
refused(
	$node, 'second', '2BP01',
	'DROP EXTENSION nomp_crypt CASCADE',
	"the second's keys are protected too");
is( sqlstate(
		$node,
		"CALL nomp_crypt.erase_tenant('north', 'test')",
		dbname => 'second'),
	'',
	'its school can be erased');
refused(
	$node, 'second', 'NC001',
	'SET ROLE reader; SELECT name::text FROM pupil',
	'and is erased');
is(plaintext($node, 'postgres'),
	$plaintext, 'the first database notices nothing');
refused(
	$node, 'second', '',
	'DROP EXTENSION nomp_crypt CASCADE',
	'when no school lives the extension can be dropped');
is(plaintext($node, 'postgres'),
	$plaintext, 'the first database does not notice that either');

# The owner of a database is no superuser and has no right to any value.
one('CREATE ROLE owner LOGIN');
one('CREATE DATABASE owned OWNER owner TEMPLATE template0');
one(<<'SQL', 'owned');
CREATE EXTENSION nomp_crypt;
SELECT nomp_crypt.create_tenant('east');
SELECT nomp_crypt.grant_tenant('east', current_user, '{encrypt,decrypt}');
GRANT CREATE ON SCHEMA public TO owner;
SET ROLE owner;
CREATE TABLE pupil (id bigint PRIMARY KEY, school text NOT NULL,
	name encrypted(text), notes encrypted(text));
SQL
one(in_tenant('east', "INSERT INTO pupil VALUES (1, 'east', 'Åsa', 'Lång')"),
	'owned');
my @as_owner = (
	'pg_dump', '-U', 'owner', '-f',
	"$temp/owned.sql", '-d', $node->connstr('owned'));
$node->command_fails_like(
	\@as_owner,
	qr/permission denied for table (?:attestation|audit|installation|tenant|kek|erasure)/,
	'the owner alone cannot dump the keys, and the dump fails');
one("SELECT nomp_crypt.grant_admin('owner')", 'owned');
$node->command_ok(\@as_owner, 'after grant_admin() he can');
unlike(slurp_file("$temp/owned.sql"), qr/Åsa|Lång/, 'without plaintext');
is( sqlstate(
		$node,
		'SET ROLE owner; SELECT name::text FROM pupil',
		dbname => 'owned'),
	'42501',
	'he still reads no value');
restore_ok("the owner's dump", $node, 'owned_copy', "$temp/owned.sql");
is( stored($node, 'owned_copy'),
	stored($node, 'owned'),
	'it has the same values');
is(plaintext($node, 'owned_copy'), plaintext($node, 'owned'),
	'which decrypt');

# Another server of the same installation: the same token, a register of its
# own.  The old one is dead, its register's file is saved: other databases of
# that server have appended to it too, so this one's table is not all of it.
my $successor = PostgreSQL::Test::Cluster->new('successor');
$successor->init(extra => [ '--encoding=UTF8', '--no-locale' ]);
nomp_conf($successor, $dir, 'nomp');
$successor->start;
$successor->safe_psql('postgres', 'CREATE ROLE reader');
dump_as('once more', "$temp/again", '-Fc');
restore_ok('on another server', $successor, 'again', "$temp/again");
is(plaintext($successor, 'again'),
	$plaintext, 'another server with the same token decrypts');
owns_nothing($successor, 'again', 'another server');
copy("$dir/register-main/register", "$dir/register-successor/register")
  or die "register: $!";
is( $successor->safe_psql('again', 'SELECT nomp_crypt.adopt_keystore()'),
	one('SELECT uuid FROM nomp_crypt.installation'),
	'it can adopt the installation');
refused(
	$successor, 'again', '',
	"SELECT nomp_crypt.create_tenant('new')",
	'and then create tenants');

# A foreign installation, with a school that has a name of ours.
my $foreign = nomp_node('foreign');
$foreign->start;
create_nomp($foreign, 'north');
$foreign->safe_psql('postgres',
	'CREATE ROLE reader; '
	  . in_tenant('north', "INSERT INTO pupil VALUES (1, 'north', 'Eva')"));
my $own =
  [ stored($foreign, 'postgres'), keys_and_rights($foreign, 'postgres') ];
restore_ok('in a foreign installation', $foreign, 'guest', "$temp/again");
is( stored($foreign, 'guest'),
	stored($node, 'postgres'),
	'a foreign installation: the values are there');
is( keys_and_rights($foreign, 'guest'),
	keys_and_rights($node, 'postgres'),
	'with all that belongs to them');
{
	my $read = 'SELECT name::text FROM pupil WHERE id = 1';
	my ($out, $err) = ('', '');

	$foreign->psql(
		'guest', $read,
		stdout => \$out,
		stderr => \$err,
		extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	like(
		$err,
		qr/NC004: +the keystore is unavailable: the token is not this installation's/,
		'reading says what is missing');
	refused(
		$foreign,
		'guest',
		'NC004',
		in_tenant('north', "INSERT INTO pupil VALUES (5000, 'north', 'Eva')"),
		'and so does writing');
	refused(
		$foreign,
		'guest',
		'NC004',
		"SELECT name::text FROM pupil WHERE school = 'erased'",
		'that a school was erased is not said where nothing can prove it');
	is( $foreign->safe_psql(
			'guest', 'SELECT state FROM nomp_crypt.keystore_status()'),
		"the token is not this installation's",
		'keystore_status() agrees');
	owns_nothing($foreign, 'guest', 'the guest');
	refused(
		$foreign, 'guest', 'NC004',
		'SELECT nomp_crypt.adopt_keystore()',
		'the guest cannot adopt the keystore');
	refused(
		$foreign,
		'guest',
		'55000',
		'SELECT nomp_crypt.adopt_keystore(new_keystore => true)',
		'not even deliberately, where another installation lives');
	refused(
		$foreign, 'guest', '',
		'ANALYZE; VACUUM FULL; REINDEX TABLE pupil',
		'maintenance works');
	$foreign->command_ok(
		[
			'pg_dump', '-Fc',
			'-f', "$temp/guest",
			'-d', $foreign->connstr('guest')
		],
		'and a dump');
	restore_ok('of that dump, at home', $node, 'home', "$temp/guest");
	is(plaintext($node, 'home'), $plaintext, 'which decrypts at home');
}
is(keystore_state($foreign), 'ok', "the host's own keystore is well");
is($foreign->safe_psql('postgres', 'SELECT name::text FROM pupil'),
	'Eva', 'its own pupils read on');
is(sqlstate($foreign, "SELECT nomp_crypt.create_tenant('west')"),
	'', 'its own tenants can be created');

# Into a database that belongs to an installation nothing can be restored.
$foreign->command_fails_like(
	[ restore_into($foreign, 'postgres', "$temp/plain.sql", '-1') ],
	qr/already exists/,
	'a table of the same name: refused');
$foreign->safe_psql('postgres',
		'ALTER TABLE pupil RENAME TO own_pupil;'
	  . ' ALTER INDEX pupil_pkey RENAME TO own_pupil_pkey');
$foreign->command_fails_like(
	[ restore_into($foreign, 'postgres', "$temp/plain.sql", '-1') ],
	qr/violates unique constraint "installation_only_one"/,
	'two installations in one database: refused');
is($foreign->safe_psql('postgres', 'SELECT name::text FROM own_pupil'),
	'Eva', 'and all is as it was');

is(plaintext($node, 'postgres'), $plaintext, 'the original reads to the end');

$_->stop for $foreign, $successor, $node;
done_testing();
