//! Tells the linker where libtorch is, so that what is linked here runs without `LD_LIBRARY_PATH`.

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    // Set by torch-sys' build script for packages that depend on it directly. Absent with its `doc-only` feature.
    if let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    }
}
