//! Fetching an artifact from the controller, chunk by chunk.

use offramp_proto::{ArtifactChunk, ArtifactRequest, CHUNK, Digest};

/// An artifact on its way here.
#[derive(Debug)]
pub(crate) struct Fetch {
    digest: Digest,
    size: u64,
    data: Vec<u8>,
}

/// What a chunk brought.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Not for us, or here already.
    Ignored,
    /// Ask for the next one.
    More,
    /// All is here, and it is what was asked for.
    Complete(Vec<u8>),
    /// It cannot be had.
    Failed(String),
}

impl Fetch {
    /// An artifact of which the signed desired state tells digest and size.
    pub(crate) fn new(digest: Digest, size: u64) -> Self {
        Self {
            digest,
            size,
            data: Vec::new(),
        }
    }

    /// What to ask for next; also after a silence.
    pub(crate) fn request(&self) -> ArtifactRequest {
        ArtifactRequest {
            digest: self.digest,
            offset: self.data.len() as u64,
        }
    }

    /// Takes a chunk, whose own hash has been checked when it was decoded.
    pub(crate) fn take(&mut self, chunk: &ArtifactChunk) -> Progress {
        if chunk.digest != self.digest || chunk.offset != self.data.len() as u64 {
            return Progress::Ignored;
        }
        if chunk.data.is_empty() {
            return Progress::Failed(format!("the controller does not have artifact {}", self.digest.short()));
        }
        if chunk.total != self.size {
            let (digest, total, size) = (self.digest.short(), chunk.total, self.size);
            return Progress::Failed(format!("artifact {digest} has {total} bytes where {size} were signed"));
        }
        self.data.extend_from_slice(&chunk.data);
        if (self.data.len() as u64) < self.size {
            return if self.data.len().is_multiple_of(CHUNK) {
                Progress::More
            } else {
                Progress::Failed(format!(
                    "artifact {} came in a chunk that is too short",
                    self.digest.short()
                ))
            };
        }
        if Digest::of(&self.data) == self.digest {
            Progress::Complete(std::mem::take(&mut self.data))
        } else {
            Progress::Failed(format!(
                "artifact {} is not what was signed: its digest differs",
                self.digest.short()
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk_of(artifact: &[u8], offset: usize) -> ArtifactChunk {
        let data = artifact[offset..(offset + CHUNK).min(artifact.len())].to_vec();
        ArtifactChunk {
            digest: Digest::of(artifact),
            offset: offset as u64,
            total: artifact.len() as u64,
            hash: Digest::of(&data),
            data,
        }
    }

    #[test]
    fn chunks_in_order_make_the_artifact_and_repeats_do_no_harm() {
        let artifact: Vec<u8> = (0..2 * CHUNK + 5).map(|i| i as u8).collect();
        let mut fetch = Fetch::new(Digest::of(&artifact), artifact.len() as u64);
        assert_eq!(fetch.take(&chunk_of(&artifact, CHUNK)), Progress::Ignored);
        assert_eq!(fetch.take(&chunk_of(&artifact, 0)), Progress::More);
        assert_eq!(fetch.take(&chunk_of(&artifact, 0)), Progress::Ignored);
        assert_eq!(fetch.request().offset, CHUNK as u64);
        assert_eq!(fetch.take(&chunk_of(&artifact, CHUNK)), Progress::More);
        assert_eq!(
            fetch.take(&chunk_of(&artifact, 2 * CHUNK)),
            Progress::Complete(artifact)
        );
    }

    #[test]
    fn an_artifact_that_is_not_what_was_signed_is_refused() {
        let (good, evil) = (vec![1; 100], vec![2; 100]);
        let mut fetch = Fetch::new(Digest::of(&good), 100);
        let forged = ArtifactChunk {
            digest: Digest::of(&good),
            ..chunk_of(&evil, 0)
        };
        assert!(matches!(fetch.take(&forged), Progress::Failed(why) if why.contains("digest differs")));
        let mut fetch = Fetch::new(Digest::of(&good), 99);
        assert!(matches!(fetch.take(&chunk_of(&good, 0)), Progress::Failed(why) if why.contains("99 were signed")));
        let missing = ArtifactChunk {
            data: vec![],
            hash: Digest::of(b""),
            ..chunk_of(&good, 0)
        };
        assert!(
            matches!(Fetch::new(Digest::of(&good), 100).take(&missing), Progress::Failed(why) if why.contains("does not have"))
        );
    }
}
