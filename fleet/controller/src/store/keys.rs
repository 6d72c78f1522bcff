//! The keys that sign desired states: which there are, which devices trust, and so with which to sign.
//!
//! A device takes what one of the keys has signed that it trusts, and such a word may name others. So a new key is
//! introduced by the old one; a device that says that it trusts the new one is spoken to with it; and when the old one is
//! revoked, the new one tells so.

use std::sync::Arc;

use offramp_proto::{DeviceId, PublicKey, SigningKey};

use super::audit::{ITSELF, log_in_txn};
use super::desired::issue_in_txn;
use super::device::{list, target_in_txn};
use super::sql::{Transaction, query, query_as, query_scalar};
use super::{Store, StoreError, Task as _, int, uint};
use crate::key::Keyring;

/// A key as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyState {
    pub(crate) key: PublicKey,
    pub(crate) added_at: u64,
    pub(crate) added_by: String,
    pub(crate) revoked_at: Option<u64>,
    /// Devices that say that they trust it.
    pub(crate) trusted_by: u64,
}

/// Devices that would take nothing any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Left(pub(crate) Vec<String>);

/// What came of a revocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Revocation {
    /// So many devices are told; these cannot be.
    Done { told: u64, left: Left },
    /// There is no such key, or it was revoked before.
    Unknown,
    /// There is no other.
    Last,
    /// Nothing changed: these devices trust no other key.
    Left(Left),
}

impl Store {
    /// Notes the first keys; refuses a ring without one that is in force.
    pub(crate) async fn claim_keys(&self, ring: &Keyring, now: u64) -> Result<(), StoreError> {
        let public = ring.public();
        let shown = public.last().map(|key| format!("{key:?}")).unwrap_or_default();
        let known = self.write(move |connection| {
            Box::pin(async move {
                let known = in_force(connection).await?;
                if !known.is_empty() {
                    return Ok(known);
                }
                // A database from before there were several has noted its one.
                let noted: Option<Vec<u8>> = query_scalar("SELECT value FROM meta WHERE key = 'key'")
                    .fetch_optional(&mut *connection)
                    .await
                    .task("tell whose desired states they are")?;
                let noted = noted.and_then(|key| key_of(&key));
                let first = noted.map_or(public, |key| vec![key]);
                for key in &first {
                    add_in_txn(connection, key, ITSELF, now).await?;
                }
                Ok(first)
            })
        });
        for key in known.await? {
            if ring.find(&key)?.is_none() {
                return Err(StoreError::Key {
                    found: format!("{key:?}"),
                    wanted: shown,
                });
            }
        }
        Ok(())
    }

    /// The keys, in the order in which they were made.
    pub(crate) async fn key_list(&self) -> Result<Vec<KeyState>, StoreError> {
        let task = "list keys";
        let rows: Vec<(Vec<u8>, i64, String, Option<i64>)> =
            query_as("SELECT public, added_at, added_by, revoked_at FROM keys ORDER BY number")
                .fetch_all(&self.readers)
                .await
                .task(task)?;
        let mut keys = Vec::with_capacity(rows.len());
        for (public, added_at, added_by, revoked_at) in rows {
            let Some(key) = key_of(&public) else { continue };
            let trusted_by: i64 = query_scalar("SELECT count(*) FROM devices WHERE trusts LIKE $1")
                .bind(format!("%{key:?}%"))
                .fetch_one(&self.readers)
                .await
                .task(task)?;
            keys.push(KeyState {
                key,
                added_at: uint(added_at),
                added_by,
                revoked_at: revoked_at.map(uint),
                trusted_by: uint(trusted_by),
            });
        }
        Ok(keys)
    }

    /// The newest key in force: the one that new devices are given.
    pub(crate) async fn key_newest(&self) -> Result<Option<PublicKey>, StoreError> {
        let key: Option<Vec<u8>> =
            query_scalar("SELECT public FROM keys WHERE revoked_at IS NULL ORDER BY number DESC LIMIT 1")
                .fetch_optional(&self.readers)
                .await
                .task("read the newest key")?;
        Ok(key.and_then(|key| key_of(&key)))
    }

    /// Introduces a new key to every device. Gives how many are told.
    pub(crate) async fn key_introduce(
        &self,
        ring: Arc<Keyring>,
        key: PublicKey,
        who: String,
        now: u64,
    ) -> Result<u64, StoreError> {
        self.write(move |connection| {
            Box::pin(async move {
                add_in_txn(connection, &key, &who, now).await?;
                log_in_txn(connection, now, &who, "key.rotate", &format!("key {key:?}"), "").await?;
                let devices = everyone(connection).await?;
                let signer = Signer::of(connection, &ring).await?;
                for device in &devices {
                    issue_in_txn(connection, &signer, device, |_| (), now).await?;
                }
                Ok(devices.len() as u64)
            })
        })
        .await
    }

