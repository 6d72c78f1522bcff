use std::borrow::Cow;
use std::error::Error as _;

use offramp_model::{HEADS, MANIFEST, Manifest, Package, Problem, VECTORS, limits};
use offramp_proto::Digest;
use proptest::prelude::*;
use safetensors::Dtype;

use crate::draft::{Draft, FEATURES, LABEL, floats, heads, safetensors, weights};

/// Refuses the draft over `part`, and gives the problem and the whole message.
#[track_caller]
fn refused(draft: Draft, part: &str) -> (Problem, String) {
    let error = draft.read().expect_err("the package was accepted");
    let mut message = error.to_string();
    if let Some(source) = error.source() {
        message = format!("{message}: {source}");
    }
    assert_eq!(
        (error.package.as_str(), error.part.as_str()),
        (LABEL, part),
        "{message}"
    );
    assert!(
        message.starts_with(&format!("model package draft: {part} ")),
        "{message}"
    );
    (*error.problem, message)
}

/// Refuses the draft over a field of its manifest.
#[track_caller]
fn refused_field(draft: Draft, field: &str) {
    match refused(draft, MANIFEST) {
        (Problem::Field { field: found, .. }, message) => assert_eq!(found, field, "{message}"),
        (_, message) => panic!("another problem: {message}"),
    }
}

#[test]
fn a_digest_that_does_not_match_is_refused() {
    for part in ["stage-0.onnx", "stage-1.onnx", HEADS, VECTORS] {
        let mut draft = Draft::new().seal();
        draft.parts.get_mut(part).unwrap()[3] ^= 1;
        let found = Digest::of(&draft.parts[part]);
        let (problem, message) = refused(draft, part);
        assert!(
            matches!(problem, Problem::Digest { found: f, .. } if f == found),
            "{message}"
        );
        assert!(message.contains("copy the package again"), "{message}");
    }
}

#[test]
fn a_missing_part_is_refused() {
    for part in ["stage-0.onnx", "stage-1.onnx", HEADS] {
        let (problem, _) = refused(Draft::new().seal().without(part), part);
        assert!(matches!(problem, Problem::Missing));
    }
    let error = Package::read(LABEL, |_| None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "model package draft: model.toml is missing; copy the whole package again"
    );
}

#[test]
fn a_part_without_a_digest_is_refused() {
    for part in ["stage-1.onnx", HEADS] {
        let mut draft = Draft::new().seal();
        draft.manifest["digests"].as_table_mut().unwrap().remove(part);
        let manifest = draft.manifest.to_string().into_bytes();
        let error = Package::read(LABEL, |name| {
            Some(Cow::Owned(if name == MANIFEST {
                manifest.clone()
            } else {
                draft.parts[name].clone()
            }))
        })
        .unwrap_err();
        assert_eq!(error.part, part);
        assert!(matches!(*error.problem, Problem::NoDigest));
    }
}

#[test]
fn weights_that_are_not_finite_are_refused() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for tensor in ["exit-0.weight", "exit-1.bias"] {
            let spoilt = heads(&|name, i| {
                if name == tensor && i == 2 {
                    bad
                } else {
                    weights(name, i)
                }
            });
            let (problem, message) = refused(Draft::new().part(HEADS, spoilt), HEADS);
            let Problem::NotFinite {
                tensor: found, index, ..
            } = problem
            else {
                panic!("{message}")
            };
            assert_eq!((found.as_str(), index), (tensor, 2));
        }
    }
}

#[test]
fn a_head_of_another_shape_or_type_is_refused() {
    let weight = floats(3 * FEATURES[0], |_| 1.0);
    let wrong = [
        (Dtype::F32, vec![FEATURES[0], 3], weight.as_slice()),
        (Dtype::F32, vec![3 * FEATURES[0]], &weight),
        (Dtype::F32, vec![3, FEATURES[0] / 2], &weight[..24]),
        (Dtype::F16, vec![3, FEATURES[0]], &weight[..24]),
    ];
    for (dtype, shape, data) in wrong {
        let file = safetensors([("exit-0.weight", dtype, shape.clone(), data)]);
        let (problem, message) = refused(Draft::new().part(HEADS, file), HEADS);
        let Problem::Tensor {
            tensor,
            found_shape,
            expected_shape,
            ..
        } = problem
        else {
            panic!("{message}")
        };
        assert_eq!((tensor.as_str(), found_shape), ("exit-0.weight", shape));
        assert_eq!(expected_shape, [3, FEATURES[0]]);
    }
}

#[test]
fn a_head_that_is_missing_is_refused() {
    let weight = floats(3 * FEATURES[0], |_| 1.0);
    let file = safetensors([("exit-0.weight", Dtype::F32, vec![3, FEATURES[0]], weight.as_slice())]);
    let (problem, _) = refused(Draft::new().part(HEADS, file), HEADS);
    assert!(matches!(problem, Problem::NoTensor { tensor } if tensor == "exit-0.bias"));
}

