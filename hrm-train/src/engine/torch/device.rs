//! The device a run computes on.

use anyhow::{Context, bail, ensure};
use tch::{Cuda, Device};

/// Reads `cpu` or `cuda:N` and makes the device usable.
///
/// A program linked to the CPU libraries loads libtorch's CUDA half here, so one binary serves both kinds of machine.
///
/// # Errors
/// Another text, no CUDA library to load, or no such GPU.
pub(super) fn open(name: &str) -> anyhow::Result<Device> {
    if name == "cpu" {
        return Ok(Device::Cpu);
    }
    let index: usize = match name.strip_prefix("cuda") {
        Some("") => 0,
        Some(rest) => {
            rest.strip_prefix(':').and_then(|n| n.parse().ok()).with_context(|| format!("device `{name}`, expected `cpu` or `cuda:N`"))?
        }
        None => bail!("device `{name}`, expected `cpu` or `cuda:N`"),
    };
    if !Cuda::is_available() {
        load()?;
    }
    let found = Cuda::device_count();
    ensure!(found > index as i64, "device `{name}`: libtorch sees {found} GPUs (is the driver installed?)");
    Ok(Device::Cuda(index))
}

#[cfg(unix)]
fn load() -> anyhow::Result<()> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: the initialisers of this library only register kernels with the libtorch that is already loaded; it comes from the same
    // release, by the search path that found the others, and is never unloaded.
    let library = unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) };
    let library = library.context(
        "libtorch's CUDA half cannot be loaded: install torch 2.11.0 with CUDA (pip install torch==2.11.0) and set LD_LIBRARY_PATH to its torch/lib",
    )?;
    std::mem::forget(library);
    Ok(())
}

#[cfg(not(unix))]
fn load() -> anyhow::Result<()> {
    bail!("this libtorch has no CUDA")
}
