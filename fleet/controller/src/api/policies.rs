//! `/policies`, `/policies/{name}/{version}/replay`

use std::collections::BTreeMap;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use offramp_proto::{DeviceId, Generation, Parameter};
use serde::Serialize;
use utoipa::ToSchema;

use super::groups::meant;
use super::{ApiError, MOST};
use crate::access::Identity;
use crate::desired::{MAX_POLICY, PolicyUpload, Target};
use crate::forecast::{Forecast, ForecastError, Question};
use crate::store::Artifact;
use crate::web::Fleet;

#[derive(Serialize, ToSchema)]
pub(super) struct PolicyList {
    /// The newest first.
    policies: Vec<PolicyView>,
}

/// A policy as the API shows it.
#[derive(Serialize, ToSchema)]
#[schema(as = Policy)]
struct PolicyView {
    name: String,
    version: u64,
    digest: Option<String>,
    size: u64,
    added_at: u64,
    /// Devices that should run it.
    desired: u64,
    /// Devices that say that they run it.
    reported: u64,
}

impl From<Artifact> for PolicyView {
    fn from(policy: Artifact) -> Self {
        Self {
            name: policy.name,
            version: policy.version,
            digest: policy.digest.map(|d| d.to_string()),
            size: policy.size,
            added_at: policy.added_at,
            desired: policy.desired,
            reported: policy.reported,
        }
    }
}

/// List the policies, the newest first
#[utoipa::path(get, path = "/policies", tag = "rollouts", operation_id = "list_policies", responses((status = OK, body = PolicyList)))]
pub(super) async fn list(State(shared): Fleet) -> Result<Json<PolicyList>, ApiError> {
    let policies = shared.store.policy_list(MOST).await?;
    Ok(Json(PolicyList {
        policies: policies.into_iter().map(PolicyView::from).collect(),
    }))
}

#[derive(Serialize, ToSchema)]
#[schema(as = Pushed)]
pub(super) struct PushView {
    digest: String,
    devices: Vec<GenerationView>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = PushedDevice)]
pub(super) struct GenerationView {
    device: String,
    /// The generation that it should report.
    generation: u64,
}

impl GenerationView {
    pub(super) fn new(device: &DeviceId, generation: Generation) -> Self {
        Self {
            device: device.to_string(),
            generation: generation.0,
        }
    }
}

/// Keep a policy and make it the desired one of devices, at once
///
/// The body is the component. With `target=none` it is only kept, for a rollout.
#[utoipa::path(
    post, path = "/policies", tag = "rollouts", operation_id = "push_policy",
    params(
        ("name" = String, Query, description = "1 to 64 letters, digits, `-`, `_` or `.`"),
        ("version" = u64, Query, description = "A name and version always mean the same component"),
        ("parameter" = Option<Vec<String>>, Query, description = "`NAME=VALUE`, any number of times"),
        ("device" = Option<Vec<String>>, Query, description = "A device that gets it, any number of times; all that are known without one"),
        ("select" = Option<String>, Query, description = "Instead of names: the devices that this selector means, e.g. `group=night`"),
        ("target" = Option<String>, Query, description = "`none` to give it to no device"),
    ),
    request_body(content = Vec<u8>, content_type = "application/wasm", description = "The component, at most 4 MiB"),
    responses((status = OK, body = PushView))
)]
pub(super) async fn push(
    State(shared): Fleet,
    identity: Identity,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<PushView>, ApiError> {
    let Query(query) = query?;
    let (mut target, select, mut upload) = request(query)?;
    if let Some(devices) = meant(&shared, None, select.as_deref()).await? {
        target = match target {
            Target::All => Target::Devices(devices),
            Target::Devices(_) | Target::Nobody => {
                return Err(ApiError::bad_request(
                    "devices are named twice",
                    "give names, a selector or a target",
                ));
            }
        };
    }
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the policy is larger than the {MAX_POLICY} bytes allowed"),
            "build it without debug information",
        ),
        _ => ApiError::bad_request(rejection.body_text(), "send the component as the body of the request"),
    })?;
    upload.bytes = body.into();
    let pushed = shared.push_policy(target, upload, identity.name).await?;
    Ok(Json(PushView {
        digest: pushed.digest.to_string(),
        devices: pushed
            .generations
            .into_iter()
            .map(|(device, generation)| GenerationView::new(&device, generation))
            .collect(),
    }))
}

