//! Outcomes as the figures that are compared.

use serde::Serialize;

use crate::bootstrap::{Interval, paired};
use crate::study::{Outcome, Saving, mean};
use crate::variant::Variant;

/// A variant over all subsets and seeds. Shares, not per cent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The variant.
    pub name: String,
    /// What it is.
    pub about: String,
    /// Accuracy gained on the subset at equal cost.
    pub subset_gain: f64,
    /// Its interval.
    pub subset_gain_interval: Interval,
    /// Accuracy lost over all classes at equal cost.
    pub all_loss: f64,
    /// Cost before over cost after on the subset, at equal accuracy.
    pub mean_speedup: f64,
    /// The same for the subset that profits least.
    pub min_speedup: f64,
    /// Cost after over cost before of all classes at equal accuracy, less 1.
    pub all_cost: f64,
    /// Cost after over cost before on the subset at the deployed threshold.
    pub fixed_tau_cost: f64,
    /// Accuracy gained on the subset at the deployed threshold.
    pub fixed_tau_accuracy_gain: f64,
    /// Cost after over cost before of all classes at the deployed threshold.
    pub all_fixed_tau_cost: f64,
    /// Accuracy gained over all classes at the deployed threshold.
    pub all_fixed_tau_accuracy_gain: f64,
    /// Share of the subset's images whose prediction differs from the last exit's, at the deployed threshold.
    pub disagreement: f64,
    /// Learning and audits per frame, as a share of the whole network; part of every cost above.
    pub upkeep: f64,
    /// Share of the multiply-adds that learning saves at equal accuracy, as the core says by its audits.
    pub saving_told: Option<f64>,
    /// The same on test images.
    pub saving_found: Option<f64>,
    /// Share of the gain that was there after so many frames, as the study's checkpoints say.
    pub gain_on_the_way: Vec<f64>,
}

/// Rows of all variants, in their order.
pub fn rows(variants: &[Variant], outcomes: &[Outcome]) -> Vec<Row> {
    let rows = variants.iter().enumerate().map(|(index, variant)| {
        let of: Vec<&Outcome> = outcomes.iter().filter(|o| o.variant == index).collect();
        let mean = |f: &dyn Fn(&Outcome) -> f64| of.iter().map(|o| f(o)).sum::<f64>() / of.len().max(1) as f64;
        let gains = groups(outcomes, index, |o| o.on_subset.mean_gain());
        let speedups = groups(outcomes, index, |o| o.on_subset.mean_speedup());
        let subset_gain = mean(&|o| o.on_subset.mean_gain());
        let checkpoints = of.first().map_or(0, |o| o.on_the_way.len());
        Row {
            name: variant.name.clone(),
            about: variant.about.clone(),
            subset_gain,
            subset_gain_interval: paired(&gains, 1),
            all_loss: -mean(&|o| o.on_all.mean_gain()),
            mean_speedup: mean(&|o| o.on_subset.mean_speedup()),
            min_speedup: speedups
                .iter()
                .map(|s| s.iter().sum::<f64>() / s.len().max(1) as f64)
                .fold(f64::INFINITY, f64::min),
            all_cost: mean(&|o| 1.0 / o.on_all.mean_speedup()) - 1.0,
            fixed_tau_cost: mean(&|o| o.on_subset.fixed[1].cost / o.on_subset.fixed[0].cost),
            fixed_tau_accuracy_gain: mean(&|o| o.on_subset.fixed[1].accuracy - o.on_subset.fixed[0].accuracy),
            all_fixed_tau_cost: mean(&|o| o.on_all.fixed[1].cost / o.on_all.fixed[0].cost),
            all_fixed_tau_accuracy_gain: mean(&|o| o.on_all.fixed[1].accuracy - o.on_all.fixed[0].accuracy),
            disagreement: mean(&|o| o.on_subset.disagreement[1]),
            upkeep: mean(&|o| o.upkeep),
            saving_told: saving(&of, |saving| saving.told),
            saving_found: saving(&of, |saving| saving.found),
            gain_on_the_way: (0..checkpoints)
                .map(|at| mean(&|o| o.on_the_way[at]) / subset_gain)
                .collect(),
        }
    });
    rows.collect()
}

