//! `offramp model check|show|eval|pack`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use offramp_core::Core;
use offramp_engine::{Engine, Offload, OffloadProblem, Progress, Provider, RunBy, StageState};
use offramp_model::{Digest, Package};
use serde_json::json;

use super::bench;
use crate::evaluate::{self, Compared, Tally};
use crate::lane::{BuiltIn, Single};
use crate::terminal::{self, Table, macs, percent};
use crate::{package, tool};

/// Which engine a package is checked on.
#[derive(Args, Debug)]
pub struct On {
    /// What runs the stages.
    #[arg(long, value_enum, default_value_t)]
    engine: Kind,
    /// ONNX Runtime's library or its folder; without it ORT_DYLIB_PATH is asked, then the usual places.
    #[arg(long, value_name = "PATH")]
    library: Option<PathBuf>,
    /// Provider of ONNX Runtime, as often as needed, in order of preference: tensorrt, tensorrt-rtx, cuda, cpu.
    /// Without it all, in this order.
    #[arg(long = "provider", value_name = "NAME", value_parser = provider)]
    providers: Vec<Provider>,
    /// Less precise arithmetic, where a provider has it.
    #[arg(long)]
    half: bool,
    /// Number of the GPU.
    #[arg(long, value_name = "N", default_value_t = 0)]
    device: u32,
    /// Images that a stage runs at a time, at most; it is an error where one cannot.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    batch: u8,
    /// Time the stages, too, beside our own kernels on one thread.
    #[arg(long)]
    time: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Our own kernels, and tract where those do not know an operator.
    #[default]
    Fused,
    /// ONNX Runtime, every stage.
    #[value(name = "onnxruntime")]
    OnnxRuntime,
}

fn provider(name: &str) -> Result<Provider, String> {
    name.parse::<Provider>().map_err(|problem| problem.remedy())
}

impl On {
    fn offload(&self) -> anyhow::Result<Option<Offload>> {
        if self.engine == Kind::Fused {
            let plain = !self.half && self.device == 0 && self.batch == 1;
            if self.library.is_some() || !self.providers.is_empty() || !plain {
                bail!("--library, --provider, --half, --device and --batch go with --engine onnxruntime");
            }
            return Ok(None);
        }
        let providers = if self.providers.is_empty() {
            Provider::ALL.to_vec()
        } else {
            self.providers.clone()
        };
        Ok(Some(Offload {
            library: self.library.clone(),
            providers,
            half: self.half,
            device: self.device,
            batch: self.batch.into(),
            ..Offload::new(bench::cache()?.join("engines"))
        }))
    }
}

/// Checks a package whole: manifest, digests, shapes, weights, every stage on this machine's engine or in ONNX
/// Runtime, and the reference vectors where the package carries them.
///
/// # Errors
/// What is wrong with which part, or why ONNX Runtime does not run a stage.
pub fn check(name: &str, on: &On) -> anyhow::Result<()> {
    let offload = on.offload()?;
    let package = package::open(name)?;
    let own = Engine::load(&package)?;
    Core::new(package::network(&package)?, tool::measuring(&package, 0.8))?;
    let manifest = package.manifest();
    terminal::line(&format!(
        "{} version {} ({})",
        manifest.name,
        manifest.version,
        package.digest()
    ))?;
    terminal::line("  manifest, digests, heads and stages fit")?;
    let mut engine = own.clone();
    let offloaded = offload.is_some();
    if let Some(offload) = offload {
        offload_all(&mut engine, &package, offload)?;
    }
    let states = engine.stage_states();
    let by: Vec<String> = states.iter().map(|state| state.run_by.to_string()).collect();
    terminal::line(&format!("  kernels of the stages: {}", by.join(", ")))?;
    let batch = usize::from(on.batch);
    let tolerance = tolerance(&states, on.half);
    compare(&mut engine, &package, tolerance, 1)?;
    if batch > 1 {
        compare(&mut engine, &package, tolerance, batch)?;
    }
    if on.time {
        terminal::line(&times(own, engine.clone(), &package, batch)?)?;
    }
    if offloaded {
        // A stage that failed since went on in our own kernels, and all of the above would be of those.
        all_offloaded(&engine.stage_states())?;
    }
    Ok(())
}

