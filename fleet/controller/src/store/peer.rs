//! Several controllers on one database: who they are, and which of them is on duty.

use super::sql::{FromRow, Row, Transaction, query, query_as, query_scalar};
use super::{Store, StoreError, Task as _, int, uint};

/// A process that works on the database.
pub(crate) type RunId = [u8; 16];

/// A controller as the others know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) name: String,
    pub(crate) run: Vec<u8>,
    pub(crate) version: String,
    pub(crate) address: String,
    pub(crate) started_at: u64,
    /// Milliseconds since it was heard of.
    pub(crate) silent_ms: u64,
    pub(crate) on_duty: bool,
}

impl FromRow for Peer {
    fn from_row(row: &Row) -> Result<Self, sqlx::Error> {
        Ok(Self {
            name: row.try_get("name")?,
            run: row.try_get("run")?,
            version: row.try_get("version")?,
            address: row.try_get("address")?,
            started_at: uint(row.try_get("started_at")?),
            silent_ms: uint(row.try_get("silent_ms")?),
            on_duty: row.try_get("on_duty")?,
        })
    }
}

/// What a controller learns when it shows that it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beat {
    /// It is on duty, for as long as a lease lasts.
    OnDuty,
    /// Another one is.
    OffDuty,
    /// A process that was started later has its name.
    Replaced,
}

/// Milliseconds since 1970 by the database's clock.
macro_rules! clock {
    () => {
        "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)"
    };
}

impl Store {
    /// Takes a name, from whoever had it, for this process. False as long as another controller takes over what the one
    /// before has left: two must not use its session. Nothing where the database is nobody else's.
    pub(crate) async fn peer_join(&self, name: &str, address: &str) -> Result<bool, StoreError> {
        let Some(run) = self.run else { return Ok(true) };
        let (name, address) = (name.to_owned(), address.to_owned());
        self.write(move |connection| {
            Box::pin(async move {
                let has_heir: Option<bool> = query_scalar(concat!(
                    "SELECT heir_until >= ",
                    clock!(),
                    " FROM controllers WHERE name = $1"
                ))
                .bind(&name)
                .fetch_optional(&mut *connection)
                .await
                .task("join the controllers")?;
                if has_heir == Some(true) {
                    return Ok(false);
                }
                query(concat!(
                    "INSERT INTO controllers (name, run, version, address, started_at, seen_at) VALUES ($1, $2, $3, $4, ",
                    clock!(),
                    ", ",
                    clock!(),
                    ") ON CONFLICT (name) DO UPDATE SET run = excluded.run, version = excluded.version, \
                     address = excluded.address, started_at = excluded.started_at, seen_at = excluded.seen_at"
                ))
                .bind(&name)
                .bind(&run[..])
                .bind(env!("CARGO_PKG_VERSION"))
                .bind(&address)
                .execute(connection)
                .await
                .task("join the controllers")?;
                Ok(true)
            })
        })
        .await
    }

    /// Makes this controller the heir of one that has been silent for so long. False where it is back.
    pub(crate) async fn peer_claim(
        &self,
        name: String,
        run: Vec<u8>,
        silent_ms: u64,
        for_ms: u64,
    ) -> Result<bool, StoreError> {
        self.write(move |connection| {
            Box::pin(async move {
                let claimed = query(concat!(
                    "UPDATE controllers SET heir_until = ",
                    clock!(),
                    " + $4 WHERE name = $1 AND run = $2 AND ",
                    clock!(),
                    " - seen_at > $3"
                ))
                .bind(&name)
                .bind(&run)
                .bind(int(silent_ms))
                .bind(int(for_ms))
                .execute(connection)
                .await
                .task("take over from a controller")?;
                Ok(claimed > 0)
            })
        })
        .await
    }

    /// Gives up what was claimed and is not done.
    pub(crate) async fn peer_renounce(&self, name: String) -> Result<(), StoreError> {
        self.write(move |connection| {
            Box::pin(async move {
                query("UPDATE controllers SET heir_until = 0 WHERE name = $1")
                    .bind(&name)
                    .execute(connection)
                    .await
                    .task("leave a controller alone")?;
                Ok(())
            })
        })
        .await
    }

    /// Shows that this process lives, and takes up the duty, or goes on with it, where nobody else has it.
    pub(crate) async fn peer_beat(&self, name: &str, lease_ms: u64) -> Result<Beat, StoreError> {
        let Some(run) = self.run else {
            return Ok(Beat::OnDuty);
        };
        let task = "show that this controller lives";
        let name = name.to_owned();
        self.write(move |connection| {
            Box::pin(async move {
                let ours = query(concat!(
                    "UPDATE controllers SET seen_at = ",
                    clock!(),
                    " WHERE name = $1 AND run = $2"
                ))
                .bind(&name)
                .bind(&run[..])
                .execute(&mut *connection)
                .await
                .task(task)?;
                if ours == 0 {
                    return Ok(Beat::Replaced);
                }
                let taken = query(concat!(
                    "INSERT INTO duty (run, until) VALUES ($1, ",
                    clock!(),
                    " + $2) ON CONFLICT (only_one) DO UPDATE SET run = excluded.run, until = excluded.until \
                     WHERE duty.run = excluded.run OR duty.until < ",
                    clock!()
                ))
                .bind(&run[..])
                .bind(int(lease_ms))
                .execute(connection)
                .await
                .task(task)?;
                Ok(if taken > 0 { Beat::OnDuty } else { Beat::OffDuty })
            })
        })
        .await
    }

    /// Leaves the duty to another, without waiting for the lease to end.
    pub(crate) async fn peer_leave(&self) -> Result<(), StoreError> {
        let Some(run) = self.run else { return Ok(()) };
        self.write(move |connection| {
            Box::pin(async move {
                query("DELETE FROM duty WHERE run = $1")
                    .bind(&run[..])
                    .execute(connection)
                    .await
                    .task("leave the duty")?;
                Ok(())
            })
        })
        .await
    }

    /// The controllers, by name; none where there can be one only.
    pub(crate) async fn peer_list(&self) -> Result<Vec<Peer>, StoreError> {
        if self.run.is_none() {
            return Ok(Vec::new());
        }
        query_as(concat!(
            "SELECT name, run, version, address, started_at, ",
            clock!(),
            " - seen_at AS silent_ms, coalesce((SELECT duty.run = c.run AND until >= ",
            clock!(),
            " FROM duty), FALSE) AS on_duty FROM controllers c ORDER BY name"
        ))
        .fetch_all(&self.readers)
        .await
        .task("list the controllers")
    }

    /// Forgets a controller, if that process still was the last to have its name.
    pub(crate) async fn peer_forget(&self, name: String, run: Vec<u8>) -> Result<(), StoreError> {
        self.write(move |connection| {
            Box::pin(async move {
                query("DELETE FROM controllers WHERE name = $1 AND run = $2")
                    .bind(&name)
                    .bind(&run)
                    .execute(connection)
                    .await
                    .task("forget a controller")?;
                Ok(())
            })
        })
        .await
    }
}

/// Whether this process may do what is one's duty, until the transaction ends.
pub(super) async fn on_duty_in_txn(connection: &mut Transaction, run: Option<RunId>) -> Result<bool, StoreError> {
    let Some(run) = run else { return Ok(true) };
    query_scalar(concat!(
        "SELECT EXISTS (SELECT 1 FROM duty WHERE run = $1 AND until >= ",
        clock!(),
        ")"
    ))
    .bind(&run[..])
    .fetch_one(connection)
    .await
    .task("tell who is on duty")
}
