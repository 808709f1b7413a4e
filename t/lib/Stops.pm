# Stops.pm: sessions that stop at a named point, so that a test can kill or
# cancel something there.  The points are those of test/stops_module.c.

package Stops;

use strict;
use warnings;

use Exporter 'import';
use FindBin;
use IPC::Run;
use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

our @EXPORT = qw(stops_conf stop_at stopped await_stops go_on ended
  passed_points interruptions travel);

# stops_conf(NODE): its sessions can be stopped; the files are in a folder
# beside its register.
sub stops_conf
{
	my ($node) = @_;
	my $module = "$FindBin::RealBin/../test/stops_module";
	my $folder = "$node->{nomp_dir}/stops-" . $node->name;

	die "$module.so is not built: make test-programs" unless -e "$module.so";
	mkdir $folder, 0700 or die $!;
	$node->{stops} = $folder;
	$node->append_conf('postgresql.conf', <<"CONF");
shared_preload_libraries = 'nomp_crypt, $module'
stops.folder = '$folder'
CONF
	return;
}

# stop_at(NODE, NAME, POINT, DATABASE, BEFORE, SQL...): a session that runs these
# commands, and will stop there; what is in the list BEFORE is run first.  No
# two have the same name.
sub stop_at
{
	my ($node, $name, $point, $database, $before, @sql) = @_;
	my $session =
	  { node => $node, name => "$name: $point", out => '', err => '' };

	$session->{run} = IPC::Run::start(
		[
			'psql', '-XAtq',
			'-v', 'VERBOSITY=verbose',
			'-v', 'ON_ERROR_STOP=1',
			'-d', $node->connstr($database),
			map { ('-c', $_) } "SET application_name = '$session->{name}'",
			@$before,
			"SET stops.at = '$session->{name}'",
			@sql
		],
		'<',
		\'',
		'>',
		\$session->{out},
		'2>',
		\$session->{err},
		IPC::Run::timeout(600));
	return $session;
}

sub stopped
{
	my ($session) = @_;

	return -e stop_file($session);
}

sub stop_file
{
	my ($session) = @_;

	return "$session->{node}->{stops}/$session->{name}";
}

# await_stops(SESSIONS...): until each is at its point, or held up by others;
# dies if one ends before.
sub await_stops
{
	my (@sessions) = @_;
	my $node = $sessions[0]->{node};

	for (1 .. 1800)
	{
		my %held = map { $_ => 1 } split /\n/,
		  $node->safe_psql('postgres',
			"SELECT application_name FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
		  );
		my @away = grep { !is_held($_, \%held) } @sessions;

		return unless @away;
		select undef, undef, undef, 0.1;
	}
	die 'sessions do not reach their points: '
	  . $node->safe_psql('postgres',
		"SELECT string_agg(concat_ws(' ', application_name, state, wait_event_type, wait_event, query), chr(10)) FROM pg_stat_activity"
	  );
}

# Is it where it should be, or held up by others?
sub is_held
{
	my ($session, $held) = @_;

	return 1 if stopped($session) || $held->{ $session->{name} };
	$session->{run}->pump_nb;
	return 0 if $session->{run}->pumpable || stopped($session);
	die
	  "point \"$session->{name}\" is never reached: $session->{out}$session->{err}";
}

# go_on(SESSION...): those that are still there may go on.
sub go_on
{
	my (@sessions) = @_;

	unlink map { stop_file($_) } @sessions;
	return;
}

# ended(SESSION): waits for its end; its first error in full, '' if there is
# none.
sub ended
{
	my ($session) = @_;

	$session->{run}->finish;
	return $1 if $session->{err} =~ /(?:ERROR|FATAL|PANIC):\s+(.*)/s;
	return $session->{err} =~ /connection/ ? 'the connection is gone' : '';
}

# What can happen while sessions are at their points.  A code is called with the
# node and those sessions; the pattern is of the errors with which it may end
# those that survive it, and there is none where no session does.
my %happens = (
	server => {
		code => sub {
			my ($node) = @_;

			crash($node);
			$node->start;
		}
	},
	broker => {
		code => sub {
			my ($node) = @_;

			restarts($node, sub { kill 'KILL', broker_pid($node) });
		}
	},
	helper => { code => \&restart_helper, errors => qr/^(?:|NC004)$/ },
	cancellation => { code => \&cancel, errors => qr/^(?:|57014)$/ });

sub interruptions { return %happens }

sub cancel
{
	my ($node, @sessions) = @_;
	my $names = join ',', map { "\"$_->{name}\"" } @sessions;

	$node->safe_psql('postgres',
		"SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE application_name = ANY ('{$names}')"
	);
	return;
}

# travel(NODE, WHAT, TRAVELLERS...): each goes from stop to stop, a list "stops"
# of what stop_at takes after NODE and NAME; its "name" is its own.  At each of
# its stops WHAT happens, one of interruptions, and then it sets out for the
# next.  They are all on their way at once; where one holds others up, these
# come there later.  Returns the errors that were not expected.
sub travel
{
	my ($node, $what, @travellers) = @_;
	my %errors;

	for (
		my $times = 1;
		grep { @{ $_->{stops} } || $_->{leaving} } @travellers;
		$times++)
	{
		leave($_, \%errors) for grep { $_->{leaving} } @travellers;
		my @on = grep { @{ $_->{stops} } && !$_->{leaving} } @travellers;

		$_->{session} //=
		  stop_at($node, "$_->{name} $times", @{ $_->{stops}->[0] })
		  for @on;
		await_stops(map { $_->{session} } @on) if @on;
		my @there = grep { stopped($_->{session}) } @on;
		pass_stop($node, $what, \@there, \@on) if @there;
		select undef, undef, undef, 0.02;
	}
	return join " ", sort grep { !/$what->{errors}/ } keys %errors;
}

# A session that was let go ends when it can.
sub leave
{
	my ($traveller, $errors) = @_;
	my $session = $traveller->{leaving};

	$session->{run}->pump_nb;
	return if $session->{run}->pumpable;
	$errors->{ substr ended($session), 0, 5 }++;
	delete $traveller->{leaving};
	return;
}

sub pass_stop
{
	my ($node, $what, $there, $on) = @_;
	my @sessions = map { $_->{session} } @$there;

	$what->{code}->($node, @sessions);
	go_on(@sessions);
	shift @{ $_->{stops} } for @$there;
	if ($what->{errors})
	{
		$_->{leaving} = delete $_->{session} for @$there;
		return;
	}
	ended(delete $_->{session}) for @$on;
	return;
}

# passed_points(NODE, SQL): the points that this command passes, each once.
sub passed_points
{
	my ($node, $sql) = @_;
	my $file = "$node->{stops}/passed";
	my %seen;

	unlink $file;
	local $ENV{PGOPTIONS} = '-c stops.log=on';
	$node->safe_psql('postgres', $sql);
	return grep { !$seen{$_}++ } split /\n/, slurp_file($file);
}

1;
