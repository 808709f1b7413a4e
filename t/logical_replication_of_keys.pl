# A cluster of its own at another site, that is sent tables and keys by logical
# replication, reads what is written here, and must stop reading what is erased
# here, in sessions that have read it before as well.  Its own administrators
# destroy nothing: keys are administered where they are published.  All set up
# as docs/operations.md says.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Procedures;
use Test::More;

my $publisher = nomp_node('publisher', allows_streaming => 'logical');
my $dir = $publisher->{nomp_dir};
my $subscriber = PostgreSQL::Test::Cluster->new('subscriber');

$publisher->start;
create_nomp($publisher, 'before', 'requested', 'erased');
$publisher->safe_psql('postgres', <<'SQL');
DROP TABLE pupil;
CREATE ROLE app;
SELECT nomp_crypt.grant_all_tenants('app', '{encrypt,decrypt,search}');
SQL
my $tables = <<'SQL';
CREATE TABLE pupil (id bigint PRIMARY KEY, school text NOT NULL,
	name encrypted(text), ssn encrypted(text, searchable));
CREATE UNIQUE INDEX pupil_ssn ON pupil (ssn);
GRANT SELECT ON pupil TO app;
SQL
$publisher->safe_psql('postgres', $tables);
$publisher->safe_psql('postgres',
		'INSERT INTO pupil SELECT row_number() OVER (), id,'
	  . " nomp_crypt.encrypt('Anna i ' || id, id), nomp_crypt.encrypt(id, id)::encrypted(text, searchable)"
	  . ' FROM nomp_crypt.tenants');

$subscriber->init(extra => [ '--encoding=UTF8', '--no-locale' ]);
nomp_conf($subscriber, $dir, 'nomp');
$subscriber->start;

run_procedure(
	'logical-replication',
	{ publisher => $publisher, subscriber => $subscriber },
	'host=publisher dbname=school user=replicator' => $publisher->connstr
	  . ' dbname=postgres',
	'CREATE TABLE pupil (...);' => $tables);
$subscriber->wait_for_subscription_sync($publisher, 'school');

sub replicated
{
	$publisher->wait_for_catchup('school');
	return;
}

sub same
{
	my ($what) = @_;
	my $all = 'SELECT string_agg(p::text, chr(10) ORDER BY id) FROM pupil p';

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	replicated();
	is( $subscriber->safe_psql('postgres', $all),
		$publisher->safe_psql('postgres', $all),
		"$what: the same bytes");
	return;
}

same('first copy');
is(school_reads($subscriber, $_), "Anna i $_", "$_ reads at the subscriber")
  for 'before', 'requested', 'erased';
is( outcome(
		$subscriber,
		"SET ROLE app; "
		  . in_tenant('before', "SELECT id FROM pupil WHERE ssn = 'before'")),
	'1',
	'a role of the same name has its rights there, and finds by index');

# A session that stays, in a school and outside, and has read all.
my $session = open_session($subscriber);
my $read = 'SELECT nomp_crypt.decrypt(name) FROM pupil WHERE school =';
is(says($session, "$read '$_'"), "Anna i $_", "a session reads $_")
  for 'before', 'requested', 'erased';

# A new school, new rows, a row changed, one deleted.
$publisher->safe_psql('postgres', "SELECT nomp_crypt.create_tenant('after')");
$publisher->safe_psql(
	'postgres',
	in_tenant(
		'after',
		"INSERT INTO pupil VALUES (10, 'after', 'Anna i after', '1'), (11, 'after', 'Bo', '2'), (12, 'after', 'Eva', '3');"
		  . " UPDATE pupil SET ssn = '4', name = 'Bosse' WHERE ssn = '2'; DELETE FROM pupil WHERE ssn = '3'"
	));
same('changes of a new school');
is( says($session, "$read 'after' ORDER BY id"),
	"Anna i after\nBosse",
	'the session reads a school that is new');

# Rights follow.
is( outcome($subscriber, "SET ROLE app; $read 'before'"),
	'Anna i before',
	'a role may read');
$publisher->safe_psql('postgres',
	"SELECT nomp_crypt.revoke_all_tenants('app')");
replicated();
is(outcome($subscriber, "SET ROLE app; $read 'before'"),
	'42501', 'and no more, once it is revoked at the publisher');

# Suspension and erasure follow, in the session that has read them as well.
$publisher->append_conf('postgresql.conf', 'nomp_crypt.erasure_grace = 1h');
$publisher->reload;
$publisher->poll_query_until('postgres', 'SHOW nomp_crypt.erasure_grace',
	'1h')
  or die 'the setting did not change';
is( sqlstate($publisher, "CALL nomp_crypt.erase_tenant('requested', 'test')"),
	'',
	'an erasure is requested');
replicated();
is(says($session, "$read 'requested'"),
	'NC002', 'the session at the subscriber sees it suspended');
is( sqlstate(
		$subscriber, "CALL nomp_crypt.erase_tenant('requested', 'test')"),
	'55000',
	'which the subscriber cannot execute');
$publisher->safe_psql('postgres',
	"SELECT nomp_crypt.withdraw_erasure('requested')");
replicated();
is( says($session, "$read 'requested'"),
	'Anna i requested',
	'taken back, the session reads again');

$publisher->append_conf('postgresql.conf', 'nomp_crypt.erasure_grace = 0');
$publisher->reload;
$publisher->poll_query_until('postgres', 'SHOW nomp_crypt.erasure_grace', '0')
  or die 'the setting did not change';
my %keys = school_keys($publisher, $dir, 'erased');
my $keys = join ' ', sort(token_labels($dir, 'nomp'));
is(sqlstate($subscriber, "CALL nomp_crypt.erase_tenant('erased', 'test')"),
	'55000', 'the subscriber begins no erasure');
is(sqlstate($subscriber, "SELECT nomp_crypt.create_tenant('x')"),
	'55000', 'and makes no keys');
is(join(' ', sort(token_labels($dir, 'nomp'))),
	$keys, 'nothing happened in the keystore');
is(sqlstate($publisher, "CALL nomp_crypt.erase_tenant('erased', 'test')"),
	'', 'the publisher erases');
replicated();
is(says($session, "$read 'erased'"),
	'NC001', 'the session at the subscriber sees it erased');
is(school_reads($subscriber, 'erased'), 'NC001', 'and so do new ones');
is(sqlstate($subscriber, "CALL nomp_crypt.erase_tenant('erased', 'test')"),
	'', 'the same call at the subscriber');
my $found = find_in_memory($subscriber, grep { length == 32 } values %keys);
is(scalar(map { @$_ } values %$found),
	0, 'returns when none of its processes has the keys');
is( says($session, "$read 'before'"),
	'Anna i before',
	'another school reads on');
is( $subscriber->safe_psql(
		'postgres',
		"SELECT keys_destroyed IS NOT NULL FROM nomp_crypt.erasure WHERE state = 'destroyed'"
	),
	't',
	'the case is on record there, as the publisher saw it');
same('the end');

$session->quit;
$_->stop for $subscriber, $publisher;
done_testing();
