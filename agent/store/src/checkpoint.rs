//! Checkpoints of the heads.

use std::collections::BTreeMap;

use redb::ReadableTable;

use crate::error::StoreError;
use crate::layout::{CHECKPOINTS, COUNTERS, Counter};
use crate::open::{Change, Store};

/// Checkpoints kept: the last one and the one before, in case the last turns out to be unusable.
const KEPT: usize = 2;
/// Longest name of a camera in bytes, with that of a model behind it.
const MAX_NAME: u64 = 96;

/// A checkpoint of the learner's heads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Number of the checkpoint; a later one has a greater number.
    pub number: u64,
    /// The bytes that were saved.
    pub heads: Vec<u8>,
}

impl Store {
    /// Saves a checkpoint of a camera, drops its third-last, and returns the new one's number. A device's only
    /// camera may have the empty name.
    ///
    /// Beyond [`Limits::cameras`](crate::Limits::cameras), the camera that was saved the longest ago is
    /// forgotten: it is one that the device does not have any more.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] above [`Limits::checkpoint_bytes`](crate::Limits::checkpoint_bytes), or for a
    /// name of more than 96 bytes; a failure of the medium.
    pub fn save_checkpoint(&self, camera: &str, heads: &[u8]) -> Result<u64, StoreError> {
        let limit = self.limits.checkpoint_bytes;
        check_size("a checkpoint", heads.len(), limit)?;
        check_size("a camera's name", camera.len(), MAX_NAME)?;
        self.write("save a checkpoint", |transaction| {
            let mut counters = transaction.open_table(COUNTERS)?;
            let number = Counter::Checkpoint.get(&counters)? + 1;
            counters.insert(Counter::Checkpoint.key(), number)?;
            let mut checkpoints = transaction.open_table(CHECKPOINTS)?;
            checkpoints.insert((camera, number), heads)?;
            let mut kept = BTreeMap::<String, Vec<u64>>::new();
            for row in checkpoints.iter()? {
                let (key, _) = row?;
                let (camera, number) = key.value();
                kept.entry(camera.to_owned()).or_default().push(number);
            }
            let surplus = &kept[camera][..kept[camera].len().saturating_sub(KEPT)];
            for old in surplus {
                checkpoints.remove((camera, *old))?;
            }
            if kept.len() as u64 > self.limits.cameras {
                let oldest = kept.iter().min_by_key(|(_, numbers)| numbers.last());
                let (camera, numbers) = oldest.expect("there is at least the one just saved");
                for old in numbers {
                    checkpoints.remove((camera.as_str(), *old))?;
                }
            }
            Ok(Change::Made(number))
        })
    }

    /// The kept checkpoints of a camera, the newest first: none, one or two.
    ///
    /// The store does not judge them. If the newest does not fit the running model, try the next
    /// and [discard](Store::discard_checkpoint) the first, or it would outlive a good one.
    ///
    /// # Errors
    /// A failure of the medium.
    pub fn checkpoints(&self, camera: &str) -> Result<Vec<Checkpoint>, StoreError> {
        self.read("read the checkpoints", |transaction| {
            let rows = transaction.open_table(CHECKPOINTS)?;
            let mut checkpoints = Vec::with_capacity(KEPT);
            for row in rows.range((camera, 0)..=(camera, u64::MAX))?.rev() {
                let (key, heads) = row?;
                checkpoints.push(Checkpoint {
                    number: key.value().1,
                    heads: heads.value().to_vec(),
                });
            }
            Ok(checkpoints)
        })
    }

    /// Removes a checkpoint that turned out to be unusable. Returns whether it was there.
    ///
    /// # Errors
    /// A failure of the medium.
    pub fn discard_checkpoint(&self, camera: &str, number: u64) -> Result<bool, StoreError> {
        self.write("discard a checkpoint", |transaction| {
            let mut checkpoints = transaction.open_table(CHECKPOINTS)?;
            let removed = checkpoints.remove((camera, number))?.is_some();
            Ok(if removed {
                Change::Made(true)
            } else {
                Change::Nothing(false)
            })
        })
    }
}

/// Refuses what is larger than its limit.
pub(crate) fn check_size(what: &'static str, bytes: usize, limit: u64) -> Result<(), StoreError> {
    let bytes = bytes as u64;
    if bytes > limit {
        return Err(StoreError::TooLarge { what, bytes, limit });
    }
    Ok(())
}
