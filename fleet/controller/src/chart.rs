//! Charts as SVG: the area inside the axes, without text.
//!
//! Text is the page's: it keeps its size when the drawing is stretched to the width of the window.
//! Colours are names in disguise: the style sheet finds them by their value and replaces them, so that
//! one drawing serves the light and the dark page.

use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use crate::series::{Point, Series};

/// Size of the drawing in its own units; the page stretches it.
const WIDTH: u32 = 2400;
const HEIGHT: u32 = 600;

const GRID: RGBColor = RGBColor(0x01, 0x00, 0x00);
const MARK: RGBColor = RGBColor(0x02, 0x00, 0x00);
const COST: RGBColor = RGBColor(0x03, 0x00, 0x00);
const COST_AREA: RGBColor = RGBColor(0x04, 0x00, 0x00);
const RISK: RGBColor = RGBColor(0x05, 0x00, 0x00);
const BOUND: RGBColor = RGBColor(0x06, 0x00, 0x00);
const BOUND_AREA: RGBColor = RGBColor(0x07, 0x00, 0x00);

/// Steps of the scale on which exits are coloured, from the cheapest to the last.
pub(crate) const STEPS: usize = 8;

/// A label at a place on an axis.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tick {
    /// Share of the axis, from its start.
    pub(crate) at: f64,
    pub(crate) label: String,
}

/// A chart, ready for the page.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Chart {
    /// The drawing: elements in a box of [`view_box`].
    pub(crate) drawing: String,
    pub(crate) x: Vec<Tick>,
    pub(crate) y: Vec<Tick>,
    /// Changes of the policy, along x.
    pub(crate) marks: Vec<Tick>,
}

/// The drawing's own coordinates.
pub(crate) fn view_box() -> String {
    format!("0 0 {WIDTH} {HEIGHT}")
}

/// Step of the colour scale for an exit: the whole scale is used, whatever the number of exits.
pub(crate) fn step(exit: usize, exits: usize) -> usize {
    match exits {
        0 | 1 => STEPS - 1,
        _ => (exit.min(exits - 1) * (STEPS - 1) + (exits - 1) / 2) / (exits - 1),
    }
}

fn exit_colour(exit: usize, exits: usize) -> RGBColor {
    RGBColor(0x10, 0, u8::try_from(step(exit, exits)).unwrap_or(u8::MAX))
}

/// Share of frames per exit, stacked, cheapest exit at the bottom.
pub(crate) fn exit_shares(series: &Series) -> Option<Chart> {
    let frame = Frame::of(series, 0.0, 1.0)?;
    let drawing = frame.draw(&[], |canvas| {
        for stretch in &series.stretches {
            for points in stretch.split(|p| p.exits.is_empty()).filter(|p| !p.is_empty()) {
                for exit in (0..series.exits).rev() {
                    // Each exit is painted down to the axis; the ones before it are painted over it.
                    let top = |p: &Point| p.exits.iter().take(exit + 1).sum::<f64>();
                    canvas.area(points, top, |_| 0.0, exit_colour(exit, series.exits))?;
                }
            }
        }
        Ok(())
    })?;
    Some(frame.finish(series, drawing))
}

/// Multiply-adds spent, as a share of the whole network's.
pub(crate) fn cost(series: &Series) -> Option<Chart> {
    let highest = series.points().filter_map(|p| p.cost).fold(1.0, f64::max);
    let frame = Frame::of(series, 0.0, (highest * 5.0).ceil() / 5.0)?;
    let drawing = frame.draw(&frame.grid(), |canvas| {
        for stretch in &series.stretches {
            for points in stretch.split(|p| p.cost.is_none()).filter(|p| !p.is_empty()) {
                let cost = |p: &Point| p.cost.unwrap_or(0.0);
                canvas.area(points, cost, |_| 0.0, COST_AREA)?;
                canvas.line(points, cost, COST)?;
            }
        }
        Ok(())
    })?;
    Some(frame.finish(series, drawing))
}

/// Estimated disagreement and its bound. A bound far above the rest, as before the first audits, leaves
/// the chart at its top.
pub(crate) fn disagreement(series: &Series) -> Option<Chart> {
    let usual = median(series.points().map(|p| p.bound)).unwrap_or(1.0);
    let highest = series.points().filter_map(|p| p.estimate).fold(usual, f64::max);
    let frame = Frame::of(series, 0.0, nice_share(highest * 1.2))?;
    let drawing = frame.draw(&frame.grid(), |canvas| {
        for stretch in &series.stretches {
            let estimate = |p: &Point| p.estimate.unwrap_or(0.0);
            canvas.area(stretch, |p| p.bound, estimate, BOUND_AREA)?;
            canvas.line(stretch, |p| p.bound, BOUND)?;
            for points in stretch.split(|p| p.estimate.is_none()).filter(|p| !p.is_empty()) {
                canvas.line(points, estimate, RISK)?;
            }
        }
        Ok(())
    })?;
    Some(frame.finish(series, drawing))
}

