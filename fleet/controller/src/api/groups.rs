//! `/groups`, `/groups/{name}`, `/labels`

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use offramp_proto::DeviceId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ApiError;
use crate::access::Identity;
use crate::controller::Shared;
use crate::selector::{BadLabel, BadSelector, Selector, check_labels};
use crate::store::{Group, Labelled, Selection, UnknownGroup, now};
use crate::web::Fleet;

impl From<BadSelector> for ApiError {
    fn from(error: BadSelector) -> Self {
        Self::bad_request(error.to_string(), BadSelector::HINT)
    }
}

impl From<BadLabel> for ApiError {
    fn from(error: BadLabel) -> Self {
        Self::bad_request(error.to_string(), "e.g. site=north")
    }
}

/// The devices that a text means; every one without it.
pub(crate) async fn selection(shared: &Shared, text: Option<&str>) -> Result<Selection, ApiError> {
    resolve(shared, text.unwrap_or_default().parse()?).await
}

async fn resolve(shared: &Shared, selector: Selector) -> Result<Selection, ApiError> {
    shared.store.resolve(selector).await?.map_err(|UnknownGroup(name)| {
        let error = format!("there is no group `{name}`");
        let hint = "see GET /api/v1/groups, or `offramp-fleet group list`";
        ApiError::new(StatusCode::BAD_REQUEST, error, hint)
    })
}

/// The names of all devices that a selector means.
async fn selected(shared: &Shared, selector: Selector) -> Result<Vec<DeviceId>, ApiError> {
    let selection = resolve(shared, selector).await?;
    let names = shared.store.select(&selection, "", u32::MAX, now()).await?;
    Ok(names.into_iter().filter_map(|name| DeviceId::new(name).ok()).collect())
}

/// How many devices a text means.
async fn count(shared: &Shared, text: &str) -> Result<u64, ApiError> {
    Ok(shared.store.count(&selection(shared, Some(text)).await?, now()).await?)
}

/// Devices that are named, or those that a selector means and that are not kept apart; not both. None where nothing is
/// said.
pub(super) async fn meant(
    shared: &Shared,
    devices: Option<Vec<DeviceId>>,
    select: Option<&str>,
) -> Result<Option<Vec<DeviceId>>, ApiError> {
    match (devices, select) {
        (Some(_), Some(_)) => Err(ApiError::bad_request(
            "devices are both named and selected",
            "give either their names or a selector",
        )),
        (devices, None) => Ok(devices),
        (None, Some(text)) => {
            let devices = selected(shared, text.parse::<Selector>()?.fit()).await?;
            if devices.is_empty() {
                return Err(ApiError::new(
                    StatusCode::CONFLICT,
                    format!("`{text}` means no device"),
                    "see which it means with `offramp-fleet devices --select`",
                ));
            }
            Ok(Some(devices))
        }
    }
}

/// A group as the API shows it.
#[derive(Serialize, ToSchema)]
#[schema(as = Group)]
struct View {
    name: String,
    selector: String,
    /// Devices that it means now.
    devices: u64,
    changed_at: u64,
    changed_by: String,
}

#[derive(Serialize, ToSchema)]
pub(super) struct GroupList {
    groups: Vec<View>,
}

/// List the groups by name
#[utoipa::path(get, path = "/groups", tag = "fleet", operation_id = "list_groups", responses((status = OK, body = GroupList)))]
pub(super) async fn list(State(shared): Fleet) -> Result<Json<GroupList>, ApiError> {
    let mut groups = Vec::new();
    for Group {
        name,
        selector,
        changed_at,
        changed_by,
    } in shared.store.group_list().await?
    {
        groups.push(View {
            devices: count(&shared, &selector).await?,
            name,
            selector,
            changed_at,
            changed_by,
        });
    }
    Ok(Json(GroupList { groups }))
}

/// What a group is to mean.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct GroupWanted {
    /// E.g. `site=north,model=revcol-*,!retired`.
    selector: String,
}

