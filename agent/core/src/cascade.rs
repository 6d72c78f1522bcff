//! A frame's way from stage to stage, as a state machine.

use alloc::vec;
use alloc::vec::Vec;
use core::mem;

use offramp_proto::GuardReport;

use crate::audit::upper_bound;
use crate::checkpoint::{self, CheckpointError};
use crate::context::Contexts;
use crate::drift::Usual;
use crate::guard::{Audited, Finding, GuardSettings, Rules};
use crate::head::Head;
use crate::learner::{LearnerSettings, Step, Target};
use crate::math;
use crate::view::{AuditResult, ExitView, Outcome, Verdict};
use crate::whitener::{Measurement, Whitener};
use crate::window::{Window, WindowReport};

/// A point in time: microseconds since an origin of the driver's choice; never runs backwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Micros(pub u64);

impl Micros {
    fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// What the core must know of a multi-exit network.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// One head per stage, in order.
    pub heads: Vec<Head>,
    /// Per exit, from the first on, what whitens its features; where one is missing it is measured
    /// ([`LearnerSettings::measure`]). The last exit needs none: it has no teacher.
    pub whiteners: Vec<Option<Whitener>>,
    /// Multiply-adds of each stage.
    pub stage_macs: Vec<u64>,
}

/// Why a network cannot be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// There must be as many heads as stages, at least one.
    #[error("network has {heads} heads for {stages} stages")]
    Stages {
        /// Heads.
        heads: usize,
        /// Stages.
        stages: usize,
    },
    /// All heads must know the same classes.
    #[error("heads differ in their number of classes")]
    Classes,
    /// A whitener must have as many features as its exit's head.
    #[error("whitener of exit {exit} has {whitener} features where the head has {head}")]
    Whitener {
        /// Index of the exit.
        exit: usize,
        /// Features of the whitener.
        whitener: usize,
        /// Features of the head.
        head: usize,
    },
    /// The stages' multiply-adds must be positive and their sum a number.
    #[error("multiply-adds of the stages are zero or too many")]
    Macs,
    /// A setting is outside its range.
    #[error("a setting is outside its range")]
    Settings,
}

/// What the operator sets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Confidence from which a frame leaves, `0..=1`: where the guard starts from.
    pub threshold: f32,
    /// Share of frames that are audited, `0..=1`.
    pub audit_rate: f32,
    /// The learner.
    pub learner: LearnerSettings,
    /// The guard.
    pub guard: GuardSettings,
    /// Contexts that are remembered at a time, `1..=64`; each takes memory for its heads.
    pub contexts: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            threshold: 0.8,
            audit_rate: 0.005,
            learner: LearnerSettings::default(),
            guard: GuardSettings::default(),
            contexts: 4,
        }
    }
}

impl Settings {
    /// Whether every number is in its range.
    pub fn is_valid(&self) -> bool {
        (0.0..=1.0).contains(&self.threshold)
            && (0.0..=1.0).contains(&self.audit_rate)
            && (1..=64).contains(&self.contexts)
            && self.learner.is_valid()
            && self.guard.is_valid()
    }
}

/// Facts about the device that a policy may want, taken when the frame arrives. See [`ExitView`] for units.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Facts {
    /// Milliseconds to the deadline.
    pub time_left: f32,
    /// Frames that wait.
    pub queue_depth: u32,
    /// Degrees Celsius.
    pub temperature: f32,
    /// Watts.
    pub power_budget: f32,
    /// `0..=1`.
    pub battery: f32,
}

impl Default for Facts {
    /// Nothing is known.
    fn default() -> Self {
        Self {
            time_left: f32::NAN,
            queue_depth: 0,
            temperature: f32::NAN,
            power_budget: f32::NAN,
            battery: f32::NAN,
        }
    }
}

/// What happened.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A frame is ready to be run.
    FrameArrived {
        /// The caller's number for it.
        frame: u64,
        /// A uniformly random word, which decides whether the frame is audited.
        random: u32,
        /// The context that it belongs to; what was learned in others does not apply. 0 where there is
        /// only one.
        context: u64,
        /// What is known of the device.
        facts: Facts,
    },
    /// The stage that was ordered has run.
    FeaturesReady {
        /// u ∈ R^C, ‖u‖² ≈ C.
        features: &'a [f32],
    },
    /// The policy, or the built-in rule in its stead, has decided.
    VerdictGiven {
        /// What it decided.
        verdict: Verdict,
        /// Whether the policy failed and the verdict is the built-in rule's.
        fault: bool,
    },
    /// The frame cannot go on, e.g. because its stage failed.
    FrameLost,
}

