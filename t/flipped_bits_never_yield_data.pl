# A stored value that was changed - by a disk, by somebody with the disk, or by
# a client that sends what it likes - must be refused.  Not a single changed
# bit, missing or added byte may ever come back as text, lead to another error
# than those that are documented for it, or bring the server down.  So all of
# them are tried, by each way into and out of a value.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IO::Socket::UNIX;
use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my @lengths = (0, 1, 12, 15, 16, 17, 33, 200);

# the format (docs/format.md)
my $key_id_from = 2;
my $nonce_from = 10;
my $body_from = 34;
my $tag_length = 16;
my $shortest = 50;
my $fingerprint_length = 16;

my $node = nomp_node('main');
$node->start;
create_nomp($node, 'school', 'other');
my $started = one('SELECT pg_postmaster_start_time()');
my $broker = broker_pid($node);

sub one
{
	my ($sql) = @_;

	return $node->safe_psql('postgres', $sql);
}

# 'original' are values as they should be.  as_value puts any bytes into a
# value, as whoever writes to the disk can.
one(<<'SQL');
CREATE FUNCTION as_value(raw bytea) RETURNS encrypted LANGUAGE internal IMMUTABLE STRICT AS 'byteasend';

CREATE TABLE original (len int, school text, raw bytea, PRIMARY KEY (len, school));

CREATE FUNCTION text_form(raw bytea) RETURNS text LANGUAGE sql IMMUTABLE AS
$$SELECT 'nc1:' || translate(encode(raw, 'base64'), E'\n', '')$$;

CREATE FUNCTION read_one_way(value encrypted, way text) RETURNS text LANGUAGE plpgsql AS
$$
DECLARE
	plain text;
BEGIN
	CASE way
		WHEN 'decrypt' THEN plain := nomp_crypt.decrypt(value);
		WHEN 'try_decrypt' THEN plain := nomp_crypt.try_decrypt(value);
		WHEN 'text' THEN plain := value::text;
		WHEN 'varchar' THEN plain := value::varchar;
		WHEN 'inside' THEN
			PERFORM set_config('nomp_crypt.tenant', 'school', true);
			plain := format('%s', value);
			PERFORM set_config('nomp_crypt.tenant', '', true);
	END CASE;
	RETURN coalesce('data: ' || plain, 'null');
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END
$$;

-- what the ways to read a value give: one line if they agree
CREATE FUNCTION read(value encrypted) RETURNS text LANGUAGE sql AS
$$
SELECT string_agg(DISTINCT read_one_way(value, way), ', ')
FROM unnest('{decrypt,try_decrypt,text,varchar,inside}'::text[]) way
$$;

-- functions that look at a value without decrypting it
CREATE FUNCTION look(value encrypted) RETURNS text LANGUAGE plpgsql AS
$$
BEGIN
	PERFORM nomp_crypt.tenant_of(value);
	PERFORM nomp_crypt.key_info(value);
	RETURN 'ok';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END
$$;

CREATE TABLE box (value encrypted(text));

-- store the text form as a statement's literal and as a parameter, and read
-- what was stored
CREATE FUNCTION store_and_read(form text) RETURNS text LANGUAGE plpgsql AS
$$
DECLARE
	stored encrypted;
	literal text;
	parameter text;
BEGIN
	BEGIN
		EXECUTE format('INSERT INTO box VALUES (%L) RETURNING value', form) INTO stored;
		literal := 'stored, then ' || read(stored);
	EXCEPTION WHEN OTHERS THEN
		literal := SQLSTATE;
	END;
	BEGIN
		INSERT INTO box VALUES (form) RETURNING value INTO stored;
		parameter := 'stored, then ' || read(stored);
	EXCEPTION WHEN OTHERS THEN
		parameter := SQLSTATE;
	END;
	IF literal IS DISTINCT FROM parameter THEN
		RETURN format('literal: %s, parameter: %s', literal, parameter);
	END IF;
	RETURN literal;
END
$$;
SQL

