//! An NVIDIA GPU: compiles the kernels with NVRTC and launches them through the CUDA driver. Both libraries are loaded here, at run time.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use cudarc::driver::sys::{CUdevice_attribute_enum as Attribute, CUfunction_attribute_enum as FunctionAttribute};
use cudarc::driver::{CudaContext, CudaFunction, CudaSlice, CudaStream, LaunchConfig, PushKernelArg as _};
use cudarc::nvrtc::{CompileError, CompileOptions, Ptx, compile_ptx_with_opts};
use hrm_core::ModelView;

use super::{Device, HASH_SHARED_BYTES, HASH_THREADS, LANES, Program};

/// Threads of a block of the segment kernel: one block fills a multiprocessor's shared memory, so it brings the warps to hide latencies too.
pub const THREADS: u32 = 512;
/// Blocks of a batch for each that can be resident: the time that a launch takes is small beside that of so many.
const WAVES: usize = 4;

/// Fails with the names that were looked for if `present` says that the library `name` cannot be loaded.
fn found(present: bool, name: &str, what: &str, advice: &str) -> anyhow::Result<()> {
    ensure!(
        present,
        "no {what}: looked for {} in the folders of the loader (LD_LIBRARY_PATH); {advice}",
        cudarc::get_lib_name_candidates(name).join(", ")
    );
    Ok(())
}

/// Compiles the kernels of `program` to PTX for a compute capability, such as (9, 0).
///
/// # Errors
/// NVRTC is missing, or refuses: with its log.
pub fn compile(program: &Program, capability: (i32, i32)) -> anyhow::Result<Ptx> {
    compile_source("segment.cu", program.source(), capability)
}

/// Compiles a source to PTX; `name` is what messages call it.
pub(crate) fn compile_source(name: &str, source: String, (major, minor): (i32, i32)) -> anyhow::Result<Ptx> {
    // SAFETY: loads a library by its name and lets go of it; NVRTC does nothing when it is loaded.
    let present = unsafe { cudarc::nvrtc::sys::is_culib_present() };
    found(present, "nvrtc", "NVRTC, CUDA's compiler", "it comes with the CUDA toolkit 13 and with the Python package nvidia-cuda-nvrtc")?;
    let options = CompileOptions {
        options: vec![format!("--gpu-architecture=compute_{major}{minor}"), "--std=c++17".to_owned()],
        name: Some(name.to_owned()),
        ..CompileOptions::default()
    };
    compile_ptx_with_opts(source, options).map_err(|error| match error {
        CompileError::CompileError { nvrtc, log, .. } => anyhow::anyhow!("NVRTC: {nvrtc:?}\n{}", log.to_string_lossy()),
        other => other.into(),
    })
}

/// The GPU named `cuda` or `cuda:N`.
pub(crate) fn open_context(device: &str) -> anyhow::Result<Arc<CudaContext>> {
    let number = if device == "cuda" { Some(0) } else { device.strip_prefix("cuda:").and_then(|n| n.parse::<usize>().ok()) };
    let number = number.with_context(|| format!("device `{device}` is unknown, expected cpu or cuda:N"))?;
    // SAFETY: loads a library by its name and lets go of it; the driver does nothing before `cuInit`.
    let present = unsafe { cudarc::driver::sys::is_culib_present() };
    found(present, "cuda", "CUDA driver", "it comes with the driver of an NVIDIA GPU")?;
    let devices = CudaContext::device_count().context("the CUDA driver names no device")?;
    ensure!(number < devices as usize, "device {device} does not exist, the CUDA driver sees {devices}");
    CudaContext::new(number).with_context(|| format!("device {device}"))
}

/// One batch on the device.
struct Lane {
    stream: Arc<CudaStream>,
    commands: CudaSlice<u32>,
    arena: CudaSlice<u8>,
    results: CudaSlice<u32>,
}

/// A GPU with the kernels of one model.
pub struct Gpu {
    segment: CudaFunction,
    hash: CudaFunction,
    image: CudaSlice<i32>,
    lanes: Vec<Lane>,
    slots: usize,
    shared_bytes: u32,
    name: String,
}

