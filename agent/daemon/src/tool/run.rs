//! `offramp run`: the agent as configured.

use std::fs;
use std::io::{self, BufWriter, Write as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use offramp_camera::{Camera, Folder, FrameShape, Playback, Raw, sample};
use offramp_core::Settings;
use offramp_link::Credentials;
use offramp_model::Package;
use serde_json::json;

use crate::agent::{Agent, Fleet, Options};
use crate::config::{self, Config};
use crate::judge::PolicySource;
use crate::package;

/// Largest policy component in bytes that is read from a file.
const MAX_POLICY: u64 = 4 * 1024 * 1024;

/// Runs the agent of a configuration file, from the model's own heads if it is to `forget`; predictions go to
/// standard output as JSON lines.
///
/// # Errors
/// When the configuration, the model or the policy is refused, or the store cannot be used.
pub fn run(path: &Path, forget: bool) -> anyhow::Result<()> {
    let config = Config::open(path)?;
    let package = package::open(&config.model.package)?;
    let input = &package.manifest().input;
    let shape = FrameShape::new(input.height, input.width, input.channels)?;
    let camera: Box<dyn Camera> = match &config.camera {
        config::Camera::Sample => Box::new(Playback::whole(sample::stream()?.into())),
        config::Camera::Folder { path } => Box::new(Folder::open(path, shape)?),
        config::Camera::Stdin => Box::new(Raw::new(io::stdin(), shape)),
    };
    let options = Options {
        forget,
        ..options(config, &package)?
    };
    let classes = package.manifest().classes.clone();
    let mut out = BufWriter::new(io::stdout());
    let agent = Agent::start(
        options,
        &package,
        camera,
        Box::new(move |prediction, frame| {
            let line = json!({
                "frame": prediction.frame,
                "name": frame.name,
                "class": prediction.class,
                "label": classes.get(prediction.class as usize),
                "confidence": prediction.confidence,
                "exit": prediction.exit,
                "macs": prediction.macs,
                "ms": prediction.latency_us as f64 / 1e3,
            });
            // Whoever reads waits for this very line, not for a full buffer.
            if let Err(error) = writeln!(out, "{line}").and_then(|()| out.flush()) {
                if error.kind() != io::ErrorKind::BrokenPipe {
                    tracing::error!(%error, "predictions cannot be written");
                }
                std::process::exit(i32::from(error.kind() != io::ErrorKind::BrokenPipe));
            }
        }),
    )?;
    let outcome = agent.join();
    tracing::info!(
        frames = outcome.arrived,
        predictions = outcome.predicted,
        "the camera has ended"
    );
    Ok(())
}

fn options(config: Config, package: &Package) -> anyhow::Result<Options> {
    let policy = match &config.policy.file {
        None => PolicySource::threshold(config.policy.parameters.clone()),
        Some(path) => {
            let read = || format!("policy {} cannot be read", path.display());
            if fs::metadata(path).with_context(read)?.len() > MAX_POLICY {
                bail!("policy {} is larger than {MAX_POLICY} bytes", path.display());
            }
            let name = path
                .file_stem()
                .map_or_else(|| "policy".into(), |stem| stem.to_string_lossy().into_owned());
            let bytes = fs::read(path).with_context(read)?;
            PolicySource {
                name,
                version: 0,
                bytes,
                parameters: config.policy.parameters.clone(),
            }
        }
    };
    let fleet = config.fleet.as_ref().map(fleet).transpose()?;
    Ok(Options {
        settings: Settings {
            contexts: config.context.remembered(),
            ..config.learner.over(package::settings(package))
        },
        context: config.context.source(),
        device: config.device.id,
        tenant: config.device.tenant,
        policy,
        state: config.state.path,
        forget: false,
        fleet,
        summary_every: Duration::from_secs_f64(config.state.summary_seconds),
        checkpoint_every: Duration::from_secs_f64(config.state.checkpoint_seconds),
        frame_every: None,
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
        key: fleet.key().context("fleet.controller_key is no Ed25519 public key")?,
    })
}
