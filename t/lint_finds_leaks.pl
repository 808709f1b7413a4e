# nomp_crypt.lint() is believed by those who do not look themselves: a setting,
# a file, a line of pg_hba.conf or a slot that lets values out must be found, and
# must be gone when it is put right. And ./scripts/lint-database, in somebody's
# CI, must fail when it should, and not pass because it could not look.
# (The rules of the catalogs are in sql/lint.sql.)

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use JSON::PP ();
use NompTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Troubles;

my $script = "$FindBin::RealBin/../scripts/lint-database";
my $node = nomp_node('main', allows_streaming => 1);
my $dir = $node->{nomp_dir};

$node->append_conf('postgresql.conf', <<'CONF');
log_statement = none
log_line_prefix = ''
ssl = off
wal_keep_size = 0
session_preload_libraries = 'auto_explain'
CONF
start_limited('-c', '0');
create_nomp($node, 'one');
$node->safe_psql('postgres',
	"CREATE ROLE ci LOGIN; GRANT EXECUTE ON FUNCTION nomp_crypt.lint(integer) TO ci"
);

# findings(RULE): what it says, as role "ci", which may do nothing else.
sub findings
{
	my ($rule) = @_;

	return $node->safe_psql('postgres',
			'SET ROLE ci;'
		  . " SELECT concat_ws('|', severity, object, why) FROM nomp_crypt.lint() WHERE rule = '$rule'"
	);
}

# trouble(NAME, RULE, MAKE, EXPECTED, UNMAKE): nothing of it, then EXPECTED,
# then what was there before.
sub trouble
{
	return said_while(\&findings, @_);
}

sub set
{
	return setting($node, @_);
}

sub sql
{
	my ($sql) = @_;

	return sub { $node->safe_psql('postgres', $sql) };
}

# A server with another limit; the kernel may hand dumps to a program.
sub start_limited
{
	my (@limit) = @_;

	system_or_bail(
		'bash', '-c',
		'ulimit "$1" "$2" || exit 1; shift 2; exec "$@"', 'limited',
		@limit, 'pg_ctl',
		'-w', '-D',
		$node->data_dir, '-l',
		$node->logfile, '-o',
		'--cluster-name=main', 'start');
	$node->_update_pid(1);
	return;
}

# ---- settings, of the server, of roles and databases ----

is(findings($_), '', "nothing of $_ by default")
  for
  qw(logs_statements logs_parameters logs_plans logs_failed_statements keeps_statements no_tls hba_without_tls);

trouble(
	'all statements are logged',
	'logs_statements',
	set('log_statement', 'all'),
	qr/^warning\|log_statement of the server\|statements are logged.*: all$/,
	set('log_statement'));
trouble(
	'slow statements of one role are logged',
	'logs_statements',
	sql('ALTER ROLE ci SET log_min_duration_statement = 250'),
	qr/^warning\|log_min_duration_statement of role ci\|.*: 250$/,
	sql('ALTER ROLE ci RESET ALL'));
trouble(
	'some slow statements of one role in one database are logged',
	'logs_statements',
	sql('ALTER ROLE ci IN DATABASE postgres SET log_min_duration_sample = 0'),
	qr/^warning\|log_min_duration_sample of role ci in database postgres\|/,
	sql('ALTER ROLE ci IN DATABASE postgres RESET ALL'));
trouble(
	'some transactions of one database are logged',
	'logs_statements',
	sql('ALTER DATABASE postgres SET log_transaction_sample_rate = 0.01'),
	qr/^warning\|log_transaction_sample_rate of database postgres\|/,
	sql('ALTER DATABASE postgres RESET ALL'));
trouble(
	"the server's setting behind a role's",
	'logs_statements',
	sub {
		set('log_statement', 'mod')->();
		$node->safe_psql('postgres',
			"ALTER DATABASE postgres SET log_statement = 'none'");
	},
	qr/^warning\|log_statement of the server\|.*: mod$/,
	sub {
		$node->safe_psql('postgres', 'ALTER DATABASE postgres RESET ALL');
		set('log_statement')->();
	});
