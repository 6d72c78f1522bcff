//! Keeps the database from growing for ever.

use std::time::Duration;

use tokio::sync::watch;

use crate::peers;
use crate::store::{Store, StoreError, now};

/// Between two looks at what has become old.
const PACE: Duration = Duration::from_secs(10 * 60);
/// Between two batches, so that the writer is free for what arrives.
const PAUSE: Duration = Duration::from_millis(50);

/// What the task works with.
pub(crate) struct Retention {
    pub(crate) store: Store,
    /// For how long summaries and events are kept.
    pub(crate) keep: Duration,
    /// Whether it is this controller's to do.
    pub(crate) duty: watch::Receiver<bool>,
    pub(crate) stop: watch::Receiver<bool>,
}

impl Retention {
    /// Runs until the controller stops.
    pub(crate) async fn run(mut self) {
        loop {
            if !peers::on_duty(&mut self.duty, &mut self.stop).await {
                return;
            }
            let keep = u64::try_from(self.keep.as_millis()).unwrap_or(u64::MAX);
            let pause = match self.store.remove_before(now().saturating_sub(keep)).await {
                Ok(0) => PACE,
                Ok(removed) => {
                    tracing::debug!(removed, "old summaries and events were removed");
                    PAUSE
                }
                Err(StoreError::Closed) => return,
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "what is old stays for now");
                    PACE
                }
            };
            tokio::select! {
                // An error means that the controller was dropped.
                _ = self.stop.wait_for(|stop| *stop) => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}
