//! `offramp-fleet model …`

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use offramp_model::Package;
use offramp_proto::DeviceId;
use serde::Deserialize;
use serde_json::json;

use super::client::{Client, parse};
use super::library::{Artifact, Pushed, print_artifacts};
use super::{Server, print};

#[derive(Debug, Subcommand)]
pub(super) enum Model {
    /// Bring a model package to the controller, for a rollout.
    Add(Add),
    /// Make a model the desired one of devices, at once.
    Push(Push),
    /// List the models that were added, the newest first.
    List(List),
}

/// Name and version are those of the package's manifest. It is kept, and no device gets it: `offramp-fleet rollout start
/// --model NAME VERSION` does that.
#[derive(Debug, Args)]
pub(super) struct Add {
    /// The package: its directory, or its file (`offramp model pack`).
    package: PathBuf,
    /// Where else devices find the package's file: what is large need not come over the broker. What is missing there
    /// comes from the controller, and what is another file is not taken.
    #[arg(long, value_name = "https://…")]
    from: Option<String>,
    #[command(flatten)]
    server: Server,
}

/// Devices fetch the package, check it, load it, hold what it computes to its reference vectors, and swap to it between
/// two frames; what they have learned for the model before is kept. Prints one line a device: its name and the generation
/// that it should report.
#[derive(Debug, Args)]
pub(super) struct Push {
    /// Name of the model.
    #[arg(required_unless_present = "own", requires = "version")]
    model: Option<String>,
    /// Its version.
    version: Option<u64>,
    /// Instead: let devices go back to the models of their own configurations.
    #[arg(long, conflicts_with_all = ["model", "version"])]
    own: bool,
    /// A device that should get it; may be repeated. Without one, every device that is known now.
    #[arg(long, value_name = "DEVICE")]
    device: Vec<DeviceId>,
    /// Instead of names: every device that this means now, e.g. group=night or site=north,state=alive.
    #[arg(long, value_name = "SELECTOR", conflicts_with = "device")]
    select: Option<String>,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    server: Server,
}

#[derive(Deserialize)]
struct Added {
    name: String,
    version: u64,
    digest: String,
}

#[derive(Deserialize)]
struct Listed {
    models: Vec<Artifact>,
}

impl Model {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Add(add) => add.run(),
            Self::Push(push) => push.run(),
            Self::List(list) => list.run(),
        }
    }
}

impl Add {
    fn run(self) -> anyhow::Result<()> {
        let path = self.package.display().to_string();
        anyhow::ensure!(self.package.exists(), "there is no package {path}");
        let file = Package::pack(&self.package).with_context(|| format!("package {path} is not added"))?;
        let query: Vec<(&str, &str)> = self.from.iter().map(|url| ("url", url.as_str())).collect();
        let answer = Client::new(&self.server).post("/models", &query, &file)?;
        if self.server.json {
            return print(&format!("{answer}\n"));
        }
        let Added { name, version, digest } = parse(&answer)?;
        print(&format!("{name} {version} {digest}\n"))
    }
}

impl Push {
    fn run(self) -> anyhow::Result<()> {
        let wanted = json!({
            "model": self.model, "version": self.version, "own": self.own, "devices": self.device, "select": self.select
        });
        let answer = Client::new(&self.server).post_json("/models/push", &wanted)?;
        if self.server.json {
            return print(&format!("{answer}\n"));
        }
        let pushed: Pushed = parse(&answer)?;
        pushed.print()
    }
}

impl List {
    fn run(self) -> anyhow::Result<()> {
        let answer = Client::new(&self.server).get("/models", &[])?;
        if self.server.json {
            return print(&format!("{answer}\n"));
        }
        let listed: Listed = parse(&answer)?;
        if listed.models.is_empty() {
            eprintln!("no model was added yet");
            return Ok(());
        }
        print_artifacts("MODEL", listed.models)
    }
}