/// Accuracy given up and its bound. Where the exits do better than the last one, the axis goes below zero,
/// as far down as up. A bound far above the rest leaves the chart at its top.
pub(crate) fn loss(series: &Series) -> Option<Chart> {
    let usual = median(series.points().filter_map(|p| Some(p.loss?.bound)))?;
    let estimates = || series.points().filter_map(|p| Some(p.loss?.estimate));
    let farthest = estimates().fold(usual.abs(), |farthest, loss| farthest.max(loss.abs()));
    let highest = nice_share(farthest * 1.2);
    let lowest = if estimates().any(|loss| loss < 0.0) {
        -highest
    } else {
        0.0
    };
    let frame = Frame::of(series, lowest, highest)?;
    let drawing = frame.draw(&frame.grid(), |canvas| {
        for stretch in &series.stretches {
            for points in stretch.split(|p| p.loss.is_none()).filter(|p| !p.is_empty()) {
                let estimate = |p: &Point| p.loss.map_or(0.0, |loss| loss.estimate);
                let bound = |p: &Point| p.loss.map_or(0.0, |loss| loss.bound);
                canvas.area(points, bound, estimate, BOUND_AREA)?;
                canvas.line(points, bound, BOUND)?;
                canvas.line(points, estimate, RISK)?;
            }
        }
        Ok(())
    })?;
    Some(frame.finish(series, drawing))
}

/// The value in the middle; none of nothing.
fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// The axes of a chart.
struct Frame {
    start: f64,
    end: f64,
    lowest: f64,
    highest: f64,
    marks: Vec<f64>,
}

impl Frame {
    fn of(series: &Series, lowest: f64, highest: f64) -> Option<Self> {
        let (start, end) = series.span()?;
        Some(Self {
            start: start as f64,
            end: end.max(start + 1) as f64,
            lowest,
            highest,
            marks: series.swaps.iter().map(|s| s.at as f64).collect(),
        })
    }

    /// Value at a share of the height.
    fn at(&self, share: f64) -> f64 {
        self.lowest + share * (self.highest - self.lowest)
    }

    /// Heights of the grid's lines.
    fn grid(&self) -> Vec<f64> {
        [0.25, 0.5, 0.75].map(|share| self.at(share)).into()
    }

    /// Draws grid, content and marks; none when the backend fails, which it does not in memory.
    fn draw(&self, grid: &[f64], content: impl FnOnce(&mut Canvas<'_>) -> Result<(), DrawingFailed>) -> Option<String> {
        let mut svg = String::new();
        let drawn = (|| {
            let size = (to_i32(WIDTH), to_i32(HEIGHT));
            let plane = Plane::new(self.start..self.end, self.lowest..self.highest, (0..size.0, size.1..0));
            let root = SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT)).into_drawing_area();
            let mut canvas = Canvas(root.apply_coord_spec(plane));
            for height in grid {
                canvas.path(vec![(self.start, *height), (self.end, *height)], GRID)?;
            }
            content(&mut canvas)?;
            for mark in &self.marks {
                canvas.path(vec![(*mark, self.lowest), (*mark, self.highest)], MARK)?;
            }
            canvas.0.present().map_err(|_| DrawingFailed)
        })();
        if drawn.is_err() {
            return None;
        }
        // What the backend wraps around the drawing has a fixed size; the page has its own wrapping.
        let inner = svg.split_once('>')?.1.trim_end().strip_suffix("</svg>")?;
        Some(inner.to_owned())
    }

    fn finish(&self, series: &Series, drawing: String) -> Chart {
        let span = self.end - self.start;
        let place = |at: u64| ((at as f64 - self.start) / span).clamp(0.0, 1.0);
        let marks = series.swaps.iter().map(|swap| Tick {
            at: place(swap.at),
            label: format!("{} {}", swap.policy.0, swap.policy.1),
        });
        let y = (0..=4).step_by(2).map(|quarter| {
            let at = f64::from(quarter) / 4.0;
            Tick {
                at,
                label: percent_axis(self.at(at), (self.highest - self.lowest) / 2.0),
            }
        });
        Chart {
            drawing,
            marks: marks.collect(),
            x: time_ticks(span),
            y: y.collect(),
        }
    }
}

struct DrawingFailed;

type Plane = Cartesian2d<RangedCoordf64, RangedCoordf64>;

struct Canvas<'b>(DrawingArea<SVGBackend<'b>, Plane>);

impl Canvas<'_> {
    /// Fills what lies between two values over time.
    fn area(
        &mut self,
        points: &[Point],
        top: impl Fn(&Point) -> f64,
        bottom: impl Fn(&Point) -> f64,
        colour: RGBColor,
    ) -> Result<(), DrawingFailed> {
        let mut around = outline(points, top);
        around.extend(outline(points, bottom).into_iter().rev());
        let polygon = Polygon::new(around, colour.filled());
        self.0.draw(&polygon).map_err(|_| DrawingFailed)
    }

    /// Draws a value over time.
    fn line(&mut self, points: &[Point], value: impl Fn(&Point) -> f64, colour: RGBColor) -> Result<(), DrawingFailed> {
        self.path(outline(points, value), colour)
    }

    fn path(&mut self, path: Vec<(f64, f64)>, colour: RGBColor) -> Result<(), DrawingFailed> {
        let path = PathElement::new(path, colour.stroke_width(1));
        self.0.draw(&path).map_err(|_| DrawingFailed)
    }
}

