//! The first page: is everything alive, what does it cost and at what risk, what runs where.

use std::sync::Arc;

use maud::{Markup, html};

use super::format::{bytes, count, percent};
use super::parts::{
    age, disagreement, encoded, events, exit_bar, exit_legend, given_up, given_up_bound, labels, life, loss, paused,
    policy, progress, saved_tile,
};
use super::rollout;
use crate::overview::{DeviceOverview, Overview, RECENT};
use crate::store::{Artifact, Event, Group, KeptModel, RolloutView};
use crate::totals::{Figures, Named};

pub(super) struct FleetPage {
    pub(super) figures: Arc<Figures>,
    /// The devices of this page, from the one after `after` on.
    pub(super) overview: Overview,
    pub(super) after: String,
    /// Which devices are meant, as somebody wrote it; empty for all.
    pub(super) select: String,
    /// What is wrong with that.
    pub(super) problem: Option<String>,
    pub(super) groups: Vec<Group>,
    /// The newest first.
    pub(super) rollouts: Vec<RolloutView>,
    /// The newest first.
    pub(super) policies: Vec<Artifact>,
    /// The newest first.
    pub(super) models: Vec<KeptModel>,
    /// The last to happen first.
    pub(super) events: Vec<Event>,
    /// Address of the broker, for whoever has no device yet.
    pub(super) broker: String,
    pub(super) now: u64,
}

impl FleetPage {
    pub(super) fn render(&self) -> Markup {
        html! {
            h1 class="hidden" { "Fleet" }
            (self.answers())
            (rollout::section(&self.rollouts, self.now))
            (self.devices())
            div class="columns" {
                div { (self.policies()) (self.models()) }
                section id="events" aria-labelledby="events-title" data-live {
                    h2 id="events-title" { "Events" }
                    (events(&self.events, true, self.now))
                }
            }
        }
    }

    /// The three questions, answered.
    fn answers(&self) -> Markup {
        html! {
            section id="answers" class="tiles" aria-label="The fleet now" data-live {
                (self.alive())
                (saved_tile(self.figures.all.saving()))
                (self.cost())
                (self.disagreement())
                (self.given_up())
                (self.in_force())
            }
        }
    }

    fn alive(&self) -> Markup {
        let (all, alive) = (self.figures.all.devices, self.figures.all.alive);
        let silent = linked(&self.figures.all.silent);
        let gone = linked(&self.figures.all.gone);
        let class = match (&silent, &gone) {
            _ if all == 0 => "",
            (_, Some(_)) => "bad",
            _ if self.figures.all.quarantined.count > 0 => "bad",
            (Some(_), None) => "warn",
            (None, None) => "good",
        };
        html! {
            article class={ "tile " (class) } {
                h2 { "Alive" }
                p class="big" { (count(alive)) small { " of " (count(all)) } }
                p class="sub" {
                    @if all == 0 { "No device has been heard of yet" }
                    @else if silent.is_none() && gone.is_none() { "Every device is heard from " }
                    @if let Some(gone) = &gone { span { "gone: " (gone) } " " }
                    @if let Some(silent) = &silent { span { "silent: " (silent) } " " }
                    @if let Some(apart) = linked(&self.figures.all.quarantined) { span { "in quarantine: " (apart) } }
                }
            }
        }
    }

    fn cost(&self) -> Markup {
        let cost = self.figures.all.cost();
        html! {
            article class="tile" {
                h2 { "Cost now" }
                p class="big" {
                    @match cost {
                        Some(cost) => { (percent(cost)) small { " of full network" } },
                        None => span class="none" { "–" },
                    }
                }
                p class="sub" {
                    @match cost {
                        Some(cost) if cost <= 1.0 => { (percent(1.0 - cost)) " saved, audits included" },
                        Some(cost) => { (percent(cost - 1.0)) " more than it, audits included" },
                        None => "No frames yet",
                    }
                }
            }
        }
    }

