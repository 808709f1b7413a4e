# A dump and a base backup of production go to staging, which has another
# keystore. There no original can be read, before or after; every value becomes a
# made-up one of its school under staging's keys, what was equal stays equal,
# and nothing of the originals is left in the files, where a search found it
# before. Production refuses all of it, and so does whoever can reach its keys.

use strict;
use warnings;

use File::Find;
use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $production = nomp_node('production', allows_streaming => 1);
$production->start;
create_nomp($production, 'a', 'b', 'left');
$production->safe_psql('postgres', <<'SQL');
CREATE DOMAIN secret AS encrypted(text);
CREATE TABLE person (
	id			int PRIMARY KEY,
	school		text NOT NULL,
	first_name	encrypted(text) NOT NULL,
	last_name	encrypted('varchar(6)'),
	ssn			encrypted('varchar(13)', searchable, digits) UNIQUE,
	email		encrypted(text, searchable, nocase),
	born		encrypted(date),
	points		encrypted('numeric(5,2)'),
	notes		encrypted(jsonb),
	tags		encrypted('text[]'),
	secrets		encrypted(text)[],
	note		secret,
	active		encrypted(boolean),
	code		encrypted('varchar(4)', searchable),
	plain		text,
	story		encrypted(text)
);
CREATE TRIGGER enforce BEFORE INSERT OR UPDATE ON person FOR EACH ROW EXECUTE FUNCTION nomp_crypt.enforce_tenant('school');
CREATE TABLE guardian (
	child	encrypted('varchar(13)', searchable, digits) REFERENCES person (ssn),
	phone	encrypted(text)
);
CREATE TABLE visit (school text, day date, who encrypted(text)) PARTITION BY RANGE (day);
CREATE TABLE visit_2026 PARTITION OF visit FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
CREATE TABLE journal (at timestamptz);
CREATE FUNCTION journal() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO journal VALUES (now()); RETURN NEW; END $$;
CREATE TRIGGER journal AFTER UPDATE ON person FOR EACH ROW EXECUTE FUNCTION journal();
CREATE MATERIALIZED VIEW names AS SELECT id, first_name FROM person;
SQL
for my $school ('a', 'b', 'left')
{
	$production->safe_psql('postgres', in_tenant($school, <<"SQL"));
INSERT INTO person SELECT i * 3 + length('$school') + ascii('$school'), '$school', 'Riktig ' || i, 'Efter' , (20100000 + i) || '-1234',
	'R.' || i % 50 || '\@verklig.se', date '2010-01-01' + i, i / 100.0, '{"a": 1}', '{x,y}',
	ARRAY['h' || i, NULL]::encrypted(text)[], 'hemlig', i % 2 = 0, (i % 20)::text, 'kept',
	CASE WHEN i % 100 = 0 THEN repeat('long ago ', 1000) END
FROM generate_series(1, 300) i;
INSERT INTO person (id, school, first_name) VALUES (-ascii('$school'), '$school', 'Ensam');
INSERT INTO guardian SELECT (20100000 + i) || '1234', '070-1' FROM generate_series(1, 200) i;
INSERT INTO visit SELECT '$school', '2026-05-05', 'Riktig ' || i FROM generate_series(1, 100) i
SQL
}
$production->safe_psql('postgres', 'REFRESH MATERIALIZED VIEW names');
$production->safe_psql('postgres',
	"CALL nomp_crypt.erase_tenant('left', 'test')");
$production->backup('base');
my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump';
$production->command_ok([ 'pg_dump', '-Fc', '-f', $dump, 'postgres' ],
	'production is dumped');

# The last bytes of some originals, and of production's wrapped keys, as they
# are on disk.
my @needles = map { pack 'H*', $_ } split /\n/,
  $production->safe_psql('postgres', <<'SQL');
SELECT right(encode(encrypted_send(v), 'hex'), 40) FROM (
	SELECT first_name FROM person UNION ALL SELECT ssn FROM person
	UNION ALL SELECT note FROM person UNION ALL SELECT secrets[1] FROM person
	UNION ALL SELECT child FROM guardian UNION ALL SELECT who FROM visit UNION ALL SELECT story FROM person) x(v)
