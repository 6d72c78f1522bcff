//! What is published and what arrives.

use std::time::Duration;

use bytes::Bytes;
use rumqttc::{Publish, PublishProperties, QoS};

use crate::error::PublishError;

/// A message to publish, with QoS 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    topic: String,
    payload: Bytes,
    retain: bool,
    expiry: Option<Duration>,
    response_topic: Option<String>,
    correlation: Option<Bytes>,
}

impl Publication {
    /// A message of `payload` to `topic`: not retained, without expiry.
    pub fn new(topic: impl Into<String>, payload: impl Into<Bytes>) -> Self {
        Self {
            topic: topic.into(),
            payload: payload.into(),
            retain: false,
            expiry: None,
            response_topic: None,
            correlation: None,
        }
    }

    /// The broker keeps it for later subscribers, instead of what it kept for this topic before.
    /// An empty payload removes what it kept.
    #[must_use]
    pub fn retained(mut self) -> Self {
        self.retain = true;
        self
    }

    /// The broker forgets it after this time, in whole seconds rounded up.
    #[must_use]
    pub fn expires_after(mut self, expiry: Duration) -> Self {
        self.expiry = Some(expiry);
        self
    }

    /// Asks for an answer to `topic`.
    #[must_use]
    pub fn answer_to(mut self, topic: impl Into<String>) -> Self {
        self.response_topic = Some(topic.into());
        self
    }

    /// Says which request this belongs to: a request sets it, its answer repeats it.
    #[must_use]
    pub fn correlated_by(mut self, correlation: impl Into<Bytes>) -> Self {
        self.correlation = Some(correlation.into());
        self
    }

    /// The topic.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// The packet, and its size on the wire. It is encoded once here, because a packet that cannot
    /// be encoded would otherwise be noticed inside the connection and end it.
    pub(crate) fn encode(self) -> Result<(Publish, usize), PublishError> {
        let invalid = |source| PublishError::Invalid {
            topic: self.topic.clone(),
            source,
        };
        for topic in std::iter::once(&self.topic).chain(&self.response_topic) {
            if topic.is_empty() || !rumqttc::valid_topic(topic) {
                return Err(invalid(format!("`{topic}` is no topic to publish to").into()));
            }
        }
        let seconds = |expiry: Duration| {
            let seconds = expiry.as_secs().saturating_add(u64::from(expiry.subsec_nanos() > 0));
            u32::try_from(seconds).unwrap_or(u32::MAX)
        };
        let properties = PublishProperties {
            message_expiry_interval: self.expiry.map(seconds),
            response_topic: self.response_topic.clone(),
            correlation_data: self.correlation.clone(),
            ..PublishProperties::default()
        };
        let mut packet = Publish::new(
            self.topic.clone(),
            QoS::AtLeastOnce,
            self.payload.clone(),
            (properties != PublishProperties::default()).then_some(properties),
        );
        packet.retain = self.retain;
        packet.pkid = 1;
        let mut encoded = bytes::BytesMut::with_capacity(packet.size());
        let size = packet.write(&mut encoded).map_err(|error| invalid(error.into()))?;
        Ok((packet, size))
    }
}

/// A message that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The topic it was published to.
    pub topic: String,
    /// Its content.
    pub payload: Bytes,
    /// Whether the broker had kept it from before the subscription.
    pub retained: bool,
    /// Whether the broker sends it again, because it was not acknowledged before.
    pub duplicate: bool,
    /// Where an answer is expected.
    pub response_topic: Option<String>,
    /// What the answer must repeat.
    pub correlation: Option<Bytes>,
}

impl Message {
    /// Fails only for a topic that is not UTF-8, which MQTT forbids.
    pub(crate) fn of(packet: Publish) -> Result<Self, std::string::FromUtf8Error> {
        let properties = packet.properties.unwrap_or_default();
        Ok(Self {
            topic: String::from_utf8(packet.topic.into())?,
            payload: packet.payload,
            retained: packet.retain,
            duplicate: packet.dup,
            response_topic: properties.response_topic,
            correlation: properties.correlation_data,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Publication;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::time::Duration;

    proptest! {
        #[test]
        fn whatever_is_published_is_refused_or_encoded_in_the_size_it_says(
            topic in "\\PC{0,12}",
            payload in vec(any::<u8>(), 0..40),
            answer in prop::option::of("\\PC{0,6}"),
            correlation in prop::option::of(vec(any::<u8>(), 0..9)),
            expiry in prop::option::of(any::<u32>()),
        ) {
            let mut publication = Publication::new(topic, payload);
            if let Some(topic) = answer {
                publication = publication.answer_to(topic);
            }
            if let Some(correlation) = correlation {
                publication = publication.correlated_by(correlation);
            }
            if let Some(seconds) = expiry {
                publication = publication.expires_after(Duration::from_secs(seconds.into()));
            }
            if let Ok((packet, size)) = publication.encode() {
                prop_assert_eq!(packet.size(), size);
            }
        }
    }

    #[test]
    fn what_no_packet_can_hold_is_refused() {
        let long = "t".repeat(65_536);
        for publication in [
            Publication::new("", "x"),
            Publication::new("a/+/b", "x"),
            Publication::new("a/#", "x"),
            Publication::new("a\0b", "x"),
            Publication::new(long.clone(), "x"),
            Publication::new("a", "x").answer_to(""),
            Publication::new("a", "x").answer_to("b/#"),
            Publication::new("a", "x").answer_to(long),
            Publication::new("a", "x").correlated_by(vec![0; 65_536]),
        ] {
            let topic = publication.topic().to_owned();
            let error = publication.encode().unwrap_err();
            assert!(
                matches!(error, crate::PublishError::Invalid { .. }),
                "{topic:.10}: {error}"
            );
        }
    }

    #[test]
    fn an_expiry_is_rounded_up_to_seconds() {
        let expiry = |duration| {
            let (packet, _) = Publication::new("a", "x").expires_after(duration).encode().unwrap();
            packet.properties.unwrap().message_expiry_interval
        };
        assert_eq!(expiry(Duration::from_millis(1)), Some(1));
        assert_eq!(expiry(Duration::from_secs(7)), Some(7));
        assert_eq!(expiry(Duration::MAX), Some(u32::MAX));
    }
}
