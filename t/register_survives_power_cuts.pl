# A power cut at every point at which the register's folder changes, and a disk
# that then has what was flushed and nothing else, neither a byte nor a name:
# the files go back to what they were at their last flush.  What was answered
# is still there, the register is whole, and the call can be repeated.  And
# sessions that look while others append see nothing that is not.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Stops;
use Test::More;

# Points as test/stops_module.c has them, and, with an "!", those within an
# append that src/register_file.c knows.
my @append = qw(!signed !half !unsynced !written);
my %points = (
	'the first record' => [
		'_register_write ends',
		'_register_make begins',
		'_register_make ends',
		'_register_pin ends',
		qw(!unsynced !written),
		'create_tenant committed'
	],
	'a new school' => [
		'_register_at_commit begins',
		'_register_at_commit ends',
		@append,
		'create_tenant committed'
	],
	'another key of a school' => [ '!unsynced', 'rewrap_tenant committed' ],
	'another key of the register' => [
		'_register_key ends',
		'_register_pin ends',
		qw(!unsynced !written),
		'rotate_register_key committed'
	],
	'a file that is made anew' => [
		'_register_make ends',
		'_register_pin ends',
		'repair_register committed'
	],
	'a table that lacks a record' =>
	  [ '_register_catch_up ends', 'reconcile committed' ],
	'a file that lacks a record' =>
	  [ '_register_extend ends', qw(!half !unsynced !written) ]);

my $node = nomp_node('main', allows_streaming => 1);
my $register = "$node->{nomp_dir}/register-main";
my $kept = "$node->{nomp_dir}/kept";
my $database = 'postgres';
my $number = 0;

mkdir $kept, 0700 or die $!;
stops_conf($node);
$node->append_conf('postgresql.conf',
	"fsync = on\nrecovery_init_sync_method = syncfs\nautovacuum = off\n");
$ENV{NOMP_DISK_FOLDER} = $register;
$ENV{NOMP_DISK_KEPT} = $kept;

sub begin
{
	local $ENV{LD_PRELOAD} = "$FindBin::RealBin/../test/disk_shim.so";

	return $node->start;
}

sub one { return $node->safe_psql($database, $_[0]) }

sub state_of
{
	return one('SELECT state FROM nomp_crypt.register_status()');
}

sub write_file
{
	my ($path, $content) = @_;

	open my $fh, '>', $path or die "$path: $!";
	print $fh $content or die $!;
	close $fh or die $!;
	return;
}

# What was not flushed is lost.
sub lose
{
	my %names;

	for
	  my $line (-e "$kept/names" ? split /\n/, slurp_file("$kept/names") : ())
	{
		my ($inode, $name) = split / /, $line, 2;

		$names{$name} = -e "$kept/$inode" ? slurp_file("$kept/$inode") : '';
	}
	for my $file (glob "$register/*")
	{
		my $name = $file =~ s,.*/,,r;

		next if exists $names{$name};
		unlink $file or die "$file: $!";
	}
	write_file("$register/$_", $names{$_}) for keys %names;
	flush();
	return;
}

# All that is there is on disk.
sub flush
{
	my $names = '';

	unlink glob "$kept/*";
	for my $file (glob "$register/*")
	{
		my $inode = (stat $file)[1];

		write_file("$kept/$inode", slurp_file($file));
		$names .= "$inode " . ($file =~ s,.*/,,r) . "\n";
	}
	write_file("$kept/names", $names);
	return;
}

