//! What several pages show.

use maud::{Markup, html};

use super::format::{ago, iso, milliseconds, percent, percent_round, utc};
use crate::chart::step;
use crate::overview::{Disagreement, Life, Loss, Progress, Recent, Saving, share};
use crate::store::{Event, Labels};

/// A time as its age; the time itself on hover and for machines.
pub(super) fn age(then: u64, now: u64) -> Markup {
    html! { time datetime=(iso(then)) title=(utc(then)) data-age { (ago(then, now)) } }
}

/// Whether a device lives, in colour and in words.
pub(super) fn life(life: Life) -> Markup {
    let (class, word) = match life {
        Life::Alive => ("alive", "alive"),
        Life::Silent => ("silent", "silent"),
        Life::Gone => ("gone", "gone"),
        Life::Quarantined => ("quarantined", "quarantined"),
    };
    html! { span class={ "life " (class) } { i aria-hidden="true" {} (word) } }
}

/// How far a device is with its desired state, where that needs saying.
pub(super) fn progress(progress: &Progress, source: Option<&str>) -> Markup {
    html! {
        @match (progress, source) {
            (Progress::Refused(reason), _) => span class="chip bad" title=(reason) { "refused" },
            (Progress::Pending, _) => span class="chip wait" { "pending" },
            (Progress::InForce, Some("last-good")) => span class="chip warn" { "last good" },
            (Progress::InForce, Some("built-in")) => span class="chip warn" { "built-in rule" },
            (Progress::InForce, _) => span class="chip good" { "in force" },
            (Progress::Unmanaged, _) => {},
        }
    }
}

/// Name of an exit: the last one is the whole network.
pub(super) fn exit_name(exit: usize, exits: usize) -> String {
    if exit + 1 == exits {
        format!("exit {} (whole network)", exit + 1)
    } else {
        format!("exit {}", exit + 1)
    }
}

/// Shares of the exits of the latest windows as one bar.
pub(super) fn exit_bar(recent: &Recent) -> Markup {
    let shares = recent.exits.iter().filter_map(|taken| share(*taken, recent.frames));
    share_bar(&shares.collect::<Vec<f64>>())
}

/// Shares of the exits as one bar.
pub(super) fn share_bar(shares: &[f64]) -> Markup {
    let exits = shares.len();
    let words: Vec<String> = shares
        .iter()
        .enumerate()
        .map(|(exit, share)| format!("{} {}", exit_name(exit, exits), percent_round(*share)))
        .collect();
    let words = words.join(", ");
    let starts = shares.iter().scan(0.0, |start, share| {
        let at = *start;
        *start += share;
        Some(at)
    });
    html! {
        @if shares.is_empty() { span class="none" { "no frames" } }
        @else {
            svg class="exits" viewBox="0 0 1 1" preserveAspectRatio="none" role="img" aria-label=(words) {
                title { (words) }
                @for (exit, (start, share)) in starts.zip(shares).enumerate() {
                    rect class={ "e" (step(exit, exits)) } x=(format!("{start:.4}")) y="0" width=(format!("{share:.4}")) height="1" {}
                }
            }
        }
    }
}

/// The colours of the exits.
pub(super) fn exit_legend(exits: usize) -> Markup {
    html! {
        ul class="legend" aria-hidden="true" {
            @for exit in 0..exits {
                li { svg class="swatch" viewBox="0 0 1 1" { rect class={ "e" (step(exit, exits)) } width="1" height="1" {} } (exit_name(exit, exits)) }
            }
        }
    }
}

/// An estimate with its bound.
pub(super) fn disagreement(disagreement: Option<Disagreement>) -> Markup {
    html! {
        @match disagreement {
            Some(d) => {
                span class="estimate" { (percent(d.estimate)) }
                " "
                span class="bound" { "≤\u{202f}" (percent(d.bound)) }
            },
            None => span class="none" { "no audits yet" },
        }
    }
}

