//! Gloo, which libtorch carries for c10d: `gloo.cpp` beside this file.

use std::ffi::{CString, c_char, c_int};
use std::ptr::NonNull;
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::launch::Launch;
use super::{Transport, Values};

/// `hrm_gloo` of `gloo.cpp`.
#[repr(C)]
struct Handle {
    _opaque: [u8; 0],
}

unsafe extern "C" {
    #[allow(clippy::too_many_arguments)]
    fn hrm_gloo_open(
        host: *const c_char,
        port: u16,
        serve: c_int,
        prefix: *const c_char,
        rank: c_int,
        world: c_int,
        timeout_ms: i64,
        error: *mut c_char,
        room: usize,
    ) -> *mut Handle;
    fn hrm_gloo_sum(group: *mut Handle, values: *mut f32, len: i64, error: *mut c_char, room: usize) -> c_int;
    fn hrm_gloo_gather(group: *mut Handle, mine: *const u8, len: i64, all: *mut u8, world: c_int, error: *mut c_char, room: usize)
    -> c_int;
    fn hrm_gloo_broadcast(group: *mut Handle, bytes: *mut u8, len: i64, error: *mut c_char, room: usize) -> c_int;
    fn hrm_gloo_close(group: *mut Handle);
}

/// Processes that are connected with each other.
pub(super) struct Gloo {
    group: NonNull<Handle>,
    world: usize,
}

/// Room for what went wrong.
struct Fault([u8; 1024]);

impl Fault {
    const fn new() -> Self {
        Self([0; 1024])
    }

    fn room(&mut self) -> (*mut c_char, usize) {
        (self.0.as_mut_ptr().cast(), self.0.len())
    }

    /// The first line: below it libtorch tells where in its source that was.
    fn text(&self) -> String {
        let end = self.0.iter().position(|&b| b == 0).unwrap_or(self.0.len());
        String::from_utf8_lossy(&self.0[..end]).lines().next().unwrap_or_default().to_owned()
    }
}

impl Gloo {
    /// Meets the other ranks.
    ///
    /// # Errors
    /// The meeting place cannot be reached or taken, or not all ranks come before the time is over.
    pub fn open(launch: &Launch, timeout: Duration) -> anyhow::Result<Self> {
        let meeting = launch.meeting.as_ref().context("one rank has nobody to meet")?;
        let (host, prefix) = (CString::new(meeting.host.as_str())?, CString::new(meeting.prefix.as_str())?);
        let (rank, world) = (c_int::try_from(launch.rank)?, c_int::try_from(launch.world)?);
        let mut fault = Fault::new();
        let (error, room) = fault.room();
        let serve = c_int::from(meeting.serve);
        let limit = i64::try_from(timeout.as_millis())?;
        // SAFETY: both texts end with a zero and outlive the call, `error` has `room` bytes.
        let group = unsafe { hrm_gloo_open(host.as_ptr(), meeting.port, serve, prefix.as_ptr(), rank, world, limit, error, room) };
        let Some(group) = NonNull::new(group) else {
            bail!(
                "rank {rank} of {world} has not met the others at {}:{} within {} s: {}",
                meeting.host,
                meeting.port,
                timeout.as_secs(),
                fault.text()
            )
        };
        Ok(Self { group, world: launch.world })
    }
}

fn done(ok: c_int, fault: &Fault) -> anyhow::Result<()> {
    if ok == 0 { bail!("{}", fault.text()) } else { Ok(()) }
}

impl Transport for Gloo {
    fn sum(&self, values: Values<'_>) -> anyhow::Result<()> {
        let Values::Host(values) = values else { bail!("gloo sums in memory only, not on a GPU") };
        let mut fault = Fault::new();
        let (error, room) = fault.room();
        // SAFETY: `group` is open until the drop, `values` has as many elements as said and is borrowed during the call, which waits.
        let ok = unsafe { hrm_gloo_sum(self.group.as_ptr(), values.as_mut_ptr(), i64::try_from(values.len())?, error, room) };
        done(ok, &fault)
    }

    fn gather(&self, mine: &[u8], all: &mut [u8]) -> anyhow::Result<()> {
        anyhow::ensure!(all.len() == mine.len() * self.world, "room for {} bytes, expected {}", all.len(), mine.len() * self.world);
        let mut fault = Fault::new();
        let (error, room) = fault.room();
        let (len, world) = (i64::try_from(mine.len())?, c_int::try_from(self.world)?);
        // SAFETY: as in `sum`; `all` has room for `world` times `len` bytes, `mine` is only read.
        let ok = unsafe { hrm_gloo_gather(self.group.as_ptr(), mine.as_ptr(), len, all.as_mut_ptr(), world, error, room) };
        done(ok, &fault)
    }

    fn broadcast(&self, bytes: &mut [u8]) -> anyhow::Result<()> {
        let mut fault = Fault::new();
        let (error, room) = fault.room();
        // SAFETY: as in `sum`.
        let ok = unsafe { hrm_gloo_broadcast(self.group.as_ptr(), bytes.as_mut_ptr(), i64::try_from(bytes.len())?, error, room) };
        done(ok, &fault)
    }
}

impl Drop for Gloo {
    fn drop(&mut self) {
        // SAFETY: opened once, closed once.
        unsafe { hrm_gloo_close(self.group.as_ptr()) }
    }
}