/// The mean of a saving; none where a core has no audits.
fn saving(outcomes: &[&Outcome], figure: impl Fn(Saving) -> f64) -> Option<f64> {
    let savings: Option<Vec<f64>> = outcomes.iter().map(|o| o.saving.map(&figure)).collect();
    savings
        .filter(|savings| !savings.is_empty())
        .map(|savings| mean(&savings))
}

/// How far a variant's subset gain is ahead of the poster's rule where that does the same harm to all
/// classes: between the two learning rates whose harm encloses the variant's, weighted; below the gentlest,
/// between that and no learning. `None` where the poster never does as much harm.
pub fn gain_over_poster(variants: &[Variant], outcomes: &[Outcome], variant: usize) -> Option<Interval> {
    let loss = |index: usize| {
        let of: Vec<f64> = outcomes
            .iter()
            .filter(|o| o.variant == index)
            .map(|o| -o.on_all.mean_gain())
            .collect();
        of.iter().sum::<f64>() / of.len().max(1) as f64
    };
    let mut posters: Vec<(f64, usize)> = (0..variants.len())
        .filter(|i| variants[*i].is_poster)
        .map(|i| (loss(i), i))
        .collect();
    posters.sort_by(|a, b| a.0.total_cmp(&b.0));
    let harm = loss(variant);
    let above = posters.iter().position(|(loss, _)| *loss >= harm)?;
    let below = above.checked_sub(1).map(|at| posters[at]);
    let (low, high) = (below.map_or(0.0, |b| b.0), posters[above].0);
    let weight = if high > low { (harm - low) / (high - low) } else { 1.0 };
    let own = groups(outcomes, variant, |o| o.on_subset.mean_gain());
    let upper = groups(outcomes, posters[above].1, |o| o.on_subset.mean_gain());
    let lower = below.map(|(_, index)| groups(outcomes, index, |o| o.on_subset.mean_gain()));
    let differences: Vec<Vec<f64>> = own
        .iter()
        .enumerate()
        .map(|(s, gains)| {
            let poster = |seed: usize| {
                let lower = lower.as_ref().map_or(0.0, |lower| lower[s][seed]);
                (1.0 - weight) * lower + weight * upper[s][seed]
            };
            gains
                .iter()
                .enumerate()
                .map(|(seed, gain)| gain - poster(seed))
                .collect()
        })
        .collect();
    Some(paired(&differences, 2))
}

/// A figure of one variant: per subset, its seeds.
fn groups(outcomes: &[Outcome], variant: usize, figure: impl Fn(&Outcome) -> f64) -> Vec<Vec<f64>> {
    let of = outcomes.iter().filter(|o| o.variant == variant);
    let mut groups: Vec<Vec<f64>> = Vec::new();
    for outcome in of {
        if groups.len() <= outcome.subset {
            groups.resize(outcome.subset + 1, Vec::new());
        }
        groups[outcome.subset].push(figure(outcome));
    }
    groups
}

