//! The way in and out: a token becomes a session.

use axum::Form;
use axum::extract::rejection::FormRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use serde::Deserialize;

use super::{PageError, layout};
use crate::access::{self, By, Denied, Identity};
use crate::web::Fleet;

#[derive(Deserialize)]
pub(super) struct Wanted {
    next: Option<String>,
}

/// What the form sends.
#[derive(Deserialize)]
pub(super) struct Entry {
    token: String,
    next: Option<String>,
}

/// Where somebody is sent who wants a page and is not known.
pub(crate) fn address(wanted: &str) -> String {
    if wanted == "/" {
        return "/login".into();
    }
    let mut address = String::from("/login?next=");
    for byte in wanted.bytes() {
        if byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte) {
            address.push(char::from(byte));
        } else {
            address.push_str(&format!("%{byte:02X}"));
        }
    }
    address
}

/// A page of this controller; the first where it is none.
fn own(next: Option<String>) -> String {
    let own = |next: &String| {
        next.starts_with('/') && !next[1..].starts_with(['/', '\\']) && next.bytes().all(|b| (0x21..0x7f).contains(&b))
    };
    next.filter(own).unwrap_or_else(|| "/".into())
}

pub(super) async fn form(State(shared): Fleet, Query(wanted): Query<Wanted>) -> Result<Response, PageError> {
    let next = own(wanted.next);
    if shared.store.is_open().await? {
        return Ok(Redirect::to(&next).into_response());
    }
    Ok(render(shared.tenant.as_str(), &next, None).into_response())
}

pub(super) async fn enter(
    State(shared): Fleet,
    headers: HeaderMap,
    entry: Result<Form<Entry>, FormRejection>,
) -> Result<Response, PageError> {
    let Ok(Form(entry)) = entry else {
        let page = render(shared.tenant.as_str(), "/", Some("That was not understood. Try again."));
        return Ok((StatusCode::BAD_REQUEST, page).into_response());
    };
    let next = own(entry.next);
    match access::login(&shared.store, &entry.token, by_https(&headers)).await {
        Ok(login) => {
            tracing::info!(who = login.identity.name, "logged in");
            Ok(([(header::SET_COOKIE, login.cookie)], Redirect::to(&next)).into_response())
        }
        Err(Denied::Store(error)) => Err(error.into()),
        Err(denied) => {
            if let Denied::Invalid(why) = &denied {
                shared.denied.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                tracing::warn!("refused a login with {why}");
            }
            let trouble = "This token does not hold: it is unknown, expired or revoked.";
            let page = render(shared.tenant.as_str(), &next, Some(trouble));
            Ok((StatusCode::UNAUTHORIZED, page).into_response())
        }
    }
}

pub(super) async fn leave(State(shared): Fleet, identity: Identity, headers: HeaderMap) -> Result<Response, PageError> {
    if let By::Session(session) = identity.by {
        shared.store.session_end(session).await?;
        tracing::info!(who = identity.name, "logged out");
    }
    let cookie = access::no_cookie(by_https(&headers));
    Ok(([(header::SET_COOKIE, cookie)], Redirect::to("/login")).into_response())
}

/// Whether the browser came by HTTPS, as the proxy before us says. Whoever lies here only loses their own session.
fn by_https(headers: &HeaderMap) -> bool {
    headers.get("x-forwarded-proto").is_some_and(|proto| proto == "https")
}

fn render(tenant: &str, next: &str, trouble: Option<&str>) -> Markup {
    let content = html! {
        h1 { "Log in to " (tenant) }
        @if let Some(trouble) = trouble { p class="banner bad" role="alert" id="trouble" { (trouble) } }
        form method="post" action="/login" class="login" {
            input type="hidden" name="next" value=(next);
            // Password managers keep what belongs to a name.
            input type="text" name="fleet" value=(tenant) autocomplete="username" hidden;
            label for="token" { "Token" }
            input id="token" type="password" name="token" required autofocus autocomplete="current-password"
                spellcheck="false" aria-describedby=[trouble.map(|_| "trouble")];
            button type="submit" { "Log in" }
        }
        p class="sub" { "An admin makes one with " code { "offramp-fleet token create NAME --role viewer" } "." }
    };
    layout::plain("Log in", &content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_of_this_controller_follow_a_login() {
        for good in ["/", "/devices/cam-1?range=10m", "/rollouts/3"] {
            assert_eq!(own(Some(good.into())), good);
        }
        for bad in [
            "",
            "//evil.example",
            "/\\evil.example",
            "https://evil.example",
            "evil",
            "/a\r\nb",
            "/ü",
        ] {
            assert_eq!(own(Some(bad.into())), "/", "{bad}");
        }
        assert_eq!(own(None), "/");
    }

    #[test]
    fn where_somebody_wanted_to_go_is_kept() {
        assert_eq!(address("/"), "/login");
        assert_eq!(
            address("/devices/a?range=10m&x"),
            "/login?next=/devices/a%3Frange%3D10m%26x"
        );
    }
}
