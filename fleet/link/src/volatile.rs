//! The client's half of the session, which is empty.

use std::pin::Pin;

use rumqttc::{PersistedAckMode, PersistedSession, SessionStore, SessionStoreError, SessionStoreKey};

use crate::config::{Config, seconds};

/// rumqttc names this type but does not export it.
type SessionStoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, SessionStoreError>> + Send + 'a>>;

/// Tells rumqttc at the start of each connection that this client holds its half of the session,
/// and that nothing is in it.
///
/// rumqttc refuses a session that the broker has and the client has not, because a client with
/// QoS 2 flows could not continue them. This client has none: it subscribes and publishes with
/// QoS 1 only, for which the client's half consists of the messages that it published and that
/// were not confirmed. Those it keeps above rumqttc, in the calls that wait for them
/// ([`Link::publish`](crate::Link::publish)) and in the device's outbox, and publishes them
/// anew. The broker holds nothing about them, so no packet identifier can be confused.
///
/// It is asked for while connecting and then taken out: where there is one, rumqttc makes a copy of all that is not
/// confirmed with every packet that comes or goes, which was a fifth of the time of a controller and its devices.
#[derive(Debug)]
pub(crate) struct VolatileSession(PersistedSession);

impl VolatileSession {
    pub(crate) fn new(config: &Config) -> Self {
        Self(PersistedSession {
            format_version: 1,
            client_id: config.client_id.clone(),
            clean_start: false,
            session_expiry_interval: Some(seconds(config.session_expiry)),
            outgoing_inflight_upper_limit: Some(config.window),
            ack_mode: PersistedAckMode::Manual,
            last_pkid: 0,
            last_puback: 0,
            replay: Vec::new(),
            incoming_qos2: Vec::new(),
        })
    }
}

impl SessionStore for VolatileSession {
    fn load<'a>(&'a self, _key: &'a SessionStoreKey) -> SessionStoreFuture<'a, Option<PersistedSession>> {
        Box::pin(async { Ok::<_, SessionStoreError>(Some(self.0.clone())) })
    }

    fn save<'a>(&'a self, _key: &'a SessionStoreKey, _session: &'a PersistedSession) -> SessionStoreFuture<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn clear<'a>(&'a self, _key: &'a SessionStoreKey) -> SessionStoreFuture<'a, ()> {
        Box::pin(async { Ok(()) })
    }
}
