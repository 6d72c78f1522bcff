//! One camera's way through engine, core and policy: everything that happens on the inference thread.

use std::time::Instant;

use offramp_core::{
    Core, Effect, Event, ExitView, Facts, Micros, Misuse, NetworkError, Prediction, Settings, SplitMix64, Verdict,
};
use offramp_engine::{Engine, RunError};
use offramp_model::{Input, Package};

use crate::package;

/// Who gives the verdicts.
pub trait Judge {
    /// A frame begins. Whoever decides may change here, and only here.
    fn start_frame(&mut self) {}

    /// The verdict at an exit, and whether it is the built-in rule's because the policy failed.
    fn decide(&mut self, view: &ExitView) -> (Verdict, bool);
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

/// One camera's core and engine, and the memory that its frames use again and again.
pub struct Lane {
    /// The camera's core.
    pub core: Core,
    /// The context that the next frames belong to.
    pub context: u64,
    engine: Engine,
    frame: offramp_engine::Frame,
    input: Input,
    image: Vec<f32>,
    clock: Instant,
    random: SplitMix64,
}

impl Lane {
    /// A lane with the package's own heads. `seed` decides which frames are audited.
    ///
    /// # Errors
    /// See [`SetUpError`].
    pub fn new(package: &Package, settings: Settings, seed: u64) -> Result<Self, SetUpError> {
        let engine = Engine::load(package)?;
        let input = package.manifest().input.clone();
        Ok(Self {
            core: Core::new(package::network(package)?, settings)?,
            context: 0,
            frame: engine.frame(),
            engine,
            image: vec![0.0; input.values()],
            input,
            clock: Instant::now(),
            random: SplitMix64(seed),
        })
    }

    /// Whose kernels run a stage: `fused`, our own, or `tract`.
    pub fn kernels(&self, stage: usize) -> &'static str {
        if self.engine.is_fused(stage) { "fused" } else { "tract" }
    }

    fn now(&self) -> Micros {
        Micros(self.clock.elapsed().as_micros() as u64)
    }

    /// Runs a frame: height × width × channels bytes. `emit` gets the prediction as soon as it is out;
    /// what it returns is handed through once the frame's audit is done, too.
    ///
    /// # Errors
    /// See [`FrameError`]. The prediction may have been emitted: then only its audit failed.
    pub fn run<T>(
        &mut self,
        number: u64,
        pixels: &[u8],
        facts: Facts,
        judge: &mut impl Judge,
        mut emit: impl FnMut(&Prediction) -> T,
    ) -> Result<T, FrameError> {
        if pixels.len() != self.image.len() {
            self.core.add_dropped(1);
            return Err(FrameError::Size {
                got: pixels.len(),
                expected: self.image.len(),
            });
        }
        judge.start_frame();
        let random = (self.random.next() >> 32) as u32;
        let mut emitted = None;
        let mut next = None;
        let arrived = Event::FrameArrived {
            frame: number,
            random,
            context: self.context,
            facts,
        };
        Self::step(&mut self.core, self.clock, arrived, &mut next, &mut |p| {
            emitted = Some(emit(p));
        })?;
        self.input.normalize(pixels, &mut self.image);
        if let Err(error) = self.engine.start(&mut self.frame, &self.image) {
            return self.lose(error);
        }
        while let Some(effect) = next.take() {
            let event = match effect {
                Effect::RunStage { stage } => match self.engine.run_stage(stage, &mut self.frame) {
                    Ok(features) => Event::FeaturesReady { features },
                    Err(error) => return self.lose(error),
                },
                Effect::Decide { view } => {
                    let (verdict, fault) = judge.decide(&view);
                    Event::VerdictGiven { verdict, fault }
                }
                Effect::Emit { .. } => unreachable!("handed to `emit` as it comes"),
                Effect::Finished => break,
            };
            Self::step(&mut self.core, self.clock, event, &mut next, &mut |p| {
                emitted = Some(emit(p));
            })?;
        }
        Ok(emitted.expect("a frame that is finished has been emitted"))
    }

    fn lose<T>(&mut self, error: RunError) -> Result<T, FrameError> {
        self.core.handle(self.now(), Event::FrameLost, &mut |_| ())?;
        Err(error.into())
    }

    /// Hands an event to the core: predictions go out at once, and at most one order is left to follow.
    fn step(
        core: &mut Core,
        clock: Instant,
        event: Event<'_>,
        next: &mut Option<Effect>,
        emit: &mut impl FnMut(&Prediction),
    ) -> Result<(), Misuse> {
        let now = Micros(clock.elapsed().as_micros() as u64);
        core.handle(now, event, &mut |effect| match effect {
            Effect::Emit { prediction } => emit(&prediction),
            order @ (Effect::RunStage { .. } | Effect::Decide { .. } | Effect::Finished) => *next = Some(order),
        })
    }

    /// Does what the last frame taught, and counts the time it takes.
    pub fn learn(&mut self) {
        let start = Instant::now();
        self.core.learn();
        self.core.add_overhead(start.elapsed().as_micros() as u64);
    }
}
