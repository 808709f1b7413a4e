# An application keeps its ORM: psycopg, SQLAlchemy and Django work with the
# SQL that they emit by themselves, get native types back, and raise their own
# errors.  What they need for that is in clients/python/, and is tested here.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use ClientTest;
use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# Debian's, whatever other Python there is.
my @python = ('/usr/bin/python3', '-W', 'default');
my $adapters = "$FindBin::RealBin/../clients/python";
my $pooler_dir = PostgreSQL::Test::Utils::tempdir_short();
my $pooler;

END
{
	my $status = $?;

	$pooler->kill_kill if defined $pooler;
	$? = $status;
}

local $ENV{PYTHONDONTWRITEBYTECODE} = 1;
local $ENV{PYTHONIOENCODING} = 'UTF-8';

my $node = client_node();
my $conninfo = $node->connstr('postgres') . ' user=app';

# pgbouncer in transaction mode, with one server session for all.
$node->safe_psql('postgres',
	"ALTER ROLE app SET nomp_crypt.tenant_scope = 'transaction'");
append_to_file("$pooler_dir/users", "\"app\" \"\"\n");
append_to_file("$pooler_dir/pgbouncer.ini", <<"INI");
[databases]
postgres = host=@{[ $node->host ]} port=@{[ $node->port ]} dbname=postgres
[pgbouncer]
pool_mode = transaction
default_pool_size = 1
auth_type = trust
auth_file = $pooler_dir/users
unix_socket_dir = $pooler_dir
listen_port = 6432
INI
$pooler =
  IPC::Run::start([ '/usr/sbin/pgbouncer', "$pooler_dir/pgbouncer.ini" ],
	'<', \'', '>&', "$pooler_dir/log");
wait_until(
	sub {
		$pooler->pumpable
		  or die 'pgbouncer: ' . slurp_file("$pooler_dir/log");
		return -S "$pooler_dir/.s.PGSQL.6432";
	},
	'pgbouncer to listen');

run_client('psycopg', @python, client_program('psycopg_app.py'),
	$adapters, $conninfo);
run_client('SQLAlchemy', @python, client_program('sqlalchemy_app.py'),
	$adapters, $conninfo,
	"host=$pooler_dir port=6432 dbname=postgres user=app");
run_client('Django', @python, client_program('django_app.py'),
	$adapters, $node->host, $node->port);

# What they wrote is encrypted.
for my $table (qw(person sa_pupil django_school_pupil))
{
	is( $node->safe_psql(
			'postgres',
			"SELECT string_agg(DISTINCT left(encode(encrypted_send(name), 'hex'), 2), ',')"
			  . " FROM $table"),
		'10',
		"what is in $table is encrypted");
}

$pooler->kill_kill;
undef $pooler;
$node->stop;
done_testing();
