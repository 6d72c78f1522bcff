//! One statement, two databases: SQLite and PostgreSQL.
//!
//! Statements are written in what both understand; where they differ, both texts stand side by side ([`either`]). Row
//! numbers are SQLite's `rowid`, a column of that name in PostgreSQL. Absent values keep their type, which PostgreSQL
//! asks for. (sqlx's own `Any` driver loses it for numbers, and makes a copy of each row.)

use std::borrow::Cow;
use std::fmt::Write as _;

use sqlx::postgres::{PgArguments, PgPool, PgRow, Postgres};
use sqlx::sqlite::{Sqlite, SqliteArguments, SqlitePool, SqliteRow};
use sqlx::{Arguments as _, AssertSqlSafe, Decode, Row as _, SqlSafeStr, SqlStr, Type};

/// Connections to the database.
#[derive(Clone, Debug)]
pub(super) enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

/// What tells the databases apart.
pub(super) trait Dialect {
    fn is_postgres(&self) -> bool;
}

impl Dialect for Pool {
    fn is_postgres(&self) -> bool {
        matches!(self, Self::Postgres(_))
    }
}

impl Dialect for Transaction {
    fn is_postgres(&self) -> bool {
        matches!(self, Self::Postgres(_))
    }
}

/// A transaction; it is rolled back when it is dropped.
pub(super) enum Transaction {
    Sqlite(sqlx::Transaction<'static, Sqlite>),
    Postgres(sqlx::Transaction<'static, Postgres>),
}

/// Where a statement runs.
pub(super) enum On<'c> {
    Pool(&'c Pool),
    Transaction(&'c mut Transaction),
}

impl<'c> From<&'c Pool> for On<'c> {
    fn from(pool: &'c Pool) -> Self {
        Self::Pool(pool)
    }
}

impl<'c> From<&'c mut Transaction> for On<'c> {
    fn from(transaction: &'c mut Transaction) -> Self {
        Self::Transaction(transaction)
    }
}

impl Pool {
    /// A transaction that changes something.
    pub(super) async fn begin(&self) -> Result<Transaction, sqlx::Error> {
        Ok(match self {
            Self::Sqlite(pool) => Transaction::Sqlite(pool.begin().await?),
            Self::Postgres(pool) => Transaction::Postgres(pool.begin().await?),
        })
    }

    /// A transaction that reads several times what was there at one moment.
    pub(super) async fn snapshot(&self) -> Result<Transaction, sqlx::Error> {
        Ok(match self {
            Self::Sqlite(pool) => Transaction::Sqlite(pool.begin().await?),
            Self::Postgres(pool) => {
                let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
                Transaction::Postgres(pool.begin_with(begin).await?)
            }
        })
    }

