# Somebody who may do everything in the database and has kept copies tries to
# have an erased school back, or to have it said that one was erased: by putting
# rows of the extension's tables back by hand, by giving values or keys to a
# school that lives, by making the school anew, by a second key of the same name
# in the token.  No value is readable, no certificate is made over it, and what
# is said is what is on record.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Certified;
use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = nomp_node('main');
my $dir = $node->{nomp_dir};
$node->start;
create_nomp($node, qw(gone certified twins late living));
$node->safe_psql('postgres',
	"INSERT INTO pupil SELECT row_number() OVER (), id, nomp_crypt.encrypt('Anna i ' || id, id), NULL FROM nomp_crypt.tenants"
);

sub one { return $node->safe_psql('postgres', $_[0]) }

sub erase
{
	return sqlstate($node,
		"CALL nomp_crypt.erase_tenant('$_[0]', 'test', 'PUB-1')");
}

sub certify
{
	return failure($node, "CALL nomp_crypt.certify_erasure('$_[0]')");
}

sub acknowledge
{
	one("SELECT nomp_crypt.acknowledge_lease(e.case_id) FROM nomp_crypt.erasure e JOIN nomp_crypt.tenant t ON t.uuid = e.tenant WHERE t.id = '$_[0]' AND e.state = 'destroyed'"
	);
	return;
}

sub uuid_of
{
	return one("SELECT uuid FROM nomp_crypt.tenant WHERE id = '$_[0]'");
}

# What anybody may say of that school's values; none of it is data.
sub unreadable
{
	my ($what, $id, $state) = @_;

	is(school_reads($node, $id), $state, "$what: inside the school");
	is( outcome(
			$node,
			"SELECT nomp_crypt.decrypt(name) FROM pupil WHERE school = '$id'"
		),
		$state,
		"$what: from outside");
	return;
}

# ---- rows put back by hand ----

my @tables = qw(tenant kek tenant_key erasure register);
one("CREATE TABLE kept_$_ AS TABLE nomp_crypt.$_") for @tables;
my $gone = uuid_of('gone');
is(erase('gone'), '', 'a school is erased');
acknowledge('gone');
unreadable('erased', 'gone', 'NC001');

one("UPDATE nomp_crypt.tenant_key k SET wrapped = o.wrapped, state = o.state FROM kept_tenant_key o WHERE o.key_id = k.key_id AND k.tenant = '$gone'"
);
unreadable('its old wraps are back', 'gone', 'NC001');
like(
	certify('gone'),
	qr/^55000: .*2 rows of nomp_crypt.tenant_key have a wrapped key again/,
	'its old wraps are back: nothing is certified');

one("UPDATE nomp_crypt.kek k SET state = o.state, destroyed_at = NULL FROM kept_kek o WHERE o.uuid = k.uuid AND k.tenant = '$gone';"
	  . " UPDATE nomp_crypt.tenant SET state = 'active' WHERE uuid = '$gone'; DELETE FROM nomp_crypt.erasure WHERE tenant = '$gone'"
);
unreadable('its rows are as they were', 'gone', 'NC003');
is( one("SELECT name FROM nomp_crypt.health() WHERE name = 'reconcile' AND severity <> 'ok'"
	),
	'reconcile',
	'its rows are as they were: health() says what the register says');
one(    'ALTER TABLE nomp_crypt.register DISABLE TRIGGER USER;'
	  . ' DELETE FROM nomp_crypt.register WHERE number NOT IN (SELECT number FROM kept_register);'
	  . ' ALTER TABLE nomp_crypt.register ENABLE ALWAYS TRIGGER append_only;'
	  . ' ALTER TABLE nomp_crypt.register ENABLE ALWAYS TRIGGER append_only_rows'
);
unreadable('and so is the register', 'gone', 'NC003');
is( sqlstate($node, "CALL nomp_crypt.erase_tenant('gone', 'test', 'PUB-2')"),
	'NC003',
	'it cannot be erased again, without anybody having seen a key');
is(school_reads($node, 'gone'), 'NC002', 'but it is suspended by that');
is( one("SELECT string_agg(action, ' ') FROM nomp_crypt.reconcile() WHERE tenant = 'gone'"
	),
	'erased',
	'the file of the register remembers');
