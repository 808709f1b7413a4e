# More copies from before an erasure, beside those of
# erased_stays_erased_after_restores.pl: another cluster that is sent tables and
# keys by logical replication and was behind, with a register of its own; and a
# backup from before a school moved to another keystore, where the old one is
# gone.  Neither reads, neither destroys, and each says what it lacks.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Procedures;
use Test::More;

my $node = nomp_node('main', allows_streaming => 'logical');
my $dir = $node->{nomp_dir};

make_token($dir, 'new');
my $old_uri = keystore_uri($dir, 'nomp');
my $new_uri = keystore_uri($dir, 'new');
my $old = serial_of($dir, 'nomp');
my $new = serial_of($dir, 'new');

$node->append_conf('postgresql.conf', <<"CONF");
nomp_crypt.keystore = '$old_uri'
nomp_crypt.other_keystores = '$new_uri'
CONF
$node->start;
create_nomp($node, qw(gone moved stays));
$node->safe_psql('postgres',
	"INSERT INTO pupil SELECT row_number() OVER (), id, nomp_crypt.encrypt('Anna i ' || id, id), NULL FROM nomp_crypt.tenants"
);
$node->backup('before_the_move');

sub reconciled
{
	my ($copy) = @_;

	return $copy->safe_psql('postgres',
		"SELECT string_agg(concat_ws(' ', tenant, action), ', ' ORDER BY tenant, action) FROM nomp_crypt.reconcile()"
	);
}

# ---- a subscriber that is behind ----

my $subscriber = PostgreSQL::Test::Cluster->new('subscriber');
$subscriber->init(extra => [ '--encoding=UTF8', '--no-locale' ]);
nomp_conf($subscriber, $dir, 'nomp');
$subscriber->append_conf('postgresql.conf',
	"nomp_crypt.other_keystores = '$new_uri'\n");
$subscriber->start;
run_procedure(
	'logical-replication',
	{ publisher => $node, subscriber => $subscriber },
	'host=publisher dbname=school user=replicator' => $node->connstr
	  . ' dbname=postgres',
	'CREATE TABLE pupil (...);' =>
	  'CREATE TABLE pupil (id bigint PRIMARY KEY, school text NOT NULL, name encrypted(text), notes encrypted(text));'
);
$subscriber->wait_for_subscription_sync($node, 'school');
is(school_reads($subscriber, $_), "Anna i $_", "the subscriber reads $_")
  for qw(gone stays);
my $subscriptions =
  $subscriber->safe_psql('postgres', 'SELECT subname FROM pg_subscription');
$subscriber->safe_psql('postgres', join '',
	map { "ALTER SUBSCRIPTION $_ DISABLE;" } split /\n/,
	$subscriptions);

$node->safe_psql('postgres', "SELECT nomp_crypt.add_keystore('$new')");
$node->safe_psql('postgres',
	"SELECT nomp_crypt.migrate_tenant('moved', '$new')");
is( sqlstate($node, "CALL nomp_crypt.erase_tenant('gone', 'test', 'PUB-1')"),
	'',
	'a school is erased where it is published');
own_register($node, $subscriber);
$subscriber->restart;
is(school_reads($subscriber, 'gone'),
	'NC003', 'the subscriber, which has not heard, does not read it');
is(school_reads($subscriber, 'stays'),
	'Anna i stays', 'but what is not erased');
my $keys = join ' ', sort(token_labels($dir, 'nomp'));
is(sqlstate($subscriber, $_), '55000', "it is refused: $_")
  for "CALL nomp_crypt.erase_tenant('stays', 'test', 'PUB-1')",
  "SELECT nomp_crypt.create_tenant('x')",
  'SELECT nomp_crypt.rotate_register_key()',
  'SELECT nomp_crypt.repair_register()';
is(join(' ', sort(token_labels($dir, 'nomp'))),
	$keys, 'nothing happened in the keystore');
like(
	failure($subscriber, 'SELECT * FROM nomp_crypt.reconcile()'),
	qr/^55000: a subscriber follows its publisher.*DROP SUBSCRIPTION first/s,
	'it does not write itself what will be sent to it');
$subscriber->safe_psql('postgres', join '',
	map { "ALTER SUBSCRIPTION $_ ENABLE;" } split /\n/,
	$subscriptions);
$node->safe_psql('postgres',
	"INSERT INTO pupil SELECT 99, 'stays', nomp_crypt.encrypt('Bo', 'stays'), NULL"
);
$node->wait_for_catchup('school');
is( outcome(
		$subscriber,
		'SELECT nomp_crypt.decrypt(name) FROM pupil WHERE id = 99'),
	'Bo',
	'then it goes on with what was published since');
is(school_reads($subscriber, 'gone'), 'NC001', 'and the school stays erased');
$subscriber->stop;

# ---- from before the move, without the keystore of then ----

{
	my $copy = PostgreSQL::Test::Cluster->new('older');

	$copy->init_from_backup($node, 'before_the_move');
	own_register($node, $copy);
	$copy->append_conf('postgresql.conf',
		"nomp_crypt.keystore = '$new_uri'\nnomp_crypt.other_keystores = ''\n"
	);
	$copy->start;
	like(
		failure($copy, read_school($_)),
		qr/^NC004: .*the one that holds the key is not configured.*keystore_status\(\) shows its serial number/s,
		"$_ is not read, and where to look is said") for qw(gone moved stays);
	is( $copy->safe_psql(
			'postgres',
			'SELECT serial FROM nomp_crypt.keystore_status() WHERE keystore IS NULL'
		),
		$old,
		'which keystore is missing is shown there');
	is(sqlstate($copy, 'SELECT nomp_crypt.adopt_keystore() IS NOT NULL'),
		'', 'even if it takes the place of the original');
	like(
		failure(
			$copy, "CALL nomp_crypt.erase_tenant('moved', 'test', 'PUB-1')"),
		qr/^NC004: .*not configured.*serial number/s,
		'it erases nothing, and says how to see which one is missing');
	is( $copy->safe_psql(
			'postgres',
			"SELECT state FROM nomp_crypt.tenants WHERE id = 'moved'"),
		'suspended',
		'the school is suspended');
	set_keystores($copy, $new_uri, $old_uri);
	wait_until(
		sub {
			$copy->safe_psql('postgres',
				"SELECT count(*) FROM nomp_crypt.keystore_status() WHERE state = 'ok'"
			) == 2;
		},
		'both keystores');
	is(school_reads($copy, 'stays'),
		'Anna i stays', 'with that one, it reads what is not erased');
	is(school_reads($copy, 'gone'), 'NC003', 'and not what is');
	is( reconciled($copy),
		'gone erased, moved key noted',
		'the register knows of the move');
	is( sqlstate(
			$copy, "CALL nomp_crypt.erase_tenant('moved', 'test', 'PUB-1')"),
		'',
		'then the school that moved is erased');
	my $moved = $copy->safe_psql('postgres',
		"SELECT uuid FROM nomp_crypt.tenants WHERE id = 'moved'");
	is( scalar(
			grep { /$moved/ } token_labels($dir, 'nomp'),
			token_labels($dir, 'new')),
		0,
		'in both');
	$copy->stop;
}

$node->stop;
done_testing();
