//! How long to wait before the next attempt to connect.

use std::time::Duration;

/// Exponential backoff with jitter.
///
/// Delay number n is drawn evenly from the upper half of `first · 2ⁿ`, at most `longest`: a broker
/// that comes back after an outage is not met by its whole fleet at once, and no device asks at
/// once again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Ceiling of the first delay.
    pub first: Duration,
    /// Ceiling of all delays.
    pub longest: Duration,
}

impl Default for Backoff {
    /// One second, up to one minute.
    fn default() -> Self {
        Self {
            first: Duration::from_secs(1),
            longest: Duration::from_secs(60),
        }
    }
}

/// The delays of one link.
#[derive(Debug)]
pub(crate) struct Delays {
    backoff: Backoff,
    ceiling: Duration,
    random: u64,
}

impl Delays {
    /// `seed` must differ between devices, or they wait in step.
    pub(crate) fn new(backoff: Backoff, seed: u64) -> Self {
        let ceiling = backoff.first.min(backoff.longest);
        Self {
            backoff,
            ceiling,
            random: seed,
        }
    }

    /// The delay after a connection that stood for `stood` (zero if it never did).
    ///
    /// One that stood longer than its delay's ceiling starts the series again. One that did not is
    /// a failure like any other, whatever it got done: a broker that accepts and then throws out,
    /// or two devices that share an id and take the session from each other, must not make a busy
    /// loop.
    pub(crate) fn next(&mut self, stood: Duration) -> Duration {
        if stood > self.ceiling {
            self.ceiling = self.backoff.first.min(self.backoff.longest);
        }
        let half = self.ceiling / 2;
        let delay = half + half.mul_f64(self.fraction());
        self.ceiling = self.ceiling.saturating_mul(2).min(self.backoff.longest);
        delay
    }

    /// The next of SplitMix64, in [0, 1). Jitter needs no better generator.
    fn fraction(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::{Backoff, Delays};
    use proptest::prelude::*;
    use std::time::Duration;

    proptest! {
        #[test]
        fn delays_double_within_their_jitter_until_the_longest(seed: u64, first in 1..5_000u64, longest in 1..600_000u64) {
            let backoff = Backoff {
                first: Duration::from_millis(first),
                longest: Duration::from_millis(longest),
            };
            let mut delays = Delays::new(backoff.clone(), seed);
            let mut ceiling = backoff.first.min(backoff.longest);
            for _ in 0..40 {
                let delay = delays.next(Duration::ZERO);
                prop_assert!(delay >= ceiling / 2 && delay <= ceiling, "{delay:?} of {ceiling:?}");
                ceiling = (ceiling * 2).min(backoff.longest);
            }
        }

        #[test]
        fn devices_do_not_wait_in_step(seed: u64) {
            let delays = |seed| {
                let mut delays = Delays::new(Backoff::default(), seed);
                (0..4).map(|_| delays.next(Duration::ZERO)).collect::<Vec<_>>()
            };
            prop_assert_eq!(delays(seed), delays(seed));
            prop_assert_ne!(delays(seed), delays(seed ^ 1));
        }
    }

    #[test]
    fn a_connection_that_stood_starts_the_series_again_and_a_short_one_does_not() {
        let mut delays = Delays::new(Backoff::default(), 1);
        for _ in 0..10 {
            delays.next(Duration::ZERO);
        }
        assert!(delays.next(Duration::from_secs(59)) >= Duration::from_secs(30));
        assert!(delays.next(Duration::from_secs(61)) <= Duration::from_secs(1));
    }
}
