//! Summaries, and the totals of runs that they add up to.

use std::collections::BTreeMap;

use offramp_proto::{BootId, CameraReport, DeviceId, Summary as Message};
use sqlx::sqlite::SqliteRow;
use sqlx::{FromRow, Row as _, SqliteConnection};

use super::device::{self, Run, json, list, outcome, source};
use super::{Arrival, Outcome, Span, Store, StoreError, Task as _, int, uint};

/// A summary as it is kept.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Summary {
    pub(crate) boot: Option<BootId>,
    pub(crate) sequence: u64,
    pub(crate) received_at: u64,
    pub(crate) generation: u64,
    pub(crate) audit_macs: u64,
    pub(crate) stage_us: u64,
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
#[derive(Clone, Debug, PartialEq)]
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
    pub(crate) audits: u64,
    pub(crate) disagreements: u64,
    pub(crate) bound: f64,
    /// Times that heads were put back.
    pub(crate) rollbacks: u64,
    /// None where the device does not tell.
    pub(crate) guard: Option<Guard>,
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
#[derive(Clone, Copy, Debug, PartialEq)]
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
        "device, boot, sequence, window_start, window_end, frames, dropped, hurried, exits, macs, full_macs, audits, disagreements, \
         bound, rollbacks, guard_threshold, guard_loss, guard_loss_bound, guard_audits, guard_promotions, \
         guard_paused, guard_contexts, guard_bytes, classes, policy, policy_version, cameras, engines"
    };
}

impl FromRow<'_, SqliteRow> for Window {
    fn from_row(row: &SqliteRow) -> Result<Self, sqlx::Error> {
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
            audits: uint(row.try_get("audits")?),
            disagreements: uint(row.try_get("disagreements")?),
            bound: row.try_get("bound")?,
            rollbacks: uint(row.try_get("rollbacks")?),
            guard: guard(row)?,
            classes: list(row.try_get("classes")?),
            policy: row.try_get("policy")?,
            policy_version: uint(row.try_get("policy_version")?),
            cameras: list(row.try_get("cameras")?),
            engines: list(row.try_get("engines")?),
        })
    }
}

