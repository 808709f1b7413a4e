# RandomValues.pm: values of every type that can be inside an encrypted
# column, as text that PostgreSQL reads; from srand's seed.
#
# Half of them are edges: what is empty, extreme, infinite, not a number, long,
# or looks like something else.  Text is a perl string of bytes in UTF-8.

package RandomValues;

use strict;
use warnings;

use Exporter 'import';

our @EXPORT = qw(scalar_types random_value random_array large_value quoted);

sub any { return $_[ int rand @_ ] }

# Between two integers, both included; up to 2**53.
sub between
{
	my ($low, $high) = @_;

	return sprintf '%.0f', $low + int rand($high - $low + 1);
}

sub digits
{
	my ($n) = @_;

	return join '', map { int rand 10 } 1 .. $n;
}

# Characters of one to four bytes in UTF-8, quotes and control characters
# among them; never a NUL, which no text of PostgreSQL holds.
sub characters
{
	my ($n) = @_;
	my $text = join '', map {
		chr any(
			between(1, 0x7f),
			between(0x80, 0x7ff),
			between(0x800, 0xd7ff),
			between(0x10000, 0x10ffff),
			0x27, 0x22, 0x5c, 0x2c, 0x7b, 0x7d)
	} 1 .. $n;

	utf8::encode($text);
	return $text;
}

my @texts = (
	'', ' ', '  both  ', "it's", '"', '\\', '\\N', '\\x00', 'NULL', 'null',
	'{}', '{a,b}', '(,)', "\t\n\r\f\b", "\x01\x7f", 'Åsa Öberg',
	"e\xcc\x81 is not \xc3\xa9", "\xef\xbb\xbfmark", "\xf4\x8f\xbf\xbf",
	"\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x92\xbb", 'nc1:', 'nc1:AAAA',
	'nc1:EAFg3BAKVpI24UBB', 'a' x 127, 'b' x 1999, 'ö' x 2100);

sub text { return rand() < 0.5 ? any(@texts) : characters(between(1, 60)) }

sub hex_bytes
{
	my ($n) = @_;

	return join '', map { sprintf '%02x', rand 256 } 1 .. $n;
}

sub json_string
{
	return any('""', '"\\u00e5"', '"\\\\u00e5"', '"\\n\\t\\"\\\\/"', '"Åsa"',
		"\"\xf0\x9f\x98\x80\"", '"' . ('x' x between(0, 300)) . '"');
}

sub json
{
	my ($depth) = @_;
	my $inner = sub { json($depth - 1) };

	return any('null', 'true', 'false', '0', '-0', '-1.50', '1e300',
		'12345678901234567890.123', json_string())
	  if $depth == 0 || rand() < 0.2;
	return
	  '['
	  . join(any(',', ' , '), map { $inner->() } 1 .. between(0, 4)) . ']'
	  if rand() < 0.5;
	return '{' . join(
		any(',', ",\n "),
		map {
				any('"a"', '"b"', '""', '"å"', '"long key"')
			  . any(':', ' : ')
			  . $inner->()
		} 1 .. between(0, 4)) . '}';
}

sub nested
{
	my ($depth) = @_;

	return ('[{"a": ' x $depth) . '1' . ('}]' x $depth);
}

sub numeric
{
	my $text = any('', '-') . digits(between(1, 40));

	return rand() < 0.3 ? $text : "$text." . digits(between(1, 40));
}

sub date_text
{
	return sprintf '%04d-%02d-%02d', between(1, 9999), between(1, 12),
	  between(1, 28);
}

sub time_text
{
	return sprintf '%02d:%02d:%02d.%06d', between(0, 23), between(0, 59),
	  between(0, 59), between(0, 999999);
}

sub zone
{
	return sprintf '%s%02d:%02d', any('+', '-'), between(0, 14),
	  any(0, 30, 45);
}

sub interval
{
	return sprintf '%d mons %d days %s%s', between(-5000, 5000),
	  between(-5000, 5000), any('', '-'), time_text();
}

# A range between two of what a generator gives, in the order that "less" says.
sub range
{
	my ($bound, $less) = @_;
	my ($low, $high) = sort { $less->($a, $b) } $bound->(), $bound->();

	$low = '' if rand() < 0.2;
	$high = '' if rand() < 0.2;
	($low, $high) = map { length $_ ? "\"$_\"" : '' } $low, $high;
	return any('[', '(') . "$low,$high" . any(']', ')');
}

sub number_order { return $_[0] <=> $_[1] }
sub text_order   { return $_[0] cmp $_[1] }

my @times = ('infinity', '-infinity', 'epoch');

