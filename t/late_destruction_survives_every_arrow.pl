# As erasure_survives_every_arrow.pl, over a keystore that destroys a week after
# it was asked, and where somebody may cancel that: the server, or the helper
# and the keystore itself, are killed, or the call is cancelled, at every point between
# asking and seeing that the keys are gone, and between a cancellation there and
# asking again.  In the meantime the case is pending, and nothing but time makes
# it end.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Certified;
use KmsDouble;
use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Stops;
use Test::More;

my $folder = PostgreSQL::Test::Utils::tempdir() . '/kms';

start_double($folder);
$ENV{AWS_SHARED_CREDENTIALS_FILE} = "$folder/credentials";
$ENV{AWS_CONFIG_FILE} = "$folder/config";

my $node = nomp_node('main', allows_streaming => 1);
stops_conf($node);
$node->append_conf('postgresql.conf', <<"CONF");
nomp_crypt.keystore = '@{[ double_uri($folder) ]}'
max_connections = 60
autovacuum = off
CONF
$node->start;
create_nomp($node, 'living');
one(in_tenant(
		'living',
		"INSERT INTO pupil VALUES (1, 'living', 'Anna i living', NULL)"));

# Each way from one rest to the next, in order: what was just begun, and what is
# said of it when it is over.
my @asking = (
	'_erase_submit ends',
	'_erase_submit committed',
	'_erase_destroy begins',
	'_keystore_destroy begins',
	'_keystore_destroy ends',
	'_erase_schedule begins',
	'_erase_schedule, _erase_present ends',
	'_erase_schedule ends',
	'_erase_settle begins',
	'_erase_settle ends',
	'_erase_destroy ends',
	'_erase_destroy committed');
my @ways = (
	{
		name => 'asking',
		call => 'erase_tenant',
		points => \@asking,
		states => 'PendingDeletion',
		case => 'pending'
	},
	{
		name => 'noticing a cancellation',
		call => 'erase_tenant',
		before => \&somebody_cancels,
		points => [
			'_erase_look begins',
			'_erase_look, _erase_present ends',
			'_erase_look ends',
			'_erase_void begins',
			'_erase_void ends',
			'_erase_destroy ends',
			'_erase_destroy committed'
		],
		states => 'Disabled',
		case => 'pending'
	},
	{
		name => 'asking again',
		call => 'resubmit_erasure',
		points => [
			'_erase_resubmit begins',
			'_erase_resubmit ends',
			'_erase_resubmit committed',
			'_keystore_destroy ends',
			'_erase_schedule ends',
			'_erase_destroy committed'
		],
		states => 'PendingDeletion',
		case => 'pending'
	},
	{
		name => 'seeing that they are gone',
		call => 'erase_tenant',
		before => sub { days_pass($folder, 8, $node) },
		points => [
			'_erase_look begins',
			'_erase_look, _erase_present ends',
			'_erase_gone begins',
			'_erase_gone ends',
			'_erase_settle begins',
			'_erase_settle ends',
			'_erase_destroy ends',
			'_erase_destroy, _register_at_commit begins',
			'_erase_destroy, _register_sign ends',
			'_erase_destroy, _register_at_commit ends',
			'_erase_destroy committed'
		],
		states => '',
		case => 'destroyed'
	});

my %call = (
	erase_tenant => "CALL nomp_crypt.erase_tenant('%s', 'test', 'PUB-1')",
	resubmit_erasure => "CALL nomp_crypt.resubmit_erasure('%s')");

my %happens = interruptions();
delete @happens{qw(broker helper)};   # with the server, and with the keystore
$happens{keystore} = {
	code => sub {
		my ($server, @sessions) = @_;

		kill_double($folder);
		restart_helper($server);
		go_on(@sessions);
		# until they have found that it is not there
		select undef, undef, undef, 1;
		start_double($folder);
	},
	errors => qr/^(?:|NC004)$/
};

