//! Whether the workers go on: for whoever restarts an agent that hangs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A worker that has nothing more to do.
const ENDED: u64 = u64::MAX;

/// Since when each worker has been at what it is at.
#[derive(Debug)]
pub struct Pulse {
    start: Instant,
    /// In milliseconds from the start.
    since: Box<[AtomicU64]>,
}

impl Pulse {
    pub(crate) fn new(workers: usize, start: Instant) -> Self {
        Self {
            start,
            since: (0..workers).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// A worker turns to something else, or waits again.
    pub(crate) fn beat(&self, worker: usize, now: Instant) {
        let since = now.saturating_duration_since(self.start).as_millis();
        self.since[worker].store(u64::try_from(since).unwrap_or(ENDED), Ordering::Relaxed);
    }

    /// A worker has ended, or was never there.
    pub(crate) fn end(&self, worker: usize) {
        self.since[worker].store(ENDED, Ordering::Relaxed);
    }

    /// How long one of the workers has been at the same piece of work, at most: a stage of a batch, and what becomes of
    /// its frames. One that waits for frames counts as new several times a second, one that has ended not at all.
    pub fn longest(&self, now: Instant) -> Duration {
        let now = now.saturating_duration_since(self.start);
        let working = self.since.iter().map(|since| since.load(Ordering::Relaxed));
        working
            .filter(|since| *since != ENDED)
            .map(|since| now.saturating_sub(Duration::from_millis(since)))
            .max()
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worker_that_is_stuck_is_the_one_that_counts() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let pulse = Pulse::new(2, start);
        pulse.beat(0, at(900));
        pulse.beat(1, at(400));
        assert_eq!(pulse.longest(at(1000)), Duration::from_millis(600));
        pulse.beat(1, at(950));
        assert_eq!(pulse.longest(at(1000)), Duration::from_millis(100));
        pulse.end(0);
        assert_eq!(pulse.longest(at(1000)), Duration::from_millis(50));
        pulse.end(1);
        assert_eq!(pulse.longest(at(100_000)), Duration::ZERO);
    }
}