/// A frame's answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// The frame.
    pub frame: u64,
    /// Exit at which it was taken.
    pub exit: u32,
    /// The class.
    pub class: u32,
    /// Its probability, `0..=1`.
    pub confidence: f32,
    /// Multiply-adds of the stages and heads that it took.
    pub macs: u64,
    /// Microseconds from the frame's arrival.
    pub latency_us: u64,
}

/// What the driver must do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Effect {
    /// Run this stage of the frame; answer with [`Event::FeaturesReady`].
    RunStage {
        /// Index of the stage.
        stage: usize,
    },
    /// Ask the policy; answer with [`Event::VerdictGiven`].
    Decide {
        /// What the policy sees.
        view: ExitView,
    },
    /// Hand the prediction to whoever waits for it.
    Emit {
        /// The prediction.
        prediction: Prediction,
    },
    /// The frame is done, its audit included. [`Core::learn`] may be called, and the next frame may arrive.
    Finished {
        /// What became of it, for a policy that looks back. Interval and energy are the driver's to say, as is
        /// whether it made the frame leave; latencies are by the core's clock.
        outcome: Outcome,
    },
}

/// An event that does not fit the state; the state is unchanged unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misuse {
    /// The event was not asked for.
    #[error("event does not fit: {0}")]
    OutOfOrder(&'static str),
    /// The features have another length than the head's.
    #[error("stage {stage} gave {got} features where the head has {expected}; the frame is lost")]
    Length {
        /// Index of the stage.
        stage: usize,
        /// Length that came.
        got: usize,
        /// C.
        expected: usize,
    },
    /// The features are not finite or far too large to be normalised; the frame is lost.
    #[error("stage {stage} gave features that are not finite and normalised; the frame is lost")]
    Features {
        /// Index of the stage.
        stage: usize,
    },
}

/// What is waited for.
#[derive(Clone, Copy, Debug)]
enum Phase {
    /// A frame.
    Idle,
    /// The features of [`Way::stage`].
    Running,
    /// The verdict at [`Way::stage`].
    Deciding,
}

/// A frame on its way.
#[derive(Clone, Copy, Debug, Default)]
struct Way {
    frame: u64,
    random: u32,
    facts: Facts,
    stage: usize,
    arrived: Micros,
    stage_started: Micros,
    stage_us: u64,
    macs: u64,
    /// Whether a verdict was the built-in rule's because the policy failed.
    fault: bool,
    /// Set once the prediction is out: the rest is an audit.
    left: Option<Left>,
}

impl Way {
    /// Whether the frame was drawn for an audit. A policy may order others, which say nothing about the rest.
    fn is_drawn(&self, rate: f32) -> bool {
        f64::from(self.random) < f64::from(rate) * 4_294_967_296.0
    }
}

#[derive(Clone, Copy, Debug)]
struct Left {
    exit: usize,
    class: usize,
    confidence: f32,
    latency_us: u64,
    learn: bool,
}

/// What the exit that knows best, `teacher`, said of a frame: its class counts towards the prior, and is
/// taught to the exits before it.
#[derive(Clone, Copy, Debug)]
struct Lesson {
    teacher: usize,
    class: usize,
    /// Class that was predicted, where the frame was drawn for an audit.
    audited: Option<usize>,
    /// Whether exits are taught: a policy may forbid it.
    learn: bool,
    /// Multiply-adds of the prediction, as a share of the whole network.
    cost: f32,
    /// Whether the class is not the teacher's own opinion.
    corrected: bool,
}

/// What is known of the current frame at one exit; allocated once.
#[derive(Clone, Debug)]
pub(crate) struct Station {
    pub(crate) features: Vec<f32>,
    previous: Vec<f32>,
    /// W u + b.
    pub(crate) logits: Vec<f32>,
    /// Of the logits, corrected by the prior.
    pub(crate) probabilities: Vec<f32>,
    pub(crate) seen: math::Seen,
    reached: bool,
    has_previous: bool,
    /// Whether the features were added to a measurement.
    measured: bool,
}

impl Station {
    fn kept(&mut self) -> math::Kept<'_> {
        math::Kept {
            features: &mut self.features,
            previous: &self.previous,
            logits: &mut self.logits,
            probabilities: &mut self.probabilities,
        }
    }
}