trouble(
	'parameters are logged with statements',
	'logs_parameters',
	set('log_statement', 'mod'),
	qr/^warning\|log_parameter_max_length of the server\|parameters of statements are logged: -1$/,
	set('log_statement'));
set('log_parameter_max_length', '0')->();
set('log_statement', 'mod')->();
wait_until(sub { findings('logs_statements') ne '' }, 'the setting');
is(findings('logs_parameters'), '', 'and not, when they are not');
set('log_statement')->();
set('log_parameter_max_length')->();
trouble(
	'an audit extension logs statements',
	'logs_statements',
	sql("ALTER ROLE ci SET pgaudit.log = 'write'"),
	qr/^warning\|pgaudit.log of role ci\|/,
	sql('ALTER ROLE ci RESET ALL'));
trouble(
	'and their parameters',
	'logs_parameters',
	sql("ALTER ROLE ci SET pgaudit.log = 'write'; ALTER ROLE ci SET pgaudit.log_parameter = on"
	),
	qr/^warning\|pgaudit.log_parameter of role ci\|/,
	sql('ALTER ROLE ci RESET ALL'));
trouble(
	'auto_explain logs plans',
	'logs_plans',
	set('auto_explain.log_min_duration', '0'),
	qr/^warning\|auto_explain.log_min_duration of the server\|plans are logged/,
	set('auto_explain.log_min_duration'));
trouble(
	'parse trees are logged',
	'logs_plans',
	sql('ALTER ROLE ci SET debug_print_parse = on'),
	qr/^warning\|debug_print_parse of role ci\|/,
	sql('ALTER ROLE ci RESET ALL'));
trouble(
	'parameters are logged when a statement fails',
	'logs_failed_statements',
	set('log_parameter_max_length_on_error', '100'),
	qr/^info\|log_parameter_max_length_on_error of the server\|/,
	set('log_parameter_max_length_on_error'));
trouble(
	'statements are logged with warnings',
	'logs_failed_statements',
	set('log_min_error_statement', 'warning'),
	qr/^info\|log_min_error_statement of the server\|/,
	set('log_min_error_statement'));
trouble(
	'statistics keep utility statements',
	'keeps_statements',
	sql('ALTER ROLE ci SET pg_stat_statements.track_utility = on'),
	qr/^info\|pg_stat_statements.track_utility of role ci\|/,
	sql('ALTER ROLE ci RESET ALL'));

# ---- the network ----

{
	my $hba = $node->data_dir . '/pg_hba.conf';
	my $as_it_was = slurp_file($hba);
	my $lines = sub {
		my ($text) = @_;

		return sub {
			unlink $hba or die $!;
			append_to_file($hba, $text . $as_it_was);
			chmod 0600, $hba;
		};
	};

	$lines->("host all all 0.0.0.0/0 scram-sha-256\n")->();
	is(findings('hba_without_tls') . findings('no_tls'),
		'', 'a server that listens to nobody needs no encryption');
	$lines->('')->();
	$node->append_conf('postgresql.conf', "listen_addresses = '0.0.0.0'");
	$node->stop;
	start_limited('-c', '0');
	like(findings('no_tls'),
		qr/^warning\|setting ssl\|clients send and get values in clear/,
		'ssl is off');
	is(findings('hba_without_tls'),
		'', 'clients of this machine alone need no encryption');

	for my $line (
		'host all all 0.0.0.0/0 scram-sha-256',
		'host all all all md5',
		'hostnossl app,other all 10.0.0.0/8 trust',
		'host all +staff samenet md5',
		'host all all .example.se md5',
		'host replication all ::/0 md5')
	{
		trouble(
			"pg_hba.conf: $line",
			'hba_without_tls',
			$lines->("$line\n"),
			qr/^warning\|pg_hba\.conf: \Q@{[ (split ' ', $line)[0] ]}\E .*\|the line lets clients connect/,
			$lines->(''));
	}
	for my $text (
		"hostssl all all 0.0.0.0/0 scram-sha-256\n",
		"hostgssenc all all 0.0.0.0/0 gss\n",
		"host all all 127.0.0.0/8 md5\nhost all all ::1/128 md5\nhost all all localhost md5\nhost all all samehost md5\n",
		"host all all 10.0.0.0/8 reject\n",
		"hostnossl all all all reject\nhost all all 0.0.0.0/0 md5\nhost all all ::/0 md5\nhost all all example.se md5\n",
		"hostnossl all all 0.0.0.0/0 reject\nhost all all 10.0.0.0/8 md5\n")
	{
		$lines->($text)->();
		is(findings('hba_without_tls'),
			'', 'nothing of: ' . $text =~ s/\n/; /gr);
	}
	for my $text (
		"hostnossl all all 0.0.0.0/0 reject\nhost all all ::/0 md5\n",
		"hostnossl all some 0.0.0.0/0 reject\nhost all all 10.0.0.0/8 md5\n",
		"hostnossl all all 10.0.0.0/8 reject\nhost all all 10.0.0.0/8 md5\n",
		"host all all 10.0.0.0/8 md5\nhostnossl all all all reject\n",
		"hostssl all all all reject\nhost all all 10.0.0.0/8 md5\n")
	{
		$lines->($text)->();
		like(
			findings('hba_without_tls'),
			qr/^warning\|pg_hba\.conf: host all/,
			'not enough: ' . $text =~ s/\n/; /gr);
	}
	$lines->('')->();
	$node->append_conf('postgresql.conf', "listen_addresses = '127.0.0.1'");
	$node->stop;
	start_limited('-c', '0');
	is(findings('no_tls'), '', 'this machine alone');
}

