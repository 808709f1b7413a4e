# A call that erases or certifies waits: for standbys, for sessions that hold
# keys, for a keystore, for another session's lock, for other nodes.  At each of
# these somebody presses Ctrl-C, or the client goes away.  The call ends with an
# error that says what it is, or goes on; nothing is destroyed that was not
# fenced; and when it is repeated it ends in the same certified state.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Certified;
use IO::Socket::UNIX;
use IPC::Run;
use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = nomp_node('main', allows_streaming => 1);
my $dir = $node->{nomp_dir};
my $uri = frail_keystore($dir, 'nomp');
$node->append_conf('postgresql.conf', <<"CONF");
nomp_crypt.keystore = '$uri'
nomp_crypt.keystore_timeout = '120s'
client_connection_check_interval = '100ms'
CONF
$node->start;
create_nomp($node);

sub one { return $node->safe_psql('postgres', $_[0]) }

sub set
{
	my ($name, $value) = @_;

	one("ALTER SYSTEM SET $name = '$value'");
	$node->reload;
	$node->poll_query_until('postgres', "SHOW $name", $value) or die $name;
	return;
}

sub new_school
{
	my ($id) = @_;

	one("SELECT nomp_crypt.create_tenant('$id')");
	one("INSERT INTO pupil SELECT count(*), '$id', nomp_crypt.encrypt('Anna i $id', '$id') FROM pupil"
	);
	return;
}

sub case_of
{
	my ($id, $what) = @_;

	return one(
		"SELECT $what FROM nomp_crypt.erasure e JOIN nomp_crypt.tenant t ON t.uuid = e.tenant WHERE t.id = '$id'"
	);
}

sub acknowledge
{
	my ($id) = @_;

	one(    "SELECT nomp_crypt.acknowledge_lease('"
		  . case_of($id, 'e.case_id')
		  . "')");
	return;
}

sub erase_call
{
	return "CALL nomp_crypt.erase_tenant('$_[0]', 'test', 'PUB-1')";
}
sub certify_call { return "CALL nomp_crypt.certify_erasure('$_[0]')" }

# The session's wait, by its name there; for a little while, so that it is not
# one that everybody has.
sub waits
{
	my ($id, $event) = @_;
	my $seen = 0;

	wait_until(
		sub {
			my $now = one(
				"SELECT count(*) FROM pg_stat_activity WHERE application_name = 'call $id' AND wait_event_type || ' ' || wait_event ~ '$event'"
			);

			$seen = $now ? $seen + 1 : 0;
			return $seen >= 4;
		},
		"$id to wait: $event");
	return;
}

# Each wait: how it is begun (before and after the call) and ended.
my ($other, $reader);
my $mute_dir = PostgreSQL::Test::Utils::tempdir_short();
my $mute =
  IO::Socket::UNIX->new(Local => "$mute_dir/.s.PGSQL.5432", Listen => 5)
  or die "no socket: $!";
my $mute_uri =
	'postgresql://'
  . ($mute_dir =~ s/([^A-Za-z0-9_.-])/sprintf '%%%02x', ord $1/ger)
  . '/postgres';

