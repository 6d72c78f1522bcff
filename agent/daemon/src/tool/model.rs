//! `offramp model check|show|eval`.

use std::path::Path;

use anyhow::{Context as _, bail};
use offramp_core::Facts;
use serde_json::json;

use crate::evaluate::{self, Tally};
use crate::lane::{BuiltIn, Single};
use crate::terminal::{self, Table, macs, percent};
use crate::{package, tool};

/// Largest difference between a logit and its reference.
const TOLERANCE: f32 = 1e-3;

/// Checks a package whole: manifest, digests, shapes, weights, every stage on this machine's engine, and the
/// reference vectors where the package carries them.
///
/// # Errors
/// What is wrong with which part.
pub fn check(name: &str) -> anyhow::Result<()> {
    let package = package::open(name)?;
    let mut single = Single::new(&package, tool::measuring(&package, 0.8), 1)?;
    let manifest = package.manifest();
    terminal::line(&format!(
        "{} version {} ({})",
        manifest.name,
        manifest.version,
        package.digest()
    ))?;
    terminal::line("  manifest, digests, heads and stages fit")?;
    let by: Vec<&str> = (0..manifest.stages.len()).map(|stage| single.kernels(stage)).collect();
    terminal::line(&format!("  kernels of the stages: {}", by.join(", ")))?;
    let Some(vectors) = package.vectors()? else {
        return Ok(terminal::line(
            "  no reference vectors: what the stages compute was not compared",
        )?);
    };
    let (mut worst, mut agree, mut seen) = (0f32, 0u64, 0u64);
    let values = manifest.input.values();
    for (image, logits) in vectors.images.chunks_exact(values).zip(
        vectors
            .logits
            .values
            .chunks_exact(vectors.logits.exits * vectors.logits.classes),
    ) {
        single.run(seen, image, Facts::default(), &mut BuiltIn)?;
        for (exit, expected) in logits.chunks_exact(vectors.logits.classes).enumerate() {
            let got = single.lane.core.probabilities(exit).context("every exit is reached")?;
            let reference = softmax(expected);
            worst = got
                .iter()
                .zip(&reference)
                .map(|(a, b)| (a - b).abs())
                .fold(worst, f32::max);
            agree += u64::from(top(got) == top(&reference));
            seen += 1;
        }
    }
    let share = agree as f64 / seen.max(1) as f64;
    terminal::line(&format!(
        "  {seen} reference vectors: worst difference {worst:.1e}, same class in {}",
        percent(share)
    ))?;
    if worst > TOLERANCE || share < 0.999 {
        bail!("the stages do not compute what they should on this machine");
    }
    Ok(())
}

fn softmax(z: &[f32]) -> Vec<f32> {
    let max = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let e: Vec<f32> = z.iter().map(|z| (z - max).exp()).collect();
    let sum: f32 = e.iter().sum();
    e.iter().map(|e| e / sum).collect()
}

fn top(p: &[f32]) -> Option<usize> {
    (0..p.len()).max_by(|&a, &b| p[a].total_cmp(&p[b]))
}