    /// Revokes a key. Devices that trust no other are left behind, which must be forced.
    pub(crate) async fn key_revoke(
        &self,
        ring: Arc<Keyring>,
        key: PublicKey,
        force: bool,
        who: String,
        now: u64,
    ) -> Result<Revocation, StoreError> {
        self.write(move |connection| {
            Box::pin(async move {
                let keys = in_force(connection).await?;
                if !keys.contains(&key) {
                    return Ok(Revocation::Unknown);
                }
                if keys.len() == 1 {
                    return Ok(Revocation::Last);
                }
                let (mut told, mut left) = (Vec::new(), Left::default());
                for device in everyone(connection).await? {
                    let trusted = trusted(&keys, trusts(connection, &device).await?);
                    if trusted.iter().any(|other| *other != key) {
                        told.push(device);
                    } else {
                        left.0.push(device.to_string());
                    }
                }
                if !left.0.is_empty() && !force {
                    return Ok(Revocation::Left(left));
                }
                query("UPDATE keys SET revoked_at = $2 WHERE public = $1")
                    .bind(&key.to_bytes()[..])
                    .bind(int(now))
                    .execute(&mut *connection)
                    .await
                    .task("revoke a key")?;
                let detail = match left.0.len() {
                    0 => String::new(),
                    count => format!("{count} devices are left behind"),
                };
                log_in_txn(connection, now, &who, "key.revoke", &format!("key {key:?}"), &detail).await?;
                let signer = Signer::of(connection, &ring).await?;
                for device in &told {
                    issue_in_txn(connection, &signer, device, |_| (), now).await?;
                }
                Ok(Revocation::Done {
                    told: told.len() as u64,
                    left,
                })
            })
        })
        .await
    }
}

/// What a transaction signs with.
pub(super) struct Signer<'a> {
    pub(super) ring: &'a Keyring,
    /// In force, the oldest first.
    keys: Vec<PublicKey>,
    /// Whether devices must be told of them: there was once another.
    told: bool,
}

impl<'a> Signer<'a> {
    pub(super) async fn of(connection: &mut Transaction, ring: &'a Keyring) -> Result<Self, StoreError> {
        let keys = in_force(connection).await?;
        let made: i64 = query_scalar("SELECT count(*) FROM keys")
            .fetch_one(connection)
            .await
            .task("count keys")?;
        Ok(Self {
            ring,
            keys,
            told: made > 1,
        })
    }

    /// The key with which to speak to a device that says that it trusts these.
    pub(super) fn for_device(&self, trusts: Option<String>) -> Result<Arc<SigningKey>, StoreError> {
        let trusted = trusted(&self.keys, trusts.map(|told| list(Some(told))));
        // Whoever trusts none of them will refuse any.
        let chosen = trusted.last().or(self.keys.first());
        let lacking = || StoreError::Key {
            found: chosen.map_or_else(String::new, |key| format!("{key:?}")),
            wanted: format!("{:?}", self.ring.newest()),
        };
        let key = chosen.map(|chosen| self.ring.find(chosen)).transpose()?;
        key.flatten().ok_or_else(lacking)
    }

    /// The keys that a device is to trust from now on; none where there was never another.
    pub(super) fn keys(&self) -> Vec<PublicKey> {
        if self.told { self.keys.clone() } else { Vec::new() }
    }
}

/// Of the keys in force those that a device trusts. One that does not tell trusts the first.
fn trusted(keys: &[PublicKey], told: Option<Vec<String>>) -> Vec<PublicKey> {
    match told {
        Some(told) => {
            let is_told = |key: &&PublicKey| told.contains(&format!("{key:?}"));
            keys.iter().filter(is_told).cloned().collect()
        }
        None => keys.first().cloned().into_iter().collect(),
    }
}

async fn trusts(connection: &mut Transaction, device: &DeviceId) -> Result<Option<Vec<String>>, StoreError> {
    let told: Option<Option<String>> = query_scalar("SELECT trusts FROM devices WHERE device = $1")
        .bind(device.as_str())
        .fetch_optional(connection)
        .await
        .task("tell which keys a device trusts")?;
    Ok(told.flatten().map(|told| list(Some(told))))
}

/// The keys that are not revoked, the oldest first.
async fn in_force(connection: &mut Transaction) -> Result<Vec<PublicKey>, StoreError> {
    let keys: Vec<(Vec<u8>, i64)> =
        query_as("SELECT public, number FROM keys WHERE revoked_at IS NULL ORDER BY number")
            .fetch_all(connection)
            .await
            .task("list keys")?;
    Ok(keys.into_iter().filter_map(|(key, _)| key_of(&key)).collect())
}

async fn everyone(connection: &mut Transaction) -> Result<Vec<DeviceId>, StoreError> {
    Ok(target_in_txn(connection, None).await?.unwrap_or_default())
}

async fn add_in_txn(connection: &mut Transaction, key: &PublicKey, who: &str, now: u64) -> Result<(), StoreError> {
    query(
        "INSERT INTO keys (public, number, added_at, added_by) \
         VALUES ($1, (SELECT coalesce(max(number), 0) + 1 FROM keys), $2, $3)",
    )
    .bind(&key.to_bytes()[..])
    .bind(int(now))
    .bind(who)
    .execute(connection)
    .await
    .task("keep a key")?;
    Ok(())
}

fn key_of(bytes: &[u8]) -> Option<PublicKey> {
    PublicKey::from_bytes(bytes.try_into().ok()?)
}
