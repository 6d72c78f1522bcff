//! The log of who did what.

use super::sql::{FromRow, Row, Transaction, query, query_as};
use super::{Store, StoreError, Task as _, int, uint};

/// Who acts where nobody told it to.
pub(crate) const ITSELF: &str = "controller";

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AuditEntry {
    pub(crate) id: u64,
    pub(crate) at: u64,
    pub(crate) who: String,
    pub(crate) what: String,
    pub(crate) subject: String,
    pub(crate) detail: String,
}

impl FromRow for AuditEntry {
    fn from_row(row: &Row) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: uint(row.try_get("id")?),
            at: uint(row.try_get("at")?),
            who: row.try_get("who")?,
            what: row.try_get("what")?,
            subject: row.try_get("subject")?,
            detail: row.try_get("detail")?,
        })
    }
}

impl Store {
    /// The log, the last entries first; all of it, or what is about one subject.
    pub(crate) async fn audit_list(&self, subject: Option<&str>, limit: u32) -> Result<Vec<AuditEntry>, StoreError> {
        query_as(
            "SELECT id, at, who, what, subject, detail FROM audit WHERE $1 IS NULL OR subject = $1 \
             ORDER BY id DESC LIMIT $2",
        )
        .bind(subject)
        .bind(limit)
        .fetch_all(&self.readers)
        .await
        .task("read the audit log")
    }
}

/// Writes into the log what is done in the same transaction.
pub(super) async fn log_in_txn(
    connection: &mut Transaction,
    now: u64,
    who: &str,
    what: &str,
    subject: &str,
    detail: &str,
) -> Result<(), StoreError> {
    query("INSERT INTO audit (at, who, what, subject, detail) VALUES ($1, $2, $3, $4, $5)")
        .bind(int(now))
        .bind(who)
        .bind(what)
        .bind(subject)
        .bind(detail)
        .execute(connection)
        .await
        .task("write the audit log")?;
    Ok(())
}
