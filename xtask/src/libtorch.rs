//! libtorch out of the Python wheels: only the files a CPU program links.
//!
//! The wheel is the one place that every package index mirrors. Its CUDA half is not needed to build: a program built against this folder
//! uses CUDA when it is started with `LD_LIBRARY_PATH` at the `torch/lib` of a full installation.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::cargo;

/// The libtorch release that tch 0.24 binds.
pub const VERSION: &str = "2.11.0";

/// Wheels, as pip names them: `libtorch_cpu.so` of the CUDA build is linked to the profiler's and the runtime's library.
const WHEELS: [&str; 3] = ["torch==2.11.0", "nvidia-cuda-cupti==13.0.85", "nvidia-cuda-runtime==13.0.96"];

/// Written last: says that the folder is complete, and for which recipe.
const STAMP: (&str, &str) = (".complete", "torch 2.11.0, CPU files, recipe 1\n");

/// Copies the needed members of the wheels given as arguments after the folder: libraries flat into `lib`, headers into `include`.
const UNZIP: &str = r#"
import os, re, shutil, sys, zipfile
out, wheels = sys.argv[1], sys.argv[2:]
libs = {"libtorch_cpu.so", "libc10.so", "libgomp.so.1", "libcupti.so.13", "libcudart.so.13"}
found = set()
for wheel in wheels:
    with zipfile.ZipFile(wheel) as z:
        for name in z.namelist():
            base = name.rsplit("/", 1)[-1]
            if base in libs and "/lib/" in name:
                to = os.path.join(out, "lib", base)
                found.add(base)
            elif name.startswith("torch/include/") and base and ".." not in name:
                to = os.path.join(out, name[len("torch/"):])
            else:
                continue
            os.makedirs(os.path.dirname(to), exist_ok=True)
            with z.open(name) as a, open(to, "wb") as b:
                shutil.copyfileobj(a, b, 1 << 20)
if libs - found:
    sys.exit("the wheels hold no " + ", ".join(sorted(libs - found)))
"#;

/// The folder of a usable libtorch, fetched if it is ours and not there yet.
///
/// A `LIBTORCH` that names another folder is respected and only looked at.
///
/// # Errors
/// Python, pip or gcc is missing, a download or the disk fails, or the folder named by `LIBTORCH` holds no libtorch.
pub fn ensure() -> Result<PathBuf> {
    let target = cargo::root().join("target");
    let ours = target.join("libtorch");
    if let Some(named) = env::var_os("LIBTORCH").map(PathBuf::from).filter(|dir| dir != &ours) {
        ensure!(
            named.join("lib/libtorch_cpu.so").exists(),
            "LIBTORCH names {}, which has no lib/libtorch_cpu.so: unset it to have libtorch {VERSION} fetched, or name a folder of that release",
            named.display()
        );
        return Ok(named);
    }
    if complete(&ours) {
        return Ok(ours);
    }
    ensure!(
        cfg!(all(target_os = "linux", target_arch = "x86_64")),
        "libtorch is fetched on x86-64 Linux only: set LIBTORCH to a folder of libtorch {VERSION} for this machine"
    );
    fs::create_dir_all(&target).with_context(|| format!("cannot create {}", target.display()))?;
    // Two tasks started at once must not write the same folder: the second waits and finds it complete.
    let lock_path = target.join("libtorch.lock");
    let lock = File::create(&lock_path).with_context(|| format!("cannot create {}", lock_path.display()))?;
    lock.lock().with_context(|| format!("cannot lock {}", lock_path.display()))?;
    if !complete(&ours) {
        let wheels = download(&target.join("libtorch-cache"), &WHEELS)?;
        assemble(&ours, &target.join("libtorch.part"), &wheels)?;
        fs::remove_dir_all(target.join("libtorch-cache")).context("cannot remove the downloaded wheels")?;
    }
    Ok(ours)
}

/// Sets what a build against `dir` and a program built so need.
///
/// # Errors
/// `LD_LIBRARY_PATH` cannot be extended.
pub fn environment(command: &mut Command, dir: &Path) -> Result<()> {
    command.env("LIBTORCH", dir);
    add_libraries(command, dir)
}

