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

use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Troubles;

my $sessions = 50;
my $many = 300;

my $node = nomp_node('main');
my $dir = $node->{nomp_dir};
my $module = shim_module($dir);

shim_says();
$node->append_conf('postgresql.conf', <<"CONF");
nomp_crypt.keystore = '@{[ keystore_uri($dir, 'nomp', $module) ]}'
nomp_crypt.keystore_timeout = 4s
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
	my ($function, $n) = @_;

	wait_until(sub { shim_calls($function) >= $n }, "call $n of $function");
	return;
}

# ---- the keystore hangs ----

{
	my @first = splice @cold, 0, $sessions;
	my @second = splice @cold, 0, $sessions;
	my ($probe, $later) = splice @cold, 0, 2;
	my $log_start = -s $node->logfile;
	my $calls = shim_calls('C_Decrypt');
	my ($trying, $said, $asker);

	shim_says('C_Decrypt hang');
	is_deeply(
		[ all_at_once(@first) ],
		[ map { [ 'NC004', '' ] } @first ],
		"$sessions sessions that wait for a keystore that hangs end");
	cmp_ok(shim_calls('C_Decrypt') - $calls,
		'<=', 2, 'together, not one after the other');
	$node->wait_for_log(qr/the keystore does not answer/, $log_start);
	pass('the log says that the keystore is down');
	is(school_reads($node, 'warm'), 'Anna i warm', 'a school in use goes on');

	# from now on one waits, and nobody with it
	$asker = open_session($node);
	$calls = shim_calls('C_Decrypt');
	while (shim_calls('C_Decrypt') == $calls)
	{
		end_query($trying) if $trying;
		$trying = start_query($node, '/* tries */ ' . read_school($probe));
		wait_until(
			sub {
				$trying->{run}->pump_nb;
				!$trying->{run}->pumpable || shim_calls('C_Decrypt') > $calls;
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
	is(shim_calls('C_Decrypt') - $calls, 1, 'without asking the keystore');
	like(
		failure($node, read_school($later)),
		qr/^NC004: +the keystore is unavailable: it did not answer in time$/m,
		'they are told why');
	is( keystore_state($node),
		'it did not answer in time',
		'and so is who asks for its state');
	is((end_query($trying))[0],
		'NC004', 'the one that tried is told the same');

	shim_says();
	wait_until(sub { keystore_state($node) eq 'ok' },
		'the keystore to be back');
	$node->wait_for_log(qr/the keystore answers again/, $log_start);
	pass('when it is back, it is back, and the log says so');
	is( says($asker, answers(@first, @second, $probe, $later)),
		'{"right": ' . (2 * $sessions + 2) . '}',
		'and every school reads');
	$asker->quit;
}

# A hang that passes costs those who wait their answer, and nobody else.
{
	my ($unlucky, @next) = splice @cold, 0, 4;

	shim_says('C_Decrypt hang once');
	is(school_reads($node, $unlucky), 'NC004', 'one call hangs');
	is(school_reads($node, $_), "Anna i $_", 'the next is answered at once')
	  for @next;
}

# Slow, but not dead.
{
	my @slow = splice @cold, 0, 10;

	shim_says('C_Decrypt delay=100');
	is_deeply(
		[ all_at_once(@slow) ],
		[ map { [ '', "Anna i $_" ] } @slow ],
		'a slow keystore answers everybody');
	shim_says();
}

# ---- it is back, and everybody wants his keys ----

{
	my @wanted = splice @cold, 0, 10;
	my $calls;

	restart_helper($node);
	is(keystore_state($node), 'ok', 'a new helper');
	$calls = shim_calls('C_Decrypt');
	shim_says('C_Decrypt delay=20');
	is_deeply(
		[ all_at_once(map { ($_) x 5 } @wanted) ],
		[ map { [ '', "Anna i $_" ] } map { ($_) x 5 } @wanted ],
		'fifty sessions of ten schools are answered');
	is(shim_calls('C_Decrypt') - $calls,
		20, 'each of the twenty keys was unwrapped once');
	shim_says();
}

# ---- settings are reloaded while sessions wait ----

{
	my ($first, $second) = splice @cold, 0, 2;
	my $generated = shim_calls('C_GenerateKey');
	my $calls = shim_calls('C_Decrypt');
	my @queries;
	my $creating;

	# the same keystore by other names
	symlink $module, "$dir/module$_.so" for 1 .. 3;
	shim_says('C_Decrypt hold');
	@queries = map { start_query($node, read_school($_)) } $first, $second;
	wait_for_calls('C_Decrypt', $calls + 1);
	for my $name (1, 2)
	{
		set_keystore($node,
			keystore_uri($dir, 'nomp', "$dir/module$name.so"));
		wait_for_calls('C_Decrypt', $calls + 1 + $name);
	}
	shim_says();
	is_deeply(
		[ map { [ end_query($_) ] } @queries ],
		[ [ '', "Anna i $first" ], [ '', "Anna i $second" ] ],
		'the keystore setting is changed twice, and who waits is answered');

	shim_says('C_GenerateKey hold');
	$creating = start_query($node, q(SELECT nomp_crypt.create_tenant('new')));
	wait_for_calls('C_GenerateKey', $generated + 1);
	set_keystore($node, keystore_uri($dir, 'nomp', "$dir/module3.so"));
	$queries[0] = start_query($node, read_school(shift @cold));
	shim_says();
	is((end_query($creating))[0],
		'', 'a school that is being created is created');
	is((end_query($queries[0]))[0], '',
		'and who waits behind it is answered');
	is(shim_calls('C_GenerateKey') - $generated, 1, 'its key was made once');
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

	# each check takes 10 ms and the interval is 1 s: they are never all done
	$calls = shim_calls('C_Decrypt');
	shim_says('C_Decrypt delay=10');
	set_and_reload($node, 'nomp_crypt.key_check_interval', '1s');
	wait_for_calls('C_Decrypt', $calls + 20);
	$calls = shim_calls('C_Decrypt');
	is( school_reads($node, $cold[0]),
		"Anna i $cold[0]",
		'a session that needs another key is answered');
	cmp_ok(shim_calls('C_Decrypt') - $calls,
		'<', $many / 2, 'before the checks are done');

	# the one that was put in last comes last
	$log_start = -s $node->logfile;
	delete_from_token($dir, 'nomp', my $label = kek_label($node, "m$many"));
	$node->wait_for_log(qr/the keystore no longer has the key "\Q$label\E"/,
		$log_start);
	pass('a keystore that is too slow for the interval is asked for all');
	shim_says();
}

is(broken_rules(), '', "the helper keeps to PKCS#11's rules");
$node->stop;
done_testing();
