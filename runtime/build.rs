//! Builds the runtime's wasm blob and hands it to the crate as `wasm_binary.rs`.
//!
//! This does what substrate-wasm-builder does for a runtime without metadata hash, without compiling wasm-opt
//! (Binaryen, 15 minutes of a 2-core machine): the workspace's own lock file, profile and target folder are used.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Target of the runtime: WebAssembly MVP, which every executor runs.
const TARGET: &str = "wasm32v1-none";
/// Profile of the root manifest.
const PROFILE: &str = "wasm";

fn main() {
    // The nested build runs this script too.
    if env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("wasm32") {
        return;
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo")).join("..");
    for input in [
        "runtime/src",
        "runtime/Cargo.toml",
        "Cargo.toml",
        "Cargo.lock",
        "pallets",
        "crates/primitives",
        "chain-spec/genesis-message.txt",
    ] {
        println!("cargo:rerun-if-changed={}", root.join(input).display());
    }
    for variable in ["SKIP_WASM_BUILD", "WASM_BUILD_TOOLCHAIN"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    println!("cargo:rustc-check-cfg=cfg(substrate_runtime)");

    let blob = if env::var_os("SKIP_WASM_BUILD").is_some() {
        None
    } else {
        Some(build(&root, &out))
    };
    let constant = match blob {
        Some(path) => format!("Some(include_bytes!({:?}))", path.display().to_string()),
        None => "None".into(),
    };
    let code = format!(
        "/// The runtime as wasm; `None` if `SKIP_WASM_BUILD` was set.\npub const WASM_BINARY: Option<&[u8]> = {constant};\n"
    );
    fs::write(out.join("wasm_binary.rs"), code).expect("the output folder is writable");
}

fn build(root: &Path, out: &Path) -> PathBuf {
    // <target>/<profile>/build/<crate>/out → <target>/wasm-runtime, shared by all native profiles.
    let target_dir = out.ancestors().nth(4).expect("cargo's layout").join("wasm-runtime");
    let mut cargo = match env::var("WASM_BUILD_TOOLCHAIN") {
        Ok(toolchain) => {
            let mut command = Command::new("rustup");
            command.args(["run", &toolchain, "cargo"]);
            command
        }
        Err(_) => Command::new(env::var_os("CARGO").expect("set by cargo")),
    };
    // Settings of the outer build are not meant for the wasm target.
    for variable in [
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_TARGET_DIR",
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTDOC",
        "CARGO",
        "RUSTUP_TOOLCHAIN",
    ] {
        cargo.env_remove(variable);
    }
    if env::var_os("WASM_BUILD_TOOLCHAIN").is_none() {
        // The toolchain of the outer build, also where a `+toolchain` chose it.
        if let Some(toolchain) = env::var_os("RUSTUP_TOOLCHAIN") {
            cargo.env("RUSTUP_TOOLCHAIN", toolchain);
        }
    }
    let status = cargo
        .args([
            "rustc",
            "--package",
            "alice-runtime",
            "--lib",
            "--crate-type",
            "cdylib",
            "--no-default-features",
        ])
        .args(["--target", TARGET, "--profile", PROFILE])
        .arg("--target-dir")
        .arg(&target_dir)
        .env("RUSTFLAGS", "-C link-arg=--export-table --cfg substrate_runtime")
        .current_dir(root)
        .status()
        .expect("cargo runs");
    assert!(
        status.success(),
        "the runtime's wasm build failed; is the target there? run `rustup target add {TARGET}` or scripts/setup.sh"
    );
    let built = target_dir.join(TARGET).join(PROFILE).join("alice_runtime.wasm");
    let blob = out.join("alice_runtime.wasm");
    fs::copy(&built, &blob).expect("the wasm build leaves its blob");
    blob
}
