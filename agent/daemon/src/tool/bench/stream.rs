//! `offramp bench stream`: frames a second of the agent on streams of a subset, beside the whole network in ONNX
//! Runtime, and the accuracy of both.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, bail};
use clap::Args;
use offramp_camera::ImageSet;
use offramp_core::{Facts, LearnerSettings, Settings, SplitMix64};
use offramp_model::Package;
use offramp_proto::Parameter;
use serde::Serialize;

use super::engine::{Peer, Peers, python};
use crate::evaluate;
use crate::judge::{PolicyJudge, PolicySource, Workshop};
use crate::lane::{BuiltIn, Single};
use crate::package;
use crate::terminal::{self, Table, percent};
use crate::tool::{self, Images};

/// Frames after which the peer has its turn, and frames of that.
const BLOCK: usize = 250;
const PEER_FRAMES: usize = 10;

/// Settings of the stream bench.
#[derive(Args, Debug)]
pub struct StreamBench {
    /// Package: a directory or a name.
    #[arg(default_value = "revcol-cifar100")]
    package: String,
    /// Folder with `cifar-100/`, for packages whose images are not embedded.
    #[arg(long, value_name = "DIR", env = "OFFRAMP_DATA")]
    data: Option<PathBuf>,
    /// Only this subset of classes, as the package names it; without it, each of them.
    #[arg(long, value_name = "NAME")]
    subset: Option<String>,
    /// Frames of a stream.
    #[arg(long, default_value_t = 3_000)]
    frames: usize,
    /// Confidences from which the threshold policy lets frames leave.
    #[arg(long, value_delimiter = ',', default_values_t = [0.15, 0.2, 0.25, 0.3, 0.4, 0.5])]
    thresholds: Vec<f64>,
    /// Python with onnxruntime, onnx and numpy; without it, one is set up in the user's cache.
    #[arg(long, value_name = "PROGRAM")]
    python: Option<PathBuf>,
    /// Print one JSON array, an object for each threshold.
    #[arg(long)]
    json: bool,
}

/// What a threshold gives, mean over the subsets.
#[derive(Debug, Default, Serialize)]
struct Row {
    threshold: f64,
    /// Share of right predictions on the subset's test images after the stream, `0..=1`.
    accuracy: f64,
    /// Of the whole network as it was trained.
    full_accuracy: f64,
    /// Multiply-adds, as a share of the whole network's.
    cost: f64,
    /// On the stream, learning and audits included.
    agent_ms: f64,
    /// The whole network in ONNX Runtime, in turns with it.
    onnxruntime_ms: f64,
    /// Frames per second of the agent over ONNX Runtime's: the median of turns.
    ratio: f64,
    /// The least of any subset.
    least_ratio: f64,
}

struct Bench<'a> {
    package: &'a Package,
    images: &'a Images,
    workshop: Workshop,
    peers: Peers,
    frames: usize,
}

impl Bench<'_> {
    /// One subset at one threshold, added to the row; `full_accuracy` is left out.
    fn run(&mut self, classes: &[u16], row: &mut Row) -> anyhow::Result<Vec<f64>> {
        let settings = package::settings(self.package);
        let mut single = Single::new(self.package, settings, 1)?;
        let parameters = [("threshold".to_owned(), Parameter::Number(row.threshold))].into();
        let mut judge = PolicyJudge::new(self.workshop.prepare(&PolicySource::threshold(parameters))?);
        let pool = self.images.stream.of_classes(classes);
        let stream = tool::shuffled(pool, self.frames, &mut SplitMix64(1));
        let (mut agent_ms, mut peer_ms, mut ratios) = (0.0, 0.0, Vec::new());
        let blocks = stream.chunks(BLOCK);
        let turns = blocks.len() as f64;
        for (number, block) in blocks.enumerate() {
            let start = Instant::now();
            for (frame, index) in block.iter().enumerate() {
                let pixels = self.images.stream.pixels(*index as usize).unwrap_or_default();
                let frame = (number * BLOCK + frame) as u64;
                single.run(frame, pixels, Facts::default(), &mut judge)?;
                single.lane.learn();
            }
            let agent = start.elapsed().as_secs_f64() * 1e3 / block.len() as f64;
            let peer = self.peers.round("onnxruntime", 1, PEER_FRAMES)?;
            agent_ms += agent / turns;
            peer_ms += peer / turns;
            ratios.push(peer / agent);
        }
        row.agent_ms += agent_ms;
        row.onnxruntime_ms += peer_ms;
        // As the heads are now.
        let frozen = Settings {
            audit_rate: 0.0,
            learner: LearnerSettings {
                enabled: false,
                ..settings.learner
            },
            ..settings
        };
        single.lane.core.set_settings(frozen)?;
        let test = self.images.evaluation.of_classes(classes);
        let (mut right, mut macs) = (0u64, 0u64);
        for index in &test {
            let pixels = self.images.evaluation.pixels(*index as usize).unwrap_or_default();
            let prediction = single.run((*index).into(), pixels, Facts::default(), &mut judge)?;
            let label = self.images.evaluation.labels()[*index as usize];
            right += u64::from(prediction.class == u32::from(label));
            macs += prediction.macs;
        }
        let n = test.len().max(1) as f64;
        row.accuracy += right as f64 / n;
        row.cost += macs as f64 / n / single.lane.core.full_macs() as f64;
        Ok(ratios)
    }
}

