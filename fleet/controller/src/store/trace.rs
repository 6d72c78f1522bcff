//! Pieces of exit traces that devices share.

use std::sync::Arc;

use offramp_proto::Digest;

use super::sql::{Transaction, query, query_as, query_scalar};
use super::{Store, StoreError, Task as _, int};

/// Pieces that are kept of a device, the newest.
const KEPT: u32 = 16;

/// A piece of a trace on its way in.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) device: String,
    pub(crate) model: String,
    pub(crate) model_version: u64,
    pub(crate) model_digest: Digest,
    pub(crate) frames: u64,
    pub(crate) at: u64,
    pub(crate) bytes: Vec<u8>,
}

impl Store {
    /// Keeps pieces, all or none; what is here already changes nothing. Gives how many were new.
    pub(crate) async fn trace_insert(&self, pieces: Arc<[Piece]>) -> Result<u64, StoreError> {
        self.write(move |connection| Box::pin(async move { insert_in_txn(connection, &pieces).await }))
            .await
    }

    /// Numbers and devices of the pieces, the newest of each device first, then the one before it of each.
    pub(crate) async fn trace_list(&self) -> Result<Vec<(i64, String)>, StoreError> {
        query_as(
            "SELECT id, device FROM (SELECT id, device, row_number() OVER (PARTITION BY device ORDER BY id DESC) AS rank \
             FROM traces) AS ranked ORDER BY rank, id DESC",
        )
        .fetch_all(&self.readers)
        .await
        .task("list the traces")
    }

    /// The bytes of a piece, if it is still there.
    pub(crate) async fn trace_fetch(&self, id: i64) -> Result<Option<Vec<u8>>, StoreError> {
        query_scalar("SELECT bytes FROM traces WHERE id = $1")
            .bind(id)
            .fetch_optional(&self.readers)
            .await
            .task("read a trace")
    }

    /// The component of a policy.
    pub(crate) async fn policy_component(&self, policy: &str, version: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let rows = query(
            "SELECT a.bytes FROM policies p JOIN artifact_pieces a ON a.digest = p.digest WHERE p.name = $1 AND p.version = $2 \
             ORDER BY a.at",
        )
        .bind(policy)
        .bind(int(version))
        .fetch_all(&self.readers)
        .await
        .task("read a policy")?;
        let pieces = rows.iter().map(|row| row.try_get::<Vec<u8>>("bytes"));
        let pieces = pieces.collect::<Result<Vec<_>, _>>().task("read a policy")?;
        Ok(Some(pieces.concat()).filter(|bytes| !bytes.is_empty()))
    }
}

async fn insert_in_txn(connection: &mut Transaction, pieces: &[Piece]) -> Result<u64, StoreError> {
    let task = "keep a trace";
    let mut new = 0;
    for piece in pieces {
        let done = query(
            "INSERT INTO traces (device, model, model_version, model_digest, frames, received_at, digest, bytes) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING",
        )
        .bind(&piece.device)
        .bind(&piece.model)
        .bind(int(piece.model_version))
        .bind(&piece.model_digest.0[..])
        .bind(int(piece.frames))
        .bind(int(piece.at))
        .bind(&Digest::of(&piece.bytes).0[..])
        .bind(&piece.bytes)
        .execute(&mut *connection)
        .await
        .task(task)?;
        new += done;
        query(
            "DELETE FROM traces WHERE device = $1 AND id NOT IN \
             (SELECT id FROM traces WHERE device = $1 ORDER BY id DESC LIMIT $2)",
        )
        .bind(&piece.device)
        .bind(KEPT)
        .execute(&mut *connection)
        .await
        .task(task)?;
    }
    Ok(new)
}
