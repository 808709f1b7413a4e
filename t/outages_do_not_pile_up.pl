# A keystore that hangs must not take the database with it.  Every session that
# needs a new key waits, connections run out, and then the schools whose keys
# are in memory stand still, too.  So: fifty sessions and a keystore that does
# not answer.  What is asked of it while it is down, and when it is back, and
# when hundreds of keys are due to be checked, is counted: calls, not seconds.
# And nobody who waits may lose his answer to a reload of the settings.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use KmsDouble;
use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Troubles;

my $sessions = 50;
my $many = over_kms() ? 100 : 300;

my $node = nomp_node('main');
my $dir = $node->{nomp_dir};
my $uri = frail_keystore($dir, 'nomp');

# A module is asked one thing at a time, and a call that hangs is the end of its
# helper.  A service is asked as many as this, and each again within its time.
my $in_flight = over_kms() ? 32 : 1;
my $silent =
  over_kms()
  ? 'it cannot be reached, or does not prove who it is'
  : 'it did not answer in time';

# Long enough for a machine that is busy with other things, and for two tries.
my $timeout = over_kms() ? '6s' : '10s';

$node->append_conf('postgresql.conf', <<"CONF");
nomp_crypt.keystore = '$uri'
nomp_crypt.keystore_timeout = $timeout
nomp_crypt.key_check_interval = 1h
max_connections = 150
log_statement = none
CONF
$node->start;

my @cold = map { "cold$_" } 1 .. 4 * $sessions;
cold_schools($node, 'warm', @cold);
is(school_reads($node, 'warm'), 'Anna i warm', 'a school reads');

# What each of these schools says to a session of its own, all at once.
sub all_at_once
{
	my (@ids) = @_;
	my @queries = map { start_query($node, read_school($_)) } @ids;

	return map { [ end_query($_) ] } @queries;
}

# How often SCHOOLS say what, asked one after the other in one session.
$node->safe_psql('postgres', <<'SQL');
CREATE FUNCTION answers(schools text[]) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	this text;
	said text;
	tally jsonb := '{}';
BEGIN
	FOREACH this IN ARRAY schools LOOP
		BEGIN
			SELECT nomp_crypt.decrypt(name) INTO said FROM pupil WHERE school = this;
			said := CASE WHEN said = 'Anna i ' || this THEN 'right' ELSE 'wrong' END;
		EXCEPTION WHEN OTHERS THEN
			said := SQLSTATE;
		END;
		tally := tally || jsonb_build_object(said, coalesce((tally ->> said)::int, 0) + 1);
	END LOOP;
	RETURN tally::text;
END
$$;
SQL

sub answers
{
	my (@ids) = @_;

	return "SELECT answers('{" . join(',', @ids) . "}')";
}

sub wait_for_calls
{
	my ($operation, $n) = @_;

	wait_until(sub { keystore_calls($operation) >= $n },
		"call $n of $operation");
	return;
}

# The same keystore by another name.
sub renamed
{
	my ($n) = @_;

	return "$uri&"
	  . (
		'profile=default',
		'destroy-profile=default',
		'profile=default&destroy-profile=default')[ $n - 1 ]
	  if over_kms();
	symlink shim_module($dir), "$dir/module$n.so";
	return keystore_uri($dir, 'nomp', "$dir/module$n.so");
}

# ---- the keystore hangs ----

