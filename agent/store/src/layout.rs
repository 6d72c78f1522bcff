//! The tables. Changing one of them means a new [`FORMAT`].

use redb::{ReadableTable, StorageError, TableDefinition, TableError, WriteTransaction};

/// Version of everything below.
pub(crate) const FORMAT: u64 = 1;

/// Counter name → value. An absent counter is 0.
pub(crate) const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");
/// (Camera, checkpoint number) → bytes. At most two rows a camera.
pub(crate) const CHECKPOINTS: TableDefinition<'_, (&str, u64), &[u8]> = TableDefinition::new("checkpoints by camera");
/// What agents before 0.2 wrote, of their one camera: number → bytes.
const OLD_CHECKPOINTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("checkpoints");
/// Generation → the message as received. At most one row.
pub(crate) const DESIRED: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("desired");
/// SHA-256 → (age, size). Small rows apart from the content, so that collecting reads no content.
pub(crate) const ARTIFACTS: TableDefinition<'_, &[u8; 32], (u64, u64)> = TableDefinition::new("artifacts");
/// SHA-256 → content.
pub(crate) const CONTENTS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("artifact contents");
/// Role name → SHA-256.
pub(crate) const ROLES: TableDefinition<'_, &str, &[u8; 32]> = TableDefinition::new("artifact roles");
/// Sequence → (topic suffix, payload).
pub(crate) const OUTBOX: TableDefinition<'_, u64, (&str, &[u8])> = TableDefinition::new("outbox");
/// Key → value.
pub(crate) const VALUES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("values");

/// The rows of [`COUNTERS`].
#[derive(Clone, Copy)]
pub(crate) enum Counter {
    Format,
    Boots,
    /// Last checkpoint number given out.
    Checkpoint,
    /// Last artifact age given out.
    Artifact,
    /// Last sequence given out.
    Sequence,
    /// Topic and payload bytes in the outbox.
    OutboxBytes,
    /// Records dropped for room since the store was made.
    OutboxDropped,
}

impl Counter {
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::Format => "format",
            Self::Boots => "boots",
            Self::Checkpoint => "checkpoint",
            Self::Artifact => "artifact",
            Self::Sequence => "sequence",
            Self::OutboxBytes => "outbox bytes",
            Self::OutboxDropped => "outbox dropped",
        }
    }

    pub(crate) fn get(self, counters: &impl ReadableTable<&'static str, u64>) -> Result<u64, StorageError> {
        Ok(counters.get(self.key())?.map_or(0, |guard| guard.value()))
    }
}

/// Takes over what an earlier agent wrote in another place.
pub(crate) fn migrate(transaction: &WriteTransaction) -> Result<(), redb::Error> {
    {
        let old = transaction.open_table(OLD_CHECKPOINTS)?;
        let mut new = transaction.open_table(CHECKPOINTS)?;
        for row in old.iter()? {
            let (number, heads) = row?;
            new.insert(("", number.value()), heads.value())?;
        }
    }
    transaction.delete_table(OLD_CHECKPOINTS)?;
    Ok(())
}

/// Makes every table, so that reads never meet a missing one.
pub(crate) fn make_tables(transaction: &WriteTransaction) -> Result<(), TableError> {
    transaction.open_table(COUNTERS)?;
    transaction.open_table(CHECKPOINTS)?;
    transaction.open_table(DESIRED)?;
    transaction.open_table(ARTIFACTS)?;
    transaction.open_table(CONTENTS)?;
    transaction.open_table(ROLES)?;
    transaction.open_table(OUTBOX)?;
    transaction.open_table(VALUES)?;
    Ok(())
}
