# A stand-in for AWS that nobody here wrote: moto checks the signatures of what
# the helper sends, and the shapes, by its own idea of them.  A server keeps its
# schools' keys there: set-up, new schools, reading, a deletion.
#
# What moto cannot do, and kms_double.py does: it knows no states (keys that are
# disabled or wait to be deleted still decrypt), has no windows that end, no
# throttling, no session credentials that expire, no TLS; and it answers a wrong
# signature with XML.  test/moto_server.py repairs three things in it.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use HTTP::Tiny;
use JSON::PP ();
use NompTest;
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $python = '/usr/bin/python3';
my $moto = $ENV{NOMP_MOTO}
  // die 'NOMP_MOTO: the folder that scripts/fetch-moto filled';
my $port = PostgreSQL::Test::Cluster::get_free_port();
my $url = "http://127.0.0.1:$port";
my $account = "$FindBin::RealBin/../test/moto_account.py";
my $dir = PostgreSQL::Test::Utils::tempdir();

# ---- moto, with a user ----

my $pid = fork // die "cannot fork: $!";
if ($pid == 0)
{
	my $log = "$PostgreSQL::Test::Utils::log_path/moto.log";

	open STDIN, '<', '/dev/null' or POSIX::_exit(126);
	open STDOUT, '>>', $log or POSIX::_exit(126);
	open STDERR, '>&', \*STDOUT or POSIX::_exit(126);
	# not to be left behind by a test that is killed
	exec 'setpriv', '--pdeathsig', 'KILL', $python,
	  "$FindBin::RealBin/../test/moto_server.py", $moto, $port
	  or POSIX::_exit(127);
}

END
{
	my $status = $?;

	if ($pid)
	{
		kill 'KILL', $pid;
		waitpid $pid, 0;
	}
	$? = $status;
}

wait_until(
	sub { HTTP::Tiny->new(timeout => 5)->get("$url/moto-api/")->{success} },
	'moto');
my ($user) = run_command([ $python, $account, $url, 'user' ]);
my ($access_key, $secret) = split / /, $user;
ok(length($secret // '') > 20, 'moto has a user, and checks signatures');

# keys(): moto's, as boto3 sees them.
sub keys_in_moto
{
	local $ENV{AWS_ACCESS_KEY_ID} = $access_key;
	local $ENV{AWS_SECRET_ACCESS_KEY} = $secret;

	my ($keys) = run_command([ $python, $account, $url, 'keys' ]);

	return map { JSON::PP::decode_json($_) } split /\n/, $keys;
}

# ---- a server ----

# write_credentials(SECRET): for a helper that starts from now on.
sub write_credentials
{
	my ($its_secret) = @_;

	unlink "$dir/credentials";
	PostgreSQL::Test::Utils::append_to_file("$dir/credentials",
		"[default]\naws_access_key_id = $access_key\naws_secret_access_key = $its_secret\n"
	);
	chmod 0600, "$dir/credentials";
	return;
}

write_credentials($secret);
$ENV{AWS_SHARED_CREDENTIALS_FILE} = "$dir/credentials";
$ENV{AWS_CONFIG_FILE} = "$dir/config";

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init(extra => [ '--encoding=UTF8', '--no-locale' ]);
nomp_conf($node, $dir, 'none');
$node->append_conf('postgresql.conf', <<"CONF");
nomp_crypt.keystore = 'aws-kms://eu-north-1?endpoint=$url&test=yes'
nomp_crypt.keystore_timeout = 60s
CONF
$node->start;
create_nomp($node, qw(north south));
$node->safe_psql('postgres',
		'INSERT INTO pupil (id, school, name)'
	  . " SELECT row_number() OVER (), id, nomp_crypt.encrypt('Anna i ' || id, id)"
	  . ' FROM nomp_crypt.tenants');
is(keystore_state($node), 'ok', 'the server is content with its keystore');

my @keys;
wait_until(
	sub {
		@keys = keys_in_moto();
		!grep { exists $_->{tag}->{'nomp_crypt:provisional'} } @keys;
	},
	'all keys to be confirmed');
is( join(' ',
		sort map { $_->{tag}->{'nomp_crypt:label'} =~ /:(canary|\d+)$/ }
		grep     { $_->{spec} eq 'SYMMETRIC_DEFAULT' } @keys),
	'1 1 canary',
	'a canary, and a key for each school, by their tags');
is( scalar(
		grep {
				 $_->{state} ne 'Enabled'
			  || $_->{origin} ne 'AWS_KMS'
			  || $_->{multi_region}
			  || exists $_->{tag}->{'nomp_crypt:provisional'}
		} @keys),
	0,
	'all are KMS\'s own, in one region, enabled, and confirmed');

$node->restart;
is(school_reads($node, $_), "Anna i $_", "$_ reads after a restart")
  for qw(north south);
is( $node->safe_psql('postgres', "SELECT nomp_crypt.rewrap_tenant('north')"),
	2,
	'a rewrap');
is( $node->safe_psql('postgres', "SELECT nomp_crypt.rotate_tenant('north')"),
	2,
	'a new data key');
$node->restart;
is(school_reads($node, 'north'), 'Anna i north', 'which reads, too');

# ---- signatures ----

write_credentials(scalar reverse $secret);
$node->restart;
is(school_reads($node, 'south'),
	'NC004', 'moto refuses what a wrong secret has signed');
write_credentials($secret);
restart_helper($node);
is(school_reads($node, 'south'), 'Anna i south', 'and not the right one');

# ---- a deletion ----

$node->psql('postgres', "CALL nomp_crypt.erase_tenant('south', 'test')");
is( scalar(
		grep {
				 $_->{state} eq 'PendingDeletion'
			  && $_->{tag}->{'nomp_crypt:label'} =~ /:1$/
		} keys_in_moto()),
	1,
	'an erasure schedules the deletion of the school\'s key');
like(school_reads($node, 'south'), qr/^NC00[12]$/,
	'and the school is closed');

done_testing();
