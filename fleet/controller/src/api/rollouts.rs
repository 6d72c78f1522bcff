//! `/rollouts`, `/rollouts/{id}`, `/rollouts/{id}/{act}`, `/audit`

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use offramp_proto::{DeviceId, Parameter};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::groups::meant;
use super::{ApiError, MOST, Reason, limit, openapi};
use crate::access::Identity;
use crate::desired::{self, PushError};
use crate::forecast::{Forecast, Question};
use crate::named::{name, named};
use crate::rollout::{Gauge, Member, MemberState, Plan, State as RolloutState, Verdict};
use crate::store::{Act, ArtifactKind, AuditEntry, Commanded, NewRollout, RolloutView, Started, now, subject};
use crate::web::Fleet;

/// A rollout as the API shows it.
#[derive(Serialize, ToSchema)]
#[schema(as = Rollout)]
pub(super) struct View {
    id: u64,
    /// Name of the policy; null where a model is rolled out.
    policy: Option<String>,
    /// Name of the model; null where a policy is rolled out.
    model: Option<String>,
    version: u64,
    #[schema(value_type = BTreeMap<String, openapi::ParameterSchema>)]
    parameters: BTreeMap<String, Parameter>,
    #[schema(schema_with = openapi::rollout_state)]
    state: &'static str,
    /// Why it is in this state, where it was not simply told to be.
    reason: Option<String>,
    /// The wave that is out, the canary being 0.
    wave: u32,
    wave_since: u64,
    plan: Plan,
    /// What the gates measured last.
    gauges: Vec<Gauge>,
    /// What a replay on the devices' traces foresaw; null where there were none.
    forecast: Option<Forecast>,
    /// Devices in each state.
    #[schema(value_type = BTreeMap<String, u64>)]
    devices: BTreeMap<&'static str, u64>,
    /// Devices that must still be judged before more are ordered; 0 while some are being watched.
    awaited: u64,
    created_at: u64,
    created_by: String,
    changed_at: u64,
}

impl From<RolloutView> for View {
    fn from(view: RolloutView) -> Self {
        let devices = MemberState::ALL.map(|(state, name)| (name, view.count(state)));
        let awaited = view.awaited();
        Self {
            id: view.id,
            policy: (view.rollout.kind == ArtifactKind::Policy).then(|| view.name.clone()),
            model: (view.rollout.kind == ArtifactKind::Model).then_some(view.name),
            version: view.version,
            parameters: view.parameters,
            state: name(&RolloutState::ALL, view.rollout.state),
            reason: view.reason,
            wave: view.rollout.wave,
            wave_since: view.rollout.wave_since,
            plan: view.rollout.plan,
            gauges: view.gauges,
            forecast: view.forecast,
            devices: devices.into(),
            awaited,
            created_at: view.created_at,
            created_by: view.created_by,
            changed_at: view.changed_at,
        }
    }
}

/// A rollout with its devices.
#[derive(Serialize, ToSchema)]
#[schema(as = RolloutWhole)]
pub(super) struct Whole {
    #[serde(flatten)]
    view: View,
    /// Share of the devices that have proven the policy.
    proven_share: f64,
    members: Vec<MemberView>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = RolloutDevice)]