impl Gpu {
    /// The GPU named `cuda` or `cuda:N`, made ready for a model.
    ///
    /// # Errors
    /// Another name, no CUDA driver or NVRTC, no such device, a model of another kind, or too little memory.
    pub fn open(device: &str, view: &ModelView<'_>) -> anyhow::Result<(Self, Program)> {
        let context = open_context(device)?;
        let (attribute, of) = (|a| context.attribute(a), |what| move || format!("device {device}: {what}"));
        let limit = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN).with_context(of("shared memory"))?;
        let processors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT).with_context(of("multiprocessors"))?;
        let capability = context.compute_capability().with_context(of("compute capability"))?;
        ensure!(capability >= (6, 1), "device {device} has compute capability {capability:?}, expected at least 6.1 (dp4a)");
        let program = Program::new(view, THREADS, limit as usize)?;
        let module = context.load_module(compile(&program, capability)?).with_context(of("loading the kernels"))?;
        let (segment, hash) = (module.load_function("segment")?, module.load_function("hash")?);
        let shared = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        segment.set_attribute(shared, program.shared_bytes as i32).with_context(of("shared memory of a block"))?;
        let resident = segment.occupancy_max_active_blocks_per_multiprocessor(THREADS, program.shared_bytes, None)?;
        let slots = WAVES * processors as usize * resident.max(1) as usize;
        let bytes = LANES * slots * program.slot_bytes;
        let (free, _) = context.mem_get_info()?;
        ensure!(bytes < free, "{LANES} batches of {slots} puzzles take {bytes} bytes, device {device} has {free} free");
        let lanes = (0..LANES).map(|_| {
            let stream = context.new_stream()?;
            // Zeros behind the end of a tensor are part of the state hash.
            let arena = stream.alloc_zeros(slots * program.slot_bytes)?;
            let commands = stream.alloc_zeros(slots * program.command_words())?;
            let results = stream.alloc_zeros(slots * program.result_words())?;
            Ok(Lane { stream, commands, arena, results })
        });
        let lanes = lanes.collect::<anyhow::Result<Vec<_>>>().with_context(of("memory of the batches"))?;
        let image = context.default_stream().clone_htod(&program.image)?;
        context.synchronize()?;
        let name = context.name()?;
        Ok((Self { segment, hash, image, lanes, slots, shared_bytes: program.shared_bytes as u32, name }, program))
    }

    /// What the driver calls the device.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Device for Gpu {
    fn slots(&self) -> usize {
        self.slots
    }

    fn launch(&mut self, lane: usize, commands: &[u32]) -> anyhow::Result<()> {
        let (shared_bytes, slots) = (self.shared_bytes, self.slots as u32);
        let lane = &mut self.lanes[lane];
        lane.stream.memcpy_htod(commands, &mut lane.commands)?;
        let shape = |threads, shared_mem_bytes| LaunchConfig { grid_dim: (slots, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes };
        let mut segment = lane.stream.launch_builder(&self.segment);
        segment.arg(&self.image).arg(&lane.commands).arg(&mut lane.arena).arg(&mut lane.results);
        // SAFETY: the arguments are those of `segment` in segment.cu, in its order; each block stays inside its own slot of three arrays
        // that were made for `slots` slots of the sizes that the kernel was compiled with, and inside the shared memory asked for here.
        unsafe { segment.launch(shape(THREADS, shared_bytes)) }?;
        let mut hash = lane.stream.launch_builder(&self.hash);
        hash.arg(&lane.commands).arg(&mut lane.arena).arg(&mut lane.results);
        // SAFETY: as above, for `hash`.
        unsafe { hash.launch(shape(HASH_THREADS, HASH_SHARED_BYTES as u32)) }?;
        Ok(())
    }

    fn wait(&mut self, lane: usize) -> anyhow::Result<Vec<u32>> {
        let lane = &mut self.lanes[lane];
        let results = lane.stream.clone_dtoh(&lane.results)?;
        lane.stream.synchronize()?;
        Ok(results)
    }
}
