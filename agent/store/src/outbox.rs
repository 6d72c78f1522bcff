//! Records that wait for a broker.

use redb::ReadableTableMetadata;

use crate::checkpoint::check_size;
use crate::error::StoreError;
use crate::layout::{COUNTERS, Counter, OUTBOX};
use crate::open::{Change, Store};

/// A record of the outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its number: rises by one with every record of this store, over all boots.
    pub sequence: u64,
    /// The topic below the device's own prefix.
    pub topic: String,
    /// The payload to publish.
    pub payload: Vec<u8>,
}

/// What [`Store::append`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The new record's sequence.
    pub sequence: u64,
    /// How many of the oldest records were dropped to make room for it.
    pub dropped: u64,
}

/// How full the outbox is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutboxStatus {
    /// Records that wait.
    pub records: u64,
    /// Their topics and payloads, in bytes.
    pub bytes: u64,
    /// Sequence last given out; 0 before the first record.
    pub last_sequence: u64,
    /// Records dropped for room since the store was made.
    pub dropped: u64,
}

impl Store {
    /// Appends a record under the next sequence. `payload` is called once with that sequence, so
    /// that it can stand in the record itself: number and record become durable together or not
    /// at all.
    ///
    /// When the outbox is full, the oldest records go: the newest describe the device best, and
    /// what was dropped is counted.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] above [`Limits::record_bytes`](crate::Limits::record_bytes), in
    /// which case nothing is dropped and the sequence is not used; a failure of the medium.
    pub fn append(&self, topic: &str, payload: impl FnOnce(u64) -> Vec<u8>) -> Result<Appended, StoreError> {
        self.write("append a record", |transaction| {
            let mut counters = transaction.open_table(COUNTERS)?;
            let mut outbox = transaction.open_table(OUTBOX)?;
            let sequence = Counter::Sequence.get(&counters)? + 1;
            let payload = payload(sequence);
            let size = size_of(topic, &payload);
            check_size("a record", topic.len() + payload.len(), self.limits.record_bytes)?;

            let mut bytes = Counter::OutboxBytes.get(&counters)?;
            let mut dropped = 0;
            while outbox.len()? >= self.limits.outbox_records || bytes + size > self.limits.outbox_bytes {
                let Some((_, oldest)) = outbox.pop_first()? else { break };
                let (topic, payload) = oldest.value();
                bytes = bytes.saturating_sub(size_of(topic, payload));
                dropped += 1;
            }
            outbox.insert(sequence, (topic, payload.as_slice()))?;

            counters.insert(Counter::Sequence.key(), sequence)?;
            counters.insert(Counter::OutboxBytes.key(), bytes + size)?;
            if dropped > 0 {
                let before = Counter::OutboxDropped.get(&counters)?;
                counters.insert(Counter::OutboxDropped.key(), before + dropped)?;
            }
            Ok(Change::Made(Appended { sequence, dropped }))
        })
    }

    /// The oldest records after `after` (0 for the very oldest), in order: at most `most_records`,
    /// and at most `most_bytes` of topics and payloads, but one record if there is any.
    ///
    /// Nothing but the answer is loaded, so a long outbox costs no more at boot than a short one.
    ///
    /// # Errors
    /// A failure of the medium.
    pub fn records_after(&self, after: u64, most_records: usize, most_bytes: u64) -> Result<Vec<Record>, StoreError> {
        self.read("read records", |transaction| {
            let outbox = transaction.open_table(OUTBOX)?;
            let mut records = Vec::new();
            let mut bytes = 0;
            for row in outbox.range(after.saturating_add(1)..)?.take(most_records) {
                let (sequence, record) = row?;
                let (topic, payload) = record.value();
                bytes += size_of(topic, payload);
                if bytes > most_bytes && !records.is_empty() {
                    break;
                }
                records.push(Record {
                    sequence: sequence.value(),
                    topic: topic.to_owned(),
                    payload: payload.to_vec(),
                });
            }
            Ok(records)
        })
    }

    /// Removes records that the broker has confirmed, in one commit, and returns how many were
    /// there. A sequence that is not (dropped for room, or acknowledged before) is passed over.
    ///
    /// # Errors
    /// A failure of the medium.
    pub fn acknowledge(&self, sequences: &[u64]) -> Result<u64, StoreError> {
        self.write("acknowledge records", |transaction| {
            let mut counters = transaction.open_table(COUNTERS)?;
            let mut outbox = transaction.open_table(OUTBOX)?;
            let mut bytes = Counter::OutboxBytes.get(&counters)?;
            let mut removed = 0;
            for sequence in sequences {
                if let Some(record) = outbox.remove(sequence)? {
                    let (topic, payload) = record.value();
                    bytes = bytes.saturating_sub(size_of(topic, payload));
                    removed += 1;
                }
            }
            if removed == 0 {
                return Ok(Change::Nothing(0));
            }
            counters.insert(Counter::OutboxBytes.key(), bytes)?;
            Ok(Change::Made(removed))
        })
    }

    /// How full the outbox is.
    ///
    /// # Errors
    /// A failure of the medium.
    pub fn outbox(&self) -> Result<OutboxStatus, StoreError> {
        self.read("read the outbox", |transaction| {
            let counters = transaction.open_table(COUNTERS)?;
            Ok(OutboxStatus {
                records: transaction.open_table(OUTBOX)?.len()?,
                bytes: Counter::OutboxBytes.get(&counters)?,
                last_sequence: Counter::Sequence.get(&counters)?,
                dropped: Counter::OutboxDropped.get(&counters)?,
            })
        })
    }
}

fn size_of(topic: &str, payload: &[u8]) -> u64 {
    (topic.len() + payload.len()) as u64
}
