use serde::{Deserialize, Serialize};

use super::plan::Gates;
use crate::overview::{add_exits, share};
use crate::store::Run;

/// What windows said, added up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Sums {
    /// What is added up of a run, too.
    #[serde(flatten)]
    pub(crate) run: Run,
    /// Rollbacks of the learner.
    pub(crate) rollbacks: u64,
    /// Verdicts that the policy failed to give.
    pub(crate) faults: u64,
    /// Frames taken at each exit.
    pub(crate) exits: Vec<u64>,
    /// Multiply-adds that learning surely saved: heads as the model came with would have taken so many more.
    pub(crate) saved: u64,
    /// Accuracy given up, as the latest window that told had it. Nothing is compared with what it was before.
    #[serde(skip)]
    pub(crate) loss: Option<Loss>,
}

/// An estimate of the accuracy that a device gives up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Loss {
    pub(crate) estimate: f64,
    /// How far it may be from the truth, one-sided 95 %.
    pub(crate) doubt: f64,
}

impl Sums {
    /// Adds a later one.
    pub(crate) fn add(&mut self, other: &Self) {
        self.run.add(&other.run);
        self.rollbacks = self.rollbacks.saturating_add(other.rollbacks);
        self.faults = self.faults.saturating_add(other.faults);
        add_exits(&mut self.exits, &other.exits);
        self.saved = self.saved.saturating_add(other.saved);
        self.loss = other.loss.or(self.loss);
    }

    fn cost(&self) -> Option<f64> {
        share(self.run.macs, self.run.full_macs)
    }

    /// Multiply-adds with heads as the model came with.
    fn untaught(&self) -> u64 {
        self.run.macs.saturating_add(self.saved)
    }

    /// A lower bound of the disagreement, one-sided 95 % (Wilson).
    fn disagreement_at_least(&self) -> Option<f64> {
        const Z: f64 = 1.645;
        let (n, p) = (self.run.audits as f64, share(self.run.disagreements, self.run.audits)?);
        let centre = p + Z * Z / (2.0 * n);
        let spread = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
        let bound = (centre - spread) / (1.0 + Z * Z / n);
        Some(bound.max(0.0) * share(self.run.early, self.run.frames)?)
    }
}

/// What a gate says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    /// Within its bound.
    Holds,
    /// Beyond its bound.
    Fails,
    /// It cannot tell: too few frames, or nothing to compare with.
    Unknown,
}

/// A gate, and what it measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct Gauge {
    /// Name of the gate, as the plan has it.
    pub(crate) gate: String,
    pub(crate) bound: f64,
    pub(crate) value: Option<f64>,
    /// What the same devices had before, where it is compared with that.
    pub(crate) before: Option<f64>,
    pub(crate) verdict: Verdict,
}

/// A wave as the gates see it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wave {
    /// Whether another model is rolled out: then costs are compared in multiply-adds a frame, and exits, which are those
    /// of another network, not at all. It has learned nothing yet, so that what learning saves counts on neither side.
    pub(crate) other_model: bool,
    /// Devices that it will have when all of it is out.
    pub(crate) planned: u64,
    /// Share of all devices that have the policy which failed, those of earlier waves included: a device can give up
    /// long after its wave has passed.
    pub(crate) failed_overall: Option<f64>,
    /// Devices that count, and of these those that failed.
    pub(crate) devices: u64,
    pub(crate) failed: u64,
    pub(crate) restarts: u64,
    pub(crate) before: Sums,
    pub(crate) after: Sums,
    /// Sums of the devices' losses and of the squares of their doubts, and how many told of one.
    pub(crate) loss: (f64, f64, u64),
}

/// What the gates say of a wave. Those about frames hold their tongue below `frames`, all devices of the wave together,
/// and those that compare until there were as many before, too.
pub(crate) fn gauges(gates: &Gates, wave: &Wave, frames: u64) -> Vec<Gauge> {
    let (before, after) = (&wave.before, &wave.after);
    let told = after.run.frames >= frames.max(1);
    let compared = told && before.run.frames > 0;
    let when = |known: bool, value: Option<f64>| value.filter(|_| known);
    let of_wave = share(wave.failed, wave.planned.max(wave.devices));
    let failed = of_wave.map(|share| share.max(wave.failed_overall.unwrap_or(0.0)));
    let per_device = |count: u64| share(count, wave.devices);
    let cost = |sums: &Sums| when(compared, sums.cost());
    let of_frame = |sums: &Sums| match wave.other_model {
        true => when(compared, share(sums.untaught(), sums.run.frames)),
        false => cost(sums),
    };
    let ratio = of_frame(after)
        .zip(of_frame(before))
        .map(|(after, before)| after / before.max(1e-9));
    let rise = after
        .run
        .disagreement()
        .zip(before.run.disagreement())
        .map(|(a, b)| a - b);
    let (sum, doubts, telling) = wave.loss;
    let mean = |sum: f64| (telling > 0).then(|| sum / telling as f64);
    let loss = mean(sum);
    let mut gauges = vec![
        gauge("failed", gates.failed, failed, None),
        gauge("cost", gates.cost, ratio, cost(before)),
        gauge(
            "exits",
            gates.exits.filter(|_| !wave.other_model),
            when(compared, moved(before, after)),
            None,
        ),
        gauge(
            "disagreement",
            gates.disagreement,
            when(compared, rise),
            before.run.disagreement(),
        ),
        gauge("loss", gates.loss, loss.filter(|_| told), None),
        gauge(
            "faults",
            gates.faults,
            when(told, share(after.faults, after.run.frames)),
            None,
        ),
        gauge("rollbacks", gates.rollbacks, per_device(after.rollbacks), None),
        gauge("restarts", gates.restarts, per_device(wave.restarts), None),
    ];
    // Few audits say little: what rests on them shuts a gate when it is certain, not when it may be chance.
    let rise = after.disagreement_at_least().zip(before.run.disagreement());
    let rise = rise.map(|(least, before)| least - before);
    let loss = loss.zip(mean(doubts.sqrt())).map(|(loss, doubt)| loss - doubt);
    for gauge in gauges.iter_mut().flatten() {
        let least = match gauge.gate.as_str() {
            "disagreement" => rise,
            "loss" => loss,
            _ => continue,
        };
        if gauge.verdict == Verdict::Fails && least.is_none_or(|least| least <= gauge.bound) {
            gauge.verdict = Verdict::Unknown;
        }
    }
    gauges.into_iter().flatten().collect()
}

