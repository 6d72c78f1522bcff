//! `offramp-fleet policy …`

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use offramp_fleet::MAX_POLICY;
use offramp_proto::DeviceId;
use serde::Deserialize;

use super::client::{Client, parse};
use super::library::{Artifact, Pushed, print_artifacts};
use super::{Align, Server, check_parameter, print, table};

#[derive(Debug, Subcommand)]
pub(super) enum Policy {
    /// Bring a policy to the controller, for a rollout.
    Add(Add),
    /// Make a policy the desired one of devices, at once.
    Push(Push),
    /// Say what a policy would do: it is replayed on the traces that devices share, and no device gets it.
    Replay(Replay),
    /// List the policies that were pushed, the newest first.
    List(List),
}

/// The policy is kept by the controller, which signs a new desired state for each device; devices fetch
/// and check the policy and swap to it without losing a frame. Prints one line a device: its name and the
/// generation that it should report.
#[derive(Debug, Args)]
pub(super) struct Push {
    /// The policy: a WebAssembly component, at most 4 MiB.
    #[arg(value_name = "FILE.wasm")]
    file: PathBuf,
    /// Its name.
    #[arg(long)]
    name: String,
    /// Its version. A name and version always mean the same component.
    #[arg(long, value_name = "NUMBER")]
    version: u64,
    /// A parameter of the policy; may be repeated. `true` and `false` are flags, numbers are numbers, the
    /// rest is text.
    #[arg(long, value_name = "NAME=VALUE", value_parser = check_parameter)]
    parameter: Vec<String>,
    /// A device that should get it; may be repeated. Without one, every device that is known now.
    #[arg(long, value_name = "DEVICE")]
    device: Vec<DeviceId>,
    /// Instead of names: every device that this means now, e.g. group=night or site=north,state=alive.
    #[arg(long, value_name = "SELECTOR", conflicts_with = "device")]
    select: Option<String>,
    #[command(flatten)]
    server: Server,
}

/// It is kept, and no device gets it: `offramp-fleet rollout start NAME VERSION` does that.
#[derive(Debug, Args)]
pub(super) struct Add {
    /// The policy: a WebAssembly component, at most 4 MiB.
    #[arg(value_name = "FILE.wasm")]
    file: PathBuf,
    /// Its name.
    #[arg(long)]
    name: String,
    /// Its version. A name and version always mean the same component.
    #[arg(long, value_name = "NUMBER")]
    version: u64,
    #[command(flatten)]
    server: Server,
}

/// Devices share traces where their configuration has `[trace]` with `share_kb`. Cost, exits and disagreement with the
/// last exit are of the frames of which all exits are known; these stand for the others.
#[derive(Debug, Args)]
pub(super) struct Replay {
    /// Name of the policy.
    policy: String,
    /// Its version.
    version: u64,
    /// A parameter of the policy; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = check_parameter)]
    parameter: Vec<String>,
    /// A device whose traces are used; may be repeated. Without one, all that have shared some.
    #[arg(long, value_name = "DEVICE")]
    device: Vec<DeviceId>,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    server: Server,
}

#[derive(Deserialize)]
struct Kept {
    digest: String,
}

#[derive(Deserialize)]
struct Listed {
    policies: Vec<Artifact>,
}

impl Policy {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Add(add) => add.run(),
            Self::Push(push) => push.run(),
            Self::Replay(replay) => replay.run(),
            Self::List(list) => list.run(),
        }
    }
}

/// Reads a component, if it is small enough to be one.
fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    let path = file.display();
    let size = std::fs::metadata(file)
        .with_context(|| format!("cannot read policy {path}"))?
        .len();
    anyhow::ensure!(
        size <= MAX_POLICY as u64,
        "policy {path} has {size} bytes, more than the {MAX_POLICY} allowed"
    );
    std::fs::read(file).with_context(|| format!("cannot read policy {path}"))
}

impl Add {
    fn run(self) -> anyhow::Result<()> {
        let bytes = read(&self.file)?;
        let version = self.version.to_string();
        let query = [("name", self.name.as_str()), ("version", &version), ("target", "none")];
        let answer = Client::new(&self.server).post("/policies", &query, &bytes)?;
        if self.server.json {
            return print(&format!("{answer}\n"));
        }
        let kept: Kept = parse(&answer)?;
        print(&format!("{} {version} {}\n", self.name, kept.digest))
    }
}

