//! `offramp bench policy`: what a verdict of each shipped policy costs, what a swap, and what
//! the policies make of traces.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::judge::Workshop;
use crate::package;
use crate::terminal::{self, Table};

mod calls;
mod fronts;
mod swaps;

/// Settings of the policy bench.
#[derive(Args, Debug)]
pub struct PolicyBench {
    /// Batches of 100 calls that are timed of each policy.
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(10..=1_000_000))]
    batches: u32,
    /// Measure frame times while policies are swapped instead: so many frames with swaps, and as many without.
    #[arg(long, value_name = "FRAMES", num_args = 0..=1, default_missing_value = "10000")]
    swaps: Option<usize>,
    /// Compare the policies on traces instead, over a sweep of their parameters: the best accuracy at most so dear. With
    /// a path, on these traces; without, on the embedded ones.
    #[arg(long, value_name = "PATH", num_args = 0.., conflicts_with = "swaps")]
    traces: Option<Vec<PathBuf>>,
    /// Draw a picture of each trace into this folder.
    #[arg(long, value_name = "DIR", requires = "traces")]
    pictures: Option<PathBuf>,
    /// Print one JSON array, a row for each policy; of swaps an object.
    #[arg(long)]
    json: bool,
}

/// Runs the bench.
///
/// # Errors
/// When a policy does not run on this machine.
pub fn policy(bench: &PolicyBench) -> anyhow::Result<()> {
    if let Some(frames) = bench.swaps {
        return tell_swaps(frames, bench.json);
    }
    if let Some(traces) = &bench.traces {
        return fronts::tell(traces, bench.pictures.as_ref(), bench.json);
    }
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

fn tell_swaps(frames: usize, as_json: bool) -> anyhow::Result<()> {
    let swaps = swaps::swaps(frames)?;
    if as_json {
        let object = json!({
            "frames": swaps.frames, "swaps": swaps.swaps, "p99_us_without": swaps.without, "p99_us_with": swaps.with,
            "p99_ratio": swaps.ratio,
        });
        return Ok(terminal::line(&object.to_string())?);
    }
    Ok(terminal::line(&format!(
        "{} frames with a swap every {}, 99th percentile {:.0} µs; as many without {:.0} µs; ratio {:.2} at the median \
         of rounds",
        swaps.frames,
        swaps::EVERY,
        swaps.with,
        swaps.without,
        swaps.ratio
    ))?)
}
