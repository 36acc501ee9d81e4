//! Several processes that train one model together, each on its rows of the batch.
//!
//! The batch of the config is that of all ranks: rank `r` of `W` has rows `r B / W` to `(r + 1) B / W` of it. Draws, starts and noise belong to
//! the row of the whole batch and gradients are summed over all ranks, so what comes out is the same function of the config whatever `W`
//! is, up to the order of sums. Every rank keeps all weights and makes the same optimizer step; rank 0 alone writes files.
//!
//! [`launch`] says which rank this is, [`Transport`] moves the numbers: gloo between CPUs (feature `tch`: libtorch carries it), NCCL
//! between GPUs (feature `nccl`).

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use crate::engine::RowOutcome;
use crate::run_config::{EngineKind, RunConfig, resolve_threads};

#[cfg(feature = "tch")]
mod gloo;
pub mod launch;
#[cfg(feature = "nccl")]
pub mod nccl;
#[cfg(test)]
pub(crate) mod tests;

use launch::Launch;

/// Numbers to sum over the ranks, in place.
pub enum Values<'a> {
    /// In memory.
    Host(&'a mut [f32]),
    /// On the GPU of this rank.
    Device(DeviceSlice),
}

/// Some f32 on a GPU.
#[derive(Clone, Copy, Debug)]
pub struct DeviceSlice {
    address: u64,
    len: usize,
}

impl DeviceSlice {
    /// # Safety
    /// `address` is that of `len` f32 on the GPU of this rank; they stay there, and are not used but in the order of the default stream,
    /// until the transport that gets them returns.
    #[must_use]
    pub const unsafe fn new(address: u64, len: usize) -> Self {
        Self { address, len }
    }

    /// Address on the GPU and number of values.
    #[must_use]
    pub const fn parts(self) -> (u64, usize) {
        (self.address, self.len)
    }
}

/// What moves numbers between the ranks. All ranks must make the same calls in the same order, with the same lengths.
pub trait Transport {
    /// Replaces the values by their sum over the ranks, which is the same on each of them, bit for bit.
    ///
    /// # Errors
    /// A rank is gone or does not answer in time.
    fn sum(&self, values: Values<'_>) -> anyhow::Result<()>;

    /// Puts what each rank gives behind one another into `all`, in the order of the ranks.
    ///
    /// # Errors
    /// As [`Transport::sum`].
    fn gather(&self, mine: &[u8], all: &mut [u8]) -> anyhow::Result<()>;

    /// Replaces the bytes by those of rank 0.
    ///
    /// # Errors
    /// As [`Transport::sum`].
    fn broadcast(&self, bytes: &mut [u8]) -> anyhow::Result<()>;

    /// Whether [`Values::Device`] can be summed.
    fn takes_device(&self) -> bool {
        false
    }
}

/// This process among those that train together.
pub struct Group {
    rank: usize,
    world: usize,
    local_rank: Option<usize>,
    local_world: Option<usize>,
    transport: Option<Box<dyn Transport>>,
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {}", self.rank, self.world)
    }
}

/// Length of what a rank can say of an error.
const MESSAGE: usize = 512;

impl Group {
    /// One process.
    #[must_use]
    pub const fn alone() -> Self {
        Self { rank: 0, world: 1, local_rank: None, local_world: None, transport: None }
    }

    /// The group that a launcher started for a run of `config`: waits until all its ranks are there. A rank that hears nothing of another
    /// for `timeout` gives up.
    ///
    /// # Errors
    /// The environment is no launcher's ([`Launch::read`]), the batch cannot be shared, no transport is built in, or not all ranks come.
    pub fn from_environment(config: &RunConfig, timeout: Duration) -> anyhow::Result<Self> {
        let Some(launch) = Launch::from_environment()? else { return Ok(Self::alone()) };
        let Launch { rank, world, local_rank, local_world, .. } = launch;
        let mut group = Self { rank, world, local_rank, local_world, transport: None };
        group.rows(config.train.batch)?;
        let placed = group.place(config)?;
        if let Some(meeting) = &launch.meeting {
            eprintln!("rank {rank} of {world} ({}), meeting at {}:{}", launch.launcher, meeting.host, meeting.port);
            group.transport = Some(open(&launch, &placed, timeout)?);
        }
        Ok(group)
    }

    /// A group over a transport of the caller's.
    #[must_use]
    pub fn over(rank: usize, world: usize, transport: Box<dyn Transport>) -> Self {
        Self { rank, world, local_rank: None, local_world: None, transport: Some(transport) }
    }

    /// Number of this process.
    #[must_use]
    pub const fn rank(&self) -> usize {
        self.rank
    }