WHERE v IS NOT NULL
UNION ALL SELECT right(encode(wrapped, 'hex'), 40) FROM nomp_crypt.tenant_key
SQL
cmp_ok(scalar @needles, '>', 3000, 'originals to look for');

# Files of a node's data directory, but WAL, with any of them.
sub files_with_originals
{
	my ($node) = @_;
	my $pattern = join '|', map { quotemeta } @needles;
	my @found;

	$node->safe_psql('postgres', 'CHECKPOINT');
	File::Find::find(
		{
			no_chdir => 1,
			wanted => sub {
				return unless -f && m{/base/};
				my $bytes = PostgreSQL::Test::Utils::slurp_file($_);
				push @found, $_ if $bytes =~ /$pattern/s;
			}
		},
		$node->data_dir);
	return @found;
}

# A server of its own installation: its own keystore and register directory.
sub other_place
{
	my ($node) = @_;
	my $dir = PostgreSQL::Test::Utils::tempdir();

	make_token($dir, 'nomp');
	nomp_conf($node, $dir, 'nomp');
	$node->start;
	return $node;
}

sub rows_of
{
	my ($node, $sql) = @_;

	return $node->safe_psql('postgres', $sql);
}

sub a_copy
{
	my ($name) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	$node->init_from_backup($production, 'base');
	return $node;
}

sub read_first
{
	my ($node) = @_;

	return outcome($node,
		in_tenant('a', "SELECT first_name FROM person WHERE id = 101"));
}

# ---- who is refused ----

sub is_refused
{
	my ($node, $state, $what) = @_;
	my $facts =
	  'SELECT count(*), (SELECT uuid FROM nomp_crypt.installation) FROM nomp_crypt.tenant_key';
	my $before = rows_of($node, $facts);

	is(sqlstate($node, 'CALL nomp_crypt.begin_staging()'),
		$state, "$what: begin_staging is refused");
	is(sqlstate($node, "CALL nomp_crypt.replace_values('seed')"),
		'55000', "$what: and so is replace_values");
	is(rows_of($node, $facts), $before, "$what: keys and installation stay");
	is(read_first($node), 'Riktig 1', "$what: and values are read")
	  if $state eq '55000';
	return;
}


my $dir = $production->{nomp_dir};
is_refused($production, '55000', 'production');
rename "$dir/register-production", "$dir/register-away" or die $!;
mkdir "$dir/register-production", 0700;
is_refused($production, '55000', 'production without its register directory');
rmdir "$dir/register-production";
rename "$dir/register-away", "$dir/register-production" or die $!;
{
	my $clone = a_copy('clone');

	nomp_conf($clone, $dir, 'nomp');
	$clone->start;
	is_refused($clone, '55000', 'a copy that reaches the keystore');
	read_first($clone);
	make_token($dir, 'another');
	set_keystores(
		$clone,
		keystore_uri($dir, 'another'),
		keystore_uri($dir, 'nomp'));
	wait_until(
		sub { keystore_state($clone) =~ /the token is not this.*\nok/ },
		'two keystores');
	is_refused($clone, '55000', 'one that reaches it as its second keystore');
	set_keystores($clone, 'pkcs11:token=none?module-path=/nowhere.so');
	wait_until(sub { keystore_state($clone) !~ /token is not this/ },
		'no keystore');
	is_refused($clone, 'NC004', 'one whose keystore does not answer');
	$clone->stop;
}

# ---- what staging is like ----

# Pairs of tables and columns that are equal, and how often each value occurs:
# of searchable columns, without a key.
my $structure = <<'SQL';
SELECT school, ssns, emails, codes, n FROM (
	SELECT school, count(DISTINCT ssn) AS ssns, count(DISTINCT email) AS emails, count(DISTINCT code) AS codes, count(*) AS n,
		sum(id) FILTER (WHERE code IS NULL) FROM person GROUP BY school) x
