use serde::{Deserialize, Serialize};

/// How a policy goes out. Fields that a request leaves out have their defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Plan {
    /// Devices of the first wave, 1 or more.
    pub(crate) canary: u32,
    /// Each wave makes so many times as many devices have the policy, above 1, at most 1000.
    pub(crate) factor: f64,
    /// Devices that are ordered in a minute, at most; 0 for as many as there are.
    pub(crate) rate: u32,
    /// Seconds for which each device of a wave is watched once the policy is in force.
    pub(crate) watch: u64,
    /// Frames that each device must have given before it is judged.
    pub(crate) frames: u64,
    /// Seconds after which a device that does not answer, or gives too few frames, has failed.
    pub(crate) patience: u64,
    /// Whether devices get back what they had when a gate fails.
    pub(crate) roll_back: bool,
    /// What a wave must pass.
    pub(crate) gates: Gates,
}

/// Bounds of what a wave may do; none for a gate that is open. Before and after are the same devices' own windows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Gates {
    /// Share of devices that fail: refuse, give the policy up, or are silent.
    pub(crate) failed: Option<f64>,
    /// Cost after, over cost before.
    pub(crate) cost: Option<f64>,
    /// Share of frames that leave at other exits than before: half the sum of the shares' differences.
    pub(crate) exits: Option<f64>,
    /// By how much the share of frames that differ from the last exit may rise.
    pub(crate) disagreement: Option<f64>,
    /// Accuracy given up against the last exit, mean of the devices' own estimates. It fails when that is certain (95 %).
    pub(crate) loss: Option<f64>,
    /// Share of frames at which the policy failed.
    pub(crate) faults: Option<f64>,
    /// Rollbacks of the learner, for each device.
    pub(crate) rollbacks: Option<f64>,
    /// Restarts of the agent, for each device.
    pub(crate) restarts: Option<f64>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            canary: 1,
            factor: 5.0,
            rate: 0,
            watch: 600,
            frames: 1000,
            patience: 900,
            roll_back: true,
            gates: Gates::default(),
        }
    }
}

impl Default for Gates {
    fn default() -> Self {
        Self {
            failed: Some(0.05),
            cost: Some(1.25),
            exits: Some(0.3),
            disagreement: Some(0.02),
            loss: Some(0.02),
            faults: Some(0.001),
            rollbacks: Some(1.0),
            restarts: Some(0.2),
        }
    }
}

/// A plan that is outside its bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the plan's `{field}` is out of bounds: use {bounds}")]
pub(crate) struct BadPlan {
    field: &'static str,
    bounds: &'static str,
}

impl Plan {
    /// # Errors
    /// When a number is outside its bounds.
    pub(crate) fn check(&self) -> Result<(), BadPlan> {
        const WEEK: u64 = 7 * 24 * 3600;
        let gates = &self.gates;
        let bounded = |gate: Option<f64>, most: f64| gate.is_none_or(|gate| (0.0..=most).contains(&gate));
        let rules = [
            (self.canary > 0, "canary", "1 or more devices"),
            (
                self.factor > 1.0 && self.factor <= 1000.0,
                "factor",
                "more than 1, at most 1000",
            ),
            (self.watch <= WEEK, "watch", "at most 604800 seconds, which is a week"),
            (self.frames <= 1 << 40, "frames", "fewer"),
            (
                (1..=WEEK).contains(&self.patience),
                "patience",
                "1 to 604800 seconds, which is a week",
            ),
            (bounded(gates.failed, 1.0), "failed", "0 to 1, or null"),
            (bounded(gates.cost, 100.0), "cost", "0 to 100, or null"),
            (bounded(gates.exits, 1.0), "exits", "0 to 1, or null"),
            (bounded(gates.disagreement, 1.0), "disagreement", "0 to 1, or null"),
            (bounded(gates.loss, 1.0), "loss", "0 to 1, or null"),
            (bounded(gates.faults, 1.0), "faults", "0 to 1, or null"),
            (bounded(gates.rollbacks, 1e6), "rollbacks", "0 to 1000000, or null"),
            (bounded(gates.restarts, 1e6), "restarts", "0 to 1000000, or null"),
        ];
        match rules.into_iter().find(|(holds, _, _)| !holds) {
            Some((_, field, bounds)) => Err(BadPlan { field, bounds }),
            None => Ok(()),
        }
    }

    /// Devices that have the policy when this wave is out, of `all`. The canary is wave 0.
    pub(crate) fn reach(&self, wave: u32, all: usize) -> usize {
        let reach = f64::from(self.canary) * self.factor.powi(i32::try_from(wave).unwrap_or(i32::MAX));
        // A wave that the factor would not make larger is, by one.
        let least = (self.canary as usize).saturating_add(wave as usize);
        // Saturates where it is too large.
        (reach.floor() as usize).max(least).min(all)
    }
}
