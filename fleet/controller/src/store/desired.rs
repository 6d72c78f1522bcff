//! Desired states, signed, of every generation.

use std::collections::BTreeMap;
use std::sync::Arc;

use offramp_proto::{
    Desired, DesiredModel, DesiredPolicy, DeviceId, Digest, Generation, LearnerSettings, LogLevel, Parameter,
    unverified,
};
use serde::{Deserialize, Serialize};

use super::artifact::{artifact_insert_in_txn, desired_model_in_txn, policy_digest_in_txn, policy_insert_in_txn};
use super::audit::log_in_txn;
use super::device::{Unfit, json, target_in_txn};
use super::keys::Signer;
use super::sql::{Builder, FromRow, Row, Transaction, query, query_as, query_scalar};
use super::{Store, StoreError, Task as _, int, uint};
use crate::key::Keyring;

/// Generations of a device's desired state that are kept.
const KEPT: u64 = 50;

/// The desired state of a device that is in force.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DesiredState {
    pub(crate) device: String,
    pub(crate) generation: u64,
    pub(crate) issued_at: u64,
    /// Name and version of its policy.
    pub(crate) policy: Option<(String, u64)>,
    /// Name and version of its model; none for that of the device's configuration.
    pub(crate) model: Option<(String, u64)>,
    /// What is wanted beside them.
    pub(crate) settings: Wanted,
    /// The bytes that devices get.
    pub(crate) signed: Vec<u8>,
}

/// What is wanted of a device beside its policy; what is absent is as the device's own configuration has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Wanted {
    pub(crate) learner: LearnerSettings,
    pub(crate) log: Option<LogLevel>,
}

/// A change of [`Wanted`]: of each setting nothing, a value, or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Change {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) enabled: Option<Option<bool>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rate: Option<Option<f32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) audit_rate: Option<Option<f32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) accuracy_budget: Option<Option<f32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cost_ceiling: Option<Option<f32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) log: Option<Option<LogLevel>>,
}

impl Change {
    pub(crate) fn apply(&self, desired: &mut Desired) {
        let learner = &mut desired.learner;
        learner.enabled = self.enabled.unwrap_or(learner.enabled);
        learner.rate = self.rate.unwrap_or(learner.rate);
        learner.audit_rate = self.audit_rate.unwrap_or(learner.audit_rate);
        learner.accuracy_budget = self.accuracy_budget.unwrap_or(learner.accuracy_budget);
        learner.cost_ceiling = self.cost_ceiling.unwrap_or(learner.cost_ceiling);
        desired.log = self.log.unwrap_or(desired.log);
    }
}

/// What the library holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ArtifactKind {
    Policy,
    Model,
}

impl ArtifactKind {
    pub(crate) const ALL: [(Self, &'static str); 2] = [(Self::Policy, "policy"), (Self::Model, "model")];
}

/// A policy on its way into desired states.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    pub(crate) name: String,
    pub(crate) version: u64,
    pub(crate) digest: Digest,
    pub(crate) bytes: Vec<u8>,
    pub(crate) parameters: BTreeMap<String, Parameter>,
    /// The devices that get it; none for every device that is known.
    pub(crate) devices: Option<Vec<DeviceId>>,
    pub(crate) who: String,
    pub(crate) now: u64,
}

/// What became of a draft.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Drafted {
    /// The new generation of each device.
    Desired(Vec<(DeviceId, Generation)>),
    /// Nothing changed: the name and version belong to another component.
    Taken(Digest),
    /// Nothing changed: these devices cannot have it.
    Unfit(Unfit),
}

impl FromRow for DesiredState {
    fn from_row(row: &Row) -> Result<Self, sqlx::Error> {
        let policy: Option<String> = row.try_get("policy")?;
        let version: Option<i64> = row.try_get("policy_version")?;
        let model: Option<String> = row.try_get("model")?;
        let model_version: Option<i64> = row.try_get("model_version")?;
        Ok(Self {
            device: row.try_get("device")?,
            generation: uint(row.try_get("generation")?),
            issued_at: uint(row.try_get("issued_at")?),
            policy: policy.zip(version.map(uint)),
            model: model.zip(model_version.map(uint)),
            settings: row
                .try_get::<Option<String>>("settings")?
                .and_then(|text| serde_json::from_str(&text).ok())
                .unwrap_or_default(),
            signed: row.try_get("signed")?,
        })
    }
}

