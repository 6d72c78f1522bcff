//! `/enrolments`, `/enrol`

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use offramp_proto::DeviceId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{ApiError, Reason};
use crate::access::{self, Identity};
use crate::authority::AuthorityError;
use crate::selector::check_labels;
use crate::store::{Enrolled, now};
use crate::web::Fleet;

const HOUR: u64 = 3600 * 1000;
/// Hours for which a token holds where nothing else is said.
const USUAL_HOURS: u64 = 24;
/// Hours for which it may hold.
const MOST_HOURS: u64 = 24 * 90;

/// A token that is wanted.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = EnrolmentWanted)]
pub(super) struct Wanted {
    /// The only device that it is for; it may have a certificate already. Without one, any device that has none.
    #[schema(value_type = Option<String>)]
    device: Option<DeviceId>,
    /// Hours for which it holds, at most 2160; 24 without them.
    hours: Option<u64>,
    /// Labels that the device is given, values by key.
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

/// A token for one device, which is not kept and cannot be shown again.
#[derive(Serialize, ToSchema)]
#[schema(as = Enrolment)]
pub(super) struct Made {
    token: String,
    device: Option<String>,
    expires_at: u64,
}

/// Make a token with which a device gets its certificate, once
#[utoipa::path(
    post, path = "/enrolments", tag = "access", operation_id = "create_enrolment", request_body = Wanted,
    responses((status = OK, body = Made))
)]
pub(super) async fn create(
    State(shared): Fleet,
    identity: Identity,
    wanted: Result<Json<Wanted>, JsonRejection>,
) -> Result<Json<Made>, ApiError> {
    let Json(wanted) = wanted.map_err(|rejection| {
        ApiError::bad_request(
            rejection.body_text(),
            "send {\"device\": NAME, \"hours\": N, \"labels\": {…}}, or {}",
        )
    })?;
    let hours = wanted.hours.unwrap_or(USUAL_HOURS);
    if !(1..=MOST_HOURS).contains(&hours) {
        return Err(ApiError::bad_request("`hours` is out of range", "use 1 to 2160 hours"));
    }
    let labels = wanted
        .labels
        .into_iter()
        .map(|(key, value)| (key, Some(value)))
        .collect();
    check_labels(&labels)?;
    let (token, digest) = access::secret()?;
    let expires_at = now().saturating_add(hours * HOUR);
    let device = wanted.device;
    let kept = shared
        .store
        .enrolment_create(digest, device.clone(), labels, identity.name, now(), expires_at);
    kept.await?;
    Ok(Json(Made {
        token,
        device: device.map(|device| device.to_string()),
        expires_at,
    }))
}

/// What a device sends.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = EnrolRequest)]
pub(super) struct Request {
    token: String,
    /// Its name, 1 to 64 letters, digits, `-`, `_` or `.`.
    #[schema(value_type = String)]
    device: DeviceId,
    /// A request for a certificate (PKCS#10), PEM. Only its key counts.
    request: String,
}

/// What a device needs to be one of the fleet.
#[derive(Serialize, ToSchema)]
#[schema(as = EnrolAnswer)]
pub(super) struct Answer {
    tenant: String,
    device: String,
    /// Its certificate, PEM.
    certificate: String,
    /// That of the fleet's authority, which the broker's is of, too; PEM.
    authority: String,
    expires_at: u64,
    /// Address of the broker.
    broker: String,
    /// Key with which desired states are verified, hexadecimal.
    controller_key: String,
}

