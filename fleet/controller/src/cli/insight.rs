//! `offramp-fleet insight`

use clap::{Args, ValueEnum};
use serde::Deserialize;

use super::client::{Client, parse};
use super::{Align, Server, print, table};

/// What learned heads save against those that the model came with, at the accuracy budget; how far predictions are from
/// the last exit's; what is seen. Then the devices that profit nothing, and those that see something else than usual.
#[derive(Debug, Args)]
pub(super) struct Insight {
    /// What tells the rows apart.
    #[arg(long, value_name = "WHAT", default_value = "policy")]
    by: By,
    /// Only devices that this means, e.g. site=north.
    #[arg(long, value_name = "SELECTOR")]
    select: Option<String>,
    #[command(flatten)]
    server: Server,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum By {
    Policy,
    Model,
    Group,
    Label,
}

#[derive(Deserialize)]
struct Answer {
    all: Figures,
    policies: Vec<Part>,
    models: Vec<Part>,
    groups: Vec<Part>,
    labels: Vec<Part>,
}

#[derive(Deserialize)]
struct Part {
    name: String,
    version: Option<u64>,
    #[serde(flatten)]
    figures: Figures,
}

#[derive(Deserialize)]
struct Figures {
    devices: u64,
    cost_share: Option<f64>,
    saving: Option<Saving>,
    disagreement: Option<f64>,
    given_up: Option<f64>,
    unprofitable: Named,
    drifting: Named,
    classes: Vec<Class>,
}

#[derive(Deserialize)]
struct Saving {
    learned: f64,
    frozen: f64,
    share: f64,
    low: f64,
    ms_per_frame: Option<f64>,
    mj_per_frame: Option<f64>,
}

#[derive(Deserialize)]
struct Named {
    count: u64,
    first: Vec<String>,
}

#[derive(Deserialize)]
struct Class {
    class: String,
    share: f64,
}

impl Insight {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let query = self.select.as_deref().map(|select| ("select", select));
        let answer = Client::new(&self.server).get("/insight", query.as_slice())?;
        if self.server.json {
            return print(&format!("{answer}\n"));
        }
        let answer: Answer = parse(&answer)?;
        let parts = match self.by {
            By::Policy => &answer.policies,
            By::Model => &answer.models,
            By::Group => &answer.groups,
            By::Label => &answer.labels,
        };
        let mut rows: Vec<Vec<String>> = parts
            .iter()
            .map(|part| {
                let name = match part.version {
                    Some(version) => format!("{} {version}", part.name),
                    None => part.name.clone(),
                };
                row(name, &part.figures)
            })
            .collect();
        rows.push(row("all".into(), &answer.all));
        let what = match self.by {
            By::Policy => "POLICY",
            By::Model => "MODEL",
            By::Group => "GROUP",
            By::Label => "LABEL",
        };
        let heads = [
            (what, Align::Left),
            ("DEVICES", Align::Right),
            ("COST", Align::Right),
            ("LEARNED / FROZEN", Align::Right),
            ("SAVED", Align::Right),
            ("MS", Align::Right),
            ("MJ", Align::Right),
            ("DISAGREE", Align::Right),
            ("GIVEN UP", Align::Right),
            ("SEES MOSTLY", Align::Left),
        ];
        print(&table(&heads, &rows))?;
        for (what, devices) in [
            ("profit nothing", &answer.all.unprofitable),
            ("see something else than usual", &answer.all.drifting),
        ] {
            if devices.count > 0 {
                let more = devices.count - devices.first.len() as u64;
                let more = if more > 0 {
                    format!(" and {more} more")
                } else {
                    String::new()
                };
                print(&format!("{what}: {}{more}\n", devices.first.join(", ")))?;
            }
        }
        Ok(())
    }
}

fn row(name: String, figures: &Figures) -> Vec<String> {
    let share = |share: Option<f64>| share.map_or_else(|| "-".into(), |share| format!("{:.1} %", share * 100.0));
    let number = |number: Option<f64>, digits: usize| number.map_or_else(|| "-".into(), |n| format!("{n:.digits$}"));
    let saving = figures.saving.as_ref();
    let classes = figures.classes.iter().take(3);
    let classes: Vec<String> = classes
        .map(|class| format!("{} {:.0} %", class.class, class.share * 100.0))
        .collect();
    vec![
        name,
        figures.devices.to_string(),
        share(figures.cost_share),
        saving.map_or_else(
            || "-".into(),
            |s| format!("{} / {}", share(Some(s.learned)), share(Some(s.frozen))),
        ),
        saving.map_or_else(
            || "-".into(),
            |s| format!("{} (>= {})", share(Some(s.share)), share(Some(s.low))),
        ),
        number(saving.and_then(|s| s.ms_per_frame), 2),
        number(saving.and_then(|s| s.mj_per_frame), 1),
        share(figures.disagreement),
        share(figures.given_up),
        if classes.is_empty() {
            "-".into()
        } else {
            classes.join(", ")
        },
    ]
}
