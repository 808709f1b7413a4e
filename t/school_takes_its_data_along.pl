# Before a school is erased its controller gets its data: every row with its
# values, as they are in one moment, readable with any program and provably
# complete by its sums.  Another school's data must not be among it, and no
# half export may lie about in clear.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IPC::Run;
use JSON::PP ();
use NompTest;
use Procedures;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $script = "$FindBin::RealBin/../scripts/export-tenant";
my $node = nomp_node('main');
$node->start;
create_nomp($node, 's-0180-42', 'other', 'empty');
my $dir = PostgreSQL::Test::Utils::tempdir();

$node->safe_psql('postgres', <<'SQL');
SELECT nomp_crypt.create_tenant(E'o''dd \\school');
CREATE SCHEMA "Låg; DROP";
CREATE TABLE "Låg; DROP"."a""b'c\d" (id int PRIMARY KEY, "på""'\" encrypted(text), "x,y" text);
CREATE TABLE kinds (id int PRIMARY KEY, school text, j encrypted(jsonb), b encrypted(bytea), d encrypted(date), i encrypted(interval),
	ts encrypted(timestamptz), tags encrypted(text)[], clear text);
CREATE TRIGGER e BEFORE INSERT OR UPDATE ON kinds FOR EACH ROW EXECUTE FUNCTION nomp_crypt.enforce_tenant('school');
CREATE TABLE parted (id int, name encrypted(text)) PARTITION BY RANGE (id);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (10);
CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (10) TO (20);
CREATE TABLE "Parted" (id int, name encrypted(text));
CREATE TABLE plain (id int, secret text);
INSERT INTO plain VALUES (1, 'not among it');
SQL
for my $school ('s-0180-42', 'other')
{
	my $n = $school eq 'other' ? 10 : 0;
	$node->safe_psql('postgres', in_tenant($school, <<"SQL"));
INSERT INTO "Låg; DROP"."a""b'c\\d" VALUES ($n + 1, E'rad 1\\nrad 2, "citat" i $school', 'klar'), ($n + 2, '', NULL), ($n + 3, NULL, 'klar');
INSERT INTO kinds VALUES ($n + 1, '$school', '{"a": [1, "ö"]}', '\\x00ff', '2014-05-01', '1 day 2 hours', '2026-01-01 12:00+01', ARRAY['x', NULL]::encrypted(text)[], 'klar'),
	($n + 2, '$school', NULL, NULL, NULL, NULL, NULL, NULL, 'utan');
INSERT INTO parted VALUES ($n + 1, 'Anna i $school'), ($n + 2, 'Bo i $school')
SQL
}
# a row of two schools
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE mixed (id int, mine encrypted(text), theirs encrypted(text));
INSERT INTO mixed VALUES (1, nomp_crypt.encrypt('mitt', 's-0180-42'), nomp_crypt.encrypt('deras', 'other'));
SQL

$ENV{PGHOST} = $node->host;
$ENV{PGPORT} = $node->port;
$ENV{PGDATABASE} = 'postgres';

sub run_export
{
	my (@args) = @_;
	my ($out, $err) = ('', '');
	my $ok = IPC::Run::run([ $script, @args ], '>', \$out, '2>', \$err);

	chomp $out;
	return ($ok ? 1 : 0, $out, $err);
}

sub manifest_of
{
	my ($where) = @_;

	return JSON::PP->new->decode(slurp_file("$where/manifest.json"));
}

sub content
{
	my ($where, $table) = @_;
	my ($file) =
	  grep { $_->{table} eq $table } @{ manifest_of($where)->{files} };

	return slurp_file("$where/$file->{file}");
}

my ($ok, $sum, $err) = run_export('s-0180-42', "$dir/out");
is($err, '', 'the export says nothing');
is($ok, 1, 'and succeeds');
is(sprintf('%o', (stat "$dir/out")[2] & 07777), '700',
	'nobody else reads it');
is( (join ' ', map { sprintf '%o', (stat $_)[2] & 0777 } glob "$dir/out/*")
	=~ /^(?:600 ?)+$/,
	1,
	'nor any file');

my $manifest = manifest_of("$dir/out");
is($manifest->{tenant}, 's-0180-42', 'the manifest names the school');
is( join(' ', sort map { "$_->{table}=$_->{rows}" } @{ $manifest->{files} }),
	"Parted=0 a\"b'c\\d=2 kinds=2 mixed=1 parted=2 pupil=0",
	'the tables with encrypted columns, partitions as one, and the rows of the school'
);
my ($sums, $check) = ('', '');
append_to_file("$dir/SHA256SUMS", join '',
	map { "$_->{sha256}  $dir/out/$_->{file}\n" } @{ $manifest->{files} });
append_to_file("$dir/SHA256SUMS", "$sum  $dir/out/manifest.json\n");
IPC::Run::run([ 'sha256sum', '-c', '--strict', "$dir/SHA256SUMS" ],
	'>', \$sums, '2>', \$check);
is($check, '', 'sha256sum finds every sum right');
is( scalar(() = $sums =~ /: OK$/mg),
	1 + @{ $manifest->{files} },
	'all of them');

is(content("$dir/out", "a\"b'c\\d"),
	<<'CSV', 'text as it is: newlines, quotes, empty and null');
id,"på""'\","x,y"
"1","rad 1
rad 2, ""citat"" i s-0180-42","klar"
"2","",
CSV
is(content("$dir/out", 'kinds'),
	<<'CSV', 'every type as it is written; a row without values by its column');
id,school,j,b,d,i,ts,tags,clear
"1","s-0180-42","{""a"": [1, ""ö""]}","\x00ff","2014-05-01","P1DT2H","2026-01-01 11:00:00+00","{x,NULL}","klar"
"2","s-0180-42",,,,,,,"utan"
CSV
is(content("$dir/out", 'parted'), <<'CSV', 'partitions');
id,name
"1","Anna i s-0180-42"
"2","Bo i s-0180-42"
CSV
like(
	content("$dir/out", 'mixed'),
	qr/^id,mine,theirs\n"1","mitt","nc1:[^"]+"\n$/,
	'another school\'s value stays encrypted');
