//! Small values by key, for what a policy wants to remember.

use redb::{ReadableTable, ReadableTableMetadata};

use crate::checkpoint::check_size;
use crate::error::StoreError;
use crate::layout::VALUES;
use crate::open::{Change, Store};

impl Store {
    /// Stores `value` under `key`. An equal value is not written again.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] if key and value exceed
    /// [`Limits::value_bytes`](crate::Limits::value_bytes), [`StoreError::ValuesFull`] for a new key
    /// beyond [`Limits::values`](crate::Limits::values); a failure of the medium.
    pub fn set_value(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        check_size("a value with its key", key.len() + value.len(), self.limits.value_bytes)?;
        let limit = self.limits.values;
        self.write("store a value", |transaction| {
            let mut values = transaction.open_table(VALUES)?;
            let known = match values.get(key)? {
                Some(stored) if stored.value() == value => return Ok(Change::Nothing(())),
                stored => stored.is_some(),
            };
            if !known && values.len()? >= limit {
                return Err(StoreError::ValuesFull { limit }.into());
            }
            values.insert(key, value)?;
            Ok(Change::Made(()))
        })
    }

    /// The value under `key`, if there is one.
    ///
    /// # Errors
    /// A failure of the medium.
    pub fn value(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.read("read a value", |transaction| {
            let values = transaction.open_table(VALUES)?;
            let value = values.get(key)?.map(|guard| guard.value().to_vec());
            Ok(value)
        })
    }

    /// Removes the value under `key`. Returns whether there was one.
    ///
    /// # Errors
    /// A failure of the medium.
    pub fn remove_value(&self, key: &str) -> Result<bool, StoreError> {
        self.write("remove a value", |transaction| {
            let removed = transaction.open_table(VALUES)?.remove(key)?.is_some();
            Ok(if removed {
                Change::Made(true)
            } else {
                Change::Nothing(false)
            })
        })
    }
}
