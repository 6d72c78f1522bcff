//! The task that owns the connection.

use std::time::Duration;

use rumqttc::{
    AsyncClient, ConnAck, ConnectionError, DisconnectReasonCode, Event, EventLoop, MqttOptions, Packet, Publish, QoS,
    StateError, SubAck, SubscribeFilterInput, SubscribeReasonCode,
};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::backoff::Delays;
use crate::config::Config;
use crate::inbox::{Delivery, Receipt};
use crate::link::Live;
use crate::message::Message;
use crate::state::{Reason, State};

/// How long an orderly end waits for what is in flight before it says goodbye.
const DRAIN: Duration = Duration::from_secs(1);
/// How long an orderly end takes at most.
const GRACE: Duration = Duration::from_secs(2);

/// Owns the connection, one after the other.
///
/// Each connection has an event loop of its own, which ends with it. What rumqttc would carry from
/// one to the next is all known above it (see [`VolatileSession`](crate::volatile::VolatileSession)),
/// and so nothing of a dead connection can enter a new one: no acknowledgement of a packet
/// identifier that means another message now, no queue that grows with every reconnect, no packet
/// that is too large for a broker that has changed its limits and ends every connection anew.
pub(crate) struct Driver {
    options: MqttOptions,
    filters: Vec<String>,
    leaving: Vec<String>,
    window: usize,
    connect_timeout: Duration,
    delays: Delays,
    live: watch::Sender<Live>,
    state: watch::Sender<State>,
    stop: watch::Receiver<bool>,
    inbox: mpsc::Sender<Delivery>,
    /// Connections made, successful or not.
    number: u64,
    /// Whether the subscriptions were confirmed since this process started.
    subscribed: bool,
}

/// How a connection ended.
enum End {
    /// As asked for.
    Stopped,
    Lost(Reason),
    /// Messages had to be left with the broker, and now there is room for them.
    Overrun,
}

/// What a wait ended with, if not with an event.
enum Interrupt {
    Lost(ConnectionError),
    Silence,
    Room,
}

/// How far a connection is.
enum Phase {
    Connecting,
    Subscribing { session_resumed: bool, broker: Broker },
    Up,
}

/// What the broker said about itself.
struct Broker {
    max_packet: Option<usize>,
    retain: bool,
}

impl Driver {
    pub(crate) fn new(
        config: &Config,
        options: MqttOptions,
        live: watch::Sender<Live>,
        state: watch::Sender<State>,
        stop: watch::Receiver<bool>,
        inbox: mpsc::Sender<Delivery>,
    ) -> Self {
        Self {
            options,
            filters: config.subscriptions.clone(),
            leaving: config.leaving.clone(),
            window: usize::from(config.window),
            connect_timeout: config.connect_timeout,
            delays: Delays::new(config.backoff.clone(), config.seed),
            live,
            state,
            stop,
            inbox,
            number: 0,
            subscribed: false,
        }
    }

    pub(crate) async fn run(mut self) {
        loop {
            if !self.wait_for_room().await {
                break;
            }
            self.state.send_replace(State::Connecting);
            let mut up_since = None;
            let end = self.connection(&mut up_since).await;
            self.number += 1;
            self.live.send_replace(Live::Down);
            let reason = match end {
                End::Stopped => break,
                End::Lost(reason) => reason,
                End::Overrun => {
                    // The inbox is empty and the broker is there: nothing to wait for.
                    tracing::info!("reconnecting for the messages that had no room in the inbox");
                    let reason = Reason::InboxFull;
                    self.state.send_replace(State::Disconnected {
                        reason,
                        retry_in: Duration::ZERO,
                    });
                    continue;
                }
            };
            let stood = up_since.map_or(Duration::ZERO, |since: Instant| since.elapsed());
            let retry_in = self.delays.next(stood);
            tracing::warn!(%reason, ?retry_in, "no connection to the broker");
            self.state.send_replace(State::Disconnected { reason, retry_in });
            tokio::select! {
                () = stopped(&mut self.stop) => break,
                () = sleep(retry_in) => {}
            }
        }
        self.live.send_replace(Live::Closed);
        self.state.send_replace(State::Closed);
    }

