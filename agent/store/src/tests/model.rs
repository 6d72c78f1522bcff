//! The store must answer as this model does, whatever is asked in whatever order.

use std::collections::{BTreeMap, VecDeque};

use proptest::collection::vec;
use proptest::prelude::*;

use super::disk::Disk;
use super::{open, tight_limits};
use offramp_proto::Digest;

use crate::{Appended, Checkpoint, Desired, DesiredChange, OutboxStatus, Record, Roles, Store, StoreError};

#[derive(Clone, Debug)]
pub(super) enum Action {
    SaveCheckpoint {
        camera: u8,
        length: usize,
    },
    DiscardCheckpoint {
        camera: u8,
        number: u64,
    },
    SetDesired {
        generation: u64,
        content: u8,
        length: usize,
    },
    PutArtifact {
        id: u8,
    },
    SetRoles([Option<u8>; 3]),
    Append {
        topic: usize,
        length: usize,
    },
    Acknowledge(Vec<u64>),
    SetValue {
        key: u8,
        length: usize,
    },
    RemoveValue {
        key: u8,
    },
    Reopen,
    Kill,
    CutPower,
}

/// Cameras that are asked for: one more than the store has room for.
const CAMERAS: u8 = 3;

/// The first is the only one of a device that does not name it.
fn name(camera: u8) -> &'static str {
    ["", "gate", "yard"][usize::from(camera)]
}

fn action() -> impl Strategy<Value = Action> {
    let id = || 0..6u8;
    prop_oneof![
        3 => (0..CAMERAS, 0..60usize).prop_map(|(camera, length)| Action::SaveCheckpoint { camera, length }),
        1 => (0..CAMERAS, 0..8u64).prop_map(|(camera, number)| Action::DiscardCheckpoint { camera, number }),
        3 => (0..8u64, 0..2u8, 0..45usize)
            .prop_map(|(generation, content, length)| Action::SetDesired { generation, content, length }),
        3 => id().prop_map(|id| Action::PutArtifact { id }),
        2 => [prop::option::of(id()), prop::option::of(id()), prop::option::of(id())].prop_map(Action::SetRoles),
        8 => (0..30usize, 0..90usize).prop_map(|(topic, length)| Action::Append { topic, length }),
        4 => vec(0..40u64, 0..4).prop_map(Action::Acknowledge),
        2 => (0..5u8, 0..25usize).prop_map(|(key, length)| Action::SetValue { key, length }),
        1 => (0..5u8).prop_map(|key| Action::RemoveValue { key }),
        1 => Just(Action::Reopen),
        1 => Just(Action::Kill),
        1 => Just(Action::CutPower),
    ]
}

fn artifact(id: u8) -> Vec<u8> {
    vec![id; 15 + 15 * usize::from(id)]
}

fn payload(sequence: u64, length: usize) -> Vec<u8> {
    vec![sequence as u8; length]
}

/// An answer in words, so that model and store are compared in what they say, refusals included.
type Answer = Result<String, String>;

fn answer(result: Result<impl std::fmt::Debug, StoreError>) -> Answer {
    result
        .map(|value| format!("{value:?}"))
        .map_err(|error| error.to_string())
}

/// Everything the store can tell about itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Content {
    boot: u64,
    checkpoints: Vec<Vec<Checkpoint>>,
    desired: Option<Desired>,
    artifacts: BTreeMap<u8, Option<Vec<u8>>>,
    roles: Roles,
    outbox: OutboxStatus,
    records: Vec<Record>,
    values: BTreeMap<u8, Option<Vec<u8>>>,
}

impl Content {
    /// What it was before the boot that let it be read.
    pub(super) fn one_boot_earlier(&mut self) {
        self.boot -= 1;
    }
}

pub(super) fn content(store: &Store) -> Content {
    Content {
        boot: store.boot(),
        checkpoints: (0..CAMERAS)
            .map(|camera| store.checkpoints(name(camera)).unwrap())
            .collect(),
        desired: store.desired().unwrap(),
        artifacts: (0..6)
            .map(|id| (id, store.artifact(Digest::of(&artifact(id))).unwrap()))
            .collect(),
        roles: store.roles().unwrap(),
        outbox: store.outbox().unwrap(),
        records: store.records_after(0, usize::MAX, u64::MAX).unwrap(),
        values: (0..5)
            .map(|key| (key, store.value(&key.to_string()).unwrap()))
            .collect(),
    }
}

pub(super) fn ask(store: &Store, action: &Action) -> Answer {
    match action {
        Action::SaveCheckpoint { camera, length } => {
            answer(store.save_checkpoint(name(*camera), &vec![*camera; *length]))
        }
        Action::DiscardCheckpoint { camera, number } => answer(store.discard_checkpoint(name(*camera), *number)),
        Action::SetDesired {
            generation,
            content,
            length,
        } => answer(store.set_desired(*generation, &vec![*content; *length])),
        Action::PutArtifact { id } => answer(store.put_artifact(Digest::of(&artifact(*id)), &artifact(*id))),
        Action::SetRoles(ids) => answer(store.set_roles(&roles(ids))),
        Action::Append { topic, length } => {
            answer(store.append(&"t".repeat(*topic), |sequence| payload(sequence, *length)))
        }
        Action::Acknowledge(sequences) => answer(store.acknowledge(sequences)),
        Action::SetValue { key, length } => answer(store.set_value(&key.to_string(), &vec![2; *length])),
        Action::RemoveValue { key } => answer(store.remove_value(&key.to_string())),
        Action::Reopen | Action::Kill | Action::CutPower => Ok(String::new()),
    }
}