macro_rules! select_desired {
    ($rest:literal) => {
        concat!(
            "SELECT device, generation, issued_at, policy, policy_version, model, model_version, settings, signed FROM desired d \
             WHERE generation = (SELECT max(generation) FROM desired WHERE device = d.device) ",
            $rest
        )
    };
}

impl Store {
    /// The desired states in force of some devices.
    pub(crate) async fn desired_list(&self, devices: &[&str]) -> Result<Vec<DesiredState>, StoreError> {
        let mut query = Builder::new(&self.readers, select_desired!("AND device IN "));
        query.push_list(devices.iter().copied()).push(" ORDER BY device");
        query
            .build()
            .rows()
            .fetch_all(&self.readers)
            .await
            .task("list desired states")
    }

    /// The desired states signed since `row`, the last of each device, and the row to go on from.
    pub(crate) async fn desired_since(&self, row: u64) -> Result<(Vec<DesiredState>, u64), StoreError> {
        let task = "list new desired states";
        let mut snapshot = self.readers.snapshot().await.task(task)?;
        let last: Option<i64> = query_scalar("SELECT max(rowid) FROM desired")
            .fetch_one(&mut snapshot)
            .await
            .task(task)?;
        let new = query_as(select_desired!(
            "AND rowid > $1 AND device NOT IN (SELECT device FROM devices WHERE quarantined_at IS NOT NULL) ORDER BY rowid"
        ))
            .bind(int(row))
            .fetch_all(&mut snapshot)
            .await
            .task(task)?;
        Ok((new, last.map_or(row, uint)))
    }

    /// The desired state in force of one device.
    pub(crate) async fn desired_fetch(&self, device: &str) -> Result<Option<DesiredState>, StoreError> {
        query_as(select_desired!("AND device = $1"))
            .bind(device)
            .fetch_optional(&self.readers)
            .await
            .task("read a desired state")
    }

    /// Changes settings of some devices, or of every one that is known, each in its next generation.
    pub(crate) async fn desired_change(
        &self,
        key: Arc<Keyring>,
        devices: Option<Vec<DeviceId>>,
        change: Change,
        who: String,
        now: u64,
    ) -> Result<Result<Vec<(DeviceId, Generation)>, Unfit>, StoreError> {
        self.write(move |connection| {
            Box::pin(async move {
                let devices = match target_in_txn(connection, devices).await? {
                    Ok(devices) => devices,
                    Err(unfit) => return Ok(Err(unfit)),
                };
                let subject = match &devices[..] {
                    [device] => format!("device {device}"),
                    devices => format!("{} devices", devices.len()),
                };
                let detail = json(&change);
                log_in_txn(connection, now, &who, "settings.change", &subject, &detail).await?;
                let signer = Signer::of(connection, &key).await?;
                let mut generations = Vec::with_capacity(devices.len());
                for device in devices {
                    let changed = |desired: &mut Desired| change.apply(desired);
                    let generation = issue_in_txn(connection, &signer, &device, changed, now).await?;
                    generations.push((device, generation));
                }
                Ok(Ok(generations))
            })
        })
        .await
    }

    /// Makes a model of the library the desired one of some devices, or of every one that is known, each in its next
    /// generation; without a name that of their own configurations. None where there is no such model.
    pub(crate) async fn desired_model(
        &self,
        key: Arc<Keyring>,
        devices: Option<Vec<DeviceId>>,
        model: Option<(String, u64)>,
        who: String,
        now: u64,
    ) -> Result<Option<Result<Vec<(DeviceId, Generation)>, Unfit>>, StoreError> {
        self.write(move |connection| {
            Box::pin(async move {
                let (mut wanted, mut subject) = (None, "their own models".to_owned());
                if let Some((name, version)) = model {
                    let Some(found) = desired_model_in_txn(connection, &name, version).await? else {
                        return Ok(None);
                    };
                    subject = format!("model {name} {version}");
                    wanted = Some(found);
                }
                let devices = match target_in_txn(connection, devices).await? {
                    Ok(devices) => devices,
                    Err(unfit) => return Ok(Some(Err(unfit))),
                };
                let detail = match devices.len() {
                    1 => "to 1 device".into(),
                    count => format!("to {count} devices"),
                };
                log_in_txn(connection, now, &who, "model.push", &subject, &detail).await?;
                let signer = Signer::of(connection, &key).await?;
                let mut generations = Vec::with_capacity(devices.len());
                for device in devices {
                    let named = Named::Model(wanted.clone());
                    let generation =
                        issue_in_txn(connection, &signer, &device, |desired| named.apply(desired), now).await?;
                    generations.push((device, generation));
                }
                Ok(Some(Ok(generations)))
            })
        })
        .await
    }

