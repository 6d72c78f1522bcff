//! The brokers that the suite runs against.

use std::net::SocketAddr;

use offramp_broker::{Broker, Persistence};
use offramp_test_support::{Mosquitto, TempDir, temp_dir};

/// A broker that accepts packets up to [`MAX_PACKET`] bytes.
pub(crate) trait TestBroker {
    /// Whether it leaves no more messages unacknowledged than the client allows.
    const KEEPS_RECEIVE_MAXIMUM: bool;

    async fn start() -> Self;
    fn address(&self) -> SocketAddr;
    /// Stops it in order; it keeps its sessions and retained messages.
    async fn stop(&mut self);
    /// Removes what a stopped broker has kept.
    fn forget(&mut self);
    /// Starts it again, on the same port.
    async fn resume(&mut self);
}

pub(crate) const MAX_PACKET: usize = 1 << 20;

pub(crate) struct Embedded {
    broker: Option<Broker>,
    address: SocketAddr,
    directory: TempDir,
}

impl Embedded {
    async fn run(bind: SocketAddr, directory: &TempDir) -> Broker {
        let persistence = Persistence::Directory(directory.path().join("broker"));
        Broker::start(bind, persistence).await.unwrap()
    }
}

impl TestBroker for Embedded {
    const KEEPS_RECEIVE_MAXIMUM: bool = true;

    async fn start() -> Self {
        let directory = temp_dir();
        let broker = Self::run(([127, 0, 0, 1], 0).into(), &directory).await;
        Self {
            address: broker.address(),
            broker: Some(broker),
            directory,
        }
    }

    fn address(&self) -> SocketAddr {
        self.address
    }

    async fn stop(&mut self) {
        self.broker.take().unwrap().shutdown().await.unwrap();
    }

    fn forget(&mut self) {
        std::fs::remove_dir_all(self.directory.path().join("broker")).unwrap();
    }

    async fn resume(&mut self) {
        self.broker = Some(Self::run(self.address, &self.directory).await);
    }
}

impl TestBroker for Mosquitto {
    // eclipse-mosquitto/mosquitto#2301, seen with 2.0.11.
    const KEEPS_RECEIVE_MAXIMUM: bool = false;

    async fn start() -> Self {
        tokio::task::block_in_place(|| Mosquitto::start_with(&format!("max_packet_size {MAX_PACKET}")))
    }

    fn address(&self) -> SocketAddr {
        Mosquitto::address(self)
    }

    async fn stop(&mut self) {
        tokio::task::block_in_place(|| Mosquitto::stop(self));
    }

    fn forget(&mut self) {
        Mosquitto::forget(self);
    }

    async fn resume(&mut self) {
        tokio::task::block_in_place(|| Mosquitto::resume(self));
    }
}
