# What was copied before a school was erased, in every way that people copy
# databases, and is used afterwards with the keystore at hand: pgbackrest with
# a point in time before the erasure, pg_basebackup, pg_dump, a standby that
# lags on purpose, and a backup from before the school's KEK was replaced.  The
# school is unreadable in all of them, every other value is what was stored,
# none can destroy anything, and reconcile() tells each what became of the
# school.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $temp = PostgreSQL::Test::Utils::tempdir();
my $node = nomp_node('main', allows_streaming => 1);
my $dir = $node->{nomp_dir};

my @backrest =
  ('pgbackrest', "--config=$temp/pgbackrest.conf", '--stanza=main');
append_to_file("$temp/pgbackrest.conf", <<"CONF");
[global]
repo1-path=$temp/repository
repo1-retention-full=9
log-path=$temp
lock-path=$temp
log-level-console=warn
log-level-file=off
compress-type=none
start-fast=y

[main]
pg1-path=@{[ $node->data_dir ]}
pg1-port=@{[ $node->port ]}
pg1-socket-path=@{[ $node->host ]}
pg1-user=@{[ scalar getpwuid $< ]}
CONF
$node->append_conf('postgresql.conf', <<"CONF");
archive_mode = on
archive_command = '@backrest archive-push %p'
CONF
$node->start;
create_nomp($node, 'gone', 'stays');

my $everything =
  "SELECT count(*) || ' ' || md5(string_agg(id || ':' || name || ':' || notes, ',' ORDER BY id)) FROM pupil WHERE school = '%s'";

sub everything
{
	my ($of, $school) = @_;

	return outcome($of, in_tenant($school, sprintf $everything, $school));
}

sub add_pupils
{
	my ($from, $to) = @_;

	for my $school ('gone', 'stays')
	{
		my $first = $school eq 'gone' ? 0 : 1000;

		$node->safe_psql(
			'postgres',
			in_tenant(
				$school,
				"INSERT INTO pupil SELECT $first + i, '$school', 'Anna ' || i, repeat('åäö ', i)"
				  . " FROM generate_series($from, $to) i"));
	}
	return;
}

sub case_of
{
	my ($of) = @_;

	return $of->safe_psql('postgres',
		"SELECT state FROM nomp_crypt.tenants WHERE id = 'gone'");
}

# Before anything else: a backup that will know the first KEK only.
add_pupils(1, 20);
$node->backup('before_the_rewrap');
my $first_values = everything($node, 'stays');
$node->safe_psql('postgres', "SELECT nomp_crypt.rewrap_tenant('gone')");
$node->safe_psql('postgres', "SELECT nomp_crypt.rewrap_tenant('stays')");
add_pupils(21, 40);

# Then, the ways to copy.
command_ok([ @backrest, 'stanza-create' ], 'a stanza for pgbackrest');
command_ok([ @backrest, '--type=full', 'backup' ], 'a full backup');
add_pupils(41, 60);
$node->backup('base');
my $dump = "$temp/dump";
command_ok([ 'pg_dump', '-Fc', '-f', $dump, $node->connstr('postgres') ],
	'a dump');
my $late = PostgreSQL::Test::Cluster->new('late');
$late->init_from_backup($node, 'base', has_streaming => 1);
$late->append_conf('postgresql.conf',
	"recovery_min_apply_delay = '1h'\nhot_standby_feedback = off");
$late->start;
my $values = everything($node, 'stays');
like(everything($node, 'gone'), qr/^60 \w{32}$/,
	'until now the school reads');
like(everything($late, 'gone'), qr/^60 \w{32}$/, 'on the standby too');
# pgbackrest counts in whole seconds: a moment after the backup's last one
$node->safe_psql('postgres', 'SELECT pg_sleep(1)');
my $then = $node->safe_psql('postgres', 'SELECT clock_timestamp()');
$node->safe_psql('postgres', 'SELECT pg_sleep(1)');

# The end.
$node->safe_psql('postgres',
	"CALL nomp_crypt.erase_tenant('gone', 'agreement_ended', 'PUB-2024-117')"
);
is(everything($node, 'gone'), 'NC001', 'the school is erased');
is(everything($node, 'stays'), $values, 'another is as it was');
my $segment =
  $node->safe_psql('postgres', 'SELECT pg_walfile_name(pg_switch_wal())');
$node->poll_query_until('postgres',
	"SELECT last_archived_wal COLLATE \"C\" >= '$segment' FROM pg_stat_archiver"
) or die 'the WAL was not archived';

