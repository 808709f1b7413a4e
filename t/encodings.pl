# Values are UTF-8 inside, whatever the database's encoding and the client's:
# what was written in one is read in another.  What another encoding cannot
# say is an error of its own, and databases whose text has no known encoding
# are refused when the extension is created.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $school = 'ribersborg';
my $inside = "SET nomp_crypt.tenant = '$school'";
my $temp = PostgreSQL::Test::Utils::tempdir();
my $node = nomp_node('main');

$node->start;
create_nomp($node, $school);
$node->safe_psql('postgres',
	'CREATE TABLE word (id int, t encrypted(text, searchable, nocase), v encrypted(varchar),'
	  . " j encrypted(json), b encrypted(jsonb), a encrypted('text[]'))");

# a database in another encoding, with the same keys and tables
sub make_database
{
	my ($name, $encoding) = @_;

	$node->safe_psql('postgres',
		"CREATE DATABASE $name TEMPLATE template0 ENCODING '$encoding' LC_COLLATE 'C' LC_CTYPE 'C'"
	);
	$node->command_ok(
		[
			'pg_dump', '-f',
			"$temp/$name.sql", '-d',
			$node->connstr('postgres')
		],
		"$name: dump");
	$node->command_ok(
		[
			'psql', '-Xq', '-v', 'ON_ERROR_STOP=1',
			'-d', $node->connstr($name), '-f', "$temp/$name.sql"
		],
		"$name: restore");
	return;
}

# sent DBNAME, CLIENT ENCODING, SQL in that encoding: what comes back, in hex
sub sent
{
	my ($dbname, $encoding, $sql) = @_;
	local $ENV{PGCLIENTENCODING} = $encoding;
	my $out = $node->safe_psql($dbname, "$inside; $sql");

	return unpack 'H*', $out;
}

my $utf8 = "Åsa Öberg";
my $latin1 = "\xc5sa \xd6berg";
my $row = sub {
	my ($id, $word) = @_;
	return
	  "INSERT INTO word VALUES ($id, '$word', '$word', '\"$word\"', '{\"$word\": \"$word\"}', '{$word,\"$word, $word\"}')";
};

make_database('latin1', 'LATIN1');
foreach my $dbname (qw(postgres latin1))
{
	$node->safe_psql($dbname, 'DELETE FROM word');
	sent($dbname, 'UTF8', $row->(1, $utf8));
	sent($dbname, 'LATIN1', $row->(2, $latin1));
	foreach my $column (qw(t v j b a))
	{
		is( sent($dbname, 'UTF8', "SELECT $column FROM word WHERE id = 2"),
			sent($dbname, 'UTF8', "SELECT $column FROM word WHERE id = 1"),
			"$dbname: $column is the same, written in UTF8 and in LATIN1");
		like(
			sent($dbname, 'LATIN1', "SELECT $column FROM word WHERE id = 1"),
			qr/${\ unpack 'H*', $latin1}/,
			"$dbname: $column is read in LATIN1");
		like(
			sent($dbname, 'UTF8', "SELECT $column FROM word WHERE id = 2"),
			qr/${\ unpack 'H*', $utf8}/,
			"$dbname: $column is read in UTF8");
	}
	is( $node->safe_psql(
			$dbname,
			'SELECT count(DISTINCT encode(substr(encrypted_send(t), 35, 16), \'hex\')) FROM word'
		),
		'1',
		"$dbname: one fingerprint");
	is( sent(
			$dbname, 'UTF8',
			"SELECT count(*) FROM word WHERE t = 'åSA öBERG'"),
		unpack('H*', '2'),
		"$dbname: found, in other case");
}

# Ciphertext goes from the one to the other.
my $fingerprint =
  'SELECT DISTINCT encode(substr(encrypted_send(t), 35, 16), \'hex\') FROM word';
is( $node->safe_psql('latin1', $fingerprint),
	$node->safe_psql('postgres', $fingerprint),
	'both have the same fingerprint');
sent('postgres', 'UTF8', $row->(3, 'Łódź'));
$node->safe_psql('postgres', "COPY word TO '$temp/word.copy'");
$node->safe_psql('latin1',
	"DELETE FROM word; COPY word FROM '$temp/word.copy'");
is( sent('latin1', 'UTF8', 'SELECT t FROM word WHERE id = 1'),
	unpack('H*', $utf8),
	'what LATIN1 has is read there');
is( sqlstate(
		$node,
		"$inside; SELECT t FROM word WHERE id = 3",
		dbname => 'latin1'),
	'22P05',
	'what it has not is an error');
is( sqlstate(
		$node,
		"$inside; SELECT b FROM word WHERE id = 3",
		dbname => 'latin1'),
	'22P05',
	'in jsonb too');
is( sent('latin1', 'UTF8', 'SELECT count(*) FROM word WHERE t IS NOT NULL'),
	unpack('H*', '3'),
	'and loses nothing');

# Encodings that say nothing about their text.
foreach my $encoding (qw(SQL_ASCII MULE_INTERNAL))
{
	my $name = lc "no_$encoding";

	$node->safe_psql('postgres',
		"CREATE DATABASE $name TEMPLATE template0 ENCODING '$encoding' LC_COLLATE 'C' LC_CTYPE 'C'"
	);
	like(
		failure($node, 'CREATE EXTENSION nomp_crypt', dbname => $name),
		qr/^0A000: .*\b$encoding\b/s,
		"$encoding is refused");
	is( $node->safe_psql(
			$name,
			"SELECT count(*) FROM pg_extension WHERE extname = 'nomp_crypt'"),
		'0',
		'and nothing is left');
}

$node->stop;
done_testing();