fn roles(ids: &[Option<u8>; 3]) -> Roles {
    let [active, last_good, pending] = ids.map(|id| id.map(|id| Digest::of(&artifact(id))));
    Roles {
        active,
        last_good,
        pending,
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    boot: u64,
    last_checkpoint: u64,
    /// Of each camera, the oldest first.
    checkpoints: [VecDeque<Checkpoint>; CAMERAS as usize],
    desired: Option<Desired>,
    /// The one put longest ago first.
    artifacts: Vec<u8>,
    roles: Roles,
    outbox: VecDeque<Record>,
    last_sequence: u64,
    dropped: u64,
    values: BTreeMap<u8, Vec<u8>>,
}

fn too_large(what: &'static str, bytes: usize, limit: u64) -> StoreError {
    StoreError::TooLarge {
        what,
        bytes: bytes as u64,
        limit,
    }
}

impl Model {
    pub(super) fn boot(&mut self) {
        self.boot += 1;
    }

    fn outbox_bytes(&self) -> u64 {
        self.outbox
            .iter()
            .map(|record| (record.topic.len() + record.payload.len()) as u64)
            .sum()
    }

    pub(super) fn content(&self) -> Content {
        Content {
            boot: self.boot,
            checkpoints: self
                .checkpoints
                .iter()
                .map(|kept| kept.iter().rev().cloned().collect())
                .collect(),
            desired: self.desired.clone(),
            artifacts: (0..6)
                .map(|id| (id, self.artifacts.contains(&id).then(|| artifact(id))))
                .collect(),
            roles: self.roles,
            outbox: OutboxStatus {
                records: self.outbox.len() as u64,
                bytes: self.outbox_bytes(),
                last_sequence: self.last_sequence,
                dropped: self.dropped,
            },
            records: self.outbox.iter().cloned().collect(),
            values: (0..5).map(|key| (key, self.values.get(&key).cloned())).collect(),
        }
    }

    pub(super) fn ask(&mut self, action: &Action) -> Answer {
        match action {
            Action::SaveCheckpoint { camera, length } => answer(self.save_checkpoint(*camera, *length)),
            Action::DiscardCheckpoint { camera, number } => {
                let kept = &mut self.checkpoints[usize::from(*camera)];
                let before = kept.len();
                kept.retain(|checkpoint| checkpoint.number != *number);
                answer(Ok(kept.len() < before))
            }
            Action::SetDesired {
                generation,
                content,
                length,
            } => answer(self.set_desired(*generation, vec![*content; *length])),
            Action::PutArtifact { id } => answer(self.put_artifact(*id)),
            Action::SetRoles(ids) => answer(self.set_roles(ids)),
            Action::Append { topic, length } => answer(self.append(&"t".repeat(*topic), *length)),
            Action::Acknowledge(sequences) => {
                let before = self.outbox.len();
                self.outbox.retain(|record| !sequences.contains(&record.sequence));
                answer(Ok((before - self.outbox.len()) as u64))
            }
            Action::SetValue { key, length } => answer(self.set_value(*key, *length)),
            Action::RemoveValue { key } => answer(Ok(self.values.remove(key).is_some())),
            Action::Reopen | Action::Kill | Action::CutPower => {
                self.boot();
                Ok(String::new())
            }
        }
    }

    fn save_checkpoint(&mut self, camera: u8, length: usize) -> Result<u64, StoreError> {
        let limit = tight_limits().checkpoint_bytes;
        if length as u64 > limit {
            return Err(too_large("a checkpoint", length, limit));
        }
        self.last_checkpoint += 1;
        let kept = &mut self.checkpoints[usize::from(camera)];
        kept.push_back(Checkpoint {
            number: self.last_checkpoint,
            heads: vec![camera; length],
        });
        if kept.len() > 2 {
            kept.pop_front();
        }
        let used = self.checkpoints.iter().filter(|kept| !kept.is_empty());
        if used.count() as u64 > tight_limits().cameras {
            let saved = self.checkpoints.iter_mut().filter(|kept| !kept.is_empty());
            let oldest = saved.min_by_key(|kept| kept.back().map(|last| last.number));
            oldest.unwrap().clear();
        }
        Ok(self.last_checkpoint)
    }

    fn set_desired(&mut self, generation: u64, signed: Vec<u8>) -> Result<DesiredChange, StoreError> {
        let limit = tight_limits().desired_bytes;
        if signed.len() as u64 > limit {
            return Err(too_large("a desired state", signed.len(), limit));
        }
        let offered = Desired { generation, signed };
        match &self.desired {
            Some(stored) if *stored == offered => return Ok(DesiredChange::Same),
            Some(stored) if stored.generation == generation => {
                return Err(StoreError::ConflictingDesired { generation });
            }
            Some(stored) if stored.generation > generation => {
                return Err(StoreError::OlderDesired {
                    stored: stored.generation,
                    offered: generation,
                });
            }
            _ => {}
        }
        self.desired = Some(offered);
        Ok(DesiredChange::Newer)
    }

    fn pinned(&self) -> Vec<Digest> {
        [self.roles.active, self.roles.last_good, self.roles.pending]
            .into_iter()
            .flatten()
            .collect()
    }

    fn put_artifact(&mut self, id: u8) -> Result<(), StoreError> {
        let limit = tight_limits().artifact_bytes;
        let bytes = artifact(id).len() as u64;
        let size = |ids: &[u8]| ids.iter().map(|id| artifact(*id).len() as u64).sum::<u64>();
        let (pinned, mut free): (Vec<u8>, Vec<u8>) = self
            .artifacts
            .iter()
            .filter(|other| **other != id)
            .partition(|other| self.pinned().contains(&Digest::of(&artifact(**other))));
        if size(&pinned) + bytes > limit {
            return Err(StoreError::ArtifactsFull {
                bytes,
                pinned: size(&pinned),
                limit,
            });
        }
        while size(&pinned) + size(&free) + bytes > limit {
            free.remove(0);
        }
        self.artifacts
            .retain(|other| pinned.contains(other) || free.contains(other));
        self.artifacts.push(id);
        Ok(())
    }

    fn set_roles(&mut self, ids: &[Option<u8>; 3]) -> Result<(), StoreError> {
        if let Some(id) = ids.iter().flatten().find(|id| !self.artifacts.contains(id)) {
            return Err(StoreError::UnknownArtifact {
                digest: Digest::of(&artifact(*id)),
            });
        }
        self.roles = roles(ids);
        Ok(())
    }

    fn append(&mut self, topic: &str, length: usize) -> Result<Appended, StoreError> {
        let limits = tight_limits();
        let size = topic.len() + length;
        if size as u64 > limits.record_bytes {
            return Err(too_large("a record", size, limits.record_bytes));
        }
        let mut dropped = 0;
        while self.outbox.len() as u64 >= limits.outbox_records
            || self.outbox_bytes() + size as u64 > limits.outbox_bytes
        {
            self.outbox.pop_front();
            dropped += 1;
        }
        self.dropped += dropped;
        self.last_sequence += 1;
        self.outbox.push_back(Record {
            sequence: self.last_sequence,
            topic: topic.to_owned(),
            payload: payload(self.last_sequence, length),
        });
        Ok(Appended {
            sequence: self.last_sequence,
            dropped,
        })
    }

    fn set_value(&mut self, key: u8, length: usize) -> Result<(), StoreError> {
        let limits = tight_limits();
        let size = key.to_string().len() + length;
        if size as u64 > limits.value_bytes {
            return Err(too_large("a value with its key", size, limits.value_bytes));
        }
        if !self.values.contains_key(&key) && self.values.len() as u64 >= limits.values {
            return Err(StoreError::ValuesFull { limit: limits.values });
        }
        self.values.insert(key, vec![2; length]);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_store_answers_as_the_model_does(actions in vec(action(), 1..60), seed: u64) {
        let mut random = super::crash::random(seed);
        let mut disk = Disk::default();
        let mut store = open(&disk).unwrap();
        let mut model = Model::default();
        model.boot();
        for action in &actions {
            prop_assert_eq!(ask(&store, action), model.ask(action), "{:?}", action);
            match action {
                Action::Reopen => drop(store),
                Action::Kill => {
                    disk = disk.after_kill();
                    drop(store);
                }
                Action::CutPower => {
                    disk = disk.after_power_cut(&mut random);
                    drop(store);
                }
                _ => {
                    prop_assert_eq!(content(&store), model.content(), "after {:?}", action);
                    continue;
                }
            }
            store = open(&disk).unwrap();
            prop_assert_eq!(content(&store), model.content(), "after {:?}", action);
        }
    }

    #[test]
    fn batches_of_records_are_bounded_and_in_order(
        lengths in vec(0..60usize, 0..6),
        most_records in 0..8usize,
        most_bytes in 0..200u64,
    ) {
        let store = open(&Disk::default()).unwrap();
        for length in &lengths {
            store.append("t", |sequence| payload(sequence, *length)).unwrap();
        }
        let all = store.records_after(0, usize::MAX, u64::MAX).unwrap();
        let mut seen = Vec::new();
        loop {
            let after = seen.last().map_or(0, |record: &Record| record.sequence);
            let batch = store.records_after(after, most_records, most_bytes).unwrap();
            prop_assert!(batch.len() <= most_records);
            let bytes: usize = batch.iter().map(|record| 1 + record.payload.len()).sum();
            prop_assert!(bytes as u64 <= most_bytes || batch.len() == 1);
            if batch.is_empty() {
                break;
            }
            seen.extend(batch);
        }
        if most_records > 0 {
            prop_assert_eq!(seen, all);
        }
    }
}
