//! Keeps the database from growing for ever: summaries are folded into hours, and what is old goes.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::peers;
use crate::store::{Store, StoreError, now};

/// Between two looks at what has become old.
const PACE: Duration = Duration::from_secs(10 * 60);
/// Between two batches at least, so that the writer is free for what arrives; and this many times what one took.
const PAUSE: Duration = Duration::from_millis(50);
const SHARE: u32 = 4;
/// Summaries that are younger are not folded yet, in milliseconds: most of an hour comes together.
const YOUNG: u64 = 15 * 60 * 1000;
/// Runs whose births were told later are not added together, in milliseconds: copies of a device are told by them.
const RESTLESS: u64 = 60 * 60 * 1000;
/// An upload that brought nothing for so long has broken off, in milliseconds.
const BROKEN_OFF: u64 = 24 * 60 * 60 * 1000;

/// What the task works with.
pub(crate) struct Retention {
    pub(crate) store: Store,
    /// For how long summaries and events are kept; none for ever.
    pub(crate) keep: Option<Duration>,
    /// For how long hours are kept; none for ever.
    pub(crate) keep_hours: Option<Duration>,
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
            let start = Instant::now();
            let pause = match self.tidy().await {
                Ok(0) => PACE,
                Ok(rows) => {
                    tracing::debug!(rows, "old summaries and events were folded or removed");
                    PAUSE.max(start.elapsed() * SHARE)
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

    /// Does a batch of each. Gives the rows that something was done to.
    async fn tidy(&self) -> Result<u64, StoreError> {
        let before = |keep: Duration| now().saturating_sub(u64::try_from(keep.as_millis()).unwrap_or(u64::MAX));
        let mut rows = self.store.fold_before(now().saturating_sub(YOUNG)).await?;
        if let Some(keep) = self.keep {
            rows += self.store.remove_before(before(keep)).await?;
        }
        if let Some(keep) = self.keep_hours {
            rows += self.store.hours_remove(before(keep)).await?;
        }
        // These look at whole tables: not for each batch.
        if rows == 0 {
            let broken_off = now().saturating_sub(BROKEN_OFF);
            self.store.pieces_remove_before(broken_off).await?;
            rows += self.store.runs_join_before(now().saturating_sub(RESTLESS)).await?;
        }
        Ok(rows)
    }
}