#[derive(Serialize, ToSchema)]
pub(super) struct GroupKept {
    name: String,
    selector: String,
    /// Devices that it means now.
    devices: u64,
}

/// Give a selector a name, or a name another selector
#[utoipa::path(
    put, path = "/groups/{name}", tag = "fleet", operation_id = "set_group", request_body = GroupWanted,
    params(("name" = String, Path, description = "Its name, 1 to 64 letters, digits, `-`, `_` or `.`")),
    responses((status = OK, body = GroupKept))
)]
pub(super) async fn set(
    State(shared): Fleet,
    identity: Identity,
    Path(name): Path<String>,
    wanted: Result<Json<GroupWanted>, JsonRejection>,
) -> Result<Json<GroupKept>, ApiError> {
    let Json(wanted) = wanted
        .map_err(|rejection| ApiError::bad_request(rejection.body_text(), "send {\"selector\": \"site=north\"}"))?;
    // As devices are named, so that it can stand in a selector.
    if DeviceId::new(name.as_str()).is_err() {
        let hint = "use 1 to 64 letters, digits, `-`, `_` or `.`";
        return Err(ApiError::bad_request(
            format!("`{name:.80}` cannot be a group's name"),
            hint,
        ));
    }
    let selector: Selector = wanted.selector.parse()?;
    if selector.groups().next().is_some() {
        let hint = "write out what that group means";
        return Err(ApiError::bad_request("a group cannot be made of another", hint));
    }
    let text = selector.to_string();
    shared
        .store
        .group_set(name.clone(), selector, identity.name, now())
        .await?;
    Ok(Json(GroupKept {
        devices: count(&shared, &text).await?,
        name,
        selector: text,
    }))
}

/// Forget a group; its devices are left alone
#[utoipa::path(
    delete, path = "/groups/{name}", tag = "fleet", operation_id = "remove_group",
    params(("name" = String, Path, description = "Its name")), responses((status = NO_CONTENT))
)]
pub(super) async fn remove(
    State(shared): Fleet,
    identity: Identity,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    if shared.store.group_remove(name, identity.name, now()).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(ApiError::not_found("there is no such group", "see GET /api/v1/groups"))
    }
}

/// Labels for devices.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LabelsWanted {
    /// Names of devices, known or not yet.
    #[schema(value_type = Option<Vec<String>>)]
    devices: Option<Vec<DeviceId>>,
    /// Instead of names: every device that this means.
    select: Option<String>,
    /// Values by key; null takes a label away.
    labels: BTreeMap<String, Option<String>>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct LabelsKept {
    /// Devices that have them now.
    devices: Vec<String>,
}

/// Give labels to devices, or take them away
#[utoipa::path(
    post, path = "/labels", tag = "fleet", operation_id = "label_devices", request_body = LabelsWanted,
    responses((status = OK, body = LabelsKept))
)]
pub(super) async fn label(
    State(shared): Fleet,
    identity: Identity,
    wanted: Result<Json<LabelsWanted>, JsonRejection>,
) -> Result<Json<LabelsKept>, ApiError> {
    let usage = "send {\"devices\": [NAME…] or \"select\": SELECTOR, \"labels\": {KEY: VALUE or null}}";
    let Json(wanted) = wanted.map_err(|rejection| ApiError::bad_request(rejection.body_text(), usage))?;
    check_labels(&wanted.labels)?;
    let devices = meant(&shared, wanted.devices, wanted.select.as_deref()).await?;
    let devices = devices.ok_or_else(|| ApiError::bad_request("no device is meant", usage))?;
    let names = devices.iter().map(ToString::to_string).collect();
    match shared.store.label(devices, wanted.labels, identity.name, now()).await? {
        Labelled::Done => Ok(Json(LabelsKept { devices: names })),
        Labelled::Many(device) => Err(ApiError::bad_request(
            format!("device `{device}` would have more than 32 labels"),
            "take some of them away first",
        )),
    }
}
