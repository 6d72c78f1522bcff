//! The controller's database: SQLite in a file, for one controller, or PostgreSQL, for several.
//!
//! - **One writer.** A task runs all that writes; jobs reach it through a bounded channel and each runs in one
//!   transaction. A job that has begun ends, whether or not its caller still waits. Of several controllers only one
//!   writes at a time: each transaction begins with a lock that they share. So rows are numbered as they are committed,
//!   and what a job has read stays true until it ends.
//! - **Durable.** A commit has reached the disk before its caller hears of it, because a message is acknowledged to the
//!   broker on the strength of that.
//! - **Idempotent.** Records are keyed by (device, boot, sequence); a second arrival changes nothing,
//!   totals included.
//! - **Numbers.** Both databases' integers have a sign: counters above `i64::MAX` are stored as `i64::MAX`,
//!   and totals saturate there.
//! - **One owner** of a file: a lock file beside it keeps a second controller away.

mod access;
mod arrival;
mod artifact;
mod audit;
mod desired;
mod device;
mod enrolment;
mod event;
mod group;
mod hours;
mod keys;
mod many;
mod peer;
mod quarantine;
mod retention;
mod rollout;
mod sql;
mod summary;
mod trace;

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use offramp_proto::TenantId;
use sqlx::SqlSafeStr as _;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};

pub(crate) use access::{NewToken, Token, TokenCreated, TokenRevoked};
pub(crate) use arrival::{Arrival, Outcome, Record};
pub(crate) use artifact::{Artifact, KeptModel, NewModel};
pub(crate) use audit::{AuditEntry, ITSELF};
pub(crate) use desired::{ArtifactKind, Change, DesiredState, Draft, Drafted, Wanted};
pub(crate) use device::{Device, Model, ReportedState, Run, Unfit};
pub(crate) use enrolment::{Enrolled, Renewed};
pub(crate) use event::{Event, EventFilter};
pub(crate) use group::{Group, Labelled, Labels, Selection, UnknownGroup};
pub(crate) use keys::{KeyState, Left, Revocation};
pub(crate) use peer::{Beat, Peer};
pub(crate) use quarantine::Kept;
#[cfg(test)]
pub(crate) use quarantine::Quarantine;
pub(crate) use rollout::{Act, Commanded, NewRollout, RolloutView, Started, subject};
pub(crate) use summary::{Guard, History, Summary, Window};
pub(crate) use trace::Piece;

use peer::RunId;
use sql::{Pool, Transaction, query, query_scalar};

/// Jobs that may wait for the writer; whoever brings one more waits.
const QUEUE: usize = 64;
const READERS: u32 = 4;
/// How long connecting to PostgreSQL may take.
const CONNECT: Duration = Duration::from_secs(10);
/// The lock that whoever writes holds: one in each PostgreSQL database.
const WRITES: i64 = 0x6f66_6672_616d_7001;

/// Where the controller keeps its data.
#[derive(Clone, Debug)]
pub enum Database {
    /// In this SQLite file, made when it is missing.
    File(PathBuf),
    /// In this PostgreSQL database, which several controllers may share.
    Postgres(PostgresUrl),
    /// In a temporary folder that is removed at shutdown: for demonstrations and tests.
    Temporary,
}

/// Address of a PostgreSQL database: `postgres://USER:PASSWORD@HOST:PORT/DATABASE`. Shown without the password.
#[derive(Clone)]
pub struct PostgresUrl(Box<PgConnectOptions>);