# cut(POINT, SQL): the SQL is run, and the power goes there.
sub cut
{
	my ($point, $sql) = @_;

	if ($point =~ s/^!//)
	{
		write_file("$register/crash", $point);
		sqlstate($node, $sql, dbname => $database);
		die "point \"$point\" is never reached" if -e "$register/crash";
		# the server ends by itself
		wait_until(sub { !-e $node->data_dir . '/postmaster.pid' },
			'the server to end');
		$node->{_pid} = undef;
	}
	else
	{
		my $session =
		  stop_at($node, 'cut ' . ++$number, $point, $database, [], $sql);

		await_stops($session);
		crash($node);
		ended($session);
	}
	lose();
	unlink glob "$node->{stops}/*";
	begin();
	return;
}

# A database that is its own installation, with a folder that was empty.
sub new_installation
{
	$database = 'postgres';
	my $name = 'd' . ++$number;

	one("CREATE DATABASE $name");
	unlink glob "$register/*";
	flush();
	$database = $name;
	one('CREATE EXTENSION nomp_crypt');
	return;
}

my $file = "$register/register";

# One record that the table has and the file has not, of another site, or the
# other way round.
sub lack_in_table
{
	one("SELECT nomp_crypt.create_tenant('lacking @{[ ++$number ]}')");
	one(<<'SQL');
ALTER TABLE nomp_crypt.register DISABLE TRIGGER USER;
DELETE FROM nomp_crypt.register WHERE number = (SELECT max(number) FROM nomp_crypt.register);
ALTER TABLE nomp_crypt.register ENABLE ALWAYS TRIGGER append_only;
ALTER TABLE nomp_crypt.register ENABLE ALWAYS TRIGGER append_only_rows;
SQL
	return;
}

sub lack_in_file
{
	my $text = slurp_file($file);

	one("SELECT nomp_crypt.create_tenant('lacking @{[ ++$number ]}')");
	# with another name for the site, it is another's record
	write_file($file,
		$text =~ s/^(nomp_crypt register 1 \S+ )\S+/$1 . new_uuid()/er);
	return;
}

sub new_uuid { return one('SELECT gen_random_uuid()') }

my %before = (
	'a file that is made anew' => sub { unlink $file or die $! },
	'a table that lacks a record' => \&lack_in_table,
	'a file that lacks a record' => \&lack_in_file);
my %call = (
	'another key of a school' => "SELECT nomp_crypt.rewrap_tenant('first')",
	'another key of the register' =>
	  'SELECT nomp_crypt.rotate_register_key()',
	'a file that is made anew' => 'SELECT nomp_crypt.repair_register()',
	'a table that lacks a record' =>
	  'SELECT count(*) FROM nomp_crypt.reconcile()');

begin();
for my $what ('the first record',
	grep { $_ ne 'the first record' } sort keys %points)
{
	for my $point (@{ $points{$what} })
	{
		my $first = $what eq 'the first record';

		new_installation() if $first;
		my $school = $first ? 'first' : 's' . ++$number;
		my $call = $call{$what}
		  // "SELECT nomp_crypt.create_tenant('$school')";

		$before{$what}->() if $before{$what};
		flush();
		cut($point, $call);
		my $answered = $point =~ /create_tenant committed/
		  && one(
			"SELECT count(*) FROM nomp_crypt.tenant WHERE id = '$school'");
		is( sqlstate($node, $call, dbname => $database),
			$answered ? '42710' : '',
			"$what, $point: the call can be repeated");
		is(state_of(), 'ok', "$what, $point: the register is whole");
		is( one("SELECT count(*) FROM nomp_crypt.verify_register() WHERE NOT valid"
			),
			'0',
			"$what, $point: every record is signed");
		is( one("SELECT string_agg(id, ' ') FROM nomp_crypt.tenant t WHERE NOT EXISTS"
				  . " (SELECT FROM nomp_crypt.register r WHERE r.school = t.uuid AND r.type = 'born')"
			),
			'',
			"$what, $point: no school is without its record");
	}
}

# Somebody looks, and meanwhile somebody else appends.
{
	my $look = stop_at($node, 'look', '_register_head begins',
		$database, [], 'SELECT state FROM nomp_crypt.register_status()');
	await_stops($look);
	my $last = one('SELECT max(number) FROM nomp_crypt.register');
	one("SELECT nomp_crypt.create_tenant('meanwhile')");
	wait_until(
		sub {
			one('SELECT in_keystore FROM nomp_crypt.register_status()') >
			  $last;
		},
		'the keystore to be told');
	go_on($look);
	is(ended($look), '', 'one looks while another appends');
	is($look->{out}, "ok\n",
		'and is not told that records are lost which came meanwhile');
}

$node->stop;
done_testing();