sub one { return $node->safe_psql('postgres', $_[0]) }

# The keys of each of these schools in the service, by label.
sub keys_of
{
	my (@ids) = @_;
	my $list = join ',', @ids;
	my %id = map { split /[|]/ } split /\n/,
	  one(
		"SELECT uuid, id FROM nomp_crypt.tenant WHERE id = ANY ('{$list}')");
	my %keys;

	for my $key (double_keys($folder))
	{
		my $label = $key->{tag}->{'nomp_crypt:label'} // next;

		$keys{$label} = $key
		  if $label =~ /^nomp_crypt:[^:]+:([^:]+):/ && $id{$1};
	}
	return %keys;
}

sub somebody_cancels
{
	my %keys = keys_of(@_);

	double_says(
		$folder, 'call',
		action => 'CancelKeyDeletion',
		KeyId => $_->{id}) for values %keys;
	return;
}

# The calls are repeated, and all schools are at the same rest.
sub rest
{
	my ($label, $way, @ids) = @_;
	my $list = join ',', @ids;
	my $call = $call{ $way->{call} };
	my %keys;

	# where that was asked again it is done, and only looked at
	if ($way->{call} eq 'resubmit_erasure')
	{
		like(sqlstate($node, sprintf $call, $_),
			qr/^(?:|55000)$/, "$label: it can be asked again")
		  for @ids;
		$call = $call{erase_tenant};
	}
	is( join(' ',
			grep { $_ ne '' }
			map  { sqlstate($node, sprintf $call, $_) } @ids),
		'',
		"$label: the calls can be repeated");
	%keys = keys_of(@ids);
	is( join(' ', map { $_->{state} } values %keys),
		join(' ', ($way->{states}) x ($way->{states} eq '' ? 0 : @ids)),
		"$label: so stands it with the keys");
	is( one("SELECT string_agg(DISTINCT concat_ws(' ', e.state, e.voided_at IS NOT NULL), ', ') FROM nomp_crypt.erasure e"
			  . " JOIN nomp_crypt.tenant t ON t.uuid = e.tenant WHERE t.id = ANY ('{$list}')"
		),
		"$way->{case} " . ($way->{states} eq 'Disabled' ? 't' : 'f'),
		"$label: and with the cases");
	return;
}

for my $what (sort keys %happens)
{
	# a call that survives goes on to the end: then each has one point
	my @ids = map { "$what$_" } 1 .. ($happens{$what}->{errors} ? 12 : 6);
	my $list = join ',', @ids;

	one("SELECT nomp_crypt.create_tenant(id) FROM unnest('{$list}'::text[]) id"
	);
	for my $way (@ways)
	{
		my @on = map { { name => $_, stops => [] } } @ids;
		my $n = 0;

		$way->{before}->(@ids) if $way->{before};
		for my $point (@{ $way->{points} })
		{
			my $traveller = $on[ $n++ % @on ];

			push @{ $traveller->{stops} },
			  [
				$point, 'postgres', [], sprintf $call{ $way->{call} },
				$traveller->{name}
			  ];
		}
		is( travel($node, $happens{$what}, @on),
			'',
			"$what, $way->{name}: no other error than it should be at $n points"
		);
		rest("$what, $way->{name}", $way, @ids);
	}
	for my $id (@ids)
	{
		one("SELECT nomp_crypt.acknowledge_lease(e.case_id) FROM nomp_crypt.erasure e JOIN nomp_crypt.tenant t ON t.uuid = e.tenant WHERE t.id = '$id'"
		);
		one("CALL nomp_crypt.certify_erasure('$id')");
	}
	is(uncertified($node, [ keys %{ { keys_of(@ids) } } ], @ids),
		'', "$what: all end in the same certified state");
	is( school_reads($node, 'living'),
		'Anna i living',
		"$what: another school reads on");
}

$node->stop;
done_testing();
