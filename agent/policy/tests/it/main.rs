//! Policies in the real host: the shipped one, hostile ones, and the ladder.

mod evolution;
mod guests;
mod hostile;
mod ladder;
mod languages;
mod limits;
mod shipped;

use std::time::Duration;

use offramp_core::{AuditResult, ExitView, Outcome};
use offramp_policy::{Limits, ModelFacts, PolicyHost};

/// Limits under which the time that a loaded machine takes decides nothing.
fn unhurried() -> Limits {
    Limits {
        deadline: Duration::from_secs(3600),
        ..Limits::default()
    }
}

fn host() -> PolicyHost {
    PolicyHost::new(unhurried()).unwrap()
}

fn model() -> ModelFacts {
    ModelFacts {
        classes: 10,
        exit_costs: vec![0.1, 0.4, 0.7, 1.0],
    }
}

fn view(exit: u32, class: u32, confidence: f32) -> ExitView {
    ExitView {
        exit,
        exits: 4,
        class,
        confidence,
        margin: 0.5,
        entropy: 0.5,
        agreement: false,
        change: f32::NAN,
        cost: 0.1,
        next_cost: 0.3,
        time_left: f32::NAN,
        queue_depth: 0,
        temperature: f32::NAN,
        power_budget: f32::NAN,
        battery: f32::NAN,
        threshold: 0.8,
    }
}

/// What became of a frame that left at the first exit.
fn outcome() -> Outcome {
    Outcome {
        exit: 0,
        class: 3,
        confidence: 0.9,
        cost: 0.1,
        latency: 1.0,
        interval: f32::NAN,
        energy: f32::NAN,
        temperature: f32::NAN,
        hurried: false,
        fault: false,
        audit: AuditResult::None,
    }
}

/// An error with its causes, as a user reads it.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
