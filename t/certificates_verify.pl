# A certificate is for somebody who trusts neither the database nor its
# operator: a school that was given a public key when the contract began.  So
# it is verified here with what such a school has, OpenSSL by the commands on
# the page itself and a JOSE library; what it says is held against its schema;
# the page is looked at in a browser.  And certificates that are not true are
# refused: before the keys are gone, when one is back, and when they are forged.

use strict;
use warnings;

use File::Copy 'copy';
use FindBin;
use lib "$FindBin::RealBin/lib";

use JSON::PP ();
use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $root = "$FindBin::RealBin/..";
my $temp = PostgreSQL::Test::Utils::tempdir();
my $node = nomp_node('main', allows_streaming => 1);
my $dir = $node->{nomp_dir};
$node->start;
create_nomp($node, qw(living));
one(<<'SQL');
SELECT nomp_crypt.create_tenant('s-0180-42', $$Ribersborgs<script>alert("skola")</script> & Co$$, 'PUB-2024/117');
SELECT nomp_crypt.create_tenant('other', agreement => 'Anna Andersson, rektor');
INSERT INTO pupil VALUES (1, 's-0180-42', nomp_crypt.encrypt('Anna Andersson', 's-0180-42'), NULL);
SELECT nomp_crypt.rewrap_tenant('s-0180-42');
CREATE TABLE converted (id int, school text, name text);
SELECT nomp_crypt.encrypt_column('converted', 'name', 'school');
CREATE ROLE stranger; CREATE ROLE dpo LOGIN; SELECT nomp_crypt.grant_admin('dpo');
SELECT nomp_crypt.hold_tenant('s-0180-42', 'T-77-26'); SELECT nomp_crypt.release_hold('s-0180-42', 'T-77-26');
SELECT nomp_crypt.data_returned('s-0180-42', repeat('ab', 32));
SQL

sub one { return $node->safe_psql('postgres', $_[0]) }

sub one_in_file
{
	my ($path, $text) = @_;

	open my $fh, '>:utf8', $path or die "$path: $!";
	print $fh $text or die $!;
	close $fh or die $!;
	return $path;
}

# Run a program: what it prints on standard output, or undef if it fails.
sub run_program
{
	my ($in, @command) = @_;
	my ($out, $err) = ('', '');

	return $out
	  if IPC::Run::run(\@command, '<', \$in, '>', \$out, '2>', \$err,
		IPC::Run::timeout(600));
	diag("$command[0]: $err");
	return undef;
}

# What a school is given when the contract begins.
my $pem = one('SELECT pem FROM nomp_crypt.register_key()') . "\n";
my $old_kid = one('SELECT kid FROM nomp_crypt.register_key()');
one_in_file("$temp/key.pem", $pem);
is( one('SELECT number || $$ $$ || hash FROM nomp_crypt.register_key()'),
	one('SELECT number || $$ $$ || encode(hash, $$hex$$) FROM nomp_crypt.register ORDER BY number DESC LIMIT 1'
	),
	'with the key goes where the chain is');

# Not before the keys are gone.
one("SELECT nomp_crypt._erase_request('s-0180-42', 'agreement_ended', 'PUB-2024/117')"
);
my $case = one('SELECT case_id FROM nomp_crypt.erasure');
{
	local $ENV{PGUSER} = 'dpo';
	one("SELECT nomp_crypt.approve_erasure('$case')");
}
is(sqlstate($node, "SELECT nomp_crypt.certificate('$case')"),
	'55000', 'nothing is certified before the keys are destroyed');
is(sqlstate($node, 'SELECT nomp_crypt.certificate(gen_random_uuid())'),
	'42704', 'nor is a case that nobody knows');
my $uuid = one("SELECT uuid FROM nomp_crypt.tenants WHERE id = 's-0180-42'");
one("CREATE TABLE kept AS SELECT * FROM nomp_crypt.tenant_key WHERE tenant = '$uuid'"
);
my $label =
  one("SELECT max(label) FROM nomp_crypt.kek WHERE tenant = '$uuid'");
is( sqlstate(
		$node,
		"CALL nomp_crypt.erase_tenant('s-0180-42', 'agreement_ended', 'PUB-2024/117')"
	),
	'',
	'the school is erased');
