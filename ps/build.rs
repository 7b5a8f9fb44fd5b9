//! Tells the linker where libtorch is, so that what is linked here runs without `LD_LIBRARY_PATH`.

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    // Set by torch-sys' build script for packages that depend on it directly. Absent with its `doc-only` feature.
    let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") else {
        return;
    };
    let origin = match std::env::var("CARGO_CFG_TARGET_OS").as_deref() {
        Ok("macos") => "@loader_path",
        _ => "$ORIGIN",
    };
    // Relative to the program first, so that a copy with its own libtorch does not depend on the builder's cache:
    // next to the program, or in lib/alice of the prefix whose bin it is in.
    for path in [origin, &format!("{origin}/../lib/alice"), &lib] {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{path}");
    }
}
