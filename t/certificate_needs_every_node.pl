# An erasure is certified when nobody can read the school any more: every node
# that is known is asked with a value of the school, standbys too; one that
# does not answer, one that still reads, a lease that is not over or a key that
# came back are in the way, and named.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IO::Socket::UNIX;
use NompTest;
use Procedures;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my @schools = qw(s-0180-42 silent lagging back empty other);
my $primary = nomp_node('primary', allows_streaming => 1);
$primary->start;
create_nomp($primary, @schools);
$primary->safe_psql('postgres', <<'SQL');
INSERT INTO pupil SELECT row_number() OVER (), id, nomp_crypt.encrypt('Anna i ' || id, id), NULL
FROM nomp_crypt.tenants WHERE id <> 'empty';
CREATE ROLE checker LOGIN;
CREATE ROLE reader LOGIN;
SELECT nomp_crypt.grant_all_tenants('reader', '{decrypt}');
SQL
my $backup = 'base';
$primary->backup($backup);
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, $backup, has_streaming => 1);
mkdir "$primary->{nomp_dir}/register-standby", 0700;
$standby->append_conf('postgresql.conf',
	"nomp_crypt.register_directory = '$primary->{nomp_dir}/register-standby'"
);
$standby->start;

sub uri
{
	my ($node, $user) = @_;
	my $host = $node->host;

	$host =~ s/([^A-Za-z0-9_.-])/sprintf '%%%02x', ord $1/ge;
	return "postgresql://$user\@$host:" . $node->port . '/postgres';
}

sub set
{
	my ($value) = @_;

	$primary->safe_psql('postgres',
		"ALTER SYSTEM SET nomp_crypt.nodes = '$value'");
	$primary->reload;
	$primary->poll_query_until('postgres', 'SHOW nomp_crypt.nodes', $value)
	  or die 'nomp_crypt.nodes';
	return;
}

sub certify
{
	my ($school, $more) = @_;

	return failure($primary,
		"CALL nomp_crypt.certify_erasure('$school'" . ($more // '') . ')');
}

sub erase
{
	my ($school) = @_;

	is( sqlstate($primary, "CALL nomp_crypt.erase_tenant('$school', 'test')"),
		'',
		"$school is erased");
	return;
}

sub case_of
{
	my ($school, $what) = @_;

	return $primary->safe_psql('postgres',
		"SELECT $what FROM nomp_crypt.erasure e JOIN nomp_crypt.tenant t ON t.uuid = e.tenant WHERE t.id = '$school'"
	);
}

sub acknowledge
{
	my ($school) = @_;

	return sqlstate($primary,
			'SELECT nomp_crypt.acknowledge_lease(' . "'"
		  . case_of($school, 'case_id')
		  . "')");
}

# The setting.
for my $bad (
	'postgresql://a:secret@h/db',
	'postgresql://h/db?password=secret',
	'postgresql://h/db?sslpassword=secret',
	'host=h dbname=db',
	'postgresql://[h/db',
	'postgresql:///db',
	'postgresql://h/db h2')
{
	my ($out, $err) = ('', '');
	$primary->psql(
		'postgres',
		"ALTER SYSTEM SET nomp_crypt.nodes = '$bad'",
		stderr => \$err);
	like(
		$err,
		qr/invalid value for parameter "nomp_crypt.nodes"/,
		'refused: ' . ($bad =~ s/secret/.../r));
}
set(join ' ',
	uri($primary, 'checker'),
	uri($standby, 'checker') . '?passfile=/nowhere/pgpass');
is( $primary->psql(
		'postgres',
		'SHOW nomp_crypt.nodes',
		connstr => $primary->connstr('postgres') . ' user=checker'),
	3,
	'not shown to everybody');

# Not before its time.
like(
	certify('s-0180-42'),
	qr/^55000: tenant "s-0180-42" has not been erased/,
	'a living school has no certificate');
like(certify('nowhere'), qr/^42704/, 'nor one that is not');
like(
	failure(
		$primary,
		"BEGIN; CALL nomp_crypt.certify_erasure('s-0180-42'); COMMIT"),
	qr/^2D000/,
	'not within a transaction');
erase('s-0180-42');
$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));
like(
	certify('s-0180-42'),
	qr/^55000: the erasure of tenant "s-0180-42" cannot be certified: a node that nobody knows of may have a key in memory until \d{4}/,
	'the lease is in the way, and nothing else');
is( $primary->safe_psql('postgres',
		<<'SQL'), 'NC001 false, NC001 true', 'both nodes were asked, and say that it is erased');
SELECT string_agg(n->>'answer' || ' ' || (n->>'standby'), ', ' ORDER BY n->>'standby')
FROM nomp_crypt.erasure e, jsonb_array_elements(e.verification->'nodes') n
SQL
is(acknowledge('s-0180-42'), '', 'a person says that there is no other node');
run_procedure('certify', { server => $primary });
is(case_of('s-0180-42', 'e.state'), 'certified', 'it is certified');
is( case_of(
		's-0180-42', "verification->>'lease_acknowledged_by' = current_user"),
	't',
	'that it was a person\'s word is on record');
is(certify('s-0180-42'), '', 'again, it only says so');
is(acknowledge('s-0180-42'), '55000', 'and nothing is acknowledged any more');