fn gauge(name: &str, bound: Option<f64>, value: Option<f64>, before: Option<f64>) -> Option<Gauge> {
    let bound = bound?;
    let verdict = match value {
        None => Verdict::Unknown,
        Some(value) if value <= bound => Verdict::Holds,
        Some(_) => Verdict::Fails,
    };
    Some(Gauge {
        gate: name.into(),
        bound,
        value,
        before,
        verdict,
    })
}

/// What a replay foresees for the devices of a model; pairs are today and then.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Foreseen<'a> {
    pub(crate) cost: Option<(f64, f64)>,
    /// Shares of the frames at each exit.
    pub(crate) exits: (&'a [f64], &'a [f64]),
    pub(crate) agreement: Option<(f64, f64)>,
    /// Verdicts that fail, over frames.
    pub(crate) faults: f64,
    /// Whether the policy does not take the model.
    pub(crate) failed: bool,
}

/// What the gates say of what is foreseen, those that can.
pub(crate) fn foreseen(gates: &Gates, seen: &Foreseen<'_>) -> Vec<Gauge> {
    let ratio = seen.cost.map(|(today, then)| then / today.max(1e-9));
    let (today, then) = seen.exits;
    let moved = (!today.is_empty() && today.len() == then.len()).then(|| {
        let differences = today.iter().zip(then).map(|(today, then)| (today - then).abs());
        differences.sum::<f64>() / 2.0
    });
    let rise = seen.agreement.map(|(today, then)| today - then);
    let before = seen.agreement.map(|(today, _)| 1.0 - today);
    let failed = if seen.failed { 1.0 } else { 0.0 };
    let gauges = [
        gauge("failed", gates.failed, Some(failed), None),
        gauge("cost", gates.cost, ratio, seen.cost.map(|(today, _)| today)),
        gauge("exits", gates.exits, moved, None),
        gauge("disagreement", gates.disagreement, rise, before),
        gauge("faults", gates.faults, Some(seen.faults), None),
    ];
    gauges.into_iter().flatten().collect()
}

/// Share of frames that leave at other exits.
fn moved(before: &Sums, after: &Sums) -> Option<f64> {
    let exits = before.exits.len().max(after.exits.len());
    let part = |sums: &Sums, exit: usize| share(sums.exits.get(exit).copied().unwrap_or(0), sums.run.frames);
    let differences = (0..exits).map(|exit| Some((part(before, exit)? - part(after, exit)?).abs()));
    Some(differences.sum::<Option<f64>>()? / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_another_model_costs_are_compared_by_the_frame_and_exits_not_at_all() {
        let sums = |macs, full_macs, exits: [u64; 2]| Sums {
            run: Run {
                frames: 1000,
                macs,
                full_macs,
                ..Run::default()
            },
            exits: exits.into(),
            ..Sums::default()
        };
        // Half of a network that is four times as large is twice as much.
        let wave = |other_model| Wave {
            other_model,
            devices: 1,
            before: sums(1_000_000, 1_000_000, [0, 1000]),
            after: sums(2_000_000, 4_000_000, [1000, 0]),
            ..Wave::default()
        };
        let verdicts = |other_model| {
            let gauges = gauges(&Gates::default(), &wave(other_model), 10);
            let of = |gate| {
                gauges
                    .iter()
                    .find(|gauge| gauge.gate == gate)
                    .map(|gauge| gauge.verdict)
            };
            (of("cost"), of("exits"))
        };
        assert_eq!(verdicts(false), (Some(Verdict::Holds), Some(Verdict::Fails)));
        assert_eq!(verdicts(true), (Some(Verdict::Fails), None));
    }

    #[test]
    fn what_the_old_model_had_learned_is_not_held_against_another() {
        let cost = |saved, other_model| {
            let sums = |macs, saved| Sums {
                run: Run {
                    frames: 1000,
                    macs,
                    full_macs: 1_000_000,
                    ..Run::default()
                },
                saved,
                ..Sums::default()
            };
            let wave = Wave {
                other_model,
                devices: 1,
                before: sums(400_000, saved),
                after: sums(600_000, 0),
                ..Wave::default()
            };
            let gauges = gauges(&Gates::default(), &wave, 10);
            gauges.into_iter().find(|gauge| gauge.gate == "cost").unwrap().verdict
        };
        assert_eq!(cost(200_000, true), Verdict::Holds);
        assert_eq!(cost(0, true), Verdict::Fails);
        // A policy goes on with what was learned.
        assert_eq!(cost(200_000, false), Verdict::Fails);
    }
}
