//! `/devices`, `/devices/{device}`, `/devices/{device}/summaries`

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use offramp_proto::{CameraReport, DeviceId};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::insight::SavingView;
use super::settings::SettingsView;
use super::{ApiError, Reason, limit, openapi, selection};
use crate::access::Identity;
use crate::overview::{DeviceOverview, Life, Progress, share};
use crate::store::{Guard, Kept, Model, Summary, now};
use crate::web::Fleet;

/// A device as the API shows it.
#[derive(Serialize, ToSchema)]
#[schema(as = Device)]
pub(super) struct DeviceView {
    device: String,
    #[schema(schema_with = openapi::life)]
    state: &'static str,
    first_seen: u64,
    /// Null when it was never heard of but through what the broker had kept.
    last_seen: Option<u64>,
    boot: Option<String>,
    started_at: Option<u64>,
    agent: Option<String>,
    capabilities: Vec<String>,
    /// Why it is kept apart; null where it is not.
    quarantine: Option<QuarantineView>,
    /// When its certificate ends; null for a device that did not enrol.
    certificate_ends_at: Option<u64>,
    /// What people say of it.
    labels: BTreeMap<String, String>,
    model: Option<ModelView>,
    desired: Option<DesiredView>,
    reported: Option<ReportedView>,
    /// How far its desired state is.
    #[schema(schema_with = openapi::progress)]
    progress: &'static str,
    /// The policy that it says it runs.
    running: Option<PolicyView>,
    /// Frames over all its runs.
    frames: u64,
    recent: RecentView,
    disagreement: Option<DisagreementView>,
    /// The guard at the end of the latest window.
    guard: Option<GuardView>,
    /// What learning saves there; null before enough audits, and where the device does not tell.
    saving: Option<SavingView>,
    /// How far the classes are from those that it usually sees, `0..=1`: total variation beyond chance.
    drift: Option<f64>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Model)]
struct ModelView {
    name: String,
    version: u64,
    digest: Option<String>,
    classes: usize,
    stage_macs: Vec<u64>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = NameAndVersion)]
struct PolicyView {
    name: String,
    version: u64,
}

#[derive(Serialize, ToSchema)]
#[schema(as = DesiredState)]
struct DesiredView {
    generation: u64,
    issued_at: u64,
    policy: Option<PolicyView>,
    /// Null for the model of the device's own configuration.
    model: Option<PolicyView>,
    settings: SettingsView,
}

#[derive(Serialize, ToSchema)]
#[schema(as = ReportedState)]
struct ReportedView {
    generation: u64,
    at: u64,
    policy: PolicyView,
    /// `desired`, `last-good` or `built-in`.
    source: String,
    refused: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Quarantine)]
struct QuarantineView {
    since: u64,
    reason: String,
}

/// The latest windows.
#[derive(Serialize, ToSchema)]
#[schema(as = RecentWindows)]
struct RecentView {
    frames: u64,
    macs: u64,
    full_macs: u64,
    cost_share: Option<f64>,
    exit_share: Vec<f64>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Disagreement)]
struct DisagreementView {
    estimate: f64,
    bound: f64,
    audits: u64,
}

/// The guard of the learner, as the device tells of it.
#[derive(Serialize, ToSchema)]
#[schema(as = Guard)]
struct GuardView {
    threshold: f64,
    loss: f64,
    loss_bound: f64,
    audits: u64,
    promotions: u64,
    paused: bool,
    contexts: u64,
    bytes: u64,
}

impl From<Guard> for GuardView {
    fn from(guard: Guard) -> Self {
        Self {
            threshold: guard.threshold,
            loss: guard.loss,
            loss_bound: guard.loss_bound,
            audits: guard.audits,
            promotions: guard.promotions,
            paused: guard.paused,
            contexts: guard.contexts,
            bytes: guard.bytes,
        }
    }
}

