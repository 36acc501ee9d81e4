//! An NVIDIA GPU.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use cudarc::driver::sys::CUdevice_attribute_enum as Attribute;
use cudarc::driver::{CudaContext, CudaFunction, CudaSlice, CudaStream, DevicePtr as _, DeviceRepr, LaunchConfig, PushKernelArg as _};
use cudarc::nvrtc::Ptx;

use super::program::Operand;
use super::{Buffer, Device, Kernel, Program, RATES, SOURCE};
use crate::cuda::{compile_source, open_context};

/// Compiles the kernels of `program` to PTX for a compute capability, such as (9, 0).
///
/// # Errors
/// NVRTC is missing, or refuses: with its log.
pub fn compile(program: &Program, capability: (i32, i32)) -> anyhow::Result<Ptx> {
    compile_source("step.cu", format!("{}{SOURCE}", program.macros), capability)
}

/// Where the arrays are, as `Memory` of layout.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Memory {
    weights: u64,
    floats: u64,
    tables: u64,
    commands: u64,
    work: u64,
    tapes: u64,
    tape_bytes: u64,
    results: u64,
    gradients: u64,
    state: u64,
    packing: u64,
    factors: u64,
    scratch: u64,
    measured: u64,
    rates: u64,
}

// SAFETY: plain words without padding, which kernels take by value.
unsafe impl DeviceRepr for Memory {}

/// A GPU with the kernels of one model.
pub struct Gpu {
    name: String,
    stream: Arc<CudaStream>,
    /// By number.
    kernels: Vec<CudaFunction>,
    memory: Memory,
    commands: CudaSlice<u8>,
    work: CudaSlice<u8>,
    results: CudaSlice<u8>,
    state: CudaSlice<u8>,
    rates: CudaSlice<u8>,
    measured: CudaSlice<u8>,
    tapes: CudaSlice<u8>,
    /// Arrays that only kernels read or write.
    _others: Vec<CudaSlice<u8>>,
    slots: usize,
    call_bytes: usize,
    peak: Option<f64>,
}

/// bf16 operations of all tensor cores in a second at the highest clock (CUDA C++ Programming Guide and the white papers of A100 and H100: 2,048 and
/// 4,096 a multiprocessor and clock; other capabilities have fewer, which are not listed here).
fn peak(context: &CudaContext, capability: (i32, i32)) -> anyhow::Result<Option<f64>> {
    let each = match capability {
        (8, 0) => 2048.0,
        (9, 0) => 4096.0,
        _ => return Ok(None),
    };
    let processors = context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    let kilohertz = context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?;
    Ok(Some(each * f64::from(processors) * f64::from(kilohertz) * 1e3))
}

impl Gpu {
    /// The GPU named `cuda:N`, made ready for `slots` puzzles.
    ///
    /// # Errors
    /// Another name, no CUDA driver or NVRTC, no such device, or too little memory.
    pub fn open(device: &str, program: &Program, slots: usize) -> anyhow::Result<Self> {
        let context = open_context(device)?;
        let of = |what: &'static str| move || format!("device {device}: {what}");
        let capability = context.compute_capability().with_context(of("compute capability"))?;
        ensure!(program.operand == Operand::Bf16, "a GPU multiplies bf16 here, not {:?}", program.operand);
        ensure!(capability >= (8, 0), "device {device} has compute capability {capability:?}, expected at least 8.0 (bf16 products)");
        let module = context.load_module(compile(program, capability)?).with_context(of("loading the kernels"))?;
        let kernels = Kernel::ALL.iter().map(|k| module.load_function(k.name())).collect::<Result<_, _>>()?;
        let stream = context.default_stream();
        let zeros = |bytes: usize| stream.alloc_zeros::<u8>(bytes.max(4)).with_context(of("memory of the batch"));
        let table = |words: &[u32]| -> anyhow::Result<CudaSlice<u8>> {
            let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            Ok(stream.clone_htod(&bytes)?)
        };
        let others = vec![
            zeros(program.operand.bytes() * program.weight_len)?,
            zeros(4 * program.float_len)?,
            table(&program.tables)?,
            zeros(4 * slots * program.gradient_len)?,
            table(&program.packing)?,
            zeros(4 * program.channels)?,
            // Zeros around the matrices stay zeros.
            zeros(4 * program.scratch_len)?,
        ];
        let mut gpu = Self {
            name: context.name()?,
            kernels,
            memory: Memory::default(),
            commands: zeros(4 * slots * program.command_words)?,
            work: zeros(slots * program.work_bytes)?,
            results: zeros(4 * slots * program.result_words)?,
            state: zeros(4 * 6 * program.len)?,
            rates: zeros(4 * RATES)?,
            measured: zeros(4)?,
            tapes: zeros(0)?,
            _others: others,
            slots,
            call_bytes: program.call_bytes,
            peak: peak(&context, capability).with_context(of("clock"))?,
            stream: Arc::clone(&stream),
        };
        let at = |slice: &CudaSlice<u8>| slice.device_ptr(&stream).0;
        let o = &gpu._others;
        gpu.memory = Memory {
            weights: at(&o[0]),
            floats: at(&o[1]),
            tables: at(&o[2]),
            commands: at(&gpu.commands),
            work: at(&gpu.work),
            tapes: at(&gpu.tapes),
            tape_bytes: 0,
            results: at(&gpu.results),
            gradients: at(&o[3]),
            state: at(&gpu.state),
            packing: at(&o[4]),
            factors: at(&o[5]),
            scratch: at(&o[6]),
            measured: at(&gpu.measured),
            rates: at(&gpu.rates),
        };
        Ok(gpu)
    }

