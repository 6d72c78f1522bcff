//! The exit taken teaches the heads of the exits before it.
//!
//! Source of the rule: "Test-Time Specialization of Dynamic Neural Networks", Leroux, Katare, Ding,
//! Simoens, 2024: the prediction of the exit taken is the target of the earlier heads. That rule to the
//! letter is [`LearnerSettings::POSTER`]; whitening, soft targets and bounds are ours.

use crate::context::Adapted;
use crate::head::Head;
use crate::math::{Shift, subtract_outer};
use crate::prior::PriorSettings;

/// What the teacher's opinion is turned into.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// Its class, and nothing else: the poster's.
    Hard,
    /// Its probabilities p, sharpened to p^(1/T) (and made to sum to one), so that doubts are taught too.
    Soft {
        /// T, `0.1..=1`.
        temperature: f32,
    },
}

/// Settings of the learner.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearnerSettings {
    /// Whether anything is learned at all, class frequencies included.
    pub enabled: bool,
    /// η0: one update moves the sample's own logits by −η0·(p − q) at most; 0 leaves the heads alone. Stable
    /// below 4; 0.03 to 0.3 is reasonable.
    pub rate: f32,
    /// Whether updates run along whitened axes; otherwise they run along u.
    pub whitened: bool,
    /// Frames from which the device measures a whitener that the model does not ship; until then the
    /// head of that exit is not updated.
    pub measure: u32,
    /// What is taught.
    pub target: Target,
    /// λ: pull of every update towards the base head; 0.001 forgets in about 1,000 updates.
    pub anchor: f32,
    /// Confidence that the last exit must have to teach, `0..=1`: it is taken when nobody is sure.
    pub gate: f32,
    /// Largest ‖p − q‖ that counts in full; a longer one is shortened to it. At most √2 comes up.
    pub max_gradient: f32,
    /// Largest ‖W − W⁰‖ / ‖W⁰‖; a head beyond it is put back to its base when the window closes.
    pub max_distance: f32,
    /// Correction by the frequency of the classes.
    pub prior: PriorSettings,
}

impl Default for LearnerSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            rate: 0.1,
            whitened: true,
            measure: 500,
            target: Target::Hard,
            anchor: 0.0,
            gate: 0.5,
            max_gradient: 1.5,
            max_distance: 1.0,
            prior: PriorSettings::default(),
        }
    }
}

/// Gradients of a class below this are not worth a pass over its row: together they move a logit by
/// less than η0 times this.
const NEGLIGIBLE: f32 = 1e-3;

impl LearnerSettings {
    /// The poster to the letter: hard targets, plain gradient steps, no gate, no bound, no prior.
    pub const POSTER: Self = Self {
        enabled: true,
        rate: 0.1,
        whitened: false,
        measure: 500,
        target: Target::Hard,
        anchor: 0.0,
        gate: 0.0,
        max_gradient: 1.5,
        max_distance: f32::INFINITY,
        prior: PriorSettings {
            strength: 0.0,
            window: 500.0,
            smoothing: 100.0,
            doubt: 2.0,
            on_last: false,
        },
    };

    /// Whether every number is in the range in which the rule is stable.
    pub fn is_valid(&self) -> bool {
        let target = match self.target {
            Target::Hard => true,
            Target::Soft { temperature } => (0.1..=1.0).contains(&temperature),
        };
        (0.0..4.0).contains(&self.rate)
            && target
            && self.measure >= 2
            && (0.0..1.0).contains(&self.anchor)
            && (0.0..=1.0).contains(&self.gate)
            && self.max_gradient > 0.0
            && self.max_distance > 0.0
            && self.prior.is_valid()
    }

    /// What corrects the logits of an exit.
    pub(crate) fn shift<'a>(&self, adapted: &'a Adapted, exit: usize) -> Option<Shift<'a>> {
        let corrected = exit < adapted.heads.len() || self.prior.on_last;
        (self.prior.strength > 0.0 && corrected).then(|| Shift {
            offsets: adapted.prior.offsets(),
            doubt: self.prior.doubt,
        })
    }
}

/// One step of a head on one sample: `W ← W − s g dᵀ − λ(W − W⁰)`, `b ← b − s β g − λ(b − b⁰)`.
///
/// Plain: d = u, β = 1, s = η0 / (‖u‖² + 1); it moves the sample's own logits by −η0·g. Whitened: see
/// [`crate::whitener`].
#[derive(Debug)]
pub(crate) struct Step<'a> {
    /// g = p − q, K numbers, [pruned](Step::prune). Left as s g.
    pub(crate) gradient: &'a mut [f32],
    /// d, C numbers.
    pub(crate) direction: &'a [f32],
    /// β.
    pub(crate) bias_factor: f32,
    /// s.
    pub(crate) size: f32,
    /// λ.
    pub(crate) anchor: f32,
}

