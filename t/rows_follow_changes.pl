# What a session remembers of the extension's tables holds until they change,
# and not a statement longer: whoever changes them, from wherever, by whatever
# means.  A session that kept a right, a state or a key would go on reading.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = nomp_node('primary', allows_streaming => 1);

$node->append_conf('postgresql.conf', 'nomp_crypt.erasure_grace = 0');
$node->start;
create_nomp($node, 's1', 's2');
$node->safe_psql('postgres', <<'SQL');
CREATE ROLE app LOGIN;
CREATE ROLE readers;
GRANT ALL ON pupil TO app, readers;
SQL
$node->safe_psql('postgres',
	in_tenant('s1', "INSERT INTO pupil VALUES (1, 's1', 'Anna', '')"));

my $read = 'SELECT name FROM pupil WHERE id = 1';
my $app = open_session($node);

is(says($app, "SET ROLE app; SET nomp_crypt.tenant = 's1'; $read"),
	'42501', 'a role without rights reads nothing');

# Sees in the session, in a transaction of its own and in one that is open
# already, what another session has changed.
sub follows
{
	my ($change, $expected, $what) = @_;

	is(says($app, "BEGIN; $read; SAVEPOINT before;"),
		'Anna', "before: $what");
	$node->safe_psql('postgres', $change);
	is(says($app, $read),
		$expected, "$what: the next statement of an open transaction");
	says($app, 'ROLLBACK');
	is(says($app, $read), $expected, "$what: the next transaction");
	return;
}

sub gives_back
{
	my ($change, $what) = @_;

	$node->safe_psql('postgres', $change);
	is(says($app, $read), 'Anna', "$what: read again");
	return;
}

my $grant = q{SELECT nomp_crypt.grant_tenant('s1', 'app', '{decrypt}')};

gives_back($grant, 'granted');
follows(q{SELECT nomp_crypt.revoke_tenant('s1', 'app', '{decrypt}')},
	'42501', 'revoked');
gives_back($grant, 'granted once more');

# by hand, as administrators should not, and in every way a row can change
follows(q{DELETE FROM nomp_crypt.tenant_right WHERE role = 'app'},
	'42501', 'deleted');
gives_back($grant, 'granted after deletion');
follows(
	q{SET session_replication_role = replica;
	UPDATE nomp_crypt.tenant_right SET decrypt = false WHERE role = 'app'},
	'42501', 'updated where triggers do not fire');
gives_back(
	q{UPDATE nomp_crypt.tenant_right SET decrypt = true WHERE role = 'app'},
	'updated back');
follows('TRUNCATE nomp_crypt.tenant_right', '42501', 'truncated');

# rights that come with a role
$node->safe_psql('postgres',
	q{SELECT nomp_crypt.grant_tenant('s1', 'readers', '{decrypt}')});
gives_back('GRANT readers TO app', 'made a member');
follows('REVOKE readers FROM app', '42501', 'no longer a member');
gives_back('GRANT readers TO app', 'a member again');
follows('DROP OWNED BY readers; DROP ROLE readers', '42501', 'role dropped');
gives_back($grant, 'granted for the role itself');

# the school's state and keys
follows(q{UPDATE nomp_crypt.tenant SET state = 'suspended' WHERE id = 's1'},
	'NC002', 'suspended');
gives_back(q{UPDATE nomp_crypt.tenant SET state = 'active' WHERE id = 's1'},
	'active again');

# what was never committed is forgotten too
my $admin = open_session($node);
my $mine = q{SELECT name::text FROM pupil WHERE id = 1};

says($admin,
	q{SELECT nomp_crypt.revoke_all_tenants(current_user, '{decrypt}')});
$node->safe_psql('postgres', 'TRUNCATE nomp_crypt.tenant_right');
is(says($admin, $mine), '42501', 'a superuser without the right');
is( says(
		$admin,
		"BEGIN; SAVEPOINT one;"
		  . q{SELECT FROM nomp_crypt.grant_tenant('s1', current_user, '{decrypt}');}
		  . $mine),
	'Anna',
	'granted within the transaction');
is(says($admin, "ROLLBACK TO one; $mine"),
	'42501', 'rolled back to a savepoint');
says($admin, 'ROLLBACK');
is( says(
		$admin,
		q{BEGIN; SELECT FROM nomp_crypt.grant_tenant('s1', current_user, '{decrypt}');}
		  . $mine),
	'Anna',
	'granted within the transaction, again');
is(says($admin, "ROLLBACK; $mine"), '42501', 'rolled back as a whole');
is( says(
		$admin,
		q{BEGIN; SELECT FROM nomp_crypt.create_tenant('s3');}
		  . q{SELECT FROM nomp_crypt.grant_all_tenants(current_user, '{encrypt,decrypt}');}
		  . q{SET nomp_crypt.tenant = 's3'; SELECT 'x'::encrypted::text}),
	'x',
	'a tenant of the own transaction');
is( says(
		$admin,
		q{ROLLBACK; SET nomp_crypt.tenant = 's3'; SELECT 'x'::encrypted::text}
	),
	'42704',
	'that was never created');

# a standby, which hears of it when it replays
$node->safe_psql('postgres', $grant);
$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
mkdir "$node->{nomp_dir}/register-standby", 0700;
$standby->append_conf('postgresql.conf',
	"nomp_crypt.register_directory = '$node->{nomp_dir}/register-standby'");
$standby->start;
$node->wait_for_catchup($standby);

my $there = open_session($standby);

is(says($there, "SET ROLE app; SET nomp_crypt.tenant = 's1'; $read"),
	'Anna', 'read on the standby');
says($there, 'BEGIN');
is(says($there, $read), 'Anna', 'and in an open transaction');
$node->safe_psql('postgres',
	q{SELECT nomp_crypt.revoke_tenant('s1', 'app', '{decrypt}')});
$node->wait_for_catchup($standby);
is(says($there, $read), '42501', 'revoked: the standby follows at once');
says($there, 'ROLLBACK');
$node->safe_psql('postgres', $grant);
$node->wait_for_catchup($standby);
is(says($there, $read), 'Anna', 'granted: so does it');
$node->safe_psql('postgres',
	q{UPDATE nomp_crypt.tenant SET state = 'suspended' WHERE id = 's1'});
$node->wait_for_catchup($standby);
is(says($there, $read), 'NC002', 'suspended: and so');
$node->safe_psql('postgres',
	q{UPDATE nomp_crypt.tenant SET state = 'active' WHERE id = 's1'});

# a school that is erased and onboarded again under its old id
is(says($app, $read), 'Anna', 'before the erasure');
is(sqlstate($node, q{CALL nomp_crypt.erase_tenant('s1', 'test')}),
	'', 'erased');
is(says($app, $read), 'NC001', 'erased: the session follows');
$node->safe_psql('postgres', q{SELECT nomp_crypt.create_tenant('s1')});
$node->safe_psql('postgres',
	q{SELECT nomp_crypt.grant_tenant('s1', 'app', '{encrypt,decrypt}')});
says($app, q{UPDATE pupil SET name = 'Berit' WHERE id = 1});
is(says($app, $read), 'Berit', 'onboarded again: a new tenant of that id');

done_testing();
