//! Prints what a verdict costs: the shipped threshold policy against the built-in rule.
//!
//! `cargo run --release -p offramp-policy --example decide`

use std::hint::black_box;
use std::time::{Duration, Instant};

use offramp_core::ExitView;
use offramp_policy::{Limits, ModelFacts, Parameters, PolicyHost};

const BATCH: u32 = 1000;
const BATCHES: usize = 1000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let component = include_bytes!("../../../plugins/prebuilt/threshold.wasm");
    let host = PolicyHost::new(Limits {
        deadline: Duration::from_secs(10),
        ..Limits::default()
    })?;
    let model = ModelFacts {
        classes: 10,
        exit_costs: vec![0.1, 0.4, 0.7, 1.0],
    };
    let start = Instant::now();
    let policy = host.load(component)?;
    println!("load        {:>9.1} µs", start.elapsed().as_secs_f64() * 1e6);
    let start = Instant::now();
    for _ in 0..BATCH {
        black_box(policy.configure(&model, &Parameters::default())?);
    }
    println!(
        "configure   {:>9.1} µs",
        start.elapsed().as_secs_f64() * 1e6 / f64::from(BATCH)
    );
    let mut instance = policy.configure(&model, &Parameters::default())?;
    measure("decide", |view| instance.decide(view).is_ok());
    measure("native rule", |view| view.rule() == offramp_core::Verdict::Leave);
    Ok(())
}

/// Times batches of calls, and prints median and 99th percentile of a call in nanoseconds.
fn measure(name: &str, mut decide: impl FnMut(&ExitView) -> bool) {
    let mut view = ExitView {
        exit: 0,
        exits: 4,
        class: 3,
        confidence: 0.5,
        margin: 0.2,
        entropy: 1.1,
        agreement: false,
        change: 0.1,
        cost: 0.1,
        next_cost: 0.3,
        time_left: 20.0,
        queue_depth: 1,
        temperature: 50.0,
        power_budget: 10.0,
        battery: f32::NAN,
        threshold: 0.8,
    };
    let mut batches: Vec<f64> = (0..BATCHES)
        .map(|_| {
            let start = Instant::now();
            for call in 0..BATCH {
                view.exit = call % 3;
                view.confidence = f32::from(call as u16) / 1000.0;
                black_box(decide(black_box(&view)));
            }
            start.elapsed().as_secs_f64() * 1e9 / f64::from(BATCH)
        })
        .collect();
    batches.sort_by(f64::total_cmp);
    let (least, median, p99) = (batches[0], batches[BATCHES / 2], batches[BATCHES * 99 / 100]);
    println!("{name:<11} {median:>9.1} ns median   {least:.1} least   {p99:.1} p99 of batches of {BATCH}");
}