# what every copy must do
sub check_copy
{
	my ($copy, $what, $expected) = @_;

	is(case_of($copy), 'active', "$what: it knows of no erasure");
	is(everything($copy, 'gone'), 'NC003', "$what: the school is unreadable");
	is(everything($copy, 'stays'),
		$expected, "$what: every other value is what was stored");
	is( sqlstate(
			$copy, "CALL nomp_crypt.erase_tenant('stays', 'test', 'PUB-1')"),
		'55000',
		"$what: it can destroy nothing");
	is(everything($node, 'stays'),
		$values, "$what: and has destroyed nothing");
	is( $copy->safe_psql(
			'postgres',
			"SELECT action FROM nomp_crypt.reconcile() WHERE tenant = 'gone' AND action = 'erased'"
		),
		'erased',
		"$what: the register says what became of the school");
	is(everything($copy, 'gone'), 'NC001', "$what: it is erased there too");
	is(case_of($copy), 'erased', "$what: and on record as such");
	is(everything($copy, 'stays'), $expected, "$what: the others read on");
	is( $copy->safe_psql(
			'postgres', 'SELECT count(*) FROM nomp_crypt.reconcile()'),
		'0',
		"$what: once is enough");
	return;
}

# pgbackrest, to a moment before the erasure, in a new place.
{
	my $copy = PostgreSQL::Test::Cluster->new('point_in_time');

	mkdir $copy->data_dir, 0700 or die $!;
	command_ok(
		[
			@backrest, '--pg1-path=' . $copy->data_dir,
			'--type=time', "--target=$then",
			'--target-action=promote', 'restore'
		],
		'pgbackrest restores');
	$copy->append_conf('postgresql.conf',
			'port = '
		  . $copy->port
		  . "\nunix_socket_directories = '"
		  . $copy->host
		  . "'\n");
	own_register($node, $copy);
	$copy->start;
	$copy->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()')
	  or die 'the copy did not come up';
	check_copy($copy, 'a point in time', $values);
	$copy->stop;
}

# pg_basebackup.
{
	my $copy = PostgreSQL::Test::Cluster->new('base_backup');

	$copy->init_from_backup($node, 'base');
	own_register($node, $copy);
	$copy->start;
	check_copy($copy, 'pg_basebackup', $values);
	$copy->stop;
}

# From before the KEKs were replaced: the one it knows is not all there was,
# and its absence proves nothing.
{
	my $copy = PostgreSQL::Test::Cluster->new('older');

	$copy->init_from_backup($node, 'before_the_rewrap');
	own_register($node, $copy);
	$copy->start;
	is( $copy->safe_psql(
			'postgres',
			"SELECT kek_generation FROM nomp_crypt.tenants WHERE id = 'gone'"
		),
		'1',
		'a copy that knows one KEK of two');
	check_copy($copy, 'before the rewrap', $first_values);
	$copy->stop;
}

# pg_dump, into another server.
{
	my $copy = PostgreSQL::Test::Cluster->new('dumped');

	$copy->init(extra => [ '--encoding=UTF8', '--no-locale' ]);
	nomp_conf($copy, $dir, 'nomp');
	own_register($node, $copy);
	$copy->start;
	command_ok([ 'pg_restore', '-d', $copy->connstr('postgres'), $dump ],
		'a dump is restored');
	check_copy($copy, 'pg_dump', $values);
	$copy->stop;
}

# A standby that lags an hour on purpose, and is made the primary without what
# it lacks.
{
	is(case_of($late), 'active', 'the late standby knows of no erasure');
	# what it has read before is in its memory until it asks again
	$late->append_conf('postgresql.conf',
		"nomp_crypt.key_check_interval = 1\n");
	$late->reload;
	wait_until(sub { everything($late, 'gone') eq 'NC003' },
		'the standby to ask the keystore');
	is(everything($late, 'gone'),
		'NC003', 'the late standby asks the keystore, and cannot read');
	is(everything($late, 'stays'), $values, 'but the other school');
	$node->stop;
	$late->append_conf('postgresql.conf', "primary_conninfo = ''\n");
	own_register($node, $late);
	$late->restart;
	$late->promote;
	check_late();
}

# As check_copy, of the one that replays an erasure when it is promoted, or
# does not: it stopped where the delay held it.
sub check_late
{
	is(everything($late, 'stays'), $values, 'promoted, it reads the others');
	isnt(
		everything($late, 'gone'),
		everything($late, 'stays'),
		'and not the school');
	$late->safe_psql('postgres', 'SELECT * FROM nomp_crypt.reconcile()');
	is(everything($late, 'gone'),
		'NC001', 'of which it knows then that it was erased');
	return;
}
done_testing();
