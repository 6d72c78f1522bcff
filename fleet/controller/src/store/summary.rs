//! Summaries, and the totals of runs that they add up to.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use offramp_proto::{BootId, CameraReport, ControlReport, DeviceId, Summary as Message};

use super::device::{self, Run, json, list, source};
use super::event;
use super::many::parts;
use super::sql::{Builder, FromRow, Row, Transaction, query_as};
use super::{Arrival, Outcome, Store, StoreError, Task as _, int, uint};

/// A summary as it is kept.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Summary {
    pub(crate) boot: Option<BootId>,
    pub(crate) sequence: u64,
    pub(crate) received_at: u64,
    pub(crate) generation: u64,
    pub(crate) audit_macs: u64,
    pub(crate) overhead_us: u64,
    pub(crate) updates: u64,
    pub(crate) gated: u64,
    pub(crate) policy_source: String,
    pub(crate) faults: u64,
    pub(crate) outbox: u64,
    pub(crate) temperature: Option<f64>,
    pub(crate) window: Window,
}

/// The part of a summary that is counted and drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Window {
    pub(crate) device: String,
    pub(crate) boot: Vec<u8>,
    pub(crate) sequence: u64,
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) frames: u64,
    pub(crate) dropped: u64,
    /// Frames that left because their deadline was near.
    pub(crate) hurried: u64,
    /// Frames taken at each exit.
    pub(crate) exits: Vec<u64>,
    pub(crate) macs: u64,
    pub(crate) full_macs: u64,
    /// Microseconds spent in stages.
    pub(crate) stage_us: u64,
    pub(crate) audits: u64,
    pub(crate) disagreements: u64,
    pub(crate) bound: f64,
    /// Times that heads were put back.
    pub(crate) rollbacks: u64,
    /// None where the device does not tell.
    pub(crate) guard: Option<Guard>,
    /// What learning is worth; none where the device does not tell.
    pub(crate) control: Option<ControlReport>,
    /// How far the classes are from what the device usually sees, `0..=1`; none where it does not tell.
    pub(crate) drift: Option<f64>,
    /// Power that the board draws, where it tells.
    pub(crate) watts: Option<f64>,
    /// Class index and frames.
    pub(crate) classes: Vec<(u32, u64)>,
    pub(crate) policy: String,
    pub(crate) policy_version: u64,
    /// Their parts, where the device has several.
    pub(crate) cameras: Vec<CameraReport>,
    /// What runs each stage; none where the device does not tell.
    pub(crate) engines: Vec<String>,
}

/// The guard of a device's learner at the end of a window.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Guard {
    /// Confidence from which a frame may leave early, `0..=1.01`.
    pub(crate) threshold: f64,
    /// Accuracy given up against the last exit, in expectation, `-1..=1`; negative where the exits do better.
    pub(crate) loss: f64,
    /// Upper bound of it, one-sided 95 %.
    pub(crate) loss_bound: f64,
    /// Audits behind both.
    pub(crate) audits: u64,
    /// Times in the window that heads were found good and kept as those to go back to.
    pub(crate) promotions: u64,
    /// Whether learning has stopped after repeated harm.
    pub(crate) paused: bool,
    /// Contexts that are remembered.
    pub(crate) contexts: u64,
    /// Bytes that all that is learned takes.
    pub(crate) bytes: u64,
}

macro_rules! window_columns {
    () => {
        "device, boot, sequence, window_start, window_end, frames, dropped, hurried, exits, macs, full_macs, stage_us, audits, disagreements, \
         bound, rollbacks, control, drift, watts, guard_threshold, guard_loss, guard_loss_bound, guard_audits, guard_promotions, \
         guard_paused, guard_contexts, guard_bytes, classes, policy, policy_version, cameras, engines"
    };
}

pub(super) use window_columns;

