//! Times of several engines at the same work, in turns, so that a slow moment of the machine meets all of them.

use std::time::{Duration, Instant};

use anyhow::Result;

/// Rounds of turns.
const ROUNDS: u32 = 8;

/// One call of an engine.
pub(crate) type Call<'a> = Box<dyn FnMut() -> Result<()> + 'a>;

/// Least seconds of a call of each engine, over turns that take `budget` for each engine; at least one call a turn.
pub(crate) fn race<'a>(engines: impl IntoIterator<Item = Option<Call<'a>>>, budget: Duration) -> Result<Vec<Option<f64>>> {
    let mut engines: Vec<Option<Call<'a>>> = engines.into_iter().collect();
    let mut least: Vec<Option<f64>> = engines.iter().map(|e| e.as_ref().map(|_| f64::INFINITY)).collect();
    for _ in 0..ROUNDS {
        for (engine, least) in engines.iter_mut().zip(&mut least) {
            let (Some(call), Some(least)) = (engine, least) else { continue };
            let turn = Instant::now();
            while {
                let begin = Instant::now();
                call()?;
                *least = least.min(begin.elapsed().as_secs_f64());
                turn.elapsed() < budget / ROUNDS
            } {}
        }
    }
    Ok(least)
}
