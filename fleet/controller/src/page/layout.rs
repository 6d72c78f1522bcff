//! What surrounds every page.

use maud::{DOCTYPE, Markup, PreEscaped, html};
use offramp_link::State;

use super::ASSETS;
use crate::access::{By, Identity, Role};
use crate::controller::Shared;
use crate::named::name;

/// What the surroundings show.
pub(super) struct Frame {
    pub(super) tenant: String,
    /// Why there is no connection to the broker.
    pub(super) trouble: Option<String>,
    /// Messages that were refused since the start.
    pub(super) refused: u64,
    pub(super) identity: Identity,
}

impl Frame {
    pub(super) fn of(shared: &Shared, identity: Identity) -> Self {
        let trouble = match &*shared.link.borrow() {
            State::Connected { .. } => None,
            State::Connecting => Some(format!("Connecting to {}.", shared.broker)),
            State::Disconnected { reason, .. } => Some(format!("No connection to {}: {reason}.", shared.broker)),
            State::Closed => Some("The controller is shutting down.".into()),
        };
        Self {
            tenant: shared.tenant.to_string(),
            trouble,
            refused: shared.statistics.borrow().refused,
            identity,
        }
    }
}

/// The mark of the product.
fn mark() -> Markup {
    html! {
        svg class="mark" viewBox="0 0 24 24" width="22" height="22" aria-hidden="true" {
            path class="road" d="M3 19h18" {}
            path class="ramp" d="M3 19c7 0 9-3 11-7s3-7 7-7" {}
        }
    }
}

fn head(title: &str) -> Markup {
    html! {
        head {
            meta charset="utf-8";
            meta name="viewport" content="width=device-width, initial-scale=1";
            meta name="color-scheme" content="light dark";
            title { (title) }
            link rel="stylesheet" href={ "/assets/" (*ASSETS) "/style.css" };
            link rel="icon" type="image/svg+xml" href={ "/assets/" (*ASSETS) "/icon.svg" };
            script src={ "/assets/" (*ASSETS) "/live.js" } defer {}
        }
    }
}

/// A page of the fleet, or of a device or something else of it, by its name.
pub(super) fn layout(frame: &Frame, part: Option<&str>, content: &Markup) -> Markup {
    let title = match part {
        Some(part) => format!("{part} · Offramp"),
        None => format!("{} · Offramp", frame.tenant),
    };
    html! {
        (DOCTYPE)
        html lang="en" {
            (head(&title))
            body {
                a class="skip" href="#main" { "Skip to content" }
                header class="top" {
                    a class="brand" href="/" aria-label="Offramp, fleet" { (mark()) span { "Offramp" } }
                    nav aria-label="Place" {
                        ol {
                            li {
                                @if part.is_some() { a href="/" { (frame.tenant) } }
                                @else { span aria-current="page" { (frame.tenant) } }
                            }
                            @if let Some(part) = part { li { span aria-current="page" { (part) } } }
                        }
                    }
                    @if part != Some("Insight") { a class="place" href="/insight" { "Insight" } }
                    p id="live" role="status" data-state="wait" { i aria-hidden="true" {} span { "Connecting" } }
                    (who(&frame.identity))
                }
                main id="main" {
                    div id="trouble" data-live role="alert" {
                        @if let Some(trouble) = &frame.trouble {
                            p class="banner" { strong { (trouble) } " Devices go on and keep their summaries; what is shown here is the last that arrived." }
                        }
                    }
                    (content)
                }
                footer id="footer" data-live {
                    span { "offramp-fleet " (env!("CARGO_PKG_VERSION")) }
                    @if frame.refused > 0 {
                        span { (super::format::count(frame.refused)) " messages refused since the start, see the log" }
                    }
                    a href="/api/v1/status" { "API" }
                }
            }
        }
    }
}

/// Who is logged in, and the way out.
fn who(identity: &Identity) -> Markup {
    let role = name(&Role::ALL, identity.role);
    html! {
        @if identity.by == By::Nothing {
            p class="who" title="Nobody is asked for a token: whoever reaches this page may do everything. Make a first token with `offramp-fleet token create NAME --role admin`." {
                "No login"
            }
        } @else {
            form class="who" method="post" action="/logout" {
                span { (identity.name) " " span class="sub" { (role) } }
                button type="submit" class="quiet" { "Log out" }
            }
        }
    }
}

/// A page that says why there is none.
pub(super) fn error(title: &str, message: &str) -> Markup {
    let content = html! { h1 { (title) } p { (message) } p { a href="/" { "To the fleet" } } };
    plain(title, &content)
}

/// A page with little on it, the same for everybody.
pub(super) fn plain(title: &str, content: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · Offramp" }
                link rel="stylesheet" href={ "/assets/" (*ASSETS) "/style.css" };
            }
            body {
                header class="top" { a class="brand" href="/" { (mark()) span { "Offramp" } } }
                main class="plain" id="main" { (content) }
            }
        }
    }
}

/// Marks text as HTML already. Only for drawings of our own that hold no text.
pub(super) fn drawing(svg: &str) -> PreEscaped<&str> {
    PreEscaped(svg)
}
