#!/usr/bin/env bash
# Builds the workspace, always with the same flags, so that tests and localnet share one target directory.
#   scripts/build.sh          programs
#   scripts/build.sh --tests  programs and tests; lints of the workspace's crates are checked in the same pass, as errors
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$ALICE_ROOT"

# clippy-driver compiles and lints in one pass: a separate `cargo clippy` would check every dependency a second time.
if clippy=$(rustup which clippy-driver 2>/dev/null) && [ -x "$clippy" ]; then
	export RUSTC_WORKSPACE_WRAPPER=$clippy
	[ "${1:-}" = --tests ] && export CLIPPY_ARGS=-Dwarnings__CLIPPY_HACKERY__
elif [ "${1:-}" = --tests ]; then
	say "clippy is not installed (rustup component add clippy): lints are not checked"
fi
case ${1:-} in
--tests)
	cargo build --locked --workspace --bins
	cargo test --locked --workspace --no-run
	;;
"") cargo build --locked --workspace --bins ;;
*) die "usage: scripts/build.sh [--tests]" ;;
esac
