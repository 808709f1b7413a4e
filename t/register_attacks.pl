# The register is what is believed when nobody believes the database any more.
# So here somebody who may write to the tables, to the file or to the token
# tries to make it say what did not happen, or to make it forget; disks lose
# what they promised to keep; and the server dies at every point of an append.
# Erasing must be refused until it is whole again, reading living schools never,
# and nothing is called erased that no signed record proves.

use strict;
use warnings;

use File::Copy qw(copy);
use FindBin;
use lib "$FindBin::RealBin/lib";

use Certified;
use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = nomp_node('main', allows_streaming => 1);
my $dir = $node->{nomp_dir};
my $file = "$dir/register-main/register";
$node->append_conf('postgresql.conf', 'restart_after_crash = on');
$node->start;
create_nomp($node, qw(living gone claimed moved wrapped restored));
one("INSERT INTO pupil (id, school, name) SELECT row_number() OVER (), id,"
	  . " nomp_crypt.encrypt('Anna i ' || id, id) FROM nomp_crypt.tenants");

sub one { return $node->safe_psql('postgres', $_[0]) }

sub state_of
{
	return one('SELECT state FROM nomp_crypt.register_status()');
}

sub records { return one('SELECT count(*) FROM nomp_crypt.register') }

sub erase
{
	return sqlstate($node,
		"CALL nomp_crypt.erase_tenant('$_[0]', 'test', 'PUB-1')");
}

# As a superuser who means it: the triggers are in the way of nobody else.
sub by_force
{
	one(    'ALTER TABLE nomp_crypt.register DISABLE TRIGGER USER;'
		  . "$_[0]; ALTER TABLE nomp_crypt.register ENABLE ALWAYS TRIGGER append_only;"
		  . ' ALTER TABLE nomp_crypt.register ENABLE ALWAYS TRIGGER append_only_rows'
	);
	return;
}

sub lines { return split /\n/, slurp_file($file) }

sub write_register
{
	my ($text, $path) = @_;

	$path //= $file;
	open my $fh, '>', $path or die "$path: $!";
	print $fh $text or die $!;
	close $fh or die $!;
	return;
}

# In that state nothing is erased or created, and living schools are read;
# then it is repaired.
sub in_trouble
{
	my ($state, $what, %how) = @_;

	subtest "$what: $state" => sub {
		is(state_of(), $state, 'register_status() says so');
		isnt(
			one("SELECT coalesce(advice, '') FROM nomp_crypt.register_status()"
			),
			'',
			'and what to do');
		is(erase('claimed'), '55000', 'nothing is erased');
		is( school_reads($node, 'living'),
			'Anna i living',
			'living schools are read');
		is(school_reads($node, 'claimed'),
			'NC002', 'the one to be erased is suspended');
		return if $how{inside};
		# what is wrong at the end of the chain is seen by everybody
		is(sqlstate($node, "SELECT nomp_crypt.create_tenant('not now')"),
			'55000', 'nothing is created');
		is( one("SELECT severity FROM nomp_crypt.health() WHERE name = 'register'"
			),
			'critical',
			'health() says so');
	};
	return;
}

sub repaired
{
	my ($what) = @_;

	like(one('SELECT nomp_crypt.repair_register()'),
		qr/whole/, "$what: it can be repaired");
	is(state_of(), 'ok', "$what: it is whole again");
	return;
}

is(state_of(), 'ok', 'a register that nobody touched is whole');
is(erase('gone'), '', 'a school is erased');
is(school_reads($node, 'gone'), 'NC001', 'which is said to be so');
my $gone = one("SELECT uuid FROM nomp_crypt.tenants WHERE id = 'gone'");
my $first = one('SELECT pem FROM nomp_crypt.register_key()');

# By hand, in the table of schools.
one("UPDATE nomp_crypt.tenant SET state = 'erased' WHERE id = 'claimed'");
is(school_reads($node, 'claimed'),
	'NC003', 'a state set by hand does not make a school erased');
is( outcome(
		$node,
		"SELECT nomp_crypt.try_decrypt(name) FROM pupil WHERE school = 'claimed'"
	),
	'NC003',
	'nor its values NULL');
is(sqlstate($node, "SELECT nomp_crypt.rotate_tenant('claimed')"),
	'NC003', 'nor for administrators');
