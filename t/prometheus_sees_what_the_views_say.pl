# The exporter that operators have, Debian's, with the queries that we give
# them, as a role that may do nothing else: every number that a view has gets
# out, trouble shows, and the alert rules ask for metrics that there are.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use HTTP::Tiny;
use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $exporter = '/usr/bin/prometheus-postgres-exporter';
my $monitoring = "$FindBin::RealBin/../contrib/monitoring";
my $port = PostgreSQL::Test::Cluster::get_free_port();
my $node = nomp_node('main');
my $dir = $node->{nomp_dir};

die "$exporter is not installed" unless -x $exporter;
$node->append_conf('postgresql.conf', 'nomp_crypt.key_check_interval = 1d');
$node->start;
create_nomp($node, qw(one two gone));
$node->safe_psql('postgres', <<'SQL');
CREATE ROLE exporter LOGIN IN ROLE pg_monitor;
INSERT INTO pupil (id, school, name)
SELECT row_number() OVER (), id, nomp_crypt.encrypt('Anna', id) FROM nomp_crypt.tenants;
SELECT nomp_crypt.decrypt(name) FROM pupil;
SQL
$node->safe_psql('postgres', 'SELECT nomp_crypt.decrypt(name) FROM pupil');
$node->safe_psql('postgres', "CALL nomp_crypt.erase_tenant('gone', 'test')");
# a token's helper is replaced after an erasure, with the next request
$node->safe_psql('postgres', 'SELECT count(*) FROM nomp_crypt.health()');

my $run = start_exporter();

END
{
	my $status = $?;

	$run->kill_kill if defined $run;
	$? = $status;
}

sub start_exporter
{
	my $dsn =
		'user=exporter dbname=postgres sslmode=disable host='
	  . $node->host
	  . ' port='
	  . $node->port;

	local $ENV{DATA_SOURCE_NAME} = $dsn;
	return IPC::Run::start(
		[
			$exporter,
			"--extend.query-path=$monitoring/queries.yaml",
			"--web.listen-address=127.0.0.1:$port",
			'--disable-default-metrics',
			'--disable-settings-metrics'
		],
		'<',
		\undef,
		'>&',
		"$PostgreSQL::Test::Utils::log_path/exporter.log");
}

# One scrape: a hash ref, series as Prometheus writes it => value.
sub scrape
{
	my $answer =
	  HTTP::Tiny->new(timeout => 60)->get("http://127.0.0.1:$port/metrics");
	my %series;

	return {} unless $answer->{success};
	for (split /\n/, $answer->{content})
	{
		next unless /^(nomp_crypt_\w+|pg_exporter_\w+|pg_up)(\{.*\})? (\S+)$/;
		my ($name, $labels, $value) = ($1, $2 // '', $3);
		my %label = $labels =~ /(\w+)="([^"]*)"/g;
		my @ours = map { "$_=$label{$_}" }
		  grep { $_ ne 'server' && $_ ne 'filename' && $_ ne 'hashsum' }
		  sort keys %label;

		$series{ join ' ', $name, @ours } = $value;
	}
	return \%series;
}

# same(METRIC, LABELS, SQL): the last scrape has what the SQL says.
my $seen = {};

sub same
{
	my ($series, $sql) = @_;
	my $expected = $node->safe_psql('postgres', $sql);

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return fail("$series is missing") unless defined $seen->{$series};
	return is($seen->{$series} + 0, $expected + 0, "$series is $expected");
}

wait_until(
	sub {
		$seen = scrape();
		exists $seen->{'nomp_crypt_keyring_entries'};
	},
	'the exporter to answer');
is($seen->{'pg_up'}, 1, 'the exporter reaches the server');
is($seen->{'pg_exporter_last_scrape_error'}, 0, 'no query fails');
is($seen->{'pg_exporter_user_queries_load_error'},
	0, 'the file of queries is accepted');

# ---- every number ----

my $keystore = 'keystore=nomp_crypt.keystore';

same("nomp_crypt_keyring_$_", "SELECT $_ FROM nomp_crypt.stat_keyring")
  for qw(entries capacity);
same("nomp_crypt_keyring_${_}_total",
	"SELECT $_ FROM nomp_crypt.stat_keyring")
  for qw(hits misses evictions expirations revocations);
