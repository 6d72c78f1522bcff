//! Stages in ONNX Runtime, on a GPU where there is one.
//!
//! [`Engine::offload`](crate::Engine::offload) looks for the library and opens a session for each stage in a thread
//! of its own, while our own kernels go on serving: TensorRT can take minutes. A session that is opened computes a
//! known image, is held against our own kernels, and is then taken up by every clone of the engine. A provider that
//! is missing, fails or computes something else is passed over, and says why and what would help; a stage without a
//! provider stays where it was.
//!
//! What stages hand to each other stays in the device's memory as long as all who read it run with the same provider;
//! only the features come back. A stage that fails while it runs goes back to our own kernels until the next start, and its
//! frame is computed again from its image.
//!
//! Frames that wait at the same stage run as one batch, in a session of its own which is opened once single frames are
//! served: providers build for one size, and would tune themselves anew at each change. A batch that is half empty is
//! not worth it. The state of its frames comes back to our memory, because each may leave at the next exit; that of a
//! frame which is alone stays.
//!
//! Not done: one session of a stage serves all threads, one at a time; and nothing watches over a device that hangs.

#[cfg(feature = "onnxruntime")]
mod build;
#[cfg(feature = "onnxruntime")]
mod cache;
#[cfg(not(feature = "onnxruntime"))]
mod disabled;
#[cfg(feature = "onnxruntime")]
mod library;
mod problem;
#[cfg(feature = "onnxruntime")]
mod session;
#[cfg(all(test, feature = "onnxruntime"))]
mod tests;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

#[cfg(feature = "onnxruntime")]
pub(crate) use build::{start, survey};
#[cfg(not(feature = "onnxruntime"))]
pub(crate) use disabled::{Away, Running, start, survey};
pub use problem::{OffloadProblem, Refusal};
#[cfg(feature = "onnxruntime")]
pub(crate) use session::{Away, Running};

use crate::error::Cause;
use crate::stage::{Handed, Held, Stage};

/// An execution provider of ONNX Runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Provider {
    /// NVIDIA TensorRT: an engine made for the very GPU, which takes minutes.
    TensorRt,
    /// NVIDIA TensorRT for RTX: a plugin, whose engines take seconds.
    TensorRtRtx,
    /// CUDA and cuDNN.
    Cuda,
    /// The runtime's own kernels for CPUs.
    Cpu,
}

impl Provider {
    /// All, the fastest first.
    pub const ALL: [Provider; 4] = [Provider::TensorRt, Provider::TensorRtRtx, Provider::Cuda, Provider::Cpu];

    /// As it is written in a configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Provider::TensorRt => "tensorrt",
            Provider::TensorRtRtx => "tensorrt-rtx",
            Provider::Cuda => "cuda",
            Provider::Cpu => "cpu",
        }
    }

    /// How far what a stage gives may be from what our own kernels give, as a share of the tensor's largest value
    /// (of 1, where that is smaller). TensorRT multiplies with 10 bits of fraction (TF32) unless told otherwise; so
    /// do halves.
    #[must_use]
    pub fn tolerance(self, half: bool) -> f32 {
        match self {
            Provider::TensorRt if half => 5e-2,
            Provider::TensorRt | Provider::TensorRtRtx => 1e-2,
            Provider::Cuda if half => 1e-2,
            Provider::Cuda => 1e-3,
            Provider::Cpu => 1e-4,
        }
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Provider {
    type Err = OffloadProblem;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let found = Provider::ALL.into_iter().find(|provider| provider.name() == name);
        found.ok_or_else(|| OffloadProblem::NoSuchProvider { name: name.to_owned() })
    }
}

/// What is to be offloaded, and to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offload {
    /// The library, or the folder that holds it. Without it `ORT_DYLIB_PATH` is asked, then the usual places.
    pub library: Option<PathBuf>,
    /// In order of preference: each stage goes to the first that accepts it.
    pub providers: Vec<Provider>,
    /// The stages, counted from 0; all of them without it.
    pub stages: Option<Vec<usize>>,
    /// Folder for what TensorRT has built. Kept to a few models and devices; delete it at will.
    pub cache: PathBuf,
    /// Less precise arithmetic where a provider has it: halves in TensorRT, TF32 in CUDA.
    pub half: bool,
    /// Number of the GPU.
    pub device: u32,
    /// Threads of the CPU provider, at least 1.
    pub threads: usize,
    /// Images that a stage runs at a time, at most; with more than 1 each stage has a second session, for as many.
    pub batch: usize,
}

impl Offload {
    /// All stages on the first GPU provider that works.
    #[must_use]
    pub fn new(cache: PathBuf) -> Self {
        Self {
            library: None,
            providers: vec![Provider::TensorRt, Provider::TensorRtRtx, Provider::Cuda],
            stages: None,
            cache,
            half: false,
            device: 0,
            threads: 1,
            batch: 1,
        }
    }
}

