//! `offramp-fleet devices`

use std::collections::BTreeMap;

use clap::Args;
use offramp_proto::DeviceId;
use serde::Deserialize;
use serde_json::json;

use super::client::Client;
use super::{Align, Server, print, table};

/// One line a device: whether it lives, what it runs, what it costs now and how far its predictions are
/// from the whole network's.
#[derive(Debug, Args)]
pub(super) struct Devices {
    /// Only those that this means, e.g. 'site=north|south,model=revcol-*,!retired,state!=gone' or group=night.
    #[arg(long, value_name = "SELECTOR", default_value = "", hide_default_value = true)]
    select: String,
    #[command(flatten)]
    server: Server,
    /// Print one JSON array instead of a table.
    #[arg(long)]
    json: bool,
}

/// It is given nothing, and counts in no figure of the fleet, until it is let go. The controller does so by itself with
/// a device in whose name two agents speak.
#[derive(Debug, Args)]
pub(super) struct Quarantine {
    /// The device.
    device: DeviceId,
    /// Why, for whoever finds it there.
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    server: Server,
}

/// What is desired of it is signed and sent anew.
#[derive(Debug, Args)]
pub(super) struct Release {
    /// The device.
    device: DeviceId,
    #[command(flatten)]
    server: Server,
}

impl Quarantine {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let path = format!("/devices/{}/quarantine", self.device);
        Client::new(&self.server).post_json(&path, &json!({"reason": self.reason}))?;
        Ok(())
    }
}

impl Release {
    pub(super) fn run(self) -> anyhow::Result<()> {
        Client::new(&self.server).post(&format!("/devices/{}/release", self.device), &[], b"")?;
        Ok(())
    }
}

#[derive(Deserialize)]
struct Device {
    device: String,
    state: String,
    model: Option<Named>,
    running: Option<Named>,
    desired: Option<Desired>,
    reported: Option<Reported>,
    progress: String,
    frames: u64,
    recent: Recent,
    labels: BTreeMap<String, String>,
    disagreement: Option<Disagreement>,
    guard: Option<Guard>,
}

/// Of the learner's guard what a line has room for.
#[derive(Deserialize)]
struct Guard {
    loss: f64,
    loss_bound: f64,
    audits: u64,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    version: u64,
}

#[derive(Deserialize)]
struct Desired {
    generation: u64,
}

#[derive(Deserialize)]
struct Reported {
    generation: u64,
}

#[derive(Deserialize)]
struct Recent {
    cost_share: Option<f64>,
}

#[derive(Deserialize)]
struct Disagreement {
    estimate: f64,
    bound: f64,
}

impl Devices {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let devices = Client::new(&self.server).devices(&self.select)?;
        if self.json {
            return print(&format!("{}\n", serde_json::Value::Array(devices)));
        }
        if devices.is_empty() {
            match self.select.as_str() {
                "" => eprintln!("no device has been heard of yet"),
                select => eprintln!("`{select}` means no device"),
            }
            return Ok(());
        }
        let rows = devices
            .into_iter()
            .map(|device| Ok(row(serde_json::from_value(device)?)))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let heads = [
            ("DEVICE", Align::Left),
            ("STATE", Align::Left),
            ("MODEL", Align::Left),
            ("POLICY", Align::Left),
            ("GENERATION", Align::Right),
            ("PROGRESS", Align::Left),
            ("FRAMES", Align::Right),
            ("COST", Align::Right),
            ("DISAGREEMENT", Align::Right),
            ("GIVEN UP", Align::Right),
            ("LABELS", Align::Left),
        ];
        print(&table(&heads, &rows))
    }
}

fn row(device: Device) -> Vec<String> {
    let none = || "-".to_owned();
    let named = |named: Option<Named>| match named {
        Some(named) if named.name == "built-in" => named.name,
        Some(named) => format!("{} {}", named.name, named.version),
        None => none(),
    };
    let reported = device.reported.map(|r| r.generation);
    let desired = device.desired.map(|d| d.generation);
    let generation = match (reported, desired) {
        (None, None) => none(),
        (Some(reported), Some(desired)) if desired > reported => format!("{reported} -> {desired}"),
        (Some(reported), _) => reported.to_string(),
        (None, Some(desired)) => format!("-> {desired}"),
    };
    vec![
        device.device,
        device.state,
        named(device.model),
        named(device.running),
        generation,
        device.progress,
        device.frames.to_string(),
        device
            .recent
            .cost_share
            .map_or_else(none, |c| format!("{:.1} %", c * 100.0)),
        device.disagreement.map_or_else(none, |d| {
            format!("{:.1} % (<= {:.1} %)", d.estimate * 100.0, d.bound * 100.0)
        }),
        device
            .guard
            .filter(|guard| guard.audits > 0)
            .map_or_else(none, |guard| {
                format!("{:.1} % (<= {:.1} %)", guard.loss * 100.0, guard.loss_bound * 100.0)
            }),
        device
            .labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect::<Vec<_>>()
            .join(","),
    ]
}
