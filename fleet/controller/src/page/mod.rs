//! The page: typed values in, HTML out. No SQL here, and no text of a device without escaping.
//!
//! A page is rendered whole. Parts marked `data-live` are fetched again by a small script whenever the
//! controller has news, so the page works, if slower, without it.

mod chart;
mod device;
mod fleet;
mod format;
mod insight;
mod layout;
pub(crate) mod login;
mod parts;
mod rollout;
mod version;

use std::sync::{Arc, LazyLock};

use axum::extract::rejection::FormRejection;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Form, Router};
use maud::Markup;
use offramp_proto::{DeviceId, Digest};
use serde::Deserialize;

use crate::access::{Identity, Role};
use crate::api::{ApiError, selection};
use crate::controller::Shared;
use crate::named::named;
use crate::store::{Act, ArtifactKind, Commanded, EventFilter, Kept, Selection, StoreError, now, subject};
use crate::web::Fleet;

pub use format::utc;

use device::{DevicePage, Range};
use fleet::FleetPage;
use insight::InsightPage;
use layout::{Frame, layout};
use rollout::RolloutPage;
use version::{Of, VersionPage};

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("live.js");
const ICON: &str = include_str!("icon.svg");

/// Devices on a page.
const MOST_DEVICES: u32 = 100;
/// Events on a page.
const MOST_EVENTS: u32 = 20;
/// Policies on a page.
const MOST_POLICIES: u32 = 20;
/// Models on a page.
const MOST_MODELS: u32 = 10;
/// Rollouts on the first page.
const MOST_ROLLOUTS: u32 = 3;
/// Entries of the log on a rollout's page.
const MOST_ENTRIES: u32 = 100;
/// Devices on the page of a version.
const MOST_OF_VERSION: u32 = 50;
/// Characters of a reason.
const MOST_REASON: usize = 500;
/// Windows behind the charts of a page.
const MOST_WINDOWS: u32 = 20_000;

/// Changes when a file does, so that browsers may keep files for ever.
static ASSETS: LazyLock<String> = LazyLock::new(|| Digest::of([STYLE, SCRIPT, ICON].concat().as_bytes()).short());

pub(crate) fn router() -> Router<Arc<Shared>> {
    Router::new()
        .route("/", get(fleet))
        .route("/insight", get(insight))
        .route("/devices/{device}", get(device))
        .route("/devices/{device}/quarantine", post(quarantine))
        .route("/devices/{device}/release", post(release))
        .route("/policies/{name}/{version}", get(policy))
        .route("/models/{name}/{version}", get(model))
        .route("/rollouts/{id}", get(rollout))
        .route("/rollouts/{id}/{act}", post(command))
        .route("/login", get(login::form).post(login::enter))
        .route("/logout", post(login::leave))
        .route(
            "/assets/{version}/style.css",
            get(|| asset("text/css; charset=utf-8", STYLE)),
        )
        .route(
            "/assets/{version}/live.js",
            get(|| asset("text/javascript; charset=utf-8", SCRIPT)),
        )
        .route("/assets/{version}/icon.svg", get(|| asset("image/svg+xml", ICON)))
}

async fn asset(kind: &'static str, content: &'static str) -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "public, max-age=31536000, immutable"),
    ];
    (headers, content)
}

#[derive(Deserialize)]
struct FleetQuery {
    after: Option<String>,
    /// Only devices that this selector means.
    select: Option<String>,
}

async fn fleet(State(shared): Fleet, identity: Identity, Query(query): Query<FleetQuery>) -> Result<Markup, PageError> {
    let now = now();
    let filter = EventFilter {
        device: None,
        since: 0,
        limit: MOST_EVENTS,
    };
    let after = query.after.unwrap_or_default();
    let select = query.select.unwrap_or_default();
    let (selection, problem) = match selection(&shared, Some(&select)).await {
        Ok(selection) => (selection, None),
        Err(error) => (Selection::default(), Some(error.parts().1.to_owned())),
    };
    let page = FleetPage {
        figures: shared.totals.fetch(&shared.store, &selection).await?,
        overview: shared
            .store
            .overview_fetch(&selection, &after, MOST_DEVICES, now)
            .await?,
        after,
        select,
        problem,
        groups: shared.store.group_list().await?,
        rollouts: shared.store.rollout_list(MOST_ROLLOUTS).await?,
        policies: shared.store.policy_list(MOST_POLICIES).await?,
        models: shared.store.model_list(MOST_MODELS).await?,
        events: shared.store.event_list(filter).await?,
        broker: shared.broker.to_string(),
        now,
    };
    Ok(layout(&Frame::of(&shared, identity), None, &page.render()))
}

