# A fingerprint is what docs/format.md says, and depends on nothing else: the
# same is made a second time outside the server, by test/decrypt.py with the
# index key that the token unwraps, and compared with what the server searches
# by and with what it stores.

use strict;
use warnings;
use utf8;

use Encode qw(encode);
use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = nomp_node('main');
my $dir = $node->{nomp_dir};
$node->start;
create_nomp($node, 'ours', 'theirs');
$node->safe_psql('postgres', <<'SQL');
SELECT nomp_crypt.grant_all_tenants(current_user, '{search}');
CREATE TABLE person (id int PRIMARY KEY, exact encrypted(text, searchable),
	nocase encrypted(text, searchable, nocase), digits encrypted(text, searchable, digits));
CREATE TABLE thing (price encrypted('numeric(10,2)', searchable), made encrypted(timestamptz, searchable),
	ratio encrypted(float8, searchable), bytes encrypted(bytea, searchable), code encrypted('char(8)', searchable));
SQL

my $school = "SET nomp_crypt.tenant = 'ours'; ";

# Bytes 34 to 49 of what an expression gives, in hex, inside our school.
sub shown
{
	my ($expression, $from) = @_;

	return $node->safe_psql('postgres',
		$school
		  . "SELECT encode(substr(encrypted_send($expression), 35, 16), 'hex') $from"
	);
}

sub made_outside
{
	my ($id, $kind, $text) = @_;

	return fingerprint($node, $dir, $id, $kind, encode('UTF-8', $text));
}

# What is searched for: the modifier is text, and the kind in bits 8 and 9.
my @kinds = qw(exact nocase digits);
my %texts = (
	'a name' => 'Anna Öberg',
	'a number' => '20140501-1234',
	'nothing' => '',
	'letters that fold to two' => 'STRAßE ﬁ',
	'a letter and its accent apart' => "Rene\x{301} A\x{30a}",
	'a final sigma' => 'ΌΣΟΣ',
	'digits of other scripts' => '١٢٣ 123',
	'outside the first plane' => "\x{10400}\x{1f600}");

for my $name (sort keys %texts)
{
	my $text = $texts{$name};
	my $quoted = "'" . encode('UTF-8', $text) . "'";

	for my $i (0 .. $#kinds)
	{
		my $modifier = 1 | ($i + 1) << 8;

		is( shown("nomp_crypt._probe(${quoted}::text, $modifier)", ''),
			made_outside('ours', $kinds[$i], $text),
			"searched for, $kinds[$i]: $name");
	}
}
isnt(
	made_outside('theirs', 'exact', 'Anna Öberg'),
	made_outside('ours', 'exact', 'Anna Öberg'),
	'another school has another fingerprint');
my $everywhere = $node->safe_psql('postgres',
	"SELECT string_agg(encode(substr(encrypted_send(p), 35, 16), 'hex'), ' ' "
	  . "ORDER BY nomp_crypt.tenant_of(p)) "
	  . "FROM unnest(nomp_crypt.search_values('Anna')) p");
is( $everywhere,
	join(' ', map { made_outside($_, 'exact', 'Anna') } qw(ours theirs)),
	'search_values() has that of every school');

# What is stored, through a literal and through a cast.
my $name = encode('UTF-8', 'Anna Öberg');
$node->safe_psql('postgres',
		$school
	  . "INSERT INTO person VALUES (1, '$name', '$name', '20140501-1234'), "
	  . "(2, '$name'::text, upper('$name'), '20140501 1234'::varchar)");
for my $id (1, 2)
{
	is( shown('exact', "FROM person WHERE id = $id"),
		made_outside('ours', 'exact', 'Anna Öberg'),
		"stored, exact, row $id");
	is( shown('digits', "FROM person WHERE id = $id"),
		made_outside('ours', 'exact', '201405011234'),
		"stored, digits, row $id");
}
is( shown('nocase', 'FROM person WHERE id = 1'),
	made_outside('ours', 'exact', 'anna öberg'),
	'stored, nocase');

# Other types, under settings that change how they are shown.
$node->safe_psql('postgres', <<"SQL");
$school
SET timezone = 'Asia/Kolkata'; SET datestyle = 'German'; SET bytea_output = 'escape';
SET extra_float_digits = -10;
INSERT INTO thing VALUES ('10.50', '2014-05-01 10:30:00.25+02', '0.1', '\\xdeadbeef', 'AB');
SQL
my %things = (
	price => '10.5',
	made => '2014-05-01 08:30:00.25+00',
	ratio => '0.1',
	bytes => '\xdeadbeef',
	code => 'AB');
for my $column (sort keys %things)
{
	is( shown($column, 'FROM thing'),
		made_outside('ours', 'exact', $things{$column}),
		"stored, canonical text of $column");
}

$node->stop;
done_testing();
