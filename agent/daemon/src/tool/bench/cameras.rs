//! `offramp bench cameras`: several cameras at one engine, beside as many agents of one camera each.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use clap::Args;
use offramp_camera::{Camera, Frame, FrameShape, ImageSet, Playback};
use offramp_core::Prediction;
use offramp_model::Package;
use offramp_proto::{DeviceId, TenantId};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::agent::{Agent, DropPolicy, MAX_CAMERAS, Options, Source};
use crate::judge::PolicySource;
use crate::terminal::{self, Table};
use crate::{package, tool};

/// Shares of what the cameras can be served at most, at which latencies are measured.
const LOADS: [f64; 3] = [0.5, 0.8, 1.5];
/// Seconds that a load lasts.
const LOAD_SECONDS: f64 = 5.0;

/// Settings of the cameras bench.
#[derive(Args, Debug)]
pub struct CamerasBench {
    /// Package: a directory or a name.
    #[arg(default_value = package::EMBEDDED)]
    package: String,
    /// Cameras.
    #[arg(long, default_value_t = 8)]
    cameras: usize,
    /// Frames of each camera in a round.
    #[arg(long, default_value_t = 2_000)]
    frames: usize,
    /// Rounds; the two ways take turns, and medians are shown.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Milliseconds from a frame's arrival to its prediction, where latencies are measured.
    #[arg(long, default_value_t = 50.0)]
    deadline_ms: f64,
    /// Folder with `cifar-100/`, for packages whose images are not embedded; random images without it.
    #[arg(long, value_name = "DIR", env = "OFFRAMP_DATA")]
    data: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// One of several agents: waits for a line, runs, and prints what it measured.
    #[arg(long, hide = true)]
    alone: bool,
}

/// What a run showed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Measured {
    /// Of the first prediction and the last, in microseconds since 1970.
    first: u64,
    last: u64,
    predicted: u64,
    dropped: u64,
    hurried: u64,
    /// Of every frame, from its arrival to its prediction, in microseconds.
    #[serde(skip)]
    latencies: Vec<u64>,
    /// Largest resident memory of the process so far, in bytes; 0 where the system does not tell.
    resident: u64,
}

impl Measured {
    fn fps(&self) -> f64 {
        self.predicted as f64 * 1e6 / self.last.saturating_sub(self.first).max(1) as f64
    }

    /// Milliseconds within which a share of the frames got their predictions.
    fn latency(&self, share: f64) -> f64 {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let place = (sorted.len() as f64 * share) as usize;
        sorted
            .get(place.min(sorted.len().saturating_sub(1)))
            .copied()
            .unwrap_or(0) as f64
            / 1e3
    }
}

/// How fast frames come.
#[derive(Clone, Copy)]
struct Pace {
    every: Duration,
    deadline: Duration,
}

/// Shows nothing before it is told to.
struct Held<C> {
    camera: C,
    go: Option<Receiver<()>>,
}

impl<C: Camera> Camera for Held<C> {
    fn shape(&self) -> FrameShape {
        self.camera.shape()
    }

    fn next(&mut self, frame: &mut Frame) -> Result<bool, offramp_camera::Error> {
        if let Some(go) = self.go.take() {
            // Whoever would tell has gone: nobody waits for the frames.
            if go.recv().is_err() {
                return Ok(false);
            }
        }
        self.camera.next(frame)
    }
}

/// A package and what its cameras show.
struct Scene {
    package: Package,
    images: Arc<ImageSet>,
}

impl Scene {
    fn open(bench: &CamerasBench) -> anyhow::Result<Self> {
        let package = package::open(&bench.package)?;
        let labelled = tool::images(&package, bench.data.as_deref()).map(|images| images.stream);
        let images = labelled.or_else(|_| random_images(&package))?;
        Ok(Self {
            package,
            images: Arc::new(images),
        })
    }

