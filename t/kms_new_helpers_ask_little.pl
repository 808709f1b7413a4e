# A keystore helper that was replaced, because it died or hung, has forgotten
# which key is whose.  It is told by which key its predecessor knew the
# account, looks at that one, and reads no other school's tags before it gives a
# school its key: with thousands of schools those would take longer than anybody
# waits.  If that key is not the canary any more, it looks for it as ever.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

BEGIN { $ENV{NOMP_TEST_KEYSTORE} = 'aws-kms' }

use KmsDouble;
use NompTest;
use PostgreSQL::Test::Utils;
use Test::More;

my @schools = map { "s$_" } 1 .. 20;
my $node = nomp_node('main');
my $aws = "$node->{nomp_dir}/aws-nomp";

# the account is known by the canary alone
$node->append_conf('postgresql.conf', <<"CONF");
nomp_crypt.keystore = '@{[ double_uri($aws) ]}'
nomp_crypt.key_check_interval = 1h
CONF
$node->start;
cold_schools($node, @schools);

sub key_of
{
	my ($wanted) = @_;
	my ($key) = grep { ($_->{tag}->{'nomp_crypt:label'} // '') eq $wanted }
	  double_keys($aws);

	return $key->{id};
}

# The keys whose tags were read since they were forgotten.
sub tags_read
{
	my %keys = map { $_->{key} => 1 }
	  @{ double_says($aws, 'calls', action => 'ListResourceTags') };

	return join ' ', sort keys %keys;
}

sub forget
{
	my ($school) = @_;

	$node->safe_psql('postgres',
		"SELECT nomp_crypt._wipe(uuid) FROM nomp_crypt.tenant WHERE id = '$school'"
	);
	double_says($aws, 'forget_calls');
	return;
}

my ($installation) = kek_label($node, 's1') =~ /^nomp_crypt:([^:]+):/;
my $canary = key_of("nomp_crypt:$installation:canary");
my %key = map { $_ => key_of(kek_label($node, $_)) } @schools;

is(school_reads($node, 's1'), 'Anna i s1', 'a school reads');

forget('s1');
restart_helper($node);
is(school_reads($node, 's1'), 'Anna i s1', 'it reads with a new helper');
is( tags_read(),
	join(' ', sort $canary, $key{s1}),
	'which has read the tags of the canary and of its key, and no others');

# ---- that key is another's ----

double_says(
	$aws, 'call',
	action => 'UntagResource',
	KeyId => $canary,
	TagKeys => ['nomp_crypt:label']);
forget('s3');
restart_helper($node);
is(school_reads($node, 's3'),
	'NC004', 'a key that is not the canary any more proves nothing');
double_says(
	$aws, 'call',
	action => 'TagResource',
	KeyId => $canary,
	Tags => [
		{
			TagKey => 'nomp_crypt:label',
			TagValue => "nomp_crypt:$installation:canary"
		}
	]);
wait_until(sub { school_reads($node, 's3') eq 'Anna i s3' },
	'the canary to be back');
pass('with the canary back it reads');

# ---- it is another key now ----

my $other = double_says(
	$aws, 'call',
	action => 'CreateKey',
	Description => "nomp_crypt:$installation:canary",
	Tags => [
		{
			TagKey => 'nomp_crypt:label',
			TagValue => "nomp_crypt:$installation:canary"
		},
		{ TagKey => 'nomp_crypt:installation', TagValue => $installation }
	]);
double_says(
	$aws, 'call',
	action => 'UntagResource',
	KeyId => $canary,
	TagKeys => ['nomp_crypt:label']);
forget('s4');
restart_helper($node);
is(school_reads($node, 's4'),
	'Anna i s4', 'a canary that is another key is found');
forget('s4');
restart_helper($node);
is(school_reads($node, 's4'), 'Anna i s4', 'and so is it by the next helper');
unlike(
	tags_read(),
	qr/$key{s5}|$key{s6}|$key{s7}/,
	'without reading everybody\'s tags');

$node->stop;
done_testing();
