//! `offramp bench engine`: our kernels beside tract's, ONNX Runtime and PyTorch, and what the agent adds.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use offramp_engine::{Engine, Frame, Kernels, Offload, Progress, Provider};
use offramp_model::Package;
use serde_json::json;

use super::{Counting, median, random_image};
use crate::package;
use crate::terminal::{self, Table};

mod agent;
mod peers;

use agent::Start;
pub(super) use peers::{Peer, Peers, python};

/// Frames of a batch: as many cameras may well wait at the same stage.
const TOGETHER: usize = 8;
/// What an engine may take of a round, in milliseconds.
const ROUND_MS: f64 = 250.0;
/// Starts of the agent, of which the median is shown.
const STARTS: usize = 5;

/// Settings of the engine bench.
#[derive(Args, Debug)]
pub struct EngineBench {
    /// Packages: directories or names.
    #[arg(default_value = package::EMBEDDED)]
    packages: Vec<String>,
    /// Rounds; the engines take turns, and medians are shown.
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// Frames of a round, or as many as an engine does in a quarter of a second.
    #[arg(long, default_value_t = 50)]
    frames: usize,
    /// Threads for one frame.
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    threads: Vec<usize>,
    /// Compare with PyTorch, too.
    #[arg(long)]
    pytorch: bool,
    /// Python with onnxruntime, onnx and numpy, and torch for --pytorch; without it, one is set up in the user's
    /// cache.
    #[arg(long, value_name = "PROGRAM")]
    python: Option<PathBuf>,
    /// Print one JSON array.
    #[arg(long)]
    json: bool,
}

/// Runs the bench.
///
/// # Errors
/// When a package is refused or the peers cannot be set up.
pub fn engine(bench: &EngineBench) -> anyhow::Result<()> {
    anyhow::ensure!(
        bench.threads.iter().all(|threads| (1..=64).contains(threads)),
        "--threads: each from 1 to 64"
    );
    let python = python(bench.python.as_deref(), bench.pytorch)?;
    let mut measured = Vec::new();
    for name in &bench.packages {
        measured.push(measure(name, &python, bench)?);
    }
    if bench.json {
        let rows = measured.iter().flat_map(Measured::json);
        return Ok(terminal::line(&json!(rows.collect::<Vec<_>>()).to_string())?);
    }
    for of_package in &measured {
        terminal::line(&of_package.table())?;
    }
    Ok(())
}

/// What takes turns with others.
enum Contender {
    /// Our kernels.
    Fused(Engine),
    /// Our kernels, [`TOGETHER`] frames at a time.
    Together(Engine),
    /// ONNX Runtime, as many.
    OffloadedTogether(Engine),
    Tract(Engine),
    /// ONNX Runtime's library in this process, as the offload runs it: a session for each stage.
    Offloaded(Engine),
    Peer(Peer),
}

impl Contender {
    /// Mean milliseconds of each stage of a frame; where they cannot be told apart, of all together.
    fn round(&mut self, threads: usize, frames: usize, image: &[f32], peers: &mut Peers) -> anyhow::Result<Vec<f64>> {
        match self {
            Self::Fused(engine) | Self::Tract(engine) | Self::Offloaded(engine) => stage_times(engine, image, frames),
            Self::Together(engine) | Self::OffloadedTogether(engine) => {
                Ok(vec![batch_time(engine, image, frames, TOGETHER)?])
            }
            Self::Peer(peer) => Ok(vec![peers.round(&peer.name, threads, frames)?]),
        }
    }

    fn label(&self) -> String {
        match self {
            Self::Fused(_) => "fused".into(),
            Self::Together(_) => format!("fused, {TOGETHER} frames at a time"),
            Self::OffloadedTogether(_) => format!("onnxruntime, stage by stage, {TOGETHER} frames at a time"),
            Self::Tract(_) => "tract".into(),
            Self::Offloaded(_) => "onnxruntime, stage by stage".into(),
            Self::Peer(peer) => peer.label(),
        }
    }
}

/// The rounds of a contender.
struct Row {
    contender: Contender,
    threads: usize,
    /// Frames of a round.
    frames: usize,
    /// Milliseconds of each stage, per round.
    rounds: Vec<Vec<f64>>,
    /// Bytes that a frame asks the allocator for, where what runs it is ours to count.
    allocated: Option<u64>,
}

