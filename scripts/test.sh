#!/usr/bin/env bash
# Everything that CI runs. Sets the machine up first (scripts/setup.sh).
#   scripts/test.sh          all of it
#   scripts/test.sh --fast   without what needs the chain node
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$ALICE_ROOT"

fast=0
for arg in "$@"; do
	case $arg in
	--fast) fast=1 ;;
	-h | --help) sed -n '2,4p' "$0" | cut -c3- && exit 0 ;;
	*) die "unknown option $arg (see --help)" ;;
	esac
done
if [ $fast = 1 ]; then "$ALICE_ROOT/scripts/setup.sh" --no-node; else "$ALICE_ROOT/scripts/setup.sh" --tests; fi

say "formatting"
cargo fmt --all --check

say "dependency rules"
python3 scripts/check-architecture.py

say "lints and build"
scripts/build.sh --tests

say "unit, property and golden tests"
# The same environment as the build's, or the workspace's crates would be built again.
if clippy=$(rustup which clippy-driver 2>/dev/null) && [ -x "$clippy" ]; then
	export RUSTC_WORKSPACE_WRAPPER=$clippy CLIPPY_ARGS=-Dwarnings__CLIPPY_HACKERY__
fi
if cargo nextest --version >/dev/null 2>&1; then
	cargo nextest run --locked --workspace --no-fail-fast
else
	cargo test --locked --workspace --no-fail-fast
fi

for tool in cargo-deny mdbook; do
	command -v $tool >/dev/null || say "$tool is not installed: its check was skipped"
done
if command -v cargo-deny >/dev/null; then cargo deny check licenses bans sources; fi
if command -v mdbook >/dev/null; then mdbook build docs >/dev/null; fi