my %waits = (
	standbys => {
		call => \&erase_call,
		event => 'SyncRep',
		# the request's commit is not what is meant
		before => sub {
			my ($id) = @_;

			one("SELECT nomp_crypt._erase_request('$id', 'test', 'PUB-1')");
			set('synchronous_standby_names', 'nobody');
		},
		after => sub { set('synchronous_standby_names', '') },
		goes_on => 1
	},
	'sessions that hold keys' => {
		call => \&erase_call,
		event => 'Extension',
		before => sub {
			my ($id) = @_;

			$reader = open_session($node);
			says($reader,
				"BEGIN; SET LOCAL nomp_crypt.tenant = '$id'; SELECT name FROM pupil WHERE school = '$id'"
			);
			$reader->{stopped} = says($reader, 'SELECT pg_backend_pid()');
			kill 'STOP', $reader->{stopped};
		},
		after => sub {
			kill 'CONT', $reader->{stopped};
			$reader->{run}->finish if !eval { $reader->quit; 1 };
		}
	},
	'a keystore that hangs before the fence' => {
		call => \&erase_call,
		event => 'Extension',
		before => sub { keystore_has_trouble(find => 'holds') },
		after => \&keystore_recovers
	},
	'a keystore that hangs when it destroys' => {
		call => \&erase_call,
		event => 'Extension',
		before => sub { keystore_has_trouble(destroy => 'holds') },
		# a service goes on with what nobody waits for any more; in a token the
		# register's old head hangs, before it is the key's turn
		after => sub {
			my ($id) = @_;
			my $uuid = case_of($id, 't.uuid');

			keystore_recovers();
			wait_until(
				sub {
					!grep { /:\Q$uuid\E:/ } token_labels($dir, 'nomp');
				},
				'the keystore to destroy the key') if over_kms();
		},
		lost => 1
	},
	"another session's lock on the school" => {
		call => \&erase_call,
		event => 'Lock',
		before => sub {
			my ($id) = @_;

			$other = open_session($node);
			says($other,
				"BEGIN; SELECT FROM nomp_crypt.tenant WHERE id = '$id' FOR UPDATE"
			);
		},
		after => sub { $other->quit }
	},
	"another session's lock on the case" => {
		call => \&erase_call,
		event => 'Lock',
		before => sub {
			my ($id) = @_;

			one("SELECT nomp_crypt._erase_request('$id', 'test', 'PUB-1')");
			$other = open_session($node);
			says($other, 'BEGIN; SELECT FROM nomp_crypt.erasure FOR UPDATE');
		},
		after => sub { $other->quit }
	},
	"another session's record in the register" => {
		call => \&erase_call,
		event => 'Lock',
		before => sub {
			$other = open_session($node);
			says($other, 'BEGIN; SELECT nomp_crypt._lock_register()');
		},
		after => sub { $other->quit }
	},
	"nodes that say nothing" => {
		call => \&certify_call,
		event => 'Extension',
		before => sub {
			my ($id) = @_;

			one(erase_call($id));
			acknowledge($id);
			set('nomp_crypt.nodes', $mute_uri);
		},
		after => sub { set('nomp_crypt.nodes', '') }
	},
	'a keystore that hangs when it is certified' => {
		call => \&certify_call,
		event => 'Extension',
		before => sub {
			my ($id) = @_;

			one(erase_call($id));
			acknowledge($id);
			keystore_has_trouble(find => 'holds');
		},
		after => \&keystore_recovers
	});

# What somebody does; then the call has ended, and its error.
my %interruptions = (
	'Ctrl-C' => sub {
		my ($id, $call, $wait) = @_;

		one("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE application_name = 'call $id'"
		);
		# a wait for standbys is only left; the next step waits again, or refuses
		if ($wait->{goes_on})
		{
			wait_until(
				sub {
					one("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE application_name = 'call $id' AND wait_event = 'SyncRep'"
					);
					$call->{run}->pump_nb;
					return !$call->{run}->pumpable;
				},
				'the call to end');
		}
		$call->{run}->finish;
		like(
			$call->{err},
			$wait->{goes_on}
			? qr/ERROR:  55000: the last step has not reached the synchronous standbys/
			: qr/ERROR:  57014: canceling statement due to user request/,
			'it ends with an error that says why');
		return;
	},
	'the client is gone' => sub {
		my ($id, $call, $wait) = @_;
		my $pid = one(
			"SELECT pid FROM pg_stat_activity WHERE application_name = 'call $id'"
		);

		$call->{run}->kill_kill(grace => 0);
		# PostgreSQL does not look after its client while it waits for standbys
		$wait->{after}->() if $wait->{goes_on};
		wait_until(sub { !-e "/proc/$pid" }, 'its session to end');
		return;
	});

my $number = 0;
for my $name (sort keys %waits)
{
	for my $how (sort keys %interruptions)
	{
		my $wait = $waits{$name};
		my $id = 's' . ++$number;
		my $call = { out => '', err => '' };

		subtest "$how at $name" => sub {
			new_school($id);
			$wait->{before}->($id);
			$call->{run} = IPC::Run::start(
				[
					'psql',
					'-XAtq',
					'-v',
					'VERBOSITY=verbose',
					'-d',
					$node->connstr('postgres')
					  . " application_name='call $id'",
					'-c',
					$wait->{call}->($id)
				],
				'<',
				\'',
				'>',
				\$call->{out},
				'2>',
				\$call->{err},
				IPC::Run::timeout(180));
			waits($id, $wait->{event});
			$interruptions{$how}->($id, $call, $wait);
			my $late = $how ne 'Ctrl-C' && $wait->{goes_on};
			$wait->{after}->($id) unless $late;
			isnt(school_reads($node, $id),
				"Anna i $id", 'the school does not read')
			  if case_of($id, 'count(*)');

			if ($wait->{lost})
			{
				repeats_lost_destruction($node, erase_call($id), $id, $id);
			}
			else
			{
				is(sqlstate($node, erase_call($id)),
					'', 'the call is repeated');
			}
			acknowledge($id) if case_of($id, 'e.state') eq 'destroyed';
			is(sqlstate($node, certify_call($id)), '', 'and certified');
			is(uncertified($node, [ token_labels($dir, 'nomp') ], $id),
				'', 'everything is as it must be');
		};
	}
}

$node->stop;
done_testing();