is(content("$dir/out", 'Parted'),
	"id,name\n", 'a table without rows has its columns');
my ($type) = map { $_->{type} } grep { $_->{name} eq 'd' }
  map { @{ $_->{columns} } }
  grep { $_->{table} eq 'kinds' } @{ $manifest->{files} };
is($type, 'public.encrypted(date)', 'the manifest says what a column is');
ok( !grep({ $_->{table} eq 'plain' } @{ $manifest->{files} }),
	'a table without encrypted columns is none of it');

($ok, $sum, $err) = run_export('s-0180-42', "$dir/out");
like($err, qr/out exists/, 'it does not write over what is there');
($ok, $sum, $err) = run_export('nowhere', "$dir/nowhere");
like($err, qr/there is no tenant nowhere/, 'nor for a school that is not');
ok(!-e "$dir/nowhere", 'and leaves nothing');
($ok, $sum, $err) = run_export('empty', "$dir/empty");
is($ok, 1, 'a school without rows');
is(join(' ', map { $_->{rows} } @{ manifest_of("$dir/empty")->{files} }),
	'0 0 0 0 0 0', 'has none');
($ok, $sum, $err) = run_export("o'dd \\school", "$dir/odd");
is($err, '', 'a school with a strange name');

# A role that may not decrypt, and one for whom row-level security hides rows.
$node->safe_psql('postgres', <<'SQL');
CREATE ROLE clerk LOGIN;
SELECT nomp_crypt.grant_admin('clerk');
GRANT SELECT ON ALL TABLES IN SCHEMA public, "Låg; DROP" TO clerk;
GRANT USAGE ON SCHEMA "Låg; DROP" TO clerk;
SQL

sub clerk_exports
{
	my ($where) = @_;

	local $ENV{PGUSER} = 'clerk';
	return run_export('s-0180-42', $where);
}

($ok, $sum, $err) = clerk_exports("$dir/refused");
like($err, qr/ERROR:.*decrypt/, 'without the right nothing is decrypted');
ok(!-e "$dir/refused", 'and no half export is left');
$node->safe_psql('postgres', <<'SQL');
SELECT nomp_crypt.grant_tenant('s-0180-42', 'clerk', '{decrypt}');
ALTER TABLE parted ENABLE ROW LEVEL SECURITY;
SQL
($ok, $sum, $err) = clerk_exports("$dir/refused");
like($err, qr/row-level security/, 'hidden rows are not left out in silence');
ok(!-e "$dir/refused", 'and no half export is left');
$node->safe_psql('postgres', 'ALTER TABLE parted DISABLE ROW LEVEL SECURITY');
($ok, $sum, $err) = clerk_exports("$dir/clerk");
is($ok, 1, 'with the right it works');

# One moment: the last table is locked, and both get rows meanwhile.
my $writer = open_session($node);
says($writer, 'BEGIN; LOCK TABLE parted');
my $out = '';
my $export = IPC::Run::start([ $script, 's-0180-42', "$dir/moment" ],
	'>', \$out, '2>', \$err, IPC::Run::timeout(180));
$node->poll_query_until('postgres',
	"SELECT count(*) = 1 FROM pg_locks WHERE relation = 'parted'::regclass AND NOT granted"
) or die 'the export does not wait';
says($writer,
	"INSERT INTO kinds (id, school, d) SELECT 50, 's-0180-42', NULL; SET LOCAL nomp_crypt.tenant = 's-0180-42';"
	  . " INSERT INTO parted VALUES (3, 'Cecilia'); INSERT INTO pupil VALUES (1, 's-0180-42', 'Cecilia', NULL); COMMIT"
);
$writer->quit;
ok($export->finish, 'an export beside a writer');
is( join(' ',
		sort map { "$_->{table}=$_->{rows}" }
		  @{ manifest_of("$dir/moment")->{files} }),
	"Parted=0 a\"b'c\\d=2 kinds=2 mixed=1 parted=2 pupil=0",
	'has what was there at one moment');

# The procedure: exported, put on record, asked for, erased.
$node->safe_psql('postgres', <<'SQL');
ALTER SYSTEM SET nomp_crypt.erasure_requires_return = on;
SELECT pg_reload_conf();
SQL
$node->poll_query_until('postgres',
	'SHOW nomp_crypt.erasure_requires_return', 'on')
  or die;
my ($printed) = run_procedure(
	'return-data', { operator => $node },
	'./scripts/export-tenant' => $script,
	'/srv/return' => "$dir/return");
chomp $printed;
is( $node->safe_psql(
		'postgres', 'SELECT manifest_sha256 FROM nomp_crypt.data_return'),
	$printed,
	'the sum that was printed is on record');
is(sqlstate($node, "CALL nomp_crypt.erase_tenant('s-0180-42', 'test')"),
	'', 'the school can be erased');
is(school_reads($node, 's-0180-42'), 'NC001', 'and is');
is(slurp_file("$dir/return/manifest.json") =~ /"rows": 3/ ? 1 : 0,
	1, 'its data is with the controller');
($ok, $sum, $err) = run_export('s-0180-42', "$dir/late");
like($err, qr/it is erased/, 'afterwards it is too late');

$node->stop;
done_testing();
