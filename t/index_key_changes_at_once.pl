# A school's index key changes for everybody at the same moment: who wrote
# before is found after, who writes meanwhile waits and writes with the new key,
# and who looks things up never gets an empty answer for it.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = nomp_node('primary', allows_streaming => 1);
my $dir = $node->{nomp_dir};
$node->start;
create_nomp($node, 'a');
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE person (id int PRIMARY KEY, ssn encrypted(text, searchable) UNIQUE);
CREATE TABLE parted (id int, ssn encrypted(text, searchable)) PARTITION BY RANGE (id);
CREATE TABLE parted_1 PARTITION OF parted DEFAULT;
SQL
$node->safe_psql(
	'postgres',
	in_tenant(
		'a',
		'INSERT INTO person SELECT i, i FROM generate_series(1, 200) i; INSERT INTO parted SELECT * FROM person'
	));

sub found
{
	my ($where, $ssn, $table) = @_;
	$table //= 'person';

	return outcome($where,
		in_tenant('a', "SELECT count(*) FROM $table WHERE ssn = '$ssn'"));
}

sub blocked
{
	my ($n) = @_;

	return wait_until(
		sub {
			$node->safe_psql('postgres',
				"SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
			) == $n;
		},
		"$n sessions to wait");
}

# Writers and readers while it is under way.
{
	my $changer = open_session($node);
	my $old_reader = open_session($node);
	my $writer = open_session($node);
	my $parted_writer = open_session($node);
	my $reader = open_session($node);

	$_->query_safe("SET nomp_crypt.tenant = 'a'")
	  for $old_reader, $writer, $parted_writer, $reader;
	$changer->query_safe('SET client_min_messages = warning');
	# these have the old key at hand, in a transaction that goes on
	$_->query_safe(
		"BEGIN; SELECT count(*) FROM nomp_crypt.search_values('x')")
	  for $old_reader, $writer;
	$parted_writer->query_safe(
		'PREPARE add AS INSERT INTO parted VALUES ($1, $2)');
	$parted_writer->query_safe(
		"EXECUTE add(300, '300'); DELETE FROM parted WHERE id = 300");

	$changer->query_safe("BEGIN; SELECT nomp_crypt.rotate_index_key('a')");
	starts($writer, "INSERT INTO person VALUES (301, '301')");
	starts($parted_writer, "EXECUTE add(302, '302')");
	starts($reader, "SELECT count(*) FROM person WHERE ssn = '7'");
	blocked(3);
	$changer->query_safe('COMMIT');
	is(says($reader, ''), 1, 'a reader that waited finds');
	is(says($old_reader, "SELECT count(*) FROM person WHERE ssn = '7'"),
		1, 'and so does one that had the old key in its transaction');
	is(says($_, ''), '', 'a writer waited') for $writer, $parted_writer;
	$writer->query_safe('COMMIT');
	is(found($node, 301), 1, 'what was written meanwhile is found');
	is(found($node, 302, 'parted'), 1, 'in a partition too');
	is(found($node, 7), 1, 'and what was there before');
	is($node->safe_psql('postgres', "CALL nomp_crypt.verify('person')"),
		0, 'all fingerprints are right');
	is($node->safe_psql('postgres', "CALL nomp_crypt.verify('parted')"),
		0, 'all fingerprints are right');
	$_->quit for $changer, $old_reader, $writer, $parted_writer, $reader;
}

# A snapshot from before.
for my $level ('REPEATABLE READ', 'SERIALIZABLE')
{
	my $session = open_session($node);

	$session->query_safe(
		"BEGIN ISOLATION LEVEL $level; SET LOCAL nomp_crypt.tenant = 'a'; SELECT count(*) FROM pupil"
	);
	$node->safe_psql('postgres', "SELECT nomp_crypt.rotate_index_key('a')");
	is( says($session, "SELECT count(*) FROM person WHERE ssn = '7'"),
		'40001',
		"$level: a snapshot from before is refused, not answered wrongly");
	$session->query_safe('ROLLBACK');
	is(says($session, "BEGIN ISOLATION LEVEL $level"), '', 'repeated');
	$session->query_safe("SET LOCAL nomp_crypt.tenant = 'a'");
	is(says($session, "SELECT count(*) FROM person WHERE ssn = '7'"),
		1, 'it is answered');
	is( says(
			$session,
			"SELECT count(*) FROM person WHERE ssn = ANY (nomp_crypt.search_values('7'))"
		),
		1,
		'across schools too');
	$session->query_safe('COMMIT');
	$session->quit;
}

# A crash in the middle, and a standby.
{
	my $changer = open_session($node);

	$changer->query_safe('SET client_min_messages = warning');
	$changer->query_safe("BEGIN; SELECT nomp_crypt.rotate_index_key('a')");
	crash($node);
	eval { $changer->quit };
	$node->start;
	is(found($node, 7),
		1, 'after a power cut before the commit all is as before');
	is(sqlstate($node, "SELECT nomp_crypt.rotate_index_key('a')"),
		'', 'and it can be done again');
	is(found($node, 7), 1, 'what is there is found');

	$node->backup('base');
	my $standby = PostgreSQL::Test::Cluster->new('standby');
	$standby->init_from_backup($node, 'base', has_streaming => 1);
	mkdir "$dir/register-standby", 0700;
	$standby->append_conf('postgresql.conf',
		"nomp_crypt.register_directory = '$dir/register-standby'");
	$standby->start;
	is(found($standby, 7), 1, 'a standby finds');
	$node->safe_psql('postgres', "SELECT nomp_crypt.rotate_index_key('a')");
	$node->wait_for_catchup($standby);
	is(found($standby, 7), 1, 'by the new key, too');
	is(sqlstate($standby, "SELECT nomp_crypt.rotate_index_key('a')"),
		'25006', 'but changes none');
	$standby->stop;
}

$node->stop;
done_testing();
