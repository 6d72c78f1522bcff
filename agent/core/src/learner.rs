//! The poster's rule: the exit taken teaches the heads of the exits before it.
//!
//! Source: "Test-Time Specialization of Dynamic Neural Networks", Leroux, Katare, Ding, Simoens, 2024.

use crate::head::Head;

/// Settings of the learner.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearnerSettings {
    /// Whether heads are updated at all.
    pub enabled: bool,
    /// η0: one update moves the sample's own logits by −η0·(p − q). Stable below 4; 0.03 to 0.3 is reasonable.
    pub rate: f32,
    /// λ: pull of every update towards the base head; 0.001 forgets in about 1,000 updates.
    pub anchor: f32,
    /// Confidence that the last exit must have to teach, `0..=1`: it is taken when nobody is sure.
    pub gate: f32,
    /// Largest ‖W − W⁰‖ / ‖W⁰‖; a head beyond it is put back to its base when the window closes.
    pub max_distance: f32,
}

impl Default for LearnerSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            rate: 0.1,
            anchor: 1e-4,
            gate: 0.5,
            max_distance: 1.0,
        }
    }
}

impl LearnerSettings {
    /// Whether every number is in the range in which the rule is stable.
    pub fn is_valid(&self) -> bool {
        (0.0..4.0).contains(&self.rate)
            && (0.0..1.0).contains(&self.anchor)
            && (0.0..=1.0).contains(&self.gate)
            && self.max_distance > 0.0
    }

    /// One step of `head` on features u towards the class `target`, where p are the probabilities that it gave.
    ///
    /// `g = p − q`, `W ← W − η0/(C+1) · g uᵀ − λ(W − W⁰)`, likewise b. As ‖[u;1]‖² = C + 1, this moves the
    /// sample's logits by −η0·g.
    pub(crate) fn step(&self, head: &mut Head, base: &Head, u: &[f32], p: &[f32], target: usize) {
        let features = head.features();
        let rate = self.rate / (features + 1) as f32;
        let rows = head
            .weights
            .chunks_exact_mut(features)
            .zip(base.weights.chunks_exact(features));
        for (class, ((row, base_row), (b, base_b))) in rows.zip(head.bias.iter_mut().zip(&base.bias)).enumerate() {
            let g = p[class] - if class == target { 1.0 } else { 0.0 };
            let step = rate * g;
            for ((w, w0), u) in row.iter_mut().zip(base_row).zip(u) {
                *w = *w - step * u - self.anchor * (*w - w0);
            }
            *b = *b - step - self.anchor * (*b - base_b);
        }
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
        let base = Head::new(
            classes,
            features,
            (0..320).map(|i| libm::cosf(i as f32) * 0.1).collect(),
            vec![0.1; 5],
        )
        .unwrap();
        let settings = LearnerSettings {
            rate: 0.5,
            anchor: 0.0,
            ..LearnerSettings::default()
        };
        let u = normalised(features, 0.3);
        let (mut before, mut after, mut p) = (vec![0.0; 5], vec![0.0; 5], vec![0.0; 5]);
        let mut head = base.clone();
        head.logits(&u, &mut before);
        head.probabilities(&u, &mut p);
        settings.step(&mut head, &base, &u, &p, 2);
        head.logits(&u, &mut after);
        for k in 0..classes {
            let g = p[k] - if k == 2 { 1.0 } else { 0.0 };
            assert!((after[k] - before[k] + 0.5 * g).abs() < 1e-4, "class {k}");
        }
    }

    #[test]
    fn without_a_gradient_the_anchor_brings_a_head_back_to_its_base() {
        let base = Head::new(2, 1, vec![1.0, -1.0], vec![0.0, 0.0]).unwrap();
        let mut head = Head::new(2, 1, vec![3.0, -3.0], vec![1.0, 1.0]).unwrap();
        let settings = LearnerSettings {
            rate: 0.0,
            anchor: 0.01,
            ..LearnerSettings::default()
        };
        for _ in 0..2_000 {
            settings.step(&mut head, &base, &[1.0], &[0.5, 0.5], 0);
        }
        assert!(head.distance(&base) < 1e-3);
    }
}
