# A backup needs the keys that there were when it was taken.  One is taken
# after each change of a school's keys, and each is restored when all is done:
# it reads every value that it holds, with the KEKs that were retired since.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = nomp_node('main', allows_streaming => 1);
my $dir = $node->{nomp_dir};
$node->start;
create_nomp($node, 'school', 'other');
$node->safe_psql('postgres',
	'CREATE TABLE t (id int, name encrypted(text), ssn encrypted(text, searchable) UNIQUE)'
);

my $all = in_tenant('school',
	"SELECT string_agg(id || name::text || ssn::text, ',' ORDER BY id) FROM t"
);
my $found = in_tenant('school', "SELECT name FROM t WHERE ssn = '1-1'");
my @steps = (
	create => "SELECT 1",
	rotate => "SELECT nomp_crypt.rotate_tenant('school')",
	rewrap => "SELECT nomp_crypt.rewrap_tenant('school')",
	'rotate again' => "SELECT nomp_crypt.rotate_tenant('school')",
	'rewrap again' => "SELECT nomp_crypt.rewrap_tenant('school')",
	'rewrap once more' => "SELECT nomp_crypt.rewrap_tenant('school')",
	're-encrypt' => "CALL nomp_crypt.reencrypt('t')",
	'a new index key' => "SELECT nomp_crypt.rotate_index_key('school')");
my @backups;

while (my ($name, $sql) = splice @steps, 0, 2)
{
	my $i = @backups + 1;

	$node->safe_psql('postgres', $sql);
	$node->safe_psql(
		'postgres',
		in_tenant(
			'school',
			"INSERT INTO t SELECT $i * 100 + i, 'Anna ' || i, '$i-' || i FROM generate_series(1, 20) i"
		));
	$node->backup("backup$i");
	push @backups,
	  {
		name => $name,
		values => $node->safe_psql('postgres', $all),
		keys => $node->safe_psql(
			'postgres',
			"SELECT key_version, kek_generation FROM nomp_crypt.tenants WHERE id = 'school'"
		)
	  };
}
is($backups[-1]{keys},
	'3|4', 'the school has had three data keys and four KEKs');
is($node->safe_psql('postgres', 'SELECT count(*) FROM nomp_crypt.kek'),
	5, 'and another school its own');

for my $i (1 .. @backups)
{
	my $backup = $backups[ $i - 1 ];
	my $restored = PostgreSQL::Test::Cluster->new("restored$i");

	$restored->init_from_backup($node, "backup$i");
	$restored->start;
	is($restored->safe_psql('postgres', $all),
		$backup->{values}, "after $backup->{name}: every value is readable");
	is($restored->safe_psql('postgres', $found),
		'Anna 1', 'a value is found by its fingerprint');
	is( $restored->safe_psql(
			'postgres',
			"SELECT key_version, kek_generation FROM nomp_crypt.tenants WHERE id = 'school'"
		),
		$backup->{keys},
		'with the keys of that time');
	is( $restored->safe_psql(
			'postgres',
			in_tenant(
				'school',
				"INSERT INTO t VALUES (0, 'Berit', '0'); SELECT name FROM t WHERE id = 0"
			)),
		'Berit',
		'and new ones can be written');
	is(sqlstate($restored, "SELECT nomp_crypt.rotate_tenant('school')"),
		'55000', 'but a copy rotates nothing');
	is(sqlstate($restored, "SELECT nomp_crypt.rewrap_tenant('school')"),
		'55000', 'and makes no KEK');
	$restored->stop;
}

# The original is gone, and an old backup takes its place: its next KEK must
# not take the number of one that it does not know.
$node->stop;
my $heir = PostgreSQL::Test::Cluster->new('heir');
$heir->init_from_backup($node, 'backup2');
$heir->start;
$heir->safe_psql('postgres', 'SELECT nomp_crypt.adopt_keystore()');
is( $heir->safe_psql('postgres', "SELECT nomp_crypt.rewrap_tenant('school')"),
	5,
	'an heir makes a KEK that nobody had before');
is( $heir->safe_psql('postgres', $all),
	$backups[1]{values},
	'and reads all that it has');
is( $heir->safe_psql(
		'postgres',
		"CALL nomp_crypt.erase_tenant('school', 'test');"
		  . " SELECT cardinality(keys_destroyed) FROM nomp_crypt.erasure"),
	5,
	'an erasure there destroys them all, also those that it did not know');
$heir->stop;

# No copy reads on.
for my $i (1 .. @backups)
{
	my $restored = PostgreSQL::Test::Cluster->new("late$i");

	$restored->init_from_backup($node, "backup$i");
	$restored->start;
	is(outcome($restored, $all),
		'NC003',
		"after $backups[$i - 1]{name}: the erased school is not readable");
	$restored->stop;
}
done_testing();