async fn insight(State(shared): Fleet, identity: Identity) -> Result<Markup, PageError> {
    let (groups, cut) = shared.groups().await?;
    let page = InsightPage {
        figures: shared.totals.fetch(&shared.store, &Selection::default()).await?,
        groups,
        cut,
    };
    Ok(layout(&Frame::of(&shared, identity), Some("Insight"), &page.render()))
}

#[derive(Deserialize)]
struct DeviceQuery {
    range: Option<String>,
}

async fn device(
    State(shared): Fleet,
    identity: Identity,
    Path(device): Path<String>,
    Query(query): Query<DeviceQuery>,
) -> Result<Markup, PageError> {
    let now = now();
    let range = Range::named(query.range.as_deref());
    let Some(overview) = shared.store.device_overview_fetch(&device, now).await? else {
        return Err(PageError::NotFound("This device has never been heard of."));
    };
    let filter = EventFilter {
        device: Some(&device),
        since: 0,
        limit: MOST_EVENTS,
    };
    let (store, span) = (&shared.store, range.milliseconds());
    let history = match range.is_by_hour() {
        true => store.history_by_hour(&device, span, MOST_WINDOWS).await?,
        false => store.history_fetch(&device, span, MOST_WINDOWS).await?,
    };
    let page = DevicePage {
        history,
        events: shared.store.event_list(filter).await?,
        overview,
        range,
        may_command: identity.role >= Role::Operator,
        now,
    };
    Ok(layout(&Frame::of(&shared, identity), Some(&device), &page.render()))
}

async fn rollout(State(shared): Fleet, identity: Identity, Path(id): Path<String>) -> Result<Markup, PageError> {
    let unknown = || PageError::NotFound("There is no such rollout.");
    let id: u64 = id.parse().map_err(|_| unknown())?;
    let rollout = shared.store.rollout_fetch(id).await?.ok_or_else(unknown)?;
    let page = RolloutPage {
        members: shared.store.rollout_members(id).await?,
        log: shared.store.audit_list(Some(&subject(id)), MOST_ENTRIES).await?,
        rollout,
        may_command: identity.role >= Role::Operator,
        now: now(),
    };
    let title = format!("Rollout {id}");
    Ok(layout(&Frame::of(&shared, identity), Some(&title), &page.render()))
}

async fn policy(
    State(shared): Fleet,
    identity: Identity,
    Path((name, version)): Path<(String, String)>,
) -> Result<Markup, PageError> {
    let unknown = || PageError::NotFound("There is no such policy.");
    let version: u64 = version.parse().map_err(|_| unknown())?;
    let is_it = |other: &str, number: u64| other == name && number == version;
    let mut kept = shared.store.policy_list(u32::MAX).await?;
    kept.retain(|policy| is_it(&policy.name, policy.version));
    let known = !kept.is_empty();
    let of = Of::Policy(kept.pop());
    let select = format!("policy={name},policy-version={version}");
    let page = version_page(&shared, (name, version), of, select).await?;
    if !known && page.devices.devices.is_empty() {
        return Err(unknown());
    }
    let title = format!("{} {version}", page.name);
    Ok(layout(&Frame::of(&shared, identity), Some(&title), &page.render()))
}

async fn model(
    State(shared): Fleet,
    identity: Identity,
    Path((name, version)): Path<(String, String)>,
) -> Result<Markup, PageError> {
    let unknown = || PageError::NotFound("There is no such model.");
    let version: u64 = version.parse().map_err(|_| unknown())?;
    let select = format!("model={name},model-version={version}");
    let kept = shared.store.model_fetch(&name, version).await?;
    let known = kept.is_some();
    let page = version_page(&shared, (name, version), Of::Model(kept), select).await?;
    if !known && page.devices.devices.is_empty() {
        return Err(unknown());
    }
    let title = format!("{} {version}", page.name);
    Ok(layout(&Frame::of(&shared, identity), Some(&title), &page.render()))
}