/// The cascade of one camera, with its heads, learner, audits and counters. See the crate's documentation.
#[derive(Clone, Debug)]
pub struct Core {
    base: Vec<Head>,
    contexts: Contexts,
    whiteners: Vec<Whitening>,
    scratch: Scratch,
    stage_macs: Vec<u64>,
    total_macs: u64,
    /// Multiply-adds up to each exit, its head included, as a share of all.
    exit_costs: Vec<f32>,
    /// Per stage.
    shares: Vec<Share>,
    settings: Settings,
    stations: Vec<Station>,
    phase: Phase,
    /// Of the last frame where none is on its way.
    way: Way,
    lesson: Option<Lesson>,
    window: Window,
    usual: Usual,
    audits: u64,
    disagreements: u64,
}

/// What is known of the covariance of an early exit's features.
#[derive(Clone, Debug)]
enum Whitening {
    Known(Whitener),
    Measuring(Measurement),
    /// Not asked for.
    Off,
}

/// Memory that every update uses anew.
#[derive(Clone, Debug)]
struct Scratch {
    gradient: Vec<f32>,
    centred: Vec<f32>,
    direction: Vec<f32>,
    posterior: Vec<f32>,
}

/// Features u are layer-normalised, so that ‖u‖² ≈ C; beyond this many times C they cannot be.
const MAX_ENERGY: f32 = 4.0;

impl Core {
    /// A core that starts from the network's heads.
    ///
    /// # Errors
    /// See [`NetworkError`].
    pub fn new(network: Network, settings: Settings) -> Result<Self, NetworkError> {
        let Network {
            heads,
            mut whiteners,
            stage_macs,
        } = network;
        let exits = heads.len();
        if exits == 0 || exits != stage_macs.len() {
            return Err(NetworkError::Stages {
                heads: exits,
                stages: stage_macs.len(),
            });
        }
        let classes = heads[0].classes();
        if heads.iter().any(|head| head.classes() != classes) {
            return Err(NetworkError::Classes);
        }
        let total_macs = stage_macs.iter().try_fold(0u64, |sum, macs| sum.checked_add(*macs));
        let total_macs = total_macs
            .filter(|sum| *sum < 1 << 50 && !stage_macs.contains(&0))
            .ok_or(NetworkError::Macs)?;
        if !settings.is_valid() {
            return Err(NetworkError::Settings);
        }
        whiteners.resize(exits, None);
        for (exit, (whitener, head)) in whiteners.iter().zip(&heads).enumerate() {
            if let Some(whitener) = whitener.as_ref().filter(|w| w.features() != head.features()) {
                return Err(NetworkError::Whitener {
                    exit,
                    whitener: whitener.features(),
                    head: head.features(),
                });
            }
        }
        let early = exits - 1;
        let most = heads.iter().map(Head::features).max().unwrap_or(0);
        let station = |head: &Head| Station {
            features: vec![0.0; head.features()],
            previous: vec![0.0; head.features()],
            logits: vec![0.0; classes],
            probabilities: vec![0.0; classes],
            seen: math::Seen::default(),
            reached: false,
            has_previous: false,
            measured: false,
        };
        let mut core = Self {
            stations: heads.iter().map(station).collect(),
            contexts: Contexts::new(&heads, settings.threshold),
            exit_costs: exit_costs(&heads, &stage_macs),
            shares: shares(&stage_macs, total_macs),
            whiteners: whiteners
                .into_iter()
                .take(early)
                .map(|known| known.map_or(Whitening::Off, Whitening::Known))
                .collect(),
            scratch: Scratch {
                gradient: vec![0.0; classes],
                centred: vec![0.0; most],
                direction: vec![0.0; most],
                posterior: vec![0.0; classes],
            },
            base: heads,
            stage_macs,
            total_macs,
            settings,
            phase: Phase::Idle,
            way: Way::default(),
            lesson: None,
            window: Window::new(exits, classes),
            usual: Usual::new(classes),
            audits: 0,
            disagreements: 0,
        };
        core.prepare_whitening();
        Ok(core)
    }

    /// Begins to measure what is asked for and not known.
    fn prepare_whitening(&mut self) {
        let learner = &self.settings.learner;
        let wanted = learner.enabled && learner.whitened && learner.rate > 0.0;
        for (whitening, head) in self.whiteners.iter_mut().zip(&self.base) {
            match whitening {
                Whitening::Off if wanted => *whitening = Whitening::Measuring(Measurement::new(head.features())),
                Whitening::Measuring(_) if !wanted => *whitening = Whitening::Off,
                Whitening::Known(_) | Whitening::Measuring(_) | Whitening::Off => {}
            }
        }
    }

