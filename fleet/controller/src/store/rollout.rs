//! Rollouts and their devices.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use offramp_proto::{BootId, DesiredPolicy, DeviceId, Digest, Parameter};

use super::artifact::desired_model_in_txn;
use super::audit::{ITSELF, log_in_txn};
use super::desired::{ArtifactKind, Named, issue_in_txn, latest_in_txn, read_kept};
use super::device::{self, Unfit, json, list};
use super::keys::Signer;
use super::many::parts;
use super::peer::on_duty_in_txn;
use super::sql::{Builder, FromRow, Row, Transaction, either, query, query_as, query_scalar};
use super::summary::control;
use super::{Run, Store, StoreError, Task as _, int, uint};
use crate::forecast::Forecast;
use crate::key::Keyring;
use crate::named::{name, named};
use crate::overview::{RECENT, Recent, Saving};
use crate::rollout::{Change, Gauge, Loss, Member, MemberState, Observed, Plan, Rollout, State, Sums, awaited};

/// A rollout that somebody wants.
#[derive(Clone, Debug)]
pub(crate) struct NewRollout {
    pub(crate) kind: ArtifactKind,
    pub(crate) name: String,
    pub(crate) version: u64,
    pub(crate) parameters: BTreeMap<String, Parameter>,
    /// The devices that get it; none for every device that is known.
    pub(crate) devices: Option<Vec<DeviceId>>,
    pub(crate) plan: Plan,
    /// What a replay foresees, where there was one.
    pub(crate) forecast: Option<Forecast>,
    pub(crate) who: String,
    pub(crate) now: u64,
}

/// What became of it. Nothing has changed but where it was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Started {
    Rollout(u64),
    /// What is to be rolled out is not in the library.
    UnknownArtifact,
    Unfit(Unfit),
    /// There is no device that could get it.
    NoDevice,
    /// Another rollout has a device of it in hand.
    Busy {
        device: String,
        rollout: u64,
    },
}

/// What somebody tells a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, utoipa::ToSchema)]
#[schema(rename_all = "kebab-case")]
pub(crate) enum Act {
    Pause,
    Resume,
    Abort,
    RollBack,
}

/// What became of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Commanded {
    Done,
    Unknown,
    /// Not while it is in this state.
    NotNow(State),
}

/// A rollout as it is shown.
#[derive(Clone, Debug)]
pub(crate) struct RolloutView {
    pub(crate) id: u64,
    /// Name of the policy or model.
    pub(crate) name: String,
    pub(crate) version: u64,
    pub(crate) parameters: BTreeMap<String, Parameter>,
    pub(crate) rollout: Rollout,
    pub(crate) reason: Option<String>,
    pub(crate) gauges: Vec<Gauge>,
    /// What was foreseen when it was started.
    pub(crate) forecast: Option<Forecast>,
    pub(crate) first_row: u64,
    pub(crate) created_at: u64,
    pub(crate) created_by: String,
    pub(crate) changed_at: u64,
    /// Devices in each state.
    pub(crate) devices: BTreeMap<MemberState, u64>,
}

/// Rows of evidence that are read at once.
const MOST_ROWS: u32 = 20_000;

impl RolloutView {
    /// Devices in a state.
    pub(crate) fn count(&self, state: MemberState) -> u64 {
        self.devices.get(&state).copied().unwrap_or(0)
    }

    /// Devices that must still be judged before more are ordered; none while some are being watched.
    pub(crate) fn awaited(&self) -> u64 {
        use MemberState::{Failed, InForce, Ordered, Proven};
        if self.rollout.state != State::Running || self.count(InForce) > 0 {
            return 0;
        }
        let judged = self.count(Proven) + self.count(Failed);
        awaited(self.count(Ordered) + judged, judged)
    }

    /// Devices that are its own: those that were given something else left out.
    pub(crate) fn own(&self) -> u64 {
        self.devices.values().sum::<u64>() - self.count(MemberState::Superseded)
    }
}