impl FromRow for Window {
    fn from_row(row: &Row) -> Result<Self, sqlx::Error> {
        Ok(Self {
            device: row.try_get("device")?,
            boot: row.try_get("boot")?,
            sequence: uint(row.try_get("sequence")?),
            start: uint(row.try_get("window_start")?),
            end: uint(row.try_get("window_end")?),
            frames: uint(row.try_get("frames")?),
            dropped: uint(row.try_get("dropped")?),
            hurried: uint(row.try_get("hurried")?),
            exits: list(row.try_get("exits")?),
            macs: uint(row.try_get("macs")?),
            full_macs: uint(row.try_get("full_macs")?),
            stage_us: uint(row.try_get("stage_us")?),
            audits: uint(row.try_get("audits")?),
            disagreements: uint(row.try_get("disagreements")?),
            bound: row.try_get("bound")?,
            rollbacks: uint(row.try_get("rollbacks")?),
            guard: guard(row)?,
            control: control(row)?,
            drift: row.try_get("drift")?,
            watts: row.try_get("watts")?,
            classes: list(row.try_get("classes")?),
            policy: row.try_get("policy")?,
            policy_version: uint(row.try_get("policy_version")?),
            cameras: list(row.try_get("cameras")?),
            engines: list(row.try_get("engines")?),
        })
    }
}

/// What a window says that learning is worth, if that can be read.
pub(super) fn control(row: &Row) -> Result<Option<ControlReport>, sqlx::Error> {
    let text: Option<String> = row.try_get("control")?;
    Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
}

fn guard(row: &Row) -> Result<Option<Guard>, sqlx::Error> {
    let Some(threshold) = row.try_get("guard_threshold")? else {
        return Ok(None);
    };
    Ok(Some(Guard {
        threshold,
        loss: row.try_get("guard_loss")?,
        loss_bound: row.try_get("guard_loss_bound")?,
        audits: uint(row.try_get("guard_audits")?),
        promotions: uint(row.try_get("guard_promotions")?),
        paused: row.try_get("guard_paused")?,
        contexts: uint(row.try_get("guard_contexts")?),
        bytes: uint(row.try_get("guard_bytes")?),
    }))
}

impl FromRow for Summary {
    fn from_row(row: &Row) -> Result<Self, sqlx::Error> {
        let window = Window::from_row(row)?;
        Ok(Self {
            boot: window.boot.as_slice().try_into().ok().map(BootId),
            sequence: window.sequence,
            received_at: uint(row.try_get("received_at")?),
            generation: uint(row.try_get("generation")?),
            audit_macs: uint(row.try_get("audit_macs")?),
            overhead_us: uint(row.try_get("overhead_us")?),
            updates: uint(row.try_get("updates")?),
            gated: uint(row.try_get("gated")?),
            policy_source: row.try_get("policy_source")?,
            faults: uint(row.try_get("faults")?),
            outbox: uint(row.try_get("outbox")?),
            temperature: row.try_get("temperature")?,
            window,
        })
    }
}

macro_rules! select_summaries {
    ($rest:literal) => {
        concat!(
            "SELECT received_at, generation, audit_macs, overhead_us, updates, gated, \
             policy_source, faults, outbox, temperature, ",
            window_columns!(),
            " FROM summaries WHERE device = $1 AND window_end > $2 ",
            $rest
        )
    };
}

impl Store {
    /// Summaries of a device, oldest first, at most `limit`: the first whose window ended after `since`, or the latest.
    pub(crate) async fn summary_list(
        &self,
        device: &str,
        since: Option<u64>,
        limit: u32,
    ) -> Result<Vec<Summary>, StoreError> {
        let sql = match since {
            Some(_) => select_summaries!("ORDER BY window_end, sequence LIMIT $3"),
            None => select_summaries!("ORDER BY window_end DESC, sequence DESC LIMIT $3"),
        };
        let mut summaries: Vec<Summary> = query_as(sql)
            .bind(device)
            .bind(int(since.unwrap_or(0)))
            .bind(limit)
            .fetch_all(&self.readers)
            .await
            .task("list summaries")?;
        if since.is_none() {
            summaries.reverse();
        }
        Ok(summaries)
    }