sub plaintext
{
	my ($length) = @_;

	return substr 'Anna Lindqvist, 7b; ' x 20, 0, $length;
}

for my $length (@lengths)
{
	for my $school ('school', 'other')
	{
		one(    "INSERT INTO original SELECT $length, '$school',"
			  . " encrypted_send(nomp_crypt.encrypt('@{[ plaintext($length) ]}', '$school'))"
		);
	}
}

# What SQL says of every row, as "outcome|how many".
sub outcomes
{
	my ($outcome, $from) = @_;

	return one(
		"SELECT $outcome AS outcome, count(*) FROM $from GROUP BY 1 ORDER BY 1"
	);
}

sub outcomes_of
{
	my ($outcome, $from) = @_;

	return one("SELECT string_agg(DISTINCT $outcome, '; ') FROM $from");
}

# Values that were not changed are read, or all that follows would say nothing.
for my $length (@lengths)
{
	is( one(    "SELECT read(as_value(raw)) || ' | ' || look(as_value(raw))"
			  . " || ' | ' || store_and_read(text_form(raw))"
			  . " FROM original WHERE len = $length AND school = 'school'"),
		"data: @{[ plaintext($length) ]} | ok | stored, then data: "
		  . plaintext($length),
		"$length bytes: as it was written it is read");
}

# Every bit, in the value's bytes: put into the table behind the server's back,
# and stored as text.
for my $length (@lengths)
{
	my $size = $shortest + $length;
	my $flips =
	  "(SELECT byte, bit, set_byte(raw, byte, get_byte(raw, byte) # (1 << bit)) AS raw"
	  . " FROM original, generate_series(0, length(raw) - 1) byte, generate_series(0, 7) bit"
	  . " WHERE len = $length AND school = 'school') flip";
	my $part =
	  "CASE WHEN byte = 0 AND bit = 0 THEN 'fingerprint' WHEN byte < 2 THEN 'format'"
	  . " WHEN byte < $nonce_from THEN 'key_id' ELSE 'rest' END || ': '";
	my $long_enough = $length >= $fingerprint_length;
	my $rest = 8 * ($size - $nonce_from);

	is( outcomes("$part || read(as_value(raw))", $flips),
		join("\n",
			'fingerprint: NC005|1',
			'format: NC005|15',
			'key_id: NC003|64',
			"rest: NC005|$rest"),
		"$length bytes: every flipped bit of a stored value is an error");
	is( outcomes("$part || store_and_read(text_form(raw))", $flips),
		join(
			"\n",
			'fingerprint: ' . ($long_enough ? 'NC005' : 'NC006') . '|1',
			# five of the bits name another type, which the column refuses
			'format: NC005|5',
			'format: NC006|10',
			'key_id: stored, then NC003|64',
			"rest: stored, then NC005|$rest"),
		"$length bytes: every flipped bit of a value that a client stores");
	is( outcomes("$part || look(as_value(raw))", $flips),
		join("\n",
			'fingerprint: ' . ($long_enough ? 'ok' : 'NC005') . '|1',
			'format: NC005|10',
			'format: ok|5',
			'key_id: ok|64',
			"rest: ok|$rest"),
		"$length bytes: looking at it without a key does no harm");
}

# Every bit of the text form's characters, the highest aside: that is no text.
for my $length (@lengths)
{
	my $flips =
	  "(SELECT overlay(form placing chr(ascii(substr(form, at, 1)) # (1 << bit))"
	  . " from at for 1) AS form"
	  . " FROM (SELECT text_form(raw) AS form FROM original"
	  . " WHERE len = $length AND school = 'school') o,"
	  . " generate_series(1, length(form)) at, generate_series(0, 6) bit) flip";
	my %count = map { split /\|/, $_ } split /\n/,
	  outcomes('store_and_read(form)', $flips);
	my $total = 0;

	$total += $_ for values %count;
	is( $total,
		one(    "SELECT 7 * length(text_form(raw)) FROM original"
			  . " WHERE len = $length AND school = 'school'"),
		"$length bytes: all bits of the text form were flipped");
	is( join(', ', sort keys %count),
		'NC005, NC006, stored, then NC003, stored, then NC005',
		"$length bytes: and each gave an error");
}

