//! The store against a model, and against a medium that fails and loses power.

mod crash;
mod disk;
mod model;

use offramp_proto::Digest;

use crate::{Limits, Store};
use disk::Disk;

/// Limits small enough that short sequences of actions meet every one of them.
fn tight_limits() -> Limits {
    Limits {
        outbox_records: 6,
        outbox_bytes: 200,
        record_bytes: 80,
        checkpoint_bytes: 50,
        cameras: 2,
        desired_bytes: 40,
        artifact_bytes: 100,
        values: 3,
        value_bytes: 20,
    }
}

fn open(disk: &Disk) -> Result<Store, redb::Error> {
    Store::open_backend(disk.clone(), tight_limits())
}

/// Syncs and KiB written by one call, on average, in steady state.
fn cost(disk: &Disk, mut call: impl FnMut()) -> (f64, f64) {
    const WARM_UP: u32 = 20;
    const CALLS: u32 = 100;
    for _ in 0..WARM_UP {
        call();
    }
    let before = disk.usage();
    for _ in 0..CALLS {
        call();
    }
    let after = disk.usage();
    let per_call = |total: u64| total as f64 / f64::from(CALLS);
    (
        per_call(after.syncs - before.syncs),
        per_call(after.written - before.written) / 1024.0,
    )
}

/// The figures of the crate documentation.
#[test]
fn a_write_costs_what_the_documentation_says() {
    let disk = Disk::default();
    let store = Store::open_backend(disk.clone(), Limits::default()).unwrap();
    let append = || store.append("up/summary", |_| vec![7; 600]).unwrap().sequence;
    for _ in 0..3000 {
        append();
    }
    let (syncs, appended) = cost(&disk, || {
        append();
    });
    assert_eq!(syncs, 1.0);
    assert!((28.0..37.0).contains(&appended), "{appended} KiB");

    let (syncs, acknowledged) = cost(&disk, || {
        let sequences: Vec<u64> = (0..32).map(|_| append()).collect();
        store.acknowledge(&sequences).unwrap();
    });
    assert_eq!(syncs, 33.0);
    let acknowledged = acknowledged - 32.0 * appended;
    assert!((20.0..60.0).contains(&acknowledged), "{acknowledged} KiB for 32");

    let (syncs, saved) = cost(&disk, || {
        store.save_checkpoint("", &[3; 200 << 10]).unwrap();
    });
    assert_eq!(syncs, 1.0);
    assert!((200.0..300.0).contains(&saved), "{saved} KiB");
}

#[test]
fn a_full_store_keeps_to_the_documented_size() {
    let disk = Disk::default();
    let limits = Limits::default();
    let store = Store::open_backend(disk.clone(), limits.clone()).unwrap();
    let fill = || {
        for length in [600, 3_000, 20_000, 150_000] {
            for _ in 0..500 {
                store.append("up/summary", |_| vec![7; length]).unwrap();
            }
        }
        store.save_checkpoint("", &vec![3; 4 << 20]).unwrap();
        for id in 0..20u8 {
            let artifact = vec![id; 1 << 20];
            store.put_artifact(Digest::of(&artifact), &artifact).unwrap();
        }
    };
    fill();
    let once = disk.length();
    fill();
    fill();
    assert!(store.outbox().unwrap().bytes > limits.outbox_bytes - limits.record_bytes);
    assert!(disk.length() <= 128 << 20, "{} MiB", disk.length() >> 20);
    assert_eq!(disk.length(), once, "it does not creep");
}

#[test]
fn what_changes_nothing_writes_nothing() {
    let disk = Disk::default();
    let store = open(&disk).unwrap();
    store.set_desired(4, b"four").unwrap();
    store.set_value("mode", b"calm").unwrap();
    let before = disk.usage();

    store.set_desired(4, b"four").unwrap();
    store.set_value("mode", b"calm").unwrap();
    store.set_desired(3, b"three").unwrap_err();
    store.set_roles(&store.roles().unwrap()).unwrap();
    assert_eq!(store.acknowledge(&[12, 13]).unwrap(), 0);
    assert!(!store.remove_value("absent").unwrap());
    assert!(!store.discard_checkpoint("", 9).unwrap());

    assert_eq!(disk.usage(), before);
}
