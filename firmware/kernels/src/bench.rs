//! Instructions of the parts and of the whole network.

use hrm_core::format::Block;
use hrm_core::kernels::{Bases, Columns, Requant};
use hrm_core::{Kernel, MemoryError, ModelView, Network, Plan, Run, Schedule};

/// A quantity that was counted.
#[derive(Clone, Copy, Debug)]
pub struct Count {
    /// What ran.
    pub what: &'static str,
    /// Rows, outputs and inputs of a product; inputs are 0 for element-wise parts.
    pub shape: [usize; 3],
    /// Instructions.
    pub instructions: u64,
    /// Multiply-accumulates, or for element-wise parts the elements.
    pub work: u64,
}

/// Rows of the products: the rows of one field of the 9x9 puzzle.
const ROWS: usize = 72;
/// Groupings whose bases are added.
const GROUPINGS: usize = 4;
/// Most channels and hidden channels.
const CHANNELS: usize = 48;
const INNER: usize = 96;

/// Memory of [`parts`].
pub struct Buffers {
    x: [i16; ROWS * CHANNELS],
    delta: [i16; ROWS * CHANNELS],
    view: [i8; ROWS * CHANNELS],
    hidden: [i8; ROWS * INNER],
    wide: [i16; ROWS * 2 * INNER],
    table: [i32; ROWS * 2 * INNER],
    sums: [i16; ROWS * CHANNELS],
    index: [u16; ROWS * GROUPINGS],
}

impl Buffers {
    /// All zero.
    pub const EMPTY: Self = Self {
        x: [0; ROWS * CHANNELS],
        delta: [0; ROWS * CHANNELS],
        view: [0; ROWS * CHANNELS],
        hidden: [0; ROWS * INNER],
        wide: [0; ROWS * 2 * INNER],
        table: [0; ROWS * 2 * INNER],
        sums: [0; ROWS * CHANNELS],
        index: [0; ROWS * GROUPINGS],
    };
}

/// Counts the parts of one block of group sums, 72 rows at a time. Without `packed` on the weights of the file.
pub fn parts(
    block: &Block<'_>,
    kernel: Kernel,
    packed: Option<&mut [i32]>,
    b: &mut Buffers,
    now: &mut dyn FnMut() -> u64,
    tell: &mut dyn FnMut(Count),
) {
    let (up, down) = (&block.mlp.up, &block.mlp.down);
    let (width, inner) = (down.n, down.k);
    let plain = [Columns::new(up.weights, up.n, 0, width, &[]), Columns::new(down.weights, down.n, 0, down.k, &[])];
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
    let (x, delta) = (&mut b.x[..ROWS * width], &mut b.delta[..ROWS * width]);
    let (view, sums) = (&mut b.view[..ROWS * width], &mut b.sums[..ROWS * width]);
    let (table, wide) = (&mut b.table[..ROWS * up.n], &mut b.wide[..ROWS * up.n]);
    let hidden = &mut b.hidden[..ROWS * inner];
    let (uq, dq) =
        (Requant { shift: up.shift, mult: up.mult, bias: up.bias }, Requant { shift: down.shift, mult: down.mult, bias: down.bias });
    let mut count = |what, [n, k]: [usize; 2], before: u64, after: u64| {
        tell(Count { what, shape: [ROWS, n, k], instructions: after - before, work: (ROWS * n * k.max(1)) as u64 });
    };
    let at = now();
    kernel.view8(x, block.mlp.m_in, view).unwrap();
    count("view8", [width, 0], at, now());
    let at = now();
    kernel.group_sums(view, width, &b.index, GROUPINGS, sums).unwrap();
    count("group sums", [GROUPINGS * width, 0], at, now());
    let at = now();
    kernel.accumulate(view, &own, None, table).unwrap();
    count("matmul", [up.n, width], at, now());
    let at = now();
    let bases = Bases { table, index: &b.index, groupings: GROUPINGS };
    kernel.gated(view, &own, &uq, Some(&bases), block.mlp.gate_shift, wide, hidden).unwrap();
    count("gated", [up.n, width], at, now());
    let at = now();
    kernel.project(hidden, &down_columns, &dq, None, delta).unwrap();
    count("project", [width, inner], at, now());
    let at = now();
    kernel.add_norm(x, delta, width).unwrap();
    count("norm", [width, 0], at, now());
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
    Ok((Count { what: "segment", shape: [0; 3], instructions, work: view.segment_macs(Schedule::Cached) }, run.hash()))
}
