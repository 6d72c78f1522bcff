//! `offramp run`: the agent as configured.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use offramp_camera::{Camera, Folder, FrameShape, Pipe, Playback, Raw, sample};
use offramp_core::Settings;
use offramp_link::Credentials;
use offramp_model::Package;
use offramp_policy::LadderRules;
use serde_json::json;

use crate::agent::{Agent, Fleet, Listener, Options, SetLog, Source};
use crate::config::{self, Config, Trace};
use crate::judge::{PolicySource, chain};
use crate::package;
use crate::tool::policy::{public_key, verify};
#[cfg(unix)]
use crate::tool::service;

/// Largest policy component in bytes that is read from a file.
const MAX_POLICY: u64 = 4 * 1024 * 1024;

/// Runs the agent of a configuration file, from the model's own heads if it is to `forget`; predictions go to
/// standard output as JSON lines.
///
/// # Errors
/// When the configuration, the model or the policy is refused, or the store cannot be used.
pub fn run(path: &Path, forget: bool, set_log: SetLog) -> anyhow::Result<()> {
    let config = Config::open(path)?;
    let package = package::open(&config.model.package)?;
    let input = &package.manifest().input;
    let shape = FrameShape::new(input.height, input.width, input.channels)?;
    let mut sources = Vec::new();
    for (name, camera) in config.all_cameras() {
        let context = camera.context.as_ref().unwrap_or(&config.context);
        sources.push(Source {
            name: name.to_owned(),
            listener: printer(name),
            camera: open(camera, shape)?,
            context: context.source(),
            drop: camera.drop,
            deadline: camera.deadline(),
            frame_every: camera.frame_every(),
        });
    }
    let (name, learner) = (config.model.package.clone(), config.learner);
    let contexts = config.remembered();
    let tuned = move |package: &Package| Settings {
        contexts,
        ..learner.over(package::settings(package))
    };
    let options = Options {
        forget,
        log: Some(set_log),
        tune: Some(Arc::new(tuned)),
        // Its bytes need not stay in memory.
        reopen: Some(Arc::new(move || package::open(&name).map_err(|error| chain(&error)))),
        ..options(config, &package)?
    };
    #[cfg(unix)]
    let signals = Signals::hear()?;
    let agent = Agent::start(options, &package, sources)?;
    // The engine has made of it what it needs.
    drop(package);
    #[cfg(unix)]
    signals.turn(agent.stop_switch())?;
    #[cfg(unix)]
    service::ready(agent.pulse())?;
    for camera in agent.join().cameras {
        tracing::info!(
            camera = camera.name,
            frames = camera.arrived,
            predictions = camera.predicted,
            dropped = camera.dropped,
            "the camera has ended"
        );
    }
    Ok(())
}

fn open(camera: &config::Camera, shape: FrameShape) -> anyhow::Result<Box<dyn Camera>> {
    let path = camera.path.as_deref().unwrap_or(Path::new(""));
    Ok(match camera.source {
        config::Source::Sample => Box::new(Playback::whole(sample::stream()?.into())),
        config::Source::Folder => Box::new(Folder::open(path, shape)?),
        config::Source::Stdin => Box::new(Raw::new(io::stdin(), shape)),
        config::Source::Pipe => Box::new(Pipe::open(path, shape)?),
    })
}

/// SIGTERM and Ctrl-C, heard from the making of it on.
#[cfg(unix)]
struct Signals {
    runtime: tokio::runtime::Runtime,
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn hear() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let inside = runtime.enter();
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        drop(inside);
        Ok(Self {
            runtime,
            terminate,
            interrupt,
        })
    }

    /// An orderly end where one is asked for: what was learned is stored, and the fleet hears of it. Who asks again
    /// does not want to wait.
    fn turn(mut self, stop: Arc<AtomicBool>) -> io::Result<()> {
        /// Who asks once may send several signals.
        const ONCE: Duration = Duration::from_secs(1);
        let wait = move || {
            let mut next = || {
                self.runtime.block_on(async {
                    tokio::select! {
                        _ = self.terminate.recv() => {}
                        _ = self.interrupt.recv() => {}
                    }
                });
            };
            next();
            tracing::info!("a signal asks for the end");
            service::stopping();
            stop.store(true, Ordering::Relaxed);
            let first = Instant::now();
            loop {
                next();
                if first.elapsed() > ONCE {
                    std::process::exit(1);
                }
            }
        };
        let thread = std::thread::Builder::new().name("offramp-signals".into());
        thread.spawn(wait).map(drop)
    }
}

