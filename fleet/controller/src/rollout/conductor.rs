use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::gauge::Sums;
use super::step::{Change, State, step};
use crate::key::Keyring;
use crate::peers;
use crate::statistics::Statistics;
use crate::store::{Store, StoreError, now};

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
    pub(crate) key: Arc<Keyring>,
    /// Woken when somebody has told a rollout something.
    pub(crate) told: Arc<Notify>,
    /// Wakes whoever publishes desired states.
    pub(crate) publish: Arc<Notify>,
    pub(crate) statistics: watch::Sender<Statistics>,
    /// Whether rollouts are this controller's to drive.
    pub(crate) duty: watch::Receiver<bool>,
    pub(crate) stop: watch::Receiver<bool>,
}

impl Conductor {
    /// Runs until the controller stops.
    pub(crate) async fn run(mut self) {
        let mut evidence = BTreeMap::<u64, Evidence>::new();
        loop {
            if !peers::on_duty(&mut self.duty, &mut self.stop).await {
                return;
            }
            let busy = match self.look(&mut evidence).await {
                // Others may start one.
                Ok(busy) => busy || self.store.is_shared(),
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
                // An error means the same.
                _ = self.duty.changed() => {}
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
        let Some(view) = self.store.rollout_read(id).await? else {
            return Ok(false);
        };
        if !view.rollout.state.is_active() {
            return Ok(false);
        }
        let mut more = true;
        while more {
            let found = self.store.rollout_evidence(id, evidence.row).await?;
            for (device, sums) in found.windows {
                evidence.by_device.entry(device).or_default().add(&sums);
            }
            (evidence.row, more) = (found.row, found.more);
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
                tracing::info!(rollout = id, name = %view.name, version = view.version, ?state, reason, "rollout");
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
