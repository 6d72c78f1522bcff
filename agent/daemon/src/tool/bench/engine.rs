//! `offramp bench engine`: tract beside ONNX Runtime, and what the agent adds.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, bail};
use clap::Args;
use offramp_core::{Facts, SplitMix64};
use offramp_engine::Engine;
use offramp_model::Package;
use serde_json::json;

use super::{median, random_image};
use crate::judge::{PolicyJudge, PolicySource, Workshop};
use crate::lane::Lane;
use crate::package;
use crate::terminal::{self, Table};

/// What the peer runs; it reads rounds from its standard input.
const PEER: &str = include_str!("../../../../../tests/bench/onnxruntime_peer.py");
/// Pinned: a figure without its version is no figure.
const REQUIREMENTS: &str = include_str!("../../../../../tests/bench/requirements.txt");

/// Settings of the engine bench.
#[derive(Args, Debug)]
pub struct EngineBench {
    /// Packages: directories or names.
    #[arg(default_value = package::EMBEDDED)]
    packages: Vec<String>,
    /// Rounds; tract and ONNX Runtime take turns, and medians are shown.
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
    let python = match &bench.python {
        Some(python) => python.clone(),
        None => set_up_python()?,
    };
    let mut rows = Vec::new();
    for name in &bench.packages {
        rows.push(measure(&package::open(name)?, &python, bench)?);
    }
    if bench.json {
        return Ok(terminal::line(
            &json!(rows.iter().map(Row::json).collect::<Vec<_>>()).to_string(),
        )?);
    }
    for row in &rows {
        terminal::line(&row.table())?;
    }
    Ok(())
}

/// What was measured of one package, on one thread.
struct Row {
    package: String,
    /// Milliseconds of each stage in tract.
    stages: Vec<f64>,
    /// Milliseconds of all stages in tract.
    tract: f64,
    /// Milliseconds of the whole graph in ONNX Runtime.
    peer: f64,
    peer_version: String,
    /// Milliseconds of a frame in the agent, all the way, learning included.
    agent: f64,
    /// Of these, outside of the stages.
    overhead: f64,
}

impl Row {
    fn json(&self) -> serde_json::Value {
        json!({
            "package": self.package, "threads": 1, "tract_ms": self.tract, "tract_stage_ms": self.stages,
            "onnxruntime_ms": self.peer, "onnxruntime": self.peer_version, "ratio_to_onnxruntime": self.tract / self.peer,
            "agent_ms": self.agent, "overhead_ms": self.overhead, "overhead_share": self.overhead / self.agent,
        })
    }

    fn table(&self) -> String {
        let mut table = Table::new([self.package.as_str(), "ms per frame", "ratio"]);
        for (stage, ms) in self.stages.iter().enumerate() {
            table.row([format!("tract, stage {}", stage + 1), format!("{ms:.3}"), String::new()]);
        }
        let ratio = |ms: f64| format!("{:.2}", ms / self.peer);
        table.row([
            "tract, all stages".into(),
            format!("{:.3}", self.tract),
            ratio(self.tract),
        ]);
        table.row([
            format!("ONNX Runtime {}", self.peer_version),
            format!("{:.3}", self.peer),
            ratio(self.peer),
        ]);
        let share = terminal::percent(self.overhead / self.agent);
        format!(
            "{table}\nagent beside the stages: {:.4} ms per frame, {share} (heads, policy in WebAssembly, learning)\n",
            self.overhead
        )
    }
}

fn measure(package: &Package, python: &Path, bench: &EngineBench) -> anyhow::Result<Row> {
    let mut peer = Peer::start(package, python)?;
    let mut engine = Engine::load(package)?;
    let mut frame = engine.frame();
    let image = random_image(package.manifest().input.values(), 7);
    let stages = engine.stages();
    let bar = terminal::progress(bench.rounds as u64, &package.manifest().name);
    let (mut stage_ms, mut tract_ms, mut peer_ms) = (vec![Vec::new(); stages], Vec::new(), Vec::new());
    for round in 0..=bench.rounds {
        let mut sums = vec![0.0; stages];
        for _ in 0..bench.frames {
            engine.start(&mut frame, &image)?;
            for (stage, sum) in sums.iter_mut().enumerate() {
                let start = Instant::now();
                engine.run_stage(stage, &mut frame)?;
                *sum += start.elapsed().as_secs_f64() * 1e3 / bench.frames as f64;
            }
        }
        let peer_round = peer.round(bench.frames)?;
        // The first round warms up.
        if round > 0 {
            tract_ms.push(sums.iter().sum::<f64>());
            for (all, ms) in stage_ms.iter_mut().zip(sums) {
                all.push(ms);
            }
            peer_ms.push(peer_round);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let (agent, overhead) = overhead(package, bench.rounds * bench.frames)?;
    Ok(Row {
        package: package.manifest().name.clone(),
        stages: stage_ms.iter_mut().map(|ms| median(ms)).collect(),
        tract: median(&mut tract_ms),
        peer: median(&mut peer_ms),
        peer_version: peer.version.clone(),
        agent,
        overhead,
    })
}

/// Milliseconds of a frame that goes all the way through the agent, and of these outside of the stages.
fn overhead(package: &Package, frames: usize) -> anyhow::Result<(f64, f64)> {
    let mut lane = Lane::new(package, package::settings(package), 1)?;
    // Nobody is ever sure enough: every exit asks the policy, and every frame teaches all heads.
    let never = [("threshold".to_owned(), offramp_proto::Parameter::Number(1.0))];
    let mut judge = PolicyJudge::new(Workshop::new(package)?.prepare(&PolicySource::threshold(never.into()))?);
    let mut settings = *lane.core.settings();
    settings.learner.gate = 0.0;
    lane.core.set_settings(settings)?;
    let mut pixels = vec![0; package.manifest().input.values()];
    let mut random = SplitMix64(9);
    pixels.fill_with(|| random.next() as u8);
    let warm_up = frames / 10 + 1;
    for frame in 0..warm_up + frames {
        if frame == warm_up {
            lane.core.close_window();
        }
        lane.run(frame as u64, &pixels, Facts::default(), &mut judge, |_| ())?;
        lane.learn();
    }
    let cost = lane.core.close_window().cost;
    let ms = |us: u64| us as f64 / 1e3 / frames as f64;
    Ok((ms(cost.stage_us + cost.overhead_us), ms(cost.overhead_us)))
}

/// ONNX Runtime in a Python of its own.
struct Peer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    version: String,
    _folder: tempfile::TempDir,
}

impl Peer {
    fn start(package: &Package, python: &Path) -> anyhow::Result<Self> {
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
    fn round(&mut self, frames: usize) -> anyhow::Result<f64> {
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
