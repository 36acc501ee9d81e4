//! What ptxas says of kernels that NVRTC has compiled.

use std::path::{Path, PathBuf};
use std::process::Command;

use cudarc::nvrtc::Ptx;

/// The folder of NVRTC and ptxas that `cargo xtask test cuda` names; `None`, and a line that says so, without one.
pub fn tools() -> Option<PathBuf> {
    let tools = std::env::var_os("HRM_CUDA").map(PathBuf::from);
    if tools.is_none() {
        println!("skipped: HRM_CUDA names no folder with NVRTC and ptxas (cargo xtask test cuda fetches them)");
    }
    tools
}

/// Assembles `ptx` for a compute capability and returns the lines about registers and spills, two for each kernel; fails unless there are `kernels`
/// and none spills.
pub fn accept(tools: &Path, name: &str, ptx: &Ptx, (major, minor): (i32, i32), kernels: usize) -> Vec<String> {
    let folder = tools.join("ptx");
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join(format!("{name}-{major}{minor}.ptx"));
    std::fs::write(&file, ptx.to_src()).unwrap();
    let mut command = Command::new(tools.join("bin/ptxas"));
    let output = command.arg("-v").arg(format!("-arch=sm_{major}{minor}")).arg(&file).arg("-o").arg(file.with_extension("cubin")).output();
    let output = output.unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let told: Vec<String> = text.lines().filter(|l| l.contains("Used ") || l.contains("spill")).map(|l| l.trim().to_owned()).collect();
    assert_eq!(told.len(), 2 * kernels, "{text}");
    assert_eq!(told.iter().filter(|l| l.contains("0 bytes spill stores, 0 bytes spill loads")).count(), kernels, "{text}");
    told
}
