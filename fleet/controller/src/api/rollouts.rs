//! `/rollouts`, `/rollouts/{id}`, `/rollouts/{id}/{act}`, `/audit`

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use offramp_proto::{DeviceId, Parameter};
use serde::{Deserialize, Serialize};

use super::{ApiError, MOST, limit};
use crate::desired::{self, PushError};
use crate::rollout::{Gauge, Member, MemberState, Plan, State as RolloutState, name, named};
use crate::store::{Act, AuditEntry, Commanded, NewRollout, RolloutView, Started, now};
use crate::web::Fleet;

/// Who is written into the log where a request does not say.
const SOMEBODY: &str = "somebody";
const MOST_NAME: usize = 64;

/// A rollout as the API shows it.
#[derive(Serialize)]
pub(super) struct View {
    id: u64,
    policy: String,
    version: u64,
    parameters: BTreeMap<String, Parameter>,
    /// `running`, `paused`, `rolling-back`, `rolled-back`, `stopped`, `aborted` or `done`.
    state: &'static str,
    /// Why it is in this state, where it was not simply told to be.
    reason: Option<String>,
    /// The wave that is out, the canary being 0.
    wave: u32,
    wave_since: u64,
    plan: Plan,
    /// What the gates measured last.
    gauges: Vec<Gauge>,
    /// Devices in each state.
    devices: BTreeMap<&'static str, u64>,
    created_at: u64,
    created_by: String,
    changed_at: u64,
}

impl From<RolloutView> for View {
    fn from(view: RolloutView) -> Self {
        let devices = MemberState::ALL.map(|(state, name)| (name, view.count(state)));
        Self {
            id: view.id,
            policy: view.policy,
            version: view.version,
            parameters: view.parameters,
            state: name(&RolloutState::ALL, view.rollout.state),
            reason: view.reason,
            wave: view.rollout.wave,
            wave_since: view.rollout.wave_since,
            plan: view.rollout.plan,
            gauges: view.gauges,
            devices: devices.into(),
            created_at: view.created_at,
            created_by: view.created_by,
            changed_at: view.changed_at,
        }
    }
}

/// A rollout with its devices.
#[derive(Serialize)]
pub(super) struct Whole {
    #[serde(flatten)]
    view: View,
    /// Share of the devices that have proven the policy.
    proven_share: f64,
    members: Vec<MemberView>,
}

#[derive(Serialize)]
struct MemberView {
    device: String,
    state: &'static str,
    why: Option<String>,
    wave: Option<u32>,
    generation: Option<u64>,
    ordered_at: Option<u64>,
    restarts: u64,
}

impl From<Member> for MemberView {
    fn from(member: Member) -> Self {
        let ordered = member.wave.is_some();
        Self {
            device: member.device,
            state: name(&MemberState::ALL, member.state),
            why: member.why,
            wave: member.wave,
            generation: ordered.then_some(member.generation),
            ordered_at: ordered.then_some(member.ordered_at),
            restarts: member.restarts,
        }
    }
}

#[derive(Serialize)]
pub(super) struct List {
    /// The newest first.
    rollouts: Vec<View>,
}

pub(super) async fn list(State(shared): Fleet) -> Result<Json<List>, ApiError> {
    let rollouts = shared.store.rollout_list(MOST).await?;
    Ok(Json(List {
        rollouts: rollouts.into_iter().map(View::from).collect(),
    }))
}

pub(super) async fn fetch(State(shared): Fleet, id: Result<Path<u64>, PathRejection>) -> Result<Json<Whole>, ApiError> {
    let id = number(id)?;
    let view = shared.store.rollout_fetch(id).await?.ok_or_else(unknown)?;
    let members = shared.store.rollout_members(id).await?;
    Ok(Json(Whole {
        proven_share: view.count(MemberState::Proven) as f64 / view.own().max(1) as f64,
        view: view.into(),
        members: members.into_iter().map(MemberView::from).collect(),
    }))
}

/// A rollout that is wanted.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    policy: String,
    version: u64,
    #[serde(default)]
    parameters: BTreeMap<String, Parameter>,
    /// Names of devices; all that are known without them.
    #[serde(default)]
    devices: Vec<DeviceId>,
    #[serde(default)]
    plan: Plan,
    /// Who wants it, for the log.
    #[serde(default)]
    who: Option<String>,
}

#[derive(Serialize)]
pub(super) struct StartedView {
    id: u64,
}

