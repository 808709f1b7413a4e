# SoftHsm.pm: SoftHSM2 as the keystore of tests, and the module that stands in
# front of it to fail, lie, hang or crash (test/pkcs11_shim.c).
#
# The methods are those that NompTest asks of a keystore; KmsKeystore.pm has
# the same.  The functions are for tests of PKCS#11 itself.

package SoftHsm;

use strict;
use warnings;

use Exporter 'import';
use FindBin;
use IPC::Run;
use PostgreSQL::Test::Utils;

our @EXPORT =
  qw(shim_module shim_says shim_calls shim_pid broken_rules pkcs11_tool);

our $softhsm = '/usr/lib/softhsm/libsofthsm2.so';

# make_token(DIR, LABEL, PIN): a token and a PIN file in DIR; sets
# SOFTHSM2_CONF for servers that are started from now on.
sub make_token
{
	my ($class, $dir, $label, $pin) = @_;

	$pin //= '1234';
	mkdir $dir;
	mkdir "$dir/tokens";
	PostgreSQL::Test::Utils::append_to_file("$dir/softhsm2.conf",
			"directories.tokendir = $dir/tokens\n"
		  . "objectstore.backend = file\nlog.level = ERROR\n"
		  . "library.reset_on_fork = true\n")
	  unless -e "$dir/softhsm2.conf";
	PostgreSQL::Test::Utils::append_to_file("$dir/pin", "$pin\n")
	  unless -e "$dir/pin";
	chmod 0600, "$dir/pin";
	$ENV{SOFTHSM2_CONF} = "$dir/softhsm2.conf";
	PostgreSQL::Test::Utils::system_or_bail(
		'softhsm2-util', '--init-token', '--free', '--label',
		$label, '--pin', $pin, '--so-pin',
		'4321');
	return $dir;
}

# uri(DIR, LABEL, MODULE): the setting for make_token's token.
sub uri
{
	my ($class, $dir, $label, $module) = @_;

	$module //= $softhsm;
	return "pkcs11:token=$label?module-path=$module&pin-source=file:$dir/pin";
}

# frail_uri(DIR, LABEL): the same, by way of the shim, for "trouble".
sub frail_uri
{
	my ($class, $dir, $label) = @_;
	my $module = shim_module($dir);

	shim_says();
	return $class->uri($dir, $label, $module);
}

# serial(DIR, LABEL): the serial number of make_token's token.
sub serial
{
	my ($class, $dir, $label) = @_;
	my ($out, $err) = ('', '');

	local $ENV{SOFTHSM2_CONF} = "$dir/softhsm2.conf";
	IPC::Run::run([ 'softhsm2-util', '--show-slots' ],
		'>', \$out, '2>', \$err)
	  or die "softhsm2-util: $err";
	$out =~
	  /Serial number:\s+(\w+)(?:(?!Serial number).)*Label:\s+\Q$label\E\s*$/ms
	  or die "no token $label";
	return $1;
}

# labels(DIR, LABEL): of all keys in make_token's token.
sub labels
{
	my ($class, $dir, $label) = @_;
	my $list =
	  pkcs11_tool($dir, $label, '--list-objects', '--type', 'secrkey');

	return $list =~ /^\s*label:\s+(\S+)\s*$/mg;
}

# delete_key(DIR, LABEL, KEY): somebody deletes a key behind our back.
sub delete_key
{
	my ($class, $dir, $label, $key) = @_;

	pkcs11_tool($dir, $label, '--delete-object', '--type', 'secrkey',
		'--label', $key);
	return;
}

# refuse_key(DIR, LABEL, KEY): another key gets the same label, so that neither
# is used.
sub refuse_key
{
	my ($class, $dir, $label, $key) = @_;

	pkcs11_tool($dir, $label, '--keygen', '--key-type', 'AES:32',
		'--label', $key);
	return;
}

# make_key(DIR, LABEL, KEY): somebody makes one with a token's own tools.
sub make_key
{
	my ($class, $dir, $label, $key) = @_;

	pkcs11_tool(
		$dir, $label, '--keygen', '--key-type',
		'AES:32', '--label', $key, '--sensitive',
		'--private');
	return;
}

# unwrapper(DIR): how test/school_keys.py gets at the token 'nomp'.
sub unwrapper
{
	my ($class, $dir) = @_;

	$ENV{SOFTHSM2_CONF} = "$dir/softhsm2.conf";
	return ($softhsm, 'nomp', "$dir/pin");
}

# What the operations of a keystore are in PKCS#11.
my %calls = (
	open => ['C_Initialize'],
	find => ['C_FindObjectsInit'],
	unwrap => ['C_Decrypt'],
	create => ['C_GenerateKey'],
	destroy => ['C_DestroyObject'],
	enable => ['C_SetAttributeValue'],
	wrap => ['C_Encrypt'],
	iv => ['iv'],
	everything => [
		qw(C_Initialize C_FindObjectsInit C_DecryptInit C_Decrypt
		  C_GetTokenInfo C_GetSlotList)
	],);

# And what can happen to them.
my %happens = (
	hangs => 'hang',
	holds => 'hold',
	fails => 'rv=0x30',
	forbids => 'rv=0x10',
	'answers wrong' => 'rv=0x40',
	hidden => 'hidden',
	zero => 'zero',
	crashes => 'crash');