/// What runs a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunBy {
    /// Our own kernels.
    Fused,
    /// tract.
    Tract,
    /// ONNX Runtime, with this provider.
    OnnxRuntime(Provider),
}

impl fmt::Display for RunBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RunBy::Fused => f.write_str("fused"),
            RunBy::Tract => f.write_str("tract"),
            RunBy::OnnxRuntime(provider) => write!(f, "onnxruntime/{provider}"),
        }
    }
}

/// How far the offload of a stage is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nobody asked for it.
    NotWanted,
    /// It waits for the stages before it.
    Waiting,
    /// A provider prepares it.
    Building {
        /// The provider.
        provider: Provider,
        /// Since when.
        since: Instant,
    },
    /// It runs in ONNX Runtime.
    Working,
    /// No provider runs it, or no longer.
    Failed,
}

/// What runs a stage now, and how its offload stands.
///
/// Written out, it is a line for a log: `stage runs in fused, onnxruntime/tensorrt is built since 40 s`.
#[derive(Clone, Debug)]
pub struct StageState {
    /// What runs it.
    pub run_by: RunBy,
    /// Images that ONNX Runtime runs at a time, at most; 1 where it does not run it.
    pub batch: usize,
    /// Its offload.
    pub progress: Progress,
    /// Providers that do not run it, or not as they were asked to, and why.
    pub refused: Vec<Refusal>,
}

impl fmt::Display for StageState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.run_by.fmt(f)?;
        if self.batch > 1 {
            write!(f, ", {} at a time", self.batch)?;
        }
        match self.progress {
            Progress::NotWanted | Progress::Working => {}
            Progress::Waiting => f.write_str("; waits for its offload")?,
            Progress::Building { provider, since } => {
                write!(
                    f,
                    "; onnxruntime/{provider} builds it since {} s",
                    since.elapsed().as_secs()
                )?;
            }
            Progress::Failed => f.write_str("; not offloaded")?,
        }
        self.refused.iter().try_for_each(|refusal| write!(f, "; {refusal}"))
    }
}

/// What a machine can run.
#[derive(Debug)]
pub struct Survey {
    /// The library's file and version, or why there is none.
    pub library: Result<(PathBuf, String), OffloadProblem>,
    /// For each provider whether it ran a stage, and if not, why. Empty without a library.
    pub providers: Vec<(Provider, Result<(), OffloadProblem>)>,
}

/// The offload of one package's stages, shared by the clones of an engine.
#[derive(Debug)]
pub(crate) struct Offloaded {
    slots: Vec<Slot>,
    changes: AtomicU64,
    settled: Mutex<bool>,
    settles: Condvar,
}

#[derive(Debug)]
struct Slot {
    running: OnceLock<Running>,
    broken: AtomicBool,
    state: Mutex<SlotState>,
    /// For each tensor that is handed on: the last stage that gets it, by way of stages that pass it on.
    last_reader: Vec<usize>,
    handed: Vec<Handed>,
}

