//! The tests of the CUDA kernels, with NVRTC and ptxas out of the Python wheels.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cargo;
use crate::libtorch;
use crate::test::{Done, must};

/// Wheels, as pip names them; both of one release.
const WHEELS: [&str; 2] = ["nvidia-cuda-nvrtc==13.0.88", "nvidia-cuda-nvcc==13.0.88"];

/// The files taken from them.
const FILES: [&str; 3] = ["lib/libnvrtc.so.13", "lib/libnvrtc-builtins.so.13.0", "bin/ptxas"];

/// Copies files out of wheels: arguments are the folder they go to, their names separated by commas, the wheels. A file appears when it is complete.
const UNZIP: &str = r#"
import os, sys, zipfile
out, files, wheels = sys.argv[1], sys.argv[2].split(","), sys.argv[3:]
for wheel in wheels:
    with zipfile.ZipFile(wheel) as z:
        for name in z.namelist():
            for file in files:
                if name.endswith("/" + file):
                    to = os.path.join(out, file)
                    os.makedirs(os.path.dirname(to), exist_ok=True)
                    with open(to + ".part", "wb") as f:
                        f.write(z.read(name))
                    os.chmod(to + ".part", 0o755)
                    os.rename(to + ".part", to)
"#;

/// Runs them: on this host as C++, through NVRTC and ptxas, and on a GPU where there is one.
///
/// # Errors
/// A test fails, or a C++ compiler is missing and cannot be installed.
pub fn run() -> Result<Done> {
    if Command::new("c++").arg("--version").output().is_err() && cargo::may_install_packages() {
        cargo::install_packages(&["g++"])?;
    }
    let mut command = cargo::test_trainer(&["--test", "cuda", "--test", "cuda_train", "--", "--show-output"])?;
    let tools = ensure_tools();
    if let Ok(folder) = &tools {
        libtorch::add_libraries(command.env("HRM_CUDA", folder), folder)?;
    }
    must(&mut command)?;
    // What needs neither has been tested all the same.
    match tools {
        Ok(_) => Ok(Done::Passed),
        Err(error) => Ok(Done::Skipped(format!("NVRTC and ptxas cannot be had ({error:#}); the kernels as C++ passed"))),
    }
}

/// The folder of NVRTC and ptxas, fetched if it is not there yet.
fn ensure_tools() -> Result<PathBuf> {
    let folder = cargo::root().join("target/cuda");
    let there = || FILES.iter().all(|file| folder.join(file).exists());
    if !there() {
        ensure!(cfg!(all(target_os = "linux", target_arch = "x86_64")), "the wheels are fetched on x86-64 Linux only");
        let cache = cargo::root().join("target/cuda-cache");
        let wheels = libtorch::download(&cache, &WHEELS)?;
        let mut unzip = libtorch::python();
        unzip.args(["-c", UNZIP]).arg(&folder).arg(FILES.join(",")).args(wheels);
        libtorch::run(&mut unzip, "python3", "a damaged wheel is fetched anew after target/cuda-cache is removed")?;
        fs::remove_dir_all(&cache).with_context(|| format!("cannot remove {}", cache.display()))?;
        ensure!(there(), "the wheels lack one of {}", FILES.join(", "));
    }
    Ok(folder)
}