/// A text that is no address of a PostgreSQL database.
#[derive(Debug, thiserror::Error)]
#[error("use postgres://USER:PASSWORD@HOST:PORT/DATABASE, with special characters written as %XX")]
pub struct InvalidPostgresUrl(#[source] sqlx::Error);

impl FromStr for PostgresUrl {
    type Err = InvalidPostgresUrl;

    fn from_str(text: &str) -> Result<Self, InvalidPostgresUrl> {
        text.parse()
            .map(|options| Self(Box::new(options)))
            .map_err(InvalidPostgresUrl)
    }
}

impl fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(options) = self;
        let database = options.get_database().unwrap_or_default();
        match options.get_socket() {
            Some(socket) => write!(f, "postgres://{}/{database}", socket.display()),
            None => write!(f, "postgres://{}:{}/{database}", options.get_host(), options.get_port()),
        }
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Database {
    /// How the names of the files with signing key and authority begin, where nothing else is said: like the database's
    /// own; beside PostgreSQL, `offramp-fleet` in the working folder.
    pub fn keys(&self) -> PathBuf {
        match self {
            Self::File(path) => path.clone(),
            Self::Postgres(_) | Self::Temporary => PathBuf::from("offramp-fleet"),
        }
    }
}

/// Reads a path, or an address that begins with `postgres://`.
impl FromStr for Database {
    type Err = InvalidPostgresUrl;

    fn from_str(text: &str) -> Result<Self, InvalidPostgresUrl> {
        if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            text.parse().map(Self::Postgres)
        } else {
            Ok(Self::File(text.into()))
        }
    }
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
    /// Its desired states were signed with another key.
    #[error(
        "the fleet's key {found} is not in this controller's file, which has {wanted}: devices would refuse that one; \
         restore the file from a backup, or copy that of another controller"
    )]
    Key {
        /// The key of the fleet, hexadecimal.
        found: String,
        /// That of the file.
        wanted: String,
    },
    /// The file of keys cannot be read.
    #[error(transparent)]
    KeyFile(#[from] crate::key::KeyError),
    /// No PostgreSQL answers there, or not to this user.
    #[error("cannot connect to database {url}: check that it runs there, and the user and password")]
    Connect {
        /// The database.
        url: PostgresUrl,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// Another controller holds it.
    #[error("database {} is used by another controller: stop that one, or choose another file", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Its schema is not one that this version can bring up to date.
    #[error("cannot bring database {database} to the schema of this version: was it written by a newer one?")]
    Schema {
        /// The file or address.
        database: String,
        /// Why.
        #[source]
        source: Box<MigrateError>,
    },
    /// The system gave no random bytes.
    #[error("cannot tell this controller from others: the system gives no random bytes")]
    Random(#[source] std::io::Error),
    /// There is no place for a temporary one.
    #[error("cannot make a temporary folder")]
    Temporary(#[source] std::io::Error),
    /// It holds the fleet of somebody else.
    #[error("database belongs to tenant `{found}`, not to `{wanted}`: choose another database or tenant")]
    Tenant {
        /// Whose it is.
        found: String,
        /// Who asked.
        wanted: TenantId,
    },
    /// It refused: disk full, file damaged, connection lost.
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

/// What the writer is told.
enum Order {
    Run(Job),
    /// Close the database, then answer.
    Close(oneshot::Sender<()>),
}

type Job = Box<dyn for<'c> FnOnce(&'c Pool) -> BoxFuture<'c, ()> + Send>;

/// The database. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    readers: Pool,
    writer: mpsc::Sender<Order>,
    /// This process among the controllers of a database that several may share.
    run: Option<RunId>,
    /// Held as long as any clone lives.
    _lock: Option<Arc<File>>,
}

/// How a database is used.
enum Opening {
    /// By this process, which holds the lock.
    Alone(File),
    /// By several; this is one of them.
    Shared(RunId),
}

macro_rules! migrations {
    ($folder:literal: $($version:literal $name:literal,)*) => {
        Migrator::with_migrations(vec![$(
            Migration::new(
                $version.parse().expect("a number"),
                $name.into(),
                MigrationType::Simple,
                include_str!(concat!("../../migrations/", $folder, "/", $version, "_", $name, ".sql")).into_sql_str(),
                false,
            ),
        )*])
    };
}

fn sqlite_migrations() -> Migrator {
    migrations!(
        "sqlite": "0001" "initial", "0002" "guard", "0003" "cameras", "0004" "rollouts", "0005" "access",
        "0006" "traces", "0007" "enrolment", "0009" "groups", "0010" "quarantine", "0011" "certificates",
        "0012" "renewal", "0013" "insight", "0014" "settings", "0015" "keys", "0016" "hours", "0017" "models",
        "0018" "since",
    )
}

fn postgres_migrations() -> Migrator {
    migrations!(
        "postgres": "0007" "initial", "0008" "controllers", "0009" "groups", "0010" "quarantine",
        "0011" "certificates", "0012" "renewal", "0013" "insight", "0014" "settings", "0015" "keys", "0016" "hours", "0017" "models",
        "0018" "since",
    )
}

impl Store {
    /// Opens a database, and makes the folder of a temporary one, which must live as long.
    pub(crate) async fn open(database: &Database, tenant: &TenantId) -> Result<(Self, Option<TempDir>), StoreError> {
        Ok(match database {
            Database::File(path) => (Self::open_file(path, tenant).await?, None),
            Database::Postgres(url) => (Self::connect(url, tenant).await?, None),
            Database::Temporary => {
                let folder = tempfile::tempdir().map_err(StoreError::Temporary)?;
                let store = Self::open_file(&folder.path().join("fleet.db"), tenant).await?;
                (store, Some(folder))
            }
        })
    }

    /// Opens a file, brings its schema up to date and starts its writer.
    async fn open_file(path: &Path, tenant: &TenantId) -> Result<Self, StoreError> {
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
        // A connection that is asked whether it lives costs a turn of its thread, and a file cannot hang up.
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false)
            // Summaries of many devices touch many pages, again and again: 64 MB of them stay in memory, and go from the
            // write-ahead log to their places when it has as many, not at nearly every commit.
            .connect_with(
                options
                    .clone()
                    .pragma("cache_size", "-65536")
                    .pragma("wal_autocheckpoint", "16384"),
            )
            .await
            .map_err(cannot_open)?;
        sqlite_migrations()
            .run(&writer)
            .await
            .map_err(|source| StoreError::Schema {
                database: path.display().to_string(),
                source: Box::new(source),
            })?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .test_before_acquire(false)
            .connect_with(options.pragma("query_only", "1"))
            .await
            .map_err(cannot_open)?;
        Self::start(
            Pool::Sqlite(writer),
            Pool::Sqlite(readers),
            Opening::Alone(lock),
            tenant,
        )
        .await
    }

    /// Connects to PostgreSQL, brings the schema up to date and starts the writer.
    async fn connect(url: &PostgresUrl, tenant: &TenantId) -> Result<Self, StoreError> {
        let cannot_connect = |source| StoreError::Connect {
            url: url.clone(),
            source,
        };
        let options = (*url.0).clone().application_name("offramp-fleet").options([
            // A commit has reached the disk, whatever the server's own setting.
            ("synchronous_commit", "on"),
            // What is asked for often is in memory: an index costs no more there than the next page. Compiling a
            // statement takes longer than running it.
            ("random_page_cost", "1.1"),
            ("jit", "off"),
            // A controller whose machine is gone holds the lock no longer than that.
            ("idle_in_transaction_session_timeout", "20s"),
            ("lock_timeout", "30s"),
            ("statement_timeout", "60s"),
        ]);
        let pool = |connections| {
            PgPoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(CONNECT)
                .connect_with(options.clone())
        };
        let writer = pool(1).await.map_err(cannot_connect)?;
        // Of controllers that start at once, one does it and the others wait.
        postgres_migrations()
            .run(&writer)
            .await
            .map_err(|source| StoreError::Schema {
                database: url.to_string(),
                source: Box::new(source),
            })?;
        let readers = pool(READERS).await.map_err(cannot_connect)?;
        let mut run = RunId::default();
        getrandom::fill(&mut run).map_err(|error| StoreError::Random(error.into()))?;
        Self::start(
            Pool::Postgres(writer),
            Pool::Postgres(readers),
            Opening::Shared(run),
            tenant,
        )
        .await
    }

    async fn start(writer: Pool, readers: Pool, opening: Opening, tenant: &TenantId) -> Result<Self, StoreError> {
        let (run, lock) = match opening {
            Opening::Alone(lock) => (None, Some(Arc::new(lock))),
            Opening::Shared(run) => (Some(run), None),
        };
        let (sender, orders) = mpsc::channel(QUEUE);
        tokio::spawn(write(writer, orders));
        let store = Self {
            readers,
            writer: sender,
            run,
            _lock: lock,
        };
        let wanted = tenant.clone();
        store
            .write(move |connection| Box::pin(async move { claim(connection, &wanted).await }))
            .await?;
        Ok(store)
    }

    /// Whether other controllers may work on it, too.
    pub(crate) fn is_shared(&self) -> bool {
        self.run.is_some()
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
        F: for<'c> FnOnce(&'c mut Transaction) -> BoxFuture<'c, Result<T, StoreError>> + Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let job: Job = Box::new(move |pool| {
            Box::pin(async move {
                // The caller may have gone; the work is done all the same.
                let _ = sender.send(in_txn(pool, job).await);
            })
        });
        self.writer
            .send(Order::Run(job))
            .await
            .map_err(|_| StoreError::Closed)?;
        receiver.await.map_err(|_| StoreError::Closed)?
    }
}

