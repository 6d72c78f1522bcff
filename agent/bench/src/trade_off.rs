//! Accuracy against cost, of anything.

use plotters::prelude::*;

/// Colours that are told apart with most kinds of colour blindness (Okabe and Ito).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x55, 0x55, 0x55),
];

/// A picture of lines and points, each a pair of cost (share of the whole network) and accuracy, both `0..=1`.
#[derive(Clone, Debug)]
pub struct TradeOff {
    title: String,
    lines: Vec<(String, Vec<(f64, f64)>)>,
    points: Vec<(String, (f64, f64))>,
}

impl TradeOff {
    /// An empty picture.
    pub fn new(title: String) -> Self {
        Self {
            title,
            lines: Vec::new(),
            points: Vec::new(),
        }
    }

    /// Adds a line.
    pub fn line(&mut self, name: String, points: Vec<(f64, f64)>) {
        self.lines.push((name, points));
    }

    /// Adds a point, in the colour of the line with the same place.
    pub fn point(&mut self, name: String, point: (f64, f64)) {
        self.points.push((name, point));
    }

    /// The picture as an SVG.
    ///
    /// # Errors
    /// When it cannot be drawn.
    pub fn svg(&self) -> Result<String, String> {
        let mut svg = String::new();
        self.draw(&mut svg).map_err(|error| error.to_string())?;
        Ok(svg)
    }

    fn draw(&self, svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
        let all = self.lines.iter().flat_map(|(_, points)| points);
        let all = all.chain(self.points.iter().map(|(_, point)| point));
        let (low, high) = all.fold((1.0, 0.0), |(low, high): (f64, f64), (_, good)| {
            (low.min(*good), high.max(*good))
        });
        let root = SVGBackend::with_string(svg, (760, 460)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(&self.title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..1.02, (low - 0.02).max(0.0)..(high + 0.02).min(1.0))?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_desc("multiply-adds per frame, share of the whole network")
            .y_desc("accuracy")
            .x_label_formatter(&|x| format!("{x:.1}"))
            .y_label_formatter(&|y| format!("{:.0} %", y * 100.0))
            .draw()?;
        for ((name, points), colour) in self.lines.iter().zip(COLOURS.iter().cycle()) {
            let colour = *colour;
            chart
                .draw_series([PathElement::new(points.clone(), colour.stroke_width(2))])?
                .label(name)
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 22, y)], colour.stroke_width(2)));
        }
        for ((name, point), colour) in self.points.iter().zip(COLOURS.iter().cycle()) {
            let colour = *colour;
            chart
                .draw_series([Circle::new(*point, 6, colour.filled())])?
                .label(name)
                .legend(move |(x, y)| Circle::new((x + 11, y), 5, colour.filled()));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .draw()?;
        root.present()?;
        Ok(())
    }
}