    /// Keeps a policy and makes it the desired one of some devices, each in its next generation.
    pub(crate) async fn desired_insert(&self, key: Arc<Keyring>, draft: Draft) -> Result<Drafted, StoreError> {
        self.write(move |connection| Box::pin(async move { insert_in_txn(connection, &key, draft).await }))
            .await
    }
}

async fn insert_in_txn(connection: &mut Transaction, key: &Keyring, draft: Draft) -> Result<Drafted, StoreError> {
    let devices = match target_in_txn(connection, draft.devices).await? {
        Ok(devices) => devices,
        Err(unfit) => return Ok(Drafted::Unfit(unfit)),
    };
    if let Some(other) = policy_digest_in_txn(connection, &draft.name, draft.version).await?
        && other != draft.digest
    {
        return Ok(Drafted::Taken(other));
    }
    let size = draft.bytes.len() as u64;
    artifact_insert_in_txn(connection, draft.digest, &draft.bytes, draft.now).await?;
    policy_insert_in_txn(connection, &draft.name, draft.version, draft.digest, draft.now).await?;
    let policy = DesiredPolicy {
        name: draft.name,
        version: draft.version,
        digest: draft.digest,
        size,
        parameters: draft.parameters,
    };
    let subject = format!("policy {} {}", policy.name, policy.version);
    let (what, detail) = match devices.len() {
        0 => ("policy.add", String::new()),
        1 => ("policy.push", "to 1 device".into()),
        count => ("policy.push", format!("to {count} devices")),
    };
    log_in_txn(connection, draft.now, &draft.who, what, &subject, &detail).await?;
    let named = Named::Policy(Some(policy));
    let signer = Signer::of(connection, key).await?;
    let mut generations = Vec::with_capacity(devices.len());
    for device in devices {
        let generation = issue_in_txn(
            connection,
            &signer,
            &device,
            |desired| named.clone().apply(desired),
            draft.now,
        )
        .await?;
        generations.push((device, generation));
    }
    Ok(Drafted::Desired(generations))
}

/// What a desired state is to name from now on; without one, that of the device's own configuration.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Named {
    Policy(Option<DesiredPolicy>),
    Model(Option<DesiredModel>),
}

impl Named {
    /// What a desired state names of a kind.
    pub(super) fn of(kind: ArtifactKind, desired: Option<Desired>) -> Self {
        match kind {
            ArtifactKind::Policy => Self::Policy(desired.and_then(|desired| desired.policy)),
            ArtifactKind::Model => Self::Model(desired.and_then(|desired| desired.model)),
        }
    }

    pub(super) fn apply(self, desired: &mut Desired) {
        match self {
            Self::Policy(policy) => {
                desired.own_policy = policy.is_none();
                desired.policy = policy;
            }
            Self::Model(model) => desired.model = model,
        }
    }
}