/// Writes predictions as JSON lines.
fn printer(camera: &str) -> Listener {
    let camera = Some(camera.to_owned()).filter(|name| !name.is_empty());
    Box::new(move |prediction, frame, classes| {
        let mut line = json!({
            "frame": prediction.frame,
            "name": frame.name,
            "class": prediction.class,
            "label": classes.get(prediction.class as usize),
            "confidence": prediction.confidence,
            "exit": prediction.exit,
            "macs": prediction.macs,
            "ms": prediction.latency_us as f64 / 1e3,
        });
        if let Some(camera) = &camera {
            line["camera"] = json!(camera);
        }
        // Whoever reads waits for this very line, not for a full buffer. Other cameras write, too: a line at a time.
        let mut text = line.to_string();
        text.push('\n');
        let mut out = io::stdout().lock();
        if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            if error.kind() != io::ErrorKind::BrokenPipe {
                tracing::error!(%error, "predictions cannot be written");
            }
            std::process::exit(i32::from(error.kind() != io::ErrorKind::BrokenPipe));
        }
    })
}

fn options(config: Config, package: &Package) -> anyhow::Result<Options> {
    let policy = match &config.policy.file {
        None => {
            let name = config.policy.name.as_deref().unwrap_or("threshold");
            PolicySource::shipped(name, config.policy.parameters.clone()).context("policy.name is not shipped")?
        }
        Some(path) => {
            let read = || format!("policy {} cannot be read", path.display());
            if fs::metadata(path).with_context(read)?.len() > MAX_POLICY {
                bail!("policy {} is larger than {MAX_POLICY} bytes", path.display());
            }
            let name = path
                .file_stem()
                .map_or_else(|| "policy".into(), |stem| stem.to_string_lossy().into_owned());
            let bytes = fs::read(path).with_context(read)?;
            let mut named = (name, 0);
            if let Some(key) = &config.policy.trusted_key {
                let signed = verify(path, &bytes, &public_key(key)?)?;
                named = (signed.name, signed.version);
            }
            PolicySource {
                name: named.0,
                version: named.1,
                bytes,
                parameters: config.policy.parameters.clone(),
            }
        }
    };
    let fleet = config.fleet.as_ref().map(fleet).transpose()?;
    let settings = Settings {
        contexts: config.remembered(),
        ..config.learner.over(package::settings(package))
    };
    let default = Options::new(
        config.device.id,
        config.device.tenant,
        policy,
        settings,
        config.state.path,
    );
    let budget = config.policy.budget_us.map(|us| Duration::from_micros(us.into()));
    Ok(Options {
        policy_rules: LadderRules {
            budget: budget.or(default.policy_rules.budget),
            ..default.policy_rules
        },
        fleet,
        summary_every: Duration::from_secs_f64(config.state.summary_seconds),
        checkpoint_every: Duration::from_secs_f64(config.state.checkpoint_seconds),
        packages_bytes: u64::from(config.state.packages_mb) << 20,
        offload: config.engine.offload(),
        threads: config.engine.threads,
        batch: config.engine.batch,
        board: config.board.source(),
        trace: config.trace.as_ref().map(Trace::options),
        ..default
    })
}

fn fleet(fleet: &config::Fleet) -> anyhow::Result<Fleet> {
    let password = |path: &std::path::PathBuf| {
        fs::read_to_string(path)
            .map(|text| text.trim_end_matches(['\r', '\n']).to_owned())
            .with_context(|| format!("fleet.password_file {} cannot be read", path.display()))
    };
    let credentials = match (&fleet.username, &fleet.password_file) {
        (Some(username), Some(file)) => Some(Credentials {
            username: username.clone(),
            password: password(file)?,
        }),
        (None, None) => None,
        _ => bail!("fleet.username and fleet.password_file go together"),
    };
    Ok(Fleet {
        broker: fleet.broker.parse().context("fleet.broker")?,
        credentials,
        ca: fleet.ca_file.clone(),
        identity: fleet.identity_file.clone(),
        key: fleet.key().context("fleet.controller_key is no Ed25519 public key")?,
    })
}
