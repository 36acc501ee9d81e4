//! The work behind the service: at most one puzzle or self-test under way, and what is owed to the host.

use hrm_core::format::TaskKind;
use hrm_core::iterate::Policy;
use hrm_core::schedule::DEFAULT_GUESSES;
use hrm_core::solve::{self, Guesses, Options, Perturb};
use hrm_core::task::{Grid, PuzzleError, Sudoku};
use hrm_core::{MemoryError, Network, Plan, Run};

use super::Board;
use crate::fmt::debug;
use crate::protocol::frame::Counters;
use crate::protocol::{
    Answer, Busy, Cancelled, Declined, Event, Fault, Info, MAX_KERNEL, Puzzle, Reason, Report, Request, Segment, SelfTest, Solve, Task,
    VERSION, Versions,
};

/// Segments of a first guess of a request that names none.
const SEGMENTS: u16 = 16;

#[derive(Debug)]
pub(super) struct Engine<'a, 'm> {
    run: Run<'a, 'm>,
    memory: &'a mut [u8],
    macs: u64,
    arena_bytes: usize,
    frame_bytes: u16,
    board: Board,
    job: Option<Job>,
}

/// The puzzle or test under way.
#[derive(Debug)]
struct Job {
    tag: u16,
    what: What,
    began: u64,
    /// Milliseconds since then.
    ms: u32,
    /// Budget of time, 0 without.
    time_ms: u32,
    segments: u32,
    /// No segment is run any more: the outcome is owed.
    end: Option<End>,
}