/// Prints what a package says of itself.
///
/// # Errors
/// When the package is refused.
pub fn show(name: &str, as_json: bool) -> anyhow::Result<()> {
    let package = package::open(name)?;
    let manifest = package.manifest();
    if as_json {
        let stages = manifest
            .stages
            .iter()
            .map(|s| json!({"file": s.file, "macs": s.macs}))
            .collect::<Vec<_>>();
        let exits = manifest
            .exits
            .iter()
            .map(|e| json!({"features": e.features, "temperature": e.temperature, "test_accuracy": e.test_accuracy}));
        let object = json!({
            "name": manifest.name, "version": manifest.version, "digest": package.digest().to_string(),
            "classes": manifest.classes, "subsets": manifest.subsets, "stages": stages, "exits": exits.collect::<Vec<_>>(),
        });
        return Ok(terminal::line(&object.to_string())?);
    }
    let input = &manifest.input;
    terminal::line(&format!(
        "{} version {}: {}",
        manifest.name, manifest.version, manifest.description
    ))?;
    terminal::line(&format!("digest   {}", package.digest()))?;
    terminal::line(&format!("licence  {}", manifest.license))?;
    terminal::line(&format!(
        "input    {}x{}x{} (height, width, channels)",
        input.height, input.width, input.channels
    ))?;
    terminal::line(&format!(
        "classes  {}: {}",
        manifest.classes.len(),
        shorten(&manifest.classes)
    ))?;
    terminal::line(&format!(
        "subsets  {}\n",
        shorten(&manifest.subsets.keys().cloned().collect::<Vec<_>>())
    ))?;
    let total: u64 = manifest.stages.iter().map(|s| s.macs).sum();
    let mut spent = 0;
    let mut table = Table::new([
        "exit",
        "multiply-adds",
        "share",
        "features",
        "temperature",
        "accuracy (test)",
    ]);
    for (i, (stage, exit)) in manifest.stages.iter().zip(&manifest.exits).enumerate() {
        spent += stage.macs;
        table.row([
            (i + 1).to_string(),
            macs(spent as f64),
            percent(spent as f64 / total as f64),
            exit.features.to_string(),
            format!("{:.2}", exit.temperature),
            percent(exit.test_accuracy.into()),
        ]);
    }
    Ok(terminal::line(table.to_string().trim_end())?)
}

fn shorten(names: &[String]) -> String {
    const SHOWN: usize = 12;
    let more = names.len().saturating_sub(SHOWN);
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if more == 0 {
        shown
    } else {
        format!("{shown} and {more} more")
    }
}

/// Measures a package on labelled images: each exit alone, then the cascade over a sweep of thresholds.
///
/// # Errors
/// When the package or the images are refused.
pub fn eval(name: &str, data: Option<&Path>, as_json: bool) -> anyhow::Result<()> {
    const THRESHOLDS: [f32; 9] = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99];
    let package = package::open(name)?;
    let images = tool::images(&package, data)?.evaluation;
    let mut single = Single::new(&package, tool::measuring(&package, 1.0), 1)?;
    let steps = images.len() as u64 * (1 + THRESHOLDS.len() as u64);
    let bar = terminal::progress(steps, "evaluating");
    let (alone, ms) = evaluate::exits_alone(&mut single, &mut BuiltIn, &images, || bar.inc(1))?;
    let all: Vec<u32> = (0..).take(images.len()).collect();
    let mut sweep = Vec::new();
    for threshold in THRESHOLDS {
        single.lane.core.set_settings(tool::measuring(&package, threshold))?;
        let mut tally = Tally::new(alone.len());
        evaluate::run(&mut single, &mut BuiltIn, &images, &all, |outcome| {
            tally.add(outcome);
            bar.inc(1);
        })?;
        sweep.push((threshold, tally.report()));
    }
    bar.finish_and_clear();
    if as_json {
        let sweep: Vec<_> = sweep
            .iter()
            .map(|(t, report)| json!({"threshold": t, "report": report}))
            .collect();
        let object = json!({"images": images.len(), "exit_accuracy": alone, "full_ms": ms, "cascade": sweep});
        return Ok(terminal::line(&object.to_string())?);
    }
    terminal::line(&format!(
        "{} on {} images, {ms:.2} ms a frame all the way\n",
        package.label(),
        images.len()
    ))?;
    let mut table = Table::new(["exit alone", "accuracy"]);
    for (exit, accuracy) in alone.iter().enumerate() {
        table.row([format!("{}", exit + 1), percent(*accuracy)]);
    }
    terminal::line(&table.to_string())?;
    let mut table = Table::new(["threshold", "accuracy", "multiply-adds", "ms", "exits", "disagreement"]);
    for (threshold, report) in &sweep {
        table.row([
            format!("{threshold:.2}"),
            percent(report.accuracy),
            macs(report.cost_macs),
            format!("{:.3}", report.cost_ms),
            shares(&report.exit_share),
            percent(report.disagreement),
        ]);
    }
    Ok(terminal::line(table.to_string().trim_end())?)
}

/// Shares of the exits, in whole percent.
pub fn shares(shares: &[f64]) -> String {
    shares
        .iter()
        .map(|s| format!("{:3.0}", s * 100.0))
        .collect::<Vec<_>>()
        .join("/")
}