# goes(DIR), returns(DIR): all tokens of that folder; meanwhile make_token makes
# others.
sub goes
{
	my ($class, $dir) = @_;

	rename "$dir/tokens", "$dir/tokens.away" or die $!;
	mkdir "$dir/tokens", 0700;
	return;
}

sub returns
{
	my ($class, $dir) = @_;

	PostgreSQL::Test::Utils::system_or_bail('rm', '-rf', "$dir/tokens");
	rename "$dir/tokens.away", "$dir/tokens" or die $!;
	return;
}

# back_up(DIR), restore(DIR): all tokens of that folder.
sub back_up
{
	my ($class, $dir) = @_;

	PostgreSQL::Test::Utils::system_or_bail('cp', '-a', "$dir/tokens",
		"$dir/tokens.backup");
	return;
}

sub restore
{
	my ($class, $dir) = @_;

	PostgreSQL::Test::Utils::system_or_bail('rm', '-rf', "$dir/tokens");
	rename "$dir/tokens.backup", "$dir/tokens" or die $!;
	return;
}

# trouble(OPERATION => WHAT...): "hangs" never answers, "holds" answers when
# there is no trouble any more, "fails", "forbids", "once hangs", or a number
# of milliseconds by which it is late.  None: no trouble.
sub trouble
{
	my ($class, %trouble) = @_;
	my @lines;

	while (my ($operation, $what) = each %trouble)
	{
		my $once = $what =~ s/^once // ? ' once' : '';
		my $does = $happens{$what} // "delay=$what";

		push @lines,
		  map { "$_ $does$once" }
		  @{ $calls{$operation} // die "no operation $operation" };
	}
	shim_says(@lines);
	return;
}

# chance(SEED, PERCENT): so many of all calls fail, in one of many ways.
sub chance
{
	my ($class, $seed, $percent) = @_;

	shim_says("random $seed $percent");
	return;
}

# calls(OPERATION): how often it was tried.
sub calls
{
	my ($class, $operation) = @_;
	my $calls = 0;

	$calls += shim_calls($_) for @{ $calls{$operation} };
	return $calls;
}

# shim_module(DIR, MODULE): a PKCS#11 module that does what shim_says tells it,
# in front of another one (SoftHSM2), for servers that are started from now
# on. See test/pkcs11_shim.c.
our $shim_dir;

sub shim_module
{
	my ($dir, $real) = @_;
	my $module = "$FindBin::RealBin/../test/pkcs11_shim.so";

	die "$module is not built: make test-programs" unless -e $module;
	$shim_dir = $dir;
	$ENV{NOMP_SHIM_MODULE} = $real // $softhsm;
	$ENV{NOMP_SHIM_CONTROL} = "$dir/shim.control";
	$ENV{NOMP_SHIM_LOG} = "$dir/shim.log";
	$ENV{NOMP_SHIM_REPORT} = "$dir/shim.report";
	return $module;
}

# shim_says(LINES...): from now on; none, for an honest module.
sub shim_says
{
	my (@lines) = @_;

	unlink "$shim_dir/shim.new";
	PostgreSQL::Test::Utils::append_to_file("$shim_dir/shim.new",
		join '', map { "$_\n" } @lines);
	rename "$shim_dir/shim.new", "$shim_dir/shim.control" or die $!;
	return;
}

# shim_calls(FUNCTION): how often it was called.
sub shim_calls
{
	my ($function) = @_;
	my $log = "$shim_dir/shim.log";

	return 0 unless -e $log;
	return
	  scalar grep { $_ eq $function } split /\n/,
	  PostgreSQL::Test::Utils::slurp_file($log);
}

# broken_rules(): which of PKCS#11's rules the shim has seen broken.
sub broken_rules
{
	return '' unless -e "$shim_dir/shim.log";
	my %seen = map { $_ => 1 } grep { /^RULE / } split /\n/,
	  PostgreSQL::Test::Utils::slurp_file("$shim_dir/shim.log");

	return join ', ', sort keys %seen;
}

# shim_pid(): the helper that has loaded the shim last.
sub shim_pid
{
	PostgreSQL::Test::Utils::slurp_file("$shim_dir/shim.report") =~
	  /^pid (\d+)/
	  or die 'no report of the shim';
	return $1;
}

sub pin_of
{
	my ($dir) = @_;
	my $pin = PostgreSQL::Test::Utils::slurp_file("$dir/pin");

	chomp $pin;
	return $pin;
}

# pkcs11_tool(DIR, LABEL, ARGS...): OpenSC's view of make_token's token.
sub pkcs11_tool
{
	my ($dir, $label, @args) = @_;
	my ($out, $err) = ('', '');

	local $ENV{SOFTHSM2_CONF} = "$dir/softhsm2.conf";
	IPC::Run::run(
		[
			'pkcs11-tool', '--module', $softhsm, '--token-label',
			$label, '--login', '--pin', pin_of($dir),
			@args
		],
		'>',
		\$out,
		'2>',
		\$err) or die "pkcs11-tool @args: $err";
	return $out;
}

1;
