# The server, its broker or its helper is killed, or the call cancelled, at
# every point of the procedures that erase a school, certify it and remove what
# is left; the call is repeated; and there is one state in which it ends: the
# case certified, each key destroyed once on record, a certificate that
# verifies, no key in the token, no value in a table, and a register that is
# whole.
#
# Several schools go from point to point at once, each to every so manieth, and
# are interrupted at each of theirs; where one keeps others waiting, these try
# again.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Certified;
use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Stops;
use Test::More;

# The steps of each procedure, in order; a "|" is a commit.  Each step has a
# beginning and an end, and each commit a moment after it.  A step that is not
# here, or is not reached, makes this test fail.
my @execute =
  qw(_erase_fence _register_at_commit | _erase_wipe _erase_disable |
  _erase_submit | _erase_destroy _register_at_commit | _erase_wipe |);
my %steps = (
	erase_tenant =>
	  [ qw(_erase_open _erase_request | _erase_wipe _erase_due |), @execute ],
	certify_erasure => [qw(_certify |)],
	purge_tenant => [
		qw(_purge_plan | _purge_batch | _progress _purge_batch |
		  _progress _count_values _purged |)
	],
	erase_agreement => [
		qw(_erase_group _erase_request_agreement | _erase_next_of _erase_wipe |
		  _erase_next_of _erase_due | _erase_batch |
		  _erase_fence_together _register_at_commit |
		  _erase_wipe _erase_disable_together | _erase_submit_together |
		  _erase_destroy_together _register_at_commit | _erase_wipe |
		  _erase_batch | _erase_group_waits |)
	],
	run_due_erasures => [
		qw(_erase_next_group _erase_next | _erase_tenant_id |),
		@execute, qw(_erase_next |)
	]);

# Within steps, where something outside the transaction is asked or changed.
my %within = (
	_erase_fence => [qw(_erase_see _register_fence)],
	_register_at_commit => [qw(_register_sign _register_queue)],
	_erase_disable => ['_keystore_enable'],
	_erase_destroy => [qw(_keystore_destroy _erase_gone _erase_settle)],
	_certify => [
		qw(_keep_sample _ask_nodes _keystore_see _register_sign _register_queue
		  certificate)
	]);

