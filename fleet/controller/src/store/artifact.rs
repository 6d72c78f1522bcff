//! Artifacts, by the digest of their bytes, and the policies that name them.

use offramp_proto::{CHUNK, Digest, MAX_ARTIFACT};

use super::sql::{FromRow, Row, Transaction, query, query_as, query_scalar};
use super::{Store, StoreError, Task as _, device, int, uint};

/// A policy of the library.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Policy {
    pub(crate) name: String,
    pub(crate) version: u64,
    pub(crate) digest: Option<Digest>,
    /// Bytes of the component.
    pub(crate) size: u64,
    pub(crate) added_at: u64,
    /// Devices whose desired state names it.
    pub(crate) desired: u64,
    /// Devices that report it.
    pub(crate) reported: u64,
}

/// A part of an artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Bytes of the whole.
    pub(crate) total: u64,
    /// At most [`CHUNK`] bytes; none when the part begins behind the end.
    pub(crate) bytes: Vec<u8>,
}

impl FromRow for Policy {
    fn from_row(row: &Row) -> Result<Self, sqlx::Error> {
        Ok(Self {
            name: row.try_get("name")?,
            version: uint(row.try_get("version")?),
            digest: device::digest(row.try_get("digest")?),
            size: uint(row.try_get("size")?),
            added_at: uint(row.try_get("added_at")?),
            desired: uint(row.try_get("desired")?),
            reported: uint(row.try_get("reported")?),
        })
    }
}

impl Store {
    /// The policies that were ever pushed, the newest first.
    pub(crate) async fn policy_list(&self, limit: u32) -> Result<Vec<Policy>, StoreError> {
        query_as(
            "SELECT p.name, p.version, p.digest, a.size, p.added_at, \
             coalesce(d.devices, 0) AS desired, coalesce(r.devices, 0) AS reported \
             FROM policies p JOIN artifacts a ON a.digest = p.digest \
             LEFT JOIN (SELECT policy, policy_version, count(*) AS devices FROM desired d \
             WHERE generation = (SELECT max(generation) FROM desired WHERE device = d.device) \
             GROUP BY policy, policy_version) d ON d.policy = p.name AND d.policy_version = p.version \
             LEFT JOIN (SELECT reported_policy, reported_version, count(*) AS devices FROM devices \
             GROUP BY reported_policy, reported_version) r \
             ON r.reported_policy = p.name AND r.reported_version = p.version \
             ORDER BY p.added_at DESC, p.name, p.version DESC LIMIT $1",
        )
        .bind(limit)
        .fetch_all(&self.readers)
        .await
        .task("list policies")
    }

    /// A part of an artifact, from `offset` on; none when the artifact is unknown.
    pub(crate) async fn artifact_part(&self, digest: Digest, offset: u64) -> Result<Option<Part>, StoreError> {
        // substr counts from one.
        let row: Option<(i64, Vec<u8>)> = query_as(
            "SELECT size, substr(bytes, CAST($2 AS INTEGER), CAST($3 AS INTEGER)) FROM artifacts WHERE digest = $1",
        )
        .bind(&digest.0[..])
        .bind(int(offset.min(MAX_ARTIFACT)) + 1)
        .bind(int(CHUNK as u64))
        .fetch_optional(&self.readers)
        .await
        .task("read an artifact")?;
        Ok(row.map(|(total, bytes)| Part {
            total: uint(total),
            bytes,
        }))
    }
}

/// Keeps bytes by their digest.
pub(super) async fn artifact_insert_in_txn(
    connection: &mut Transaction,
    digest: Digest,
    bytes: &[u8],
    now: u64,
) -> Result<(), StoreError> {
    query("INSERT INTO artifacts (digest, size, bytes, added_at) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING")
        .bind(&digest.0[..])
        .bind(int(bytes.len() as u64))
        .bind(bytes)
        .bind(int(now))
        .execute(connection)
        .await
        .task("keep an artifact")?;
    Ok(())
}

/// What a name and version mean, when they were given away.
pub(super) async fn policy_digest_in_txn(
    connection: &mut Transaction,
    name: &str,
    version: u64,
) -> Result<Option<Digest>, StoreError> {
    let digest = query_scalar("SELECT digest FROM policies WHERE name = $1 AND version = $2")
        .bind(name)
        .bind(int(version))
        .fetch_optional(connection)
        .await
        .task("read a policy")?;
    Ok(device::digest(digest))
}

/// Gives a name and version to an artifact.
pub(super) async fn policy_insert_in_txn(
    connection: &mut Transaction,
    name: &str,
    version: u64,
    digest: Digest,
    now: u64,
) -> Result<(), StoreError> {
    query("INSERT INTO policies (name, version, digest, added_at) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING")
        .bind(name)
        .bind(int(version))
        .bind(&digest.0[..])
        .bind(int(now))
        .execute(connection)
        .await
        .task("keep a policy")?;
    Ok(())
}