#[derive(Debug)]
struct SlotState {
    progress: Progress,
    refused: Vec<Refusal>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is set in one go: a panic leaves it whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Offloaded {
    fn new(stages: &[Stage], wanted: impl Fn(usize) -> bool) -> Self {
        let slot = |number: usize| {
            let handed = stages[number].handed().to_vec();
            let last_reader = |mut place: usize| {
                let mut reader = number + 1;
                while let Some(stage) = stages.get(reader) {
                    match stage
                        .handed()
                        .iter()
                        .position(|source| matches!(source, Handed::Input(p) if *p == place))
                    {
                        Some(next) if reader + 1 < stages.len() => (place, reader) = (next, reader + 1),
                        _ => break,
                    }
                }
                reader
            };
            Slot {
                running: OnceLock::new(),
                broken: AtomicBool::new(false),
                state: Mutex::new(SlotState {
                    progress: if wanted(number) {
                        Progress::Waiting
                    } else {
                        Progress::NotWanted
                    },
                    refused: Vec::new(),
                }),
                last_reader: (0..handed.len()).map(last_reader).collect(),
                handed,
            }
        };
        Self {
            slots: (0..stages.len()).map(slot).collect(),
            changes: AtomicU64::new(0),
            settled: Mutex::new(false),
            settles: Condvar::new(),
        }
    }

    /// The session of a stage, where there is one that works.
    fn ready(&self, stage: usize) -> Option<&Running> {
        let slot = self.slots.get(stage)?;
        slot.running.get().filter(|_| !slot.broken.load(Ordering::Relaxed))
    }

    /// Runs a stage of these images, if it is ready: gives those that it has not run, which are as they were. A failure
    /// leaves the stage to others for good.
    pub(crate) fn run<'i>(&self, stage: usize, images: impl Iterator<Item = &'i mut Held>) -> Vec<&'i mut Held> {
        let Some(running) = self.ready(stage) else {
            return images.collect();
        };
        // Without its image a frame could not start again.
        let (able, mut left): (Vec<_>, Vec<_>) = images.partition(|image| image.can_restart());
        // What the runtime keeps of an image is a tensor by itself.
        let (mut alone, mut together): (Vec<_>, Vec<_>) = able.into_iter().partition(|image| image.is_away());
        let slot = &self.slots[stage];
        // No other provider need be able to read this one's memory.
        let reads = |reader| {
            self.ready(reader)
                .is_some_and(|other| other.provider() == running.provider())
        };
        let stays = |tensor: usize| (stage + 1..=slot.last_reader[tensor]).all(reads);
        while !together.is_empty() || !alone.is_empty() {
            let (images, size) = match together.len() {
                0 => (&mut alone, 1),
                waiting => (&mut together, running.takes(waiting)),
            };
            let mut group = images.split_off(images.len() - size);
            if let Err(cause) = running.run(&slot.handed, &mut group, stays) {
                self.fail(stage, running.provider(), cause);
                left.extend([group, together, alone].into_iter().flatten());
                break;
            }
        }
        left
    }

    fn fail(&self, stage: usize, provider: Provider, cause: Cause) {
        let slot = &self.slots[stage];
        // Several threads may fail at the same time: one of them tells.
        if !slot.broken.swap(true, Ordering::Relaxed) {
            let problem = OffloadProblem::FailedWhileRunning { provider, cause };
            self.change(stage, |state| {
                state.progress = Progress::Failed;
                state.refused.push(Refusal(problem));
            });
        }
    }

    fn change(&self, stage: usize, change: impl FnOnce(&mut SlotState)) {
        change(&mut lock(&self.slots[stage].state));
        self.changed();
    }

    fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// How often the state of a stage has changed.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    pub(crate) fn state(&self, stage: usize, own: RunBy) -> StageState {
        let state = lock(&self.slots[stage].state);
        let ready = self.ready(stage);
        StageState {
            run_by: ready.map_or(own, |running| RunBy::OnnxRuntime(running.provider())),
            batch: ready.map_or(1, Running::batch),
            progress: state.progress,
            refused: state.refused.clone(),
        }
    }

    /// Waits until every stage is either offloaded or given up.
    pub(crate) fn wait(&self) {
        let settled = lock(&self.settled);
        let _settled = self
            .settles
            .wait_while(settled, |settled| !*settled)
            .unwrap_or_else(PoisonError::into_inner);
    }
}

/// The way in for the thread that builds.
#[cfg(feature = "onnxruntime")]
impl Offloaded {
    /// Whether nobody but the caller knows of it any more.
    fn is_abandoned(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) == 1
    }

    fn building(&self, stage: usize, provider: Provider) {
        let since = Instant::now();
        self.change(stage, |state| state.progress = Progress::Building { provider, since });
    }

    fn refuse(&self, stage: usize, problem: OffloadProblem) {
        self.change(stage, |state| state.refused.push(Refusal(problem)));
    }

    fn publish(&self, stage: usize, running: Running) {
        if self.slots[stage].running.set(running).is_ok() {
            self.change(stage, |state| state.progress = Progress::Working);
        }
    }

    /// No provider is left that could take it.
    fn give_up(&self, stage: usize) {
        self.change(stage, |state| state.progress = Progress::Failed);
    }

    /// Stages that are still to be built.
    fn rest(&self) -> impl Iterator<Item = usize> {
        let is_open = |slot: &Slot| {
            matches!(
                lock(&slot.state).progress,
                Progress::Waiting | Progress::Building { .. }
            )
        };
        let stages = self.slots.iter().enumerate();
        stages.filter(move |(_, slot)| is_open(slot)).map(|(stage, _)| stage)
    }

    /// The same problem keeps all that are left from being built.
    fn refuse_rest(&self, problem: &OffloadProblem) {
        self.rest().for_each(|stage| self.refuse(stage, problem.clone()));
    }

    /// Nothing more will come: what has no session now has none.
    fn settle(&self) {
        self.rest().for_each(|stage| self.give_up(stage));
        *lock(&self.settled) = true;
        self.settles.notify_all();
    }
}

/// Starts the offload of checked stages. The graphs are those of the package, in the order of its stages.
pub(crate) fn attach(
    package: &offramp_model::Package,
    image: usize,
    stages: &[Stage],
    offload: Offload,
) -> Result<Arc<Offloaded>, OffloadProblem> {
    let wanted = offload.stages.as_deref();
    if let Some(&stage) = wanted.and_then(|wanted| wanted.iter().find(|stage| **stage >= stages.len())) {
        return Err(OffloadProblem::NoSuchStage {
            stage,
            stages: stages.len(),
        });
    }
    let offloaded = Arc::new(Offloaded::new(stages, |stage| {
        wanted.is_none_or(|wanted| wanted.contains(&stage))
    }));
    start(package, image, stages, offload, Arc::clone(&offloaded))?;
    Ok(offloaded)
}
