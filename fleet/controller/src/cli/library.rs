//! What the commands about policies and about models have in common.

use serde::Deserialize;

use super::{Align, print, table};

/// A policy or a model of the library, as the controller lists it.
#[derive(Deserialize)]
pub(super) struct Artifact {
    name: String,
    version: u64,
    digest: Option<String>,
    size: u64,
    desired: u64,
    reported: u64,
}

/// What was pushed, and to whom.
#[derive(Deserialize)]
pub(super) struct Pushed {
    devices: Vec<PushedDevice>,
}

#[derive(Deserialize)]
struct PushedDevice {
    device: String,
    generation: u64,
}

/// Prints a line for each; `kind` heads their names.
pub(super) fn print_artifacts(kind: &str, artifacts: Vec<Artifact>) -> anyhow::Result<()> {
    let heads = [
        (kind, Align::Left),
        ("VERSION", Align::Right),
        ("BYTES", Align::Right),
        ("DESIRED ON", Align::Right),
        ("RUNS ON", Align::Right),
        ("SHA-256", Align::Left),
    ];
    let rows = artifacts.into_iter().map(|artifact| {
        vec![
            artifact.name,
            artifact.version.to_string(),
            artifact.size.to_string(),
            artifact.desired.to_string(),
            artifact.reported.to_string(),
            artifact.digest.unwrap_or_default(),
        ]
    });
    print(&table(&heads, &rows.collect::<Vec<_>>()))
}

impl Pushed {
    pub(super) fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }

    /// Prints a line for each device: its name, and the generation that it should report.
    pub(super) fn print(&self) -> anyhow::Result<()> {
        let lines = self.devices.iter().map(|d| format!("{} {}\n", d.device, d.generation));
        print(&lines.collect::<String>())
    }
}
