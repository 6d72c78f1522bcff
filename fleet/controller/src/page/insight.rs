//! What specialization is worth, and where: by policy, model, group and label.

use std::sync::Arc;

use maud::{Markup, html};

use super::format::{count, milliseconds, percent, percent_round};
use super::parts::{encoded, given_up, saved_tile};
use crate::store::Group;
use crate::totals::{Figures, Named, Totals};

/// Classes that are named, the most frequent first.
const CLASSES: usize = 3;

pub(super) struct InsightPage {
    pub(super) figures: Arc<Figures>,
    /// Each group with its figures.
    pub(super) groups: Vec<(Group, Arc<Figures>)>,
    /// Groups that there is no room for.
    pub(super) cut: usize,
}

impl InsightPage {
    pub(super) fn render(&self) -> Markup {
        let figures = &self.figures;
        let version = |(name, version): &(String, u64)| format!("{name} {version}");
        let page = |kind, (name, version): &(String, u64)| format!("/{kind}/{}/{version}", encoded(name));
        let select = |text: &str| format!("/?select={}#devices", encoded(text));
        let policies = figures.policies.iter();
        let policies = policies.map(|(key, totals)| (version(key), page("policies", key), totals));
        let models = figures.models.iter();
        let models = models.map(|(key, totals)| (version(key), page("models", key), totals));
        let groups = self.groups.iter().map(|(group, figures)| {
            let link = select(&format!("group={}", group.name));
            (group.name.clone(), link, &figures.all)
        });
        let labels = figures.labels().map(|(label, totals)| {
            let link = select(&label);
            (label, link, totals)
        });
        html! {
            h1 { "What specialization is worth" }
            section id="answers" class="tiles" aria-label="The fleet now" data-live {
                (saved_tile(figures.all.saving()))
                (listed("Profit nothing", "warn", &figures.all.idle, "Learning saves something wherever enough was audited",
                    "Surely less than 2\u{202f}% is saved there: switch learning off, or look at what they see"))
                (listed("See something else", "warn", &figures.all.drifting, "Every device sees what it usually sees",
                    "A quarter of the frames or more are of other classes than usual"))
            }
            (table("Policy", "policy", "No device has told of its policy yet", policies))
            (table("Model", "model", "No device has told of its model yet", models))
            (table("Group", "group", "Name one with offramp-fleet group set NAME SELECTOR", groups))
            @if self.cut > 0 { p class="note" { (count(self.cut as u64)) " more groups are not shown" } }
            (table("Label", "label", "Give labels with offramp-fleet label DEVICE KEY=VALUE", labels))
            p class="note" {
                "Saved is what learned heads spare against those that the model came with, both at the operator's accuracy budget, \
                 on audited frames; with the lower bound of a one-sided 95\u{202f}% interval. Time is what a multiply-add takes on the \
                 device, energy what its board draws in that time. Labels with more than 32 values are left out."
            }
        }
    }
}

fn table<'a>(title: &str, id: &str, empty: &str, parts: impl Iterator<Item = (String, String, &'a Totals)>) -> Markup {
    let parts: Vec<_> = parts.collect();
    html! {
        section id={ "by-" (id) } aria-labelledby={ "by-" (id) "-title" } data-live {
            h2 id={ "by-" (id) "-title" } { "By " (id) }
            @if parts.is_empty() { p class="empty" { (empty) } }
            @else {
                div class="scroll" tabindex="0" role="region" aria-label={ "By " (id) } {
                    table class="compact insight" {
                        thead { tr {
                            th scope="col" { (title) }
                            th scope="col" class="number" { "Devices" }
                            th scope="col" class="number" { abbr title="Multiply-adds spent, as a share of the full network's, audits and learning included" { "Cost" } }
                            th scope="col" class="number" { abbr title="Cost with learned heads and with frozen ones, at the accuracy budget" { "Learned / frozen" } }
                            th scope="col" class="number" { "Saved" }
                            th scope="col" class="number" { abbr title="Time of stages, a frame" { "Time" } }
                            th scope="col" class="number" { abbr title="Millijoules a frame" { "mJ" } }
                            th scope="col" class="number" { abbr title="Share of frames whose prediction differs from the last exit's" { "Disagree" } }
                            th scope="col" class="number" { "Given up" }
                            th scope="col" { "Sees mostly" }
                        } }
                        tbody { @for (name, link, totals) in &parts { (row(name, link, totals)) } }
                    }
                }
            }
        }
    }
}

fn row(name: &str, link: &str, totals: &Totals) -> Markup {
    let dash = || html! { span class="none" { "–" } };
    let saving = totals.saving();
    let classes = totals.classes(CLASSES);
    html! {
        tr {
            th scope="row" { a href=(link) { (name) } }
            td class="number" { (count(totals.devices)) }
            td class="number" { @match totals.cost() { Some(cost) => (percent(cost)), None => (dash()) } }
            td class="number" {
                @match saving { Some(s) => { (percent(s.learned)) " / " (percent(s.frozen)) }, None => (dash()) }
            }
            td class="number" {
                @match saving {
                    Some(s) => { span class="estimate" { (percent(s.share())) } " " span class="bound" { "≥\u{202f}" (percent(s.bounds().0)) } },
                    None => (dash()),
                }
            }
            td class="number" { @match saving.and_then(|s| s.ms) { Some(ms) => (milliseconds(ms)), None => (dash()) } }
            td class="number" { @match saving.and_then(|s| s.mj) { Some(mj) => (format!("{mj:.1}")), None => (dash()) } }
            td class="number" { @match totals.disagreement() { Some(share) => (percent(share)), None => (dash()) } }
            td class="number" { @match totals.loss() { Some(loss) => (given_up(loss)), None => (dash()) } }
            td {
                @if classes.is_empty() { (dash()) }
                @for (i, (class, share)) in classes.iter().enumerate() { @if i > 0 { ", " } (class) " " (percent_round(*share)) }
            }
        }
    }
}

/// Devices that something holds for.
fn listed(title: &str, class: &str, devices: &Named, none: &str, what: &str) -> Markup {
    let more = devices.count.saturating_sub(devices.names.len() as u64);
    html! {
        article class={ "tile " (if devices.count > 0 { class } else { "good" }) } {
            h2 { (title) }
            p class="big" { (count(devices.count)) small { @if devices.count == 1 { " device" } @else { " devices" } } }
            @if devices.count == 0 { p class="sub" { (none) } }
            @else {
                p class="sub" {
                    @for (i, name) in devices.names.iter().enumerate() { @if i > 0 { ", " } a href={ "/devices/" (name) } { (name) } }
                    @if more > 0 { " and " (count(more)) " more" }
                }
                p class="sub" { (what) }
            }
        }
    }
}
