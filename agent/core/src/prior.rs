//! How often each class is seen here, and what that says about the next frame.
//!
//! A network is trained on classes that come equally often. Where some come more often than others,
//! Bayes' rule corrects its logits by the logarithm of their frequency, without touching a weight.
//! The frequencies are estimated from the frames themselves: each adds the posterior that the exit
//! taken gave it, corrected by the estimate so far, and old frames fade.

use alloc::vec;
use alloc::vec::Vec;

use crate::math::softmax;

/// Frames between two refreshes of the offsets: logarithms of K numbers are worth saving, and the
/// estimate hardly moves in between.
const REFRESH: u32 = 5;

/// Settings of the prior correction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PriorSettings {
    /// γ: share of the correction that is applied, `0..=1`; 0 is none. Whole corrections (1) make
    /// classes that come up anew hard to recognize.
    pub strength: f32,
    /// Frames after which a frame has faded to 1/e.
    pub window: f32,
    /// A0: frames of all classes alike that the estimate starts from and is drawn back to.
    pub smoothing: f32,
    /// β: where the correction overrules an exit's own class, the confidence is multiplied by
    /// (q_c / max q)^β, q the probabilities without correction; `0..=100`. So a frame of a class that is
    /// rare here goes on, to an exit that can tell.
    pub doubt: f32,
    /// Whether the last exit is corrected, too. It is the reference that audits compare with, so not
    /// unless asked for.
    pub on_last: bool,
}

impl Default for PriorSettings {
    fn default() -> Self {
        Self {
            strength: 0.35,
            window: 500.0,
            smoothing: 100.0,
            doubt: 2.0,
            on_last: false,
        }
    }
}

impl PriorSettings {
    /// Whether every number is in its range.
    pub fn is_valid(&self) -> bool {
        (0.0..=1.0).contains(&self.strength)
            && (1.0..=1e6).contains(&self.window)
            && (1e-3..=1e6).contains(&self.smoothing)
            && (0.0..=100.0).contains(&self.doubt)
    }
}

/// The estimate, and the offsets of the logits that follow from it. No memory beyond 4 K numbers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Prior {
    /// N: faded counts.
    counts: Vec<f32>,
    /// ln(π K): 0 for a class that comes as often as the average.
    log_odds: Vec<f32>,
    /// ℓ = γ ln(π K).
    offsets: Vec<f32>,
    scratch: Vec<f32>,
    since_refresh: u32,
}

impl Prior {
    /// Numbers per class.
    pub(crate) const NUMBERS: usize = 4;

    /// Nothing was seen: all classes alike.
    pub(crate) fn new(classes: usize) -> Self {
        Self {
            counts: vec![0.0; classes],
            log_odds: vec![0.0; classes],
            offsets: vec![0.0; classes],
            scratch: vec![0.0; classes],
            since_refresh: 0,
        }
    }

    /// Takes up counts that were saved; `None` where they cannot be counts.
    pub(crate) fn from_counts(counts: Vec<f32>, settings: &PriorSettings) -> Option<Self> {
        let sound = counts.iter().all(|n| (0.0..=1e6).contains(n)) && counts.iter().sum::<f32>() <= 1e6;
        sound.then(|| {
            let mut prior = Self::new(counts.len());
            prior.counts = counts;
            prior.refresh(settings);
            prior
        })
    }

    /// Forgets what was seen.
    pub(crate) fn reset(&mut self) {
        for numbers in [&mut self.counts, &mut self.log_odds, &mut self.offsets] {
            numbers.fill(0.0);
        }
        self.since_refresh = 0;
    }

    pub(crate) fn copy_from(&mut self, other: &Self) {
        self.counts.copy_from_slice(&other.counts);
        self.log_odds.copy_from_slice(&other.log_odds);
        self.offsets.copy_from_slice(&other.offsets);
        self.since_refresh = other.since_refresh;
    }

    pub(crate) fn counts(&self) -> &[f32] {
        &self.counts
    }

    /// ℓ, to be added to the K logits.
    pub(crate) fn offsets(&self) -> &[f32] {
        &self.offsets
    }