one("UPDATE nomp_crypt.tenant SET state = 'active' WHERE id = 'claimed'");
is(school_reads($node, 'claimed'), 'Anna i claimed', 'and can be put back');
one("UPDATE nomp_crypt.tenant SET state = 'active' WHERE id = 'gone'");
is(school_reads($node, 'gone'), 'NC003', 'an erased one cannot: no key');
is(one("SELECT action FROM nomp_crypt.reconcile() WHERE tenant = 'gone'"),
	'erased', 'and the register remembers');
is(school_reads($node, 'gone'), 'NC001', 'it is erased again');

# Another school's record in its place.
by_force("UPDATE nomp_crypt.register SET school ="
	  . " (SELECT uuid FROM nomp_crypt.tenants WHERE id = 'claimed')"
	  . " WHERE type = 'destroyed'");
one("UPDATE nomp_crypt.tenant SET state = 'erased' WHERE id = 'claimed'");
is(school_reads($node, 'claimed'),
	'NC003', "another school's record proves nothing");
is(state_of(), 'corrupt', 'and is noticed');
one("UPDATE nomp_crypt.tenant SET state = 'active' WHERE id = 'claimed'");
repaired('columns changed');

# The triggers.
is(sqlstate($node, "UPDATE nomp_crypt.register SET type = 'born'"),
	'55000', 'rows are not changed');
is(sqlstate($node, 'DELETE FROM nomp_crypt.register'),
	'55000', 'nor deleted');
is(sqlstate($node, 'TRUNCATE nomp_crypt.register'), '55000', 'nor truncated');

# A case for the school "claimed", so that erasing it is what is refused.
one("SELECT nomp_crypt._erase_request('claimed', 'test', 'PUB-1')");

# The table, edited by force.
my ($header, @good) = lines();
by_force("UPDATE nomp_crypt.register SET jws = overlay(jws placing"
	  . " CASE substr(jws, 300, 4) WHEN 'AAAA' THEN 'BBBB' ELSE 'AAAA' END"
	  . " from 300 for 4) WHERE number = 3");
in_trouble('corrupt', 'a record changed in the table', inside => 1);
repaired('a record changed in the table');

by_force('DELETE FROM nomp_crypt.register WHERE number = 4');
in_trouble('corrupt', 'a row deleted in the middle', inside => 1);
repaired('a row deleted in the middle');

by_force('DELETE FROM nomp_crypt.register WHERE number > ' . (records() - 2));
is(state_of(), 'ahead', 'rows deleted at the end: the file has them');
is(sqlstate($node, "SELECT nomp_crypt.create_tenant('after')"),
	'', 'they are taken over with the next record');
is(state_of(), 'ok', 'and all is whole');

