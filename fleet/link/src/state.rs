//! How the connection is.

use std::time::Duration;

/// How the connection to the broker is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Connecting, or connected and waiting for the subscriptions to be confirmed.
    Connecting,
    /// Connected, and every subscription confirmed.
    Connected {
        /// Whether the broker still had the session: its subscriptions, and what it kept meanwhile.
        session_resumed: bool,
    },
    /// Not connected.
    Disconnected {
        /// Why.
        reason: Reason,
        /// When the next attempt begins, from the moment this state was set.
        retry_in: Duration,
    },
    /// Ended by [`Link::shutdown`](crate::Link::shutdown) or by dropping the last link.
    Closed,
}

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// The broker could not be reached: no such name, refused, no answer in time.
    #[error("the broker cannot be reached: {cause}")]
    Unreachable {
        /// What happened.
        cause: String,
    },
    /// The TLS handshake failed.
    #[error("TLS with the broker failed: {cause}")]
    Tls {
        /// What happened.
        cause: String,
    },
    /// The broker refused the connection, for example for its credentials.
    #[error("the broker refuses the connection: {code}")]
    Rejected {
        /// The CONNACK's reason code, by name.
        code: String,
    },
    /// The broker refused a subscription.
    #[error("the broker refuses the subscription to `{filter}`: {code}")]
    SubscriptionRefused {
        /// The filter.
        filter: String,
        /// The SUBACK's reason code, by name.
        code: String,
    },
    /// Another client connected with the same client id.
    #[error("another client has taken over the session; two devices share one client id")]
    TakenOver,
    /// The broker closed the connection and said why.
    #[error("the broker closed the connection: {code}")]
    ClosedByBroker {
        /// The DISCONNECT's reason code, by name.
        code: String,
    },
    /// The connection broke, or what came over it was not MQTT.
    #[error("the connection was lost: {cause}")]
    Lost {
        /// What happened.
        cause: String,
    },
    /// The consumer of the inbox does not keep up: a new connection waits until there is room for
    /// what it would bring, or is made because there is room again for what had to be left with
    /// the broker.
    #[error("the inbox is full")]
    InboxFull,
}
