//! Instructions of the parts and of the whole network.

use hrm_core::format::Block;
use hrm_core::kernels::{Bases, Columns, Requant};
use hrm_core::{Kernel, MemoryError, ModelView, Network, Plan, Run, Schedule};

/// A quantity that was counted.
#[derive(Clone, Copy, Debug)]
pub struct Count {
    /// What ran.
    pub what: &'static str,
    /// Instructions.
    pub instructions: u64,
    /// Multiply-accumulates, or for element-wise parts the elements.
    pub work: u64,
}

/// Rows of the products: the rows of one field of the 9x9 puzzle.
const ROWS: usize = 72;

/// Memory of [`parts`].
pub struct Buffers {
    x: [i16; ROWS * 48],
    delta: [i16; ROWS * 48],
    view: [i8; ROWS * 48],
    hidden: [i8; ROWS * 96],
    wide: [i16; ROWS * 192],
    table: [i32; ROWS * 192],
    sums: [i16; ROWS * 48],
    index: [u16; ROWS * 4],
}

impl Buffers {
    /// All zero.
    pub const EMPTY: Self = Self {
        x: [0; ROWS * 48],
        delta: [0; ROWS * 48],
        view: [0; ROWS * 48],
        hidden: [0; ROWS * 96],
        wide: [0; ROWS * 192],
        table: [0; ROWS * 192],
        sums: [0; ROWS * 48],
        index: [0; ROWS * 4],
    };
}

/// Counts the parts of one block of the 9x9 shape (`C` = 48, `I` = 96, four groupings), 72 rows at a time. Without `packed` on the weights of
/// the file.
pub fn parts(
    block: &Block<'_>,
    kernel: Kernel,
    packed: Option<&mut [i32]>,
    b: &mut Buffers,
    now: &mut dyn FnMut() -> u64,
    tell: &mut dyn FnMut(Count),
) {
    let (up, down) = (&block.mlp.up, &block.mlp.down);
    let plain = [Columns::new(up.weights, up.n, 0, 48, &[]), Columns::new(down.weights, down.n, 0, down.k, &[])];
    let [own, down_columns] = match packed {
        None => plain,
        Some(mut rest) => plain.map(|columns| {
            let (front, back) = core::mem::take(&mut rest).split_at_mut(kernel.packed_words(columns.n, columns.k));
            rest = back;
            kernel.pack(&columns, front).unwrap();
            columns.with_packed(front)
        }),
    };
    b.index.iter_mut().enumerate().for_each(|(i, e)| *e = (i * 7 % ROWS) as u16);
    for (i, x) in b.x.iter_mut().enumerate() {
        *x = (i as u32).wrapping_mul(0x9E37_79B9) as i32 as i16 >> 4;
    }
    let (uq, dq) =
        (Requant { shift: up.shift, mult: up.mult, bias: up.bias }, Requant { shift: down.shift, mult: down.mult, bias: down.bias });
    let mut count = |what, work: usize, before: u64, after: u64| tell(Count { what, instructions: after - before, work: work as u64 });
    let at = now();
    kernel.view8(&b.x, block.mlp.m_in, &mut b.view).unwrap();
    count("view8", ROWS * 48, at, now());
    let at = now();
    kernel.group_sums(&b.view, 48, &b.index, 4, &mut b.sums).unwrap();
    count("group sums", ROWS * 48 * 4, at, now());
    let at = now();
    kernel.accumulate(&b.view, &own, &mut b.table).unwrap();
    count("matmul 72x192x48", ROWS * 192 * 48, at, now());
    let at = now();
    let bases = Bases { table: &b.table, index: &b.index, groupings: 4 };
    kernel.gated(&b.view, &own, &uq, Some(&bases), block.mlp.gate_shift, &mut b.wide, &mut b.hidden).unwrap();
    count("gated 72x192x48", ROWS * 192 * 48, at, now());
    let at = now();
    kernel.project(&b.hidden, &down_columns, &dq, None, &mut b.delta).unwrap();
    count("project 72x48x96", ROWS * 48 * 96, at, now());
    let at = now();
    kernel.add_norm(&mut b.x, &b.delta, 48).unwrap();
    count("norm", ROWS * 48, at, now());
}

/// Runs one segment of `view` on a fixed puzzle and counts it; returns the state hash. Without `packed` on the weights of the file.
///
/// # Errors
/// Too little memory.
pub fn segment(
    view: ModelView<'_>,
    kernel: Kernel,
    plan: Plan,
    packed: Option<&mut [i32]>,
    arena: &mut [u64],
    now: &mut dyn FnMut() -> u64,
) -> Result<(Count, u64), MemoryError> {
    let network = match packed {
        Some(packed) => Network::new(view, kernel, packed)?,
        None => Network::in_place(view),
    };
    let mut run = Run::new(network, arena, plan)?;
    let mut tokens = [0; 81];
    for (i, t) in tokens.iter_mut().enumerate() {
        *t = 1 + (i * i % 10) as u8;
    }
    let found = run.start(&tokens[..usize::from(view.config().tokens)], 1, 0);
    debug_assert!(found.is_ok());
    let at = now();
    run.segment().unwrap();
    let instructions = now() - at;
    Ok((Count { what: "segment", instructions, work: view.segment_macs(Schedule::Cached) }, run.hash()))
}
