#!/usr/bin/env bash
# Fuzzes the decoders of what comes from outside: fuzz/fuzz_targets. Needs a nightly compiler (rustup toolchain install
# nightly); not part of test.sh. Corpora stay in fuzz/corpus.
#   scripts/fuzz.sh                  every target, 1,000,000 cases each
#   scripts/fuzz.sh update 50000     one target, 50,000 cases
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/env.sh"
cd "$ALICE_ROOT/fuzz"

targets=(fuzz_targets/*.rs)
[ -n "${1:-}" ] && targets=("fuzz_targets/$1.rs")
cases=${2:-1000000}
[ -e "${targets[0]}" ] || die "there is no fuzz target '$1': $(basename -s .rs -a fuzz_targets/*.rs | xargs)"
rustc +nightly --version >/dev/null 2>&1 || die "fuzzing needs a nightly compiler: rustup toolchain install nightly"

# What cargo-fuzz sets: coverage counters for libFuzzer, and AddressSanitizer.
export RUSTFLAGS="--cfg fuzzing -Zsanitizer=address -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions"
unset CARGO_TARGET_DIR
host=$(rustc -vV | sed -n 's/^host: //p')
cargo +nightly build --release --target "$host"
for target in "${targets[@]}"; do
	name=$(basename "$target" .rs)
	say "$name: $cases cases"
	mkdir -p "corpus/$name" "artifacts/$name"
	# The golden files are where a mutation gets furthest; updates get the byte that chooses the width of values.
	case $name in
	update) for bits in 1 2 4 8; do
		{ printf "\\x0$((bits == 1 ? 0 : bits == 2 ? 1 : bits == 4 ? 2 : 3))" && cat "../crates/update/golden/update-${bits}bit.alu"; } >"corpus/update/golden-$bits"
	done ;;
	aggregate) cp ../crates/update/golden/aggregate-*.ald corpus/aggregate/ ;;
	run_spec) cp ../chain-spec/runs/*.toml corpus/run_spec/ ;;
	esac
	"target/$host/release/$name" -runs="$cases" -max_len=8192 -print_final_stats=1 -artifact_prefix="artifacts/$name/" "corpus/$name" 2>&1 | tail -8
done
