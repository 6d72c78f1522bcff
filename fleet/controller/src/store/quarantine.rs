//! Devices that are kept apart: two that have one name, or one that somebody does not trust.
//!
//! Two agents with one identity take the broker's session from each other, and each tells of its birth whenever it has
//! it, with the number of the time. So a run that is born again after a later one was born speaks of two. What is heard
//! twice, since a broker sends it again or several controllers hear it, has the same number, and what is told by chance
//! in another order is rare.

use offramp_proto::DeviceId;

use super::audit::{ITSELF, log_in_txn};
use super::desired::{issue_in_txn, latest_in_txn};
use super::keys::Signer;
use super::sql::{On, Transaction, query, query_scalar};
use super::{Store, StoreError, Task as _, int, uint};
use crate::key::Keyring;

/// Returns of an older run within [`SPAN`] that make two devices of one name.
const RETURNS: u64 = 4;
/// In milliseconds.
const SPAN: u64 = 10 * 60 * 1000;

/// Why a device is kept apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Quarantine {
    /// Since when, in milliseconds since 1970.
    pub(crate) at: u64,
    pub(crate) reason: String,
}

/// What came of a wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    Done,
    /// It was so already.
    Already,
    /// There is no such device.
    Unknown,
}

impl Store {
    /// Keeps a device apart: it gets nothing, and does not count.
    pub(crate) async fn quarantine(
        &self,
        device: DeviceId,
        reason: String,
        who: String,
        now: u64,
    ) -> Result<Kept, StoreError> {
        self.write(move |connection| {
            Box::pin(async move {
                match is_quarantined(&mut *connection, &device).await? {
                    None => Ok(Kept::Unknown),
                    Some(true) => Ok(Kept::Already),
                    Some(false) => {
                        quarantine_in_txn(connection, &device, &reason, &who, now).await?;
                        Ok(Kept::Done)
                    }
                }
            })
        })
        .await
    }

    /// Whether a device is kept apart.
    pub(crate) async fn is_apart(&self, device: &DeviceId) -> Result<bool, StoreError> {
        Ok(is_quarantined(&self.readers, device).await? == Some(true))
    }

    /// Lets a device go. What is desired of it is signed anew, so that it gets it.
    pub(crate) async fn release(
        &self,
        key: std::sync::Arc<Keyring>,
        device: DeviceId,
        who: String,
        now: u64,
    ) -> Result<Kept, StoreError> {
        self.write(move |connection| {
            Box::pin(async move {
                let task = "let a device out of quarantine";
                match is_quarantined(&mut *connection, &device).await? {
                    None => return Ok(Kept::Unknown),
                    Some(false) => return Ok(Kept::Already),
                    Some(true) => {}
                }
                query(
                    "UPDATE devices SET quarantined_at = NULL, quarantine_reason = NULL, returns = 0 WHERE device = $1",
                )
                .bind(device.as_str())
                .execute(&mut *connection)
                .await
                .task(task)?;
                if latest_in_txn(connection, &device).await?.is_some() {
                    let signer = Signer::of(connection, &key).await?;
                    issue_in_txn(connection, &signer, &device, |_| (), now).await?;
                }
                log_in_txn(connection, now, &who, "device.release", &format!("device {device}"), "").await?;
                Ok(Kept::Done)
            })
        })
        .await
    }
}

/// Keeps a device apart, if it is known and not kept apart already.
pub(super) async fn apart_in_txn(
    connection: &mut Transaction,
    device: &DeviceId,
    reason: &str,
    who: &str,
    now: u64,
) -> Result<(), StoreError> {
    match is_quarantined(&mut *connection, device).await? {
        Some(false) => quarantine_in_txn(connection, device, reason, who, now).await,
        Some(true) | None => Ok(()),
    }
}

/// None where there is no such device.
pub(super) async fn is_quarantined<'c>(on: impl Into<On<'c>>, device: &DeviceId) -> Result<Option<bool>, StoreError> {
    query_scalar("SELECT quarantined_at IS NOT NULL FROM devices WHERE device = $1")
        .bind(device.as_str())
        .fetch_optional(on)
        .await
        .task("tell whether a device is in quarantine")
}

async fn quarantine_in_txn(
    connection: &mut Transaction,
    device: &DeviceId,
    reason: &str,
    who: &str,
    now: u64,
) -> Result<(), StoreError> {
    query("UPDATE devices SET quarantined_at = $2, quarantine_reason = $3 WHERE device = $1")
        .bind(device.as_str())
        .bind(int(now))
        .bind(reason)
        .execute(&mut *connection)
        .await
        .task("put a device into quarantine")?;
    log_in_txn(
        connection,
        now,
        who,
        "device.quarantine",
        &format!("device {device}"),
        reason,
    )
    .await
}

/// Notes that a run was born again after a later one, and keeps the device apart when that happens again and again.
pub(super) async fn returned_in_txn(
    connection: &mut Transaction,
    device: &DeviceId,
    now: u64,
) -> Result<(), StoreError> {
    let returns: i64 = query_scalar(
        "UPDATE devices SET returns = CASE WHEN returns_since < $2 THEN 1 ELSE returns + 1 END, \
         returns_since = CASE WHEN returns_since < $2 THEN $3 ELSE returns_since END WHERE device = $1 RETURNING returns",
    )
    .bind(device.as_str())
    .bind(int(now.saturating_sub(SPAN)))
    .bind(int(now))
    .fetch_one(&mut *connection)
    .await
    .task("count returns of a run")?;
    if uint(returns) < RETURNS {
        return Ok(());
    }
    let reason = "two agents speak in its name, in turns: one of them has a copy of the other's identity";
    tracing::warn!(%device, reason, "a device belongs into quarantine");
    apart_in_txn(connection, device, reason, ITSELF, now).await
}
