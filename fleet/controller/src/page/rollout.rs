//! Rollouts: a line for each on the first page, and a page of its own.

use maud::{Markup, html};

use super::format::{count, percent, percent_round};
use super::parts::{age, exit_legend, policy, share_bar};
use crate::forecast::Forecast;
use crate::named::name;
use crate::rollout::{Gauge, Member, MemberState, State, Verdict};
use crate::store::{ArtifactKind, AuditEntry, RolloutView};

/// Devices that are listed by name.
const MOST_FAILED: usize = 50;

/// What a progress bar is made of, from the left: states, what they are called, and their colour.
const PARTS: [(MemberState, &str, &str); 6] = [
    (MemberState::Proven, "proven", "good"),
    (MemberState::InForce, "being watched", "watched"),
    (MemberState::Ordered, "on the way", "ordered"),
    (MemberState::Reverted, "given back what they had", "reverted"),
    (MemberState::Failed, "failed", "bad"),
    (MemberState::Waiting, "waiting", "waiting"),
];

/// Rollouts on the first page.
pub(super) fn section(rollouts: &[RolloutView], now: u64) -> Markup {
    html! {
        section id="rollouts" aria-labelledby="rollouts-title" data-live {
            div class="heading" {
                h2 id="rollouts-title" { "Rollouts" }
                @if !rollouts.is_empty() { (legend()) }
            }
            @if rollouts.is_empty() {
                p class="empty" { "Nothing was rolled out yet: " code { "offramp-fleet rollout start POLICY VERSION" } }
            } @else {
                ol class="rollouts" {
                    @for rollout in rollouts {
                        li {
                            span class="who" {
                                a href={ "/rollouts/" (rollout.id) } { (ware(rollout)) }
                                " " (state(rollout.rollout.state))
                            }
                            (bar(rollout))
                            span class="sub" { (words(rollout)) " · " (age(rollout.changed_at, now)) }
                            @if let Some(reason) = rollout.reason.as_ref().filter(|_| rollout.rollout.state != State::Done) {
                                p class="reason sub" { (reason) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// What was foreseen before the first device was ordered.
fn foreseen(forecast: &Forecast) -> Markup {
    let exits = forecast.models.iter().map(|model| model.today.exits.len()).max();
    let share = |share: Option<f64>| share.map_or_else(|| "–".to_owned(), percent);
    html! {
        section id="forecast" aria-labelledby="forecast-title" {
            div class="heading" {
                h2 id="forecast-title" { "Foreseen" }
                (exit_legend(exits.unwrap_or(0)))
            }
            p class="sub" { "The policy was replayed on traces that the devices had shared, before any of them was ordered." }
            div class="scroll" {
                table class="compact" {
                    thead { tr {
                        th scope="col" { "Model" }
                        th scope="col" { "" }
                        th scope="col" class="number" { "Cost" }
                        th scope="col" { "Exits" }
                        th scope="col" class="number" { "Disagreement" }
                        th scope="col" class="number" { "Faults" }
                        th scope="col" { "Seen on" }
                    } }
                    tbody {
                        @for model in &forecast.models {
                            tr {
                                th scope="rowgroup" rowspan="2" { (model.model) " " span class="none" { (model.version) } }
                                td { "today" }
                                td class="number" { (share(model.today.cost)) }
                                td { (share_bar(&model.today.exits)) }
                                td class="number" { (share(model.today.agreement.map(|a| 1.0 - a))) }
                                td class="number" { "–" }
                                td rowspan="2" class="sub" {
                                    (count(model.frames)) " frames of " (count(model.devices)) " devices, "
                                    (count(model.scored)) " known to the last exit"
                                }
                            }
                            tr {
                                td { strong { "foreseen" } }
                                td class="number" { (share(model.foreseen.cost)) }
                                td { (share_bar(&model.foreseen.exits)) }
                                td class="number" { (share(model.foreseen.agreement.map(|a| 1.0 - a))) }
                                td class="number" { (count(model.faults)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// What is rolled out.
fn ware(rollout: &RolloutView) -> Markup {
    html! {
        @if rollout.rollout.kind == ArtifactKind::Model { "model " }
        (policy(&rollout.name, rollout.version))
    }
}

fn legend() -> Markup {
    html! {
        ul class="legend" aria-hidden="true" {
            @for (_, what, class) in PARTS {
                li { svg class="swatch" viewBox="0 0 1 1" { rect class={ "part " (class) } width="1" height="1" {} } (what) }
            }
        }
    }
}

fn state(state: State) -> Markup {
    let class = match state {
        State::Running | State::RollingBack => "wait",
        State::Done => "good",
        State::RolledBack | State::Stopped => "bad",
        State::Paused | State::Aborted => "warn",
    };
    html! { span class={ "chip " (class) } { (name(&State::ALL, state)) } }
}

fn words(rollout: &RolloutView) -> String {
    let proven = rollout.count(MemberState::Proven);
    let mut words = format!("{} of {} proven", count(proven), count(rollout.own()));
    for (state, what, _) in &PARTS[1..5] {
        let devices = rollout.count(*state);
        if devices > 0 {
            words.push_str(&format!(", {} {what}", count(devices)));
        }
    }
    match rollout.awaited() {
        0 => {}
        more => words.push_str(&format!(", waits until {} more have run it", count(more))),
    }
    words
}

fn bar(rollout: &RolloutView) -> Markup {
    let all = rollout.own().max(1) as f64;
    let mut start = 0.0;
    let parts = PARTS.map(|(state, _, class)| {
        let share = rollout.count(state) as f64 / all;
        start += share;
        (class, start - share, share)
    });
    html! {
        svg class="exits progress" viewBox="0 0 1 1" preserveAspectRatio="none" role="img" aria-label=(words(rollout)) {
            title { (words(rollout)) }
            @for (class, start, share) in parts {
                @if share > 0.0 {
                    rect class={ "part " (class) } x=(format!("{start:.4}")) y="0" width=(format!("{share:.4}")) height="1" {}
                }
            }
        }
    }
}

pub(super) struct RolloutPage {
    pub(super) rollout: RolloutView,
    pub(super) members: Vec<Member>,
    /// Whether whoever looks may tell it what to do.
    pub(super) may_command: bool,
    /// The last to happen first.
    pub(super) log: Vec<AuditEntry>,
    pub(super) now: u64,
}

impl RolloutPage {
    pub(super) fn render(&self) -> Markup {
        html! {
            (self.heading())
            div class="columns" {
                (self.gates())
                (self.waves())
            }
            @if let Some(forecast) = &self.rollout.forecast { (foreseen(forecast)) }
            (self.failures())
            (self.log())
        }
    }

    fn heading(&self) -> Markup {
        let rollout = &self.rollout;
        html! {
            section id="rollout" class="title" data-live {
                h1 { (rollout.name) " " (rollout.version) }
                (state(rollout.rollout.state))
                p class="sub" {
                    (name(&ArtifactKind::ALL, rollout.rollout.kind)) ", rollout " (rollout.id) ", by " (rollout.created_by) ", started " (age(rollout.created_at, self.now))
                    ", changed " (age(rollout.changed_at, self.now))
                }
                @if let Some(reason) = &rollout.reason {
                    p class={ "banner" @if matches!(rollout.rollout.state, State::RolledBack | State::RollingBack | State::Stopped) { " bad" } } { (reason) }
                }
                div class="wide" {
                    (bar(rollout))
                    p class="sub" { (words(rollout)) }
                    (legend())
                }
                @if self.may_command && rollout.rollout.state.is_active() { (self.commands()) }
            }
        }
    }

    fn commands(&self) -> Markup {
        let button = |act: &str, label: &str, class: &str| {
            html! {
                form method="post" action={ "/rollouts/" (self.rollout.id) "/" (act) } {
                    @if class == "bad" {
                        label { "Why " input name="reason" maxlength="500" autocomplete="off"; }
                    }
                    button type="submit" class=(class) { (label) }
                }
            }
        };
        // What cannot be taken back asks twice.
        let careful = |act: &str, label: &str, what: &str| {
            html! {
                details id={ "careful-" (act) } {
                    summary { (label) "…" }
                    div { p { (what) } (button(act, label, "bad")) }
                }
            }
        };
        let state = self.rollout.rollout.state;
        html! {
            div class="commands wide" {
                @match state {
                    State::Paused => (button("resume", "Resume", "")),
                    State::Running => (button("pause", "Pause", "")),
                    _ => {}
                }
                @if state != State::RollingBack {
                    (careful("roll-back", "Roll back", "Every device gets back what it had before this rollout."))
                }
                (careful("abort", "Abort", "No device is ordered any more; those that have the policy keep it."))
            }
        }
    }

    fn gates(&self) -> Markup {
        html! {
            section id="gates" aria-labelledby="gates-title" data-live {
                h2 id="gates-title" { "Gates of wave " (self.rollout.rollout.wave) }
                @if self.rollout.gauges.is_empty() { p class="empty" { "Nothing was measured yet." } }
                @else {
                    table class="compact" {
                        thead { tr {
                            th scope="col" { "Gate" }
                            th scope="col" class="number" { "Measured" }
                            th scope="col" class="number" { "Before" }
                            th scope="col" class="number" { "Bound" }
                            th scope="col" { "Verdict" }
                        } }
                        tbody { @for gauge in &self.rollout.gauges { (gate(gauge)) } }
                    }
                }
            }
        }
    }

    fn waves(&self) -> Markup {
        let last = self.members.iter().filter_map(|m| m.wave).max();
        let count_of = |wave: u32, states: &[MemberState]| {
            let found = self
                .members
                .iter()
                .filter(|m| m.wave == Some(wave) && (states.is_empty() || states.contains(&m.state)));
            found.count() as u64
        };
        let plan = &self.rollout.rollout.plan;
        html! {
            section id="waves" aria-labelledby="waves-title" data-live {
                h2 id="waves-title" { "Waves" }
                @if let Some(last) = last {
                    table class="compact" {
                        thead { tr {
                            th scope="col" { "Wave" }
                            th scope="col" class="number" { "Devices" }
                            th scope="col" class="number" { "In force" }
                            th scope="col" class="number" { "Proven" }
                            th scope="col" class="number" { "Failed" }
                        } }
                        tbody { @for wave in 0..=last { tr {
                            th scope="row" { @if wave == 0 { "0, canary" } @else { (wave) } }
                            td class="number" { (count(count_of(wave, &[]))) }
                            td class="number" { (count(count_of(wave, &[MemberState::InForce, MemberState::Proven]))) }
                            td class="number" { (count(count_of(wave, &[MemberState::Proven]))) }
                            td class="number" { (count(count_of(wave, &[MemberState::Failed]))) }
                        } } }
                    }
                } @else { p class="empty" { "No device has been ordered yet." } }
                p class="note" {
                    "Canary " (plan.canary) ", each wave ×" (plan.factor) ". A device is watched for " (plan.watch) "\u{202f}s and "
                    (count(plan.frames)) " frames; it has failed after " (plan.patience) "\u{202f}s without an answer."
                    @if !plan.roll_back { " A gate that fails stops the rollout; devices keep what they have." }
                }
            }
        }
    }

    fn failures(&self) -> Markup {
        let failed: Vec<(&Member, &str)> = self
            .members
            .iter()
            .filter_map(|m| Some((m, m.why.as_deref()?)))
            .collect();
        html! {
            @if !failed.is_empty() {
                section id="failed" aria-labelledby="failed-title" data-live {
                    h2 id="failed-title" { "Failed devices" }
                    ul class="events" {
                        @for (member, why) in failed.iter().take(MOST_FAILED) {
                            li {
                                span class="when" { "wave " (member.wave.unwrap_or(0)) }
                                a href={ "/devices/" (member.device) } { (member.device) }
                                span class="message" { (why) }
                            }
                        }
                    }
                    @if failed.len() > MOST_FAILED { p class="note" { "and " (count((failed.len() - MOST_FAILED) as u64)) " more; the API has all" } }
                }
            }
        }
    }

    fn log(&self) -> Markup {
        html! {
            section id="log" aria-labelledby="log-title" data-live {
                h2 id="log-title" { "Who did what" }
                ol class="events" {
                    @for entry in &self.log {
                        li {
                            span class="when" { (age(entry.at, self.now)) }
                            span class="chip info" { (entry.what) }
                            span class="message" { (entry.who) @if !entry.detail.is_empty() { ": " (entry.detail) } }
                        }
                    }
                }
            }
        }
    }
}

/// What a gate is about, for people.
fn meaning(gate: &str) -> &'static str {
    match gate {
        "failed" => "devices that refused, gave up or fell silent",
        "cost" => "cost after, over cost before",
        "exits" => "frames that leave at other exits than before",
        "disagreement" => "rise of the share that differs from the last exit",
        "loss" => "accuracy given up",
        "faults" => "frames at which the policy failed",
        "rollbacks" => "rollbacks of the learner, for each device",
        "restarts" => "restarts, for each device",
        _ => "",
    }
}

fn gate(gauge: &Gauge) -> Markup {
    let is_share = !matches!(gauge.gate.as_str(), "cost" | "rollbacks" | "restarts");
    let number = |value: f64| match is_share {
        true => percent(value),
        false => format!("{value:.2}"),
    };
    let (class, word) = match gauge.verdict {
        Verdict::Holds => ("good", "holds"),
        Verdict::Fails => ("bad", "fails"),
        Verdict::Unknown => ("info", "too early to tell"),
    };
    html! {
        tr {
            th scope="row" title=(meaning(&gauge.gate)) { (gauge.gate) div class="sub" { (meaning(&gauge.gate)) } }
            td class="number" { @match gauge.value { Some(value) => (number(value)), None => span class="none" { "–" } } }
            td class="number" { @match gauge.before { Some(value) => (percent_round(value)), None => span class="none" { "–" } } }
            td class="number" { "≤\u{202f}" (number(gauge.bound)) }
            td { span class={ "chip " (class) } { (word) } }
        }
    }
}
