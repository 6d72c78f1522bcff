//! What went wrong, as JSON.

use std::borrow::Cow;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::desired::PushError;
use crate::store::StoreError;

/// An answer that is not what was asked for.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    body: Refusal,
}

/// An answer that is not what was asked for.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Refusal {
    /// What is wrong.
    #[schema(value_type = String)]
    error: Cow<'static, str>,
    /// What to do about it.
    #[schema(value_type = String)]
    hint: Cow<'static, str>,
}

impl ApiError {
    pub(crate) fn new(
        status: StatusCode,
        error: impl Into<Cow<'static, str>>,
        hint: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            status,
            body: Refusal {
                error: error.into(),
                hint: hint.into(),
            },
        }
    }

    /// Its status, what is wrong, and what to do about it.
    pub(crate) fn parts(&self) -> (StatusCode, &str, &str) {
        (self.status, &self.body.error, &self.body.hint)
    }

    pub(crate) fn bad_request(error: impl Into<Cow<'static, str>>, hint: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error, hint)
    }

    pub(crate) fn not_found(error: impl Into<Cow<'static, str>>, hint: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::NOT_FOUND, error, hint)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(self.body)).into_response()
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        tracing::error!(
            error = &error as &dyn std::error::Error,
            "a request met a broken database"
        );
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the database cannot be used",
            "see the controller's log",
        )
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        Self::bad_request(rejection.body_text(), "see the parameters of this request in the guide")
    }
}

impl From<PushError> for ApiError {
    fn from(error: PushError) -> Self {
        let message = error.to_string();
        let (status, hint) = match error {
            PushError::Store(error) => return error.into(),
            PushError::Name { .. } | PushError::Version(_) | PushError::Parameters { .. } => {
                (StatusCode::BAD_REQUEST, "correct it and push again")
            }
            PushError::NotComponent { .. } => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "check the file with `offramp policy check FILE.wasm`",
            ),
            PushError::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "build it smaller"),
            PushError::VersionTaken { .. } => (StatusCode::CONFLICT, "push it with a higher version"),
            PushError::UnknownDevices(_) => (StatusCode::NOT_FOUND, "see GET /api/v1/devices"),
            PushError::Quarantined(_) => (
                StatusCode::CONFLICT,
                "leave it out, or let it go with `offramp-fleet release DEVICE`",
            ),
        };
        Self::new(status, message, hint)
    }
}