# Missing and added bytes, at either end.
for my $length (@lengths)
{
	my $size = $shortest + $length;
	my $cut =
	  "(SELECT substring(raw FOR n) AS raw FROM original, generate_series(0, $size - 1) n"
	  . " WHERE len = $length AND school = 'school') cut";
	my $beheaded =
	  "(SELECT substring(raw FROM n + 1) AS raw FROM original, generate_series(1, $size) n"
	  . " WHERE len = $length AND school = 'school') cut";
	my $added =
	  "(SELECT raw || decode(substr(repeat(filler, 40), 1, 2 * n), 'hex') AS raw"
	  . " FROM original, generate_series(1, 40) n, unnest('{00,ff,80,0102030405}'::text[]) filler"
	  . " WHERE len = $length AND school = 'school') added";
	my $in_front =
	  "(SELECT decode(substr(repeat('00', 40), 1, 2 * n), 'hex') || raw AS raw"
	  . " FROM original, generate_series(1, 40) n"
	  . " WHERE len = $length AND school = 'school') added";

	is(outcomes('read(as_value(raw))', $cut),
		"NC005|$size", "$length bytes: all truncations of a stored value");
	is( outcomes('store_and_read(text_form(raw))', $cut),
		join("\n",
			"NC006|$shortest", $length ? "stored, then NC005|$length" : ()),
		"$length bytes: all truncations of a value that a client stores");
	# the bytes that follow may look like a header, with a key_id of nobody's
	like(
		outcomes_of('read(as_value(raw))', $beheaded),
		qr/^(?:NC003; )?NC005$/,
		"$length bytes: all values without their beginning");
	is(outcomes('read(as_value(raw))', $added),
		'NC005|160', "$length bytes: 1 to 40 bytes added to a stored value");
	is( outcomes('store_and_read(text_form(raw))', $added),
		'stored, then NC005|160',
		"$length bytes: 1 to 40 bytes added to a value that a client stores");
	is(outcomes('read(as_value(raw))', $in_front),
		'NC005|40', "$length bytes: 1 to 40 bytes put in front");
}

# Parts of two values put together: the second of the same school, with the
# same or with other text, or of another school.  What is left of either is not
# counted.
one(    "INSERT INTO original SELECT len, 'school, the same text',"
	  . " encrypted_send(nomp_crypt.encrypt(nomp_crypt.decrypt(as_value(raw)), 'school'))"
	  . " FROM original WHERE school = 'school'");
one(    "INSERT INTO original SELECT len, 'school, other text',"
	  . " encrypted_send(nomp_crypt.encrypt(upper(nomp_crypt.decrypt(as_value(raw))), 'school'))"
	  . " FROM original WHERE school = 'school'");
for my $second ('school, the same text', 'school, other text', 'other')
{
	my @cuts = (1, $key_id_from + 1, $nonce_from + 1, $body_from + 1);
	my @parts = map {
		my ($from, $number) = ($cuts[$_], $_);
		my $to = $number < 3 ? $cuts[ $number + 1 ] : "length(a.raw) - 15";

		"substring(CASE WHEN choice & (1 << $number) = 0 THEN a.raw ELSE b.raw END"
		  . " FROM $from FOR $to - $from)"
	} 0 .. 3;
	my $tag = "substring(CASE WHEN choice & 16 = 0 THEN a.raw ELSE b.raw END"
	  . " FROM length(a.raw) - 15)";
	my $mixed =
	  "(SELECT DISTINCT a.len, mixed.raw FROM original a JOIN original b USING (len),"
	  . " generate_series(0, 31) choice, LATERAL (SELECT "
	  . join(' || ', @parts, $tag)
	  . " AS raw) mixed WHERE a.school = 'school' AND b.school = '$second'"
	  . " AND mixed.raw NOT IN (a.raw, b.raw)) mixed";

	# inside the one school, values that name the other's key are refused as such
	my @results = ('NC005', $second eq 'other' ? '55000, NC005' : ());

	is( outcomes_of('read(as_value(raw))', $mixed),
		join('; ', sort @results),
		"parts of two values: $second");
	is(one("SELECT count(*) >= 6 * 7 FROM $mixed"),
		't', "parts of two values: $second: all of them");
	is( outcomes_of('store_and_read(text_form(raw))', $mixed),
		join('; ', map { "stored, then $_" } sort @results),
		"parts of two values that a client stores: $second");
}

