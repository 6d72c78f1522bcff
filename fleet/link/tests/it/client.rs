//! A link as the tests use it.

use std::net::SocketAddr;
use std::time::Duration;

use offramp_link::{Backoff, Config, Delivery, Inbox, Link, Message, Publication, PublishError, State};
use offramp_test_support::PATIENCE;
use tokio::task::JoinHandle;

/// Runs a test with an end in time.
pub(crate) async fn within<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, test)
        .await
        .expect("the test should come to an end")
}

/// A configuration for a broker that may be away for a moment.
pub(crate) fn config(address: SocketAddr, client_id: &str) -> Config {
    let url = format!("mqtt://{address}").parse().unwrap();
    Config {
        backoff: Backoff {
            first: Duration::from_millis(20),
            longest: Duration::from_millis(200),
        },
        publish_timeout: PATIENCE,
        ..Config::new(url, client_id)
    }
}

pub(crate) struct Client {
    pub(crate) link: Link,
    pub(crate) inbox: Inbox,
}

impl Client {
    pub(crate) fn start(config: &Config) -> Self {
        let (link, inbox) = Link::connect(config).unwrap();
        Self { link, inbox }
    }

    /// Starts and waits for the connection.
    pub(crate) async fn connect(config: &Config) -> Self {
        let client = Self::start(config);
        client.connected().await;
        client
    }

    /// A connected client that only publishes.
    pub(crate) async fn publisher(address: SocketAddr) -> Self {
        Self::connect(&config(address, "publisher")).await
    }

    /// A connected client that only listens.
    pub(crate) async fn watcher(address: SocketAddr, filter: &str) -> Self {
        let mut config = config(address, "watcher");
        config.subscriptions = vec![filter.to_owned()];
        Self::connect(&config).await
    }

    /// Waits for the connection, and tells whether the broker still had the session.
    pub(crate) async fn connected(&self) -> bool {
        match self.state(|state| matches!(state, State::Connected { .. })).await {
            State::Connected { session_resumed } => session_resumed,
            state => unreachable!("{state:?}"),
        }
    }

    pub(crate) async fn disconnected(&self) -> State {
        self.state(|state| matches!(state, State::Disconnected { .. })).await
    }

    pub(crate) async fn state(&self, wanted: impl FnMut(&State) -> bool) -> State {
        self.link.state().wait_for(wanted).await.unwrap().clone()
    }

    pub(crate) async fn publish(&self, topic: &str, payload: &str) {
        let publication = Publication::new(topic, payload.to_owned());
        self.link.publish(publication).await.unwrap();
    }

    /// Publishes in a task of its own.
    pub(crate) fn start_publishing(&self, topic: &str, payload: &str) -> JoinHandle<Result<(), PublishError>> {
        let link = self.link.clone();
        let publication = Publication::new(topic, payload.to_owned());
        tokio::spawn(async move { link.publish(publication).await })
    }

    pub(crate) async fn publish_retained(&self, topic: &str, payload: &str) {
        let publication = Publication::new(topic, payload.to_owned()).retained();
        self.link.publish(publication).await.unwrap();
    }

    pub(crate) async fn delivery(&mut self) -> Delivery {
        self.inbox.recv().await.expect("the link should be open")
    }

    /// Takes the next message and acknowledges it.
    pub(crate) async fn message(&mut self) -> Message {
        let delivery = self.delivery().await;
        let message = delivery.message.clone();
        delivery.acknowledge();
        message
    }

    pub(crate) async fn payload(&mut self) -> String {
        String::from_utf8(self.message().await.payload.into()).unwrap()
    }

    /// Returns when the broker has received every acknowledgement given so far.
    pub(crate) async fn flush(&self) {
        // Acknowledgements and publications have queues of their own, so the first confirmation
        // may overtake one; the second cannot.
        for _ in 0..2 {
            self.publish("flush", "").await;
        }
    }
}