/// Accuracy given up with its bound; below zero it is gained.
pub(super) fn loss(loss: Option<Loss>) -> Markup {
    html! {
        @match loss {
            Some(loss) => {
                span class="estimate" { (percent(loss.estimate)) }
                " "
                span class="bound" { "≤\u{202f}" (percent(loss.bound)) }
            },
            None => span class="none" { "–" },
        }
    }
}

/// Accuracy given up, in large; below zero it is gained.
pub(super) fn given_up(loss: f64) -> Markup {
    html! {
        (percent(loss.abs()))
        small { @if loss < 0.0 { " gained" } @else { " expected" } }
    }
}

/// Upper bound of the accuracy given up, below an estimate in large. Below zero it bounds from below what
/// is gained; where only the estimate is below zero, it says what it bounds.
pub(super) fn given_up_bound(estimate: f64, bound: f64) -> String {
    match (estimate < 0.0, bound < 0.0) {
        (_, true) => format!("≥\u{202f}{} gained", percent(-bound)),
        (true, false) => format!("≤\u{202f}{} given up", percent(bound)),
        (false, false) => format!("≤\u{202f}{}", percent(bound)),
    }
}

/// That a device's learning has paused.
pub(super) fn paused() -> Markup {
    html! { span class="chip warn" title="What was learned did harm again and again; nothing more is learned" { "learning paused" } }
}

/// What learning saves, in large.
pub(super) fn saved_tile(saving: Option<Saving>) -> Markup {
    html! {
        article class="tile" {
            h2 { "Saved against frozen heads" }
            p class="big" {
                @match saving {
                    Some(saving) => { (percent(saving.share())) small { " of their cost" } },
                    None => span class="none" { "–" },
                }
            }
            p class="sub" {
                @match saving {
                    Some(saving) => {
                        "≥\u{202f}" (percent(saving.bounds().0)) " (95\u{202f}%)"
                        @if let Some(ms) = saving.ms { ", " (milliseconds(ms)) }
                        @if let Some(mj) = saving.mj { ", " (format!("{mj:.1}")) "\u{202f}mJ" }
                        @if saving.ms.is_some() { " a frame" }
                    },
                    None => "Not enough audits yet",
                }
            }
        }
    }
}

/// A policy and its version.
pub(super) fn policy(name: &str, version: u64) -> Markup {
    html! {
        span class="policy" { (name) @if name != "built-in" { " " span class="version" { (version) } } }
    }
}

/// A list of events, the last first; with the device unless it is clear.
pub(super) fn events(events: &[Event], with_device: bool, now: u64) -> Markup {
    html! {
        @if events.is_empty() { p class="empty" { "Nothing worth telling has happened." } }
        @else {
            ol class="events" {
                @for event in events {
                    li {
                        span class="when" { (age(event.at, now)) }
                        span class={ "chip " (event_class(&event.kind)) } { (event.kind) }
                        span class="message" {
                            @if with_device { a href={ "/devices/" (event.device) } { (event.device) } " " }
                            (event.message)
                        }
                    }
                }
            }
        }
    }
}

/// How an event is coloured: by what its kind says, because kinds are the devices' own.
fn event_class(kind: &str) -> &'static str {
    let says = |words: &[&str]| words.iter().any(|word| kind.contains(word));
    if says(&["fault", "refused", "failed", "error", "corrupt"]) {
        "bad"
    } else if says(&["rollback", "restored", "paused", "stepped-down"]) {
        "warn"
    } else {
        "info"
    }
}

/// A text as a query has it.
pub(super) fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// What people say of a device; each leads to the others of which the same is said.
pub(super) fn labels(labels: &Labels) -> Markup {
    html! {
        @if !labels.is_empty() {
            span class="labels" {
                @for (key, value) in labels {
                    @let label = format!("{key}={value}");
                    a href={ "/?select=" (encoded(&label)) "#devices" } title="Show the devices with this label" { (label) }
                }
            }
        }
    }
}