{
	my @first = splice @cold, 0, $sessions;
	my @second = splice @cold, 0, $sessions;
	my ($probe, $later) = splice @cold, 0, 2;
	my $log_start = -s $node->logfile;
	my $calls = keystore_calls('unwrap');
	my ($trying, $said, $asker);

	keystore_has_trouble(unwrap => 'hangs');
	is_deeply(
		[ all_at_once(@first) ],
		[ map { [ 'NC004', '' ] } @first ],
		"$sessions sessions that wait for a keystore that hangs end");
	cmp_ok(
		keystore_calls('unwrap') - $calls,
		'<=',
		2 * $in_flight,
		'together, not one after the other');
	$node->wait_for_log(qr/the keystore does not answer/, $log_start);
	pass('the log says that the keystore is down');
	is(school_reads($node, 'warm'), 'Anna i warm', 'a school in use goes on');

	# from now on one waits, and nobody with it
	$asker = open_session($node);
	$calls = keystore_calls('unwrap');
	while (keystore_calls('unwrap') == $calls)
	{
		end_query($trying) if $trying;
		$trying = start_query($node, '/* tries */ ' . read_school($probe));
		wait_until(
			sub {
				$trying->{run}->pump_nb;
				!$trying->{run}->pumpable
				  || keystore_calls('unwrap') > $calls;
			},
			'one session to be let through, or refused');
	}
	$said = says($asker, answers(@second, $probe));
	is( $node->safe_psql(
			'postgres',
			"SELECT count(*) FROM pg_stat_activity WHERE query LIKE '/* tries */%' AND state = 'active'"
		),
		1,
		'one session tries, and while it waits');
	is( $said,
		'{"NC004": 51}',
		"$sessions others, and its own twin, are refused");
	cmp_ok(
		keystore_calls('unwrap') - $calls,
		'<=',
		over_kms() ? 2 : 1,
		'without asking the keystore, but for the one that tries');
	like(
		failure($node, read_school($later)),
		qr/^NC004: +the keystore is unavailable: \Q$silent\E$/m,
		'they are told why');
	is(keystore_state($node), $silent, 'and so is who asks for its state');
	is((end_query($trying))[0],
		'NC004', 'the one that tried is told the same');

	keystore_recovers();
	wait_until(sub { keystore_state($node) eq 'ok' },
		'the keystore to be back');
	$node->wait_for_log(qr/the keystore answers again/, $log_start);
	pass('when it is back, it is back, and the log says so');
	is( says($asker, answers(@first, @second, $probe, $later)),
		'{"right": ' . (2 * $sessions + 2) . '}',
		'and every school reads');
	$asker->quit;
}

# A service can be away in other ways, and those who wait learn it together; or
# nobody may ask it, which is known at once.
if (over_kms())
{
	my $aws = "$dir/aws-nomp";
	my @ids = splice @cold, 0, $sessions;
	my %outages = (
		'is not there' => {
			begin => sub { kill_double($aws) },
			end => sub { start_double($aws) },
			down => 1
		},
		'ends every connection' => {
			begin => sub { double_says($aws, 'down', on => \1) },
			end => \&keystore_recovers,
			down => 1
		},
		'knows nobody' => {
			begin => sub {
				rename "$aws/credentials", "$aws/away" or die $!;
				restart_helper($node);
			},
			end => sub { rename "$aws/away", "$aws/credentials" or die $! }
		});

	for my $what (sort keys %outages)
	{
		my $log_start = -s $node->logfile;

		$node->safe_psql('postgres',
			"SELECT nomp_crypt._wipe(uuid) FROM nomp_crypt.tenants WHERE id = ANY ('{@{[ join ',', @ids ]}}')"
		);
		my $calls = keystore_calls('unwrap');
		$outages{$what}->{begin}->();
		is_deeply(
			[ all_at_once(@ids) ],
			[ map { [ 'NC004', '' ] } @ids ],
			"a service that $what: $sessions sessions end");
		is(school_reads($node, 'warm'),
			'Anna i warm', "a service that $what: a school in use goes on");
		if ($outages{$what}->{down})
		{
			$node->wait_for_log(qr/the keystore does not answer/, $log_start);
			pass("a service that $what: the log says so");
		}
		$outages{$what}->{end}->();
		# one that was started anew counts anew
		cmp_ok(keystore_calls('unwrap'),
			'<=', $calls, "a service that $what: no key was unwrapped");
		wait_until(sub { keystore_state($node) eq 'ok' },
			'the keystore to be back');
		if ($outages{$what}->{down})
		{
			$node->wait_for_log(qr/the keystore answers again/, $log_start);
			pass("a service that $what: when it is back, the log says so");
		}
		is_deeply(
			[ all_at_once(@ids) ],
			[ map { [ '', "Anna i $_" ] } @ids ],
			"a service that $what: and every school reads");
	}
}

# A hang that passes costs those who wait their answer, and nobody else.
{
	my ($unlucky, @next) = splice @cold, 0, 4;

	keystore_has_trouble(unwrap => 'once hangs');
	is( school_reads($node, $unlucky),
		over_kms() ? "Anna i $unlucky" : 'NC004',
		'one call hangs');
	is(school_reads($node, $_), "Anna i $_", 'the next is answered at once')
	  for @next;
}

