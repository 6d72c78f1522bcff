//! `offramp bench engine`: our kernels beside tract's and ONNX Runtime, and what the agent adds.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, bail};
use clap::Args;
use offramp_core::{Facts, SplitMix64};
use offramp_engine::{Engine, Frame, Kernels};
use offramp_model::Package;
use serde_json::json;

use super::{median, random_image};
use crate::judge::{PolicyJudge, PolicySource, Workshop};
use crate::lane::Single;
use crate::package;
use crate::terminal::{self, Table};

/// What the peer runs; it reads rounds from its standard input.
const PEER: &str = include_str!("../../../../../tests/bench/onnxruntime_peer.py");
/// Pinned: a figure without its version is no figure.
const REQUIREMENTS: &str = include_str!("../../../../../tests/bench/requirements.txt");

/// Frames of a batch: as many cameras may well wait at the same stage.
const TOGETHER: usize = 8;

/// Settings of the engine bench.
#[derive(Args, Debug)]
pub struct EngineBench {
    /// Packages: directories or names.
    #[arg(default_value = package::EMBEDDED)]
    packages: Vec<String>,
    /// Rounds; the engines take turns, and medians are shown.
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// Frames of a round.
    #[arg(long, default_value_t = 50)]
    frames: usize,
    /// Python with onnxruntime, onnx and numpy; without it, one is set up in the user's cache.
    #[arg(long, value_name = "PROGRAM")]
    python: Option<PathBuf>,
    /// Print one JSON array.
    #[arg(long)]
    json: bool,
}

/// Runs the bench.
///
/// # Errors
/// When a package is refused or the peer cannot be set up.
pub fn engine(bench: &EngineBench) -> anyhow::Result<()> {
    let python = python(bench.python.as_deref())?;
    let mut rows = Vec::new();
    for name in &bench.packages {
        rows.push(measure(&package::open(name)?, &python, bench)?);
    }
    if bench.json {
        return Ok(terminal::line(
            &json!(rows.iter().flat_map(Row::json).collect::<Vec<_>>()).to_string(),
        )?);
    }
    for row in &rows {
        terminal::line(&row.table())?;
    }
    Ok(())
}

/// What was measured of one package, on one thread: milliseconds per frame.
struct Row {
    package: String,
    /// Multiply-adds of a frame.
    macs: u64,
    /// Each stage with our kernels.
    stages: Vec<f64>,
    /// All stages with our kernels.
    fused: f64,
    /// All stages with our kernels, [`TOGETHER`] frames at a time.
    together: f64,
    /// All stages with tract's kernels.
    tract: f64,
    /// The whole graph in ONNX Runtime.
    peer: f64,
    peer_version: String,
    /// A frame in the agent, all the way, learning included.
    agent: f64,
    /// Of these, outside of the stages.
    overhead: f64,
}

impl Row {
    /// Engine and time.
    fn engines(&self) -> [(String, f64); 4] {
        [
            ("fused".to_owned(), self.fused),
            (format!("fused, {TOGETHER} frames at a time"), self.together),
            ("tract".to_owned(), self.tract),
            (format!("onnxruntime {}", self.peer_version), self.peer),
        ]
    }

    fn gflops(&self, ms: f64) -> f64 {
        2.0 * self.macs as f64 / ms / 1e6
    }

    fn json(&self) -> impl Iterator<Item = serde_json::Value> {
        let row = |engine: &str, ms: f64| {
            json!({
                "package": self.package, "engine": engine, "threads": 1, "ms": ms, "gflops": self.gflops(ms),
                "ratio_to_onnxruntime": ms / self.peer,
            })
        };
        let mut rows: Vec<serde_json::Value> = self.engines().iter().map(|(engine, ms)| row(engine, *ms)).collect();
        rows[0]["stage_ms"] = json!(self.stages);
        let mut agent = row("agent", self.agent);
        agent["overhead_ms"] = json!(self.overhead);
        agent["overhead_share"] = json!(self.overhead / self.agent);
        rows.push(agent);
        rows.into_iter()
    }

