//! Opening, setting a damaged file aside, and the two kinds of transaction.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use redb::{
    Builder, Database, DatabaseError, ReadTransaction, ReadableDatabase, ReadableTable, StorageError, WriteTransaction,
};

use crate::error::{OpenError, Stop, StoreError};
use crate::layout::{self, COUNTERS, Counter};
use crate::limits::Limits;

/// redb keeps pages in memory up to this size. A device reads little: its newest checkpoint, a
/// batch of records.
const CACHE_BYTES: usize = 4 << 20;

/// The durable state of one device, in one file.
///
/// All methods block on the file system and take `&self`; one write runs at a time. See the
/// [crate documentation](crate) for what is kept and when it reaches the medium.
#[derive(Debug)]
pub struct Store {
    database: Database,
    pub(crate) limits: Limits,
    boot: u64,
    /// Set by the first failure of the medium and never cleared: what is on it is then unknown.
    failed: AtomicBool,
}

/// What [`Store::open`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Opened {
    /// A store, as it was left (by an orderly stop or by a crash).
    Existing,
    /// No file: a new store was made.
    New,
    /// A file that cannot be used. It was set aside and a new store was made.
    ///
    /// Sequences and the boot counter start again, so a boot id must not be derived from the
    /// counter alone.
    Replaced {
        /// What is wrong with the old file.
        reason: String,
        /// Where the old file lies now. The next replacement overwrites it.
        kept: PathBuf,
    },
}

/// Why a file could not be opened, as far as the next step depends on it.
enum Trouble {
    Unusable(String),
    Refused(redb::Error),
}

impl Store {
    /// Opens the store in the file `path`, or makes it, and counts a boot.
    ///
    /// The whole file is read and its checksums are verified. A file that is damaged, foreign, or
    /// of a newer format is renamed to `path` with `.unusable` appended, and a new store is made
    /// in its place: a device must not stop at boot for its history.
    ///
    /// # Errors
    /// [`OpenError::Busy`] if the file is open elsewhere, [`OpenError::Io`] if the file system
    /// refuses, [`OpenError::Limit`] for a limit that cannot work.
    pub fn open(path: &Path, limits: Limits) -> Result<(Self, Opened), OpenError> {
        limits.check()?;
        let refused = |source: Box<dyn std::error::Error + Send + Sync>| OpenError::Io {
            path: path.to_path_buf(),
            source,
        };
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            fs::create_dir_all(directory).map_err(|source| refused(source.into()))?;
        }
        let existed = path.try_exists().map_err(|source| refused(source.into()))?;

