# What a thief finds: everything that the server leaves in files while a
# school's sessions write, read, sort and fail.  Failing matters most, because
# an error quotes what it is about: the value, the row, the line of COPY, the
# statement.  The client is meant to see that and the server log is not.
#
# Every plaintext in here starts with the same unlikely word, made up when the
# test runs, and the test ends by searching for it: in the data directory (heap,
# WAL, temporary files, statistics), in the log, and in pg_stat_activity as
# another user sees it.  Another word is written where it may be found, so that
# a search that finds nothing means something.

use strict;
use warnings;

use File::Find;
use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = nomp_node('main', allows_streaming => 1);

# As talkative as an operator may make it, statements of success apart.
$node->append_conf('postgresql.conf', <<'CONF');
log_statement = none
log_min_error_statement = error
log_min_messages = warning
log_error_verbosity = verbose
log_parameter_max_length_on_error = -1
log_temp_files = 0
work_mem = 256MB
autovacuum = off
CONF
$node->start;
create_nomp($node, 'ribersborg');

my $secret = 'Hemlig' . join '', map { ('a' .. 'z')[ rand 26 ] } 1 .. 12;
my $public = 'Synlig' . join '', map { ('a' .. 'z')[ rand 26 ] } 1 .. 12;
my $secrets = 0;

# A new plaintext that must never be found.
sub secret
{
	return $secret . ++$secrets;
}

# In which files below DIR is the word? Those of a running server may vanish.
sub files_with
{
	my ($word, $dir) = @_;
	my @found;

	File::Find::find(
		{
			no_chdir => 1,
			wanted => sub {
				push @found, $_ if -f && holds($_, $word);
			}
		},
		$dir);
	return sort @found;
}

sub holds
{
	my ($file, $word) = @_;
	my $rest = '';
	my $chunk;

	open my $fh, '<:raw', $file or return 0;
	while (read $fh, $chunk, 1024 * 1024)
	{
		return 1 if index($rest . $chunk, $word) >= 0;
		$rest = substr $chunk, -length $word;
	}
	close $fh;
	return 0;
}

# Run inside the school; what the client saw besides results.
sub inside
{
	my ($sql, %options) = @_;
	my $stderr = '';

	$node->psql(
		'postgres',
		"SET nomp_crypt.tenant = 'ribersborg';\n$sql",
		stderr => \$stderr,
		extra_params =>
		  [ '-v', 'VERBOSITY=verbose', '-v', 'ON_ERROR_STOP=0' ],
		%options);
	return $stderr;
}

$node->safe_psql('postgres', <<"SQL");
ALTER TABLE pupil ADD CHECK (octet_length(notes::text) < 3000000);
ALTER TABLE pupil ADD grade int;
CREATE TABLE open_record (id int PRIMARY KEY, name text);
CREATE ROLE neighbour LOGIN;
CREATE FUNCTION fails_with(value text) RETURNS void LANGUAGE plpgsql AS \$\$
BEGIN
	RAISE EXCEPTION 'cannot accept %', value USING DETAIL = value, HINT = value;
END \$\$;
CREATE FUNCTION fails_deeper(value text) RETURNS void LANGUAGE plpgsql AS \$\$
BEGIN
	EXECUTE format('SELECT fails_with(%L)', value);
END \$\$;
CREATE FUNCTION warns_with(value text) RETURNS void LANGUAGE plpgsql AS \$\$
BEGIN
	RAISE WARNING 'strange: %', value;
END \$\$;
INSERT INTO open_record VALUES (1, '$public');
SQL

# What goes well: every way in, every way out, and rewriting it all.
my ($short, $long, $copied, $bulk) =
  (secret(), secret() . ' x' x 500_000, secret(), secret());
is(inside(<<"SQL"), '', 'a school reads and writes without a complaint');
INSERT INTO pupil VALUES (1, 'ribersborg', '$short', '$long');
UPDATE pupil SET notes = notes::text || '$short' WHERE id = 1;
INSERT INTO pupil SELECT i, 'ribersborg', '$bulk ' || i, repeat('$bulk', 20)
	FROM generate_series(100, 5099) i;