# points(PROCEDURE): a list of names as test/stops_module.c has them.
sub points
{
	my ($procedure) = @_;
	my (%times, @points, $last);

	for my $step (@{ $steps{$procedure} })
	{
		my @inner =
		  $procedure =~ /_agreement|_due_/ ? () : @{ $within{$step} // [] };
		my $after = $step eq '_register_at_commit' ? "$last, " : '';

		if ($step eq '|')
		{
			push @points, numbered("$last committed", \%times);
			next;
		}
		push @points,
		  map { numbered($_, \%times) } "$after$step begins",
		  (map { ("$last, $_ begins", "$last, $_ ends") }
			  $after ? @inner : ()),
		  (map { ("$_ begins", "$_ ends") } $after ? () : @inner),
		  "$after$step ends";
		$last = $step unless $after;
	}
	return @points;
}

sub numbered
{
	my ($name, $times) = @_;
	my $time = ++$times->{$name};

	return $time > 1 ? "$time $name" : $name;
}

my %happens = interruptions();
my ($node, $schools);

# Each is an installation of its own, so that registers stay short.
sub new_node
{
	my ($name) = @_;

	$node = nomp_node($name, allows_streaming => 1);
	stops_conf($node);
	$node->append_conf('postgresql.conf', <<'CONF');
max_connections = 60
restart_after_crash = on
autovacuum = off
CONF
	$node->start;
	create_nomp($node, 'living');
	one('CREATE TABLE mark (id int, mark encrypted(text))');
	one(in_tenant(
			'living',
			"INSERT INTO pupil VALUES (1000000, 'living', 'Anna i living', NULL)"
		));
	$schools = 0;
	return;
}

sub one { return $node->safe_psql('postgres', $_[0]) }

# new_schools(N, AGREEMENT): their ids; each has values in two tables.
sub new_schools
{
	my ($n, $agreement) = @_;
	my @ids = map { 's' . ++$schools } 1 .. $n;
	my $list = join ',', @ids;
	my $number = defined $agreement ? "'$agreement'" : 'NULL';

	one(<<"SQL");
SELECT nomp_crypt.create_tenant(id, agreement => $number) FROM unnest('{$list}'::text[]) id;
INSERT INTO pupil SELECT substr(id, 2)::int, id, nomp_crypt.encrypt('Anna i ' || id, id), NULL
FROM unnest('{$list}'::text[]) id;
INSERT INTO mark SELECT substr(id, 2)::int, nomp_crypt.encrypt('4', id) FROM unnest('{$list}'::text[]) id;
SQL
	return @ids;
}

my %call = (
	erase_tenant => "CALL nomp_crypt.erase_tenant('%s', 'test', 'PUB-1')",
	erase_agreement =>
	  "CALL nomp_crypt.erase_agreement('agreement %s', 'test', 'PUB-1')",
	acknowledge_lease =>
	  "SELECT nomp_crypt.acknowledge_lease(e.case_id) FROM nomp_crypt.erasure e JOIN nomp_crypt.tenant t ON t.uuid = e.tenant WHERE t.id = '%s' AND e.state = 'destroyed'",
	certify_erasure => "CALL nomp_crypt.certify_erasure('%s')",
	purge_tenant => "CALL nomp_crypt.purge_tenant('%s')",
	request => "SELECT nomp_crypt._erase_request('%s', 'test', 'PUB-1')",
	run_due_erasures => 'CALL nomp_crypt.run_due_erasures()');

# What brings a school to where a procedure begins, harmless when repeated.
my %before = (
	erase_tenant => [],
	erase_agreement => [],
	run_due_erasures => ['request'],
	certify_erasure => [ 'erase_tenant', 'acknowledge_lease' ],
	purge_tenant => [qw(erase_tenant acknowledge_lease certify_erasure)]);

sub calls
{
	my ($school, @names) = @_;

	return map { $call{$_} =~ s/%s/$school/r } @names;
}

# A school for that procedure, or two of an agreement, named by the first.
sub schools_for
{
	my ($procedure) = @_;

	return $procedure eq 'erase_agreement'
	  ? new_schools(2, 'agreement s' . ($schools + 1))
	  : new_schools(1);
}

# repeat(CALLS...): the error of the first that has one.
sub repeat
{
	my (@calls) = @_;
	my ($out, $err) = ('', '');

	$node->psql(
		'postgres',
		join('', map { "$_;\n" } @calls),
		stdout => \$out,
		stderr => \$err);
	return $err =~ /ERROR:\s+(.*)/s ? $1 : '';
}

# What of these schools is not in the one state in which all must be.
sub otherwise
{
	my (@ids) = @_;
	my $list = join ',', map { substr $_, 1 } @ids;

	return uncertified($node,
		[ token_labels($node->{nomp_dir}, 'nomp') ], @ids)
	  . one(<<"SQL");
SELECT string_agg(id || ': a value is left', chr(10))
FROM unnest('{$list}'::int[]) id WHERE EXISTS (SELECT FROM pupil p WHERE p.id = id.id AND p.name IS NOT NULL)
	OR EXISTS (SELECT FROM mark m WHERE m.id = id.id AND m.mark IS NOT NULL)
SQL
}

# own_points(WHAT, PROCEDURE): those that are not the same again.  What
# run_due_erasures does with a case is as with the others, and what is done is
# not looked at again.  Without its broker the server restarts, as when it is
# killed; the helper has nothing to remember between two questions.
sub own_points
{
	my ($what, $procedure) = @_;
	my $of = qr/./;

	$of =
	  qr/^(?:_erase_next|_erase_tenant_id|_erase_fence ends|_erase_destroy ends|2 _erase_next begins)/
	  if $procedure eq 'run_due_erasures';
	$of = qr/_agreement|_batch|_together/ if $procedure eq 'erase_agreement';
	$of = qr/committed$|_keystore|_register_sign|_erase_see|_ask_nodes/
	  if $what eq 'helper' || $what eq 'broker';
	return grep { /$of/ } points($procedure);
}

# drive(WHAT, N, PROCEDURES...): N schools to all points of these.
sub drive
{
	my ($what, $n, @procedures) = @_;
	my $label = "$what, @procedures";
	my @travellers =
	  map { { ids => [ schools_for($procedures[0]) ], stops => [] } } 1 .. $n;
	my $points = 0;

	for my $procedure (@procedures)
	{
		for my $point (own_points($what, $procedure))
		{
			my $traveller = $travellers[ $points++ % $n ];
			my $id = $traveller->{name} = $traveller->{ids}->[0];

			push @{ $traveller->{stops} },
			  [
				$point, 'postgres',
				[ calls($id, @{ $before{$procedure} }) ],
				calls($id, $procedure)
			  ];
		}
	}
	die "$label: more points than schools"
	  if $what eq 'helper' && $points > $n;
	is( travel($node, $happens{$what}, grep { @{ $_->{stops} } } @travellers),
		'',
		"$label: no other error than it should be at $points points");
	finish($label, $procedures[0], @travellers);
	return;
}

# drive_alone(WHAT, PROCEDURE): schools of their own to each point, one after
# the other.  Those of an agreement are together once: who is interrupted on the
# way goes through them one by one.
sub drive_alone
{
	my ($what, $procedure) = @_;
	my @travellers =
	  map { { ids => [ schools_for($procedure) ], point => $_ } }
	  own_points($what, $procedure);

	for (@travellers)
	{
		my $id = $_->{name} = $_->{ids}->[0];

		$_->{stops} =
		  [ [ $_->{point}, 'postgres', [], calls($id, $procedure) ] ];
	}
	is( join(' ', map { travel($node, $happens{$what}, $_) } @travellers),
		' ' x $#travellers,
		"$what, $procedure: no other error than it should be at each point");
	finish("$what, $procedure", $procedure, @travellers);
	return;
}

# Called once more, everything is as it must be.
sub finish
{
	my ($label, $procedure, @travellers) = @_;
	my @ids = map { @{ $_->{ids} } } @travellers;

	is( repeat(
			(map { calls($_->{ids}->[0], $procedure) } @travellers),
			map {
				calls($_, qw(acknowledge_lease certify_erasure purge_tenant))
			} @ids),
		'',
		"$label: the calls can be repeated");
	is(otherwise(@ids), '', "$label: all end in the same state");
	is( school_reads($node, 'living'),
		'Anna i living',
		"$label: another school reads on");
	return;
}

# The list is whole, both ways.
new_node('lists');
for my $procedure (sort keys %steps)
{
	my ($id) = schools_for($procedure);
	my %listed = map { s/^(?:\d+|\w+,) //r => 1 } points($procedure);
	my %inner = map { ("$_ begins" => 1, "$_ ends" => 1) }
	  map { @$_ } values %within;
	my $error = repeat(calls($id, @{ $before{$procedure} }));
	my %passed =
	  map { $_ => 1 } passed_points($node, calls($id, $procedure));

	is($error, '', "$procedure can be called");
	is( join(', ', grep { !$listed{$_} && !/ committed$/ } sort keys %passed),
		'',
		"$procedure: every step is in the list");
	is(join(', ', grep { !$passed{$_} && !$inner{$_} } sort keys %listed),
		'', "$procedure: every step of the list is made");
}
$node->stop;

for my $what (sort keys %happens)
{
	new_node($what);
	# a call that survives goes on to the end: then each has one point
	drive(
		$what,
		$what eq 'helper' ? 30 : 16,
		qw(erase_tenant certify_erasure purge_tenant));
	drive_alone($what, 'erase_agreement') if $what eq 'server';
	drive($what, 1, 'run_due_erasures')
	  if $what eq 'server' || $what eq 'cancellation';
	$node->stop;
}
done_testing();