    /// Takes an event and orders what follows from it.
    ///
    /// # Errors
    /// See [`Misuse`]; a driver that follows the contract sees only what a faulty stage causes.
    pub fn handle(&mut self, now: Micros, event: Event<'_>, out: &mut impl FnMut(Effect)) -> Result<(), Misuse> {
        match (self.phase, event) {
            (
                Phase::Idle,
                Event::FrameArrived {
                    frame,
                    random,
                    context,
                    facts,
                },
            ) => {
                self.learn();
                let (limit, threshold) = (self.settings.contexts, self.settings.threshold);
                self.contexts.enter(context, limit, &self.base, threshold);
                for station in &mut self.stations {
                    mem::swap(&mut station.features, &mut station.previous);
                    station.has_previous = mem::replace(&mut station.reached, false);
                }
                self.way = Way {
                    frame,
                    random,
                    facts,
                    arrived: now,
                    ..Way::default()
                };
                self.run_stage(0, now, out);
                Ok(())
            }
            (Phase::Running, Event::FeaturesReady { features }) => self.features_ready(now, features, out),
            (Phase::Deciding, Event::VerdictGiven { verdict, fault }) => {
                self.window.faults += u64::from(fault);
                self.way.fault |= fault;
                match verdict {
                    Verdict::GoOn => self.run_stage(self.way.stage + 1, now, out),
                    Verdict::Leave => self.leave(now, true, false, out),
                    Verdict::LeaveWithoutLearning => self.leave(now, false, false, out),
                    Verdict::Audit => self.leave(now, true, true, out),
                }
                Ok(())
            }
            (Phase::Running | Phase::Deciding, Event::FrameLost) => {
                self.lose();
                Ok(())
            }
            (_, Event::FrameArrived { .. }) => Err(Misuse::OutOfOrder("a frame arrived while another is on its way")),
            (_, Event::FeaturesReady { .. }) => {
                Err(Misuse::OutOfOrder("features came for a stage that was not ordered"))
            }
            (_, Event::VerdictGiven { .. }) => Err(Misuse::OutOfOrder("a verdict came that was not asked for")),
            (_, Event::FrameLost) => Err(Misuse::OutOfOrder("no frame is on its way that could be lost")),
        }
    }

    fn lose(&mut self) {
        self.phase = Phase::Idle;
        // A frame whose prediction is out has only lost its audit.
        self.window.dropped += u64::from(self.way.left.is_none());
        self.window.cost.macs += self.way.macs;
        self.lesson = None;
    }

    fn run_stage(&mut self, stage: usize, now: Micros, out: &mut impl FnMut(Effect)) {
        self.phase = Phase::Running;
        (self.way.stage, self.way.stage_started) = (stage, now);
        out(Effect::RunStage { stage });
    }

    fn features_ready(&mut self, now: Micros, features: &[f32], out: &mut impl FnMut(Effect)) -> Result<(), Misuse> {
        let stage = self.way.stage;
        let adapted = self.contexts.adapted();
        let (station, head) = (
            &mut self.stations[stage],
            adapted.heads.get(stage).unwrap_or(&self.base[stage]),
        );
        self.way.stage_us += now.since(self.way.stage_started);
        self.way.macs += self.stage_macs[stage] + head.macs();
        let expected = head.features();
        if features.len() != expected {
            self.lose();
            return Err(Misuse::Length {
                stage,
                got: features.len(),
                expected,
            });
        }
        let exit = math::Exit {
            weights: head.weights(),
            bias: head.bias(),
            scale: 1.0 / self.contexts.guard().temperature(stage),
            shift: self.settings.learner.shift(adapted, stage),
        };
        let most_energy = MAX_ENERGY * expected as f32;
        let Some(seen) = math::look(&exit, features, most_energy, &mut station.kept()) else {
            self.lose();
            return Err(Misuse::Features { stage });
        };
        station.seen = seen;
        (station.reached, station.measured) = (true, false);

        let last = stage + 1 == self.base.len();
        match (self.way.left, last) {
            (None, false) => {
                self.phase = Phase::Deciding;
                let view = self.view(stage, &self.way.facts);
                out(Effect::Decide { view });
            }
            (None, true) => self.leave(now, true, false, out),
            (Some(_), false) => self.run_stage(stage + 1, now, out),
            (Some(left), true) => self.finish_audit(left, now, out),
        }
        Ok(())
    }

    /// What a policy sees, or would have seen, at an exit that the latest frame has reached, an audit's stages
    /// included; `None` where it left before.
    pub fn view_at(&self, exit: usize, facts: &Facts) -> Option<ExitView> {
        let reached = self.stations.get(exit)?.reached;
        reached.then(|| self.view(exit, facts))
    }

