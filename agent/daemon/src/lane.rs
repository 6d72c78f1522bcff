//! One camera's way through core, policy and learner.
//!
//! A [`Lane`] says which stage its frame needs next; who runs the stage decides when, and together with whose
//! frames: the agent's pool, or [`Single`], for tools that run one frame after another.

use std::time::{Duration, Instant};

use offramp_core::{
    Core, Effect, Event, ExitView, Facts, Micros, Misuse, NetworkError, Outcome, Prediction, Settings, SplitMix64,
    Verdict,
};
use offramp_engine::{Engine, Frame, RunError};
use offramp_model::{Input, Package};
use offramp_proto::Digest;

use crate::agent::trace::Recorder;
use crate::package;

/// Who gives the verdicts.
pub trait Judge {
    /// A frame begins. Whoever decides may change here, and only here.
    fn start_frame(&mut self) {}

    /// The verdict at an exit, and whether it is the built-in rule's because the policy failed.
    fn decide(&mut self, view: &ExitView) -> (Verdict, bool);

    /// The policy that decides the present frame; none: the built-in rule.
    fn policy(&self) -> Option<Digest> {
        None
    }

    /// Hears what became of the frame. Gives whether the policy failed at it.
    fn observe(&mut self, outcome: &Outcome) -> bool {
        let _ = outcome;
        false
    }
}

/// The built-in rule as a judge.
#[derive(Clone, Copy, Debug, Default)]
pub struct BuiltIn;

impl Judge for BuiltIn {
    fn decide(&mut self, view: &ExitView) -> (Verdict, bool) {
        (view.rule(), false)
    }
}

