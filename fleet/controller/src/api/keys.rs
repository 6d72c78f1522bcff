//! `/keys`

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use offramp_proto::PublicKey;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ApiError;
use crate::access::Admin;
use crate::store::{KeyState, Left, Revocation};
use crate::web::Fleet;

/// Devices that are named in an answer.
const NAMED: usize = 20;

/// A key that signs desired states.
#[derive(Serialize, ToSchema)]
#[schema(as = Key)]
struct View {
    /// Its public part, hexadecimal.
    key: String,
    added_at: u64,
    added_by: String,
    /// Null while it is in force.
    revoked_at: Option<u64>,
    /// Devices that say that they trust it.
    trusted_by: u64,
}

#[derive(Serialize, ToSchema)]
pub(super) struct KeyList {
    keys: Vec<View>,
}

/// List the keys that sign desired states, the oldest first
#[utoipa::path(get, path = "/keys", tag = "access", operation_id = "list_keys", responses((status = OK, body = KeyList)))]
pub(super) async fn list(State(shared): Fleet) -> Result<Json<KeyList>, ApiError> {
    let keys = shared.store.key_list().await?.into_iter().map(
        |KeyState {
             key,
             added_at,
             added_by,
             revoked_at,
             trusted_by,
         }| View {
            key: format!("{key:?}"),
            added_at,
            added_by,
            revoked_at,
            trusted_by,
        },
    );
    Ok(Json(KeyList { keys: keys.collect() }))
}

#[derive(Serialize, ToSchema)]
pub(super) struct KeyRotated {
    /// The new key's public part, hexadecimal.
    key: String,
    /// Devices that are told of it.
    devices: u64,
}

/// Make a new key, and introduce it to every device in the name of the one before
///
/// Each device is spoken to with the new key as soon as it says that it trusts it. Then the old one can be revoked.
#[utoipa::path(post, path = "/keys", tag = "access", operation_id = "rotate_key", responses((status = OK, body = KeyRotated)))]
pub(super) async fn rotate(State(shared): Fleet, Admin(identity): Admin) -> Result<Json<KeyRotated>, ApiError> {
    let in_force = shared.store.key_list().await?;
    if in_force.iter().filter(|key| key.revoked_at.is_none()).count() >= offramp_proto::MAX_KEYS {
        return Err(ApiError::new(
            StatusCode::CONFLICT,
            "there are as many keys as a device can trust",
            "revoke one with `offramp-fleet keys revoke KEY`",
        ));
    }
    let (key, devices) = shared.rotate_key(identity.name).await?;
    tracing::warn!(?key, devices, "a new key is introduced");
    Ok(Json(KeyRotated {
        key: format!("{key:?}"),
        devices,
    }))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct KeyRevocation {
    /// Also when devices are left behind that trust no other key: they must be given another by hand.
    #[serde(default)]
    force: bool,
}

#[derive(Serialize, ToSchema)]
pub(super) struct KeyRevoked {
    /// Devices that are told.
    devices: u64,
    /// Devices that are left behind.
    left: u64,
    /// The first of them.
    left_first: Vec<String>,
}

/// Revoke a key
#[utoipa::path(
    post, path = "/keys/{key}/revoke", tag = "access", operation_id = "revoke_key", request_body = KeyRevocation,
    params(("key" = String, Path, description = "Its public part, hexadecimal")),
    responses((status = OK, body = KeyRevoked))
)]
pub(super) async fn revoke(
    State(shared): Fleet,
    Admin(identity): Admin,
    Path(key): Path<String>,
    wanted: Result<Json<KeyRevocation>, JsonRejection>,
) -> Result<Json<KeyRevoked>, ApiError> {
    let Json(wanted) =
        wanted.map_err(|rejection| ApiError::bad_request(rejection.body_text(), "send {}, or {\"force\": true}"))?;
    let unknown = || ApiError::not_found("there is no such key in force", "see `offramp-fleet keys list`");
    let key: PublicKey = key.parse().map_err(|_| unknown())?;
    match shared.revoke_key(key.clone(), wanted.force, identity.name).await? {
        Revocation::Done { told, left } => {
            tracing::warn!(?key, devices = told, left = left.0.len(), "a key is revoked");
            Ok(Json(KeyRevoked {
                devices: told,
                left: left.0.len() as u64,
                left_first: left.0.into_iter().take(NAMED).collect(),
            }))
        }
        Revocation::Unknown => Err(unknown()),
        Revocation::Last => Err(ApiError::new(
            StatusCode::CONFLICT,
            "it is the only key in force",
            "make another first, with `offramp-fleet keys rotate`",
        )),
        Revocation::Left(Left(devices)) => {
            let first = devices.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
            Err(ApiError::new(
                StatusCode::CONFLICT,
                format!("{} devices trust no other key yet: {first}", devices.len()),
                "wait until they have been heard from, or force it: they must then be given another key by hand",
            ))
        }
    }
}