impl Row {
    fn total(&self, round: usize) -> f64 {
        self.rounds[round].iter().sum()
    }

    /// Median milliseconds of a frame.
    fn ms(&self) -> f64 {
        median(
            &mut (0..self.rounds.len())
                .map(|round| self.total(round))
                .collect::<Vec<_>>(),
        )
    }

    /// Median milliseconds of each stage, where they can be told apart.
    fn stages(&self) -> Vec<f64> {
        let apart = matches!(
            self.contender,
            Contender::Fused(_) | Contender::Tract(_) | Contender::Offloaded(_)
        );
        let stages = self.rounds.first().filter(|_| apart).map_or(0, Vec::len);
        let of = |stage: usize| median(&mut self.rounds.iter().map(|round| round[stage]).collect::<Vec<_>>());
        (0..stages).map(of).collect()
    }
}

/// What was measured of one package.
struct Measured {
    package: String,
    /// Multiply-adds of a frame.
    macs: u64,
    rows: Vec<Row>,
    /// The instruction set of our kernels, and for each number of threads the multiply-adds per second that its
    /// registers can do, in each round.
    isa: &'static str,
    peaks: Vec<(usize, Vec<f64>)>,
    /// Milliseconds of a frame in the agent, all the way, learning included, and of these outside of the stages.
    agent: f64,
    overhead: f64,
    start: Start,
}

impl Measured {
    fn gflops(&self, ms: f64) -> f64 {
        2.0 * self.macs as f64 / ms / 1e6
    }

    /// How much of the peak a row reaches: the median over the rounds.
    fn share_of_peak(&self, row: &Row) -> Option<f64> {
        let (_, peaks) = self.peaks.iter().find(|(threads, _)| *threads == row.threads)?;
        let share = |round: usize| self.macs as f64 / (row.total(round) / 1e3) / peaks[round];
        Some(median(&mut (0..row.rounds.len()).map(share).collect::<Vec<_>>()))
    }

    /// A row's time over that of a peer on as many threads: the median over the rounds.
    fn ratio(&self, row: &Row, peer: &str) -> Option<f64> {
        let other = self.rows.iter().find(|other| {
            let is_peer = matches!(&other.contender, Contender::Peer(there) if there.name == peer);
            is_peer && other.threads == row.threads
        })?;
        let ratio = |round: usize| row.total(round) / other.total(round);
        Some(median(&mut (0..row.rounds.len()).map(ratio).collect::<Vec<_>>()))
    }

    fn json(&self) -> Vec<serde_json::Value> {
        let mut rows = Vec::new();
        for row in &self.rows {
            let ms = row.ms();
            let mut value = json!({
                "package": self.package, "engine": row.contender.label(), "threads": row.threads, "ms": ms,
                "gflops": self.gflops(ms), "ratio_to_onnxruntime": self.ratio(row, "onnxruntime"),
                "ratio_to_pytorch": self.ratio(row, "pytorch"), "share_of_peak": self.share_of_peak(row),
            });
            let stages = row.stages();
            if !stages.is_empty() {
                value["stage_ms"] = json!(stages);
            }
            if let Some(bytes) = row.allocated {
                value["allocated_bytes"] = json!(bytes);
            }
            if let Contender::Fused(_) = row.contender {
                value["isa"] = json!(self.isa);
            }
            rows.push(value);
        }
        rows.push(json!({
            "package": self.package, "engine": "agent", "threads": 1, "ms": self.agent,
            "gflops": self.gflops(self.agent), "overhead_ms": self.overhead,
            "overhead_share": self.overhead / self.agent, "start_ms": self.start.ms,
            "resident_bytes": self.start.resident,
        }));
        rows
    }

