# KmsKeystore.pm: the double of AWS KMS as the keystore of tests.
#
# The methods are those that NompTest asks of a keystore; SoftHsm.pm has the
# same.  What is a token there is an account here, with a double of its own.
# Keys whose deletion is scheduled are gone at once, so that the same
# expectations hold; t/kms_outages.pl has the real windows.

package KmsKeystore;

use strict;
use warnings;

use KmsDouble;
use PostgreSQL::Test::Utils;

my %accounts;    # folder of a double => account
my $current;     # the one that has trouble

sub folder
{
	my ($dir, $label) = @_;

	return "$dir/aws-$label";
}

# make_token(DIR, LABEL): sets what finds the credentials for servers that are
# started from now on; every double has the same.
sub make_token
{
	my ($class, $dir, $label) = @_;
	my $folder = folder($dir, $label);

	mkdir $dir;
	$accounts{$folder} = 111_122_223_333 + keys %accounts
	  unless exists $accounts{$folder};
	start_double($folder, '--account', $accounts{$folder}, '--at-once');
	$ENV{AWS_SHARED_CREDENTIALS_FILE} = "$folder/credentials";
	$ENV{AWS_CONFIG_FILE} = "$folder/config";
	$current = $folder;
	return $dir;
}

# uri(DIR, LABEL): the setting; of a double that there is not, if there is none.
sub uri
{
	my ($class, $dir, $label) = @_;
	my $folder = folder($dir, $label);

	return double_uri($folder, "&account=$accounts{$folder}")
	  if exists $accounts{$folder};
	return 'aws-kms://eu-north-1?endpoint=http://127.0.0.1:9&test=yes';
}

sub frail_uri
{
	my ($class, $dir, $label) = @_;

	$current = folder($dir, $label);
	return $class->uri($dir, $label);
}

sub serial
{
	my ($class, $dir, $label) = @_;

	return "arn:aws:kms:eu-north-1:$accounts{ folder($dir, $label) }";
}

# labels(DIR, LABEL): of all keys, marked as PKCS#11 marks those that are
# provisional.
sub labels
{
	my ($class, $dir, $label) = @_;

	return map { label_of($_) }
	  grep     { exists $_->{tag}->{'nomp_crypt:label'} }
	  double_keys(folder($dir, $label));
}

sub label_of
{
	my ($key) = @_;
	my $label = $key->{tag}->{'nomp_crypt:label'};
	my $mark = $key->{tag}->{'nomp_crypt:provisional'};

	return defined $mark ? "$label:provisional\@$mark" : $label;
}

sub id_of
{
	my ($folder, $name) = @_;
	my ($key) =
	  grep { exists $_->{tag}->{'nomp_crypt:label'} && label_of($_) eq $name }
	  double_keys($folder)
	  or die "no key $name";

	return $key->{id};
}

sub delete_key
{
	my ($class, $dir, $label, $name) = @_;
	my $folder = folder($dir, $label);

	double_says($folder, 'delete', key => id_of($folder, $name));
	return;
}

# refuse_key(DIR, LABEL, KEY): a policy of that key's own forbids to use it.
sub refuse_key
{
	my ($class, $dir, $label, $name) = @_;
	my $folder = folder($dir, $label);

	double_says(
		$folder, 'fault',
		action => 'Decrypt',
		key => id_of($folder, $name),
		error => 'AccessDeniedException');
	return;
}

# make_key(DIR, LABEL, KEY): somebody makes a key, with the description and the
# tags that ours have.
sub make_key
{
	my ($class, $dir, $label, $name) = @_;
	my %tags = ('nomp_crypt:label' => $name);

	@tags{qw(nomp_crypt:installation nomp_crypt:school)} =
	  $name =~ /^nomp_crypt:([^:]+):([^:]+):/
	  or die "no key of a school: $name";
	double_says(
		folder($dir, $label),
		'call',
		action => 'CreateKey',
		Description => $name,
		Tags =>
		  [ map { { TagKey => $_, TagValue => $tags{$_} } } sort keys %tags ]
	);
	return;
}