    fn view(&self, exit: usize, facts: &Facts) -> ExitView {
        let station = &self.stations[exit];
        let math::Top {
            class,
            confidence,
            second,
            entropy,
        } = station.seen.top;
        let first = station.probabilities[class];
        ExitView {
            exit: exit as u32,
            exits: self.base.len() as u32,
            class: class as u32,
            confidence,
            // Discounted as the confidence is.
            margin: if first > 0.0 {
                (first - second) * (confidence / first)
            } else {
                0.0
            },
            entropy,
            agreement: exit > 0 && self.stations[exit - 1].seen.top.class == class,
            change: if station.has_previous {
                station.seen.change / (2 * station.features.len()) as f32
            } else {
                f32::NAN
            },
            cost: self.shares[exit].spent,
            next_cost: self.shares[exit].next,
            time_left: facts.time_left,
            queue_depth: facts.queue_depth,
            temperature: facts.temperature,
            power_budget: facts.power_budget,
            battery: facts.battery,
            threshold: self.contexts.guard().threshold,
        }
    }

    fn leave(&mut self, now: Micros, learn: bool, audit: bool, out: &mut impl FnMut(Effect)) {
        let way = &self.way;
        let exit = way.stage;
        let station = &self.stations[exit];
        let class = station.seen.top.class;
        let confidence = station.probabilities[class];
        self.window.taken[exit] += 1;
        self.window.classes[class] += 1;
        let latency_us = now.since(way.arrived);
        out(Effect::Emit {
            prediction: Prediction {
                frame: way.frame,
                exit: exit as u32,
                class: class as u32,
                confidence,
                macs: way.macs,
                latency_us,
            },
        });
        let left = Left {
            exit,
            class,
            confidence,
            latency_us,
            learn,
        };
        let last = exit + 1 == self.base.len();
        let drawn = way.is_drawn(self.settings.audit_rate);
        if !last && (audit || drawn) {
            self.way.left = Some(left);
            self.run_stage(exit + 1, now, out);
        } else {
            // A frame that goes all the way by itself is an audit for nothing: without these, audits would only be
            // of frames that someone was sure of.
            self.teach(exit, class, (last && drawn).then_some(class), learn);
            if last && drawn {
                self.count_audit(false);
            }
            self.finish(left, AuditResult::None, now, out);
        }
    }

    fn count_audit(&mut self, disagrees: bool) {
        let disagrees = u64::from(disagrees);
        self.window.audits += 1;
        self.window.disagreements += disagrees;
        self.audits += 1;
        self.disagreements += disagrees;
    }

    fn finish_audit(&mut self, left: Left, now: Micros, out: &mut impl FnMut(Effect)) {
        let teacher = self.way.stage;
        let class = self.stations[teacher].seen.top.class;
        let drawn = self.way.is_drawn(self.settings.audit_rate);
        if drawn {
            self.count_audit(class != left.class);
        }
        let audit = left.exit + 1..self.base.len();
        self.window.cost.audit_macs += audit.map(|s| self.stage_macs[s] + self.base[s].macs()).sum::<u64>();
        self.teach(teacher, class, drawn.then_some(left.class), left.learn);
        let audit = if class == left.class {
            AuditResult::Agreed
        } else {
            AuditResult::Differed
        };
        self.finish(left, audit, now, out);
    }

    /// Plans what is to be learned from the exit that knows best.
    fn teach(&mut self, teacher: usize, class: usize, audited: Option<usize>, learn: bool) {
        let exit = self.way.left.map_or(self.way.stage, |left| left.exit);
        self.lesson = Some(Lesson {
            teacher,
            class,
            audited,
            learn: learn && self.settings.learner.enabled,
            cost: self.exit_costs[exit],
            corrected: false,
        });
    }

    fn finish(&mut self, left: Left, audit: AuditResult, now: Micros, out: &mut impl FnMut(Effect)) {
        self.phase = Phase::Idle;
        let way = &self.way;
        let full_macs = self.full_macs();
        let cost = &mut self.window.cost;
        cost.macs += way.macs;
        cost.full_macs += full_macs;
        cost.stage_us += way.stage_us;
        cost.overhead_us += now.since(way.arrived).saturating_sub(way.stage_us);
        out(Effect::Finished {
            outcome: Outcome {
                exit: left.exit as u32,
                class: left.class as u32,
                confidence: left.confidence,
                cost: self.shares[left.exit].spent,
                latency: left.latency_us as f32 / 1e3,
                interval: f32::NAN,
                energy: f32::NAN,
                temperature: way.facts.temperature,
                hurried: false,
                fault: way.fault,
                audit,
            },
        });
    }