    fn disagreement(&self) -> Markup {
        html! {
            article class="tile" {
                h2 { "Disagreement with last exit" }
                p class="big" {
                    @match self.figures.all.disagreement() {
                        Some(share) => { (percent(share)) small { " of frames" } },
                        None => span class="none" { "–" },
                    }
                }
                p class="sub" {
                    @match &self.figures.all.riskiest {
                        Some((device, bound)) => { "≤\u{202f}" (percent(*bound)) (self.on(device)) " (95\u{202f}%)" },
                        None => "No audits yet",
                    }
                }
            }
        }
    }

    fn given_up(&self) -> Markup {
        let paused = linked(&self.figures.all.paused);
        let loss = self.figures.all.loss();
        html! {
            article class={ "tile " (if paused.is_some() { "warn" } else { "" }) } {
                h2 { "Accuracy given up" }
                p class="big" {
                    @match loss {
                        Some(loss) => (given_up(loss)),
                        None => span class="none" { "–" },
                    }
                }
                p class="sub" {
                    @match &self.figures.all.most_lossy {
                        Some((device, bound)) => { (given_up_bound(loss.unwrap_or(0.0), *bound)) (self.on(device)) " (95\u{202f}%)" },
                        None => "No audits yet",
                    }
                }
                @if let Some(paused) = &paused { p class="sub" { "Learning paused: " (paused) } }
            }
        }
    }

    /// Names a device, where there are others.
    fn on(&self, name: &str) -> Markup {
        html! {
            @if self.figures.all.devices > 1 { " on " a href={ "/devices/" (name) } { (name) } }
        }
    }

    fn in_force(&self) -> Markup {
        let (managed, in_force) = (self.figures.all.managed, self.figures.all.in_force);
        let refused = linked(&self.figures.all.refused);
        let pending = linked(&self.figures.all.pending);
        let class = match (&pending, &refused) {
            _ if managed == 0 => "",
            (_, Some(_)) => "bad",
            (Some(_), None) => "wait",
            (None, None) => "good",
        };
        html! {
            article class={ "tile " (class) } {
                h2 { "Desired state in force" }
                p class="big" {
                    @if managed == 0 { span class="none" { "–" } }
                    @else { (count(in_force)) small { " of " (count(managed)) } }
                }
                p class="sub" {
                    @if managed == 0 { "Nothing was pushed yet" }
                    @else if refused.is_none() && pending.is_none() { "Every device runs what it should" }
                    @if let Some(refused) = &refused { span { "refused: " (refused) } " " }
                    @if let Some(pending) = &pending { span { "pending: " (pending) } }
                }
            }
        }
    }

    fn devices(&self) -> Markup {
        let devices = &self.overview.devices;
        let exits = devices.iter().map(|d| d.recent.exits.len()).max().unwrap_or(0);
        html! {
            section id="devices" aria-labelledby="devices-title" {
                div class="heading" {
                    h2 id="devices-title" { "Devices" }
                    div id="device-legend" class="legend" data-live { @if exits > 0 { (exit_legend(exits)) } }
                }
                (self.filter())
                // Apart from the filter, in which somebody may be writing.
                div id="device-list" data-live {
                    @if devices.is_empty() && !self.select.is_empty() {
                        p class="empty" { "No device is meant by " code { (self.select) } "." }
                    } @else if devices.is_empty() {
                        p class="empty" {
                            "Start a device with this broker, " code { (self.broker) } ", and it appears here."
                        }
                    } @else {
                        (device_table(devices, self.now))
                        (self.pages())
                    }
                }
            }
        }
    }

