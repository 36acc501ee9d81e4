//! Sums between GPUs through NCCL, and everything else through the ranks' connection in memory.
//!
//! The library is looked for at run time under the name `libnccl.so`. The Python wheel of NCCL has `libnccl.so.2` only: a link of that name beside
//! it, and its folder in `LD_LIBRARY_PATH`, make it known.

use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use cudarc::driver::CudaContext;
use cudarc::nccl::{result, sys};

use super::{Transport, Values};

/// GPUs, one a rank.
pub struct Nccl {
    comm: sys::ncclComm_t,
    context: Arc<CudaContext>,
    memory: Box<dyn Transport>,
}

impl Nccl {
    /// Whether the driver of a GPU and NCCL can be loaded; if not, why.
    ///
    /// # Errors
    /// One of them cannot.
    pub fn present() -> anyhow::Result<()> {
        // SAFETY: loading a library runs its initialisers, which do not depend on this program.
        let (driver, nccl) = unsafe { (cudarc::driver::sys::is_culib_present(), sys::is_culib_present()) };
        ensure!(driver, "the CUDA driver cannot be loaded (libcuda.so)");
        ensure!(
            nccl,
            "NCCL cannot be loaded: libnccl.so is not in LD_LIBRARY_PATH (of the Python wheel nvidia-nccl-cu13, link libnccl.so.2 to that name)"
        );
        Ok(())
    }

    /// Connects the GPU of number `gpu` on this machine with those of the other ranks, which `memory` connects already.
    ///
    /// # Errors
    /// There is no NCCL, no such GPU, or two ranks have the same one.
    pub fn open(rank: usize, world: usize, gpu: usize, memory: Box<dyn Transport>) -> anyhow::Result<Self> {
        Self::present()?;
        let context = CudaContext::new(gpu).with_context(|| format!("GPU {gpu} cannot be used"))?;
        context.bind_to_thread()?;
        let mut id = sys::ncclUniqueId { internal: [0; 128] };
        if rank == 0 {
            id = result::get_uniqueid().map_err(|e| failed("ncclGetUniqueId", &e))?;
        }
        let mut bytes = id.internal.map(|c| c as u8);
        memory.broadcast(&mut bytes).context("the NCCL id of rank 0")?;
        id.internal = bytes.map(|b| b as std::ffi::c_char);
        let mut comm = std::ptr::null_mut();
        let (count, number) = (i32::try_from(world)?, i32::try_from(rank)?);
        // SAFETY: `comm` receives the communicator, the context of its GPU is current on this thread.
        unsafe { result::comm_init_rank(&mut comm, count, id, number) }.map_err(|e| failed("ncclCommInitRank", &e))?;
        Ok(Self { comm, context, memory })
    }
}

fn failed(call: &str, error: &result::NcclError) -> anyhow::Error {
    anyhow::anyhow!("{call}: {:?} (NCCL_DEBUG=INFO tells more)", error.0)
}

impl Transport for Nccl {
    fn sum(&self, values: Values<'_>) -> anyhow::Result<()> {
        let slice = match values {
            Values::Host(values) => return self.memory.sum(Values::Host(values)),
            Values::Device(slice) => slice,
        };
        let (address, len) = slice.parts();
        self.context.bind_to_thread()?;
        let at = address as *mut std::ffi::c_void;
        let (kind, sum) = (sys::ncclDataType_t::ncclFloat32, sys::ncclRedOp_t::ncclSum);
        // The stream of libtorch unless it is told another: what made the values comes before, what uses them after.
        let stream = std::ptr::null_mut();
        // SAFETY: `DeviceSlice` promises `len` f32 at `at` on this rank's GPU, in the order of the default stream; the communicator is open.
        let status = unsafe { result::all_reduce(at, at, len, kind, sum, self.comm, stream) }.map_err(|e| failed("ncclAllReduce", &e))?;
        // SAFETY: the default stream of the current context; to wait for it lets the caller do with the values what it likes.
        let waited = unsafe { cudarc::driver::result::stream::synchronize(std::ptr::null_mut()) };
        waited.context("the sum on the GPU")?;
        match status {
            result::NcclStatus::Success => Ok(()),
            _ => bail!("ncclAllReduce has not ended"),
        }
    }

    fn gather(&self, mine: &[u8], all: &mut [u8]) -> anyhow::Result<()> {
        self.memory.gather(mine, all)
    }

    fn broadcast(&self, bytes: &mut [u8]) -> anyhow::Result<()> {
        self.memory.broadcast(bytes)
    }

    fn takes_device(&self) -> bool {
        true
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        // SAFETY: opened once. Aborting does not wait for ranks that are gone; all sums have been waited for.
        let _ = unsafe { result::comm_abort(self.comm) };
    }
}
