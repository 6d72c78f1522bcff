//! A chart with its axes, its legend and its text alternative.

use maud::{Markup, html};

use super::layout::drawing;
use crate::chart::{Chart, Tick, view_box};

/// Labels of marks that stand closer than this share of the axis would cover each other.
const ROOM: f64 = 0.14;

/// A figure around a chart. The summary is read out instead of the drawing.
pub(super) fn figure(title: &str, legend: &Markup, summary: &str, chart: Option<&Chart>) -> Markup {
    html! {
        figure class="chart" {
            figcaption { h3 { (title) } (legend) }
            @if let Some(chart) = chart {
                div class="plot" {
                    (marks(&chart.marks))
                    svg class="y" aria-hidden="true" {
                        @for tick in &chart.y {
                            text x="100%" y=(format!("{:.2}%", (1.0 - tick.at) * 100.0)) dy="0.32em" { (tick.label) }
                        }
                    }
                    svg class="drawing" viewBox=(view_box()) preserveAspectRatio="none" role="img" aria-label=(summary) {
                        title { (summary) }
                        (drawing(&chart.drawing))
                    }
                    svg class="x" aria-hidden="true" {
                        @for tick in &chart.x {
                            text class=(anchor(tick.at)) x=(place(tick.at)) y="1em" { (tick.label) }
                        }
                    }
                }
            } @else {
                p class="empty" { "No summaries in this range." }
            }
        }
    }
}

/// The labels of policy swaps, as far as there is room for them.
fn marks(marks: &[Tick]) -> Markup {
    let mut last = f64::NEG_INFINITY;
    let labelled = marks.iter().filter(|mark| {
        let fits = mark.at - last >= ROOM;
        if fits {
            last = mark.at;
        }
        fits
    });
    html! {
        svg class="marks" aria-hidden="true" {
            @for mark in labelled {
                @let label: String = mark.label.chars().take(24).collect();
                @if mark.at > 0.8 {
                    text class="end" x=(place(mark.at)) y="0.9em" { (label) " ▾" }
                } @else {
                    text class="start" x=(place(mark.at)) y="0.9em" { "▾ " (label) }
                }
            }
        }
    }
}

fn place(at: f64) -> String {
    format!("{:.2}%", at * 100.0)
}

/// Text at either end of the axis stays inside it.
fn anchor(at: f64) -> &'static str {
    match at {
        at if at < 0.03 => "start",
        at if at > 0.97 => "end",
        _ => "middle",
    }
}
