//! The registry: who the devices are, whether they live, what they report.
//!
//! A device is alive when the run that was born last has spoken since its death, if any. What the
//! broker kept (retained) tells what a device is, not that it lives: the death of its run may have
//! been heard before.

use std::collections::BTreeMap;

use offramp_proto::{Birth, BootId, Death, DeviceId, Digest, Reported};
use serde::{Deserialize, Serialize};

use super::many::parts;
use super::quarantine::{Quarantine, returned_in_txn};
use super::sql::{Builder, FromRow, Row, Transaction, either, query, query_as, query_scalar};
use super::{Arrival, Labels, Outcome, Store, StoreError, Task as _, int, uint};

/// A device as it is known.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Device {
    pub(crate) device: String,
    pub(crate) first_seen: u64,
    /// Zero when nothing came from it but what the broker had kept.
    pub(crate) last_seen: u64,
    pub(crate) alive: bool,
    /// The run that was born last.
    pub(crate) boot: Option<BootId>,
    pub(crate) started_at: Option<u64>,
    pub(crate) agent: Option<String>,
    pub(crate) model: Option<Model>,
    pub(crate) capabilities: Vec<String>,
    pub(crate) reported: Option<ReportedState>,
    /// What people say of it.
    pub(crate) labels: Labels,
    /// Why it is kept apart, if it is.
    pub(crate) quarantine: Option<Quarantine>,
    /// When the newest of its certificates ends; none for a device that did not enrol.
    pub(crate) certificate_ends: Option<u64>,
}

/// The model that a device was born with.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Model {
    pub(crate) name: String,
    pub(crate) version: u64,
    pub(crate) digest: Option<Digest>,
    pub(crate) classes: Vec<String>,
    pub(crate) stage_macs: Vec<u64>,
}

/// What a device says of its desired state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReportedState {
    /// When it arrived here.
    pub(crate) at: u64,
    pub(crate) generation: u64,
    pub(crate) policy: String,
    pub(crate) version: u64,
    pub(crate) source: String,
    pub(crate) refused: Option<String>,
    /// Generation of what is refused; older agents do not tell.
    pub(crate) refused_generation: Option<u64>,
}

impl ReportedState {
    /// Whether the device refuses this generation, which was signed at that time.
    pub(crate) fn refuses(&self, generation: u64, issued_at: u64) -> bool {
        let speaks_of_it = match self.refused_generation {
            Some(refused) => refused == generation,
            // Older agents do not tell: a refusal from before it was signed speaks of another one.
            None => self.at >= issued_at,
        };
        self.refused.is_some() && speaks_of_it
    }
}

/// Totals of one run of an agent, over all its summaries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Run {
    pub(crate) summaries: u64,
    pub(crate) frames: u64,
    /// Frames that left before the last exit.
    pub(crate) early: u64,
    pub(crate) macs: u64,
    pub(crate) full_macs: u64,
    pub(crate) audits: u64,
    pub(crate) disagreements: u64,
}

/// Totals by device, then by boot.
pub(crate) type RunsByDevice = BTreeMap<String, BTreeMap<Vec<u8>, Run>>;

macro_rules! select_devices {
    ($rest:literal) => {
        concat!(
            "SELECT device, first_seen, last_seen, alive, boot, started_at, agent, model_name, model_version, \
             model_digest, classes, stage_macs, capabilities, reported_at, reported_generation, reported_policy, \
             reported_version, reported_source, reported_refused, reported_refused_generation, quarantined_at, \
             quarantine_reason, (SELECT expires_at FROM certificates WHERE certificates.device = devices.device) \
             AS certificate_ends FROM devices ",
            $rest
        )
    };
}