impl Step<'_> {
    /// Makes 0 what is not worth a pass; tells how many classes are to move.
    pub(crate) fn prune(gradient: &mut [f32]) -> usize {
        let mut moved = 0;
        for g in gradient {
            let worthwhile = g.abs() >= NEGLIGIBLE;
            *g = if worthwhile { *g } else { 0.0 };
            moved += usize::from(worthwhile);
        }
        moved
    }

    /// Takes the step.
    pub(crate) fn take(self, head: &mut Head, base: &Head) {
        if self.anchor > 0.0 {
            let pull = |numbers: &mut [f32], base: &[f32]| {
                for (w, w0) in numbers.iter_mut().zip(base) {
                    *w -= self.anchor * (*w - w0);
                }
            };
            pull(&mut head.weights, &base.weights);
            pull(&mut head.bias, &base.bias);
        }
        for (g, b) in self.gradient.iter_mut().zip(&mut head.bias) {
            *g *= self.size;
            *b -= *g * self.bias_factor;
        }
        subtract_outer(self.gradient, self.direction, &mut head.weights);
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use super::*;

    fn normalised(features: usize, seed: f32) -> Vec<f32> {
        let mut u: Vec<f32> = (0..features).map(|i| libm::sinf(seed + i as f32 * 1.7)).collect();
        let norm = libm::sqrtf(features as f32 / u.iter().map(|u| u * u).sum::<f32>());
        u.iter_mut().for_each(|u| *u *= norm);
        u
    }

    #[test]
    fn one_step_moves_the_samples_logits_by_the_rate_times_the_gradient() {
        let (classes, features) = (5, 64);
        let weights = (0..320).map(|i| libm::cosf(i as f32) * 0.1).collect();
        let base = Head::new(classes, features, weights, vec![0.1; 5]).unwrap();
        let u = normalised(features, 0.3);
        let (mut before, mut after) = (vec![0.0; 5], vec![0.0; 5]);
        let mut head = base.clone();
        head.logits(&u, &mut before);
        let gradient = [0.2, 0.3, -0.9, 0.399, 0.0001];
        let mut pruned = gradient;
        assert_eq!(Step::prune(&mut pruned), 4);
        let step = Step {
            gradient: &mut pruned,
            direction: &u,
            bias_factor: 1.0,
            size: 0.5 / (features + 1) as f32,
            anchor: 0.0,
        };
        step.take(&mut head, &base);
        head.logits(&u, &mut after);
        for k in 0..5 {
            assert!((after[k] - before[k] + 0.5 * gradient[k]).abs() < 1e-3, "class {k}");
        }
        assert_eq!(
            head.weights()[4 * features..],
            base.weights()[4 * features..],
            "not worth a pass"
        );
    }

    #[test]
    fn a_step_is_the_same_product_whatever_the_width() {
        for features in [1, 15, 16, 20, 33, 64] {
            let weights: Vec<f32> = (0..3 * features).map(|i| libm::cosf(i as f32)).collect();
            let base = Head::new(3, features, weights.clone(), vec![0.1; 3]).unwrap();
            let u = normalised(features, 0.7);
            let (gradient, size) = ([0.5, 0.0, -0.25], 0.125);
            let mut head = base.clone();
            let step = Step {
                gradient: &mut gradient.clone(),
                direction: &u,
                bias_factor: 0.5,
                size,
                anchor: 0.0,
            };
            step.take(&mut head, &base);
            for (k, g) in gradient.iter().enumerate() {
                for (i, u) in u.iter().enumerate() {
                    let at = k * features + i;
                    assert_eq!(head.weights()[at], weights[at] - size * g * u, "{features}, class {k}");
                }
                assert_eq!(head.bias()[k], 0.1 - size * g * 0.5);
            }
        }
    }

    #[test]
    fn without_a_gradient_the_anchor_brings_a_head_back_to_its_base() {
        let base = Head::new(2, 1, vec![1.0, -1.0], vec![0.0, 0.0]).unwrap();
        let mut head = Head::new(2, 1, vec![3.0, -3.0], vec![1.0, 1.0]).unwrap();
        for _ in 0..2_000 {
            let step = Step {
                gradient: &mut [0.0, 0.0],
                direction: &[1.0],
                bias_factor: 1.0,
                size: 0.1,
                anchor: 0.01,
            };
            step.take(&mut head, &base);
        }
        assert!(head.distance(&base) < 1e-3);
    }

    #[test]
    fn settings_outside_their_range_are_known() {
        assert!(LearnerSettings::default().is_valid() && LearnerSettings::POSTER.is_valid());
        for bad in [
            LearnerSettings {
                rate: 4.0,
                ..LearnerSettings::default()
            },
            LearnerSettings {
                rate: f32::NAN,
                ..LearnerSettings::default()
            },
            LearnerSettings {
                target: Target::Soft { temperature: 0.0 },
                ..LearnerSettings::default()
            },
            LearnerSettings {
                max_gradient: 0.0,
                ..LearnerSettings::default()
            },
        ] {
            assert!(!bad.is_valid(), "{bad:?}");
        }
    }
}
