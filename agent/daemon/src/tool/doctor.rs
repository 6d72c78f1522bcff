//! `offramp doctor`: what this machine can run, and what would help where it cannot.

use std::net::{TcpStream, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use offramp_engine::{Engine, Offload, OffloadProblem, Provider, RunBy, instructions};
use offramp_link::BrokerUrl;
use offramp_model::Package;
use serde_json::json;

use crate::config::{Config, Fleet};
use crate::judge::{PolicySource, Workshop};
use crate::{machine, package, terminal};

/// Memory in bytes that an agent should find free.
const MEMORY: u64 = 128 << 20;
/// How long a broker may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// What is examined.
#[derive(Args, Debug)]
pub struct Doctor {
    /// Package: a directory with a model.toml, a name in models/zoo, or the embedded `revcol-fashion`; without it that
    /// of the configuration.
    package: Option<String>,
    /// A configuration: its package, engine, state and fleet are examined.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Grade {
    Ok,
    /// The agent runs, but not as it could or as it was configured to.
    Warn,
    /// Not there. The agent runs without it.
    Missing,
    /// Without this the agent does not run at all.
    Fails,
}

impl Grade {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Missing => "missing",
            Self::Fails => "fails",
        }
    }
}

/// Writes findings as they come, as some take their time.
struct Report {
    json: bool,
    checks: Vec<serde_json::Value>,
    able: bool,
}

impl Report {
    fn add(&mut self, grade: Grade, what: &str, found: &str, remedy: Option<String>) -> anyhow::Result<()> {
        self.able &= grade != Grade::Fails;
        if self.json {
            self.checks
                .push(json!({"check": what, "grade": grade.name(), "found": found, "remedy": remedy}));
            return Ok(());
        }
        let remedy = remedy.map_or_else(String::new, |remedy| format!("; {remedy}"));
        Ok(terminal::line(&format!(
            "{:<8} {what:<24} {found}{remedy}",
            grade.name()
        ))?)
    }

    fn ok(&mut self, what: &str, found: &str) -> anyhow::Result<()> {
        self.add(Grade::Ok, what, found, None)
    }
}

/// Examines the machine.
///
/// # Errors
/// When an agent could not run here at all.
pub fn run(doctor: &Doctor) -> anyhow::Result<()> {
    let mut report = Report {
        json: doctor.json,
        checks: Vec::new(),
        able: true,
    };
    computer(&mut report)?;
    let config = match doctor.config.as_deref().map(Config::open).transpose() {
        Ok(config) => config,
        Err(error) => {
            report.add(Grade::Fails, "configuration", &chain(&error), None)?;
            None
        }
    };
    let named = doctor.package.as_deref();
    let of_config = config.as_ref().map(|config| config.model.package.as_str());
    let name = named.or(of_config).unwrap_or(package::EMBEDDED);
    let wanted = config.as_ref().and_then(|config| config.engine.offload());
    match opened(name) {
        Ok((package, engine)) => {
            stages(&mut report, &package, &engine)?;
            onnxruntime(&mut report, &package, &engine, wanted)?;
            webassembly(&mut report, &package)?;
        }
        Err(error) => report.add(Grade::Fails, "package", &chain(error.as_ref()), None)?,
    }
    if let Some(config) = &config {
        state(&mut report, &config.state.path)?;
        if let Some(fleet) = &config.fleet {
            broker(&mut report, fleet)?;
        }
    }
    if report.json {
        terminal::line(&json!({"able": report.able, "checks": report.checks}).to_string())?;
    }
    if !report.able {
        bail!("an agent does not run here: see what `fails`");
    }
    Ok(())
}

/// An error with its causes, on one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {}", cause.to_string().trim_end().replace('\n', " "));
        source = cause.source();
    }
    text
}

fn opened(name: &str) -> anyhow::Result<(Package, Engine)> {
    let package = package::open(name)?;
    let engine = Engine::load(&package)?;
    Ok((package, engine))
}

fn computer(report: &mut Report) -> anyhow::Result<()> {
    report.ok("vector instructions", instructions())?;
    match std::thread::available_parallelism() {
        Ok(cores) => report.ok("cores", &cores.to_string())?,
        Err(error) => report.add(Grade::Warn, "cores", &error.to_string(), None)?,
    }
    // Linux tells; others are not asked.
    let Some((free, all)) = machine::memory() else {
        return Ok(());
    };
    let found = format!("{} MiB free of {} MiB", free >> 20, all >> 20);
    if free < MEMORY {
        let remedy = format!("have {} MiB free", MEMORY >> 20);
        report.add(Grade::Warn, "memory", &found, Some(remedy))
    } else {
        report.ok("memory", &found)
    }
}

