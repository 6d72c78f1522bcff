//! What can go wrong, by operation.

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use crate::state::Reason;

/// A configuration that cannot work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// An empty client id: the broker would make one up, and the session could never be resumed.
    #[error("the client id is empty; give the device's id")]
    NoClientId,
    /// A field that MQTT limits to 65535 bytes is longer, or holds a NUL.
    #[error("{0} is longer than 65535 bytes or holds a NUL character")]
    Unfit(&'static str),
    /// A subscription that is no topic filter.
    #[error("`{0}` is no topic filter; wildcards must fill a level, and # must be the last")]
    Filter(String),
    /// A will whose topic cannot be published to.
    #[error("`{0}` is no topic for a will")]
    WillTopic(String),
    /// A number out of its range.
    #[error("{name} is {value}; it must be from {least} to {most}")]
    Range {
        /// The field of [`Config`](crate::Config).
        name: &'static str,
        /// What was asked for.
        value: u64,
        /// The smallest value that works.
        least: u64,
        /// The largest value that works.
        most: u64,
    },
    /// The CA file cannot be read.
    #[error("CA file {} cannot be read", path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The CA file holds no certificate.
    #[error("CA file {} holds no certificate in PEM form", path.display())]
    CaContent {
        /// The file.
        path: PathBuf,
    },
    /// A CA file for a connection without TLS.
    #[error("a CA file is given, but the broker's address is mqtt://; use mqtts://")]
    CaWithoutTls,
    /// The file with the client's certificate and key cannot be read.
    #[error("identity file {} cannot be read", path.display())]
    IdentityFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It does not hold both.
    #[error("identity file {} does not hold a certificate and a private key in PEM form", path.display())]
    IdentityContent {
        /// The file.
        path: PathBuf,
    },
    /// Others than its owner may read the key in it.
    #[error("identity file {} can be read by others (mode {mode:03o}): run `chmod 600` on it", path.display())]
    IdentityExposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// An identity for a connection without TLS.
    #[error("an identity file is given, but the broker's address is mqtt://; use mqtts://")]
    IdentityWithoutTls,
    /// An identity for a broker that anybody's certificate could stand for.
    #[error("an identity file is given without a CA file; give the certificate of the authority that both are of")]
    IdentityWithoutCa,
    /// The system's root certificates cannot be used.
    #[error("the system's root certificates cannot be loaded; install them or give a CA file")]
    Roots {
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

/// Why a message was not published, as far as is known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// It cannot be put into a packet. Trying again is of no use.
    #[error("the message to `{topic:.100}` cannot be published")]
    Invalid {
        /// Its topic.
        topic: String,
        /// What is wrong with it.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// Its packet is larger than this link or the connected broker takes. Trying again is of no
    /// use with this broker.
    #[error("the message to `{topic:.100}` makes a packet of {bytes} bytes, more than the {limit} allowed")]
    TooLarge {
        /// Its topic.
        topic: String,
        /// The packet's size.
        bytes: usize,
        /// The smaller of both limits.
        limit: usize,
    },
    /// The broker does not keep retained messages.
    #[error("the message to `{topic:.100}` is retained, which the broker does not support")]
    RetainUnsupported {
        /// Its topic.
        topic: String,
    },
    /// The broker received it and refused it.
    #[error("the broker refuses the message to `{topic:.100}`: {code}")]
    Refused {
        /// Its topic.
        topic: String,
        /// The PUBACK's reason code, by name.
        code: String,
    },
    /// There was no connection, or no room in it, for so long. The broker has not received it.
    #[error("the message to `{topic:.100}` could not be sent within {}s{}", waited.as_secs_f32(), because(reason.as_ref()))]
    NotSent {
        /// Its topic.
        topic: String,
        /// How long it waited.
        waited: Duration,
        /// Why there is no connection; none if there is one that takes no more.
        reason: Option<Reason>,
    },
    /// It was sent and not confirmed in time. The broker may have received it.
    #[error("the message to `{topic:.100}` was sent but not confirmed within {}s; it may have arrived", waited.as_secs_f32())]
    Unconfirmed {
        /// Its topic.
        topic: String,
        /// How long it waited.
        waited: Duration,
    },
    /// The link was shut down. Unless it was sent before, the broker has not received it.
    #[error("the link is closed; the message to `{topic:.100}` was not confirmed")]
    Closed {
        /// Its topic.
        topic: String,
    },
}

fn because(reason: Option<&Reason>) -> String {
    reason.map_or_else(String::new, |reason| format!(": {reason}"))
}
