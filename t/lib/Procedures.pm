# Procedures.pm: runs the procedures of docs/operations.md as they stand there.
#
# A step is a fenced block of sql or sh right below a comment that names the
# procedure and where the step is done:
#
#     <!-- run switchover on operator -->
#     ```sh
#     patronictl ...
#     ```
#
# scripts/check-readme sees to it that every procedure is run by a test.

package Procedures;

use strict;
use warnings;

use Exporter 'import';
use FindBin;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(run_procedure procedure_steps);

# procedure_steps(NAME): its steps in order, as [where, language, text].
sub procedure_steps
{
	my ($name) = @_;
	my $doc = PostgreSQL::Test::Utils::slurp_file(
		"$FindBin::RealBin/../docs/operations.md");
	my @steps;

	while ($doc =~ /^<!-- run (\S+) on (\S+) -->\n```(sql|sh)\n(.*?)^```$/gms)
	{
		push @steps, [ $2, $3, $4 ] if $1 eq $name;
	}
	die "docs/operations.md has no procedure \"$name\"" unless @steps;
	return @steps;
}

# run_procedure(NAME, {WHERE => NODE}, TEXT => OTHER...): each step on its node,
# sql by psql and sh by bash, which has the node's PGHOST, PGPORT and PGDATABASE.
# It dies if one fails.  The pairs replace what is the reader's to fill in; each
# must be found.  Returns what the steps printed.
sub run_procedure
{
	my ($name, $nodes, @replace) = @_;
	my %unused = @replace;
	my @printed;

	for my $step (procedure_steps($name))
	{
		my ($where, $language, $text) = @$step;
		my $node = $nodes->{$where} // die "procedure $name: no node $where";
		my ($out, $err) = ('', '');

		for (my $i = 0; $i < @replace; $i += 2)
		{
			delete $unused{ $replace[$i] }
			  if $text =~ s/\Q$replace[$i]\E/$replace[ $i + 1 ]/g;
		}
		note "$name on $where:\n$text";
		local $ENV{PGHOST} = $node->host;
		local $ENV{PGPORT} = $node->port;
		local $ENV{PGDATABASE} = 'postgres';
		IPC::Run::run(
			$language eq 'sql'
			? [ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1' ]
			: [ 'bash', '-eu', '-o', 'pipefail' ],
			'<',
			\$text,
			'>',
			\$out,
			'2>',
			\$err,
			IPC::Run::timeout(180)
		) or die "procedure $name, on $where:\n$text\nfails: $out$err";
		push @printed, $out;
	}
	die "procedure $name: not in it: " . join ', ', sort keys %unused
	  if %unused;
	return @printed;
}

1;