    /// Which devices are shown, here and in the figures.
    fn filter(&self) -> Markup {
        html! {
            form class="filter" method="get" action="/#devices" role="search" {
                label for="select" { "Show" }
                input id="select" name="select" type="search" value=(self.select) placeholder="site=north,state!=gone"
                    spellcheck="false" autocapitalize="off" autocomplete="off" aria-describedby="select-note";
                button type="submit" { "Apply" }
                @if !self.select.is_empty() { a href="/#devices" { "All" } }
                @for group in &self.groups {
                    @let chosen = self.select == format!("group={}", group.name);
                    a class="group" href={ "/?select=" (encoded(&format!("group={}", group.name))) "#devices" } title=(group.selector)
                        aria-current=[chosen.then_some("true")] { (group.name) }
                }
            }
            p id="select-note" class={ "note" @if self.problem.is_some() { " bad" } } role=[self.problem.is_some().then_some("alert")] {
                @match &self.problem {
                    Some(problem) => { (problem) ": all devices are shown" },
                    None => "Labels and facts, e.g. site=north|south, model=revcol-*, !retired, state=alive, policy=night. Figures above follow.",
                }
            }
        }
    }

    /// The way to the other devices.
    fn pages(&self) -> Markup {
        let last = self.overview.devices.last().filter(|_| self.overview.cut);
        html! {
            @if last.is_some() || !self.after.is_empty() {
                nav class="note pages" aria-label="Pages" {
                    (count(self.overview.devices.len() as u64)) " of " (count(self.figures.all.devices)) " devices, by name"
                    @if !self.after.is_empty() { a href=(self.link(None)) { "First" } }
                    @if let Some(last) = last { a href=(self.link(Some(&last.device.device))) { "Next" } }
                }
            }
        }
    }

    /// The address of the devices after one, of those that are shown.
    fn link(&self, after: Option<&str>) -> String {
        let after = after.map(|device| format!("after={device}"));
        let select = (!self.select.is_empty()).then(|| format!("select={}", encoded(&self.select)));
        let query: Vec<String> = select.into_iter().chain(after).collect();
        match query.is_empty() {
            true => "/#devices".into(),
            false => format!("/?{}#devices", query.join("&")),
        }
    }

    fn policies(&self) -> Markup {
        let push = html! { "Push one with " code { "offramp-fleet policy push FILE.wasm --name NAME --version 1" } };
        library(
            "Policies",
            "policies",
            &self.policies.iter().collect::<Vec<_>>(),
            &push,
            self.now,
        )
    }

    fn models(&self) -> Markup {
        let models: Vec<&Artifact> = self.models.iter().map(|model| &model.artifact).collect();
        let add = html! { "Add one with " code { "offramp-fleet model add PACKAGE" } };
        library("Models", "models", &models, &add, self.now)
    }
}

/// What the library holds of a kind, which is also where its pages are.
fn library(title: &str, kind: &str, artifacts: &[&Artifact], empty: &Markup, now: u64) -> Markup {
    html! {
        section id=(kind) aria-labelledby={ (kind) "-title" } data-live {
            h2 id={ (kind) "-title" } { (title) }
            @if artifacts.is_empty() { p class="empty" { (empty) } }
            @else {
                table class="compact" {
                    thead { tr {
                        th scope="col" { "Name" }
                        th scope="col" { "Added" }
                        th scope="col" class="number" { "Size" }
                        th scope="col" class="number" { "Wanted on" }
                        th scope="col" class="number" { "Runs on" }
                    } }
                    tbody { @for artifact in artifacts {
                        tr {
                            th scope="row" title=[artifact.digest.map(|d| format!("sha256 {d}"))] {
                                a href={ "/" (kind) "/" (artifact.name) "/" (artifact.version) } { (policy(&artifact.name, artifact.version)) }
                            }
                            td { (age(artifact.added_at, now)) }
                            td class="number" { (bytes(artifact.size)) }
                            td class="number" { (count(artifact.desired)) }
                            td class="number" { (count(artifact.reported)) }
                        }
                    } }
                }
            }
        }
    }
}

/// A link to the first of some devices, and how many more there are; none when there are none.
fn linked(devices: &Named) -> Option<Markup> {
    let first = devices.first()?;
    Some(html! {
        a href={ "/devices/" (first) } { (first) }
        @if devices.count > 1 { " and " (count(devices.count - 1)) " more" }
    })
}