impl Push {
    fn run(self) -> anyhow::Result<()> {
        let bytes = read(&self.file)?;
        let version = self.version.to_string();
        let mut query = vec![("name", self.name.as_str()), ("version", &version)];
        query.extend(self.parameter.iter().map(|p| ("parameter", p.as_str())));
        query.extend(self.device.iter().map(|d| ("device", d.as_str())));
        query.extend(self.select.iter().map(|s| ("select", s.as_str())));
        let answer = Client::new(&self.server).post("/policies", &query, &bytes)?;
        let pushed: Pushed = parse(&answer)?;
        if pushed.is_empty() {
            eprintln!("the policy is kept, but no device is known that could get it: push it again when there is one");
        }
        if self.server.json {
            return print(&format!("{answer}\n"));
        }
        pushed.print()
    }
}

impl Replay {
    fn run(self) -> anyhow::Result<()> {
        let parameters = self.parameter.iter().map(|p| ("parameter", p.as_str()));
        let devices = self.device.iter().map(|d| ("device", d.as_str()));
        let query: Vec<(&str, &str)> = parameters.chain(devices).collect();
        let path = format!("/policies/{}/{}/replay", self.policy, self.version);
        let answer = Client::new(&self.server).get(&path, &query)?;
        if self.server.json {
            return print(&format!("{answer}\n"));
        }
        let forecast: Forecast = parse(&answer)?;
        if forecast.models.is_empty() {
            eprintln!("no device has shared traces yet: set `share_kb` in [trace] of a device's configuration");
            return Ok(());
        }
        print(&forecast.table())
    }
}

/// What the controller foresees.
#[derive(Debug, Deserialize)]
pub(super) struct Forecast {
    models: Vec<Foreseen>,
}

#[derive(Debug, Deserialize)]
struct Foreseen {
    model: String,
    version: u64,
    devices: u64,
    frames: u64,
    scored: u64,
    today: Mix,
    foreseen: Mix,
    faults: u64,
    fault: Option<String>,
    refused: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Mix {
    cost: Option<f64>,
    exits: Vec<f64>,
    agreement: Option<f64>,
}

impl Forecast {
    pub(super) fn table(&self) -> String {
        let percent = |share: Option<f64>| share.map_or_else(|| "-".into(), |share| format!("{:.1} %", 100.0 * share));
        let row = |first: String, when: &str, mix: &Mix, faults: String| {
            let exits: Vec<String> = mix.exits.iter().map(|share| format!("{:.0}", 100.0 * share)).collect();
            let disagreement = percent(mix.agreement.map(|agreement| 1.0 - agreement));
            vec![
                first,
                when.into(),
                percent(mix.cost),
                exits.join("/"),
                disagreement,
                faults,
            ]
        };
        let mut rows = Vec::new();
        let mut notes = String::new();
        for model in &self.models {
            rows.push(row(
                format!("{} {}", model.model, model.version),
                "today",
                &model.today,
                String::new(),
            ));
            rows.push(row(
                String::new(),
                "foreseen",
                &model.foreseen,
                model.faults.to_string(),
            ));
            let (known, frames) = (model.scored, model.frames);
            notes.push_str(&format!(
                "{}: {frames} frames of {} {}; figures are of {known} of them, which are known to the last exit\n",
                model.model,
                model.devices,
                if model.devices == 1 { "device" } else { "devices" }
            ));
            for trouble in [&model.refused, &model.fault].into_iter().flatten() {
                notes.push_str(&format!("{}: {trouble}\n", model.model));
            }
        }
        let heads = [
            ("MODEL", Align::Left),
            ("", Align::Left),
            ("COST", Align::Right),
            ("LEFT AT EXIT (%)", Align::Left),
            ("DISAGREEMENT", Align::Right),
            ("FAULTS", Align::Right),
        ];
        format!("{}\n{notes}", table(&heads, &rows))
    }
}

impl List {
    fn run(self) -> anyhow::Result<()> {
        let answer = Client::new(&self.server).get("/policies", &[])?;
        if self.server.json {
            return print(&format!("{answer}\n"));
        }
        let listed: Listed = parse(&answer)?;
        if listed.policies.is_empty() {
            eprintln!("no policy was pushed yet");
            return Ok(());
        }
        print_artifacts("POLICY", listed.policies)
    }
}