/// What windows say of a rollout's devices.
#[derive(Debug)]
pub(crate) struct Found {
    /// Each window with its device.
    pub(crate) windows: Vec<(String, Sums)>,
    /// The row to go on from.
    pub(crate) row: u64,
    /// Whether there may be more behind it.
    pub(crate) more: bool,
}

impl Act {
    /// As a path of the API and the log have it.
    pub(crate) const ALL: [(Self, &'static str); 4] = [
        (Self::Pause, "pause"),
        (Self::Resume, "resume"),
        (Self::Abort, "abort"),
        (Self::RollBack, "roll-back"),
    ];

    /// The state that it leads to; none where it makes no sense.
    fn from(self, state: State) -> Option<State> {
        match (self, state) {
            (Self::Pause, State::Running) => Some(State::Paused),
            (Self::Resume, State::Paused) => Some(State::Running),
            (Self::Abort, State::Running | State::Paused | State::RollingBack) => Some(State::Aborted),
            (Self::RollBack, State::Running | State::Paused | State::Stopped | State::Aborted | State::Done) => {
                Some(State::RollingBack)
            }
            _ => None,
        }
    }
}

impl FromRow for RolloutView {
    fn from_row(row: &Row) -> Result<Self, sqlx::Error> {
        let state: String = row.try_get("state")?;
        let damaged = |what: &str| sqlx::Error::Decode(format!("a rollout's {what} cannot be read").into());
        let read = |column: &str| row.try_get::<String>(column);
        Ok(Self {
            id: uint(row.try_get("id")?),
            name: row.try_get("policy")?,
            version: uint(row.try_get("version")?),
            parameters: serde_json::from_str(&read("parameters")?).map_err(|_| damaged("parameters"))?,
            rollout: Rollout {
                kind: named(&ArtifactKind::ALL, &read("kind")?).ok_or_else(|| damaged("kind"))?,
                plan: serde_json::from_str(&read("plan")?).map_err(|_| damaged("plan"))?,
                state: named(&State::ALL, &state).ok_or_else(|| damaged("state"))?,
                wave: row
                    .try_get::<i64>("wave")
                    .map(|wave| u32::try_from(wave).unwrap_or(0))?,
                wave_since: uint(row.try_get("wave_since")?),
            },
            reason: row.try_get("reason")?,
            gauges: list(row.try_get("gauges")?),
            forecast: row
                .try_get::<Option<String>>("forecast")?
                .and_then(|text| serde_json::from_str(&text).ok()),
            first_row: uint(row.try_get("first_row")?),
            created_at: uint(row.try_get("created_at")?),
            created_by: row.try_get("created_by")?,
            changed_at: uint(row.try_get("changed_at")?),
            devices: BTreeMap::new(),
        })
    }
}

impl FromRow for Member {
    fn from_row(row: &Row) -> Result<Self, sqlx::Error> {
        let state: String = row.try_get("state")?;
        let number = |column: &str| row.try_get::<Option<i64>>(column).map(|n| n.map_or(0, uint));
        let boot = |column: &str| {
            let bytes: Option<Vec<u8>> = row.try_get(column)?;
            Ok::<_, sqlx::Error>(bytes.and_then(|b| b.try_into().ok()).map(BootId))
        };
        let (generation, ordered_at) = (number("generation")?, number("ordered_at")?);
        let refused: Option<String> = row.try_get("reported_refused")?;
        let refused_generation: Option<i64> = row.try_get("reported_refused_generation")?;
        // An older agent does not tell what it refuses: a refusal after the order speaks of it.
        let of = match refused_generation {
            Some(refused) => uint(refused),
            None if number("reported_at")? >= ordered_at => generation,
            None => 0,
        };
        let quarantine: Option<String> = row.try_get("quarantine_reason")?;
        let refused = match quarantine {
            Some(why) => Some((generation, format!("it is in quarantine: {why}"))),
            None => refused.map(|why| (of, why)),
        };
        let source: Option<String> = row.try_get("reported_source")?;
        let before: Option<String> = row.try_get("before")?;
        Ok(Self {
            device: row.try_get("device")?,
            state: named(&MemberState::ALL, &state).unwrap_or(MemberState::Superseded),
            wave: row
                .try_get::<Option<i64>>("wave")?
                .map(|wave| u32::try_from(wave).unwrap_or(0)),
            why: row.try_get("why")?,
            generation,
            ordered_at,
            was_alive: row.try_get("was_alive")?,
            in_force_at: number("in_force_at")?,
            boot: boot("boot")?,
            restarts: number("restarts")?,
            before: before
                .and_then(|text| serde_json::from_str(&text).ok())
                .unwrap_or_default(),
            now: Observed {
                alive: row.try_get("alive")?,
                boot: boot("now_boot")?,
                named_since: number("named_since")?,
                reported: number("reported_generation")?,
                by_desired: source.as_deref() == Some("desired"),
                refused,
                after: Sums::default(),
            },
        })
    }
}

/// What a window says, from columns of its summary.
fn sums(row: &Row) -> Result<Sums, sqlx::Error> {
    let number = |column: &str| row.try_get(column).map(uint);
    let exits: Vec<u64> = list(row.try_get("exits")?);
    let audits: Option<i64> = row.try_get("guard_audits")?;
    // What is outside its range is nonsense that no gate may stumble over.
    let share = |column: &str| {
        row.try_get::<Option<f64>>(column)
            .map(|s| s.map(|s| s.clamp(-1.0, 1.0)))
    };
    let (loss, bound) = (share("guard_loss")?, share("guard_loss_bound")?);
    let (frames, macs) = (number("frames")?, number("macs")?);
    let saving = control(row)?.and_then(|control| Saving::of(&control, &Recent::default()));
    Ok(Sums {
        run: Run {
            summaries: 1,
            frames,
            early: frames.saturating_sub(exits.last().copied().unwrap_or(0)),
            macs,
            full_macs: number("full_macs")?,
            audits: number("audits")?,
            disagreements: number("disagreements")?,
        },
        saved: saving.map_or(0, |saving| saving.of_macs(macs)),
        rollbacks: number("rollbacks")?,
        faults: number("faults")?,
        exits,
        loss: loss.filter(|_| audits.unwrap_or(0) > 0).map(|estimate| Loss {
            estimate,
            doubt: bound.map_or(0.0, |bound| (bound - estimate).max(0.0)),
        }),
    })
}

macro_rules! sum_columns {
    () => {
        "s.frames, s.exits, s.macs, s.full_macs, s.audits, s.disagreements, s.rollbacks, s.faults, s.guard_loss, \
         s.guard_loss_bound, s.guard_audits, s.control"
    };
}

macro_rules! select_rollouts {
    ($rest:literal) => {
        concat!(
            "SELECT id, kind, policy, version, parameters, plan, state, reason, wave, wave_since, gauges, forecast, first_row, \
             created_at, created_by, changed_at FROM rollouts ",
            $rest
        )
    };
}

macro_rules! select_members {
    ($rest:literal) => {
        concat!(
            "SELECT r.device, r.state, r.wave, r.why, r.generation, r.ordered_at, r.was_alive, r.in_force_at, r.boot, \
             r.restarts, r.before, d.alive, d.boot AS now_boot, d.reported_at, d.reported_generation, \
             d.reported_source, d.reported_refused, d.reported_refused_generation, d.quarantine_reason, \
             (SELECT CASE WHEN (SELECT kind FROM rollouts WHERE id = $1) = 'model' \
             THEN coalesce(model_since, generation) ELSE coalesce(policy_since, generation) END \
             FROM desired WHERE device = r.device ORDER BY generation DESC LIMIT 1) AS named_since \
             FROM rollout_devices r JOIN devices d ON d.device = r.device WHERE r.rollout = $1 ",
            $rest
        )
    };
}

impl Store {
    /// The rollouts that there is something left to do for.
    pub(crate) async fn rollout_active(&self) -> Result<Vec<RolloutView>, StoreError> {
        query_as(select_rollouts!(
            "WHERE state IN ('running', 'paused', 'rolling-back') ORDER BY id"
        ))
        .fetch_all(&self.readers)
        .await
        .task("list rollouts")
    }

