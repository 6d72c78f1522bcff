//! Tokens with which devices enrol, and who has a certificate.

use std::collections::BTreeMap;

use offramp_proto::{DeviceId, Digest};

use super::audit::log_in_txn;
use super::device::json;
use super::group::{fits_in_txn, set_in_txn};
use super::quarantine::{apart_in_txn, is_quarantined};
use super::sql::{Transaction, query, query_as, query_scalar};
use super::{Store, StoreError, Task as _, int, uint};
use crate::authority::{Issued, Revoked};

/// Certificates that a device may be given by renewal within [`SPAN`].
const MOST_RENEWALS: i64 = 8;
/// In milliseconds: a day.
const SPAN: u64 = 24 * 3600 * 1000;

/// The device that a token is for, its end, when it was used, and the labels that come with it.
type Token = (Option<String>, i64, Option<i64>, Option<String>);

/// What came of the use of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Enrolled {
    Done,
    /// Nobody made such a token.
    Unknown,
    Expired,
    /// It holds once.
    Used,
    /// It is for another device.
    OtherDevice,
    /// The device has a certificate, and the token is not for it by name.
    Taken,
    /// With those of the token, the device would have too many labels.
    Labels,
}

/// What came of a device's wish for its next certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Renewed {
    Done,
    /// This key has one already: this one.
    Again(String),
    /// Whoever asks has no certificate of this device that holds.
    Unknown,
    /// The device is kept apart.
    Quarantined,
    /// It was given too many today.
    TooMany,
}

impl Store {
    /// Keeps a token.
    pub(crate) async fn enrolment_create(
        &self,
        digest: Digest,
        device: Option<DeviceId>,
        labels: BTreeMap<String, Option<String>>,
        who: String,
        now: u64,
        expires_at: u64,
    ) -> Result<(), StoreError> {
        self.write(move |connection| {
            Box::pin(async move {
                query(
                    "INSERT INTO enrolments (digest, device, created_at, created_by, expires_at, labels) \
                     VALUES ($1, $2, $3, $4, $5, $6)",
                )
                .bind(&digest.0[..])
                .bind(device.as_ref().map(DeviceId::as_str))
                .bind(int(now))
                .bind(&who)
                .bind(int(expires_at))
                .bind(json(&labels))
                .execute(&mut *connection)
                .await
                .task("keep an enrolment token")?;
                let subject = device.map_or_else(|| "any new device".into(), |device| format!("device {device}"));
                log_in_txn(connection, now, &who, "enrolment.create", &subject, "").await
            })
        })
        .await
    }

    /// Uses a token up for a device that gets a certificate; nothing has changed but where it is done.
    pub(crate) async fn enrol(
        &self,
        digest: Digest,
        device: DeviceId,
        now: u64,
        issued: Issued,
    ) -> Result<Enrolled, StoreError> {
        self.write(move |connection| {
            Box::pin(async move {
                let task = "enrol a device";
                let token: Option<Token> =
                    query_as("SELECT device, expires_at, used_at, labels FROM enrolments WHERE digest = $1")
                        .bind(&digest.0[..])
                        .fetch_optional(&mut *connection)
                        .await
                        .task(task)?;
                let Some((only, ends, used, labels)) = token else {
                    return Ok(Enrolled::Unknown);
                };
                if used.is_some() {
                    return Ok(Enrolled::Used);
                }
                if uint(ends) <= now {
                    return Ok(Enrolled::Expired);
                }
                if only.as_ref().is_some_and(|only| only != device.as_str()) {
                    return Ok(Enrolled::OtherDevice);
                }
                let taken: bool = query_scalar("SELECT EXISTS (SELECT 1 FROM certificates WHERE device = $1)")
                    .bind(device.as_str())
                    .fetch_one(&mut *connection)
                    .await
                    .task(task)?;
                if taken && only.is_none() {
                    return Ok(Enrolled::Taken);
                }
                let labels = labels
                    .and_then(|text| serde_json::from_str(&text).ok())
                    .unwrap_or_default();
                if !fits_in_txn(connection, &device, &labels).await? {
                    return Ok(Enrolled::Labels);
                }
                query("UPDATE enrolments SET used_at = $2, used_by = $3 WHERE digest = $1")
                    .bind(&digest.0[..])
                    .bind(int(now))
                    .bind(device.as_str())
                    .execute(&mut *connection)
                    .await
                    .task(task)?;
                certify_in_txn(connection, &device, &issued, now).await?;
                set_in_txn(connection, &device, &labels).await?;
                let subject = format!("device {device}");
                log_in_txn(connection, now, device.as_str(), "device.enrol", &subject, "").await?;
                Ok(Enrolled::Done)
            })
        })
        .await
    }