/// Become a device of the fleet; needs an enrolment's token and no other
#[utoipa::path(
    post, path = "/enrol", tag = "access", operation_id = "enrol", request_body = Request, security(()),
    responses((status = OK, body = Answer))
)]
pub(super) async fn enrol(
    State(shared): Fleet,
    request: Result<Json<Request>, JsonRejection>,
) -> Result<Json<Answer>, ApiError> {
    let Json(request) = request.map_err(|rejection| {
        ApiError::bad_request(
            rejection.body_text(),
            "send {\"token\": …, \"device\": NAME, \"request\": PEM}, as `offramp enrol` does",
        )
    })?;
    // Signed first, used up then: a request that cannot be signed costs nobody a token.
    let issued = shared.authority.device(&request.request, &request.device)?;
    let (certificate, expires_at) = (issued.certificate.clone(), issued.expires_at);
    let digest = access::digest(request.token.trim());
    let device = request.device;
    let done = shared.store.enrol(digest, device.clone(), now(), issued).await?;
    let refused = |status, error: &'static str, hint: &'static str| {
        tracing::warn!(%device, "refused to enrol a device: {error}");
        Err(ApiError::new(status, error, hint))
    };
    let another = "make another with `offramp-fleet enrol`";
    match done {
        Enrolled::Done => tracing::info!(%device, "device enrolled"),
        Enrolled::Unknown => return refused(StatusCode::UNAUTHORIZED, "there is no such enrolment token", another),
        Enrolled::Expired => return refused(StatusCode::UNAUTHORIZED, "the enrolment token has expired", another),
        Enrolled::Used => {
            return refused(
                StatusCode::UNAUTHORIZED,
                "the enrolment token was used already",
                another,
            );
        }
        Enrolled::OtherDevice => {
            return refused(
                StatusCode::FORBIDDEN,
                "the enrolment token is for another device",
                another,
            );
        }
        Enrolled::Labels => {
            return refused(
                StatusCode::CONFLICT,
                "the device would have more than 32 labels with those of the token",
                "take some away with `offramp-fleet label NAME KEY-`",
            );
        }
        Enrolled::Taken => {
            return refused(
                StatusCode::CONFLICT,
                "a device of this name has a certificate already",
                "choose another name, or make a token for this device with `offramp-fleet enrol --device NAME`",
            );
        }
    }
    Ok(Json(Answer {
        tenant: shared.tenant.to_string(),
        device: device.to_string(),
        certificate,
        authority: shared.authority.certificate().to_owned(),
        expires_at,
        broker: shared.device_broker.to_string(),
        controller_key: format!("{:?}", shared.public_key().await?),
    }))
}

#[derive(Serialize, ToSchema)]
pub(super) struct RevocationDone {
    /// Certificates of the device that hold no longer.
    revoked: u64,
}

/// Revoke all certificates that a device was given so far, and keep it apart
///
/// Brokers go by it as soon as they have the list again: `GET /revocations`.
#[utoipa::path(
    post, path = "/devices/{device}/revoke", tag = "access", operation_id = "revoke_certificates",
    params(("device" = String, Path, description = "Its name")), request_body = Reason,
    responses((status = OK, body = RevocationDone))
)]
pub(super) async fn revoke(
    State(shared): Fleet,
    identity: Identity,
    Path(device): Path<String>,
    reason: Result<Json<Reason>, JsonRejection>,
) -> Result<Json<RevocationDone>, ApiError> {
    let reason = Reason::read(reason)?;
    let none = || {
        ApiError::not_found(
            "this device has no certificate that could be revoked",
            "see its name in `offramp-fleet devices`",
        )
    };
    let device = DeviceId::new(device).map_err(|_| none())?;
    let revoked = shared
        .store
        .certificate_revoke(device.clone(), reason, identity.name, now())
        .await?;
    if revoked == 0 {
        return Err(none());
    }
    tracing::warn!(%device, revoked, "certificates revoked");
    Ok(Json(RevocationDone { revoked }))
}

/// The certificates that hold no longer, as brokers read them.
#[derive(Serialize, ToSchema)]
pub(super) struct Revocations {
    /// A certificate revocation list, PEM.
    list: String,
    /// Certificates on it.
    revoked: usize,
}

/// List the certificates that hold no longer, for brokers (a CRL)
#[utoipa::path(get, path = "/revocations", tag = "access", operation_id = "list_revocations", responses((status = OK, body = Revocations)))]
pub(super) async fn revocations(State(shared): Fleet) -> Result<Json<Revocations>, ApiError> {
    let revoked = shared.store.revoked_list(now()).await?;
    Ok(Json(Revocations {
        list: shared.authority.revocations(&revoked)?,
        revoked: revoked.len(),
    }))
}

impl From<AuthorityError> for ApiError {
    fn from(error: AuthorityError) -> Self {
        match error {
            AuthorityError::Request(_) | AuthorityError::Proof => {
                Self::bad_request(error.to_string(), "use `offramp enrol`")
            }
            AuthorityError::Name => Self::bad_request(error.to_string(), "use another name"),
            error => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "a certificate could not be signed"
                );
                Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "a certificate could not be signed",
                    "see the controller's log",
                )
            }
        }
    }
}