#[test]
fn heads_that_are_no_safetensors_are_refused() {
    let good = heads(&weights);
    let mut long_header = good.clone();
    long_header[..8].copy_from_slice(&(limits::TENSORS_HEADER_BYTES as u64 + 1).to_le_bytes());
    for bad in [
        &b""[..],
        b"\x05\0\0\0\0\0\0\0nope!",
        &good[..good.len() - 1],
        &long_header,
    ] {
        let (problem, message) = refused(Draft::new().part(HEADS, bad), HEADS);
        assert!(matches!(problem, Problem::Tensors(_)), "{message}");
    }
}

#[test]
fn vectors_of_another_shape_are_refused_when_asked_for() {
    let images = safetensors([("images", Dtype::U8, vec![1, 2, 2, 3], &[0; 12][..])]);
    let package = Draft::new().part(VECTORS, images).read().unwrap();
    let error = package.vectors().unwrap_err();
    assert_eq!((error.package.as_str(), error.part.as_str()), (LABEL, VECTORS));
    assert!(matches!(*error.problem, Problem::Tensor { tensor, .. } if tensor == "images"));
}

#[test]
fn an_unknown_format_is_refused_before_its_keys_are_looked_at() {
    let mut draft = Draft::new().set("format", 2);
    draft.manifest.remove("classes");
    let (problem, message) = refused(draft, MANIFEST);
    assert!(matches!(problem, Problem::Format { found: 2 }));
    assert!(
        message.contains("reads format 1") && message.contains("update the program"),
        "{message}"
    );
}

#[test]
fn a_bad_manifest_is_refused_with_its_place() {
    for bad in ["", "format = 1", "format = 'one'", "format = 1\nname = ", "\u{0}"] {
        assert!(
            matches!(Manifest::parse(bad.as_bytes()), Err(Problem::Manifest(_))),
            "{bad}"
        );
    }
    assert!(matches!(Manifest::parse(b"\xff"), Err(Problem::NotText(_))));
    let (problem, message) = refused(Draft::new().set("stages.1.macs", "many"), MANIFEST);
    assert!(matches!(problem, Problem::Manifest(_)));
    assert!(message.contains("macs") && message.contains("line"), "{message}");
    let (problem, _) = refused(Draft::new().set("digests.heads", "sha256:12"), MANIFEST);
    assert!(matches!(problem, Problem::Manifest(_)));
}

#[test]
fn a_file_name_that_leaves_the_package_is_refused() {
    let long = "n".repeat(limits::NAME_BYTES + 1);
    let names = [
        "../stage-0.onnx",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "..",
        ".",
        ".hidden",
        "",
        "C:stage",
        "stage.",
        "a b",
        "stage\0",
        "stäge",
        "model.toml",
        &long,
    ];
    for name in names {
        refused_field(Draft::new().set("stages.1.file", name), "stages[1].file");
        let mut draft = Draft::new().seal();
        let digests = draft.manifest["digests"].as_table_mut().unwrap();
        digests.insert(name.to_owned(), Digest::of(b"").to_string().into());
        refused_field(draft, "digests");
    }
}

