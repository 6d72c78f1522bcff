use half::f16;
use offramp_core::{AuditResult, ExitView, Facts, Outcome, Verdict};
use offramp_proto::Digest;
use serde::{Deserialize, Serialize};

use crate::{MAX_EXITS, TraceError};

/// What holds for all frames of a trace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Name of the model package.
    pub model: String,
    /// Its version.
    pub model_version: u64,
    /// Digest of its manifest.
    pub model_digest: Digest,
    /// Number of classes K, `2..=65536`.
    pub classes: u32,
    /// Multiply-adds of each stage, all above 0.
    pub stage_macs: Vec<u64>,
    /// For each exit, what a frame that leaves there costs with its heads, as a share of the whole network, `0..=1`.
    pub exit_costs: Vec<f32>,
    /// C of each exit where features are recorded; else empty.
    #[serde(default)]
    pub features: Vec<u32>,
    /// Name of the camera; may be empty.
    #[serde(default)]
    pub camera: String,
    /// When the trace begins, in milliseconds since 1970.
    pub started_at: u64,
}

impl Header {
    /// Number of exits.
    pub fn exits(&self) -> usize {
        self.stage_macs.len()
    }

    /// For each exit the multiply-adds up to it as a share of the whole network, heads left out: what policies are
    /// configured with.
    pub fn stage_shares(&self) -> Vec<f32> {
        (0..self.exits()).map(|exit| self.spent(exit)).collect()
    }

    /// Multiply-adds of the stages up to an exit as a share, computed as the core does.
    fn spent(&self, exit: usize) -> f32 {
        let total: u64 = self.stage_macs.iter().sum();
        self.stage_macs[..=exit].iter().sum::<u64>() as f32 / total as f32
    }

    fn next(&self, exit: usize) -> f32 {
        let total: u64 = self.stage_macs.iter().sum();
        self.stage_macs.get(exit + 1).copied().unwrap_or(0) as f32 / total as f32
    }

    /// What is wrong with it.
    pub(crate) fn check(&self) -> Result<(), TraceError> {
        let exits = self.exits();
        let total = self
            .stage_macs
            .iter()
            .try_fold(0_u64, |sum, macs| sum.checked_add(*macs));
        let rules = [
            ((1..=MAX_EXITS).contains(&exits), "it has no exits, or too many"),
            (
                (2..=1 << 16).contains(&self.classes),
                "it has too few classes, or too many",
            ),
            (
                total.is_some() && !self.stage_macs.contains(&0),
                "multiply-adds of the stages are zero or too many",
            ),
            (
                self.exit_costs.len() == exits && self.exit_costs.iter().all(|cost| (0.0..=1.0).contains(cost)),
                "costs of the exits are not one from 0 to 1 for each",
            ),
            (
                self.features.is_empty() || self.features.len() == exits,
                "features are not those of all exits",
            ),
            (
                self.features.iter().all(|c| *c <= 1 << 14),
                "exits have too many features",
            ),
            (
                self.model.len() <= 256 && self.camera.len() <= 256,
                "a name is too long",
            ),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, what)) => Err(TraceError::Header(what)),
            None => Ok(()),
        }
    }
}

/// The first eight bytes of a policy's digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PolicyId(pub [u8; 8]);

impl From<Digest> for PolicyId {
    fn from(digest: Digest) -> Self {
        Self(digest.0[..8].try_into().expect("a digest is longer"))
    }
}

/// One exit of a frame.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// What the policy saw, or would have seen where it was not asked.
    pub view: ExitView,
    /// What it answered; none where it was not asked: at the last exit, and in an audit.
    pub verdict: Option<Verdict>,
    /// Whether the built-in rule gave the verdict because the policy had failed.
    pub by_rule: bool,
    /// Pooled features, where the trace has them.
    pub features: Vec<f16>,
}

/// One frame.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// Its number.
    pub number: u64,
    /// Its true class, where that is known.
    pub label: Option<u16>,
    /// Who decided; none: the built-in rule.
    pub policy: Option<PolicyId>,
    /// What was known of the device as it arrived. The time left stands in the views.
    pub facts: Facts,
    /// Exit that was taken; none where no policy ran.
    pub taken: Option<u8>,
    /// From the frame's arrival to its prediction, in milliseconds; NaN when unknown.
    pub latency: f32,
    /// From the previous frame's end to this one's, in milliseconds; NaN when unknown.
    pub interval: f32,
    /// Joules in that interval; NaN when unknown.
    pub energy: f32,
    /// Whether its deadline sent it away.
    pub hurried: bool,
    /// Whether the built-in rule decided because the policy had failed.
    pub fault: bool,
    /// What an audit found.
    pub audit: AuditResult,
    /// Its exits in order; all of the network's where it is complete.
    pub exits: Vec<Seen>,
}

impl Default for Frame {
    /// A frame of which nothing is known.
    fn default() -> Self {
        Self {
            number: 0,
            label: None,
            policy: None,
            facts: Facts::default(),
            taken: None,
            latency: f32::NAN,
            interval: f32::NAN,
            energy: f32::NAN,
            hurried: false,
            fault: false,
            audit: AuditResult::None,
            exits: Vec::new(),
        }
    }
}

impl Frame {
    /// Whether all exits of the network are known of it.
    pub fn is_complete(&self, header: &Header) -> bool {
        self.exits.len() == header.exits()
    }

    /// What became of the frame if it leaves at an exit: what was recorded, as far as it does not depend on the exit or
    /// the exit is the recorded one.
    pub fn outcome(&self, header: &Header, exit: usize) -> Outcome {
        let same = self.taken.is_some_and(|taken| usize::from(taken) == exit);
        let view = &self.exits[exit].view;
        Outcome {
            exit: exit as u32,
            class: view.class,
            confidence: view.confidence,
            cost: header.exit_costs[exit],
            latency: if same { self.latency } else { f32::NAN },
            interval: self.interval,
            energy: if same { self.energy } else { f32::NAN },
            temperature: self.facts.temperature,
            hurried: same && self.hurried,
            fault: same && self.fault,
            audit: if same { self.audit } else { AuditResult::None },
        }
    }

    /// Fills in what follows from the header and from the frame.
    pub(crate) fn complete_views(&mut self, header: &Header, threshold: f32) {
        for (exit, seen) in self.exits.iter_mut().enumerate() {
            seen.view = ExitView {
                exit: exit as u32,
                exits: header.exits() as u32,
                cost: header.spent(exit),
                next_cost: header.next(exit),
                queue_depth: self.facts.queue_depth,
                temperature: self.facts.temperature,
                power_budget: self.facts.power_budget,
                battery: self.facts.battery,
                threshold,
                ..seen.view
            };
        }
    }
}
