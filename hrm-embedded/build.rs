//! Embeds the trained models that exist at build time: `models/sudoku-{4x4,6x6,9x9}.hrm` of this crate (where a packaged crate carries
//! them) or else of the repository root. The library says for which sizes it has none.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

const SIZES: [usize; 3] = [4, 6, 9];

fn main() -> io::Result<()> {
    let variable = |name: &str| env::var_os(name).map(PathBuf::from).ok_or_else(|| io::Error::other(format!("cargo sets {name}")));
    let (root, out) = (variable("CARGO_MANIFEST_DIR")?, variable("OUT_DIR")?);
    let folders = [root.join("models"), root.join("../models")];
    println!("cargo::rerun-if-changed=build.rs");
    // A missing path makes cargo run this again every time: right in a checkout, where models may still come, but only there.
    for folder in folders.iter().filter(|f| f.is_dir() || root.join("../Cargo.toml").is_file()) {
        println!("cargo::rerun-if-changed={}", folder.display());
    }
    let mut code = String::from("/// Size and bytes of every embedded model.\nstatic EMBEDDED: &[(u8, &Aligned<[u8]>)] = &[\n");
    for size in SIZES {
        let name = format!("sudoku-{size}x{size}.hrm");
        let found: Option<PathBuf> = folders.iter().map(|f| f.join(&name)).find(|p| p.is_file());
        if let Some(path) = found {
            println!("cargo::rerun-if-changed={}", path.display());
            copy(&path, &out.join(&name))?;
            code += &format!("    ({size}, &Aligned(*include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{name}\")))),\n");
        }
    }
    code += "];\n";
    fs::write(out.join("embedded.rs"), code)
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::copy(from, to).map(|_| ()).map_err(|e| io::Error::new(e.kind(), format!("cannot copy {}: {e}", from.display())))
}