/// Offloads every stage, or says why one is not.
fn offload_all(engine: &mut Engine, package: &Package, offload: Offload) -> anyhow::Result<()> {
    let start = Instant::now();
    engine.offload(package, offload).map_err(|problem| {
        let remedy = problem.remedy();
        anyhow::Error::new(problem).context(remedy)
    })?;
    engine.wait_for_offload();
    // Only a whole frame hands state from stage to stage, and a package need not carry reference vectors.
    let mut frame = engine.frame();
    let image = bench::random_image(package.manifest().input.values(), 7);
    engine.start(&mut frame, &image)?;
    let mut copied = Vec::new();
    for stage in 0..engine.stages() {
        engine.run_stage(stage, &mut frame)?;
        if engine.computes_state(stage) && !frame.is_away() {
            copied.push((stage + 1).to_string());
        }
    }
    let states = engine.stage_states();
    // Most are the same for every stage.
    let mut refusals: Vec<(String, Vec<String>)> = Vec::new();
    for (stage, state) in states.iter().enumerate() {
        for refusal in &state.refused {
            let (text, stage) = (refusal.to_string(), (stage + 1).to_string());
            match refusals.iter_mut().find(|(told, _)| *told == text) {
                Some((_, stages)) => stages.push(stage),
                None => refusals.push((text, vec![stage])),
            }
        }
    }
    for (text, stages) in refusals {
        eprintln!("stage {}: {text}", stages.join(", "));
    }
    all_offloaded(&states)?;
    let state = match copied.join(", ") {
        none if none.is_empty() => "stays with the runtime between all stages".into(),
        some if states.iter().all(|state| state.run_by == states[0].run_by) => {
            bail!("the state behind stage {some} does not stay on the device, though one provider runs all stages")
        }
        some => format!("comes back behind stage {some}: the next, or one that reads it later, has another provider"),
    };
    terminal::line(&format!("  state {state}"))?;
    Ok(terminal::line(&format!(
        "  offloaded and held against our own kernels in {:.1} s",
        start.elapsed().as_secs_f64()
    ))?)
}

/// Fails where a stage does not run in ONNX Runtime, or no longer, or not on several images at a time as asked for.
fn all_offloaded(states: &[StageState]) -> anyhow::Result<()> {
    let no_batches = |state: &StageState| {
        let mut refused = state.refused.iter();
        refused.any(|refusal| matches!(refusal.0, OffloadProblem::NoBatches { .. }))
    };
    if let Some(stage) = states.iter().position(no_batches) {
        bail!("stage {} runs no batches: {}", stage + 1, states[stage]);
    }
    match states.iter().position(|state| state.progress != Progress::Working) {
        None => Ok(()),
        Some(stage) => bail!(
            "stage {} does not run in ONNX Runtime: {}; `offramp doctor` tells what this machine can run",
            stage + 1,
            states[stage]
        ),
    }
}

/// What the least precise of the engines may differ by.
fn tolerance(states: &[StageState], half: bool) -> f32 {
    let each = states.iter().map(|state| match state.run_by {
        RunBy::OnnxRuntime(provider) => provider.tolerance(half),
        RunBy::Fused | RunBy::Tract => 0.0,
    });
    each.fold(Compared::TOLERANCE, f32::max)
}

