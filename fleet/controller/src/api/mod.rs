//! The API: JSON over HTTP below `/api/v1`.
//!
//! Times are milliseconds since 1970, shares are `0..=1`, digests and boots hexadecimal. Lists have a
//! limit; what is wrong is told as `{"error": …, "hint": …}`.

mod devices;
mod enrolments;
mod error;
mod events;
mod groups;
mod insight;
mod keys;
mod models;
mod openapi;
mod policies;
mod rollouts;
mod settings;
mod status;
mod tokens;

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::extract::rejection::JsonRejection;
use axum::{Json, Router};
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouterExt as _};
use utoipa_axum::routes;

use crate::controller::Shared;
use crate::desired::MAX_POLICY;
use crate::models::MAX_MODEL;

pub(crate) use error::ApiError;
use groups::meant;
pub(crate) use groups::selection;

/// Records in one answer, unless the request says how many.
const USUAL_LIMIT: u32 = 100;
/// Records in one answer at most.
const MOST: u32 = 1000;

/// Why something is done to a device, for whoever finds it so.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Reason {
    /// 1 to 500 characters.
    reason: String,
}

impl Reason {
    fn read(sent: Result<Json<Self>, JsonRejection>) -> Result<String, ApiError> {
        let usage = "send {\"reason\": …}, of 1 to 500 characters";
        let Json(Self { reason }) = sent.map_err(|rejection| ApiError::bad_request(rejection.body_text(), usage))?;
        Self::check(reason)
    }

    fn check(reason: String) -> Result<String, ApiError> {
        if reason.trim().is_empty() || reason.chars().count() > 500 {
            return Err(ApiError::bad_request(
                "the reason is missing or too long",
                "give one of 1 to 500 characters",
            ));
        }
        Ok(reason)
    }
}

/// The routes, and their description.
pub(crate) fn router() -> (Router<Arc<Shared>>, OpenApi) {
    let (router, api) = OpenApiRouter::with_openapi(openapi::begin())
        .routes(routes!(status::fetch))
        .routes(routes!(devices::list))
        .routes(routes!(devices::fetch))
        .routes(routes!(devices::summaries))
        .routes(routes!(devices::quarantine))
        .routes(routes!(devices::release))
        .routes(routes!(events::list))
        .routes(routes!(groups::list))
        .routes(routes!(insight::fetch))
        .routes(routes!(groups::set, groups::remove))
        .routes(routes!(groups::label))
        .routes(routes!(settings::change))
        .routes(routes!(policies::list, policies::push))
        .routes(routes!(policies::replay))
        .routes(routes!(models::list, models::add).layer(DefaultBodyLimit::max(MAX_MODEL + 1)))
        .routes(routes!(models::push))
        .routes(routes!(rollouts::list, rollouts::start))
        .routes(routes!(rollouts::fetch))
        .routes(routes!(rollouts::command))
        .routes(routes!(rollouts::audit))
        .routes(routes!(tokens::whoami))
        .routes(routes!(keys::list, keys::rotate))
        .routes(routes!(keys::revoke))
        .routes(routes!(enrolments::create))
        .routes(routes!(enrolments::enrol))
        .routes(routes!(enrolments::revoke))
        .routes(routes!(enrolments::revocations))
        .routes(routes!(tokens::list, tokens::create))
        .routes(routes!(tokens::revoke))
        // One byte more than a policy may have, so that its own check speaks.
        .layer(DefaultBodyLimit::max(MAX_POLICY + 1))
        .split_for_parts();
    (router, openapi::complete(api))
}

/// The description of the API (OpenAPI 3.1), as JSON.
///
/// It is committed in `openapi.json`, and a test holds both that file and the answers to it.
pub fn openapi() -> String {
    let mut api = router().1;
    api.servers = Some(vec![utoipa::openapi::Server::new("/api/v1")]);
    let mut text = serde_json::to_string_pretty(&api).expect("a description is JSON");
    text.push('\n');
    text
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