# ---- the machine ----

if (over_kms())
{
	like(
		findings('credentials'),
		qr/^warning\|keystore credentials\|the key service's credentials do not expire; they come from: /,
		'static credentials of a key service');
}
else
{
	is(findings('credentials'), '', 'a PIN file as it should be');
	trouble(
		'a PIN file that others may read',
		'credentials',
		sub { chmod 0640, "$dir/pin" },
		qr/^error\|keystore credentials\|the PIN file is accessible to group or others$/,
		sub { chmod 0600, "$dir/pin" });
}
{
	my $swap = slurp_file('/proc/meminfo') =~ /^SwapTotal:\s+[1-9]/m;
	my $piped = slurp_file('/proc/sys/kernel/core_pattern') =~ /^\|/;

	is( findings('swap') =~ /^info\|swap space\|the machine swaps/ ? 1 : 0,
		$swap                                                      ? 1 : 0,
		'swap space is seen if there is any');
	is( findings('core_dumps') =~ /^info\|core dumps\|a crash can leave/
		? 1
		: 0,
		$piped ? 1 : 0,
		'no core dumps without room for one, unless piped');
	$node->stop;
	start_limited('-c', 'unlimited');
	like(
		findings('core_dumps'),
		qr/^info\|core dumps\|/,
		'core dumps are possible');
	is(findings('memory'), '', 'memory that is locked');
	$node->stop;
	start_limited('-l', '0');
	like(
		findings('memory'),
		qr/^warning\|memory with keys\|the pages that hold keys could not be locked/,
		'memory that is not');
	$node->stop;
	start_limited('-c', '0');
}

# ---- rows that cannot be looked into ----

{
	my $locker = open_session($node);

	$node->safe_psql('postgres',
		"CREATE TABLE locked (x text); CREATE TABLE broken (x text); ALTER TABLE broken ALTER x SET STORAGE EXTERNAL;"
		  . " INSERT INTO broken VALUES (repeat('x', 10000)); GRANT SELECT ON locked, broken TO ci"
	);
	trouble(
		'a table that is locked',
		'rows_unseen',
		sub { says($locker, 'BEGIN; LOCK TABLE locked') },
		qr/^not_checked\|rows: the table is locked\|rows were not looked into: public\.locked$/m,
		sub { says($locker, 'COMMIT') });
	$locker->quit;

	my $toast =
	  $node->data_dir . '/'
	  . $node->safe_psql('postgres',
		"SELECT pg_relation_filepath(reltoastrelid) FROM pg_class WHERE relname = 'broken'"
	  );
	$node->stop;
	truncate $toast, 0 or die $!;
	start_limited('-c', '0');
	like(
		findings('rows_unseen'),
		qr/^not_checked\|rows: they could not be read\|.*: public\.broken$/m,
		'a table that is damaged');
	$node->safe_psql('postgres', 'DROP TABLE broken, locked');
	unlike(findings('rows_unseen'), qr/could not be read|is locked/,
		'and no more');
}