fn request(query: Vec<(String, String)>) -> Result<(Target, Option<String>, PolicyUpload), ApiError> {
    let usage = "use ?name=NAME&version=N[&parameter=NAME=VALUE…][&device=DEVICE… or &select=SELECTOR or &target=none]";
    let (mut name, mut version, mut devices, mut nobody, mut select) = (None, None, Vec::new(), false, None);
    let mut parameters = BTreeMap::new();
    for (key, value) in query {
        match key.as_str() {
            "name" => name = Some(value),
            "version" => {
                let number = value
                    .parse()
                    .map_err(|_| ApiError::bad_request("version is not a number", usage))?;
                version = Some(number);
            }
            "parameter" => {
                let (name, value) = parameter(&value, usage)?;
                parameters.insert(name, value);
            }
            "device" => devices.push(device(value, usage)?),
            "select" => select = Some(value),
            "target" if value == "none" => nobody = true,
            _ => return Err(ApiError::bad_request(format!("unknown parameter `{key:.40}`"), usage)),
        }
    }
    let missing = |what: &'static str| ApiError::bad_request(format!("{what} is missing"), usage);
    let target = if nobody {
        Target::Nobody
    } else if devices.is_empty() {
        Target::All
    } else {
        Target::Devices(devices)
    };
    let upload = PolicyUpload {
        name: name.ok_or_else(|| missing("name"))?,
        version: version.ok_or_else(|| missing("version"))?,
        bytes: Vec::new(),
        parameters,
    };
    Ok((target, select, upload))
}

/// What a policy would do on the traces that devices share, beside what was done
///
/// Each piece of a trace is replayed from its first frame on; cost and exits are of the frames of which all exits are
/// known. Takes some seconds.
#[utoipa::path(
    get, path = "/policies/{name}/{version}/replay", tag = "rollouts", operation_id = "replay_policy",
    params(
        ("name" = String, Path, description = "Its name"),
        ("version" = u64, Path, description = "Its version"),
        ("parameter" = Option<Vec<String>>, Query, description = "`NAME=VALUE`, any number of times"),
        ("device" = Option<Vec<String>>, Query, description = "A device whose traces are used, any number of times; all without one"),
        ("select" = Option<String>, Query, description = "Instead of names: the devices that this selector means"),
    ),
    responses((status = OK, body = Forecast))
)]
pub(super) async fn replay(
    State(shared): Fleet,
    path: Result<Path<(String, u64)>, PathRejection>,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Json<Forecast>, ApiError> {
    let Path((policy, version)) =
        path.map_err(|_| ApiError::not_found("there is no such policy", "see GET /api/v1/policies"))?;
    let Query(query) = query?;
    let usage = "use ?parameter=NAME=VALUE… and ?device=DEVICE…";
    let (mut parameters, mut devices, mut select) = (BTreeMap::new(), Vec::new(), None);
    for (key, value) in query {
        match key.as_str() {
            "parameter" => {
                let (name, value) = parameter(&value, usage)?;
                parameters.insert(name, value);
            }
            "device" => devices.push(device(value, usage)?),
            "select" => select = Some(value),
            _ => return Err(ApiError::bad_request(format!("unknown parameter `{key:.40}`"), usage)),
        }
    }
    let question = Question {
        policy,
        version,
        parameters,
        devices: meant(&shared, (!devices.is_empty()).then_some(devices), select.as_deref()).await?,
    };
    Ok(Json(shared.forecaster.ask(&shared.store, question).await?))
}

fn parameter(text: &str, usage: &'static str) -> Result<(String, Parameter), ApiError> {
    Parameter::parse(text).map_err(|e| ApiError::bad_request(e.to_string(), usage))
}

fn device(name: String, usage: &'static str) -> Result<DeviceId, ApiError> {
    DeviceId::new(name).map_err(|e| ApiError::bad_request(e.to_string(), usage))
}

impl From<ForecastError> for ApiError {
    fn from(error: ForecastError) -> Self {
        let message = error.to_string();
        let (status, hint) = match error {
            ForecastError::Store(error) => return error.into(),
            ForecastError::UnknownPolicy(..) => (
                StatusCode::NOT_FOUND,
                "add it with `offramp-fleet policy add FILE.wasm --name NAME --version N`",
            ),
            ForecastError::Refused { .. } => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "check the file with `offramp policy check FILE.wasm`",
            ),
            ForecastError::Engine(_) | ForecastError::Stopped(_) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "a policy could not be replayed"
                );
                (StatusCode::SERVICE_UNAVAILABLE, "see the controller's log")
            }
        };
        Self::new(status, message, hint)
    }
}