    /// Waits until the inbox has room for everything that a connection may bring before something
    /// is acknowledged. Returns false if the link is to end.
    ///
    /// Of one connection, at most `window` messages are unacknowledged, and what lies in the inbox
    /// is unacknowledged, so a connection that begins with this room never finds the inbox full
    /// (with a broker that keeps to the receive maximum; for others see [`Driver::deliver`]): the
    /// event loop never waits for the consumer, and keep-alive goes on however slow that is. What
    /// an earlier connection left there must be taken before; the broker delivers it again, or has
    /// lost it, and then this is the only copy.
    async fn wait_for_room(&mut self) -> bool {
        if self.inbox.capacity() < self.window && !self.inbox.is_closed() {
            self.state.send_replace(State::Disconnected {
                reason: Reason::InboxFull,
                retry_in: Duration::ZERO,
            });
        }
        tokio::select! {
            biased;
            () = stopped(&mut self.stop) => false,
            // An error means that the inbox was dropped, and needs no room.
            _ = self.inbox.reserve_many(self.window) => true,
        }
    }

    /// One connection, from connecting to its end. Sets `up_since` once publishers may use it.
    async fn connection(&mut self, up_since: &mut Option<Instant>) -> End {
        // The client's two queues, one for messages and one for everything else, hold this many
        // each: a whole window of acknowledgements, a subscription and a goodbye.
        let (client, mut events) = AsyncClient::builder(self.options.clone())
            .capacity(self.window + 4)
            .build();
        let mut phase = Phase::Connecting;
        let mut deadline = Instant::now() + 2 * self.connect_timeout;
        let mut goodbye = Goodbye::default();
        let mut overrun = false;
        loop {
            let event = {
                // Pinned, so that an order to stop does not break off what the event loop is doing.
                let poll = events.poll();
                tokio::pin!(poll);
                loop {
                    tokio::select! {
                        biased;
                        order = self.stop.wait_for(|stop| *stop), if !goodbye.begun() => match order {
                            Ok(_) => goodbye.begin(&client),
                            // All links were dropped.
                            Err(_) => return End::Stopped,
                        },
                        () = goodbye.progress(&client) => return End::Stopped,
                        _ = self.inbox.reserve_many(self.inbox.max_capacity()), if overrun => break Err(Interrupt::Room),
                        event = timeout_at(deadline, &mut poll) => break match event {
                            Ok(event) => event.map_err(Interrupt::Lost),
                            Err(_) => Err(Interrupt::Silence),
                        },
                    }
                }
            };
            let event = match event {
                Ok(event) => event,
                Err(_) if goodbye.begun() => return End::Stopped,
                Err(Interrupt::Lost(error)) => return End::Lost(phase.reason(error)),
                Err(Interrupt::Silence) => return End::Lost(phase.silence()),
                Err(Interrupt::Room) => {
                    leave(events, &client).await;
                    return End::Overrun;
                }
            };
            let outcome = match event {
                Event::Incoming(Packet::ConnAck(answer)) => {
                    // Only connecting needs it: see `VolatileSession`.
                    events.options.clear_session_store();
                    self.connected(&client, &answer)
                }
                Event::Incoming(Packet::SubAck(answer)) => self.confirmed(&client, &answer, phase),
                Event::Incoming(Packet::Publish(packet)) => self.deliver(&client, packet, &mut overrun).map(|()| phase),
                Event::Incoming(_) | Event::Outgoing(_) | Event::Auth(_) => Ok(phase),
            };
            phase = match outcome {
                Ok(phase) => phase,
                Err(reason) => {
                    leave(events, &client).await;
                    return End::Lost(reason);
                }
            };
            deadline = match &phase {
                Phase::Connecting => deadline,
                Phase::Subscribing { .. } => deadline.min(Instant::now() + self.connect_timeout),
                Phase::Up => {
                    up_since.get_or_insert_with(Instant::now);
                    Instant::now() + patience(&events) + self.connect_timeout
                }
            };
        }
    }

