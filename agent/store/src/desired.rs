//! The desired state, as it came.

use redb::ReadableTable;

use crate::checkpoint::check_size;
use crate::error::StoreError;
use crate::layout::DESIRED;
use crate::open::{Change, Store};

/// The desired state last accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// Its generation.
    pub generation: u64,
    /// The signed message, byte for byte as received, so that its signature can be checked again.
    pub signed: Vec<u8>,
}

/// What [`Store::set_desired`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DesiredChange {
    /// It is newer than what was stored, and stored now.
    Newer,
    /// It is what was stored already; nothing was written.
    Same,
}

impl Store {
    /// Stores a desired state whose signature the caller has checked.
    ///
    /// Generations only rise, also across restarts: an attacker or a confused broker that replays
    /// an older message, signature and all, gets nowhere.
    ///
    /// # Errors
    /// [`StoreError::OlderDesired`], [`StoreError::ConflictingDesired`],
    /// [`StoreError::TooLarge`] above [`Limits::desired_bytes`](crate::Limits::desired_bytes); a
    /// failure of the medium.
    pub fn set_desired(&self, generation: u64, signed: &[u8]) -> Result<DesiredChange, StoreError> {
        check_size("a desired state", signed.len(), self.limits.desired_bytes)?;
        self.write("store a desired state", |transaction| {
            let mut desired = transaction.open_table(DESIRED)?;
            let stored = match desired.last()? {
                None => None,
                Some((stored, bytes)) => {
                    let stored = stored.value();
                    if generation < stored {
                        return Err(StoreError::OlderDesired {
                            stored,
                            offered: generation,
                        }
                        .into());
                    }
                    if generation == stored {
                        if bytes.value() != signed {
                            return Err(StoreError::ConflictingDesired { generation }.into());
                        }
                        return Ok(Change::Nothing(DesiredChange::Same));
                    }
                    Some(stored)
                }
            };
            if let Some(stored) = stored {
                desired.remove(stored)?;
            }
            desired.insert(generation, signed)?;
            Ok(Change::Made(DesiredChange::Newer))
        })
    }

    /// The desired state last accepted, if there ever was one.
    ///
    /// # Errors
    /// A failure of the medium.
    pub fn desired(&self) -> Result<Option<Desired>, StoreError> {
        self.read("read the desired state", |transaction| {
            let desired = transaction.open_table(DESIRED)?;
            let row = desired.last()?.map(|(generation, signed)| Desired {
                generation: generation.value(),
                signed: signed.value().to_vec(),
            });
            Ok(row)
        })
    }
}