/// Signs the next generation of a device's desired state and keeps it: what is in force, with a change.
pub(super) async fn issue_in_txn(
    connection: &mut Transaction,
    signer: &Signer<'_>,
    device: &DeviceId,
    change: impl FnOnce(&mut Desired),
    now: u64,
) -> Result<Generation, StoreError> {
    let (generation, trusts) = next_generation_in_txn(connection, device).await?;
    let latest = latest_in_txn(connection, device).await?;
    let mut desired = match &latest {
        Some(latest) => latest.desired.clone(),
        None => Desired::new(device.clone(), generation, now),
    };
    (desired.generation, desired.issued_at) = (generation, now);
    change(&mut desired);
    let (mut policy_since, mut model_since) = (generation.0, generation.0);
    if let Some(latest) = &latest {
        let (before, after) = (&latest.desired, &desired);
        if (&before.policy, before.own_policy) == (&after.policy, after.own_policy) {
            policy_since = latest.policy_since;
        }
        if before.model == after.model {
            model_since = latest.model_since;
        }
    }
    desired.keys = signer.keys();
    let signed = signer.for_device(trusts)?.sign(&desired).map_err(StoreError::Sign)?;
    let settings = Wanted {
        learner: desired.learner,
        log: desired.log,
    };
    query(
        "INSERT INTO desired (device, generation, issued_at, policy, policy_version, signed, settings, model, \
         model_version, policy_since, model_since) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
    )
    .bind(device.as_str())
    .bind(int(generation.0))
    .bind(int(desired.issued_at))
    .bind(desired.policy.as_ref().map(|policy| &policy.name))
    .bind(desired.policy.as_ref().map(|policy| int(policy.version)))
    .bind(signed)
    .bind((settings != Wanted::default()).then(|| json(&settings)))
    .bind(desired.model.as_ref().map(|model| &model.name))
    .bind(desired.model.as_ref().map(|model| int(model.version)))
    .bind(int(policy_since))
    .bind(int(model_since))
    .execute(&mut *connection)
    .await
    .task("keep a desired state")?;
    query("DELETE FROM desired WHERE device = $1 AND generation <= $2")
        .bind(device.as_str())
        .bind(int(generation.0.saturating_sub(KEPT)))
        .execute(connection)
        .await
        .task("remove old desired states")?;
    Ok(generation)
}

/// One more than any generation that this device was ever given or reports; and the keys that it says it trusts.
///
/// What it reports counts too: a controller whose database was lost would otherwise begin again with
/// generations that the device refuses as old.
async fn next_generation_in_txn(
    connection: &mut Transaction,
    device: &DeviceId,
) -> Result<(Generation, Option<String>), StoreError> {
    let (last, trusts): (i64, Option<String>) = query_as(
        "SELECT coalesce(max(generation), 0), (SELECT trusts FROM devices WHERE device = $1) \
         FROM (SELECT max(generation) AS generation FROM desired WHERE device = $1 \
         UNION ALL SELECT reported_generation FROM devices WHERE device = $1) AS given",
    )
    .bind(device.as_str())
    .fetch_one(connection)
    .await
    .task("number a desired state")?;
    Ok((Generation(uint(last).saturating_add(1)), trusts))
}

/// The desired state in force.
pub(super) struct Latest {
    desired: Desired,
    policy_since: u64,
    model_since: u64,
}

impl Latest {
    /// The generation since which it names the policy, or the model, that it names.
    pub(super) fn since(&self, kind: ArtifactKind) -> u64 {
        match kind {
            ArtifactKind::Policy => self.policy_since,
            ArtifactKind::Model => self.model_since,
        }
    }
}

/// The desired state in force. What is kept is the controller's own, whichever of its keys has signed it: another
/// controller's newest may not have been read here yet.
pub(super) async fn latest_in_txn(
    connection: &mut Transaction,
    device: &DeviceId,
) -> Result<Option<Latest>, StoreError> {
    let task = "read a desired state";
    let row: Option<(Vec<u8>, i64, i64)> = query_as(
        "SELECT signed, coalesce(policy_since, generation), coalesce(model_since, generation) FROM desired \
         WHERE device = $1 ORDER BY generation DESC LIMIT 1",
    )
    .bind(device.as_str())
    .fetch_optional(connection)
    .await
    .task(task)?;
    let read = |(signed, policy_since, model_since): (Vec<u8>, i64, i64)| {
        Ok(Latest {
            desired: read_kept(&signed)?,
            policy_since: uint(policy_since),
            model_since: uint(model_since),
        })
    };
    row.map(read).transpose()
}

/// What a kept desired state says.
pub(super) fn read_kept(signed: &[u8]) -> Result<Desired, StoreError> {
    let read = unverified(signed).map_err(|error| sqlx::Error::Decode(Box::new(error)));
    read.task("read a desired state")
}
