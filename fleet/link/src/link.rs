//! The handle: publish, look at the state, shut down.

use std::sync::Arc;
use std::time::Duration;

use rumqttc::{
    AsyncClient, ClientError, PubAckReason, PublishNotice, PublishNoticeError, PublishOptions, PublishResult,
};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout_at};

use crate::config::Config;
use crate::driver::Driver;
use crate::error::{ConfigError, PublishError};
use crate::inbox::Inbox;
use crate::message::Publication;
use crate::state::State;

/// One client's connection to its broker. Clones share it.
///
/// See the [crate documentation](crate) for what it promises. Dropping the last clone ends the
/// connection without a goodbye, so that the broker publishes the will; to leave in order, call
/// [`Link::shutdown`].
#[derive(Clone, Debug)]
pub struct Link(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    live: watch::Receiver<Live>,
    state: watch::Receiver<State>,
    stop: watch::Sender<bool>,
    publish_timeout: Duration,
    max_packet: usize,
}

/// What publishers need of the present connection.
#[derive(Clone, Debug)]
pub(crate) enum Live {
    /// There is none.
    Down,
    /// Connection `number`.
    Up {
        number: u64,
        client: AsyncClient,
        /// Largest packet the broker takes, if it said so.
        max_packet: Option<usize>,
        retain: bool,
    },
    /// There will be none.
    Closed,
}

impl Link {
    /// Starts to connect, and to reconnect whenever the connection is lost, in a task of its own.
    /// Returns at once, whether there is a broker or not. The configuration is checked before.
    ///
    /// # Errors
    /// [`ConfigError`] names what cannot work whatever the broker says.
    ///
    /// # Panics
    /// Outside a tokio runtime with time and I/O enabled.
    pub fn connect(config: &Config) -> Result<(Self, Inbox), ConfigError> {
        let options = config.options()?;
        let (live_sender, live) = watch::channel(Live::Down);
        let (state_sender, state) = watch::channel(State::Connecting);
        let (stop, stop_receiver) = watch::channel(false);
        // Room for what one connection may bring while what an earlier one brought is still here.
        let window = usize::from(config.window);
        let (inbox_sender, inbox) = mpsc::channel(window + config.backlog.max(window));
        let driver = Driver::new(config, options, live_sender, state_sender, stop_receiver, inbox_sender);
        tokio::spawn(driver.run());
        let link = Self(Arc::new(Shared {
            live,
            state,
            stop,
            publish_timeout: config.publish_timeout,
            max_packet: config.max_packet as usize,
        }));
        Ok((link, Inbox(inbox)))
    }

    /// The connection's state, and a way to wait for its changes.
    pub fn state(&self) -> watch::Receiver<State> {
        self.0.state.clone()
    }

    /// Publishes a message and returns when the broker has confirmed it.
    ///
    /// It waits for a connection, for room among the messages in flight and for the confirmation,
    /// all together for [`Config::publish_timeout`](crate::Config::publish_timeout). A message whose
    /// connection is lost before it is confirmed is sent again over the next, so it may arrive
    /// twice. Messages whose calls overlap may arrive in any order.
    ///
    /// Dropping the future gives up waiting; the message may arrive all the same.
    ///
    /// # Errors
    /// [`PublishError`] says whether the message may have arrived and whether to try again.
    pub async fn publish(&self, publication: Publication) -> Result<(), PublishError> {
        let topic = publication.topic().to_owned();
        let (packet, size) = publication.encode()?;
        let check_size = |limit: usize| {
            if size > limit {
                return Err(PublishError::TooLarge {
                    topic: topic.clone(),
                    bytes: size,
                    limit,
                });
            }
            Ok(())
        };
        check_size(self.0.max_packet)?;

        let waited = self.0.publish_timeout;
        let deadline = Instant::now() + waited;
        let mut live = self.0.live.clone();
        let mut next = 0;
        let mut sent = false;
        let late = |sent| {
            if sent {
                return PublishError::Unconfirmed {
                    topic: topic.clone(),
                    waited,
                };
            }
            let reason = match &*self.0.state.borrow() {
                State::Disconnected { reason, .. } => Some(reason.clone()),
                State::Connecting | State::Connected { .. } | State::Closed => None,
            };
            PublishError::NotSent {
                topic: topic.clone(),
                waited,
                reason,
            }
        };
        loop {
            // A connection that failed this message is not tried again, only a later one.
            let usable = live.wait_for(|live| match live {
                Live::Down => false,
                Live::Up { number, .. } => *number >= next,
                Live::Closed => true,
            });
            let found = timeout_at(deadline, usable).await.map_err(|_| late(sent))?;
            let Ok(Live::Up {
                number,
                client,
                max_packet,
                retain,
            }) = found.map(|live| live.clone())
            else {
                return Err(PublishError::Closed { topic });
            };
            next = number + 1;
            check_size(max_packet.unwrap_or(usize::MAX))?;
            if packet.retain && !retain {
                return Err(PublishError::RetainUnsupported { topic });
            }

            let options = PublishOptions::at_least_once()
                .retain(packet.retain)
                .properties(packet.properties.clone().unwrap_or_default());
            let handed = client.publish_tracked(topic.as_str(), packet.payload.clone(), options);
            let notice = match timeout_at(deadline, handed).await.map_err(|_| late(sent))? {
                Ok(notice) => notice,
                Err(ClientError::InvalidRequest(_)) => {
                    return Err(PublishError::Invalid {
                        topic,
                        source: "the topic is not valid".into(),
                    });
                }
                // The connection is gone.
                Err(_) => continue,
            };
            sent = true;
            match timeout_at(deadline, confirmation(notice))
                .await
                .map_err(|_| late(sent))?
            {
                Confirmation::Accepted => return Ok(()),
                Confirmation::Refused(code) => return Err(PublishError::Refused { topic, code }),
                Confirmation::Lost => {}
            }
        }
    }

    /// Says goodbye to the broker, so that it does not publish the will, and ends the connection.
    /// Returns when that is done, after two seconds at most.
    ///
    /// Publishes that still wait get up to one second for their confirmation; then they fail with
    /// [`PublishError::Closed`]. The session stays at the broker until it expires.
    pub async fn shutdown(&self) {
        self.0.stop.send_replace(true);
        let mut state = self.0.state.clone();
        // An error means that the driver is gone, which is closed enough.
        let _ = state.wait_for(|state| *state == State::Closed).await;
    }
}

enum Confirmation {
    Accepted,
    Refused(String),
    /// The connection ended before the broker answered.
    Lost,
}

async fn confirmation(notice: PublishNotice) -> Confirmation {
    match notice.wait_async().await {
        Ok(PublishResult::Qos1(ack)) => match ack.reason {
            PubAckReason::Success | PubAckReason::NoMatchingSubscribers => Confirmation::Accepted,
            reason => Confirmation::Refused(format!("{reason:?}")),
        },
        Err(PublishNoticeError::RetainNotSupported) => Confirmation::Refused("RetainNotSupported".to_owned()),
        // Nothing else answers a QoS 1 message.
        Ok(_) | Err(_) => Confirmation::Lost,
    }
}
