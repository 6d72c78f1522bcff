//! What happened since the last summary.

use alloc::vec;
use alloc::vec::Vec;

use offramp_proto::{Audits, ClassCount, ControlReport, Cost, ExitUse, GuardReport, LearnerReport};

/// A class seen less often in a window is not reported: a single visitor should not show in a summary.
const MIN_CLASS_COUNT: u64 = 5;
/// A class seen more often is reported as this.
const MAX_CLASS_COUNT: u64 = 1 << 20;

/// The parts of a [`offramp_proto::Summary`] that the core knows.
#[derive(Clone, Debug, PartialEq)]
pub struct WindowReport {
    /// Frames whose prediction was given.
    pub frames: u64,
    /// Frames that were dropped.
    pub dropped: u64,
    /// Verdicts that a policy failed to give.
    pub faults: u64,
    /// Use of each exit.
    pub exits: Vec<ExitUse>,
    /// What it cost.
    pub cost: Cost,
    /// Audits; their bound covers the whole run.
    pub audits: Audits,
    /// The learner.
    pub learner: LearnerReport,
    /// What watches over it.
    pub guard: GuardReport,
    /// What learning is worth.
    pub control: ControlReport,
    /// How far the predicted classes are from the usual ones, `0..=1`.
    pub drift: f32,
    /// Predicted classes, clipped.
    pub classes: Vec<ClassCount>,
}

/// Counters of the window that is open.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    pub(crate) dropped: u64,
    pub(crate) faults: u64,
    pub(crate) taken: Vec<u64>,
    pub(crate) cost: Cost,
    pub(crate) audits: u64,
    pub(crate) disagreements: u64,
    pub(crate) updates: u64,
    pub(crate) gated: u64,
    pub(crate) promotions: u64,
    pub(crate) rollbacks: u64,
    pub(crate) classes: Vec<u64>,
}

impl Window {
    pub(crate) fn new(exits: usize, classes: usize) -> Self {
        Self {
            dropped: 0,
            faults: 0,
            taken: vec![0; exits],
            cost: Cost::default(),
            audits: 0,
            disagreements: 0,
            updates: 0,
            gated: 0,
            promotions: 0,
            rollbacks: 0,
            classes: vec![0; classes],
        }
    }

    /// `guard` is missing the window's own counts.
    pub(crate) fn report(
        &self,
        rollbacks: u64,
        distance: Vec<f32>,
        bound: f32,
        guard: GuardReport,
        control: ControlReport,
        drift: f32,
    ) -> WindowReport {
        let classes = self
            .classes
            .iter()
            .zip(0..)
            .filter(|(count, _)| **count >= MIN_CLASS_COUNT);
        WindowReport {
            frames: self.taken.iter().sum(),
            dropped: self.dropped,
            faults: self.faults,
            exits: self.taken.iter().map(|&taken| ExitUse { taken }).collect(),
            cost: self.cost,
            audits: Audits {
                run: self.audits,
                disagreements: self.disagreements,
                bound,
            },
            learner: LearnerReport {
                updates: self.updates,
                gated: self.gated,
                rollbacks,
                distance,
            },
            guard: GuardReport {
                promotions: self.promotions,
                ..guard
            },
            control,
            drift,
            classes: classes
                .map(|(&n, class)| ClassCount {
                    class,
                    count: n.min(MAX_CLASS_COUNT),
                })
                .collect(),
        }
    }
}