/// Why a lane cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetUpError {
    /// The engine refuses the package.
    #[error(transparent)]
    Engine(#[from] offramp_engine::LoadError),
    /// The package's heads cannot be used.
    #[error(transparent)]
    Head(#[from] offramp_core::HeadError),
    /// The package's network cannot be used.
    #[error(transparent)]
    Network(#[from] NetworkError),
}

/// Why a frame has no prediction, or its audit no result. The next frame is not affected.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The image has another size than the model's input.
    #[error("image of {got} bytes does not fit the model's input of {expected}")]
    Size {
        /// Bytes that came.
        got: usize,
        /// Height × width × channels.
        expected: usize,
    },
    /// A stage failed.
    #[error(transparent)]
    Stage(#[from] RunError),
    /// A stage gave something that is no feature vector.
    #[error(transparent)]
    Features(#[from] Misuse),
}

/// What a frame needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// That this stage be run.
    Stage(usize),
    /// Nothing: it is done, its audit included.
    Finished,
}

/// How much time a frame has when it comes to an exit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Time {
    /// Until its deadline, negative once that has passed; none where it has no deadline.
    pub left_ms: Option<f32>,
    /// What the next stage takes.
    pub next_ms: f32,
}

impl Time {
    /// Whether the next stage would end after the deadline.
    fn is_up(self) -> bool {
        self.left_ms.is_some_and(|left| left < self.next_ms)
    }
}

/// One camera's core, and the memory that its frames use again and again.
pub struct Lane {
    /// The camera's core.
    pub core: Core,
    /// The context that the next frames belong to.
    pub context: u64,
    frame: Frame,
    input: Input,
    image: Vec<f32>,
    /// Time spent on this camera's frames. It is the core's clock: while a frame waits, it stands still.
    spent: Duration,
    random: SplitMix64,
    hurried: u64,
    /// Whether the present frame is one of them.
    is_hurried: bool,
    /// What became of the frame, until the judge is told.
    outcome: Option<Outcome>,
    /// When the last frame ended.
    ended: Option<Instant>,
    /// Records what the judge sees and answers, where that is wanted.
    pub(crate) recorder: Option<Recorder>,
    facts: Facts,
}

impl Lane {
    /// A lane with the package's own heads. `seed` decides which frames are audited.
    ///
    /// # Errors
    /// See [`SetUpError`].
    pub fn new(package: &Package, settings: Settings, seed: u64) -> Result<Self, SetUpError> {
        let input = package.manifest().input.clone();
        Ok(Self {
            core: Core::new(package::network(package)?, settings)?,
            context: 0,
            frame: Frame::default(),
            image: vec![0.0; input.values()],
            input,
            spent: Duration::ZERO,
            random: SplitMix64(seed),
            hurried: 0,
            is_hurried: false,
            outcome: None,
            ended: None,
            recorder: None,
            facts: Facts::default(),
        })
    }

    /// The frame as the engine knows it.
    pub fn frame(&mut self) -> &mut Frame {
        &mut self.frame
    }

    /// Begins a frame: height × width × channels bytes. It then needs stage 0.
    ///
    /// # Errors
    /// See [`FrameError`]; the frame is counted as dropped.
    pub fn begin(
        &mut self,
        engine: &Engine,
        number: u64,
        pixels: &[u8],
        facts: Facts,
        judge: &mut impl Judge,
    ) -> Result<(), FrameError> {
        let start = Instant::now();
        if pixels.len() != self.image.len() {
            self.core.add_dropped(1);
            return Err(FrameError::Size {
                got: pixels.len(),
                expected: self.image.len(),
            });
        }
        judge.start_frame();
        self.is_hurried = false;
        self.outcome = None;
        self.facts = facts;
        if let Some(recorder) = &mut self.recorder {
            recorder.begin(number, facts);
        }
        let arrived = Event::FrameArrived {
            frame: number,
            random: (self.random.next() >> 32) as u32,
            context: self.context,
            facts,
        };
        // What it orders is stage 0.
        self.core.handle(micros(self.spent), arrived, &mut |_| ())?;
        self.input.normalize(pixels, &mut self.image);
        let started = engine.start(&mut self.frame, &self.image);
        self.spent += start.elapsed();
        started.map_err(|error| {
            self.lose();
            error.into()
        })
    }

    /// Goes on once a stage has run, which `took` so long for this frame. `emit` gets the prediction as soon as
    /// it is out. Where time is up, the frame leaves at this exit whatever the policy says.
    ///
    /// # Errors
    /// See [`FrameError`]. The prediction may have been emitted before: then only its audit failed.
    pub fn go_on(
        &mut self,
        took: Duration,
        time: Time,
        judge: &mut impl Judge,
        mut emit: impl FnMut(&Prediction),
    ) -> Result<Next, FrameError> {
        self.spent += took;
        let start = Instant::now();
        let spent = self.spent;
        let core = &mut self.core;
        // Predictions go out at once; at most one order is left to follow.
        let mut step = |event: Event<'_>| {
            let mut order = None;
            core.handle(micros(spent + start.elapsed()), event, &mut |effect| match effect {
                Effect::Emit { prediction } => emit(&prediction),
                Effect::RunStage { .. } | Effect::Decide { .. } | Effect::Finished { .. } => order = Some(effect),
            })
            .map(|()| order)
        };
        let mut order = step(Event::FeaturesReady {
            features: self.frame.features(),
        });
        if let Ok(Some(Effect::Decide { mut view })) = order {
            view.time_left = time.left_ms.unwrap_or(view.time_left);
            let (mut verdict, fault) = judge.decide(&view);
            if let Some(recorder) = &mut self.recorder {
                recorder.see(view, Some((verdict, fault)), self.frame.features());
                if verdict == Verdict::Leave && recorder.wants_audit() {
                    verdict = Verdict::Audit;
                }
            }
            if verdict == Verdict::GoOn && time.is_up() {
                // It was not this exit's to decide: nothing is learned from it.
                verdict = Verdict::LeaveWithoutLearning;
                self.hurried += 1;
                self.is_hurried = true;
            }
            order = step(Event::VerdictGiven { verdict, fault });
        } else if let (Ok(_), Some(recorder)) = (&order, &mut self.recorder)
            && let Some(view) = self.core.view_at(recorder.exits_seen(), &self.facts)
        {
            recorder.see(view, None, self.frame.features());
        }
        self.spent += start.elapsed();
        Ok(match order? {
            Some(Effect::RunStage { stage }) => Next::Stage(stage),
            Some(Effect::Finished { outcome }) => {
                self.outcome = Some(outcome);
                Next::Finished
            }
            Some(Effect::Decide { .. } | Effect::Emit { .. }) | None => Next::Finished,
        })
    }

    /// Gives the frame up after its stage has failed: it is counted as dropped, or its audit is.
    pub fn lose(&mut self) {
        // Refused only where no frame is on its way, and then nothing is lost.
        let _ = self.core.handle(micros(self.spent), Event::FrameLost, &mut |_| ());
    }

    /// Tells the judge what became of the frame that is finished, once `complete` has added what only the driver
    /// knows. Frames that were lost are not told.
    pub fn tell(&mut self, judge: &mut impl Judge, complete: impl FnOnce(&mut Outcome)) {
        let Some(mut outcome) = self.outcome.take() else {
            return;
        };
        let now = Instant::now();
        if let Some(before) = self.ended.replace(now) {
            outcome.interval = now.saturating_duration_since(before).as_secs_f32() * 1e3;
        }
        outcome.hurried = self.is_hurried;
        complete(&mut outcome);
        if let Some(recorder) = &mut self.recorder {
            recorder.finish(&outcome, judge.policy());
        }
        if judge.observe(&outcome) {
            self.core.add_fault();
        }
        self.core.add_overhead(now.elapsed().as_micros() as u64);
    }

    /// Does what the last frame taught, and counts the time it takes.
    pub fn learn(&mut self) {
        let start = Instant::now();
        self.core.learn();
        self.core.add_overhead(start.elapsed().as_micros() as u64);
    }

    /// Frames since the last call that left because their deadline was near.
    pub fn take_hurried(&mut self) -> u64 {
        std::mem::take(&mut self.hurried)
    }
}

