//! `offramp policy test`: a policy in its real host, on recorded traces, beside the built-in rule.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use offramp_bench::TradeOff;
use offramp_core::ExitView;
use offramp_policy::{ModelFacts, Parameters};
use offramp_proto::Parameter;
use offramp_trace::{Decider, Frame, Header, Hosted, Reader, Replay, Weights, files};
use serde_json::json;

use super::component;
use crate::judge::Workshop;
use crate::terminal::{self, Table, percent};

/// Traces inside this binary: what they are, and their bytes.
const EMBEDDED: [(&str, &[u8]); 3] = [
    (
        "fashion",
        include_bytes!("../../../../../models/zoo/revcol-fashion/labelled.trace"),
    ),
    (
        "fashion, scenes",
        include_bytes!("../../../../../models/zoo/revcol-fashion/scenes.trace"),
    ),
    (
        "cifar-100",
        include_bytes!("../../../../../models/zoo/revcol-cifar100/labelled.trace"),
    ),
];
/// Thresholds of the built-in rule that it is compared with.
const THRESHOLDS: u32 = 200;
/// Most frames of a trace that are used.
const MAX_FRAMES: usize = 2_000_000;

/// What is tested.
#[derive(Args, Debug)]
pub struct Test {
    /// A component, or the name of a shipped policy.
    policy: String,
    /// A trace, or a folder of them, as often as needed; without it the embedded ones, which are labelled.
    #[arg(long = "trace", value_name = "PATH")]
    traces: Vec<PathBuf>,
    /// A parameter, as often as needed.
    #[arg(long = "parameter", value_name = "NAME=VALUE")]
    parameters: Vec<String>,
    /// Write a picture: accuracy against cost, the built-in rule's curve and the policy's point.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print one JSON array, an object for each trace.
    #[arg(long)]
    json: bool,
}

/// A trace in memory.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    pub(crate) name: String,
    pub(crate) header: Header,
    pub(crate) frames: Vec<Frame>,
    weights: Weights,
}

impl Recorded {
    /// Reads a trace; of a damaged one the part before the damage, and says so.
    fn read(name: String, input: impl Read) -> anyhow::Result<Self> {
        let mut reader = Reader::new(input).with_context(|| format!("trace {name}"))?;
        let header = reader.header().clone();
        let mut frames = Vec::new();
        loop {
            match reader.next_frame() {
                Ok(Some(frame)) if frames.len() < MAX_FRAMES => frames.push(frame),
                Ok(Some(_)) => {
                    eprintln!("trace {name}: only its first {MAX_FRAMES} frames are used");
                    break;
                }
                Ok(None) => break,
                Err(error) => {
                    eprintln!("trace {name}: {error}");
                    break;
                }
            }
        }
        let weights = Weights::of(&header, &frames);
        Ok(Self {
            name,
            header,
            frames,
            weights,
        })
    }

    /// The traces that were asked for, or the embedded ones.
    pub(crate) fn all(paths: &[PathBuf]) -> anyhow::Result<Vec<Self>> {
        if paths.is_empty() {
            let embedded = EMBEDDED.iter().map(|(name, bytes)| Self::read((*name).into(), *bytes));
            return embedded.collect();
        }
        let mut all: Vec<Self> = Vec::new();
        for path in paths {
            let found = files(path).with_context(|| format!("traces {} cannot be read", path.display()))?;
            for file in found {
                let open = File::open(&file).with_context(|| format!("trace {} cannot be read", file.display()))?;
                all.push(Self::read(file.display().to_string(), BufReader::new(open))?);
            }
        }
        all.retain(|trace| !trace.frames.is_empty());
        if all.is_empty() {
            bail!("there is no frame in these traces");
        }
        Ok(all)
    }

    /// What policies are configured with.
    pub(crate) fn facts(&self) -> ModelFacts {
        ModelFacts {
            classes: self.header.classes,
            exit_costs: self.header.stage_shares(),
        }
    }

    /// Runs a policy over it.
    pub(crate) fn replay(&self, policy: &mut impl Decider) -> Replay {
        Replay::of(&self.header, &self.frames, &self.weights, policy)
    }

    /// Cost and accuracy of the built-in rule at many thresholds, rising in cost.
    pub(crate) fn rule(&self) -> Vec<(f64, f64)> {
        let points = (0..=THRESHOLDS).map(|step| {
            let threshold = step as f32 / (THRESHOLDS as f32) * 1.01;
            let replay = self.replay(&mut |view: &ExitView| ExitView { threshold, ..*view }.rule());
            point(&replay)
        });
        points.collect()
    }

    /// Whether its true classes are known.
    fn labelled(&self) -> bool {
        self.frames.iter().any(|frame| frame.label.is_some())
    }
}

/// Cost, and accuracy or agreement.
pub(crate) fn point(replay: &Replay) -> (f64, f64) {
    (replay.mean_cost().unwrap_or(f64::NAN), good(replay))
}

/// Accuracy, or, without labels, agreement with the last exit.
pub(crate) fn good(replay: &Replay) -> f64 {
    replay.accuracy().or(replay.agreement()).unwrap_or(f64::NAN)
}

/// What came of one trace.
struct Row<'a> {
    trace: &'a Recorded,
    replay: Replay,
    rule: Vec<(f64, f64)>,
    fuel: (u64, u64),
    fault: Option<String>,
}