    /// The rollouts, the newest first, with their devices counted.
    pub(crate) async fn rollout_list(&self, limit: u32) -> Result<Vec<RolloutView>, StoreError> {
        let mut rollouts: Vec<RolloutView> = query_as(select_rollouts!("ORDER BY id DESC LIMIT $1"))
            .bind(limit)
            .fetch_all(&self.readers)
            .await
            .task("list rollouts")?;
        if let (Some(newest), Some(oldest)) = (rollouts.first(), rollouts.last()) {
            let mut counts = self.count_members(oldest.id, newest.id).await?;
            for rollout in &mut rollouts {
                rollout.devices = counts.remove(&rollout.id).unwrap_or_default();
            }
        }
        Ok(rollouts)
    }

    /// One rollout, with its devices counted.
    pub(crate) async fn rollout_fetch(&self, id: u64) -> Result<Option<RolloutView>, StoreError> {
        let Some(mut rollout) = self.rollout_read(id).await? else {
            return Ok(None);
        };
        rollout.devices = self.count_members(id, id).await?.remove(&id).unwrap_or_default();
        Ok(Some(rollout))
    }

    /// One rollout; its devices are not counted.
    pub(crate) async fn rollout_read(&self, id: u64) -> Result<Option<RolloutView>, StoreError> {
        query_as(select_rollouts!("WHERE id = $1"))
            .bind(int(id))
            .fetch_optional(&self.readers)
            .await
            .task("read a rollout")
    }

