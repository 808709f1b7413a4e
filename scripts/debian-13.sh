# shellcheck shell=bash
# debian-13.sh: programs of Debian 13, for tests.  Sourced, never run.
#
# Packages, and the libraries that they need, are fetched by apt from the
# mirror that this machine uses, and unpacked, not installed; once: they stay
# in the user's cache folder.

fetch_packages() {
	local work=$1 mirror options

	shift
	# shellcheck disable=SC2016  # apt expands it
	mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
		grep -m1 '/debian/*$' || true)
	[ -n "$mirror" ] || {
		say "apt's sources name no mirror of Debian"
		return 1
	}
	mkdir -p "$work/lists/partial" "$work/archives/partial" "$work/debs"
	say "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]" \
		"$mirror trixie main" >"$work/sources.list"
	options=(
		-q -o Acquire::Retries=3 -o APT::Sandbox::User=
		-o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=/dev/null
		-o Dir::State::lists="$work/lists" -o Dir::Cache="$work"
	)
	apt-get "${options[@]}" update
	(cd "$work/debs" && apt-get "${options[@]}" download "$@")
	for deb in "$work"/debs/*.deb; do dpkg-deb -x "$deb" "$work/root"; done
}

# copy_of_debian_13 NAME TARGET PACKAGE...: unpacked together as TARGET; NAME
# is what they are called in the cache.
copy_of_debian_13() {
	local cache=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/nomp_crypt/$1 target=$2 work

	shift 2
	if [ ! -d "$cache" ]; then
		mkdir -p "$(dirname "$cache")"
		work=$(mktemp -d "$(dirname "$cache")/fetch.XXXXXX")
		# shellcheck disable=SC2064  # the folder of now
		trap "rm -rf '$work'" EXIT
		fetch_packages "$work" "$@" >"$work/log" 2>&1 || {
			cat "$work/log" >&2
			die "could not fetch from Debian 13: $*"
		}
		mv -T "$work/root" "$cache" 2>/dev/null || [ -d "$cache" ]
	fi
	cp -a "$cache" "$target"
}