        let attempt = |limits: Limits| {
            let database = builder().create(path).map_err(|error| Trouble::of(error.into()))?;
            Self::with_database(database, limits)
        };
        let trouble_to_error = |trouble| match trouble {
            Trouble::Refused(redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch) => OpenError::Busy {
                path: path.to_path_buf(),
            },
            Trouble::Refused(error) => refused(error.into()),
            Trouble::Unusable(reason) => refused(reason.into()),
        };
        match attempt(limits.clone()) {
            Ok(store) if existed => Ok((store, Opened::Existing)),
            Ok(store) => {
                // The file's own content is synced by redb; its name is the directory's content.
                sync_directory(path).map_err(|source| refused(source.into()))?;
                Ok((store, Opened::New))
            }
            Err(Trouble::Unusable(reason)) if existed => {
                let kept = unusable_path(path);
                fs::rename(path, &kept).map_err(|source| refused(source.into()))?;
                let store = attempt(limits).map_err(trouble_to_error)?;
                sync_directory(path).map_err(|source| refused(source.into()))?;
                Ok((store, Opened::Replaced { reason, kept }))
            }
            Err(trouble) => Err(trouble_to_error(trouble)),
        }
    }

    /// Opens the store on any backend, so that tests can cut its power.
    #[cfg(test)]
    pub(crate) fn open_backend(backend: impl redb::StorageBackend, limits: Limits) -> Result<Self, redb::Error> {
        let database = builder().create_with_backend(backend)?;
        Self::with_database(database, limits).map_err(|trouble| match trouble {
            Trouble::Unusable(reason) => redb::Error::Corrupted(reason),
            Trouble::Refused(error) => error,
        })
    }

    fn with_database(database: Database, limits: Limits) -> Result<Self, Trouble> {
        let boot = begin_boot(&database).map_err(Trouble::of)??;
        Ok(Self {
            database,
            limits,
            boot,
            failed: AtomicBool::new(false),
        })
    }

    /// How often this store has been opened, this time included: 1 for a new store.
    ///
    /// It is on the medium before [`Store::open`] returns, so no two boots share a number, except
    /// after [`Opened::Replaced`].
    pub fn boot(&self) -> u64 {
        self.boot
    }

    /// Runs `body` in a transaction of its own and commits it durably if it changed something.
    pub(crate) fn write<T>(
        &self,
        operation: &'static str,
        body: impl FnOnce(&WriteTransaction) -> Result<Change<T>, Stop>,
    ) -> Result<T, StoreError> {
        self.guard(operation, || {
            let transaction = self.database.begin_write()?;
            match body(&transaction)? {
                Change::Made(value) => {
                    transaction.commit()?;
                    Ok(value)
                }
                Change::Nothing(value) => {
                    transaction.abort()?;
                    Ok(value)
                }
            }
        })
    }

    /// Runs `body` on a snapshot.
    pub(crate) fn read<T>(
        &self,
        operation: &'static str,
        body: impl FnOnce(&ReadTransaction) -> Result<T, Stop>,
    ) -> Result<T, StoreError> {
        self.guard(operation, || body(&self.database.begin_read()?))
    }

    fn guard<T>(&self, operation: &'static str, work: impl FnOnce() -> Result<T, Stop>) -> Result<T, StoreError> {
        if self.failed.load(Ordering::Acquire) {
            return Err(StoreError::FailedEarlier { operation });
        }
        work().map_err(|stop| match stop {
            Stop::Refused(error) => error,
            Stop::Fault(source) => {
                self.failed.store(true, Ordering::Release);
                StoreError::Failed {
                    operation,
                    source: source.into(),
                }
            }
        })
    }
}

/// Whether a transaction's body left something to commit.
pub(crate) enum Change<T> {
    Made(T),
    Nothing(T),
}

impl Trouble {
    /// Damage cannot be opened today or tomorrow; everything else may pass, and must not cost the
    /// device its history.
    fn of(error: redb::Error) -> Self {
        match error {
            redb::Error::Corrupted(_)
            | redb::Error::UpgradeRequired(_)
            | redb::Error::TableTypeMismatch { .. }
            | redb::Error::TableIsMultimap(_)
            | redb::Error::TableIsNotMultimap(_)
            | redb::Error::TypeDefinitionChanged { .. } => Self::Unusable(error.to_string()),
            redb::Error::Io(ref cause)
                if matches!(cause.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
            {
                Self::Unusable(error.to_string())
            }
            error => Self::Refused(error),
        }
    }
}

impl From<StorageError> for Trouble {
    fn from(error: StorageError) -> Self {
        Self::of(error.into())
    }
}

impl From<DatabaseError> for Trouble {
    fn from(error: DatabaseError) -> Self {
        Self::of(error.into())
    }
}

fn builder() -> Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    // Without this, redb trusts a file that was closed in order and may panic later on a page that
    // went bad since.
    builder.set_check_integrity_on_open(true);
    builder
}

/// Checks the format, makes what is missing and counts the boot, in one transaction.
fn begin_boot(database: &Database) -> Result<Result<u64, Trouble>, redb::Error> {
    let transaction = database.begin_write()?;
    let boot = {
        let mut counters = transaction.open_table(COUNTERS)?;
        let format = counters.get(Counter::Format.key())?.map(|guard| guard.value());
        if let Some(found) = format.filter(|found| *found != layout::FORMAT) {
            return Ok(Err(Trouble::Unusable(format!(
                "the store has format {found}, this program reads format {}",
                layout::FORMAT
            ))));
        }
        counters.insert(Counter::Format.key(), layout::FORMAT)?;
        let boot = Counter::Boots.get(&counters)? + 1;
        counters.insert(Counter::Boots.key(), boot)?;
        boot
    };
    layout::make_tables(&transaction)?;
    layout::migrate(&transaction)?;
    transaction.commit()?;
    Ok(Ok(boot))
}

fn unusable_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(".unusable");
    name.into()
}

fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}
