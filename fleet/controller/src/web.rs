//! Serves page and API over HTTP, and guards both: nothing but the ways in is answered before it is known who asks, and
//! what changes something needs an operator, unless its handler asks for more.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use crate::access::{self, By, Denied, Role};
use crate::api::{self, ApiError};
use crate::controller::Shared;
use crate::metrics;
use crate::models::MAX_MODEL;
use crate::page::{self, login};

/// How long an answer may take, reading the request's body included.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes a second at which a package must come, at least.
const SLOWEST: u64 = 128 * 1024;
/// Pages hear of news at most this often.
const PACE: Duration = Duration::from_secs(1);
/// Nothing is loaded from elsewhere, nothing runs that is not one of our files, nobody frames the page.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; \
                      base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// What every handler works with.
pub(crate) type Fleet = State<Arc<Shared>>;

/// Serves until the controller stops.
pub(crate) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut stop = shared.stop.clone();
    let stopped = async move {
        // An error means that the controller was dropped.
        let _ = stop.wait_for(|stop| *stop).await;
    };
    let served = axum::serve(listener, router(shared))
        .with_graceful_shutdown(stopped)
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "page and API are no longer served");
    }
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/changes", get(changes))
        .route("/metrics", get(metrics::fetch))
        .route("/api/v1/openapi.json", get(description))
        .merge(page::router())
        .nest("/api/v1", api::router().0)
        .fallback(missing)
        .layer(from_fn_with_state(Arc::clone(&shared), guard))
        .with_state(shared)
}

/// The description of the API.
async fn description() -> impl IntoResponse {
    static TEXT: LazyLock<String> = LazyLock::new(api::openapi);
    ([(header::CONTENT_TYPE, "application/json")], TEXT.as_str())
}

/// Whether the controller can do its work: the database answers.
async fn healthz(State(shared): Fleet) -> Result<&'static str, ApiError> {
    shared.store.ping().await?;
    Ok("ok\n")
}

async fn missing(request: Request) -> Response {
    if request.uri().path().starts_with("/api/") {
        ApiError::not_found("no such resource", "see GET /api/v1/status for what there is").into_response()
    } else {
        page::not_found("There is no such page.").into_response()
    }
}

/// Tells a page when something has changed, so that it fetches itself again. Ends when whoever listens may not any more.
async fn changes(State(shared): Fleet, headers: HeaderMap) -> Response {
    let Ok(permit) = Arc::clone(&shared.followers).try_acquire_owned() else {
        let error = ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too many pages wait for news",
            "close some of them",
        );
        return error.into_response();
    };
    let (statistics, link, stop) = (shared.statistics.clone(), shared.link.clone(), shared.stop.clone());
    let followed = (statistics, shared.totals.renewed(), link, stop, permit, true);
    let who = Arc::new((shared, headers));
    let stream = futures_util::stream::unfold(
        followed,
        move |(mut statistics, mut totals, mut link, mut stop, permit, first)| {
            let who = Arc::clone(&who);
            async move {
                if !first {
                    let stopped = stop.wait_for(|stop| *stop);
                    let news = async {
                        tokio::select! {
                            changed = statistics.changed() => changed.is_ok(),
                            changed = totals.changed() => changed.is_ok(),
                            changed = link.changed() => changed.is_ok(),
                        }
                    };
                    tokio::select! {
                        _ = stopped => return None,
                        more = news => if !more {
                            return None;
                        },
                    }
                    tokio::time::sleep(PACE).await;
                    access::identify(&who.0.store, &who.1).await.ok()?;
                }
                let received = statistics.borrow_and_update().received;
                totals.mark_unchanged();
                link.mark_unchanged();
                let event = Event::default().data(received.to_string());
                Some((
                    Ok::<_, Infallible>(event),
                    (statistics, totals, link, stop, permit, false),
                ))
            }
        },
    );
    Sse::new(stream).keep_alive(KeepAlive::default()).into_response()
}

/// Bytes of its body, as a request says.
fn body_bytes(request: &Request) -> u64 {
    let length = request.headers().get(header::CONTENT_LENGTH);
    length
        .and_then(|length| length.to_str().ok()?.parse().ok())
        .unwrap_or(0)
}