COPY pupil (id, name) FROM stdin;
\\.
COPY pupil (id, school, name) FROM stdin;
2	ribersborg	$copied
\\.
CREATE TEMP TABLE chosen AS SELECT * FROM pupil;
CREATE TABLE copied AS SELECT id, name FROM pupil;
CREATE INDEX ON copied (name);
CREATE INDEX ON copied USING hash (name);
UPDATE copied SET name = name::text || ' again' WHERE id % 3 = 0;
SELECT count(*) FROM (SELECT name::text FROM pupil ORDER BY 1) s;
SELECT name::text, count(*) FROM pupil GROUP BY 1 ORDER BY 1 LIMIT 1;
SELECT count(*) FROM pupil a JOIN pupil b ON a.name::text = b.name::text;
COPY pupil TO '/dev/null';
BEGIN;
DECLARE held CURSOR WITH HOLD FOR SELECT id, name FROM pupil WHERE id < 1000;
COMMIT;
FETCH ALL FROM held;
BEGIN;
INSERT INTO pupil VALUES (3, 'ribersborg', '@{[ secret() ]}');
PREPARE TRANSACTION 'open';
COMMIT PREPARED 'open';
BEGIN;
INSERT INTO pupil VALUES (4, 'ribersborg', '@{[ secret() ]}');
ROLLBACK;
VACUUM FULL pupil;
CLUSTER pupil USING pupil_pkey;
ANALYZE;
REINDEX TABLE copied;
SQL
is( $node->safe_psql(
		'postgres',
		"SELECT count(*) FROM pupil WHERE name::text LIKE '$secret%'"),
	5003,
	'it is there for who may read it');
is( $node->safe_psql(
		'postgres',
		'SELECT temp_files FROM pg_stat_database WHERE datname = current_database()'
	),
	0,
	'no sort of plaintext was spilled, which would be a finding of its own');

# A sort that carries encrypted values along may spill: ciphertext.
my $sorting = open_session($node);
says($sorting, <<'SQL');
SET nomp_crypt.tenant = 'ribersborg';
SET work_mem = '64kB';
BEGIN;
DECLARE sorted CURSOR FOR SELECT id, name, notes FROM pupil ORDER BY md5(id::text);
SQL
like(says($sorting, 'FETCH 1 FROM sorted'),
	qr/\Q$secret\E/, 'a sort on another column, read inside the school');
my @spilled = grep { -s } glob $node->data_dir . '/base/pgsql_tmp/pgsql_tmp*';
isnt(scalar @spilled, 0, 'has spilled to temporary files');
is_deeply([ grep { holds($_, $secret) } @spilled ],
	[], 'which hold no plaintext');

# Another user's view of what runs here.
my $running = secret();
says($sorting, "SELECT '$running'");
my $activity = 'SELECT query FROM pg_stat_activity';
like($node->safe_psql('postgres', $activity),
	qr/\Q$running\E/, 'a superuser sees what the session runs');
my $seen = $node->safe_psql('postgres', $activity,
	extra_params => [ '-U', 'neighbour' ]);
like($seen, qr/^<insufficient privilege>$/m, 'another user does not');
unlike($seen, qr/\Q$secret\E/, '... nor any plaintext elsewhere');
says($sorting, 'COMMIT');
$sorting->quit;

# What fails.  Each gives its error to the client, quoting the value.
my $log = $node->logfile;

sub fails
{
	my ($name, $state, $sql, $quoted) = @_;
	my $from = -s $log;
	my $seen = inside($sql);

	like($seen, qr/(?:ERROR|FATAL):  $state/,
		"$name: the client sees $state");
	like($seen, $quoted, '... with the value') if defined $quoted;
	ok(!index_of($log, $from, $secret), '... the log does not have it');
	ok(index_of($log, $from, ":  $state: "), '... but it has the error');
	return;
}

# Does the log from there on contain it?
sub index_of
{
	my ($file, $from, $word) = @_;

	return
	  index(PostgreSQL::Test::Utils::slurp_file($file, $from), $word) >= 0;
}

