//! Summaries by the hour: what stays when they have become old.
//!
//! They are folded into the hours of their devices behind the back of those that arrive, in the order in which they were
//! kept, each once: how far that is, is noted in the same transaction. None is removed before.

use std::collections::BTreeMap;

use super::device::json;
use super::many::parts;
use super::sql::{Builder, FromRow, Row, Transaction, query, query_as, query_scalar};
use super::summary::{Window, window_columns};
use super::{History, Store, StoreError, Task as _, int, uint};
use crate::overview::add_exits;

/// Summaries in one transaction.
const BATCH: u32 = 1000;
/// In milliseconds.
const HOUR: u64 = 3600 * 1000;
/// Where it is noted how far summaries were folded.
const FOLDED: &str = "folded";

/// A summary on its way into an hour.
struct Kept {
    row: u64,
    received_at: u64,
    window: Window,
}

impl FromRow for Kept {
    fn from_row(row: &Row) -> Result<Self, sqlx::Error> {
        Ok(Self {
            row: uint(row.try_get("rowid")?),
            received_at: uint(row.try_get("received_at")?),
            window: Window::from_row(row)?,
        })
    }
}

/// What tells the rows of a device's hours apart: hour, run, policy and its version.
type Place = (String, u64, Vec<u8>, String, u64);

impl Kept {
    fn place(&self) -> Place {
        let window = &self.window;
        // A device whose clock is ahead would keep its hours for ever.
        let end = window.end.min(self.received_at);
        (
            window.device.clone(),
            end / HOUR * HOUR,
            window.boot.clone(),
            window.policy.clone(),
            window.policy_version,
        )
    }
}

impl Window {
    /// Adds another window of the same run and policy.
    fn join(&mut self, other: Self) {
        let mean = |a: Option<f64>, b: Option<f64>| match (a, b) {
            (Some(a), Some(b)) => {
                let (ours, theirs) = (self.frames as f64, other.frames as f64);
                Some((a * ours + b * theirs) / (ours + theirs).max(1.0))
            }
            (a, b) => a.or(b),
        };
        let (drift, watts) = (mean(self.drift, other.drift), mean(self.watts, other.watts));
        (self.drift, self.watts) = (drift, watts);
        if (other.end, other.sequence) >= (self.end, self.sequence) {
            self.bound = other.bound;
            self.guard = other.guard.or(self.guard);
            self.control = other.control.or(self.control);
            self.engines = other.engines;
        }
        self.start = self.start.min(other.start);
        self.end = self.end.max(other.end);
        self.sequence = self.sequence.max(other.sequence);
        for (sum, more) in [
            (&mut self.frames, other.frames),
            (&mut self.dropped, other.dropped),
            (&mut self.hurried, other.hurried),
            (&mut self.macs, other.macs),
            (&mut self.full_macs, other.full_macs),
            (&mut self.stage_us, other.stage_us),
            (&mut self.audits, other.audits),
            (&mut self.disagreements, other.disagreements),
            (&mut self.rollbacks, other.rollbacks),
        ] {
            *sum = sum.saturating_add(more);
        }
        add_exits(&mut self.exits, &other.exits);
        for (class, count) in other.classes {
            match self.classes.binary_search_by_key(&class, |(class, _)| *class) {
                Ok(place) => self.classes[place].1 = self.classes[place].1.saturating_add(count),
                Err(place) => self.classes.insert(place, (class, count)),
            }
        }
        // Of cameras the latest windows tell.
        self.cameras.clear();
    }
}

