//! Artifacts by digest: policy components, and who needs them.

use std::collections::BTreeSet;

use offramp_proto::Digest;
use redb::ReadableTable;

use crate::checkpoint::check_size;
use crate::error::{Stop, StoreError};
use crate::layout::{ARTIFACTS, CONTENTS, COUNTERS, Counter, ROLES};
use crate::open::{Change, Store};

/// The artifacts that must not be collected.
///
/// The one to fall back to is named beside the running one, because a rollback whose target was
/// deleted is no rollback.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Roles {
    /// In use.
    pub active: Option<Digest>,
    /// In use before, and known to work.
    pub last_good: Option<Digest>,
    /// Fetched and about to be used.
    pub pending: Option<Digest>,
}

/// The models that must stay in the [`Depot`](crate::Depot), beside the one that is on its way there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModelRoles {
    /// In use; none where it is the model of the device's own configuration.
    pub active: Option<Digest>,
    /// In use before, and known to work; none as above.
    pub last_good: Option<Digest>,
}

const MODEL: &str = "model active";
const LAST_MODEL: &str = "model last good";

impl Roles {
    fn rows(&self) -> [(&'static str, Option<Digest>); 3] {
        [
            ("active", self.active),
            ("last good", self.last_good),
            ("pending", self.pending),
        ]
    }

    fn row_mut(&mut self, name: &str) -> Option<&mut Option<Digest>> {
        match name {
            "active" => Some(&mut self.active),
            "last good" => Some(&mut self.last_good),
            "pending" => Some(&mut self.pending),
            _ => None,
        }
    }
}

impl Store {
    /// Stores an artifact under its digest. For room, the artifacts without a role are removed,
    /// those first that were put longest ago. Putting a stored one again makes it the youngest.
    ///
    /// # Errors
    /// [`StoreError::WrongDigest`] if `bytes` are others, [`StoreError::TooLarge`] above
    /// [`Limits::artifact_bytes`](crate::Limits::artifact_bytes), [`StoreError::ArtifactsFull`] if
    /// those with a role leave no room; a failure of the medium.
    pub fn put_artifact(&self, digest: Digest, bytes: &[u8]) -> Result<(), StoreError> {
        let limit = self.limits.artifact_bytes;
        check_size("an artifact", bytes.len(), limit)?;
        check_digest(digest, bytes)?;
        self.write("store an artifact", |transaction| {
            let mut counters = transaction.open_table(COUNTERS)?;
            let mut artifacts = transaction.open_table(ARTIFACTS)?;
            let mut contents = transaction.open_table(CONTENTS)?;
            let pinned: BTreeSet<Digest> = read_roles(&transaction.open_table(ROLES)?)?
                .rows()
                .into_iter()
                .filter_map(|(_, digest)| digest)
                .collect();

            let mut total = bytes.len() as u64;
            let mut pinned_bytes = 0;
            let mut collectable = Vec::new();
            for row in artifacts.iter()? {
                let (key, row) = row?;
                let (other, (age, size)) = (Digest(*key.value()), row.value());
                if other == digest {
                    continue;
                }
                total += size;
                if pinned.contains(&other) {
                    pinned_bytes += size;
                } else {
                    collectable.push((age, other, size));
                }
            }
            if pinned_bytes + bytes.len() as u64 > limit {
                return Err(StoreError::ArtifactsFull {
                    bytes: bytes.len() as u64,
                    pinned: pinned_bytes,
                    limit,
                }
                .into());
            }
            collectable.sort_unstable();
            for (_, old, size) in collectable {
                if total <= limit {
                    break;
                }
                artifacts.remove(&old.0)?;
                contents.remove(&old.0)?;
                total -= size;
            }

            let age = Counter::Artifact.get(&counters)? + 1;
            counters.insert(Counter::Artifact.key(), age)?;
            let known = artifacts.insert(&digest.0, (age, bytes.len() as u64))?.is_some();
            if !known {
                contents.insert(&digest.0, bytes)?;
            }
            Ok(Change::Made(()))
        })
    }

