//! A core that is driven over a stream from features instead of images.

use offramp_core::{Core, Effect, Event, Facts, Micros, Prediction, SplitMix64, Verdict};

use crate::features::Features;
use crate::stream::{Shown, chance};

/// Who says what a frame is, for the learner.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Labels {
    /// The network itself: what a device has.
    Own,
    /// The network itself, but this share of the answers is replaced by a class at random.
    Flipped(f64),
    /// The network itself, but always another class, the same for the same answer: the worst teacher.
    Swapped,
    /// The truth: what no device has.
    True,
}

/// Who decides at the exits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// The core's built-in rule.
    BuiltIn,
    /// Nobody leaves early.
    Never,
}

/// Sums over a stream.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    /// Frames.
    pub frames: u64,
    /// Right predictions.
    pub right: u64,
    /// Multiply-adds up to the predictions.
    pub macs: u64,
    /// Multiply-adds of learning.
    pub learning_macs: u64,
    /// Multiply-adds of audits.
    pub audit_macs: u64,
    /// Times that the guard, or a bound, took heads back.
    pub rollbacks: u64,
    /// What learned and frozen heads would cost by the core's audits, at the end; none without audits.
    pub control: Option<[f32; 2]>,
}

impl Tally {
    /// Share of right predictions.
    pub fn accuracy(&self) -> f64 {
        self.right as f64 / self.frames.max(1) as f64
    }
}

/// Shows a stream to a core. `each` is called after every frame, with how many there were and what was predicted.
pub(crate) fn replay(
    core: &mut Core,
    features: &Features,
    stream: &[Shown],
    rule: Rule,
    labels: Labels,
    random: &mut SplitMix64,
    mut each: impl FnMut(usize, &Prediction, &Core),
) -> Tally {
    let mut tally = Tally::default();
    core.close_window();
    for (n, shown) in stream.iter().enumerate() {
        let prediction = frame(core, features, *shown, rule, random);
        let truth = u32::from(features.labels[shown.image]);
        match labels {
            Labels::Own => {}
            Labels::Flipped(share) => {
                if chance(random, share) {
                    core.correct(random.below(features.classes) as u32);
                }
            }
            Labels::Swapped => core.correct((prediction.class + 1) % features.classes as u32),
            Labels::True => core.correct(truth),
        }
        core.learn();
        tally.frames += 1;
        tally.right += u64::from(prediction.class == truth);
        tally.macs += prediction.macs;
        each(n + 1, &prediction, core);
    }
    let window = core.close_window();
    let cost = window.cost;
    tally.rollbacks = window.learner.rollbacks;
    let control = window.control;
    tally.control = (control.audits > 0).then_some([control.learned.cost, control.frozen.cost]);
    tally.audit_macs = cost.audit_macs;
    tally.learning_macs = cost.macs.saturating_sub(tally.macs + cost.audit_macs);
    tally
}

/// One frame, its audit included; learning is left to the caller.
pub(crate) fn frame(
    core: &mut Core,
    features: &Features,
    shown: Shown,
    rule: Rule,
    random: &mut SplitMix64,
) -> Prediction {
    let mut next = None;
    let mut prediction = None;
    let arrived = Event::FrameArrived {
        frame: shown.image as u64,
        random: (random.next() >> 32) as u32,
        context: shown.context,
        facts: Facts::default(),
    };
    let mut step = |event: Event<'_>, next: &mut Option<Effect>| {
        core.handle(Micros(0), event, &mut |effect| match effect {
            Effect::Emit { prediction: p } => prediction = Some(p),
            order @ (Effect::RunStage { .. } | Effect::Decide { .. } | Effect::Finished { .. }) => *next = Some(order),
        })
        .expect("features of a package fit its heads, and events come as they are ordered");
    };
    step(arrived, &mut next);
    loop {
        let event = match next.take() {
            Some(Effect::RunStage { stage }) => Event::FeaturesReady {
                features: features.of(stage, shown.image),
            },
            Some(Effect::Decide { view }) => Event::VerdictGiven {
                verdict: match rule {
                    Rule::BuiltIn => view.rule(),
                    Rule::Never => Verdict::GoOn,
                },
                fault: false,
            },
            Some(Effect::Finished { .. } | Effect::Emit { .. }) | None => break,
        };
        step(event, &mut next);
    }
    prediction.expect("a frame that is finished has been emitted")
}
