# What goes into an encrypted column comes out of it, whatever type is inside.
# Random values of every type, its array and types with modifiers are stored
# in a plain table, and in encrypted ones: as literals, as parameters, from the
# plain table and by COPY.  Then they are read back as that type and as text,
# under other settings than they were written with, also after a dump and
# restore of every form and a trip through binary files.  Values count as the
# same if they are so to the last bit (record_image_ne).
#
# NOMP_SEED and NOMP_ROWS choose other values, and more.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use RandomValues;
use Test::More;

my $seed = $ENV{NOMP_SEED} // 20140501;
my $rows = $ENV{NOMP_ROWS} // 60;
srand $seed;
note("seed $seed");

# Types with modifiers, and text that fits after rounding or padding.
my %modified = (
	'varchar(7)' => [ 'åäöÅÄÖ!', '', 'short  ' ],
	'char(9)' => [ 'Åsa', '', ' x       ' ],
	'numeric(12,3)' => [ '123456789.0005', '-0.0004', 'NaN' ],
	'numeric(4,-2)' => [ '149', '-123450', '0' ],
	'time(2)' => [ '23:59:59.996', '00:00:00.004' ],
	'timetz(0)' => ['12:30:00.5+02'],
	'timestamp(3)' => [ '2014-05-01 12:00:00.0005', 'infinity' ],
	'timestamptz(0)' => [ '2014-12-31 23:59:59.7+01', '-infinity' ],
	'interval(1)' => [ '1 mon 00:00:00.16', '-3 days' ],
	'interval year to month' => ['14 months 3 days'],
	'interval day to second(0)' => ['2 days 03:04:05.6'],
	'varchar(3)[]' => [ '{å,NULL,"a,b"}', '{}' ],
	'numeric(6,2)[]' => ['{1.005,NULL,-1}'],
	'timestamp(0)[]' => [ '[0:1]={2014-05-01 12:00:00.5,infinity}', '{}' ]);