    /// The artifact of that digest, if it is stored. Its bytes are checked against the digest.
    ///
    /// # Errors
    /// [`StoreError::WrongDigest`] if they do not match; a failure of the medium.
    pub fn artifact(&self, digest: Digest) -> Result<Option<Vec<u8>>, StoreError> {
        let bytes = self.read("read an artifact", |transaction| {
            let contents = transaction.open_table(CONTENTS)?;
            let bytes = contents.get(&digest.0)?.map(|guard| guard.value().to_vec());
            Ok(bytes)
        })?;
        if let Some(bytes) = &bytes {
            check_digest(digest, bytes)?;
        }
        Ok(bytes)
    }

    /// Sets all roles at once, so that a swap has no moment in which one of them is nobody's.
    ///
    /// # Errors
    /// [`StoreError::UnknownArtifact`] if one of them is not stored; a failure of the medium.
    pub fn set_roles(&self, roles: &Roles) -> Result<(), StoreError> {
        self.write("set the roles of artifacts", |transaction| {
            let artifacts = transaction.open_table(ARTIFACTS)?;
            let mut rows = transaction.open_table(ROLES)?;
            if read_roles(&rows)? == *roles {
                return Ok(Change::Nothing(()));
            }
            for (name, digest) in roles.rows() {
                match digest {
                    None => {
                        rows.remove(name)?;
                    }
                    Some(digest) if artifacts.get(&digest.0)?.is_none() => {
                        return Err(StoreError::UnknownArtifact { digest }.into());
                    }
                    Some(digest) => {
                        rows.insert(name, &digest.0)?;
                    }
                }
            }
            Ok(Change::Made(()))
        })
    }

    /// Says which models must stay in the depot beside the store.
    ///
    /// # Errors
    /// A failure of the medium.
    pub fn set_model_roles(&self, roles: &ModelRoles) -> Result<(), StoreError> {
        self.write("set the roles of models", |transaction| {
            let mut rows = transaction.open_table(ROLES)?;
            for (name, digest) in [(MODEL, roles.active), (LAST_MODEL, roles.last_good)] {
                match digest {
                    Some(digest) => rows.insert(name, &digest.0)?.is_some(),
                    None => rows.remove(name)?.is_some(),
                };
            }
            Ok(Change::Made(()))
        })
    }

    /// The roles of models last set.
    ///
    /// # Errors
    /// A failure of the medium.
    pub fn model_roles(&self) -> Result<ModelRoles, StoreError> {
        self.read("read the roles of models", |transaction| {
            let rows = transaction.open_table(ROLES)?;
            let role = |name| Ok::<_, Stop>(rows.get(name)?.map(|digest| Digest(*digest.value())));
            Ok(ModelRoles {
                active: role(MODEL)?,
                last_good: role(LAST_MODEL)?,
            })
        })
    }

    /// The roles last set.
    ///
    /// # Errors
    /// A failure of the medium.
    pub fn roles(&self) -> Result<Roles, StoreError> {
        self.read("read the roles of artifacts", |transaction| {
            read_roles(&transaction.open_table(ROLES)?)
        })
    }
}

fn read_roles(rows: &impl ReadableTable<&'static str, &'static [u8; 32]>) -> Result<Roles, Stop> {
    let mut roles = Roles::default();
    for row in rows.iter()? {
        let (name, digest) = row?;
        if let Some(role) = roles.row_mut(name.value()) {
            *role = Some(Digest(*digest.value()));
        }
    }
    Ok(roles)
}

fn check_digest(expected: Digest, bytes: &[u8]) -> Result<(), StoreError> {
    let actual = Digest::of(bytes);
    if actual != expected {
        return Err(StoreError::WrongDigest { expected, actual });
    }
    Ok(())
}
