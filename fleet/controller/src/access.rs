//! Who may do what: roles, and the tokens and sessions that give them.
//!
//! - A **token** has a name and a role. Its secret is shown once, when it is made; the database keeps a digest. Programs
//!   send it with each request, people give it to the login page.
//! - A **session** is a login: a secret in a cookie that scripts and other sites do not get. It ends with its token.
//! - While no token was ever made the controller is **open**: whoever reaches it is an admin, and it therefore serves a
//!   loopback address only. The first token, which is an admin's, closes it for good.
//!
//! Each request looks its secret up in the database, so that a revocation holds from the next request on, whichever
//! controller it was made at.

use std::io;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use offramp_proto::{DeviceId, Digest, TenantId};
use serde::{Deserialize, Serialize};

use crate::api::ApiError;
use crate::named::name;
use crate::store::{Database, ITSELF, NewToken, Store, StoreError, Token, TokenCreated, now};

/// Who acts where nobody is asked for a name.
pub(crate) const LOCAL: &str = "local";
/// The cookie that holds a session's secret.
const COOKIE: &str = "offramp_session";
/// For how long a login holds, in milliseconds.
const SESSION: u64 = 12 * 3600 * 1000;
/// The use of a token is noted this often, in milliseconds.
const NOTE: u64 = 5 * 60 * 1000;
/// What a token begins with, so that people and scanners of code recognise one.
const PREFIX: &str = "offramp_";

/// What somebody may do. Each role may do what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// See everything but the tokens.
    Viewer,
    /// Push policies and roll them out.
    Operator,
    /// Make and revoke tokens.
    Admin,
}

impl Role {
    /// All roles by name.
    pub const ALL: [(Self, &'static str); 3] = [
        (Self::Viewer, "viewer"),
        (Self::Operator, "operator"),
        (Self::Admin, "admin"),
    ];
}

/// Who asks.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) by: By,
}

/// How it is known who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// The controller is open.
    Nothing,
    Token,
    /// The digest of its secret.
    Session(Digest),
}

impl Identity {
    pub(crate) fn local() -> Self {
        Self {
            name: LOCAL.into(),
            role: Role::Admin,
            by: By::Nothing,
        }
    }

    /// # Errors
    /// When the role is not enough.
    pub(crate) fn require(&self, role: Role) -> Result<(), ApiError> {
        if self.role >= role {
            return Ok(());
        }
        let (has, needs) = (name(&Role::ALL, self.role), name(&Role::ALL, role));
        Err(ApiError::new(
            StatusCode::FORBIDDEN,
            format!("`{}` is {has}; this needs {needs}", self.name),
            "use a token with that role",
        ))
    }
}

/// The guard of the web server puts it there, or lets nothing through.
impl<S: Sync> FromRequestParts<S> for Identity {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        parts.extensions.get::<Self>().cloned().ok_or_else(missing)
    }
}

/// Somebody who is an admin.
pub(crate) struct Admin(pub(crate) Identity);

impl<S: Sync> FromRequestParts<S> for Admin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let identity = Identity::from_request_parts(parts, state).await?;
        identity.require(Role::Admin)?;
        Ok(Self(identity))
    }
}

/// Why somebody is not let in.
#[derive(Debug)]
pub(crate) enum Denied {
    /// Nothing says who asks.
    Missing,
    /// What says so does not hold; for the log, why.
    Invalid(String),
    Store(StoreError),
}

impl From<StoreError> for Denied {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<Denied> for ApiError {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Missing => missing(),
            Denied::Invalid(_) => Self::new(
                StatusCode::UNAUTHORIZED,
                "the token or session does not hold: unknown, expired or revoked",
                "ask an admin for a token, and give it with --token or OFFRAMP_FLEET_TOKEN",
            ),
            Denied::Store(error) => error.into(),
        }
    }
}

fn missing() -> ApiError {
    ApiError::new(
        StatusCode::UNAUTHORIZED,
        "a token is needed",
        "give one with --token or OFFRAMP_FLEET_TOKEN, or as `Authorization: Bearer TOKEN`",
    )
}

/// Who sends a request with these headers.
///
/// # Errors
/// When nothing says so, or what says so does not hold.
pub(crate) async fn identify(store: &Store, headers: &HeaderMap) -> Result<Identity, Denied> {
    let now = now();
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let secret = value.to_str().ok().and_then(bearer);
        let secret = secret.ok_or_else(|| Denied::Invalid("something else than a bearer token".into()))?;
        let token = valid(store.token_fetch(digest(secret)).await?, now)?;
        note(store, &token, now).await;
        return Ok(identity(token, By::Token));
    }
    if let Some(secret) = cookie(headers) {
        let session = digest(secret);
        // A session that is over is a login that is missing; one whose token does not hold any more is refused.
        let found = store.session_fetch(session, now).await?;
        match found.map(|token| valid(Some(token), now)) {
            Some(Ok(token)) => return Ok(identity(token, By::Session(session))),
            // In an open controller it is a leftover.
            _ if store.is_open().await? => return Ok(Identity::local()),
            Some(Err(denied)) => return Err(denied),
            None => return Err(Denied::Missing),
        }
    }
    if store.is_open().await? {
        return Ok(Identity::local());
    }
    Err(Denied::Missing)
}

fn identity(token: Token, by: By) -> Identity {
    Identity {
        name: token.name,
        role: token.role,
        by,
    }
}

fn valid(token: Option<Token>, now: u64) -> Result<Token, Denied> {
    let token = token.ok_or_else(|| Denied::Invalid("an unknown secret".into()))?;
    match token.invalid(now) {
        Some(why) => Err(Denied::Invalid(format!("the {why} token `{}`", token.name))),
        None => Ok(token),
    }
}

