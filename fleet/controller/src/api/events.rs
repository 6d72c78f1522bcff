//! `/events`

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{ApiError, limit};
use crate::store::{Event, EventFilter};
use crate::web::Fleet;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct EventQuery {
    /// Only those of this device.
    device: Option<String>,
    /// Only those that reached the controller after this time.
    since: Option<u64>,
    /// Events, 1 to 1000; 100 without it.
    limit: Option<u32>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct EventList {
    /// The last to happen first.
    events: Vec<EventView>,
}

/// An event as the API shows it.
#[derive(Serialize, ToSchema)]
#[schema(as = Event)]
struct EventView {
    device: String,
    sequence: u64,
    received_at: u64,
    at: u64,
    kind: String,
    message: String,
    facts: BTreeMap<String, String>,
}

impl From<Event> for EventView {
    fn from(event: Event) -> Self {
        Self {
            device: event.device,
            sequence: event.sequence,
            received_at: event.received_at,
            at: event.at,
            kind: event.kind,
            message: event.message,
            facts: event.facts,
        }
    }
}

/// List what devices found worth telling, the last first
#[utoipa::path(get, path = "/events", tag = "fleet", operation_id = "list_events", params(EventQuery), responses((status = OK, body = EventList)))]
pub(super) async fn list(
    State(shared): Fleet,
    query: Result<Query<EventQuery>, QueryRejection>,
) -> Result<Json<EventList>, ApiError> {
    let Query(query) = query?;
    let filter = EventFilter {
        device: query.device.as_deref(),
        since: query.since.unwrap_or(0),
        limit: limit(query.limit)?,
    };
    let events = shared.store.event_list(filter).await?;
    Ok(Json(EventList {
        events: events.into_iter().map(EventView::from).collect(),
    }))
}