ORDER BY school
SQL
my $join = <<'SQL';
SELECT md5(string_agg(format('%s %s', p.id, q.id), ',' ORDER BY p.id, q.id))
FROM person p JOIN person q ON q.email = p.email
UNION ALL
SELECT md5(string_agg(p.id::text, ',' ORDER BY p.id)) FROM guardian g JOIN person p ON p.ssn = g.child
SQL
my $nulls =
  'SELECT id, school, plain, num_nulls(last_name, ssn, email, born, points, notes, tags, secrets, note, active, code), secrets[2] IS NULL FROM person ORDER BY id';
my %expected = map { $_ => rows_of($production, $_) } $structure, $join,
  $nulls;

sub is_staged
{
	my ($node, $what, $before) = @_;
	my $user = rows_of($node, 'SELECT current_user');

	isnt(join(' ', files_with_originals($node)),
		'', "$what: the search finds originals before");
	is(read_first($node), 'NC004', "$what: which cannot be read");
	is(sqlstate($node, "CALL nomp_crypt.replace_values('seed')"),
		'55000', "$what: nor replaced before begin_staging");
	is(sqlstate($node, 'CALL nomp_crypt.begin_staging()'),
		'', "$what: it becomes an installation of its own");
	is(sqlstate($node, 'CALL nomp_crypt.begin_staging()'),
		'', "$what: to say it twice does no harm");
	isnt(
		rows_of($node, 'SELECT uuid FROM nomp_crypt.installation'),
		rows_of($production, 'SELECT uuid FROM nomp_crypt.installation'),
		"$what: another one");
	is( rows_of(
			$node,
			"SELECT string_agg(id, ' ' ORDER BY id) FROM nomp_crypt.tenants"),
		'a b left',
		"$what: with the schools that have values in it");
	is(read_first($node), 'NC003', "$what: no key of the originals is known");
	is( rows_of(
			$node,
			"SELECT count(*) FROM nomp_crypt.register_status() WHERE state = 'ok'"
		),
		1,
		"$what: its register is whole");

	is( sqlstate(
			$node,
			"CALL nomp_crypt.replace_values('seed', '{\"guardian.child\": \"1\"}')"
		),
		'0A000',
		"$what: an expression for a foreign key is refused");
	is( sqlstate(
			$node,
			"CALL nomp_crypt.replace_values('seed', '{\"person.plain\": \"1\"}')"
		),
		'42703',
		"$what: and one for a plain column");
	rows_of($node,
		"SELECT nomp_crypt.grant_all_tenants('$user', '{encrypt,decrypt,search}')"
	);
	$before->($node);
	rows_of($node, <<'SQL');
CALL nomp_crypt.replace_values('seed', '{"person.note": "''Elev '' || id"}', batch_size => 100)
SQL
	is(join(' ', files_with_originals($node)),
		'', "$what: afterwards the search finds none");
	is(rows_of($node, $_),
		$expected{$_},
		"$what: what was equal is equal, what was null is null")
	  for $structure, $join, $nulls;
	is(rows_of($node, 'SELECT count(*) FROM journal'),
		0, "$what: no trigger was fired");
	is(rows_of($node, <<'SQL'), 0, "$what: each value is its row's school's");
SELECT count(*) FROM person p, unnest(ARRAY[p.first_name, p.note] || p.secrets) v
WHERE nomp_crypt.tenant_of(v) <> p.school
SQL
	is( rows_of($node,
			<<'SQL'), 't|t|t|t|t|t|t|t', "$what: values are what their columns want");
SELECT bool_and(first_name::text ~ '^[A-Z][a-z]+$' AND first_name::text !~ 'Riktig'), bool_and(length(last_name::text) <= 6),
	bool_and(ssn::text ~ '^18[0-3]\d{5}-\d{4}$' AND to_date(left(ssn::text, 8), 'YYYYMMDD') < '1840-01-01'),
	bool_and(email::text ~ '^[a-z]+\.[a-z]+\.\d+@example\.org$'),
	bool_and(born::date BETWEEN '2005-01-01' AND '2020-12-31'), bool_and(notes::jsonb = '{}' AND tags::text[] = '{}'),
	bool_and(note::text = 'Elev ' || id), bool_and(points::numeric < 1000 AND active::boolean IN (true, false) AND code::text ~ '^\d+$|^Text')
FROM person
SQL
	is(rows_of($node, <<'SQL'), 0, "$what: every check digit is right");
SELECT count(*) FROM (SELECT translate(substr(ssn::text, 3), '-', '') AS digits FROM person WHERE ssn IS NOT NULL) p
WHERE (SELECT sum(d / 10 + d % 10) FROM generate_series(1, 10) i, LATERAL (SELECT substr(digits, i, 1)::int * (1 + i % 2) AS d) x) % 10 <> 0
SQL
	is( rows_of(
			$node,
			"SELECT count(*) FROM names n JOIN person p USING (id) WHERE n.first_name::text = p.first_name::text"
		),
		rows_of($node, 'SELECT count(*) FROM person'),
		"$what: materialized views are made anew");
	is(sqlstate($node, "CALL nomp_crypt.replace_values('seed')"),
		'55000', "$what: it is done, and refused from then on");
	is(sqlstate($node, 'CALL nomp_crypt.begin_staging()'),
		'55000', "$what: and so is begin_staging");
	is( outcome(
			$node,
			in_tenant(
				'a',
				"INSERT INTO person (id, school, first_name) VALUES (5000, 'a', 'Ny') RETURNING first_name"
			)),
		'Ny',
		"$what: staging is in use");
	return;
}