my $value;
$value = secret();
fails(
	'a duplicate key elsewhere in the row',
	'23505',
	"INSERT INTO pupil VALUES (1, 'ribersborg', '$value')",
	qr/Key \(id\)=\(1\) already exists/);
$value = secret();
fails(
	'a value of an ordinary unique column',
	'23505',
	"CREATE TEMP TABLE u (name text UNIQUE);"
	  . "INSERT INTO u VALUES ('$value'); INSERT INTO u VALUES ('$value')",
	qr/Key \(name\)=\(\Q$value\E\) already exists/);
$value = secret();
fails(
	'a check',
	'23514',
	"INSERT INTO pupil VALUES (10, 'ribersborg', '$value', repeat('x', 3000000))",
	qr/Failing row contains \(10, ribersborg, \Q$value\E/);
$value = secret();
fails(
	'a missing value',
	'23502',
	"INSERT INTO pupil VALUES (10, NULL, '$value')",
	qr/Failing row contains \(10, null, \Q$value\E/);
$value = secret();
fails(
	'a number that is none',
	'22P02',
	"INSERT INTO pupil VALUES (10, 'ribersborg', 'x', 'x', '$value')",
	qr/integer: "\Q$value\E"/);
fails(
	'a stored value that is no number',
	'22P02',
	'SELECT name::text::int FROM pupil WHERE id = 1',
	qr/integer: "\Q$short\E"/);
fails(
	'a stored value that is no JSON',
	'22P02',
	'SELECT name::text::json FROM pupil WHERE id = 1',
	qr/Token "\Q$short\E" is invalid/);
$value = secret();
fails(
	'a date that is none',
	'22007',
	"SELECT '$value'::date",
	qr/date: "\Q$value\E"/);
$value = secret();
fails('a pattern that is none',
	'2201B', "SELECT name::text ~ '($value' FROM pupil");
$value = secret();
fails(
	'COPY of a bad column',
	'22P02',
	"COPY pupil (id, name) FROM stdin;\n$value\tx\n\\.\n",
	qr/COPY pupil, line 1, column id: "\Q$value\E"/);
$value = secret();
fails(
	'COPY of a row with too little',
	'22P04',
	"COPY pupil FROM stdin;\n11\tribersborg\t$value\n\\.\n",
	qr/COPY pupil, line 1: "11\tribersborg\t\Q$value\E"/);
$value = secret();
fails(
	'COPY of a duplicate',
	'23505',
	"COPY pupil (id, school, name) FROM stdin;\n1\tribersborg\t$value\n\\.\n",
	qr/already exists/);
$value = secret();
fails(
	'COPY of a row that a check refuses',
	'23502',
	"COPY pupil (id, name) FROM stdin;\n11\t$value\n\\.\n",
	qr/COPY pupil, line 1: "11\t\Q$value\E"/);
$value = secret();
fails(
	'COPY of bytes that are no text',
	'22021',
	"COPY pupil (id, school, name) FROM stdin;\n11\tx\t$value\\xff\n\\.\n",
	qr/COPY pupil, line 1/);
$value = secret();
fails('a statement that takes too long',
	'57014',
	"SET statement_timeout = '20ms'; SELECT '$value', pg_sleep(180)");
$value = secret();
fails(
	'a syntax error', '42601',
	"INSERT INTO pupil VALUES (10, 'ribersborg' '$value'", qr/'\Q$value\E'/);
$value = secret();
fails(
	'a quotation mark forgotten',
	'42703',
	"SELECT \"$value\" FROM pupil",
	qr/column "\Q$value\E"/);
$value = secret();
fails(
	'an application that raises the value',
	'P0001',
	"SELECT fails_with('$value')",
	qr/cannot accept \Q$value\E/);
$value = secret();
fails(
	'raised under another error\'s name',
	'23505',
	"DO \$\$ BEGIN RAISE unique_violation USING MESSAGE = '$value'; END \$\$",
	qr/\Q$value\E/);
$value = secret();
fails(
	'dynamic SQL', 'P0001',
	"SELECT fails_deeper('$value')",
	qr/SQL statement "SELECT fails_with\('\Q$value\E'\)"/);
$value = secret();
fails(
	'a constant in a definition', '0A000',
	"CREATE TABLE d (n encrypted(text)\nDEFAULT '$value')", qr/\Q$value\E/);
$value = secret();
fails('a comparison', '0A000',
	"SELECT id FROM pupil WHERE ARRAY[name] = ARRAY['$value']::encrypted[]");
$value = secret();
fails('a comparison with another type',
	'42883', "SELECT id FROM pupil WHERE name = 1 OR name = '$value'");
fails(
	'division by zero on the way',
	'22012',
	"SELECT 1 / (length(name::text) - length('$short')) FROM pupil WHERE id = 1"
);

my $from = -s $log;
$value = secret();
like(
	inside("SELECT warns_with('$value')"),
	qr/WARNING:  .*strange: \Q$value\E/,
	'a warning reaches the client');
ok(!index_of($log, $from, $secret), '... and not the log');

# Parameters of the extended protocol are quoted in an error's context.
my $hex = sub { unpack 'H*', $_[0] };
$from = -s $log;
$value = secret();
my @answers = libpq_calls(
	$node->connstr('postgres'),
	{ sql => "SET nomp_crypt.tenant = 'ribersborg'" },
	{
		sql => 'INSERT INTO pupil VALUES ($1, $2, $3)',
		params => [ map { $hex->($_) } 1, 'ribersborg', $value ]
	},
	{
		sql => 'SELECT $1::int',
		params => [ $hex->($value) ]
	});
is_deeply(
	[ map { $_->{state} } @answers ],
	[ '', '23505', '22P02' ],
	'parameters: the client sees the errors');
ok(!index_of($log, $from, $secret), '... the log does not have them');

# A session that is thrown out leaves its statement in the log otherwise.
$from = -s $log;
$value = secret();
my $victim = start_query($node,
	"SET nomp_crypt.tenant = 'ribersborg'; SELECT '$value', pg_sleep(180)");
wait_until(
	sub {
		$node->safe_psql('postgres',
			"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
			  . " WHERE query LIKE '%$value%' AND pid <> pg_backend_pid()"
			  . " AND wait_event = 'PgSleep'") eq '1';
	},
	'the session to throw out');
is((end_query($victim))[0], '57P01', 'a session that is thrown out');
ok(!index_of($log, $from, $secret), '... leaves no statement');

# Whoever forgets to say which school has typed the plaintext already.
$from = -s $log;
$value = secret();
is( sqlstate($node, "INSERT INTO pupil VALUES (12, 'ribersborg', '$value')"),
	'NC006',
	'a statement outside any school');
is( sqlstate(
		$node,
		"COPY pupil (id, school, name) FROM stdin;\n12\tribersborg\t$value\n\\.\n"
	),
	'NC006',
	'COPY outside any school');
ok(!index_of($log, $from, $secret), '... the log does not have it');

# The same outside is logged in full: the words would be there.
$from = -s $log;
sqlstate($node, "INSERT INTO open_record VALUES (1, '$public')");
ok(index_of($log, $from, $public),
	'an ordinary session\'s failing statement is logged as ever');

# And now as the thief: all that was ever written, with the server stopped.
$node->safe_psql('postgres', 'CHECKPOINT; SELECT pg_switch_wal()');
$node->stop('fast');
my $data = $node->data_dir;
my @plain = files_with($public, $data);
isnt(scalar(grep { m{/base/} } @plain),
	0, 'the search finds what is in a heap');
isnt(scalar(grep { m{/pg_wal/} } @plain),
	0, 'the search finds what is in WAL');
is_deeply([ files_with($secret, $data) ],
	[], 'no file of the data directory has a plaintext');
ok(holds($log, $public), 'the search finds what is in the log');
ok(!holds($log, $secret), 'the log has no plaintext');
is_deeply([ files_with($secret, $node->{nomp_dir}) ],
	[], 'nor has the keystore, nor the register');
note("$secrets plaintexts were written");

done_testing();