impl Store {
    /// Folds some of the summaries that arrived before a time into their hours. Gives how many.
    pub(crate) async fn fold_before(&self, time: u64) -> Result<u64, StoreError> {
        self.write(move |connection| {
            Box::pin(async move {
                let from = folded_in_txn(connection).await?;
                let rows: Vec<Kept> = query_as(concat!(
                    "SELECT rowid, received_at, ",
                    window_columns!(),
                    " FROM summaries WHERE rowid > $1 ORDER BY rowid LIMIT $2"
                ))
                .bind(int(from))
                .bind(BATCH)
                .fetch_all(&mut *connection)
                .await
                .task("read summaries that have become old")?;
                // What lies between stays for the next time, or it would be left out.
                let old: Vec<Kept> = rows.into_iter().take_while(|kept| kept.received_at < time).collect();
                let Some(last) = old.last().map(|kept| kept.row) else {
                    return Ok(0);
                };
                let count = old.len() as u64;
                let mut hours = BTreeMap::<Place, Window>::new();
                for mut kept in old {
                    kept.window.classes.sort_unstable();
                    match hours.entry(kept.place()) {
                        std::collections::btree_map::Entry::Occupied(mut hour) => hour.get_mut().join(kept.window),
                        std::collections::btree_map::Entry::Vacant(hour) => _ = hour.insert(kept.window),
                    }
                }
                let hours: Vec<(Place, Window)> = hours.into_iter().collect();
                for part in parts(&hours) {
                    add_in_txn(connection, part).await?;
                }
                query(
                    "INSERT INTO meta (key, value) VALUES ($1, $2) \
                     ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                )
                .bind(FOLDED)
                .bind(&last.to_be_bytes()[..])
                .execute(connection)
                .await
                .task("note how far summaries were folded")?;
                Ok(count)
            })
        })
        .await
    }

    /// Removes hours that began before a time. Gives how many.
    pub(crate) async fn hours_remove(&self, time: u64) -> Result<u64, StoreError> {
        self.write(move |connection| {
            Box::pin(async move {
                query("DELETE FROM hours WHERE hour < $1")
                    .bind(int(time))
                    .execute(connection)
                    .await
                    .task("remove hours that have become old")
            })
        })
        .await
    }

    /// What a device did in the last `span` milliseconds before the end of its last window, by the hour; of the last
    /// minutes window by window.
    pub(crate) async fn history_by_hour(&self, device: &str, span: u64, limit: u32) -> Result<History, StoreError> {
        let task = "read the hours of a device";
        let mut snapshot = self.readers.snapshot().await.task(task)?;
        let end: Option<i64> = query_scalar("SELECT max(window_end) FROM summaries WHERE device = $1")
            .bind(device)
            .fetch_one(&mut snapshot)
            .await
            .task(task)?;
        let since = end.map_or(0, uint).saturating_sub(span);
        let sums: Vec<(i64, String)> =
            query_as("SELECT hour, sums FROM hours WHERE device = $1 AND hour >= $2 ORDER BY hour DESC LIMIT $3")
                .bind(device)
                .bind(int(since))
                .bind(limit)
                .fetch_all(&mut snapshot)
                .await
                .task(task)?;
        let folded = folded_in_txn(&mut snapshot).await?;
        let fresh: Vec<Window> = query_as(concat!(
            "SELECT ",
            window_columns!(),
            " FROM summaries WHERE device = $1 AND rowid > $2 AND window_end > $3 \
             ORDER BY window_end DESC, sequence DESC LIMIT $4"
        ))
        .bind(device)
        .bind(int(folded))
        .bind(int(since))
        .bind(limit)
        .fetch_all(&mut snapshot)
        .await
        .task(task)?;
        let hours = sums.iter().filter_map(|(_, sums)| serde_json::from_str(sums).ok());
        let mut windows: Vec<Window> = hours.chain(fresh).collect();
        windows.sort_by_key(|window| (window.end, window.sequence));
        History::of(&mut snapshot, device, windows).await
    }
}

/// The last row of summaries that was folded.
pub(super) async fn folded_in_txn(connection: &mut Transaction) -> Result<u64, StoreError> {
    let noted: Option<Vec<u8>> = query_scalar("SELECT value FROM meta WHERE key = $1")
        .bind(FOLDED)
        .fetch_optional(connection)
        .await
        .task("tell how far summaries were folded")?;
    Ok(noted
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u64::from_be_bytes))
}

/// Adds windows to what their hours hold already.
async fn add_in_txn(connection: &mut Transaction, hours: &[(Place, Window)]) -> Result<(), StoreError> {
    let task = "add summaries to their hours";
    let mut query = Builder::new(
        connection,
        "WITH those (device, hour, boot, policy, policy_version) AS (",
    );
    query.push_values(hours, |row, (place, _)| {
        row.push_bind(&place.0);
        row.push_bind(int(place.1));
        row.push_bind(&place.2[..]);
        row.push_bind(&place.3);
        row.push_bind(int(place.4));
    });
    query.push(
        ") SELECT h.device, h.hour, h.boot, h.policy, h.policy_version, h.sums FROM those t JOIN hours h \
         ON h.device = t.device AND h.hour = t.hour AND h.boot = t.boot AND h.policy = t.policy \
         AND h.policy_version = t.policy_version",
    );
    let rows = query.build().fetch_all(&mut *connection).await.task(task)?;
    let mut known = BTreeMap::<Place, Window>::new();
    for row in &rows {
        let read = || -> Result<(Place, String), sqlx::Error> {
            let place = (
                row.try_get("device")?,
                uint(row.try_get("hour")?),
                row.try_get("boot")?,
                row.try_get("policy")?,
                uint(row.try_get("policy_version")?),
            );
            Ok((place, row.try_get("sums")?))
        };
        let (place, sums) = read().task(task)?;
        if let Ok(window) = serde_json::from_str(&sums) {
            known.insert(place, window);
        }
    }
    let mut query = Builder::new(
        connection,
        "INSERT INTO hours (device, hour, boot, policy, policy_version, sums) ",
    );
    query.push_values(hours, |row, (place, window)| {
        let mut sum = window.clone();
        if let Some(before) = known.remove(place) {
            sum.join(before);
        }
        row.push_bind(&place.0);
        row.push_bind(int(place.1));
        row.push_bind(&place.2[..]);
        row.push_bind(&place.3);
        row.push_bind(int(place.4));
        row.push_bind(json(&sum));
    });
    query.push(" ON CONFLICT (device, hour, boot, policy, policy_version) DO UPDATE SET sums = excluded.sums");
    query.build().execute(connection).await.task(task)?;
    Ok(())
}
