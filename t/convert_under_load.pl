# A table is converted while the application uses it, and the power fails in
# the middle of it, more than once. The application meets no error but the lost
# connections; no value is lost, changed or another school's, here or on the
# standby; in the end nothing plain is left in the files, where the same search
# found it before; and decrypting gives back what was there.
#
# NOMP_CONVERT_ROWS: rows at the start (20000).

use strict;
use warnings;

use File::Find;
use FindBin;
use lib "$FindBin::RealBin/lib";

use IPC::Run;
use JSON::PP ();
use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $rows = $ENV{NOMP_CONVERT_ROWS} // 20000;

# recovery of a large table takes its time
$ENV{PGCTLTIMEOUT} = 1800;

my $marker = 'Synlig' . join '', map { ('a' .. 'z')[ rand 26 ] } 1 .. 12;
my $node = nomp_node('primary', allows_streaming => 1);
my $dir = $node->{nomp_dir};
$node->append_conf('postgresql.conf', <<'CONF');
shared_buffers = 64MB
max_wal_size = 4GB
wal_keep_size = 4GB
log_lock_waits = on
log_statement = none
restart_after_crash = on
CONF
$node->start;
$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
mkdir "$dir/register-standby", 0700;
# in the end nothing may keep old rows in the primary's files
$standby->append_conf('postgresql.conf', <<"CONF");
nomp_crypt.register_directory = '$dir/register-standby'
hot_standby_feedback = off
CONF
$standby->start;

sub one
{
	my ($sql) = @_;

	return $node->safe_psql('postgres', $sql);
}

one(<<"SQL");
CREATE EXTENSION nomp_crypt;
SELECT nomp_crypt.create_tenant(id) FROM unnest('{a,b}'::text[]) id;
CREATE ROLE app LOGIN;
SELECT nomp_crypt.grant_all_tenants(current_user, '{encrypt,decrypt,search}');
CREATE TABLE pupil (
	id		bigint PRIMARY KEY,
	school	text NOT NULL,
	class	int NOT NULL DEFAULT 0,
	name	text NOT NULL,
	ssn		varchar(60) UNIQUE
);
CREATE INDEX pupil_class ON pupil (class);
GRANT ALL ON pupil TO app;
INSERT INTO pupil SELECT i, CASE WHEN i % 3 = 0 THEN 'b' ELSE 'a' END, i % 100, '$marker Anna ' || i, '$marker-' || i
FROM generate_series(1, $rows) i;
CREATE VIEW names AS SELECT id, school, name FROM pupil;
GRANT SELECT ON names TO app;
ANALYZE pupil;
SQL

# ---- searching ----

sub holds
{
	my ($file) = @_;
	my $rest = '';
	my $chunk;

	open my $fh, '<:raw', $file or return 0;
	while (read $fh, $chunk, 1024 * 1024)
	{
		return 1 if index($rest . $chunk, $marker) >= 0;
		$rest = substr $chunk, -length $marker;
	}
	close $fh;
	return 0;
}

sub files_with_marker
{
	my ($folder) = @_;
	my @found;

	File::Find::find(
		{
			no_chdir => 1,
			wanted => sub { push @found, $_ if -f && holds($_) }
		},
		$folder);
	return sort @found;
}

my $backups = 0;