/// One line per variant, subset and seed, for spreadsheets.
pub fn csv(variants: &[Variant], subsets: &[(String, Vec<u16>)], outcomes: &[Outcome]) -> String {
    let mut text = String::from(
        "variant,subset,seed,subset_gain_0.3,subset_gain_0.4,subset_gain_0.6,all_gain_0.3,all_gain_0.4,all_gain_0.6,\
         speedup_0.4,speedup_0.5,speedup_0.6,all_speedup_0.4,all_speedup_0.5,all_speedup_0.6,frozen_cost,cost,\
         frozen_accuracy,accuracy,upkeep,stream_accuracy\n",
    );
    for o in outcomes {
        let numbers = o
            .on_subset
            .gain
            .iter()
            .chain(&o.on_all.gain)
            .chain(&o.on_subset.speedup)
            .chain(&o.on_all.speedup)
            .copied()
            .chain(o.on_subset.fixed.iter().map(|p| p.cost))
            .chain(o.on_subset.fixed.iter().map(|p| p.accuracy))
            .chain([o.upkeep, o.tally.accuracy()]);
        let numbers: Vec<String> = numbers.map(|n| format!("{n:.5}")).collect();
        // A name may hold commas.
        text += &format!(
            "\"{}\",{},{},{}\n",
            variants[o.variant].name,
            subsets[o.subset].0,
            o.seed,
            numbers.join(",")
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use offramp_core::Settings;

    use super::*;
    use crate::curve::Curve;
    use crate::replay::Tally;
    use crate::study::Change;

    fn change(gain: f64) -> Change {
        Change {
            gain: [gain; 3],
            speedup: [1.0; 3],
            fixed: [crate::Point::default(); 2],
            curves: [Curve(Vec::new()), Curve(Vec::new())],
            disagreement: [0.0; 2],
        }
    }

    /// Outcomes on two subsets with two seeds: (gain on the subset, loss of all classes) per variant.
    fn outcomes(figures: &[(f64, f64)]) -> Vec<Outcome> {
        let cases = figures.iter().enumerate().flat_map(|(variant, figures)| {
            (0..2).flat_map(move |subset| (0..2).map(move |seed| (variant, *figures, subset, seed)))
        });
        cases
            .map(|(variant, (gain, loss), subset, seed)| Outcome {
                variant,
                subset,
                seed,
                tally: Tally::default(),
                upkeep: 0.0,
                saving: None,
                on_subset: change(gain),
                on_all: change(-loss),
                on_the_way: Vec::new(),
            })
            .collect()
    }

    fn variants() -> Vec<Variant> {
        let mut variants: Vec<Variant> = ["rate=0.1", "rate=0.2", "rate=0.3"]
            .map(|text| Variant::parse(text, Settings::default()).unwrap())
            .to_vec();
        variants[1].is_poster = true;
        variants[2].is_poster = true;
        variants
    }

    #[test]
    fn the_poster_is_compared_where_it_does_the_same_harm() {
        // Half-way between two rates of the poster, whose gains there are 2 and 6 points.
        let outcomes = outcomes(&[(0.05, 0.02), (0.02, 0.01), (0.06, 0.03)]);
        let ahead = gain_over_poster(&variants(), &outcomes, 0).unwrap();
        assert!((ahead.mean - 0.01).abs() < 1e-12, "{ahead:?}");
    }

    #[test]
    fn below_its_gentlest_rate_the_poster_is_compared_with_nothing_learned() {
        let outcomes = outcomes(&[(0.05, 0.005), (0.02, 0.01), (0.06, 0.03)]);
        let ahead = gain_over_poster(&variants(), &outcomes, 0).unwrap();
        assert!((ahead.mean - 0.04).abs() < 1e-12, "{ahead:?}");
    }

    #[test]
    fn without_a_poster_that_does_as_much_harm_there_is_no_comparison() {
        let outcomes = outcomes(&[(0.05, 0.05), (0.02, 0.01), (0.06, 0.03)]);
        assert_eq!(gain_over_poster(&variants(), &outcomes, 0), None);
    }

    #[test]
    fn a_row_holds_the_means_and_the_csv_every_case() {
        let outcomes = outcomes(&[(0.05, 0.01), (0.02, 0.01), (0.06, 0.03)]);
        let rows = rows(&variants(), &outcomes);
        assert!((rows[2].subset_gain - 0.06).abs() < 1e-12 && (rows[2].all_loss - 0.03).abs() < 1e-12);
        let subsets = [("a".to_owned(), vec![0]), ("b".to_owned(), vec![1])];
        let csv = csv(&variants(), &subsets, &outcomes);
        assert_eq!(csv.lines().count(), 1 + 12);
        let columns = |line: &str| line.split(',').count();
        assert!(
            csv.lines()
                .all(|line| columns(line) == columns(csv.lines().next().unwrap())),
            "{csv}"
        );
    }
}