unreadable('reconciled', 'gone', 'NC001');
acknowledge('gone');
is(certify('gone'), '', 'and it is certified');
is(uncertified($node, [ token_labels($dir, 'nomp') ], 'gone'),
	'', 'with everything as it must be');

# ---- its values and keys given to others ----

one("CREATE TABLE other AS SELECT name FROM pupil WHERE school = 'gone'");
is(outcome($node, in_tenant('living', 'SELECT name FROM other')),
	'55000', "among another school's values it is not read");
is(outcome($node, 'SELECT nomp_crypt.decrypt(name) FROM other'),
	'NC001', 'it is what it was');
is( sqlstate(
		$node,
		in_tenant(
			'living',
			"UPDATE pupil SET name = (SELECT name FROM other) WHERE school = 'living'"
		)),
	'55000',
	'nor can it be written into its rows');
my $living = uuid_of('living');
one("UPDATE nomp_crypt.tenant_key k SET tenant = '$living', kek = (SELECT uuid FROM nomp_crypt.kek WHERE tenant = '$living'),"
	  . " wrapped = (SELECT wrapped FROM nomp_crypt.tenant_key l WHERE l.tenant = '$living' AND l.purpose = 'values'), state = 'active', version = 7"
	  . " WHERE k.tenant = '$gone' AND k.purpose = 'values'");
like(outcome($node, in_tenant('living', 'SELECT name FROM other')),
	qr/^NC00[1345]$/,
	'its key given to a school that lives, with its wrap: no data');
one("UPDATE nomp_crypt.tenant_key k SET wrapped = o.wrapped FROM kept_tenant_key o WHERE o.key_id = k.key_id AND o.tenant = '$gone' AND o.purpose = 'values'"
);
like(outcome($node, in_tenant('living', 'SELECT name FROM other')),
	qr/^NC00[1345]$/, 'nor with its own old one');
one("UPDATE nomp_crypt.tenant_key k SET tenant = o.tenant, kek = o.kek, version = o.version, wrapped = NULL, state = 'erased' FROM kept_tenant_key o WHERE o.key_id = k.key_id AND o.tenant = '$gone'"
);
is( school_reads($node, 'living'),
	'Anna i living',
	'that school is none the worse');

# ---- the school made anew ----

my $new = one("SELECT nomp_crypt.create_tenant('gone')");
isnt($new, $gone, 'the school is made anew, as another');
unreadable('made anew', 'gone', 'NC001');
one("UPDATE nomp_crypt.tenant_key SET tenant = '$new', version = 9, state = 'active', wrapped = (SELECT wrapped FROM nomp_crypt.tenant_key l WHERE l.tenant = '$new' AND l.purpose = 'values'), kek = (SELECT uuid FROM nomp_crypt.kek WHERE tenant = '$new') WHERE tenant = '$gone' AND purpose = 'values'"
);
like(school_reads($node, 'gone'),
	qr/^NC00[1345]$/, 'with the old key given to the new one: no data');

# ---- keys of the same name in the token ----

my $label = kek_label($node, 'twins');
make_key($dir, 'nomp', $label);
$node->restart;
like(
	school_reads($node, 'twins'),
	qr/^(?:Anna i twins|NC00[345])$/,
	'two keys of one name: the value, or an error, but nothing else');
is(erase('twins'), '', 'such a school is erased');
acknowledge('twins');
is(certify('twins'), '', 'and certified');
is(scalar(grep { $_ eq $label } token_labels($dir, 'nomp')),
	0, 'no key of that name is left');

$label = kek_label($node, 'late');
is(erase('late'), '', 'a school is erased');
acknowledge('late');
make_key($dir, 'nomp', $label);
like(
	certify('late'),
	qr/^55000: a key of the school is in the keystore: nothing is certified/,
	'a key of its name that comes afterwards: nothing is certified');
unreadable('a key of its name that comes afterwards', 'late', 'NC001');
delete_from_token($dir, 'nomp', $label);
is(certify('late'), '', 'without it, it is');

$node->stop;
done_testing();