# A node that is down; a standby that nobody named.
erase('silent');
is(acknowledge('silent'), '', 'acknowledged');
$standby->stop;
like(
	certify('silent'),
	qr/^55000: .*cannot be certified: there is no answer from \S+:@{[ $standby->port ]}\/postgres$/m,
	'a node that does not answer is in the way, and named');
is(certify('silent', ', accept_not_asked => true'),
	'', 'or is named as not asked');
like(
	case_of('silent', "verification->>'not_asked'"),
	qr/:@{[ $standby->port ]}\/postgres/,
	'which is on record');
is(case_of('silent', "verification->>'longest_lease'"),
	'24:00:00', 'with the longest lease that it can have');

# A node that has not heard of it, has the keys in memory, and a role that may
# read there: it can still be read, and that is said.
$standby->start;
$standby->safe_psql('postgres', read_school('lagging'));
$standby->safe_psql('postgres', 'SELECT pg_wal_replay_pause()');
set(join ' ', uri($primary, 'reader'), uri($standby, 'reader'));
erase('lagging');
is(acknowledge('lagging'), '', 'acknowledged');
my $said = certify('lagging', ', accept_not_asked => true');
like(
	$said,
	qr/^55000: .*(?:values can still be read on \S+:@{[ $standby->port ]}\/postgres)/,
	'a standby that is behind and reads is in the way, whatever is accepted');
set(join ' ', uri($primary, 'checker'), uri($standby, 'checker'));
like(
	certify('lagging'),
	qr/^55000: .*there is no answer from \S+:@{[ $standby->port ]}\/postgres/,
	'asked by a role that may not read there, it is no proof');
is( $primary->safe_psql(
		'postgres',
		"SELECT n->>'answer' FROM nomp_crypt.erasure e JOIN nomp_crypt.tenant t ON t.uuid = e.tenant, jsonb_array_elements(e.verification->'nodes') n WHERE t.id = 'lagging' AND n->>'node' LIKE '%:@{[ $standby->port ]}/%'"
	),
	'42501',
	'and the answer is on record');
$standby->safe_psql('postgres', 'SELECT pg_wal_replay_resume()');
$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));
is(certify('lagging'), '', 'when it has caught up, it is certified');

# A standby that streams and is not among the nodes.
erase('back');
is(acknowledge('back'), '', 'acknowledged');
set(uri($primary, 'checker'));
like(
	certify('back'),
	qr/^55000: .*there is no answer from standby "standby"/,
	'a standby that nobody named is in the way');
set(join ' ', uri($primary, 'checker'), uri($standby, 'checker'));

# A key that somebody put back.
$primary->safe_psql('postgres', <<'SQL');
UPDATE nomp_crypt.tenant_key k SET wrapped = '\x00', state = 'active'
FROM nomp_crypt.tenant t WHERE t.uuid = k.tenant AND t.id = 'back' AND k.purpose = 'values';
SQL
$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));
like(
	certify('back'),
	qr/^55000: .*1 rows of nomp_crypt.tenant_key have a wrapped key again/,
	'a wrapped key that is back is in the way');

# A school without a value, whose key a standby has in memory: it is asked with
# what looks like a value.
$standby->safe_psql('postgres', 'SELECT pg_wal_replay_pause()');
set(join ' ', uri($primary, 'reader'), uri($standby, 'reader'));
$standby->safe_psql('postgres', "SELECT nomp_crypt.prewarm('{empty}')");
erase('empty');
is(acknowledge('empty'), '', 'acknowledged');
like(
	certify('empty'),
	qr/^55000: .*values can still be read on \S+:@{[ $standby->port ]}\/postgres/,
	'a school without values could still be read by a standby that has its key'
);
$standby->safe_psql('postgres', 'SELECT pg_wal_replay_resume()');
$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));
is(certify('empty'), '', 'not when that has caught up');

# Something that takes the connection and says nothing must not hold the case
# for ever, and can be cancelled.
my $mute_dir = PostgreSQL::Test::Utils::tempdir_short();
my $mute =
  IO::Socket::UNIX->new(Local => "$mute_dir/.s.PGSQL.5432", Listen => 5)
  or die "no socket: $!";
chmod 0777, $mute_dir, "$mute_dir/.s.PGSQL.5432";
my $encoded = $mute_dir =~ s/([^A-Za-z0-9_.-])/sprintf '%%%02x', ord $1/ger;
erase('other');
is(acknowledge('other'), '', 'acknowledged');
set(    "postgresql://checker\@$encoded/postgres "
	  . uri($primary, 'checker') . ' '
	  . uri($standby, 'checker'));
{
	local $ENV{PGOPTIONS} = '-c statement_timeout=1s';
	like(certify('other'), qr/^57014/,
		'a node that says nothing: the call can be cancelled');
}
like(
	certify('other'),
	qr/^55000: .*there is no answer from \S+:5432\/postgres/,
	'and ends by itself');
is(certify('other', ', accept_not_asked => true'),
	'', 'it is named as not asked');
is( $primary->safe_psql(
		'postgres',
		"SELECT count(*) FROM nomp_crypt.erasures WHERE state = 'certified'"),
	'5',
	'all but the one whose key is back are certified');

$standby->stop;
$primary->stop;
done_testing();