impl From<DeviceOverview> for DeviceView {
    fn from(overview: DeviceOverview) -> Self {
        let DeviceOverview {
            device,
            life,
            recent,
            frames,
            disagreement,
            guard,
            saving,
            desired,
            progress,
            running,
        } = overview;
        Self {
            device: device.device,
            state: match life {
                Life::Alive => "alive",
                Life::Silent => "silent",
                Life::Gone => "gone",
                Life::Quarantined => "quarantined",
            },
            first_seen: device.first_seen,
            last_seen: (device.last_seen > 0).then_some(device.last_seen),
            boot: device.boot.map(|b| b.to_string()),
            started_at: device.started_at,
            agent: device.agent,
            capabilities: device.capabilities,
            quarantine: device.quarantine.map(|quarantine| QuarantineView {
                since: quarantine.at,
                reason: quarantine.reason,
            }),
            certificate_ends_at: device.certificate_ends,
            labels: device.labels,
            model: device.model.map(ModelView::from),
            desired: desired.map(|d| DesiredView {
                generation: d.generation,
                issued_at: d.issued_at,
                policy: d.policy.map(|(name, version)| PolicyView { name, version }),
                model: d.model.map(|(name, version)| PolicyView { name, version }),
                settings: d.settings.into(),
            }),
            reported: device.reported.map(|r| ReportedView {
                generation: r.generation,
                at: r.at,
                policy: PolicyView {
                    name: r.policy,
                    version: r.version,
                },
                source: r.source,
                refused: r.refused,
            }),
            progress: match progress {
                Progress::Unmanaged => "unmanaged",
                Progress::InForce => "in-force",
                Progress::Pending => "pending",
                Progress::Refused(_) => "refused",
            },
            running: running.map(|r| PolicyView {
                name: r.policy,
                version: r.version,
            }),
            frames,
            recent: RecentView {
                frames: recent.frames,
                macs: recent.macs,
                full_macs: recent.full_macs,
                cost_share: recent.cost(),
                exit_share: recent
                    .exits
                    .iter()
                    .filter_map(|taken| share(*taken, recent.frames))
                    .collect(),
            },
            disagreement: disagreement.map(|d| DisagreementView {
                estimate: d.estimate,
                bound: d.bound,
                audits: d.audits,
            }),
            guard: guard.map(GuardView::from),
            saving: saving.map(SavingView::from),
            drift: recent.drift,
        }
    }
}

impl From<Model> for ModelView {
    fn from(model: Model) -> Self {
        Self {
            name: model.name,
            version: model.version,
            digest: model.digest.map(|d| d.to_string()),
            classes: model.classes.len(),
            stage_macs: model.stage_macs,
        }
    }
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// Only devices whose names come after this one.
    after: Option<String>,
    /// Devices, 1 to 1000; 100 without it.
    limit: Option<u32>,
    /// Only devices that this selector means, e.g. `site=north,model=revcol-*,!retired,state!=gone`.
    select: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct DeviceList {
    devices: Vec<DeviceView>,
    /// Value of `after` for the next devices; null when these were the last.
    next: Option<String>,
}

/// List the devices by name
#[utoipa::path(get, path = "/devices", tag = "fleet", operation_id = "list_devices", params(ListQuery), responses((status = OK, body = DeviceList)))]
pub(super) async fn list(
    State(shared): Fleet,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<DeviceList>, ApiError> {
    let Query(query) = query?;
    let after = query.after.unwrap_or_default();
    let selection = selection(&shared, query.select.as_deref()).await?;
    let limit = limit(query.limit)?;
    let overview = shared.store.overview_fetch(&selection, &after, limit, now()).await?;
    let last = overview.devices.last().map(|d| d.device.device.clone());
    Ok(Json(DeviceList {
        next: last.filter(|_| overview.cut),
        devices: overview.devices.into_iter().map(DeviceView::from).collect(),
    }))
}

/// A device with the names of its classes and what it saw lately.
#[derive(Serialize, ToSchema)]
pub(super) struct DeviceDetail {
    #[serde(flatten)]
    device: DeviceView,
    /// Names of the classes, in label order.
    classes: Vec<String>,
    /// Frames by class in the latest windows, the most frequent first.
    class_count: Vec<ClassView>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = ClassCount)]
struct ClassView {
    class: u32,
    name: Option<String>,
    count: u64,
}

/// Show a device
#[utoipa::path(
    get, path = "/devices/{device}", tag = "fleet", operation_id = "show_device", params(("device" = String, Path, description = "Its name")),
    responses((status = OK, body = DeviceDetail))
)]
pub(super) async fn fetch(State(shared): Fleet, Path(device): Path<String>) -> Result<Json<DeviceDetail>, ApiError> {
    let overview = shared.store.device_overview_fetch(&device, now()).await?;
    let overview = overview.ok_or_else(unknown)?;
    let classes = overview
        .device
        .model
        .as_ref()
        .map(|m| m.classes.clone())
        .unwrap_or_default();
    let class_count = overview.recent.classes.iter().map(|(class, count)| ClassView {
        class: *class,
        name: classes.get(*class as usize).cloned(),
        count: *count,
    });
    Ok(Json(DeviceDetail {
        class_count: class_count.collect(),
        classes,
        device: overview.into(),
    }))
}

/// Keep a device apart: it is given nothing, and counts in no figure of the fleet
#[utoipa::path(
    post, path = "/devices/{device}/quarantine", tag = "fleet", operation_id = "quarantine_device",
    params(("device" = String, Path, description = "Its name")), request_body = Reason,
    responses((status = OK, body = DeviceDetail))
)]
pub(super) async fn quarantine(
    State(shared): Fleet,
    identity: Identity,
    Path(device): Path<String>,
    reason: Result<Json<Reason>, JsonRejection>,
) -> Result<Json<DeviceDetail>, ApiError> {
    let reason = Reason::read(reason)?;
    let id = DeviceId::new(device.as_str()).map_err(|_| unknown())?;
    let done = shared.store.quarantine(id, reason, identity.name, now()).await?;
    settled(done, "it is in quarantine already")?;
    fetch(State(shared), Path(device)).await
}

