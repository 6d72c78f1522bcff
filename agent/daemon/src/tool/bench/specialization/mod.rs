//! `offramp bench specialization`: what specialization gains and costs, beside the rules it is compared with.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, bail};
use clap::Args;
use offramp_bench::{Order, Outcome, Row, Study, Variant, csv, curves, rows};
use offramp_engine::Engine;
use offramp_model::Package;

use self::features::{Weather, features};
use self::results::Results;
use super::{median, random_image};
use crate::{package, terminal};

mod features;
mod results;

/// Settings of the specialization bench.
#[derive(Args, Debug)]
pub struct SpecializationBench {
    /// Package: a directory or a name.
    #[arg(default_value = package::EMBEDDED)]
    package: String,
    /// Folder with `cifar-100/`, for packages whose images are not embedded.
    #[arg(long, value_name = "DIR", env = "OFFRAMP_DATA")]
    data: Option<PathBuf>,
    /// Streams per subset.
    #[arg(long, default_value_t = 3)]
    seeds: u64,
    /// Frames of a stream.
    #[arg(long, default_value_t = 3_000)]
    frames: usize,
    /// Threshold at which frames leave; the package's without it.
    #[arg(long)]
    threshold: Option<f32>,
    /// Change these of the package's settings before everything else.
    #[arg(long = "with", value_name = "KEY=NUMBER,…")]
    with: Option<String>,
    /// Measure these settings instead of the whole table, e.g. `prior=0.4,rate=0.1`; as often as needed.
    #[arg(long = "try", value_name = "KEY=NUMBER,…")]
    tries: Vec<String>,
    /// Write results.csv, results.json and curves.svg into this folder.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Frames after which the gain is measured on the way.
const CHECKPOINTS: [usize; 5] = [50, 100, 250, 500, 1_000];

/// Runs the bench.
///
/// # Errors
/// When the package is refused, its images are missing, or results cannot be written.
pub fn specialization(bench: &SpecializationBench) -> anyhow::Result<()> {
    let package = package::open(&bench.package)?;
    let manifest = package.manifest();
    if manifest.subsets.is_empty() {
        bail!("package {} names no subset of classes to specialize on", manifest.name);
    }
    let [stream, test] = features(&package, bench.data.as_deref(), Weather::Fair)?;
    let mut settings = package::settings(&package);
    if let Some(text) = &bench.with {
        settings = Variant::parse(text, settings)?.settings;
    }
    let subsets = manifest.subsets.iter();
    let study = Study {
        network: package::network(&package)?,
        stream: &stream,
        test: &test,
        subsets: subsets
            .map(|(name, classes)| (name.clone(), classes.iter().map(|class| *class as u16).collect()))
            .collect(),
        order: Order::Rounds,
        seeds: bench.seeds.max(1),
        frames: bench.frames,
        threshold: bench.threshold.unwrap_or(settings.threshold),
        checkpoints: CHECKPOINTS.into_iter().filter(|n| *n <= bench.frames).collect(),
    };
    let mut variants = Variant::all(settings);
    if !bench.tries.is_empty() {
        let tries = bench.tries.iter().map(|text| Variant::parse(text, settings));
        variants.truncate(1);
        variants.extend(tries.collect::<Result<Vec<_>, _>>()?);
    }
    let outcomes = run(&study, &variants, "streams")?;
    let scenes = if bench.tries.is_empty() {
        other_streams(bench, &package, &study, &variants[0])?
    } else {
        Vec::new()
    };
    let results = Results::of(&study, &variants, &outcomes, scenes, frame_seconds(&package)?)?;
    if let Some(out) = &bench.out {
        let write = |name: &str, text: &str| {
            let path = out.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
        write("results.csv", &csv(&variants, &study.subsets, &outcomes))?;
        write("results.json", &serde_json::to_string_pretty(&results.json())?)?;
        let default: Vec<&Outcome> = outcomes.iter().filter(|o| o.variant == 0).collect();
        let title = format!(
            "{}, mean of {} subsets x {} streams",
            manifest.name,
            study.subsets.len(),
            study.seeds
        );
        write("curves.svg", &curves(&title, &default).map_err(anyhow::Error::msg)?)?;
    }
    if bench.json {
        return Ok(terminal::line(&results.json().to_string())?);
    }
    terminal::line(&results.text(&study))?;
    Ok(())
}

fn run(study: &Study<'_>, variants: &[Variant], what: &str) -> anyhow::Result<Vec<Outcome>> {
    let runs = variants.len() * study.subsets.len() * study.seeds as usize;
    let bar = terminal::progress(runs as u64, what);
    let outcomes = study.run(variants, || bar.inc(1))?;
    bar.finish_and_clear();
    Ok(outcomes)
}

/// The package's settings on streams that are not one subset alone in fair weather: a row each.
fn other_streams(
    bench: &SpecializationBench,
    package: &Package,
    study: &Study<'_>,
    default: &Variant,
) -> anyhow::Result<Vec<Row>> {
    let [foul_stream, foul_test] = features(package, bench.data.as_deref(), Weather::Foul)?;
    let with = |order| Study { order, ..study.clone() };
    let mut scenes = vec![
        ("80 % subset, 20 % all classes".to_owned(), with(Order::Mixed(0.8))),
        ("bursts of 25 frames of a class".to_owned(), with(Order::Bursts(25))),
        (
            "corrupted images".to_owned(),
            Study {
                stream: &foul_stream,
                test: &foul_test,
                ..study.clone()
            },
        ),
    ];
    for together in [2, 4] {
        // More of them would be half of all classes, and no subset.
        if 3 * together <= study.subsets.len() {
            let wider = Study {
                subsets: unions(&study.subsets, together),
                ..study.clone()
            };
            scenes.push((format!("{together} subsets at a time"), wider));
        }
    }
    let mut table = Vec::new();
    for (name, scene) in scenes {
        let variant = Variant {
            name: name.clone(),
            ..default.clone()
        };
        let variants = [variant];
        table.extend(rows(&variants, &run(&scene, &variants, &name)?));
    }
    Ok(table)
}

/// Every subset with those that follow it.
fn unions(subsets: &[(String, Vec<u16>)], together: usize) -> Vec<(String, Vec<u16>)> {
    (0..subsets.len())
        .map(|first| {
            let members = subsets.iter().cycle().skip(first).take(together);
            let (names, classes): (Vec<&str>, Vec<&[u16]>) = members.map(|(n, c)| (n.as_str(), c.as_slice())).unzip();
            (names.join("+"), classes.concat())
        })
        .collect()
}

/// Seconds of all stages of one frame, one thread, median.
fn frame_seconds(package: &Package) -> anyhow::Result<f64> {
    const FRAMES: usize = 200;
    let mut engine = Engine::load(package)?;
    let mut frame = engine.frame();
    let image = random_image(package.manifest().input.values(), 5);
    let mut seconds = Vec::with_capacity(FRAMES);
    for _ in 0..FRAMES {
        engine.start(&mut frame, &image)?;
        let start = Instant::now();
        for stage in 0..engine.stages() {
            engine.run_stage(stage, &mut frame)?;
        }
        seconds.push(start.elapsed().as_secs_f64());
    }
    Ok(median(&mut seconds))
}
