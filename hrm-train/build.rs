//! Lets programs and tests with feature `tch` find libtorch at run time without `LD_LIBRARY_PATH`, and builds the C++ that reaches gloo in it.

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
    #[cfg(feature = "tch")]
    gloo(Path::new(&libtorch));
}

/// `src/parallel/gloo.cpp`, with empty files where libtorch's headers include those of gloo, which the wheel leaves out.
#[cfg(feature = "tch")]
fn gloo(libtorch: &Path) {
    println!("cargo:rerun-if-changed=src/parallel/gloo.cpp");
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    for header in ["algorithm", "common/error", "context", "rendezvous/store", "transport/device"] {
        let path = out.join(format!("gloo/{header}.h"));
        let folder = path.parent().expect("a file in a folder");
        std::fs::create_dir_all(folder).unwrap_or_else(|e| panic!("cannot make {}: {e}", folder.display()));
        std::fs::write(&path, "").unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
    }
    let include = libtorch.join("include");
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").define("_GLIBCXX_USE_CXX11_ABI", "1").file("src/parallel/gloo.cpp").include(&out);
    // Not our warnings.
    for folder in [include.join("torch/csrc/api/include"), include] {
        build.flag("-isystem").flag(folder);
    }
    build.compile("hrm_gloo");
}
