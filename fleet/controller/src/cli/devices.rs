//! `offramp-fleet devices`

use std::collections::BTreeMap;

use clap::Args;
use offramp_proto::DeviceId;
use serde::Deserialize;
use serde_json::json;

use super::client::{Client, parse};
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
}

/// What it runs, what is desired of it and what it refuses, what it costs and what learning saves there; or its latest
/// summaries.
#[derive(Debug, Args)]
pub(super) struct Show {
    /// The device.
    device: DeviceId,
    /// Show its summaries instead, the latest last.
    #[arg(long)]
    summaries: bool,
    /// Of so many.
    #[arg(long, requires = "summaries", value_parser = clap::value_parser!(u32).range(1..=1000), default_value_t = 20)]
    limit: u32,
    #[command(flatten)]
    server: Server,
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

impl Show {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let client = Client::new(&self.server);
        let path = format!("/devices/{}", self.device);
        if self.summaries {
            let limit = self.limit.to_string();
            let answer = client.get(&format!("{path}/summaries"), &[("latest", "true"), ("limit", &limit)])?;
            return match self.server.json {
                true => print(&format!("{answer}\n")),
                false => print(&summaries(parse(&answer)?)),
            };
        }
        let answer = client.get(&path, &[])?;
        if self.server.json {
            return print(&format!("{answer}\n"));
        }
        let Detail {
            device,
            quarantine,
            capabilities,
            class_count,
            saving,
        } = parse(&answer)?;
        let refused = device.reported.as_ref().and_then(|reported| reported.refused.clone());
        let mut lines: Vec<(&str, String)> = HEADS.iter().map(|(head, _)| *head).zip(row(device)).collect();
        let share = |share: f64| format!("{:.1} %", share * 100.0);
        lines.extend(refused.map(|why| ("REFUSES", why)));
        lines.extend(quarantine.map(|quarantine| ("QUARANTINE", quarantine.reason)));
        lines.extend(saving.map(|saving| ("SAVES", format!("{} of what frozen heads cost", share(saving.share)))));
        let seen = class_count.iter().take(5).map(|seen| match &seen.name {
            Some(name) => format!("{name} {}", seen.count),
            None => format!("class {} {}", seen.class, seen.count),
        });
        lines.push(("SEES", seen.collect::<Vec<_>>().join(", ")));
        lines.push(("CAN", capabilities.join(", ")));
        let lines = lines.iter().filter(|(_, what)| !what.is_empty());
        print(
            &lines
                .map(|(head, what)| format!("{head:<13} {what}\n"))
                .collect::<String>(),
        )
    }
}

#[derive(Deserialize)]
struct Detail {
    #[serde(flatten)]
    device: Device,
    quarantine: Option<Reason>,
    capabilities: Vec<String>,
    class_count: Vec<Seen>,
    saving: Option<Saving>,
}

#[derive(Deserialize)]
struct Reason {
    reason: String,
}

#[derive(Deserialize)]
struct Seen {
    class: u32,
    name: Option<String>,
    count: u64,
}

#[derive(Deserialize)]
struct Saving {
    share: f64,
}

#[derive(Deserialize)]
struct Summaries {
    summaries: Vec<Summary>,
}

#[derive(Deserialize)]
struct Summary {
    window_end: u64,
    frames: u64,
    exits: Vec<u64>,
    macs: u64,
    full_macs: u64,
    audits: u64,
    disagreements: u64,
    policy: Named,
}

fn summaries(found: Summaries) -> String {
    let row = |summary: Summary| {
        let exits = summary.exits.iter().map(u64::to_string).collect::<Vec<_>>();
        let cost = summary.macs as f64 / summary.full_macs.max(1) as f64;
        vec![
            offramp_fleet::utc(summary.window_end),
            summary.frames.to_string(),
            exits.join("/"),
            format!("{:.1} %", cost * 100.0),
            format!("{} of {}", summary.disagreements, summary.audits),
            format!("{} {}", summary.policy.name, summary.policy.version),
        ]
    };
    let rows: Vec<Vec<String>> = found.summaries.into_iter().map(row).collect();
    let heads = [
        ("END", Align::Left),
        ("FRAMES", Align::Right),
        ("EXITS", Align::Left),
        ("COST", Align::Right),
        ("AUDITS THAT DIFFER", Align::Left),
        ("POLICY", Align::Left),
    ];
    table(&heads, &rows)
}

impl Quarantine {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let path = format!("/devices/{}/quarantine", self.device);
        let answer = Client::new(&self.server).post_json(&path, &json!({"reason": self.reason}))?;
        if self.server.json {
            return print(&format!("{answer}\n"));
        }
        Ok(())
    }
}

impl Release {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let answer = Client::new(&self.server).post(&format!("/devices/{}/release", self.device), &[], b"")?;
        if self.server.json {
            return print(&format!("{answer}\n"));
        }
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
    refused: Option<String>,
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
        if self.server.json {
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
        print(&table(&HEADS, &rows))
    }
}

const HEADS: [(&str, Align); 11] = [
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
