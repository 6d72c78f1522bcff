use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use offramp_proto::SigningKey;
use tokio::sync::{Notify, watch};

use super::gauge::Sums;
use super::step::{Change, MemberState, State, step};
use crate::statistics::Statistics;
use crate::store::{RolloutView, Store, StoreError, now};

/// Pause between two looks at rollouts under way.
const PACE: Duration = Duration::from_secs(1);

/// What the windows of a rollout's devices have said so far. It is read anew after a restart.
#[derive(Debug, Default)]
struct Evidence {
    /// Summaries up to this row are in.
    row: u64,
    by_device: HashMap<String, Sums>,
}

/// Drives the rollouts.
pub(crate) struct Conductor {
    pub(crate) store: Store,
    pub(crate) key: Arc<SigningKey>,
    /// Woken when somebody has told a rollout something.
    pub(crate) told: Arc<Notify>,
    /// Wakes whoever publishes desired states.
    pub(crate) publish: Arc<Notify>,
    pub(crate) statistics: watch::Sender<Statistics>,
    pub(crate) stop: watch::Receiver<bool>,
}

impl Conductor {
    /// Runs until the controller stops.
    pub(crate) async fn run(mut self) {
        let mut evidence = BTreeMap::<u64, Evidence>::new();
        loop {
            let busy = match self.look(&mut evidence).await {
                Ok(busy) => busy,
                Err(StoreError::Closed) => return,
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "rollouts stand still");
                    true
                }
            };
            tokio::select! {
                // An error means that the controller was dropped.
                _ = self.stop.wait_for(|stop| *stop) => return,
                () = self.told.notified() => {}
                () = tokio::time::sleep(PACE), if busy => {}
            }
        }
    }

    /// Takes every rollout one step further. Gives whether any is under way.
    async fn look(&self, evidence: &mut BTreeMap<u64, Evidence>) -> Result<bool, StoreError> {
        let active = self.store.rollout_active().await?;
        evidence.retain(|id, _| active.iter().any(|rollout| rollout.id == *id));
        for rollout in &active {
            let evidence = evidence.entry(rollout.id).or_insert_with(|| Evidence {
                row: rollout.first_row,
                by_device: HashMap::new(),
            });
            // As long as there is more to do at once.
            while self.advance(rollout.id, evidence).await? {}
        }
        Ok(!active.is_empty())
    }

    /// One step of one rollout. Gives whether the next one can follow at once.
    async fn advance(&self, id: u64, evidence: &mut Evidence) -> Result<bool, StoreError> {
        let Some(view) = self.store.rollout_fetch(id).await? else {
            return Ok(false);
        };
        if !view.rollout.state.is_active() {
            return Ok(false);
        }
        loop {
            let (news, row) = self.store.rollout_evidence(id, evidence.row).await?;
            let done = news.is_empty();
            for (device, sums) in news {
                evidence.by_device.entry(device).or_default().add(&sums);
            }
            evidence.row = row;
            if done {
                break;
            }
        }
        let mut members = self.store.rollout_members(id).await?;
        for member in &mut members {
            if let Some(sums) = evidence.by_device.get(&member.device) {
                member.now.after.clone_from(sums);
            }
        }
        let now = now();
        let (changes, gauges) = step(&view.rollout, &mut members, now);
        if changes.is_empty() && gauges == view.gauges {
            return Ok(false);
        }
        let again = changes.iter().any(|change| match change {
            Change::Order { .. } => view.rollout.plan.rate == 0,
            Change::Revert { .. } | Change::Wave(_) => true,
            Change::Enter { state, .. } => *state == State::RollingBack,
            Change::Settle { .. } | Change::Boot { .. } => false,
        });
        for change in &changes {
            if let Change::Enter { state, reason } = change {
                tracing::info!(rollout = id, policy = %view.policy, version = view.version, ?state, reason, "rollout");
            }
        }
        let key = Arc::clone(&self.key);
        let state = view.rollout.state;
        let issued = self.store.rollout_apply(key, id, state, changes, gauges, now).await?;
        if issued {
            self.publish.notify_one();
        }
        self.statistics.send_modify(|s| s.rollout_steps += 1);
        Ok(again)
    }
}

/// How far a rollout is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Devices that are its own, those that were given something else left out.
    pub(crate) devices: u64,
    /// Of these, those that have the policy, or should.
    pub(crate) out: u64,
    /// Of these, those in which it is in force.
    pub(crate) in_force: u64,
    /// Of these, those that have proven it.
    pub(crate) proven: u64,
    pub(crate) failed: u64,
    /// Devices that were given back what they had.
    pub(crate) reverted: u64,
}

/// How far a rollout is.
pub(crate) fn progress(view: &RolloutView) -> Progress {
    use MemberState::{Failed, InForce, Ordered, Proven, Reverted, Waiting};
    let count = |states: &[MemberState]| {
        let counts = states.iter().map(|state| view.devices.get(state).copied().unwrap_or(0));
        counts.sum()
    };
    Progress {
        devices: count(&[Waiting, Ordered, InForce, Proven, Failed, Reverted]),
        out: count(&[Ordered, InForce, Proven, Failed]),
        in_force: count(&[InForce, Proven]),
        proven: count(&[Proven]),
        failed: count(&[Failed]),
        reverted: count(&[Reverted]),
    }
}
