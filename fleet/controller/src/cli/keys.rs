//! `offramp-fleet keys`

use clap::{Args, Subcommand};
use offramp_proto::PublicKey;
use serde::Deserialize;
use serde_json::json;

use super::client::{Client, parse};
use super::{Align, Server, print, table};

/// A new key is introduced to each device in the name of the old one; then the old one is revoked: `rotate`, wait until
/// `list` shows that every device trusts the new one, `revoke`. The keys' secret parts lie in PREFIX.key of the controller:
/// back it up after a rotation, and copy it to the other controllers of the fleet.
#[derive(Debug, Subcommand)]
pub(super) enum Keys {
    /// List them, the oldest first, with how many devices trust each.
    List(List),
    /// Make a new one, and introduce it to every device.
    Rotate(Rotate),
    /// Revoke one: devices are told to trust it no longer.
    Revoke(Revoke),
}

#[derive(Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Args)]
pub(super) struct Rotate {
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Args)]
pub(super) struct Revoke {
    /// Its public part, as `keys list` shows it.
    #[arg(value_parser = key)]
    key: PublicKey,
    /// Also when devices are left behind that trust no other key: they must then be given another by hand, in their
    /// configuration.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    server: Server,
}

fn key(text: &str) -> Result<PublicKey, String> {
    text.parse().map_err(|error| format!("{error}"))
}

impl Keys {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::List(list) => list.run(),
            Self::Rotate(rotate) => rotate.run(),
            Self::Revoke(revoke) => revoke.run(),
        }
    }
}

impl List {
    fn run(self) -> anyhow::Result<()> {
        #[derive(Deserialize)]
        struct Answer {
            keys: Vec<serde_json::Value>,
        }
        #[derive(Deserialize)]
        struct Row {
            key: String,
            added_at: u64,
            added_by: String,
            revoked_at: Option<u64>,
            trusted_by: u64,
        }
        let Answer { keys } = parse(&Client::new(&self.server).get("/keys", &[])?)?;
        if self.server.json {
            return print(&format!("{}\n", serde_json::Value::Array(keys)));
        }
        let row = |key| {
            let row: Row = serde_json::from_value(key)?;
            let state = row
                .revoked_at
                .map_or_else(|| "in force".into(), |at| format!("revoked {}", offramp_fleet::utc(at)));
            Ok(vec![
                row.key,
                state,
                row.trusted_by.to_string(),
                offramp_fleet::utc(row.added_at),
                row.added_by,
            ])
        };
        let rows = keys.into_iter().map(row).collect::<anyhow::Result<Vec<_>>>()?;
        let heads = [
            ("KEY", Align::Left),
            ("STATE", Align::Left),
            ("TRUSTED BY", Align::Right),
            ("MADE", Align::Left),
            ("BY", Align::Left),
        ];
        print(&table(&heads, &rows))
    }
}

impl Rotate {
    fn run(self) -> anyhow::Result<()> {
        #[derive(Deserialize)]
        struct Answer {
            key: String,
            devices: u64,
        }
        let answer = Client::new(&self.server).post_json("/keys", &json!({}))?;
        if self.server.json {
            return print(&format!("{answer}\n"));
        }
        let Answer { key, devices } = parse(&answer)?;
        eprintln!(
            "introduced to {devices} devices; when `offramp-fleet keys list` shows that all trust it, revoke the old one. \
             Back the controller's key file up, and copy it to the other controllers of this fleet"
        );
        print(&format!("{key}\n"))
    }
}

impl Revoke {
    fn run(self) -> anyhow::Result<()> {
        #[derive(Deserialize)]
        struct Answer {
            devices: u64,
            left: u64,
            left_first: Vec<String>,
        }
        let path = format!("/keys/{:?}/revoke", self.key);
        let answer = Client::new(&self.server).post_json(&path, &json!({"force": self.force}))?;
        if self.server.json {
            return print(&format!("{answer}\n"));
        }
        let answer: Answer = parse(&answer)?;
        if answer.left > 0 {
            eprintln!("left behind: {} devices, {}", answer.left, answer.left_first.join(", "));
        }
        print(&format!("{} devices are told\n", answer.devices))
    }
}