# What is not the text form of anything.
{
	# a value whose text form has both special characters and padding
	one(    'CREATE TABLE special AS SELECT form FROM (SELECT'
		  . " text_form(encrypted_send(nomp_crypt.encrypt('Annika', 'school')))"
		  . ' AS form FROM generate_series(1, 1000)) f'
		  . " WHERE form LIKE '%+%' AND form LIKE '%/%' AND form ~ '[^=]=\$' LIMIT 1"
	);
	my $form = one('SELECT form FROM special');
	my ($base64) = $form =~ /^nc1:(.*)$/;
	my ($unpadded) = $form =~ /^(.*?)=+$/;
	my ($head, $last) = $form =~ /^(.*)(.)=$/;

	ok(length $base64, 'there is a value with all kinds of characters');

	my @alphabet = ('A' .. 'Z', 'a' .. 'z', 0 .. 9, '+', '/');
	my ($index) = grep { $alphabet[$_] eq $last } 0 .. 63;
	my %broken = (
		'nothing' => '',
		'the prefix alone' => 'nc1:',
		'half a prefix' => 'nc1',
		'no prefix' => $base64,
		'a prefix in capitals' => "NC1:$base64",
		'another version' => "nc2:$base64",
		'two prefixes' => "nc1:$form",
		'a blank in front' => " $form",
		'a blank behind the prefix' => "nc1: $base64",
		'a blank at the end' => "$form ",
		'a newline at the end' => "$form\n",
		'a carriage return and newline at the end' => "$form\r\n",
		'a newline in the middle' => substr($form, 0, 40) . "\n"
		  . substr($form, 40),
		'a tab in the middle' => substr($form, 0, 40) . "\t"
		  . substr($form, 40),
		'no padding' => $unpadded,
		'too much padding' => "$form=",
		'a group of padding' => "$form====",
		'padding in the middle' => substr($form, 0, 40) . '===='
		  . substr($form, 40),
		'a value behind the padding' => "$form$base64",
		'unused bits: 1' => "$head$alphabet[$index | 1]=",
		'unused bits: 2' => "$head$alphabet[$index | 2]=",
		'unused bits: 3' => "$head$alphabet[$index | 3]=",
		"URL's alphabet" => $form =~ tr{+/}{-_}r,
		'percent signs' => $form =~ s/\+/%2B/gr,
		'base64 twice' => 'nc1:'
		  . one(
			"SELECT translate(encode('$form'::bytea, 'base64'), E'\\n', '')"),
		'hex' => '\\x'
		  . one("SELECT encode(decode('$base64', 'base64'), 'hex')"),
		'hex behind the prefix' => 'nc1:'
		  . one("SELECT encode(decode('$base64', 'base64'), 'hex')"),
		'a letter that is none of base64' => substr($form, 0, 40) . 'å'
		  . substr($form, 41),
		'an apostrophe' => substr($form, 0, 40) . "''" . substr($form, 41),
		'only padding' => 'nc1:' . '=' x 68,
		'zeros' => 'nc1:' . 'A' x 72,
		'a megabyte of zeros' => "nc1:' || repeat('AAAA', 250000) || '",
		'a megabyte of no base64' => "nc1:' || repeat('****', 250000) || '");

	is( one("SELECT store_and_read('$form')"),
		'stored, then data: Annika',
		'it is stored as it is');
	for my $what (sort keys %broken)
	{
		is(one("SELECT store_and_read('$broken{$what}')"),
			'NC006', "broken text form: $what");
	}
}

# ---- binary ----

