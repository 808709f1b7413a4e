# After an erasure the unreadable values are still in the tables, with their
# fingerprints: they are removed, or their rows, in batches, and nothing else
# is.  What depends on the rows is named before anything is changed.  Reports
# say before and after what there is, and what a backup of some day would need.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use Procedures;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = nomp_node('main');
$node->start;
create_nomp($node, qw(s-0180-42 values other));

sub one
{
	my ($sql) = @_;

	return $node->safe_psql('postgres', $sql);
}

one(<<'SQL');
CREATE TABLE person (id int PRIMARY KEY, school text, name encrypted(text), ssn encrypted(text, searchable) UNIQUE, tags encrypted(text)[], filler text);
CREATE TABLE mark (id int PRIMARY KEY, person int REFERENCES person, mark text);
CREATE TABLE note (id int, mark int REFERENCES mark, note text);
CREATE TABLE seat (id int, person int REFERENCES person ON DELETE SET NULL);
CREATE TABLE photo (person int REFERENCES person ON DELETE CASCADE, path text);
CREATE TABLE login (ssn encrypted(text, searchable) REFERENCES person (ssn), at date);
CREATE TABLE parted (id int, name encrypted(text)) PARTITION BY RANGE (id);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (5000);
CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (5000) TO (100000);
CREATE TABLE strict (id int, name encrypted(text) NOT NULL);
CREATE TABLE mixed (id int, pair encrypted(text)[], theirs encrypted(text));
CREATE MATERIALIZED VIEW seen AS SELECT id, name FROM person;
SQL
my $n = 0;
for my $school (qw(s-0180-42 values other))
{
	my $from = $n++ * 10000;
	one(in_tenant($school, <<"SQL"));
INSERT INTO person SELECT $from + i, '$school', 'Namn ' || i, 'S' || i, ARRAY['a', 'b']::encrypted(text)[], repeat('x', 500) FROM generate_series(1, 300) i;
INSERT INTO parted SELECT $from + i * 20, 'P' || i FROM generate_series(1, 400) i;
INSERT INTO login SELECT ssn, '2026-01-01' FROM person WHERE id <= $from + 3 AND school = '$school'
SQL
	one("INSERT INTO mark SELECT $from + i, $from + i, 'A' FROM generate_series(1, 5) i;"
		  . " INSERT INTO note SELECT $from + i, $from + i, 'bra' FROM generate_series(1, 2) i;"
		  . " INSERT INTO seat SELECT $from + i, $from + i FROM generate_series(1, 7) i;"
		  . " INSERT INTO photo SELECT $from + i, '/x' FROM generate_series(1, 4) i;"
	);
}
one(in_tenant('values', "INSERT INTO strict VALUES (1, 'måste')"));
one(<<'SQL');
INSERT INTO mixed VALUES (1, ARRAY[nomp_crypt.encrypt('mitt', 'values'), nomp_crypt.encrypt('ditt', 'other')], nomp_crypt.encrypt('deras', 'other')),
	(2, ARRAY[nomp_crypt.encrypt('mitt', 'values'), NULL], nomp_crypt.encrypt('deras', 'other'));
REFRESH MATERIALIZED VIEW seen;
SQL

# A fingerprint of everything that is the other school's, and of what is in clear.
my $others = <<'SQL';
SELECT md5(string_agg(x, '|' ORDER BY x)) FROM (
	SELECT id || nomp_crypt.decrypt(name) || nomp_crypt.decrypt(ssn) || nomp_crypt.decrypt(tags[2]) FROM person WHERE school = 'other'
	UNION ALL SELECT id || nomp_crypt.decrypt(name) FROM parted WHERE nomp_crypt.tenant_of(name) = 'other'
	UNION ALL SELECT id || nomp_crypt.decrypt(theirs) FROM mixed
	UNION ALL SELECT m.id || m.mark FROM mark m WHERE m.person > 20000
	UNION ALL SELECT s.id || s.person::text FROM seat s WHERE s.person > 20000) t(x)
SQL
my $before = one($others);