    /// The latest `count` windows of each of some devices, by device, the latest first.
    ///
    /// Latest by sequence, which rises whatever the device's clock does.
    pub(crate) async fn window_latest(
        &self,
        devices: &[&str],
        count: u32,
    ) -> Result<BTreeMap<String, Vec<Window>>, StoreError> {
        let mut query = Builder::new(&self.readers, "WITH those (device) AS (");
        query.push_values(devices, |row, device| row.push_bind(*device));
        query.push_either(
            concat!(
                ") SELECT ",
                window_columns!(),
                " FROM summaries WHERE rowid IN (SELECT s.rowid FROM those d JOIN summaries s ON s.rowid IN \
                 (SELECT rowid FROM summaries WHERE device = d.device ORDER BY sequence DESC LIMIT "
            ),
            concat!(
                ") SELECT latest.* FROM those d CROSS JOIN LATERAL (SELECT ",
                window_columns!(),
                " FROM summaries WHERE device = d.device ORDER BY sequence DESC LIMIT "
            ),
        );
        query.push_bind(count);
        query.push_either(
            ")) ORDER BY device, sequence DESC",
            ") AS latest ORDER BY latest.device, latest.sequence DESC",
        );
        let windows: Vec<Window> = query
            .build()
            .rows()
            .fetch_all(&self.readers)
            .await
            .task("read the latest windows")?;
        let mut by_device = BTreeMap::<String, Vec<Window>>::new();
        for window in windows {
            by_device.entry(window.device.clone()).or_default().push(window);
        }
        Ok(by_device)
    }

    /// What a device did in the last `span` milliseconds before the end of its last window.
    ///
    /// At most the last `limit` windows: a longer history is cut at its start.
    pub(crate) async fn history_fetch(&self, device: &str, span: u64, limit: u32) -> Result<History, StoreError> {
        let task = "read the history of a device";
        // One transaction, so that windows and totals are of the same moment.
        let mut snapshot = self.readers.snapshot().await.task(task)?;
        let mut windows: Vec<Window> = query_as(concat!(
            "SELECT ",
            window_columns!(),
            " FROM summaries WHERE device = $1 \
             AND window_end > (SELECT max(window_end) FROM summaries WHERE device = $1) - $2 \
             ORDER BY window_end DESC, sequence DESC LIMIT $3"
        ))
        .bind(device)
        .bind(int(span))
        .bind(limit)
        .fetch_all(&mut snapshot)
        .await
        .task(task)?;
        windows.reverse();
        History::of(&mut snapshot, device, windows).await
    }
}

/// A stretch of a device's life.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct History {
    /// Its windows, in the order of time.
    pub(crate) windows: Vec<Window>,
    /// Totals of each run, by boot, without those windows: what came before them.
    pub(crate) before: BTreeMap<Vec<u8>, Run>,
}

impl History {
    /// Windows in the order of time, and what came before them.
    pub(super) async fn of(
        connection: &mut Transaction,
        device: &str,
        windows: Vec<Window>,
    ) -> Result<Self, StoreError> {
        let mut before = BTreeMap::new();
        for window in &windows {
            if !before.contains_key(&window.boot) {
                let run = device::run_in_txn(connection, device, &window.boot).await?;
                before.insert(window.boot.clone(), run);
            }
        }
        for window in &windows {
            if let Some(run) = before.get_mut(&window.boot) {
                run.remove(window);
            }
        }
        Ok(Self { windows, before })
    }
}

impl Window {
    /// Frames that left before the last exit.
    pub(crate) fn early(&self) -> u64 {
        early(self.frames, self.exits.last().copied())
    }
}

fn early(frames: u64, last_exit: Option<u64>) -> u64 {
    frames.saturating_sub(last_exit.unwrap_or(0))
}