my $oid = 0 + one("SELECT 'encrypted'::regtype::oid");
my $value = raw_of(12);
my $long = raw_of(33);
my $others = pack 'H*',
  one(
	"SELECT encode(raw, 'hex') FROM original WHERE len = 12 AND school = 'other'"
  );

sub raw_of
{
	my ($length) = @_;

	return pack 'H*',
	  one(  "SELECT encode(raw, 'hex') FROM original"
		  . " WHERE len = $length AND school = 'school'");
}

sub garbage
{
	my ($length) = @_;

	return join '', map { chr int rand 256 } 1 .. $length;
}

# Name => [bytes, what storing them gives, what reading them then gives].
my %hostile;
srand 1815;    # random, and the same each time

sub is_hostile
{
	my ($name, $bytes, $storing, $reading) = @_;

	die "$name twice" if exists $hostile{$name};
	$hostile{$name} = [ $bytes, $storing, $reading ];
	return;
}

is_hostile('the value', $value, '', 'data: ' . plaintext(12));
is_hostile("its first $_ bytes", substr($value, 0, $_), '22P03')
  for 0 .. $shortest - 1;
is_hostile("$_ random bytes behind a good header",
	substr($value, 0, $key_id_from) . garbage($_), '22P03')
  for 0 .. $shortest - $key_id_from - 1;
is_hostile(
	"$_ random bytes behind a good header",
	substr($value, 0, $key_id_from) . garbage($_),
	'', 'NC003') for $shortest - $key_id_from .. 300;
is_hostile(
	"$_ random bytes behind a good key_id",
	substr($value, 0, $nonce_from) . garbage($_),
	'', 'NC005') for $shortest - $nonce_from .. 200;
is_hostile("$_ random bytes behind a reserved version",
	chr(0xf0) . garbage($_), '22P03')
  for 0 .. 200;
for my $byte (0 .. 255)
{
	# another type, or a fingerprint where the column has none
	my $other_type = ($byte & 0x7f) >= 1 && ($byte & 0x7f) <= 28;

	is_hostile(
		"format byte $byte",
		chr($byte) . substr($long, 1),
		$byte == 0x10 ? '' : $byte == 0x11 ? 'NC005' : '22P03',
		'data: ' . plaintext(33));
	is_hostile(
		"type byte $byte",
		substr($value, 0, 1) . chr($byte) . substr($value, 2),
		$byte == 1 ? '' : $other_type ? 'NC005' : '22P03',
		'data: ' . plaintext(12));
}
is_hostile('a fingerprint bit and no room for one',
	chr(0x11) . substr($value, 1), '22P03');
is_hostile('its text form', one("SELECT form FROM special"), '22P03');
is_hostile('plaintext', 'Anna', '22P03');
is_hostile('long plaintext', 'Anna ' x 1000, '22P03');
is_hostile('zeros', chr(0) x 100, '22P03');
is_hostile('a megabyte of zeros', chr(0) x 1_000_000, '22P03');
is_hostile(
	'a megabyte behind the value',
	$value . garbage(1_000_000),
	'', 'NC005');
is_hostile("another school's value",
	$others, '', '55000, data: ' . plaintext(12));

# COPY BINARY: files as the server reads them.
my $signature = "PGCOPY\n\xff\r\n\0";
my $dir = PostgreSQL::Test::Utils::tempdir();
my $files = 0;

sub copy_file
{
	my ($content) = @_;

	$files++;
	open my $fh, '>:raw', "$dir/$files" or die $!;
	print $fh $content;
	close $fh or die $!;
	return $files;
}

# A file with one row of these fields.
sub copy_of
{
	return
		$signature
	  . pack('NN', 0, 0)
	  . pack('n', scalar @_)
	  . join('', map { pack('N', length) . $_ } @_)
	  . pack('n', 0xffff);
}

