//! `offramp-fleet group …` and `offramp-fleet label`

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand};
use offramp_proto::DeviceId;
use serde::Deserialize;
use serde_json::json;

use super::client::{Client, parse};
use super::{Align, Server, print, table};

#[derive(Debug, Subcommand)]
pub(super) enum Group {
    /// Give a selector a name, or a name another selector.
    Set(Set),
    /// List the groups, what they mean, and how many devices that is now.
    List(List),
    /// Forget a group. Its devices are left alone.
    Remove(Remove),
}

/// Wherever devices are selected, `group=NAME` stands for it. What it means is looked up each time, so that devices come
/// and go with their labels; a rollout keeps to those that were meant when it began.
#[derive(Debug, Args)]
pub(super) struct Set {
    /// Its name.
    name: String,
    /// Which devices it means, e.g. 'site=north|south,model=revcol-*,!retired,state!=gone'.
    selector: String,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Args)]
pub(super) struct Remove {
    /// Its name.
    name: String,
    #[command(flatten)]
    server: Server,
}

/// Labels say what the controller cannot know: where a device is, whose it is. Prints the devices that have them now.
#[derive(Debug, Args)]
#[command(after_help = "E.g. `offramp-fleet label gate-7 gate-8 site=north old-`.")]
pub(super) struct Label {
    /// Devices, then labels: KEY=VALUE gives one, KEY- takes it away.
    #[arg(required = true, value_name = "DEVICE|KEY=VALUE|KEY-")]
    words: Vec<String>,
    /// Instead of names: every device that this means now.
    #[arg(long, value_name = "SELECTOR")]
    select: Option<String>,
    #[command(flatten)]
    server: Server,
}

impl Group {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Set(set) => set.run(),
            Self::List(list) => list.run(),
            Self::Remove(remove) => remove.run(),
        }
    }
}

impl Set {
    fn run(self) -> anyhow::Result<()> {
        #[derive(Deserialize)]
        struct Kept {
            devices: u64,
        }
        let path = format!("/groups/{}", name(&self.name)?);
        let answer = Client::new(&self.server).put_json(&path, &json!({"selector": self.selector}))?;
        if self.server.json {
            return print(&format!("{answer}\n"));
        }
        let kept: Kept = parse(&answer)?;
        let devices = if kept.devices == 1 { "device" } else { "devices" };
        print(&format!("{} means {} {devices}\n", self.name, kept.devices))
    }
}

impl List {
    fn run(self) -> anyhow::Result<()> {
        #[derive(Deserialize)]
        struct Groups {
            groups: Vec<serde_json::Value>,
        }
        #[derive(Deserialize)]
        struct Row {
            name: String,
            selector: String,
            devices: u64,
        }
        let Groups { groups } = parse(&Client::new(&self.server).get("/groups", &[])?)?;
        if self.server.json {
            return print(&format!("{}\n", serde_json::Value::Array(groups)));
        }
        if groups.is_empty() {
            eprintln!("there is no group yet: make one with `offramp-fleet group set NAME SELECTOR`");
            return Ok(());
        }
        let row = |group| {
            let Row {
                name,
                selector,
                devices,
            } = serde_json::from_value(group)?;
            Ok(vec![name, devices.to_string(), selector])
        };
        let rows = groups.into_iter().map(row).collect::<anyhow::Result<Vec<_>>>()?;
        let heads = [
            ("GROUP", Align::Left),
            ("DEVICES", Align::Right),
            ("SELECTOR", Align::Left),
        ];
        print(&table(&heads, &rows))
    }
}

impl Remove {
    fn run(self) -> anyhow::Result<()> {
        Client::new(&self.server).delete(&format!("/groups/{}", name(&self.name)?))
    }
}

/// A name as a path may have it.
fn name(text: &str) -> anyhow::Result<DeviceId> {
    DeviceId::new(text).with_context(|| format!("`{text}` cannot be a group's name"))
}

impl Label {
    pub(super) fn run(self) -> anyhow::Result<()> {
        #[derive(Deserialize)]
        struct Kept {
            devices: Vec<String>,
        }
        let (devices, labels) = read(&self.words);
        ensure!(
            !labels.is_empty(),
            "no label is given: use KEY=VALUE, or KEY- to take one away"
        );
        ensure!(
            devices.is_empty() == self.select.is_some(),
            "name devices before their labels, or use --select; not both"
        );
        let mut wanted = json!({"labels": labels});
        match &self.select {
            Some(select) => wanted["select"] = json!(select),
            None => wanted["devices"] = json!(devices),
        }
        let answer = Client::new(&self.server).post_json("/labels", &wanted)?;
        if self.server.json {
            return print(&format!("{answer}\n"));
        }
        let kept: Kept = parse(&answer)?;
        print(&kept.devices.iter().map(|name| format!("{name}\n")).collect::<String>())
    }
}

/// Parts names of devices and labels.
fn read(words: &[String]) -> (Vec<&str>, BTreeMap<&str, Option<&str>>) {
    let (mut devices, mut labels) = (Vec::new(), BTreeMap::new());
    for word in words {
        match (word.split_once('='), word.strip_suffix('-')) {
            (Some((key, value)), _) => _ = labels.insert(key, Some(value)),
            (None, Some(key)) => _ = labels.insert(key, None),
            (None, None) => devices.push(word.as_str()),
        }
    }
    (devices, labels)
}

#[cfg(test)]
mod tests {
    use super::read;

    #[test]
    fn devices_and_labels_are_told_apart() {
        let words = ["gate-7", "site=north", "old-", "gate-8", "note=a=b"].map(str::to_owned);
        let (devices, labels) = read(&words);
        assert_eq!(devices, ["gate-7", "gate-8"]);
        assert_eq!(
            labels,
            [("note", Some("a=b")), ("old", None), ("site", Some("north"))].into()
        );
    }
}