is(sqlstate($node, "SELECT nomp_crypt.certificate('$case')"),
	'55000', 'nothing is certified that was not verified');
is(sqlstate($node, "CALL nomp_crypt.certify_erasure('s-0180-42')"),
	'55000', 'nor before the longest lease is over');
one("SELECT nomp_crypt.acknowledge_lease('$case')");

# Not with a wrapped key that somebody put back, nor with a key in the token.
one("UPDATE nomp_crypt.tenant_key k SET wrapped = o.wrapped, state = 'active' FROM kept o WHERE o.key_id = k.key_id"
);
is(sqlstate($node, "CALL nomp_crypt.certify_erasure('s-0180-42')"),
	'55000', 'nothing is certified with an old wrap put back');
is(outcome($node, 'SELECT nomp_crypt.decrypt(name) FROM pupil'),
	'NC001', 'which opens nothing');
one("UPDATE nomp_crypt.tenant SET state = 'active' WHERE uuid = '$uuid'");
is(outcome($node, 'SELECT nomp_crypt.decrypt(name) FROM pupil'),
	'NC003', 'nor with a state to go with it');
one("UPDATE nomp_crypt.tenant SET state = 'erased' WHERE uuid = '$uuid'");
one("UPDATE nomp_crypt.tenant_key SET tenant = (SELECT uuid FROM nomp_crypt.tenants WHERE id = 'living'),"
	  . " version = version + 100 WHERE tenant = '$uuid'");
like(
	outcome(
		$node, in_tenant('living', 'SELECT name FROM pupil WHERE id = 1')),
	qr/^NC00[345]$/,
	'nor under a living school');
one("UPDATE nomp_crypt.tenant_key SET tenant = '$uuid', version = version - 100, wrapped = NULL, state = 'erased' WHERE version > 100"
);
make_key($dir, 'nomp', $label);
is(sqlstate($node, "CALL nomp_crypt.certify_erasure('s-0180-42')"),
	'55000', 'nothing is certified with a key of the school in the token');
delete_from_token($dir, 'nomp', $label);

# The certificate.
one("SELECT nomp_crypt.attest_erasure('$case', 'no_keystore_backups')");
is( sqlstate(
		$node, "SELECT nomp_crypt.attest_erasure('$case', 'all is well')"),
	'22023',
	'nobody vouches for just anything');
is(sqlstate($node, "CALL nomp_crypt.certify_erasure('s-0180-42')"),
	'', 'the erasure is certified');
my $certificate = one("SELECT nomp_crypt.certificate('$case')");
one_in_file("$temp/certificate.jws", "$certificate\n");
is(one("SELECT nomp_crypt.certificate('$case')"),
	$certificate, 'a certificate is made once');
is(one('SELECT state FROM nomp_crypt.erasure'),
	'certified', 'the case is certified');
is( sqlstate(
		$node, "SELECT nomp_crypt.attest_erasure('$case', 'exports_deleted')"
	),
	'55000',
	'and nothing is added to it');
is(outcome($node, 'SELECT nomp_crypt.decrypt(name) FROM pupil'),
	'NC001', 'the school is still erased');
is( one("SELECT concat(valid, ',', reason) FROM nomp_crypt.verify_certificate('$certificate')"
	),
	't,',
	'the database verifies it');
is(one('SELECT state FROM nomp_crypt.register_status()'),
	'ok', 'the register is whole');

# Nobody else's.
for my $call (
	"certificate('$case')",
	"certificate_html('$case')",
	"tenant_report_html('living')",
	"verify_certificate('x')",
	'register_key()',
	'register_status()',
	'verify_register()',
	'reconcile()',
	'repair_register()',
	'rotate_register_key()',
	'register_archived(1)',
	"attest_erasure('$case', 'exports_deleted')")
{
	is( sqlstate($node, "SET ROLE stranger; SELECT * FROM nomp_crypt.$call"),
		'42501',
		"not for everybody: $call");
}

# Its content: as the schema says, and nothing personal.
my $payload =
  one("SELECT payload FROM nomp_crypt.verify_certificate('$certificate')");