# The preview counts what there is.
is( one("SELECT object, column_name, kind, amount FROM nomp_crypt.erasure_preview('values') WHERE kind <> 'not reached' ORDER BY object COLLATE \"C\", column_name NULLS FIRST"
	),
	<<'TEXT' =~ s/\n\z//r, 'the preview counts rows and values by table and column');
public.login||rows|3
public.login|ssn|values|3
public.mixed||rows|2
public.mixed|pair|values|2
public.parted_2||rows|400
public.parted_2|name|values|400
public.person||rows|300
public.person|name|values|300
public.person|ssn|values|300
public.person|tags|values|600
public.seen||rows|300
public.seen|name|values|300
public.strict||rows|1
public.strict|name|values|1
TEXT
my $reached = one(
	"SELECT string_agg(object, ', ') FROM nomp_crypt.erasure_preview('values') WHERE kind = 'not reached'"
);
like(
	$reached,
	qr/what is not encrypted, copies of keys, copies of plaintext$/,
	'and says what it does not reach');
one('CREATE DATABASE neighbour');
$node->safe_psql('neighbour',
	"CREATE EXTENSION nomp_crypt; SELECT nomp_crypt.create_tenant('values')");
like(
	one("SELECT string_agg(object, ', ') FROM nomp_crypt.erasure_preview('values') WHERE kind = 'not reached'"
	),
	qr/databases neighbour/,
	'another database of the installation is named');
is(sqlstate($node, "SELECT * FROM nomp_crypt.erasure_preview('nowhere')"),
	'42704', 'of a school that is');

# Not before the erasure.
is(sqlstate($node, "CALL nomp_crypt.purge_tenant('values')"),
	'55000', 'nothing is removed of a living school');
is(sqlstate($node, "CALL nomp_crypt.purge_tenant('nowhere')"),
	'42704', 'or of none');
one("SELECT nomp_crypt._erase_request('values', 'test', NULL)");
is(sqlstate($node, "CALL nomp_crypt.purge_tenant('values')"),
	'55000', 'nor of one that waits');
one("SELECT nomp_crypt.withdraw_erasure('values')");
my $moment = one('SELECT clock_timestamp()');
one("SELECT nomp_crypt.rewrap_tenant('values')");
is(sqlstate($node, "CALL nomp_crypt.erase_tenant('$_', 'test')"),
	'', "$_ is erased")
  for qw(s-0180-42 values);
is( sqlstate($node, "BEGIN; CALL nomp_crypt.purge_tenant('values'); COMMIT"),
	'2D000',
	'not within a transaction');
is(sqlstate($node, "CALL nomp_crypt.purge_tenant('values', 'all')"),
	'22023', 'an unknown mode');
is( sqlstate(
		$node, "CALL nomp_crypt.purge_tenant('values', batch_blocks => 0)"),
	'22023',
	'and a batch of nothing');

# Values.
my $said = failure($node, "CALL nomp_crypt.purge_tenant('values')");
like(
	$said,
	qr/^23502: values in columns that are NOT NULL cannot be removed alone: public.strict.name$/m,
	'a NOT NULL column is named');
is(one("SELECT count(name) FROM person WHERE school = 'values'"),
	'300', 'and nothing was changed');
one("DELETE FROM strict");
one("CREATE ROLE clerk LOGIN; SELECT nomp_crypt.grant_admin('clerk')");
my $err = '';
$node->psql(
	'postgres', "CALL nomp_crypt.purge_tenant('s-0180-42')",
	stderr => \$err,
	connstr => $node->connstr('postgres') . ' user=clerk',
	extra_params => [ '-v', 'VERBOSITY=sqlstate' ]);
like($err, qr/42501/,
	'an administrator without rights on the tables cannot remove rows');
# interrupted after its first batches: repeated, it goes on
one("CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN IF OLD.id = 10200 THEN RAISE EXCEPTION USING ERRCODE = ''P0999''; END IF; RETURN NEW; END'"
);
one("CREATE TRIGGER stop BEFORE UPDATE ON person FOR EACH ROW EXECUTE FUNCTION stop()"
);
is( sqlstate(
		$node, "CALL nomp_crypt.purge_tenant('values', batch_blocks => 2)"),
	'P0999',
	'interrupted');
my $left = one("SELECT count(name) FROM person WHERE school = 'values'");
cmp_ok($left, '<', 300, 'some batches were done');
cmp_ok($left, '>', 0, 'and some not');
one('DROP TRIGGER stop ON person');
is( one("CALL nomp_crypt.purge_tenant('values', batch_blocks => 2)") =~
	  /^\d+$/ ? 1 : 0,
	1,
	'repeated, it ends');
is( one("SELECT count(*), count(name), count(ssn), count(tags) FROM person WHERE school = 'values'"
	),
	'300|0|0|0',
	'the rows are there, the values and fingerprints are not');
is(one("SELECT count(*), count(ssn) FROM login"),
	'9|6', 'referring ones neither');
is( one("SELECT count(*), count(name) FROM parted_2 WHERE id BETWEEN 10000 AND 19999"
	),
	'400|0',
	'nor in partitions');
is( one("SELECT id, cardinality(pair), pair IS NULL, theirs IS NOT NULL FROM mixed ORDER BY id"
	),
	"1|2|f|t\n2||t|t",
	'an array with another school\'s value is left');
is( one("SELECT amount FROM nomp_crypt.erasure_preview('values') WHERE kind = 'values' AND object = 'public.mixed' AND column_name = 'pair'"
	),
	'1',
	'and counted');
is(one($others), $before, 'everything else is as it was');
is( one("SELECT count(*) FROM nomp_crypt.audit WHERE act = 'purge_tenant' AND tenant = 'values'"
	),
	'1',
	'it is on record');
isnt(
	one("SELECT sample FROM nomp_crypt.erasure e JOIN nomp_crypt.tenant t ON t.uuid = e.tenant WHERE t.id = 'values'"
	),
	'',
	'a sample was kept for the certificate');

# Rows.
$said = failure($node, "CALL nomp_crypt.purge_tenant('s-0180-42', 'rows')");
like(
	$said,
	qr/^23503: other rows depend on those of tenant "s-0180-42"/,
	'rows that depend on others are in the way');
like(
	$said,
	qr/5 rows of public.mark depend on rows of public.person by mark_person_fkey \(ON DELETE NO ACTION\)/,
	'named: marks');
like(
	$said,
	qr/4 rows of public.photo depend on rows of public.person by photo_person_fkey \(ON DELETE CASCADE\)/,
	'photos, which would go silently');
like(
	$said,
	qr/7 rows of public.seat depend on rows of public.person by seat_person_fkey \(ON DELETE SET NULL\)/,
	'seats');
unlike($said, qr/login/, 'not the school\'s own rows');
is(one("SELECT count(*) FROM person WHERE school = 's-0180-42'"),
	'300', 'and nothing was changed');
is( one("CALL nomp_crypt.purge_tenant('s-0180-42', 'rows', dependents => true)"
	),
	300 + 400 + 3,
	'told so, they are deleted');
is(one("SELECT count(*) FROM person WHERE school = 's-0180-42'"),
	'0', 'the rows are gone');
is( one("SELECT (SELECT count(*) FROM mark WHERE id <= 10000), (SELECT count(*) FROM note WHERE id <= 10000), (SELECT count(*) FROM photo WHERE person <= 10000), (SELECT count(*) FROM login)"
	),
	'0|0|0|6',
	'with their marks, the notes on these, photos and logins');
is(one("SELECT count(*), count(person) FROM seat WHERE id <= 10000"),
	'7|0', 'seats are free');
is(one($others), $before, 'everything else is as it was');
run_procedure('purge', { server => $node });

# The school comes back under its id: what it writes now is not touched.
one("SELECT nomp_crypt.create_tenant('s-0180-42')");
one(in_tenant(
		's-0180-42',
		"INSERT INTO person (id, school, name) VALUES (90000, 's-0180-42', 'Ny')"
	));
is(one("CALL nomp_crypt.purge_tenant('s-0180-42', 'rows', true)"),
	'0', 'purging again finds nothing');
is(one(in_tenant('s-0180-42', "SELECT name FROM person WHERE id = 90000")),
	'Ny', 'of the new school');

# A backup of that moment.
is( one("SELECT tenant, right(object, 2), exposed, destroyed_at IS NOT NULL FROM nomp_crypt.exposure_report('$moment') WHERE kind = 'key' ORDER BY 1, 2"
	),
	"other|:1|t|f\ns-0180-42|:1|f|t\nvalues|:1|f|t",
	'a backup of then needs the keys of then; those of erased schools are destroyed'
);
is( one("SELECT tenant, right(object, 2), exposed FROM nomp_crypt.exposure_report(clock_timestamp()) WHERE kind = 'key' ORDER BY 1, 2"
	),
	"other|:1|t\ns-0180-42|:1|t",
	'one of now needs those of now');
is( one("SELECT count(*) > 0 FROM nomp_crypt.exposure_report(now()) WHERE kind = 'column' AND object = 'public.person.ssn'"
	),
	't',
	'columns are listed');
is( one("SELECT count(*) FROM nomp_crypt.exposure_report('2000-01-01') WHERE kind = 'key'"
	),
	'0',
	'before there were keys, none');
is( sqlstate($node, "SELECT * FROM nomp_crypt.exposure_report('3000-01-01')"),
	'22023',
	'not in the future');
is(sqlstate($node, "SELECT * FROM nomp_crypt.exposure_report(NULL)"),
	'22023', 'nor never');
run_procedure('leak', { server => $node });

# For an audit.
one("SELECT nomp_crypt.grant_tenant('other', 'clerk', '{decrypt,search}'); SELECT nomp_crypt.hold_tenant('other', 'T-1')"
);
like(
	one("SELECT string_agg(section || ': ' || item || ': ' || value, E'\\n') FROM nomp_crypt.tenant_report('other', 'sv')"
	),
	qr/Skola: Tillstånd: i bruk\n.*Krypterade kolumner: public\.person\.name: .*Vem som får läsa: clerk: other: läsa, söka, gavs .*Rättsliga spärrar mot radering: T-1/s,
	'a report in Swedish');
my $serial =
  (over_kms() ? '' : 'pkcs11:serial=') . serial_of($node->{nomp_dir}, 'nomp');
like(
	one("SELECT string_agg(section || ': ' || item || ': ' || value, E'\\n') FROM nomp_crypt.tenant_report('values', 'en')"
	),
	qr/School: State: erased: nobody can ever read.*Generation 1 in \Q$serial\E: made .*, replaced .*, destroyed .*Generation 2 .*Version 1 \(values\): made .*, destroyed.*Erasure: /s,
	'and in English, of an erased school: the newest of that id');
is( one("SELECT count(DISTINCT section) FROM nomp_crypt.tenant_report('other', 'sv') s JOIN nomp_crypt.tenant_report('other', 'en') e USING (section)"
	),
	'0',
	'every section is translated');
is( sqlstate($node, "SELECT * FROM nomp_crypt.tenant_report('other', 'de')"),
	'22023',
	'no other language');
is(sqlstate($node, "SELECT * FROM nomp_crypt.tenant_report('nowhere')"),
	'42704', 'of a school that is');

$node->stop;
done_testing();
