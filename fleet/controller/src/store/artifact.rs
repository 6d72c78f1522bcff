//! Artifacts, by the digest of their bytes, and the policies and models that name them.

use bytes::Bytes;
use offramp_proto::{CHUNK, DesiredModel, Digest, MAX_ARTIFACT};

use super::audit::log_in_txn;
use super::sql::{FromRow, Row, Transaction, query, query_as, query_scalar};
use super::{Store, StoreError, Task as _, device, int, now, uint};

/// A policy or a model of the library.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Artifact {
    pub(crate) name: String,
    pub(crate) version: u64,
    /// Of the component, or of the package as one file.
    pub(crate) digest: Option<Digest>,
    /// Bytes of that.
    pub(crate) size: u64,
    pub(crate) added_at: u64,
    /// Devices whose desired state names it.
    pub(crate) desired: u64,
    /// Devices that report it.
    pub(crate) reported: u64,
}

/// A model of the library.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct KeptModel {
    pub(crate) artifact: Artifact,
    /// Digest of its manifest, by which devices call it.
    pub(crate) manifest: Option<Digest>,
    /// Where else the file is.
    pub(crate) url: Option<String>,
}

/// A model on its way into the library.
#[derive(Clone, Debug)]
pub(crate) struct NewModel {
    pub(crate) name: String,
    pub(crate) version: u64,
    pub(crate) digest: Digest,
    pub(crate) manifest: Digest,
    pub(crate) url: Option<String>,
    pub(crate) who: String,
    pub(crate) now: u64,
}

/// Bytes of a piece: what one transaction writes.
const PIECE: usize = 1 << 20;

/// A part of an artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Bytes of the whole.
    pub(crate) total: u64,
    /// At most [`CHUNK`] bytes; none when the part begins behind the end.
    pub(crate) bytes: Vec<u8>,
}

macro_rules! select_models {
    ($rest:literal) => {
        concat!(
            "SELECT m.name, m.version, m.digest, m.manifest, m.url, a.size, m.added_at, \
             coalesce(w.devices, 0) AS desired, coalesce(r.devices, 0) AS reported \
             FROM models m JOIN artifacts a ON a.digest = m.digest \
             LEFT JOIN (SELECT model, model_version, count(*) AS devices FROM desired d \
             WHERE generation = (SELECT max(generation) FROM desired WHERE device = d.device) \
             GROUP BY model, model_version) w ON w.model = m.name AND w.model_version = m.version \
             LEFT JOIN (SELECT model_digest, count(*) AS devices FROM devices GROUP BY model_digest) r \
             ON r.model_digest = m.manifest ",
            $rest
        )
    };
}