/// Let a device out of quarantine; what is desired of it is signed and sent anew
#[utoipa::path(
    post, path = "/devices/{device}/release", tag = "fleet", operation_id = "release_device",
    params(("device" = String, Path, description = "Its name")), responses((status = OK, body = DeviceDetail))
)]
pub(super) async fn release(
    State(shared): Fleet,
    identity: Identity,
    Path(device): Path<String>,
) -> Result<Json<DeviceDetail>, ApiError> {
    let id = DeviceId::new(device.as_str()).map_err(|_| unknown())?;
    settled(shared.release(id, identity.name).await?, "it is not in quarantine")?;
    fetch(State(shared), Path(device)).await
}

fn settled(done: Kept, already: &'static str) -> Result<(), ApiError> {
    match done {
        Kept::Done => Ok(()),
        Kept::Already => Err(ApiError::new(
            StatusCode::CONFLICT,
            already,
            "see `offramp-fleet devices`",
        )),
        Kept::Unknown => Err(unknown()),
    }
}

fn unknown() -> ApiError {
    ApiError::not_found("this device has never been heard of", "see GET /api/v1/devices")
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct SummaryQuery {
    /// Only windows that end after this time.
    since: Option<u64>,
    /// The latest, whatever `since` is, instead of the first.
    #[serde(default)]
    latest: bool,
    /// Summaries, 1 to 1000; 100 without it.
    limit: Option<u32>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct SummaryList {
    summaries: Vec<SummaryView>,
}

/// A summary as the API shows it.
#[derive(Serialize, ToSchema)]
#[schema(as = Summary)]
struct SummaryView {
    boot: Option<String>,
    sequence: u64,
    received_at: u64,
    window_start: u64,
    window_end: u64,
    generation: u64,
    frames: u64,
    dropped: u64,
    hurried: u64,
    /// Frames taken at each exit.
    exits: Vec<u64>,
    macs: u64,
    audit_macs: u64,
    full_macs: u64,
    stage_us: u64,
    overhead_us: u64,
    audits: u64,
    disagreements: u64,
    bound: f64,
    updates: u64,
    gated: u64,
    rollbacks: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    guard: Option<GuardView>,
    /// Class index and frames.
    classes: Vec<(u32, u64)>,
    policy: PolicyView,
    policy_source: String,
    policy_faults: u64,
    outbox: u64,
    temperature: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<openapi::CameraSchema>)]
    cameras: Vec<CameraReport>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    engines: Vec<String>,
}

impl From<Summary> for SummaryView {
    fn from(summary: Summary) -> Self {
        let window = summary.window;
        Self {
            boot: summary.boot.map(|b| b.to_string()),
            sequence: window.sequence,
            received_at: summary.received_at,
            window_start: window.start,
            window_end: window.end,
            generation: summary.generation,
            frames: window.frames,
            dropped: window.dropped,
            hurried: window.hurried,
            exits: window.exits,
            macs: window.macs,
            audit_macs: summary.audit_macs,
            full_macs: window.full_macs,
            stage_us: window.stage_us,
            overhead_us: summary.overhead_us,
            audits: window.audits,
            disagreements: window.disagreements,
            bound: window.bound,
            updates: summary.updates,
            gated: summary.gated,
            rollbacks: window.rollbacks,
            guard: window.guard.map(GuardView::from),
            classes: window.classes,
            policy: PolicyView {
                name: window.policy,
                version: window.policy_version,
            },
            policy_source: summary.policy_source,
            policy_faults: summary.faults,
            outbox: summary.outbox,
            temperature: summary.temperature,
            cameras: window.cameras,
            engines: window.engines,
        }
    }
}

/// List what a device summed up, the first window first
#[utoipa::path(
    get, path = "/devices/{device}/summaries", tag = "fleet", operation_id = "list_summaries",
    params(("device" = String, Path, description = "Its name"), SummaryQuery),
    responses((status = OK, body = SummaryList))
)]
pub(super) async fn summaries(
    State(shared): Fleet,
    Path(device): Path<String>,
    query: Result<Query<SummaryQuery>, QueryRejection>,
) -> Result<Json<SummaryList>, ApiError> {
    let Query(query) = query?;
    let limit = limit(query.limit)?;
    if shared.store.device_fetch(&device).await?.is_none() {
        return Err(unknown());
    }
    let since = (!query.latest).then(|| query.since.unwrap_or(0));
    let summaries = shared.store.summary_list(&device, since, limit).await?;
    Ok(Json(SummaryList {
        summaries: summaries.into_iter().map(SummaryView::from).collect(),
    }))
}
