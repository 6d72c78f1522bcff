//! What devices send, into the tables: a batch in one transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use offramp_proto::{Birth, BootId, Death, DeviceId, Event, Reported, Summary};

use super::sql::Transaction;
use super::{Store, StoreError, device, event, summary};

/// A message of a device, decoded.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    /// When it came, in milliseconds since 1970.
    pub(crate) at: u64,
    /// Whether the broker had kept it: then it says nothing about the device being alive now.
    pub(crate) retained: bool,
    /// The message.
    pub(crate) record: Record,
    /// Its bytes as they came.
    pub(crate) raw: Vec<u8>,
}

/// The messages that are kept.
#[derive(Clone, Debug)]
pub(crate) enum Record {
    Birth(Box<Birth>),
    Death(Death),
    Summary(Box<Summary>),
    Event(Box<Event>),
    Reported(Box<Reported>),
}

impl Record {
    /// The device and the run that it names.
    pub(crate) fn origin(&self) -> (&DeviceId, BootId) {
        match self {
            Self::Birth(m) => (&m.device, m.boot),
            Self::Death(m) => (&m.device, m.boot),
            Self::Summary(m) => (&m.device, m.boot),
            Self::Event(m) => (&m.device, m.boot),
            Self::Reported(m) => (&m.device, m.boot),
        }
    }
}

/// What a record changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is new and kept.
    Stored,
    /// It was here already, or is overtaken by a newer one; nothing changed.
    Repeated,
}

impl Store {
    /// Keeps a batch of records, all or none. The outcomes are in the order of the records.
    pub(crate) async fn arrival_insert(&self, batch: Arc<[Arrival]>) -> Result<Vec<Outcome>, StoreError> {
        self.write(move |connection| Box::pin(async move { insert_in_txn(connection, &batch).await }))
            .await
    }
}

async fn insert_in_txn(connection: &mut Transaction, batch: &[Arrival]) -> Result<Vec<Outcome>, StoreError> {
    let mut seen = BTreeMap::<&DeviceId, (u64, u64)>::new();
    for arrival in batch {
        let (first, last) = seen.entry(arrival.record.origin().0).or_insert((arrival.at, 0));
        *first = arrival.at.min(*first);
        if !arrival.retained {
            *last = arrival.at.max(*last);
        }
    }
    let seen: Vec<_> = seen.into_iter().collect();
    device::touch_in_txn(connection, &seen).await?;

    // Nearly all of a large fleet's messages are summaries: these go together. Of the rest only a birth with another model looks at what they add up to: windows that came before it are the
    // model's before.
    let mut outcomes = vec![Outcome::Repeated; batch.len()];
    let summaries: Vec<(usize, &Summary, &Arrival)> = batch
        .iter()
        .enumerate()
        .filter_map(|(place, arrival)| match &arrival.record {
            Record::Summary(summary) => Some((place, &**summary, arrival)),
            _ => None,
        })
        .collect();
    for (place, outcome) in summary::insert_in_txn(connection, &summaries).await? {
        outcomes[place] = outcome;
    }

    // Runs that spoke after whatever was heard of their death.
    let mut signs_of_life = BTreeSet::new();
    for (arrival, outcome) in batch.iter().zip(&mut outcomes) {
        let origin = arrival.record.origin();
        if matches!(arrival.record, Record::Death(_)) {
            signs_of_life.remove(&origin);
        } else if !arrival.retained {
            signs_of_life.insert(origin);
        }
        *outcome = match &arrival.record {
            Record::Birth(birth) => device::birth_in_txn(connection, birth, arrival).await?,
            Record::Death(death) => device::death_in_txn(connection, death).await?,
            Record::Summary(_) => continue,
            Record::Event(record) => event::insert_in_txn(connection, record, arrival).await?,
            Record::Reported(reported) => device::reported_in_txn(connection, reported, arrival).await?,
        };
    }
    let signs_of_life: Vec<_> = signs_of_life.into_iter().collect();
    device::alive_in_txn(connection, &signs_of_life).await?;
    Ok(outcomes)
}