    /// Counts a frame by the logits, without ℓ, of the exit taken.
    pub(crate) fn observe(&mut self, logits: &[f32], settings: &PriorSettings) {
        for ((p, z), l) in self.scratch.iter_mut().zip(logits).zip(&self.log_odds) {
            *p = z + l;
        }
        softmax(&mut self.scratch);
        self.add(settings);
    }

    /// Counts a frame whose class is known.
    pub(crate) fn count(&mut self, class: usize, settings: &PriorSettings) {
        self.scratch.fill(0.0);
        self.scratch[class] = 1.0;
        self.add(settings);
    }

    fn add(&mut self, settings: &PriorSettings) {
        let keep = 1.0 - 1.0 / settings.window;
        for (n, p) in self.counts.iter_mut().zip(&self.scratch) {
            *n = *n * keep + p;
        }
        self.since_refresh += 1;
        if self.since_refresh >= REFRESH {
            self.refresh(settings);
        }
    }

    pub(crate) fn refresh(&mut self, settings: &PriorSettings) {
        self.since_refresh = 0;
        let classes = self.counts.len() as f32;
        let total: f32 = self.counts.iter().sum();
        let floor = settings.smoothing / classes;
        let scale = classes / (total + settings.smoothing);
        for ((n, log), l) in self.counts.iter().zip(&mut self.log_odds).zip(&mut self.offsets) {
            *log = libm::logf((n + floor) * scale);
            *l = settings.strength * *log;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logits of a frame that is surely of a class.
    fn sure(class: usize) -> [f32; 4] {
        let mut z = [0.0; 4];
        z[class] = 20.0;
        z
    }

    #[test]
    fn before_the_first_frame_nothing_is_corrected() {
        assert_eq!(Prior::new(4).offsets(), [0.0; 4]);
    }

    #[test]
    fn a_class_that_comes_often_gains_and_the_others_lose() {
        let settings = PriorSettings::default();
        let mut prior = Prior::new(4);
        (0..1_000).for_each(|i| prior.observe(&sure(i % 2), &settings));
        let l = prior.offsets();
        assert!((l[0] - l[1]).abs() < 0.01 && l[0] > 0.1, "{l:?}");
        assert!(l[2] < -0.3 && l[2] == l[3], "{l:?}");
        // π of a class not seen: (A0/4) / (window·(1 − e^(−2)) + A0), times γ.
        let share = 25.0 / (500.0 * (1.0 - libm::expf(-2.0)) + 100.0);
        assert!((l[2] - 0.35 * libm::logf(4.0 * share)).abs() < 0.01, "{l:?}");
    }

    #[test]
    fn all_classes_alike_stay_uncorrected() {
        let settings = PriorSettings::default();
        let mut prior = Prior::new(4);
        (0..4_000).for_each(|i| prior.observe(&sure(i % 4), &settings));
        assert!(prior.offsets().iter().all(|l| l.abs() < 0.01), "{:?}", prior.offsets());
    }

    #[test]
    fn what_is_not_seen_any_more_fades() {
        let settings = PriorSettings::default();
        let mut prior = Prior::new(4);
        (0..1_000).for_each(|_| prior.observe(&sure(0), &settings));
        (0..3_000).for_each(|_| prior.observe(&sure(1), &settings));
        let l = prior.offsets();
        assert!(l[1] > 0.3 && (l[0] - l[2]).abs() < 0.02, "{l:?}");
    }

    #[test]
    fn counts_survive_and_impossible_ones_are_refused() {
        let settings = PriorSettings::default();
        let mut prior = Prior::new(4);
        (0..500).for_each(|i| prior.observe(&sure(i % 3), &settings));
        let restored = Prior::from_counts(prior.counts().to_vec(), &settings).unwrap();
        prior.refresh(&settings);
        assert_eq!(restored.offsets(), prior.offsets());
        for bad in [f32::NAN, -1.0, f32::INFINITY, 1e9] {
            assert_eq!(Prior::from_counts(vec![0.0, bad], &settings), None);
        }
    }
}