    /// The broker has accepted the connection.
    fn connected(&mut self, client: &AsyncClient, answer: &ConnAck) -> Result<Phase, Reason> {
        let properties = answer.properties.as_ref();
        let broker = Broker {
            max_packet: properties
                .and_then(|properties| properties.max_packet_size)
                .map(|size| size as usize),
            retain: properties.and_then(|properties| properties.retain_available) != Some(0),
        };
        let session_resumed = answer.session_present;
        if session_resumed && !self.leaving.is_empty() {
            // Not waited for: what comes until then is as good as what was kept. The queue is new.
            client
                .try_unsubscribe_many(self.leaving.iter().map(String::as_str))
                .map_err(|error| Reason::Lost {
                    cause: error.to_string(),
                })?;
        }
        // A session that the broker kept has its subscriptions, but of an earlier start of this
        // client, whose filters may have been others.
        if self.filters.is_empty() || (session_resumed && self.subscribed) {
            self.up(client, session_resumed, &broker);
            return Ok(Phase::Up);
        }
        let filters = self
            .filters
            .iter()
            .map(|filter| SubscribeFilterInput::new(filter, QoS::AtLeastOnce));
        match client.try_subscribe_many(filters) {
            Ok(()) => Ok(Phase::Subscribing {
                session_resumed,
                broker,
            }),
            // The queue is new and the filters were checked.
            Err(error) => Err(Reason::Lost {
                cause: error.to_string(),
            }),
        }
    }

    /// The broker has answered the subscription.
    fn confirmed(&mut self, client: &AsyncClient, answer: &SubAck, phase: Phase) -> Result<Phase, Reason> {
        let Phase::Subscribing {
            session_resumed,
            broker,
        } = phase
        else {
            return Ok(phase);
        };
        for (filter, code) in self.filters.iter().zip(&answer.return_codes) {
            if !matches!(code, SubscribeReasonCode::Success(_)) {
                return Err(Reason::SubscriptionRefused {
                    filter: filter.clone(),
                    code: format!("{code:?}"),
                });
            }
        }
        self.subscribed = true;
        self.up(client, session_resumed, &broker);
        Ok(Phase::Up)
    }

    fn up(&self, client: &AsyncClient, session_resumed: bool, broker: &Broker) {
        tracing::info!(session_resumed, "connected to the broker");
        // First what is used, then what is said about it.
        self.live.send_replace(Live::Up {
            number: self.number,
            client: client.clone(),
            max_packet: broker.max_packet,
            retain: broker.retain,
        });
        self.state.send_replace(State::Connected { session_resumed });
    }

    /// Puts a message into the inbox, without waiting.
    ///
    /// A broker may send more than the receive maximum allows (mosquitto 2.0 does,
    /// eclipse-mosquitto/mosquitto#2301). What then finds no room is left unacknowledged, and so is
    /// all that follows, for the order's sake. The connection stays, for what is published over it;
    /// when the inbox has been emptied, a new one brings these messages again.
    fn deliver(&self, client: &AsyncClient, packet: Publish, overrun: &mut bool) -> Result<(), Reason> {
        let violation = |cause: &str| Reason::Lost {
            cause: cause.to_owned(),
        };
        let receipt = match packet.qos {
            // Published with QoS 0, so it may be lost: it must not take the room of what may not.
            QoS::AtMostOnce if self.inbox.capacity() <= self.window => {
                tracing::warn!(topic = ?packet.topic, "inbox full; a message of QoS 0 is dropped");
                return Ok(());
            }
            QoS::AtMostOnce => None,
            QoS::AtLeastOnce if *overrun => return Ok(()),
            QoS::AtLeastOnce => client.prepare_ack(&packet).map(|ack| Receipt {
                client: client.clone(),
                ack,
            }),
            QoS::ExactlyOnce => return Err(violation("the broker sent QoS 2, more than was subscribed")),
        };
        let message = Message::of(packet).map_err(|_| violation("the broker sent a topic that is not UTF-8"))?;
        match self.inbox.try_send(Delivery { message, receipt }) {
            // Without a consumer the message stays with the broker.
            Ok(()) | Err(TrySendError::Closed(_)) => {}
            Err(TrySendError::Full(_)) => {
                tracing::warn!("the broker sent more messages than it may leave unacknowledged");
                *overrun = true;
            }
        }
        Ok(())
    }
}

