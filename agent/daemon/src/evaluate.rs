//! Accuracy and cost of a package on labelled images, by running it.

use std::time::Instant;

use offramp_camera::ImageSet;
use offramp_core::{Facts, Prediction};
use serde::Serialize;

use crate::lane::{FrameError, Judge, Single};

/// What a run over labelled images showed, under one policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Images.
    pub images: u64,
    /// Share of right predictions, `0..=1`.
    pub accuracy: f64,
    /// Mean multiply-adds of stages and heads per frame.
    pub cost_macs: f64,
    /// Mean milliseconds from a frame's arrival to its prediction.
    pub cost_ms: f64,
    /// Share of frames that left at each exit.
    pub exit_share: Vec<f64>,
    /// Share of frames whose prediction differs from the last exit's.
    pub disagreement: f64,
}

/// Sums from which reports are made.
#[derive(Clone, Debug)]
pub struct Tally {
    images: u64,
    right: u64,
    macs: u64,
    micros: u64,
    taken: Vec<u64>,
    disagreements: u64,
}

impl Tally {
    /// A tally for a network of so many exits.
    pub fn new(exits: usize) -> Self {
        Self {
            images: 0,
            right: 0,
            macs: 0,
            micros: 0,
            taken: vec![0; exits],
            disagreements: 0,
        }
    }

    /// Adds an image.
    pub fn add(&mut self, outcome: &Outcome) {
        let prediction = &outcome.prediction;
        self.images += 1;
        self.right += u64::from(prediction.class == u32::from(outcome.label));
        self.macs += prediction.macs;
        self.micros += prediction.latency_us;
        self.taken[prediction.exit as usize] += 1;
        self.disagreements += u64::from(outcome.exits.last() != Some(&prediction.class));
    }

    /// The means.
    pub fn report(&self) -> Report {
        let share = |n: u64| {
            if self.images == 0 {
                0.0
            } else {
                n as f64 / self.images as f64
            }
        };
        Report {
            images: self.images,
            accuracy: share(self.right),
            cost_macs: share(self.macs),
            cost_ms: share(self.micros) / 1e3,
            exit_share: self.taken.iter().map(|n| share(*n)).collect(),
            disagreement: share(self.disagreements),
        }
    }
}

/// What became of one image.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its true class.
    pub label: u16,
    /// The prediction that was taken.
    pub prediction: Prediction,
    /// The class that each exit names.
    pub exits: Vec<u32>,
}

/// Runs the images of a set that `chosen` names through a lane whose learner is off and which audits every
/// frame, so that each exit's opinion is known; costs are those up to the prediction.
///
/// # Errors
/// When a frame fails.
pub fn run(
    single: &mut Single,
    judge: &mut impl Judge,
    set: &ImageSet,
    chosen: &[u32],
    mut each: impl FnMut(&Outcome),
) -> Result<(), FrameError> {
    let settings = single.lane.core.settings();
    debug_assert!(!settings.learner.enabled && settings.audit_rate >= 1.0);
    for &index in chosen {
        let pixels = set.pixels(index as usize).unwrap_or_default();
        let prediction = single.run(u64::from(index), pixels, Facts::default(), judge)?;
        let top = |p: &[f32]| {
            (0u32..)
                .zip(p)
                .max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)))
                .map_or(0, |(k, _)| k)
        };
        let exits = (0..)
            .map_while(|exit| single.lane.core.probabilities(exit))
            .map(top)
            .collect();
        each(&Outcome {
            label: set.labels()[index as usize],
            prediction,
            exits,
        });
    }
    Ok(())
}

/// Reports for the images of `subset` classes and for all, from one pass.
///
/// # Errors
/// When a frame fails.
pub fn subset_and_all(
    single: &mut Single,
    judge: &mut impl Judge,
    set: &ImageSet,
    subset: &[u16],
    mut progress: impl FnMut(),
) -> Result<(Report, Report), FrameError> {
    let all: Vec<u32> = (0..).take(set.len()).collect();
    let exits = single.lane.core.exits();
    let (mut of_subset, mut of_all) = (Tally::new(exits), Tally::new(exits));
    run(single, judge, set, &all, |outcome| {
        of_all.add(outcome);
        if subset.contains(&outcome.label) {
            of_subset.add(outcome);
        }
        progress();
    })?;
    Ok((of_subset.report(), of_all.report()))
}

/// Accuracy of each exit alone, and milliseconds a frame that goes all the way.
///
/// # Errors
/// When a frame fails.
pub fn exits_alone(
    single: &mut Single,
    judge: &mut impl Judge,
    set: &ImageSet,
    mut progress: impl FnMut(),
) -> Result<(Vec<f64>, f64), FrameError> {
    let all: Vec<u32> = (0..).take(set.len()).collect();
    let mut right = vec![0u64; single.lane.core.exits()];
    let start = Instant::now();
    run(single, judge, set, &all, |outcome| {
        for (right, class) in right.iter_mut().zip(&outcome.exits) {
            *right += u64::from(*class == u32::from(outcome.label));
        }
        progress();
    })?;
    let n = set.len().max(1) as f64;
    Ok((
        right.iter().map(|r| *r as f64 / n).collect(),
        start.elapsed().as_secs_f64() * 1e3 / n,
    ))
}