impl Run {
    /// Adds another one's.
    pub(crate) fn add(&mut self, other: &Self) {
        for (sum, more) in [
            (&mut self.summaries, other.summaries),
            (&mut self.frames, other.frames),
            (&mut self.early, other.early),
            (&mut self.macs, other.macs),
            (&mut self.full_macs, other.full_macs),
            (&mut self.audits, other.audits),
            (&mut self.disagreements, other.disagreements),
        ] {
            *sum = sum.saturating_add(more);
        }
    }

    /// Takes a window out of the totals that it was added to.
    fn remove(&mut self, window: &Window) {
        self.summaries = self.summaries.saturating_sub(1);
        self.frames = self.frames.saturating_sub(window.frames);
        self.early = self.early.saturating_sub(window.early());
        self.macs = self.macs.saturating_sub(window.macs);
        self.full_macs = self.full_macs.saturating_sub(window.full_macs);
        self.audits = self.audits.saturating_sub(window.audits);
        self.disagreements = self.disagreements.saturating_sub(window.disagreements);
    }
}

/// Sums of new summaries by run, kept aside until the end of a batch: one update a run.
#[derive(Debug, Default)]
pub(super) struct Totals<'a>(BTreeMap<(&'a DeviceId, BootId), Run>);

impl<'a> Totals<'a> {
    pub(super) fn add(&mut self, device: &'a DeviceId, boot: BootId, more: &Run) {
        self.0.entry((device, boot)).or_default().add(more);
    }

    fn add_summary(&mut self, summary: &'a Message) {
        let last_exit = summary.exits.last().map(|e| e.taken);
        let run = Run {
            summaries: 1,
            frames: summary.frames,
            early: early(summary.frames, last_exit),
            macs: summary.cost.macs,
            full_macs: summary.cost.full_macs,
            audits: summary.audits.run,
            disagreements: summary.audits.disagreements,
        };
        self.add(&summary.device, summary.boot, &run);
    }

    /// Adds the sums to the totals. SQLite's own addition would turn into a float on overflow.
    pub(super) async fn add_in_txn(self, connection: &mut Transaction) -> Result<(), StoreError> {
        let task = "add to the totals of runs";
        let new: Vec<((&DeviceId, BootId), Run)> = self.0.into_iter().collect();
        for part in parts(&new) {
            let mut query = Builder::new(connection, "WITH new (device, boot) AS (");
            query.push_values(part, |row, ((device, boot), _)| {
                row.push_bind(device.as_str());
                row.push_bind(&boot.0[..]);
            });
            query.push(
                ") SELECT r.device, r.boot, r.summaries, r.frames, r.early, r.macs, r.full_macs, r.audits, \
                 r.disagreements FROM new n JOIN runs r ON r.device = n.device AND r.boot = n.boot",
            );
            let rows = query.build().fetch_all(&mut *connection).await.task(task)?;
            let mut old = BTreeMap::<(String, Vec<u8>), Run>::new();
            for row in &rows {
                let read = || Ok((row.try_get("device")?, row.try_get("boot")?, Run::from_row(row)?));
                let (device, boot, run) = read().task(task)?;
                old.insert((device, boot), run);
            }
            let mut query = Builder::new(
                connection,
                "INSERT INTO runs (device, boot, summaries, frames, early, macs, full_macs, audits, disagreements) ",
            );
            query.push_values(part, |row, ((device, boot), new)| {
                let key = (device.to_string(), boot.0.to_vec());
                let mut sum = old.get(&key).copied().unwrap_or_default();
                sum.add(new);
                row.push_bind(key.0);
                row.push_bind(key.1);
                row.push_bind(int(sum.summaries));
                row.push_bind(int(sum.frames));
                row.push_bind(int(sum.early));
                row.push_bind(int(sum.macs));
                row.push_bind(int(sum.full_macs));
                row.push_bind(int(sum.audits));
                row.push_bind(int(sum.disagreements));
            });
            query.push(
                " ON CONFLICT (device, boot) DO UPDATE SET summaries = excluded.summaries, frames = excluded.frames, \
                 early = excluded.early, macs = excluded.macs, full_macs = excluded.full_macs, \
                 audits = excluded.audits, disagreements = excluded.disagreements",
            );
            query.build().execute(&mut *connection).await.task(task)?;
        }
        Ok(())
    }
}

