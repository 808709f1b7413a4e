# Certified.pm: the one state in which every erasure ends.

package Certified;

use strict;
use warnings;

use Exporter 'import';
use NompTest;
use PostgreSQL::Test::Cluster;
use Test::More;

our @EXPORT = qw(uncertified repeats_lost_destruction submitted_long_ago);

# uncertified(NODE, LABELS, IDS...): what of these schools is not as it must be:
# the case certified, the school born, fenced, destroyed and certified once on
# record, each of its keys destroyed once in that record, a certificate that
# verifies, no wrapped key, and none in the keystore, whose keys' labels are in
# the list LABELS; and the register whole.  '' if all is.
sub uncertified
{
	my ($node, $labels, @ids) = @_;
	my $list = join ',', @ids;
	my $wrong = $node->safe_psql('postgres', <<"SQL");
WITH record AS (SELECT v.number, v.valid, v.type, v.school, v.case_id, nomp_crypt._record_claims(g.jws) -> 'data' AS data
	FROM nomp_crypt.verify_register() v JOIN nomp_crypt.register g USING (number))
SELECT 'the register is ' || state FROM nomp_crypt.register_status() WHERE state <> 'ok'
UNION ALL
SELECT id || ': ' || w.what
FROM unnest('{$list}'::text[]) id LEFT JOIN nomp_crypt.tenant t USING (id)
LEFT JOIN nomp_crypt.erasure e ON e.tenant = t.uuid AND e.state <> 'withdrawn', LATERAL (VALUES
	(e.state = 'certified' AND t.state = 'erased', 'the case is ' || coalesce(e.state, 'not there')),
	((SELECT array_agg(r.type ORDER BY r.number) FILTER (WHERE r.type <> 'moved') = '{born,fenced,destroyed,certificate}'
			AND bool_and(r.valid) FROM record r WHERE r.school = t.uuid), 'its records are others'),
	((SELECT array_agg(d ORDER BY d) FROM record r, jsonb_each(r.data -> 'keystores') k, jsonb_array_elements_text(k.value -> 'destroyed') d
		WHERE r.case_id = e.case_id AND r.type = 'destroyed')
	 = (SELECT array_agg(k.label ORDER BY k.label) FROM nomp_crypt.kek k WHERE k.tenant = t.uuid AND k.state = 'destroyed'),
		'each key is not destroyed once on record'),
	((nomp_crypt.verify_certificate(nomp_crypt.certificate(e.case_id))).valid, 'the certificate does not verify'),
	(NOT EXISTS (SELECT FROM nomp_crypt.tenant_key k WHERE k.tenant = t.uuid AND (k.wrapped IS NOT NULL OR k.state <> 'erased')),
		'a wrapped key is left')
) w(good, what) WHERE w.good IS NOT TRUE
SQL
	my %id = map { split /[|]/ } split /\n/,
	  $node->safe_psql('postgres',
		"SELECT uuid, id FROM nomp_crypt.tenant WHERE id = ANY ('{$list}')");
	my @left =
	  map { /^nomp_crypt:[^:]+:([^:]+):/ ? $id{$1} // () : () } @$labels;

	return join "\n", $wrong || (),
	  map { "$_: a key is in the keystore" } @left;
}

# repeats_lost_destruction(NODE, CALL, ID, WHAT): the call that destroyed the
# school's keys was lost, and so was what it saw; it is repeated.  A token can
# have destroyed them.  KMS destroys no sooner than a week after it was asked:
# keys that are gone before were not destroyed by us, and are not believed gone
# until they can have been.
sub repeats_lost_destruction
{
	my ($node, $call, $id, $what) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	if (over_kms())
	{
		is(sqlstate($node, $call),
			'NC003', "$what: keys are gone sooner than KMS destroys any");
		is(submitted_long_ago($node, $id),
			'submitted', "$what: the case stays where it is");
	}
	is(sqlstate($node, $call), '', "$what: the call can be repeated");
	return;
}

# submitted_long_ago(NODE, ID): as if the school's case had come so far more than
# a week ago.  Returns its state.
sub submitted_long_ago
{
	my ($node, $id) = @_;

	return $node->safe_psql(
		'postgres',
		'UPDATE nomp_crypt.erasure SET '
		  . join(', ',
			map { "$_ = $_ - interval '8 days'" }
			  qw(requested_at fenced_at submitted_at))
		  . ' WHERE tenant = (SELECT uuid FROM nomp_crypt.tenant'
		  . " WHERE id = '$id') AND state <> 'withdrawn' RETURNING state");
}

1;
