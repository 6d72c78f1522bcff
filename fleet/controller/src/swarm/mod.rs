//! Simulated devices against a real broker: for benchmarks, for tests of rollouts, and to try a controller out.
//!
//! Each device has a connection of its own and speaks the whole protocol: birth, will, desired state, artifact in
//! chunks, report, summaries. It has no camera and no network: its summaries are made up. What a policy does to them is
//! in the policy's parameter `simulate`, the name of a [`Harm`].

mod device;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use offramp_link::{BrokerUrl, ConfigError};
use offramp_proto::{DeviceId, PublicKey, TenantId};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use device::{FRAMES, Harm};

use device::Device;

/// Devices that connect at once.
const CONNECTING: usize = 200;

/// What a swarm is to be.
#[derive(Clone, Debug)]
pub struct SwarmOptions {
    /// The broker.
    pub broker: BrokerUrl,
    /// The fleet that it belongs to.
    pub tenant: TenantId,
    /// The controller's key: desired states are checked as devices do.
    pub key: PublicKey,
    /// How many devices.
    pub devices: usize,
    /// Time between two summaries of a device.
    pub interval: Duration,
}

/// Simulated devices that run.
pub struct Swarm {
    tasks: JoinSet<(DeviceId, u64)>,
    sent: Arc<AtomicU64>,
    phase: watch::Sender<Phase>,
}

/// What the devices are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Answer, but send no summaries.
    Quiet,
    /// Send summaries, too.
    Sending,
    /// Finish what is on its way, and leave.
    Ending,
}

impl Swarm {
    /// Connects the devices and has them born; returns when all are. `connected` hears of each.
    ///
    /// # Errors
    /// When the configuration cannot work whatever the broker says.
    ///
    /// # Panics
    /// Outside a tokio runtime with time and I/O enabled.
    pub async fn start(options: &SwarmOptions, mut connected: impl FnMut()) -> Result<Self, ConfigError> {
        let (phase, phases) = watch::channel(Phase::Quiet);
        let sent = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        let devices = (0..options.devices).map(|number| Device::connect(options, number));
        let mut devices = futures_util::stream::iter(devices).buffer_unordered(CONNECTING);
        while let Some(device) = devices.next().await {
            tasks.spawn(device?.run(phases.clone(), Arc::clone(&sent)));
            connected();
        }
        Ok(Self { tasks, sent, phase })
    }

    /// Has the devices send summaries, each at its interval, spread evenly; or be quiet again.
    pub fn send(&self, sending: bool) {
        let phase = if sending { Phase::Sending } else { Phase::Quiet };
        self.phase.send_replace(phase);
    }

    /// Summaries that the broker has confirmed.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Ends the devices in order. Gives how many summaries of each the broker has confirmed; each is of [`FRAMES`]
    /// frames.
    pub async fn finish(mut self) -> Vec<(DeviceId, u64)> {
        self.phase.send_replace(Phase::Ending);
        let mut all = Vec::with_capacity(self.tasks.len());
        while let Some(ended) = self.tasks.join_next().await {
            all.extend(ended.ok());
        }
        all
    }
}
