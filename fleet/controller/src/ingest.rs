//! Takes what devices send into the database.
//!
//! Messages are taken in batches: as many as have arrived, each batch in one transaction. While one is being written,
//! the next is read. A message is acknowledged to the broker when its transaction is committed, not before, so that a
//! controller that dies gets it again. While the database cannot be written (a full disk), nothing is acknowledged and
//! the broker keeps what comes.

use std::error::Error as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use offramp_link::{Delivery, Inbox, Message};
use offramp_proto::{
    ArtifactRequest, DecodeError, DeviceId, Kind, RenewalRequest, TenantId, Topic, TopicError, TraceSample, decode,
};
use tokio::sync::{mpsc, watch};

use crate::artifacts::Request;
use crate::forecast::{self, BadPiece};
use crate::statistics::Statistics;
use crate::store::{Arrival, Outcome, Piece, Record, Store, StoreError, now};

/// Messages in one transaction at most.
const BATCH: usize = 512;
/// Pause before a batch is tried again that the database refused.
const RETRY: Duration = Duration::from_secs(1);
/// Between two lines of the log about requests that get no answer.
const TELL: Duration = Duration::from_secs(10);
/// Largest number of any kind: what JSON carries exactly. One record a second takes 285 million years to get there.
const LARGEST: u64 = 1 << 53;
/// Most multiply-adds of a window: six hours at what an Orin does at its best.
const MOST_MACS: u64 = 1 << 60;

