//! `offramp-fleet rollout …` and `offramp-fleet audit`

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use offramp_proto::{DeviceId, Parameter};
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{Client, parse};
use super::policy::Forecast;
use super::{Align, Server, check_parameter, print, table};

/// Between two looks at a rollout that is followed.
const PACE: Duration = Duration::from_secs(1);

#[derive(Debug, Subcommand)]
pub(super) enum Rollout {
    /// Roll a policy or a model out: first to a canary, then in waves, each of which must pass the gates.
    Start(Box<Start>),
    /// List rollouts, the newest first.
    List(List),
    /// Show a rollout: how far it is, what its gates measure, which devices failed and why.
    Show(Show),
    /// Let no further wave go out. The gates still watch.
    Pause(Act),
    /// Go on after a pause.
    Resume(Act),
    /// End it; devices keep what they have.
    Abort(Act),
    /// Give devices back what they had before.
    RollBack(Act),
}

/// The policy or model must be known to the controller: `offramp-fleet policy add` and `offramp-fleet model add` bring it
/// there. Prints the rollout's number.
#[derive(Debug, Args)]
pub(super) struct Start {
    /// Name of the policy, or of the model.
    name: String,
    /// Its version.
    version: u64,
    /// It is a model. Costs are then compared in multiply-adds a frame, and exits not at all.
    #[arg(long)]
    model: bool,
    /// A parameter of the policy; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = check_parameter, conflicts_with = "model")]
    parameter: Vec<String>,
    /// A device that is to get it; may be repeated. Without one, every device that is known now.
    #[arg(long, value_name = "DEVICE")]
    device: Vec<DeviceId>,
    /// Instead of names: every device that this means now, e.g. group=night or site=north,state=alive.
    #[arg(long, value_name = "SELECTOR", conflicts_with = "device")]
    select: Option<String>,
    /// Devices of the first wave [default: 1].
    #[arg(long, value_name = "DEVICES")]
    canary: Option<u32>,
    /// Each wave makes so many times as many devices have it [default: 5].
    #[arg(long)]
    factor: Option<f64>,
    /// Devices in a minute, at most; 0 for as many as there are [default: 0].
    #[arg(long, value_name = "DEVICES")]
    rate: Option<u32>,
    /// For how long each device is watched once it is in force, e.g. 90s, 10m, 2h [default: 10m].
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    watch: Option<u64>,
    /// Frames that each device must give before it is judged [default: 1000].
    #[arg(long)]
    frames: Option<u64>,
    /// After which time a device that does not answer has failed [default: 15m].
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    patience: Option<u64>,
    /// Leave devices as they are when a gate fails, instead of giving them back what they had.
    #[arg(long)]
    no_roll_back: bool,
    /// Another bound for a gate, or `off`; may be repeated. Gates and their defaults: failed=0.05 (share of devices),
    /// cost=1.25 (after over before), exits=0.3 (share of frames that leave elsewhere), disagreement=0.02 (rise),
    /// loss=0.02 (accuracy), faults=0.001 (share of frames), rollbacks=1 and restarts=0.2 (for each device).
    #[arg(long, value_name = "GATE=BOUND", value_parser = gate)]
    gate: Vec<(String, Option<f64>)>,
    /// Start it without a replay. Otherwise the policy is first replayed on the traces that devices share, and not
    /// started where a gate would fail.
    #[arg(long)]
    no_replay: bool,
    /// Follow it to its end; exit code 1 when it does not end well.
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Args)]
pub(super) struct Show {
    /// Number of the rollout.
    id: u64,
    /// Follow it to its end; exit code 1 when it does not end well.
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Args)]
pub(super) struct Act {
    /// Number of the rollout.
    id: u64,
    /// Why, for the log.
    #[arg(long)]
    reason: Option<String>,
    #[command(flatten)]
    server: Server,
}