async fn version_page(
    shared: &Shared,
    (name, version): (String, u64),
    of: Of,
    select: String,
) -> Result<VersionPage, PageError> {
    let unknown = |_| PageError::NotFound("There is no such version.");
    let selection = selection(shared, Some(&select)).await.map_err(unknown)?;
    let now = now();
    let kind = match of {
        Of::Policy(_) => ArtifactKind::Policy,
        Of::Model(_) => ArtifactKind::Model,
    };
    let mut rollouts = shared.store.rollout_list(MOST_ENTRIES).await?;
    rollouts.retain(|rollout| (rollout.rollout.kind, &rollout.name, rollout.version) == (kind, &name, version));
    Ok(VersionPage {
        rollouts,
        totals: shared.totals.fetch(&shared.store, &selection).await?.all.clone(),
        devices: shared
            .store
            .overview_fetch(&selection, "", MOST_OF_VERSION, now)
            .await?,
        name,
        version,
        of,
        select,
        now,
    })
}

/// Why somebody presses a button, where there is a field for it.
#[derive(Deserialize)]
struct Why {
    #[serde(default)]
    reason: String,
}

impl Why {
    fn text(&self) -> String {
        self.reason.trim().chars().take(MOST_REASON).collect()
    }
}

/// The form of a device's page.
async fn quarantine(
    State(shared): Fleet,
    identity: Identity,
    Path(device): Path<String>,
    Form(why): Form<Why>,
) -> Result<Response, PageError> {
    let unknown = || PageError::NotFound("This device has never been heard of.");
    let id = DeviceId::new(device).map_err(|_| unknown())?;
    let reason = Some(why.text()).filter(|reason| !reason.is_empty());
    let reason = reason.unwrap_or_else(|| "no reason was given".into());
    match shared
        .store
        .quarantine(id.clone(), reason, identity.name, now())
        .await?
    {
        Kept::Unknown => Err(unknown()),
        Kept::Done | Kept::Already => Ok(Redirect::to(&format!("/devices/{id}")).into_response()),
    }
}

/// The button of a device's page.
async fn release(State(shared): Fleet, identity: Identity, Path(device): Path<String>) -> Result<Response, PageError> {
    let unknown = || PageError::NotFound("This device has never been heard of.");
    let id = DeviceId::new(device).map_err(|_| unknown())?;
    match shared.release(id.clone(), identity.name).await? {
        Kept::Unknown => Err(unknown()),
        Kept::Done | Kept::Already => Ok(Redirect::to(&format!("/devices/{id}")).into_response()),
    }
}

/// A button of the page of a rollout.
async fn command(
    State(shared): Fleet,
    identity: Identity,
    Path((id, act)): Path<(String, String)>,
    why: Result<Form<Why>, FormRejection>,
) -> Result<Response, PageError> {
    let unknown = || PageError::NotFound("There is no such rollout.");
    // Most buttons have no field.
    let why = why.map(|Form(why)| why.text()).unwrap_or_default();
    let id: u64 = id.parse().map_err(|_| unknown())?;
    let act = named(&Act::ALL, &act).ok_or(PageError::NotFound("A rollout cannot be told that."))?;
    match shared.command_rollout(id, act, identity.name, why).await? {
        // What it is told comes too late where somebody or a gate was faster: the page shows what it does now.
        Commanded::Done | Commanded::NotNow(_) => Ok(Redirect::to(&format!("/rollouts/{id}")).into_response()),
        Commanded::Unknown => Err(unknown()),
    }
}

/// The answer when there is no page.
pub(crate) fn not_found(message: &'static str) -> impl IntoResponse {
    PageError::NotFound(message)
}

/// The answer to what is refused before there is a page.
pub(crate) fn refused(error: &ApiError) -> Response {
    let (status, what, hint) = error.parts();
    let page = layout::error("This is refused", &format!("Refused: {what}. To go on, {hint}."));
    (status, page).into_response()
}

/// A page that cannot be shown.
enum PageError {
    NotFound(&'static str),
    Store,
}

impl From<StoreError> for PageError {
    fn from(error: StoreError) -> Self {
        tracing::error!(error = &error as &dyn std::error::Error, "a page met a broken database");
        Self::Store
    }
}

impl IntoResponse for PageError {
    fn into_response(self) -> Response {
        let (status, title, message) = match self {
            Self::NotFound(message) => (StatusCode::NOT_FOUND, "Not found", message),
            Self::Store => (
                StatusCode::SERVICE_UNAVAILABLE,
                "The database cannot be used",
                "See the controller's log for the reason. Devices keep what they have not been able to send.",
            ),
        };
        (status, layout::error(title, message)).into_response()
    }
}

#[cfg(test)]
mod tests;
