# The register's key in AWS KMS is no school's: if somebody disables it, or has
# it destroyed, that is told of the register, as a keystore in trouble, and no
# school is said to be suspended.  Another key with its label does not take its
# place, and one whose making was interrupted is not made twice.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

BEGIN { $ENV{NOMP_TEST_KEYSTORE} = 'aws-kms' }

use KmsDouble;
use NompTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = nomp_node('main');
my $aws = "$node->{nomp_dir}/aws-nomp";

$node->start;
cold_schools($node, qw(s1 s2));

my ($installation) = kek_label($node, 's1') =~ /^nomp_crypt:([^:]+):/;

sub register_keys
{
	my ($generation) = @_;

	return grep {
		($_->{tag}->{'nomp_crypt:label'} // '') eq
		  "nomp_crypt:$installation:register:$generation"
	} double_keys($aws);
}

# What a session is told: SQLSTATE, message, hint.
sub told
{
	my ($sql) = @_;
	my $stderr = '';

	$node->psql(
		'postgres', $sql,
		stderr => \$stderr,
		extra_params => [ '-v', 'VERBOSITY=verbose' ],
		on_error_stop => 0);
	return $stderr;
}

# ---- it must not be used ----

my ($key) = register_keys(1);
my %ways = (
	'create_tenant' => q(SELECT nomp_crypt.create_tenant('s3')),
	'erase_tenant' => q(CALL nomp_crypt.erase_tenant('s2', 'test')),
	'rotate_register_key' => q(SELECT nomp_crypt.rotate_register_key()),);

for my $state (qw(Disabled PendingDeletion))
{
	double_says(
		$aws, 'change',
		key => $key->{id},
		state => $state,
		deletion => $state eq 'Disabled' ? undef : 4_102_444_800);
	for my $way (sort keys %ways)
	{
		my $at = -s $node->logfile;

		like(
			told($ways{$way}),
			qr/ERROR:  NC004: the register's key is disabled, or will be destroyed\n.*HINT:  Enable it in the keystore/s,
			"$state: $way is told of the register's key");
		like(
			slurp_file($node->logfile, $at),
			qr/DETAIL:  the key "nomp_crypt:$installation:register:1", \Q$key->{arn}\E, is (disabled|scheduled for deletion on 2100-01-01)/,
			'and the log names it');
	}
	unlike(told('SELECT * FROM nomp_crypt.register_status()'),
		qr/NC002|suspended/, "$state: the register's status names no school");
	is(school_reads($node, 's1'), 'Anna i s1', "$state: schools read");
}
double_says(
	$aws, 'change',
	key => $key->{id},
	state => 'Enabled',
	deletion => undef);
is(told($ways{create_tenant}), '', 'when it may be used, all goes on');

# ---- another one has its label ----

double_says(
	$aws, 'change',
	key => double_says(
		$aws, 'call',
		action => 'CreateKey',
		KeySpec => 'ECC_NIST_P256',
		KeyUsage => 'SIGN_VERIFY',
		Tags => [
			{
				TagKey => 'nomp_crypt:label',
				TagValue => $key->{tag}->{'nomp_crypt:label'}
			}
		])->{KeyMetadata}->{KeyId},
	created => 1);
is(scalar(register_keys(1)), 2, 'there are two');
is(told(q(SELECT nomp_crypt.create_tenant('s4'))),
	'', 'the one that has signed before goes on');
is( $node->safe_psql(
		'postgres', 'SELECT state FROM nomp_crypt.register_status()'),
	'ok',
	'and the register is whole');

# ---- a helper dies while it makes the next one ----

double_says(
	$aws, 'fault',
	kind => 'hang',
	action => 'CreateKey',
	times => 1);
double_says($aws, 'forget_calls');

my $session = start_query($node, $ways{rotate_register_key});

wait_until(sub { (double_says($aws, 'counts')->{CreateKey} // 0) == 1 },
	'the key to be made');
restart_helper($node);
like((join '', end_query($session)), qr/^NC004/, 'whoever wanted it is told');
is(double_says($aws, 'counts')->{CreateKey},
	1, 'and it is not made again unasked');
double_says($aws, 'recover');
is(told($ways{rotate_register_key}), '', 'asked for again it is there');
is(told(q(SELECT nomp_crypt.create_tenant('s5'))), '', 'and signs');

$node->stop;
done_testing();
