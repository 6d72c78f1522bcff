//! The controller's database: SQLite in WAL mode, one writer, several readers.
//!
//! - **One writer.** A task owns the only connection that writes; jobs reach it through a bounded
//!   channel and each runs in one transaction. A job that has begun ends, whether or not its caller
//!   still waits.
//! - **Durable.** A commit has reached the disk (`synchronous=FULL`) before its caller hears of it,
//!   because a message is acknowledged to the broker on the strength of that.
//! - **Idempotent.** Records are keyed by (device, boot, sequence); a second arrival changes nothing,
//!   totals included.
//! - **Numbers.** SQLite's integers have a sign: counters above `i64::MAX` are stored as `i64::MAX`,
//!   and totals saturate there.
//! - **One owner.** A lock file beside the database keeps a second controller away.

mod access;
mod arrival;
mod artifact;
mod audit;
mod desired;
mod device;
mod enrolment;
mod event;
mod many;
mod retention;
mod rollout;
mod summary;
mod trace;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use offramp_proto::TenantId;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection as _, SqlSafeStr as _, SqliteConnection};
use tokio::sync::{mpsc, oneshot};

pub(crate) use access::{NewToken, Token, TokenCreated, TokenRevoked};
pub(crate) use arrival::{Arrival, Outcome, Record};
pub(crate) use artifact::Policy;
pub(crate) use audit::{AuditEntry, ITSELF};
pub(crate) use desired::{DesiredState, Draft, Drafted};
pub(crate) use device::{Device, Model, ReportedState, Run};
pub(crate) use enrolment::Enrolled;
pub(crate) use event::{Event, EventFilter};
pub(crate) use rollout::{Act, Commanded, NewRollout, RolloutView, Started, subject};
pub(crate) use summary::{Guard, History, Summary, Window};
pub(crate) use trace::Piece;

/// Jobs that may wait for the writer; whoever brings one more waits.
const QUEUE: usize = 64;
const READERS: u32 = 4;

/// Where the controller keeps its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Database {
    /// In this file, made when it is missing. The signing key is kept beside it.
    File(PathBuf),
    /// In a temporary folder that is removed at shutdown: for demonstrations and tests.
    Temporary,
}

/// What is wrong with the database.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No file could be opened or made there.
    #[error("cannot open database {}: check that its folder exists and is writable", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Another controller holds it.
    #[error("database {} is used by another controller: stop that one, or choose another file", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Its schema is not one that this version can bring up to date.
    #[error("cannot bring database {} to the schema of this version: was it written by a newer one?", path.display())]
    Schema {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<MigrateError>,
    },
    /// It holds the fleet of somebody else.
    #[error("database belongs to tenant `{found}`, not to `{wanted}`: choose another database or tenant")]
    Tenant {
        /// Whose it is.
        found: String,
        /// Who asked.
        wanted: TenantId,
    },
    /// SQLite refused: disk full, file damaged.
    #[error("database cannot {task}")]
    Query {
        /// What was being done.
        task: &'static str,
        /// Why not.
        #[source]
        source: sqlx::Error,
    },
    /// A desired state could not be signed, because it is outside its bounds.
    #[error("cannot sign a desired state")]
    Sign(#[source] offramp_proto::SignError),
    /// The writer has ended, because the controller is shutting down.
    #[error("database is closed")]
    Closed,
}

/// Names the task in the error of a query.
trait Task<T> {
    fn task(self, task: &'static str) -> Result<T, StoreError>;
}

impl<T> Task<T> for Result<T, sqlx::Error> {
    fn task(self, task: &'static str) -> Result<T, StoreError> {
        self.map_err(|source| StoreError::Query { task, source })
    }
}

/// Devices from one to another by name, both included.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span<'a> {
    pub(crate) first: &'a str,
    pub(crate) last: &'a str,
}

impl<'a> Span<'a> {
    /// One device.
    pub(crate) fn one(device: &'a str) -> Self {
        Self {
            first: device,
            last: device,
        }
    }
}

/// What the writer is told.
enum Order {
    Run(Job),
    /// Close the database, then answer.
    Close(oneshot::Sender<()>),
}

type Job = Box<dyn for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, ()> + Send>;

/// The database. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    readers: SqlitePool,
    writer: mpsc::Sender<Order>,
    /// Held as long as any clone lives.
    _lock: Arc<File>,
}