    pub(super) async fn close(&self) {
        match self {
            Self::Sqlite(pool) => pool.close().await,
            Self::Postgres(pool) => pool.close().await,
        }
    }
}

impl Transaction {
    pub(super) async fn commit(self) -> Result<(), sqlx::Error> {
        match self {
            Self::Sqlite(transaction) => transaction.commit().await,
            Self::Postgres(transaction) => transaction.commit().await,
        }
    }
}

/// A value of a statement.
pub(super) enum Value<'q> {
    Flag(Option<bool>),
    Integer(Option<i64>),
    Real(Option<f64>),
    Text(Option<Cow<'q, str>>),
    Bytes(Option<Cow<'q, [u8]>>),
}

macro_rules! values {
    ($($from:ty => $variant:ident($value:ident) $to:expr;)*) => {$(
        impl<'q> From<$from> for Value<'q> {
            fn from($value: $from) -> Self {
                Self::$variant($to)
            }
        }
    )*};
}

values! {
    Option<bool> => Flag(value) value;
    i64 => Integer(value) Some(value);
    u32 => Integer(value) Some(value.into());
    f64 => Real(value) Some(value);
    &'q str => Text(value) Some(value.into());
    &'q String => Text(value) Some(value.as_str().into());
    String => Text(value) Some(value.into());
    &'q [u8] => Bytes(value) Some(value.into());
    &'q Vec<u8> => Bytes(value) Some(value.as_slice().into());
    Vec<u8> => Bytes(value) Some(value.into());
    Option<i64> => Integer(value) value;
    Option<f64> => Real(value) value;
    Option<&'q str> => Text(value) value.map(Cow::from);
    Option<&'q String> => Text(value) value.map(|text| text.as_str().into());
    &'q Option<String> => Text(value) value.as_deref().map(Cow::from);
    Option<String> => Text(value) value.map(Cow::from);
}

/// A row of an answer.
pub(super) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

/// What can be read out of a row.
pub(super) trait Column:
    Type<Sqlite> + Type<Postgres> + for<'r> Decode<'r, Sqlite> + for<'r> Decode<'r, Postgres>
{
}

impl<T> Column for T where T: Type<Sqlite> + Type<Postgres> + for<'r> Decode<'r, Sqlite> + for<'r> Decode<'r, Postgres> {}

impl Row {
    /// A column by its name.
    pub(super) fn try_get<T: Column>(&self, column: &str) -> Result<T, sqlx::Error> {
        match self {
            Self::Sqlite(row) => row.try_get(column),
            Self::Postgres(row) => row.try_get(column),
        }
    }

    /// A column by its place.
    fn at<T: Column>(&self, place: usize) -> Result<T, sqlx::Error> {
        match self {
            Self::Sqlite(row) => row.try_get(place),
            Self::Postgres(row) => row.try_get(place),
        }
    }
}

/// What a row is turned into.
pub(super) trait FromRow: Sized {
    fn from_row(row: &Row) -> Result<Self, sqlx::Error>;
}

macro_rules! tuples {
    ($($($name:ident $place:tt)+;)*) => {$(
        impl<$($name: Column),+> FromRow for ($($name,)+) {
            fn from_row(row: &Row) -> Result<Self, sqlx::Error> {
                Ok(($(row.at::<$name>($place)?,)+))
            }
        }
    )*};
}

tuples! {
    A 0 B 1;
    A 0 B 1 C 2;
    A 0 B 1 C 2 D 3;
}

/// A statement with its values.
pub(super) struct Query<'q> {
    sqlite: SqlStr,
    /// Where it differs.
    postgres: Option<SqlStr>,
    values: Vec<Value<'q>>,
}

/// A statement in what both databases understand.
pub(super) fn query<'q>(sql: impl SqlSafeStr) -> Query<'q> {
    Query {
        sqlite: sql.into_sql_str(),
        postgres: None,
        values: Vec::new(),
    }
}

/// A statement that differs.
pub(super) fn either<'q>(sqlite: impl SqlSafeStr, postgres: impl SqlSafeStr) -> Query<'q> {
    Query {
        postgres: Some(postgres.into_sql_str()),
        ..query(sqlite)
    }
}

impl<'q> Query<'q> {
    /// Gives the next value: `$1` is the first.
    pub(super) fn bind(mut self, value: impl Into<Value<'q>>) -> Self {
        self.values.push(value.into());
        self
    }

    fn sqlite(self) -> Result<sqlx::query::Query<'static, Sqlite, SqliteArguments>, sqlx::Error> {
        let mut arguments = SqliteArguments::default();
        for value in self.values {
            let added = match value {
                Value::Flag(value) => arguments.add(value),
                Value::Integer(value) => arguments.add(value),
                Value::Real(value) => arguments.add(value),
                Value::Text(value) => arguments.add(value.map(Cow::into_owned)),
                Value::Bytes(value) => arguments.add(value.map(Cow::into_owned)),
            };
            added.map_err(sqlx::Error::Encode)?;
        }
        Ok(sqlx::query_with(self.sqlite, arguments))
    }