impl Phase {
    /// What an error of the event loop means.
    fn reason(&self, error: ConnectionError) -> Reason {
        match error {
            ConnectionError::Tls(error) => Reason::Tls {
                cause: error.to_string(),
            },
            ConnectionError::ConnectionRefused(code) => Reason::Rejected {
                code: format!("{code:?}"),
            },
            // rumqttc 0.34 waits for more of a DISCONNECT that ends with its reason, as MQTT lets
            // it, so from brokers that write it so (mqtt5 0.49) the reason is not learned: it comes
            // out as a lost connection. mosquitto 2.0.11 gives none when a session is taken over.
            ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, .. }) => match reason_code {
                DisconnectReasonCode::SessionTakenOver => Reason::TakenOver,
                code => Reason::ClosedByBroker {
                    code: format!("{code:?}"),
                },
            },
            ConnectionError::Timeout(_) => self.silence(),
            error => {
                let cause = error.to_string();
                match self {
                    Self::Connecting => Reason::Unreachable { cause },
                    Self::Subscribing { .. } | Self::Up => Reason::Lost { cause },
                }
            }
        }
    }

    /// What it means that nothing came in time.
    fn silence(&self) -> Reason {
        match self {
            Self::Connecting => Reason::Unreachable {
                cause: "no answer in time".to_owned(),
            },
            Self::Subscribing { .. } => Reason::Lost {
                cause: "the subscriptions were not confirmed in time".to_owned(),
            },
            Self::Up => Reason::Lost {
                cause: "the broker is silent".to_owned(),
            },
        }
    }
}

/// An orderly end in three steps: a disconnect that waits for what is in flight, after [`DRAIN`]
/// one that does not, and after [`GRACE`] the end all the same.
#[derive(Default)]
struct Goodbye {
    begun: Option<Instant>,
    said: bool,
}

impl Goodbye {
    fn begun(&self) -> bool {
        self.begun.is_some()
    }

    fn begin(&mut self, client: &AsyncClient) {
        self.begun = Some(Instant::now());
        // If the queue is full, the second step comes through: it has a queue of its own.
        let _ = client.try_disconnect();
    }

    /// Returns when the time is over; never, if it has not begun. Cancel safe.
    async fn progress(&mut self, client: &AsyncClient) {
        let Some(begun) = self.begun else {
            return std::future::pending().await;
        };
        if !self.said {
            sleep_until(begun + DRAIN).await;
            self.said = true;
            let _ = client.try_disconnect_now();
        }
        sleep_until(begun + GRACE).await;
    }
}

/// Leaves a connection that works, in order, so that the broker does not take the client for dead
/// and publish the will.
async fn leave(mut events: EventLoop, client: &AsyncClient) {
    let mut goodbye = Goodbye::default();
    goodbye.begin(client);
    loop {
        tokio::select! {
            () = goodbye.progress(client) => return,
            event = events.poll() => {
                if event.is_err() {
                    return;
                }
            }
        }
    }
}

/// How long the event loop may go without an event. Within one keep-alive rumqttc sends a ping or
/// notices that the last was not answered; if it does neither, it is stuck in a write to a peer
/// that reads no more.
fn patience(events: &EventLoop) -> Duration {
    const WITHOUT_KEEP_ALIVE: Duration = Duration::from_secs(24 * 60 * 60);
    match events.options.keep_alive() {
        // The broker has ordered that there be no pings.
        Duration::ZERO => WITHOUT_KEEP_ALIVE,
        keep_alive => 2 * keep_alive,
    }
}

/// Returns when the link is to end, by order or because nobody holds it any more.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

#[cfg(test)]
mod tests {
    use super::{ConnectionError, DisconnectReasonCode, Phase, Reason, StateError};

    fn reason(phase: &Phase, error: impl Into<ConnectionError>) -> String {
        format!("{:?}", phase.reason(error.into()))
    }

    #[test]
    fn errors_of_the_event_loop_become_reasons() {
        let said = |reason_code| StateError::ServerDisconnect {
            reason_code,
            reason_string: None,
        };
        let refused = || std::io::Error::other("refused");
        assert_eq!(
            reason(&Phase::Up, said(DisconnectReasonCode::SessionTakenOver)),
            "TakenOver"
        );
        assert_eq!(
            reason(&Phase::Up, said(DisconnectReasonCode::ServerShuttingDown)),
            r#"ClosedByBroker { code: "ServerShuttingDown" }"#
        );
        assert_eq!(
            reason(&Phase::Connecting, refused()),
            r#"Unreachable { cause: "I/O: refused" }"#
        );
        assert_eq!(reason(&Phase::Up, refused()), r#"Lost { cause: "I/O: refused" }"#);
        assert!(matches!(Phase::Connecting.silence(), Reason::Unreachable { .. }));
        assert!(matches!(Phase::Up.silence(), Reason::Lost { .. }));
    }
}
