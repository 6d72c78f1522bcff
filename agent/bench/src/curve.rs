//! Accuracy against cost, over all thresholds.

use offramp_core::Core;

use crate::features::Features;

/// Multiply-adds up to each exit, its head included, as a share of all.
pub(crate) fn exit_costs(core: &Core) -> Vec<f64> {
    core.exit_costs().iter().map(|cost| f64::from(*cost)).collect()
}

/// What a core's exits say about images: per image and exit the confidence, and whether the class is right.
#[derive(Clone, Debug, Default)]
pub struct Opinions {
    exits: usize,
    /// Image by image, exit by exit.
    answers: Vec<(f32, bool)>,
    /// Per image: the classes of all exits.
    classes: Vec<u16>,
}

impl Opinions {
    /// Asks every exit about some images.
    pub fn of(core: &Core, features: &Features, images: &[usize]) -> Self {
        let exits = core.exits();
        let mut p = vec![0.0; features.classes];
        let mut opinions = Self {
            exits,
            answers: Vec::with_capacity(exits * images.len()),
            classes: Vec::with_capacity(exits * images.len()),
        };
        for &image in images {
            for exit in 0..exits {
                let (class, confidence) = core.classify(exit, features.of(exit, image), &mut p);
                let class = class as u16;
                opinions.answers.push((confidence, class == features.labels[image]));
                opinions.classes.push(class);
            }
        }
        opinions
    }

    /// Accuracy and cost when frames leave where the confidence reaches a threshold.
    pub fn at(&self, threshold: f32, costs: &[f64]) -> Point {
        let (mut right, mut cost) = (0usize, 0.0);
        for image in self.answers.chunks_exact(self.exits) {
            let exit = image.iter().position(|(confidence, _)| *confidence >= threshold);
            let exit = exit.unwrap_or(self.exits - 1);
            right += usize::from(image[exit].1);
            cost += costs[exit];
        }
        let n = (self.answers.len() / self.exits).max(1) as f64;
        Point {
            cost: cost / n,
            accuracy: right as f64 / n,
        }
    }

    /// Share of images whose prediction differs from the last exit's.
    pub fn disagreement(&self, threshold: f32) -> f64 {
        let mut differs = 0.0;
        let n = (self.answers.len() / self.exits).max(1) as f64;
        for (image, classes) in self
            .answers
            .chunks_exact(self.exits)
            .zip(self.classes.chunks_exact(self.exits))
        {
            let exit = image.iter().position(|(confidence, _)| *confidence >= threshold);
            let exit = exit.unwrap_or(self.exits - 1);
            differs += f64::from(u8::from(classes[exit] != classes[self.exits - 1])) / n;
        }
        differs
    }

    /// Accuracy of each exit alone.
    pub fn alone(&self) -> Vec<f64> {
        let n = (self.answers.len() / self.exits).max(1) as f64;
        (0..self.exits)
            .map(|exit| {
                self.answers
                    .iter()
                    .skip(exit)
                    .step_by(self.exits)
                    .filter(|a| a.1)
                    .count() as f64
                    / n
            })
            .collect()
    }

    /// The curve over all thresholds.
    pub fn curve(&self, costs: &[f64]) -> Curve {
        // Fine where confidences crowd: near one, and near chance.
        let thresholds = (0..=200).map(|i| i as f32 / 200.0).chain([0.9975, 0.999, 0.9995, 1.1]);
        let mut thresholds: Vec<f32> = thresholds.collect();
        thresholds.sort_by(f32::total_cmp);
        Curve(thresholds.iter().map(|t| self.at(*t, costs)).collect())
    }
}

/// A point of a curve.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Point {
    /// Mean multiply-adds per frame as a share of the whole network's.
    pub cost: f64,
    /// Share of right predictions.
    pub accuracy: f64,
}

/// Points of rising cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve(pub Vec<Point>);

impl Curve {
    /// The same accuracies at a cost that is higher by a constant: what learning and audits take per frame.
    #[must_use]
    pub fn dearer(mut self, by: f64) -> Self {
        self.0.iter_mut().for_each(|point| point.cost += by);
        self
    }

    /// Accuracy at a cost; that of the nearest end outside of the curve.
    pub fn accuracy_at(&self, cost: f64) -> f64 {
        let Some(after) = self.0.iter().position(|p| p.cost >= cost) else {
            return self.0.last().map_or(0.0, |p| p.accuracy);
        };
        let Some(before) = after.checked_sub(1) else {
            return self.0[0].accuracy;
        };
        between(
            cost,
            (self.0[before].cost, self.0[before].accuracy),
            (self.0[after].cost, self.0[after].accuracy),
        )
    }

    /// The least cost at which an accuracy is reached; `None` where it never is.
    pub fn cost_at(&self, accuracy: f64) -> Option<f64> {
        let after = self.0.iter().position(|p| p.accuracy >= accuracy)?;
        let Some(before) = after.checked_sub(1) else {
            return Some(self.0[0].cost);
        };
        let (a, b) = (self.0[before], self.0[after]);
        Some(between(accuracy, (a.accuracy, a.cost), (b.accuracy, b.cost)))
    }
}

fn between(x: f64, a: (f64, f64), b: (f64, f64)) -> f64 {
    if b.0 == a.0 {
        b.1
    } else {
        a.1 + (x - a.0) / (b.0 - a.0) * (b.1 - a.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve() -> Curve {
        Curve(
            [(0.2, 0.5), (0.4, 0.7), (0.4, 0.8), (1.0, 0.75)]
                .map(|(cost, accuracy)| Point { cost, accuracy })
                .to_vec(),
        )
    }

    #[test]
    fn between_points_a_curve_is_straight_and_outside_it_ends() {
        let curve = curve();
        assert!((curve.accuracy_at(0.3) - 0.6).abs() < 1e-12);
        assert!((curve.accuracy_at(0.7) - 0.775).abs() < 1e-12);
        assert_eq!((curve.accuracy_at(0.1), curve.accuracy_at(2.0)), (0.5, 0.75));
    }

    #[test]
    fn the_first_point_that_reaches_an_accuracy_counts() {
        let curve = curve();
        assert!((curve.cost_at(0.6).unwrap() - 0.3).abs() < 1e-12);
        assert_eq!(curve.cost_at(0.75), Some(0.4));
        assert_eq!(curve.cost_at(0.4), Some(0.2));
        assert_eq!(curve.cost_at(0.9), None);
        assert!((curve.dearer(0.1).cost_at(0.6).unwrap() - 0.4).abs() < 1e-12);
    }
}
