//! The agent: cameras, workers, and a keeper.
//!
//! Threads, each with one job:
//! - each **camera** has one that fills frames, and waits or drops where nobody takes them;
//! - the **workers** run inference, policy and learner of whichever camera's frame is due, and never wait for
//!   network, disk or compilation;
//! - the **keeper** owns the store and the link: it writes checkpoints and summaries, sends what waits in
//!   the outbox, fetches and compiles what the desired state asks for, and hands it to the cameras' seats;
//! - where contexts are told apart, one more looks once a second which one it is.
//!
//! Orders are taken only between two frames of a camera, so that no frame sees half of a change.

mod board;
mod context;
mod engines;
mod fetch;
mod film;
mod fit;
mod keeper;
mod pool;
mod pulse;
mod queue;
mod renewal;
pub(crate) mod sample;
mod seat;
pub(crate) mod trace;
mod trust;
mod windows;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use offramp_camera::{Camera, Frame};
use offramp_core::{Core, Prediction, Settings};
use offramp_engine::Offload;
use offramp_link::{BrokerUrl, Credentials};
use offramp_model::Package;
use offramp_policy::LadderRules;
use offramp_proto::{
    BootId, DeviceId, Generation, LearnerSettings, LogLevel, PolicyReport, PublicKey, TenantId, Window,
};
use tokio::sync::{mpsc, watch};

use crate::judge::{Chosen, PolicySource, SetUpError as PolicyError, Step};
use crate::lane::SetUpError;
use board::Board;
use fit::Fitter;
use keeper::Keeper;
use pool::{Exchange, Pool, Replacement, Size};
use seat::{Seat, Service};
use windows::Whole;

pub use board::BoardSource;
pub use context::ContextSource;
pub use keeper::{Counters, Swap};
pub use pulse::Pulse;
pub use trace::TraceOptions;

/// What an agent is started with.
pub struct Options {
    /// Who the device is.
    pub device: DeviceId,
    /// Owner of the fleet.
    pub tenant: TenantId,
    /// The policy that decides until the controller names another.
    pub policy: PolicySource,
    /// When a policy is given up, and when it is tried again.
    pub policy_rules: LadderRules,
    /// Learner and audits.
    pub settings: Settings,
    /// File of the device's store.
    pub state: PathBuf,
    /// Whether to start from the model's own heads: what the store holds of them is discarded.
    pub forget: bool,
    /// The fleet; none: the device works alone.
    pub fleet: Option<Fleet>,
    /// Time between summaries.
    pub summary_every: Duration,
    /// Time between checkpoints.
    pub checkpoint_every: Duration,
    /// What is to be offloaded to ONNX Runtime, if anything is.
    pub offload: Option<Offload>,
    /// Threads that run stages; none: as many as there are cores or cameras, whichever is less. Where they are more
    /// than the cameras, the others help with a frame.
    pub threads: Option<usize>,
    /// Frames that a thread runs at a time, at most.
    pub batch: usize,
    /// Where the board is asked for temperature, power and charge, and what it may draw.
    pub board: BoardSource,
    /// Where exit traces are recorded, if they are.
    pub trace: Option<TraceOptions>,
    /// Decides which frames are audited; drawn anew by each run without it.
    pub seed: Option<u64>,
    /// Changes what is logged, and back without a level; none where nobody can.
    pub log: Option<SetLog>,
    /// How the heads of a model that comes from the fleet specialize; none: as `settings` say.
    pub tune: Option<Tune>,
    /// Opens the model of the configuration again, when the fleet's is to go; none: it is kept in memory.
    pub reopen: Option<Reopen>,
    /// Bytes of model packages that come from the fleet and are kept, all together.
    pub packages_bytes: u64,
}

/// How a model's heads specialize.
pub type Tune = Arc<dyn Fn(&Package) -> Settings + Send + Sync>;
/// Opens a model package, or says why it cannot.
pub type Reopen = Arc<dyn Fn() -> Result<Package, String> + Send + Sync>;

/// Changes what is logged.
pub type SetLog = Box<dyn Fn(Option<LogLevel>) + Send>;