    /// Devices in each state, of each rollout from one to another.
    async fn count_members(
        &self,
        first: u64,
        last: u64,
    ) -> Result<BTreeMap<u64, BTreeMap<MemberState, u64>>, StoreError> {
        let rows: Vec<(i64, String, i64)> = query_as(
            "SELECT rollout, state, count(*) FROM rollout_devices WHERE rollout BETWEEN $1 AND $2 \
             GROUP BY rollout, state",
        )
        .bind(int(first))
        .bind(int(last))
        .fetch_all(&self.readers)
        .await
        .task("count the devices of rollouts")?;
        let mut counts = BTreeMap::<u64, BTreeMap<MemberState, u64>>::new();
        for (rollout, state, count) in rows {
            if let Some(state) = named(&MemberState::ALL, &state) {
                counts.entry(uint(rollout)).or_default().insert(state, uint(count));
            }
        }
        Ok(counts)
    }

    /// The devices of a rollout, with what is known of them but for the evidence.
    pub(crate) async fn rollout_members(&self, rollout: u64) -> Result<Vec<Member>, StoreError> {
        query_as(select_members!("ORDER BY r.device"))
            .bind(int(rollout))
            .fetch_all(&self.readers)
            .await
            .task("list the devices of a rollout")
    }

    /// What the windows behind a row say of the devices of a rollout that have its policy, as much as is read at once.
    pub(crate) async fn rollout_evidence(&self, rollout: u64, after: u64) -> Result<Found, StoreError> {
        let task = "read the evidence of a rollout";
        // One transaction, so that no row comes in between.
        let mut snapshot = self.readers.snapshot().await.task(task)?;
        // The rows are looked at from one number to another: what else there is of a device would be far more.
        let (end, last): (Option<i64>, Option<i64>) = query_as(
            "SELECT (SELECT max(rowid) FROM (SELECT rowid FROM summaries WHERE rowid > $1 ORDER BY rowid LIMIT $2) AS next), \
             (SELECT max(rowid) FROM summaries)",
        )
        .bind(int(after))
        .bind(MOST_ROWS)
        .fetch_one(&mut snapshot)
        .await
        .task(task)?;
        let Some(end) = end else {
            return Ok(Found {
                windows: Vec::new(),
                row: after,
                more: false,
            });
        };
        // Both databases would begin with the devices, if they were let.
        let rows = either(
            concat!(
                "SELECT s.device, ",
                sum_columns!(),
                " FROM summaries s CROSS JOIN rollout_devices r ON r.rollout = $1 AND r.device = s.device \
                 AND s.generation >= r.generation WHERE s.rowid > $2 AND s.rowid <= $3 ORDER BY s.rowid"
            ),
            concat!(
                "WITH s AS MATERIALIZED (SELECT rowid, device, generation, ",
                sum_columns!(),
                " FROM summaries s WHERE rowid > $2 AND rowid <= $3) SELECT s.device, ",
                sum_columns!(),
                " FROM s JOIN rollout_devices r ON r.rollout = $1 AND r.device = s.device \
                 AND s.generation >= r.generation ORDER BY s.rowid"
            ),
        )
        .bind(int(rollout))
        .bind(int(after))
        .bind(end)
        .fetch_all(&mut snapshot)
        .await
        .task(task)?;
        let windows = rows.iter().map(|row| Ok((row.try_get("device")?, sums(row)?)));
        Ok(Found {
            windows: windows.collect::<Result<_, _>>().task(task)?,
            row: uint(end),
            more: last.is_some_and(|last| last > end),
        })
    }