impl Row<'_> {
    /// The rule's accuracy at the policy's cost: of what it reaches at most so dear, the best.
    fn rule_at_cost(&self) -> Option<f64> {
        let cost = self.replay.mean_cost()? + 1e-9;
        let within = self.rule.iter().filter(|(dear, _)| *dear <= cost);
        within.map(|(_, good)| *good).reduce(f64::max)
    }

    /// The rule's least cost at which it is as good.
    fn rule_cost(&self) -> Option<f64> {
        let wanted = good(&self.replay) - 1e-9;
        let as_good = self.rule.iter().filter(|(_, good)| *good >= wanted);
        as_good.map(|(cost, _)| *cost).reduce(f64::min)
    }

    fn exits(&self) -> String {
        let shares = self.replay.exit_shares();
        let shares = shares.iter().map(|share| format!("{:.0}", 100.0 * share));
        shares.collect::<Vec<_>>().join("/")
    }

    fn json(&self) -> serde_json::Value {
        let replay = &self.replay;
        json!({
            "trace": self.trace.name, "model": self.trace.header.model, "frames": replay.frames,
            "unanswered": replay.unanswered, "scored": replay.scored,
            "not_represented": self.trace.weights.not_represented(), "accuracy": replay.accuracy(), "agreement": replay.agreement(),
            "cost": replay.mean_cost(), "exits": replay.exit_shares(), "rule_at_cost": self.rule_at_cost(),
            "rule_cost": self.rule_cost(), "fuel_median": self.fuel.0, "fuel_most": self.fuel.1,
            "faults": replay.faults, "fault": self.fault, "recorded": replay.recorded, "changed": replay.changed,
        })
    }
}

/// Tests a policy.
///
/// # Errors
/// When the policy is refused, or a trace cannot be read.
pub fn test(test: &Test) -> anyhow::Result<()> {
    let bytes = component(&test.policy)?;
    let parameters = test.parameters.iter().map(|text| Parameter::parse(text));
    let parameters = Parameters::of(&parameters.collect::<Result<_, _>>()?)?;
    let traces = Recorded::all(&test.traces)?;
    let workshop = Workshop::for_facts(traces[0].facts())?;
    let refused = || format!("policy {} is refused", test.policy);
    let policy = workshop.load(&bytes).with_context(refused)?;
    let rows = traces.iter().map(|trace| {
        let mut hosted = Hosted::new(&policy, &trace.facts(), &parameters).with_context(refused)?;
        let replay = trace.replay(&mut hosted);
        let fault = hosted.fault().map(|fault| fault.to_string());
        let mut fuel = hosted.into_fuel();
        fuel.sort_unstable();
        let median = fuel.get(fuel.len() / 2).copied().unwrap_or(0);
        Ok(Row {
            trace,
            replay,
            rule: trace.rule(),
            fuel: (median, fuel.last().copied().unwrap_or(0)),
            fault,
        })
    });
    let rows = rows.collect::<anyhow::Result<Vec<_>>>()?;
    if let Some(path) = &test.svg {
        draw(path, &test.policy, &rows)?;
    }
    if test.json {
        let rows: Vec<_> = rows.iter().map(Row::json).collect();
        return Ok(terminal::line(&json!(rows).to_string())?);
    }
    tell(&test.policy, &rows)
}

fn tell(policy: &str, rows: &[Row<'_>]) -> anyhow::Result<()> {
    let mut table = Table::new([
        "trace",
        "frames",
        "accuracy",
        "cost",
        "left at exit (%)",
        "rule, as dear",
        "rule, as good",
        "fuel, most",
        "faults",
    ]);
    let maybe = |share: Option<f64>| share.map_or_else(|| "-".into(), percent);
    for row in rows {
        let sign = if row.trace.labelled() { "" } else { "*" };
        table.row([
            row.trace.name.clone(),
            row.replay.frames.to_string(),
            format!("{}{sign}", percent(good(&row.replay))),
            maybe(row.replay.mean_cost()),
            row.exits(),
            maybe(row.rule_at_cost()),
            maybe(row.rule_cost()),
            format!("{}, {}", row.fuel.0, row.fuel.1),
            row.replay.faults.to_string(),
        ]);
    }
    terminal::line(&format!(
        "{policy}, beside the built-in rule: its accuracy where it is as dear, its cost where it is as good\n"
    ))?;
    terminal::line(&table.to_string())?;
    for row in rows {
        let replay = &row.replay;
        if replay.scored < replay.frames {
            terminal::line(&format!(
                "{}: {} complete frames stand for the {} that were recorded; {} have none that stands for them",
                row.trace.name,
                replay.scored,
                replay.frames,
                row.trace.weights.not_represented()
            ))?;
        }
        if replay.scored == 0 {
            terminal::line(&format!(
                "{}: no frame is complete: record with `complete_share` above 0 in [trace]",
                row.trace.name
            ))?;
        }
        if replay.recorded > 0 {
            terminal::line(&format!(
                "{}: {} of {} recorded verdicts are others now",
                row.trace.name, replay.changed, replay.recorded
            ))?;
        }
        if let Some(fault) = &row.fault {
            terminal::line(&format!("{}: {fault}", row.trace.name))?;
        }
    }
    if rows.iter().any(|row| !row.trace.labelled()) {
        terminal::line("* without labels: share of frames whose class is the last exit's")?;
    }
    Ok(())
}

fn draw(path: &Path, policy: &str, rows: &[Row<'_>]) -> anyhow::Result<()> {
    let mut picture = TradeOff::new(format!("{policy} on traces, beside the built-in rule"));
    for row in rows {
        picture.line(format!("built-in rule, {}", row.trace.name), row.rule.clone());
        picture.point(format!("{policy}, {}", row.trace.name), point(&row.replay));
    }
    let svg = picture.svg().map_err(anyhow::Error::msg)?;
    std::fs::write(path, svg).with_context(|| format!("picture {} cannot be written", path.display()))
}
