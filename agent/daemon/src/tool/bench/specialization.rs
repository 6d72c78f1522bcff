//! `offramp bench specialization`: what specialization gains and costs, beside the rules it is compared with.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, bail};
use clap::Args;
use offramp_bench::{Features, Outcome, Row, Study, Variant, curves, frozen_settings, gain_over_poster, rows};
use offramp_bench::{Opinions, csv};
use offramp_camera::ImageSet;
use offramp_core::SplitMix64;
use offramp_engine::Engine;
use offramp_model::Package;
use serde_json::json;

use crate::terminal::{self, Table, percent};
use crate::{package, tool};

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
    let (stream, test) = features(&package, bench.data.as_deref())?;
    let settings = package::settings(&package);
    let subsets = manifest.subsets.iter();
    let study = Study {
        network: package::network(&package)?,
        stream: &stream,
        test: &test,
        subsets: subsets
            .map(|(name, classes)| (name.clone(), classes.iter().map(|class| *class as u16).collect()))
            .collect(),
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
    let runs = variants.len() * study.subsets.len() * study.seeds as usize;
    let bar = terminal::progress(runs as u64, "streams");
    let outcomes = study.run(&variants, || bar.inc(1))?;
    bar.finish_and_clear();
    let results = Results::of(&study, &package, &variants, &outcomes)?;
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

/// Everything that is printed.
struct Results {
    exits: Vec<f64>,
    rows: Vec<Row>,
    over_poster: Option<offramp_bench::Interval>,
    uniform: offramp_bench::Uniform,
    long: [f64; 2],
    change: offramp_bench::SubsetChange,
    learning_time_share: f64,
    learning_us: f64,
    bytes: u64,
}

impl Results {
    fn of(study: &Study<'_>, package: &Package, variants: &[Variant], outcomes: &[Outcome]) -> anyhow::Result<Self> {
        let settings = variants[0].settings;
        let frozen = study.core(frozen_settings())?;
        let all: Vec<usize> = (0..study.test.len()).collect();
        // Long streams and changes are shown on a few subsets: they say whether, not how much.
        let few: Vec<usize> = (0..study.subsets.len())
            .step_by(study.subsets.len().div_ceil(5))
            .collect();
        let spent = study.learning_time(settings)?.as_secs_f64();
        Ok(Self {
            exits: Opinions::of(&frozen, study.test, &all).alone(),
            rows: rows(variants, outcomes),
            over_poster: gain_over_poster(variants, outcomes, 0),
            uniform: study.uniform(settings)?,
            long: study.long(settings, &few)?,
            change: study.change(settings, &few)?,
            learning_time_share: spent / frame_seconds(package)?,
            learning_us: spent * 1e6,
            bytes: study.core(settings)?.bytes(),
        })
    }

    fn json(&self) -> serde_json::Value {
        let default = &self.rows[0];
        let variants: serde_json::Map<String, serde_json::Value> =
            self.rows.iter().map(|row| (row.name.clone(), json!(row))).collect();
        json!({
            "exit_accuracy": self.exits,
            "subset_gain": default.subset_gain, "all_loss": default.all_loss,
            "gain_over_poster": self.over_poster.map(|i| i.mean),
            "gain_over_poster_low": self.over_poster.map(|i| i.low),
            "mean_speedup": default.mean_speedup, "min_speedup": default.min_speedup, "all_cost": default.all_cost,
            "fixed_tau_cost": default.fixed_tau_cost, "fixed_tau_accuracy_gain": default.fixed_tau_accuracy_gain,
            "uniform_accuracy_delta": self.uniform.accuracy_delta, "uniform_cost_delta": self.uniform.cost_delta,
            "decay_20000": self.long[1] / self.long[0],
            "change": self.change,
            "learning_time_share": self.learning_time_share, "learning_us": self.learning_us, "bytes": self.bytes,
            "variants": variants,
        })
    }

    fn text(&self, study: &Study<'_>) -> String {
        let points = |x: f64| format!("{:+.1}", x * 100.0);
        let exits: Vec<String> = self.exits.iter().map(|a| percent(*a)).collect();
        let mut table = Table::new([
            "variant",
            "subset gain",
            "95 %",
            "all lose",
            "speed-up",
            "least",
            "all cost",
            "at the threshold",
            "upkeep",
        ]);
        for row in &self.rows {
            let interval = row.subset_gain_interval;
            table.row([
                row.name.clone(),
                points(row.subset_gain),
                format!("{}..{}", points(interval.low), points(interval.high)),
                format!("{:.2}", row.all_loss * 100.0),
                format!("{:.2}x", row.mean_speedup),
                format!("{:.2}x", row.min_speedup),
                format!("{:+.1} %", row.all_cost * 100.0),
                format!("x{:.2} {}", row.fixed_tau_cost, points(row.fixed_tau_accuracy_gain)),
                format!("{:.2} %", row.upkeep * 100.0),
            ]);
        }
        let on_the_way = study.checkpoints.iter().zip(&self.rows[0].gain_on_the_way);
        let on_the_way: Vec<String> = on_the_way
            .map(|(frames, share)| format!("{frames}: {:.0} %", share * 100.0))
            .collect();
        let over = self.over_poster.map_or_else(
            || "the poster's rule does not do as much harm at any rate tried".to_owned(),
            |i| {
                format!(
                    "{} points ({} to {}) ahead of the poster's rule at equal harm",
                    points(i.mean),
                    points(i.low),
                    points(i.high)
                )
            },
        );
        let segments = |s: &[f64; 3]| s.map(points).join(" ");
        format!(
            "exits: {}\n{} subsets, {} streams of {} frames each, threshold {}; accuracies in points at equal cost, \
             costs with learning and audits\n\n{table}\n\
             default: {over}\n\
             share of the gain after frames: {}\n\
             all classes alike: accuracy {}, cost {:+.1} %\n\
             20,000 frames of one subset: gain {} after 5,000, {} after 20,000\n\
             A, B, A again: accuracy in the stream {} (one context), {} (a context each); \
             {:.0} % of the gain 50 frames after the return\n\
             learning and guard: {:.1} µs per frame, {:.2} % of the stages' time; {} of memory per camera\n",
            exits.join(" "),
            study.subsets.len(),
            study.seeds,
            study.frames,
            study.threshold,
            on_the_way.join(", "),
            points(self.uniform.accuracy_delta),
            self.uniform.cost_delta * 100.0,
            points(self.long[0]),
            points(self.long[1]),
            segments(&self.change.one_context),
            segments(&self.change.own_contexts),
            self.change.regained * 100.0,
            self.learning_us,
            self.learning_time_share * 100.0,
            format_args!("{:.1} MB", self.bytes as f64 / 1e6),
        )
    }
}

/// Seconds of all stages of one frame, one thread, median.
fn frame_seconds(package: &Package) -> anyhow::Result<f64> {
    const FRAMES: usize = 200;
    let mut engine = Engine::load(package)?;
    let mut frame = engine.frame();
    let mut random = SplitMix64(5);
    let mut image = vec![0.0; package.manifest().input.values()];
    image.fill_with(|| (random.next() >> 40) as f32 / 8_388_608.0 - 1.0);
    let mut seconds = Vec::with_capacity(FRAMES);
    for _ in 0..FRAMES {
        engine.start(&mut frame, &image)?;
        let start = Instant::now();
        for stage in 0..engine.stages() {
            engine.run_stage(stage, &mut frame)?;
        }
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[FRAMES / 2])
}

/// Features of the stream's and of the test images: from the user's cache, or made and put there.
fn features(package: &Package, data: Option<&Path>) -> anyhow::Result<(Features, Features)> {
    let cache = super::cache()?.join("features");
    let digest = package.digest();
    let paths = ["stream", "test"].map(|split| cache.join(format!("{}-{split}.features", digest.short())));
    let read = |path: &Path| Features::read(path).ok().filter(|f| f.digest == *digest.as_bytes());
    if let (Some(stream), Some(test)) = (read(&paths[0]), read(&paths[1])) {
        return Ok((stream, test));
    }
    let images = tool::images(package, data)?;
    fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let [stream, test] = [&images.stream, &images.evaluation].map(|set| extract(package, set));
    let (stream, test) = (stream?, test?);
    stream.write(&paths[0])?;
    test.write(&paths[1])?;
    Ok((stream, test))
}

fn extract(package: &Package, images: &ImageSet) -> anyhow::Result<Features> {
    let manifest = package.manifest();
    let mut engine = Engine::load(package)?;
    let mut frame = engine.frame();
    let mut image = vec![0.0; manifest.input.values()];
    let widths = manifest.exits.iter().map(|exit| exit.features);
    let mut exits: Vec<(usize, Vec<f32>)> = widths.map(|c| (c, Vec::with_capacity(c * images.len()))).collect();
    let bar = terminal::progress(images.len() as u64, "features (once)");
    for index in 0..images.len() {
        let pixels = images.pixels(index).unwrap_or_default();
        manifest.input.normalize(pixels, &mut image);
        engine.start(&mut frame, &image)?;
        for (stage, (_, numbers)) in exits.iter_mut().enumerate() {
            numbers.extend_from_slice(engine.run_stage(stage, &mut frame)?);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(Features {
        digest: *package.digest().as_bytes(),
        classes: manifest.classes.len(),
        labels: images.labels().to_vec(),
        exits,
    })
}
