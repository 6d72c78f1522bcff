//! What is old makes room.

use super::hours::folded_in_txn;
use super::sql::{FromRow as _, query, query_as};
use super::{Run, Store, StoreError, Task as _, int};

/// Rows that are looked at in one transaction: the writer has other work, too.
const BATCH: u32 = 2000;
/// Runs of a device whose totals are kept one by one.
const RUNS: u32 = 64;
/// Devices that have more, in one transaction.
const DEVICES: u32 = 16;
/// The name under which the totals of all older runs stand.
const OLDER: &[u8] = b"older";

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
                let mut joined = 0;
                for (device, _) in many {
                    let rows = query(
                        "SELECT r.boot, r.summaries, r.frames, r.early, r.macs, r.full_macs, r.audits, r.disagreements \
                         FROM runs r JOIN devices d ON d.device = r.device WHERE r.device = $1 AND r.noted_at < $2 \
                         AND (d.boot IS NULL OR r.boot <> d.boot) ORDER BY r.boot = $4, r.noted_at DESC, r.boot \
                         LIMIT 1000000 OFFSET $3",
                    )
                    .bind(&device)
                    .bind(int(time))
                    .bind(RUNS - 1)
                    .bind(OLDER)
                    .fetch_all(&mut *connection)
                    .await
                    .task(task)?;
                    let mut sum = Run::default();
                    for row in &rows {
                        sum.add(&Run::from_row(row).task(task)?);
                        let boot: Vec<u8> = row.try_get("boot").task(task)?;
                        query("DELETE FROM runs WHERE device = $1 AND boot = $2")
                            .bind(&device)
                            .bind(boot)
                            .execute(&mut *connection)
                            .await
                            .task(task)?;
                    }
                    query(
                        "INSERT INTO runs (device, boot, died, summaries, frames, early, macs, full_macs, audits, \
                         disagreements) VALUES ($1, $2, TRUE, $3, $4, $5, $6, $7, $8, $9)",
                    )
                    .bind(&device)
                    .bind(OLDER)
                    .bind(int(sum.summaries))
                    .bind(int(sum.frames))
                    .bind(int(sum.early))
                    .bind(int(sum.macs))
                    .bind(int(sum.full_macs))
                    .bind(int(sum.audits))
                    .bind(int(sum.disagreements))
                    .execute(&mut *connection)
                    .await
                    .task(task)?;
                    joined += rows.len() as u64;
                }
                Ok(joined)
            })
        })
        .await
    }
}