sub unwrapper
{
	my ($class, $dir) = @_;

	return ('aws-kms', folder($dir, 'nomp'));
}

# goes(DIR, LABEL), returns(DIR, LABEL): the service; meanwhile make_token makes
# one without keys.
sub goes
{
	my ($class, $dir, $label) = @_;
	my $folder = folder($dir, $label);

	kill_double($folder);
	rename "$folder/journal", "$folder/journal.away" or die $!;
	return;
}

sub returns
{
	my ($class, $dir, $label) = @_;
	my $folder = folder($dir, $label);

	kill_double($folder);
	rename "$folder/journal.away", "$folder/journal" or die $!;
	start_double($folder);
	return;
}

# back_up(DIR, LABEL), restore(DIR, LABEL): no customer of AWS can do that.
sub back_up
{
	my ($class, $dir, $label) = @_;
	my $folder = folder($dir, $label);

	PostgreSQL::Test::Utils::system_or_bail('cp', "$folder/journal",
		"$folder/journal.backup");
	return;
}

sub restore
{
	my ($class, $dir, $label) = @_;
	my $folder = folder($dir, $label);

	kill_double($folder);
	rename "$folder/journal.backup", "$folder/journal" or die $!;
	start_double($folder);
	return;
}

# What the operations of a keystore are in KMS.
my %calls = (
	open => ['ListKeys'],
	find => ['DescribeKey'],
	unwrap => ['Decrypt'],
	create => ['CreateKey'],
	destroy => ['ScheduleKeyDeletion'],
	enable => [ 'EnableKey', 'DisableKey' ],
	wrap => [ 'GenerateDataKey', 'Encrypt' ],
	everything => ['*']);

my %happens = (
	hangs => { kind => 'hang' },
	holds => { kind => 'hang' },
	# the nearest to it: the connection breaks off
	crashes => { kind => 'close' },
	fails => { error => 'KMSInternalException', status => 500 },
	forbids => { error => 'AccessDeniedException' },
	'answers wrong' => { kind => 'patch', values => { Plaintext => 'AAAA' } }
);

sub trouble
{
	my ($class, %trouble) = @_;

	double_says($current, 'recover');
	while (my ($operation, $what) = each %trouble)
	{
		my @once = $what =~ s/^once // ? (times => 1) : ();

		for my $action (@{ $calls{$operation} // die "no $operation" })
		{
			# a latency is every call's
			if ($what =~ /^\d+$/ && @once)
			{
				double_says(
					$current, 'fault',
					action => $action,
					kind => 'hang',
					seconds => $what / 1000,
					@once);
				next;
			}
			if ($what =~ /^\d+$/)
			{
				double_says(
					$current, 'latency',
					action => $action,
					seconds => $what / 1000);
				next;
			}
			double_says(
				$current, 'fault',
				action => $action,
				%{ $happens{$what} // die "cannot be: $what" }, @once);
		}
	}
	return;
}

# What a sick service may do.
my @ailments = (
	{ error => 'KMSInternalException', status => 500 },
	{ error => 'ThrottlingException' },
	{ kind => 'close' },
	{ kind => 'failed_after', status => 500 },
	{ kind => 'lost' },
	{ kind => 'hang', seconds => 0.1 },
	{ kind => 'hang', seconds => 3 });

sub chance
{
	my ($class, $seed, $percent) = @_;

	double_says($current, 'recover');
	double_says($current, 'seed', seed => $seed + 0);
	double_says($current, 'fault',
		%$_, probability => $percent / 100 / @ailments)
	  for @ailments;
	return;
}

sub calls
{
	my ($class, $operation) = @_;
	my $counts = double_says($current, 'counts');
	my $calls = 0;

	$calls += $counts->{$_} // 0 for @{ $calls{$operation} };
	return $calls;
}

1;