    /// Runs an agent whose cameras show so many frames each, from places of their own.
    fn run(
        &self,
        cameras: usize,
        frames: usize,
        pace: Option<Pace>,
        go: Option<Receiver<()>>,
    ) -> anyhow::Result<Measured> {
        let folder = tempfile::tempdir().context("no temporary folder")?;
        let measured = Arc::new(Mutex::new(Measured {
            first: u64::MAX,
            latencies: Vec::with_capacity(cameras * frames),
            ..Measured::default()
        }));
        let mut go = go;
        let sources = (0..cameras).map(|camera| {
            let shown = self.images.len();
            let order = (0..frames).map(|n| ((n + camera * 611) % shown) as u32).collect();
            let camera_of = Held {
                camera: Playback::new(Arc::clone(&self.images), order)?,
                go: go.take(),
            };
            let measured = Arc::clone(&measured);
            let listener = move |prediction: &Prediction, _: &Frame, _: &[String]| {
                let now = SystemTime::now().duration_since(UNIX_EPOCH);
                let now = now.map_or(0, |since| since.as_micros() as u64);
                let mut measured = measured.lock().expect("no listener panics");
                measured.first = measured.first.min(now);
                measured.last = measured.last.max(now);
                measured.latencies.push(prediction.latency_us);
            };
            Ok(Source {
                name: if cameras == 1 {
                    String::new()
                } else {
                    format!("camera-{camera}")
                },
                drop: if pace.is_some() {
                    DropPolicy::Oldest
                } else {
                    DropPolicy::Never
                },
                deadline: pace.map(|pace| pace.deadline),
                frame_every: pace.map(|pace| pace.every),
                ..Source::new(Box::new(camera_of), Box::new(listener))
            })
        });
        let (device, tenant) = (DeviceId::new("bench")?, TenantId::new("bench")?);
        let policy = PolicySource::threshold([].into());
        let state = folder.path().join("state.redb");
        let options = Options {
            summary_every: Duration::from_secs(1),
            ..Options::new(device, tenant, policy, package::settings(&self.package), state)
        };
        let sources = sources.collect::<anyhow::Result<Vec<_>>>()?;
        let outcome = Agent::start(options, &self.package, sources)?.join();
        let mut measured = std::mem::take(&mut *measured.lock().expect("no listener panics"));
        for camera in outcome.cameras {
            measured.predicted += camera.predicted;
            measured.dropped += camera.dropped;
            measured.hurried += camera.hurried;
        }
        measured.resident = super::memory("self", "VmHWM").unwrap_or(0);
        Ok(measured)
    }
}

fn random_images(package: &Package) -> anyhow::Result<ImageSet> {
    /// As few as fill no cache, and as many as differ.
    const IMAGES: usize = 16;
    let input = &package.manifest().input;
    let shape = FrameShape::new(input.height, input.width, input.channels)?;
    let pixels = super::random_pixels(IMAGES * shape.bytes(), 3);
    Ok(ImageSet::new(shape, pixels, vec![0; IMAGES])?)
}

/// Agents of one camera each, in processes of their own, at the same time. Gives what they did together.
fn apart(bench: &CamerasBench, agents: usize) -> anyhow::Result<Measured> {
    let program = std::env::current_exe().context("this program cannot be found")?;
    let mut children = Vec::new();
    for _ in 0..agents {
        let mut command = Command::new(&program);
        command
            .args([
                "bench",
                "cameras",
                &bench.package,
                "--alone",
                "--cameras",
                "1",
                "--frames",
            ])
            .arg(bench.frames.to_string());
        if let Some(data) = &bench.data {
            command.arg("--data").arg(data);
        }
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        children.push(Stopped(child.context("an agent does not start")?));
    }
    let mut outputs = Vec::new();
    for Stopped(child) in &mut children {
        let mut output = BufReader::new(child.stdout.take().context("an agent's output")?);
        let mut line = String::new();
        output.read_line(&mut line)?;
        ensure!(
            line.trim() == "ready",
            "an agent does not get ready: its message stands above"
        );
        outputs.push(output);
    }
    for Stopped(child) in &mut children {
        writeln!(child.stdin.as_mut().context("an agent's input")?)?;
    }
    let mut all = Measured {
        first: u64::MAX,
        ..Measured::default()
    };
    for mut output in outputs {
        let mut line = String::new();
        output.read_line(&mut line)?;
        let one: Measured = serde_json::from_str(&line).context("an agent ended early")?;
        all.first = all.first.min(one.first);
        all.last = all.last.max(one.last);
        all.predicted += one.predicted;
        all.resident += one.resident;
    }
    Ok(all)
}

/// A process that ends with its owner.
struct Stopped(Child);

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One of the agents of [`apart`].
fn alone(bench: &CamerasBench) -> anyhow::Result<()> {
    let scene = Scene::open(bench)?;
    let (told, go) = channel();
    std::thread::spawn(move || {
        let _ = terminal::line("ready");
        let mut line = String::new();
        if std::io::stdin().read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
            let _ = told.send(());
        }
    });
    let measured = scene.run(1, bench.frames, None, Some(go))?;
    Ok(terminal::line(&serde_json::to_string(&measured)?)?)
}

