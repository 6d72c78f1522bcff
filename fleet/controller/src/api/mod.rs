//! The API: JSON over HTTP below `/api/v1`.
//!
//! Times are milliseconds since 1970, shares are `0..=1`, digests and boots hexadecimal. Lists have a
//! limit; what is wrong is told as `{"error": …, "hint": …}`.

mod devices;
mod error;
mod events;
mod policies;
mod rollouts;
mod status;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};

use crate::controller::Shared;
use crate::desired::MAX_POLICY;

pub(crate) use error::ApiError;

/// Records in one answer, unless the request says how many.
const USUAL_LIMIT: u32 = 100;
/// Records in one answer at most.
const MOST: u32 = 1000;

pub(crate) fn router() -> Router<Arc<Shared>> {
    Router::new()
        .route("/status", get(status::fetch))
        .route("/devices", get(devices::list))
        .route("/devices/{device}", get(devices::fetch))
        .route("/devices/{device}/summaries", get(devices::summaries))
        .route("/events", get(events::list))
        .route("/policies", get(policies::list).post(policies::push))
        .route("/rollouts", get(rollouts::list).post(rollouts::start))
        .route("/rollouts/{id}", get(rollouts::fetch))
        .route("/rollouts/{id}/{act}", post(rollouts::command))
        .route("/audit", get(rollouts::audit))
        // One byte more than a policy may have, so that its own check speaks.
        .layer(DefaultBodyLimit::max(MAX_POLICY + 1))
}

/// The number of records that a request may have.
fn limit(wanted: Option<u32>) -> Result<u32, ApiError> {
    match wanted.unwrap_or(USUAL_LIMIT) {
        limit @ 1..=MOST => Ok(limit),
        _ => Err(ApiError::bad_request(
            "limit is out of range",
            format!("use 1 to {MOST}; ask again with `since` or `after` for more"),
        )),
    }
}
