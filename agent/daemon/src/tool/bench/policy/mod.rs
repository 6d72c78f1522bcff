//! `offramp bench policy`: what a verdict of each shipped policy costs.

use clap::Args;
use serde_json::json;

use crate::judge::Workshop;
use crate::package;
use crate::terminal::{self, Table};

mod calls;

/// Settings of the policy bench.
#[derive(Args, Debug)]
pub struct PolicyBench {
    /// Batches of 100 calls that are timed of each policy.
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(10..=1_000_000))]
    batches: u32,
    /// Print one JSON array, a row for each policy.
    #[arg(long)]
    json: bool,
}

/// Runs the bench.
///
/// # Errors
/// When a policy does not run on this machine.
pub fn policy(bench: &PolicyBench) -> anyhow::Result<()> {
    let workshop = Workshop::new(&package::embedded()?)?;
    let calls = calls::calls(&workshop, bench.batches as usize)?;
    if bench.json {
        let rows = calls.iter().map(|call| {
            json!({"policy": call.policy, "median_ns": call.median, "p99_ns": call.high, "native_ns": call.native})
        });
        return Ok(terminal::line(&json!(rows.collect::<Vec<_>>()).to_string())?);
    }
    let mut table = Table::new(["decide, with fuel", "median, ns", "99th percentile", "native, ns"]);
    for call in &calls {
        table.row([
            call.policy.to_owned(),
            format!("{:.0}", call.median),
            format!("{:.0}", call.high),
            format!("{:.1}", call.native),
        ]);
    }
    Ok(terminal::line(&table.to_string())?)
}
