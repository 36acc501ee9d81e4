//! An NVIDIA GPU.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use cudarc::driver::{CudaFunction, CudaSlice, CudaStream, LaunchConfig, PushKernelArg as _};
use cudarc::nvrtc::Ptx;

use super::program::Operand;
use super::{Buffer, Device, Program, SOURCE, THREADS};
use crate::cuda::{compile_source, open_context};

/// Threads of a block that adds gradients.
const REDUCE_THREADS: usize = 256;

/// Compiles the kernels of `program` to PTX for a compute capability, such as (9, 0).
///
/// # Errors
/// NVRTC is missing, or refuses: with its log.
pub fn compile(program: &Program, capability: (i32, i32)) -> anyhow::Result<Ptx> {
    compile_source("step.cu", format!("{}{SOURCE}", program.macros), capability)
}

/// A GPU with the kernels of one model.
pub struct Gpu {
    name: String,
    stream: Arc<CudaStream>,
    step: CudaFunction,
    reduce: CudaFunction,
    tables: CudaSlice<u32>,
    weights: CudaSlice<u8>,
    floats: CudaSlice<u8>,
    commands: CudaSlice<u8>,
    work: CudaSlice<u8>,
    results: CudaSlice<u8>,
    tapes: CudaSlice<u8>,
    tape_bytes: u64,
    gradients: CudaSlice<f32>,
    sum: CudaSlice<u8>,
    slots: usize,
    call_bytes: usize,
    gradient_len: usize,
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
        let (step, reduce) = (module.load_function("step")?, module.load_function("reduce")?);
        let stream = context.default_stream();
        let memory = of("memory of the batch");
        let zeros = |bytes: usize| stream.alloc_zeros::<u8>(bytes).with_context(memory);
        Ok(Self {
            name: context.name()?,
            step,
            reduce,
            tables: stream.clone_htod(&program.tables)?,
            weights: zeros(program.weight_bytes)?,
            floats: zeros(4 * program.float_len)?,
            commands: zeros(4 * slots * program.command_words)?,
            work: zeros(slots * program.work_bytes)?,
            results: zeros(4 * slots * program.result_words)?,
            tapes: zeros(1)?,
            tape_bytes: 0,
            gradients: stream.alloc_zeros(slots * program.gradient_len).with_context(memory)?,
            sum: zeros(4 * program.gradient_len)?,
            slots,
            call_bytes: program.call_bytes,
            gradient_len: program.gradient_len,
            stream,
        })
    }

    fn buffer(&mut self, buffer: Buffer) -> &mut CudaSlice<u8> {
        match buffer {
            Buffer::Weights => &mut self.weights,
            Buffer::Floats => &mut self.floats,
            Buffer::Commands => &mut self.commands,
            Buffer::Work => &mut self.work,
            Buffer::Results => &mut self.results,
            Buffer::Sum => &mut self.sum,
        }
    }
}

impl Device for Gpu {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn reserve(&mut self, slots: usize, calls: usize) -> anyhow::Result<()> {
        let bytes = calls * self.call_bytes;
        // The old ones first: both together may be too much.
        self.tapes = self.stream.alloc_zeros(1)?;
        self.tapes = self.stream.alloc_zeros(slots * bytes).with_context(|| {
            format!("{}: no room for the backward pass of {slots} puzzles, {bytes} bytes each; make train.batch smaller", self.name)
        })?;
        self.tape_bytes = bytes as u64;
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

    fn step(&mut self, first: usize, slots: usize) -> anyhow::Result<()> {
        ensure!(first + slots <= self.slots, "slots {first} to {}, the device was made for {}", first + slots, self.slots);
        let first = first as u32;
        let shape = LaunchConfig { grid_dim: (slots as u32, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 };
        let mut launch = self.stream.launch_builder(&self.step);
        launch.arg(&self.weights).arg(&self.floats).arg(&self.tables).arg(&self.commands).arg(&mut self.work).arg(&mut self.tapes);
        launch.arg(&self.tape_bytes).arg(&mut self.results).arg(&mut self.gradients).arg(&first);
        // SAFETY: the arguments are those of `step` in step.cu, in its order. Each block stays inside its own slot of the arrays, which were made
        // for `slots` slots of the sizes that the kernel was compiled with and asserts; the tapes have room for the calls that `reserve` was
        // told, which the caller asks for before it has that many kept.
        unsafe { launch.launch(shape) }?;
        Ok(())
    }

    fn reduce(&mut self, slots: usize) -> anyhow::Result<()> {
        ensure!(slots <= self.slots, "{slots} slots, the device was made for {}", self.slots);
        let count = slots as u32;
        let blocks = self.gradient_len.div_ceil(REDUCE_THREADS) as u32;
        let shape = LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (REDUCE_THREADS as u32, 1, 1), shared_mem_bytes: 0 };
        let mut launch = self.stream.launch_builder(&self.reduce);
        launch.arg(&self.gradients).arg(&count).arg(&mut self.sum);
        // SAFETY: the arguments are those of `reduce` in step.cu, in its order; it reads `count` gradients and writes one, each of the length that it
        // was compiled with and asserts.
        unsafe { launch.launch(shape) }?;
        Ok(())
    }
}
