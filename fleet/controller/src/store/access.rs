//! Tokens and sessions: who may do what.

use offramp_proto::Digest;

use super::audit::log_in_txn;
use super::sql::{FromRow, Row, Transaction, query, query_as, query_scalar};
use super::{Store, StoreError, Task as _, int, uint};
use crate::access::Role;
use crate::named::{name, named};

/// A token, without its secret, which nobody keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) id: i64,
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) created_at: u64,
    pub(crate) created_by: String,
    pub(crate) expires_at: Option<u64>,
    pub(crate) revoked_at: Option<u64>,
    /// When it was used last, to some minutes.
    pub(crate) used_at: Option<u64>,
}

impl Token {
    /// Why it is not valid, if so.
    pub(crate) fn invalid(&self, now: u64) -> Option<&'static str> {
        if self.revoked_at.is_some() {
            Some("revoked")
        } else if self.expires_at.is_some_and(|at| at <= now) {
            Some("expired")
        } else {
            None
        }
    }
}

impl FromRow for Token {
    fn from_row(row: &Row) -> Result<Self, sqlx::Error> {
        let role: String = row.try_get("role")?;
        let time = |column| {
            row.try_get::<Option<i64>>(column)
                .map(|time: Option<i64>| time.map(uint))
        };
        Ok(Self {
            id: row.try_get("id")?,
            name: row.try_get("name")?,
            // A role of a later version allows the least.
            role: named(&Role::ALL, &role).unwrap_or(Role::Viewer),
            created_at: uint(row.try_get("created_at")?),
            created_by: row.try_get("created_by")?,
            expires_at: time("expires_at")?,
            revoked_at: time("revoked_at")?,
            used_at: time("used_at")?,
        })
    }
}

/// A token that is wanted.
#[derive(Clone, Debug)]
pub(crate) struct NewToken {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) digest: Digest,
    pub(crate) expires_at: Option<u64>,
}

/// What came of a wish for a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenCreated {
    Done,
    NameTaken,
    /// It would be the first, and lock everybody out of making another.
    NotAdmin,
}

/// What came of a revocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenRevoked {
    Done,
    Unknown,
    Already,
    /// Nobody could make another.
    LastAdmin,
}

impl Store {
    /// Whether no token was ever made, so that nobody is asked for one.
    pub(crate) async fn is_open(&self) -> Result<bool, StoreError> {
        let any: bool = query_scalar("SELECT EXISTS (SELECT 1 FROM tokens)")
            .fetch_one(&self.readers)
            .await
            .task("tell whether there are tokens")?;
        Ok(!any)
    }

    pub(crate) async fn token_create(
        &self,
        wanted: NewToken,
        who: String,
        now: u64,
    ) -> Result<TokenCreated, StoreError> {
        self.write(move |connection| Box::pin(async move { create_in_txn(connection, wanted, &who, now).await }))
            .await
    }

    /// All tokens, the newest first.
    pub(crate) async fn token_list(&self, limit: u32) -> Result<Vec<Token>, StoreError> {
        query_as("SELECT * FROM tokens ORDER BY id DESC LIMIT $1")
            .bind(limit)
            .fetch_all(&self.readers)
            .await
            .task("list the tokens")
    }

    pub(crate) async fn token_revoke(&self, token: String, who: String, now: u64) -> Result<TokenRevoked, StoreError> {
        self.write(move |connection| Box::pin(async move { revoke_in_txn(connection, &token, &who, now).await }))
            .await
    }

    /// The token with this secret, whether or not it is still valid.
    pub(crate) async fn token_fetch(&self, digest: Digest) -> Result<Option<Token>, StoreError> {
        query_as("SELECT * FROM tokens WHERE digest = $1")
            .bind(&digest.0[..])
            .fetch_optional(&self.readers)
            .await
            .task("look a token up")
    }

    pub(crate) async fn token_used(&self, id: i64, now: u64) -> Result<(), StoreError> {
        self.write(move |connection| {
            Box::pin(async move {
                query("UPDATE tokens SET used_at = $2 WHERE id = $1")
                    .bind(id)
                    .bind(int(now))
                    .execute(connection)
                    .await
                    .task("note the use of a token")?;
                Ok(())
            })
        })
        .await
    }

