//! `/settings`

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use offramp_proto::{Desired, DeviceId, Generation, LogLevel, Message as _};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::policies::GenerationView;
use super::{ApiError, meant};
use crate::access::Identity;
use crate::desired::PushError;
use crate::store::{Change, Wanted};
use crate::web::Fleet;

const USAGE: &str = "send {\"select\": …} or {\"devices\": […]} or {\"all\": true}, with \"settings\": {\"enabled\", \"rate\", \
                     \"audit_rate\", \"accuracy_budget\", \"cost_ceiling\", \"log\"}, null for the device's own";

/// Reads a value that is there, be it null.
fn there<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// Settings to change: what is absent stays, null gives it back to the device's own configuration.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// Whether heads are updated.
    #[serde(default, deserialize_with = "there")]
    #[schema(value_type = Option<bool>)]
    enabled: Option<Option<bool>>,
    /// Learning rate, 0 to 4.
    #[serde(default, deserialize_with = "there")]
    #[schema(value_type = Option<f32>)]
    rate: Option<Option<f32>>,
    /// Share of frames that are audited, 0 to 1.
    #[serde(default, deserialize_with = "there")]
    #[schema(value_type = Option<f32>)]
    audit_rate: Option<Option<f32>>,
    /// Accuracy that may be given up against the last exit, 0 to 0.5.
    #[serde(default, deserialize_with = "there")]
    #[schema(value_type = Option<f32>)]
    accuracy_budget: Option<Option<f32>>,
    /// Share of the whole network that a frame may cost on average, above 0 to 1.
    #[serde(default, deserialize_with = "there")]
    #[schema(value_type = Option<f32>)]
    cost_ceiling: Option<Option<f32>>,
    /// What is logged: `error`, `warn`, `info`, `debug` or `trace`.
    #[serde(default, deserialize_with = "there")]
    #[schema(value_type = Option<String>)]
    log: Option<Option<LogLevel>>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SettingsWanted {
    /// Devices by name.
    #[schema(value_type = Option<Vec<String>>)]
    devices: Option<Vec<DeviceId>>,
    /// Instead: those that this selector means.
    select: Option<String>,
    /// Instead: every device that is known.
    #[serde(default)]
    all: bool,
    settings: Settings,
}

/// The settings that are desired of a device; null where its own configuration holds.
#[derive(Serialize, ToSchema)]
#[schema(as = DesiredSettings)]
pub(super) struct SettingsView {
    enabled: Option<bool>,
    rate: Option<f32>,
    audit_rate: Option<f32>,
    accuracy_budget: Option<f32>,
    cost_ceiling: Option<f32>,
    #[schema(value_type = Option<String>)]
    log: Option<LogLevel>,
}

impl From<Wanted> for SettingsView {
    fn from(Wanted { learner, log }: Wanted) -> Self {
        Self {
            enabled: learner.enabled,
            rate: learner.rate,
            audit_rate: learner.audit_rate,
            accuracy_budget: learner.accuracy_budget,
            cost_ceiling: learner.cost_ceiling,
            log,
        }
    }
}

#[derive(Serialize, ToSchema)]
pub(super) struct SettingsChanged {
    devices: Vec<GenerationView>,
}

/// Change settings of devices, at once
#[utoipa::path(
    post, path = "/settings", tag = "fleet", operation_id = "change_settings", request_body = SettingsWanted,
    responses((status = OK, body = SettingsChanged))
)]
pub(super) async fn change(
    State(shared): Fleet,
    identity: Identity,
    wanted: Result<Json<SettingsWanted>, JsonRejection>,
) -> Result<Json<SettingsChanged>, ApiError> {
    let Json(wanted) = wanted.map_err(|rejection| ApiError::bad_request(rejection.body_text(), USAGE))?;
    let settings = wanted.settings;
    let change = Change {
        enabled: settings.enabled,
        rate: settings.rate,
        audit_rate: settings.audit_rate,
        accuracy_budget: settings.accuracy_budget,
        cost_ceiling: settings.cost_ceiling,
        log: settings.log,
    };
    if change == Change::default() {
        return Err(ApiError::bad_request("no setting is given", USAGE));
    }
    check(&change)?;
    let devices = meant(&shared, wanted.devices, wanted.select.as_deref()).await?;
    if devices.is_some() == wanted.all {
        return Err(ApiError::bad_request("it is not said which devices", USAGE));
    }
    let changed = shared.change(devices, change, identity.name).await?;
    let changed = changed.map_err(PushError::from)?;
    tracing::info!(devices = changed.len(), "settings changed");
    let devices = changed.into_iter();
    Ok(Json(SettingsChanged {
        devices: devices
            .map(|(device, generation)| GenerationView::new(&device, generation))
            .collect(),
    }))
}

/// Whether a desired state may say so.
fn check(change: &Change) -> Result<(), ApiError> {
    let mut trial = Desired::new(DeviceId::new("trial").expect("a valid name"), Generation(1), 0);
    change.apply(&mut trial);
    trial.check().map_err(|field| {
        let field = field.trim_start_matches("learner.");
        ApiError::bad_request(
            format!("`{field}` is out of range"),
            "use rate 0 to below 4, audit_rate 0 to 1, accuracy_budget 0 to 0.5, cost_ceiling above 0 to 1",
        )
    })
}
