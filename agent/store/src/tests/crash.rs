//! Every call to the medium fails once, and the power is cut at every one of them.

use super::disk::Disk;
use super::model::{Action, Model, ask, content};
use super::open;
use crate::StoreError;

/// SplitMix64: the same seed gives the same faults.
pub(super) fn random(mut seed: u64) -> impl FnMut() -> u64 {
    move || {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Meets every operation, drops for room, and collection.
fn script() -> Vec<Action> {
    let append = |length| Action::Append { topic: 10, length };
    let desired = |generation| Action::SetDesired {
        generation,
        content: 1,
        length: 20,
    };
    vec![
        append(10),
        Action::SaveCheckpoint { camera: 0, length: 40 },
        desired(1),
        Action::PutArtifact { id: 1 },
        Action::SetRoles([Some(1), None, None]),
        append(60),
        append(60),
        append(60),
        Action::Acknowledge(vec![3]),
        Action::PutArtifact { id: 2 },
        Action::SetRoles([Some(2), Some(1), None]),
        Action::PutArtifact { id: 0 },
        Action::SaveCheckpoint { camera: 0, length: 10 },
        Action::SaveCheckpoint { camera: 0, length: 20 },
        Action::SaveCheckpoint { camera: 1, length: 5 },
        Action::SaveCheckpoint { camera: 2, length: 7 },
        Action::SetValue { key: 1, length: 9 },
        Action::PutArtifact { id: 0 },
        desired(2),
        append(20),
        Action::RemoveValue { key: 1 },
        Action::DiscardCheckpoint { camera: 0, number: 3 },
        Action::Acknowledge(vec![1, 2, 4, 5]),
        append(5),
    ]
}

#[test]
fn a_failing_medium_loses_nothing_confirmed_and_stops_the_store() {
    let script = script();
    let calls = {
        let disk = Disk::default();
        let store = open(&disk).unwrap();
        for action in &script {
            ask(&store, action).unwrap();
        }
        disk.calls()
    };
    assert!(calls > 50, "{calls}");

    for call in 1..=calls {
        let mut random = random(call);
        let disk = Disk::default();
        disk.fail_at(call);
        let mut model = Model::default();
        let mut possible = vec![model.content()];
        model.boot();
        possible.push(model.content());
        let store = open(&disk);
        let opened = store.is_ok();
        if let Ok(store) = store {
            possible.remove(0);
            for action in &script {
                let answer = ask(&store, action);
                let before = model.content();
                model.ask(action).unwrap();
                possible = vec![before, model.content()];
                if answer.is_err() {
                    // The call that failed is over; the store must not go on all the same.
                    let refused = store.append("t", |_| Vec::new());
                    assert!(
                        matches!(refused, Err(StoreError::FailedEarlier { .. })),
                        "call {call}: {refused:?}"
                    );
                    let refused = store.desired();
                    assert!(
                        matches!(refused, Err(StoreError::FailedEarlier { .. })),
                        "call {call}: {refused:?}"
                    );
                    break;
                }
                possible.remove(0);
            }
        }

        let mut images = vec![disk.after_kill()];
        images.extend((0..4).map(|_| disk.after_power_cut(&mut random)));
        for image in images {
            let store = match open(&image) {
                Ok(store) => store,
                // The power was cut while the file was made. `Store::open` sets it aside.
                Err(redb::Error::Io(error)) if !opened && error.kind() == std::io::ErrorKind::InvalidData => continue,
                Err(error) => panic!("call {call}: {error}"),
            };
            let mut found = content(&store);
            found.one_boot_earlier();
            assert!(
                possible.contains(&found),
                "call {call}: {found:?}\nis none of {possible:?}"
            );
            store.append("t", |_| Vec::new()).unwrap();
        }
    }
}
