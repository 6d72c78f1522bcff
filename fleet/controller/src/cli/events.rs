//! `offramp-fleet events` and `offramp-fleet status`

use clap::Args;
use offramp_proto::DeviceId;
use serde::Deserialize;
use serde_json::Value;

use super::client::{Client, parse};
use super::{Align, Server, print, table};

/// Swaps, faults, refusals, rollbacks …: by the devices' own clocks.
#[derive(Debug, Args)]
pub(super) struct Events {
    /// Only those of this device.
    #[arg(long, value_name = "DEVICE")]
    device: Option<DeviceId>,
    /// Events, at most.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    #[command(flatten)]
    server: Server,
}

/// Whether it is connected to its broker, and what it has done since its start.
#[derive(Debug, Args)]
pub(super) struct Status {
    #[command(flatten)]
    server: Server,
}

impl Events {
    pub(super) fn run(self) -> anyhow::Result<()> {
        #[derive(Deserialize)]
        struct Answer {
            events: Vec<Event>,
        }
        #[derive(Deserialize)]
        struct Event {
            at: u64,
            device: String,
            kind: String,
            message: String,
        }
        let limit = self.limit.to_string();
        let mut query = vec![("limit", limit.as_str())];
        query.extend(self.device.as_ref().map(|device| ("device", device.as_str())));
        let answer = Client::new(&self.server).get("/events", &query)?;
        if self.server.json {
            return print(&format!("{answer}\n"));
        }
        let answer: Answer = parse(&answer)?;
        if answer.events.is_empty() {
            eprintln!("nothing worth telling has happened");
            return Ok(());
        }
        let rows: Vec<Vec<String>> = answer
            .events
            .into_iter()
            .map(|event| vec![offramp_fleet::utc(event.at), event.device, event.kind, event.message])
            .collect();
        print(&table(
            &["WHEN", "DEVICE", "KIND", "MESSAGE"].map(|head| (head, Align::Left)),
            &rows,
        ))
    }
}

impl Status {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let answer = Client::new(&self.server).get("/status", &[])?;
        if self.server.json {
            return print(&format!("{answer}\n"));
        }
        let status: Value = parse(&answer)?;
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let broker = &status["broker"];
        let connection = match broker["connected"].as_bool() {
            Some(true) => "connected".to_owned(),
            _ => format!("not connected: {}", text(&broker["reason"])),
        };
        let mut rows = vec![
            vec!["version".into(), text(&status["version"])],
            vec!["tenant".into(), text(&status["tenant"])],
            vec![
                "started".into(),
                offramp_fleet::utc(status["started_at"].as_u64().unwrap_or(0)),
            ],
            vec!["broker".into(), format!("{}, {connection}", text(&broker["url"]))],
            vec!["database".into(), text(&status["database"])],
            vec!["key".into(), text(&status["public_key"])],
        ];
        for controller in status["controllers"].as_array().into_iter().flatten() {
            let does = match controller["on_duty"].as_bool() {
                Some(true) => ", on duty",
                _ => "",
            };
            let silent = controller["silent_ms"].as_u64().unwrap_or(0) / 1000;
            rows.push(vec![
                format!("  {}", text(&controller["name"])),
                format!("{}{does}, heard of {silent} s ago", text(&controller["address"])),
            ]);
        }
        for (name, count) in status["statistics"].as_object().into_iter().flatten() {
            rows.push(vec![name.replace('_', " "), text(count)]);
        }
        print(&table(&[("CONTROLLER", Align::Left), ("", Align::Left)], &rows))
    }
}
