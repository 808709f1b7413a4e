# shellcheck shell=bash
# lib.sh: what the scripts share.  Sourced, never run.
#
# Words: the clone is the folder the scripts lie in and is never written to;
# the workspace ($WORK) is a temporary folder that is removed at the end; the
# tree ($TREE) is a copy of the clone in it, where everything is built; the
# private server ($PG_BIN) is a copy of the machine's PostgreSQL in it, into
# which the extension is installed.  Nothing outside the workspace changes.
#
# The server refuses to run as root.  As root, the workspace belongs to user
# postgres and as_server runs commands as postgres; otherwise everything runs
# as the user who called.

NOMP_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PG_MAJOR=${PG_MAJOR:-15}
SYSTEM_PG=/usr/lib/postgresql/$PG_MAJOR
SYSTEM_PG_SHARE=/usr/share/postgresql/$PG_MAJOR
WORK=

export LC_ALL=C.UTF-8
unset PGHOST PGHOSTADDR PGPORT PGUSER PGDATABASE PGPASSWORD PGSERVICE PGOPTIONS
unset PGDATA PGAPPNAME SOFTHSM2_CONF MAKEFLAGS MFLAGS MAKELEVEL

say() { printf '%s\n' "$*"; }
warn() { printf '%s\n' "$*" >&2; }
die() {
	warn "$(basename "$0"): $*"
	exit 1
}

is_root() { [ "$(id -u)" -eq 0 ]; }

# Run a command as the user the server runs as.
as_server() {
	if is_root; then
		HOME=$WORK runuser -u postgres -- "$@"
	else
		"$@"
	fi
}

# make_workspace NAME: sets WORK, and removes it when the script ends,
# however it ends, with every server that still runs in it.
make_workspace() {
	local base=${TMPDIR:-/tmp}

	# PostgreSQL's own makefiles do not cope with blanks in a path.
	case $base in *[!A-Za-z0-9/._-]*) base=/tmp ;; esac
	if is_root && ! runuser -u postgres -- test -x "$base" -a -w "$base"; then
		base=/tmp
	fi
	export TMPDIR=$base
	trap remove_workspace EXIT
	trap 'exit 129' HUP
	trap 'exit 130' INT
	trap 'exit 143' TERM
	WORK=$(mktemp -d "$base/nomp_crypt-$1.XXXXXX")
	if is_root; then chown postgres: "$WORK"; fi
	cd "$WORK" || exit
}

