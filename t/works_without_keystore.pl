# A keystore is a box at the end of a network cable, and a database is looked
# after by people and programs who have no key: autovacuum, the nightly dump,
# the base backup, the replica at another provider.  None of them may need the
# keystore, or an outage that should cost the readers some minutes costs the
# backup of a night.  So: everything that works with stored values alone, on a
# server that was started without its keystore and holds no key in memory.
# And none of it may change a value: when the keystore is back, everything
# decrypts, wherever it has been copied to.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = nomp_node('main', allows_streaming => 'logical');
my $dir = $node->{nomp_dir};
my $uri = keystore_uri($dir, 'nomp');
my $nowhere = keystore_uri($dir, 'nowhere');
my $temp = PostgreSQL::Test::Utils::tempdir();

sub one
{
	my ($sql, $dbname) = @_;

	return $node->safe_psql($dbname // 'postgres', $sql);
}

# What is stored, byte for byte: outside a tenant values are ciphertext.
sub stored
{
	my ($server, $table, $dbname) = @_;

	return $server->safe_psql(
		$dbname // 'postgres',
		"SELECT count(*) || ' ' || md5(string_agg("
		  . "format('%s %s %s', id, name, notes), ';' ORDER BY id)) FROM $table"
	);
}

sub plaintext
{
	my ($server, $dbname) = @_;

	return $server->safe_psql(
		$dbname // 'postgres',
		"SELECT count(*) || ' ' || md5(string_agg("
		  . "format('%s %s %s', id, name::text, notes::text), ';' ORDER BY id))"
		  . " FROM pupil");
}

# The keystore's absence is felt by who reads, and by nobody else.
sub unreadable
{
	my ($server, $what, $dbname) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	is( sqlstate(
			$server,
			'SELECT name::text FROM pupil',
			dbname => $dbname // 'postgres'),
		'NC004',
		"$what: reading needs the keystore");
	return;
}

# works(WHAT, SQL): without an error, and without changing a value.
my $stored;

sub works
{
	my ($what, $sql) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	is(sqlstate($node, $sql), '', "$what works");
	is(stored($node, 'pupil'), $stored,
		"$what leaves the values as they are");
	return;
}

# Some pupils have no notes, some very long ones; and the first name is there
# many times, as statistics like it.
$node->start;
create_nomp($node, 'north', 'south');
for my $school ([ 'north', 1 ], [ 'south', 101 ])
{
	my ($id, $from) = @$school;

	one(in_tenant(
			$id,
			"INSERT INTO pupil SELECT $from + i, '$id', 'Åsa ' || i || ' i $id',"
			  . " CASE mod(i, 3) WHEN 0 THEN '' WHEN 1 THEN repeat('Lång ' || i, 2000) END"
			  . " FROM generate_series(0, 99) i"));
}
one(<<'SQL');
INSERT INTO pupil SELECT 200 + i, school, name, notes
FROM pupil, generate_series(1, 50) i WHERE id = 1;
CREATE TABLE keyless (LIKE pupil);
ALTER TABLE keyless REPLICA IDENTITY FULL;
INSERT INTO keyless SELECT * FROM pupil WHERE id <= 20;
CREATE PUBLICATION everything FOR TABLE pupil, keyless;
CREATE EXTENSION amcheck;
SQL
$stored = stored($node, 'pupil');
my $plaintext = plaintext($node);

$node->append_conf('postgresql.conf', "nomp_crypt.keystore = '$nowhere'");
$node->restart;
like(
	keystore_state($node),
	over_kms() ? qr/^it cannot be reached/ : qr/^the token is not there$/,
	'the keystore is gone');
unreadable($node, 'at the start');

# Looking.
is(one('SELECT count(*) FROM pupil'), '250', 'rows can be counted');
is(one('SELECT count(name) FROM pupil WHERE notes IS NULL'),
	'66', 'and those without a value');
is(stored($node, 'pupil'), $stored, 'outside a tenant the values are there');
is( one('SELECT DISTINCT nomp_crypt.tenant_of(name) FROM pupil WHERE id > 100'
		  . ' AND id <= 200'),
	'south',
	'whose a value is can be told');
is(one('SELECT DISTINCT (nomp_crypt.key_info(name)).state FROM pupil'),
	'active', 'and the state of its key');
is(one("SELECT string_agg(id, ',' ORDER BY id) FROM nomp_crypt.tenants"),
	'north,south', 'the tenants can be listed');
is( one(in_tenant(
			'north', "SELECT count(*) FROM pupil WHERE school = 'north'")),
	'150',
	'inside a tenant too, as long as nobody looks at a value');
is(sqlstate($node, in_tenant('north', 'SELECT name FROM pupil LIMIT 1')),
	'NC004', 'which is refused there');
is( sqlstate(
		$node,
		in_tenant('north', "INSERT INTO pupil VALUES (999, 'x', 'Eva')")),
	'NC004',
	'and so is writing');

# Maintenance.
works('VACUUM', 'VACUUM (FREEZE) pupil');
works('ANALYZE', 'ANALYZE pupil');
is( one(    "SELECT string_agg(attname, ',' ORDER BY attname) FROM pg_stats"
		  . " WHERE tablename = 'pupil' AND schemaname = 'public'"),
	'id,name,notes,school',
	'every column has statistics');
is( one(    "SELECT count(*) FROM pg_stats WHERE tablename = 'pupil'"
		  . " AND attname IN ('name', 'notes')"
		  . " AND (most_common_vals IS NOT NULL OR histogram_bounds IS NOT NULL"
		  . " OR most_common_elems IS NOT NULL OR n_distinct > 0)"),
	'0',
	'no value of an encrypted column is among them');
is( one(    "SELECT round(null_frac::numeric, 3) FROM pg_stats"
		  . " WHERE tablename = 'pupil' AND attname = 'notes'"),
	'0.264',
	'the share of nulls is');
works('VACUUM FULL', 'VACUUM FULL pupil');
works('CREATE INDEX, btree', 'CREATE INDEX pupil_name ON pupil (name)');
works('CREATE INDEX, hash',
	'CREATE INDEX pupil_name_hash ON pupil USING hash (name)');
works('CREATE INDEX CONCURRENTLY',
	'CREATE INDEX CONCURRENTLY pupil_school_name ON pupil (school, name)');
works('REINDEX', 'REINDEX TABLE pupil');
works('REINDEX CONCURRENTLY', 'REINDEX TABLE CONCURRENTLY pupil');
works('checking the index',
	"SELECT bt_index_parent_check('pupil_name', true, true)");
works('CLUSTER', 'CLUSTER pupil USING pupil_name');
works(
	'a change of the table that writes it anew',
	'ALTER TABLE pupil ADD COLUMN drawn float DEFAULT random();'
	  . ' ALTER TABLE pupil DROP COLUMN drawn');
works('writing to other columns',
	"UPDATE pupil SET school = 'north' WHERE id = 1");
works('storing a value again',
	'UPDATE pupil SET name = name, notes = notes WHERE id < 50');
works(
	'a transaction that is prepared',
	"BEGIN; UPDATE pupil SET name = name WHERE id = 2;"
	  . " PREPARE TRANSACTION 'p'; COMMIT PREPARED 'p'");
# COPY, dump and base backup.
for my $format (qw(text csv binary))
{
	my $file = "$temp/pupil.$format";

	works(
		"COPY in format $format",
		"COPY pupil TO '$file' (FORMAT $format);"
		  . ' CREATE TABLE copied (LIKE pupil);'
		  . " COPY copied FROM '$file' (FORMAT $format)");
	is(stored($node, 'copied'), $stored, 'and what was copied is the same');
	# a few bytes of ciphertext in binary may be anything
	unlike(
		slurp_file($file),
		qr/Åsa \d+ i |Lång \d+Lång/,
		'the file has no plaintext');
	one('DROP TABLE copied');
}
$node->command_ok(
	[
		'pg_dump', '-Fc', '-f', "$temp/dump", '-d', $node->connstr('postgres')
	],
	'pg_dump works');
one('CREATE DATABASE restored TEMPLATE template0');
$node->command_ok(
	[
		'pg_restore', '--exit-on-error',
		'-d', $node->connstr('restored'),
		"$temp/dump"
	],
	'pg_restore works');
is(stored($node, 'pupil', 'restored'), $stored,
	'and the values are the same');
unreadable($node, 'the restored database', 'restored');

$node->backup('base');
my $copy = PostgreSQL::Test::Cluster->new('copy');
$copy->init_from_backup($node, 'base');
$copy->start;
is(stored($copy, 'pupil'), $stored, 'a base backup has the same values');
unreadable($copy, 'the base backup');

# Logical replication, to a server that has the type and nothing else.
my $subscriber = PostgreSQL::Test::Cluster->new('subscriber');
$subscriber->init(
	allows_streaming => 'logical',
	extra => [ '--encoding=UTF8', '--no-locale' ]);
mkdir "$temp/register", 0700;
$subscriber->append_conf('postgresql.conf', <<"CONF");
shared_preload_libraries = 'nomp_crypt'
nomp_crypt.register_directory = '$temp/register'
CONF
$subscriber->start;
$subscriber->safe_psql('postgres', <<"SQL");
CREATE EXTENSION nomp_crypt;
CREATE TABLE pupil (id bigint PRIMARY KEY, school text NOT NULL,
	name encrypted(text), notes encrypted(text));
CREATE TABLE keyless (LIKE pupil);
ALTER TABLE keyless REPLICA IDENTITY FULL;
CREATE SUBSCRIPTION everything CONNECTION '@{[ $node->connstr ]} dbname=postgres'
	PUBLICATION everything;
SQL
$subscriber->wait_for_subscription_sync($node, 'everything');

sub same_there
{
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	$node->wait_for_catchup('everything');
	is( stored($subscriber, $_),
		stored($node, $_),
		"logical replication: $what: $_ has the same values"
	) for qw(pupil keyless);
	return;
}

# The changes that are made here and must arrive there.  Every one is to the
# values: the first pupil's name is given to others, rows are found by all of
# their columns, and disappear.
sub change
{
	my ($what, @ids) = @_;
	my $list = join ',', @ids;

	one(<<"SQL");
INSERT INTO pupil SELECT id + 10000, school, NULL, name FROM pupil WHERE id IN ($list);
UPDATE pupil SET name = (SELECT name FROM pupil WHERE id = 1) WHERE id IN ($list);
UPDATE keyless SET name = notes, notes = name WHERE id IN ($list);
UPDATE keyless SET school = 'moved' WHERE id = $ids[0];
DELETE FROM keyless WHERE id = $ids[1];
DELETE FROM pupil WHERE id = $ids[1];
SQL
	same_there($what);
	return;
}

same_there('the first copy');
is(stored($subscriber, 'pupil'), $stored, 'which are those of the start');
change('changes', 4 .. 8);
$subscriber->safe_psql('postgres',
	'ALTER SUBSCRIPTION everything SET (binary = true)');
change('changes in binary', 9 .. 13);
one('TRUNCATE keyless; INSERT INTO keyless SELECT * FROM pupil WHERE id < 40'
);
same_there('TRUNCATE');
change('changes after it', 14 .. 18);
is(sqlstate($subscriber, 'SELECT name::text FROM pupil'),
	'NC003', 'the subscriber knows no key');
unreadable($node, 'after all that');

# The cable is plugged in.
one("UPDATE pupil SET name = NULL WHERE id = 150");
$node->append_conf('postgresql.conf', "nomp_crypt.keystore = '$uri'");
$node->reload;
wait_until(sub { keystore_state($node) eq 'ok' }, 'the keystore to be back');
is(plaintext($node, 'restored'),
	$plaintext, 'the keystore is back: what was dumped decrypts');
is( one('SELECT name::text FROM pupil WHERE id = 6'),
	'Åsa 0 i north',
	'and what was changed in the meantime');
is( one(in_tenant('south', 'SELECT name FROM pupil WHERE id = 151')),
	'Åsa 50 i south',
	'and what was not');
$copy->append_conf('postgresql.conf', "nomp_crypt.keystore = '$uri'");
$copy->reload;
wait_until(sub { keystore_state($copy) eq 'ok' }, "the copy's keystore");
is(plaintext($copy), $plaintext, 'the base backup decrypts');

# The subscriber is given the wrapped keys, and the cable.
$node->command_ok(
	[
		'pg_dump', '--data-only',
		'--table=nomp_crypt.*', '-f',
		"$temp/keys.sql", '-d',
		$node->connstr('postgres')
	],
	"the extension's tables can be dumped alone");
$subscriber->command_ok(
	[
		'psql', '-Xq',
		'-v', 'ON_ERROR_STOP=1',
		'-f', "$temp/keys.sql",
		'-d', $subscriber->connstr('postgres')
	],
	'and loaded at the subscriber');
unreadable($subscriber, 'the subscriber with keys and no keystore');
$subscriber->append_conf('postgresql.conf', "nomp_crypt.keystore = '$uri'");
$subscriber->reload;
wait_until(sub { keystore_state($subscriber) eq 'ok' },
	"the subscriber's keystore");
same_there('the end');
is(plaintext($subscriber), plaintext($node), 'the subscriber decrypts');

$_->stop for $subscriber, $copy, $node;
done_testing();
