//! The engine and the frames that go through it.

use std::io;
use std::sync::Arc;

use offramp_kernels::Isa;
use offramp_model::Package;

use crate::error::{LoadError, RunError};
use crate::offload::{self, Offload, OffloadProblem, Offloaded, Progress, RunBy, StageState, Survey};
use crate::stage::{Handed, Held, Kernels, Stage, Threads};

/// The stages of a package, ready to run on one thread, or with the help of some.
///
/// A clone shares the weights and the helping threads, and has scratch memory of its own.
#[derive(Debug, Clone)]
pub struct Engine {
    pub(crate) stages: Vec<Stage>,
    features: Vec<usize>,
    /// The image's shape, batch axis first.
    image: Vec<usize>,
    pub(crate) offloaded: Option<Arc<Offloaded>>,
    threads: Threads,
}

/// One image on its way through the stages.
///
/// A frame belongs to a camera and is used again for its every image. It may
/// wait between two stages while others run.
#[derive(Debug, Clone, Default)]
pub struct Frame {
    /// The next stage; none before the start, after the last stage and after
    /// a failure.
    next: Option<usize>,
    held: Held,
}

impl Frame {
    /// The features of the stage that ran last; empty before the first.
    #[must_use]
    pub fn features(&self) -> &[f32] {
        &self.held.features
    }

    /// Whether ONNX Runtime keeps what the next stage reads, or some of it, in the memory of its device.
    #[must_use]
    pub fn is_away(&self) -> bool {
        self.held.is_away()
    }
}

impl Engine {
    /// Loads the stages of a package and checks that they fit each other and
    /// the manifest. Takes a fraction of a second for small networks: the
    /// graphs are optimised for this machine and the weights packed.
    ///
    /// # Errors
    /// What is wrong, and with which stage; see [`StageProblem`](crate::StageProblem).
    pub fn load(package: &Package) -> Result<Engine, LoadError> {
        Self::load_with(package, Kernels::default())
    }

    /// As [`Self::load`], with these kernels.
    ///
    /// # Errors
    /// As there.
    pub fn load_with(package: &Package, kernels: Kernels) -> Result<Engine, LoadError> {
        let manifest = package.manifest();
        let input = &manifest.input;
        let image = vec![1, input.height, input.width, input.channels];
        let mut reads = vec![image.clone()];
        let mut stages = Vec::new();
        for ((declared, exit), bytes) in manifest.stages.iter().zip(&manifest.exits).zip(package.stages()) {
            let loaded = Stage::load(bytes, declared, &reads, exit.features, kernels).map_err(|problem| LoadError {
                package: package.label().to_owned(),
                part: declared.file.clone(),
                problem,
            })?;
            reads = loaded.handed;
            stages.push(loaded.stage);
        }
        let features = manifest.exits.iter().map(|exit| exit.features).collect();
        Ok(Engine {
            stages,
            features,
            image,
            offloaded: None,
            threads: Threads::default(),
        })
    }

    /// The engine with so many threads for each stage, the calling one included: a frame is done sooner. Features
    /// are the same to the bit. Clones made from now on share the threads: one that finds them busy goes on
    /// alone. Stages that tract runs have as many threads of tract's own.
    ///
    /// # Errors
    /// Where the system gives no more threads.
    pub fn with_threads(mut self, threads: usize) -> io::Result<Engine> {
        self.threads = Threads::new(threads, &self.stages)?;
        Ok(self)
    }

    /// Number of stages.
    #[must_use]
    pub fn stages(&self) -> usize {
        self.stages.len()
    }

    /// Multiply-adds per second that our kernels could do at most on the threads of this engine, measured now on
    /// nothing but registers, with the name of the instruction set.
    #[must_use]
    pub fn peak(&self) -> (&'static str, f64) {
        (
            Isa::best().name(),
            offramp_kernels::peak(Isa::best(), self.threads.kernels()),
        )
    }

    /// Begins to offload stages of this engine, and of clones made of it from now on, to ONNX Runtime. Returns at
    /// once: the stages go on in our own kernels until each is ready and has shown that it computes the same. What
    /// comes of it is told by [`Self::stage_states`].
    ///
    /// The package must be the one that the engine was loaded from. An earlier offload of this engine ends.
    ///
    /// # Errors
    /// Only what no provider could change: a program built without it, a stage that does not exist.
    pub fn offload(&mut self, package: &Package, offload: Offload) -> Result<(), OffloadProblem> {
        self.offloaded = None;
        self.offloaded = Some(offload::attach(package, self.image_values(), &self.stages, offload)?);
        Ok(())
    }

    /// Tries each of the providers on the first stage, here and now, and tells what the machine can run. With
    /// TensorRT this takes up to minutes.
    #[must_use]
    pub fn survey(&self, package: &Package, offload: &Offload) -> Survey {
        offload::survey(package, self.image_values(), &self.stages, offload)
    }

    /// Waits until every stage that is to be offloaded either is or has been given up.
    pub fn wait_for_offload(&self) {
        if let Some(offloaded) = &self.offloaded {
            offloaded.wait();
        }
    }