impl FromRow for Device {
    fn from_row(row: &Row) -> Result<Self, sqlx::Error> {
        let boot: Option<Vec<u8>> = row.try_get("boot")?;
        let model_name: Option<String> = row.try_get("model_name")?;
        let model = match model_name {
            None => None,
            Some(name) => Some(Model {
                name,
                version: uint(row.try_get("model_version")?),
                digest: digest(row.try_get("model_digest")?),
                classes: list(row.try_get("classes")?),
                stage_macs: list(row.try_get("stage_macs")?),
            }),
        };
        let reported_policy: Option<String> = row.try_get("reported_policy")?;
        let reported = match reported_policy {
            None => None,
            Some(policy) => Some(ReportedState {
                at: uint(row.try_get("reported_at")?),
                generation: uint(row.try_get("reported_generation")?),
                policy,
                version: uint(row.try_get("reported_version")?),
                source: row.try_get("reported_source")?,
                refused: row.try_get("reported_refused")?,
                refused_generation: row.try_get::<Option<i64>>("reported_refused_generation")?.map(uint),
            }),
        };
        Ok(Self {
            device: row.try_get("device")?,
            first_seen: uint(row.try_get("first_seen")?),
            last_seen: uint(row.try_get("last_seen")?),
            alive: row.try_get("alive")?,
            boot: boot.and_then(|b| b.try_into().ok()).map(BootId),
            started_at: row.try_get::<Option<i64>>("started_at")?.map(uint),
            agent: row.try_get("agent")?,
            model,
            capabilities: list(row.try_get("capabilities")?),
            reported,
            labels: Labels::new(),
            quarantine: match row.try_get::<Option<i64>>("quarantined_at")? {
                Some(at) => Some(Quarantine {
                    at: uint(at),
                    reason: row.try_get::<Option<String>>("quarantine_reason")?.unwrap_or_default(),
                }),
                None => None,
            },
            certificate_ends: row.try_get::<Option<i64>>("certificate_ends")?.map(uint),
        })
    }
}

/// Reads a list that was written by [`json`]; a column that is null or damaged is an empty list.
pub(super) fn list<T: serde::de::DeserializeOwned>(column: Option<String>) -> Vec<T> {
    column
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default()
}

/// A list or map as SQLite keeps it.
pub(super) fn json<T: serde::Serialize + ?Sized>(value: &T) -> String {
    serde_json::to_string(value).expect("lists and maps with texts for keys always have a JSON form")
}

pub(super) fn digest(column: Option<Vec<u8>>) -> Option<Digest> {
    column.and_then(|bytes| bytes.try_into().ok()).map(Digest)
}

impl Store {
    /// One device.
    pub(crate) async fn device_fetch(&self, device: &str) -> Result<Option<Device>, StoreError> {
        Ok(self.device_list(&[device]).await?.pop())
    }

    /// Devices by their names, in the order of these.
    pub(crate) async fn device_list(&self, devices: &[&str]) -> Result<Vec<Device>, StoreError> {
        let mut query = Builder::new(&self.readers, select_devices!("WHERE device IN "));
        query.push_list(devices.iter().copied()).push(" ORDER BY device");
        let mut found: Vec<Device> = query
            .build()
            .rows()
            .fetch_all(&self.readers)
            .await
            .task("read devices")?;
        let mut labels = self.label_list(devices).await?;
        for device in &mut found {
            device.labels = labels.remove(&device.device).unwrap_or_default();
        }
        Ok(found)
    }

    /// Whether the database answers.
    pub(crate) async fn ping(&self) -> Result<(), StoreError> {
        let _: i64 = query_scalar("SELECT count(*) FROM meta")
            .fetch_one(&self.readers)
            .await
            .task("answer")?;
        Ok(())
    }

    /// Totals of every run of some devices, by device and boot.
    pub(crate) async fn run_list(&self, devices: &[&str]) -> Result<RunsByDevice, StoreError> {
        let mut query = Builder::new(
            &self.readers,
            "SELECT device, boot, summaries, frames, early, macs, full_macs, audits, disagreements FROM runs \
             WHERE device IN ",
        );
        query.push_list(devices.iter().copied());
        let rows = query.build().fetch_all(&self.readers).await.task("list runs")?;
        let mut runs = RunsByDevice::new();
        for row in rows {
            let read = || Ok((row.try_get("device")?, row.try_get("boot")?, Run::from_row(&row)?));
            let (device, boot, run): (String, Vec<u8>, Run) = read().task("list runs")?;
            runs.entry(device).or_default().insert(boot, run);
        }
        Ok(runs)
    }
}

/// Devices that cannot be given anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// They have never been heard of.
    Unknown(Vec<DeviceId>),
    /// They are kept apart.
    Quarantined(Vec<DeviceId>),
}