struct MemberView {
    device: String,
    #[schema(schema_with = openapi::member_state)]
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

#[derive(Serialize, ToSchema)]
#[schema(as = RolloutList)]
pub(super) struct List {
    /// The newest first.
    rollouts: Vec<View>,
}

/// List the rollouts, the newest first
#[utoipa::path(get, path = "/rollouts", tag = "rollouts", operation_id = "list_rollouts", responses((status = OK, body = List)))]
pub(super) async fn list(State(shared): Fleet) -> Result<Json<List>, ApiError> {
    let rollouts = shared.store.rollout_list(MOST).await?;
    Ok(Json(List {
        rollouts: rollouts.into_iter().map(View::from).collect(),
    }))
}

/// Show a rollout with its devices
#[utoipa::path(
    get, path = "/rollouts/{id}", tag = "rollouts", operation_id = "show_rollout", params(("id" = u64, Path, description = "Its number")),
    responses((status = OK, body = Whole))
)]
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
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RolloutWanted)]
pub(super) struct Wanted {
    /// Name of a policy.
    policy: Option<String>,
    /// Or name of a model; parameters and replay are not for it.
    model: Option<String>,
    version: u64,
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, openapi::ParameterSchema>)]
    parameters: BTreeMap<String, Parameter>,
    /// Names of devices; all that are known without them.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    devices: Vec<DeviceId>,
    /// Instead of names: the devices that this selector means now, e.g. `group=night` or `site=north,state=alive`.
    select: Option<String>,
    #[serde(default)]
    plan: Plan,
    /// Whether the policy is replayed first on the traces that devices share, and not started where a gate would fail.
    #[serde(default = "yes")]
    replay: bool,
}

fn yes() -> bool {
    true
}

/// The answer where a gate would fail.
fn foreseen(gauge: &Gauge, forecast: &Forecast) -> ApiError {
    let refused = forecast.models.iter().find_map(|model| model.refused.as_deref());
    let why = match (refused, gauge.before) {
        (Some(refused), _) => refused.to_owned(),
        (None, Some(before)) => format!(
            "{:.3} above a bound of {}, from {before:.3} today",
            gauge.value.unwrap_or(f64::NAN),
            gauge.bound
        ),
        (None, None) => format!(
            "{:.3} above a bound of {}",
            gauge.value.unwrap_or(f64::NAN),
            gauge.bound
        ),
    };
    ApiError::new(
        StatusCode::CONFLICT,
        format!(
            "replayed on the devices' traces, gate `{}` would fail: {why}",
            gauge.gate
        ),
        format!(
            "see `offramp-fleet policy replay`; open the gate (`--gate {}=off`) where that is meant, or leave the replay \
             out (`--no-replay`)",
            gauge.gate
        ),
    )
}

#[derive(Serialize, ToSchema)]
#[schema(as = RolloutStarted)]
pub(super) struct StartedView {
    id: u64,
}

