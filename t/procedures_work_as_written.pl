# Procedures that were never done as they are written down are wrong on the
# night they are needed.  So: those of docs/operations.md that need one server
# or two, step by step, with the paths of this test in place of the reader's.
# (Switchover, failover, logical replication and shards have tests of their
# own, which run theirs the same way.)

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use File::Copy 'copy';
use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Procedures;
use Test::More;

my $node = nomp_node('main', allows_streaming => 1);
my $dir = $node->{nomp_dir};
my $data = $node->data_dir;

# What pg_ctlcluster does, to this test's server.
sub pg_ctl
{
	my ($server, $what, $where) = @_;

	$where //= $server->data_dir;
	return
	  "pg_ctl -D '$where' -w -l '@{[ $server->logfile ]}' $what >/dev/null";
}

my @paths = (
	'pg_ctlcluster 15 main stop' => pg_ctl($node, 'stop'),
	'/var/lib/postgresql/15/main' => $data);

$node->start;
create_nomp($node, 'living', 'erased');
$node->safe_psql('postgres',
		'INSERT INTO pupil (id, school, name)'
	  . " SELECT row_number() OVER (), id, nomp_crypt.encrypt('Anna i ' || id, id)"
	  . ' FROM nomp_crypt.tenants');

# ---- backup and restore ----

run_procedure(
	'backup',
	{ server => $node },
	'/backup/monday' => "$dir/monday");
is(sqlstate($node, "CALL nomp_crypt.erase_tenant('erased', 'test')"),
	'', 'a school is erased after the backup');
{
	my @said = run_procedure(
		'restore', { server => $node }, @paths,
		'/backup/monday' => "$dir/monday",
		'pg_ctlcluster 15 main start' => pg_ctl($node, 'start'));

	$node->_update_pid(1);
	is( $said[-1],
		"ok|t\nerased|active\nliving|active\n",
		'restore: the server is as it was');
}
is(school_reads($node, 'living'), 'Anna i living', 'what lives reads');
is(school_reads($node, 'erased'), 'NC003', 'what was erased does not');
is(sqlstate($node, "SELECT nomp_crypt.create_tenant('new')"),
	'', 'it owns its keys as before');

# ---- the PIN is changed ----

unless (over_kms())    # which has none
{
	SoftHsm::pkcs11_tool($dir, 'nomp', '--change-pin', '--new-pin',
		'98765432');
	my $helper = helper_pid($node);
	my @said = run_procedure(
		'pin', { server => $node },
		'/etc/nomp_crypt' => $dir,
		'the new PIN' => '98765432',
		'chown postgres' => 'true');

	like($said[-1], qr/ok\s*\|\s*t/, 'PIN: the keystore is well');
	isnt(helper_pid($node), $helper, 'another helper has logged in');
	is(slurp_file("$dir/pin"), "98765432\n", 'with the new PIN');
	is((stat "$dir/pin")[2] & 0777, 0600, 'which others cannot read');
}

# ---- a standby is promoted ----

$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
mkdir "$dir/register-standby", 0700;
$standby->append_conf('postgresql.conf',
	"nomp_crypt.register_directory = '$dir/register-standby'");
$standby->start;
$node->safe_psql('postgres',
	"SELECT nomp_crypt._erase_request('new', 'test', NULL)");
$node->wait_for_catchup($standby);
$node->stop;
{
	my @said = run_procedure(
		'promote',
		{ standby => $standby },
		'pg_ctlcluster 15 main promote' => pg_ctl($standby, 'promote'));

	is($said[1], "ok|t\n", 'promote: the keystore is well');
	is($said[-1], "new|test||requested\n",
		'the erasure that was under way is listed');
}
is(sqlstate($standby, "CALL nomp_crypt.erase_tenant('new', 'test')"),
	'', 'and completed by the same call');
is(school_reads($standby, 'living'), 'Anna i living', 'what lives reads');
$standby->stop;

# ---- the data directory is moved ----

# the standby was the primary for a while, and has put that on record
copy("$dir/register-standby/register",
	"$dir/register-@{[ $node->name ]}/register")
  or die $!;
$node->start;
$node->safe_psql('postgres', 'SELECT * FROM nomp_crypt.reconcile()');
run_procedure(
	'move', { server => $node }, @paths,
	'/data/main' => "$dir/moved",
	'pg_ctlcluster 15 main start' => pg_ctl($node, 'start', "$dir/moved"));
is(sqlstate($node, "SELECT nomp_crypt.create_tenant('newer')"),
	'', 'move: keys can be made where it is now');
is(school_reads($node, 'living'), 'Anna i living', 'and what lives reads');
system_or_bail('pg_ctl', '-D', "$dir/moved", '-w', 'stop');
$node->{_pid} = undef;

done_testing();