/// What runs, and what should run where that is something else.
fn policy_cell(overview: &DeviceOverview) -> Markup {
    let running = overview.running.as_ref();
    html! {
        @match running {
            Some(r) => (policy(&r.policy, r.version)),
            None => span class="none" { "unknown" },
        }
        @if let Some((name, version)) = overview.wanted() { " → " (policy(name, version)) }
        " " (progress(&overview.progress, running.and_then(|r| r.source.as_deref())))
    }
}

/// Devices with what they do now.
pub(super) fn device_table(devices: &[DeviceOverview], now: u64) -> Markup {
    html! {
        div class="scroll" {
            table role="table" {
                caption class="hidden" {
                    "Devices; cost, exits, disagreement and accuracy given up over the latest " (RECENT) " windows of each"
                }
                thead { tr role="row" {
                    th role="columnheader" scope="col" { "Device" }
                    th role="columnheader" scope="col" { "Last seen" }
                    th role="columnheader" scope="col" { "Model" }
                    th role="columnheader" scope="col" { "Policy" }
                    th role="columnheader" scope="col" class="number" { abbr title="Generation of the desired state: reported, and desired where it differs" { "Gen." } }
                    th role="columnheader" scope="col" class="number" { "Frames" }
                    th role="columnheader" scope="col" class="number" { abbr title="Multiply-adds spent, as a share of the full network's on the same frames" { "Cost" } }
                    th role="columnheader" scope="col" { "Exits" }
                    th role="columnheader" scope="col" class="number" { abbr title="Share of frames whose prediction differs from the last exit's: estimate and upper bound (95 %)" { "Disagreement" } }
                    th role="columnheader" scope="col" class="number" { abbr title="Accuracy given up against the last exit, in expectation, and its upper bound (95 %); negative where the exits do better" { "Given up" } }
                } }
                tbody { @for device in devices { (row(device, now)) } }
            }
        }
    }
}

fn row(overview: &DeviceOverview, now: u64) -> Markup {
    let device = &overview.device;
    let reported = device.reported.as_ref().map(|r| r.generation);
    let desired = overview.desired.as_ref().map(|d| d.generation);
    html! {
        tr role="row" {
            th role="rowheader" scope="row" class="name" {
                a href={ "/devices/" (device.device) } { (device.device) }
                (life(overview.life))
                @if overview.is_paused() { (paused()) }
                (labels(&device.labels))
            }
            td role="cell" data-label="Last seen" {
                @if device.last_seen > 0 { (age(device.last_seen, now)) } @else { span class="none" { "never" } }
            }
            td role="cell" class="model" data-label="Model" {
                @match &device.model {
                    Some(model) => { (model.name) " " span class="version" { (model.version) } },
                    None => span class="none" { "not born yet" },
                }
            }
            td role="cell" class="runs" data-label="Policy" { (policy_cell(overview)) }
            td role="cell" class="number" data-label="Generation" {
                @match (reported, desired) {
                    (None, None) => span class="none" { "–" },
                    (Some(reported), Some(desired)) if desired > reported => { (reported) " → " (desired) },
                    (Some(reported), _) => (reported),
                    (None, Some(desired)) => { "→ " (desired) },
                }
            }
            td role="cell" class="number" data-label="Frames" { (count(overview.frames)) }
            td role="cell" class="number" data-label="Cost" {
                @match overview.recent.cost() {
                    Some(cost) => (percent(cost)),
                    None => span class="none" { "–" },
                }
            }
            td role="cell" class="bar" data-label="Exits" { (exit_bar(&overview.recent)) }
            td role="cell" class="number" data-label="Disagreement" { (disagreement(overview.disagreement)) }
            td role="cell" class="number" data-label="Given up" { (loss(overview.loss())) }
        }
    }
}