    fn table(&self) -> String {
        let pytorch = self.rows.iter().any(|row| self.ratio(row, "pytorch").is_some());
        let mut headings = vec![
            self.package.as_str(),
            "threads",
            "ms per frame",
            "GFLOP/s",
            "of peak",
            "allocated",
            "/ ORT",
        ];
        headings.extend(pytorch.then_some("/ PyTorch"));
        let mut table = Table::new(headings);
        for row in &self.rows {
            let ms = row.ms();
            let ratio = |peer: &str| {
                self.ratio(row, peer)
                    .map_or_else(String::new, |ratio| format!("{ratio:.2}"))
            };
            let share = self.share_of_peak(row).map_or_else(String::new, terminal::percent);
            let (threads, gflops) = (row.threads.to_string(), format!("{:.1}", self.gflops(ms)));
            let label = row.contender.label();
            let mut cells = vec![
                label,
                threads.clone(),
                format!("{ms:.3}"),
                gflops,
                share,
                row.allocated.map_or_else(String::new, |bytes| format!("{bytes} B")),
                ratio("onnxruntime"),
            ];
            cells.extend(pytorch.then(|| ratio("pytorch")));
            table.row(cells);
            for (stage, ms) in row.stages().into_iter().enumerate() {
                let mut cells = vec![format!("  stage {}", stage + 1), threads.clone(), format!("{ms:.3}")];
                cells.resize(7 + usize::from(pytorch), String::new());
                table.row(cells);
            }
        }
        let peaks = self.peaks.iter().map(|(threads, peaks)| {
            let peak = 2.0 * median(&mut peaks.clone()) / 1e9;
            format!("{peak:.0} GFLOP/s on {threads}")
        });
        let resident = self.start.resident.map_or_else(String::new, |bytes| {
            format!(", {:.0} MB in memory then", bytes as f64 / 1e6)
        });
        format!(
            "{table}\npeak ({}): {}\nagent beside the stages: {:.4} ms per frame, {} (heads, policy in WebAssembly, \
             learning)\nagent from its start to the first prediction: {:.0} ms{resident}\n",
            self.isa,
            peaks.collect::<Vec<_>>().join(", "),
            self.overhead,
            terminal::percent(self.overhead / self.agent),
            self.start.ms,
        )
    }
}

/// The milliseconds that each stage takes, mean over some frames.
pub(in crate::tool) fn stage_times(engine: &mut Engine, image: &[f32], frames: usize) -> anyhow::Result<Vec<f64>> {
    let mut frame = engine.frame();
    let mut sums = vec![0.0; engine.stages()];
    for _ in 0..frames {
        engine.start(&mut frame, image)?;
        for (stage, sum) in sums.iter_mut().enumerate() {
            let start = Instant::now();
            engine.run_stage(stage, &mut frame)?;
            *sum += start.elapsed().as_secs_f64() * 1e3 / frames as f64;
        }
    }
    Ok(sums)
}

/// The milliseconds per frame of all stages, when some frames are run at a time.
pub(in crate::tool) fn batch_time(
    engine: &mut Engine,
    image: &[f32],
    frames: usize,
    together: usize,
) -> anyhow::Result<f64> {
    let mut batch = vec![engine.frame(); together];
    let rounds = frames.div_ceil(together);
    let start = Instant::now();
    for _ in 0..rounds {
        for frame in &mut batch {
            engine.start(frame, image)?;
        }
        let mut all: Vec<&mut Frame> = batch.iter_mut().collect();
        for stage in 0..engine.stages() {
            engine.run_stage_of(stage, &mut all)?;
        }
    }
    Ok(start.elapsed().as_secs_f64() * 1e3 / (rounds * together) as f64)
}

/// Bytes that a frame asks the allocator for, once every buffer has its size.
fn allocated(engine: &mut Engine, image: &[f32]) -> anyhow::Result<u64> {
    const FRAMES: u64 = 25;
    let mut frame = engine.frame();
    let mut show = || {
        for _ in 0..FRAMES {
            engine.start(&mut frame, image)?;
            (0..engine.stages()).try_for_each(|stage| engine.run_stage(stage, &mut frame).map(|_| ()))?;
        }
        Ok(())
    };
    show()?;
    Ok(Counting::while_running(show)? / FRAMES)
}

/// The features behind each stage.
fn features(engine: &mut Engine, image: &[f32]) -> anyhow::Result<Vec<Vec<f32>>> {
    let mut frame = engine.frame();
    engine.start(&mut frame, image)?;
    let stages = 0..engine.stages();
    Ok(stages
        .map(|stage| engine.run_stage(stage, &mut frame).map(<[f32]>::to_vec))
        .collect::<Result<_, _>>()?)
}