    /// Does what the last frame taught, and a piece of the guard's work. Off the latency path: call it when a
    /// frame is [`Effect::Finished`]; otherwise the next frame's arrival does it.
    pub fn learn(&mut self) {
        self.measure();
        let Some(lesson) = self.lesson.take() else {
            return;
        };
        if let Some(class) = lesson.audited {
            self.audit(class);
        }
        let learner = self.settings.learner;
        let paused = self.contexts.guard().paused;
        if lesson.learn && !paused {
            self.update_heads(&learner, lesson);
            if learner.prior.strength > 0.0 {
                let prior = &mut self.contexts.current_mut().0.prior;
                if lesson.corrected {
                    prior.count(lesson.class, &learner.prior);
                } else {
                    prior.observe(&self.stations[lesson.teacher].logits, &learner.prior);
                }
            }
        }
        let (adapted, guard) = self.contexts.current_mut();
        guard.pay(lesson.cost, &self.settings.guard);
        let rules = Rules {
            settings: &self.settings.guard,
            base: &self.base,
            costs: &self.exit_costs,
            doubt: (learner.prior.strength > 0.0).then_some(learner.prior.doubt),
            threshold: self.settings.threshold,
        };
        match guard.work(adapted, &rules) {
            Some(Finding::Promoted) => self.window.promotions += 1,
            Some(Finding::RolledBack | Finding::Paused) => self.window.rollbacks += 1,
            None => {}
        }
    }

    /// Hands an audited frame to the guard.
    fn audit(&mut self, class: usize) {
        let Some((last, early)) = self.stations.split_last() else {
            return;
        };
        let learner = &self.settings.learner;
        let (adapted, guard) = self.contexts.current_mut();
        let prior = learner.prior.strength > 0.0;
        let posterior = &mut self.scratch.posterior;
        let shift = prior.then(|| math::Shift {
            offsets: adapted.prior.offsets(),
            doubt: 0.0,
        });
        math::top(&last.logits, 1.0, shift, posterior);
        let audited = Audited {
            class,
            early,
            posterior,
            last_class: last.seen.top.class,
        };
        guard.audit(&audited, &self.settings.guard);
        let control = &mut guard.control;
        control.audit(&audited, &self.base, &self.exit_costs, &self.settings.guard);
    }

    /// Somebody knows the class of the last frame: it is learned in place of the prediction. To be called
    /// before [`Self::learn`]; without a lesson, or for a class that does not exist, it does nothing.
    pub fn correct(&mut self, class: u32) {
        if let Some(lesson) = &mut self.lesson
            && (class as usize) < self.base[0].classes()
        {
            lesson.class = class as usize;
            lesson.corrected = true;
        }
    }

    /// Adds the last frame to what is being measured.
    fn measure(&mut self) {
        for (whitening, station) in self.whiteners.iter_mut().zip(&mut self.stations) {
            if let Whitening::Measuring(measurement) = whitening
                && station.reached
                && !mem::replace(&mut station.measured, true)
            {
                measurement.add(&station.features);
                if measurement.frames() >= self.settings.learner.measure {
                    *whitening = match measurement.finish() {
                        Some(whitener) => Whitening::Known(whitener),
                        None => Whitening::Measuring(Measurement::new(station.features.len())),
                    };
                }
            }
        }
    }