my $schema_check = <<'PYTHON';
import json, sys
import jsonschema
schema = json.load(open(sys.argv[1], encoding="utf-8"))
jsonschema.Draft202012Validator.check_schema(schema)
validator = jsonschema.Draft202012Validator(schema)
for line in sys.stdin:
    print(len(list(validator.iter_errors(json.loads(line)))))
PYTHON
my $other = $payload =~ s/"reason": "agreement_ended"/"reason": "because"/r;
is( run_program(
		"$payload\n$other\n{}\n", '/usr/bin/python3',
		'-c', $schema_check,
		"$root/docs/certificate.schema.json"
	) // '' =~ s/^([1-9])\d*$/many/mgr,
	"0\n1\n8\n",
	'it is as its schema says, and other things are not');
# the key's name is letters by chance
unlike(
	$payload =~ s/"[\w-]{43}"//gr,
	qr/Anna|Andersson|Ribersborg|alert|T-77/,
	'nothing personal is in it');
my $data = JSON::PP->new->utf8->decode($payload)->{data};
is($data->{agreement}, 'PUB-2024/117', 'the agreement is');
is( join(',', map { "$_->{generation} $_->{end}{how}" } @{ $data->{keys} }),
	'1 destroyed,2 destroyed',
	'and every key that the school ever had');
my %columns =
  map { ("$_->{table}.$_->{column}" => $_) } @{ $data->{columns} };
ok( $columns{'public.pupil.name'}{encrypted_since},
	'and since when a column is encrypted');
is_deeply(
	$columns{'public.converted.name'},
	{ table => 'public.converted', column => 'name' },
	'but not where plain values may be left');
is( join(' ',
		map { one("SELECT type FROM nomp_crypt.register WHERE number = $_") }
		  $data->{holds}[0]{placed_record},
		$data->{holds}[0]{released_record},
		$data->{returned}{record},
		$data->{approvals}[0]{record}),
	'hold released returned approved',
	'and what was settled before, with the records that say so');
ok($data->{keystores}[0]{software},
	'and that the keystore was software, which proves nothing');

# A text that is no number of an agreement is left out.
one("CALL nomp_crypt.erase_tenant('other', 'test')");
my $second = one(
	"SELECT case_id FROM nomp_crypt.erasure e JOIN nomp_crypt.tenant t ON t.uuid = e.tenant WHERE t.id = 'other'"
);
one("SELECT nomp_crypt.acknowledge_lease('$second')");
one("CALL nomp_crypt.certify_erasure('other')");
unlike(
	one("SELECT payload FROM nomp_crypt.verify_certificate(nomp_crypt.certificate('$second'))"
	) =~ s/"[\w-]{43}"//gr,
	qr/Anna/,
	'a name in the agreement is not in the certificate');

# With OpenSSL, by the commands on the page.
my $page = one("SELECT nomp_crypt.certificate_html('$case', 'en')");
my ($commands) = $page =~ m{<pre id="openssl">(.*?)</pre>}s;
my %entities =
  ('lt' => '<', 'gt' => '>', 'amp' => '&', 'quot' => '"', '#39' => "'");