/// Keeps summaries unless they are here already, with what follows from them: totals, and events where learning pauses
/// or goes on. Gives what became of each, by its place.
pub(super) async fn insert_in_txn(
    connection: &mut Transaction,
    summaries: &[(usize, &Message, &Arrival)],
) -> Result<Vec<(usize, Outcome)>, StoreError> {
    let mut paused = paused_in_txn(connection, summaries).await?;
    let mut outcomes = Vec::with_capacity(summaries.len());
    let mut totals = Totals::default();
    for part in parts(summaries) {
        let mut stored = keep_in_txn(connection, part).await?;
        for (place, summary, arrival) in part {
            // A summary that is twice in a batch was stored once.
            let is_new = stored.remove(&(summary.device.to_string(), summary.sequence.0, summary.boot.0.to_vec()));
            let outcome = if is_new { Outcome::Stored } else { Outcome::Repeated };
            outcomes.push((*place, outcome));
            if is_new {
                totals.add_summary(summary);
                if let Some(change) = pause_change(&mut paused, summary) {
                    event::pause_in_txn(connection, summary, arrival, change).await?;
                }
            }
        }
    }
    totals.add_in_txn(connection).await?;
    Ok(outcomes)
}

/// Keeps the summaries that are not here already; gives device, sequence and boot of those that were not.
async fn keep_in_txn(
    connection: &mut Transaction,
    summaries: &[(usize, &Message, &Arrival)],
) -> Result<BTreeSet<(String, u64, Vec<u8>)>, StoreError> {
    let task = "keep summaries";
    let mut query = Builder::new(
        connection,
        "INSERT INTO summaries (device, sequence, boot, received_at, window_start, window_end, generation, frames, \
         dropped, exits, macs, audit_macs, full_macs, stage_us, overhead_us, audits, disagreements, bound, updates, \
         gated, rollbacks, classes, policy, policy_version, policy_source, faults, outbox, temperature, raw, \
         guard_threshold, guard_loss, guard_loss_bound, guard_audits, guard_promotions, guard_paused, \
         guard_contexts, guard_bytes, hurried, cameras, engines, control, drift, watts) ",
    );
    query.push_values(summaries, |row, (_, summary, arrival)| {
        let exits: Vec<u64> = summary.exits.iter().map(|e| e.taken).collect();
        let classes: Vec<(u32, u64)> = summary.classes.iter().map(|c| (c.class, c.count)).collect();
        let guard = summary.guard.as_ref();
        row.push_bind(summary.device.as_str());
        row.push_bind(int(summary.sequence.0));
        row.push_bind(&summary.boot.0[..]);
        row.push_bind(int(arrival.at));
        row.push_bind(int(summary.window.start));
        row.push_bind(int(summary.window.end));
        row.push_bind(int(summary.generation.0));
        row.push_bind(int(summary.frames));
        row.push_bind(int(summary.dropped));
        row.push_bind(json(&exits));
        row.push_bind(int(summary.cost.macs));
        row.push_bind(int(summary.cost.audit_macs));
        row.push_bind(int(summary.cost.full_macs));
        row.push_bind(int(summary.cost.stage_us));
        row.push_bind(int(summary.cost.overhead_us));
        row.push_bind(int(summary.audits.run));
        row.push_bind(int(summary.audits.disagreements));
        row.push_bind(f64::from(summary.audits.bound));
        row.push_bind(int(summary.learner.updates));
        row.push_bind(int(summary.learner.gated));
        row.push_bind(int(summary.learner.rollbacks));
        row.push_bind(json(&classes));
        row.push_bind(&summary.policy.name);
        row.push_bind(int(summary.policy.version));
        row.push_bind(source(summary.policy.source));
        row.push_bind(int(summary.policy.faults));
        row.push_bind(int(summary.outbox));
        row.push_bind(summary.temperature.map(f64::from));
        row.push_bind(&arrival.raw[..]);
        row.push_bind(guard.map(|g| f64::from(g.threshold)));
        row.push_bind(guard.map(|g| f64::from(g.loss)));
        row.push_bind(guard.map(|g| f64::from(g.loss_bound)));
        row.push_bind(guard.map(|g| int(g.audits)));
        row.push_bind(guard.map(|g| int(g.promotions)));
        row.push_bind(guard.map(|g| g.paused));
        row.push_bind(guard.map(|g| int(g.contexts)));
        row.push_bind(guard.map(|g| int(g.bytes)));
        row.push_bind(int(summary.hurried));
        row.push_bind((!summary.cameras.is_empty()).then(|| json(&summary.cameras)));
        row.push_bind((!summary.engines.is_empty()).then(|| json(&summary.engines)));
        row.push_bind(summary.control.as_ref().map(json));
        row.push_bind(summary.drift.map(f64::from));
        row.push_bind(summary.watts.map(f64::from));
    });
    query.push(" ON CONFLICT DO NOTHING RETURNING device, sequence, boot");
    let stored: Vec<(String, i64, Vec<u8>)> = query.build().rows().fetch_all(connection).await.task(task)?;
    Ok(stored
        .into_iter()
        .map(|(device, sequence, boot)| (device, uint(sequence), boot))
        .collect())
}