    fn update_heads(&mut self, learner: &LearnerSettings, lesson: Lesson) {
        let Lesson {
            teacher,
            class,
            corrected,
            ..
        } = lesson;
        if learner.rate == 0.0 || teacher == 0 {
            return;
        }
        let last = teacher + 1 == self.base.len();
        if last && !corrected && self.stations[teacher].probabilities[class] < learner.gate {
            self.window.gated += 1;
            return;
        }
        let Scratch {
            gradient,
            centred,
            direction,
            ..
        } = &mut self.scratch;
        let (early, knowing) = self.stations.split_at(teacher);
        let (adapted, guard) = self.contexts.current_mut();
        let rate = learner.rate * guard.caution;
        for (exit, station) in early.iter().enumerate() {
            // g = p − q.
            match learner.target {
                Target::Soft { temperature } if !corrected => {
                    math::sharpen(&knowing[0].probabilities, temperature, gradient);
                    for (g, p) in gradient.iter_mut().zip(&station.probabilities) {
                        *g = p - *g;
                    }
                }
                Target::Hard | Target::Soft { .. } => {
                    gradient.copy_from_slice(&station.probabilities);
                    gradient[class] -= 1.0;
                }
            }
            let norm = libm::sqrtf(math::dot(gradient, gradient));
            if norm > learner.max_gradient {
                let scale = learner.max_gradient / norm;
                gradient.iter_mut().for_each(|g| *g *= scale);
            }
            let moved = Step::prune(gradient);
            if moved == 0 {
                continue;
            }
            let (head, base, u) = (&mut adapted.heads[exit], &self.base[exit], &station.features[..]);
            let c = u.len();
            let pulled = if learner.anchor > 0.0 { head.classes() } else { 0 };
            let mut macs = ((moved + pulled) * c) as u64;
            let (direction, bias_factor, energy) = if learner.whitened {
                match &mut self.whiteners[exit] {
                    Whitening::Known(whitener) => {
                        let (centred, direction) = (&mut centred[..c], &mut direction[..c]);
                        let bias_factor = whitener.direction(u, centred, direction);
                        macs += (c * c) as u64;
                        // A stretch beyond the average would make the step longer than it is meant to be.
                        let energy = math::dot(direction, centred).max(c as f32);
                        (&*direction, bias_factor, energy)
                    }
                    Whitening::Measuring(_) | Whitening::Off => continue,
                }
            } else {
                (u, 1.0, station.seen.energy)
            };
            let step = Step {
                gradient,
                direction,
                bias_factor,
                size: rate / (energy + 1.0),
                anchor: learner.anchor,
            };
            step.take(head, base);
            self.window.updates += 1;
            self.window.cost.macs += macs;
        }
    }

    /// Adds time that the driver spent for this camera beside its frames: learning, checkpoints.
    pub fn add_overhead(&mut self, micros: u64) {
        self.window.cost.overhead_us += micros;
    }

    /// Counts a fault of the policy that came after the verdicts, when it was told of the frame.
    pub fn add_fault(&mut self) {
        self.window.faults += 1;
    }

    /// Counts frames that never arrived because others were in the way.
    pub fn add_dropped(&mut self, frames: u64) {
        self.window.dropped += frames;
    }

    /// Ends the window: what happened since the last one.
    ///
    /// A head that has gone further from its base than the learner's bound, or holds a number that is not
    /// finite, is put back to its base and counted as a rollback.
    pub fn close_window(&mut self) -> WindowReport {
        let mut rollbacks = self.window.rollbacks;
        let mut distances = Vec::with_capacity(self.base.len());
        for (head, base) in self.contexts.current_mut().0.heads.iter_mut().zip(&self.base) {
            let distance = head.distance(base);
            if distance <= self.settings.learner.max_distance && head.is_finite() {
                distances.push(distance);
            } else {
                head.copy_from(base);
                rollbacks += 1;
                distances.push(0.0);
            }
        }
        distances.push(0.0);
        let guard = self.guard_report();
        let report = self.window.report(
            rollbacks,
            distances,
            upper_bound(self.disagreements, self.audits),
            guard,
            self.contexts.guard().control.report(),
            self.usual.take(&self.window.classes),
        );
        self.window = Window::new(self.base.len(), self.base[0].classes());
        report
    }

    fn guard_report(&self) -> GuardReport {
        let guard = self.contexts.guard();
        let (loss, loss_bound) = guard.loss();
        GuardReport {
            threshold: guard.threshold,
            temperatures: (0..self.base.len() - 1).map(|exit| guard.temperature(exit)).collect(),
            loss,
            loss_bound,
            audits: guard.audited() as u64,
            promotions: 0,
            paused: guard.paused,
            contexts: self.contexts.len() as u64,
            bytes: self.bytes(),
        }
    }

    /// Bytes of memory that heads, canaries and all else that is learned take. It grows with the contexts
    /// that are remembered, and with nothing else.
    pub fn bytes(&self) -> u64 {
        let whitening = |w: &Whitening| match w {
            Whitening::Known(whitener) => whitener.features() * (whitener.features() + 1),
            Whitening::Measuring(measurement) => measurement.features() * (measurement.features() + 1),
            Whitening::Off => 0,
        };
        let base: usize = self.base.iter().map(Head::numbers).sum();
        let whitening: usize = self.whiteners.iter().map(whitening).sum();
        (4 * (base + whitening) + self.contexts.bytes()) as u64
    }

