//! The network: a model bound to a kernel, with its weights as that kernel reads them. [`Run`] is one puzzle under way on it.

mod run;
mod watch;

use core::fmt;

use crate::config::{Config, Mixer};
use crate::format::{Block, ModelView};
use crate::groups::Groups;
use crate::kernels::{Columns, Kernel};
use crate::memory::{MemoryError, Plan, Regions};
use crate::parts::{Broken, OrBroken};
pub use crate::state::Residual;
pub use run::Run;
pub use watch::{Part, Place};

/// A model bound to a kernel. Cheap to copy; holds no state.
#[derive(Clone, Copy, Debug)]
pub struct Network<'m> {
    view: ModelView<'m>,
    kernel: Kernel,
    packed: &'m [i32],
    groups: Groups<'m>,
}

/// Tokens that the model cannot read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum InputError {
    /// Wrong number of tokens.
    Length {
        /// Tokens given.
        found: usize,
        /// Tokens of the model.
        expected: usize,
    },
    /// A token outside the vocabulary.
    Token {
        /// Position, from 0.
        position: usize,
        /// The token.
        found: u8,
        /// Size of the vocabulary.
        vocab: u16,
    },
    /// Nothing is wrong with the tokens, but the network cannot begin.
    Broken(Broken),
}

impl fmt::Display for InputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Length { found, expected } => write!(f, "the puzzle has {found} tokens, the model reads {expected}"),
            Self::Token { position, found, vocab } => write!(f, "token {found} at position {position}, expected 0 to {}", vocab - 1),
            Self::Broken(broken) => broken.fmt(f),
        }
    }
}

impl core::error::Error for InputError {}

impl From<Broken> for InputError {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

impl<'m> Network<'m> {
    /// Words of packed weights that `kernel` wants for `view`; 0 where it reads weights in place.
    #[must_use]
    pub fn packed_words(view: &ModelView<'_>, kernel: Kernel) -> usize {
        let c = view.config();
        (0..c.modules()).map(|m| c.layers(m)).sum::<usize>() * block_words(c, kernel)
    }

    /// Packs the weights of `view` for `kernel` into the first [`Network::packed_words`] words of `packed`.
    ///
    /// # Errors
    /// `packed` is too small.
    pub fn pack(view: &ModelView<'_>, kernel: Kernel, packed: &mut [i32]) -> Result<(), MemoryError> {
        let needed = Self::packed_words(view, kernel);
        let too_small = MemoryError { what: "packed weights", needed: 4 * needed, found: 4 * packed.len() };
        let c = *view.config();
        let mut rest = packed.get_mut(..needed).ok_or(too_small)?;
        let mut pack = |w: &Columns<'_>| {
            let (front, back) = core::mem::take(&mut rest).split_at_mut_checked(kernel.packed_words(w.n, w.k)).or_broken()?;
            rest = back;
            kernel.pack(w, front)
        };
        for m in 0..c.modules() {
            for l in 0..c.layers(m) {
                // What was needed was worked out for the same matrices: if they differ, it was too little.
                for_each_columns(&c, &view.block(m, l), &mut pack).map_err(|_| too_small)?;
            }
        }
        Ok(())
    }

    /// Binds `view` to `kernel`; `packed` must have [`Network::packed_words`] words and is filled here.
    ///
    /// # Errors
    /// `packed` is too small.
    pub fn new(view: ModelView<'m>, kernel: Kernel, packed: &'m mut [i32]) -> Result<Self, MemoryError> {
        Self::pack(&view, kernel, packed)?;
        Self::with_packed(view, kernel, packed)
    }

    /// Binds `view` to `kernel` and to the words that [`Network::pack`] made of the same view for the same kernel. Words of anything
    /// else give wrong answers, never undefined behaviour.
    ///
    /// # Errors
    /// `packed` is too small.
    pub fn with_packed(view: ModelView<'m>, kernel: Kernel, packed: &'m [i32]) -> Result<Self, MemoryError> {
        let needed = Self::packed_words(&view, kernel);
        match packed.get(..needed) {
            Some(packed) => Ok(Self { groups: Groups::new(&view), view, kernel, packed }),
            None => Err(MemoryError { what: "packed weights", needed: 4 * needed, found: 4 * packed.len() }),
        }
    }

