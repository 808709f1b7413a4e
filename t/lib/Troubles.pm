# Troubles.pm: what is said while something is wrong, and not before and after.

package Troubles;

use strict;
use warnings;

use Exporter 'import';
use NompTest;
use Test::More;

our @EXPORT = qw(said_while setting set_and_reload);

# said_while(SAYS, NAME, WHAT, MAKE, EXPECTED, UNMAKE): SAYS->(WHAT) does not
# match EXPECTED, does after MAKE, and is what it was after UNMAKE.
sub said_while
{
	my ($says, $name, $what, $make, $expected, $unmake) = @_;
	my $before = $says->($what);

	local $Test::Builder::Level = $Test::Builder::Level + 2;
	unlike($before, $expected, "$name: not said before");
	$make->();
	wait_until(sub { $says->($what) =~ $expected },
		"$what to say $expected, not " . $says->($what));
	pass("$name: said");
	$unmake->();
	wait_until(sub { $says->($what) eq $before },
		"$what to say '$before' again, not " . $says->($what));
	pass("$name: gone again");
	return;
}

# setting(NODE, NAME, VALUE): code that sets it by reload; RESET without a value.
sub setting
{
	my ($node, $name, $value) = @_;

	return sub {
		$node->safe_psql('postgres',
			defined $value
			? "ALTER SYSTEM SET $name = '$value'"
			: "ALTER SYSTEM RESET $name");
		$node->reload;
	};
}

# set_and_reload(NODE, NAME, VALUE): returns when new sessions have it.
sub set_and_reload
{
	my ($node, $name, $value) = @_;

	setting($node, $name, $value)->();
	$node->poll_query_until('postgres',
		"SELECT current_setting('$name') = '$value'")
	  or die "$name is not $value";
	return;
}

1;
