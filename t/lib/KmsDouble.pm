# KmsDouble.pm: starts test/kms_double.py and talks to it.

package KmsDouble;

use strict;
use warnings;

use Exporter 'import';
use FindBin;
use HTTP::Tiny;
use JSON::PP ();
use POSIX    ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Time::HiRes ();

our @EXPORT = qw(
  start_double kill_double double_says double_keys double_uri days_pass
);

my %doubles;    # folder => { pid, tls, plain, control, options }
my $json = JSON::PP->new->canonical;

# start_double(FOLDER, OPTIONS...): one that keeps its keys there, on the same
# ports each time, unless it runs; waits until it listens.  Returns its ports,
# as a hash.
sub start_double
{
	my ($folder, @options) = @_;
	my $double = $doubles{$folder} //= {
		options => \@options,
		ports => [ map { PostgreSQL::Test::Cluster::get_free_port() } 1 .. 3 ]
	};
	my $log = "$PostgreSQL::Test::Utils::log_path/kms_double.log";

	return $double if defined $double->{pid};
	unlink "$folder/ready.json";
	my $pid = fork // die "cannot fork: $!";
	if ($pid == 0)
	{
		open STDIN, '<', '/dev/null' or POSIX::_exit(126);
		open STDOUT, '>>', $log or POSIX::_exit(126);
		open STDERR, '>&', \*STDOUT or POSIX::_exit(126);
		# not to be left behind by a test that is killed
		exec 'setpriv', '--pdeathsig', 'KILL', '/usr/bin/python3',
		  "$FindBin::RealBin/../test/kms_double.py", $folder,
		  '--ports', join(',', @{ $double->{ports} }), @{ $double->{options} }
		  or POSIX::_exit(127);
	}
	$double->{pid} = $pid;
	for (1 .. 1200)
	{
		last if -e "$folder/ready.json";
		die "the double ended; see $log" if waitpid($pid, POSIX::WNOHANG());
		Time::HiRes::sleep(0.05);
	}
	my $ready = $json->decode(
		PostgreSQL::Test::Utils::slurp_file("$folder/ready.json"));
	@$double{qw(tls plain control)} = @$ready{qw(tls plain control)};
	return $double;
}

# double_uri(FOLDER, OPTIONS): the setting for it, with more options in it.  What
# was destroyed there is believed to be gone however young it was, as it may be
# in tests only; not with "&settled=no".
sub double_uri
{
	my ($folder, $options) = @_;
	my ($region) = "@{ $doubles{$folder}->{options} }" =~ /--region (\S+)/;

	$region //= 'eu-north-1';
	return
	  "aws-kms://$region?endpoint=https://127.0.0.1:$doubles{$folder}->{tls}"
	  . "&test=yes&ca-file=$folder/ca.pem"
	  . (($options // '') =~ /&settled=/ ? '' : '&settled=yes')
	  . ($options // '');
}

# double_serial(FOLDER): what it has for a serial, its region and account.
sub double_serial
{
	my ($folder) = @_;
	my $options = "@{ $doubles{$folder}->{options} }";
	my ($region) = $options =~ /--region (\S+)/;
	my ($account) = $options =~ /--account (\S+)/;

	return join ':', 'arn:aws:kms', $region // 'eu-north-1',
	  $account // '111122223333';
}

# kill_double(FOLDER): as a power cut would; start_double goes on.
sub kill_double
{
	my ($folder) = @_;
	my $pid = delete $doubles{$folder}->{pid} or return;

	kill 'KILL', $pid;
	waitpid $pid, 0;
	return;
}

# double_says(FOLDER, WHAT, VALUES...): tells it what aws_double/control.py
# lists, and gives its answer.
sub double_says
{
	my ($folder, $what, %values) = @_;
	my $response = HTTP::Tiny->new(timeout => 60)->post(
		"http://127.0.0.1:$doubles{$folder}->{control}/",
		{ content => $json->encode({ do => $what, %values }) });

	die "the double refuses $what: $response->{content}"
	  unless $response->{success};
	return $json->decode($response->{content})->{answer};
}

# double_keys(FOLDER): its keys, each a hash with tags as a hash in "tag".
sub double_keys
{
	my ($folder) = @_;

	return map {
		my $key = $_;
		$key->{tag} =
		  { map { $_->{TagKey} => $_->{TagValue} } @{ $key->{tags} } };
		$key;
	} @{ double_says($folder, 'keys') };
}

# days_pass(FOLDER, DAYS, NODE, DATABASES...): as if that much time had passed, for
# its keys and for what the databases know of their ends; no clock is moved.
sub days_pass
{
	my ($folder, $days, $node, @databases) = @_;
	my $serial = double_serial($folder);
	my $seconds = $days * 86400;
	my $time = "make_interval(secs => $seconds)";
	my $keys = sub {
		return
		  "(SELECT jsonb_agg(p || jsonb_build_object('until', (p ->> 'until')::timestamptz - $time))"
		  . " FROM jsonb_array_elements(k.value -> '$_[0]') p)";
	};

	double_says($folder, 'advance', seconds => $seconds);
	$node->safe_psql($_, <<"SQL") for @databases ? @databases : 'postgres';
UPDATE nomp_crypt.erasure e SET keystores = (SELECT jsonb_object_agg(k.key, CASE WHEN k.key = '$serial' THEN
		k.value || jsonb_strip_nulls(jsonb_build_object('until', (k.value ->> 'until')::timestamptz - $time,
			'pending', @{[ $keys->('pending') ]}, 'saved', @{[ $keys->('saved') ]})) ELSE k.value END)
	FROM jsonb_each(e.keystores) k)
WHERE e.state IN ('submitted', 'pending');
UPDATE nomp_crypt.erasure e SET pending_until = (SELECT max((k.value ->> 'until')::timestamptz)
	FROM jsonb_each(e.keystores) k WHERE NOT k.value ? 'destroyed')
WHERE e.pending_until IS NOT NULL;
UPDATE nomp_crypt.kek SET pending_until = pending_until - $time WHERE state = 'retired' AND keystore_serial = '$serial';
SQL
	return;
}

END
{
	my $status = $?;

	kill_double($_) for keys %doubles;
	$? = $status;
}

1;