/// Why a message is refused.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Topic(#[from] TopicError),
    #[error("it belongs to tenant `{0}`")]
    Tenant(TenantId),
    #[error("{0:?} is not for the controller")]
    Kind(Kind),
    #[error(transparent)]
    Content(#[from] DecodeError),
    #[error("it speaks for device `{0}`")]
    Device(DeviceId),
    #[error("its {0} is above {1}")]
    Number(&'static str, u64),
    #[error("{0}{cause}", cause = .0.source().map_or_else(String::new, |cause| format!(": {cause}")))]
    Trace(BadPiece),
}

/// A message that was understood.
enum Understood {
    Record(Arrival),
    Request(Request),
    Renewal(RenewalRequest),
    Trace(Piece),
    /// Somebody took a retained message back.
    Nothing,
}

/// What the task works with.
#[derive(Clone)]
pub(crate) struct Ingest {
    pub(crate) tenant: TenantId,
    pub(crate) store: Store,
    pub(crate) requests: mpsc::Sender<Request>,
    pub(crate) renewals: mpsc::Sender<RenewalRequest>,
    pub(crate) statistics: watch::Sender<Statistics>,
    pub(crate) stop: watch::Receiver<bool>,
}

/// Requests that nobody could be handed to, as the log is told of them: not each for itself.
#[derive(Debug, Default)]
struct Unanswered {
    requests: u64,
    told: Option<Instant>,
}

impl Unanswered {
    fn add(&mut self, requests: u64) {
        self.requests += requests;
        if self.requests > 0 && self.told.is_none_or(|told| told.elapsed() > TELL) {
            tracing::warn!(
                requests = std::mem::take(&mut self.requests),
                "too many devices ask for something at once; those that get no answer ask again"
            );
            self.told = Some(Instant::now());
        }
    }
}

/// Messages that are kept together, as far as they are to be kept.
#[derive(Default)]
struct Batch {
    deliveries: Vec<Delivery>,
    arrivals: Vec<Arrival>,
    pieces: Vec<Piece>,
    refused: u64,
    /// Requests that nobody could be handed to.
    unanswered: u64,
}

impl Ingest {
    /// Runs until the link is closed.
    pub(crate) async fn run(self, mut inbox: Inbox) {
        self.work(&mut inbox, None).await;
    }

    /// Runs until nothing has come for a while, or the link is closed.
    pub(crate) async fn take_over(self, inbox: &mut Inbox, quiet: Duration) {
        self.work(inbox, Some(quiet)).await;
    }

    async fn work(&self, inbox: &mut Inbox, quiet: Option<Duration>) {
        let mut unanswered = Unanswered::default();
        let mut next = Batch::default();
        loop {
            if next.deliveries.is_empty() {
                let first = match quiet {
                    None => inbox.recv().await,
                    Some(quiet) => tokio::time::timeout(quiet, inbox.recv()).await.ok().flatten(),
                };
                let Some(first) = first else { break };
                self.read(first, &mut next);
            }
            while next.deliveries.len() < BATCH
                && let Some(Some(delivery)) = inbox.recv().now_or_never()
            {
                self.read(delivery, &mut next);
            }
            unanswered.add(next.unanswered);
            let keeping = self.keep(std::mem::take(&mut next));
            tokio::pin!(keeping);
            // What comes while the database writes is read meanwhile.
            let kept = loop {
                tokio::select! {
                    biased;
                    kept = &mut keeping => break kept,
                    Some(delivery) = inbox.recv(), if next.deliveries.len() < BATCH => self.read(delivery, &mut next),
                }
            };
            if kept.is_err() {
                break;
            }
        }
    }

    /// Adds a message to a batch, or hands it to whom it is for.
    fn read(&self, delivery: Delivery, batch: &mut Batch) {
        match understand(&self.tenant, &delivery.message) {
            Ok(Understood::Record(arrival)) => batch.arrivals.push(arrival),
            // A device that gets no answer asks again: better than to hold up the summaries.
            Ok(Understood::Request(request)) => {
                batch.unanswered += u64::from(self.requests.try_send(request).is_err());
            }
            Ok(Understood::Renewal(request)) => {
                batch.unanswered += u64::from(self.renewals.try_send(request).is_err());
            }
            Ok(Understood::Trace(piece)) => batch.pieces.push(piece),
            Ok(Understood::Nothing) => {}
            Err(refusal) => {
                batch.refused += 1;
                let topic: String = delivery.message.topic.chars().take(200).collect();
                tracing::warn!(topic, reason = %refusal, "message refused");
            }
        }
        batch.deliveries.push(delivery);
    }

    /// Keeps a batch and acknowledges it. An error means that the controller is ending; it is then not acknowledged.
    async fn keep(&self, batch: Batch) -> Result<(), StoreError> {
        let Batch {
            deliveries,
            arrivals,
            pieces,
            refused,
            ..
        } = batch;
        let mut news = Statistics {
            received: deliveries.len() as u64,
            refused,
            ..Statistics::default()
        };
        let arrivals: Arc<[Arrival]> = arrivals.into();
        if !arrivals.is_empty() {
            let outcomes = self.insert(&arrivals).await?;
            for (arrival, outcome) in arrivals.iter().zip(outcomes) {
                match (&arrival.record, outcome) {
                    (Record::Summary(_), Outcome::Stored) => news.ingested += 1,
                    (Record::Summary(_), Outcome::Repeated) => news.duplicates += 1,
                    (Record::Event(_), Outcome::Stored) => news.events += 1,
                    _ => {}
                }
            }
        }
        if !pieces.is_empty() {
            // What is lost here is one of many: the summaries do not wait for it.
            match self.store.trace_insert(pieces.into()).await {
                Ok(new) => news.traces += new,
                Err(StoreError::Closed) => return Err(StoreError::Closed),
                Err(error) => tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "pieces of traces were not kept"
                ),
            }
        }
        for delivery in deliveries {
            delivery.acknowledge();
        }
        self.statistics.send_modify(|s| {
            s.received += news.received;
            s.ingested += news.ingested;
            s.duplicates += news.duplicates;
            s.events += news.events;
            s.refused += news.refused;
            s.traces += news.traces;
        });
        Ok(())
    }

    /// Writes a batch, however long it takes the database to accept it.
    async fn insert(&self, batch: &Arc<[Arrival]>) -> Result<Vec<Outcome>, StoreError> {
        let mut stop = self.stop.clone();
        loop {
            let error = match self.store.arrival_insert(Arc::clone(batch)).await {
                Ok(outcomes) => return Ok(outcomes),
                Err(StoreError::Closed) => return Err(StoreError::Closed),
                Err(error) => error,
            };
            tracing::error!(
                error = &error as &dyn std::error::Error,
                messages = batch.len(),
                "messages wait at the broker until the database accepts them"
            );
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return Err(error),
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }
}

fn understand(tenant: &TenantId, message: &Message) -> Result<Understood, Refusal> {
    let topic = Topic::parse(&message.topic)?;
    if topic.tenant != *tenant {
        return Err(Refusal::Tenant(topic.tenant));
    }
    let bytes = &message.payload;
    if bytes.is_empty() {
        return Ok(Understood::Nothing);
    }
    let record = match topic.kind {
        Kind::Birth => Record::Birth(Box::new(decode(bytes)?)),
        Kind::Death => Record::Death(decode(bytes)?),
        Kind::Summary => Record::Summary(Box::new(decode(bytes)?)),
        Kind::Event => Record::Event(Box::new(decode(bytes)?)),
        Kind::Reported => Record::Reported(Box::new(decode(bytes)?)),
        Kind::Request => {
            let request: ArtifactRequest = decode(bytes)?;
            return Ok(Understood::Request(Request {
                device: topic.device,
                digest: request.digest,
                offset: request.offset,
                chunks: request.chunks,
                answer_to: message.response_topic.clone(),
                correlation: message.correlation.clone(),
            }));
        }
        Kind::Trace => {
            let sample: TraceSample = decode(bytes)?;
            if sample.device != topic.device {
                return Err(Refusal::Device(sample.device));
            }
            let piece = forecast::examine(&topic.device, sample.trace, now()).map_err(Refusal::Trace)?;
            return Ok(Understood::Trace(piece));
        }
        Kind::Renewal => {
            let request: RenewalRequest = decode(bytes)?;
            if request.device != topic.device {
                return Err(Refusal::Device(request.device));
            }
            return Ok(Understood::Renewal(request));
        }
        Kind::Desired | Kind::Chunk | Kind::Certificate => return Err(Refusal::Kind(topic.kind)),
    };
    let (device, _) = record.origin();
    if *device != topic.device {
        return Err(Refusal::Device(device.clone()));
    }
    bounded(&record)?;
    Ok(Understood::Record(Arrival {
        at: now(),
        retained: message.retained,
        record,
        raw: bytes.to_vec(),
    }))
}

/// Refuses numbers that no device comes to: databases reckon with them, and JSON carries no larger ones exactly.
fn bounded(record: &Record) -> Result<(), Refusal> {
    let check = |numbers: &[(&'static str, u64)], most| match numbers.iter().find(|(_, number)| *number > most) {
        Some((name, _)) => Err(Refusal::Number(name, most)),
        None => Ok(()),
    };
    match record {
        Record::Summary(m) => {
            check(
                &[
                    ("sequence", m.sequence.0),
                    ("generation", m.generation.0),
                    ("window's end", m.window.end),
                    // Those of its exits add up to them.
                    ("frames", m.frames),
                    ("dropped frames", m.dropped),
                    ("hurried frames", m.hurried),
                    ("time in stages", m.cost.stage_us),
                    ("time beside the stages", m.cost.overhead_us),
                    ("audits", m.audits.run),
                    ("rollbacks", m.learner.rollbacks),
                    ("policy's version", m.policy.version),
                    ("policy's faults", m.policy.faults),
                ],
                LARGEST,
            )?;
            check(&[("cost", m.cost.macs), ("full cost", m.cost.full_macs)], MOST_MACS)
        }
        Record::Event(m) => check(&[("sequence", m.sequence.0), ("time", m.at)], LARGEST),
        Record::Reported(m) => check(&[("generation", m.generation.0), ("time", m.at)], LARGEST),
        Record::Birth(m) => check(&[("model's version", m.model.version), ("time", m.started_at)], LARGEST),
        Record::Death(_) => Ok(()),
    }
}