    /// Number of processes.
    #[must_use]
    pub const fn world(&self) -> usize {
        self.world
    }

    /// Whether this is rank 0, which writes the files.
    #[must_use]
    pub const fn is_first(&self) -> bool {
        self.rank == 0
    }

    /// Rows of a batch of `batch` that are this rank's.
    ///
    /// # Errors
    /// The ranks cannot share them equally.
    pub fn rows(&self, batch: usize) -> anyhow::Result<Range<usize>> {
        let Self { rank, world, .. } = *self;
        ensure!(
            batch.is_multiple_of(world) && batch > 0,
            "train.batch is {batch}, the rows of all ranks together, expected a multiple of the {world} ranks"
        );
        let own = batch / world;
        Ok(rank * own..(rank + 1) * own)
    }

    /// `config` with this rank's device and share of the cores. `cuda` is the GPU of the number that the rank has on its machine.
    ///
    /// # Errors
    /// The config names one GPU for several ranks, or the launcher does not tell the number on the machine.
    pub fn place(&self, config: &RunConfig) -> anyhow::Result<RunConfig> {
        let mut config = config.clone();
        let t = &mut config.train;
        if self.world > 1 && t.engine == EngineKind::Torch && t.device.starts_with("cuda") {
            ensure!(
                t.device == "cuda",
                "train.device is `{}` for {} ranks, expected `cuda`: each rank takes the GPU of its number on its machine",
                t.device,
                self.world
            );
            let local =
                self.local_rank.context("train.device is `cuda`, but the launcher does not tell the rank's number on its machine")?;
            t.device = format!("cuda:{local}");
        }
        if t.threads == 0 {
            t.threads = (resolve_threads(0) / self.local_world.unwrap_or(1)).max(1);
        }
        Ok(config)
    }

    /// Whether gradients on the GPU can be summed there.
    #[must_use]
    pub fn takes_device(&self) -> bool {
        self.transport.as_ref().is_some_and(|t| t.takes_device())
    }

    /// Replaces `values` by their sum over the ranks.
    ///
    /// # Errors
    /// A rank is gone or does not answer.
    pub fn sum(&self, values: Values<'_>) -> anyhow::Result<()> {
        self.transport.as_ref().map_or(Ok(()), |t| t.sum(values)).with_context(|| self.lost())
    }

    /// What the ranks give, behind one another; each must give as much as the others.
    ///
    /// # Errors
    /// A rank is gone or does not answer.
    pub fn gather(&self, mine: &[u8]) -> anyhow::Result<Vec<u8>> {
        let Some(transport) = &self.transport else { return Ok(mine.to_vec()) };
        let mut all = vec![0; mine.len() * self.world];
        transport.gather(mine, &mut all).with_context(|| self.lost())?;
        Ok(all)
    }