/// How a job has ended.
#[derive(Clone, Copy, Debug)]
enum End {
    /// With what came out.
    Done,
    /// Before its time, for this reason.
    Cut(Reason),
    /// Not by anything that was asked: what came out is worth nothing.
    Failed(Fault),
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there is no allocator, and one job at a time")]
enum What {
    Solve {
        guesses: Guesses,
        report: Report,
        /// A segment that the host should see.
        owed: Option<solve::Event>,
    },
    SelfTest {
        expected: u64,
        segments: u16,
    },
}

impl<'a, 'm> Engine<'a, 'm> {
    pub(super) fn new(
        network: Network<'m>,
        arenas: [&'a mut [u64]; 2],
        plan: Plan,
        memory: &'a mut [u8],
        board: Board,
        frame_bytes: usize,
    ) -> Result<Self, MemoryError> {
        let needed = 3 * usize::from(network.view().config().tokens);
        if memory.len() < needed {
            return Err(MemoryError { what: "solver memory", needed, found: memory.len() });
        }
        let arena_bytes = 8 * arenas.iter().map(|a| a.len()).sum::<usize>();
        let frame_bytes = u16::try_from(frame_bytes).unwrap_or(u16::MAX);
        let run = Run::new_in(network, arenas, plan)?;
        let macs = run.segment_macs();
        Ok(Self { run, memory, macs, arena_bytes, frame_bytes, board, job: None })
    }

    pub(super) const fn is_busy(&self) -> bool {
        self.job.is_some()
    }

    pub(super) fn stop(&mut self) {
        self.job = None;
    }

    /// Answers a request at once; the outcome of a puzzle or test is owed for later.
    ///
    /// `scratch`: at least `[S]` bytes.
    pub(super) fn handle(
        &mut self,
        (tag, request): (u16, &Request<'_>),
        now_ms: u64,
        counters: Counters,
        scratch: &mut [u8],
        reply: impl FnOnce(&Event<'_>),
    ) {
        debug!("request {}, tag {}", request.kind(), tag);
        let begun = match request {
            Request::Info(versions) => return self.info(*versions, counters, reply),
            Request::Ping(ping) => return reply(&Event::Pong(*ping)),
            Request::Cancel(cancel) => return reply(&Event::Cancelled(Cancelled { active: self.cancel(cancel.tag) })),
            Request::Solve(_) | Request::SelfTest if self.job.is_some() => {
                let (tag, segments) = self.job.as_ref().map_or((0, 0), |job| (job.tag, job.segments));
                return reply(&Event::Busy(Busy { tag, segments }));
            }
            Request::Solve(solve) => self.begin_solve(solve, scratch).map(|what| (what, solve.time_ms)),
            Request::SelfTest => self.begin_self_test().map(|what| (what, 0)),
        };
        match begun {
            Ok((what, time_ms)) => self.job = Some(Job { tag, what, began: now_ms, ms: 0, time_ms, segments: 0, end: None }),
            Err(fault) => reply(&Event::Error(fault)),
        }
    }

    fn info(&self, theirs: Versions, counters: Counters, reply: impl FnOnce(&Event<'_>)) {
        let Some(protocol) = Versions::OURS.common(theirs) else {
            return reply(&Event::Error(Fault::Version { found: theirs.max, spoken: Versions::OURS }));
        };
        let view = self.run.network().view();
        let (header, kernel) = (view.header(), self.run.network().kernel().name());
        debug_assert_eq!(protocol, VERSION);
        reply(&Event::Info(Info {
            protocol,
            versions: Versions::OURS,
            firmware: self.board.firmware,
            model: header.name(),
            crc: view.crc(),
            task: match header.task {
                TaskKind::Grid => Task::Grid,
                TaskKind::Sudoku(n) => Task::Sudoku(n),
            },
            tokens: header.config.tokens,
            vocab: header.config.vocab,
            q_scale: view.heads().q_scale,
            kernel: kernel.get(..MAX_KERNEL).unwrap_or(kernel),
            macs: self.macs,
            model_bytes: view.bytes().len() as u32,
            arena_bytes: self.arena_bytes as u32,
            solver_bytes: self.memory.len() as u32,
            flash_bytes: self.board.flash_bytes,
            ram_bytes: self.board.ram_bytes,
            frame_bytes: self.frame_bytes,
            self_test: view.self_test().is_some(),
            busy: self.is_busy(),
            frames: (counters.good, counters.damaged, counters.oversized),
        }));
    }

    /// Whether there was something to stop.
    fn cancel(&mut self, tag: u16) -> bool {
        let Some(job) = self.job.as_mut().filter(|job| job.tag == tag && job.end.is_none()) else { return false };
        job.end = Some(End::Cut(Reason::Cancelled));
        if let What::Solve { owed, .. } = &mut job.what {
            *owed = None;
        }
        true
    }

    fn begin_solve(&mut self, solve: &Solve<'_>, scratch: &mut [u8]) -> Result<What, Fault> {
        let sudoku = self.sudoku();
        let (guesses, select) = if sudoku.is_some() { (DEFAULT_GUESSES, solve::Select::Verify) } else { (1, solve::Select::First) };
        let options = Options {
            policy: Policy::budget(if solve.segments == 0 { SEGMENTS } else { solve.segments }),
            guesses: if solve.guesses == 0 { guesses } else { solve.guesses },
            select: solve.select.map_or(select, Into::into),
            // A trace shows the guesses of a verified solve, whoever selects: a vote runs those behind the first solved one too.
            perturb: if solve.report == Report::Trace && sudoku.is_some() { Perturb::Assume } else { Perturb::Auto },
            noise: 0,
            seed: solve.seed,
        };
        let tokens = match solve.puzzle {
            Puzzle::Tokens(tokens) => tokens,
            Puzzle::Text(text) => self.read(text, scratch)?,
        };
        let guesses = Guesses::begin(&mut self.run, tokens, options, self.memory)?;
        Ok(What::Solve { guesses, report: solve.report, owed: None })
    }

    /// Tokens of a text, in `scratch` of at least `[S]`.
    fn read<'s>(&self, text: &str, scratch: &'s mut [u8]) -> Result<&'s [u8], Fault> {
        let config = self.run.network().view().config();
        let count = usize::from(config.tokens);
        let tokens = scratch.get_mut(..count).ok_or(Fault::Other)?;
        match (self.sudoku(), Grid::new(config.tokens, config.vocab)) {
            (Some(sudoku), _) => sudoku.parse(text, tokens),
            (None, Some(grid)) => grid.parse_integers(text, tokens),
            // Tokens are bytes: text cannot name all of a larger vocabulary.
            (None, None) => return Err(Fault::Other),
        }
        .map_err(|e| match e {
            PuzzleError::Length { found, .. } => Fault::Length { found: found as u32, expected: count as u32 },
            other => other.into(),
        })?;
        Ok(tokens)
    }

    fn begin_self_test(&mut self) -> Result<What, Fault> {
        let test = self.run.network().view().self_test().ok_or(Fault::NoSelfTest)?;
        self.run.start(test.tokens, test.seed, 0).map_err(|e| Fault::from(solve::SolveError::Input(e)))?;
        Ok(What::SelfTest { expected: test.hash, segments: test.segments })
    }

    fn sudoku(&self) -> Option<Sudoku> {
        match self.run.network().view().header().task {
            TaskKind::Sudoku(n) => Sudoku::new(usize::from(n)),
            TaskKind::Grid => None,
        }
    }

    /// Whether [`Engine::work`] has something to do before the transport takes what is owed.
    pub(super) fn can_work(&self) -> bool {
        self.job.as_ref().is_some_and(Job::can_work)
    }

    /// Runs at most one segment.
    pub(super) fn work(&mut self, now_ms: u64) {
        let Some(job) = &mut self.job else { return };
        if job.end.is_some() {
            return;
        }
        // The clock stands still during a step: the time of a segment is seen in the next one, so the outcome comes a step later.
        job.ms = u32::try_from(now_ms.saturating_sub(job.began)).unwrap_or(u32::MAX);
        if job.is_finished() {
            job.end = Some(End::Done);
        } else if job.time_ms > 0 && job.ms >= job.time_ms {
            job.end = Some(End::Cut(Reason::Time));
        }
        if !job.can_work() {
            return;
        }
        let end = match &mut job.what {
            What::Solve { guesses, report, owed } => guesses.step(&mut self.run, self.memory).map(|event| match event {
                Some(event) => {
                    job.segments = event.segments;
                    *owed = (*report != Report::Outcome).then_some(event);
                    None
                }
                None => Some(End::Done),
            }),
            What::SelfTest { .. } => self.run.segment().map(|_| {
                job.segments += 1;
                None
            }),
        };
        job.end = end.unwrap_or_else(|broken| {
            let (_file, _line) = broken.place();
            debug!("internal error at {}:{}", _file, _line);
            Some(End::Failed(Fault::Other))
        });
    }

    /// Hands the next event that is owed to `put`; returns whether there was one. The last one ends the job.
    pub(super) fn offer(&mut self, put: impl FnOnce(u16, &Event<'_>)) -> bool {
        let has_verifier = self.sudoku().is_some();
        let Some(job) = &mut self.job else { return false };
        if let What::Solve { guesses, report, owed } = &mut job.what
            && let Some(event) = owed.take()
        {
            let cells = if *report == Report::Trace { guesses.answer_now(&self.run, self.memory) } else { &[] };
            put(job.tag, &Event::Segment(segment(&event, cells)));
            return true;
        }
        let declined = match job.end {
            Some(End::Done) => None,
            Some(End::Cut(reason)) => Some(reason),
            Some(End::Failed(fault)) => {
                put(job.tag, &Event::Error(fault));
                self.job = None;
                return true;
            }
            None => return false,
        };
        match &job.what {
            What::Solve { guesses, .. } => {
                let outcome = guesses.outcome(self.memory);
                put(job.tag, &last(&outcome, has_verifier, declined, job.ms));
            }
            What::SelfTest { expected, .. } => put(job.tag, &tested(job, *expected, self.run.hash(), declined)),
        }
        self.job = None;
        true
    }
}

impl Job {
    /// Whether the last segment has been run.
    fn is_finished(&self) -> bool {
        match &self.what {
            What::Solve { guesses, .. } => guesses.finished(),
            What::SelfTest { segments, .. } => self.segments >= u32::from(*segments),
        }
    }

    fn can_work(&self) -> bool {
        let waits = matches!(&self.what, What::Solve { report: Report::Trace, owed: Some(_), .. });
        self.end.is_none() && !waits
    }
}

fn segment<'c>(event: &solve::Event, cells: &'c [u8]) -> Segment<'c> {
    let s = &event.segment;
    Segment {
        guess: event.guess,
        segment: s.index,
        changed: s.changed,
        q: s.q,
        residual: s.residual.map(|r| (r.change, r.size)),
        hash: s.hash,
        verified: s.verified,
        halt: s.halt.map(Into::into),
        cells,
    }
}

/// The last event of a puzzle. A task with a verifier has an answer only if that accepts it; a run cut short has one only if it is verified.
fn last<'c>(outcome: &solve::Outcome<'c>, has_verifier: bool, declined: Option<Reason>, ms: u32) -> Event<'c> {
    let solve::Outcome { verified, guess, guesses, segments, confidence, hash, .. } = *outcome;
    let halt = outcome.halt.map(Into::into);
    let shown = verified || (declined.is_none() && !has_verifier);
    match outcome.answer {
        Some(cells) if shown && declined != Some(Reason::Cancelled) => {
            Event::Answer(Answer { cells, verified, guess, guesses, segments, halt, confidence, hash, ms })
        }
        _ => Event::Declined(Declined { reason: declined.unwrap_or(Reason::Unsolved), guesses, segments, halt, hash, ms }),
    }
}