/// Lets through what somebody who may has meant, and adds to every answer what browsers need to know.
async fn guard(State(shared): Fleet, mut request: Request, next: Next) -> Response {
    let admitted = admit(&shared, &mut request).await;
    let is_stream = request.uri().path() == "/changes";
    let patience = match request.uri().path() {
        "/api/v1/models" => PATIENCE + Duration::from_secs(body_bytes(&request).min(MAX_MODEL as u64) / SLOWEST),
        _ => PATIENCE,
    };
    let mut response = match admitted {
        Err(refusal) => refusal,
        Ok(()) if is_stream => next.run(request).await,
        Ok(()) => tokio::time::timeout(patience, next.run(request))
            .await
            .unwrap_or_else(|_| {
                ApiError::new(
                    StatusCode::REQUEST_TIMEOUT,
                    "the request took too long",
                    "send it faster, or ask for less",
                )
                .into_response()
            }),
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // Not `no-referrer`: browsers would then hide the origin of our own forms, too.
        (header::REFERRER_POLICY, "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    response
}

/// Whether a path is answered to everybody: the ways in, for people and for devices, and whether the controller lives.
fn is_public(path: &str) -> bool {
    matches!(path, "/healthz" | "/login" | "/api/v1/enrol") || path.starts_with("/assets/")
}

/// Lets a request through, and tells its handler who asks; or gives the answer that it gets instead.
async fn admit(shared: &Shared, request: &mut Request) -> Result<(), Response> {
    let path = request.uri().path();
    if let Some(error) = foreign_site(request.method(), request.headers()) {
        return Err(refuse(path, error));
    }
    if is_public(path) {
        return match foreign_host(request.headers(), is_open(shared).await) {
            Some(error) => Err(refuse(path, error)),
            None => Ok(()),
        };
    }
    let identity = match access::identify(&shared.store, request.headers()).await {
        Ok(identity) => identity,
        Err(denied) => return Err(deny(shared, request, denied)),
    };
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD);
    let refused = foreign_host(request.headers(), identity.by == By::Nothing)
        .or_else(|| {
            let by_session = changes && matches!(identity.by, By::Session(_));
            by_session.then(|| unproven_site(request.headers())).flatten()
        })
        .or_else(|| {
            let needed = if changes && path != "/logout" {
                Role::Operator
            } else {
                Role::Viewer
            };
            identity.require(needed).err()
        });
    if let Some(error) = refused {
        tracing::debug!(who = identity.name, path, "refused");
        return Err(refuse(path, error));
    }
    request.extensions_mut().insert(identity);
    Ok(())
}

async fn is_open(shared: &Shared) -> bool {
    // Where the database cannot tell, the narrower way holds.
    shared.store.is_open().await.unwrap_or(true)
}

fn is_for_programs(path: &str) -> bool {
    path.starts_with("/api/") || matches!(path, "/healthz" | "/metrics" | "/changes")
}

/// What is wrong, as programs or people read it.
fn refuse(path: &str, error: ApiError) -> Response {
    if is_for_programs(path) {
        error.into_response()
    } else {
        page::refused(&error)
    }
}

/// The answer to somebody who is not known: people are sent to the login, programs are told.
fn deny(shared: &Shared, request: &Request, denied: Denied) -> Response {
    let path = request.uri().path();
    if let Denied::Invalid(why) = &denied {
        shared.denied.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(path, "refused a request with {why}");
    }
    if is_for_programs(path) || request.method() != Method::GET {
        let mut response = ApiError::from(denied).into_response();
        if response.status() == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        return response;
    }
    let wanted = request.uri().path_and_query().map_or("/", |p| p.as_str());
    Redirect::to(&login::address(wanted)).into_response()
}

/// Refuses a name that could be anybody's. Without a login, the loopback address is the only wall; a
/// foreign page would get past it with a name of its own that it points here (DNS rebinding).
fn foreign_host(headers: &HeaderMap, open: bool) -> Option<ApiError> {
    if !open {
        return None;
    }
    let host = headers
        .get(header::HOST)
        .and_then(|h| h.to_str().ok())
        .unwrap_or_default();
    (!is_local(host)).then(|| {
        ApiError::new(
            StatusCode::FORBIDDEN,
            "this name is not served without a login",
            "open the page as http://localhost or by its IP address, or make a token with `offramp-fleet token create`",
        )
    })
}

/// Whether a host, with or without a port, is `localhost` or an address.
fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

/// Refuses what changes something and comes from another site's page.
fn foreign_site(method: &Method, headers: &HeaderMap) -> Option<ApiError> {
    if matches!(*method, Method::GET | Method::HEAD) {
        return None;
    }
    let text = |name| headers.get(name).map(|v| v.to_str().unwrap_or("?"));
    let site = text(HeaderName::from_static("sec-fetch-site"));
    let same_site = site.is_none_or(|site| matches!(site, "same-origin" | "none"));
    let host = text(header::HOST).unwrap_or_default();
    let same_origin = text(header::ORIGIN).is_none_or(|origin| {
        let origin_host = origin.split_once("://").map(|(_, host)| host);
        origin_host == Some(host)
    });
    (!(same_site && same_origin)).then(|| {
        ApiError::new(
            StatusCode::FORBIDDEN,
            "the request comes from a page of another site",
            "use this controller's own page, or `offramp-fleet`",
        )
    })
}

/// Refuses a change that a session would allow where the browser does not say that it comes from our own page. All that
/// are in use do; the cookie is not sent from other sites, and this holds where that fails.
fn unproven_site(headers: &HeaderMap) -> Option<ApiError> {
    let said = headers.contains_key("sec-fetch-site") || headers.contains_key(header::ORIGIN);
    (!said).then(|| {
        ApiError::new(
            StatusCode::FORBIDDEN,
            "the browser does not say from which page the request comes",
            "use a newer browser, or a token",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_localhost_are_local() {
        for host in [
            "localhost",
            "localhost:80",
            "LOCALHOST",
            "127.0.0.1:8470",
            "[::1]:8470",
            "10.0.0.7",
        ] {
            assert!(is_local(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:8470",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            ":80",
        ] {
            assert!(!is_local(host), "{host}");
        }
    }

    #[test]
    fn changes_from_other_sites_are_refused() {
        let refused = |method: Method, pairs: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static("127.0.0.1:8470"));
            for (name, value) in pairs {
                headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
            }
            foreign_site(&method, &headers).is_some()
        };
        assert!(!refused(Method::POST, &[]));
        assert!(!refused(Method::POST, &[("sec-fetch-site", "same-origin")]));
        assert!(!refused(Method::POST, &[("origin", "http://127.0.0.1:8470")]));
        assert!(!refused(Method::GET, &[("sec-fetch-site", "cross-site")]));
        assert!(refused(Method::POST, &[("sec-fetch-site", "cross-site")]));
        assert!(refused(Method::POST, &[("sec-fetch-site", "same-site")]));
        assert!(refused(Method::POST, &[("origin", "http://evil.example")]));
        assert!(refused(Method::POST, &[("origin", "http://127.0.0.1:9000")]));
        assert!(refused(Method::POST, &[("origin", "null")]));
        assert!(refused(
            Method::DELETE,
            &[("origin", "http://127.0.0.1:8470.evil.example")]
        ));
    }
}