    /// Grows whenever the state of a stage changes. Cheap: one load.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.offloaded.as_ref().map_or(0, |offloaded| offloaded.changes())
    }

    /// What runs each stage, and how its offload stands.
    #[must_use]
    pub fn stage_states(&self) -> Vec<StageState> {
        let state = |stage: usize| {
            let own = if self.is_fused(stage) {
                RunBy::Fused
            } else {
                RunBy::Tract
            };
            match &self.offloaded {
                Some(offloaded) => offloaded.state(stage, own),
                None => StageState {
                    run_by: own,
                    batch: 1,
                    progress: Progress::NotWanted,
                    refused: Vec::new(),
                },
            }
        };
        (0..self.stages.len()).map(state).collect()
    }

    /// Whether our own kernels can run a stage, and not only tract.
    ///
    /// # Panics
    /// Where there is no such stage.
    #[must_use]
    pub fn is_fused(&self, stage: usize) -> bool {
        self.stages[stage].is_fused()
    }

    /// Whether a stage computes any of what it hands on, and does not only pass on what it reads.
    ///
    /// # Panics
    /// Where there is no such stage.
    #[must_use]
    pub fn computes_state(&self, stage: usize) -> bool {
        let handed = self.stages[stage].handed();
        handed.iter().any(|source| matches!(source, Handed::Output))
    }

    /// C of the exit behind a stage.
    ///
    /// # Panics
    /// Where there is no such stage.
    #[must_use]
    pub fn features(&self, stage: usize) -> usize {
        self.features[stage]
    }

    /// A frame for one camera.
    #[must_use]
    pub fn frame(&self) -> Frame {
        Frame::default()
    }

    /// Puts an image into a frame, which forgets what it held. The image is
    /// height × width × channels values (HWC), normalised as the manifest says:
    /// [`offramp_model::Input::normalize`].
    ///
    /// # Errors
    /// [`RunError::Image`] for an image of another size.
    pub fn start(&self, frame: &mut Frame, image: &[f32]) -> Result<(), RunError> {
        frame.next = None;
        let expected = self.image_values();
        if image.len() != expected {
            return Err(RunError::Image {
                found: image.len(),
                expected,
            });
        }
        frame.held.start(image, self.offloaded.is_some());
        frame.next = Some(0);
        Ok(())
    }

    /// Runs one stage, the frame's next, and gives the C features of its exit.
    ///
    /// # Errors
    /// [`RunError::Order`] where the stage is not the frame's next, which leaves
    /// the frame as it was; [`RunError::Runtime`] where the runtime fails, which
    /// ends the frame: start it again.
    pub fn run_stage<'f>(&mut self, stage: usize, frame: &'f mut Frame) -> Result<&'f [f32], RunError> {
        self.before(stage, frame)?;
        frame.next = None;
        self.run(stage, &mut [&mut frame.held])?;
        frame.next = self.after(stage);
        Ok(frame.features())
    }

    fn image_values(&self) -> usize {
        self.image.iter().product()
    }

    /// Runs a stage where it is to run: images that its offload does not take go on here, together.
    fn run(&mut self, stage: usize, images: &mut [&mut Held]) -> Result<(), RunError> {
        let Some(offloaded) = &self.offloaded else {
            return self.run_here(stage, images);
        };
        let mut left = offloaded.run(stage, images.iter_mut().map(|image| &mut **image));
        // What a stage has left with a runtime that failed since is computed again.
        for image in left.iter_mut().filter(|image| image.is_away()) {
            image.restart();
            for earlier in 0..stage {
                self.run_here(earlier, &mut [image])?;
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        self.run_here(stage, &mut left)
    }

    fn run_here(&mut self, stage: usize, images: &mut [&mut Held]) -> Result<(), RunError> {
        let run = self.stages[stage].run(images, &self.threads);
        run.map_err(|cause| RunError::Runtime { stage, cause })
    }

    fn before(&self, stage: usize, frame: &Frame) -> Result<(), RunError> {
        if frame.next == Some(stage) {
            Ok(())
        } else {
            Err(RunError::Order {
                asked: stage,
                next: frame.next,
            })
        }
    }

    fn after(&self, stage: usize) -> Option<usize> {
        Some(stage + 1).filter(|next| *next < self.stages.len())
    }

    /// Runs one stage of several frames at a time, all of which are before it. Each gives its features by
    /// [`Frame::features`], the same to the bit as alone; ONNX Runtime promises less.
    ///
    /// # Errors
    /// As [`Self::run_stage`]: a frame that is not before this stage leaves all as they were, a failure ends all.
    pub fn run_stage_of(&mut self, stage: usize, frames: &mut [&mut Frame]) -> Result<(), RunError> {
        frames.iter().try_for_each(|frame| self.before(stage, frame))?;
        frames.iter_mut().for_each(|frame| frame.next = None);
        let mut held: Vec<&mut Held> = frames.iter_mut().map(|frame| &mut frame.held).collect();
        self.run(stage, &mut held)?;
        frames.iter_mut().for_each(|frame| frame.next = self.after(stage));
        Ok(())
    }
}

/// What reads memory as fast as this machine does: it gives the sum of the numbers.
#[must_use]
pub fn streaming() -> fn(&[f32]) -> f32 {
    |numbers| offramp_kernels::read(Isa::best(), numbers)
}

/// The vector instructions of this machine that our own kernels use.
#[must_use]
pub fn instructions() -> &'static str {
    Isa::best().name()
}