/// Accuracy of the whole network on the test images of each subset.
fn full_accuracies(package: &Package, test: &ImageSet, subsets: &[Vec<u16>]) -> anyhow::Result<Vec<f64>> {
    let mut single = Single::new(package, tool::measuring(package, 1.0), 1)?;
    let all: Vec<u32> = (0..).take(test.len()).collect();
    let mut sums = vec![(0u64, 0u64); subsets.len()];
    let bar = terminal::progress(test.len() as u64, "the whole network");
    evaluate::run(&mut single, &mut BuiltIn, test, &all, |outcome| {
        bar.inc(1);
        for (subset, (right, seen)) in subsets.iter().zip(&mut sums) {
            if subset.contains(&outcome.label) {
                *seen += 1;
                *right += u64::from(outcome.exits.last() == Some(&u32::from(outcome.label)));
            }
        }
    })?;
    bar.finish_and_clear();
    let share = |(right, seen): &(u64, u64)| *right as f64 / (*seen).max(1) as f64;
    Ok(sums.iter().map(share).collect())
}

/// Runs the bench.
///
/// # Errors
/// When the package or its images are refused, or the peer cannot be set up.
pub fn stream(bench: &StreamBench) -> anyhow::Result<()> {
    let package = package::open(&bench.package)?;
    let images = tool::images(&package, bench.data.as_deref())?;
    let known = &package.manifest().subsets;
    let mut subsets: Vec<Vec<u16>> = Vec::new();
    for (name, classes) in known {
        if bench.subset.as_ref().is_none_or(|wanted| wanted == name) {
            subsets.push(classes.iter().map(|class| *class as u16).collect());
        }
    }
    if subsets.is_empty() {
        let known = known.keys().cloned().collect::<Vec<_>>().join(", ");
        bail!("package {} has no such subset; it has {known}", package.manifest().name);
    }
    let python = python(bench.python.as_deref(), false)?;
    let image = super::random_image(package.manifest().input.values(), 7);
    let peers = Peers::start(&package, &image, &python, false).context("ONNX Runtime")?;
    let full = full_accuracies(&package, &images.evaluation, &subsets)?;
    let n = subsets.len() as f64;
    let full_accuracy = full.iter().sum::<f64>() / n;
    let mut all = Bench {
        package: &package,
        images: &images,
        workshop: Workshop::new(&package)?,
        peers,
        frames: bench.frames,
    };
    let bar = terminal::progress((subsets.len() * bench.thresholds.len()) as u64, "streams");
    let mut rows = Vec::new();
    for threshold in &bench.thresholds {
        let mut row = Row {
            threshold: *threshold,
            full_accuracy,
            least_ratio: f64::INFINITY,
            ..Row::default()
        };
        let mut ratios = Vec::new();
        for classes in &subsets {
            let mut of_subset = all.run(classes, &mut row)?;
            row.least_ratio = row.least_ratio.min(super::median(&mut of_subset));
            ratios.append(&mut of_subset);
            bar.inc(1);
        }
        for sum in [
            &mut row.accuracy,
            &mut row.cost,
            &mut row.agent_ms,
            &mut row.onnxruntime_ms,
        ] {
            *sum /= n;
        }
        row.ratio = super::median(&mut ratios);
        rows.push(row);
    }
    bar.finish_and_clear();
    if bench.json {
        return Ok(terminal::line(&serde_json::to_string(&rows)?)?);
    }
    let peers: Vec<String> = all.peers.there().iter().map(Peer::label).collect();
    terminal::line(&format!(
        "{}: {} subsets, streams of {} frames; the whole network in {}, one thread: {}\n",
        package.manifest().name,
        subsets.len(),
        bench.frames,
        peers.join(", "),
        percent(full_accuracy)
    ))?;
    let mut table = Table::new([
        "threshold",
        "accuracy",
        "points",
        "cost",
        "frames/s",
        "times ONNX Runtime",
        "least",
    ]);
    for row in &rows {
        table.row([
            format!("{:.2}", row.threshold),
            percent(row.accuracy),
            format!("{:+.1}", 100.0 * (row.accuracy - row.full_accuracy)),
            percent(row.cost),
            format!("{:.0}", 1e3 / row.agent_ms),
            format!("{:.2}", row.ratio),
            format!("{:.2}", row.least_ratio),
        ]);
    }
    Ok(terminal::line(table.to_string().trim_end())?)
}