one(<<"SQL");
-- what copying that file gives, and then what reading the rows does
CREATE FUNCTION copy_and_read(file int) RETURNS text LANGUAGE plpgsql AS
\$\$
BEGIN
	DELETE FROM box;
	EXECUTE format('COPY box FROM %L (FORMAT binary)', '$dir/' || file);
	RETURN (SELECT coalesce('stored, then '
		|| string_agg(DISTINCT read(value), ', '), 'no row') FROM box WHERE value IS NOT NULL);
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END
\$\$;
SQL

# What the files from FIRST on give, by number.
sub copy_files
{
	my ($first) = @_;

	return map { split /\|/, $_, 2 } split /\n/,
	  one(
		"SELECT n, copy_and_read(n) FROM generate_series($first, $files) n");
}

sub expected
{
	my ($name) = @_;
	my ($bytes, $storing, $reading) = @{ $hostile{$name} };

	return $storing ne '' ? $storing : "stored, then $reading";
}

{
	my $first = $files + 1;
	my %file = map { $_ => copy_file(copy_of($hostile{$_}[0])) }
	  sort keys %hostile;
	my %result = copy_files($first);
	my @wrong = map { "$_: $result{$file{$_}}, not " . expected($_) }
	  grep { $result{ $file{$_} } ne expected($_) } sort keys %file;

	cmp_ok(
		scalar keys %result,
		'==',
		scalar keys %hostile,
		'COPY BINARY: every hostile value');
	is(join("\n", @wrong), '', 'is refused, or an error when it is read');
}

# Files that are broken themselves.
{
	my $row = copy_of($value);
	my $head = substr $row, 0, 19;
	my %file;
	my $name_of = sub { return "a length of $_[0] before the value" };

	for my $length (
		-2, -100, -0x80000000, 0x7fffffff,
		0x7ffffff0, 0x40000000, 0x3fffffff, 0x10000000,
		1000, length($value) + 3)
	{
		$file{ $name_of->($length) } = [
			$head
			  . pack('nN', 1, $length & 0xffffffff)
			  . $value
			  . pack('n', 0xffff),
			qr/^(?:22P04|54000)$/
		];
	}
	# a shorter one is another file: a cut value, and the rest taken for rows
	$file{ $name_of->($_) } = [
		$head . pack('nN', 1, $_) . $value . pack('n', 0xffff),
		$_ < $shortest ? qr/^22P03$/ : qr/^(?:22P04|54000)$/
	  ]
	  for 0 .. length($value) - 3;
	# COPY takes half a mark of the end for the end
	$file{ $name_of->(length($value) + 1) } = [
		$head
		  . pack('nN', 1, length($value) + 1)
		  . $value
		  . pack('n', 0xffff),
		qr/^stored, then NC005$/
	];
	$file{'NULL'} =
	  [ $head . pack('nNn', 1, 0xffffffff, 0xffff), qr/^no row$/ ];
	$file{'no field'} =
	  [ $head . pack('nn', 0, 0xffff), qr/^22P04$/ ];
	$file{'two fields'} = [ copy_of($value, $value), qr/^22P04$/ ];
	$file{'32767 fields'} =
	  [ $head . pack('nN', 32767, length $value) . $value, qr/^22P04$/ ];
	$file{'-2 fields'} =
	  [ $head . pack('nN', 0xfffe, length $value) . $value, qr/^22P04$/ ];
	$file{'data behind the end'} = [ $row . $value, qr/^22P04$/ ];
	$file{'an empty file'} = [ '', qr/^22P04$/ ];
	# and a file without the mark
	my $whole = length($row) - 2;
	$file{"its first $_ bytes"} = [
		substr($row, 0, $_),
		$_ == 19 || $_ == 20 ? qr/^no row$/
		: $_ < $whole        ? qr/^22P04$/
		:                      qr/^stored, then data: /
	  ]
	  for 1 .. length($row) - 1;

	my $first = $files + 1;
	my %number = map { $_ => copy_file($file{$_}[0]) } sort keys %file;
	my %result = copy_files($first);
	my @wrong = map { "$_: $result{$number{$_}}" }
	  grep { $result{ $number{$_} } !~ $file{$_}[1] } sort keys %file;

	is(join("\n", @wrong),
		'', 'COPY BINARY: broken files are refused, and broken values');
}