#[test]
fn values_beyond_their_bounds_are_refused() {
    let long = "x".repeat(limits::TEXT_BYTES + 1);
    let big = 1i64 << 40;
    let cases: Vec<(&str, toml::Value, &str)> = vec![
        ("name", "Draft".into(), "name"),
        ("name", "".into(), "name"),
        ("name", "-draft".into(), "name"),
        ("name", "a/b".into(), "name"),
        ("version", 0.into(), "version"),
        ("description", long.into(), "description"),
        ("license", "MIT\u{1b}[31m".into(), "license"),
        ("classes", toml::Value::Array(vec!["one".into()]), "classes"),
        (
            "classes",
            toml::Value::Array(vec!["x".into(); limits::CLASSES + 1]),
            "classes",
        ),
        ("input.height", 0.into(), "input.height"),
        ("input.width", big.into(), "input.width"),
        ("input.channels", 2.into(), "input.mean"),
        ("input.mean", toml::Value::Array(vec![f64::NAN.into()]), "input.mean[0]"),
        ("input.std", toml::Value::Array(vec![0.0.into()]), "input.std[0]"),
        ("subsets.none", toml::Value::Array(vec![]), "subsets.none"),
        (
            "subsets.twice",
            toml::Value::Array(vec![1.into(), 1.into()]),
            "subsets.twice",
        ),
        ("subsets.fourth", toml::Value::Array(vec![3.into()]), "subsets.fourth"),
        ("stages", toml::Value::Array(vec![]), "stages"),
        ("stages.1.file", "stage-0.onnx".into(), "stages[1].file"),
        ("stages.0.macs", 0.into(), "stages[0].macs"),
        ("stages.0.features", "".into(), "stages[0].features"),
        (
            "stages.0.inputs",
            toml::Value::Array(vec!["a".into(), "b".into()]),
            "stages[0].inputs",
        ),
        (
            "stages.1.inputs",
            toml::Value::Array(vec!["x".into()]),
            "stages[1].inputs",
        ),
        (
            "stages.1.inputs",
            toml::Value::Array(vec!["x".into(), "x".into()]),
            "stages[1].inputs",
        ),
        ("stages.0.state", toml::Value::Array(vec![]), "stages[0].state"),
        (
            "stages.1.state",
            toml::Value::Array(vec!["y".into()]),
            "stages[1].state",
        ),
        ("exits.1.stage", 0.into(), "exits[1].stage"),
        ("exits.0.features", 0.into(), "exits[0].features"),
        ("exits.0.features", big.into(), "exits[0].features"),
        ("exits.0.temperature", 0.0.into(), "exits[0].temperature"),
        ("exits.0.temperature", f64::INFINITY.into(), "exits[0].temperature"),
        (
            "exits.1.validation_accuracy",
            1.5.into(),
            "exits[1].validation_accuracy",
        ),
        ("exits.1.test_accuracy", f64::NAN.into(), "exits[1].test_accuracy"),
    ];
    for (path, value, field) in cases {
        refused_field(Draft::new().set(path, value), field);
    }
}

#[test]
fn a_package_with_another_number_of_exits_than_stages_is_refused() {
    let mut draft = Draft::new();
    draft.manifest["exits"].as_array_mut().unwrap().pop();
    refused_field(draft, "exits");
}

#[test]
fn what_is_too_large_is_refused_before_it_is_read() {
    let directory = tempfile::tempdir().unwrap();
    Draft::new().write(directory.path());
    // Sparse files: large by their size alone.
    for (name, limit) in [("stage-0.onnx", limits::PART_BYTES), (MANIFEST, limits::MANIFEST_BYTES)] {
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(directory.path().join(name))
            .unwrap();
        file.set_len(limit as u64 + 1).unwrap();
        let error = Package::open(directory.path()).unwrap_err();
        assert_eq!(error.part, name);
        assert!(
            matches!(*error.problem, Problem::TooLarge { bytes, .. } if bytes == limit as u64 + 1),
            "{error}"
        );
    }
}

#[test]
fn a_directory_that_is_not_there_or_not_readable_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let error = Package::open(&directory.path().join("nowhere")).unwrap_err();
    assert!(matches!(*error.problem, Problem::Missing));
    std::fs::create_dir(directory.path().join(MANIFEST)).unwrap();
    let error = Package::open(directory.path()).unwrap_err();
    assert!(matches!(*error.problem, Problem::Io(_)));
    assert!(error.source().is_some());
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(manifest in proptest::collection::vec(any::<u8>(), 0..600),
                                   part in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = Manifest::parse(&manifest);
        let _ = Draft::new().part(HEADS, part.clone()).read();
        let _ = Draft::new().part(VECTORS, part).read().unwrap().vectors();
    }

    /// A byte changed anywhere in the manifest or, with the digests brought up
    /// to date, in the tensors: refused or accepted, never a panic.
    #[test]
    fn mutations_never_panic(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let draft = Draft::new().seal();
        let mut manifest = draft.manifest.to_string().into_bytes();
        let place = at.index(manifest.len());
        manifest[place] = byte;
        let _ = Package::read(LABEL, |name| match name {
            MANIFEST => Some(Cow::Owned(manifest.clone())),
            name => draft.parts.get(name).cloned().map(Cow::Owned),
        });
        for part in [HEADS, VECTORS] {
            let mut draft = Draft::new();
            let bytes = draft.parts.get_mut(part).unwrap();
            let place = at.index(bytes.len());
            bytes[place] = byte;
            let _ = draft.read().map(|package| package.vectors());
        }
    }

    /// Whatever part is changed in whatever place, its digest gives it away.
    #[test]
    fn a_changed_byte_is_found(part in 0usize..4, at in any::<prop::sample::Index>(), mask in 1u8..) {
        let mut draft = Draft::new().seal();
        let name = draft.parts.keys().nth(part).unwrap().clone();
        let bytes = draft.parts.get_mut(&name).unwrap();
        let place = at.index(bytes.len());
        bytes[place] ^= mask;
        let error = draft.read().unwrap_err();
        prop_assert_eq!(error.part, name);
        prop_assert!(matches!(*error.problem, Problem::Digest { .. }), "another problem");
    }
}