async fn write(pool: Pool, mut orders: mpsc::Receiver<Order>) {
    let mut closing = None;
    while let Some(order) = orders.recv().await {
        match order {
            Order::Run(job) => job(&pool).await,
            Order::Close(done) => {
                closing = Some(done);
                break;
            }
        }
    }
    pool.close().await;
    if let Some(done) = closing {
        // Whoever asked may have gone.
        let _ = done.send(());
    }
}

async fn in_txn<T, F>(pool: &Pool, job: F) -> Result<T, StoreError>
where
    F: for<'c> FnOnce(&'c mut Transaction) -> BoxFuture<'c, Result<T, StoreError>>,
{
    let mut transaction = pool.begin().await.task("begin a transaction")?;
    if matches!(transaction, Transaction::Postgres(_)) {
        let lock = query("SELECT pg_advisory_xact_lock($1)").bind(WRITES);
        lock.execute(&mut transaction)
            .await
            .task("wait for other controllers")?;
    }
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
async fn claim(connection: &mut Transaction, tenant: &TenantId) -> Result<(), StoreError> {
    let found = note(connection, "tenant", tenant.as_str().as_bytes(), "tell whose it is").await?;
    if found == tenant.as_str().as_bytes() {
        Ok(())
    } else {
        Err(StoreError::Tenant {
            found: String::from_utf8_lossy(&found).into_owned(),
            wanted: tenant.clone(),
        })
    }
}

/// Notes a fact, unless it is known. Gives what is known.
async fn note(
    connection: &mut Transaction,
    fact: &str,
    value: &[u8],
    task: &'static str,
) -> Result<Vec<u8>, StoreError> {
    query("INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT DO NOTHING")
        .bind(fact)
        .bind(value)
        .execute(&mut *connection)
        .await
        .task(task)?;
    query_scalar("SELECT value FROM meta WHERE key = $1")
        .bind(fact)
        .fetch_one(connection)
        .await
        .task(task)
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