    /// The network on the fastest kernel that reads the file's own weights ([`Kernel::best_in_place`]): no packed copy.
    #[must_use]
    pub fn in_place(view: ModelView<'m>) -> Self {
        Self { groups: Groups::new(&view), view, kernel: Kernel::best_in_place(), packed: &[] }
    }

    /// The network on the scalar kernel, which needs no packed weights.
    #[must_use]
    pub fn reference(view: ModelView<'m>) -> Self {
        Self { groups: Groups::new(&view), view, kernel: Kernel::REFERENCE, packed: &[] }
    }

    /// The model file.
    #[must_use]
    pub const fn view(&self) -> &ModelView<'m> {
        &self.view
    }

    /// The kernel.
    #[must_use]
    pub const fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// Bytes of the arena of one [`Run`].
    #[must_use]
    pub const fn required_bytes(&self, plan: Plan) -> usize {
        8 * Regions::new(self.view.config(), self.groups.rows, plan).words()
    }

    /// `plan` with as much memory for products of group sums as an arena of `bytes` bytes has room for, but no more than it asks for:
    /// with [`usize::MAX`] there the network runs as fast as the memory allows. If not even the least fits, [`Run::new`] says so.
    #[must_use]
    pub fn fitting(&self, plan: Plan, bytes: usize) -> Plan {
        let of = |products| Plan { products, ..plan };
        // What there may be: never too little, and never more than is of use.
        let (mut fits, mut most) = (0, plan.products.min(bytes));
        while fits < most {
            let middle = most - (most - fits) / 2;
            if self.required_bytes(of(middle)) <= bytes {
                fits = middle;
            } else {
                most = middle - 1;
            }
        }
        of(fits)
    }

    /// Index of the first packed word of a block.
    fn packed_block(&self, module: usize, layer: usize) -> &'m [i32] {
        let c = self.view.config();
        let words = block_words(c, self.kernel);
        let block = if module == 0 { layer } else { c.layers(0) + layer };
        self.packed.get(block * words..(block + 1) * words).unwrap_or(&[])
    }
}

/// The column blocks that a block's matrices are packed as, in the order the sublayers ask for them.
fn for_each_columns<'a>(c: &Config, block: &Block<'a>, f: &mut impl FnMut(&Columns<'a>) -> Result<(), Broken>) -> Result<(), Broken> {
    if let Some(a) = &block.attention {
        f(&Columns::new(a.qkv.weights, a.qkv.n, 0, a.qkv.k, &[]))?;
        f(&Columns::new(a.out.weights, a.out.n, 0, a.out.k, &[]))?;
    }
    if let Some(t) = &block.token_mlp {
        f(&Columns::new(t.up.weights, t.up.n, 0, t.up.k, &[]))?;
        f(&Columns::new(t.down.weights, t.down.n, 0, t.down.k, &[]))?;
    }
    let ch = usize::from(c.channels);
    for g in 0..c.mix_width() / ch.max(1) {
        f(&Columns::new(block.mlp.up.weights, block.mlp.up.n, g * ch, ch, &[]))?;
    }
    f(&Columns::new(block.mlp.down.weights, block.mlp.down.n, 0, block.mlp.down.k, &[]))
}

fn block_words(c: &Config, kernel: Kernel) -> usize {
    let (ch, inner, token_inner) = (usize::from(c.channels), usize::from(c.inner), usize::from(c.token_inner));
    let rows = c.rows();
    let mut words = (c.mix_width() / ch.max(1)) * kernel.packed_words(2 * inner, ch) + kernel.packed_words(ch, inner);
    if c.has_attention() {
        words += kernel.packed_words(3 * ch, ch) + kernel.packed_words(ch, ch);
    }
    if c.mixer == Mixer::TokenMlp {
        words += kernel.packed_words(2 * token_inner, rows) + kernel.packed_words(rows, token_inner);
    }
    words
}

impl ModelView<'_> {
    /// Group rows of grouping `g`: its groups, times the fields unless they are merged.
    pub(crate) fn groups_in(&self, g: usize) -> usize {
        let count = self.groups(g).iter().max().map_or(0, |&m| usize::from(m) + 1);
        count * if self.merges_fields(g) { 1 } else { usize::from(self.config().fields) }
    }

    /// Stacked group rows of all groupings, for [`crate::memory::required_bytes`].
    #[must_use]
    pub fn group_rows(&self) -> usize {
        (0..usize::from(self.config().groupings)).map(|g| self.groups_in(g)).sum()
    }
}