# ---- what conversions leave in WAL and backups ----

is(findings('backups_unseen'),
	'', 'nothing was ever in clear: no word of backups');
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE old (id int, school text DEFAULT 'one', x text);
INSERT INTO old (id, x) SELECT i, 'x' || i FROM generate_series(1, 10) i;
SELECT pg_create_physical_replication_slot('stays', true);
SELECT pg_create_physical_replication_slot('follows', true);
SELECT pg_switch_wal();
SQL
sleep 2;    # for the segment's time to be another one than the rewrite's
$node->safe_psql('postgres',
	"SELECT nomp_crypt.encrypt_column('old', 'x', 'school')");
like(
	findings('backups_unseen'),
	qr/^not_checked\|backups\|columns were in clear once/,
	'that backups are gone cannot be known');
is(findings('slot_keeps_plaintext'),
	'', 'before the rewrite, slots are not the matter');
$node->safe_psql('postgres', "CALL nomp_crypt.rewrite_table('old')");
# a slot that has been followed to where it is now
$node->safe_psql('postgres', 'SELECT pg_switch_wal(); CREATE TABLE t ()');
$node->command_ok(
	[
		'pg_receivewal', '--no-loop',
		'-d', $node->connstr('postgres'),
		'-S', 'follows',
		'-D', PostgreSQL::Test::Utils::tempdir(),
		'--endpos', $node->lsn('flush'),
		'--synchronous'
	],
	'one slot is read to its end');
wait_until(
	sub {
		findings('slot_keeps_plaintext') =~
		  /^warning\|replication slot stays\|[^\n]*$/;
	},
	'the slot that keeps old WAL, and only that: '
	  . findings('slot_keeps_plaintext'));
pass('a slot that keeps WAL from before, and not one that is followed');
$node->safe_psql('postgres', "SELECT pg_drop_replication_slot('stays')");
is(findings('slot_keeps_plaintext'), '', 'dropped, it keeps nothing');

# ---- a standby ----

{
	my $standby = PostgreSQL::Test::Cluster->new('standby');

	$node->backup('base');
	$standby->init_from_backup($node, 'base', has_streaming => 1);
	nomp_conf($standby, $dir, 'nomp');
	$standby->start;
	$node->wait_for_catchup($standby);
	is( $standby->safe_psql(
			'postgres',
			"SELECT severity, object FROM nomp_crypt.lint() WHERE rule = 'backups_unseen'"
		),
		'not_checked|backups',
		'a standby answers too');
	$standby->stop;
}

# ---- the script ----

my @conninfo = ($node->connstr('postgres'));

# lint(ARGUMENTS): exit status, what it prints, what it complains of
sub lint
{
	my (@arguments) = @_;
	my ($out, $err) = ('', '');

	IPC::Run::run([ $script, @arguments ], '<', \'', '>', \$out, '2>', \$err);
	return ($? >> 8, $out, $err);
}

