# A service has more schools than the keyring has room for, and more
# connections than the keystore answers at a time.  Then keys are evicted
# while others use them, slots are reused, and many ask for the same key at
# once: nobody may get another school's key, an error, or no answer at all,
# and the keystore, which may be slow and cost money by the call, is asked no
# more often than there are transactions that miss.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $schools = 500;
my $connections = 200;
my $transactions = 25;      # per connection
my $keys_per_school = 2;    # values and index

my $node = nomp_node('main');
my $dir = $node->{nomp_dir};
my $uri = frail_keystore($dir, 'nomp');

# The timeout is longer than this test waits, so that an answer which nobody
# is woken for fails it.
$node->append_conf('postgresql.conf', <<"CONF");
nomp_crypt.keystore = '$uri'
nomp_crypt.keystore_timeout = 600s
nomp_crypt.max_cached_keys = 100
max_connections = @{[ $connections + 20 ]}
log_statement = none
CONF
$node->start;
create_nomp($node);
$node->safe_psql('postgres',
		"CALL nomp_crypt.create_tenants('{"
	  . join(',', map { "s$_" } 1 .. $schools)
	  . "}')");
$node->safe_psql('postgres',
		'INSERT INTO pupil (id, school, name)'
	  . " SELECT n, 's' || n, nomp_crypt.encrypt('Anna i s' || n, 's' || n)"
	  . " FROM generate_series(1, $schools) n");
$node->safe_psql('postgres',
	'CREATE TABLE note (id bigserial PRIMARY KEY, school int, client int, name encrypted(text))'
);

# start_clients(NAME, SCRIPT, OPTIONS...): many connections, without waiting.
# end_clients(CLIENTS): what pgbench said, '' if any of them failed.
sub start_clients
{
	my ($name, $script, @options) = @_;
	my $clients = { out => '', err => '' };

	append_to_file("$dir/$name.sql", $script);
	$clients->{run} = IPC::Run::start(
		[
			'pgbench', '--no-vacuum',
			'--jobs=2', "--file=$dir/$name.sql",
			'-h', $node->host,
			'-p', $node->port,
			@options, 'postgres'
		],
		'>',
		\$clients->{out},
		'2>',
		\$clients->{err},
		IPC::Run::timeout(600));
	return $clients;
}

sub end_clients
{
	my ($clients) = @_;

	$clients->{run}->finish
	  or diag substr($clients->{err}, 0, 2000);
	return $clients->{run}->result(0) == 0 ? $clients->{out} : '';
}

# ---- more schools and connections than there is room for ----

{
	note "$schools schools are there";
	my $calls = keystore_calls('unwrap');
	my $total = $connections * $transactions;
	my $asked;

	# division by zero, if what is read is not what was written
	my $said = end_clients(
		start_clients(
			'mixed',
			<<'SQL', "--client=$connections", "--transactions=$transactions"));
\set n random(1, 500)
BEGIN;
SELECT set_config('nomp_crypt.tenant', 's' || :n, true);
INSERT INTO note (school, client, name) VALUES (:n, :client_id, 'Bo i s' || :n || ' av ' || :client_id) RETURNING id \gset
SELECT 1 / (name::text = 'Anna i s' || :n)::int FROM pupil WHERE id = :n;
SELECT 1 / (name::text = 'Bo i s' || :n || ' av ' || :client_id)::int FROM note WHERE id = :id;
COMMIT;
SQL

	like(
		$said,
		qr{^number of transactions actually processed: $total/$total$}m,
		"$connections connections in $schools schools: every one was answered"
	);
	like(
		$said,
		qr/^number of failed transactions: 0 /m,
		'without an error or a wrong value');
	$asked = (keystore_calls('unwrap') - $calls) / $keys_per_school;
	note "$total transactions, $asked requests to the keystore";
	cmp_ok($asked, '<=', $total,
		'the keystore was asked once per transaction at most');
	cmp_ok(
		$asked, '>=',
		$schools / 2,
		'and was asked, for the keyring was too small');
}
is( $node->safe_psql(
		'postgres',
		q(SELECT count(*), count(*) FILTER (WHERE nomp_crypt.decrypt(name) = 'Bo i s' || school || ' av ' || client) FROM note)
	),
	join('|', ($connections * $transactions) x 2),
	'all that was written reads, under the school that wrote it');
is( $node->safe_psql(
		'postgres',
		q(SELECT count(*) FROM pupil WHERE nomp_crypt.decrypt(name) = 'Anna i ' || school)
	),
	$schools,
	'so does one query over more schools than the keyring holds');
is(slurp_file($node->logfile) =~ /(ERROR|FATAL|PANIC|TRAP):.*/ ? $& : '',
	'', 'nothing failed');

# ---- one key, many who ask for it at once ----

# together(NAME, CLIENTS, EXPRESSION for the school of a client, REQUESTS):
# while the keystore is held up all of them come to wait for it.
sub together
{
	my ($name, $n, $school, $requests) = @_;
	my $calls;
	my $clients;
	my $said;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$node->restart;
	is(keystore_state($node), 'ok',
		"$name: no key is in the server's memory");
	$calls = keystore_calls('unwrap');
	keystore_has_trouble(unwrap => 'holds');
	$clients =
	  start_clients($name, <<"SQL", "--client=$n", '--transactions=1');
\\set n $school
SELECT 1 / (nomp_crypt.decrypt(name) = 'Anna i s' || :n)::int FROM pupil WHERE id = :n;
SQL
	$node->poll_query_until('postgres',
			"SELECT count(*) = $n FROM pg_stat_activity"
		  . " WHERE state = 'active' AND wait_event_type = 'Extension'")
	  or die "not all of $n clients wait for the keystore";
	wait_until(sub { keystore_calls('unwrap') > $calls },
		'the keystore to be asked');
	# a token is asked one thing at a time, a service once for each key
	my $asked = keystore_calls('unwrap') - $calls;
	my $most = over_kms() ? $requests * $keys_per_school : 1;
	ok($asked >= 1 && $asked <= $most,
		"$name: $n sessions wait for one call, or one for each key")
	  or diag("$asked calls");
	keystore_recovers();
	$said = end_clients($clients);
	like(
		$said,
		qr{^number of transactions actually processed: $n/$n$}m,
		"$name: all are answered, rightly");
	is( keystore_calls('unwrap') - $calls,
		$requests * $keys_per_school,
		"$name: with $requests requests to the keystore");
	return;
}

together('one school', 50, '7', 1);
together('five schools', 50, '1 + :client_id % 5', 5);
together('each its own school', 40, '1 + :client_id', 40);

$node->stop;
done_testing();