/// Runs the bench.
///
/// # Errors
/// When the package is refused or an agent does not run.
pub fn cameras(bench: &CamerasBench) -> anyhow::Result<()> {
    if bench.alone {
        return alone(bench);
    }
    ensure!(
        (1..=MAX_CAMERAS).contains(&bench.cameras),
        "--cameras must be between 1 and {MAX_CAMERAS}"
    );
    let scene = Scene::open(bench)?;
    let bar = terminal::progress(3 * bench.rounds as u64, &scene.package.manifest().name);
    let (mut together, mut separate, mut single) = (Vec::new(), Vec::new(), Vec::new());
    let (mut resident_together, mut resident_apart) = (0, 0);
    for _ in 0..bench.rounds {
        let run = scene.run(bench.cameras, bench.frames, None, None)?;
        together.push(run.fps());
        resident_together = resident_together.max(run.resident);
        bar.inc(1);
        let run = apart(bench, bench.cameras)?;
        separate.push(run.fps());
        resident_apart = resident_apart.max(run.resident);
        bar.inc(1);
        single.push(apart(bench, 1)?.fps());
        bar.inc(1);
    }
    bar.finish_and_clear();
    let ratio = |of: &[f64], to: &[f64]| {
        let mut ratios: Vec<f64> = of.iter().zip(to).map(|(a, b)| a / b).collect();
        super::median(&mut ratios)
    };
    let (to_apart, to_single) = (ratio(&together, &separate), ratio(&together, &single));
    let [together, separate, single] = [&mut together, &mut separate, &mut single].map(|fps| super::median(fps));
    let deadline = Duration::from_secs_f64(bench.deadline_ms / 1e3);
    let mut loads = Vec::new();
    for load in LOADS {
        let fps = together * load / bench.cameras as f64;
        let pace = Pace {
            every: Duration::from_secs_f64(1.0 / fps),
            deadline,
        };
        let frames = (fps * LOAD_SECONDS) as usize;
        loads.push((load, scene.run(bench.cameras, frames, Some(pace), None)?));
    }
    let n = bench.cameras;
    if bench.json {
        let loads = loads.iter().map(|(load, run)| {
            json!({
                "load": load, "fps": run.fps(), "p50_ms": run.latency(0.5), "p99_ms": run.latency(0.99),
                "predicted": run.predicted, "dropped": run.dropped, "hurried": run.hurried,
            })
        });
        let object = json!({
            "package": scene.package.manifest().name, "cameras": n, "together_fps": together, "apart_fps": separate,
            "one_fps": single, "ratio_to_apart": to_apart, "ratio_to_one": to_single,
            "resident_together": resident_together, "resident_apart": resident_apart,
            "deadline_ms": bench.deadline_ms, "loads": loads.collect::<Vec<_>>(),
        });
        return Ok(terminal::line(&object.to_string())?);
    }
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let mut table = Table::new([scene.package.manifest().name.as_str(), "frames/s", "ratio", "resident"]);
    table
        .row([
            format!("{n} cameras, one agent"),
            format!("{together:.0}"),
            String::new(),
            mib(resident_together),
        ])
        .row([
            format!("{n} agents of one camera, at once"),
            format!("{separate:.0}"),
            format!("{to_apart:.2}"),
            mib(resident_apart),
        ])
        .row([
            "one agent of one camera".into(),
            format!("{single:.0}"),
            format!("{to_single:.2}"),
            String::new(),
        ]);
    terminal::line(&table.to_string())?;
    let mut table = Table::new(["load", "frames/s", "p50 ms", "p99 ms", "dropped", "hurried"]);
    for (load, run) in &loads {
        let share = |part: u64| terminal::percent(part as f64 / (run.predicted + run.dropped).max(1) as f64);
        table.row([
            format!("{:.0} %", load * 100.0),
            format!("{:.0}", run.fps()),
            format!("{:.2}", run.latency(0.5)),
            format!("{:.2}", run.latency(0.99)),
            share(run.dropped),
            share(run.hurried),
        ]);
    }
    terminal::line(&table.to_string())?;
    let note = format!(
        "deadline {} ms, newest first; load is the share of what {n} cameras are served when frames never end",
        bench.deadline_ms
    );
    Ok(terminal::line(&note)?)
}
