//! Ranks as threads of one process: what a group does with a transport that sums in the order of the ranks.

use std::rc::Rc;
use std::sync::{Arc, Barrier, Mutex};

use super::*;
use crate::engine::{Engine, RowOutcome, Tensors};
use crate::model_file::build_engine;

/// A table where the ranks leave what they give.
struct Table {
    given: Mutex<Vec<Vec<u8>>>,
    barrier: Barrier,
}

struct Threads {
    rank: usize,
    table: Arc<Table>,
}

impl Threads {
    fn all(&self, mine: &[u8]) -> Vec<Vec<u8>> {
        self.table.given.lock().unwrap()[self.rank] = mine.to_vec();
        self.table.barrier.wait();
        let all = self.table.given.lock().unwrap().clone();
        self.table.barrier.wait();
        all
    }
}

impl Transport for Threads {
    fn sum(&self, values: Values<'_>) -> anyhow::Result<()> {
        let Values::Host(values) = values else { bail!("in memory only") };
        let all = self.all(&values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>());
        for (i, value) in values.iter_mut().enumerate() {
            let terms = all.iter().map(|b| f32::from_le_bytes([b[4 * i], b[4 * i + 1], b[4 * i + 2], b[4 * i + 3]]));
            *value = terms.reduce(|a, b| a + b).unwrap();
        }
        Ok(())
    }

    fn gather(&self, mine: &[u8], all: &mut [u8]) -> anyhow::Result<()> {
        all.copy_from_slice(&self.all(mine).concat());
        Ok(())
    }

    fn broadcast(&self, bytes: &mut [u8]) -> anyhow::Result<()> {
        bytes.copy_from_slice(&self.all(bytes)[0]);
        Ok(())
    }
}

