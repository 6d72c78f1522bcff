use offramp_model::{MANIFEST, Package, VECTORS};
use offramp_proto::Digest;

use crate::draft::{CLASSES, Draft, FEATURES, weights};

#[test]
fn a_package_is_read_with_all_that_it_holds() {
    let package = Draft::new().read().unwrap();
    let manifest = package.manifest();
    assert_eq!((manifest.name.as_str(), manifest.version), ("draft", 7));
    assert_eq!(manifest.classes, ["boot", "shirt", "bag"]);
    assert_eq!(manifest.subsets["worn"], [0, 1]);
    assert_eq!(manifest.provenance["epochs"].as_integer(), Some(3));
    assert_eq!(manifest.stages[0].state, ["x", "c0"]);
    assert_eq!(manifest.exits[1].temperature, 1.0);
    assert_eq!(manifest.input.values(), 4);
    assert!(package.stages().eq([&b"first graph"[..], b"second graph"]));

    assert_eq!(package.heads().len(), 2);
    for (head, features) in package.heads().iter().zip(FEATURES) {
        assert_eq!((head.classes, head.features), (CLASSES, features));
        assert!(
            head.weight
                .iter()
                .copied()
                .eq((0..CLASSES * features).map(|i| weights("", i)))
        );
        assert!(head.bias.iter().copied().eq((0..CLASSES).map(|i| weights("", i))));
    }
}

#[test]
fn vectors_are_read_row_by_row() {
    let vectors = Draft::new().read().unwrap().vectors().unwrap().unwrap();
    assert_eq!(vectors.images, [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(vectors.logits.images, 2);
    assert_eq!(vectors.logits.at(0, 1), [3.0, 4.0, 5.0]);
    assert_eq!(vectors.logits.at(1, 0), [6.0, 7.0, 8.0]);
    assert_eq!(vectors.test_logits.unwrap().at(4, 1), [-27.0, -28.0, -29.0]);
}

#[test]
fn a_package_goes_without_vectors_even_where_they_are_listed() {
    let sealed = Draft::new().seal().without(VECTORS);
    assert_eq!(sealed.read().unwrap().vectors().unwrap(), None);
    let unlisted = Draft::new().without(VECTORS);
    assert_eq!(unlisted.read().unwrap().vectors().unwrap(), None);
}

#[test]
fn keys_that_are_not_known_are_ignored() {
    let package = Draft::new()
        .set("exits.0.flops", 3)
        .set("colour", "red")
        .read()
        .unwrap();
    assert_eq!(package.manifest(), Draft::new().seal().read().unwrap().manifest());
}

#[test]
fn a_file_that_is_not_listed_is_not_asked_for() {
    let draft = Draft::new().seal();
    let manifest = draft.manifest.to_string().into_bytes();
    let mut asked = Vec::new();
    Package::read("draft", |name| {
        asked.push(name.to_owned());
        Some(
            if name == MANIFEST {
                manifest.clone()
            } else {
                draft.parts[name].clone()
            }
            .into(),
        )
    })
    .unwrap();
    assert_eq!(asked.remove(0), MANIFEST);
    assert!(asked.iter().eq(draft.parts.keys()));
}

#[test]
fn a_directory_holds_the_same_package_as_memory() {
    let directory = tempfile::tempdir().unwrap();
    Draft::new().write(directory.path());
    std::fs::write(directory.path().join("notes.txt"), "not a part").unwrap();
    let opened = Package::open(directory.path()).unwrap();
    let read = Draft::new().read().unwrap();
    assert_eq!(opened.manifest(), read.manifest());
    assert_eq!(opened.heads(), read.heads());
    assert_eq!(opened.digest(), read.digest());
    assert_eq!(opened.label(), directory.path().display().to_string());
}

#[test]
fn the_digest_of_a_package_is_that_of_its_manifest_and_covers_every_part() {
    let digest = Draft::new().read().unwrap().digest();
    assert_eq!(digest, Digest::of(Draft::new().seal().manifest.to_string().as_bytes()));
    assert_ne!(
        digest,
        Draft::new().part("stage-1.onnx", "other").read().unwrap().digest()
    );
}