    /// The settings in force.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Changes the settings from the next verdict on.
    ///
    /// # Errors
    /// When one is outside its range; then none is changed.
    pub fn set_settings(&mut self, settings: Settings) -> Result<(), NetworkError> {
        if !settings.is_valid() {
            return Err(NetworkError::Settings);
        }
        if settings.threshold != self.settings.threshold {
            self.contexts.set_threshold(settings.threshold);
        }
        self.settings = settings;
        self.contexts.shrink(settings.contexts);
        self.contexts.refresh(&settings.learner);
        self.prepare_whitening();
        Ok(())
    }

    /// Multiply-adds of all stages and heads.
    pub fn full_macs(&self) -> u64 {
        self.total_macs + self.base.iter().map(Head::macs).sum::<u64>()
    }

    /// Number of exits.
    pub fn exits(&self) -> usize {
        self.base.len()
    }

    /// The head in force at an exit.
    ///
    /// # Panics
    /// When there is no such exit.
    pub fn head(&self, exit: usize) -> &Head {
        self.contexts.adapted().heads.get(exit).unwrap_or(&self.base[exit])
    }

    /// Writes the K probabilities that features u ∈ R^C would be given at an exit now, in the context in
    /// force, and tells the class and its confidence. Nothing is learned from it.
    ///
    /// # Panics
    /// When there is no such exit, or a slice has another length.
    pub fn classify(&self, exit: usize, features: &[f32], probabilities: &mut [f32]) -> (u32, f32) {
        let mut logits = vec![0.0; probabilities.len()];
        self.head(exit).logits(features, &mut logits);
        let shift = self.settings.learner.shift(self.contexts.adapted(), exit);
        let scale = 1.0 / self.contexts.guard().temperature(exit);
        let top = math::top(&logits, scale, shift, probabilities);
        (top.class as u32, top.confidence)
    }

    /// Confidence from which the guard holds leaving safe at present.
    pub fn threshold(&self) -> f32 {
        self.contexts.guard().threshold
    }

    /// Whether learning has stopped after repeated harm, in the context in force.
    pub fn is_paused(&self) -> bool {
        self.contexts.guard().paused
    }

    /// Multiply-adds up to each exit, heads included, as a share of the whole network's.
    pub fn exit_costs(&self) -> &[f32] {
        &self.exit_costs
    }

    /// Probabilities that the current (or last) frame was given at an exit, if it got there.
    pub fn probabilities(&self, exit: usize) -> Option<&[f32]> {
        self.stations
            .get(exit)
            .filter(|s| s.reached)
            .map(|s| s.probabilities.as_slice())
    }

    /// What every context has learned, as bytes for [`Self::restore`].
    pub fn checkpoint(&self) -> Vec<u8> {
        checkpoint::encode(&self.contexts, checkpoint::fingerprint(&self.base))
    }

    /// Takes up what a checkpoint of the same model holds; its last context is in force.
    ///
    /// # Errors
    /// See [`CheckpointError`]; what is in force stays.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<(), CheckpointError> {
        let saved = checkpoint::decode(bytes, &self.base, &self.settings)?;
        self.contexts = Contexts::from_saved(saved).ok_or(CheckpointError::Malformed)?;
        self.contexts.shrink(self.settings.contexts);
        self.lesson = None;
        Ok(())
    }

    /// Goes back to the heads that the model came with.
    pub fn reset_heads(&mut self) {
        self.contexts.reset(&self.base, self.settings.threshold);
        self.lesson = None;
    }
}

/// Multiply-adds of stages as a share of all stages'.
#[derive(Clone, Copy, Debug)]
struct Share {
    /// Up to this stage.
    spent: f32,
    /// Of the stage after it; 0 for the last.
    next: f32,
}

fn shares(stage_macs: &[u64], total: u64) -> Vec<Share> {
    let all = total as f32;
    let share = |stage: usize| Share {
        spent: stage_macs[..=stage].iter().sum::<u64>() as f32 / all,
        next: stage_macs.get(stage + 1).map_or(0.0, |macs| *macs as f32 / all),
    };
    (0..stage_macs.len()).map(share).collect()
}

/// Multiply-adds up to each exit, its head included, as a share of all.
fn exit_costs(heads: &[Head], stage_macs: &[u64]) -> Vec<f32> {
    let all: u64 = heads.iter().map(Head::macs).sum::<u64>() + stage_macs.iter().sum::<u64>();
    let macs = heads.iter().zip(stage_macs).map(|(head, macs)| head.macs() + macs);
    let sums = macs.scan(0, |sum, macs| {
        *sum += macs;
        Some(*sum as f32 / all as f32)
    });
    sums.collect()
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