/// Checks that our kernels give what another engine does, to 1e-4 of the range of a stage's features.
fn agree(package: &str, ours: &[Vec<f32>], theirs: &[Vec<f32>], engine: &str) -> anyhow::Result<()> {
    let lengths = |all: &[Vec<f32>]| all.iter().map(Vec::len).collect::<Vec<_>>();
    anyhow::ensure!(
        lengths(ours) == lengths(theirs),
        "{package}: our kernels and {engine} give features of other lengths"
    );
    for (stage, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        let range = theirs.iter().fold(0.0_f32, |range, x| range.max(x.abs()));
        let far = |(a, b): (&f32, &f32)| {
            let apart = (a - b).abs();
            (apart.is_nan() || apart > 1e-4 * range).then_some(apart)
        };
        if let Some(apart) = ours.iter().zip(theirs).find_map(far) {
            anyhow::bail!(
                "{package}: stage {}: our kernels and {engine} differ by {apart:.2e} where features reach {range:.2e}",
                stage + 1
            );
        }
    }
    Ok(())
}

/// A package's stages in ONNX Runtime, on so many threads.
fn offloaded(package: &Package, threads: usize, peers: &Peers) -> anyhow::Result<Engine> {
    let mut engine = Engine::load(package)?;
    let offload = Offload {
        library: Some(peers.told.library.clone()),
        providers: vec![Provider::Cpu],
        threads,
        batch: TOGETHER,
        ..Offload::new(PathBuf::new())
    };
    engine.offload(package, offload)?;
    engine.wait_for_offload();
    for (stage, state) in engine.stage_states().iter().enumerate() {
        anyhow::ensure!(
            state.progress == Progress::Working,
            "{}: stage {}: {state}",
            package.label(),
            stage + 1
        );
    }
    Ok(engine)
}

/// Everything that is compared, each with its number of threads.
fn contenders(package: &Package, threads: &[usize], peers: &Peers) -> anyhow::Result<Vec<(Contender, usize)>> {
    let mut contenders = Vec::new();
    let (tract, alone) = (Engine::load_with(package, Kernels::Tract)?, Engine::load(package)?);
    for &threads in threads {
        contenders.push((Contender::Tract(tract.clone().with_threads(threads)?), threads));
        let engine = alone.clone().with_threads(threads)?;
        contenders.push((Contender::Fused(engine.clone()), threads));
        contenders.push((Contender::Together(engine), threads));
        if cfg!(feature = "onnxruntime") {
            let engine = offloaded(package, threads, peers)?;
            contenders.push((Contender::Offloaded(engine.clone()), threads));
            contenders.push((Contender::OffloadedTogether(engine), threads));
        }
        let there = peers.there().iter().cloned();
        contenders.extend(there.map(|peer| (Contender::Peer(peer), threads)));
    }
    Ok(contenders)
}

