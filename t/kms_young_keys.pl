# AWS KMS shows a new key late: a school that was just made, or rewrapped, on one
# node is read on another, which asks a part of the service that does not know its
# key yet.  That is said as it is, NC004, and wipes nothing; that a key is gone,
# NC003, is final and can be known only after five minutes.
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

$node->append_conf('postgresql.conf', <<"CONF");
nomp_crypt.keystore = '@{[ double_uri($aws, '&settled=no') ]}'
nomp_crypt.keystore_timeout = 4s
nomp_crypt.key_check_interval = 1h
CONF
$node->start;
cold_schools($node, qw(s1 s2));

sub one
{
	my ($sql) = @_;

	return $node->safe_psql('postgres', $sql);
}

sub wipe
{
	my ($school) = @_;

	one("SELECT nomp_crypt._wipe(uuid) FROM nomp_crypt.tenant WHERE id = '$school'"
	);
	return;
}

sub key_of
{
	my ($school) = @_;
	my $label = kek_label($node, $school);
	my ($key) = grep { ($_->{tag}->{'nomp_crypt:label'} // '') eq $label }
	  double_keys($aws);

	return $key->{id};
}

# As another node may see it: nothing answers to that key's name.
sub hide
{
	my ($school) = @_;

	double_says(
		$aws, 'fault',
		error => 'NotFoundException',
		key => key_of($school));
	restart_helper($node);
	return;
}

# ---- nothing of the school is in memory ----

wipe('s1');
hide('s1');
is(school_reads($node, 's1'),
	'NC004', 'a key that does not show yet is no key that is gone');
my (undef, undef, $said) = $node->psql('postgres',
	"SET nomp_crypt.tenant = 's1'; SELECT nomp_crypt.decrypt(name) FROM pupil WHERE school = 's1'"
);
like(
	$said,
	qr/the keystore is unavailable: it does not show the key yet\n.*HINT:.*Repeat the statement/s,
	'the session is told what to do');
is(school_reads($node, 's2'), 'Anna i s2', 'no other school is stopped');
double_says($aws, 'recover');
is(school_reads($node, 's1'), 'Anna i s1', 'when it shows, it is read');

# ---- a background check does not see it ----

hide('s1');
one("ALTER SYSTEM SET nomp_crypt.key_check_interval = '1s'");
$node->reload;
$node->wait_for_log(
	qr/key "\Q@{[ kek_label($node, 's1') ]}\E", status \d+: .*does not show it yet/
);
is(school_reads($node, 's1'),
	'Anna i s1',
	'a check that does not see it takes nothing from the school');
unlike(
	slurp_file($node->logfile),
	qr/keys are wiped/,
	'nobody\'s keys are wiped');
one("ALTER SYSTEM SET nomp_crypt.key_check_interval = '1h'");
$node->reload;

# ---- it should have shown long ago ----

wipe('s1');
for my $age ('-4 minutes', '4 minutes', '6 minutes', '-6 minutes')
{
	one("UPDATE nomp_crypt.kek SET created_at = now() - interval '$age' WHERE label = '@{[ kek_label($node, 's1') ]}'"
	);
	is( school_reads($node, 's1'),
		$age =~ /4/ ? 'NC004' : 'NC003',
		"made $age ago by another node's clock");
}
double_says($aws, 'recover');
is(school_reads($node, 's1'), 'Anna i s1', 'and it is read when it is back');

$node->stop;
done_testing();