# Every bit of a file.  Bits that mean nothing to COPY leave the value as it
# was; then it may be read.
{
	my $row = copy_of($value);
	my $from = 19 + 2 + 4;
	my $first = $files + 1;

	for my $at (0 .. length($row) - 1)
	{
		for my $bit (0 .. 7)
		{
			my $copy = $row;

			vec($copy, 8 * $at + $bit, 1) ^= 1;
			copy_file($copy);
		}
	}
	my %result = copy_files($first);
	my (%inside, %outside);

	for my $number (keys %result)
	{
		my $at = int(($number - $first) / 8);

		if ($at >= $from && $at < $from + length $value)
		{
			$inside{ $result{$number} }++;
		}
		else
		{
			$outside{ $result{$number} }++;
		}
	}
	is( join(', ', map { "$_: $inside{$_}" } sort keys %inside),
		join(', ',
			'22P03: 11', 'NC005: 5',
			'stored, then NC003: 64',
			'stored, then NC005: ' . 8 * (length($value) - $nonce_from)),
		'COPY BINARY: every flipped bit of a value');
	is( join(
			', ',
			grep {
				!/^(?:22P0[34]|54000|no row|stored, then (?:NC005|data: .*))$/
			} sort keys %outside),
		'',
		'COPY BINARY: every flipped bit around it');
	is($outside{ 'stored, then data: ' . plaintext(12) },
		16, 'of which the 16 unused ones of the header leave it as it was');
}

# Random files.
{
	my $first = $files + 1;

	copy_file($signature . garbage(int rand 200)) for 1 .. 100;
	copy_file($signature . pack('NN', 0, 0) . garbage(int rand 200))
	  for 1 .. 100;
	copy_file($signature . pack('NNnN', 0, 0, 1, int rand 300) . garbage(300))
	  for 1 .. 100;
	my %result = copy_files($first);
	my %seen = map { $_ => 1 } values %result;

	is(scalar keys %result, 300, 'COPY BINARY: random files');
	is(join(', ', grep { !/^(?:22P0[34]|54000|no row)$/ } sort keys %seen),
		'', 'are all refused');
}

# Parameters in binary, by libpq, into a table and into a function.
{
	my @names = sort keys %hostile;
	my @calls = map {
		my %with = (
			params => [ unpack 'H*', $hostile{$_}[0] ],
			types => [$oid],
			formats => [1]);
		(   { sql => 'DELETE FROM box' },
			{ sql => 'INSERT INTO box VALUES ($1)', %with },
			{ sql => 'SELECT read(value) FROM box' },
			{ sql => 'SELECT nomp_crypt.decrypt($1)', %with })
	} @names;
	my @answers = libpq_calls($node->connstr('postgres'), @calls);
	my @wrong;

	is(scalar @answers, scalar @calls, 'libpq: every hostile value');
	for my $name (@names)
	{
		my (undef, $stored, $read, $decrypted) = splice @answers, 0, 4;
		my $row = $read->{rows}[0];
		my $is = $stored->{state} || 'stored, then ' . pack 'H*', $row->[0];
		my $directly =
		  $decrypted->{state} || 'data: ' . pack 'H*',
		  $decrypted->{rows}[0][0];
		my (undef, $storing, $reading) = @{ $hostile{$name} };
		my $should = $storing || $reading =~ s/^55000, //r;

		push @wrong, "$name: $is, not " . expected($name)
		  if $is ne expected($name);
		push @wrong, "$name: decrypt: $directly, not $should"
		  if $directly ne $should;
	}
	is(join("\n", @wrong), '', 'is refused, or an error when it is read');
}

