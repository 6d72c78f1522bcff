//! What is old makes room.

use super::hours::folded_in_txn;
use super::sql::query;
use super::{Store, StoreError, Task as _, int};

/// Rows that are looked at in one transaction: the writer has other work, too.
const BATCH: u32 = 2000;

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
}
