# Two sites and patroni between them, as Debian has it.  Whoever leads, a client
# that retries must see a short interruption and never a wrong answer, a school
# that is suspended or erased must stay so, and the node that takes over must
# destroy nothing until somebody has said that it may.  So: a client that knows
# every value it has written, a switchover, a machine that dies, both while the
# keystore is away, and everything read at the end.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IPC::Run;
use JSON::PP ();
use NompTest;
use PatroniTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Procedures;
use Test::More;

my @living = qw(norr söder öster);
my $dir = PostgreSQL::Test::Utils::tempdir();

make_token($dir, 'nomp');
my $keystore = frail_keystore($dir, 'nomp');

start_etcd();
my $first = patroni_node('site1', $keystore);
my $second = patroni_node('site2', $keystore);

start_patroni($first);
wait_for_leader($first);
create_nomp($first, @living, 'cold', 'requested', 'erased');
$first->safe_psql('postgres',
		'INSERT INTO pupil (id, school, name)'
	  . " SELECT row_number() OVER (), id, nomp_crypt.encrypt('Anna i ' || id, id)"
	  . ' FROM nomp_crypt.tenants');
start_patroni($second);
wait_for_standby($second);
pass('two nodes, one of them a synchronous standby');

# ---- the client ----

my ($in, $out, $err) = ('', '', '');
my $conninfo = sprintf
  'host=127.0.0.1,127.0.0.1 port=%d,%d dbname=postgres user=postgres target_session_attrs=read-write',
  $first->port, $second->port;
my $client = IPC::Run::start(
	[
		'setpriv', '--pdeathsig', 'KILL',
		'/usr/bin/python3', "$FindBin::RealBin/../test/failover_client.py",
		$conninfo, @living
	],
	'<',
	\$in,
	'>',
	\$out,
	'2>',
	\$err);

sub rounds
{
	$client->pump_nb;
	die "the client has ended: $err" unless $client->pumpable;
	# whole lines: of the last one a part may have come
	my @lines = $out =~ /^(.*)\n/mg;

	return @lines ? JSON::PP->new->decode($lines[-1])->{rounds} : 0;
}

# It goes on: some hundred rounds more.
sub client_goes_on
{
	my ($what) = @_;
	my $before = rounds();

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_until(sub { rounds() >= $before + 200 },
		"the client to go on: $what");
	return pass("the client goes on: $what");
}

client_goes_on('in peace');

# A school is erased, another is about to be.
sub set_grace
{
	my ($node, $value) = @_;

	$node->safe_psql('postgres',
		"ALTER SYSTEM SET nomp_crypt.erasure_grace = '$value'");
	$node->reload;
	$node->poll_query_until('postgres', 'SHOW nomp_crypt.erasure_grace',
		$value)
	  or die 'the setting did not change';
	return;
}

sub erase
{
	my ($node, $school) = @_;

	return sqlstate($node, "CALL nomp_crypt.erase_tenant('$school', 'test')");
}

set_grace($first, '0');
is(erase($first, 'erased'), '', 'a school is erased');
set_grace($first, '1h');
is(erase($first, 'requested'), '', 'the erasure of another is requested');

sub states_stay
{
	my ($node, $when) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(school_reads($node, 'erased'),
		'NC001', "$when: what was erased is erased");
	is(school_reads($node, 'requested'),
		'NC002', "$when: what was suspended is suspended");
	is(school_reads($node, $_), "Anna i $_", "$when: $_ reads") for @living;
	return;
}

# ---- switchover ----

{
	my @said = run_procedure(
		'switchover',
		{ operator => $first, site2 => $second },
		'/etc/patroni/config.yml' => $first->basedir . '/node.yml');

	wait_for_leader($second);
	like($said[-1], qr/ok\s*\|\s*t/, 'switchover: the second node leads');
}
states_stay($second, 'after the switchover');
client_goes_on('after the switchover');
is(sqlstate($second, "SELECT nomp_crypt.create_tenant('new')"),
	'', 'it has adopted the keystore and makes keys');

# ---- the machine dies while the keystore is away ----

wait_for_standby($first);
states_stay($first, 'on the standby');
keystore_has_trouble(everything => 'hangs');
is(school_reads($first, 'cold'), 'NC004', 'the keystore does not answer');
kill_machine($second);
wait_for_leader($first);
pass('failover: the first node leads');
states_stay($first, 'after the failover, without a keystore');
client_goes_on('after the failover, without a keystore');
is(school_reads($first, 'cold'),
	'NC004', 'a key that nobody had asked for is unavailable');
keystore_recovers();
wait_until(sub { school_reads($first, 'cold') eq 'Anna i cold' },
	'the keystore to be back');
pass('when the keystore is back, so is that school');
like(
	(run_procedure('failover', { leader => $first }))[-1],
	qr/^ok\|t\n.*requested\|test\|\|requested$/s,
	'the case that was requested on the other node is listed');
is(sqlstate($first, "SELECT nomp_crypt.create_tenant('newer')"),
	'', 'and keys are made here again');

# ---- the machine comes back, and the keystore goes during a switchover ----

start_patroni($second);
wait_for_standby($second);
states_stay($second, 'on the node that came back');
keystore_has_trouble(everything => 'hangs');
patronictl(
	'switchover', '--master', 'site1', '--candidate',
	'site2', '--force', 'nomp');
wait_for_leader($second);
client_goes_on('after a switchover without a keystore');
states_stay($second, 'after a switchover without a keystore');
keystore_recovers();
wait_until(sub { keystore_state($second) eq 'ok' },
	'the keystore to be back');
is(sqlstate($second, "SELECT nomp_crypt.create_tenant('newest')"),
	'', 'so does the other');

# ---- every value ----

$in = "end\n";
ok($client->finish,
	'the client saw only errors that it may retry, and no wrong answer')
  or diag $err;
my @lines = split /\n/, $out;
my $said = JSON::PP->new->decode($lines[-1]);

note $lines[-1];
cmp_ok($said->{rounds}, '>=', 1000,
	'and has read every value that it had written');
is(broken_rules(), '', "the helpers keep to PKCS#11's rules");
done_testing();