# Columns: name, type as declared, the same without a modifier, how to make a
# value (with true: a large one).
my @columns;
for my $type (scalar_types())
{
	push @columns,
	  [
		"v_$type", $type,
		$type, sub { $_[0] ? large_value($type) : random_value($type) }
	  ],
	  [
		"a_$type", "$type\[]", "$type\[]",
		sub { $_[0] ? large_value($type, 1) : random_array($type) }
	  ];
}
for my $type (sort keys %modified)
{
	my $values = $modified{$type};
	my $name = 'm_' . $type =~ s/\W+/_/gr;

	push @columns,
	  [
		$name, $type,
		$type =~ s/^(\w+)[^\[]*/$1/r =~ s/^char\b/bpchar/r,
		sub { $values->[ int rand @$values ] }
	  ];
}

my @rows;
for my $n (1 .. $rows)
{
	push @rows, [
		map {
			my $value = $_->[3]->($n == 1);

			utf8::encode($value) if utf8::is_utf8($value);
			$n == 2 || ($n > 2 && rand() < 0.1) ? undef : $value
		} @columns
	];
}

my $school = 'ribersborg';
my $temp = PostgreSQL::Test::Utils::tempdir();
my $node = nomp_node('main');
$node->start;
create_nomp($node, $school);
my $inside = "SET nomp_crypt.tenant = '$school'";

# How a session writes and reads values, besides PostgreSQL's own settings.
my $foreign =
	"SET datestyle = 'SQL, DMY'; SET intervalstyle = sql_standard;"
  . " SET timezone = 'Asia/Kathmandu'; SET bytea_output = escape;"
  . " SET extra_float_digits = 0";

my @ways = qw(by_literal by_parameter by_select by_copy);
$node->safe_psql(
	'postgres',
	join ';',
	'CREATE TABLE plain (id int PRIMARY KEY, '
	  . join(', ', map { "$_->[0] $_->[1]" } @columns) . ')',
	map {
		"CREATE TABLE $_ (id int PRIMARY KEY, "
		  . join(', ', map { "$_->[0] encrypted('$_->[1]')" } @columns) . ')'
	} @ways);

# ---- write ----

sub literals
{
	my ($table) = @_;
	my $n = 0;

	return join ";\n", map {
		$n++;
		"INSERT INTO $table VALUES ($n, "
		  . join(', ', map { quoted($_) } @$_) . ')'
	} @rows;
}

$node->safe_psql('postgres', literals('plain'));
$node->safe_psql('postgres', "$inside; " . literals('by_literal'));
$node->safe_psql('postgres',
	"$foreign; $inside; INSERT INTO by_select SELECT * FROM plain");
$node->safe_psql('postgres',
	"SET bytea_output = escape; COPY plain TO '$temp/plain.copy'; $inside; COPY by_copy FROM '$temp/plain.copy'"
);
{
	my $n = 0;
	my @calls = map {
		my @values = map { defined ? unpack 'H*', $_ : undef } @$_;
		my $places = join ', ', map { "\$$_" } 1 .. @columns;

		# of the column's type, or declared as text (oid 25)
		$n++;
		{
			sql => "INSERT INTO by_parameter VALUES ($n, $places)",
			params => \@values,
			types => [ map { $n % 2 ? 0 : 25 } @columns ]
		}
	} @rows;
	my @states = map { $_->{state} } libpq_calls($node->connstr('postgres'),
		{ sql => "$inside; SET client_encoding = 'UTF8'" }, @calls);

	is_deeply([ grep { length } @states ], [], 'parameters are taken');
}

# ---- read ----

# differing TABLE, DBNAME, COMMANDS: where it differs from table plain
sub differing
{
	my ($table, $dbname, @before) = @_;
	my $queries = join ' UNION ALL ', map {
		"SELECT '$_->[0] of ' || p.id FROM $table e FULL JOIN plain p USING (id)"
		  . " WHERE record_image_ne(ROW(e.$_->[0]::$_->[2]), ROW(p.$_->[0]::$_->[2]))"
	} @columns;

	return $node->safe_psql($dbname, join ';', @before, $queries);
}

sub text_of
{
	my ($table, @before) = @_;

	return $node->safe_psql('postgres', join ';', @before,
		"SELECT * FROM $table ORDER BY id");
}

for my $table (@ways)
{
	is($node->safe_psql('postgres', "SELECT count(*) FROM $table"),
		$rows, "$table: all rows are there");
	is( $node->safe_psql(
			'postgres',
			"SELECT count(*) FROM $table t WHERE t::text LIKE '%nc1:%'"),
		$rows - 1,
		"$table: stored as ciphertext, but for the row of NULLs");
	is(differing($table, 'postgres'), '', "$table: cast, outside a tenant");
	is(differing($table, 'postgres', $inside),
		'', "$table: cast, inside a tenant");
	ok( text_of($table, $inside) eq text_of('plain'),
		"$table: the same text in a session");
	ok(text_of($table, $foreign, $inside) eq text_of('plain', $foreign),
		"$table: and under other settings");
}
is( differing(
		'by_select',
		'postgres',
		"BEGIN; UPDATE plain SET v_float8 = '-0' WHERE id = 3; UPDATE by_select SET v_float8 = nomp_crypt.encrypt('0', '$school')::encrypted(float8) WHERE id = 3"
	),
	'v_float8 of 3',
	'a difference of one bit is noticed');
$node->safe_psql('postgres', 'VACUUM FULL by_select; ANALYZE by_select');
is(differing('by_select', 'postgres'), '', 'VACUUM FULL moves bytes');

# What is stored is of the declared type, on every way.
is( $node->safe_psql(
		'postgres',
		join ' UNION ',
		map {
			my $table = $_;
			map {
				"SELECT '$table.$_->[0]' FROM $table WHERE $_->[0] IS NOT NULL"
				  . " GROUP BY (nomp_crypt.key_info($_->[0])).type"
				  . " HAVING (nomp_crypt.key_info($_->[0])).type <> '$_->[2]'"
			} @columns
		} @ways),
	'',
	'each value is of its column\'s type');

# ---- stored values, from table to table ----

for my $format (qw(text csv binary))
{
	$node->safe_psql('postgres', <<"SQL");
CREATE TABLE copied (LIKE by_literal);
COPY by_literal TO '$temp/first.$format' (FORMAT $format);
COPY copied FROM '$temp/first.$format' (FORMAT $format);
COPY copied TO '$temp/second.$format' (FORMAT $format);
SQL
	ok( slurp_file("$temp/first.$format") eq
		  slurp_file("$temp/second.$format"),
		"COPY in $format format, out and in again: the same file");
	is( $node->safe_psql(
			'postgres',
			'SELECT count(*) FROM copied c JOIN by_literal l USING (id) WHERE c *= l'
		),
		$rows,
		'and the same bytes');
	is(differing('copied', 'postgres'), '', 'which decrypt');
	$node->safe_psql('postgres', 'DROP TABLE copied');
}

# Binary results are the stored bytes, inside a tenant too.
{
	my $select = 'SELECT v_text, v_jsonb, a_text FROM by_literal ORDER BY id';
	my ($outside, undef, $within) = libpq_calls(
		$node->connstr('postgres'),
		{ sql => $select, result => 1 },
		{ sql => $inside },
		{ sql => $select, result => 1 });

	is($outside->{state}, '', 'binary results');
	is_deeply($within, $outside, 'are the same inside a tenant');
	is( $outside->{rows}[2][0] // '',
		$node->safe_psql(
			'postgres',
			"SELECT encode(encrypted_send(v_text), 'hex') FROM by_literal WHERE id = 3"
		),
		'and the stored bytes');
}

# ---- dump and restore ----

my $digest =
  'SELECT md5(string_agg(p::text, chr(10) ORDER BY id)) FROM plain p';
my $original = $node->safe_psql('postgres', $digest);
my @forms = (
	[ 'plain', 'plain.sql', [], [] ],
	[ 'custom', 'custom', ['-Fc'], [] ],
	[ 'directory', 'directory', [ '-Fd', '-j2' ], ['-j2'] ],
	# INSERT loses the sign of a plain -0, as pg_dump writes it
	[ 'inserts', 'inserts.sql', [ '--inserts', '-T', 'plain' ], [] ]);

$node->command_ok(
	[
		'pg_dump', '-t', 'plain', '-f',
		"$temp/plain_only.sql", '-d', $node->connstr('postgres')
	],
	'pg_dump of the plain table');
for my $form (@forms)
{
	my ($name, $file, $dump_options, $restore_options) = @$form;
	my @into = ('-d', $node->connstr($name));

	$node->command_ok(
		[
			'pg_dump', @$dump_options,
			'-f', "$temp/$file",
			'-d', $node->connstr('postgres')
		],
		"$name: pg_dump");
	$node->safe_psql('postgres', "CREATE DATABASE $name TEMPLATE template0");
	$node->command_ok(
		$file =~ /\.sql$/
		? [
			'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', @into, '-f',
			"$temp/$file"
		  ]
		: [
			'pg_restore', '--exit-on-error',
			@$restore_options, @into,
			"$temp/$file"
		],
		"$name: restore");
	if ($name eq 'inserts')
	{
		$node->command_ok(
			[
				'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', @into, '-f',
				"$temp/plain_only.sql"
			],
			"$name: the plain table by itself");
	}
	is($node->safe_psql($name, $digest), $original, "$name: the plain table");
	is(differing($_, $name), '', "$name: $_ decrypts to the same") for @ways;
	$node->safe_psql('postgres', "DROP DATABASE $name");
}

$node->stop;
done_testing();
