//! The page of one device: what it does over time, and what is known of it.

use maud::{Markup, html};

use super::chart::figure;
use super::format::{bytes, count, iso, macs, percent, percent_round, utc};
use super::parts::{
    age, disagreement, encoded, events, exit_bar, exit_legend, exit_name, given_up, given_up_bound, labels, life,
    paused, policy, progress, saved_tile,
};
use crate::chart;
use crate::overview::{DeviceOverview, Progress, RECENT, share};
use crate::series::{Point, Series};
use crate::store::{Event, History, Wanted, Window};

/// Classes that are shown, the most frequent first.
const MOST_CLASSES: usize = 12;
/// Rows of the table beside the charts.
const MOST_ROWS: usize = 24;

/// How much of a device's life is shown, back from its last window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range(usize);

const RANGES: [(&str, &str, u64); 8] = [
    ("10m", "10 minutes", 600),
    ("1h", "1 hour", 3600),
    ("6h", "6 hours", 21_600),
    ("1d", "1 day", 86_400),
    ("7d", "7 days", 604_800),
    ("30d", "30 days", 2_592_000),
    ("90d", "90 days", 7_776_000),
    ("1y", "1 year", 31_536_000),
];
/// Ranges from this one on are read by the hour, in milliseconds.
const BY_HOUR: u64 = 30 * 24 * 3600 * 1000;

impl Range {
    /// The range of a name; an hour for any other.
    pub(super) fn named(name: Option<&str>) -> Self {
        let known = RANGES.iter().position(|(n, ..)| Some(*n) == name);
        Self(known.unwrap_or(1))
    }

    pub(super) fn milliseconds(self) -> u64 {
        RANGES[self.0].2 * 1000
    }

    /// Whether windows would be too many.
    pub(super) fn is_by_hour(self) -> bool {
        self.milliseconds() >= BY_HOUR
    }

    fn words(self) -> &'static str {
        RANGES[self.0].1
    }
}

pub(super) struct DevicePage {
    pub(super) overview: DeviceOverview,
    pub(super) history: History,
    /// The last to happen first.
    pub(super) events: Vec<Event>,
    pub(super) range: Range,
    /// Whether whoever looks may do something to it.
    pub(super) may_command: bool,
    pub(super) now: u64,
}

impl DevicePage {
    pub(super) fn render(&self) -> Markup {
        let device = &self.overview.device;
        html! {
            section id="title" class="title" data-live {
                h1 { (device.device) }
                (life(self.overview.life))
                @if self.overview.is_paused() { (paused()) }
                p class="sub" {
                    @if device.last_seen > 0 { "last seen " (age(device.last_seen, self.now)) } @else { "not heard from yet" }
                    @if let Some(model) = &device.model { " · " (model.name) " " (model.version) }
                    @if let Some(agent) = &device.agent { " · agent " (agent) }
                }
                (labels(&device.labels))
                @if let Some(quarantine) = &device.quarantine {
                    p class="banner bad" role="alert" {
                        strong { "Put into quarantine " (age(quarantine.at, self.now)) ": " } (quarantine.reason)
                        ". It is given nothing and counts in no figure of the fleet. When that is settled (a new identity: "
                        code { "offramp-fleet enrol --device " (device.device) } "), let it go."
                    }
                    @if self.may_command {
                        form method="post" action={ "/devices/" (device.device) "/release" } { button type="submit" { "Let it go" } }
                    }
                }
                @if let Progress::Refused(reason) = &self.overview.progress {
                    p class="banner bad" role="alert" { strong { "The desired state is refused: " } (reason) }
                }
                @if self.overview.is_paused() {
                    p class="banner" role="alert" {
                        strong { "Learning is paused. " }
                        "What was learned lost accuracy or raised the cost again and again when it was tried on audited frames. \
                         It is dropped: the model's own heads decide, and nothing more is learned. \
                         Audits go on, and the threshold still follows from them. \
                         The pause ends on the device, when the agent is started with " code { "--forget" } ", or with \
                         a model of other heads."
                    }
                }
            }
            (self.tiles())
            (self.charts())
            (self.cameras())
            div class="columns" {
                (self.classes())
                (self.facts())
            }
            section id="events" aria-labelledby="events-title" data-live {
                h2 id="events-title" { "Events" }
                (events(&self.events, false, self.now))
            }
            @if self.may_command && device.quarantine.is_none() { (self.keep_apart()) }
        }
    }

