//! Desired states: a policy is pushed into them, and the broker is kept up to date with them.
//!
//! Publishing is a reconciliation: a task compares what the database says with what it has handed to
//! the broker, whenever somebody wakes it or the broker has forgotten. A push only writes to the
//! database and wakes the task; a controller that dies in between publishes at its next start.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use offramp_link::{Link, Publication, State};
use offramp_proto::{
    Desired, DesiredPolicy, DeviceId, Digest, Generation, Kind, Parameter, SignError, TenantId, Topic, encode,
};
use tokio::sync::{Notify, watch};

use crate::key::Keyring;
use crate::statistics::Statistics;
use crate::store::{Draft, Drafted, Store, StoreError, Unfit, now};

/// Largest policy component in bytes.
pub const MAX_POLICY: usize = 4 * 1024 * 1024;

/// Desired states on their way to the broker at once, each of another device.
const AT_ONCE: usize = 16;
/// Between two looks at what other controllers have signed.
const LOOK: Duration = Duration::from_secs(1);
/// Pause before what could not be published is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// A policy to push.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyUpload {
    /// Its name: 1 to 64 letters, digits, `-`, `_` or `.`.
    pub name: String,
    /// Its version. A name and version always mean the same bytes.
    pub version: u64,
    /// The WebAssembly component, at most [`MAX_POLICY`] bytes.
    pub bytes: Vec<u8>,
    /// Its parameters.
    pub parameters: BTreeMap<String, Parameter>,
}

/// The devices that something is meant for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Every device that is known now.
    All,
    /// These.
    Devices(Vec<DeviceId>),
    /// None for now: the policy is only kept, for a rollout.
    Nobody,
}

/// What a push did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// Digest of the component.
    pub digest: Digest,
    /// The new generation of each device.
    pub generations: BTreeMap<DeviceId, Generation>,
}

/// Why a policy was not pushed. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The name cannot be one.
    #[error(
        "policy name `{}` is not valid: use 1 to 64 letters, digits, `-`, `_` or `.`, and not `built-in`",
        name.chars().take(80).collect::<String>()
    )]
    Name {
        /// The name.
        name: String,
    },
    /// The version is beyond what JSON and the database carry.
    #[error("policy version {0} is not valid: use 0 to 9007199254740992")]
    Version(u64),
    /// The bytes are no component.
    #[error("policy `{name}` is not a WebAssembly component{hint}")]
    NotComponent {
        /// The name.
        name: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// More bytes than a policy may have.
    #[error(
        "policy `{name}` has {found} bytes, more than the {MAX_POLICY} allowed: build it without debug information"
    )]
    TooLarge {
        /// The name.
        name: String,
        /// Its size in bytes.
        found: usize,
    },
    /// Too many parameters, or too long ones.
    #[error(
        "policy `{name}` has parameters outside their bounds: at most 64, texts of at most 512 bytes, finite numbers"
    )]
    Parameters {
        /// The name.
        name: String,
        /// The field at fault.
        #[source]
        source: SignError,
    },
    /// The name and version mean other bytes already.
    #[error("policy `{name}` {version} is another component already ({}): raise the version", digest.short())]
    VersionTaken {
        /// The name.
        name: String,
        /// The version.
        version: u64,
        /// What they mean.
        digest: Digest,
    },
    /// Devices were named that never said anything.
    #[error("unknown device {}: see `offramp-fleet devices`", list(.0))]
    UnknownDevices(Vec<DeviceId>),
    /// They are kept apart.
    #[error("in quarantine: {}", list(.0))]
    Quarantined(Vec<DeviceId>),
    /// The database refused.
    #[error("policy could not be kept")]
    Store(#[from] StoreError),
}

fn list(devices: &[DeviceId]) -> String {
    let names: Vec<_> = devices.iter().take(10).map(|d| format!("`{d}`")).collect();
    let more = devices.len().saturating_sub(names.len());
    match more {
        0 => names.join(", "),
        _ => format!("{} and {more} more", names.join(", ")),
    }
}

impl PolicyUpload {
    fn check(&self) -> Result<(), PushError> {
        // The rules for names are those for devices.
        if DeviceId::new(self.name.as_str()).is_err() || self.name == "built-in" {
            return Err(PushError::Name {
                name: self.name.clone(),
            });
        }
        if self.version > 1 << 53 {
            return Err(PushError::Version(self.version));
        }
        let name = || self.name.clone();
        match self.bytes.get(..8) {
            Some([0, b'a', b's', b'm', 0x0d, 0, 1, 0]) => {}
            Some([0, b'a', b's', b'm', 1, 0, 0, 0]) => {
                return Err(PushError::NotComponent {
                    name: name(),
                    hint: " but a core module: make a component of it with `wasm-tools component new`",
                });
            }
            _ => return Err(PushError::NotComponent { name: name(), hint: "" }),
        }
        if self.bytes.len() > MAX_POLICY {
            return Err(PushError::TooLarge {
                name: name(),
                found: self.bytes.len(),
            });
        }
        Ok(())
    }
}

/// Whether a policy's parameters fit into a desired state.
pub(crate) fn check_parameters(
    name: &str,
    version: u64,
    parameters: &BTreeMap<String, Parameter>,
) -> Result<(), PushError> {
    let trial = Desired {
        policy: Some(DesiredPolicy {
            name: name.into(),
            version,
            digest: Digest::of(b""),
            size: 0,
            parameters: parameters.clone(),
        }),
        ..Desired::new(DeviceId::new("trial").expect("a valid name"), Generation(1), 0)
    };
    encode(&trial).map(|_| ()).map_err(|source| PushError::Parameters {
        name: name.into(),
        source,
    })
}

