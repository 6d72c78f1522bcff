//! The poster's picture: accuracy against cost, frozen solid and specialized dashed, subset and all classes.

use plotters::prelude::*;

use crate::curve::{Curve, Point};
use crate::study::Outcome;

const SUBSET: RGBColor = RGBColor(0x1f, 0x77, 0xb4);
const ALL: RGBColor = RGBColor(0xd6, 0x6a, 0x00);

/// Mean curves of one variant over subsets and seeds, as an SVG.
///
/// # Errors
/// When the picture cannot be drawn.
pub fn curves(title: &str, outcomes: &[&Outcome]) -> Result<String, String> {
    let mean = |curve: &dyn Fn(&Outcome) -> &Curve| -> Vec<Point> {
        let grid = (25..=100).map(|i| f64::from(i) / 100.0);
        grid.map(|cost| Point {
            cost,
            accuracy: outcomes.iter().map(|o| curve(o).accuracy_at(cost)).sum::<f64>() / outcomes.len().max(1) as f64,
        })
        .collect()
    };
    let lines = [
        ("subset, frozen", SUBSET, false, mean(&|o| &o.on_subset.curves[0])),
        ("subset, specialized", SUBSET, true, mean(&|o| &o.on_subset.curves[1])),
        ("all classes, frozen", ALL, false, mean(&|o| &o.on_all.curves[0])),
        ("all classes, specialized", ALL, true, mean(&|o| &o.on_all.curves[1])),
    ];
    let all = || lines.iter().flat_map(|(.., points)| points);
    let low = all().map(|p| p.accuracy).fold(1.0, f64::min);
    let high = all().map(|p| p.accuracy).fold(0.0, f64::max);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (760, 460)).into_drawing_area();
        let draw = || -> Result<(), Box<dyn std::error::Error>> {
            root.fill(&WHITE)?;
            let mut chart = ChartBuilder::on(&root)
                .caption(title, ("sans-serif", 18))
                .margin(12)
                .x_label_area_size(40)
                .y_label_area_size(56)
                .build_cartesian_2d(0.2..1.02, (low - 0.02).max(0.0)..(high + 0.02).min(1.0))?;
            chart
                .configure_mesh()
                .light_line_style(WHITE)
                .x_desc("multiply-adds per frame, share of the whole network (learning and audits included)")
                .y_desc("accuracy")
                .x_label_formatter(&|x| format!("{x:.1}"))
                .y_label_formatter(&|y| format!("{:.0} %", y * 100.0))
                .draw()?;
            for (name, colour, dashed, points) in &lines {
                let points: Vec<(f64, f64)> = points.iter().map(|p| (p.cost, p.accuracy)).collect();
                let style = colour.stroke_width(2);
                // A dash is a piece of the curve, and the gap after it another.
                let pieces: Vec<&[(f64, f64)]> = if *dashed {
                    points.windows(2).step_by(2).collect()
                } else {
                    vec![&points]
                };
                let series = chart.draw_series(pieces.into_iter().map(|piece| PathElement::new(piece, style)))?;
                let (colour, dashed) = (*colour, *dashed);
                series.label(*name).legend(move |(x, y)| {
                    let gap = if dashed { 12 } else { 22 };
                    PathElement::new(vec![(x, y), (x + gap, y)], colour.stroke_width(2))
                });
            }
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::LowerRight)
                .background_style(WHITE.mix(0.8))
                .border_style(BLACK.mix(0.3))
                .draw()?;
            root.present()?;
            Ok(())
        };
        draw().map_err(|error| error.to_string())?;
    }
    Ok(svg)
}