/// Who did what: starts, commands, waves, failures and ends of rollouts, the last first.
#[derive(Debug, Args)]
pub(super) struct Audit {
    /// Only what is about this rollout.
    #[arg(long, value_name = "NUMBER")]
    rollout: Option<u64>,
    /// Entries, at most.
    #[arg(long, default_value_t = 100)]
    limit: u32,
    #[command(flatten)]
    server: Server,
}

/// A time as people write it, in seconds.
fn seconds(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits
        .parse()
        .map_err(|_| "use a number and s, m, h or d, e.g. 10m".to_owned())?;
    let unit = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        other => return Err(format!("`{other}` is no unit: use s, m, h or d")),
    };
    number.checked_mul(unit).ok_or_else(|| "too long".into())
}

fn gate(text: &str) -> Result<(String, Option<f64>), String> {
    let (name, bound) = text.split_once('=').ok_or("use GATE=BOUND, e.g. cost=1.1")?;
    let bound = match bound {
        "off" => None,
        number => Some(
            number
                .parse()
                .map_err(|_| format!("`{number}` is no number: use one, or `off`"))?,
        ),
    };
    Ok((name.to_owned(), bound))
}

#[derive(Debug, Deserialize)]
struct View {
    id: u64,
    policy: Option<String>,
    model: Option<String>,
    version: u64,
    state: String,
    reason: Option<String>,
    wave: u32,
    gauges: Vec<Gauge>,
    devices: BTreeMap<String, u64>,
    awaited: u64,
    created_by: String,
    #[serde(default)]
    members: Vec<Member>,
    #[serde(default)]
    forecast: Option<Forecast>,
}

#[derive(Debug, Deserialize)]
struct Gauge {
    gate: String,
    bound: f64,
    value: Option<f64>,
    before: Option<f64>,
    verdict: String,
}

#[derive(Debug, Deserialize)]
struct Member {
    device: String,
    state: String,
    why: Option<String>,
}

impl View {
    /// What is rolled out.
    fn what(&self) -> String {
        let kind = if self.model.is_some() { "model " } else { "" };
        let name = self.policy.as_ref().or(self.model.as_ref());
        format!("{kind}{} {}", name.map_or("-", String::as_str), self.version)
    }

    fn count(&self, state: &str) -> u64 {
        self.devices.get(state).copied().unwrap_or(0)
    }

    fn is_over(&self) -> bool {
        !matches!(self.state.as_str(), "running" | "paused" | "rolling-back")
    }

    /// In one line: how far it is.
    fn progress(&self) -> String {
        let all: u64 = self.devices.values().sum::<u64>() - self.count("superseded");
        let mut parts = vec![format!("{} of {all} proven", self.count("proven"))];
        for (state, what) in [
            ("in-force", "being watched"),
            ("ordered", "on the way"),
            ("failed", "failed"),
            ("reverted", "given back what they had"),
            ("superseded", "given something else"),
        ] {
            if self.count(state) > 0 {
                parts.push(format!("{} {what}", self.count(state)));
            }
        }
        if self.awaited > 0 {
            parts.push(format!("waits until {} more have run it", self.awaited));
        }
        parts.join(", ")
    }
}

impl Rollout {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Start(start) => start.run(),
            Self::List(list) => list.run(),
            Self::Show(show) => show.run(),
            Self::Pause(act) => act.run("pause"),
            Self::Resume(act) => act.run("resume"),
            Self::Abort(act) => act.run("abort"),
            Self::RollBack(act) => act.run("roll-back"),
        }
    }
}