/// Keeps a policy and makes it the desired one of the target.
pub(crate) async fn push(
    store: &Store,
    key: &Arc<Keyring>,
    target: Target,
    upload: PolicyUpload,
    who: String,
) -> Result<Pushed, PushError> {
    upload.check()?;
    let PolicyUpload {
        name,
        version,
        bytes,
        parameters,
    } = upload;
    let digest = Digest::of(&bytes);
    check_parameters(&name, version, &parameters)?;
    let draft = Draft {
        name: name.clone(),
        version,
        digest,
        bytes,
        parameters,
        devices: match target {
            Target::All => None,
            Target::Devices(devices) => Some(devices),
            Target::Nobody => Some(Vec::new()),
        },
        who,
        now: now(),
    };
    match store.desired_insert(Arc::clone(key), draft).await? {
        Drafted::Desired(generations) => {
            tracing::info!(policy = name, version, digest = %digest.short(), devices = generations.len(), "policy pushed");
            Ok(Pushed {
                digest,
                generations: generations.into_iter().collect(),
            })
        }
        Drafted::Taken(digest) => Err(PushError::VersionTaken { name, version, digest }),
        Drafted::Unfit(unfit) => Err(unfit.into()),
    }
}

impl From<Unfit> for PushError {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::Unknown(devices) => Self::UnknownDevices(devices),
            Unfit::Quarantined(devices) => Self::Quarantined(devices),
        }
    }
}

/// What the broker has been handed.
#[derive(Debug, Default)]
struct Published {
    /// Everything up to this row of the database.
    row: u64,
    /// And these generations of devices behind it.
    ahead: HashMap<String, u64>,
}

/// What the publishing task works with.
pub(crate) struct Publisher {
    pub(crate) tenant: TenantId,
    pub(crate) store: Store,
    pub(crate) link: Link,
    pub(crate) wake: Arc<Notify>,
    pub(crate) statistics: watch::Sender<Statistics>,
    /// Whether publishing is this controller's to do.
    pub(crate) duty: watch::Receiver<bool>,
}

impl Publisher {
    /// Keeps the broker up to date until the link is closed.
    pub(crate) async fn run(mut self) {
        let mut state = self.link.state();
        state.mark_changed();
        let mut on_duty = *self.duty.borrow_and_update();
        let mut published = Published::default();
        let (mut connected, mut complete) = (false, true);
        loop {
            tokio::select! {
                changed = state.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let state = state.borrow_and_update();
                    connected = matches!(*state, State::Connected { .. });
                    match *state {
                        State::Closed => return,
                        // A broker that forgot the session may have forgotten what it retained.
                        State::Connected { session_resumed: false } => published = Published::default(),
                        State::Connected { .. } | State::Connecting | State::Disconnected { .. } => {}
                    }
                }
                changed = self.duty.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    on_duty = *self.duty.borrow_and_update();
                    // Whoever was on duty before may have left something over.
                    published = Published::default();
                }
                () = self.wake.notified() => {}
                () = tokio::time::sleep(RETRY), if !complete => {}
                // Others may have signed something.
                () = tokio::time::sleep(LOOK), if on_duty && self.store.is_shared() => {}
            }
            if connected && on_duty {
                complete = self.publish(&mut published).await;
            }
        }
    }

    /// Publishes what is not published yet. False when something is left over.
    async fn publish(&self, published: &mut Published) -> bool {
        let (mut desired, row) = match self.store.desired_since(published.row).await {
            Ok(found) => found,
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "desired states cannot be read"
                );
                return false;
            }
        };
        desired.retain(|d| published.ahead.get(&d.device) != Some(&d.generation));
        let wanted = desired.len();
        let sent = futures_util::stream::iter(desired)
            .map(|desired| async move {
                // Another controller may have newer ones by now.
                if !*self.duty.borrow() {
                    return None;
                }
                let device = DeviceId::new(desired.device.as_str()).ok()?;
                let topic = Topic::new(&self.tenant, &device, Kind::Desired).to_string();
                match self.link.publish(Publication::new(topic, desired.signed).retained()).await {
                    Ok(()) => Some((desired.device, desired.generation)),
                    Err(error) => {
                        tracing::warn!(%device, error = &error as &dyn std::error::Error, "desired state was not published");
                        None
                    }
                }
            })
            .buffer_unordered(AT_ONCE)
            .filter_map(std::future::ready)
            .collect::<Vec<_>>()
            .await;
        let count = sent.len();
        if count > 0 {
            self.statistics.send_modify(|s| s.published += count as u64);
        }
        let complete = count == wanted;
        if complete {
            published.row = row;
            published.ahead.clear();
        } else {
            published.ahead.extend(sent);
        }
        complete
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upload(name: &str, bytes: &[u8]) -> PolicyUpload {
        PolicyUpload {
            name: name.into(),
            version: 1,
            bytes: bytes.into(),
            parameters: BTreeMap::new(),
        }
    }

    #[test]
    fn only_components_with_good_names_are_taken() {
        let component = b"\0asm\x0d\0\x01\0";
        assert!(upload("threshold", component).check().is_ok());
        for name in ["", "../x", "built-in", "a b", "a/b"] {
            let error = upload(name, component).check().unwrap_err();
            assert!(matches!(error, PushError::Name { .. }), "{error}");
        }
        let error = upload("a", b"\0asm\x01\0\0\0").check().unwrap_err();
        assert!(error.to_string().contains("core module"), "{error}");
        let error = upload("a", b"#!/bin/sh").check().unwrap_err();
        assert!(matches!(error, PushError::NotComponent { .. }), "{error}");
        let mut large = component.to_vec();
        large.resize(MAX_POLICY + 1, 0);
        let error = upload("a", &large).check().unwrap_err();
        assert!(matches!(error, PushError::TooLarge { .. }), "{error}");
    }
}
