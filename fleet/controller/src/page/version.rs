//! The page of a policy's or a model's version: where it runs, and what it does there.

use maud::{Markup, html};

use super::fleet::device_table;
use super::format::{bytes, count, macs, percent};
use super::parts::{age, encoded, given_up, saved_tile};
use super::rollout;
use crate::overview::Overview;
use crate::store::{Artifact, KeptModel, RolloutView};
use crate::totals::Totals;

/// Classes that are named, the most frequent first.
const CLASSES: usize = 12;

/// What a version is of.
pub(super) enum Of {
    /// What the controller keeps of it, unless only devices told of it.
    Policy(Option<Artifact>),
    Model(Option<KeptModel>),
}

pub(super) struct VersionPage {
    pub(super) name: String,
    pub(super) version: u64,
    pub(super) of: Of,
    /// Rollouts of it, the newest first.
    pub(super) rollouts: Vec<RolloutView>,
    /// Of the devices that have it.
    pub(super) totals: Totals,
    /// The first of them.
    pub(super) devices: Overview,
    /// What means them.
    pub(super) select: String,
    pub(super) now: u64,
}

impl VersionPage {
    pub(super) fn render(&self) -> Markup {
        let kind = match self.of {
            Of::Policy(..) => "policy",
            Of::Model(_) => "model",
        };
        html! {
            section id="title" class="title" data-live {
                h1 { (self.name) " " (self.version) }
                p class="sub" { (kind) }
                @if let Some(kept) = self.kept() {
                    p class="sub" {
                        "added " (age(kept.added_at, self.now)) " · " (bytes(kept.size))
                        @if let Some(digest) = kept.digest { " · sha256 " code title=(digest) { (digest.short()) } }
                        " · wanted on " (count(kept.desired)) ", reported by " (count(kept.reported))
                    }
                }
                @if let Of::Model(None) = &self.of {
                    p class="sub" { "Not in the library: devices have it of their own configuration." }
                }
            }
            (self.tiles())
            (rollout::section(&self.rollouts, self.now))
            section id="devices" aria-labelledby="devices-title" {
                div class="heading" {
                    h2 id="devices-title" { "Devices" }
                    a href={ "/?select=" (encoded(&self.select)) "#devices" } { "All " (count(self.totals.devices)) }
                }
                div id="device-list" data-live {
                    @if self.devices.devices.is_empty() { p class="empty" { "No device has it now." } }
                    @else { (device_table(&self.devices.devices, self.now)) }
                }
            }
            div class="columns" {
                (self.classes())
                @if let Of::Model(_) = self.of { (self.facts()) }
            }
        }
    }

    fn kept(&self) -> Option<&Artifact> {
        match &self.of {
            Of::Policy(kept) => kept.as_ref(),
            Of::Model(kept) => kept.as_ref().map(|model| &model.artifact),
        }
    }

    fn tiles(&self) -> Markup {
        let totals = &self.totals;
        let none = || html! { span class="none" { "–" } };
        html! {
            section id="answers" class="tiles" aria-label="Where it runs now" data-live {
                article class="tile" {
                    h2 { "Devices" }
                    p class="big" { (count(totals.devices)) small { (count(totals.alive)) " alive" } }
                }
                (saved_tile(totals.saving()))
                article class="tile" {
                    h2 { "Cost now" }
                    p class="big" { @match totals.cost() { Some(cost) => { (percent(cost)) small { "of full network" } }, None => (none()) } }
                }
                article class="tile" {
                    h2 { "Disagreement with last exit" }
                    p class="big" { @match totals.disagreement() { Some(share) => { (percent(share)) small { "of frames" } }, None => (none()) } }
                }
                article class="tile" {
                    h2 { "Accuracy given up" }
                    p class="big" { @match totals.loss() { Some(loss) => (given_up(loss)), None => (none()) } }
                }
            }
        }
    }

    fn classes(&self) -> Markup {
        let classes = self.totals.classes(CLASSES);
        html! {
            section id="classes" aria-labelledby="classes-title" data-live {
                h2 id="classes-title" { "What is seen with it" }
                @if classes.is_empty() { p class="empty" { "No class was seen often enough to be counted." } }
                @else {
                    table class="compact" {
                        thead { tr { th scope="col" { "Class" } th scope="col" class="number" { "Share" } } }
                        tbody { @for (class, share) in &classes {
                            tr { th scope="row" { (class) } td class="number" { (percent(*share)) } }
                        } }
                    }
                }
            }
        }
    }

    /// Of a model, as its first device tells.
    fn facts(&self) -> Markup {
        let model = self
            .devices
            .devices
            .iter()
            .find_map(|overview| overview.device.model.as_ref());
        html! {
            section id="facts" aria-labelledby="facts-title" data-live {
                h2 id="facts-title" { "Facts" }
                @if let Some(model) = model {
                    dl {
                        @if let Some(digest) = model.digest { dt { "Manifest" } dd { code title=(digest) { (digest.short()) } } }
                        dt { "Stages" } dd {
                            @for (i, stage) in model.stage_macs.iter().enumerate() { @if i > 0 { " + " } (macs(*stage)) }
                        }
                        dt { "Classes" } dd { (model.classes.len()) }
                    }
                } @else { p class="empty" { "No device has told of it." } }
            }
        }
    }
}
