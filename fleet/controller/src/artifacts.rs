//! Answers devices that ask for parts of artifacts.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use offramp_link::{Link, Publication};
use offramp_proto::{ArtifactChunk, CHUNK, DeviceId, Digest, Kind, TenantId, Topic, encode};
use tokio::sync::{Semaphore, mpsc, watch};

use crate::statistics::Statistics;
use crate::store::Store;

/// Requests that may wait; more are dropped, and their devices ask again.
pub(crate) const QUEUE: usize = 16 * 1024;
/// Answers on their way to the broker at once.
const AT_ONCE: usize = 64;
/// Parts that are held ready: what is rolled out, every device of a wave asks for.
const HELD: usize = 64;
/// A device that has not taken an answer by then has asked again.
const EXPIRY: Duration = Duration::from_secs(60);

/// A device asks for a part of an artifact.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) device: DeviceId,
    pub(crate) digest: Digest,
    pub(crate) offset: u64,
    /// Chunks that are asked for.
    pub(crate) chunks: u64,
    pub(crate) answer_to: Option<String>,
    pub(crate) correlation: Option<bytes::Bytes>,
}

/// What the task works with.
pub(crate) struct Artifacts {
    pub(crate) tenant: TenantId,
    pub(crate) store: Store,
    pub(crate) link: Link,
    pub(crate) statistics: watch::Sender<Statistics>,
    pub(crate) held: Held,
}

/// Chunks that were given lately, as they go out, with the bytes of the whole.
#[derive(Debug, Default)]
pub(crate) struct Held(Mutex<VecDeque<((Digest, u64), Chunk)>>);

/// A chunk as it goes out, and the bytes of the whole.
type Chunk = (Bytes, u64);

impl Held {
    fn get(&self, part: (Digest, u64)) -> Option<Chunk> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = held.iter().find(|(key, _)| *key == part);
        found.map(|(_, answer)| answer.clone())
    }

    fn put(&self, part: (Digest, u64), answer: Chunk) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Several ask for the same part before the first has been read.
        if held.iter().any(|(key, _)| *key == part) {
            return;
        }
        if held.len() == HELD {
            held.pop_front();
        }
        held.push_back((part, answer));
    }
}

impl Artifacts {
    /// Answers until nobody can ask any more.
    pub(crate) async fn run(self, mut requests: mpsc::Receiver<Request>) {
        let this = Arc::new(self);
        let permits = Arc::new(Semaphore::new(AT_ONCE));
        let mut answers = tokio::task::JoinSet::new();
        while let Some(request) = requests.recv().await {
            while answers.try_join_next().is_some() {}
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
                break;
            };
            let this = Arc::clone(&this);
            answers.spawn(async move {
                this.answer(request).await;
                drop(permit);
            });
        }
        // What is still on its way fails or arrives within the link's own deadline.
        while answers.join_next().await.is_some() {}
    }

    async fn answer(&self, request: Request) {
        let device = request.device.clone();
        let Some(topic) = answer_topic(&self.tenant, &request) else {
            self.statistics.send_modify(|s| s.refused += 1);
            tracing::warn!(%device, "request for an artifact refused: its answer would go to another topic than its own");
            return;
        };
        match self.store.is_apart(&device).await {
            Ok(false) => {}
            Ok(true) => {
                self.statistics.send_modify(|s| s.refused += 1);
                tracing::warn!(%device, "request for an artifact refused: the device is in quarantine");
                return;
            }
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::error!(%device, error, "artifact cannot be read");
                return;
            }
        }
        let mut offset = request.offset;
        for _ in 0..request.chunks {
            let (bytes, total) = match self.part(request.digest, offset).await {
                Ok(part) => part,
                Err(error) => {
                    let error: &dyn std::error::Error = &*error;
                    tracing::error!(%device, error, "artifact cannot be read");
                    return;
                }
            };
            let mut publication = Publication::new(topic.clone(), bytes).expires_after(EXPIRY);
            if let Some(correlation) = &request.correlation {
                publication = publication.correlated_by(correlation.clone());
            }
            match self.link.publish(publication).await {
                Ok(()) => self.statistics.send_modify(|s| s.chunks += 1),
                Err(error) => return tracing::warn!(%device, %error, "part of an artifact was not sent"),
            }
            offset += CHUNK as u64;
            if offset >= total {
                return;
            }
        }
    }

    async fn part(&self, digest: Digest, offset: u64) -> Result<Chunk, Box<dyn std::error::Error + Send + Sync>> {
        let key = (digest, offset);
        if let Some(held) = self.held.get(key) {
            return Ok(held);
        }
        let part = self.store.artifact_part(digest, offset).await?;
        // Nothing of nothing: the controller does not have it, or not that far.
        let (total, data) = part.map_or((0, Vec::new()), |part| (part.total, part.bytes));
        let absent = data.is_empty();
        let chunk = ArtifactChunk {
            digest,
            offset: if absent { 0 } else { offset },
            total,
            hash: Digest::of(&data),
            data,
        };
        let answer: Bytes = encode(&chunk)?.into();
        // It may be there a moment later.
        if !absent {
            self.held.put(key, (answer.clone(), total));
        }
        Ok((answer, total))
    }
}

/// Where an answer may go: the device's chunk topic or one below it. A device that could name any topic
/// could have the controller write to its neighbours.
fn answer_topic(tenant: &TenantId, request: &Request) -> Option<String> {
    let own = Topic::new(tenant, &request.device, Kind::Chunk).to_string();
    let Some(wanted) = &request.answer_to else {
        return Some(own);
    };
    let below = wanted.strip_prefix(&own)?;
    (below.is_empty() || below.starts_with('/')).then(|| wanted.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic_for(answer_to: Option<&str>) -> Option<String> {
        let request = Request {
            device: DeviceId::new("cam-1").unwrap(),
            digest: Digest([0; 32]),
            offset: 0,
            chunks: 1,
            answer_to: answer_to.map(Into::into),
            correlation: None,
        };
        answer_topic(&TenantId::new("t").unwrap(), &request)
    }

    #[test]
    fn answers_go_to_the_chunk_topic_of_the_device_that_asked() {
        let own = "offramp/1/t/cam-1/down/chunk";
        assert_eq!(topic_for(None).as_deref(), Some(own));
        assert_eq!(topic_for(Some(own)).as_deref(), Some(own));
        let below = "offramp/1/t/cam-1/down/chunk/7";
        assert_eq!(topic_for(Some(below)).as_deref(), Some(below));
    }

    #[test]
    fn answers_go_nowhere_else() {
        for wanted in [
            "offramp/1/t/cam-1/down/desired",
            "offramp/1/t/cam-2/down/chunk",
            "offramp/1/t/cam-1/down/chunks",
            "offramp/1/t/cam-10/down/chunk",
            "offramp/1/t/cam-1/up/summary",
            "",
        ] {
            assert_eq!(topic_for(Some(wanted)), None, "{wanted}");
        }
    }
}