# Nothing but what this machine is like, and that is accepted.
$node->safe_psql('postgres',
	"SELECT nomp_crypt.accept_lint(rule, object, 'a test') FROM nomp_crypt.lint() WHERE severity IN ('error', 'warning')"
);
{
	my ($status, $out, $err) = lint(@conninfo, '--fail-on', 'warning');

	is("$status|$err", '0|', 'nothing that counts: status 0');
	like(
		$out,
		qr/^not_checked: backups_unseen: backups\n    columns were .*\n    Look at .*\n/m,
		'and what could not be looked at is shown');
}
$node->safe_psql(
	'postgres',
	q{CREATE TABLE person (email text, "an odd
name" text); INSERT INTO person VALUES ('anna@example.se', '"121212-1212"')});
$node->safe_psql(
	'postgres',
	'UPDATE person SET "an odd
name" = NULL');
{
	my ($status, $out, $err) = lint(@conninfo);

	is("$status|$err", '0|', 'a warning is no error: status 0');
	like(
		$out,
		qr/^warning: email_addresses: table column public\.person\.email\n    .*: 1 of 1 values that were looked at\n    Encrypt it/m,
		'and is shown');
	unlike($out, qr/anna@/, 'without the value');
	($status) = lint(@conninfo, '--fail-on', 'warning');
	is($status, 1, 'unless that is asked for: status 1');
	($status, $out) = lint('--sample-rows', 0, @conninfo);
	like(
		$out,
		qr/^warning: personal_name: table column public\.person\.email$/m,
		'without looking at rows, by its name');
}
$node->safe_psql(
	'postgres',
	'UPDATE person SET "an odd
name" = \'121212-1212\'');
{
	my ($status, $out, $err) = lint(@conninfo);

	is("$status|$err", '1|', 'an error: status 1');
	like(
		$out,
		qr/\Aerror: personal_numbers: table column public\.person\."an odd\?name"\n/,
		'first, and on one line');
	($status, $out, $err) = lint(@conninfo, '--format', 'json');
	is("$status|$err", '1|', 'as JSON: status 1');
	my $found = JSON::PP->new->utf8->decode($out);
	is( join('|', @{ $found->[0] }{qw(severity rule object)}),
		qq{error|personal_numbers|table column public.person."an odd\nname"},
		'as JSON: the same, first');
	is( join(' ', sort keys %{ $found->[0] }),
		'advice object rule severity why',
		'as JSON: its parts');
	$node->safe_psql('postgres',
		"SELECT nomp_crypt.accept_lint(rule, object, 'a test, \"quoted\"') FROM nomp_crypt.lint() WHERE severity IN ('error', 'warning')"
	);
	($status, $out, $err) =
	  lint(@conninfo, '--format', 'json', '--fail-on', 'warning');
	is($status, 0, 'accepted, it does not count');
	$found = JSON::PP->new->utf8->decode($out);
	is( scalar(
			grep {
					 $_->{severity} eq 'accepted'
				  && $_->{rule} eq 'personal_numbers'
				  && $_->{why} =~ /a test, "quoted"$/
			} @$found),
		1,
		'and is shown');
}

# It never passes for want of looking.
for my $case (
	[ 'no such database', "$conninfo[0] dbname=nowhere" ],
	[ 'a role that may not', "$conninfo[0] user=nobody" ],
	[ 'no connection', 'host=/nowhere dbname=postgres' ],
	['no conninfo'],
	[ 'an empty one', '' ],
	[ 'two of them', @conninfo, @conninfo ],
	[ 'an unknown option', @conninfo, '--nothing' ],
	[ 'an unknown format', @conninfo, '--format', 'xml' ],
	[ 'an unknown level', @conninfo, '--fail-on', 'info' ],
	[ 'no level', @conninfo, '--fail-on' ],
	[ 'no number', @conninfo, '--sample-rows', '1; DROP TABLE person' ],
	[ 'too large a number', @conninfo, '--sample-rows', '99999999999' ])
{
	my ($name, @arguments) = @$case;

	if ($name eq 'a role that may not')
	{
		$node->safe_psql('postgres', 'CREATE ROLE nobody LOGIN');
	}
	my ($status, $out, $err) = lint(@arguments);

	is($status, 2, "$name: status 2");
	is($out, '', "$name: nothing found is not said");
	isnt($err, '', "$name: something else is");
}
{
	local $ENV{PATH} = "$dir/empty";

	my ($status) = IPC::Run::run([ '/bin/bash', $script, @conninfo ],
		'>', \my $out, '2>', \my $err) ? 0 : ($? >> 8);
	is($status, 2, 'without psql: status 2');
	like($err, qr/psql is not installed/, 'without psql: it says so');
}
$node->stop;
done_testing();