impl Start {
    /// What the options say; what they leave open is the controller's to fill in.
    fn plan(&self) -> Value {
        let mut plan = serde_json::Map::new();
        let options = [
            ("canary", self.canary.map(Value::from)),
            ("factor", self.factor.map(Value::from)),
            ("rate", self.rate.map(Value::from)),
            ("watch", self.watch.map(Value::from)),
            ("frames", self.frames.map(Value::from)),
            ("patience", self.patience.map(Value::from)),
            ("roll_back", self.no_roll_back.then_some(Value::from(false))),
        ];
        for (name, value) in options {
            if let Some(value) = value {
                plan.insert(name.into(), value);
            }
        }
        if !self.gate.is_empty() {
            let gates: serde_json::Map<String, Value> = self
                .gate
                .iter()
                .map(|(name, bound)| (name.clone(), json!(bound)))
                .collect();
            plan.insert("gates".into(), gates.into());
        }
        plan.into()
    }

    fn run(self) -> anyhow::Result<()> {
        let parameters: BTreeMap<String, Parameter> = self
            .parameter
            .iter()
            .filter_map(|text| Parameter::parse(text).ok())
            .collect();
        let kind = if self.model { "model" } else { "policy" };
        let wanted = json!({
            kind: self.name, "version": self.version, "parameters": parameters, "devices": self.device,
            "select": self.select, "plan": self.plan(), "replay": !self.no_replay
        });
        let client = Client::new(&self.server);
        let answer = client.post_json("/rollouts", &wanted)?;
        let id = parse::<Value>(&answer)?["id"]
            .as_u64()
            .context("the controller gave no number")?;
        if !self.follow {
            let text = if self.server.json { answer } else { id.to_string() };
            return print(&format!("{text}\n"));
        }
        follow(&client, id, self.server.json)
    }
}

impl List {
    fn run(self) -> anyhow::Result<()> {
        #[derive(Deserialize)]
        struct Answer {
            rollouts: Vec<View>,
        }
        let answer = Client::new(&self.server).get("/rollouts", &[])?;
        if self.server.json {
            return print(&format!("{answer}\n"));
        }
        let listed: Answer = parse(&answer)?;
        if listed.rollouts.is_empty() {
            eprintln!("nothing was rolled out yet");
            return Ok(());
        }
        let heads = [
            ("ROLLOUT", Align::Right),
            ("WHAT", Align::Left),
            ("STATE", Align::Left),
            ("WAVE", Align::Right),
            ("BY", Align::Left),
            ("DEVICES", Align::Left),
        ];
        let rows = listed.rollouts.into_iter().map(|view| {
            vec![
                view.id.to_string(),
                view.what(),
                view.state.clone(),
                view.wave.to_string(),
                view.created_by.clone(),
                view.progress(),
            ]
        });
        print(&table(&heads, &rows.collect::<Vec<_>>()))
    }
}

impl Show {
    fn run(self) -> anyhow::Result<()> {
        let client = Client::new(&self.server);
        if self.follow {
            return follow(&client, self.id, self.server.json);
        }
        let answer = client.get(&format!("/rollouts/{}", self.id), &[])?;
        if self.server.json {
            return print(&format!("{answer}\n"));
        }
        tell(&parse(&answer)?)
    }
}

impl Act {
    fn run(self, act: &str) -> anyhow::Result<()> {
        let path = format!("/rollouts/{}/{act}", self.id);
        let reason = self.reason.as_deref().map(|reason| ("reason", reason));
        let answer = Client::new(&self.server).post(&path, reason.as_slice(), &[])?;
        if self.server.json {
            return print(&format!("{answer}\n"));
        }
        let view: View = parse(&answer)?;
        print(&format!("rollout {} is {}: {}\n", view.id, view.state, view.progress()))
    }
}

/// Shows how a rollout gets on until it is over.
fn follow(client: &Client, id: u64, as_json: bool) -> anyhow::Result<()> {
    let terminal = std::io::stderr().is_terminal();
    let mut last = String::new();
    loop {
        let answer = client.get(&format!("/rollouts/{id}"), &[])?;
        let view: View = parse(&answer)?;
        let line = format!("rollout {id} {}, wave {}: {}", view.state, view.wave, view.progress());
        if line != last {
            if terminal {
                eprint!("\r\x1b[K{line}");
            } else {
                eprintln!("{line}");
            }
            last = line;
        }
        if view.is_over() {
            if terminal {
                eprintln!();
            }
            if as_json {
                print(&format!("{answer}\n"))?;
            } else {
                tell(&view)?;
            }
            if view.state != "done" {
                bail!("rollout {id} did not end well: it is {}", view.state);
            }
            return Ok(());
        }
        std::thread::sleep(PACE);
    }
}

