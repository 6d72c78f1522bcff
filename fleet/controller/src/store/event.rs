//! Events of devices: those that they send, and those that their summaries tell of.

use std::collections::BTreeMap;

use offramp_proto::{Event as Message, Summary};

use super::device::{json, outcome};
use super::sql::{FromRow, Row, Transaction, query, query_as};
use super::{Arrival, Outcome, Store, StoreError, Task as _, int, uint};

/// An event as it is kept.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Event {
    pub(crate) device: String,
    pub(crate) sequence: u64,
    pub(crate) received_at: u64,
    /// When it happened by the device's clock, but not after it arrived: a clock that is ahead would keep
    /// an event on top of all others.
    pub(crate) at: u64,
    pub(crate) kind: String,
    pub(crate) message: String,
    pub(crate) facts: BTreeMap<String, String>,
}

/// Which events are wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EventFilter<'a> {
    /// Of this device only.
    pub(crate) device: Option<&'a str>,
    /// That arrived after this time, in milliseconds since 1970.
    pub(crate) since: u64,
    /// At most as many.
    pub(crate) limit: u32,
}

impl FromRow for Event {
    fn from_row(row: &Row) -> Result<Self, sqlx::Error> {
        let facts: String = row.try_get("facts")?;
        Ok(Self {
            device: row.try_get("device")?,
            sequence: uint(row.try_get("sequence")?),
            received_at: uint(row.try_get("received_at")?),
            at: uint(row.try_get("at")?),
            kind: row.try_get("kind")?,
            message: row.try_get("message")?,
            facts: serde_json::from_str(&facts).unwrap_or_default(),
        })
    }
}

impl Store {
    /// Events, the last to happen first.
    pub(crate) async fn event_list(&self, filter: EventFilter<'_>) -> Result<Vec<Event>, StoreError> {
        query_as(
            "SELECT device, sequence, received_at, at, kind, message, facts FROM events \
             WHERE ($1 IS NULL OR device = $1) AND received_at > $2 \
             ORDER BY at DESC, device, sequence DESC LIMIT $3",
        )
        .bind(filter.device)
        .bind(int(filter.since))
        .bind(filter.limit)
        .fetch_all(&self.readers)
        .await
        .task("list events")
    }
}

/// Keeps an event unless it is here already.
pub(super) async fn insert_in_txn(
    connection: &mut Transaction,
    event: &Message,
    arrival: &Arrival,
) -> Result<Outcome, StoreError> {
    let done = query(
        "INSERT INTO events (device, sequence, boot, received_at, at, kind, message, facts, raw) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING",
    )
    .bind(event.device.as_str())
    .bind(int(event.sequence.0))
    .bind(&event.boot.0[..])
    .bind(int(arrival.at))
    .bind(int(event.at.min(arrival.at)))
    .bind(&event.kind)
    .bind(&event.message)
    .bind(json(&event.facts))
    .bind(&arrival.raw)
    .execute(connection)
    .await
    .task("keep an event")?;
    Ok(outcome(done))
}

/// Keeps an event where a summary, which is kept already, is the first to say that learning has paused or
/// goes on again.
///
/// It has the summary's sequence, which no event of the device can have: both are numbered together.
pub(super) async fn pause_in_txn(
    connection: &mut Transaction,
    summary: &Summary,
    arrival: &Arrival,
    paused: bool,
) -> Result<(), StoreError> {
    let (kind, message) = match paused {
        true => (
            "learning-paused",
            "what was learned did harm again and again; it is dropped, and nothing more is learned",
        ),
        false => ("learning-resumed", "learning goes on after a pause"),
    };
    let event = Message {
        device: summary.device.clone(),
        boot: summary.boot,
        sequence: summary.sequence,
        at: summary.window.end,
        kind: kind.into(),
        message: message.into(),
        facts: BTreeMap::new(),
    };
    insert_in_txn(connection, &event, arrival).await?;
    Ok(())
}