    fn table(&self) -> String {
        let mut table = Table::new([self.package.as_str(), "ms per frame", "GFLOP/s", "ratio"]);
        for (stage, ms) in self.stages.iter().enumerate() {
            let name = format!("fused, stage {}", stage + 1);
            table.row([name, format!("{ms:.3}"), String::new(), String::new()]);
        }
        for (engine, ms) in self.engines() {
            let (gflops, ratio) = (format!("{:.1}", self.gflops(ms)), format!("{:.2}", ms / self.peer));
            table.row([engine, format!("{ms:.3}"), gflops, ratio]);
        }
        let share = terminal::percent(self.overhead / self.agent);
        format!(
            "{table}\nagent beside the stages: {:.4} ms per frame, {share} (heads, policy in WebAssembly, learning)\n",
            self.overhead
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
fn batch_time(engine: &mut Engine, image: &[f32], frames: usize) -> anyhow::Result<f64> {
    let mut batch = vec![engine.frame(); TOGETHER];
    let rounds = frames.div_ceil(TOGETHER);
    let start = Instant::now();
    for _ in 0..rounds {
        for frame in &mut batch {
            engine.start(frame, image)?;
        }
        let mut together: Vec<&mut Frame> = batch.iter_mut().collect();
        for stage in 0..engine.stages() {
            engine.run_stage_of(stage, &mut together)?;
        }
    }
    Ok(start.elapsed().as_secs_f64() * 1e3 / (rounds * TOGETHER) as f64)
}

fn measure(package: &Package, python: &Path, bench: &EngineBench) -> anyhow::Result<Row> {
    let mut peer = Peer::start(package, python)?;
    let manifest = package.manifest();
    let mut fused = Engine::load(package)?;
    let mut tract = Engine::load_with(package, Kernels::Tract)?;
    let image = random_image(manifest.input.values(), 7);
    let bar = terminal::progress(bench.rounds as u64, &manifest.name);
    let mut stage_ms = vec![Vec::new(); fused.stages()];
    let [mut fused_ms, mut together_ms, mut tract_ms, mut peer_ms] = [const { Vec::new() }; 4];
    for round in 0..=bench.rounds {
        let stages = stage_times(&mut fused, &image, bench.frames)?;
        let together = batch_time(&mut fused, &image, bench.frames)?;
        let tract_stages = stage_times(&mut tract, &image, bench.frames)?;
        let peer_round = peer.round(bench.frames)?;
        // The first round warms up.
        if round > 0 {
            fused_ms.push(stages.iter().sum::<f64>());
            together_ms.push(together);
            tract_ms.push(tract_stages.iter().sum::<f64>());
            peer_ms.push(peer_round);
            for (all, ms) in stage_ms.iter_mut().zip(stages) {
                all.push(ms);
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let (agent, overhead) = overhead(package, bench.rounds * bench.frames)?;
    Ok(Row {
        package: manifest.name.clone(),
        macs: manifest.stages.iter().map(|stage| stage.macs).sum(),
        stages: stage_ms.iter_mut().map(|ms| median(ms)).collect(),
        fused: median(&mut fused_ms),
        together: median(&mut together_ms),
        tract: median(&mut tract_ms),
        peer: median(&mut peer_ms),
        peer_version: peer.version.clone(),
        agent,
        overhead,
    })
}

/// Milliseconds of a frame that goes all the way through the agent, and of these outside of the stages.
fn overhead(package: &Package, frames: usize) -> anyhow::Result<(f64, f64)> {
    let mut single = Single::new(package, package::settings(package), 1)?;
    // Nobody is ever sure enough: every exit asks the policy, and every frame teaches all heads.
    let never = [("threshold".to_owned(), offramp_proto::Parameter::Number(1.0))];
    let mut judge = PolicyJudge::new(Workshop::new(package)?.prepare(&PolicySource::threshold(never.into()))?);
    let mut settings = *single.lane.core.settings();
    settings.learner.gate = 0.0;
    single.lane.core.set_settings(settings)?;
    let mut pixels = vec![0; package.manifest().input.values()];
    let mut random = SplitMix64(9);
    pixels.fill_with(|| random.next() as u8);
    let warm_up = frames / 10 + 1;
    for frame in 0..warm_up + frames {
        if frame == warm_up {
            single.lane.core.close_window();
        }
        single.run(frame as u64, &pixels, Facts::default(), &mut judge)?;
        single.lane.learn();
    }
    let cost = single.lane.core.close_window().cost;
    let ms = |us: u64| us as f64 / 1e3 / frames as f64;
    Ok((ms(cost.stage_us + cost.overhead_us), ms(cost.overhead_us)))
}

/// ONNX Runtime in a Python of its own.
pub(super) struct Peer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    pub(super) version: String,
    _folder: tempfile::TempDir,
}

impl Peer {
    pub(super) fn start(package: &Package, python: &Path) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut files = Vec::new();
        for (stage, bytes) in package.stages().enumerate() {
            let path = folder.path().join(format!("stage-{stage}.onnx"));
            fs::write(&path, bytes)?;
            files.push(path);
        }
        // How the stages' tensors hang together is the manifest's to say.
        let manifest = package.manifest();
        let stages: Vec<_> = manifest
            .stages
            .iter()
            .zip(&files)
            .map(|(stage, file)| {
                json!({"file": file, "inputs": stage.inputs, "features": stage.features, "state": stage.state})
            })
            .collect();
        let input = &manifest.input;
        let plan = json!({"stages": stages, "image": [1, input.height, input.width, input.channels]});
        let mut child = Command::new(python)
            .args(["-c", PEER])
            .arg(plan.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", python.display()))?;
        let input = child.stdin.take().context("the peer's input")?;
        let output = BufReader::new(child.stdout.take().context("the peer's output")?);
        let mut peer = Self {
            child,
            input,
            output,
            version: String::new(),
            _folder: folder,
        };
        peer.version = peer.answer()?;
        Ok(peer)
    }

    fn answer(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            bail!("ONNX Runtime ended early: its message stands above");
        }
        Ok(line.trim().to_owned())
    }

    /// Mean milliseconds over some frames.
    pub(super) fn round(&mut self, frames: usize) -> anyhow::Result<f64> {
        writeln!(self.input, "{frames}")?;
        self.input.flush()?;
        Ok(self.answer()?.parse()?)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The Python that was given, or one that is set up for it.
pub(super) fn python(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    given.map_or_else(set_up_python, |python| Ok(python.into()))
}

/// A Python environment with what the peer needs, made once.
fn set_up_python() -> anyhow::Result<PathBuf> {
    let folder = super::cache().context("or give --python")?.join("bench-python");
    let python = folder.join("bin/python");
    let stamp = folder.join("requirements.txt");
    if fs::read_to_string(&stamp).is_ok_and(|have| have == REQUIREMENTS) {
        return Ok(python);
    }
    eprintln!("setting up ONNX Runtime in {} (once)", folder.display());
    fs::create_dir_all(&folder)?;
    let wanted = folder.join("wanted.txt");
    fs::write(&wanted, REQUIREMENTS)?;
    let run = |command: &mut Command| -> anyhow::Result<()> {
        let status = command
            .stdout(Stdio::null())
            .status()
            .with_context(|| format!("cannot start {command:?}"))?;
        if !status.success() {
            bail!("{command:?} failed; install Python 3.9 or newer with its venv module, or give --python");
        }
        Ok(())
    };
    run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
    run(Command::new(&python)
        .args(["-m", "pip", "install", "--quiet", "-r"])
        .arg(&wanted))?;
    fs::rename(&wanted, &stamp)?;
    Ok(python)
}
