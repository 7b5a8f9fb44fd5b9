#!/usr/bin/env bash
# Everything that CI runs. Sets the machine up first (scripts/setup.sh).
#   scripts/test.sh          all of it
#   scripts/test.sh --fast   without what needs the chain node
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/env.sh"
cd "$ALICE_ROOT"

fast=0
for arg in "$@"; do
	case $arg in
	--fast) fast=1 ;;
	-h | --help) sed -n '2,4p' "$0" | cut -c3- && exit 0 ;;
	*) die "unknown option $arg (see --help)" ;;
	esac
done
started=$SECONDS
packages=(--workspace)
if [ $fast = 1 ]; then
	scripts/setup.sh --no-node
	packages+=("${WITHOUT_NODE[@]}")
else
	scripts/setup.sh --tests
fi
# Again: set-up may have added a toolchain that builds and tests must both use.
. scripts/env.sh

say "formatting"
cargo fmt --all --check

say "dependency rules, documents, style"
python3 scripts/check-architecture.py
python3 scripts/check-docs.py
python3 scripts/tidy.py
if [ -x "$ALICE_CACHE/tools/bin/mdbook" ]; then
	book=$(mktemp -d)
	"$ALICE_CACHE/tools/bin/mdbook" build docs --dest-dir "$book" >/dev/null
	python3 scripts/check-docs.py --book "$book"
	rm -rf "$book"
	"$ALICE_CACHE/tools/bin/cargo-deny" --log-level error check licenses bans sources
else
	say "skipped: the book's build and cargo-deny, which scripts/setup.sh --tests installs"
fi

say "scripts, and a second reader of the update format"
python3 tests/scripts.py
python3 tests/update_format.py

say "lints and build (the first one takes a while: see docs/measurements.md)"
if [ $fast = 1 ]; then scripts/build.sh --fast; else scripts/build.sh --tests; fi
say "built after $((SECONDS - started)) s"

say "unit, property, golden and program tests"
lint_while_compiling || true
if [ $fast = 0 ]; then export ALICE_NODE=$CARGO_TARGET_DIR/debug/alice-node; fi
if cargo nextest --version >/dev/null 2>&1; then
	cargo nextest run --locked "${packages[@]}" --no-fail-fast
else
	cargo test --locked "${packages[@]}" --no-fail-fast
fi

say "documentation tests and examples"
cargo test --locked --doc --quiet "${packages[@]}"
examples=$CARGO_TARGET_DIR/debug/examples
"$examples/decode_update" crates/update/golden/update-2bit.alu
"$examples/train_one_task"
say "tested after $((SECONDS - started)) s"

if [ $fast = 0 ]; then
	say "end to end: a network on this machine, disturbed and checked (about 5 minutes)"
	network=$(mktemp -d)
	python3 tests/e2e.py --dir "$network" || die "the end-to-end test failed; logs and state are in $network"
	rm -rf "$network"

	say "exported weights in third-party tools"
	python3 tests/weights.py --built
fi

say "all passed after $((SECONDS - started)) s"