pub(super) async fn start(
    State(shared): Fleet,
    wanted: Result<Json<Wanted>, JsonRejection>,
) -> Result<Json<StartedView>, ApiError> {
    let Json(wanted) = wanted.map_err(|rejection| {
        ApiError::bad_request(
            rejection.body_text(),
            "send {\"policy\": NAME, \"version\": N, \"parameters\": {…}, \"devices\": […], \"plan\": {…}, \"who\": NAME}",
        )
    })?;
    let hint = "see `offramp-fleet rollout start --help`";
    wanted
        .plan
        .check()
        .map_err(|error| ApiError::bad_request(error.to_string(), hint))?;
    let (policy, version) = (wanted.policy.clone(), wanted.version);
    desired::check_parameters(&shared.key, &wanted.policy, wanted.version, &wanted.parameters)?;
    let new = NewRollout {
        policy: wanted.policy,
        version: wanted.version,
        parameters: wanted.parameters,
        devices: (!wanted.devices.is_empty()).then_some(wanted.devices),
        plan: wanted.plan,
        who: who(wanted.who)?,
        now: now(),
    };
    match shared.start_rollout(new).await? {
        Started::Rollout(id) => Ok(Json(StartedView { id })),
        Started::UnknownPolicy => Err(ApiError::not_found(
            format!("there is no policy `{policy:.64}` {version}"),
            "add it with `offramp-fleet policy add FILE.wasm --name NAME --version N`",
        )),
        Started::UnknownDevices(devices) => Err(PushError::UnknownDevices(devices).into()),
        Started::NoDevice => Err(ApiError::new(
            StatusCode::CONFLICT,
            "no device is known that could get it",
            "start a device with this controller's broker",
        )),
        Started::Busy { device, rollout } => Err(ApiError::new(
            StatusCode::CONFLICT,
            format!("device `{device}` is part of rollout {rollout}, which is under way"),
            "wait for its end, or abort it",
        )),
    }
}

#[derive(Deserialize)]
pub(super) struct Who {
    who: Option<String>,
}

pub(super) async fn command(
    State(shared): Fleet,
    path: Result<Path<(u64, String)>, PathRejection>,
    query: Result<Query<Who>, QueryRejection>,
) -> Result<Json<View>, ApiError> {
    let Path((id, act)) = path.map_err(|_| unknown())?;
    let Query(query) = query?;
    let act = named(&Act::ALL, &act)
        .ok_or_else(|| ApiError::not_found("no such command", "use pause, resume, abort or roll-back"))?;
    match shared.command_rollout(id, act, who(query.who)?).await? {
        Commanded::Done => {
            let view = shared.store.rollout_fetch(id).await?.ok_or_else(unknown)?;
            Ok(Json(view.into()))
        }
        Commanded::Unknown => Err(unknown()),
        Commanded::NotNow(state) => Err(ApiError::new(
            StatusCode::CONFLICT,
            format!("rollout {id} is {}", name(&RolloutState::ALL, state)),
            "see what it does with `offramp-fleet rollout show`",
        )),
    }
}

#[derive(Deserialize)]
pub(super) struct AuditQuery {
    rollout: Option<u64>,
    limit: Option<u32>,
}

#[derive(Serialize)]
pub(super) struct AuditList {
    /// The last first.
    entries: Vec<EntryView>,
}

/// An entry of the log as the API shows it.
#[derive(Serialize)]
struct EntryView {
    id: u64,
    at: u64,
    /// A person, or `controller`.
    who: String,
    what: String,
    subject: String,
    detail: String,
}

impl From<AuditEntry> for EntryView {
    fn from(entry: AuditEntry) -> Self {
        Self {
            id: entry.id,
            at: entry.at,
            who: entry.who,
            what: entry.what,
            subject: entry.subject,
            detail: entry.detail,
        }
    }
}

pub(super) async fn audit(
    State(shared): Fleet,
    query: Result<Query<AuditQuery>, QueryRejection>,
) -> Result<Json<AuditList>, ApiError> {
    let Query(query) = query?;
    let subject = query.rollout.map(|id| format!("rollout {id}"));
    let entries = shared.store.audit_list(subject.as_deref(), limit(query.limit)?).await?;
    Ok(Json(AuditList {
        entries: entries.into_iter().map(EntryView::from).collect(),
    }))
}

fn who(name: Option<String>) -> Result<String, ApiError> {
    let name = name.unwrap_or_else(|| SOMEBODY.into());
    let fits = !name.is_empty() && name.len() <= MOST_NAME && !name.chars().any(char::is_control);
    // Nobody is to pass for the controller in its log.
    if fits && name != "controller" {
        Ok(name)
    } else {
        Err(ApiError::bad_request(
            "`who` is not a name",
            "use 1 to 64 bytes, no control characters, and not `controller`",
        ))
    }
}

fn number(id: Result<Path<u64>, PathRejection>) -> Result<u64, ApiError> {
    id.map(|Path(id)| id).map_err(|_| unknown())
}

fn unknown() -> ApiError {
    ApiError::not_found("there is no such rollout", "see GET /api/v1/rollouts")
}
