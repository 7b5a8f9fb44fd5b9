# Sourced by the other scripts: where the tools that setup.sh installs live. Everything is under one cache
# directory, so that removing it brings a machine back to where it was.
ALICE_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export ALICE_ROOT
if [ -z "${ALICE_CACHE:-}" ] && [ -z "${HOME:-}" ]; then
	echo "error: HOME is not set, so there is no place for downloads: set HOME or ALICE_CACHE" >&2
	exit 1
fi
export ALICE_CACHE=${ALICE_CACHE:-$HOME/.cache/alice}
TORCH_VERSION=2.13.0

case "$(uname -s)" in
Darwin) export LIBTORCH="$ALICE_CACHE/libtorch-$TORCH_VERSION-macos" ;;
*) export LIBTORCH="$ALICE_CACHE/libtorch-$TORCH_VERSION" ;;
esac

# substrate-wasm-builder compiles the runtime with this toolchain where rustup cannot add the wasm target (setup.sh).
if [ -e "$ALICE_CACHE/wasm-toolchain/.ready" ]; then
	export WASM_BUILD_TOOLCHAIN=alice-wasm
fi
export WASM_BUILD_WORKSPACE_HINT="$ALICE_ROOT"
# Debian's libssl instead of a vendored build: saves minutes (a transitive dependency of the node's network stack).
[ "$(uname -s)" = Linux ] && export OPENSSL_NO_VENDOR=1

export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$ALICE_ROOT/target}
# Threads that wait for work sleep instead of spinning: several processes share the cores here, and a spinning OpenMP
# pool makes training several times slower. Must be set before libgomp is loaded.
export OMP_WAIT_POLICY=passive

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }
die() {
	printf 'error: %s\n' "$*" >&2
	exit 1
}

# What `--fast` leaves out: everything that is compiled for the chain.
WITHOUT_NODE=(--exclude alice-node --exclude alice-runtime --exclude 'pallet-*')

# clippy-driver compiles and lints in one pass: a separate `cargo clippy` would check every dependency a second time.
# Whoever builds and whoever runs tests must call this alike, or the workspace's crates are built twice.
lint_while_compiling() {
	local clippy
	clippy=$(rustup which clippy-driver 2>/dev/null) && [ -x "$clippy" ] || return 1
	export RUSTC_WORKSPACE_WRAPPER=$clippy CLIPPY_ARGS=-Dwarnings__CLIPPY_HACKERY__
}
