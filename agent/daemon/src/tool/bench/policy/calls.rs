//! What a verdict costs: each shipped policy in WebAssembly, with fuel, beside the same policy in native code.

use std::hint::black_box;
use std::time::Instant;

use offramp_core::{ExitView, SplitMix64};
use offramp_policy_sdk as sdk;

use super::super::median;
use crate::judge::{PolicyJudge, PolicySource, SHIPPED, Workshop};
use crate::lane::Judge as _;

/// Calls that are timed together: the clock is some of a call's time.
const BATCH: usize = 100;
/// Views that are decided about, again and again.
const VIEWS: usize = 2_000;

/// A policy's call, in nanoseconds.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) policy: &'static str,
    /// Median over batches.
    pub(super) median: f64,
    /// 99th percentile of batches.
    pub(super) high: f64,
    /// Median in native code.
    pub(super) native: f64,
}

/// Times batches of calls. Gives median and 99th percentile of a call in nanoseconds.
fn time(views: &[ExitView], batches: usize, mut decide: impl FnMut(&ExitView)) -> (f64, f64) {
    let mut views = views.iter().cycle();
    let mut times: Vec<f64> = (0..batches)
        .map(|_| {
            let start = Instant::now();
            for view in views.by_ref().take(BATCH) {
                decide(black_box(view));
            }
            start.elapsed().as_nanos() as f64 / BATCH as f64
        })
        .collect();
    let middle = median(&mut times);
    (middle, times[times.len() * 99 / 100])
}

/// Frames of a network with as many exits as the workshop's, sure and unsure ones, exits in order.
fn views(exit_costs: &[f32], classes: u32) -> Vec<ExitView> {
    let mut random = SplitMix64(11);
    let mut unit = move || (random.next() >> 40) as f32 / 16_777_216.0;
    let early = exit_costs.len() - 1;
    let frame = |_| {
        let (class, sure, change) = (unit(), unit(), unit());
        let view = move |exit: usize| {
            let confidence = (sure + 0.1 * exit as f32).min(1.0);
            ExitView {
                exit: exit as u32,
                exits: exit_costs.len() as u32,
                class: ((class * classes as f32) as u32).min(classes - 1),
                confidence,
                margin: confidence * confidence,
                entropy: (1.0 - confidence) * (classes as f32).ln(),
                agreement: exit > 0 && sure > 0.3,
                change,
                cost: exit_costs[exit],
                next_cost: exit_costs[exit + 1] - exit_costs[exit],
                time_left: 40.0,
                queue_depth: 1,
                temperature: 55.0,
                power_budget: 10.0,
                battery: f32::NAN,
                threshold: 0.8,
            }
        };
        (0..early).map(view)
    };
    (0..VIEWS.div_ceil(early)).flat_map(frame).collect()
}

/// The view as the SDK has it.
fn of_sdk(view: &ExitView) -> sdk::ExitView {
    sdk::ExitView {
        exit: view.exit,
        exits: view.exits,
        class: view.class,
        confidence: view.confidence,
        margin: view.margin,
        entropy: view.entropy,
        agreement: view.agreement,
        change: view.change,
        cost: view.cost,
        next_cost: view.next_cost,
        time_left: view.time_left,
        queue_depth: view.queue_depth,
        temperature: view.temperature,
        power_budget: view.power_budget,
        battery: view.battery,
        threshold: view.threshold,
    }
}

/// A policy's call in native code: median in nanoseconds.
fn native(policy: &str, model: &sdk::ModelFacts, views: &[ExitView], batches: usize) -> anyhow::Result<f64> {
    fn of<P: sdk::Policy>(model: &sdk::ModelFacts, views: &[ExitView], batches: usize) -> anyhow::Result<f64> {
        let none = sdk::Parameters::from(Vec::new());
        let mut policy = P::configure(model, none).map_err(anyhow::Error::msg)?;
        let decide = |view: &ExitView| {
            black_box(policy.decide(&of_sdk(view)));
        };
        Ok(time(views, batches, decide).0)
    }
    match policy {
        "threshold" => of::<offramp_policy_threshold::Threshold>(model, views, batches),
        "entropy" => of::<offramp_policy_entropy::Entropy>(model, views, batches),
        "patience" => of::<offramp_policy_patience::Patience>(model, views, batches),
        "temporal" => of::<offramp_policy_temporal::Temporal>(model, views, batches),
        "budget" => of::<offramp_policy_budget::Budget>(model, views, batches),
        "deadline" => of::<offramp_policy_deadline::Deadline>(model, views, batches),
        other => anyhow::bail!("policy {other} has no native twin in the bench"),
    }
}

/// Times each shipped policy, with its default parameters.
pub(super) fn calls(workshop: &Workshop, batches: usize) -> anyhow::Result<Vec<Call>> {
    let facts = workshop.facts();
    let views = views(&facts.exit_costs, facts.classes);
    let model = sdk::ModelFacts {
        classes: facts.classes,
        exit_costs: facts.exit_costs.clone(),
    };
    let call = |(policy, _): &(&'static str, &[u8])| {
        let source = PolicySource::shipped(policy, [].into()).expect("it is in the table");
        let mut judge = PolicyJudge::new(workshop.prepare(&source)?);
        let (median, high) = time(&views, batches, |view| {
            black_box(judge.decide(view));
        });
        Ok(Call {
            policy,
            median,
            high,
            native: native(policy, &model, &views, batches)?,
        })
    };
    SHIPPED.iter().map(call).collect()
}