    /// Keeps the next certificate of a device that has shown the key of one that holds.
    pub(crate) async fn certificate_renew(
        &self,
        device: DeviceId,
        shown: Digest,
        issued: Issued,
        now: u64,
    ) -> Result<Renewed, StoreError> {
        self.write(move |connection| {
            Box::pin(async move {
                let task = "renew a certificate";
                let known: bool = query_scalar(
                    "SELECT EXISTS (SELECT 1 FROM issued WHERE device = $1 AND key = $2 AND revoked_at IS NULL \
                     AND expires_at > $3)",
                )
                .bind(device.as_str())
                .bind(&shown.0[..])
                .bind(int(now))
                .fetch_one(&mut *connection)
                .await
                .task(task)?;
                if !known {
                    return Ok(Renewed::Unknown);
                }
                if is_quarantined(&mut *connection, &device).await? == Some(true) {
                    return Ok(Renewed::Quarantined);
                }
                // An answer may be lost, and a question come twice.
                let given: Option<String> = query_scalar(
                    "SELECT certificate FROM issued WHERE device = $1 AND key = $2 AND revoked_at IS NULL \
                     AND expires_at > $3 ORDER BY expires_at DESC LIMIT 1",
                )
                .bind(device.as_str())
                .bind(&issued.key.0[..])
                .bind(int(now))
                .fetch_optional(&mut *connection)
                .await
                .task(task)?;
                if let Some(given) = given {
                    return Ok(Renewed::Again(given));
                }
                let today: i64 = query_scalar("SELECT count(*) FROM issued WHERE device = $1 AND issued_at > $2")
                    .bind(device.as_str())
                    .bind(int(now.saturating_sub(SPAN)))
                    .fetch_one(&mut *connection)
                    .await
                    .task(task)?;
                if today >= MOST_RENEWALS {
                    return Ok(Renewed::TooMany);
                }
                certify_in_txn(connection, &device, &issued, now).await?;
                let subject = format!("device {device}");
                log_in_txn(connection, now, device.as_str(), "certificate.renew", &subject, "").await?;
                Ok(Renewed::Done)
            })
        })
        .await
    }

    /// Revokes every certificate that a device was given so far, and keeps it apart. Gives how many there were.
    pub(crate) async fn certificate_revoke(
        &self,
        device: DeviceId,
        reason: String,
        who: String,
        now: u64,
    ) -> Result<u64, StoreError> {
        self.write(move |connection| {
            Box::pin(async move {
                let revoked = query(
                    "UPDATE issued SET revoked_at = $2 WHERE device = $1 AND revoked_at IS NULL AND expires_at > $2",
                )
                .bind(device.as_str())
                .bind(int(now))
                .execute(&mut *connection)
                .await
                .task("revoke certificates")?;
                if revoked > 0 {
                    let subject = format!("device {device}");
                    log_in_txn(connection, now, &who, "certificate.revoke", &subject, &reason).await?;
                    // The broker may let it in until it has the list.
                    let reason = format!("its certificates were revoked: {reason}");
                    apart_in_txn(connection, &device, &reason, &who, now).await?;
                }
                Ok(revoked)
            })
        })
        .await
    }

    /// Devices whose newest certificate is in the last sixth of its time, or beyond; those that are kept apart are not
    /// waited for.
    pub(crate) async fn certificates_ending(&self, now: u64) -> Result<u64, StoreError> {
        let count: i64 = query_scalar(
            "SELECT count(*) FROM certificates JOIN devices ON devices.device = certificates.device \
             WHERE (expires_at - $1) * 6 < expires_at - issued_at AND quarantined_at IS NULL",
        )
        .bind(int(now))
        .fetch_one(&self.readers)
        .await
        .task("count certificates that end soon")?;
        Ok(uint(count))
    }

    /// The certificates that were revoked and would hold still.
    pub(crate) async fn revoked_list(&self, now: u64) -> Result<Vec<Revoked>, StoreError> {
        let rows: Vec<(Vec<u8>, i64)> = query_as(
            "SELECT serial, revoked_at FROM issued WHERE revoked_at IS NOT NULL AND expires_at > $1 ORDER BY serial",
        )
        .bind(int(now))
        .fetch_all(&self.readers)
        .await
        .task("list revoked certificates")?;
        let revoked = rows.into_iter().map(|(serial, at)| Revoked { serial, at: uint(at) });
        Ok(revoked.collect())
    }
}

/// Notes a certificate that a device is given.
async fn certify_in_txn(
    connection: &mut Transaction,
    device: &DeviceId,
    issued: &Issued,
    now: u64,
) -> Result<(), StoreError> {
    let task = "keep a certificate";
    query(
        "INSERT INTO certificates (device, issued_at, expires_at) VALUES ($1, $2, $3) \
         ON CONFLICT (device) DO UPDATE SET issued_at = $2, expires_at = $3",
    )
    .bind(device.as_str())
    .bind(int(now))
    .bind(int(issued.expires_at))
    .execute(&mut *connection)
    .await
    .task(task)?;
    query(
        "INSERT INTO issued (serial, device, issued_at, expires_at, key, certificate) VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(&issued.serial[..])
    .bind(device.as_str())
    .bind(int(now))
    .bind(int(issued.expires_at))
    .bind(&issued.key.0[..])
    .bind(&issued.certificate)
    .execute(&mut *connection)
    .await
    .task(task)?;
    Ok(())
}