    fn buffer(&mut self, buffer: Buffer) -> &mut CudaSlice<u8> {
        match buffer {
            Buffer::Commands => &mut self.commands,
            Buffer::Work => &mut self.work,
            Buffer::Results => &mut self.results,
            Buffer::State => &mut self.state,
            Buffer::Rates => &mut self.rates,
            Buffer::Measured => &mut self.measured,
        }
    }
}

impl Device for Gpu {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn peak(&self) -> Option<f64> {
        self.peak
    }

    fn reserve(&mut self, slots: usize, calls: usize) -> anyhow::Result<()> {
        let bytes = calls * self.call_bytes;
        // The old ones first: both together may be too much.
        self.tapes = self.stream.alloc_zeros(1)?;
        self.tapes = self.stream.alloc_zeros(slots * bytes).with_context(|| {
            format!("{}: no room for the backward pass of {slots} puzzles, {bytes} bytes each; make train.batch smaller", self.name)
        })?;
        self.memory.tapes = self.tapes.device_ptr(&self.stream).0;
        self.memory.tape_bytes = bytes as u64;
        Ok(())
    }

    fn write(&mut self, buffer: Buffer, at: usize, bytes: &[u8]) -> anyhow::Result<()> {
        let stream = Arc::clone(&self.stream);
        let mut to = self.buffer(buffer).slice_mut(at..at + bytes.len());
        Ok(stream.memcpy_htod(bytes, &mut to)?)
    }

    fn read(&mut self, buffer: Buffer, at: usize, bytes: &mut [u8]) -> anyhow::Result<()> {
        let stream = Arc::clone(&self.stream);
        let from = self.buffer(buffer).slice(at..at + bytes.len());
        stream.memcpy_dtoh(&from, bytes)?;
        Ok(stream.synchronize()?)
    }

    fn launch(&mut self, kernel: Kernel, blocks: usize, [a, b, c]: [u32; 3]) -> anyhow::Result<()> {
        let last = if kernel == Kernel::Step { a as usize + blocks } else { 0 };
        ensure!(last <= self.slots, "slots up to {last}, the device was made for {}", self.slots);
        let shape = LaunchConfig { grid_dim: (blocks as u32, 1, 1), block_dim: (kernel.threads(), 1, 1), shared_mem_bytes: 0 };
        let mut launch = self.stream.launch_builder(&self.kernels[kernel as usize]);
        launch.arg(&self.memory).arg(&a).arg(&b).arg(&c);
        // SAFETY: the arguments are those of every kernel, in their order; `Memory` points at arrays that live as long as `self`, of the sizes that the
        // kernels were compiled with and assert. A block of `step` stays inside its own slot, whose number was checked; the tapes have room for
        // the calls that `reserve` was told, which the caller asks for before it has that many kept.
        unsafe { launch.launch(shape) }?;
        Ok(())
    }
}