fn tested(job: &Job, expected: u64, found: u64, declined: Option<Reason>) -> Event<'static> {
    let (segments, ms) = (job.segments, job.ms);
    match declined {
        None => Event::SelfTest(SelfTest { expected, found, segments: segments as u16, ms }),
        Some(reason) => Event::Declined(Declined { reason, guesses: 0, segments, halt: None, hash: found, ms }),
    }
}

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;
    use crate::protocol::Ping;
    use hrm_core::{ModelView, testing};

    /// What a device says of a network that cannot go on: an error, then it answers as before. Never a grid, never that there is none.
    #[test]
    fn a_broken_network_is_an_error() {
        let file = testing::random_model(&testing::sudoku_config(), 1).unwrap();
        let network = Network::reference(ModelView::new_checked(file.as_slice()).unwrap());
        let (mut arena, mut memory, mut scratch) = (vec![0; network.required_bytes(Plan::DEVICE) / 8], vec![0; 3 * 81], [0; 81]);
        let board = Board { firmware: "test", flash_bytes: 0, ram_bytes: 0 };
        let mut engine = Engine::new(network, [&mut arena, &mut []], Plan::DEVICE, &mut memory, board, 100).unwrap();
        let text = ".".repeat(81);
        let solve =
            Solve { puzzle: Puzzle::Text(&text), segments: 0, guesses: 0, time_ms: 0, seed: 0, select: None, report: Report::Progress };
        for request in [Request::Solve(solve), Request::SelfTest, Request::Solve(solve)] {
            let mut refused = false;
            engine.handle((7, &request), 0, Counters::default(), &mut scratch, |event| {
                refused = matches!(event, Event::Error(Fault::NoSelfTest))
            });
            if refused {
                continue;
            }
            testing::damage(&mut engine.run);
            engine.work(1);
            let mut said = Vec::new();
            while engine.offer(|tag, event| said.push((tag, matches!(event, Event::Error(Fault::Other))))) {}
            assert_eq!((said, engine.is_busy()), (vec![(7, true)], false));
            let mut pong = false;
            let ping = Request::Ping(Ping { value: 3 });
            engine.handle((8, &ping), 2, Counters::default(), &mut scratch, |event| pong = matches!(event, Event::Pong(p) if p.value == 3));
            assert!(pong);
        }
    }
}
