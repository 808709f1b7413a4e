# A standby reads what the primary reads, with the same keystore, and stops
# reading what the primary erases: when it has replayed the news, and if it
# does not replay them, when the keystore is asked again or the lease of its
# keys is over.  It destroys nothing, nor does the primary it may become,
# until somebody says that it takes the other's place.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my @schools = qw(replayed paused leased later living);

my $primary = nomp_node('primary', allows_streaming => 1);
my $dir = $primary->{nomp_dir};

# little memory to search
$primary->append_conf('postgresql.conf', <<'CONF');
shared_buffers = 2MB
nomp_crypt.max_cached_keys = 100
CONF
$primary->start;
create_nomp($primary, @schools);
for my $i (0 .. $#schools)
{
	$primary->safe_psql(
		'postgres',
		in_tenant(
			$schools[$i],
			"INSERT INTO pupil VALUES ($i, '$schools[$i]', 'Anna', '')"));
}

$primary->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
mkdir "$dir/register-standby", 0700;
$standby->append_conf('postgresql.conf', <<"CONF");
nomp_crypt.register_directory = '$dir/register-standby'
nomp_crypt.key_check_interval = 1h
CONF
$standby->start;
$primary->wait_for_catchup($standby);

sub read_sql
{
	my ($school) = @_;

	return "SELECT name FROM pupil WHERE school = '$school'";
}

# What reading that school's values on a node gives: SQLSTATE or plaintext.
sub reading
{
	my ($node, $school) = @_;

	return outcome($node, in_tenant($school, read_sql($school)));
}

sub erase
{
	my ($node, $school) = @_;

	return sqlstate($node, "CALL nomp_crypt.erase_tenant('$school', 'test')");
}

# A session on the standby that has read a school in its transaction.
sub reader
{
	my ($school, $isolation) = @_;
	my $session = open_session($standby);

	$session->query_safe("BEGIN ISOLATION LEVEL $isolation;"
		  . " SET LOCAL nomp_crypt.tenant = '$school'");
	is($session->query_safe(read_sql($school)),
		'Anna', "a session on the standby reads $school ($isolation)");
	return $session;
}

# In how many places of the standby's memory a school's keys are.
sub traces
{
	my (%keys) = @_;
	my $found = find_in_memory($standby, grep { length == 32 } values %keys);

	return scalar map { @$_ } values %$found;
}

sub pause_replay
{
	$standby->safe_psql('postgres', 'SELECT pg_wal_replay_pause()');
	$standby->poll_query_until('postgres',
		'SELECT pg_get_wal_replay_pause_state()', 'paused')
	  or die 'replay does not pause';
	return;
}

sub resume_replay
{
	$standby->safe_psql('postgres', 'SELECT pg_wal_replay_resume()');
	$primary->wait_for_catchup($standby);
	return;
}

sub state_on_standby
{
	my ($school) = @_;

	return $standby->safe_psql('postgres',
		"SELECT state FROM nomp_crypt.tenants WHERE id = '$school'");
}

# It reads, and no more than that.
is(reading($standby, $_), 'Anna', "the standby reads $_")
  for grep { $_ ne 'leased' } @schools;
{
	my $keys = join ' ', sort(token_labels($dir, 'nomp'));
	my %refused = (
		create_tenant => "SELECT nomp_crypt.create_tenant('new')",
		create_tenants => "CALL nomp_crypt.create_tenants('{new}')",
		erase_tenant => "CALL nomp_crypt.erase_tenant('living', 'test')",
		rotate_tenant => "SELECT nomp_crypt.rotate_tenant('living')",
		rewrap_tenant => "SELECT nomp_crypt.rewrap_tenant('living')",
		rotate_all => "CALL nomp_crypt.rotate_all('0')",
		suspend_tenant => "CALL nomp_crypt.suspend_tenant('living')",
		resume_tenant => "CALL nomp_crypt.resume_tenant('living')",
		destroy_expired_keks => 'CALL nomp_crypt.destroy_expired_keks()',
		adopt_keystore => 'SELECT nomp_crypt.adopt_keystore()',
		reconcile_keystore =>
		  "SELECT nomp_crypt.reconcile_keystore(true, '0')");

	for my $name (sort keys %refused)
	{
		is(sqlstate($standby, $refused{$name}),
			'25006', "$name is refused on the standby");
	}
	is(join(' ', sort(token_labels($dir, 'nomp'))),
		$keys, 'and nothing happened in the keystore');
	is(reading($standby, 'living'), 'Anna', 'it reads on');
}

# Erased on the primary, replayed on the standby.
{
	my @sessions =
	  map { reader('replayed', $_) } ('READ COMMITTED', 'REPEATABLE READ');
	my $other = reader('living', 'READ COMMITTED');
	my $busy = reader('replayed', 'READ COMMITTED');
	my %keys = school_keys($primary, $dir, 'replayed');

	starts($busy,
			"DO \$\$DECLARE n bigint := 0; BEGIN"
		  . " PERFORM set_config('application_name', 'looping', false);"
		  . " LOOP n := n + 1; END LOOP; END\$\$");
	$standby->poll_query_until('postgres',
			"SELECT EXISTS (SELECT FROM pg_stat_activity"
		  . " WHERE application_name = 'looping')")
	  or die 'the busy session does not begin';

	cmp_ok(traces(%keys), '>=', 4,
		'its keys are in the shared memory and those sessions');
	is(erase($primary, 'replayed'), '', 'a school is erased on the primary');
	$primary->wait_for_catchup($standby);
	is(reading($standby, 'replayed'),
		'NC001', 'a new session on the standby says erased');
	# it tells the others, which need not begin a statement for it, nor end one;
	# the one that is busy with something else is terminated
	ok( wait_until(
			sub { traces(%keys) == 0 },
			'the sessions on the standby to wipe'),
		'no process of the standby has its keys any more');
	is(says($_, read_sql('replayed')),
		'NC001', 'a session that had read it says erased too')
	  for @sessions;
	is(says($other, read_sql('living')),
		'Anna', "another school's session reads on");
	$standby->safe_psql('postgres',
			"SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
		  . " WHERE application_name = 'looping'");
	$busy->{run}->finish;
	$_->quit for @sessions, $other;
}

# Replay is paused; the keystore is asked every second.
{
	$standby->append_conf('postgresql.conf',
		'nomp_crypt.key_check_interval = 1s');
	$standby->reload;
	$standby->poll_query_until('postgres',
		'SHOW nomp_crypt.key_check_interval', '1s')
	  or die 'the setting did not change';
	pause_replay();
	my $session = reader('paused', 'READ COMMITTED');
	my $other = reader('living', 'READ COMMITTED');

	is(erase($primary, 'paused'),
		'', 'a school is erased while the standby does not replay');
	wait_until(sub { reading($standby, 'paused') ne 'Anna' },
		'the standby to ask the keystore');
	is(reading($standby, 'paused'),
		'NC003', 'the standby stops reading: its key is unknown, not erased');
	is(says($session, read_sql('paused')),
		'NC003', 'in a session that had read it as well');
	is(state_on_standby('paused'), 'active', 'though it has not heard of it');
	is(says($other, read_sql('living')),
		'Anna', "another school's session reads on");
	is(reading($standby, 'living'), 'Anna', 'and so do new ones');
	$_->quit for $session, $other;
	resume_replay();
	is(reading($standby, 'paused'), 'NC001', 'after replay it is erased');
}

# Replay is paused and nobody asks the keystore: the lease ends.
{
	$standby->append_conf('postgresql.conf', <<'CONF');
nomp_crypt.key_check_interval = 1h
nomp_crypt.key_lease = 2s
CONF
	$standby->restart;    # no check is due for an hour
	pause_replay();
	my $session = reader('leased', 'READ COMMITTED');

	is(erase($primary, 'leased'),
		'', 'a school is erased while nobody asks the keystore');
	wait_until(sub { reading($standby, 'leased') ne 'Anna' },
		'the lease to end');
	is(reading($standby, 'leased'),
		'NC003', 'when the lease ends the standby stops reading');
	is(says($session, read_sql('leased')),
		'NC003', 'in a session that had read it as well');
	is(state_on_standby('leased'), 'active', 'though it has not heard of it');
	is(reading($standby, 'living'), 'Anna', 'a living school reads on');
	$session->quit;
	resume_replay();
	is(reading($standby, 'leased'), 'NC001', 'after replay it is erased');
}

# Failover.
{
	my $session = open_session($standby);

	is($session->query_safe(in_tenant('living', read_sql('living'))),
		'Anna', 'a session reads before the promotion');
	$primary->wait_for_catchup($standby);
	$primary->stop;
	$standby->promote;
	is($session->query_safe(in_tenant('living', read_sql('living'))),
		'Anna', 'and after it');
	$session->query_safe(
		in_tenant(
			'living', "INSERT INTO pupil VALUES (100, 'living', 'Berit', '')")
	);
	is( $session->query_safe(
			in_tenant('living', 'SELECT name FROM pupil WHERE id = 100')),
		'Berit',
		'the new primary encrypts');
	$session->quit;

	my $keys = join ' ', sort(token_labels($dir, 'nomp'));
	is(sqlstate($standby, "SELECT nomp_crypt.create_tenant('new')"),
		'55000', 'it creates no keys of its own accord');
	is(erase($standby, 'later'), '55000', 'nor destroys any');
	is( sqlstate($standby, "SELECT nomp_crypt.reconcile_keystore(true, '0')"),
		'55000',
		'nor cleans up');
	is(join(' ', sort(token_labels($dir, 'nomp'))),
		$keys, 'nothing happened in the keystore');
	is(reading($standby, 'later'), 'Anna', 'the school reads on');

	is(sqlstate($standby, 'SELECT nomp_crypt.adopt_keystore()'),
		'', 'it adopts the keystore when told');
	is(sqlstate($standby, "SELECT nomp_crypt.create_tenant('new')"),
		'', 'and then creates tenants');
	is(erase($standby, 'later'), '', 'and erases them');
	is(reading($standby, 'later'), 'NC001', 'so that they are erased');
	is(reading($standby, $_), 'NC001', "$_ has stayed erased")
	  for qw(replayed paused leased);
	is(reading($standby, 'living'), "Anna\nBerit", 'the living school reads');
}

$standby->stop;
done_testing();