fn micros(time: Duration) -> Micros {
    Micros(time.as_micros() as u64)
}

/// A lane and an engine of its own: one frame after another, each all the way.
pub struct Single {
    /// The lane.
    pub lane: Lane,
    engine: Engine,
}

impl Single {
    /// Loads a package; as [`Lane::new`].
    ///
    /// # Errors
    /// See [`SetUpError`].
    pub fn new(package: &Package, settings: Settings, seed: u64) -> Result<Self, SetUpError> {
        Ok(Self {
            engine: Engine::load(package)?,
            lane: Lane::new(package, settings, seed)?,
        })
    }

    /// Runs a frame: height × width × channels bytes. Gives its prediction once its audit is done, too.
    ///
    /// # Errors
    /// See [`FrameError`].
    pub fn run(
        &mut self,
        number: u64,
        pixels: &[u8],
        facts: Facts,
        judge: &mut impl Judge,
    ) -> Result<Prediction, FrameError> {
        let lane = &mut self.lane;
        let mut emitted = None;
        lane.begin(&self.engine, number, pixels, facts, judge)?;
        let mut next = Next::Stage(0);
        while let Next::Stage(stage) = next {
            let start = Instant::now();
            if let Err(error) = self.engine.run_stage(stage, &mut lane.frame) {
                lane.lose();
                return Err(error.into());
            }
            next = lane.go_on(start.elapsed(), Time::default(), judge, |prediction| {
                emitted = Some(*prediction);
            })?;
        }
        lane.tell(judge, |_| ());
        Ok(emitted.expect("a frame that is finished has been emitted"))
    }
}

#[cfg(test)]
mod tests {
    use offramp_camera::sample;

    use super::*;
    use crate::package::EMBEDDED;
    use crate::tool::measuring;

    /// The exit that a frame takes when so much time is left at the second one, and what the judge was told of it.
    fn exit_with(left_ms: Option<f32>) -> (u32, f32, u64) {
        /// Never sure.
        struct Never(f32);
        impl Judge for Never {
            fn decide(&mut self, view: &ExitView) -> (Verdict, bool) {
                self.0 = view.time_left;
                (Verdict::GoOn, false)
            }
        }
        let package = package::open(EMBEDDED).unwrap();
        let settings = Settings {
            audit_rate: 0.0,
            ..measuring(&package, 1.0)
        };
        let mut engine = Engine::load(&package).unwrap();
        let mut lane = Lane::new(&package, settings, 1).unwrap();
        let images = sample::stream().unwrap();
        let mut judge = Never(0.0);
        let mut exit = None;
        lane.begin(&engine, 0, images.pixels(0).unwrap(), Facts::default(), &mut judge)
            .unwrap();
        let mut next = Next::Stage(0);
        while let Next::Stage(stage) = next {
            engine.run_stage(stage, lane.frame()).unwrap();
            let time = Time {
                left_ms: left_ms.map(|left| if stage == 0 { 100.0 } else { left }),
                next_ms: 5.0,
            };
            let took = Duration::from_millis(1);
            next = lane
                .go_on(took, time, &mut judge, |prediction| exit = Some(prediction.exit))
                .unwrap();
        }
        (exit.unwrap(), judge.0, lane.take_hurried())
    }

    #[test]
    fn a_frame_whose_time_is_up_leaves_where_it_is() {
        assert_eq!(exit_with(Some(4.0)), (1, 4.0, 1), "the next stage would end too late");
        assert_eq!(exit_with(Some(-3.0)), (1, -3.0, 1));
        assert_eq!(exit_with(Some(6.0)), (3, 6.0, 0), "there is time for it");
        let (exit, left, hurried) = exit_with(None);
        assert!(exit == 3 && left.is_nan() && hurried == 0);
    }
}
