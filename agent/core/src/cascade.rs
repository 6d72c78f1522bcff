//! A frame's way from stage to stage, as a state machine.

use alloc::vec;
use alloc::vec::Vec;
use core::mem;

use crate::audit::upper_bound;
use crate::checkpoint::{self, CheckpointError};
use crate::head::Head;
use crate::learner::LearnerSettings;
use crate::math;
use crate::view::{ExitView, ThresholdRule, Verdict};
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
    /// Confidence from which the built-in rule leaves, `0..=1`.
    pub threshold: f32,
    /// Share of frames that left early and are audited, `0..=1`.
    pub audit_rate: f32,
    /// The learner.
    pub learner: LearnerSettings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            threshold: 0.8,
            audit_rate: 0.02,
            learner: LearnerSettings::default(),
        }
    }
}

impl Settings {
    /// The built-in rule at these settings.
    pub fn rule(&self) -> ThresholdRule {
        ThresholdRule {
            threshold: self.threshold,
        }
    }

    /// Whether every number is in its range.
    pub fn is_valid(&self) -> bool {
        (0.0..=1.0).contains(&self.threshold) && (0.0..=1.0).contains(&self.audit_rate) && self.learner.is_valid()
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
    Finished,
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

#[derive(Clone, Copy, Debug)]
enum Phase {
    Idle,
    /// Waits for the features of `way.stage`.
    Running(Way),
    /// Waits for the verdict at `way.stage`.
    Deciding(Way),
}

/// A frame on its way.
#[derive(Clone, Copy, Debug)]
struct Way {
    frame: u64,
    random: u32,
    facts: Facts,
    stage: usize,
    arrived: Micros,
    stage_started: Micros,
    stage_us: u64,
    macs: u64,
    /// Set once the prediction is out: the rest is an audit.
    left: Option<Left>,
}

#[derive(Clone, Copy, Debug)]
struct Left {
    exit: usize,
    class: usize,
    learn: bool,
}

/// Exit `teacher` says `class`: to be taught to the exits before it.
#[derive(Clone, Copy, Debug)]
struct Lesson {
    teacher: usize,
    class: usize,
}

/// What is known of the current frame at one exit; allocated once.
#[derive(Clone, Debug)]
struct Station {
    features: Vec<f32>,
    previous: Vec<f32>,
    probabilities: Vec<f32>,
    top: usize,
    reached: bool,
    has_previous: bool,
}

/// The cascade of one camera, with its heads, learner, audits and counters. See the crate's documentation.
#[derive(Clone, Debug)]
pub struct Core {
    base: Vec<Head>,
    heads: Vec<Head>,
    stage_macs: Vec<u64>,
    total_macs: u64,
    settings: Settings,
    stations: Vec<Station>,
    phase: Phase,
    lesson: Option<Lesson>,
    window: Window,
    audits: u64,
    disagreements: u64,
}

/// Features u are layer-normalised, so that ‖u‖² ≈ C; beyond this many times C they cannot be.
const MAX_ENERGY: f32 = 4.0;

impl Core {
    /// A core that starts from the network's heads.
    ///
    /// # Errors
    /// See [`NetworkError`].
    pub fn new(network: Network, settings: Settings) -> Result<Self, NetworkError> {
        let Network { heads, stage_macs } = network;
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
        let station = |head: &Head| Station {
            features: vec![0.0; head.features()],
            previous: vec![0.0; head.features()],
            probabilities: vec![0.0; classes],
            top: 0,
            reached: false,
            has_previous: false,
        };
        Ok(Self {
            stations: heads.iter().map(station).collect(),
            base: heads.clone(),
            heads,
            stage_macs,
            total_macs,
            settings,
            phase: Phase::Idle,
            lesson: None,
            window: Window::new(exits, classes),
            audits: 0,
            disagreements: 0,
        })
    }

    /// Takes an event and orders what follows from it.
    ///
    /// # Errors
    /// See [`Misuse`]; a driver that follows the contract sees only what a faulty stage causes.
    pub fn handle(&mut self, now: Micros, event: Event<'_>, out: &mut impl FnMut(Effect)) -> Result<(), Misuse> {
        match (mem::replace(&mut self.phase, Phase::Idle), event) {
            (Phase::Idle, Event::FrameArrived { frame, random, facts }) => {
                self.learn();
                for station in &mut self.stations {
                    mem::swap(&mut station.features, &mut station.previous);
                    station.has_previous = mem::replace(&mut station.reached, false);
                }
                let way = Way {
                    frame,
                    random,
                    facts,
                    stage: 0,
                    arrived: now,
                    stage_started: now,
                    stage_us: 0,
                    macs: 0,
                    left: None,
                };
                self.run_stage(way, now, out);
                Ok(())
            }
            (Phase::Running(way), Event::FeaturesReady { features }) => self.features_ready(way, now, features, out),
            (Phase::Deciding(way), Event::VerdictGiven { verdict, fault }) => {
                self.window.faults += u64::from(fault);
                match verdict {
                    Verdict::GoOn => self.run_stage(
                        Way {
                            stage: way.stage + 1,
                            ..way
                        },
                        now,
                        out,
                    ),
                    Verdict::Leave => self.leave(way, now, true, false, out),
                    Verdict::LeaveWithoutLearning => self.leave(way, now, false, false, out),
                    Verdict::Audit => self.leave(way, now, true, true, out),
                }
                Ok(())
            }
            (Phase::Running(way) | Phase::Deciding(way), Event::FrameLost) => {
                self.lose(&way);
                Ok(())
            }
            (phase, Event::FrameArrived { .. }) => self.refuse(phase, "a frame arrived while another is on its way"),
            (phase, Event::FeaturesReady { .. }) => {
                self.refuse(phase, "features came for a stage that was not ordered")
            }
            (phase, Event::VerdictGiven { .. }) => self.refuse(phase, "a verdict came that was not asked for"),
            (phase, Event::FrameLost) => self.refuse(phase, "no frame is on its way that could be lost"),
        }
    }

    fn refuse(&mut self, phase: Phase, why: &'static str) -> Result<(), Misuse> {
        self.phase = phase;
        Err(Misuse::OutOfOrder(why))
    }

    fn lose(&mut self, way: &Way) {
        // A frame whose prediction is out has only lost its audit.
        self.window.dropped += u64::from(way.left.is_none());
        self.window.cost.macs += way.macs;
        self.lesson = None;
    }

    fn run_stage(&mut self, way: Way, now: Micros, out: &mut impl FnMut(Effect)) {
        self.phase = Phase::Running(Way {
            stage_started: now,
            ..way
        });
        out(Effect::RunStage { stage: way.stage });
    }

    fn features_ready(
        &mut self,
        mut way: Way,
        now: Micros,
        features: &[f32],
        out: &mut impl FnMut(Effect),
    ) -> Result<(), Misuse> {
        let stage = way.stage;
        let (station, head) = (&mut self.stations[stage], &self.heads[stage]);
        way.stage_us += now.since(way.stage_started);
        way.macs += self.stage_macs[stage] + head.macs();
        let expected = head.features();
        if features.len() != expected {
            self.lose(&way);
            return Err(Misuse::Length {
                stage,
                got: features.len(),
                expected,
            });
        }
        let energy = math::dot(features, features);
        if !energy.is_finite() || energy > MAX_ENERGY * expected as f32 {
            self.lose(&way);
            return Err(Misuse::Features { stage });
        }
        station.features.copy_from_slice(features);
        station.reached = true;
        head.probabilities(&station.features, &mut station.probabilities);
        let view = self.view(&way);
        self.stations[stage].top = view.class as usize;

        let last = stage + 1 == self.heads.len();
        match (way.left, last) {
            (None, false) => {
                self.phase = Phase::Deciding(way);
                out(Effect::Decide { view });
            }
            (None, true) => self.leave(way, now, true, false, out),
            (Some(_), false) => self.run_stage(
                Way {
                    stage: stage + 1,
                    ..way
                },
                now,
                out,
            ),
            (Some(left), true) => self.finish_audit(&way, left, now, out),
        }
        Ok(())
    }

    /// What a policy sees at the exit of `way.stage`.
    fn view(&self, way: &Way) -> ExitView {
        let exit = way.stage;
        let station = &self.stations[exit];
        let (mut class, mut first, mut second) = (0, f32::NEG_INFINITY, f32::NEG_INFINITY);
        for (k, &p) in station.probabilities.iter().enumerate() {
            if p > first {
                (class, first, second) = (k, p, first);
            } else if p > second {
                second = p;
            }
        }
        let share = |macs: u64| macs as f32 / self.total_macs as f32;
        let spent: u64 = self.stage_macs[..=exit].iter().sum();
        let change = if station.has_previous {
            math::squared_distance(&station.features, &station.previous) / (2 * station.features.len()) as f32
        } else {
            f32::NAN
        };
        ExitView {
            exit: exit as u32,
            exits: self.heads.len() as u32,
            class: class as u32,
            confidence: first,
            margin: first - second,
            entropy: math::entropy(&station.probabilities),
            agreement: exit > 0 && self.stations[exit - 1].top == class,
            change,
            cost: share(spent),
            next_cost: share(self.stage_macs.get(exit + 1).copied().unwrap_or(0)),
            time_left: way.facts.time_left,
            queue_depth: way.facts.queue_depth,
            temperature: way.facts.temperature,
            power_budget: way.facts.power_budget,
            battery: way.facts.battery,
        }
    }

    fn leave(&mut self, way: Way, now: Micros, learn: bool, audit: bool, out: &mut impl FnMut(Effect)) {
        let exit = way.stage;
        let station = &self.stations[exit];
        let class = station.top;
        let confidence = station.probabilities[class];
        self.window.taken[exit] += 1;
        self.window.classes[class] += 1;
        out(Effect::Emit {
            prediction: Prediction {
                frame: way.frame,
                exit: exit as u32,
                class: class as u32,
                confidence,
                macs: way.macs,
                latency_us: now.since(way.arrived),
            },
        });
        let last = exit + 1 == self.heads.len();
        let drawn = f64::from(way.random) < f64::from(self.settings.audit_rate) * 4_294_967_296.0;
        if !last && (audit || drawn) {
            let left = Some(Left { exit, class, learn });
            self.run_stage(
                Way {
                    stage: exit + 1,
                    left,
                    ..way
                },
                now,
                out,
            );
        } else {
            self.teach(exit, class, learn);
            self.finish(&way, now, out);
        }
    }

    fn finish_audit(&mut self, way: &Way, left: Left, now: Micros, out: &mut impl FnMut(Effect)) {
        let class = self.stations[way.stage].top;
        let disagrees = u64::from(class != left.class);
        self.window.audits += 1;
        self.window.disagreements += disagrees;
        self.audits += 1;
        self.disagreements += disagrees;
        let audit = left.exit + 1..self.heads.len();
        self.window.cost.audit_macs += audit.map(|s| self.stage_macs[s] + self.heads[s].macs()).sum::<u64>();
        self.teach(way.stage, class, left.learn);
        self.finish(way, now, out);
    }

    /// Plans the lesson of the exit that knows best; the last exit must itself be sure.
    fn teach(&mut self, teacher: usize, class: usize, learn: bool) {
        if !learn || teacher == 0 || !self.settings.learner.enabled {
            return;
        }
        let last = teacher + 1 == self.heads.len();
        if last && self.stations[teacher].probabilities[class] < self.settings.learner.gate {
            self.window.gated += 1;
        } else {
            self.lesson = Some(Lesson { teacher, class });
        }
    }

    fn finish(&mut self, way: &Way, now: Micros, out: &mut impl FnMut(Effect)) {
        let cost = &mut self.window.cost;
        cost.macs += way.macs;
        cost.full_macs += self.total_macs + self.heads.iter().map(Head::macs).sum::<u64>();
        cost.stage_us += way.stage_us;
        cost.overhead_us += now.since(way.arrived).saturating_sub(way.stage_us);
        out(Effect::Finished);
    }

    /// Does what the last frame taught. Off the latency path: call it when a frame is
    /// [`Effect::Finished`]; otherwise the next frame's arrival does it.
    pub fn learn(&mut self) {
        let Some(Lesson { teacher, class }) = self.lesson.take() else {
            return;
        };
        for exit in 0..teacher {
            let station = &self.stations[exit];
            let (head, base) = (&mut self.heads[exit], &self.base[exit]);
            self.settings
                .learner
                .step(head, base, &station.features, &station.probabilities, class);
            self.window.updates += 1;
            self.window.cost.macs += head.macs();
        }
    }

    /// Adds time that the driver spent for this camera beside its frames: learning, checkpoints.
    pub fn add_overhead(&mut self, micros: u64) {
        self.window.cost.overhead_us += micros;
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
        let mut rollbacks = 0;
        let mut distances = Vec::with_capacity(self.heads.len());
        for (head, base) in self.heads.iter_mut().zip(&self.base) {
            let distance = head.distance(base);
            if distance <= self.settings.learner.max_distance && head.is_finite() {
                distances.push(distance);
            } else {
                head.clone_from(base);
                rollbacks += 1;
                distances.push(0.0);
            }
        }
        let report = self
            .window
            .report(rollbacks, distances, upper_bound(self.disagreements, self.audits));
        self.window = Window::new(self.heads.len(), self.heads[0].classes());
        report
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
        self.settings = settings;
        Ok(())
    }

    /// The heads in force, one per exit.
    pub fn heads(&self) -> &[Head] {
        &self.heads
    }

    /// Multiply-adds of each stage.
    pub fn stage_macs(&self) -> &[u64] {
        &self.stage_macs
    }

    /// Probabilities that the current (or last) frame was given at an exit, if it got there.
    pub fn probabilities(&self, exit: usize) -> Option<&[f32]> {
        self.stations
            .get(exit)
            .filter(|s| s.reached)
            .map(|s| s.probabilities.as_slice())
    }

    /// The heads as bytes, for [`Self::restore`].
    pub fn checkpoint(&self) -> Vec<u8> {
        checkpoint::encode(&self.heads, checkpoint::fingerprint(&self.base))
    }

    /// Takes up heads from a checkpoint of the same model.
    ///
    /// # Errors
    /// See [`CheckpointError`]; the heads in force stay.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<(), CheckpointError> {
        let heads = checkpoint::decode(bytes, &self.base)?;
        debug_assert!(heads.iter().zip(&self.base).all(|(a, b)| a.has_shape_of(b)));
        self.heads = heads;
        self.lesson = None;
        Ok(())
    }

    /// Goes back to the heads that the model came with.
    pub fn reset_heads(&mut self) {
        self.heads.clone_from(&self.base);
        self.lesson = None;
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
