//! What the learned heads are worth: they beside the frozen ones, on audited frames.
//!
//! What frames cost today does not tell: policy, threshold and scene have their part in it. So two arms are kept beside
//! the stream, one with the heads in force, one with those that the model came with. Each leaves where its confidence
//! reaches a threshold of its own, which follows the operator's accuracy budget on that arm's losses, as the guard's does.
//! Both are asked about the frames that were drawn for an audit, of which everything is known: a random sample of all. At
//! one budget, the difference of what they cost is what is saved by learning, whatever decides on the stream.

use alloc::vec;
use alloc::vec::Vec;

use offramp_proto::{Arm, ControlReport};

use crate::guard::{Audited, GuardSettings, adapt_temperature, adapt_threshold};
use crate::head::Head;
use crate::math;

/// Audited frames that are remembered.
const LATEST: usize = 256;

/// Both arms of one context.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Control {
    learned: f32,
    frozen: f32,
    /// ln T of the frozen heads.
    log_temperatures: Vec<f32>,
    /// What learned and frozen heads would have done with the latest audited frames, in a ring.
    latest: Vec<[Arm; 2]>,
    next: usize,
    len: usize,
    /// Scratch, K numbers each.
    logits: Vec<f32>,
    probabilities: Vec<f32>,
}

impl Control {
    pub(crate) fn new(base: &[Head], threshold: f32) -> Self {
        let classes = base[0].classes();
        Self {
            learned: threshold,
            frozen: threshold,
            log_temperatures: vec![0.0; base.len() - 1],
            latest: vec![[Arm::default(); 2]; LATEST],
            next: 0,
            len: 0,
            logits: vec![0.0; classes],
            probabilities: vec![0.0; classes],
        }
    }

    /// Begins again, without giving back memory.
    pub(crate) fn reset(&mut self, threshold: f32) {
        (self.learned, self.frozen) = (threshold, threshold);
        self.log_temperatures.fill(0.0);
        (self.next, self.len) = (0, 0);
    }

    /// Takes up an audited frame. `costs` are the multiply-adds up to each exit as a share of all.
    pub(crate) fn audit(&mut self, audited: &Audited<'_>, base: &[Head], costs: &[f32], settings: &GuardSettings) {
        let certain = audited.posterior[audited.last_class];
        let arm = |left: Option<(usize, usize)>| {
            let (exit, class) = left.unwrap_or((costs.len() - 1, audited.last_class));
            Arm {
                cost: costs[exit],
                loss: certain - audited.posterior[class],
            }
        };

        let mut stations = audited.early.iter().enumerate();
        let left = stations.find(|(_, station)| station.seen.top.confidence >= self.learned);
        let learned = arm(left.map(|(exit, station)| (exit, station.seen.top.class)));

        // The temperature of an exit follows all audits, wherever the arm leaves.
        let mut left = None;
        for (exit, station) in audited.early.iter().enumerate() {
            base[exit].logits(&station.features, &mut self.logits);
            let scale = libm::expf(-self.log_temperatures[exit]);
            let math::Top { class, confidence, .. } = math::top(&self.logits, scale, None, &mut self.probabilities);
            if left.is_none() && confidence >= self.frozen {
                left = Some((exit, class));
            }
            let log = &mut self.log_temperatures[exit];
            adapt_temperature(log, audited.posterior, &self.probabilities, &self.logits, settings);
        }
        let frozen = arm(left);

        adapt_threshold(&mut self.learned, learned.loss, settings);
        adapt_threshold(&mut self.frozen, frozen.loss, settings);
        self.latest[self.next] = [learned, frozen];
        self.next = (self.next + 1) % LATEST;
        self.len = (self.len + 1).min(LATEST);
    }

    /// Means over the latest audits; zeros without any.
    pub(crate) fn report(&self) -> ControlReport {
        let latest = &self.latest[..self.len];
        let n = latest.len().max(1) as f32;
        let mean = |of: &dyn Fn(&[Arm; 2]) -> f32| latest.iter().map(of).sum::<f32>() / n;
        let arm = |i: usize| Arm {
            cost: mean(&|arms| arms[i].cost),
            loss: mean(&|arms| arms[i].loss),
        };
        let (learned, frozen) = (arm(0), arm(1));
        let saved = frozen.cost - learned.cost;
        let squares = mean(&|[learned, frozen]| {
            let off = frozen.cost - learned.cost - saved;
            off * off
        });
        ControlReport {
            audits: self.len as u64,
            learned,
            frozen,
            error: libm::sqrtf(squares / (n - 1.0).max(1.0)),
        }
    }
}
