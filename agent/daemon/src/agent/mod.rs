//! The agent: a camera, a lane, and a keeper.
//!
//! Threads, each with one job:
//! - the **camera** fills frames and waits when nobody takes them;
//! - the **lane** runs inference, policy and learner, and never waits for network, disk or compilation;
//! - the **keeper** owns the store and the link: it writes checkpoints and summaries, sends what waits in
//!   the outbox, fetches and compiles what the desired state asks for, and hands it to the lane;
//! - where contexts are told apart, a fourth looks once a second which one it is.
//!
//! The lane takes orders only between two frames, so that no frame sees half of a change.

mod context;
mod fetch;
mod keeper;
mod run;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;
use std::time::Duration;

use offramp_camera::{Camera, Frame};
use offramp_core::{Core, Prediction, Settings, WindowReport};
use offramp_link::{BrokerUrl, Credentials};
use offramp_model::Package;
use offramp_proto::{BootId, DeviceId, Generation, LearnerSettings, PolicyReport, PublicKey, TenantId, Window};
use tokio::sync::{mpsc, watch};

use crate::judge::{Chosen, PolicySource, SetUpError as PolicyError, Step};
use crate::lane::{Lane, SetUpError};

pub use context::ContextSource;
pub use keeper::{Counters, Swap};

/// What an agent is started with.
pub struct Options {
    /// Who the device is.
    pub device: DeviceId,
    /// Owner of the fleet.
    pub tenant: TenantId,
    /// The policy that decides until the controller names another.
    pub policy: PolicySource,
    /// Learner and audits.
    pub settings: Settings,
    /// Who says which context the camera is in.
    pub context: ContextSource,
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
    /// Least time between two frames; none: as fast as they come.
    pub frame_every: Option<Duration>,
}

/// How to reach the controller, and whom to trust.
pub struct Fleet {
    /// The broker.
    pub broker: BrokerUrl,
    /// User at the broker.
    pub credentials: Option<Credentials>,
    /// Certificate of the authority that signed the broker's.
    pub ca: Option<PathBuf>,
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
    /// The link's configuration.
    #[error(transparent)]
    Link(#[from] offramp_link::ConfigError),
    /// No random numbers for the boot id.
    #[error("the system gives no random numbers")]
    Random(#[source] getrandom::Error),
    /// Threads or the runtime.
    #[error("the system refuses a thread")]
    Thread(#[source] std::io::Error),
    /// The camera's frames do not fit the model.
    #[error("camera gives frames of {camera} where model {model} reads {height}x{width}x{channels}")]
    Shape {
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

/// Gets each prediction as it is made, with the frame it is about.
pub type Listener = Box<dyn FnMut(&Prediction, &Frame) + Send>;

/// From the lane to the keeper.
pub(crate) enum Report {
    /// A window has ended.
    Window {
        report: Box<WindowReport>,
        span: Window,
        policy: PolicyReport,
    },
    /// The heads as they are.
    Checkpoint(Vec<u8>),
    /// Who decides has changed with this frame.
    Policy {
        step: Step,
        policy: PolicyReport,
        frame: u64,
    },
    /// The camera has ended or the agent was stopped; nothing follows.
    Ended,
}

/// From the keeper to the lane; taken between two frames.
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

/// What an agent did, once it has ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Frames that the camera gave.
    pub arrived: u64,
    /// Frames that got a prediction.
    pub predicted: u64,
    /// The specialized heads, for [`offramp_core::Core::restore`].
    pub heads: Vec<u8>,
}

/// A running agent. Dropping it does not stop it; [`Agent::stop`] and the camera's end do.
pub struct Agent {
    /// The run of this agent.
    pub boot: BootId,
    stop: Arc<AtomicBool>,
    counters: watch::Receiver<Counters>,
    lane: JoinHandle<Outcome>,
    keeper: JoinHandle<()>,
}

impl Agent {
    /// Starts an agent: opens the store, takes up the heads and the policy that it holds, and runs frames at once,
    /// whether there is a network or not.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(
        options: Options,
        package: &Package,
        camera: Box<dyn Camera>,
        listener: Listener,
    ) -> Result<Self, StartError> {
        let input = &package.manifest().input;
        let shape = camera.shape();
        if (shape.height(), shape.width(), shape.channels()) != (input.height, input.width, input.channels) {
            return Err(StartError::Shape {
                camera: shape,
                model: package.manifest().name.clone(),
                height: input.height,
                width: input.width,
                channels: input.channels,
            });
        }
        let mut boot = [0; 16];
        getrandom::fill(&mut boot).map_err(StartError::Random)?;
        let boot = BootId(boot);
        let seed = u64::from_le_bytes(boot.0[..8].try_into().expect("eight bytes"));
        let mut lane = Lane::new(package, options.settings, seed)?;

        let (reports, from_lane) = mpsc::channel(64);
        let (to_lane, orders) = std::sync::mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let pace = run::Pace {
            summary: options.summary_every,
            checkpoint: options.checkpoint_every,
            frame: options.frame_every,
        };
        lane.context = options
            .context
            .clone()
            .watch(to_lane.clone(), Arc::clone(&stop))
            .map_err(StartError::Thread)?;
        let (keeper, judge) = keeper::Keeper::open(options, boot, package, &mut lane.core, to_lane)?;
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
            .spawn(move || runtime.block_on(keeper.run(from_lane)))
            .map_err(StartError::Thread)?;
        let stopped = Arc::clone(&stop);
        let frames = run::start_camera(camera, Arc::clone(&stop)).map_err(StartError::Thread)?;
        let work = run::Run {
            lane,
            judge,
            frames,
            orders,
            reports,
            pace,
            stop: stopped,
            listener,
        };
        let lane = spawn("offramp-lane")
            .spawn(move || work.run())
            .map_err(StartError::Thread)?;
        Ok(Self {
            boot,
            stop,
            counters,
            lane,
            keeper,
        })
    }

    /// What the keeper has done so far, and a way to wait for more.
    pub fn counters(&self) -> watch::Receiver<Counters> {
        self.counters.clone()
    }

    /// A switch that ends the agent after the frame that is on its way.
    pub fn stop_switch(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stop)
    }

    /// Waits until the camera has ended or the agent was stopped, its state is stored, and the outbox was given a
    /// short time to empty.
    pub fn join(self) -> Outcome {
        let outcome = self.lane.join();
        let keeper = self.keeper.join();
        match (outcome, keeper) {
            (Ok(outcome), Ok(())) => outcome,
            (Err(panic), _) | (_, Err(panic)) => std::panic::resume_unwind(panic),
        }
    }
}

/// Changes what a desired state names of the learner.
pub(crate) fn apply_learner(core: &mut Core, wanted: LearnerSettings) {
    let mut settings = *core.settings();
    settings.learner.enabled = wanted.enabled.unwrap_or(settings.learner.enabled);
    settings.learner.rate = wanted.rate.unwrap_or(settings.learner.rate);
    settings.audit_rate = wanted.audit_rate.unwrap_or(settings.audit_rate);
    settings.guard.accuracy_budget = wanted.accuracy_budget.unwrap_or(settings.guard.accuracy_budget);
    settings.guard.cost_ceiling = wanted.cost_ceiling.unwrap_or(settings.guard.cost_ceiling);
    if let Err(error) = core.set_settings(settings) {
        tracing::warn!(%error, "the desired learner settings are refused");
    }
}