fn migrations() -> Migrator {
    let migration = |version, name: &'static str, sql: &'static str| {
        Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    Migrator::with_migrations(vec![
        migration(1, "initial", include_str!("../../migrations/0001_initial.sql")),
        migration(2, "guard", include_str!("../../migrations/0002_guard.sql")),
        migration(3, "cameras", include_str!("../../migrations/0003_cameras.sql")),
        migration(4, "rollouts", include_str!("../../migrations/0004_rollouts.sql")),
        migration(5, "access", include_str!("../../migrations/0005_access.sql")),
        migration(6, "traces", include_str!("../../migrations/0006_traces.sql")),
        migration(7, "enrolment", include_str!("../../migrations/0007_enrolment.sql")),
    ])
}

impl Store {
    /// Opens the database in `path`, brings its schema up to date and starts its writer.
    pub(crate) async fn open(path: &Path, tenant: &TenantId) -> Result<Self, StoreError> {
        let lock = lock(path)?;
        let cannot_open = |source: sqlx::Error| StoreError::Open {
            path: path.into(),
            source: source.into(),
        };
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(5));
        let mut connection = SqliteConnection::connect_with(&options).await.map_err(cannot_open)?;
        migrations()
            .run(&mut connection)
            .await
            .map_err(|source| StoreError::Schema {
                path: path.into(),
                source: Box::new(source),
            })?;
        claim(&mut connection, tenant).await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .connect_with(options.pragma("query_only", "1"))
            .await
            .map_err(cannot_open)?;
        let (writer, orders) = mpsc::channel(QUEUE);
        tokio::spawn(write(connection, orders));
        Ok(Self {
            readers,
            writer,
            _lock: Arc::new(lock),
        })
    }

    /// Closes the database when all jobs before have run; later ones are refused.
    pub(crate) async fn close(self) {
        // The writer last: who closes last tidies up the write-ahead log.
        self.readers.close().await;
        let (sender, receiver) = oneshot::channel();
        if self.writer.send(Order::Close(sender)).await.is_ok() {
            // An error means that the writer ended before: nothing is left to wait for.
            let _ = receiver.await;
        }
    }

    /// Runs a job in a transaction of the writer; it is committed when the job succeeds.
    async fn write<T, F>(&self, job: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, StoreError>> + Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            Box::pin(async move {
                // The caller may have gone; the work is done all the same.
                let _ = sender.send(in_txn(connection, job).await);
            })
        });
        self.writer
            .send(Order::Run(job))
            .await
            .map_err(|_| StoreError::Closed)?;
        receiver.await.map_err(|_| StoreError::Closed)?
    }
}

async fn write(mut connection: SqliteConnection, mut orders: mpsc::Receiver<Order>) {
    let mut closing = None;
    while let Some(order) = orders.recv().await {
        match order {
            Order::Run(job) => job(&mut connection).await,
            Order::Close(done) => {
                closing = Some(done);
                break;
            }
        }
    }
    if let Err(error) = connection.close().await {
        tracing::warn!(%error, "database was not closed cleanly; it recovers at the next start");
    }
    if let Some(done) = closing {
        // Whoever asked may have gone.
        let _ = done.send(());
    }
}

async fn in_txn<T, F>(connection: &mut SqliteConnection, job: F) -> Result<T, StoreError>
where
    F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, StoreError>>,
{
    let mut transaction = connection.begin().await.task("begin a transaction")?;
    let result = job(&mut transaction).await?;
    transaction.commit().await.task("commit a transaction")?;
    Ok(result)
}

/// Path of a file that belongs to the database: its name with a suffix.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn lock(path: &Path) -> Result<File, StoreError> {
    let cannot_open = |source: std::io::Error| StoreError::Open {
        path: path.into(),
        source: source.into(),
    };
    let file = File::create(beside(path, ".lock")).map_err(cannot_open)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(StoreError::InUse { path: path.into() }),
        Err(std::fs::TryLockError::Error(source)) => Err(cannot_open(source)),
    }
}

/// Writes the tenant into a new database; refuses one that belongs to another.
async fn claim(connection: &mut SqliteConnection, tenant: &TenantId) -> Result<(), StoreError> {
    let task = "tell whose it is";
    sqlx::query("INSERT INTO meta (key, value) VALUES ('tenant', $1) ON CONFLICT DO NOTHING")
        .bind(tenant.as_str().as_bytes())
        .execute(&mut *connection)
        .await
        .task(task)?;
    let found: Vec<u8> = sqlx::query_scalar("SELECT value FROM meta WHERE key = 'tenant'")
        .fetch_one(connection)
        .await
        .task(task)?;
    if found == tenant.as_str().as_bytes() {
        Ok(())
    } else {
        Err(StoreError::Tenant {
            found: String::from_utf8_lossy(&found).into_owned(),
            wanted: tenant.clone(),
        })
    }
}

/// A number of the wire as SQLite keeps it.
fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A number as SQLite gives it back; none that is written here is below zero.
fn uint(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// Now, in milliseconds since 1970.
pub(crate) fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    // A clock before 1970 is a clock that was never set.
    since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
