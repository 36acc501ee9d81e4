//! Owned models: bytes, packed weights and memory kept together, for programs with an allocator.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{env, fs, io};

use hrm_core::format::{AlignedBytes, TaskKind};
use hrm_core::iterate::{Halt, Policy};
use hrm_core::schedule::DEFAULT_GUESSES;
use hrm_core::solve::{Event, Options, Outcome, Perturb, Select, SolveError, Solver};
use hrm_core::task::Sudoku;
use hrm_core::{Aligned, Broken, Config, FormatError, Kernel, MemoryError, ModelView, Network, Plan, Run};
use self_cell::self_cell;

use crate::builtin;

/// Largest model file that [`Model::open`] reads, in bytes: far above any model of this family, far below any machine's memory.
pub const MAX_FILE: u64 = 256 << 20;

/// Why a model cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The file cannot be read.
    #[error("cannot read the model {}: {cause}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// The file is larger than [`MAX_FILE`].
    #[error("{}: {found} bytes are too many for a model file, at most {MAX_FILE} are read", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        found: u64,
    },
    /// The bytes are no valid model.
    #[error("{name}: {cause}")]
    Format {
        /// File name, or `model` for bytes from memory.
        name: String,
        /// What is wrong.
        cause: FormatError,
    },
    /// No model of this size was embedded when the program was built.
    #[error("no embedded model for Sudoku of size {size} (embedded: {}); pass --model FILE", sizes_text())]
    NotBuiltIn {
        /// Rows of the puzzle.
        size: usize,
    },
    /// `HRM_KERNEL` names something that this machine does not offer.
    #[error("HRM_KERNEL={found}: this machine offers no such kernel; it has {}", kernels_text())]
    Kernel {
        /// The value of the variable.
        found: String,
    },
    /// Memory of the wrong size; it would be a fault of this crate.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

fn sizes_text() -> String {
    let all: Vec<String> = builtin::sizes().map(|n| n.to_string()).collect();
    if all.is_empty() { "none".into() } else { all.join(", ") }
}

fn kernels_text() -> String {
    Kernel::available().map(Kernel::name).collect::<Vec<_>>().join(", ")
}

/// The kernel to use: that of the environment variable `HRM_KERNEL`, else the fastest of this CPU.
///
/// # Errors
/// The variable names a kernel that this machine does not offer.
pub fn chosen_kernel() -> Result<Kernel, ModelError> {
    match env::var_os("HRM_KERNEL").filter(|v| !v.is_empty()) {
        None => Ok(Kernel::best()),
        Some(name) => {
            let found = name.to_string_lossy().into_owned();
            Kernel::by_name(&found).ok_or(ModelError::Kernel { found })
        }
    }
}

enum Bytes {
    Static(&'static [u8]),
    Owned(AlignedBytes),
}

struct Parts {
    bytes: Bytes,
    packed: Aligned<i32>,
}

impl Parts {
    fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Static(b) => b,
            Bytes::Owned(b) => b.as_slice(),
        }
    }
}

self_cell!(
    struct Cell {
        owner: Parts,
        #[covariant]
        dependent: Network,
    }
);

/// A checked model with its weights packed for this CPU. Solving needs only `&self`: share it between threads, one [`Workspace`] each.
pub struct Model(Cell);

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model").field("header", self.view().header()).field("kernel", &self.kernel()).finish()
    }
}

/// Memory of one solver at a time; it grows to what the model needs.
#[derive(Debug, Default)]
pub struct Workspace {
    arena: Aligned<u64>,
    memory: Vec<u8>,
}

/// What came out of one puzzle: an owned [`Outcome`].
#[derive(Clone, Debug, PartialEq)]
pub struct Solved {
    /// The chosen answer, `[S]` tokens; none if [`Select::Verify`] found no valid one.
    pub answer: Option<Vec<u8>>,
    /// Whether the task's verifier accepts it.
    pub verified: bool,
    /// Guess that it came from, from 0.
    pub guess: u16,
    /// Guesses begun.
    pub guesses: u16,
    /// Segments run, all guesses together.
    pub segments: u32,
    /// Why the last guess stopped.
    pub halt: Option<Halt>,
    /// Share of the guesses that ended with this answer.
    pub confidence: f32,
    /// State hash after the last segment: the same for the same model, puzzle, settings and seed, on every machine.
    pub hash: u64,
    /// Wall time.
    pub time: Duration,
}

