# The key pair that signs the register is made, found and used in AWS KMS; who
# has the public key can verify what it signed, without us.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use ClientTest;
use KmsDouble;
use PostgreSQL::Test::Utils;
use Test::More;

my $aws = PostgreSQL::Test::Utils::tempdir() . '/aws';
my ($libdir) = run_command([ 'pg_config', '--pkglibdir' ]);

start_double($aws);
local $ENV{AWS_SHARED_CREDENTIALS_FILE} = "$aws/credentials";
local $ENV{AWS_CONFIG_FILE} = "$aws/config";
run_client('helper', '/usr/bin/python3',
	"$FindBin::RealBin/../test/helper_signs.py",
	"$libdir/nomp_crypt-keystore", double_uri($aws));
is(scalar(grep { $_->{spec} eq 'ECC_NIST_P256' } double_keys($aws)),
	1, 'one pair was made');

done_testing();