async fn note(store: &Store, token: &Token, now: u64) {
    if token.used_at.is_some_and(|at| now.saturating_sub(at) < NOTE) {
        return;
    }
    if let Err(error) = store.token_used(token.id, now).await {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "the use of a token was not noted"
        );
    }
}

fn bearer(value: &str) -> Option<&str> {
    let (scheme, secret) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| secret.trim())
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    let pairs = headers.get_all(header::COOKIE).iter();
    pairs
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find_map(|(name, value)| (name == COOKIE).then_some(value))
}

pub(crate) fn digest(secret: &str) -> Digest {
    Digest::of(secret.as_bytes())
}

/// 256 random bits as text, and their digest.
pub(crate) fn secret() -> Result<(String, Digest), CreateError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|e| CreateError::Random(io::Error::other(e.to_string())))?;
    let text = format!("{PREFIX}{}", Digest(bytes));
    let digest = digest(&text);
    Ok((text, digest))
}

/// A login.
pub(crate) struct Login {
    pub(crate) identity: Identity,
    /// Value of the header that sets the cookie.
    pub(crate) cookie: String,
}

/// Begins a session for whoever has this token. `secure` when the browser came by HTTPS.
///
/// # Errors
/// When the token does not hold.
pub(crate) async fn login(store: &Store, token: &str, secure: bool) -> Result<Login, Denied> {
    let now = now();
    let token = valid(store.token_fetch(digest(token.trim())).await?, now)?;
    let (secret, session) = secret().map_err(|error| Denied::Invalid(error.to_string()))?;
    let until = now.saturating_add(SESSION);
    store.session_create(session, token.id, now, until).await?;
    note(store, &token, now).await;
    let cookie = set_cookie(&secret, SESSION / 1000, secure);
    Ok(Login {
        identity: identity(token, By::Session(session)),
        cookie,
    })
}

/// Value of the header that takes the cookie back.
pub(crate) fn no_cookie(secure: bool) -> String {
    set_cookie("", 0, secure)
}

fn set_cookie(value: &str, seconds: u64, secure: bool) -> String {
    let secure = if secure { "; Secure" } else { "" };
    format!("{COOKIE}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}")
}

/// Why a token was not made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The name cannot be one.
    #[error(
        "token name `{0:.80}` is not valid: use 1 to 64 letters, digits, `-`, `_` or `.`, and not `local` or `controller`"
    )]
    Name(String),
    /// There is one of that name, or there was.
    #[error("there is or was a token `{0}`: choose another name, so that the audit log stays clear")]
    Taken(String),
    /// It would lock everybody out.
    #[error("the first token must be one of an admin that does not expire: make that one first")]
    NotAdmin,
    /// The system gave no random bytes.
    #[error("cannot make a token: the system gives no random bytes")]
    Random(#[source] io::Error),
    /// The database refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Makes a token and gives its secret, which nobody can see again.
///
/// # Errors
/// See [`CreateError`].
pub(crate) async fn create(
    store: &Store,
    token: &str,
    role: Role,
    expires_at: Option<u64>,
    who: &str,
) -> Result<String, CreateError> {
    // The rules for names are those for devices.
    if DeviceId::new(token).is_err() || [LOCAL, ITSELF].contains(&token) {
        return Err(CreateError::Name(token.into()));
    }
    let (secret, digest) = secret()?;
    let new = NewToken {
        name: token.into(),
        role,
        digest,
        expires_at,
    };
    match store.token_create(new, who.into(), now()).await? {
        TokenCreated::Done => {
            tracing::info!(token, role = name(&Role::ALL, role), who, "token made");
            Ok(secret)
        }
        TokenCreated::NameTaken => Err(CreateError::Taken(token.into())),
        TokenCreated::NotAdmin => Err(CreateError::NotAdmin),
    }
}

/// Makes a token in the database itself: the first, or another when all are lost. Whoever may write the database may do
/// that. A file must not be used by a running controller. Gives its secret.
///
/// # Errors
/// See [`CreateError`].
///
/// # Panics
/// Outside a tokio runtime.
pub async fn create_in_database(
    database: &Database,
    tenant: &TenantId,
    token: &str,
    role: Role,
) -> Result<String, CreateError> {
    let (store, _temporary) = Store::open(database, tenant).await?;
    let made = create(&store, token, role, None, LOCAL).await;
    store.close().await;
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_rise() {
        assert!(Role::Viewer < Role::Operator && Role::Operator < Role::Admin);
    }

    #[test]
    fn secrets_are_long_and_never_the_same() {
        let (first, second) = (secret().unwrap(), secret().unwrap());
        assert_ne!(first, second);
        assert_eq!(first.0.len(), PREFIX.len() + 64);
        assert_eq!(digest(&first.0), first.1);
    }

    #[test]
    fn only_our_cookie_and_only_bearer_tokens_are_read() {
        let mut headers = HeaderMap::new();
        headers.append(header::COOKIE, "a=b; offramp_sessions=no".parse().unwrap());
        assert_eq!(cookie(&headers), None);
        headers.append(header::COOKIE, "c=d;offramp_session=yes".parse().unwrap());
        assert_eq!(cookie(&headers), Some("yes"));
        assert_eq!(bearer("bearer  x "), Some("x"));
        assert_eq!(bearer("Basic x"), None);
        assert_eq!(bearer("x"), None);
    }

    #[test]
    fn cookies_are_out_of_reach_of_scripts_and_other_sites() {
        let cookie = set_cookie("x", 60, true);
        for part in ["HttpOnly", "SameSite=Strict", "Secure", "Path=/"] {
            assert!(cookie.contains(part), "{cookie}");
        }
        assert!(!set_cookie("x", 60, false).contains("Secure"));
    }
}
