//! Checkpoints of the heads.

use redb::ReadableTable;

use crate::error::StoreError;
use crate::layout::{CHECKPOINTS, COUNTERS, Counter};
use crate::open::{Change, Store};

/// Checkpoints kept: the last one and the one before, in case the last turns out to be unusable.
const KEPT: usize = 2;

/// A checkpoint of the learner's heads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Number of the checkpoint; a later one has a greater number.
    pub number: u64,
    /// The bytes that were saved.
    pub heads: Vec<u8>,
}

impl Store {
    /// Saves a checkpoint, drops the third-last, and returns the new one's number.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] above [`Limits::checkpoint_bytes`](crate::Limits::checkpoint_bytes);
    /// a failure of the medium.
    pub fn save_checkpoint(&self, heads: &[u8]) -> Result<u64, StoreError> {
        let limit = self.limits.checkpoint_bytes;
        check_size("a checkpoint", heads.len(), limit)?;
        self.write("save a checkpoint", |transaction| {
            let mut counters = transaction.open_table(COUNTERS)?;
            let number = Counter::Checkpoint.get(&counters)? + 1;
            counters.insert(Counter::Checkpoint.key(), number)?;
            let mut checkpoints = transaction.open_table(CHECKPOINTS)?;
            checkpoints.insert(number, heads)?;
            let surplus: Vec<u64> = checkpoints
                .iter()?
                .rev()
                .skip(KEPT)
                .map(|row| row.map(|(number, _)| number.value()))
                .collect::<Result<_, _>>()?;
            for old in surplus {
                checkpoints.remove(old)?;
            }
            Ok(Change::Made(number))
        })
    }

    /// The kept checkpoints, the newest first: none, one or two.
    ///
    /// The store does not judge them. If the newest does not fit the running model, try the next
    /// and [discard](Store::discard_checkpoint) the first, or it would outlive a good one.
    ///
    /// # Errors
    /// A failure of the medium.
    pub fn checkpoints(&self) -> Result<Vec<Checkpoint>, StoreError> {
        self.read("read the checkpoints", |transaction| {
            let rows = transaction.open_table(CHECKPOINTS)?;
            let mut checkpoints = Vec::with_capacity(KEPT);
            for row in rows.iter()?.rev() {
                let (number, heads) = row?;
                checkpoints.push(Checkpoint {
                    number: number.value(),
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
    pub fn discard_checkpoint(&self, number: u64) -> Result<bool, StoreError> {
        self.write("discard a checkpoint", |transaction| {
            let removed = transaction.open_table(CHECKPOINTS)?.remove(number)?.is_some();
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
