//! `/tokens`, `/tokens/{name}`, `/whoami`

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{ApiError, MOST};
use crate::access::{self, Admin, By, CreateError, Identity, Role};
use crate::store::{Token, TokenRevoked, now};
use crate::web::Fleet;

const DAY: u64 = 24 * 3600 * 1000;
/// Days for which a token may hold: ten years.
const MOST_DAYS: u64 = 3660;

/// Who asks.
#[derive(Serialize, ToSchema)]
pub(super) struct Whoami {
    /// The token's name; `local` where nobody is asked for one.
    name: String,
    role: Role,
    /// Whether this controller asks for tokens.
    login: bool,
}

/// Tell who asks
#[utoipa::path(get, path = "/whoami", tag = "access", operation_id = "whoami", responses((status = OK, body = Whoami)))]
pub(super) async fn whoami(identity: Identity) -> Json<Whoami> {
    Json(Whoami {
        name: identity.name,
        role: identity.role,
        login: identity.by != By::Nothing,
    })
}

/// A token, without its secret.
#[derive(Serialize, ToSchema)]
#[schema(as = Token)]
pub(super) struct TokenView {
    name: String,
    role: Role,
    created_at: u64,
    created_by: String,
    expires_at: Option<u64>,
    revoked_at: Option<u64>,
    /// To some minutes; null when it never was.
    used_at: Option<u64>,
}

impl From<Token> for TokenView {
    fn from(token: Token) -> Self {
        Self {
            name: token.name,
            role: token.role,
            created_at: token.created_at,
            created_by: token.created_by,
            expires_at: token.expires_at,
            revoked_at: token.revoked_at,
            used_at: token.used_at,
        }
    }
}

#[derive(Serialize, ToSchema)]
pub(super) struct TokenList {
    /// The newest first.
    tokens: Vec<TokenView>,
}

/// List the tokens; needs an admin
#[utoipa::path(get, path = "/tokens", tag = "access", operation_id = "list_tokens", responses((status = OK, body = TokenList)))]
pub(super) async fn list(State(shared): Fleet, _admin: Admin) -> Result<Json<TokenList>, ApiError> {
    let tokens = shared.store.token_list(MOST).await?;
    Ok(Json(TokenList {
        tokens: tokens.into_iter().map(TokenView::from).collect(),
    }))
}

/// A token that is wanted.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = TokenWanted)]
pub(super) struct WantedToken {
    /// 1 to 64 letters, digits, `-`, `_` or `.`; for the audit log, and never used again.
    name: String,
    role: Role,
    /// Days for which it holds, at most 3660; without them, until it is revoked.
    days: Option<u64>,
}

/// A token with its secret, which is not kept and cannot be shown again.
#[derive(Serialize, ToSchema)]
#[schema(as = TokenMade)]
pub(super) struct MadeToken {
    name: String,
    role: Role,
    /// The secret.
    token: String,
    expires_at: Option<u64>,
}

/// Make a token; needs an admin
#[utoipa::path(post, path = "/tokens", tag = "access", operation_id = "create_token", request_body = WantedToken, responses((status = OK, body = MadeToken)))]
pub(super) async fn create(
    State(shared): Fleet,
    Admin(admin): Admin,
    wanted: Result<Json<WantedToken>, JsonRejection>,
) -> Result<Json<MadeToken>, ApiError> {
    let Json(wanted) = wanted.map_err(|rejection| {
        ApiError::bad_request(
            rejection.body_text(),
            "send {\"name\": NAME, \"role\": \"viewer\", \"operator\" or \"admin\", \"days\": N}",
        )
    })?;
    let expires_at = match wanted.days {
        None => None,
        Some(days @ 1..=MOST_DAYS) => Some(now().saturating_add(days * DAY)),
        Some(_) => {
            return Err(ApiError::bad_request(
                "`days` is out of range",
                "use 1 to 3660 days, or none",
            ));
        }
    };
    let token = access::create(&shared.store, &wanted.name, wanted.role, expires_at, &admin.name).await?;
    Ok(Json(MadeToken {
        name: wanted.name,
        role: wanted.role,
        token,
        expires_at,
    }))
}

/// Revoke a token and end its sessions, at once; needs an admin
#[utoipa::path(
    delete, path = "/tokens/{name}", tag = "access", operation_id = "revoke_token", params(("name" = String, Path, description = "Its name")),
    responses((status = NO_CONTENT, description = "It does not hold any more"))
)]
pub(super) async fn revoke(
    State(shared): Fleet,
    Admin(admin): Admin,
    token: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, ApiError> {
    let unknown = || ApiError::not_found("there is no such token", "see GET /api/v1/tokens");
    let Path(token) = token.map_err(|_| unknown())?;
    match shared
        .store
        .token_revoke(token.clone(), admin.name.clone(), now())
        .await?
    {
        TokenRevoked::Done => {
            tracing::info!(token, who = admin.name, "token revoked");
            Ok(StatusCode::NO_CONTENT)
        }
        // Told twice, it is as it should be.
        TokenRevoked::Already => Ok(StatusCode::NO_CONTENT),
        TokenRevoked::Unknown => Err(unknown()),
        TokenRevoked::LastAdmin => Err(ApiError::new(
            StatusCode::CONFLICT,
            format!("`{token}` is the only token of an admin that does not expire"),
            "make another first, so that somebody can make tokens",
        )),
    }
}

impl From<CreateError> for ApiError {
    fn from(error: CreateError) -> Self {
        let message = error.to_string();
        let (status, hint) = match error {
            CreateError::Store(error) => return error.into(),
            CreateError::Random(_) => (StatusCode::SERVICE_UNAVAILABLE, "see the controller's machine"),
            CreateError::Name(_) => (StatusCode::BAD_REQUEST, "use another name"),
            CreateError::Taken(_) => (StatusCode::CONFLICT, "use another name"),
            CreateError::NotAdmin => (
                StatusCode::CONFLICT,
                "make one with the role `admin` and without `days`",
            ),
        };
        Self::new(status, message, hint)
    }
}