impl Solved {
    fn new(outcome: &Outcome<'_>, time: Duration) -> Self {
        Self {
            answer: outcome.answer.map(<[u8]>::to_vec),
            verified: outcome.verified,
            guess: outcome.guess,
            guesses: outcome.guesses,
            segments: outcome.segments,
            halt: outcome.halt,
            confidence: outcome.confidence,
            hash: outcome.hash,
            time,
        }
    }

    /// The answer, unless the task has a verifier and it did not accept it: what may be shown as a solution.
    #[must_use]
    pub fn trusted(&self, model: &Model) -> Option<&[u8]> {
        self.answer.as_deref().filter(|_| self.verified || model.sudoku().is_none())
    }
}

impl Model {
    /// Reads and checks a `.hrm` file.
    ///
    /// # Errors
    /// The file cannot be read, is too large or is no valid model; `HRM_KERNEL` is wrong.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ModelError> {
        let path = path.as_ref();
        let read = |cause| ModelError::Read { path: path.to_owned(), cause };
        let found = fs::metadata(path).map_err(read)?.len();
        if found > MAX_FILE {
            return Err(ModelError::TooLarge { path: path.to_owned(), found });
        }
        let bytes = fs::read(path).map_err(read)?;
        Self::build(Bytes::Owned(AlignedBytes::new(&bytes)), &path.display().to_string(), chosen_kernel()?)
    }

    /// Checks the bytes of a `.hrm` file (a copy is kept).
    ///
    /// # Errors
    /// They are no valid model; `HRM_KERNEL` is wrong.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ModelError> {
        Self::build(Bytes::Owned(AlignedBytes::new(bytes)), "model", chosen_kernel()?)
    }

    /// The embedded Sudoku model of this size (4, 6 or 9).
    ///
    /// # Errors
    /// The build had no model of this size; `HRM_KERNEL` is wrong.
    pub fn builtin(size: usize) -> Result<Self, ModelError> {
        let bytes = u8::try_from(size).ok().and_then(builtin::bytes).ok_or(ModelError::NotBuiltIn { size })?;
        Self::build(Bytes::Static(bytes), &format!("embedded model sudoku-{size}x{size}"), chosen_kernel()?)
    }

    /// The same model on another kernel, whatever `HRM_KERNEL` says.
    ///
    /// # Errors
    /// Never for a model that was loaded before.
    pub fn with_kernel(&self, kernel: Kernel) -> Result<Self, ModelError> {
        let bytes = match &self.0.borrow_owner().bytes {
            Bytes::Static(b) => Bytes::Static(b),
            Bytes::Owned(b) => Bytes::Owned(b.clone()),
        };
        Self::build(bytes, "model", kernel)
    }

    fn build(bytes: Bytes, name: &str, kernel: Kernel) -> Result<Self, ModelError> {
        let format = |cause| ModelError::Format { name: name.to_owned(), cause };
        let mut parts = Parts { bytes, packed: Aligned::default() };
        let view = ModelView::new_checked(parts.bytes()).map_err(format)?;
        let mut packed = Aligned::new(Network::packed_words(&view, kernel));
        Network::pack(&view, kernel, &mut packed)?;
        parts.packed = packed;
        // The view borrows the bytes, which move into the cell: it is made again there.
        let cell = Cell::try_new(parts, |parts| {
            let view = ModelView::new_checked(parts.bytes()).map_err(format)?;
            Ok::<_, ModelError>(Network::with_packed(view, kernel, &parts.packed)?)
        })?;
        #[cfg(feature = "log")]
        log::debug!("{name}: {} bytes, kernel {}", cell.borrow_owner().bytes().len(), kernel.name());
        Ok(Self(cell))
    }

    /// The network bound to the packed weights.
    #[must_use]
    pub fn network(&self) -> &Network<'_> {
        self.0.borrow_dependent()
    }

    /// The checked file.
    #[must_use]
    pub fn view(&self) -> &ModelView<'_> {
        self.network().view()
    }

    /// The architecture.
    #[must_use]
    pub fn config(&self) -> &Config {
        self.view().config()
    }

    /// The kernel in use.
    #[must_use]
    pub fn kernel(&self) -> Kernel {
        self.network().kernel()
    }

    /// The task's rules; none for a token grid without a verifier.
    #[must_use]
    pub fn sudoku(&self) -> Option<Sudoku> {
        match self.view().header().task {
            TaskKind::Sudoku(n) => Sudoku::new(usize::from(n)),
            TaskKind::Grid => None,
        }
    }

    /// Runs the file's self-test: the expected and the found state hash; none if the file has no test.
    ///
    /// # Errors
    /// Never for a model that was loaded: its tokens were checked. [`SolveError::Broken`] would be a mistake of this program.
    pub fn self_test(&self) -> Result<Option<(u64, u64)>, SolveError> {
        let Some(test) = self.view().self_test() else { return Ok(None) };
        let network = *self.network();
        let mut arena = Aligned::new(network.required_bytes(Plan::HOST).div_ceil(8));
        let mut run = Run::new(network, &mut arena, Plan::HOST).map_err(SolveError::Memory)?;
        run.start(test.tokens, test.seed, 0).map_err(SolveError::Input)?;
        for _ in 0..test.segments {
            run.segment()?;
        }
        Ok(Some((test.hash, run.hash())))
    }

    /// Settings that fit to this model: 16 segments; 64 guesses and the verifier if its task has one ([`Perturb::Assume`], most puzzles need
    /// one or two), else one guess.
    #[must_use]
    pub fn default_options(&self) -> Options {
        let (guesses, select) = if self.sudoku().is_some() { (DEFAULT_GUESSES, Select::Verify) } else { (1, Select::First) };
        Options { policy: Policy::budget(16), guesses, select, perturb: Perturb::Auto, noise: 0, seed: 0 }
    }

    /// Solves one puzzle, `[S]` tokens, with memory of its own.
    ///
    /// # Errors
    /// Tokens that are not the model's, contradicting givens, a selection that the task does not offer.
    pub fn solve(&self, tokens: &[u8], options: &Options) -> Result<Solved, SolveError> {
        self.solve_in(&mut Workspace::default(), tokens, options, |_, _| {})
    }

    /// Solves one puzzle in `workspace`; `observe` sees the solver after every segment.
    ///
    /// # Errors
    /// As [`Model::solve`].
    pub fn solve_in(
        &self,
        workspace: &mut Workspace,
        tokens: &[u8],
        options: &Options,
        observe: impl FnMut(&mut Solver<'_, '_, '_>, &Event),
    ) -> Result<Solved, SolveError> {
        self.solve_by(workspace, tokens, options, |run| Ok(run.segment()?), observe)
    }

    /// [`Model::solve_in`] with segments computed by `segment`, which has the contract of [`Run::segment`].
    pub(crate) fn solve_by<E: From<SolveError> + From<Broken>>(
        &self,
        workspace: &mut Workspace,
        tokens: &[u8],
        options: &Options,
        mut segment: impl FnMut(&mut Run<'_, '_>) -> Result<u16, E>,
        mut observe: impl FnMut(&mut Solver<'_, '_, '_>, &Event),
    ) -> Result<Solved, E> {
        let begin = Instant::now();
        let network = *self.network();
        let words = network.required_bytes(Plan::HOST).div_ceil(8);
        if workspace.arena.len() < words {
            workspace.arena = Aligned::new(words);
        }
        let needed = Solver::required_bytes(tokens.len(), options);
        if workspace.memory.len() < needed {
            workspace.memory.resize(needed, 0);
        }
        let mut run = Run::new(network, &mut workspace.arena, Plan::HOST).map_err(SolveError::Memory)?;
        let mut solver = Solver::new(&mut run, tokens, *options, &mut workspace.memory)?;
        while let Some(event) = solver.step_by(&mut segment)? {
            observe(&mut solver, &event);
        }
        Ok(Solved::new(&solver.outcome(), begin.elapsed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared<T: Send + Sync>() {}

    #[test]
    fn models_may_be_shared_between_threads() {
        shared::<Model>();
    }

    #[test]
    fn errors_say_what_to_do() {
        let missing = Model::open("/no/such/model.hrm").unwrap_err().to_string();
        assert!(missing.starts_with("cannot read the model /no/such/model.hrm: "), "{missing}");
        let empty = Model::from_bytes(&[]).unwrap_err().to_string();
        assert_eq!(empty, "model: model file has 0 bytes, 112 are needed: it is cut off");
        let size = Model::builtin(5).unwrap_err().to_string();
        assert!(size.starts_with("no embedded model for Sudoku of size 5") && size.ends_with("pass --model FILE"), "{size}");
    }
}