/// Holds what the stages compute against the package's reference vectors, so many images at a time.
fn compare(engine: &mut Engine, package: &Package, tolerance: f32, batch: usize) -> anyhow::Result<()> {
    let Some(compared) = Compared::of(engine, package, batch)? else {
        return Ok(terminal::line(
            "  no reference vectors: what the stages compute was not compared",
        )?);
    };
    let together = if batch > 1 {
        format!("{batch} images at a time: ")
    } else {
        String::new()
    };
    terminal::line(&format!("  {together}{compared}"))?;
    if !compared.holds(tolerance) {
        bail!(
            "the stages do not compute what they should on this machine: at most {tolerance:.0e} apart and the same \
             class in {} are asked for",
            percent(Compared::least(tolerance))
        );
    }
    Ok(())
}

/// Milliseconds of each stage in our own kernels and in the engine, and of a frame among a batch: medians of rounds that
/// take turns.
fn times(mut own: Engine, mut engine: Engine, package: &Package, batch: usize) -> anyhow::Result<String> {
    const ROUNDS: usize = 15;
    let image = bench::random_image(package.manifest().input.values(), 7);
    // Also warms up. A round takes about 0.2 s.
    let once: f64 = bench::stage_times(&mut own, &image, 3)?.iter().sum();
    let frames = (200.0 / once).clamp(1.0, 200.0) as usize;
    bench::stage_times(&mut engine, &image, 3)?;
    let mut all = vec![[Vec::new(), Vec::new()]; own.stages() + 1 + usize::from(batch > 1)];
    for _ in 0..ROUNDS {
        for (which, engine) in [&mut own, &mut engine].into_iter().enumerate() {
            let stages = bench::stage_times(engine, &image, frames)?;
            let sum = stages.iter().sum::<f64>();
            let together = match batch {
                1 => None,
                batch => Some(bench::batch_time(engine, &image, frames, batch)?),
            };
            for (times, ms) in all.iter_mut().zip(stages.into_iter().chain([sum]).chain(together)) {
                times[which].push(ms);
            }
        }
    }
    let states = engine.stage_states();
    let mut table = Table::new(["ms per frame", "run by", "ms", "our own", "ratio"]);
    for (stage, times) in all.iter_mut().enumerate() {
        let [own, ms] = times.each_mut().map(|times| bench::median(times));
        let (name, by) = match states.get(stage) {
            Some(state) => (format!("stage {}", stage + 1), state.run_by.to_string()),
            None if stage == states.len() => ("all".into(), String::new()),
            None => (format!("all, {batch} frames at a time, each"), String::new()),
        };
        table.row([
            name,
            by,
            format!("{ms:.3}"),
            format!("{own:.3}"),
            format!("{:.2}", ms / own),
        ]);
    }
    Ok(table.to_string().trim_end().to_owned())
}

/// Makes one file of a package, and prints its digest and where it is.
///
/// # Errors
/// When the package is refused, or the file cannot be written.
pub fn pack(directory: &Path, out: Option<PathBuf>) -> anyhow::Result<()> {
    let bytes = Package::pack(directory)?;
    let out = match out {
        Some(out) => out,
        None => {
            let package = Package::unpack("the packed file", &bytes)?;
            let manifest = package.manifest();
            PathBuf::from(format!("{}-{}.tar", manifest.name, manifest.version))
        }
    };
    std::fs::write(&out, &bytes).with_context(|| format!("{} cannot be written", out.display()))?;
    Ok(terminal::line(&format!("{} {}", Digest::of(&bytes), out.display()))?)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_that_went_back_to_our_own_kernels_is_no_success() {
        let state = |run_by, progress| StageState {
            batch: 1,
            run_by,
            progress,
            refused: Vec::new(),
        };
        let there = state(RunBy::OnnxRuntime(Provider::Cuda), Progress::Working);
        all_offloaded(&[there.clone(), there.clone()]).unwrap();
        let error = all_offloaded(&[there, state(RunBy::Fused, Progress::Failed)]).unwrap_err();
        let text = "stage 2 does not run in ONNX Runtime: fused; not offloaded; ";
        assert!(error.to_string().starts_with(text), "{error}");
    }
}
