# An asynchronous standby that is promoted has not heard of everything.  What
# the old primary did to keys in the keystore is done nevertheless.  So: an
# erasure of which the standby has heard up to each of its steps, a school that
# it has never heard of, and one whose rows it has not got.  Nothing is called
# erased there that this node does not know to be, nothing reads that must not,
# nothing more is erased while the register lacks what the other had written,
# and with the other's file all of it is known.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# What the standby has heard of the erasure of the school of that name.
my @steps = qw(nothing requested fenced submitted destroyed);

my $primary = nomp_node('primary', allows_streaming => 1);
my $dir = $primary->{nomp_dir};

$primary->start;
create_nomp($primary, @steps, 'living');
$primary->safe_psql('postgres',
		'INSERT INTO pupil (id, school, name)'
	  . " SELECT row_number() OVER (), id, nomp_crypt.encrypt('Anna i ' || id, id)"
	  . ' FROM nomp_crypt.tenants');
$primary->backup('base');

my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
mkdir "$dir/register-standby", 0700;
$standby->append_conf('postgresql.conf',
	"nomp_crypt.register_directory = '$dir/register-standby'");
$standby->start;

# step(SCHOOL, N): the first N steps of its erasure, as erase_tenant does them.
sub step
{
	my ($school, $n) = @_;
	my $case;

	return unless $n > 0;
	$case = $primary->safe_psql('postgres',
		"SELECT nomp_crypt._erase_request('$school', 'test', NULL)");
	for my $step (('fence', 'submit', 'destroy')[ 0 .. $n - 2 ])
	{
		$primary->safe_psql('postgres',
			"SELECT nomp_crypt._erase_$step('$case')");
	}
	return;
}

step($steps[$_], $_) for 0 .. $#steps;
$primary->wait_for_catchup($standby);
is(school_reads($standby, 'living'), 'Anna i living', 'the standby reads');
is( school_reads($standby, 'nothing'),
	'Anna i nothing',
	'a school that nobody erases, too');
$standby->stop;

# It hears no more.
is(sqlstate($primary, "CALL nomp_crypt.erase_tenant('$_', 'test')"),
	'', "the erasure of \"$_\" is completed on the primary")
  for @steps;
$primary->safe_psql('postgres',
	"SELECT nomp_crypt.create_tenant('unheard of')");
$primary->safe_psql(
	'postgres',
	in_tenant(
		'living', q(INSERT INTO pupil VALUES (100, 'living', 'Bo', NULL))));
keys_are_lasting($dir, 'nomp');
my @left = sort(token_labels($dir, 'nomp'));
crash($primary);
$standby->start;
$standby->promote;

my %expected = (
	nothing => [ 'NC003', 'is not read, and not called erased' ],
	requested => [ 'NC002', 'is suspended' ],
	fenced => [ 'NC002', 'is suspended' ],
	submitted => [ 'NC002', 'is suspended' ],
	destroyed => [ 'NC001', 'is erased' ]);

for my $step (@steps)
{
	is( school_reads($standby, $step),
		$expected{$step}[0],
		"heard of: $step: the school $expected{$step}[1]");
}
is(school_reads($standby, 'living'), 'Anna i living', 'a living one reads');
is(sqlstate($standby, "SELECT nomp_crypt.encrypt('Eva', 'unheard of')"),
	'42704', 'one that it has not heard of does not exist');

# It takes the other's place.  The keystore remembers that the register was
# longer, so nothing is erased before its end is here again.
$standby->safe_psql('postgres', 'SELECT nomp_crypt.adopt_keystore()');
is(sqlstate($standby, "CALL nomp_crypt.erase_tenant('$_', 'test')"),
	'55000', "heard of: $_: not erased while records are missing")
  for 'nothing', 'requested', 'fenced', 'submitted';
is( $standby->safe_psql(
		'postgres', 'SELECT state FROM nomp_crypt.register_status()'),
	'head ahead',
	'which the register says');
is(school_reads($standby, 'living'), 'Anna i living',
	'a living one reads on');

# The other's file is found.
append_to_file(
	"$dir/register-standby/register.new",
	slurp_file("$dir/register-primary/register"));
chmod 0600, "$dir/register-standby/register.new";
rename "$dir/register-standby/register.new", "$dir/register-standby/register"
  or die $!;
$standby->safe_psql('postgres', 'SELECT * FROM nomp_crypt.reconcile()');
is( $standby->safe_psql(
		'postgres', 'SELECT state FROM nomp_crypt.register_status()'),
	'ok',
	'with it the register is whole');
is(school_reads($standby, $_),
	'NC001', "heard of: $_: erased, as the register says")
  for @steps;
is(sqlstate($standby, "CALL nomp_crypt.erase_tenant('$_', 'test')"),
	'', "heard of: $_: which the call confirms")
  for @steps;
is(join(' ', sort(token_labels($dir, 'nomp'))),
	"@left", 'nothing else happened in the keystore');
is( $standby->safe_psql('postgres',
			"SELECT nomp_crypt.encrypt('Eva', 'unheard of')"
		  . " FROM nomp_crypt.create_tenant('unheard of')") =~ /^nc1:/
	? 'encrypted'
	: '',
	'encrypted',
	'the school that was lost is created once more');
is(school_reads($standby, 'living'), 'Anna i living', 'the living one reads');

$standby->stop;
done_testing();