/// The devices that something is meant for, in the order of their names: these, or all that are known and not kept
/// apart. An error names those of them that cannot have it.
pub(super) async fn target_in_txn(
    connection: &mut Transaction,
    named: Option<Vec<DeviceId>>,
) -> Result<Result<Vec<DeviceId>, Unfit>, StoreError> {
    let known: Vec<(String, bool)> = query_as("SELECT device, quarantined_at IS NOT NULL FROM devices ORDER BY device")
        .fetch_all(connection)
        .await
        .task("list devices")?;
    let Some(mut devices) = named else {
        return Ok(Ok(known
            .into_iter()
            .filter(|(_, quarantined)| !quarantined)
            .filter_map(|(name, _)| DeviceId::new(name).ok())
            .collect()));
    };
    devices.sort();
    devices.dedup();
    let found = |d: &DeviceId| {
        let place = known.binary_search_by(|(name, _)| name.as_str().cmp(d.as_str()));
        place.ok().map(|place| known[place].1)
    };
    let of = |state: Option<bool>| {
        devices
            .iter()
            .filter(|d| found(d) == state)
            .cloned()
            .collect::<Vec<_>>()
    };
    let (unknown, quarantined) = (of(None), of(Some(true)));
    Ok(if !unknown.is_empty() {
        Err(Unfit::Unknown(unknown))
    } else if !quarantined.is_empty() {
        Err(Unfit::Quarantined(quarantined))
    } else {
        Ok(devices)
    })
}

/// Makes devices known, and notes when each was first and last seen.
pub(super) async fn touch_in_txn(
    connection: &mut Transaction,
    seen: &[(&DeviceId, (u64, u64))],
) -> Result<(), StoreError> {
    for part in parts(seen) {
        let mut query = Builder::new(
            connection,
            "INSERT INTO devices (device, first_seen, last_seen, alive) ",
        );
        query.push_values(part, |row, (device, (first, last))| {
            row.push_bind(device.as_str());
            row.push_bind(int(*first));
            row.push_bind(int(*last));
            row.push("FALSE");
        });
        query.push(
            " ON CONFLICT (device) DO UPDATE SET last_seen = excluded.last_seen WHERE excluded.last_seen > devices.last_seen",
        );
        let query = query.build();
        query
            .execute(&mut *connection)
            .await
            .task("note when devices were last seen")?;
    }
    Ok(())
}

/// Keeps a birth, unless it is that of a run which a later one has overtaken.
pub(super) async fn birth_in_txn(
    connection: &mut Transaction,
    birth: &Birth,
    arrival: &Arrival,
) -> Result<Outcome, StoreError> {
    // How often the run has told of its birth, where a later run was born since.
    let overtaken: Option<i64> = query_scalar(
        "SELECT r.told FROM devices d JOIN runs r ON r.device = d.device AND r.boot = $2 \
         WHERE d.device = $1 AND d.boot <> $2 AND d.started_at > $3 AND r.born",
    )
    .bind(birth.device.as_str())
    .bind(&birth.boot.0[..])
    .bind(int(birth.started_at))
    .fetch_optional(&mut *connection)
    .await
    .task("compare a birth with the last one")?;
    // Of several controllers each hears it, and a broker may send it twice.
    if overtaken.is_some_and(|told| uint(told) < birth.told) {
        returned_in_txn(connection, &birth.device, arrival.at).await?;
    }
    if overtaken.is_none() {
        other_model_in_txn(connection, birth).await?;
    }
    either(
        "INSERT INTO runs (device, boot, born, told, noted_at) VALUES ($1, $2, TRUE, $3, $4) \
         ON CONFLICT (device, boot) DO UPDATE SET born = TRUE, told = max(runs.told, excluded.told), \
         noted_at = excluded.noted_at",
        "INSERT INTO runs (device, boot, born, told, noted_at) VALUES ($1, $2, TRUE, $3, $4) \
         ON CONFLICT (device, boot) DO UPDATE SET born = TRUE, told = greatest(runs.told, excluded.told), \
         noted_at = excluded.noted_at",
    )
    .bind(birth.device.as_str())
    .bind(&birth.boot.0[..])
    .bind(int(birth.told))
    .bind(int(arrival.at))
    .execute(&mut *connection)
    .await
    .task("note a run")?;
    if overtaken.is_some() {
        return Ok(Outcome::Repeated);
    }
    query(
        "UPDATE devices SET boot = $2, started_at = $3, agent = $4, model_name = $5, model_version = $6, \
         model_digest = $7, classes = $8, stage_macs = $9, capabilities = $10, birth_raw = $11, \
         alive = NOT (SELECT died FROM runs WHERE device = $1 AND boot = $2) WHERE device = $1",
    )
    .bind(birth.device.as_str())
    .bind(&birth.boot.0[..])
    .bind(int(birth.started_at))
    .bind(&birth.agent)
    .bind(&birth.model.name)
    .bind(int(birth.model.version))
    .bind(&birth.model.digest.0[..])
    .bind(json(&birth.model.classes))
    .bind(json(&birth.model.stage_macs))
    .bind(json(&birth.capabilities))
    .bind(&arrival.raw)
    .execute(connection)
    .await
    .task("keep a birth")?;
    Ok(Outcome::Stored)
}