    /// The way into quarantine. Not refreshed: somebody may be writing.
    fn keep_apart(&self) -> Markup {
        html! {
            details class="apart" id="apart" {
                summary { "Keep this device apart" }
                p class="sub" { "It is then given nothing and counts in no figure of the fleet; what it sends is kept." }
                form method="post" action={ "/devices/" (self.overview.device.device) "/quarantine" } class="filter" {
                    label for="reason" { "Reason" }
                    input id="reason" name="reason" required maxlength="500" autocomplete="off";
                    button type="submit" class="bad" { "Quarantine" }
                }
            }
        }
    }

    fn tiles(&self) -> Markup {
        let overview = &self.overview;
        html! {
            section id="answers" class="tiles" aria-label="The device now" data-live {
                (saved_tile(overview.saving))
                article class="tile" {
                    h2 { "Cost now" }
                    p class="big" {
                        @match overview.recent.cost() {
                            Some(cost) => { (percent(cost)) small { " of full network" } },
                            None => span class="none" { "–" },
                        }
                    }
                    p class="sub" { "Latest " (RECENT) " windows, audits included" }
                }
                article class="tile" {
                    h2 { "Disagreement with last exit" }
                    p class="big" {
                        @match overview.disagreement {
                            Some(d) => { (percent(d.estimate)) small { " of frames" } },
                            None => span class="none" { "–" },
                        }
                    }
                    p class="sub" {
                        @match overview.disagreement {
                            Some(d) => { "≤\u{202f}" (percent(d.bound)) " (95\u{202f}%), " (count(d.audits)) " audits" },
                            None => "No audits yet",
                        }
                    }
                }
                (self.given_up())
                article class="tile" {
                    h2 { "Exits now" }
                    div class="big" { (exit_bar(&overview.recent)) }
                    p class="sub" {
                        @let recent = &overview.recent;
                        @let shares: Vec<String> = recent.exits.iter().filter_map(|taken| share(*taken, recent.frames)).map(percent_round).collect();
                        @if shares.is_empty() { "No frames yet" } @else { (shares.join(" · ")) }
                    }
                }
                article class="tile" {
                    h2 { "Policy" }
                    p class="big text" {
                        @match &overview.running {
                            Some(running) => (policy(&running.policy, running.version)),
                            None => span class="none" { "–" },
                        }
                    }
                    p class="sub" {
                        @let source = overview.running.as_ref().and_then(|r| r.source.as_deref());
                        (progress(&overview.progress, source))
                        @match (overview.wanted(), &overview.desired) {
                            (Some((name, version)), _) => { " wanted: " (policy(name, version)) },
                            (None, Some(desired)) => { " generation " (desired.generation) },
                            (None, None) => "Nothing was pushed to it yet",
                        }
                    }
                }
            }
        }
    }

    fn given_up(&self) -> Markup {
        let loss = self.overview.loss();
        html! {
            article class="tile" {
                h2 { "Accuracy given up" }
                p class="big" {
                    @match loss {
                        Some(loss) => (given_up(loss.estimate)),
                        None => span class="none" { "–" },
                    }
                }
                p class="sub" {
                    @match (loss, self.overview.guard) {
                        (Some(loss), _) => { (given_up_bound(loss.estimate, loss.bound)) " (95\u{202f}%)" },
                        (None, None) if self.overview.disagreement.is_some() => "Its agent does not tell",
                        (None, _) => "No audits yet",
                    }
                }
                @if let Some(guard) = self.overview.guard {
                    p class="sub" {
                        @if guard.audits > 0 { (count(guard.audits)) " audits, threshold " } @else { "Threshold " }
                        (format!("{:.2}", guard.threshold))
                    }
                }
            }
        }
    }

