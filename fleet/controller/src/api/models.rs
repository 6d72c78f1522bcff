//! `/models`, `/models/push`

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, JsonRejection, QueryRejection};
use axum::extract::{Query, State};
use axum::http::StatusCode;
use offramp_proto::DeviceId;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::groups::meant;
use super::policies::GenerationView;
use super::{ApiError, MOST};
use crate::access::Identity;
use crate::models::{self, MAX_MODEL, ModelError, ModelUpload};
use crate::store::KeptModel;
use crate::web::Fleet;

#[derive(Serialize, ToSchema)]
pub(super) struct ModelList {
    /// The newest first.
    models: Vec<ModelView>,
}

/// A model of the library as the API shows it.
#[derive(Serialize, ToSchema)]
#[schema(as = LibraryModel)]
struct ModelView {
    name: String,
    version: u64,
    /// Of the package as one file.
    digest: Option<String>,
    /// Of its manifest: the digest by which devices call the model that they run.
    manifest: Option<String>,
    size: u64,
    url: Option<String>,
    added_at: u64,
    /// Devices that should run it.
    desired: u64,
    /// Devices that run it.
    reported: u64,
}

impl From<KeptModel> for ModelView {
    fn from(
        KeptModel {
            artifact,
            manifest,
            url,
        }: KeptModel,
    ) -> Self {
        Self {
            name: artifact.name,
            version: artifact.version,
            digest: artifact.digest.map(|digest| digest.to_string()),
            manifest: manifest.map(|digest| digest.to_string()),
            size: artifact.size,
            url,
            added_at: artifact.added_at,
            desired: artifact.desired,
            reported: artifact.reported,
        }
    }
}

/// List the models of the library, the newest first
#[utoipa::path(get, path = "/models", tag = "rollouts", operation_id = "list_models", responses((status = OK, body = ModelList)))]
pub(super) async fn list(State(shared): Fleet) -> Result<Json<ModelList>, ApiError> {
    let models = shared.store.model_list(MOST).await?;
    Ok(Json(ModelList {
        models: models.into_iter().map(ModelView::from).collect(),
    }))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct AddQuery {
    /// Where else devices find this very file: `https://…`.
    url: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = AddedModel)]
pub(super) struct AddedView {
    name: String,
    version: u64,
    digest: String,
    size: u64,
}

/// Keep a model package
///
/// The body is the package as one file (`offramp model pack`). It is checked whole; name and version are those of its
/// manifest. No device gets it: `/models/push` and rollouts do that.
#[utoipa::path(
    post, path = "/models", tag = "rollouts", operation_id = "add_model", params(AddQuery),
    request_body(content = Vec<u8>, content_type = "application/x-tar", description = "The package, at most 512 MiB"),
    responses((status = OK, body = AddedView))
)]
pub(super) async fn add(
    State(shared): Fleet,
    identity: Identity,
    query: Result<Query<AddQuery>, QueryRejection>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<AddedView>, ApiError> {
    let Query(AddQuery { url }) = query?;
    let bytes = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the package is larger than the {MAX_MODEL} bytes allowed"),
            "is it the right file?",
        ),
        _ => ApiError::bad_request(rejection.body_text(), "send the package as the body of the request"),
    })?;
    let added = models::add(&shared.store, ModelUpload { bytes, url }, identity.name).await?;
    Ok(Json(AddedView {
        name: added.name,
        version: added.version,
        digest: added.digest.to_string(),
        size: added.size,
    }))
}

/// Which model devices are to run.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ModelPush)]
pub(super) struct Push {
    /// Name and version of a model of the library.
    model: Option<String>,
    version: Option<u64>,
    /// Instead: that each device goes back to the model of its own configuration.
    #[serde(default)]
    own: bool,
    /// Names of devices; all that are known without them.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    devices: Vec<DeviceId>,
    /// Instead of names: the devices that this selector means now.
    select: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = ModelPushed)]
pub(super) struct PushedView {
    devices: Vec<GenerationView>,
}

/// Make a model the desired one of devices, at once
#[utoipa::path(post, path = "/models/push", tag = "rollouts", operation_id = "push_model", request_body = Push, responses((status = OK, body = PushedView)))]
pub(super) async fn push(
    State(shared): Fleet,
    identity: Identity,
    wanted: Result<Json<Push>, JsonRejection>,
) -> Result<Json<PushedView>, ApiError> {
    let usage = "send {\"model\": NAME, \"version\": N, \"devices\": […]}, or {\"own\": true} for that of the devices' own configurations";
    let Json(wanted) = wanted.map_err(|rejection| ApiError::bad_request(rejection.body_text(), usage))?;
    let model = match (wanted.model, wanted.version, wanted.own) {
        (Some(name), Some(version), false) => Some((name, version)),
        (None, None, true) => None,
        _ => return Err(ApiError::bad_request("it is not said which model", usage)),
    };
    let named = (!wanted.devices.is_empty()).then_some(wanted.devices);
    let devices = meant(&shared, named, wanted.select.as_deref()).await?;
    let pushed = shared.push_model(devices, model, identity.name).await?;
    Ok(Json(PushedView {
        devices: pushed
            .into_iter()
            .map(|(device, generation)| GenerationView::new(&device, generation))
            .collect(),
    }))
}

impl From<ModelError> for ApiError {
    fn from(error: ModelError) -> Self {
        let message = error.to_string();
        let (status, hint) = match error {
            ModelError::Store(error) => return error.into(),
            ModelError::Devices(error) => return error.into(),
            ModelError::Package(_) => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "check it with `offramp model check PACKAGE`, and make one file of it with `offramp model pack PACKAGE`",
            ),
            ModelError::Name(_) => (StatusCode::BAD_REQUEST, "change the name in its manifest"),
            ModelError::Address(_) => (
                StatusCode::BAD_REQUEST,
                "leave it out: devices get the model from the controller",
            ),
            ModelError::VersionTaken { .. } => (StatusCode::CONFLICT, "raise the version in its manifest"),
            ModelError::Unknown(..) => (
                StatusCode::NOT_FOUND,
                "add it with `offramp-fleet model add PACKAGE`; see `offramp-fleet model list`",
            ),
        };
        Self::new(status, message, hint)
    }
}
