# An installation begins with a key of its own in the keystore, the canary.  A
# key service makes it, and then something fails: rights are missing, an answer
# is lost, the server is killed.  A key that nobody has on record is paid for
# each month.  So the next call goes on with it, however often, and only there:
# no other server, and no copy, takes what was begun for its own.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use KmsDouble;
use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $folder = PostgreSQL::Test::Utils::tempdir() . '/kms';
start_double($folder);

$ENV{AWS_SHARED_CREDENTIALS_FILE} = "$folder/credentials";
$ENV{AWS_CONFIG_FILE} = "$folder/config";

sub begin
{
	my ($name) = @_;
	my $node = nomp_node($name);

	$node->append_conf('postgresql.conf', <<"CONF");
nomp_crypt.keystore = '@{[ double_uri($folder) ]}'
nomp_crypt.keystore_timeout = '5s'
CONF
	$node->start;
	$node->safe_psql('postgres', 'CREATE EXTENSION nomp_crypt');
	return $node;
}

# Where a server's register is, as nomp_conf has it.
sub register_of
{
	my ($of) = @_;

	return "$of->{nomp_dir}/register-" . $of->name;
}

my $node = begin('main');
my $file = register_of($node) . '/founding';

sub create
{
	my ($id, %where) = @_;

	return sqlstate(
		$where{node} // $node,
		"SELECT nomp_crypt.create_tenant('$id')",
		$where{dbname} ? (dbname => $where{dbname}) : ());
}

# The installations that canaries are of, in one order.
sub canaries
{
	return sort map { $_->{tag}->{'nomp_crypt:installation'} }
	  grep          { ($_->{tag}->{'nomp_crypt:school'} // '') eq 'canary' }
	  double_keys($folder);
}

# Rights are missing; the server is killed after one of the tries.
double_says(
	$folder, 'identity',
	name => 'default',
	deny => ['kms:Encrypt']);
my @first;
for my $try (1 .. 3)
{
	is(create('school'), 'NC004', "no right to encrypt: try $try fails");
	is(scalar(my @now = canaries()), 1, "one canary after try $try");
	@first = canaries() unless @first;
	crash($node) if $try == 2;
	$node->start if $try == 2;
}
is_deeply([ canaries() ], \@first, 'it is the first one');
is( $node->safe_psql(
		'postgres', 'SELECT count(*) FROM nomp_crypt.installation'),
	'0',
	'nothing is founded');
like(slurp_file($file), qr/\Q$first[0]\E/, 'but begun, and on record so');

# Another server with the same folder, a copy for instance.
my $other = begin('other');
$other->append_conf('postgresql.conf',
	"nomp_crypt.register_directory = '" . register_of($node) . "'");
$other->restart;
is(create('school', node => $other),
	'55000', 'no other server takes it for its own');
is_deeply([ canaries() ], \@first, 'or begins there');

# The rights are there.
double_says($folder, 'identity', name => 'default', deny => []);
is(create('school'), '', 'with the rights it is founded');
is( $node->safe_psql('postgres', 'SELECT uuid FROM nomp_crypt.installation'),
	$first[0],
	'with the canary that was there');
is_deeply([ canaries() ], \@first, 'and no other');
ok(!-e $file, 'nothing is begun any more');
is( $node->safe_psql(
		'postgres', 'SELECT state FROM nomp_crypt.keystore_status()'),
	'ok',
	'its keystore is well');

# Another database of the server is of the same installation, as ever.
$node->safe_psql('postgres', 'CREATE DATABASE second');
$node->safe_psql('second', 'CREATE EXTENSION nomp_crypt');
is(create('school', dbname => 'second'), '', 'another database joins');
is($node->safe_psql('second', 'SELECT uuid FROM nomp_crypt.installation'),
	$first[0], 'the same installation');
is_deeply([ canaries() ], \@first, 'which has one canary');

# A server whose folder is its own founds one of its own.
$other->append_conf('postgresql.conf',
	"nomp_crypt.register_directory = '" . register_of($other) . "'");
$other->restart;

# The answer to CreateKey is lost.
double_says(
	$folder, 'fault',
	action => 'CreateKey',
	kind => 'lost',
	times => 1);
is(create('school', node => $other), 'NC004', 'an answer is lost');
is(scalar(my @two = canaries()), 2, 'but the canary was made');
is(create('school', node => $other), '', 'the next call finds it');
is(scalar(@two = canaries()), 2, 'and makes no other');
my $uuid =
  $other->safe_psql('postgres', 'SELECT uuid FROM nomp_crypt.installation');
isnt($uuid, $first[0], 'this is another installation');
is_deeply(\@two, [ sort $uuid, $first[0] ], 'each has its canary');

# Two sessions at once.
my $third = begin('third');
double_says($folder, 'latency', seconds => 1, action => 'CreateKey');
my @calls =
  map { start_query($third, 'SELECT nomp_crypt.adopt_keystore()') } 1 .. 2;
my ($one, $two) = map { join ' ', end_query($_) } @calls;
like($one, qr/^ [0-9a-f-]{36}/, 'two sessions found it at once');
is($two, $one, 'as one installation');
is(scalar(@two = canaries()), 3, 'with one canary');
$_->stop for $node, $other, $third;
done_testing();