    fn charts(&self) -> Markup {
        let series = Series::of(&self.history);
        let cost_legend = html! {
            ul class="legend" aria-hidden="true" { li { (swatch("cost")) "multiply-adds, share of full network" } }
        };
        let risk_legend = html! {
            ul class="legend" aria-hidden="true" {
                li { (swatch("risk")) "estimate" }
                li { (swatch("bound")) "bound, 95\u{202f}%" }
            }
        };
        let loss_legend = html! {
            ul class="legend" aria-hidden="true" {
                li { (swatch("risk")) "expected" }
                li { (swatch("bound")) "bound, 95\u{202f}%" }
            }
        };
        html! {
            section id="charts" aria-labelledby="charts-title" data-live {
                div class="heading" {
                    h2 id="charts-title" { "Over time" }
                    @if let Some((start, end)) = series.span() {
                        p class="sub" {
                            time datetime=(iso(start)) { (utc(start)) } " to " time datetime=(iso(end)) { (utc(end)) }
                        }
                    }
                    nav class="ranges" aria-label="Range" {
                        @for (i, (name, words, _)) in RANGES.iter().enumerate() {
                            a href={ "?range=" (name) } aria-label=(words) aria-current=[(Range(i) == self.range).then_some("true")] { (name) }
                        }
                    }
                }
                div class="charts" {
                    (figure("Exits", &exit_legend(series.exits), &exits_in_words(&series), chart::exit_shares(&series).as_ref()))
                    (figure("Cost", &cost_legend, &values_in_words("Cost as a share of the full network", &series, |p| p.cost), chart::cost(&series).as_ref()))
                    (figure(
                        "Disagreement with last exit",
                        &risk_legend,
                        &format!(
                            "{} {}",
                            values_in_words("Estimated disagreement", &series, |p| p.estimate),
                            values_in_words("Its upper bound", &series, |p| Some(p.bound)),
                        ),
                        chart::disagreement(&series).as_ref(),
                    ))
                    @if let Some(chart) = chart::loss(&series) {
                        (figure(
                            "Accuracy given up",
                            &loss_legend,
                            &format!(
                                "{} {}",
                                values_in_words("Expected accuracy given up", &series, |p| Some(p.loss?.estimate)),
                                values_in_words("Its upper bound", &series, |p| Some(p.loss?.bound)),
                            ),
                            Some(&chart),
                        ))
                    }
                }
                @if series.span().is_some() { (table(&series)) }
            }
        }
    }

    /// What each of several cameras does.
    fn cameras(&self) -> Markup {
        let cameras = &self.overview.recent.cameras;
        if cameras.is_empty() {
            return html! {};
        }
        let dash = || "–".to_owned();
        html! {
            section id="cameras" aria-labelledby="cameras-title" data-live {
                h2 id="cameras-title" { "Cameras" }
                div class="scroll" tabindex="0" role="region" aria-label="Cameras" {
                    table class="compact" {
                        thead { tr {
                            th scope="col" { "Camera" }
                            th scope="col" class="number" { "Frames" }
                            th scope="col" class="number" { "Dropped" }
                            th scope="col" class="number" { "Hurried" }
                            th scope="col" { "Exits" }
                            th scope="col" class="number" { "Cost" }
                            th scope="col" class="number" { "Disagreeing audits" }
                            th scope="col" class="number" { "Given up" }
                        } }
                        tbody { @for camera in cameras {
                            tr {
                                th scope="row" { (camera.name) @if camera.paused { " " (paused()) } }
                                td class="number" { (count(camera.frames)) }
                                td class="number" { (count(camera.dropped)) }
                                td class="number" { (count(camera.hurried)) }
                                td {
                                    @let shares: Vec<String> = camera.exits.iter().filter_map(|taken| share(*taken, camera.frames)).map(percent_round).collect();
                                    (shares.join(" · "))
                                }
                                td class="number" { (share(camera.macs, camera.full_macs).map_or_else(dash, percent)) }
                                td class="number" { (count(camera.disagreements)) " of " (count(camera.audits)) }
                                td class="number" { (given_up(camera.loss.into())) }
                            }
                        } }
                    }
                }
                p class="note" {
                    "The latest " (RECENT) " windows. Dropped frames gave way to newer ones; hurried ones left early because their deadline was near."
                }
            }
        }
    }

    fn classes(&self) -> Markup {
        let recent = &self.overview.recent;
        let names = self
            .overview
            .device
            .model
            .as_ref()
            .map(|m| m.classes.as_slice())
            .unwrap_or_default();
        let most = recent.classes.first().map_or(1, |(_, count)| (*count).max(1));
        let rest = recent.classes.len().saturating_sub(MOST_CLASSES);
        html! {
            section id="classes" aria-labelledby="classes-title" data-live {
                h2 id="classes-title" { "What it sees" }
                @if recent.classes.is_empty() { p class="empty" { "No class was seen often enough to be counted." } }
                @else {
                    table class="compact" {
                        thead class="hidden" { tr { th scope="col" { "Class" } th scope="col" { "Share" } th scope="col" { "Frames" } } }
                        tbody { @for (class, frames) in recent.classes.iter().take(MOST_CLASSES) {
                            tr {
                                th scope="row" {
                                    @match names.get(*class as usize) {
                                        Some(name) => (name),
                                        None => { "class " (class) },
                                    }
                                }
                                td class="meter" {
                                    svg viewBox="0 0 1 1" preserveAspectRatio="none" aria-hidden="true" {
                                        rect width=(format!("{:.4}", *frames as f64 / most as f64)) height="1" {}
                                    }
                                }
                                td class="number" { (count(*frames)) }
                            }
                        } }
                    }
                    p class="note" {
                        "Predicted classes in the latest " (RECENT) " windows."
                        @if rest > 0 { " " (rest) " more were seen less often." }
                    }
                }
            }
        }
    }