    fn postgres(self) -> Result<sqlx::query::Query<'static, Postgres, PgArguments>, sqlx::Error> {
        let mut arguments = PgArguments::default();
        for value in self.values {
            let added = match value {
                Value::Flag(value) => arguments.add(value),
                Value::Integer(value) => arguments.add(value),
                Value::Real(value) => arguments.add(value),
                // PostgreSQL keeps no NUL in a text; one from outside must not stop a whole batch.
                Value::Text(Some(text)) if text.contains('\0') => arguments.add(text.replace('\0', "\u{fffd}")),
                Value::Text(value) => arguments.add(value.as_deref()),
                Value::Bytes(value) => arguments.add(value.as_deref()),
            };
            added.map_err(sqlx::Error::Encode)?;
        }
        Ok(sqlx::query_with(self.postgres.unwrap_or(self.sqlite), arguments))
    }

    /// Runs it. Gives how many rows it changed.
    pub(super) async fn execute<'c>(self, on: impl Into<On<'c>>) -> Result<u64, sqlx::Error> {
        Ok(match on.into() {
            On::Pool(Pool::Sqlite(pool)) => self.sqlite()?.execute(pool).await?.rows_affected(),
            On::Pool(Pool::Postgres(pool)) => self.postgres()?.execute(pool).await?.rows_affected(),
            On::Transaction(Transaction::Sqlite(t)) => self.sqlite()?.execute(&mut **t).await?.rows_affected(),
            On::Transaction(Transaction::Postgres(t)) => self.postgres()?.execute(&mut **t).await?.rows_affected(),
        })
    }

    pub(super) async fn fetch_all<'c>(self, on: impl Into<On<'c>>) -> Result<Vec<Row>, sqlx::Error> {
        let sqlite = |rows: Vec<SqliteRow>| rows.into_iter().map(Row::Sqlite).collect();
        let postgres = |rows: Vec<PgRow>| rows.into_iter().map(Row::Postgres).collect();
        Ok(match on.into() {
            On::Pool(Pool::Sqlite(pool)) => sqlite(self.sqlite()?.fetch_all(pool).await?),
            On::Pool(Pool::Postgres(pool)) => postgres(self.postgres()?.fetch_all(pool).await?),
            On::Transaction(Transaction::Sqlite(t)) => sqlite(self.sqlite()?.fetch_all(&mut **t).await?),
            On::Transaction(Transaction::Postgres(t)) => postgres(self.postgres()?.fetch_all(&mut **t).await?),
        })
    }

    pub(super) async fn fetch_optional<'c>(self, on: impl Into<On<'c>>) -> Result<Option<Row>, sqlx::Error> {
        Ok(match on.into() {
            On::Pool(Pool::Sqlite(pool)) => self.sqlite()?.fetch_optional(pool).await?.map(Row::Sqlite),
            On::Pool(Pool::Postgres(pool)) => self.postgres()?.fetch_optional(pool).await?.map(Row::Postgres),
            On::Transaction(Transaction::Sqlite(t)) => self.sqlite()?.fetch_optional(&mut **t).await?.map(Row::Sqlite),
            On::Transaction(Transaction::Postgres(t)) => {
                self.postgres()?.fetch_optional(&mut **t).await?.map(Row::Postgres)
            }
        })
    }

    pub(super) async fn fetch_one<'c>(self, on: impl Into<On<'c>>) -> Result<Row, sqlx::Error> {
        self.fetch_optional(on).await?.ok_or(sqlx::Error::RowNotFound)
    }

    /// Gives each row as a `T`.
    pub(super) fn rows<T: FromRow>(self) -> QueryAs<'q, T> {
        QueryAs {
            query: self,
            read: T::from_row,
        }
    }

    /// Gives the first column of each row.
    pub(super) fn scalar<T: Column>(self) -> QueryAs<'q, T> {
        QueryAs {
            query: self,
            read: |row| row.at(0),
        }
    }
}

/// A statement whose rows are read.
pub(super) struct QueryAs<'q, T> {
    query: Query<'q>,
    read: fn(&Row) -> Result<T, sqlx::Error>,
}

/// A statement whose rows are turned into `T`.
pub(super) fn query_as<'q, T: FromRow>(sql: impl SqlSafeStr) -> QueryAs<'q, T> {
    query(sql).rows()
}

/// A statement with one column.
pub(super) fn query_scalar<'q, T: Column>(sql: impl SqlSafeStr) -> QueryAs<'q, T> {
    query(sql).scalar()
}

