//! Any bytes as a policy's component: refused, or within its limits whatever it does.

#![no_main]

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use offramp_core::{AuditResult, ExitView, Outcome};
use offramp_policy::{Limits, ModelFacts, Parameters, PolicyHost};

/// Compiling is bounded by the component's outline; a sanitizer makes it many times slower.
const PATIENCE: Duration = Duration::from_secs(20);

static HOST: LazyLock<PolicyHost> = LazyLock::new(|| PolicyHost::new(Limits::default()).expect("WebAssembly runs here"));

fn view(exit: u32, confidence: f32) -> ExitView {
    ExitView {
        exit,
        exits: 4,
        class: 3,
        confidence,
        margin: confidence,
        entropy: 1.0 - confidence,
        agreement: exit > 0,
        change: 0.1,
        cost: 0.25,
        next_cost: 0.25,
        time_left: f32::NAN,
        queue_depth: 0,
        temperature: f32::NAN,
        power_budget: f32::NAN,
        battery: f32::NAN,
        threshold: 0.8,
    }
}

fuzz_target!(|data: &[u8]| {
    let start = Instant::now();
    if let Ok(policy) = HOST.load(data) {
        let model = ModelFacts {
            classes: 10,
            exit_costs: vec![0.25, 0.5, 0.75, 1.0],
        };
        if let Ok(mut instance) = policy.configure(&model, &Parameters::default()) {
            for confidence in [0.0, 0.5, 1.0, f32::NAN] {
                for exit in 0..3 {
                    let _ = instance.decide(&view(exit, confidence));
                }
                let outcome = Outcome {
                    exit: 1,
                    class: 3,
                    confidence,
                    cost: 0.5,
                    latency: 1.0,
                    interval: 10.0,
                    energy: f32::NAN,
                    temperature: f32::NAN,
                    hurried: false,
                    fault: false,
                    audit: AuditResult::None,
                };
                let _ = instance.observe(&outcome);
                if let Ok(Some(saved)) = instance.save() {
                    assert!(saved.len() <= Limits::default().state_bytes);
                    let _ = instance.restore(&saved);
                }
                if instance.ended().is_some() && instance.restart().is_err() {
                    break;
                }
            }
        }
    }
    assert!(start.elapsed() < PATIENCE, "a component of {} bytes took too long", data.len());
});