fn guard(row: &SqliteRow) -> Result<Option<Guard>, sqlx::Error> {
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

impl FromRow<'_, SqliteRow> for Summary {
    fn from_row(row: &SqliteRow) -> Result<Self, sqlx::Error> {
        let window = Window::from_row(row)?;
        Ok(Self {
            boot: window.boot.as_slice().try_into().ok().map(BootId),
            sequence: window.sequence,
            received_at: uint(row.try_get("received_at")?),
            generation: uint(row.try_get("generation")?),
            audit_macs: uint(row.try_get("audit_macs")?),
            stage_us: uint(row.try_get("stage_us")?),
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

impl Store {
    /// Summaries of a device whose window ended after `since`, oldest first, at most `limit`.
    pub(crate) async fn summary_list(&self, device: &str, since: u64, limit: u32) -> Result<Vec<Summary>, StoreError> {
        sqlx::query_as(concat!(
            "SELECT received_at, generation, audit_macs, stage_us, overhead_us, updates, gated, \
             policy_source, faults, outbox, temperature, ",
            window_columns!(),
            " FROM summaries WHERE device = $1 AND window_end > $2 ORDER BY window_end, sequence LIMIT $3"
        ))
        .bind(device)
        .bind(int(since))
        .bind(limit)
        .fetch_all(&self.readers)
        .await
        .task("list summaries")
    }

    /// The latest `count` windows of each of some devices, by device, the latest first.
    ///
    /// Latest by sequence, which rises whatever the device's clock does.
    pub(crate) async fn window_latest(
        &self,
        devices: Span<'_>,
        count: u32,
    ) -> Result<BTreeMap<String, Vec<Window>>, StoreError> {
        let windows: Vec<Window> = sqlx::query_as(concat!(
            "SELECT ",
            window_columns!(),
            " FROM summaries WHERE rowid IN (SELECT s.rowid FROM devices d JOIN summaries s ON s.rowid IN \
             (SELECT rowid FROM summaries WHERE device = d.device ORDER BY sequence DESC LIMIT $3) \
             WHERE d.device BETWEEN $1 AND $2) ORDER BY device, sequence DESC"
        ))
        .bind(devices.first)
        .bind(devices.last)
        .bind(count)
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
        let mut snapshot = self.readers.begin().await.task(task)?;
        let mut windows: Vec<Window> = sqlx::query_as(concat!(
            "SELECT ",
            window_columns!(),
            " FROM summaries WHERE device = $1 \
             AND window_end > (SELECT max(window_end) FROM summaries WHERE device = $1) - $2 \
             ORDER BY window_end DESC, sequence DESC LIMIT $3"
        ))
        .bind(device)
        .bind(int(span))
        .bind(limit)
        .fetch_all(&mut *snapshot)
        .await
        .task(task)?;
        windows.reverse();
        let mut before = BTreeMap::new();
        for window in &windows {
            if !before.contains_key(&window.boot) {
                let run = device::run_in_txn(&mut snapshot, device, &window.boot).await?;
                before.insert(window.boot.clone(), run);
            }
        }
        for window in &windows {
            if let Some(run) = before.get_mut(&window.boot) {
                run.remove(window);
            }
        }
        Ok(History { windows, before })
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
pub(super) struct Totals(BTreeMap<(DeviceId, BootId), Run>);

impl Totals {
    pub(super) fn add(&mut self, summary: &Message) {
        let run = self.0.entry((summary.device.clone(), summary.boot)).or_default();
        let last_exit = summary.exits.last().map(|e| e.taken);
        run.summaries += 1;
        run.frames = run.frames.saturating_add(summary.frames);
        run.early = run.early.saturating_add(early(summary.frames, last_exit));
        run.macs = run.macs.saturating_add(summary.cost.macs);
        run.full_macs = run.full_macs.saturating_add(summary.cost.full_macs);
        run.audits = run.audits.saturating_add(summary.audits.run);
        run.disagreements = run.disagreements.saturating_add(summary.audits.disagreements);
    }

    /// Adds the sums to the totals. SQLite's own addition would turn into a float on overflow.
    pub(super) async fn add_in_txn(self, connection: &mut SqliteConnection) -> Result<(), StoreError> {
        for ((device, boot), new) in self.0 {
            let old = device::run_in_txn(connection, device.as_str(), boot.0.as_slice()).await?;
            sqlx::query(
                "INSERT INTO runs (device, boot, summaries, frames, early, macs, full_macs, audits, disagreements) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (device, boot) DO UPDATE SET \
                 summaries = excluded.summaries, frames = excluded.frames, early = excluded.early, \
                 macs = excluded.macs, full_macs = excluded.full_macs, audits = excluded.audits, \
                 disagreements = excluded.disagreements",
            )
            .bind(device.as_str())
            .bind(&boot.0[..])
            .bind(int(old.summaries.saturating_add(new.summaries)))
            .bind(int(old.frames.saturating_add(new.frames)))
            .bind(int(old.early.saturating_add(new.early)))
            .bind(int(old.macs.saturating_add(new.macs)))
            .bind(int(old.full_macs.saturating_add(new.full_macs)))
            .bind(int(old.audits.saturating_add(new.audits)))
            .bind(int(old.disagreements.saturating_add(new.disagreements)))
            .execute(&mut *connection)
            .await
            .task("add to the totals of a run")?;
        }
        Ok(())
    }
}

/// Keeps a summary unless it is here already.
pub(super) async fn insert_in_txn(
    connection: &mut SqliteConnection,
    summary: &Message,
    arrival: &Arrival,
) -> Result<Outcome, StoreError> {
    let exits: Vec<u64> = summary.exits.iter().map(|e| e.taken).collect();
    let classes: Vec<(u32, u64)> = summary.classes.iter().map(|c| (c.class, c.count)).collect();
    let guard = summary.guard.as_ref();
    let done = sqlx::query(
        "INSERT INTO summaries (device, sequence, boot, received_at, window_start, window_end, generation, frames, \
         dropped, exits, macs, audit_macs, full_macs, stage_us, overhead_us, audits, disagreements, bound, updates, \
         gated, rollbacks, classes, policy, policy_version, policy_source, faults, outbox, temperature, raw, \
         guard_threshold, guard_loss, guard_loss_bound, guard_audits, guard_promotions, guard_paused, \
         guard_contexts, guard_bytes, hurried, cameras, engines) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, \
         $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33, $34, $35, $36, $37, $38, $39, $40) \
         ON CONFLICT DO NOTHING",
    )
    .bind(summary.device.as_str())
    .bind(int(summary.sequence.0))
    .bind(&summary.boot.0[..])
    .bind(int(arrival.at))
    .bind(int(summary.window.start))
    .bind(int(summary.window.end))
    .bind(int(summary.generation.0))
    .bind(int(summary.frames))
    .bind(int(summary.dropped))
    .bind(json(&exits))
    .bind(int(summary.cost.macs))
    .bind(int(summary.cost.audit_macs))
    .bind(int(summary.cost.full_macs))
    .bind(int(summary.cost.stage_us))
    .bind(int(summary.cost.overhead_us))
    .bind(int(summary.audits.run))
    .bind(int(summary.audits.disagreements))
    .bind(f64::from(summary.audits.bound))
    .bind(int(summary.learner.updates))
    .bind(int(summary.learner.gated))
    .bind(int(summary.learner.rollbacks))
    .bind(json(&classes))
    .bind(&summary.policy.name)
    .bind(int(summary.policy.version))
    .bind(source(summary.policy.source))
    .bind(int(summary.policy.faults))
    .bind(int(summary.outbox))
    .bind(summary.temperature.map(f64::from))
    .bind(&arrival.raw)
    .bind(guard.map(|g| f64::from(g.threshold)))
    .bind(guard.map(|g| f64::from(g.loss)))
    .bind(guard.map(|g| f64::from(g.loss_bound)))
    .bind(guard.map(|g| int(g.audits)))
    .bind(guard.map(|g| int(g.promotions)))
    .bind(guard.map(|g| g.paused))
    .bind(guard.map(|g| int(g.contexts)))
    .bind(guard.map(|g| int(g.bytes)))
    .bind(int(summary.hurried))
    .bind((!summary.cameras.is_empty()).then(|| json(&summary.cameras)))
    .bind((!summary.engines.is_empty()).then(|| json(&summary.engines)))
    .execute(connection)
    .await
    .task("keep a summary")?;
    Ok(outcome(done.rows_affected()))
}

/// Whether a device's learning has paused (true) or goes on again (false) with a summary that is kept
/// already; none when the summary before it said the same.
///
/// A summary that comes late says nothing of this: a later one has been heard.
pub(super) async fn pause_change_in_txn(
    connection: &mut SqliteConnection,
    summary: &Message,
) -> Result<Option<bool>, StoreError> {
    let Some(guard) = &summary.guard else {
        return Ok(None);
    };
    let other: Option<(i64, bool)> = sqlx::query_as(
        "SELECT sequence, guard_paused FROM summaries WHERE device = $1 AND guard_paused IS NOT NULL \
         AND NOT (sequence = $2 AND boot = $3) ORDER BY sequence DESC LIMIT 1",
    )
    .bind(summary.device.as_str())
    .bind(int(summary.sequence.0))
    .bind(&summary.boot.0[..])
    .fetch_optional(connection)
    .await
    .task("compare a summary with the one before it")?;
    let late = other.is_some_and(|(sequence, _)| uint(sequence) > summary.sequence.0);
    let was = other.is_some_and(|(_, paused)| paused);
    Ok((!late && was != guard.paused).then_some(guard.paused))
}