fn stages(report: &mut Report, package: &Package, engine: &Engine) -> anyhow::Result<()> {
    let manifest = package.manifest();
    let found = format!("{} version {}, every stage runs", manifest.name, manifest.version);
    report.ok("package", &found)?;
    for (stage, state) in engine.stage_states().iter().enumerate() {
        let what = format!("stage {}", stage + 1);
        match state.run_by {
            RunBy::Tract => report.add(
                Grade::Warn,
                &what,
                "tract",
                Some("it has operators that the faster fused kernels do not know".into()),
            )?,
            by => report.ok(&what, &by.to_string())?,
        }
    }
    Ok(())
}

/// Tries each provider on the first stage. What the configuration asks for and is not there is worth a warning.
fn onnxruntime(report: &mut Report, package: &Package, engine: &Engine, wanted: Option<Offload>) -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    let grade = if wanted.is_some() { Grade::Warn } else { Grade::Missing };
    let offload = wanted.unwrap_or_else(|| Offload {
        providers: Provider::ALL.to_vec(),
        ..Offload::new(scratch.path().into())
    });
    let refused = |report: &mut Report, what: &str, problem: &OffloadProblem| {
        report.add(grade, what, &problem.to_string(), Some(problem.remedy()))
    };
    // One at a time: TensorRT takes long, and what is known before can be read meanwhile.
    for (place, provider) in offload.providers.iter().enumerate() {
        let survey = engine.survey(
            package,
            &Offload {
                providers: vec![*provider],
                ..offload.clone()
            },
        );
        match &survey.library {
            Err(problem) => return refused(report, "onnxruntime", problem),
            Ok((path, version)) if place == 0 => {
                report.ok("onnxruntime", &format!("{version} at {}", path.display()))?;
            }
            Ok(_) => {}
        }
        for (provider, tried) in &survey.providers {
            let what = format!("onnxruntime/{provider}");
            match tried {
                Ok(()) => report.ok(&what, "runs the first stage")?,
                Err(problem) => refused(report, &what, problem)?,
            }
        }
    }
    Ok(())
}

/// Policies are WebAssembly; without it none decides, and the agent does not start.
fn webassembly(report: &mut Report, package: &Package) -> anyhow::Result<()> {
    let source = PolicySource::threshold([].into());
    let checked = Workshop::new(package)
        .map_err(anyhow::Error::new)
        .and_then(|workshop| Ok(workshop.check(&source.bytes, &source.parameters)?));
    match checked {
        Ok(policy) => report.ok(
            "webassembly",
            &format!("the shipped policy decides, with {} fuel at most", policy.decide_fuel),
        ),
        Err(error) => report.add(Grade::Fails, "webassembly", &chain(error.as_ref()), None),
    }
}

fn state(report: &mut Report, path: &Path) -> anyhow::Result<()> {
    let folder = match path.parent() {
        Some(folder) if folder.as_os_str() != "" => folder,
        _ => Path::new("."),
    };
    let found = folder.display().to_string();
    match tempfile::tempfile_in(folder) {
        Ok(_) => report.ok("state", &format!("{found} can be written to")),
        Err(error) => report.add(
            Grade::Fails,
            "state",
            &format!("{found} cannot be written to: {error}"),
            Some("make the folder, give the agent's user the right to write to it, or set state.path".into()),
        ),
    }
}

fn broker(report: &mut Report, fleet: &Fleet) -> anyhow::Result<()> {
    let url: BrokerUrl = match fleet.broker.parse() {
        Ok(url) => url,
        Err(error) => return report.add(Grade::Fails, "broker", &chain(&error), None),
    };
    let reached = (url.host(), url.port()).to_socket_addrs().and_then(|addresses| {
        let mut last = std::io::Error::other("the name has no address");
        for address in addresses {
            match TcpStream::connect_timeout(&address, PATIENCE) {
                Ok(_) => return Ok(address),
                Err(error) => last = error,
            }
        }
        Err(last)
    });
    match reached {
        Ok(address) => report.ok("broker", &format!("{url} answers at {address}")),
        Err(error) => report.add(
            Grade::Warn,
            "broker",
            &format!("{url} does not answer: {error}"),
            Some("start it, or set fleet.broker; frames go on without it".into()),
        ),
    }
}