/// Where a run goes on with another model, its totals begin anew: what was counted so far becomes a run of its own, so
/// that it still counts among all, and says nothing of the new model.
async fn other_model_in_txn(connection: &mut Transaction, birth: &Birth) -> Result<(), StoreError> {
    let task = "note another model";
    let before: Option<Option<Vec<u8>>> =
        query_scalar("SELECT model_digest FROM devices WHERE device = $1 AND boot = $2")
            .bind(birth.device.as_str())
            .bind(&birth.boot.0[..])
            .fetch_optional(&mut *connection)
            .await
            .task(task)?;
    let Some(before) = digest(before.flatten()).filter(|before| *before != birth.model.digest) else {
        return Ok(());
    };
    // As often as it goes to and fro, each part has a name of its own.
    let runs: i64 = query_scalar("SELECT count(*) FROM runs WHERE device = $1")
        .bind(birth.device.as_str())
        .fetch_one(&mut *connection)
        .await
        .task(task)?;
    let mut part = birth.boot.0.to_vec();
    part.extend(before.0);
    part.extend(runs.to_le_bytes());
    query("UPDATE runs SET boot = $3, died = TRUE WHERE device = $1 AND boot = $2")
        .bind(birth.device.as_str())
        .bind(&birth.boot.0[..])
        .bind(&Digest::of(&part).0[..16])
        .execute(connection)
        .await
        .task(task)?;
    Ok(())
}

/// Notes the death of a run. The device is dead only if that run was the last one born.
pub(super) async fn death_in_txn(connection: &mut Transaction, death: &Death) -> Result<Outcome, StoreError> {
    let task = "note a death";
    note_run_in_txn(connection, &death.device, death.boot).await?;
    query("UPDATE runs SET died = TRUE WHERE device = $1 AND boot = $2")
        .bind(death.device.as_str())
        .bind(&death.boot.0[..])
        .execute(&mut *connection)
        .await
        .task(task)?;
    let changed = query("UPDATE devices SET alive = FALSE WHERE device = $1 AND boot = $2 AND alive")
        .bind(death.device.as_str())
        .bind(&death.boot.0[..])
        .execute(connection)
        .await
        .task(task)?;
    Ok(outcome(changed))
}

/// Notes that runs speak. A device lives if no other run was born after the one that does.
pub(super) async fn alive_in_txn(
    connection: &mut Transaction,
    speaking: &[(&DeviceId, BootId)],
) -> Result<(), StoreError> {
    let task = "note that devices live";
    for part in parts(speaking) {
        // Most are known to live, and nothing is to be written.
        let mut spoke = Builder::new(connection, "WITH spoke (device, boot) AS (");
        spoke.push_values(part, |row, (device, boot)| {
            row.push_bind(device.as_str());
            row.push_bind(&boot.0[..]);
        });
        spoke.push(
            ") SELECT s.device, s.boot FROM spoke s LEFT JOIN runs r ON r.device = s.device AND r.boot = s.boot \
             LEFT JOIN devices d ON d.device = s.device \
             WHERE r.boot IS NULL OR r.died OR NOT d.alive AND (d.boot = s.boot OR d.boot IS NULL)",
        );
        let changed: Vec<(String, Vec<u8>)> = spoke.build().rows().fetch_all(&mut *connection).await.task(task)?;
        for (device, boot) in changed {
            query(
                "INSERT INTO runs (device, boot) VALUES ($1, $2) ON CONFLICT (device, boot) DO UPDATE SET died = FALSE",
            )
            .bind(&device)
            .bind(&boot)
            .execute(&mut *connection)
            .await
            .task(task)?;
            query("UPDATE devices SET alive = TRUE WHERE device = $1 AND (boot = $2 OR boot IS NULL) AND NOT alive")
                .bind(&device)
                .bind(&boot)
                .execute(&mut *connection)
                .await
                .task(task)?;
        }
    }
    Ok(())
}

