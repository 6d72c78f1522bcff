//! What the store can answer instead of a result.

use offramp_proto::Digest;
use std::error::Error;
use std::path::PathBuf;

/// Why a store could not be opened. The file was left as it is.
///
/// A damaged file is not among these: it is set aside and a new store begins (see
/// [`Opened::Replaced`](crate::Opened::Replaced)).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process, or another [`Store`](crate::Store) of this one, has the file open.
    #[error("store {} is open elsewhere; stop the other agent or give this one its own data directory", path.display())]
    Busy {
        /// The store's file.
        path: PathBuf,
    },
    /// The file system refused: permissions, no space, no such medium, a read error.
    #[error("store {} cannot be opened; check the directory's permissions, free space and medium", path.display())]
    Io {
        /// The store's file.
        path: PathBuf,
        /// What was refused.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// A limit is zero, or too small to hold one record.
    #[error("store limit `{name}` is {value}; it must be at least {least}")]
    Limit {
        /// The field of [`Limits`](crate::Limits).
        name: &'static str,
        /// What was asked for.
        value: u64,
        /// The smallest value that works.
        least: u64,
    },
}

/// Why an operation was not carried out. Nothing was changed, unless the variant says otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The medium failed. Whether the change was made is unknown until the store is opened again;
    /// from now on every operation is refused.
    #[error("the store failed to {operation}; open it again to learn what was kept")]
    Failed {
        /// What was being done.
        operation: &'static str,
        /// What the medium answered.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// An earlier operation failed, so this one was not tried.
    #[error("the store will not {operation} after an earlier failure; open it again")]
    FailedEarlier {
        /// What was asked for.
        operation: &'static str,
    },
    /// A desired state that is older than the stored one.
    #[error(
        "desired state of generation {offered} is older than the stored generation {stored}; publish it under a higher generation"
    )]
    OlderDesired {
        /// The generation that is stored.
        stored: u64,
        /// The generation that was refused.
        offered: u64,
    },
    /// Another desired state already carries this generation.
    #[error(
        "desired state of generation {generation} differs from the stored one of the same generation; publish it under a higher generation"
    )]
    ConflictingDesired {
        /// The generation both carry.
        generation: u64,
    },
    /// Something is larger than its limit.
    #[error("{what} has {bytes} bytes, more than the limit of {limit}")]
    TooLarge {
        /// What was to be stored.
        what: &'static str,
        /// Its size in bytes.
        bytes: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// An artifact's bytes are not those its digest names.
    #[error("artifact {expected} has the digest {actual}; fetch it again")]
    WrongDigest {
        /// The digest it was offered or stored under.
        expected: Digest,
        /// The digest of its bytes.
        actual: Digest,
    },
    /// A role was given to an artifact that is not stored.
    #[error("artifact {digest} is not stored; put it before giving it a role")]
    UnknownArtifact {
        /// The artifact's digest.
        digest: Digest,
    },
    /// The artifacts that have a role leave no room.
    #[error(
        "no room for an artifact of {bytes} bytes: {pinned} of {limit} bytes are in use by artifacts that have a role"
    )]
    ArtifactsFull {
        /// Size of the refused artifact.
        bytes: u64,
        /// Bytes of the artifacts that have a role.
        pinned: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// As many values are stored as the limit allows.
    #[error("no room for another value: {limit} are stored; remove one")]
    ValuesFull {
        /// The limit.
        limit: u64,
    },
}

/// What ends a transaction's body early: a refusal leaves the store usable, a fault does not.
pub(crate) enum Stop {
    Refused(StoreError),
    Fault(redb::Error),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Refused(error)
    }
}

macro_rules! fault_from {
    ($($error:ty),*) => {
        $(impl From<$error> for Stop {
            fn from(error: $error) -> Self {
                Self::Fault(error.into())
            }
        })*
    };
}
fault_from!(
    redb::StorageError,
    redb::TableError,
    redb::TransactionError,
    redb::CommitError
);