impl Options {
    /// A device that works alone, with the defaults of everything else.
    pub fn new(device: DeviceId, tenant: TenantId, policy: PolicySource, settings: Settings, state: PathBuf) -> Self {
        Self {
            device,
            tenant,
            policy,
            policy_rules: LadderRules::default(),
            settings,
            state,
            forget: false,
            fleet: None,
            summary_every: Duration::from_secs(60),
            checkpoint_every: Duration::from_secs(60),
            offload: None,
            threads: None,
            batch: BATCH,
            board: BoardSource::default(),
            trace: None,
            seed: None,
            log: None,
            tune: None,
            reopen: None,
            packages_bytes: PACKAGES_BYTES,
        }
    }
}

/// Bytes of model packages that are kept where nothing else is said: one in use, one to go back to, one on its way.
const PACKAGES_BYTES: u64 = 1 << 30;

/// Frames that are run at a time where nothing else is said.
pub const BATCH: usize = 8;
/// Most cameras of an agent: the store keeps the heads of so many.
pub const MAX_CAMERAS: usize = 16;

/// What becomes of a frame that comes while another one waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DropPolicy {
    /// It waits in the camera: no frame is lost, and the camera is slowed down.
    #[default]
    Never,
    /// It takes the other's place, which is counted as dropped; so is a frame that comes to its turn after its
    /// deadline. For live cameras: what is shown is never old.
    Oldest,
}

/// A camera, and how its frames are to be served.
pub struct Source {
    /// Its name; may be empty where there is one camera only.
    pub name: String,
    /// Where its frames come from.
    pub camera: Box<dyn Camera>,
    /// Who gets its predictions.
    pub listener: Listener,
    /// Who says which context it is in.
    pub context: ContextSource,
    /// What becomes of frames that come too fast.
    pub drop: DropPolicy,
    /// From a frame's arrival to its prediction: as it comes near, the frame leaves at the exit it has reached.
    pub deadline: Option<Duration>,
    /// Least time between two frames; none: as fast as they come.
    pub frame_every: Option<Duration>,
}

impl Source {
    /// A camera alone: nothing is dropped, nothing is urgent, and there is one context.
    pub fn new(camera: Box<dyn Camera>, listener: Listener) -> Self {
        Self {
            name: String::new(),
            camera,
            listener,
            context: ContextSource::One,
            drop: DropPolicy::Never,
            deadline: None,
            frame_every: None,
        }
    }
}

/// How to reach the controller, and whom to trust.
pub struct Fleet {
    /// The broker.
    pub broker: BrokerUrl,
    /// User at the broker.
    pub credentials: Option<Credentials>,
    /// Certificate of the authority that signed the broker's.
    pub ca: Option<PathBuf>,
    /// File with the device's certificate and key, for a broker that asks for them.
    pub identity: Option<PathBuf>,
    /// The controller's key.
    pub key: PublicKey,
}