impl FromRow for Artifact {
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
    pub(crate) async fn policy_list(&self, limit: u32) -> Result<Vec<Artifact>, StoreError> {
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

    /// A part of an artifact, from `offset` on; none when the artifact is unknown. Offsets are whole chunks, so that a
    /// part lies in one piece.
    pub(crate) async fn artifact_part(&self, digest: Digest, offset: u64) -> Result<Option<Part>, StoreError> {
        // substr counts from one.
        let row: Option<(i64, Option<Vec<u8>>)> = query_as(
            "SELECT a.size, (SELECT substr(p.bytes, CAST($2 - p.at + 1 AS INTEGER), CAST($3 AS INTEGER)) \
             FROM artifact_pieces p WHERE p.digest = a.digest AND p.at <= $2 ORDER BY p.at DESC LIMIT 1) \
             FROM artifacts a WHERE a.digest = $1",
        )
        .bind(&digest.0[..])
        .bind(int(offset.min(MAX_ARTIFACT)))
        .bind(int(CHUNK as u64))
        .fetch_optional(&self.readers)
        .await
        .task("read an artifact")?;
        Ok(row.map(|(total, bytes)| Part {
            total: uint(total),
            bytes: bytes.unwrap_or_default(),
        }))
    }

    /// Keeps the pieces of an artifact, each in a transaction of its own: other writers come in between. It is known once
    /// a name is given to it.
    pub(crate) async fn artifact_prepare(&self, digest: Digest, bytes: &Bytes) -> Result<(), StoreError> {
        if self.artifact_part(digest, 0).await?.is_some() {
            return Ok(());
        }
        for (number, at) in (0..bytes.len()).step_by(PIECE).enumerate() {
            let piece = bytes.slice(at..bytes.len().min(at + PIECE));
            let at = (number * PIECE) as u64;
            self.write(move |connection| {
                Box::pin(async move { piece_insert_in_txn(connection, digest, at, &piece, now()).await })
            })
            .await?;
        }
        Ok(())
    }

    /// Removes pieces that came before a time and belong to no artifact: their upload broke off. Gives how many.
    pub(crate) async fn pieces_remove_before(&self, time: u64) -> Result<u64, StoreError> {
        self.write(move |connection| {
            Box::pin(async move {
                // Digests first, which an index has: to get at the time, SQLite reads a piece whole.
                query(
                    "DELETE FROM artifact_pieces WHERE digest IN (SELECT digest FROM artifact_pieces \
                     EXCEPT SELECT digest FROM artifacts) AND kept_at < $1",
                )
                .bind(int(time))
                .execute(connection)
                .await
                .task("remove what broken-off uploads have left")
            })
        })
        .await
    }

    /// The models that were ever added, the newest first.
    pub(crate) async fn model_list(&self, limit: u32) -> Result<Vec<KeptModel>, StoreError> {
        query_as(select_models!(
            "ORDER BY m.added_at DESC, m.name, m.version DESC LIMIT $1"
        ))
        .bind(limit)
        .fetch_all(&self.readers)
        .await
        .task("list models")
    }

    /// One model of the library.
    pub(crate) async fn model_fetch(&self, name: &str, version: u64) -> Result<Option<KeptModel>, StoreError> {
        query_as(select_models!("WHERE m.name = $1 AND m.version = $2"))
            .bind(name)
            .bind(int(version))
            .fetch_optional(&self.readers)
            .await
            .task("read a model")
    }

    /// Gives a name and version to an artifact whose pieces are here. Another digest than the model's where that name and
    /// version mean another file already.
    pub(crate) async fn model_insert(&self, model: NewModel, size: u64) -> Result<Digest, StoreError> {
        self.write(move |connection| Box::pin(async move { model_insert_in_txn(connection, &model, size).await }))
            .await
    }
}

async fn model_insert_in_txn(connection: &mut Transaction, model: &NewModel, size: u64) -> Result<Digest, StoreError> {
    let task = "keep a model";
    let known: Option<Vec<u8>> = query_scalar("SELECT digest FROM models WHERE name = $1 AND version = $2")
        .bind(&model.name)
        .bind(int(model.version))
        .fetch_optional(&mut *connection)
        .await
        .task(task)?;
    if let Some(known) = device::digest(known)
        && known != model.digest
    {
        return Ok(known);
    }
    artifact_note_in_txn(connection, model.digest, size, model.now).await?;
    query(
        "INSERT INTO models (name, version, digest, manifest, url, added_at) VALUES ($1, $2, $3, $4, $5, $6) \
         ON CONFLICT (name, version) DO UPDATE SET url = coalesce(excluded.url, models.url)",
    )
    .bind(&model.name)
    .bind(int(model.version))
    .bind(&model.digest.0[..])
    .bind(&model.manifest.0[..])
    .bind(&model.url)
    .bind(int(model.now))
    .execute(&mut *connection)
    .await
    .task(task)?;
    let subject = format!("model {} {}", model.name, model.version);
    log_in_txn(connection, model.now, &model.who, "model.add", &subject, "").await?;
    Ok(model.digest)
}

/// A model of the library, as devices are told of it.
pub(super) async fn desired_model_in_txn(
    connection: &mut Transaction,
    name: &str,
    version: u64,
) -> Result<Option<DesiredModel>, StoreError> {
    let row: Option<(Vec<u8>, i64, Option<String>)> = query_as(
        "SELECT m.digest, a.size, m.url FROM models m JOIN artifacts a ON a.digest = m.digest \
         WHERE m.name = $1 AND m.version = $2",
    )
    .bind(name)
    .bind(int(version))
    .fetch_optional(connection)
    .await
    .task("read a model")?;
    Ok(row.and_then(|(digest, size, url)| {
        Some(DesiredModel {
            name: name.into(),
            version,
            digest: device::digest(Some(digest))?,
            size: uint(size),
            url,
        })
    }))
}

impl FromRow for KeptModel {
    fn from_row(row: &Row) -> Result<Self, sqlx::Error> {
        Ok(Self {
            artifact: Artifact::from_row(row)?,
            manifest: device::digest(row.try_get("manifest")?),
            url: row.try_get("url")?,
        })
    }
}

/// Keeps bytes by their digest.
pub(super) async fn artifact_insert_in_txn(
    connection: &mut Transaction,
    digest: Digest,
    bytes: &[u8],
    now: u64,
) -> Result<(), StoreError> {
    let known: bool = query_scalar("SELECT EXISTS (SELECT 1 FROM artifacts WHERE digest = $1)")
        .bind(&digest.0[..])
        .fetch_one(&mut *connection)
        .await
        .task("look for an artifact")?;
    if known {
        return Ok(());
    }
    for (number, piece) in bytes.chunks(PIECE).enumerate() {
        piece_insert_in_txn(connection, digest, (number * PIECE) as u64, piece, now).await?;
    }
    artifact_note_in_txn(connection, digest, bytes.len() as u64, now).await
}

async fn piece_insert_in_txn(
    connection: &mut Transaction,
    digest: Digest,
    at: u64,
    bytes: &[u8],
    now: u64,
) -> Result<(), StoreError> {
    // One of an upload that broke off counts as new again, and is not removed before this one ends.
    query(
        "INSERT INTO artifact_pieces (digest, at, bytes, kept_at) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (digest, at) DO UPDATE SET kept_at = excluded.kept_at",
    )
    .bind(&digest.0[..])
    .bind(int(at))
    .bind(bytes)
    .bind(int(now))
    .execute(connection)
    .await
    .task("keep a piece of an artifact")?;
    Ok(())
}

/// Notes that all pieces of an artifact are here.
async fn artifact_note_in_txn(
    connection: &mut Transaction,
    digest: Digest,
    size: u64,
    now: u64,
) -> Result<(), StoreError> {
    query("INSERT INTO artifacts (digest, size, added_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
        .bind(&digest.0[..])
        .bind(int(size))
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