    /// Begins a rollout.
    pub(crate) async fn rollout_start(&self, wanted: NewRollout) -> Result<Started, StoreError> {
        self.write(move |connection| Box::pin(async move { start_in_txn(connection, wanted).await }))
            .await
    }

    /// Tells a rollout what to do.
    pub(crate) async fn rollout_command(
        &self,
        id: u64,
        act: Act,
        who: String,
        why: String,
        now: u64,
    ) -> Result<Commanded, StoreError> {
        self.write(move |connection| {
            Box::pin(async move {
                let Some(state) = state_in_txn(connection, id).await? else {
                    return Ok(Commanded::Unknown);
                };
                let Some(next) = act.from(state) else {
                    return Ok(Commanded::NotNow(state));
                };
                enter_in_txn(connection, id, next, "", now).await?;
                let what = format!("rollout.{}", name(&Act::ALL, act));
                log_in_txn(connection, now, &who, &what, &subject(id), &why).await?;
                Ok(Commanded::Done)
            })
        })
        .await
    }

    /// Does what a step said, all or nothing; nothing where the rollout is not any more in the state that the step saw.
    /// Gives whether desired states have changed.
    pub(crate) async fn rollout_apply(
        &self,
        key: Arc<Keyring>,
        id: u64,
        seen: State,
        changes: Vec<Change>,
        gauges: Vec<Gauge>,
        now: u64,
    ) -> Result<bool, StoreError> {
        let run = self.run;
        self.write(move |connection| {
            Box::pin(async move {
                // Another controller may have taken the rollout up meanwhile, and seen more.
                if !on_duty_in_txn(connection, run).await? || state_in_txn(connection, id).await? != Some(seen) {
                    return Ok(false);
                }
                query("UPDATE rollouts SET gauges = $2 WHERE id = $1")
                    .bind(int(id))
                    .bind(json(&gauges))
                    .execute(&mut *connection)
                    .await
                    .task("keep what the gates measured")?;
                apply_in_txn(connection, &key, id, changes, now).await
            })
        })
        .await
    }
}

async fn state_in_txn(connection: &mut Transaction, id: u64) -> Result<Option<State>, StoreError> {
    let state: Option<String> = query_scalar("SELECT state FROM rollouts WHERE id = $1")
        .bind(int(id))
        .fetch_optional(connection)
        .await
        .task("read the state of a rollout")?;
    Ok(state.and_then(|state| named(&State::ALL, &state)))
}

async fn start_in_txn(connection: &mut Transaction, wanted: NewRollout) -> Result<Started, StoreError> {
    let task = "start a rollout";
    let known: bool = query_scalar(match wanted.kind {
        ArtifactKind::Policy => "SELECT EXISTS (SELECT 1 FROM policies WHERE name = $1 AND version = $2)",
        ArtifactKind::Model => "SELECT EXISTS (SELECT 1 FROM models WHERE name = $1 AND version = $2)",
    })
    .bind(&wanted.name)
    .bind(int(wanted.version))
    .fetch_one(&mut *connection)
    .await
    .task(task)?;
    if !known {
        return Ok(Started::UnknownArtifact);
    }
    let devices = match device::target_in_txn(connection, wanted.devices).await? {
        Ok(devices) => devices,
        Err(unfit) => return Ok(Started::Unfit(unfit)),
    };
    if devices.is_empty() {
        return Ok(Started::NoDevice);
    }
    let held: Vec<(String, i64)> = query_as(
        "SELECT r.device, r.rollout FROM rollout_devices r JOIN rollouts o ON o.id = r.rollout \
         WHERE o.state IN ('running', 'paused', 'rolling-back') AND r.state <> 'superseded'",
    )
    .fetch_all(&mut *connection)
    .await
    .task(task)?;
    let held: HashMap<String, i64> = held.into_iter().collect();
    if let Some((device, rollout)) = devices.iter().find_map(|d| held.get_key_value(d.as_str())) {
        return Ok(Started::Busy {
            device: device.clone(),
            rollout: uint(*rollout),
        });
    }
    let id: i64 = query_scalar(
        "INSERT INTO rollouts (policy, version, parameters, plan, state, wave, wave_since, gauges, first_row, \
         created_at, created_by, changed_at, forecast, kind) VALUES ($1, $2, $3, $4, 'running', 0, $5, '[]', \
         coalesce((SELECT max(rowid) FROM summaries), 0), $5, $6, $5, $7, $8) RETURNING id",
    )
    .bind(&wanted.name)
    .bind(int(wanted.version))
    .bind(json(&wanted.parameters))
    .bind(json(&wanted.plan))
    .bind(int(wanted.now))
    .bind(&wanted.who)
    .bind(wanted.forecast.as_ref().map(json))
    .bind(name(&ArtifactKind::ALL, wanted.kind))
    .fetch_one(&mut *connection)
    .await
    .task(task)?;
    for part in parts(&devices) {
        let mut query = Builder::new(connection, "INSERT INTO rollout_devices (rollout, device, state) ");
        query.push_values(part, |row, device| {
            row.push_bind(id);
            row.push_bind(device.as_str());
            row.push("'waiting'");
        });
        query.build().execute(&mut *connection).await.task(task)?;
    }
    let id = uint(id);
    let detail = format!(
        "{} {} {} to {} devices, canary {}, factor {}",
        name(&ArtifactKind::ALL, wanted.kind),
        wanted.name,
        wanted.version,
        devices.len(),
        wanted.plan.canary,
        wanted.plan.factor
    );
    log_in_txn(
        connection,
        wanted.now,
        &wanted.who,
        "rollout.start",
        &subject(id),
        &detail,
    )
    .await?;
    Ok(Started::Rollout(id))
}

async fn apply_in_txn(
    connection: &mut Transaction,
    key: &Keyring,
    id: u64,
    changes: Vec<Change>,
    now: u64,
) -> Result<bool, StoreError> {
    let signer = Signer::of(connection, key).await?;
    let mut ware = None;
    let mut issued = 0_u64;
    for change in changes {
        match change {
            Change::Order { device, wave } => {
                let named = match &ware {
                    Some(named) => Named::clone(named),
                    None => ware.insert(named_in_txn(connection, id).await?).clone(),
                };
                order_in_txn(connection, &signer, id, &device, wave, named, now).await?;
                issued += 1;
            }
            Change::Revert { device } => {
                issued += u64::from(revert_in_txn(connection, &signer, id, &device, now).await?);
            }
            Change::Settle { device, state, why } => {
                query(
                    "UPDATE rollout_devices SET state = $3, why = $4, \
                     in_force_at = CASE WHEN $3 = 'in-force' THEN $5 ELSE in_force_at END \
                     WHERE rollout = $1 AND device = $2",
                )
                .bind(int(id))
                .bind(&device)
                .bind(name(&MemberState::ALL, state))
                .bind(&why)
                .bind(int(now))
                .execute(&mut *connection)
                .await
                .task("note how far a device is")?;
                if let Some(why) = why {
                    log_in_txn(
                        connection,
                        now,
                        ITSELF,
                        "device.failed",
                        &subject(id),
                        &format!("{device}: {why}"),
                    )
                    .await?;
                }
            }
            Change::Boot { device, boot, restart } => {
                query(
                    "UPDATE rollout_devices SET boot = $3, restarts = restarts + $4 WHERE rollout = $1 AND device = $2",
                )
                .bind(int(id))
                .bind(&device)
                .bind(&boot.0[..])
                .bind(i64::from(restart))
                .execute(&mut *connection)
                .await
                .task("note a restart")?;
            }
            Change::Wave(wave) => {
                query("UPDATE rollouts SET wave = $2, wave_since = $3, changed_at = $3 WHERE id = $1")
                    .bind(int(id))
                    .bind(wave)
                    .bind(int(now))
                    .execute(&mut *connection)
                    .await
                    .task("begin a wave")?;
                log_in_txn(
                    connection,
                    now,
                    ITSELF,
                    "rollout.wave",
                    &subject(id),
                    &format!("wave {wave} begins"),
                )
                .await?;
            }
            Change::Enter { state, reason } => {
                enter_in_txn(connection, id, state, &reason, now).await?;
                let what = format!("rollout.{}", name(&State::ALL, state));
                log_in_txn(connection, now, ITSELF, &what, &subject(id), &reason).await?;
            }
        }
    }
    Ok(issued > 0)
}

async fn enter_in_txn(
    connection: &mut Transaction,
    id: u64,
    state: State,
    reason: &str,
    now: u64,
) -> Result<(), StoreError> {
    // A rollback's reason outlives its end; somebody's command makes it void.
    query(
        "UPDATE rollouts SET state = $2, changed_at = $4, \
         reason = CASE WHEN $3 <> '' THEN $3 WHEN $2 = 'rolled-back' THEN reason ELSE NULL END WHERE id = $1",
    )
    .bind(int(id))
    .bind(name(&State::ALL, state))
    .bind(reason)
    .bind(int(now))
    .execute(connection)
    .await
    .task("bring a rollout to another state")?;
    Ok(())
}

/// The kind of a rollout, and the name and version of what it rolls out.
async fn ware_in_txn(connection: &mut Transaction, id: u64) -> Result<(ArtifactKind, String, u64), StoreError> {
    let (kind, name, version): (String, String, i64) =
        query_as("SELECT kind, policy, version FROM rollouts WHERE id = $1")
            .bind(int(id))
            .fetch_one(connection)
            .await
            .task("read what a rollout rolls out")?;
    let kind = named(&ArtifactKind::ALL, &kind).unwrap_or(ArtifactKind::Policy);
    Ok((kind, name, uint(version)))
}

/// What a rollout rolls out, as devices are told of it.
async fn named_in_txn(connection: &mut Transaction, id: u64) -> Result<Named, StoreError> {
    match ware_in_txn(connection, id).await? {
        (ArtifactKind::Policy, ..) => Ok(Named::Policy(Some(policy_in_txn(connection, id).await?))),
        (ArtifactKind::Model, name, version) => {
            Ok(Named::Model(desired_model_in_txn(connection, &name, version).await?))
        }
    }
}

/// The policy of a rollout, as devices are told of it.
async fn policy_in_txn(connection: &mut Transaction, id: u64) -> Result<DesiredPolicy, StoreError> {
    let task = "read the policy of a rollout";
    let row = query(
        "SELECT r.policy, r.version, r.parameters, p.digest, a.size FROM rollouts r \
         JOIN policies p ON p.name = r.policy AND p.version = r.version \
         JOIN artifacts a ON a.digest = p.digest WHERE r.id = $1",
    )
    .bind(int(id))
    .fetch_one(connection)
    .await
    .task(task)?;
    let read = || {
        let parameters: String = row.try_get("parameters")?;
        let digest: Option<Digest> = device::digest(row.try_get("digest")?);
        let damaged = |what: &str| sqlx::Error::Decode(format!("a policy's {what} cannot be read").into());
        Ok(DesiredPolicy {
            name: row.try_get("policy")?,
            version: uint(row.try_get("version")?),
            digest: digest.ok_or_else(|| damaged("digest"))?,
            size: uint(row.try_get("size")?),
            parameters: serde_json::from_str(&parameters).map_err(|_| damaged("parameters"))?,
        })
    };
    read().task(task)
}

/// Gives a device what is rolled out. Nothing where it does not wait for it.
async fn order_in_txn(
    connection: &mut Transaction,
    signer: &Signer<'_>,
    id: u64,
    device: &str,
    wave: u32,
    ware: Named,
    now: u64,
) -> Result<(), StoreError> {
    let task = "give a device what is rolled out";
    let windows = query(concat!(
        "SELECT ",
        sum_columns!(),
        " FROM summaries s WHERE s.device = $1 ORDER BY s.sequence DESC LIMIT $2"
    ))
    .bind(device)
    .bind(RECENT)
    .fetch_all(&mut *connection)
    .await
    .task(task)?;
    let mut before = Sums::default();
    for window in windows.iter().rev() {
        before.add(&sums(window).task(task)?);
    }
    let changed = query(
        "UPDATE rollout_devices SET state = 'ordered', wave = $3, ordered_at = $4, before = $5, \
         was_alive = (SELECT alive FROM devices WHERE device = $2), boot = (SELECT boot FROM devices WHERE device = $2), \
         previous = (SELECT signed FROM desired WHERE device = $2 ORDER BY generation DESC LIMIT 1) \
         WHERE rollout = $1 AND device = $2 AND state = 'waiting'",
    )
    .bind(int(id))
    .bind(device)
    .bind(wave)
    .bind(int(now))
    .bind(json(&before))
    .execute(&mut *connection)
    .await
    .task(task)?;
    let Ok(named) = DeviceId::new(device) else {
        return Ok(());
    };
    if changed == 0 {
        return Ok(());
    }
    let generation = issue_in_txn(connection, signer, &named, |desired| ware.apply(desired), now).await?;
    query("UPDATE rollout_devices SET generation = $3 WHERE rollout = $1 AND device = $2")
        .bind(int(id))
        .bind(device)
        .bind(int(generation.0))
        .execute(connection)
        .await
        .task(task)?;
    Ok(())
}

/// Gives a device back what it had before the rollout, unless it has something else by now. Gives whether it did.
async fn revert_in_txn(
    connection: &mut Transaction,
    signer: &Signer<'_>,
    id: u64,
    device: &str,
    now: u64,
) -> Result<bool, StoreError> {
    let task = "give a device back what it had";
    let row: Option<(Option<Vec<u8>>, i64)> = query_as(
        "SELECT previous, generation FROM rollout_devices WHERE rollout = $1 AND device = $2 \
         AND state IN ('ordered', 'in-force', 'proven', 'failed')",
    )
    .bind(int(id))
    .bind(device)
    .fetch_optional(&mut *connection)
    .await
    .task(task)?;
    let (Some((previous, ordered)), Ok(named)) = (row, DeviceId::new(device)) else {
        return Ok(false);
    };
    let (kind, ..) = ware_in_txn(connection, id).await?;
    // Other settings than at the time of the order change nothing of whose policy, or model, it is.
    let latest = latest_in_txn(connection, &named).await?;
    let is_ours = latest.is_some_and(|latest| latest.since(kind) <= uint(ordered));
    if is_ours {
        let previous = previous.map(|signed| read_kept(&signed)).transpose()?;
        let previous = Named::of(kind, previous);
        issue_in_txn(connection, signer, &named, |desired| previous.apply(desired), now).await?;
    }
    query("UPDATE rollout_devices SET state = $3 WHERE rollout = $1 AND device = $2")
        .bind(int(id))
        .bind(device)
        .bind(if is_ours { "reverted" } else { "superseded" })
        .execute(connection)
        .await
        .task(task)?;
    Ok(is_ours)
}

/// How the audit log calls a rollout.
pub(crate) fn subject(rollout: u64) -> String {
    format!("rollout {rollout}")
}
