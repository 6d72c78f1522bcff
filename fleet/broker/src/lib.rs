//! The embedded MQTT v5 broker of the demo and of tests.
//!
//! It makes a first run need nothing but this program. In production any MQTT v5 broker does, and
//! one with access control should be used: this one lets everybody publish and subscribe
//! everything. The link's tests hold it and Debian's mosquitto to the same behaviour.
//!
//! # Limits
//!
//! - Packets up to 1 MiB. For each session without a connection, 10 000 messages and 64 MiB wait.
//! - With a [directory](Persistence::Directory), sessions and retained messages outlive an orderly
//!   [`Broker::shutdown`]. Messages queued for an absent client in the last two seconds before the
//!   process is killed are lost, although their publisher has their confirmation.
//! - No TLS, no passwords, no access control, no bridges.

use std::error::Error;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;

use mqtt5::MqttError;
use mqtt5::broker::config::{RateLimitConfig, StorageBackend};
use mqtt5::broker::{BrokerConfig, BrokerShutdownHandle, MqttBroker, StorageConfig};
use tokio::task::{JoinError, JoinHandle};

/// Largest packet: four times what a link sends by default.
const MAX_PACKET: usize = 1 << 20;

/// What the broker keeps when it stops.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Persistence {
    /// Nothing.
    #[default]
    Memory,
    /// Sessions and retained messages, in this directory. It is made if it is missing; only one
    /// broker may use it at a time.
    Directory(PathBuf),
}

/// A broker that runs on the current tokio runtime. Dropping it stops it without waiting.
#[derive(Debug)]
pub struct Broker {
    address: SocketAddr,
    stop: Stop,
    task: JoinHandle<Result<(), MqttError>>,
}

/// Why a broker could not be started or did not stop in order.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BrokerError {
    /// The address cannot be listened on, for example because another program does.
    #[error("the broker cannot listen on {address}; stop what listens there, or choose another port")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It could not start: most likely its directory cannot be used.
    #[error("the broker cannot start; check that its directory is writable and no other broker uses it")]
    Start(#[source] Box<dyn Error + Send + Sync>),
    /// It ended with an error.
    #[error("the broker failed")]
    Run(#[source] Box<dyn Error + Send + Sync>),
    /// Its task panicked or was cancelled with the runtime.
    #[error("the broker's task ended early")]
    Task(#[source] JoinError),
}

/// Stops the broker when dropped.
struct Stop(BrokerShutdownHandle);

impl std::fmt::Debug for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stop")
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.shutdown();
    }
}

impl Broker {
    /// Starts a broker and returns when it accepts connections. With port 0 it takes a free port,
    /// which [`Broker::address`] tells.
    ///
    /// # Errors
    /// [`BrokerError::Bind`] for a port in use, [`BrokerError::Start`] for a directory that cannot
    /// be used.
    ///
    /// # Panics
    /// Outside a tokio runtime with time and I/O enabled.
    pub async fn start(bind: SocketAddr, persistence: Persistence) -> Result<Self, BrokerError> {
        // mqtt5 reports a busy port as text among other configuration errors; asking first gives
        // the system's own error. (If somebody takes the port in between, its error comes.)
        if bind.port() != 0 {
            TcpListener::bind(bind).map_err(|source| BrokerError::Bind { address: bind, source })?;
        }
        let mut storage = StorageConfig::new();
        match persistence {
            Persistence::Memory => storage.backend = StorageBackend::Memory,
            Persistence::Directory(directory) => {
                storage.backend = StorageBackend::File;
                storage.base_dir = directory;
            }
        }
        let mut config = BrokerConfig {
            bind_addresses: vec![bind],
            max_packet_size: MAX_PACKET,
            storage_config: storage,
            // Counters nobody here reads, published every ten seconds.
            sys_topics_enabled: false,
            ..BrokerConfig::default()
        };
        // There are no passwords to guess.
        config.auth_config.rate_limit = RateLimitConfig {
            enabled: false,
            ..RateLimitConfig::default()
        };

        let mut broker = MqttBroker::with_config(config)
            .await
            .map_err(|error| BrokerError::Start(error.into()))?;
        let address = broker.local_addr().unwrap_or(bind);
        let stop = Stop(broker.shutdown_handle());
        let mut ready = broker.ready_receiver();
        let mut task = tokio::spawn(async move { broker.run().await });
        tokio::select! {
            biased;
            // An error means that the task has ended, which its own branch tells more about.
            Ok(_) = ready.wait_for(|ready| *ready) => {}
            ended = &mut task => return Err(match ended {
                Ok(Ok(())) => BrokerError::Start("it ended at once".into()),
                Ok(Err(error)) => BrokerError::Start(error.into()),
                Err(error) => BrokerError::Task(error),
            }),
        }
        tracing::info!(%address, "embedded broker is listening");
        Ok(Self { address, stop, task })
    }

    /// Where it listens, with the port it got.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes all connections, writes what is to be kept, and returns when the port is free.
    ///
    /// # Errors
    /// [`BrokerError::Run`] or [`BrokerError::Task`] if the broker had failed before.
    pub async fn shutdown(self) -> Result<(), BrokerError> {
        drop(self.stop);
        match self.task.await {
            Ok(outcome) => outcome.map_err(|error| BrokerError::Run(error.into())),
            Err(error) => Err(BrokerError::Task(error)),
        }
    }
}
