//! Lets programs and tests with feature `tch` find libtorch at run time without `LD_LIBRARY_PATH`.

use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    // What the tests that compile C++ for this machine ask the compiler for.
    println!("cargo:rustc-env=HRM_TARGET={}", std::env::var("TARGET").unwrap_or_default());
    if std::env::var_os("CARGO_FEATURE_TCH").is_none() {
        return;
    }
    let Some(libtorch) = std::env::var_os("LIBTORCH") else { return };
    let lib = Path::new(&libtorch).join("lib");
    if !lib.join("libtorch_cpu.so").exists() {
        println!(
            "cargo:warning=no libtorch in {}: `cargo xtask libtorch` fetches it, `cargo xtask train ARGS` does all that is needed",
            lib.display()
        );
        return;
    }
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    println!("cargo:rustc-link-arg=-Wl,-rpath-link,{}", lib.display());
    // RUNPATH instead of RPATH: LD_LIBRARY_PATH at a full installation then wins, which is how one binary gets CUDA.
    println!("cargo:rustc-link-arg=-Wl,--enable-new-dtags");
    // Kernels register themselves when libtorch_cpu is loaded: it must stay linked even if no symbol of it is used directly.
    println!("cargo:rustc-link-arg=-Wl,--no-as-needed");
}
