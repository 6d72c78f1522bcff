//! What the agent adds to the stages, and what it takes to start.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, bail};
use offramp_core::Facts;
use offramp_model::Package;

use crate::judge::{PolicyJudge, PolicySource, Workshop};
use crate::lane::Single;
use crate::package;

/// Milliseconds of a frame that goes all the way through the agent, and of these outside of the stages.
pub(super) fn overhead(package: &Package, frames: usize) -> anyhow::Result<(f64, f64)> {
    let mut single = Single::new(package, package::settings(package), 1)?;
    // Nobody is ever sure enough: every exit asks the policy, and every frame teaches all heads.
    let never = [("threshold".to_owned(), offramp_proto::Parameter::Number(1.0))];
    let mut judge = PolicyJudge::new(Workshop::new(package)?.prepare(&PolicySource::threshold(never.into()))?);
    let mut settings = *single.lane.core.settings();
    settings.learner.gate = 0.0;
    single.lane.core.set_settings(settings)?;
    let pixels = pixels(package);
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

fn pixels(package: &Package) -> Vec<u8> {
    super::super::random_pixels(package.manifest().input.values(), 9)
}

/// What it takes to start.
#[derive(Clone, Copy)]
pub(super) struct Start {
    /// Milliseconds from the start of the process to its first prediction.
    pub(super) ms: f64,
    /// Memory in use then, in bytes, shared pages of files included; where the system tells.
    pub(super) resident: Option<u64>,
}

/// Starts this program as an agent with a package, shows it one image, and waits for the prediction.
pub(super) fn start(package: &Package, name: &str) -> anyhow::Result<Start> {
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("agent.toml");
    // A directory is named as it is seen from here.
    let model = fs::canonicalize(name).map_or_else(|_| name.to_owned(), |path| path.display().to_string());
    let quoted = |text: &str| toml::Value::from(text).to_string();
    let state = folder.path().join("state");
    let text = format!(
        "[device]\nid = \"bench\"\n[model]\npackage = {}\n[camera]\nsource = \"stdin\"\n[state]\npath = {}\n",
        quoted(&model),
        quoted(&state.display().to_string()),
    );
    fs::write(&config, text)?;
    let start = Instant::now();
    let mut agent = Command::new(std::env::current_exe()?)
        .args(["run", "--config"])
        .arg(&config)
        .env("RUST_LOG", "error")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("this program cannot be started as an agent")?;
    let mut input = agent.stdin.take().context("the agent's input")?;
    input.write_all(&pixels(package))?;
    let mut line = String::new();
    BufReader::new(agent.stdout.take().context("the agent's output")?).read_line(&mut line)?;
    let ms = start.elapsed().as_secs_f64() * 1e3;
    let resident = super::super::memory(&agent.id().to_string(), "VmRSS");
    // The camera has ended, and with it the agent.
    drop(input);
    let status = agent.wait()?;
    if line.is_empty() || !status.success() {
        bail!("the agent gave no prediction ({status}): its message stands above");
    }
    Ok(Start { ms, resident })
}
