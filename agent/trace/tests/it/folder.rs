//! The files of a camera.

use std::path::Path;

use offramp_trace::{Folder, files};

use crate::sample::{frame, header, read};

fn names(folder: &Path) -> Vec<String> {
    let paths = files(folder).unwrap();
    paths
        .iter()
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect()
}

#[test]
fn the_oldest_files_make_room_and_each_run_begins_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let header = header(false);
    let frame = |n| frame(&header, n, 1, &[(1, 0.5), (1, 0.6), (1, 0.7)]);
    // Not ours.
    std::fs::write(folder.path().join("gate-notes.trace"), b"").unwrap();
    std::fs::write(folder.path().join("yard-00000000.trace"), b"").unwrap();
    std::fs::write(folder.path().join("gate-18446744073709551615.trace"), b"").unwrap();
    let mut number = 0;
    for _run in 0..2 {
        let mut traces = Folder::open(folder.path(), header.clone(), 10_000, 3).unwrap();
        for _ in 0..500 {
            traces.push(&frame(number), 1_700_000_000_000 + number).unwrap();
            number += 1;
        }
        traces.finish().unwrap();
    }
    let names = names(folder.path());
    assert_eq!(
        names[1..],
        [
            "gate-00000006.trace",
            "gate-00000007.trace",
            "gate-18446744073709551615.trace",
            "gate-notes.trace",
            "yard-00000000.trace"
        ]
    );
    let bytes = std::fs::read(folder.path().join(&names[0])).unwrap();
    assert!((10_000..11_000).contains(&bytes.len()), "{}", bytes.len());
    let (frames, error) = read(&bytes).unwrap();
    assert!(error.is_none());
    let reader = offramp_trace::Reader::new(&bytes[..]).unwrap();
    assert_eq!(reader.header().started_at, 1_700_000_000_000 + frames[0].number);
}

#[test]
fn nothing_is_made_before_there_is_a_frame() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("traces");
    let mut traces = Folder::open(&path, header(false), 10_000, 3).unwrap();
    traces.flush().unwrap();
    traces.finish().unwrap();
    assert!(names(&path).is_empty());
}
