//! Whether a camera sees today what it usually sees.

use alloc::vec;
use alloc::vec::Vec;

/// Frames that the usual mix remembers.
const MEMORY: f32 = 50_000.0;
/// Frames before which nothing is usual.
const FEWEST: f32 = 500.0;

/// The classes that a camera has predicted so far.
#[derive(Clone, Debug)]
pub(crate) struct Usual {
    shares: Vec<f32>,
    frames: f32,
}

impl Usual {
    pub(crate) fn new(classes: usize) -> Self {
        Self {
            shares: vec![0.0; classes],
            frames: 0.0,
        }
    }

    /// Takes up the counts of a window. Gives how far its mix is from the usual one: the total variation, `0..=1`, less
    /// what chance makes of so few frames.
    pub(crate) fn take(&mut self, counts: &[u64]) -> f32 {
        let n = counts.iter().sum::<u64>() as f32;
        if n == 0.0 {
            return 0.0;
        }
        let (mut apart, mut chance) = (0.0, 0.0);
        for (usual, count) in self.shares.iter().zip(counts) {
            apart += (*count as f32 / n - usual).abs();
            // The mean deviation of a share, of which both are measured.
            let spread = usual * (1.0 - usual) * (1.0 / n + 1.0 / self.frames.max(1.0));
            chance += libm::sqrtf(2.0 * spread.max(0.0) / core::f32::consts::PI);
        }
        let known = self.frames >= FEWEST;
        self.frames += n;
        let weight = n / self.frames;
        for (usual, count) in self.shares.iter_mut().zip(counts) {
            *usual += weight * (*count as f32 / n - *usual);
        }
        self.frames = self.frames.min(MEMORY);
        if known {
            ((apart - chance) / 2.0).clamp(0.0, 1.0)
        } else {
            0.0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SplitMix64;

    fn window(random: &mut SplitMix64, frames: u64, classes: core::ops::Range<u64>) -> [u64; 20] {
        let mut counts = [0; 20];
        for _ in 0..frames {
            let span = classes.end - classes.start;
            counts[(classes.start + random.below(span as usize) as u64) as usize] += 1;
        }
        counts
    }

    #[test]
    fn chance_is_no_drift_and_another_scene_is_until_it_has_become_usual() {
        let (mut usual, mut random) = (Usual::new(20), SplitMix64(3));
        let mut told: Vec<f32> = (0..200).map(|_| usual.take(&window(&mut random, 60, 0..10))).collect();
        assert!(told[..8].iter().all(|drift| *drift == 0.0), "{told:?}");
        let mean = told.drain(8..).sum::<f32>() / 192.0;
        assert!(mean < 0.03, "{mean}");
        // Half of the classes are others.
        let drift = usual.take(&window(&mut random, 60, 5..15));
        assert!((0.35..0.6).contains(&drift), "{drift}");
        assert_eq!(usual.take(&[0; 20]), 0.0);
        for _ in 0..3_000 {
            usual.take(&window(&mut random, 60, 5..15));
        }
        assert!(usual.take(&window(&mut random, 60, 5..15)) < 0.15);
    }
}
