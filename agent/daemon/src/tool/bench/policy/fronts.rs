//! What each shipped policy makes of traces, over a sweep of its parameters: the best accuracy at most so dear.

use std::path::PathBuf;

use offramp_bench::TradeOff;
use offramp_policy::Parameters;
use offramp_proto::Parameter;
use offramp_trace::Hosted;
use serde_json::json;

use crate::judge::{SHIPPED, Workshop};
use crate::terminal::{self, Table, percent};
use crate::tool::policy::test::{Recorded, point};

/// Costs at which policies are compared, as shares of the whole network.
const COSTS: [f64; 6] = [0.1, 0.2, 0.3, 0.4, 0.6, 0.8];

/// Every parameter of the sweep of a policy, with its values; the product of them is tried. A policy that only differs
/// where there are deadlines has none: traces of images have no clock.
fn sweep(policy: &str) -> Option<Vec<(&'static str, Vec<f64>)>> {
    let steps = |from: f64, to: f64, steps: u32| -> Vec<f64> {
        (0..=steps)
            .map(|step| from + (to - from) * f64::from(step) / f64::from(steps))
            .collect()
    };
    Some(match policy {
        "threshold" => vec![("threshold", steps(0.05, 0.999, 60))],
        "entropy" => vec![("limit", steps(0.001, 0.95, 60))],
        "patience" => vec![
            ("patience", vec![1.0, 2.0]),
            ("floor", steps(0.0, 0.95, 8)),
            ("threshold", steps(0.3, 0.999, 8)),
        ],
        "temporal" => vec![
            ("change", vec![0.02, 0.05, 0.1, 0.3]),
            ("threshold", steps(0.05, 0.999, 20)),
        ],
        "budget" => vec![("cost", steps(0.05, 0.95, 30))],
        _ => return None,
    })
}

/// All choices of one value for each parameter.
fn choices(sweep: &[(&'static str, Vec<f64>)]) -> Vec<Vec<(&'static str, f64)>> {
    sweep.iter().fold(vec![vec![]], |chosen, (name, values)| {
        let longer = |choice: &Vec<(&'static str, f64)>| {
            let choice = choice.clone();
            values.iter().map(move |value| {
                let mut longer = choice.clone();
                longer.push((*name, *value));
                longer
            })
        };
        chosen.iter().flat_map(longer).collect()
    })
}

/// Of some points, rising in cost, those that are better than every cheaper one.
fn front(mut points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    points.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.total_cmp(&a.1)));
    let mut best = f64::NEG_INFINITY;
    points.retain(|(_, good)| {
        let better = *good > best;
        best = best.max(*good);
        better
    });
    points
}

/// The best of a front that costs at most so much.
fn at(front: &[(f64, f64)], cost: f64) -> Option<f64> {
    front
        .iter()
        .rev()
        .find(|(dear, _)| *dear <= cost + 1e-9)
        .map(|(_, good)| *good)
}

/// Runs the sweeps, and prints a table for each trace, or JSON; draws a picture of each trace into a folder.
pub(super) fn tell(traces: &[PathBuf], pictures: Option<&PathBuf>, as_json: bool) -> anyhow::Result<()> {
    let traces = Recorded::all(traces)?;
    let workshop = Workshop::for_facts(traces[0].facts())?;
    let bar = terminal::progress((traces.len() * SHIPPED.len()) as u64, "policies on traces");
    let mut objects = Vec::new();
    let mut tables = Vec::new();
    for (number, trace) in traces.iter().enumerate() {
        let headings = COSTS.map(|cost| format!("at {}", percent(cost)));
        let name = format!("best accuracy, {}", trace.name);
        let mut table = Table::new([name.as_str()].into_iter().chain(headings.iter().map(String::as_str)));
        let mut picture = TradeOff::new(format!("Shipped policies, {}", trace.name));
        for (policy, component) in SHIPPED {
            bar.inc(1);
            let Some(sweep) = sweep(policy) else { continue };
            let compiled = workshop.load(component)?;
            let points = choices(&sweep).into_iter().map(|choice| {
                let named = choice
                    .iter()
                    .map(|(name, value)| ((*name).to_owned(), Parameter::Number(*value)));
                let mut hosted = Hosted::new(&compiled, &trace.facts(), &Parameters::of(&named.collect())?)?;
                let replay = trace.replay(&mut hosted);
                Ok(point(&replay))
            });
            let front = front(points.collect::<anyhow::Result<_>>()?);
            let best = COSTS.map(|cost| at(&front, cost));
            let cells = best.iter().map(|good| good.map_or_else(|| "-".into(), percent));
            table.row([policy.to_owned()].into_iter().chain(cells));
            objects
                .push(json!({"trace": trace.name, "policy": policy, "costs": COSTS, "accuracy": best, "front": front}));
            picture.line(policy.to_owned(), front);
        }
        if let Some(folder) = pictures {
            std::fs::create_dir_all(folder)?;
            let svg = picture.svg().map_err(anyhow::Error::msg)?;
            std::fs::write(folder.join(format!("policies-{number}.svg")), svg)?;
        }
        tables.push(table);
    }
    bar.finish_and_clear();
    if as_json {
        return Ok(terminal::line(&json!(objects).to_string())?);
    }
    for table in tables {
        terminal::line(&table.to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_front_rises_and_is_read_at_most_so_dear() {
        let front = front(vec![(0.5, 0.7), (0.2, 0.6), (0.3, 0.5), (0.2, 0.4), (0.9, 0.7)]);
        assert_eq!(front, [(0.2, 0.6), (0.5, 0.7)]);
        assert_eq!(
            [0.1, 0.2, 0.4, 0.5, 1.0].map(|cost| at(&front, cost)),
            [None, Some(0.6), Some(0.6), Some(0.7), Some(0.7)]
        );
    }

    #[test]
    fn every_choice_of_values_is_tried() {
        let choices = choices(&[("a", vec![1.0, 2.0]), ("b", vec![3.0, 4.0, 5.0])]);
        assert_eq!(choices.len(), 6);
        assert!(choices.contains(&vec![("a", 2.0), ("b", 4.0)]));
    }
}