# Slow, but not dead.
{
	my @slow = splice @cold, 0, 10;

	keystore_has_trouble(unwrap => 100);
	is_deeply(
		[ all_at_once(@slow) ],
		[ map { [ '', "Anna i $_" ] } @slow ],
		'a slow keystore answers everybody');
	keystore_recovers();
}

# ---- it is back, and everybody wants his keys ----

{
	my @wanted = splice @cold, 0, 10;
	my $calls;

	restart_helper($node);
	is(keystore_state($node), 'ok', 'a new helper');
	$calls = keystore_calls('unwrap');
	keystore_has_trouble(unwrap => 20);
	is_deeply(
		[ all_at_once(map { ($_) x 5 } @wanted) ],
		[ map { [ '', "Anna i $_" ] } map { ($_) x 5 } @wanted ],
		'fifty sessions of ten schools are answered');
	is(keystore_calls('unwrap') - $calls,
		20, 'each of the twenty keys was unwrapped once');
	keystore_recovers();
}

# ---- settings are reloaded while sessions wait ----

{
	my ($first, $second) = splice @cold, 0, 2;
	my $generated = keystore_calls('create');
	my $calls = keystore_calls('unwrap');
	my @queries;
	my $creating;

	keystore_has_trouble(unwrap => 'holds');
	@queries = map { start_query($node, read_school($_)) } $first, $second;
	wait_for_calls('unwrap', $calls + 1);
	for my $name (1, 2)
	{
		set_keystore($node, renamed($name));
		wait_for_calls('unwrap', $calls + 1 + $name);
	}
	keystore_recovers();
	is_deeply(
		[ map { [ end_query($_) ] } @queries ],
		[ [ '', "Anna i $first" ], [ '', "Anna i $second" ] ],
		'the keystore setting is changed twice, and who waits is answered');

	keystore_has_trouble(create => 'holds');
	$creating = start_query($node, q(SELECT nomp_crypt.create_tenant('new')));
	wait_for_calls('create', $generated + 1);
	set_keystore($node, renamed(3));
	$queries[0] = start_query($node, read_school(shift @cold));
	keystore_recovers();
	is((end_query($creating))[0],
		'', 'a school that is being created is created');
	is((end_query($queries[0]))[0], '',
		'and who waits behind it is answered');
	is(keystore_calls('create') - $generated, 1, 'its key was made once');
}

# ---- hundreds of keys are due at once ----

{
	my @ids = map { "m$_" } 1 .. $many;
	my $list = join ',', @ids;
	my $calls;
	my $log_start;

	$node->safe_psql('postgres', <<"SQL");
CALL nomp_crypt.create_tenants('{$list}');
INSERT INTO pupil (id, school, name)
SELECT 10000 + i, 'm' || i, nomp_crypt.encrypt('Anna i m' || i, 'm' || i)
FROM generate_series(1, $many) i;
SQL
	$node->restart;
	is( $node->safe_psql('postgres', answers(@ids)),
		qq({"right": $many}),
		"$many schools read");

	# so slow that with an interval of 1 s they are never all done
	$calls = keystore_calls('unwrap');
	keystore_has_trouble(unwrap => over_kms() ? 1000 : 10);
	set_and_reload($node, 'nomp_crypt.key_check_interval', '1s');
	wait_for_calls('unwrap', $calls + 20);
	$calls = keystore_calls('unwrap');
	is( school_reads($node, $cold[0]),
		"Anna i $cold[0]",
		'a session that needs another key is answered');
	cmp_ok(keystore_calls('unwrap') - $calls,
		'<', $many / 2, 'before the checks are done');

	# the one that was put in last comes last
	$log_start = -s $node->logfile;
	delete_from_token($dir, 'nomp', my $label = kek_label($node, "m$many"));
	$node->wait_for_log(qr/the keystore no longer has the key "\Q$label\E"/,
		$log_start);
	pass('a keystore that is too slow for the interval is asked for all');
	keystore_recovers();
}

is(broken_rules(), '', "the helper keeps to PKCS#11's rules");
$node->stop;
done_testing();