# The processes that run a program of the workspace.
workspace_processes() {
	local exe

	for exe in /proc/[0-9]*/exe; do
		[[ $(readlink "$exe" 2>/dev/null) != "$WORK"/* ]] || basename "${exe%/exe}"
	done
}

remove_workspace() {
	local status=$? pidfile pid

	trap '' HUP INT TERM
	trap - EXIT
	[ -n "$WORK" ] || exit "$status"
	cd /
	# a test that was interrupted may have left a process stopped
	for pid in $(workspace_processes); do kill -CONT "$pid" 2>/dev/null || true; done
	while IFS= read -r pidfile; do
		as_server "${PG_BIN:-$SYSTEM_PG/bin}/pg_ctl" -D "$(dirname "$pidfile")" \
			-m immediate -w stop >/dev/null 2>&1 || true
	done < <(find "$WORK" -name postmaster.pid 2>/dev/null)
	for pid in $(workspace_processes); do kill -KILL "$pid" 2>/dev/null || true; done
	rm -rf "$WORK" 2>/dev/null || {
		chmod -R u+rwx "$WORK"
		rm -rf "$WORK"
	}
	exit "$status"
}

# copy_tree: the clone without its history and build products, as $TREE.
copy_tree() {
	TREE=$WORK/tree
	as_server mkdir "$TREE"
	tar -C "$NOMP_ROOT" --mode=u+rwX --exclude=./.git --exclude='*.o' --exclude='*.so' \
		--exclude='*.bc' --exclude=./keystore/nomp_crypt-keystore \
		--exclude='./test/*_test' --exclude='./test/*_client' --exclude=node_modules --exclude='./tmp_*' --exclude=./results \
		--exclude='./regression.*' --exclude=./log -cf - . |
		as_server tar -C "$TREE" --no-same-owner -xf -
}

# tree_make ARG...: make in the tree, against the machine's headers.
# The JIT's bitcode is left out: it would need clang and nobody looks at it.
tree_make() {
	as_server make -C "$TREE" --no-print-directory with_llvm=no \
		PG_CONFIG="$SYSTEM_PG/bin/pg_config" "$@"
}

# private_make ARG...: make in the tree, against the private server.
private_make() {
	as_server make -C "$TREE" --no-print-directory with_llvm=no \
		PG_CONFIG="$PG_BIN/pg_config" "$@"
}

# make_private_server: Debian's PostgreSQL is relocatable, so a copy works.
make_private_server() {
	PG_ROOT=$WORK/pg
	PG_BIN=$PG_ROOT$SYSTEM_PG/bin
	[ -x "$SYSTEM_PG/bin/postgres" ] ||
		die "PostgreSQL $PG_MAJOR is not installed in $SYSTEM_PG; run scripts/install-deps"
	as_server mkdir -p "$PG_ROOT$(dirname "$SYSTEM_PG")" \
		"$PG_ROOT$(dirname "$SYSTEM_PG_SHARE")"
	as_server cp -a "$SYSTEM_PG" "$PG_ROOT$(dirname "$SYSTEM_PG")/"
	as_server cp -aL "$SYSTEM_PG_SHARE" "$PG_ROOT$(dirname "$SYSTEM_PG_SHARE")/"
	# A nomp_crypt of the machine's own must not stand in for this one.
	as_server find "$PG_ROOT" \( -name 'nomp_crypt*' \) -exec rm -rf {} +
}

# softhsm_module: the path of SoftHSM's PKCS#11 library.
softhsm_module() {
	local path

	for path in /usr/lib/softhsm/libsofthsm2.so \
		/usr/lib/*/softhsm/libsofthsm2.so /usr/lib64/softhsm/libsofthsm2.so; do
		if [ -e "$path" ]; then
			say "$path"
			return
		fi
	done
	die "libsofthsm2.so not found; install softhsm2"
}

# make_token DIR LABEL: a SoftHSM token with its configuration
# (DIR/softhsm2.conf) and PIN (DIR/pin).  Sets TOKEN_URI; the caller exports
# SOFTHSM2_CONF.  The PIN is random and shows in softhsm2-util's arguments for
# a moment: good enough for a token that is thrown away.
make_token() {
	local dir=$1 label=$2 module pin

	module=$(softhsm_module)
	pin=$(od -An -N8 -tx1 /dev/urandom | tr -d ' \n')
	as_server mkdir -p -m 700 "$dir" "$dir/tokens"
	# shellcheck disable=SC2016  # expanded by the inner shell
	as_server sh -c 'umask 077
		printf "directories.tokendir = %s/tokens\nobjectstore.backend = file\n" "$1" \
			>"$1/softhsm2.conf"
		printf "log.level = ERROR\nslots.removable = false\nlibrary.reset_on_fork = true\n" \
			>>"$1/softhsm2.conf"
		printf "%s" "$2" >"$1/pin"' sh "$dir" "$pin"
	SOFTHSM2_CONF=$dir/softhsm2.conf as_server softhsm2-util --init-token --free \
		--label "$label" --pin "$pin" --so-pin "$pin" >/dev/null
	# shellcheck disable=SC2034  # for the callers
	TOKEN_URI="pkcs11:token=$label?module-path=$module&pin-source=file:$dir/pin"
}

# start_double DIR PID: AWS KMS as tests have it (test/kms_double.py), with its
# folder DIR, for as long as process PID lives.  Keys whose deletion is
# scheduled are gone at once.  Sets KEYSTORE_URI; the caller exports
# AWS_SHARED_CREDENTIALS_FILE.
start_double() {
	local dir=$1 pid=$2 port

	as_server "$NOMP_ROOT/test/kms_double.py" "$dir" --while "$pid" --at-once \
		</dev/null >"$dir.log" 2>&1 &
	for _ in $(seq 600); do
		[ ! -s "$dir/ready.json" ] || break
		sleep 0.1
	done
	port=$(sed -n 's/.*"tls": \([0-9]*\).*/\1/p' "$dir/ready.json")
	[ -n "$port" ] || die "the double of KMS does not start; see $dir.log"
	# shellcheck disable=SC2034  # for the callers
	KEYSTORE_URI="aws-kms://eu-north-1?account=111122223333&endpoint=https://127.0.0.1:$port&test=yes&settled=yes&ca-file=$dir/ca.pem"
}