/// Moves a device's desired state behind all others, if it reports an older one.
macro_rules! publish_again {
    ($row:literal) => {
        concat!(
            "UPDATE desired SET rowid = ",
            $row,
            " WHERE device = $1 AND generation > $2 \
             AND generation = (SELECT max(generation) FROM desired WHERE device = $1)"
        )
    };
}

/// Keeps what a device reports of its desired state.
pub(super) async fn reported_in_txn(
    connection: &mut Transaction,
    reported: &Reported,
    arrival: &Arrival,
) -> Result<Outcome, StoreError> {
    // What the broker had kept is not new: the time of its first arrival stays.
    query(
        "UPDATE devices SET reported_at = CASE WHEN reported_raw = $8 THEN reported_at ELSE $2 END, \
         reported_generation = $3, reported_policy = $4, reported_version = $5, reported_source = $6, \
         reported_refused = $7, reported_raw = $8, reported_refused_generation = $9, trusts = $10 \
         WHERE device = $1",
    )
    .bind(reported.device.as_str())
    .bind(int(arrival.at))
    .bind(int(reported.generation.0))
    .bind(&reported.policy.name)
    .bind(int(reported.policy.version))
    .bind(source(reported.policy.source))
    .bind(&reported.refused)
    .bind(&arrival.raw)
    .bind(reported.refused_generation.map(|generation| int(generation.0)))
    .bind((!reported.trusts.is_empty()).then(|| {
        let keys: Vec<String> = reported.trusts.iter().map(|key| format!("{key:?}")).collect();
        json(&keys)
    }))
    .execute(&mut *connection)
    .await
    .task("keep a reported state")?;
    // It may have got an older one: from a controller that was stopped in the middle of publishing, and went on. What
    // comes behind is published again. One that refuses something knows it, and would refuse it for ever.
    if !arrival.retained && reported.refused.is_none() {
        either(
            publish_again!("(SELECT max(rowid) + 1 FROM desired)"),
            publish_again!("DEFAULT"),
        )
        .bind(reported.device.as_str())
        .bind(int(reported.generation.0))
        .execute(connection)
        .await
        .task("see whether a device is behind")?;
    }
    Ok(Outcome::Stored)
}

/// The rung of the ladder as it is written on the wire.
pub(super) fn source(source: offramp_proto::PolicySource) -> &'static str {
    match source {
        offramp_proto::PolicySource::Desired => "desired",
        offramp_proto::PolicySource::LastGood => "last-good",
        offramp_proto::PolicySource::BuiltIn => "built-in",
    }
}

async fn note_run_in_txn(connection: &mut Transaction, device: &DeviceId, boot: BootId) -> Result<(), StoreError> {
    query("INSERT INTO runs (device, boot) VALUES ($1, $2) ON CONFLICT DO NOTHING")
        .bind(device.as_str())
        .bind(&boot.0[..])
        .execute(connection)
        .await
        .task("note a run")?;
    Ok(())
}

pub(super) async fn run_in_txn(connection: &mut Transaction, device: &str, boot: &[u8]) -> Result<Run, StoreError> {
    let row = query(
        "SELECT summaries, frames, early, macs, full_macs, audits, disagreements FROM runs \
         WHERE device = $1 AND boot = $2",
    )
    .bind(device)
    .bind(boot)
    .fetch_optional(connection)
    .await
    .and_then(|row| row.map(|row| Run::from_row(&row)).transpose())
    .task("read the totals of a run")?;
    Ok(row.unwrap_or_default())
}

impl FromRow for Run {
    fn from_row(row: &Row) -> Result<Self, sqlx::Error> {
        Ok(Self {
            summaries: uint(row.try_get("summaries")?),
            frames: uint(row.try_get("frames")?),
            early: uint(row.try_get("early")?),
            macs: uint(row.try_get("macs")?),
            full_macs: uint(row.try_get("full_macs")?),
            audits: uint(row.try_get("audits")?),
            disagreements: uint(row.try_get("disagreements")?),
        })
    }
}

/// Whether a statement changed a row.
pub(super) fn outcome(rows: u64) -> Outcome {
    if rows == 0 { Outcome::Repeated } else { Outcome::Stored }
}
