# Whichever library does AES-256-GCM, a value is the same value: what one has
# written the other reads, finds by its fingerprint, and refuses if a bit was
# changed.  A server says at its start which library it uses.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = nomp_node('main');

# use_library(CHOICE): restart with that setting; what the log then names.
sub use_library
{
	my ($choice) = @_;

	$node->stop if defined $node->{_pid};
	$node->rotate_logfile;
	$node->append_conf('postgresql.conf',
		"nomp_crypt.cipher_library = $choice");
	$node->start;
	my ($name) = slurp_file($node->logfile) =~ /AES-256-GCM by (\S+), /;
	return $name // 'none';
}

# One value of every length from 0 to 600, and three that take more than one
# round of any processor's widest instructions.
sub written_by
{
	my ($library) = @_;

	$node->safe_psql('postgres', in_tenant('school', <<"SQL"));
INSERT INTO value SELECT '$library', len, left(repeat(md5(len::text), len / 32 + 1), len), len
FROM (SELECT generate_series(0, 600) UNION ALL VALUES (5000), (70000), (1000000)) l (len);
SQL
	return;
}

# How many of its values are what they were: read, and found.
sub good
{
	my ($library) = @_;

	return $node->safe_psql('postgres', in_tenant('school', <<"SQL"));
SELECT count(*) FROM value WHERE library = '$library'
	AND content::text = left(repeat(md5(len::text), len / 32 + 1), len) AND number::int = len;
SELECT count(*) FROM generate_series(0, 600) n
WHERE EXISTS (SELECT FROM value WHERE library = '$library' AND number = n);
SQL
}

is(use_library('openssl'), 'openssl',
	'OpenSSL is used where it is asked for');
create_nomp($node, 'school');
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE value (library text, len int, content encrypted(text),
	number encrypted(int, searchable), PRIMARY KEY (library, len));
CREATE INDEX ON value (number);
CREATE FUNCTION as_value(raw bytea) RETURNS encrypted LANGUAGE internal IMMUTABLE STRICT AS 'byteasend';
CREATE FUNCTION outcome(value encrypted) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	RETURN 'data: ' || nomp_crypt.decrypt(value);
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END
$$;
SQL
written_by('openssl');
is(good('openssl'), "604\n601", 'OpenSSL reads its own');

my $other = use_library('auto');
if (slurp_file('/proc/cpuinfo') =~
	/^flags\s*:.*\baes\b.*\bpclmulqdq\b|^flags\s*:.*\bpclmulqdq\b.*\baes\b/m)
{
	is($other, 'ipsec-mb', 'libipsec-mb is used on a processor with AES');
}
else
{
	is($other, 'openssl', 'OpenSSL is used on a processor without AES');
}
is(good('openssl'), "604\n601", "$other reads what OpenSSL wrote");
written_by($other . ' ');
is(good($other . ' '), "604\n601", "$other reads its own");

# every byte of a value by either, with one bit changed, by either
my $flips = <<'SQL';
SELECT count(*) || ' ' || string_agg(DISTINCT outcome(as_value(set_byte(raw, i, get_byte(raw, i) # bit))), ',')
FROM (SELECT nomp_crypt.encrypt(left(repeat('Anna', 10), len), 'school') AS v
	FROM unnest('{0,1,15,16,17,40}'::int[]) len) s,
	LATERAL (SELECT encrypted_send(v) AS raw) r,
	generate_series(10, length(raw) - 1) i, unnest('{1,128}'::int[]) bit;
SQL
is($node->safe_psql('postgres', $flips),
	'658 NC005', "$other refuses every changed bit");

is(use_library('openssl'), 'openssl', 'back to OpenSSL');
is(good($other . ' '), "604\n601", "OpenSSL reads what $other wrote");
is($node->safe_psql('postgres', $flips),
	'658 NC005', 'OpenSSL refuses every changed bit');

$node->stop;
done_testing();
