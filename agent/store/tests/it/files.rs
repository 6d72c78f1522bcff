//! Files that are damaged, foreign, or in use.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use offramp_store::{Limits, OpenError, Opened, Store};
use proptest::prelude::*;
use redb::{Database, TableDefinition};

use crate::random;

fn fill(path: &Path) {
    let (store, _) = Store::open(path, Limits::default()).unwrap();
    for n in 0..30 {
        store
            .append("up/summary", |sequence| vec![sequence as u8; 500 * n])
            .unwrap();
    }
    store.save_checkpoint("", &[7; 20_000]).unwrap();
    store.set_desired(3, b"three").unwrap();
}

/// The content of a filled store's file.
fn filled() -> &'static Vec<u8> {
    static CONTENT: OnceLock<Vec<u8>> = OnceLock::new();
    CONTENT.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("device.redb");
        fill(&path);
        fs::read(&path).unwrap()
    })
}

/// The files in `directory`, but for the store itself.
fn others(directory: &Path) -> Vec<String> {
    fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "device.redb")
        .collect()
}

fn assert_replaced(path: &Path) -> String {
    let before = fs::read(path).unwrap();
    let (store, opened) = Store::open(path, Limits::default()).unwrap();
    let Opened::Replaced { reason, kept } = opened else {
        panic!("{opened:?}")
    };
    assert_eq!(fs::read(kept).unwrap().len(), before.len());
    assert_eq!(others(path.parent().unwrap()), ["device.redb.unusable"]);
    assert_eq!(store.boot(), 1);
    store.append("up/event", |_| vec![1]).unwrap();
    drop(store);
    let (store, opened) = Store::open(path, Limits::default()).unwrap();
    assert_eq!((opened, store.boot()), (Opened::Existing, 2));
    assert_eq!(store.outbox().unwrap().records, 1);
    reason
}

#[test]
fn a_store_outlives_its_process() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("made/on/demand/device.redb");
    let (store, opened) = Store::open(&path, Limits::default()).unwrap();
    assert_eq!((opened, store.boot()), (Opened::New, 1));
    store
        .append("up/event", |sequence| sequence.to_be_bytes().to_vec())
        .unwrap();
    drop(store);
    let (store, opened) = Store::open(&path, Limits::default()).unwrap();
    assert_eq!((opened, store.boot()), (Opened::Existing, 2));
    let records = store.records_after(0, 10, 1000).unwrap();
    assert_eq!(records[0].payload, 1u64.to_be_bytes());
}

#[test]
fn a_store_is_opened_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("device.redb");
    let _store = Store::open(&path, Limits::default()).unwrap();
    let error = Store::open(&path, Limits::default()).unwrap_err();
    assert!(
        matches!(&error, OpenError::Busy { path: busy } if *busy == path),
        "{error}"
    );
    assert!(others(directory.path()).is_empty());
}

#[test]
fn what_is_no_store_is_set_aside() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("device.redb");
    for content in [&b"not a store"[..], &[0; 100_000], &[0xff; 5_000]] {
        fs::write(&path, content).unwrap();
        assert_replaced(&path);
    }
}

#[test]
fn checkpoints_from_before_there_were_several_cameras_are_taken_over() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("device.redb");
    drop(Store::open(&path, Limits::default()).unwrap());
    let database = Database::open(&path).unwrap();
    let write = database.begin_write().unwrap();
    let old: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("checkpoints");
    write.open_table(old).unwrap().insert(7, &b"heads"[..]).unwrap();
    write.commit().unwrap();
    drop(database);
    for _ in 0..2 {
        let (store, opened) = Store::open(&path, Limits::default()).unwrap();
        assert_eq!(opened, Opened::Existing);
        let kept = store.checkpoints("").unwrap();
        assert_eq!((kept.len(), kept[0].number, &kept[0].heads[..]), (1, 7, &b"heads"[..]));
        assert_eq!(store.checkpoints("gate").unwrap(), []);
    }
}

#[test]
fn a_store_of_a_newer_format_is_set_aside() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("device.redb");
    fill(&path);
    let database = Database::open(&path).unwrap();
    let write = database.begin_write().unwrap();
    let counters = TableDefinition::<&str, u64>::new("counters");
    write.open_table(counters).unwrap().insert("format", 2).unwrap();
    write.commit().unwrap();
    drop(database);
    let reason = assert_replaced(&path);
    assert!(reason.contains("format 2"), "{reason}");
}

#[test]
fn a_store_of_other_tables_is_set_aside() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("device.redb");
    let database = Database::create(&path).unwrap();
    let write = database.begin_write().unwrap();
    write
        .open_table(TableDefinition::<u64, u64>::new("outbox"))
        .unwrap()
        .insert(1, 1)
        .unwrap();
    write.commit().unwrap();
    drop(database);
    assert_replaced(&path);
}

#[test]
fn a_path_that_cannot_be_used_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    for path in [file.join("device.redb"), directory.path().to_path_buf()] {
        let error = Store::open(&path, Limits::default()).unwrap_err();
        assert!(matches!(error, OpenError::Io { .. }), "{error}");
    }
}

#[test]
fn limits_that_cannot_work_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let limits = Limits {
        outbox_bytes: 1000,
        ..Limits::default()
    };
    let error = Store::open(&directory.path().join("device.redb"), limits).unwrap_err();
    assert!(
        matches!(
            error,
            OpenError::Limit {
                name: "outbox_bytes",
                value: 1000,
                ..
            }
        ),
        "{error}"
    );
    assert!(others(directory.path()).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Whatever became of the file, the device starts, and what it reads is what it once wrote.
    #[test]
    fn a_damaged_store_is_whole_or_set_aside(seed: u64, wounds in 1..20usize, truncated in prop::option::of(0..100u64)) {
        let mut random = random(seed);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("device.redb");
        let mut content = filled().clone();
        for _ in 0..wounds {
            // Half of them where the roots are, where damage does most.
            let reach = if random(2) == 0 { 8192 } else { content.len() as u64 };
            let at = random(reach) as usize;
            content[at] ^= 1 + random(255) as u8;
        }
        if let Some(percent) = truncated {
            content.truncate(content.len() * percent as usize / 100);
        }
        fs::write(&path, &content).unwrap();

        let (store, opened) = Store::open(&path, Limits::default()).unwrap();
        for record in store.records_after(0, usize::MAX, u64::MAX).unwrap() {
            prop_assert_eq!(record.payload.len() as u64, 500 * (record.sequence - 1));
            prop_assert!(record.payload.iter().all(|byte| u64::from(*byte) == record.sequence));
        }
        for checkpoint in store.checkpoints("").unwrap() {
            prop_assert_eq!(checkpoint.heads, vec![7; 20_000]);
        }
        if let Some(desired) = store.desired().unwrap() {
            prop_assert_eq!(desired.signed, b"three");
        }
        if matches!(opened, Opened::Replaced { .. }) {
            prop_assert_eq!(store.boot(), 1);
        }
        store.append("up/event", |_| vec![1]).unwrap();
    }
}