/// What `work` gives on each of `world` ranks.
pub(crate) fn ranks<T: Send>(world: usize, work: impl Fn(Group) -> T + Sync) -> Vec<T> {
    let table = Arc::new(Table { given: Mutex::new(vec![Vec::new(); world]), barrier: Barrier::new(world) });
    std::thread::scope(|scope| {
        let (table, work) = (&table, &work);
        let start = |rank| scope.spawn(move || work(Group::over(rank, world, Box::new(Threads { rank, table: Arc::clone(table) }))));
        let threads: Vec<_> = (0..world).map(start).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

#[test]
fn rows_are_shared_equally_or_not_at_all() {
    let rows = ranks(3, |group| (group.rows(12).unwrap(), group.rows(10).unwrap_err().to_string()));
    assert_eq!(rows.iter().map(|(r, _)| r.clone()).collect::<Vec<_>>(), [0..4, 4..8, 8..12]);
    assert_eq!(rows[1].1, "train.batch is 10, the rows of all ranks together, expected a multiple of the 3 ranks");
    assert!(Group::alone().rows(0).is_err());
}

#[test]
fn floats_and_outcomes_come_in_the_order_of_the_ranks() {
    let odd = f32::from_bits(0x7fa0_0001);
    let found = ranks(2, |group| {
        let me = group.rank() as f32;
        let mut sum = [me, 2.0];
        group.sum(Values::Host(&mut sum)).unwrap();
        let mine = RowOutcome { loss: me, q_halt: -me, halt: group.is_first(), cells: 7 + group.rank() as u16, exact: !group.is_first() };
        let bits: Vec<u32> = group.gather_floats(&[me, odd, -0.0]).unwrap().iter().map(|x| x.to_bits()).collect();
        (sum, bits, group.gather_outcomes(vec![mine]).unwrap(), group.decide([group.is_first(), false]).unwrap())
    });
    let bits = [0.0, odd, -0.0, 1.0, odd, -0.0].map(f32::to_bits).to_vec();
    let outcome = |loss: f32, halt| RowOutcome { loss, q_halt: -loss, halt, cells: 7 + loss as u16, exact: !halt };
    for rank in &found {
        assert_eq!(*rank, ([1.0, 4.0], bits.clone(), vec![outcome(0.0, true), outcome(1.0, false)], [true, false]));
    }
}

#[test]
fn what_rank_0_makes_reaches_all_and_so_does_an_error() {
    let made = |group: Group| group.of_first(|| Ok(vec![5; 1 + 99 * group.rank()])).unwrap();
    assert_eq!(ranks(3, made), [[5], [5], [5]]);
    let failed = ranks(2, |group| format!("{:#}", group.of_first(|| bail!("no such file")).unwrap_err()));
    assert_eq!(failed, ["no such file", "rank 0 cannot go on: no such file"]);
    let settled = ranks(3, |group| {
        let mine = if group.rank() == 2 { Err(anyhow::anyhow!("{}", "long".repeat(300))) } else { Ok(group.rank()) };
        group.settle(mine).map_err(|e| e.to_string())
    });
    assert!(settled[0].as_ref().unwrap_err().starts_with("rank 2 cannot go on: longlong"), "{settled:?}");
    assert_eq!(settled[0], settled[1]);
    assert_eq!(ranks(2, |group| group.settle(Ok(group.rank())).unwrap()), [0, 1]);
}

#[test]
fn ranks_that_differ_are_named() {
    let error = |sums: [u32; 3]| ranks(3, move |group| group.agree("the weights", sums[group.rank()]).map_err(|e| e.to_string()));
    assert!(error([7, 7, 7]).iter().all(Result::is_ok));
    let found = error([7, 8, 7]);
    assert_eq!(found[0], Err("the weights differ between the ranks: CRC-32 00000007 on rank 0, 00000008 on rank 1".to_owned()));
    assert_eq!(found[0], found[2]);
}

#[test]
fn each_rank_has_its_gpu_and_its_cores() {
    let group = |local_rank| Group { rank: 1, world: 2, local_rank, local_world: Some(2), transport: None };
    let config = |device: &str| {
        let text = format!("[data]\ngenerate = {{ n = 9 }}\n[train]\nengine = 'torch'\ndevice = '{device}'");
        RunConfig::parse(&text, &[]).unwrap()
    };
    let placed = group(Some(1)).place(&config("cuda")).unwrap().train;
    assert_eq!((placed.device.as_str(), placed.threads), ("cuda:1", (resolve_threads(0) / 2).max(1)));
    assert!(group(Some(1)).place(&config("cuda:0")).unwrap_err().to_string().contains("`cuda:0` for 2 ranks, expected `cuda`"));
    assert!(group(None).place(&config("cuda")).unwrap_err().to_string().contains("does not tell"));
    assert_eq!(Group::alone().place(&config("cuda:3")).unwrap().train.device, "cuda:3");
}

/// Three steps of a batch of 16, of which the rows that are not `own` are left blank.
fn trained(engine: &mut dyn Engine, own: Range<usize>) -> Tensors {
    let label = |b: usize, t: usize| (2 + (t / 4 * 2 + t / 8 + t % 4 + b) % 4) as u8;
    let tokens = |keep: &dyn Fn(usize) -> Option<u8>| -> Vec<u8> {
        (0..256).map(|i| if own.contains(&(i / 16)) { keep(i).unwrap_or(1) } else { 0 }).collect()
    };
    let labels = tokens(&|i| Some(label(i / 16, i % 16)));
    let inputs = tokens(&|i| (i * 7 % 5 < 3).then(|| label(i / 16, i % 16)));
    for step in 0..3 {
        let reset: Vec<bool> = (0..16).map(|b| (b + step) % 3 == 0).collect();
        assert_eq!(engine.train_segment(&inputs, &labels, &reset, 1e-2).unwrap().len(), 16);
    }
    engine.state().unwrap()
}

#[test]
fn engines_of_two_ranks_are_one_engine_bit_for_bit() {
    let text = "[task]\nsize = 4\n[data]\ngenerate = { n = 9 }\n[model]\nchannels = 8\ninner = 12\n[train]\nbatch = 16\ncarry_noise = 0.1\nthreads = 1";
    let config = RunConfig::parse(text, &[]).unwrap();
    let spec = config.spec().unwrap();
    let engine = || build_engine(&config, &spec, None).unwrap();
    let bits = |state: &Tensors| state.values().flat_map(|(_, v)| v.iter().map(|x| x.to_bits())).collect::<Vec<_>>();
    let mut alone = engine();
    let whole = trained(alone.as_mut(), 0..16);
    let found = ranks(2, |group| {
        let (group, mut engine) = (Rc::new(group), engine());
        engine.join(Rc::clone(&group)).unwrap();
        assert!(engine.join(Rc::clone(&group)).unwrap_err().to_string().contains("already"));
        let state = trained(engine.as_mut(), group.rows(16).unwrap());
        let sum = engine.checksum().unwrap();
        group.agree("the weights", sum).unwrap();
        // What one rank alone gets wrong is seen.
        let mut wrong = state.clone();
        let values = wrong.iter_mut().find(|(name, _)| name.starts_with("weights.")).map(|(_, (_, values))| values).unwrap();
        values[0] += group.rank() as f32;
        engine.restore(&wrong).unwrap();
        let error = group.agree("the weights", engine.checksum().unwrap()).unwrap_err().to_string();
        assert!(error.starts_with("the weights differ between the ranks: CRC-32") && error.ends_with("on rank 1"), "{error}");
        (state, sum)
    });
    for (state, sum) in found {
        assert_eq!((bits(&state), sum), (bits(&whole), alone.checksum().unwrap()));
    }
}

/// World size 1 over real NCCL: a sum of one rank is what it was, and the id travels through the transport in memory.
#[cfg(feature = "nccl")]
#[test]
fn one_gpu_sums_alone() {
    use cudarc::driver::CudaContext;
    if let Err(why) = nccl::Nccl::present() {
        println!("skipped: {why:#}");
        return;
    }
    if !CudaContext::device_count().is_ok_and(|n| n > 0) {
        println!("skipped: there is no GPU");
        return;
    }
    ranks(1, |group| {
        let memory = group.transport.unwrap();
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        let nccl = nccl::Nccl::open(0, 1, 0, memory).unwrap();
        let mut values = stream.clone_htod(&[1.5f32, -2.0, 3.25]).unwrap();
        {
            use cudarc::driver::DevicePtrMut as _;
            let (address, _order) = values.device_ptr_mut(&stream);
            // SAFETY: three f32 on GPU 0, made on its default stream.
            nccl.sum(Values::Device(unsafe { DeviceSlice::new(address, 3) })).unwrap();
        }
        assert_eq!(stream.clone_dtoh(&values).unwrap(), [1.5, -2.0, 3.25]);
        let mut host = [4.0f32];
        nccl.sum(Values::Host(&mut host)).unwrap();
        assert_eq!((host, nccl.takes_device()), ([4.0], true));
    });
}
