//! Accuracy and cost of a package on labelled images, by running it.

use std::time::Instant;

use offramp_camera::ImageSet;
use offramp_core::{Facts, Prediction};
use offramp_engine::{Engine, RunError};
use offramp_model::{Head, Package, PackageError};
use serde::Serialize;

use crate::lane::{FrameError, Judge, Single};
use crate::terminal::percent;

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
/// What an engine computed of a package's reference vectors.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Compared {
    /// Largest difference between a probability and its reference; infinite where there was a NaN.
    pub worst: f32,
    /// Share of them in which the same class is at the top, ties aside.
    pub agree: f64,
    /// Vectors: images times exits.
    pub vectors: u64,
}

/// Why reference vectors could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// The vectors cannot be read.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// A stage failed.
    #[error(transparent)]
    Run(#[from] RunError),
}

impl std::fmt::Display for Compared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} reference vectors: worst difference {:.1e}, same class in {}",
            self.vectors,
            self.worst,
            percent(self.agree)
        )
    }
}

impl Compared {
    /// Largest difference between a probability and its reference, for engines that compute in 32 bits.
    pub const TOLERANCE: f32 = 1e-3;
    /// Classes whose reference probabilities are closer than this are tied: rounding decides between them.
    const TIE: f32 = 1e-5;

    /// Runs the images of a package's reference vectors, where it has some, so many at a time.
    ///
    /// # Errors
    /// When the vectors are damaged, or a stage fails.
    pub fn of(engine: &mut Engine, package: &Package, batch: usize) -> Result<Option<Self>, CompareError> {
        let manifest = package.manifest();
        let Some(vectors) = package.vectors()? else {
            return Ok(None);
        };
        let (mut worst, mut agree, mut seen) = (0f32, 0u64, 0u64);
        let (mut frames, mut pixels) = (vec![engine.frame(); batch], vec![0.0; manifest.input.values()]);
        let images: Vec<&[u8]> = vectors.images.chunks_exact(pixels.len()).collect();
        for (group, images) in images.chunks(batch).enumerate() {
            let frames = &mut frames[..images.len()];
            for (frame, image) in frames.iter_mut().zip(images) {
                manifest.input.normalize(image, &mut pixels);
                engine.start(frame, &pixels)?;
            }
            for (stage, head) in package.heads().iter().enumerate() {
                engine.run_stage_of(stage, &mut frames.iter_mut().collect::<Vec<_>>())?;
                for (i, frame) in frames.iter().enumerate() {
                    let got = softmax(&logits(head, frame.features()));
                    let reference = softmax(vectors.logits.at(group * batch + i, stage));
                    worst = worst.max(apart(&got, &reference));
                    let behind = top(&reference).zip(top(&got)).map(|(a, b)| reference[a] - reference[b]);
                    agree += u64::from(behind.is_some_and(|behind| behind <= Self::TIE));
                    seen += 1;
                }
            }
        }
        Ok(Some(Self {
            worst,
            agree: agree as f64 / seen.max(1) as f64,
            vectors: seen,
        }))
    }

    /// Whether they are as they should be, where this engine computes in 32 bits.
    pub fn is_sound(&self) -> bool {
        self.holds(Self::TOLERANCE)
    }

    /// Whether they are within a tolerance.
    pub fn holds(&self, tolerance: f32) -> bool {
        self.worst <= tolerance && self.agree >= Self::least(tolerance)
    }

    /// In how many of the vectors the same class must be at the top: where arithmetic is coarser, classes that are
    /// nearly tied may change places.
    pub fn least(tolerance: f32) -> f64 {
        if tolerance > Self::TOLERANCE { 0.99 } else { 0.999 }
    }
}

/// How far probabilities are apart, at most; infinitely far where one is none.
fn apart(got: &[f32], reference: &[f32]) -> f32 {
    let apart = got
        .iter()
        .zip(reference)
        .map(|(got, reference)| (got - reference).abs());
    // `max` would pass over a NaN.
    apart
        .map(|apart| if apart.is_nan() { f32::INFINITY } else { apart })
        .fold(0.0, f32::max)
}

fn logits(head: &Head, features: &[f32]) -> Vec<f32> {
    let rows = head.weight.chunks_exact(head.features).zip(&head.bias);
    rows.map(|(row, bias)| row.iter().zip(features).map(|(w, u)| w * u).sum::<f32>() + bias)
        .collect()
}

fn softmax(z: &[f32]) -> Vec<f32> {
    let max = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let e: Vec<f32> = z.iter().map(|z| (z - max).exp()).collect();
    let sum: f32 = e.iter().sum();
    e.iter().map(|e| e / sum).collect()
}

fn top(p: &[f32]) -> Option<usize> {
    (0..p.len()).max_by(|&a, &b| p[a].total_cmp(&p[b]))
}
