//! A puzzle whose carry is on a device, as seen from the host.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use hrm_core::rng::{Purpose, Stream};
use hrm_core::{Broken, InputError, Machine, ModelView, Network, Plan, Residual, Run, Start};

use super::image::{COMMAND_TOKENS, RESULT_ANSWER};

/// Bits of a command's first word.
const RUN: u32 = 1;
const START: u32 = 2;
const START_RANDOMLY: u32 = 4;

/// Places in a command.
const START_STREAM: usize = 1;
const NOISE_STREAM: usize = 3;
const AMPLITUDE: usize = 5;

/// What is known of a start before any segment. It does not depend on the puzzle.
#[derive(Clone, Debug, Default)]
struct Started {
    answer: Vec<u8>,
    hash: u64,
    q: (i32, i32),
}

/// The starts of a model, each worked out once, by the core.
#[derive(Debug)]
pub struct Starts<'m> {
    view: ModelView<'m>,
    known: Mutex<HashMap<(u64, u64, bool), Arc<Started>>>,
}

impl<'m> Starts<'m> {
    /// Those of the model `view`.
    #[must_use]
    pub fn new(view: ModelView<'m>) -> Self {
        Self { view, known: Mutex::new(HashMap::new()) }
    }

    /// The start of (`seed`, `guess`): the model's own, or a random one whatever that is.
    fn get(&self, seed: u64, guess: u64, random: bool) -> Option<Arc<Started>> {
        let random = random || self.view.config().start == Start::Random;
        let key = if random { (seed, guess, true) } else { (0, 0, false) };
        let mut known = self.known.lock().ok()?;
        if let Some(started) = known.get(&key) {
            return Some(started.clone());
        }
        let network = Network::reference(self.view);
        let mut arena = vec![0; network.required_bytes(Plan::DEVICE).div_ceil(8)];
        let mut run = Run::new(network, &mut arena, Plan::DEVICE).ok()?;
        run.start(&vec![0; usize::from(self.view.config().tokens)], seed, guess).ok()?;
        let (answer, q) = (run.answer().to_vec(), run.q());
        if random {
            run.start_randomly(seed, guess);
        }
        let started = Arc::new(Started { answer, hash: run.hash(), q });
        known.insert(key, started.clone());
        Some(started)
    }
}

/// One place of a batch: the next command for the device, and what it told last.
#[derive(Debug)]
pub struct Slot<'s, 'm> {
    starts: &'s Starts<'m>,
    command: Vec<u32>,
    answer: Vec<u8>,
    hash: u64,
    q: (i32, i32),
    residual: Residual,
}

impl<'s, 'm> Slot<'s, 'm> {
    /// A slot for the model of `starts`, with nothing in it.
    #[must_use]
    pub fn new(starts: &'s Starts<'m>) -> Self {
        let tokens = usize::from(starts.view.config().tokens);
        let command = vec![0; COMMAND_TOKENS + tokens.div_ceil(4)];
        Self { starts, command, answer: vec![0; tokens], hash: 0, q: (0, 0), residual: Residual { change: 0, size: 0 } }
    }

    fn set_stream(&mut self, at: usize, stream: Stream) {
        self.command[at] = stream.start() as u32;
        self.command[at + 1] = (stream.start() >> 32) as u32;
    }

    /// The command to run the next segment.
    pub fn command(&mut self) -> &[u32] {
        self.command[0] |= RUN;
        &self.command
    }

    /// Takes in what the device has told of the segment that [`Slot::command`] asked for; returns how many cells of the answer changed.
    pub fn take(&mut self, result: &[u32]) -> u16 {
        // A start and its noise are done.
        self.command[0] = 0;
        self.command[AMPLITUDE] = 0;
        let wide = |at: usize| u64::from(result[at + 1]) << 32 | u64::from(result[at]);
        self.hash = wide(0);
        self.q = (result[2] as i32, result[3] as i32);
        self.residual = Residual { change: wide(4), size: wide(6) };
        let bytes = result[RESULT_ANSWER..].iter().flat_map(|w| w.to_le_bytes());
        let mut changed = 0;
        for (old, new) in self.answer.iter_mut().zip(bytes) {
            changed += u16::from(*old != new);
            *old = new;
        }
        changed
    }
}

impl Machine for Slot<'_, '_> {
    fn view(&self) -> &ModelView<'_> {
        &self.starts.view
    }

    fn start(&mut self, tokens: &[u8], seed: u64, guess: u64) -> Result<(), InputError> {
        let c = self.starts.view.config();
        if tokens.len() != usize::from(c.tokens) {
            return Err(InputError::Length { found: tokens.len(), expected: usize::from(c.tokens) });
        }
        if let Some((position, &found)) = tokens.iter().enumerate().find(|&(_, &t)| u16::from(t) >= c.vocab) {
            return Err(InputError::Token { position, found, vocab: c.vocab });
        }
        self.command.fill(0);
        self.command[0] = START;
        self.set_stream(START_STREAM, Stream::new(seed, Purpose::Start, guess));
        for (word, four) in self.command[COMMAND_TOKENS..].iter_mut().zip(tokens.chunks(4)) {
            *word = four.iter().rev().fold(0, |word, &t| word << 8 | u32::from(t));
        }
        let started = self.starts.get(seed, guess, false).ok_or(InputError::Broken(Broken::here()))?;
        (self.hash, self.q) = (started.hash, started.q);
        self.answer.clone_from(&started.answer);
        Ok(())
    }

    fn start_randomly(&mut self, seed: u64, guess: u64) {
        self.command[0] |= START_RANDOMLY;
        self.set_stream(START_STREAM, Stream::new(seed, Purpose::Start, guess));
        if let Some(started) = self.starts.get(seed, guess, true) {
            self.hash = started.hash;
        }
    }

    fn add_noise(&mut self, seed: u64, guess: u64, segment: u16, amplitude: u16) {
        self.set_stream(NOISE_STREAM, Stream::new(seed, Purpose::Noise, guess << 16 | u64::from(segment)));
        self.command[AMPLITUDE] = u32::from(amplitude);
    }

    fn answer(&self) -> &[u8] {
        &self.answer
    }

    fn hash(&self) -> u64 {
        self.hash
    }

    fn q(&self) -> (i32, i32) {
        self.q
    }

    fn residual(&self) -> Option<Residual> {
        Some(self.residual)
    }
}