# The file.
(undef, @good) = lines();
my $text = slurp_file($file);
{
	my @changed = @good;

	substr($changed[2], 200, 1) =
	  substr($changed[2], 200, 1) eq 'A' ? 'B' : 'A';
	write_register(join "\n", $header, @changed, '');
	in_trouble('corrupt', 'a line changed in the file', inside => 1);
	repaired('a line changed in the file');
	is(slurp_file($file), $text, 'it is as it was');

	write_register(join "\n", $header, @good[ 0 .. $#good - 2 ], '');
	in_trouble('truncated', 'the file lost its end');
	repaired('the file lost its end');
	is(slurp_file($file), $text, 'it is as it was');

	write_register(
		join "\n", $header,
		@good[ 0 .. 2 ],
		@good[ 4 .. $#good ], '');
	in_trouble('truncated', 'the file lost a line', inside => 1);
	repaired('the file lost a line');

	write_register(substr $text, 0, length($text) - 100);
	is(state_of(), 'behind', 'a torn last line that the table has');
	is(sqlstate($node, "SELECT nomp_crypt.create_tenant('torn')"),
		'', 'is mended with the next record');
	is(state_of(), 'ok', 'and all is whole');

	$text = slurp_file($file);
	write_register($text . (records() + 1) . ' eyJhbGciOi');
	is(state_of(), 'ok', 'a torn last line that is nobody else\'s');
	is(sqlstate($node, "SELECT nomp_crypt.create_tenant('torn2')"),
		'', 'is written over');
	is(state_of(), 'ok', 'and all is whole');

	unlink $file or die $!;
	in_trouble('missing', 'the file is gone');
	repaired('the file is gone');

	$text = slurp_file($file);
	write_register("what is this?\n");
	in_trouble('corrupt', 'another file in its place');
	repaired('another file in its place');
	$text = slurp_file($file);
}

# Another installation's register.
{
	my $other = nomp_node('other');

	$other->start;
	create_nomp($other, 'elsewhere');
	copy("$other->{nomp_dir}/register-other/register", $file) or die $!;
	in_trouble('foreign', "another installation's file");
	write_register($text);
	is(state_of(), 'ok', 'with its own it is whole');
	$other->stop;
	$ENV{SOFTHSM2_CONF} = "$dir/softhsm2.conf";
}

# Records that somebody made himself: with a key of his own, in the header or
# not; with no signature; with the public key as a secret.
my $n = records() + 1;
my $claimed = one("SELECT uuid FROM nomp_crypt.tenants WHERE id = 'claimed'");
my $installation = one('SELECT uuid FROM nomp_crypt.installation');
my $previous =
  one(
	'SELECT encode(hash, $$hex$$) FROM nomp_crypt.register ORDER BY number DESC LIMIT 1'
  );
my $kid = one('SELECT kid FROM nomp_crypt.register_key()');
my $payload =
  qq({"version": 1, "number": $n, "previous": "$previous", "installation": "$installation", "site": "$installation", "at": "2026-11-27T00:00:00Z", "type": "destroyed", "data": {"school": "$claimed", "case": "$claimed", "keystores": {}}});

sub forge
{
	my ($how) = @_;
	my ($out, $err) = ('', '');

	IPC::Run::run(
		[
			'/usr/bin/python3', "$FindBin::RealBin/../test/forge_record.py",
			$how, $kid
		],
		'<',
		\"$first\n$payload",
		'>',
		\$out,
		'2>',
		\$err,
		IPC::Run::timeout(60)) or die "forge_record.py: $err";
	chomp $out;
	return $out;
}

for my $how (qw(own embedded none hs256))
{
	my $jws = forge($how);

	one('INSERT INTO nomp_crypt.register (number, hash, jws, at, type, school, case_id)'
		  . " VALUES ($n, sha256('$jws'), '$jws', '2026-11-27 00:00:00+00', 'destroyed',"
		  . " '$claimed', '$claimed')");
	one("UPDATE nomp_crypt.tenant SET state = 'erased' WHERE id = 'claimed'");
	is(school_reads($node, 'claimed'),
		'NC003', "forged ($how): it proves nothing");
	one("UPDATE nomp_crypt.tenant SET state = 'suspended' WHERE id = 'claimed'"
	);
	in_trouble('corrupt', "a forged record ($how) in the table");
	repaired("a forged record ($how) in the table");
	write_register($text . "$n $jws\n");
	in_trouble('corrupt', "a forged record ($how) in the file");
	repaired("a forged record ($how) in the file");
	$text = slurp_file($file);
}

# Table and file of yesterday: only the keystore remembers.
is(sqlstate($node, "SELECT nomp_crypt.create_tenant('today')"),
	'', 'a record');
my $now = slurp_file($file);
my $last = records();
wait_until(
	sub {
		one('SELECT in_keystore FROM nomp_crypt.register_status()') >= $last;
	},
	'the keystore to be told');
by_force("DELETE FROM nomp_crypt.register WHERE number = $last");
write_register($text);
in_trouble('head ahead', 'table and file of yesterday');
is(sqlstate($node, 'SELECT nomp_crypt.repair_register()'),
	'55000', 'what is lost on both is not repaired by itself');
write_register($now);
is(one("SELECT count(*) FROM nomp_crypt.reconcile()"),
	'0', 'with the file found again it is');
is(state_of(), 'ok', 'and whole');
by_force("DELETE FROM nomp_crypt.register WHERE number = $last");
write_register($text);
like(
	one('SELECT nomp_crypt.repair_register(accept_loss => true)'),
	qr/the loss is on record/,
	'a loss can be accepted');
wait_until(sub { state_of() eq 'ok' }, 'the keystore to be told');
is( one("SELECT type FROM nomp_crypt.verify_register() WHERE valid ORDER BY number DESC LIMIT 1"
	),
	'lost',
	'and stands on record');

# Killed at each point of an append.
for my $point (qw(signed half unsynced written committed))
{
	my $before = records();

	write_register($point, "$dir/register-main/crash");
	restarts($node,
		sub { sqlstate($node, "SELECT nomp_crypt.create_tenant('$point')") });
	ok(!-e "$dir/register-main/crash", "$point: where it should be");
	is( one("SELECT count(*) FROM nomp_crypt.tenants WHERE id = '$point'"),
		$point eq 'committed' ? 1 : 0,
		"$point: the school is there if that was committed");
	is(sqlstate($node, "SELECT nomp_crypt.create_tenant('$point again')"),
		'', "$point: the next one is created");
	is(state_of(), 'ok', "$point: the register is whole");
	cmp_ok(records(), '>', $before, "$point: and longer");
}
is( one("SELECT string_agg(id, ',' ORDER BY id) FROM nomp_crypt.tenants t WHERE NOT EXISTS"
		  . " (SELECT FROM nomp_crypt.verify_register() r WHERE r.school = t.uuid AND r.type = 'born')"
	),
	'today',
	'no school is without its record, but the one whose record was lost');

# The same for the record that a school's keys were destroyed.
for my $point (qw(signed half written committed))
{
	my $school = "erase $point";

	one("SELECT nomp_crypt.create_tenant('$school')");
	my $uuid =
	  one("SELECT uuid FROM nomp_crypt.tenants WHERE id = '$school'");
	one("SELECT nomp_crypt._erase_request('$school', 'test', 'PUB-$point')");
	my $case =
	  one("SELECT case_id FROM nomp_crypt.erasure WHERE tenant = '$uuid'");
	one("SELECT nomp_crypt._erase_fence('$case')");
	one("SELECT nomp_crypt._erase_submit('$case')");
	write_register($point, "$dir/register-main/crash");
	restarts($node,
		sub { sqlstate($node, "SELECT nomp_crypt._erase_destroy('$case')") });
	my $call =
	  "CALL nomp_crypt.erase_tenant('$school', 'test', 'PUB-$point')";

	if ($point eq 'committed')
	{
		is(sqlstate($node, $call),
			'', "destroying, $point: the call can be repeated");
	}
	else
	{
		repeats_lost_destruction($node, $call, $school, "destroying, $point");
	}
	is( one("SELECT count(*) FROM nomp_crypt.verify_register() WHERE case_id = '$case' AND type = 'destroyed'"
		),
		'1',
		"destroying, $point: it stands on record once");
	is(state_of(), 'ok', "destroying, $point: the register is whole");
	one("SELECT nomp_crypt.acknowledge_lease('$case')");
	one("CALL nomp_crypt.certify_erasure('$school')");
	like(one("SELECT nomp_crypt.certificate('$case')"),
		qr/^eyJ/, "destroying, $point: it is certified");
}

# Two sites append at once: the second takes itself for the primary, with a
# copy of everything.
{
	$node->backup('site');
	my $site = PostgreSQL::Test::Cluster->new('site');
	$site->init_from_backup($node, 'site');
	mkdir "$dir/register-site", 0700;
	copy($file, "$dir/register-site/register") or die $!;
	$site->append_conf('postgresql.conf',
		"nomp_crypt.register_directory = '$dir/register-site'");
	$site->start;
	is(sqlstate($site, "SELECT nomp_crypt.create_tenant('second')"),
		'55000', 'a copy appends nothing');
	$site->safe_psql('postgres', 'SELECT nomp_crypt.adopt_keystore()');
	# the first one's append, of which the keystore was not told in time
	write_register('committed', "$dir/register-main/crash");
	restarts($node,
		sub { sqlstate($node, "SELECT nomp_crypt.create_tenant('first')") });
	is(sqlstate($site, "SELECT nomp_crypt.create_tenant('second')"),
		'', 'the second site appends the same number');
	wait_until(sub { state_of() ne 'ok' }, 'the keystore to be told');
	in_trouble('forked', 'two sites at once');
	is(sqlstate($node, 'SELECT nomp_crypt.repair_register()'),
		'55000', 'a fork is not repaired by itself');
	is( $site->safe_psql(
			'postgres', 'SELECT state FROM nomp_crypt.register_status()'),
		'ok',
		'the other site goes on');
	$site->safe_psql('postgres', "SELECT nomp_crypt.create_tenant('third')");
	my $other = slurp_file("$dir/register-site/register");
	write_register($other);
	is(state_of(), 'forked',
		'the file of the one does not go with the table of the other');
	$site->stop;
}

$node->stop;
done_testing();
