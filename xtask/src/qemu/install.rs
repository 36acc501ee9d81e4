//! QEMU for the emulated boards: the machine's own, or that of Debian's backports, because Debian 12's own lacks some of them.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::cargo;
use crate::test::must;

/// The first version that is known to give the same instruction counts on every board here.
const OLDEST: u32 = 10;
const PROGRAMS: [&str; 2] = ["qemu-system-arm", "qemu-system-riscv32"];
/// Packages of [`PROGRAMS`], and of the user-mode emulation that runs programs of other processors on a host.
const PACKAGES: [&str; 3] = ["qemu-system-arm", "qemu-system-riscv", "qemu-user"];

/// Makes sure that QEMU is there; the reason if it cannot be.
///
/// # Errors
/// Its installation fails.
pub fn ensure() -> Result<Option<String>> {
    let missing = || PROGRAMS.into_iter().find(|p| version(p).is_none_or(|v| v < OLDEST));
    let Some(program) = missing() else { return Ok(None) };
    if !cargo::may_install_packages() {
        return Ok(Some(format!("{program} of version {OLDEST} or later is not installed")));
    }
    from_backports()?;
    Ok(missing().map(|p| format!("{p} of version {OLDEST} or later is not installed, and the backports do not bring it")))
}

/// The major version of a QEMU program, if it can be started.
fn version(program: &str) -> Option<u32> {
    let output = Command::new(program).arg("--version").stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.split("version ").nth(1)?.split('.').next()?.parse().ok()
}

/// Installs from the backports of this machine's release with package lists of our own: the machine's configuration stays as it is.
fn from_backports() -> Result<()> {
    let dir = cargo::root().join("target/apt");
    for folder in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(dir.join(folder)).with_context(|| format!("cannot make {}", dir.join(folder).display()))?;
    }
    let release = fs::read_to_string("/etc/os-release").context("/etc/os-release")?;
    let codename =
        release.lines().find_map(|l| l.strip_prefix("VERSION_CODENAME=")).context("/etc/os-release names no VERSION_CODENAME")?;
    let mirror = mirror().context("no package mirror of Debian in /etc/apt")?;
    let list = dir.join("sources.list");
    let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let lines: String =
        ["", "-updates", "-backports"].iter().map(|s| format!("deb [signed-by={keys}] {mirror} {codename}{s} main\n")).collect();
    fs::write(&list, lines).with_context(|| format!("cannot write {}", list.display()))?;
    let apt = || {
        let mut command = Command::new("apt-get");
        for (key, value) in [("Etc::sourcelist", list.as_path()), ("Etc::sourceparts", Path::new("/dev/null"))] {
            command.arg("-o").arg(format!("Dir::{key}={}", value.display()));
        }
        for (key, folder) in [("State::lists", "lists"), ("Cache", "cache")] {
            command.arg("-o").arg(format!("Dir::{key}={}", dir.join(folder).display()));
        }
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    must(apt().args(["update", "-q"]))?;
    let suite = format!("{codename}-backports");
    must(apt().args(["install", "-y", "-q", "--no-install-recommends", "-t", &suite]).args(PACKAGES)).context("QEMU from the backports")
}

/// The address of the mirror that this machine takes Debian's packages from.
fn mirror() -> Option<String> {
    let folder = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|e| e.path());
    let files = folder.chain([Path::new("/etc/apt/sources.list").to_path_buf()]);
    let text: Vec<String> = files.filter_map(|f| fs::read_to_string(f).ok()).collect();
    let words =
        text.iter().flat_map(|t| t.lines()).filter(|l| l.starts_with("URIs:") || l.starts_with("deb ")).flat_map(str::split_whitespace);
    words.map(str::to_owned).find(|w| w.contains("://") && w.trim_end_matches('/').ends_with("/debian"))
}