fn tell(view: &View) -> anyhow::Result<()> {
    let mut text = format!(
        "rollout {}: {}, {}, wave {}, by {}\n{}\n",
        view.id,
        view.what(),
        view.state,
        view.wave,
        view.created_by,
        view.progress()
    );
    if let Some(reason) = &view.reason {
        text.push_str(&format!("{reason}\n"));
    }
    if let Some(forecast) = &view.forecast {
        text.push_str(&format!("\nforeseen\n{}", forecast.table()));
    }
    let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.4}"));
    let rows: Vec<Vec<String>> = view
        .gauges
        .iter()
        .map(|gauge| {
            vec![
                gauge.gate.clone(),
                number(gauge.value),
                number(gauge.before),
                gauge.bound.to_string(),
                gauge.verdict.clone(),
            ]
        })
        .collect();
    if !rows.is_empty() {
        let heads = [
            ("GATE", Align::Left),
            ("MEASURED", Align::Right),
            ("BEFORE", Align::Right),
            ("BOUND", Align::Right),
            ("VERDICT", Align::Left),
        ];
        text.push('\n');
        text.push_str(&table(&heads, &rows));
    }
    let failed: Vec<Vec<String>> = view
        .members
        .iter()
        .filter_map(|member| {
            let why = member.why.clone()?;
            Some(vec![member.device.clone(), member.state.clone(), why])
        })
        .take(20)
        .collect();
    if !failed.is_empty() {
        let heads = [("DEVICE", Align::Left), ("STATE", Align::Left), ("WHY", Align::Left)];
        text.push('\n');
        text.push_str(&table(&heads, &failed));
    }
    print(&text)
}

impl Audit {
    pub(super) fn run(self) -> anyhow::Result<()> {
        #[derive(Deserialize)]
        struct Answer {
            entries: Vec<Entry>,
        }
        #[derive(Deserialize)]
        struct Entry {
            at: u64,
            who: String,
            what: String,
            subject: String,
            detail: String,
        }
        let limit = self.limit.to_string();
        let rollout = self.rollout.map(|id| id.to_string());
        let mut query = vec![("limit", limit.as_str())];
        query.extend(rollout.as_deref().map(|id| ("rollout", id)));
        let answer = Client::new(&self.server).get("/audit", &query)?;
        if self.server.json {
            return print(&format!("{answer}\n"));
        }
        let answer: Answer = parse(&answer)?;
        let rows: Vec<Vec<String>> = answer
            .entries
            .into_iter()
            .map(|entry| {
                vec![
                    offramp_fleet::utc(entry.at),
                    entry.who,
                    entry.what,
                    entry.subject,
                    entry.detail,
                ]
            })
            .collect();
        let heads = ["WHEN", "WHO", "WHAT", "SUBJECT", "DETAIL"].map(|head| (head, Align::Left));
        print(&table(&heads, &rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_gates_are_read_as_people_write_them() {
        assert_eq!(
            (seconds("90"), seconds("90s"), seconds("10m"), seconds("2h")),
            (Ok(90), Ok(90), Ok(600), Ok(7200))
        );
        for bad in ["", "m", "10 m", "1w", "99999999999999999999d", "-1"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
        assert_eq!(gate("cost=1.1"), Ok(("cost".into(), Some(1.1))));
        assert_eq!(gate("exits=off"), Ok(("exits".into(), None)));
        assert!(gate("cost").is_err() && gate("cost=much").is_err());
    }
}