$commands =~ s/&([a-z]+|#39);/$entities{$1}/g;
my ($fingerprint) = $page =~ m{<code id="fingerprint">SHA256:([0-9a-f]{64})<};
my $said = run_program('', 'sh', '-ec', "cd $temp && $commands");
like($said // '', qr/Verified OK/, 'OpenSSL verifies it');
like($said // '', qr/\Q$fingerprint\E/, 'the fingerprint is the key\'s');
{
	my $other_text = $certificate;

	substr($other_text, 400, 1) =
	  substr($other_text, 400, 1) eq 'A' ? 'B' : 'A';
	one_in_file("$temp/certificate.jws", "$other_text\n");
	is(run_program('', 'sh', '-ec', "cd $temp && $commands"),
		undef, 'but not another text');
	is( one("SELECT valid FROM nomp_crypt.verify_certificate('$other_text')"),
		'f', 'nor does the database');
}

# Forged.
for my $how (qw(own embedded none hs256))
{
	my $forged = run_program("$pem$payload", '/usr/bin/python3',
		"$root/test/forge_record.py", $how, $old_kid) // '';
	chomp $forged;
	my $reason = one(
		"SELECT reason FROM nomp_crypt.verify_certificate('$forged') WHERE NOT valid"
	);
	like(
		$reason,
		{ own => qr/signature/, embedded => qr/not believed/ }->{$how}
		  // qr/ES256/,
		"forged ($how): $reason");
}
my $unknown = run_program(
	"$pem$payload", '/usr/bin/python3',
	"$root/test/forge_record.py", 'own',
	'A' x 43) // '';
chomp $unknown;
is( one("SELECT reason FROM nomp_crypt.verify_certificate('$unknown') WHERE NOT valid"
	),
	'it is signed by another key',
	'forged under the name of a key that nobody knows');
my $born = one('SELECT jws FROM nomp_crypt.register WHERE number = 2');
is( one("SELECT reason FROM nomp_crypt.verify_certificate('$born') WHERE NOT valid"
	),
	'a record, but no certificate',
	'another record is no certificate');
for my $text ('', 'x', 'a.b', 'a.b.c', 'e30.e30.', "$certificate.",
	".$certificate")
{
	is( one("SELECT reason FROM nomp_crypt.verify_certificate('$text') WHERE NOT valid"
		) =~ /JWS|ES256/ ? 'refused' : 'taken',
		'refused',
		"no certificate at all: '" . substr($text, 0, 20) . "'");
}

# With a JOSE library; the key is changed in between, and the old one signs
# for the new one.
is(one('SELECT nomp_crypt.rotate_register_key()'), '2', 'another key');
one("SELECT nomp_crypt.create_tenant('later')");
is(one("SELECT valid FROM nomp_crypt.verify_certificate('$certificate')"),
	't', 'the certificate still verifies');
my $packages = "$temp/packages";
mkdir $packages;
copy("$root/test/certificates/$_", "$packages/$_")
  or die "$_: $!"
  for qw(package.json package-lock.json);
unlike(slurp_file("$packages/package-lock.json"),
	qr/"resolved"/, 'the lock file names no registry');
ok( defined run_program(
		'', 'npm', 'ci', '--prefix',
		$packages, '--ignore-scripts', '--no-audit', '--no-fund',
		'--cache', "$packages/cache"),
	'npm has the package');
my $later = one(
	"SELECT jws FROM nomp_crypt.register WHERE type = 'born' ORDER BY number DESC LIMIT 1"
);
my $change = one("SELECT jws FROM nomp_crypt.register WHERE type = 'key'");
my $number = one(
	"SELECT number FROM nomp_crypt.register WHERE case_id = '$case' AND type = 'certificate'"
);
my $forged = run_program("$pem$payload", '/usr/bin/python3',
	"$root/test/forge_record.py", 'embedded', $old_kid);
is( run_program(
		"$certificate\n$change\n$later\n$forged", 'node',
		"$root/test/certificates/verify.mjs", $packages,
		"$temp/key.pem") // '',
	"certificate $number $uuid\nkey "
	  . one("SELECT number FROM nomp_crypt.register WHERE type = 'key'")
	  . " undefined\nERR_JWS_SIGNATURE_VERIFICATION_FAILED\nERR_JWS_SIGNATURE_VERIFICATION_FAILED\n",
	'jose verifies what the old key signed, the change of key included, and nothing else'
);
one_in_file("$temp/new.pem",
	one('SELECT pem FROM nomp_crypt.register_key()') . "\n");
like(
	run_program(
		"$later\n", 'node',
		"$root/test/certificates/verify.mjs", $packages,
		"$temp/new.pem") // '',
	qr/^born /,
	'and with the new key what that one signed');

# The pages, as people see them.
my %chromium = map {
	$_ => [
		'chromium', '--headless',
		'--no-sandbox', '--disable-gpu',
		'--disable-dev-shm-usage', "--user-data-dir=$temp/browser",
		"--window-size=900,$_"
	]
} 2900, 1400;

# browse(NAME, FUNCTION, HEIGHT): the page that it makes, in a browser.
sub browse
{
	my ($name, $function, $height) = @_;
	my $html = one("SELECT nomp_crypt.$function");
	my $path = "$temp/" . ($name =~ tr/a-z//cdr);

	utf8::decode($html);
	one_in_file("$path.html", $html);
	unlike(
		$html,
		qr/<script|<img|<link|<iframe|\bsrc=|\bhref=|https?:|url\(/,
		"$name: nothing from elsewhere, no script");
	local $ENV{HOME} = $temp;
	my $dom = run_program('', @{ $chromium{$height} },
		'--dump-dom', "file://$path.html") // '';
	utf8::decode($dom);
	like($dom, qr/Ribersborgs&lt;script&gt;alert/, "$name: a name is text");
	unlike($dom, qr/\{\w+\}/, "$name: every word is in its place");
	ok( defined run_program(
			'', @{ $chromium{$height} },
			"--screenshot=$path.png", "file://$path.html"),
		"$name: it is drawn");
	like(slurp_file("$path.png"), qr/^\x89PNG/, "$name: as a picture");
	cmp_ok(-s "$path.png", '>', 50000, "$name: with something on it");
	return $dom;
}

for my $language (qw(sv en))
{
	my $dom = browse("certificate, $language",
		"certificate_html('$case', '$language')", 2900);
	my $title = { sv => 'Intyg om radering', en => 'Certificate of erasure' }
	  ->{$language};

	unlike(
		$dom,
		qr/deleted everywhere|raderad \x{f6}verallt/i,
		"$language: nothing that cannot be known");
	like($dom, qr/<h1>\Q$title\E/, "$language: the browser shows the title");
	like($dom, qr/id="software"/, "$language: software is no HSM");
	like(
		$dom,
		{
			sv =>
			  qr/R\x{e4}ttslig sp\x{e4}rr h\x{e4}vd.*(?:ab){32}.*Godk\x{e4}nd av rollen dpo/s,
			en => qr/Legal hold released.*(?:ab){32}.*Approved by role dpo/s
		}->{$language},
		"$language: what was settled before, in its order");
	like($dom, qr/\Q$uuid\E/, "$language: the school is on it");
	like($dom, qr/SHA256:$fingerprint/,
		"$language: so is the key's fingerprint");
	like($dom, qr/\Q$certificate\E/,
		"$language: so is the certificate itself");
}
is(sqlstate($node, "SELECT nomp_crypt.certificate_html('$case', 'fr')"),
	'22023', 'in the languages that there are');

# The report for a municipality's audit.
one(<<'SQL');
CREATE ROLE "clerks<b>"; CREATE ROLE clerk1 LOGIN; GRANT "clerks<b>" TO clerk1;
SELECT nomp_crypt.grant_tenant('living', 'clerks<b>', '{decrypt}');
UPDATE nomp_crypt.tenant SET display_name = (SELECT display_name FROM nomp_crypt.tenant WHERE id = 's-0180-42') WHERE id = 'living';
SQL
for my $language (qw(sv en))
{
	my $dom = browse("report, $language",
		"tenant_report_html('living', '$language')", 1400);

	like(
		$dom,
		{
			sv =>
			  qr{<h1>Rapport om .*<h2>Nycklar i nyckelf\x{f6}rvaret</h2>.*public\.pupil\.name</th><td>public\.encrypted\(text\), krypterad p\x{e5} disk sedan \d{4}.*clerks&lt;b&gt;</th><td>living: l\x{e4}sa, gavs .*, och dess medlemmar: clerk1<}s,
			en =>
			  qr{<h1>Report on .*<h2>Keys in the keystore</h2>.*public\.pupil\.name</th><td>public\.encrypted\(text\), encrypted on disk since \d{4}.*clerks&lt;b&gt;</th><td>living: read, granted .*, and its members: clerk1<}s
		}->{$language},
		"$language: what, since when, with which keys, for whom");
	like(
		$dom,
		qr/@{[ one('SELECT uuid FROM nomp_crypt.installation') ]}/,
		"$language: and whose word that is");
}
is(sqlstate($node, "SELECT nomp_crypt.tenant_report_html('living', 'fr')"),
	'22023', 'in the languages that there are');
is(sqlstate($node, "SELECT nomp_crypt.tenant_report_html('nowhere')"),
	'42704', 'of a school that there is');

$node->stop;
done_testing();