# Inside a tenant binary is ciphertext all the same, both ways.
{
	my @answers = libpq_calls(
		$node->connstr('postgres'),
		{ sql => "SET nomp_crypt.tenant = 'school'" },
		{ sql => 'DELETE FROM box' },
		{
			sql => 'INSERT INTO box VALUES ($1)',
			params => [ unpack 'H*', 'Anna' ],
			types => [$oid],
			formats => [1]
		},
		{
			sql => 'INSERT INTO box VALUES ($1)',
			params => [ unpack 'H*', $value ],
			types => [$oid],
			formats => [1]
		},
		{ sql => 'SELECT value FROM box', result => 1 },
		{ sql => 'SELECT value FROM box' });

	is($answers[2]{state},
		'22P03', 'inside a tenant: plaintext in binary is refused');
	is($answers[3]{state}, '', 'and a value in binary taken as it is');
	is( $answers[4]{rows}[0][0],
		unpack('H*', $value),
		'a result in binary is the value');
	is(pack('H*', $answers[5]{rows}[0][0]),
		plaintext(12), 'a result in text is what is inside');
}

# Messages of the protocol that no library sends.
{
	my $socket =
	  IO::Socket::UNIX->new(Peer => $node->host . '/.s.PGSQL.' . $node->port)
	  or die "no connection: $!";
	my $user = one('SELECT current_user');

	binmode $socket;
	# up to ReadyForQuery: the SQLSTATE of an error, or the first column
	my $answer = sub {
		my $result = '';

		while (1)
		{
			$socket->read(my $head, 5) == 5 or return 'lost';
			my ($type, $length) = unpack 'aN', $head;
			$length == 4
			  or $socket->read(my $body, $length - 4) == $length - 4
			  or return 'lost';
			$result = $1 if $type eq 'E' && $body =~ /\0?C(\w{5})\0/;
			$result = substr $body, 6 if $type eq 'D';
			return $result if $type eq 'Z';
		}
	};
	my $message = sub {
		my ($type, $body) = @_;

		return $type . pack('N', 4 + length $body) . $body;
	};
	# a parameter as it comes behind its length, and that length
	my $bind = sub {
		my ($length, $bytes, $format, $count) = @_;

		print $socket $message->(
			'P', "\0SELECT nomp_crypt.decrypt(\$1)\0" . pack 'nN',
			1, $oid),
		  $message->(
			'B',
			"\0\0"
			  . pack('nnnN', 1, $format // 1, $count // 1, $length)
			  . $bytes
			  . pack('n', 0)),
		  $message->('E', "\0" . pack 'N', 0), $message->('S', '');
		$socket->flush;
		return $answer->();
	};
	my $body = pack('N', 196608) . "user\0$user\0database\0postgres\0\0";

	print $socket pack('N', 4 + length $body), $body;
	$socket->flush;
	$answer->();
	is($bind->(length $value, $value),
		plaintext(12), 'protocol: a value as it should be');
	is($bind->(0xfffffffe, $value), '08P01', 'protocol: a length of -2');
	is($bind->(0x80000000, $value),
		'08P01', 'protocol: the most negative length');
	is($bind->(0x7fffffff, $value),
		'08P01', 'protocol: a length beyond all limits');
	is($bind->(length($value) + 3, $value),
		'08P01', 'protocol: a length beyond the message');
	is($bind->(length($value) - 1, $value),
		'08P01', 'protocol: a length that leaves a byte over');
	is($bind->(0, ''), '22P03', 'protocol: no bytes');
	is($bind->(length $value, $value, 1, 2),
		'08P01', 'protocol: two parameters for one');
	is($bind->(length $value, $value, 2),
		'22023', 'protocol: a format that there is not');
	is($bind->(length $value, $value, 0),
		'22021', 'protocol: a value in binary that is said to be text');
	is($bind->(5, "nc1:\0", 0), '22021', 'protocol: text with a zero byte');
	is($bind->(length $value, $value),
		plaintext(12), 'protocol: the connection still works');
	close $socket;
}

is(one('SELECT pg_postmaster_start_time()'),
	$started, 'the server never fell');
is(broker_pid($node), $broker, 'nor did the broker');
unlike(
	slurp_file($node->logfile),
	qr/terminated by signal|PANIC|TRAP:|XX000/,
	'the log knows of no crash and of no internal error');

$node->stop;
done_testing();
