# Neither hardware nor a service fails one function at a time.  So: a keystore of
# which one call in twenty, or more, fails, in one of many ways, is late, hangs,
# crashes or is done without an answer, while sessions read, write, create schools and erase them.  Whatever happens, a
# session gets the right plaintext or NC004; what was committed can be read when
# the keystore is well again, what was erased has no key left in the token, and
# what failed halfway can be cleaned up.  The seed is printed; NOMP_SEED repeats
# it, as far as sessions can be repeated.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Certified;
use JSON::PP ();
use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Troubles;

my $seed = $ENV{NOMP_SEED} // int rand 2**31;
my $rounds = 60;
# what a service refuses is tried again before anybody hears of it
my $percent = over_kms() ? 25 : 5;
# and is looked at for more than a second before a key is said to be gone
my $timeout = over_kms() ? '2s' : '1s';
my @schools = map { "s$_" } 1 .. 20;

note "seed $seed";

my $node = nomp_node('main');
my $dir = $node->{nomp_dir};

$node->append_conf('postgresql.conf', <<"CONF");
nomp_crypt.keystore = '@{[ frail_keystore($dir, 'nomp') ]}'
nomp_crypt.key_check_interval = 1s
nomp_crypt.key_lease = 1s
log_statement = none
CONF
$node->start;
cold_schools($node, @schools);
set_and_reload($node, 'nomp_crypt.keystore_timeout', $timeout);

# Each does one thing after the other and counts what it is answered.
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE written (school text, name encrypted(text), plain text);
CREATE FUNCTION attempt(school text, i int) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	said text;
BEGIN
	IF i % 3 = 0 THEN
		INSERT INTO written SELECT attempt.school, nomp_crypt.encrypt('Bo ' || i, attempt.school), 'Bo ' || i;
		RETURN 'right';
	END IF;
	SELECT nomp_crypt.decrypt(p.name) INTO said FROM pupil p WHERE p.school = attempt.school;
	RETURN CASE WHEN said = 'Anna i ' || attempt.school THEN 'right' ELSE 'wrong: ' || said END;
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END
$$;
CREATE FUNCTION attempts(schools text[], rounds int) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	said text;
	tally jsonb := '{}';
BEGIN
	FOR i IN 1 .. rounds LOOP
		said := attempt(schools[1 + mod(i * 7, cardinality(schools))], i);
		tally := tally || jsonb_build_object(said, coalesce((tally ->> said)::int, 0) + 1);
		PERFORM pg_sleep(0.1);
	END LOOP;
	RETURN tally::text;
END
$$;
SQL

# How many keys a school has in the keystore.
sub keys_of
{
	my ($school) = @_;
	my $uuid = $node->safe_psql('postgres',
		"SELECT uuid FROM nomp_crypt.tenants WHERE id = '$school'");

	return scalar grep { /:\Q$uuid\E:/ } token_labels($dir, 'nomp');
}

# Are its keys gone because of a call whose answer was lost?  KMS destroys none
# so soon, and that is said.
sub gone_too_soon
{
	my ($school, $said) = @_;

	return over_kms() && $said eq 'NC003' && keys_of($school) == 0;
}

# The keystore is sick.
my @workers;
my (%answers, %created, %erased);

sub start_workers
{
	push @workers,
	  start_query($node,
		"SELECT attempts('{" . join(',', @schools) . "}', $rounds)")
	  for 1 .. 4;
	return;
}

sub end_workers
{
	while (my $worker = shift @workers)
	{
		my ($state, $out) = end_query($worker);
		my $tally =
		  $state eq '' ? JSON::PP->new->decode($out) : { $state => 1 };

		$answers{$_} += $tally->{$_} for keys %$tally;
	}
	return;
}

keystore_is_sick($seed, $percent);
restart_helper($node);
start_workers();
for my $i (1 .. 12)
{
	$created{"new$i"} =
	  sqlstate($node, "SELECT nomp_crypt.create_tenant('new$i')");
	$erased{"s$i"} =
	  sqlstate($node, "CALL nomp_crypt.erase_tenant('s$i', 'test')")
	  if $i <= 6;
}
end_workers();
# chance may have spared them all, or none: then they go on
for (1 .. 30)
{
	last if $answers{right} && $answers{NC004};
	start_workers();
	end_workers();
}
note join ', ', map { "$_: $answers{$_}" } sort keys %answers;
note join ', ', map { "$_: '$created{$_}'" } sort keys %created;
note join ', ', map { "$_: '$erased{$_}'" } sort keys %erased;
is(join(' ', grep { !/^(right|NC00[124])$/ } sort keys %answers),
	'', 'sessions get the right answer or none');
cmp_ok($answers{right} // 0, '>', 0, 'some get the right one');
cmp_ok($answers{NC004} // 0,
	'>', 0, 'and some are told that the keystore is unavailable');
is(join(' ', grep { !/^(NC004|)$/ } values %created),
	'', 'a school is created or the keystore unavailable');
is( join(
		' ',
		grep {
			$erased{$_} !~ /^(NC004|)$/
			  && !gone_too_soon($_, $erased{$_})
		  }
		  sort keys %erased),
	'',
	'erased, or the keystore unavailable');
unlike(
	slurp_file($node->logfile),
	qr/PANIC|all server processes terminated/,
	'the server noticed nothing worse');

# It is well again, and whoever asks it has the time that he needs.
keystore_recovers();
set_and_reload($node, 'nomp_crypt.keystore_timeout', '1min');
set_and_reload($node, 'nomp_crypt.key_lease', '1h');
restart_helper($node);
wait_until(sub { keystore_state($node) eq 'ok' }, 'the keystore to be well');
for my $school (sort keys %erased)
{
	my $call = "CALL nomp_crypt.erase_tenant('$school', 'test')";
	my $said = sqlstate($node, $call);

	if (gone_too_soon($school, $said))
	{
		is(submitted_long_ago($node, $school),
			'submitted', "the keys of $school are gone too soon");
		$said = sqlstate($node, $call);
	}
	is($said, '', "the erasure of $school is completed, or was");
	is(school_reads($node, $school), 'NC001', 'so that it is erased');
	is(keys_of($school), 0, 'and has no key in the keystore');
}
is(school_reads($node, $_), "Anna i $_", "$_ reads")
  for grep { !exists $erased{$_} } @schools;
is( $node->safe_psql(
		'postgres',
		'SELECT count(*) FROM written WHERE school <> ALL (' . "'{"
		  . join(',', sort keys %erased)
		  . "}') AND nomp_crypt.decrypt(name) <> plain"),
	'0',
	'what was written reads');
for my $school (sort keys %created)
{
	sqlstate($node, "SELECT nomp_crypt.create_tenant('$school')")
	  if $created{$school} ne '';
	is( $node->safe_psql(
			'postgres', "SELECT nomp_crypt.encrypt('Eva', '$school')::text"),
		'Eva',
		"$school can be used"
		  . ($created{$school} ne '' ? ', created once more' : ''));
}
$node->safe_psql('postgres',
	"SELECT nomp_crypt.reconcile_keystore(true, '0')");
keys_are_lasting($dir, 'nomp');
is( join(' ',
		sort(grep { !/:canary$|:register:/ } token_labels($dir, 'nomp'))),
	join(
		' ',
		sort split /\n/,
		$node->safe_psql(
			'postgres',
			"SELECT label FROM nomp_crypt.kek WHERE state <> 'destroyed'")),
	'and after cleaning up the token has the keys it should have');

is(broken_rules(), '', "the helper keeps to PKCS#11's rules");
$node->stop;
done_testing();