    /// Keeps a session, and forgets those that are over.
    pub(crate) async fn session_create(
        &self,
        digest: Digest,
        token: i64,
        now: u64,
        expires_at: u64,
    ) -> Result<(), StoreError> {
        self.write(move |connection| {
            Box::pin(async move {
                query("DELETE FROM sessions WHERE expires_at <= $1")
                    .bind(int(now))
                    .execute(&mut *connection)
                    .await
                    .task("forget old sessions")?;
                query("INSERT INTO sessions (digest, token, expires_at) VALUES ($1, $2, $3)")
                    .bind(&digest.0[..])
                    .bind(token)
                    .bind(int(expires_at))
                    .execute(connection)
                    .await
                    .task("keep a session")?;
                Ok(())
            })
        })
        .await
    }

    /// The token of a session that is not over, whether or not the token is still valid.
    pub(crate) async fn session_fetch(&self, digest: Digest, now: u64) -> Result<Option<Token>, StoreError> {
        query_as(
            "SELECT tokens.* FROM sessions JOIN tokens ON tokens.id = sessions.token \
             WHERE sessions.digest = $1 AND sessions.expires_at > $2",
        )
        .bind(&digest.0[..])
        .bind(int(now))
        .fetch_optional(&self.readers)
        .await
        .task("look a session up")
    }

    pub(crate) async fn session_end(&self, digest: Digest) -> Result<(), StoreError> {
        self.write(move |connection| {
            Box::pin(async move {
                query("DELETE FROM sessions WHERE digest = $1")
                    .bind(&digest.0[..])
                    .execute(connection)
                    .await
                    .task("end a session")?;
                Ok(())
            })
        })
        .await
    }
}

async fn create_in_txn(
    connection: &mut Transaction,
    wanted: NewToken,
    who: &str,
    now: u64,
) -> Result<TokenCreated, StoreError> {
    let task = "make a token";
    let (any, taken): (bool, bool) =
        query_as("SELECT EXISTS (SELECT 1 FROM tokens), EXISTS (SELECT 1 FROM tokens WHERE name = $1)")
            .bind(&wanted.name)
            .fetch_one(&mut *connection)
            .await
            .task(task)?;
    if taken {
        return Ok(TokenCreated::NameTaken);
    }
    if !any && (wanted.role != Role::Admin || wanted.expires_at.is_some()) {
        return Ok(TokenCreated::NotAdmin);
    }
    query(
        "INSERT INTO tokens (name, role, digest, created_at, created_by, expires_at) VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(&wanted.name)
    .bind(name(&Role::ALL, wanted.role))
    .bind(&wanted.digest.0[..])
    .bind(int(now))
    .bind(who)
    .bind(wanted.expires_at.map(int))
    .execute(&mut *connection)
    .await
    .task(task)?;
    let subject = format!("token {}", wanted.name);
    log_in_txn(
        connection,
        now,
        who,
        "token.create",
        &subject,
        name(&Role::ALL, wanted.role),
    )
    .await?;
    Ok(TokenCreated::Done)
}

async fn revoke_in_txn(
    connection: &mut Transaction,
    token: &str,
    who: &str,
    now: u64,
) -> Result<TokenRevoked, StoreError> {
    let task = "revoke a token";
    let found: Option<Token> = query_as("SELECT * FROM tokens WHERE name = $1")
        .bind(token)
        .fetch_optional(&mut *connection)
        .await
        .task(task)?;
    let Some(found) = found else {
        return Ok(TokenRevoked::Unknown);
    };
    if found.revoked_at.is_some() {
        return Ok(TokenRevoked::Already);
    }
    // One that expires does not count: it would leave nobody later.
    let others: bool = query_scalar(
        "SELECT EXISTS (SELECT 1 FROM tokens \
         WHERE role = $1 AND id <> $2 AND revoked_at IS NULL AND expires_at IS NULL)",
    )
    .bind(name(&Role::ALL, Role::Admin))
    .bind(found.id)
    .fetch_one(&mut *connection)
    .await
    .task(task)?;
    if found.role == Role::Admin && !others {
        return Ok(TokenRevoked::LastAdmin);
    }
    query("UPDATE tokens SET revoked_at = $2 WHERE id = $1")
        .bind(found.id)
        .bind(int(now))
        .execute(&mut *connection)
        .await
        .task(task)?;
    // Its sessions hold no more than it does; whoever comes with one is refused, and the log tells of it.
    log_in_txn(connection, now, who, "token.revoke", &format!("token {token}"), "").await?;
    Ok(TokenRevoked::Done)
}