    /// What became of the learned heads in the windows shown.
    fn trials(&self) -> Markup {
        let sum = |part: fn(&Window) -> u64| {
            let parts = self.history.windows.iter().map(part);
            count(parts.fold(0, u64::saturating_add))
        };
        html! {
            (sum(|w| w.guard.map_or(0, |guard| guard.promotions))) " promoted, "
            (sum(|w| w.rollbacks)) " rolled back within " (self.range.words())
        }
    }

    fn facts(&self) -> Markup {
        let device = &self.overview.device;
        html! {
            section id="facts" aria-labelledby="facts-title" data-live {
                h2 id="facts-title" { "Facts" }
                dl {
                    @if let Some(model) = &device.model {
                        dt { "Model" } dd { a href={ "/models/" (encoded(&model.name)) "/" (model.version) } { (model.name) " " (model.version) } }
                        @if let Some(digest) = model.digest { dt { "Manifest" } dd { code title=(digest) { (digest.short()) } } }
                        dt { "Stages" } dd {
                            @for (i, stage) in model.stage_macs.iter().enumerate() { @if i > 0 { " + " } (macs(*stage)) }
                        }
                        dt { "Classes" } dd { (model.classes.len()) }
                    }
                    @if let Some(agent) = &device.agent { dt { "Agent" } dd { (agent) } }
                    @if !device.capabilities.is_empty() { dt { "Capabilities" } dd { (device.capabilities.join(", ")) } }
                    @if let Some(boot) = device.boot { dt { "Boot" } dd { code title=(boot) { (boot.to_string().chars().take(8).collect::<String>()) } } }
                    @if let Some(started) = device.started_at { dt { "Started" } dd { (age(started, self.now)) } }
                    @if let Some(ends) = device.certificate_ends {
                        dt { "Certificate" } dd { @if ends > self.now { "until " } @else { "ended " } (utc(ends)) }
                    }
                    dt { "First seen" } dd { (age(device.first_seen, self.now)) }
                    @let recent = &self.overview.recent;
                    @if let Some(engines) = engines(&recent.engines) { dt { "Stages run in" } dd { (engines) } }
                    dt { "Frames" } dd {
                        (count(self.overview.frames))
                        @if recent.dropped > 0 { ", " (count(recent.dropped)) " dropped lately" }
                        @if recent.hurried > 0 { ", " (count(recent.hurried)) " hurried lately" }
                    }
                    dt { "Generation" } dd {
                        @match &device.reported { Some(r) => { (r.generation) " reported" }, None => "none reported" }
                        @if let Some(desired) = &self.overview.desired { ", " (desired.generation) " desired" }
                    }
                    @if let Some(drift) = recent.drift {
                        dt { "Drift" } dd { (percent(drift)) " of frames are of other classes than usual" }
                    }
                    @if let Some(watts) = recent.watts { dt { "Power" } dd { (format!("{watts:.1}")) "\u{202f}W" } }
                    @if let Some((name, version)) = self.overview.desired.as_ref().and_then(|desired| desired.model.as_ref()) {
                        dt { "Model wanted" } dd { a href={ "/models/" (name) "/" (version) } { (name) " " (version) } }
                    }
                    @if let Some(settings) = self.overview.desired.as_ref().map(|d| d.settings) && settings != Wanted::default() {
                        dt { "Settings wanted" } dd { (settings_in_words(&settings)) }
                    }
                    dt { "Disagreement" } dd { (disagreement(self.overview.disagreement)) }
                    @if let Some(guard) = self.overview.guard {
                        dt { "Learner" } dd { (bytes(guard.bytes)) ", " (count(guard.contexts)) @if guard.contexts == 1 { " context" } @else { " contexts" } }
                        dt { "Heads" } dd { (self.trials()) }
                    }
                }
            }
        }
    }
}