impl<'q, T> QueryAs<'q, T> {
    /// Gives the next value: `$1` is the first.
    pub(super) fn bind(mut self, value: impl Into<Value<'q>>) -> Self {
        self.query = self.query.bind(value);
        self
    }

    pub(super) async fn fetch_all<'c>(self, on: impl Into<On<'c>>) -> Result<Vec<T>, sqlx::Error> {
        self.query.fetch_all(on).await?.iter().map(self.read).collect()
    }

    pub(super) async fn fetch_optional<'c>(self, on: impl Into<On<'c>>) -> Result<Option<T>, sqlx::Error> {
        self.query.fetch_optional(on).await?.as_ref().map(self.read).transpose()
    }

    pub(super) async fn fetch_one<'c>(self, on: impl Into<On<'c>>) -> Result<T, sqlx::Error> {
        (self.read)(&self.query.fetch_one(on).await?)
    }
}

/// A statement that is written piece by piece: lists of rows.
pub(super) struct Builder<'q> {
    sql: String,
    values: Vec<Value<'q>>,
    /// Whether values are numbered, as PostgreSQL asks for. To SQLite `$1` is a name, which it looks for among all others
    /// each time: of thousands, that takes longer than the statement.
    numbered: bool,
}

/// A row of a list.
pub(super) struct Values<'b, 'q> {
    builder: &'b mut Builder<'q>,
    first: bool,
}

impl<'q> Builder<'q> {
    pub(super) fn new(connection: &impl Dialect, sql: &str) -> Self {
        Self {
            sql: sql.to_owned(),
            values: Vec::new(),
            numbered: connection.is_postgres(),
        }
    }

    pub(super) fn push(&mut self, sql: &str) -> &mut Self {
        self.sql.push_str(sql);
        self
    }

    pub(super) fn is_postgres(&self) -> bool {
        self.numbered
    }

    /// Writes `(…, …)`; with nothing in it, one that holds nothing.
    pub(super) fn push_list<V: Into<Value<'q>>>(&mut self, values: impl IntoIterator<Item = V>) -> &mut Self {
        let before = self.values.len();
        for value in values {
            let separator = if self.values.len() == before { "(" } else { ", " };
            self.push(separator).push_bind(value);
        }
        self.push(if self.values.len() == before { "(NULL)" } else { ")" })
    }

    /// Where the databases differ.
    pub(super) fn push_either(&mut self, sqlite: &str, postgres: &str) -> &mut Self {
        self.push(if self.numbered { postgres } else { sqlite })
    }

    pub(super) fn push_bind(&mut self, value: impl Into<Value<'q>>) -> &mut Self {
        self.values.push(value.into());
        if self.numbered {
            write!(self.sql, "${}", self.values.len()).expect("a text takes all that is written to it");
        } else {
            self.sql.push('?');
        }
        self
    }

    /// Writes `VALUES (…), (…)`, a row for each item.
    pub(super) fn push_values<I: IntoIterator>(&mut self, items: I, mut row: impl FnMut(&mut Values<'_, 'q>, I::Item)) {
        self.sql.push_str("VALUES ");
        for (number, item) in items.into_iter().enumerate() {
            self.sql.push_str(if number == 0 { "(" } else { ", (" });
            let mut values = Values {
                builder: self,
                first: true,
            };
            row(&mut values, item);
            self.sql.push(')');
        }
    }

    pub(super) fn build(self) -> Query<'q> {
        Query {
            values: self.values,
            ..query(AssertSqlSafe(self.sql))
        }
    }
}

impl<'q> Values<'_, 'q> {
    fn separate(&mut self) {
        if !std::mem::take(&mut self.first) {
            self.builder.sql.push_str(", ");
        }
    }

    pub(super) fn push_bind(&mut self, value: impl Into<Value<'q>>) {
        self.separate();
        self.builder.push_bind(value);
    }

    /// Writes a constant.
    pub(super) fn push(&mut self, sql: &'static str) {
        self.separate();
        self.builder.push(sql);
    }
}