# Everything that can be compared between two copies.
my $said = <<'SQL';
SELECT md5(string_agg(concat_ws('|', id, first_name::text, last_name::text, ssn::text, email::text, born::text, points::text,
	secrets::text[], note::text, active::text, code::text), ',' ORDER BY id)) FROM person WHERE id < 5000
SQL

my $restored = PostgreSQL::Test::Cluster->new('restored');
$restored->init(extra => [ '--encoding=UTF8', '--no-locale' ]);
other_place($restored);
$restored->command_ok([ 'pg_restore', '-d', 'postgres', $dump ],
	'the dump is restored');
is_staged(
	$restored,
	'a restored dump',
	sub {
		my ($node) = @_;
		my $reader = open_session($node);

		$reader->query_safe(
			'BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM visit'
		);
		is( sqlstate(
				$node,
				"CALL nomp_crypt.replace_values('seed', '{\"person.note\": \"''Elev '' || id\"}', patience => '0')"
			),
			'55006',
			'who can still see originals is waited for');
		isnt(join(' ', files_with_originals($node)),
			'', 'for they are in the files');
		$reader->quit;
	});

my $cloned = other_place(a_copy('cloned'));
is_staged(
	$cloned,
	'a base backup',
	sub {
		my ($node) = @_;
		my $holder = open_session($node);

		# its last row is held, so that it stays in the middle
		$holder->query_safe(
			'BEGIN; SELECT FROM person ORDER BY ctid DESC LIMIT 1 FOR UPDATE'
		);
		my $query = start_query($node,
			"CALL nomp_crypt.replace_values('seed', '{\"person.note\": \"''Elev '' || id\"}', batch_size => 1)"
		);

		wait_until(
			sub {
				rows_of($node,
					"SELECT count(*) FROM nomp_crypt.progress WHERE command = 'replace_values' AND phase = 'replacing' AND done > 2"
				);
			},
			'some blocks');
		crash($node);
		end_query($query);
		eval { $holder->quit };
		$node->start;
		is( rows_of(
				$node,
				'SELECT bool_or(nomp_crypt.tenant_of(first_name) IS NULL), bool_or(nomp_crypt.tenant_of(first_name) IS NOT NULL) FROM person'
			),
			't|t',
			'the power is cut when some are replaced');
	});
is( rows_of($cloned, $said),
	rows_of($restored, $said),
	'the same seed gives the same values');
is(read_first($production), 'Riktig 1', 'production is what it was');
$_->stop for $production, $restored, $cloned;
done_testing();
