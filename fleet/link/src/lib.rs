//! The MQTT v5 session of a device or a controller, and the only place that knows its library.
//!
//! A [`Link`] keeps one client connected to its broker: it connects, subscribes, reconnects with
//! [exponential backoff and jitter](Backoff) for as long as it lives, and shows its [`State`]. It
//! knows nothing of what the messages mean.
//!
//! # What it promises
//!
//! - [`Link::publish`] returns when the broker has confirmed the message (PUBACK), so that an
//!   outbox can forget a record exactly then. A connection that breaks in between is made good by
//!   sending the message again over the next. What could not be confirmed in time is a
//!   [typed error](PublishError) that says whether the message may have arrived.
//! - An incoming message is acknowledged when its consumer says so
//!   ([`Delivery::acknowledge`]), not when it is received. If the consumer or the whole process
//!   dies before, the broker delivers it again.
//! - Both ways this is *at least once*: every consumer must bear to see a message twice.
//! - A broker that is not there blocks nothing: [`Link::connect`] returns at once, and publishing
//!   fails after [`Config::publish_timeout`].
//!
//! # What bounds it
//!
//! - In flight to the broker: [`Config::window`] messages sent and as many and four more queued;
//!   callers beyond wait in [`Link::publish`].
//! - In flight from the broker: the client announces [`Config::window`] as its *receive maximum*, so
//!   a broker leaves no more messages than that unacknowledged. The [`Inbox`] has room for twice as
//!   many, and no connection begins before half of it is free. So a slow consumer loses nothing,
//!   and neither it nor a full inbox ever holds up the task that answers the broker's pings: what
//!   does not fit stays with the broker. (Brokers that exceed the receive maximum, as mosquitto 2.0
//!   does, cost a reconnect once the consumer has caught up, and still lose nothing.) A consumer
//!   that takes nothing at all is seen as [`Reason::InboxFull`] at the next connect. Messages that
//!   somebody published with QoS 0 are dropped, with a warning, when they would take that room.
//! - Packets: [`Config::max_packet`] both ways. A larger message is refused before it is sent
//!   ([`PublishError::TooLarge`]), also if only the connected broker's limit is smaller. A larger
//!   incoming one the broker must discard; if it sends it all the same, the connection ends.
//! - Time: [`Config::connect_timeout`], [`Config::publish_timeout`], [`Config::keep_alive`], and
//!   two seconds for [`Link::shutdown`].
//!
//! # Session
//!
//! The client connects with *clean start* off and a [session expiry](Config::session_expiry), so
//! the broker keeps its subscriptions and queues QoS 1 messages while it is away. Subscriptions are
//! made at the first connection of a process and whenever the broker has lost the session. Making
//! them brings the retained messages (again).
//!
//! # What it does not do
//!
//! QoS 0 and QoS 2, topic aliases, user properties, enhanced authentication, client certificates,
//! websockets. Changing subscriptions needs a new link.

mod backoff;
mod config;
mod driver;
mod error;
mod inbox;
mod link;
mod message;
mod state;
mod url;
mod volatile;

pub use backoff::Backoff;
pub use config::{Config, Credentials, Will};
pub use error::{ConfigError, PublishError};
pub use inbox::{Delivery, Inbox};
pub use link::Link;
pub use message::{Message, Publication};
pub use state::{Reason, State};
pub use url::{BrokerUrl, UrlError};