cmp_ok($seen->{'nomp_crypt_keyring_hits_total'},
	'>', 0, 'there are hits to count');
{
	my $left = $node->safe_psql('postgres',
		'SELECT extract(epoch FROM soonest_lease_end - clock_timestamp()) FROM nomp_crypt.stat_keyring'
	);
	my $soonest = $seen->{'nomp_crypt_keyring_soonest_lease_seconds'};

	ok($soonest >= $left && $soonest < $left + 3600, 'the first lease ends');
}
same(
	"nomp_crypt_keystore_calls_total call=$_ $keystore",
	"SELECT ${_}s FROM nomp_crypt.stat_keystore"
) for qw(unwrap check create destroy);
cmp_ok($seen->{"nomp_crypt_keystore_calls_total call=other $keystore"},
	'>', 0, 'health() itself is among the other calls');
same("nomp_crypt_keystore_failures_total failure=$_->[0] $keystore",
	"SELECT $_->[1] FROM nomp_crypt.stat_keystore")
  for [ timeout => 'timeouts' ],
  [ helper => 'helper_failures' ], [ login => 'login_failures' ],
  [ token => 'token_failures' ], [ module => 'module_failures' ],
  [ absent_key => 'absent_keys' ], [ damaged_key => 'damaged_keys' ],
  [ refusal => 'refusals' ];
same(
	"nomp_crypt_keystore_$_ $keystore",
	"SELECT $_ FROM nomp_crypt.stat_keystore"
) for qw(queue waiting queue_longest);
same(
	"nomp_crypt_keystore_${_}_total $keystore",
	"SELECT $_ FROM nomp_crypt.stat_keystore"
) for qw(renewals helper_restarts);
cmp_ok($seen->{"nomp_crypt_keystore_latency_${_}_seconds $keystore"},
	'>', 0, "latency: $_")
  for qw(p50 p95 p99 max);
cmp_ok(
	$seen->{"nomp_crypt_keystore_last_ok_timestamp_seconds $keystore"},
	'>',
	time - 3600,
	'the last request that succeeded');
same(
	"nomp_crypt_keystore_last_failed_timestamp_seconds $keystore",
	'SELECT coalesce(extract(epoch FROM last_failed)::float8, 0) FROM nomp_crypt.stat_keystore'
);
same("nomp_crypt_tenants_count state=$_",
	"SELECT count(*) FROM nomp_crypt.tenant WHERE state = '$_'")
  for qw(active erased);
same("nomp_crypt_tenants_cached state=$_->[0]", "SELECT $_->[1]")
  for [ active => 2 ], [ erased => 0 ];
cmp_ok($seen->{"nomp_crypt_tenants_${_}_age_max_seconds state=active"},
	'>', 0, "the oldest $_")
  for qw(key kek);

my %level = (ok => 0, info => 1, warning => 2, critical => 3);
my %health = map { split /\|/ } split /\n/,
  $node->safe_psql('postgres',
	'SELECT name, severity FROM nomp_crypt.health()');

is( $seen->{"nomp_crypt_health_severity name=$_"},
	$level{ $health{$_} },
	"health: $_ is $health{$_}") for sort keys %health;

# ---- trouble shows, and goes ----

unless (over_kms())
{
	my $pin = 'nomp_crypt_health_severity name=credentials';

	is($seen->{$pin}, 0, 'the PIN file is well');
	chmod 0644, "$dir/pin";
	wait_until(sub { (scrape()->{$pin} // -1) == 3 }, 'the PIN file to show');
	pass('a PIN file that others may read is critical');
	chmod 0600, "$dir/pin";
	wait_until(sub { (scrape()->{$pin} // -1) == 0 },
		'the PIN file to be well');
	pass('and is not any more');
}

# ---- the alert rules ----

{
	my $rules = slurp_file("$monitoring/alerts.yaml");
	my %named = map { $_ => 1 }
	  map { /\b(nomp_crypt_\w+)/g } $rules =~ /^\s+expr: (.*)$/mg;
	my %known = map { (split / /)[0] => 1 } keys %$seen;

	ok(keys %named > 4, 'the alert rules look at metrics of ours');
	is(join(' ', grep { !$known{$_} } sort keys %named),
		'', 'at none that there is not');

	my $readme = slurp_file("$monitoring/README.md");
	is( join(
			' ',
			grep {
				my $short =
				  s/^nomp_crypt_(?:health|keystore|keyring|tenants)//r =~
				  s/_latency_(p50|p95|p99|max)_seconds/_$1/r;
				$readme !~ /\b$_\b/ && $readme !~ /`$short(?:_|`)/;
			  }
			  sort grep { /^nomp_crypt_/ } keys %known),
		'',
		'the README names every metric');
}

$node->stop;
done_testing();