/// Settings that differ from the device's own.
fn settings_in_words(Wanted { learner, log }: &Wanted) -> String {
    let share = |share: f32| percent(f64::from(share));
    [
        learner.enabled.map(|on| {
            if on {
                "learning on".into()
            } else {
                "learning off".into()
            }
        }),
        learner.rate.map(|rate| format!("rate {rate}")),
        learner.audit_rate.map(|rate| format!("audits {}", share(rate))),
        learner
            .accuracy_budget
            .map(|budget| format!("accuracy budget {}", share(budget))),
        learner
            .cost_ceiling
            .map(|ceiling| format!("cost ceiling {}", share(ceiling))),
        log.map(|level| format!("log {}", level.name())),
    ]
    .into_iter()
    .flatten()
    .collect::<Vec<String>>()
    .join(", ")
}

/// What runs the stages: one name where it is the same for all.
fn engines(engines: &[String]) -> Option<String> {
    let first = engines.first()?;
    let alike = engines.iter().all(|engine| engine == first);
    Some(if alike { first.clone() } else { engines.join(", ") })
}

fn swatch(class: &str) -> Markup {
    html! { svg class="swatch line" viewBox="0 0 16 8" { line class=(class) x1="0" y1="4" x2="16" y2="4" {} } }
}

/// The first and the last value, for whoever does not see the chart.
fn values_in_words(what: &str, series: &Series, value: impl Fn(&Point) -> Option<f64>) -> String {
    let first = series.points().find_map(&value);
    let last = series.points().rev().find_map(&value);
    match first.zip(last) {
        Some((first, last)) => format!("{what}: from {} at first to {} at last.", percent(first), percent(last)),
        None => format!("{what}: no values."),
    }
}

fn exits_in_words(series: &Series) -> String {
    let with_frames = |p: &&Point| !p.exits.is_empty();
    let first = series.points().find(with_frames);
    let last = series.points().rev().find(with_frames);
    let Some((first, last)) = first.zip(last) else {
        return "Share of frames per exit: no frames.".into();
    };
    let words: Vec<String> = first
        .exits
        .iter()
        .zip(&last.exits)
        .enumerate()
        .map(|(exit, (first, last))| {
            format!(
                "{} from {} to {}",
                exit_name(exit, series.exits),
                percent(*first),
                percent(*last)
            )
        })
        .collect();
    format!("Share of frames per exit, from first to last: {}.", words.join("; "))
}

/// The charts' values as a table, thinned out.
fn table(series: &Series) -> Markup {
    let points: Vec<&Point> = series.points().collect();
    let thin = points.len().div_ceil(MOST_ROWS).max(1);
    html! {
        details id="values" {
            summary { "As a table" }
            div class="scroll" tabindex="0" role="region" aria-label="Values of the charts" {
                table class="compact" {
                    thead { tr {
                        th scope="col" { "Until" }
                        th scope="col" class="number" { "Frames" }
                        @for exit in 0..series.exits { th scope="col" class="number" { "Exit " (exit + 1) } }
                        th scope="col" class="number" { "Cost" }
                        th scope="col" class="number" { "Disagreement" }
                        th scope="col" class="number" { "Bound" }
                        th scope="col" class="number" { "Given up" }
                        th scope="col" class="number" { "Bound" }
                        th scope="col" { "Policy" }
                    } }
                    tbody { @for point in points.iter().rev().step_by(thin) {
                        tr {
                            th scope="row" { time datetime=(iso(point.end)) { (utc(point.end)) } }
                            td class="number" { (count(point.frames)) }
                            @for exit in 0..series.exits {
                                td class="number" { (point.exits.get(exit).map_or_else(|| "–".into(), |s| percent(*s))) }
                            }
                            td class="number" { (point.cost.map_or_else(|| "–".into(), percent)) }
                            td class="number" { (point.estimate.map_or_else(|| "–".into(), percent)) }
                            td class="number" { (percent(point.bound)) }
                            td class="number" { (point.loss.map_or_else(|| "–".into(), |loss| percent(loss.estimate))) }
                            td class="number" { (point.loss.map_or_else(|| "–".into(), |loss| percent(loss.bound))) }
                            td { (policy(&point.policy.0, point.policy.1)) }
                        }
                    } }
                }
            }
        }
    }
}