/// Of each device the last window that told of the guard: its sequence, and whether learning had paused.
type Paused = BTreeMap<String, (u64, bool)>;

async fn paused_in_txn(
    connection: &mut Transaction,
    summaries: &[(usize, &Message, &Arrival)],
) -> Result<Paused, StoreError> {
    let telling = summaries.iter().filter(|(_, summary, _)| summary.guard.is_some());
    let devices: BTreeSet<&DeviceId> = telling.map(|(_, summary, _)| &summary.device).collect();
    let devices: Vec<&DeviceId> = devices.into_iter().collect();
    let mut paused = Paused::new();
    for part in parts(&devices) {
        let mut query = Builder::new(connection, "WITH those (device) AS (");
        query.push_values(part, |row, device| {
            row.push_bind(device.as_str());
        });
        query.push_either(
            ") SELECT s.device, s.sequence, s.guard_paused FROM those t JOIN summaries s ON s.rowid = \
             (SELECT rowid FROM summaries WHERE device = t.device AND guard_paused IS NOT NULL \
             ORDER BY sequence DESC LIMIT 1)",
            ") SELECT s.device, s.sequence, s.guard_paused FROM those t CROSS JOIN LATERAL \
             (SELECT device, sequence, guard_paused FROM summaries WHERE device = t.device \
             AND guard_paused IS NOT NULL ORDER BY sequence DESC LIMIT 1) AS s",
        );
        let rows: Vec<(String, i64, bool)> = query
            .build()
            .rows()
            .fetch_all(&mut *connection)
            .await
            .task("compare summaries with those before them")?;
        paused.extend(
            rows.into_iter()
                .map(|(device, sequence, was)| (device, (uint(sequence), was))),
        );
    }
    Ok(paused)
}

/// Whether a device's learning pauses (true) or goes on again (false) with a new summary; none when the summary before
/// it said the same.
///
/// A summary that comes late says nothing of this: a later one has been heard.
fn pause_change(paused: &mut Paused, summary: &Message) -> Option<bool> {
    let now = summary.guard.as_ref()?.paused;
    let before = paused.get(summary.device.as_str()).copied();
    let late = before.is_some_and(|(sequence, _)| sequence > summary.sequence.0);
    if late {
        return None;
    }
    paused.insert(summary.device.to_string(), (summary.sequence.0, now));
    let was = before.is_some_and(|(_, was)| was);
    (was != now).then_some(now)
}
