//! What is old makes room.

use offramp_proto::{BootId, DeviceId};

use super::hours::folded_in_txn;
use super::sql::{FromRow as _, query, query_as};
use super::summary::Totals;
use super::{Run, Store, StoreError, Task as _, int};

/// Rows that are looked at in one transaction: the writer has other work, too.
const BATCH: u32 = 2000;
/// Runs of a device whose totals are kept one by one.
const RUNS: u32 = 64;
/// Devices that have more, in one transaction.
const DEVICES: u32 = 16;
/// The run under which the totals of all older ones stand.
const OLDER: BootId = BootId([0; 16]);

impl Store {
    /// Removes summaries and events that arrived before a time, a batch at a time. Totals, desired states and the audit
    /// log stay. Gives how many went; ask again until there are none.
    ///
    /// The last row of a table stays however old it is: rows are numbered on from it.
    pub(crate) async fn remove_before(&self, time: u64) -> Result<u64, StoreError> {
        let task = "remove what is old";
        self.write(move |connection| {
            Box::pin(async move {
                let folded = folded_in_txn(connection).await?;
                // Rows are numbered as they arrive: the oldest are the first, and only those are looked at. A summary
                // stays until it is in its hour.
                let mut removed = query(
                    "DELETE FROM summaries WHERE rowid IN (SELECT place FROM (SELECT rowid AS place, received_at \
                     FROM summaries ORDER BY rowid LIMIT $2) AS oldest WHERE received_at < $1) \
                     AND rowid <= $3 AND rowid < (SELECT max(rowid) FROM summaries)",
                )
                .bind(int(time))
                .bind(BATCH)
                .bind(int(folded))
                .execute(&mut *connection)
                .await
                .task(task)?;
                for sql in [
                    "DELETE FROM events WHERE rowid IN (SELECT place FROM (SELECT rowid AS place, received_at \
                     FROM events ORDER BY rowid LIMIT $2) AS oldest WHERE received_at < $1) \
                     AND rowid < (SELECT max(rowid) FROM events)",
                    "DELETE FROM traces WHERE id IN (SELECT id FROM traces WHERE received_at < $1 ORDER BY id LIMIT $2)",
                ] {
                    let done = query(sql)
                        .bind(int(time))
                        .bind(BATCH)
                        .execute(&mut *connection)
                        .await
                        .task(task)?;
                    removed += done;
                }
                Ok(removed)
            })
        })
        .await
    }

    /// Adds the totals of a device's oldest runs together, where it has many and they told of their births before a time:
    /// an agent that restarts for ever would fill the database. Gives how many runs went; ask again until there are none.
    pub(crate) async fn runs_join_before(&self, time: u64) -> Result<u64, StoreError> {
        let task = "add old runs together";
        self.write(move |connection| {
            Box::pin(async move {
                let many: Vec<(String, i64)> = query_as(
                    "SELECT device, count(*) FROM runs WHERE noted_at < $1 GROUP BY device HAVING count(*) > $2 LIMIT $3",
                )
                .bind(int(time))
                .bind(RUNS + 1)
                .bind(DEVICES)
                .fetch_all(&mut *connection)
                .await
                .task(task)?;
                let devices = many.into_iter().filter_map(|(name, _)| DeviceId::new(name).ok());
                let devices: Vec<DeviceId> = devices.collect();
                let (mut totals, mut joined) = (Totals::default(), 0);
                for device in &devices {
                    let rows = query(
                        "DELETE FROM runs WHERE device = $1 AND boot IN (SELECT r.boot FROM runs r \
                         JOIN devices d ON d.device = r.device WHERE r.device = $1 AND r.noted_at < $2 AND r.boot <> $3 \
                         AND (d.boot IS NULL OR r.boot <> d.boot) ORDER BY r.noted_at DESC, r.boot LIMIT $4 OFFSET $5) \
                         RETURNING summaries, frames, early, macs, full_macs, audits, disagreements",
                    )
                    .bind(device.as_str())
                    .bind(int(time))
                    .bind(&OLDER.0[..])
                    .bind(BATCH)
                    .bind(RUNS - 1)
                    .fetch_all(&mut *connection)
                    .await
                    .task(task)?;
                    for row in &rows {
                        totals.add(device, OLDER, &Run::from_row(row).task(task)?);
                    }
                    joined += rows.len() as u64;
                }
                totals.add_in_txn(connection).await?;
                Ok(joined)
            })
        })
        .await
    }
}