/// The drawing's size as the coordinates of the backend.
fn to_i32(size: u32) -> i32 {
    i32::try_from(size).unwrap_or(i32::MAX)
}

/// A value over time: straight between the middles of the points, level at both ends.
fn outline(points: &[Point], value: impl Fn(&Point) -> f64) -> Vec<(f64, f64)> {
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return Vec::new();
    };
    let middle = |p: &Point| (p.start as f64 + p.end as f64) / 2.0;
    let inner = points.iter().map(|p| (middle(p), value(p)));
    std::iter::once((first.start as f64, value(first)))
        .chain(inner)
        .chain(std::iter::once((last.end as f64, value(last))))
        .collect()
}

/// The next round share above a value.
fn nice_share(value: f64) -> f64 {
    const NICE: [f64; 9] = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0];
    NICE.into_iter().find(|nice| value <= *nice).unwrap_or(1.0)
}

/// A share as a label of an axis with labels `step` apart: the decimals that a step needs.
fn percent_axis(share: f64, step: f64) -> String {
    let exact = |decimals: &i32| {
        let scaled = step * 100.0 * 10f64.powi(*decimals);
        (scaled - scaled.round()).abs() < 1e-6
    };
    let decimals = (0..2).find(exact).unwrap_or(2).unsigned_abs() as usize;
    let sign = if share < 0.0 { "\u{2212}" } else { "" };
    format!("{sign}{:.decimals$} %", share.abs() * 100.0)
}

/// Labels back from the latest moment, at most seven, at round distances.
fn time_ticks(span: f64) -> Vec<Tick> {
    const STEPS: [(f64, f64, &str); 17] = [
        (1.0, 1.0, "s"),
        (2.0, 1.0, "s"),
        (5.0, 1.0, "s"),
        (10.0, 1.0, "s"),
        (20.0, 1.0, "s"),
        (30.0, 1.0, "s"),
        (60.0, 60.0, "min"),
        (120.0, 60.0, "min"),
        (300.0, 60.0, "min"),
        (600.0, 60.0, "min"),
        (900.0, 60.0, "min"),
        (1800.0, 60.0, "min"),
        (3600.0, 3600.0, "h"),
        (7200.0, 3600.0, "h"),
        (21_600.0, 3600.0, "h"),
        (43_200.0, 3600.0, "h"),
        (86_400.0, 86_400.0, "d"),
    ];
    let seconds = span / 1000.0;
    let fitting = STEPS.into_iter().find(|(step, ..)| seconds / step <= 6.0);
    // Beyond six days, whole days, as many as it takes.
    let (step, unit, name) = fitting.unwrap_or(((seconds / 6.0 / 86_400.0).ceil() * 86_400.0, 86_400.0, "d"));
    let mut ticks = Vec::new();
    let mut back = step;
    while back < seconds * 0.97 {
        ticks.push(Tick {
            at: 1.0 - back / seconds,
            label: format!("\u{2212}{} {name}", (back / unit).round()),
        });
        back += step;
    }
    ticks.reverse();
    ticks.push(Tick {
        at: 1.0,
        label: "latest".into(),
    });
    ticks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(seconds: f64) -> Vec<String> {
        time_ticks(seconds * 1000.0).into_iter().map(|t| t.label).collect()
    }

    #[test]
    fn time_is_labelled_at_round_distances() {
        assert_eq!(labels(110.0), ["−100 s", "−80 s", "−60 s", "−40 s", "−20 s", "latest"]);
        assert_eq!(
            labels(3600.0),
            ["−50 min", "−40 min", "−30 min", "−20 min", "−10 min", "latest"]
        );
        assert_eq!(labels(0.001), ["latest"]);
        assert!(labels(3600.0 * 24.0 * 400.0).len() <= 7);
    }

    #[test]
    fn colour_scale_is_used_whole() {
        let steps = |exits| (0..exits).map(|e| step(e, exits)).collect::<Vec<_>>();
        assert_eq!(steps(1), [7]);
        assert_eq!(steps(2), [0, 7]);
        assert_eq!(steps(4), [0, 2, 5, 7]);
        assert_eq!(steps(64)[63], 7);
    }

    #[test]
    fn axis_labels_have_the_decimals_they_need() {
        assert_eq!(percent_axis(0.0025, 0.0025), "0.25 %");
        assert_eq!(percent_axis(0.01, 0.01), "1 %");
        assert_eq!(percent_axis(0.025, 0.025), "2.5 %");
        assert_eq!(percent_axis(0.005, 0.005), "0.5 %");
        assert_eq!(percent_axis(0.5, 0.5), "50 %");
        assert_eq!(percent_axis(-0.02, 0.02), "−2 %");
    }

    #[test]
    fn empty_series_has_no_chart() {
        let series = Series::default();
        assert_eq!(exit_shares(&series), None);
        assert_eq!(cost(&series), None);
        assert_eq!(disagreement(&series), None);
        assert_eq!(loss(&series), None);
    }
}