fn measure(name: &str, python: &Path, bench: &EngineBench) -> anyhow::Result<Measured> {
    let package = package::open(name)?;
    let manifest = package.manifest();
    let image = random_image(manifest.input.values(), 7);
    let mut peers = Peers::start(&package, &image, python, bench.pytorch)?;
    let ours = features(&mut Engine::load(&package)?, &image)?;
    let tract = features(&mut Engine::load_with(&package, Kernels::Tract)?, &image)?;
    agree(package.label(), &ours, &tract, "tract")?;
    agree(package.label(), &ours, &peers.told.features, "ONNX Runtime")?;
    let bar = terminal::progress(bench.rounds as u64, &manifest.name);
    let mut rows = Vec::new();
    for (mut contender, threads) in contenders(&package, &bench.threads, &peers)? {
        // What warms up tells how many frames a round has.
        let mut warm_up = || contender.round(threads, 1, &image, &mut peers);
        let first: f64 = warm_up()?.iter().sum();
        let second: f64 = warm_up()?.iter().sum();
        let allocated = match &mut contender {
            Contender::Fused(engine) | Contender::Tract(engine) => Some(allocated(engine, &image)?),
            _ => None,
        };
        rows.push(Row {
            allocated,
            contender,
            threads,
            frames: bench.frames.min((ROUND_MS / first.min(second)) as usize).max(1),
            rounds: Vec::new(),
        });
    }
    let alone = Engine::load(&package)?;
    let mut gauges = Vec::new();
    for &threads in &bench.threads {
        gauges.push((alone.clone().with_threads(threads)?, threads, Vec::new()));
    }
    for _ in 0..bench.rounds {
        for row in &mut rows {
            let times = row.contender.round(row.threads, row.frames, &image, &mut peers)?;
            row.rounds.push(times);
        }
        for (engine, _, peaks) in &mut gauges {
            peaks.push(engine.peak().1);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let frames = rows.iter().map(|row| row.frames).max().unwrap_or(1);
    let (agent, overhead) = agent::overhead(&package, bench.rounds * frames)?;
    let mut starts = (0..STARTS)
        .map(|_| agent::start(&package, name))
        .collect::<anyhow::Result<Vec<_>>>()?;
    starts.sort_by(|a, b| a.ms.total_cmp(&b.ms));
    Ok(Measured {
        package: manifest.name.clone(),
        macs: manifest.stages.iter().map(|stage| stage.macs).sum(),
        rows,
        isa: alone.peak().0,
        peaks: gauges.into_iter().map(|(_, threads, peaks)| (threads, peaks)).collect(),
        agent,
        overhead,
        start: starts[STARTS / 2],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_json_has_the_fields_that_scripts_read() {
        let package = package::open(package::EMBEDDED).unwrap();
        let engine = Engine::load(&package).unwrap();
        let peer: Peer = serde_json::from_value(json!({"name": "onnxruntime", "version": "1"})).unwrap();
        let row = |contender, rounds| Row {
            contender,
            threads: 1,
            frames: 1,
            rounds,
            allocated: Some(64),
        };
        let measured = Measured {
            package: "net".into(),
            macs: 1_000_000,
            rows: vec![
                row(Contender::Fused(engine), vec![vec![1.0, 1.0]; 3]),
                row(Contender::Peer(peer), vec![vec![4.0]; 3]),
            ],
            isa: "portable",
            peaks: vec![(1, vec![2e9; 3])],
            agent: 3.0,
            overhead: 1.0,
            start: Start {
                ms: 5.0,
                resident: None,
            },
        };
        let rows = measured.json();
        let engines: Vec<_> = rows.iter().map(|row| row["engine"].as_str().unwrap()).collect();
        assert_eq!(engines, ["fused", "onnxruntime 1", "agent"]);
        for row in &rows {
            assert_eq!((&row["package"], &row["threads"]), (&json!("net"), &json!(1)));
            assert!(row["ms"].is_f64() && row["gflops"].is_f64(), "{row}");
        }
        assert_eq!(rows[0]["ratio_to_onnxruntime"], 0.5);
        assert_eq!(rows[0]["stage_ms"], json!([1.0, 1.0]));
        assert_eq!(rows[0]["allocated_bytes"], 64);
        assert_eq!(
            (&rows[0]["gflops"], &rows[0]["share_of_peak"]),
            (&json!(1.0), &json!(0.25))
        );
        assert_eq!(rows[2]["start_ms"], 5.0);
    }

    #[test]
    fn what_a_frame_asks_the_allocator_for_is_counted() {
        // More than all other tests ask for meanwhile: by `alloc_zeroed`, `alloc` and `realloc`.
        const LARGE: usize = 1 << 30;
        let counted = Counting::while_running(|| {
            drop(std::hint::black_box(vec![0_u8; LARGE]));
            drop(std::hint::black_box(Vec::<u8>::with_capacity(LARGE)));
            let mut grown = std::hint::black_box(vec![1_u8]);
            grown.reserve_exact(LARGE - 1);
            Ok(())
        });
        let counted = counted.unwrap() as usize;
        assert!((3 * LARGE..4 * LARGE).contains(&counted), "{counted}");
    }

    #[test]
    fn engines_that_give_something_else_are_not_timed() {
        let ours = [vec![1.0, -100.0]];
        agree("net", &ours, &[vec![1.009, -100.0]], "tract").unwrap();
        for other in [vec![1.011, -100.0], vec![f32::NAN, -100.0], vec![1.0]] {
            assert!(agree("net", &ours, &[other], "tract").is_err());
        }
    }
}
