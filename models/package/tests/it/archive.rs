//! Packages as one file.

use std::path::Path;

use offramp_model::{MANIFEST, Package, Problem};
use tar::{Builder, EntryType, Header};

use crate::draft::Draft;

fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    Draft::new().seal().write(directory.path());
    directory
}

#[test]
fn a_package_is_the_same_as_a_directory_and_as_one_file() {
    let directory = directory();
    let file = Package::pack(directory.path()).unwrap();
    assert_eq!(
        file,
        Package::pack(directory.path()).unwrap(),
        "the same bytes each time"
    );
    let (packed, open) = (
        Package::unpack("packed", &file).unwrap(),
        Package::open(directory.path()).unwrap(),
    );
    assert_eq!(packed.digest(), open.digest());
    assert_eq!(packed.manifest(), open.manifest());
    assert!(packed.stages().eq(open.stages()));
    assert_eq!(packed.vectors().unwrap(), open.vectors().unwrap());
    let path = directory.path().join("draft.tar");
    std::fs::write(&path, &file).unwrap();
    assert_eq!(Package::open(&path).unwrap().digest(), open.digest());
    assert_eq!(Package::pack(&path).unwrap(), file);
}

#[test]
fn what_the_tool_tar_made_is_read_too() {
    let directory = directory();
    let made = std::process::Command::new("tar")
        .args(["-cf", "-", "-C"])
        .arg(directory.path())
        .arg(".")
        .output()
        .unwrap();
    assert!(made.status.success());
    let package = Package::unpack("made", &made.stdout).unwrap();
    assert_eq!(package.digest(), Package::open(directory.path()).unwrap().digest());
}

/// An archive with a package in it, and one more file.
fn with(name: &[u8], kind: EntryType, content: &[u8]) -> Vec<u8> {
    let directory = directory();
    let mut archive = Builder::new(Vec::new());
    archive.append_dir_all(".", directory.path()).unwrap();
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.as_ustar_mut().unwrap().name[..name.len()].copy_from_slice(name);
    if kind == EntryType::Symlink {
        header.set_link_name("/etc/passwd").unwrap();
    }
    header.set_cksum();
    archive.append(&header, content).unwrap();
    archive.into_inner().unwrap()
}

#[test]
fn an_archive_with_anything_else_in_it_is_refused_with_its_name() {
    let tricks: [(&[u8], EntryType, &str); 8] = [
        (b"../evil", EntryType::Regular, "a name that no part has"),
        (b"/etc/evil", EntryType::Regular, "a name that no part has"),
        (b"a/b", EntryType::Regular, "a name that no part has"),
        (b".hidden", EntryType::Regular, "a name that no part has"),
        (b"stage-9.onnx", EntryType::Symlink, "no plain file"),
        (b"stage-9.onnx", EntryType::Directory, "no plain file"),
        (b"pipe", EntryType::Fifo, "no plain file"),
        (MANIFEST.as_bytes(), EntryType::Regular, "there twice"),
    ];
    for (name, kind, why) in tricks {
        let error = Package::unpack("trick", &with(name, kind, b"")).unwrap_err();
        let text = error.to_string();
        let is_stray = matches!(*error.problem, Problem::Stray(_));
        assert!(is_stray && text.contains(why), "{text}");
        assert!(text.contains(&*String::from_utf8_lossy(name)), "{text}");
    }
    let more = Package::unpack("more", &with(b"notes.txt", EntryType::Regular, b"x")).unwrap();
    assert_eq!(more.manifest().name, "draft", "what is not listed is not read");
}

#[test]
fn a_damaged_archive_is_refused() {
    let directory = directory();
    let file = Package::pack(directory.path()).unwrap();
    for cut in [0, 1, 511, 512, 700, file.len() / 2] {
        assert!(Package::unpack("cut", &file[..cut]).is_err(), "cut at {cut}");
    }
    // The manifest, which comes first, has no digest in itself: whoever names the whole file has one of it.
    let manifest = std::fs::read(directory.path().join(MANIFEST)).unwrap().len();
    for at in (512 + manifest..file.len()).step_by(97) {
        let mut spoilt = file.clone();
        spoilt[at] ^= 0x40;
        // Between the files lies nothing that counts.
        if let Ok(package) = Package::unpack("spoilt", &spoilt) {
            assert_eq!(
                package.digest(),
                Package::open(directory.path()).unwrap().digest(),
                "{at}"
            );
        }
    }
    assert!(Package::unpack("text", b"not a tar archive").is_err());
    assert!(Package::open(Path::new("/dev/null")).is_err());
}