    /// [`Group::gather`] of floats, bit for bit.
    ///
    /// # Errors
    /// A rank is gone or does not answer.
    pub fn gather_floats(&self, mine: &[f32]) -> anyhow::Result<Vec<f32>> {
        if self.world == 1 {
            return Ok(mine.to_vec());
        }
        let bytes: Vec<u8> = mine.iter().flat_map(|x| x.to_le_bytes()).collect();
        Ok(self.gather(&bytes)?.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    /// The outcomes of all rows of the batch from those of each rank's.
    ///
    /// # Errors
    /// A rank is gone or does not answer.
    pub fn gather_outcomes(&self, mine: Vec<RowOutcome>) -> anyhow::Result<Vec<RowOutcome>> {
        if self.world == 1 {
            return Ok(mine);
        }
        let flag = |b: bool| f32::from(u8::from(b));
        let values: Vec<f32> = mine.iter().flat_map(|o| [o.loss, o.q_halt, flag(o.halt), f32::from(o.cells), flag(o.exact)]).collect();
        let outcome = |v: &[f32]| RowOutcome { loss: v[0], q_halt: v[1], halt: v[2] > 0.0, cells: v[3] as u16, exact: v[4] > 0.0 };
        Ok(self.gather_floats(&values)?.chunks_exact(5).map(outcome).collect())
    }

    /// Sums of counts over the ranks.
    ///
    /// # Errors
    /// A rank is gone or does not answer.
    pub fn totals<const N: usize>(&self, mine: [usize; N]) -> anyhow::Result<[usize; N]> {
        let bytes: Vec<u8> = mine.iter().flat_map(|&n| (n as u64).to_le_bytes()).collect();
        let mut totals = [0; N];
        for (i, bytes) in self.gather(&bytes)?.chunks_exact(8).enumerate() {
            totals[i % N] += bytes.iter().rev().fold(0usize, |n, &b| n << 8 | usize::from(b));
        }
        Ok(totals)
    }

    /// What rank 0 makes, on every rank. Only rank 0 calls `make`.
    ///
    /// # Errors
    /// Rank 0 cannot make it (every rank then says why), or is gone.
    pub fn of_first(&self, make: impl FnOnce() -> anyhow::Result<Vec<u8>>) -> anyhow::Result<Vec<u8>> {
        let Some(transport) = &self.transport else { return make() };
        let made = self.settle(if self.is_first() { make() } else { Ok(Vec::new()) })?;
        let mut length = (made.len() as u64).to_le_bytes();
        transport.broadcast(&mut length).with_context(|| self.lost())?;
        let mut bytes = made;
        bytes.resize(usize::try_from(u64::from_le_bytes(length))?, 0);
        if !bytes.is_empty() {
            transport.broadcast(&mut bytes).with_context(|| self.lost())?;
        }
        Ok(bytes)
    }

    /// What rank 0 decides, on every rank: for what depends on the clock.
    ///
    /// # Errors
    /// Rank 0 is gone.
    pub fn decide<const N: usize>(&self, mine: [bool; N]) -> anyhow::Result<[bool; N]> {
        let Some(transport) = &self.transport else { return Ok(mine) };
        let mut bytes = mine.map(u8::from);
        transport.broadcast(&mut bytes).with_context(|| self.lost())?;
        Ok(bytes.map(|b| b != 0))
    }

    /// Goes on if every rank can: an error of one is an error of all, which names it.
    ///
    /// # Errors
    /// This rank's or another's.
    pub fn settle<T>(&self, mine: anyhow::Result<T>) -> anyhow::Result<T> {
        if self.world == 1 {
            return mine;
        }
        let mut message = [0; MESSAGE];
        if let Err(error) = &mine {
            let text = format!("{error:#}");
            let n = text.len().min(MESSAGE);
            message[..n].copy_from_slice(&text.as_bytes()[..n]);
        }
        let all = self.gather(&message)?;
        let mine = mine?;
        match all.chunks_exact(MESSAGE).enumerate().find(|(_, text)| text[0] != 0) {
            None => Ok(mine),
            Some((rank, text)) => bail!("rank {rank} cannot go on: {}", String::from_utf8_lossy(text).trim_end_matches('\0')),
        }
    }

    /// Checks that a check sum is the same on all ranks.
    ///
    /// # Errors
    /// It is not; the message names the ranks.
    pub fn agree(&self, what: &str, sum: u32) -> anyhow::Result<()> {
        let all: Vec<u32> =
            self.gather(&sum.to_le_bytes())?.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let others: Vec<String> = (1..all.len()).filter(|&r| all[r] != all[0]).map(|r| format!("{:08x} on rank {r}", all[r])).collect();
        ensure!(others.is_empty(), "{what} differ between the ranks: CRC-32 {:08x} on rank 0, {}", all[0], others.join(", "));
        Ok(())
    }

    fn lost(&self) -> String {
        format!(
            "rank {} of {} has lost the others: one has ended, whose own output says why, or has not answered in time",
            self.rank, self.world
        )
    }
}

/// CRC-32 of floats as they lie in files.
#[must_use]
pub fn checksum<'a>(parts: impl IntoIterator<Item = &'a [f32]>) -> u32 {
    let mut hash = crc32fast::Hasher::new();
    for value in parts.into_iter().flatten() {
        hash.update(&value.to_le_bytes());
    }
    hash.finalize()
}

#[cfg(feature = "tch")]
fn open(launch: &Launch, config: &RunConfig, timeout: Duration) -> anyhow::Result<Box<dyn Transport>> {
    let gloo = Box::new(gloo::Gloo::open(launch, timeout)?);
    #[cfg(feature = "nccl")]
    if let Some(gpu) = config.train.device.strip_prefix("cuda:") {
        return Ok(Box::new(nccl::Nccl::open(launch.rank, launch.world, gpu.parse()?, gloo)?));
    }
    let _ = config;
    Ok(gloo)
}

#[cfg(not(feature = "tch"))]
fn open(launch: &Launch, _: &RunConfig, _: Duration) -> anyhow::Result<Box<dyn Transport>> {
    bail!(
        "rank {} of {}: several ranks need gloo, which comes with libtorch, without which this hrm-train was built: `cargo xtask train ARGS` \
         fetches it and runs hrm-train with it",
        launch.rank,
        launch.world
    )
}