/// Lets a command find the libraries of `dir/lib`, behind those that it finds already.
///
/// # Errors
/// `dir` cannot be part of a search path.
pub fn add_libraries(command: &mut Command, dir: &Path) -> Result<()> {
    const NAME: &str = "LD_LIBRARY_PATH";
    // A folder given by the user comes first: it may be a full installation with CUDA.
    let own = command.get_envs().find(|(name, _)| *name == NAME).and_then(|(_, value)| value.map(OsString::from));
    let mut paths: Vec<PathBuf> = own.or_else(|| env::var_os(NAME)).iter().flat_map(env::split_paths).collect();
    paths.push(dir.join("lib"));
    command.env(NAME, env::join_paths(paths).with_context(|| format!("{NAME} cannot be extended"))?);
    Ok(())
}

fn complete(dir: &Path) -> bool {
    fs::read_to_string(dir.join(STAMP.0)).is_ok_and(|text| text == STAMP.1)
}

/// Downloads what is not in the cache yet; a wheel enters the cache by a rename, so that an interrupted download is never mistaken for one.
///
/// # Errors
/// pip is missing or fails, or the disk does.
pub fn download(cache: &Path, wheels: &[&str]) -> Result<Vec<PathBuf>> {
    let part = cache.join("part");
    fs::create_dir_all(&part).with_context(|| format!("cannot create {}", part.display()))?;
    wheels
        .iter()
        .map(|wheel| {
            if let Some(path) = cached(cache, wheel)? {
                return Ok(path);
            }
            println!("fetching {wheel}");
            let mut pip = python();
            pip.args(["-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]);
            // One fixed interpreter tag: the files taken do not depend on it, and the machine's Python may have no wheel of this release.
            pip.args(["--implementation", "cp", "--python-version", "3.11", "--abi", "cp311", "--abi", "none"]);
            for platform in ["manylinux_2_28", "manylinux_2_25", "manylinux_2_17", "manylinux2014", "manylinux2010"] {
                pip.args(["--platform", &format!("{platform}_x86_64")]);
            }
            pip.arg("--dest").arg(&part).arg(wheel);
            run(
                &mut pip,
                "pip",
                "install Python 3 with pip (Debian: apt-get install python3 python3-pip) and see that its package index is reachable",
            )?;
            let done = cached(&part, wheel)?.with_context(|| format!("pip left no wheel of {wheel} in {}", part.display()))?;
            let to = cache.join(done.file_name().unwrap_or_default());
            fs::rename(&done, &to).with_context(|| format!("cannot move {} to {}", done.display(), to.display()))?;
            Ok(to)
        })
        .collect()
}

/// The wheel of a requirement `name==version` in a folder.
fn cached(dir: &Path, requirement: &str) -> Result<Option<PathBuf>> {
    let start = format!("{}-", requirement.replace('-', "_").replace("==", "-"));
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry.with_context(|| format!("cannot read {}", dir.display()))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(&start) && name.ends_with(".whl") {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Builds the folder beside its place and renames it into it.
fn assemble(place: &Path, part: &Path, wheels: &[PathBuf]) -> Result<()> {
    for old in [part, place] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| format!("cannot remove the incomplete {}", old.display()))?;
        }
    }
    let lib = part.join("lib");
    fs::create_dir_all(&lib).with_context(|| format!("cannot create {}", lib.display()))?;
    println!("unpacking");
    let mut unzip = python();
    unzip.args(["-c", UNZIP]).arg(part).args(wheels);
    run(
        &mut unzip,
        "python3",
        "see that the disk has 1.2 GB free; a damaged wheel is fetched anew after target/libtorch-cache is removed",
    )?;
    // The wheel's libtorch.so only loads the CUDA half; torch-sys wants the name to link to.
    let mut gcc = Command::new("gcc");
    gcc.args(["-shared", "-fPIC", "-Wl,-soname,libtorch.so", "-x", "c", "/dev/null", "-o"]).arg(lib.join("libtorch.so"));
    run(&mut gcc, "gcc", "install a C and C++ compiler (Debian: apt-get install g++)")?;
    let write =
        |name: &str, text: &str| fs::write(part.join(name), text).with_context(|| format!("cannot write {name} in {}", part.display()));
    write("build-version", &format!("{VERSION}\n"))?;
    write(STAMP.0, STAMP.1)?;
    fs::rename(part, place).with_context(|| format!("cannot move {} to {}", part.display(), place.display()))
}

/// Python, with nothing to read.
pub fn python() -> Command {
    let mut command = Command::new("python3");
    command.stdin(Stdio::null());
    command
}

/// Runs a tool; where it fails the error ends with `advice`.
///
/// # Errors
/// It cannot be started or fails.
pub fn run(command: &mut Command, name: &str, advice: &str) -> Result<()> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => bail!("{name} failed ({status}): {advice}"),
        Err(error) => bail!("{name} cannot be started ({error}): {advice}"),
    }
}