my %generators = (
	text => \&text,
	varchar => \&text,
	bpchar => \&text,
	bytea => sub {
		any('\\x', '\\x00', '\\xff00', '\\x' . hex_bytes(between(1, 300)));
	},
	bool => sub { any('true', 'false') },
	int2 => sub { any(-32768, 32767, 0, -1, between(-32768, 32767)) },
	int4 => sub {
		any(-2147483648, 2147483647, 0, between(-2147483648, 2147483647));
	},
	int8 => sub {
		any('-9223372036854775808', '9223372036854775807', 0,
			any('', '-') . digits(18));
	},
	float4 => sub {
		any(qw(0 -0 NaN Infinity -Infinity 1e-45 1.17549e-38 3.4028235e38),
			rand, sprintf('%.9g', (rand() - 0.5) * 10**between(-30, 30)));
	},
	float8 => sub {
		any(qw(0 -0 NaN Infinity -Infinity 5e-324 2.2250738585072014e-308 1.7976931348623157e308),
			rand,
			sprintf('%.17g', (rand() - 0.5) * 10**between(-300, 300)));
	},
	numeric => sub {
		any(qw(0 0.000 -0.0 NaN Infinity -Infinity 1e-1000 1e1000 100000000 0.00010000),
			numeric(), numeric());
	},
	money => sub {
		any('-92233720368547758.08', '92233720368547758.07', '0', '-0.01',
			digits(10) . '.' . digits(2));
	},
	date => sub {
		any('infinity', '-infinity', '4713-01-01 BC',
			'5874897-12-31', '2000-02-29', date_text(), date_text());
	},
	time =>
	  sub { any('00:00:00', '24:00:00', '23:59:59.999999', time_text()) },
	timetz => sub {
		any('00:00:00+15:59:59', '24:00:00-15:59:59',
			'12:00:00+00', time_text() . zone());
	},
	timestamp => sub {
		any(@times,
			'4714-11-24 00:00:00 BC',
			'294276-12-31 23:59:59.999999',
			date_text() . ' ' . time_text());
	},
	timestamptz => sub {
		any(@times,
			'4714-11-24 00:00:00+00 BC',
			'294276-12-31 23:59:59.999999+00',
			date_text() . ' ' . time_text() . zone());
	},
	interval => sub {
		any('0',
			'178000000 years',
			'-178000000 years',
			'2147483647 days -00:00:00.000001',
			'1 mon -30 days',
			interval());
	},
	uuid => sub { any('0' x 32, 'f' x 32, hex_bytes(16)) },
	inet => sub {
		any('0.0.0.0/0', '10.1.2.3',
			'10.1.2.3/8', '::',
			'::1/127', '::ffff:10.1.2.3',
			'fe80::1/64', join('.', map { between(0, 255) } 1 .. 4));
	},
	json => sub {
		any('  {"a" : 1, "a":2}  ',
			'"\\u0000"', '[]', nested(100), json(4), json(4));
	},
	jsonb => sub {
		any('{}', '[]', '""', '{"": {"": ""}}', nested(100), json(4),
			json(4));
	},
	int4range => sub {
		any('empty', '(,)', '[-2147483648,2147483647)',
			range(sub { between(-1e9, 1e9) }, \&number_order));
	},
	int8range => sub {
		any('empty', '(,)',
			'[-9223372036854775808,9223372036854775807)',
			range(sub { between(-1e15, 1e15) }, \&number_order));
	},
	numrange => sub {
		any('empty', '(,)',
			'[1.10,1.1]',
			'[-Infinity,Infinity]',
			'[0,NaN]',
			range(
				sub { between(-1e9, 1e9) . '.' . digits(3) },
				\&number_order));
	},
	daterange => sub {
		any('empty', '(,)', '[-infinity,infinity]', '[2014-01-01,infinity)',
			range(\&date_text, \&text_order));
	},
	tsrange => sub {
		any('empty', '(,)', '[-infinity,infinity]',
			range(sub { date_text() . ' ' . time_text() }, \&text_order));
	},
	tstzrange => sub {
		any('empty', '(,)',
			'[-infinity,infinity]',
			range(
				sub { date_text() . ' ' . time_text() . '+00' },
				\&text_order));
	},);

# Values that are moved out of line, and beyond what one page or one message
# of the keystore holds.
my %large = (
	text => sub { 'Lång text ' x 200_000 },
	varchar => sub { characters(100_000) },
	bpchar => sub { 'x' x 100_000 },
	bytea => sub {
		'\\x' . join '', map { sprintf '%08x', rand 2**32 } 1 .. 300_000;
	},
	numeric => sub { digits(100_000) . '.' . digits(15_000) },
	json => sub {
		'[' . join(', ', map { json(3) } 1 .. 5000) . ']';
	},
	jsonb => sub { nested(1000) },);

# The types, by the names that encrypted(...) takes.
sub scalar_types { return sort keys %generators }

sub random_value
{
	my ($type) = @_;

	return $generators{$type}->();
}

sub array_of
{
	my (@elements) = @_;

	return '{'
	  . join(',',
		map { defined $_ ? '"' . s/(["\\])/\\$1/gr . '"' : 'NULL' } @elements)
	  . '}';
}

# An array's literal: none, some or only NULLs, and subscripts from anywhere.
sub random_array
{
	my ($type) = @_;
	my @elements =
	  map { rand() < 0.2 ? undef : random_value($type) } 1 .. between(0, 6);
	my $from = any(-3, 0, 7, 2147483000);
	my $subscripts = sprintf '[%d:%d]=', $from, $from + $#elements;

	return array_of(@elements) if !@elements || rand() < 0.7;
	return $subscripts . array_of(@elements);
}

# Of a type or, with true as the second argument, of its array.
sub large_value
{
	my ($type, $is_array) = @_;

	return array_of(map { random_value($type) } 1 .. 3000) if $is_array;
	return exists $large{$type} ? $large{$type}->() : random_value($type);
}

# As a literal of SQL.
sub quoted
{
	my ($text) = @_;

	return defined $text ? "'" . $text =~ s/'/''/gr . "'" : 'NULL';
}

1;