# A base backup of now, with the WAL that it needs: its files with the marker.
sub backup_with_marker
{
	my $name = 'backup' . ++$backups;

	one('CHECKPOINT');
	$node->backup($name);
	my $folder = $node->backup_dir . "/$name";
	my @found = files_with_marker($folder);
	PostgreSQL::Test::Utils::system_or_bail('rm', '-rf', $folder);
	return map { s/^\Q$folder\E\///r } @found;
}

# The files of a relation, of its indexes and what lies out of line, and the
# statistics'.
sub relation_files_with_marker
{
	one('CHECKPOINT');
	my $files = one(<<'SQL');
SELECT pg_relation_filepath(c.oid) FROM pg_class c
WHERE c.oid IN (SELECT unnest(ARRAY['pupil'::regclass, t.reltoastrelid, 'pg_statistic'::regclass]) FROM pg_class t WHERE t.oid = 'pupil'::regclass)
	OR c.oid IN (SELECT indexrelid FROM pg_index WHERE indrelid = 'pupil'::regclass)
SQL
	return grep { holds($_) }
	  map       { glob($node->data_dir . "/$_ " . $node->data_dir . "/$_.*") }
	  split /\n/, $files;
}

# ---- the application ----

my @clients;

sub start_client
{
	my ($first) = @_;
	my $client = { in => '', out => '', err => '' };

	$client->{run} = IPC::Run::start(
		[
			'setpriv',
			'--pdeathsig',
			'KILL',
			'/usr/bin/python3',
			"$FindBin::RealBin/../test/convert_client.py",
			$node->connstr('postgres') . ' user=app',
			$first,
			$marker,
			'a',
			'b'
		],
		'<',
		\$client->{in},
		'>',
		\$client->{out},
		'2>',
		\$client->{err});
	push @clients, $client;
	return;
}

# What each has seen; it ends by itself where it meets an error or a wrong answer.
sub stop_clients
{
	my @reports;

	for my $client (@clients)
	{
		$client->{in} .= "stop\n";
		my $good = $client->{run}->finish;
		ok($good, 'an application saw no error and no wrong answer')
		  or diag($client->{err});
		push @reports, JSON::PP::decode_json($client->{out}) if $good;
	}
	@clients = ();
	return @reports;
}

sub errors_of
{
	my (@reports) = @_;
	my %seen;

	$seen{$_} = 1 for map { keys %{ $_->{errors} } } @reports;
	return join ' ', sort keys %seen;
}

# A call of its own session, for as long as it takes.
sub start_call
{
	my ($arguments) = @_;
	my $call = { out => '', err => '' };

	$call->{run} = IPC::Run::start(
		[
			'psql', '-XAtq', '-v', 'VERBOSITY=sqlstate',
			'-d', $node->connstr('postgres'),
			'-c',
			"CALL nomp_crypt.encrypt_column_online('pupil', $arguments)"
		],
		'<',
		\'',
		'>',
		\$call->{out},
		'2>',
		\$call->{err});
	return $call;
}

sub progress
{
	my ($what) = @_;

	return one(
		"SELECT $what FROM nomp_crypt.progress WHERE command = 'encrypt_column_online'"
	);
}

sub state_of
{
	my ($column) = @_;

	return one(
		"SELECT state FROM nomp_crypt.conversion WHERE column_name = '$column' ORDER BY started_at DESC LIMIT 1"
	);
}

# Rows of those that nobody has touched that do not say what they said.
sub wrong
{
	my ($where) = @_;

	return $where->safe_psql('postgres', <<"SQL");
SELECT count(*) FROM generate_series(1, $rows) i LEFT JOIN pupil p ON p.id = i
WHERE (nomp_crypt.decrypt(p.name), nomp_crypt.decrypt(p.ssn)) IS DISTINCT FROM ('$marker Anna ' || i, '$marker-' || i)
	OR nomp_crypt.tenant_of(p.name) IS DISTINCT FROM p.school OR nomp_crypt.tenant_of(p.ssn) IS DISTINCT FROM p.school
SQL
}

cmp_ok(scalar relation_files_with_marker(),
	'>=', 2, 'before, the search finds plain values in table and index');
cmp_ok(scalar backup_with_marker(), '>=', 2, 'and in a base backup');

start_client(1_000_000_000 * $_) for 1 .. 3;

# The rights that the application will need, before it needs them.
one("SELECT nomp_crypt.grant_all_tenants('app', '{encrypt,decrypt,search}')");

# ---- a column without fingerprints; the power is cut while rows are filled in ----
{
	my $query =
	  start_call("'name', 'school', batch_size => 100, delay => '300ms'");
	wait_until(sub { progress("phase = 'encrypting' AND done > 3") eq 't' },
		'some blocks to be done');
	is( progress(
			'object, phase, unit, done < total, rate > 0, time_left > \'0\''),
		'public.pupil|encrypting|blocks|t|t|t',
		'progress shows how far it is');
	my ($state) = end_query(start_call("'name', 'school'"));
	is($state, '55006', 'one session at a time');
	crash($node);
	end_query($query);
	$node->start;
	is(state_of('name'), 'filling', 'after a power cut it is on record');
	my $filled = one('SELECT count(name_nomp_crypt) FROM pupil');
	cmp_ok($filled, '>', 0, 'and what was done is done');
}

# ---- its session is killed, which restarts the server ----
{
	my $query =
	  start_call("'name', 'school', batch_size => 100, delay => '300ms'");
	wait_until(sub { progress('done > 3') eq 't' }, 'some more blocks');
	my $pid = progress('pid');
	restarts($node, sub { kill 'KILL', $pid });
	end_query($query);
}

# ---- cancelled with everything put back ----
{
	my $query =
	  start_call("'name', 'school', batch_size => 1, delay => '1 hour'");
	wait_until(sub { progress('pid > 0') eq 't' }, 'the call to start');
	one("SELECT pg_cancel_backend(pid) FROM nomp_crypt.progress");
	is((end_query($query))[0], '57014', 'it can be cancelled');
	one("CALL nomp_crypt.cancel_conversion('pupil', 'name', tries => 600)");
	is(state_of('name'), 'cancelled', 'and taken back');
	is( one("SELECT count(*) FROM pg_attribute WHERE attrelid = 'pupil'::regclass AND attnum > 0 AND NOT attisdropped"
		  )
		  . one(
			"SELECT count(*) FROM pg_trigger WHERE tgrelid = 'pupil'::regclass"
		  )
		  . one(
			"SELECT count(*) FROM pg_class WHERE relname LIKE 'nomp\\_crypt\\_%'"
		  ),
		'500',
		'nothing of it is left');
}

# ---- from the start to the end ----
{
	my $holder = open_session($node);
	$holder->query_safe('BEGIN; SELECT count(*) FROM pupil WHERE id = 1');
	my ($state) = end_query(
		start_call("'name', 'school', lock_timeout => '100ms', tries => 3"));
	is($state, '55P03', 'a reader that stays is waited for so often');
	is(state_of('name'), 'begun', 'and then it can be repeated');
	$holder->query_safe('COMMIT');
	my ($end) = end_query(start_call("'name', 'school', tries => 600"));
	is($end, '', 'the same call goes on to the end');
	is(state_of('name'), 'done', 'and says so');
	is( one("SELECT format_type(atttypid, atttypmod) || attnotnull FROM pg_attribute WHERE attrelid = 'pupil'::regclass AND attname = 'name'"
		),
		'encrypted(text)true',
		'the column is what it shall be');
}

# ---- a searchable one with a unique index, cut before the swap ----
{
	# whom the indexes will have to wait for: connected before, to be in time
	my $reader = open_session($node);
	my $query = start_call(
		"'ssn', 'school', searchable => true, batch_size => 500, delay => '200ms'"
	);
	wait_until(sub { progress("phase = 'encrypting' AND done > 3") eq 't' },
		'some blocks to be done');
	$reader->query_safe(
		'BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class'
	);
	wait_until(sub { progress("phase = 'building indexes'") eq 't' },
		'indexes to be built');
	crash($node);
	end_query($query);
	eval { $reader->quit };
	$node->start;
	is(state_of('ssn'), 'filling',
		'the power was cut while an index was built');
	my ($end) = end_query(
		start_call("'ssn', 'school', searchable => true, tries => 600"));
	is($end, '', 'the same call goes on to the end');
}

my @reports = stop_clients();
cmp_ok($_->{rounds}, '>', 50, "an application did $_->{rounds} rounds")
  for @reports;
is( join(' ',
		grep { $_ !~ /^(connection|57P0[123]|)$/ } split / /,
		errors_of(@reports)),
	'',
	'none met an error but lost connections');
note('errors: ', errors_of(@reports));

is(wrong($node), 0, 'no value is lost, changed or another school\'s');
is( one("SELECT count(*) FROM pg_index WHERE indrelid = 'pupil'::regclass AND indisunique AND indisvalid"
	),
	2,
	'the unique constraint is there again');
is( $node->safe_psql(
		'postgres',
		in_tenant('a', "SELECT id FROM pupil WHERE ssn = '$marker-1'")),
	1,
	'and values are found by their fingerprints');
$node->wait_for_catchup($standby);
is(wrong($standby), 0, 'nor on the standby');

# ---- what is left on disk ----
is( one("SELECT string_agg(DISTINCT state, '; ') FROM nomp_crypt.inventory WHERE table_name = 'public.pupil' AND encrypted_on_disk_since IS NULL"
	),
	"plain values may be left in the table's files",
	'the inventory does not call it encrypted yet');
cmp_ok(scalar relation_files_with_marker(),
	'>', 0, 'for the search finds plain values');
cmp_ok(scalar backup_with_marker(), '>', 0, 'in a base backup too');
one("CALL nomp_crypt.rewrite_table('pupil')");
is(join(' ', relation_files_with_marker()),
	'', 'after the final rewrite it finds none in the files');
is(join(' ', backup_with_marker()), '', 'and none in a base backup');
is( one("SELECT bool_and(encrypted_on_disk_since > now() - interval '1 hour' AND state = 'rewritten'"
		  . " AND backups_with_plaintext_until = encrypted_on_disk_since + interval '35 days') FROM nomp_crypt.inventory WHERE table_name = 'public.pupil'"
	),
	't',
	'and the inventory says since when');
is(wrong($node), 0, 'no value is lost or changed by that');

# ---- and back ----
my $before = one(
	"SELECT md5(string_agg(concat_ws(' ', id, school, class, nomp_crypt.decrypt(name), nomp_crypt.decrypt(ssn)), ',' ORDER BY id)) FROM pupil"
);
one("SELECT nomp_crypt.decrypt_column('pupil', c) FROM unnest('{name,ssn}'::name[]) c"
);
is( one("SELECT md5(string_agg(concat_ws(' ', id, school, class, name, ssn), ',' ORDER BY id)) FROM pupil"
	),
	$before,
	'decrypted, the table says the same, value by value');
is( one("SELECT string_agg(format_type(atttypid, atttypmod), ' ' ORDER BY attname) FROM pg_attribute WHERE attrelid = 'pupil'::regclass AND attname IN ('name', 'ssn')"
	),
	'text character varying(60)',
	'in columns of their old types');
$standby->stop;
$node->stop;
done_testing();
