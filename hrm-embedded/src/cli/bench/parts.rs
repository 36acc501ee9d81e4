//! Where the time of a guess goes: every part of its segments, and what is around them.

use std::hint::black_box;
use std::time::{Duration, Instant};

use hrm_core::network::{Part, Place};
use hrm_core::solve::Options;
use hrm_core::{Aligned, Broken, Plan, Run, Solver};
use hrm_embedded::Model;
use serde::Serialize;

/// Time of one part of a segment, of all calls together.
#[derive(Serialize)]
pub(super) struct PartFigure {
    name: String,
    us: f64,
    percent: f64,
}

impl PartFigure {
    /// A row of the table.
    pub(super) fn text(&self) -> String {
        format!("  {:24} {:>9.2} us {:>6.1} %", self.name, self.us, self.percent)
    }
}

/// What time is counted for.
#[derive(Clone, Copy, PartialEq)]
enum Key {
    /// Memory divided, puzzle checked, the carry's start.
    Start,
    Segment(Part),
    Hash,
    Residual,
    /// The verifier, the policy, the choice among answers.
    Loop,
}

impl Key {
    fn name(self) -> String {
        let layer = |p: Place| format!("{}{}", if p.l_cycle.is_some() { "L" } else { "H" }, p.layer);
        match self {
            Self::Start => "start".to_owned(),
            Self::Segment(Part::Input) => "input".to_owned(),
            Self::Segment(Part::Attention(p)) => format!("{} attention", layer(p)),
            Self::Segment(Part::TokenMlp(p)) => format!("{} token mlp", layer(p)),
            Self::Segment(Part::GatedMlp(p)) => format!("{} gated mlp", layer(p)),
            Self::Segment(Part::Heads) => "heads".to_owned(),
            Self::Hash => "state hash".to_owned(),
            Self::Residual => "residual".to_owned(),
            Self::Loop => "verifier, loop".to_owned(),
        }
    }

    /// The same part of any cycle.
    const fn of(part: Part) -> Self {
        const fn anywhere(p: Place) -> Place {
            Place { h_cycle: 0, l_cycle: if p.l_cycle.is_some() { Some(0) } else { None }, layer: p.layer }
        }
        Self::Segment(match part {
            Part::Attention(p) => Part::Attention(anywhere(p)),
            Part::TokenMlp(p) => Part::TokenMlp(anywhere(p)),
            Part::GatedMlp(p) => Part::GatedMlp(anywhere(p)),
            Part::Input | Part::Heads => part,
        })
    }
}

/// Seconds of a part.
struct Lap {
    key: Key,
    /// In this segment.
    now: f64,
    /// In the segment where it took least.
    least: f64,
}

/// Every part so far, and when the last of them ended.
struct Laps {
    laps: Vec<Lap>,
    last: Instant,
}

impl Laps {
    fn lap(&mut self, key: Key) {
        let now = Instant::now();
        self.of(key).now += (now - self.last).as_secs_f64();
        self.last = now;
    }

    fn of(&mut self, key: Key) -> &mut Lap {
        let at = self.laps.iter().position(|lap| lap.key == key).unwrap_or_else(|| {
            self.laps.push(Lap { key, now: 0.0, least: f64::INFINITY });
            self.laps.len() - 1
        });
        &mut self.laps[at]
    }

    /// The segment and what follows it are over.
    fn end_segment(&mut self) {
        self.lap(Key::Loop);
        // The loop asks for both as well, after every segment.
        let twice = self.of(Key::Hash).now + self.of(Key::Residual).now;
        let around = &mut self.of(Key::Loop).now;
        *around = (*around - twice).max(0.0);
        for lap in self.laps.iter_mut().filter(|lap| lap.now > 0.0 || lap.key == Key::Loop) {
            lap.least = lap.least.min(lap.now);
            lap.now = 0.0;
        }
    }
}

/// Microseconds a segment of every part, in the segment where it took least: all do the same work, and some are not interrupted. The
/// guesses that fill the budget run `options` on `puzzle`.
pub(super) fn breakdown(model: &Model, puzzle: &[u8], options: &Options, budget: Duration) -> anyhow::Result<Vec<PartFigure>> {
    let network = *model.network();
    let mut arena = Aligned::new(network.required_bytes(Plan::HOST).div_ceil(8));
    let mut memory = vec![0; Solver::required_bytes(puzzle.len(), options)];
    let mut laps = Laps { laps: Vec::new(), last: Instant::now() };
    let mut segments = 0;
    let begin = Instant::now();
    while segments == 0 || begin.elapsed() < budget {
        laps.last = Instant::now();
        segments = 0;
        let mut run = Run::new(network, &mut arena, Plan::HOST)?;
        let mut solver = Solver::new(&mut run, puzzle, *options, &mut memory)?;
        let mut step = |laps: &mut Laps| {
            solver.step_by(|run| {
                match segments {
                    0 => laps.lap(Key::Start),
                    _ => laps.end_segment(),
                }
                segments += 1;
                let changed = run.segment_parts(&mut |part| laps.lap(Key::of(part)))?;
                black_box(run.hash());
                laps.lap(Key::Hash);
                black_box(run.residual());
                laps.lap(Key::Residual);
                Ok::<_, Broken>(changed)
            })
        };
        while step(&mut laps)?.is_some() {}
        laps.end_segment();
    }
    // A guess has one start.
    laps.of(Key::Start).least /= f64::from(segments);
    let total: f64 = laps.laps.iter().map(|lap| lap.least).sum();
    let figure = |lap: Lap| PartFigure { name: lap.key.name(), us: lap.least * 1e6, percent: 100.0 * lap.least / total };
    Ok(laps.laps.into_iter().map(figure).collect())
}
