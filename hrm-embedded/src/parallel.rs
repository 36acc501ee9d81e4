//! Work on several threads with results in the order of the input, for streams of any length.
//!
//! A reader thread pulls the input, workers map it, and the caller takes the results one by one. At most [`WINDOW`] items a thread
//! are under way, so memory stays bounded and a slow consumer slows the reader. The first result comes out as soon as it is
//! ready, even if the input has paused.

use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;

use hrm_core::solve::{Options, SolveError};

use crate::engine::{Model, Solved, Workspace};

/// Items under way for each thread.
pub const WINDOW: usize = 8;

type Job<T, R> = (T, Sender<thread::Result<R>>);

/// Results in input order; made by [`ordered`].
pub struct Ordered<R>(Source<R>);

enum Source<R> {
    Here(Box<dyn Iterator<Item = R>>),
    Threads(Receiver<Receiver<thread::Result<R>>>),
}

impl<R> std::fmt::Debug for Ordered<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ordered").finish_non_exhaustive()
    }
}

impl<R> Iterator for Ordered<R> {
    type Item = R;

    fn next(&mut self) -> Option<R> {
        match &mut self.0 {
            Source::Here(items) => items.next(),
            // A worker always answers: with the result, or with the panic that goes on here.
            Source::Threads(queue) => match queue.recv().ok()?.recv().ok()? {
                Ok(result) => Some(result),
                Err(panic) => resume_unwind(panic),
            },
        }
    }
}

/// Maps `items` with `f` on `threads` threads, each with a state of its own. With one thread everything happens in `next`.
pub fn ordered<T, R, S>(
    items: impl Iterator<Item = T> + Send + 'static,
    threads: NonZeroUsize,
    f: impl Fn(&mut S, T) -> R + Send + Sync + 'static,
) -> Ordered<R>
where
    T: Send + 'static,
    R: Send + 'static,
    S: Default + 'static,
{
    let threads = threads.get();
    if threads == 1 {
        let mut state = S::default();
        return Ordered(Source::Here(Box::new(items.map(move |item| f(&mut state, item)))));
    }
    let (queue, results) = sync_channel(WINDOW * threads);
    let (jobs, inbox) = sync_channel::<Job<T, R>>(threads);
    let (inbox, f) = (Arc::new(Mutex::new(inbox)), Arc::new(f));
    for _ in 0..threads {
        let (inbox, f) = (Arc::clone(&inbox), Arc::clone(&f));
        thread::spawn(move || work(&inbox, &*f));
    }
    thread::spawn(move || read(items, &queue, &jobs));
    Ordered(Source::Threads(results))
}

/// Hands out the items. Ends with the input, or when the consumer has gone.
fn read<T, R>(items: impl Iterator<Item = T>, queue: &SyncSender<Receiver<thread::Result<R>>>, jobs: &SyncSender<Job<T, R>>) {
    for item in items {
        let (answer, place) = channel();
        if queue.send(place).is_err() || jobs.send((item, answer)).is_err() {
            return;
        }
    }
}

fn work<T, R, S: Default>(inbox: &Mutex<Receiver<Job<T, R>>>, f: &impl Fn(&mut S, T) -> R) {
    let mut state = S::default();
    loop {
        let Ok(job) = inbox.lock().map(|inbox| inbox.recv()) else { return };
        let Ok((item, answer)) = job else { return };
        let result = catch_unwind(AssertUnwindSafe(|| f(&mut state, item)));
        if result.is_err() {
            state = S::default();
        }
        // Nobody waits for it once the consumer has gone.
        let _ = answer.send(result);
    }
}

impl Model {
    /// Solves a stream of puzzles, `[S]` tokens each, on `threads` threads; results come in input order.
    ///
    /// ```no_run
    /// # use std::{num::NonZeroUsize, sync::Arc};
    /// # use hrm_embedded::Model;
    /// let model = Arc::new(Model::builtin(9)?);
    /// let options = model.default_options();
    /// let puzzles: Vec<Vec<u8>> = vec![vec![1; 81]; 100];
    /// let solved = model.solve_all(puzzles, options, NonZeroUsize::new(2).unwrap()).filter(|s| s.is_ok()).count();
    /// # Ok::<(), hrm_embedded::ModelError>(())
    /// ```
    pub fn solve_all<I>(self: &Arc<Self>, puzzles: I, options: Options, threads: NonZeroUsize) -> Ordered<Result<Solved, SolveError>>
    where
        I: IntoIterator<Item = Vec<u8>>,
        I::IntoIter: Send + 'static,
    {
        let model = Arc::clone(self);
        ordered(puzzles.into_iter(), threads, move |workspace: &mut Workspace, tokens: Vec<u8>| {
            model.solve_in(workspace, &tokens, &options, |_, _| {})
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn threads(n: usize) -> NonZeroUsize {
        NonZeroUsize::new(n).unwrap()
    }

    #[test]
    fn results_keep_the_order_of_the_input() {
        for n in [1, 2, 5] {
            let out: Vec<u64> = ordered(0..200u64, threads(n), |count: &mut u64, i| {
                *count += 1;
                thread::sleep(Duration::from_micros(if i % 7 == 0 { 300 } else { 1 }));
                i * i
            })
            .collect();
            assert_eq!(out, (0..200).map(|i| i * i).collect::<Vec<_>>());
        }
    }

    #[test]
    fn endless_input_is_read_only_as_far_as_needed() {
        let (sender, seen) = channel();
        let items = (0u64..).inspect(move |&i| {
            let _ = sender.send(i);
        });
        let mut out = ordered(items, threads(2), |_: &mut (), i| i);
        assert_eq!(out.by_ref().take(10).last(), Some(9));
        thread::sleep(Duration::from_millis(50));
        assert!(seen.try_iter().last().is_some_and(|i| i < 10 + 2 * WINDOW as u64 + 5));
        drop(out);
    }

    #[test]
    fn a_panic_reaches_the_caller() {
        let mut out = ordered(0..4, threads(2), |_: &mut (), i| assert_ne!(i, 2));
        assert_eq!(out.by_ref().take(2).count(), 2);
        assert!(catch_unwind(AssertUnwindSafe(|| out.next())).is_err());
        assert_eq!(out.next(), Some(()));
    }
}