/// Why an agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The model.
    #[error(transparent)]
    Model(#[from] SetUpError),
    /// The policy from the configuration.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The store.
    #[error(transparent)]
    Store(#[from] offramp_store::OpenError),
    /// Reading what the store holds.
    #[error(transparent)]
    Stored(#[from] offramp_store::StoreError),
    /// The folder of traces.
    #[error("exit traces cannot be recorded")]
    Trace(#[from] offramp_trace::TraceError),
    /// The link's configuration.
    #[error(transparent)]
    Link(#[from] offramp_link::ConfigError),
    /// No random numbers for the boot id.
    #[error("the system gives no random numbers")]
    Random(#[source] getrandom::Error),
    /// Threads or the runtime.
    #[error("the system refuses a thread")]
    Thread(#[source] std::io::Error),
    /// No camera, too many, or two of the same name.
    #[error("an agent has 1 to {MAX_CAMERAS} cameras, each with a name of its own")]
    Cameras,
    /// A camera's frames do not fit the model.
    #[error("camera {name} gives frames of {camera} where model {model} reads {height}x{width}x{channels}")]
    Shape {
        /// Its name.
        name: String,
        /// What the camera gives.
        camera: offramp_camera::FrameShape,
        /// The model.
        model: String,
        /// Rows.
        height: usize,
        /// Columns.
        width: usize,
        /// Values of a pixel.
        channels: usize,
    },
}

/// Gets each prediction as it is made, with the frame it is about and the names of the classes, which change where the
/// fleet gives the device another model.
pub type Listener = Box<dyn FnMut(&Prediction, &Frame, &[String]) + Send>;

/// From the seats to the keeper.
pub(crate) enum Report {
    /// A window has ended.
    Window { whole: Box<Whole>, span: Window },
    /// The heads of a camera as they are.
    Checkpoint { camera: usize, heads: Vec<u8> },
    /// Another model runs from now on: the last window of the one before, the heads of its cameras, and who decides now,
    /// from about which frame on.
    Replaced {
        window: Option<(Box<Whole>, Window)>,
        heads: Vec<(usize, Vec<u8>)>,
        policy: Option<PolicyReport>,
        frame: u64,
    },
    /// Who decides for a camera has changed with this frame.
    Policy {
        camera: usize,
        step: Step,
        policy: PolicyReport,
        frame: u64,
    },
    /// A piece of a camera's trace, for the fleet.
    Sample(Vec<u8>),
    /// Something that the fleet should know.
    Told { kind: &'static str, message: String },
    /// The cameras have ended or the agent was stopped; nothing follows.
    Ended,
}

/// From the keeper to a camera's seat; taken between two frames.
pub(crate) enum Order {
    /// Decide by this policy.
    Swap {
        generation: Generation,
        chosen: Box<Chosen>,
    },
    /// Change the learner.
    Learner(LearnerSettings),
    /// The camera is in this context from the next frame on.
    Context(u64),
}

/// What became of a camera.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Its name.
    pub name: String,
    /// Frames that were begun.
    pub arrived: u64,
    /// Frames that got a prediction.
    pub predicted: u64,
    /// Frames that gave way to newer ones, or came to their turn too late.
    pub dropped: u64,
    /// Frames that left because their deadline was near.
    pub hurried: u64,
    /// The specialized heads, for [`offramp_core::Core::restore`].
    pub heads: Vec<u8>,
}

/// What an agent did, once it has ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// In the order in which they were given.
    pub cameras: Vec<Ended>,
}

/// A running agent. Dropping it does not stop it; [`Agent::stop`] and the camera's end do.
pub struct Agent {
    /// The run of this agent.
    pub boot: BootId,
    stop: Arc<AtomicBool>,
    pulse: Arc<Pulse>,
    counters: watch::Receiver<Counters>,
    lanes: JoinHandle<Outcome>,
    /// Gives who writes the traces of the model that ran last.
    keeper: JoinHandle<Option<JoinHandle<()>>>,
}

impl Agent {
    /// Starts an agent: opens the store, takes up the heads and the policy that it holds, and runs frames at once,
    /// whether there is a network or not.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(options: Options, package: &Package, sources: Vec<Source>) -> Result<Self, StartError> {
        check(&sources)?;
        let mut boot = [0; 16];
        getrandom::fill(&mut boot).map_err(StartError::Random)?;
        let boot = BootId(boot);
        let drawn = u64::from_le_bytes(boot.0[..8].try_into().expect("eight bytes"));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = options.threads.unwrap_or(cores.min(sources.len())).max(1);
        let workers = match options.offload {
            // One computes while the device is busy with the other's frames: more would only make batches smaller.
            Some(_) => threads.min(sources.len()).min(2),
            None => threads.min(sources.len()),
        };
        // So many that every worker has its share.
        let batch = options.batch.min(sources.len().div_ceil(workers)).max(1);
        let (reports, from_seats) = mpsc::channel(64);
        let stop = Arc::new(AtomicBool::new(false));
        let exchange = Arc::new(Exchange::default());
        let fitter = Fitter {
            cameras: sources
                .iter()
                .map(|source| (source.name.clone(), source.camera.shape()))
                .collect(),
            threads: threads - workers + 1,
            offload: options.offload.clone().map(|offload| Offload { batch, ..offload }),
            seed: options.seed.unwrap_or(drawn),
            trace: options.trace.clone(),
            reports: reports.clone(),
        };
        let board = Board::watch(&options.board, Arc::clone(&stop)).map_err(StartError::Thread)?;
        let (orders_to, orders): (Vec<_>, Vec<_>) = sources.iter().map(|_| std::sync::mpsc::channel()).unzip();
        let (window_every, checkpoint_every) = (options.summary_every, options.checkpoint_every);
        let (keeper, first) = Keeper::open(
            options,
            boot,
            package,
            fitter,
            Arc::clone(&board),
            orders_to.clone(),
            Arc::clone(&exchange),
        )?;
        let Replacement {
            engine,
            classes,
            settings: configured,
            lanes,
        } = first;
        let now = Instant::now();
        let mut seats = Vec::with_capacity(sources.len());
        let mut films = Vec::with_capacity(sources.len());
        let parts = sources.into_iter().zip(lanes).zip(orders_to).zip(orders);
        for (camera, (((source, (mut lane, judge)), orders_to), orders)) in parts.enumerate() {
            let watched = source.context.watch(orders_to, Arc::clone(&stop));
            lane.context = watched.map_err(StartError::Thread)?;
            films.push((source.camera, source.name.clone(), source.frame_every));
            seats.push(Seat {
                camera,
                name: source.name,
                service: Service {
                    drop: source.drop,
                    deadline: source.deadline,
                },
                lane,
                board: Arc::clone(&board),
                judge,
                listener: source.listener,
                classes: Arc::clone(&classes),
                orders,
                reports: reports.clone(),
                configured,
                checkpoint_every,
                checkpoint_due: now + checkpoint_every,
                unsaved: false,
                latency: None,
                current: None,
                tended: now,
                windows: 0,
                left_behind: false,
                arrived: 0,
                predicted: 0,
                dropped: 0,
                hurried: 0,
            });
        }

        let counters = keeper.counters();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("offramp-link")
            .enable_all()
            .build()
            .map_err(StartError::Thread)?;
        let keeper = keeper.connect(&runtime)?;
        let spawn = |name: &str| std::thread::Builder::new().name(name.into());
        let keeper = spawn("offramp-keeper")
            .spawn(move || runtime.block_on(keeper.run(from_seats)))
            .map_err(StartError::Thread)?;
        let size = Size {
            threads: workers,
            batch,
            window_every,
        };
        let pool = Pool::new(engine, seats, size, reports, Arc::clone(&stop), exchange);
        for (number, (camera, name, every)) in films.into_iter().enumerate() {
            film::start(camera, number, &name, every, Arc::clone(&pool.shared)).map_err(StartError::Thread)?;
        }
        let pulse = Arc::clone(&pool.shared.pulse);
        let lanes = spawn("offramp-worker")
            .spawn(move || pool.run())
            .map_err(StartError::Thread)?;
        Ok(Self {
            boot,
            stop,
            pulse,
            counters,
            lanes,
            keeper,
        })
    }

    /// What the keeper has done so far, and a way to wait for more.
    pub fn counters(&self) -> watch::Receiver<Counters> {
        self.counters.clone()
    }

    /// A switch that ends the agent after the frames that are on their way.
    pub fn stop_switch(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stop)
    }

    /// Whether its workers go on.
    pub fn pulse(&self) -> Arc<Pulse> {
        Arc::clone(&self.pulse)
    }

    /// Waits until the cameras have ended or the agent was stopped, its state is stored, and the outbox was given a
    /// short time to empty.
    pub fn join(self) -> Outcome {
        // Where frames have ended in a panic, nobody tells the keeper to end.
        let ended = self.lanes.join().and_then(|outcome| {
            // With the cameras, all recorders are gone.
            let recording = self.keeper.join()?;
            recording.map_or(Ok(()), JoinHandle::join).map(|()| outcome)
        });
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Whether cameras can be told apart.
fn check(sources: &[Source]) -> Result<(), StartError> {
    let mut names: Vec<&str> = sources.iter().map(|source| source.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    if !(1..=MAX_CAMERAS).contains(&sources.len()) || names.len() < sources.len() {
        return Err(StartError::Cameras);
    }
    Ok(())
}

/// Settings of the configuration, and over them what the fleet wants.
pub(crate) fn apply_learner(core: &mut Core, configured: &Settings, wanted: LearnerSettings) {
    let mut settings = *configured;
    settings.learner.enabled = wanted.enabled.unwrap_or(settings.learner.enabled);
    settings.learner.rate = wanted.rate.unwrap_or(settings.learner.rate);
    settings.audit_rate = wanted.audit_rate.unwrap_or(settings.audit_rate);
    settings.guard.accuracy_budget = wanted.accuracy_budget.unwrap_or(settings.guard.accuracy_budget);
    settings.guard.cost_ceiling = wanted.cost_ceiling.unwrap_or(settings.guard.cost_ceiling);
    if let Err(error) = core.set_settings(settings) {
        tracing::warn!(%error, "the desired learner settings are refused");
    }
}
