# A copy of the server - a staging clone, a restored backup, a copied database
# - reads what the original reads while it reaches the same keystore, and must
# never destroy or create a key there.  Nor must a server that is pointed at
# the wrong keystore take "no such key" for an answer: that a token lacks a
# key says something only if it is the installation's own token.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use File::Copy;
use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my @schools = qw(erased kept cached uncached wanted foreign_wanted);

my $original = nomp_node('original', allows_streaming => 1);
my $dir = $original->{nomp_dir};
$original->start;
create_nomp($original, @schools);
for my $i (0 .. $#schools)
{
	$original->safe_psql(
		'postgres',
		in_tenant(
			$schools[$i],
			"INSERT INTO pupil VALUES ($i, '$schools[$i]', 'Anna', '')"));
}
$original->backup('before');

# What reading that school's values on a node gives: SQLSTATE or plaintext.
sub reading
{
	my ($node, $school, %options) = @_;

	return outcome(
		$node,
		in_tenant($school, "SELECT name FROM pupil WHERE school = '$school'"),
		%options);
}

sub erase
{
	my ($node, $school, %options) = @_;

	return sqlstate($node, "CALL nomp_crypt.erase_tenant('$school', 'test')",
		%options);
}

sub state_of
{
	my ($node, $school, %options) = @_;

	return $node->safe_psql($options{dbname} // 'postgres',
		"SELECT state FROM nomp_crypt.tenants WHERE id = '$school'");
}

sub keys_in_token
{
	return join ' ', sort(token_labels($dir, 'nomp'));
}

sub copy_from_backup
{
	my ($name) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	$node->init_from_backup($original, 'before');
	return $node;
}

# A copy can do nothing to the keystore, whatever it is asked to.
sub destroys_nothing
{
	my ($node, $what, %options) = @_;

	subtest "$what destroys nothing" => sub {
		my $keys = keys_in_token();
		my %refused = (
			create_tenant => "SELECT nomp_crypt.create_tenant('new')",
			create_tenants => "CALL nomp_crypt.create_tenants('{new}')",
			erase_tenant => "CALL nomp_crypt.erase_tenant('kept', 'test')",
			rotate_tenant => "SELECT nomp_crypt.rotate_tenant('kept')",
			rewrap_tenant => "SELECT nomp_crypt.rewrap_tenant('kept')",
			rotate_all => "CALL nomp_crypt.rotate_all('0')",
			suspend_tenant => "CALL nomp_crypt.suspend_tenant('kept')",
			resume_tenant => "CALL nomp_crypt.resume_tenant('kept')",
			reconcile_keystore =>
			  "SELECT nomp_crypt.reconcile_keystore(true, '0')",
			rotate_register_key => 'SELECT nomp_crypt.rotate_register_key()',
			repair_register => 'SELECT nomp_crypt.repair_register()');

		is(reading($node, 'kept', %options), 'Anna', 'it reads');
		for my $name (sort keys %refused)
		{
			is(sqlstate($node, $refused{$name}, %options),
				'55000', "$name is refused");
		}
		is(keys_in_token(), $keys, 'the keystore has the keys it had');
		is(state_of($node, 'kept', %options),
			'active', 'the school is not even suspended');
		is(reading($node, 'kept', %options), 'Anna', 'it reads on');
		is(reading($original, 'kept'), 'Anna', 'and so does the original');
	};
	return;
}

# A key that an aborted transaction left, which reconcile_keystore may remove
# and a copy may not.
$original->safe_psql('postgres',
	"BEGIN; SELECT nomp_crypt.create_tenant('aborted'); ROLLBACK");
like(keys_in_token(), qr/:provisional@/, 'an aborted transaction left a key');

my $stranger = copy_from_backup('stranger');
mkdir "$dir/register-stranger", 0700;
$stranger->append_conf('postgresql.conf',
	"nomp_crypt.register_directory = '$dir/register-stranger'");
$stranger->start;
destroys_nothing($stranger, 'a clone with a register directory of its own');
for my $file (qw(installation register register.keys))
{
	copy("$dir/register-original/$file", "$dir/register-stranger/$file")
	  or die "could not copy the register: $!";
}
destroys_nothing($stranger, 'a clone with a copied register directory');

my $twin = copy_from_backup('twin');
$twin->start;
is( $twin->safe_psql('postgres', 'SHOW nomp_crypt.register_directory'),
	$original->safe_psql('postgres', 'SHOW nomp_crypt.register_directory'),
	'a clone can share the original\'s register directory');
destroys_nothing($twin, 'a clone with the same register directory');
$twin->stop;

$original->safe_psql('postgres', 'CREATE DATABASE copied TEMPLATE postgres');
destroys_nothing(
	$original,
	'a copy of the database in the same server',
	dbname => 'copied');

# The original is not hindered.
is(sqlstate($original, "SELECT nomp_crypt.create_tenant('new')"),
	'', 'the original creates tenants');
is(erase($original, 'erased'), '', 'and erases them');
is(reading($original, 'erased'), 'NC001', 'so that they are erased');
is( $original->safe_psql(
		'postgres',
		"SELECT action FROM nomp_crypt.reconcile_keystore(true, '0')"),
	'removed',
	'and cleans up');
keys_are_lasting($dir, 'nomp');
pass('what had been left');

is(reading($stranger, 'erased'),
	'NC003', 'the clone cannot read what the original has erased');
is(state_of($stranger, 'erased'), 'active', 'and does not know why');
is(reading($stranger, 'kept'), 'Anna', 'it reads the others');
$stranger->stop;

# A backup from before the erasure is restored.
{
	my $restored = copy_from_backup('restored');
	my ($out, $err) = ('', '');

	mkdir "$dir/register-restored", 0700;
	$restored->append_conf('postgresql.conf',
		"nomp_crypt.register_directory = '$dir/register-restored'");
	$restored->start;
	is(reading($restored, 'erased'),
		'NC003', 'a restored backup does not read the erased school');
	$restored->psql(
		'postgres',
		in_tenant(
			'erased', "SELECT name FROM pupil WHERE school = 'erased'"),
		stdout => \$out,
		stderr => \$err);
	like(
		$err,
		qr/keystore has no key for tenant "erased"/,
		'it says that the key is not there, not that it was erased');
	is(reading($restored, 'kept'), 'Anna', 'it reads the others');
	is(sqlstate($restored, 'SELECT nomp_crypt.adopt_keystore()'),
		'', 'it may take the place of the original');
	is(erase($restored, 'erased'),
		'55000', 'but erases nothing while it lacks records of the register');
	is(reading($restored, 'erased'), 'NC002', 'the school stays suspended');
	$restored->stop;
}

# The keystore setting is pointed elsewhere.
my $other = PostgreSQL::Test::Cluster->new('other');
$other->init(extra => [ '--encoding=UTF8', '--no-locale' ]);
make_token($dir, 'empty');
make_token($dir, 'foreign');
nomp_conf($other, $dir, 'foreign');
$other->start;
create_nomp($other, 'theirs');
$other->safe_psql(
	'postgres',
	in_tenant(
		'theirs', "INSERT INTO pupil VALUES (1, 'theirs', 'Berit', '')"));

# point_at(LABEL): and wait until the broker has followed.
sub point_at
{
	my ($label) = @_;
	my $uri = keystore_uri($dir, $label);

	$original->safe_psql('postgres',
		"ALTER SYSTEM SET nomp_crypt.keystore = '$uri'");
	$original->reload;
	# a token has a name, an account has not
	$original->poll_query_until(
		'postgres',
		over_kms()
		? ( 'SELECT state FROM nomp_crypt.keystore_status()',
			$label eq 'nomp'
			? 'ok'
			: "the token is not this installation's")
		: ('SELECT token FROM nomp_crypt.keystore_status()', $label)
	) or die "the keystore is not $label";
	return;
}

$original->append_conf('postgresql.conf',
	'nomp_crypt.key_check_interval = 1s');

for my $label ('empty', 'foreign')
{
	my $wanted = $label eq 'empty' ? 'wanted' : 'foreign_wanted';
	my $keys = keys_in_token();
	my $theirs = join ' ', sort(token_labels($dir, $label));

	# a keyring that has one school's key and not the other's
	$original->restart;
	is(reading($original, 'cached'), 'Anna',
		"$label token: before, it reads");

	my $position = -s $original->logfile;
	point_at($label);
	is( $original->safe_psql(
			'postgres',
			'SELECT state, canary FROM nomp_crypt.keystore_status()'),
		"the token is not this installation's|f",
		"$label token: the status says so");
	is(reading($original, 'uncached'),
		'NC004', 'the keystore is unavailable, the key not unknown');
	ok( $original->wait_for_log(
			qr/could not check the keys in use with the keystore/, $position),
		'a background check is not answered');
	is(reading($original, 'cached'),
		'Anna', 'and nothing is wiped: a cached key is good for its lease');
	is(reading($original, 'uncached'), 'NC004', 'nor is it after that');

	is(sqlstate($original, "SELECT nomp_crypt.create_tenant('x')"),
		'NC004', 'no tenant is created');
	is( sqlstate(
			$original, "SELECT nomp_crypt.reconcile_keystore(true, '0')"),
		'NC004',
		'nothing is cleaned up');
	is(sqlstate($original, 'SELECT nomp_crypt.adopt_keystore()'),
		'NC004', 'the token is not adopted by mistake');
	is(erase($original, $wanted), 'NC004', 'nothing is erased');
	is(state_of($original, $wanted),
		'suspended', 'a school that was to be is suspended');
	is(reading($original, 'cached'), 'Anna', 'another still reads');
	is(keys_in_token(), $keys, 'the right token has the keys it had');
	is(join(' ', sort(token_labels($dir, $label))),
		$theirs, "the $label token has what it had");

	point_at('nomp');
	is(reading($original, 'uncached'), 'Anna', 'pointed back, it reads');
	is( $original->safe_psql(
			'postgres',
			'SELECT state, canary FROM nomp_crypt.keystore_status()'),
		'ok|t',
		'the status says so');
	is(erase($original, $wanted), '', 'and the erasure is completed');
	is(reading($original, $wanted), 'NC001', 'as asked for');
}

is(reading($other, 'theirs'), 'Berit',
	"the other installation reads its own");
is(reading($original, $_), 'Anna', "$_ is readable to the end")
  for qw(kept cached uncached);

$other->stop;
$original->stop;
done_testing();
