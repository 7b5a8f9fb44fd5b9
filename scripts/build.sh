#!/usr/bin/env bash
# Builds the workspace, always with the same flags, so that tests and localnet share one target directory.
#   scripts/build.sh           programs
#   scripts/build.sh --tests   programs and tests; lints of the workspace's crates are checked in the same pass, as errors
#   scripts/build.sh --fast    the same without the chain's node, runtime and pallets
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/env.sh"
cd "$ALICE_ROOT"

[ -e "$LIBTORCH/build-version" ] || die "libtorch is not in $LIBTORCH: run scripts/setup.sh, which downloads it"
case ${1:-} in
"") exec cargo build --locked --workspace --bins ;;
--tests) ;;
--fast) set -- "${WITHOUT_NODE[@]}" ;;
*) die "usage: scripts/build.sh [--tests | --fast]" ;;
esac
[ "${1:-}" = --tests ] && shift
lint_while_compiling || say "clippy is not installed (rustup component add clippy): lints are not checked"
# `cargo test` builds the programs, too: their tests start them.
cargo test --locked --workspace "$@" --no-run