/// Roll a policy or a model out in waves
#[utoipa::path(post, path = "/rollouts", tag = "rollouts", operation_id = "start_rollout", request_body = Wanted, responses((status = OK, body = StartedView)))]
pub(super) async fn start(
    State(shared): Fleet,
    identity: Identity,
    wanted: Result<Json<Wanted>, JsonRejection>,
) -> Result<Json<StartedView>, ApiError> {
    let Json(wanted) = wanted.map_err(|rejection| {
        ApiError::bad_request(
            rejection.body_text(),
            "send {\"policy\": NAME, \"version\": N, \"parameters\": {…}, \"devices\": […], \"plan\": {…}}, or \"model\" instead of \"policy\"",
        )
    })?;
    let hint = "see `offramp-fleet rollout start --help`";
    wanted
        .plan
        .check()
        .map_err(|error| ApiError::bad_request(error.to_string(), hint))?;
    let version = wanted.version;
    let (kind, ware) = match (wanted.policy, wanted.model) {
        (Some(policy), None) => (ArtifactKind::Policy, policy),
        (None, Some(model)) if wanted.parameters.is_empty() => (ArtifactKind::Model, model),
        (None, Some(_)) => return Err(ApiError::bad_request("a model has no parameters", hint)),
        _ => return Err(ApiError::bad_request("name a policy or a model", hint)),
    };
    desired::check_parameters(&ware, version, &wanted.parameters)?;
    let named = (!wanted.devices.is_empty()).then_some(wanted.devices);
    let devices = meant(&shared, named, wanted.select.as_deref()).await?;
    let mut forecast = None;
    // What another network would have computed of a frame no trace tells.
    if wanted.replay && kind == ArtifactKind::Policy {
        let question = Question {
            policy: ware.clone(),
            version,
            parameters: wanted.parameters.clone(),
            devices: devices.clone(),
        };
        let found = shared.forecaster.ask(&shared.store, question).await?;
        if let Some(gauge) = found
            .gauges(&wanted.plan.gates)
            .into_iter()
            .find(|g| g.verdict == Verdict::Fails)
        {
            return Err(foreseen(&gauge, &found));
        }
        forecast = Some(found).filter(|found| !found.models.is_empty());
    }
    let new = NewRollout {
        kind,
        name: ware.clone(),
        version,
        parameters: wanted.parameters,
        devices,
        plan: wanted.plan,
        forecast,
        who: identity.name,
        now: now(),
    };
    match shared.start_rollout(new).await? {
        Started::Rollout(id) => Ok(Json(StartedView { id })),
        Started::UnknownArtifact => Err(ApiError::not_found(
            format!("there is no {} `{ware:.64}` {version}", name(&ArtifactKind::ALL, kind)),
            match kind {
                ArtifactKind::Policy => "add it with `offramp-fleet policy add FILE.wasm --name NAME --version N`",
                ArtifactKind::Model => "add it with `offramp-fleet model add PACKAGE`",
            },
        )),
        Started::Unfit(unfit) => Err(PushError::from(unfit).into()),
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

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct CommandQuery {
    /// Why, for the audit log: 1 to 500 characters.
    reason: Option<String>,
}

/// Tell a rollout what to do
#[utoipa::path(
    post, path = "/rollouts/{id}/{act}", tag = "rollouts", operation_id = "command_rollout",
    params(
        ("id" = u64, Path, description = "Its number"),
        ("act" = inline(Act), Path, description = "What it is told"),
        CommandQuery,
    ),
    responses((status = OK, body = View))
)]
pub(super) async fn command(
    State(shared): Fleet,
    identity: Identity,
    path: Result<Path<(u64, String)>, PathRejection>,
    Query(CommandQuery { reason }): Query<CommandQuery>,
) -> Result<Json<View>, ApiError> {
    let Path((id, act)) = path.map_err(|_| unknown())?;
    let why = reason.map(Reason::check).transpose()?.unwrap_or_default();
    let act = named(&Act::ALL, &act)
        .ok_or_else(|| ApiError::not_found("no such command", "use pause, resume, abort or roll-back"))?;
    match shared.command_rollout(id, act, identity.name, why).await? {
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

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct AuditQuery {
    /// Only what was done to this rollout.
    rollout: Option<u64>,
    /// Entries, 1 to 1000; 100 without it.
    limit: Option<u32>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct AuditList {
    /// The last first.
    entries: Vec<EntryView>,
}

/// An entry of the log as the API shows it.
#[derive(Serialize, ToSchema)]
#[schema(as = AuditEntry)]
struct EntryView {
    id: u64,
    at: u64,
    /// Name of a token, `local` where nobody is asked for one, or `controller`.
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

/// Show who did what, the last first
#[utoipa::path(get, path = "/audit", tag = "access", operation_id = "audit", params(AuditQuery), responses((status = OK, body = AuditList)))]
pub(super) async fn audit(
    State(shared): Fleet,
    query: Result<Query<AuditQuery>, QueryRejection>,
) -> Result<Json<AuditList>, ApiError> {
    let Query(query) = query?;
    let subject = query.rollout.map(subject);
    let entries = shared.store.audit_list(subject.as_deref(), limit(query.limit)?).await?;
    Ok(Json(AuditList {
        entries: entries.into_iter().map(EntryView::from).collect(),
    }))
}

fn number(id: Result<Path<u64>, PathRejection>) -> Result<u64, ApiError> {
    id.map(|Path(id)| id).map_err(|_| unknown())
}

fn unknown() -> ApiError {
    ApiError::not_found("there is no such rollout", "see GET /api/v1/rollouts")
}
