//! A small package to be spoilt in one place.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use offramp_model::{HEADS, MANIFEST, Package, PackageError, VECTORS};
use offramp_proto::Digest;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

pub(crate) const LABEL: &str = "draft";
pub(crate) const CLASSES: usize = 3;
pub(crate) const FEATURES: [usize; 2] = [4, 5];
const IMAGE: [usize; 3] = [2, 2, 1];
const IMAGES: usize = 2;

const TEXT: &str = r#"
format = 1
name = "draft"
version = 7
description = "Two stages, three classes"
license = "MIT"
classes = ["boot", "shirt", "bag"]
[input]
height = 2
width = 2
channels = 1
mean = [0.5]
std = [0.25]
[subsets]
footwear = [0]
worn = [0, 1]
[provenance]
command = "nobody"
epochs = 3
[[stages]]
file = "stage-0.onnx"
macs = 100
inputs = ["image"]
features = "u"
state = ["x", "c0"]
[[stages]]
file = "stage-1.onnx"
macs = 50
inputs = ["x", "c0"]
features = "u"
state = []
[[exits]]
stage = 0
features = 4
temperature = 1.5
validation_accuracy = 0.5
test_accuracy = 0.25
[[exits]]
stage = 1
features = 5
temperature = 1
validation_accuracy = 1
test_accuracy = 0.75
"#;

/// Files of a package; the digests are computed when it is read, unless a test
/// sets them itself.
pub(crate) struct Draft {
    pub(crate) manifest: toml::Table,
    pub(crate) parts: BTreeMap<String, Vec<u8>>,
}

impl Draft {
    pub(crate) fn new() -> Draft {
        let parts = BTreeMap::from([
            ("stage-0.onnx".to_owned(), b"first graph".to_vec()),
            ("stage-1.onnx".to_owned(), b"second graph".to_vec()),
            (HEADS.to_owned(), heads(&weights)),
            (VECTORS.to_owned(), vectors()),
        ]);
        Draft {
            manifest: TEXT.parse().unwrap(),
            parts,
        }
    }

    /// Sets a value of the manifest by a path such as `stages.1.macs`.
    pub(crate) fn set(mut self, path: &str, value: impl Into<toml::Value>) -> Draft {
        *self.value(path) = value.into();
        self
    }

    pub(crate) fn part(mut self, name: &str, bytes: impl Into<Vec<u8>>) -> Draft {
        self.parts.insert(name.to_owned(), bytes.into());
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Draft {
        self.parts.remove(name);
        self
    }

    fn value(&mut self, path: &str) -> &mut toml::Value {
        let mut keys = path.split('.');
        let first = keys.next().unwrap();
        let root = self.manifest.entry(first).or_insert_with(|| toml::Table::new().into());
        keys.fold(root, |at, key| match at {
            toml::Value::Array(array) => &mut array[key.parse::<usize>().unwrap()],
            toml::Value::Table(table) => table.entry(key).or_insert_with(|| toml::Table::new().into()),
            other => panic!("{key} in {other}"),
        })
    }

    /// Lists the digest of every part as it is now, unless one is listed already.
    pub(crate) fn seal(mut self) -> Draft {
        for (name, bytes) in self.parts.clone() {
            let digests = self.value("digests").as_table_mut().unwrap();
            digests
                .entry(name)
                .or_insert_with(|| Digest::of(&bytes).to_string().into());
        }
        self
    }

    pub(crate) fn read(self) -> Result<Package, PackageError> {
        let draft = self.seal();
        let manifest = draft.manifest.to_string().into_bytes();
        Package::read(LABEL, |name| match name {
            MANIFEST => Some(Cow::Owned(manifest.clone())),
            name => draft.parts.get(name).cloned().map(Cow::Owned),
        })
    }

    pub(crate) fn write(self, directory: &Path) {
        let draft = self.seal();
        std::fs::write(directory.join(MANIFEST), draft.manifest.to_string()).unwrap();
        for (name, bytes) in &draft.parts {
            std::fs::write(directory.join(name), bytes).unwrap();
        }
    }
}

/// The weight at an index of a tensor in [`heads`].
pub(crate) fn weights(_tensor: &str, index: usize) -> f32 {
    index as f32 * 0.5
}

pub(crate) fn heads(value: &dyn Fn(&str, usize) -> f32) -> Vec<u8> {
    let mut tensors = Vec::new();
    for (exit, features) in FEATURES.into_iter().enumerate() {
        tensors.push((format!("exit-{exit}.weight"), vec![CLASSES, features]));
        tensors.push((format!("exit-{exit}.bias"), vec![CLASSES]));
    }
    let data: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(name, shape)| floats(shape.iter().product(), |i| value(name, i)))
        .collect();
    safetensors(
        tensors
            .iter()
            .zip(&data)
            .map(|((name, shape), data)| (name.as_str(), Dtype::F32, shape.clone(), data.as_slice())),
    )
}

fn vectors() -> Vec<u8> {
    let images: Vec<u8> = (0..IMAGES as u8 * 4).collect();
    let shape = [IMAGES, IMAGE[0], IMAGE[1], IMAGE[2]].to_vec();
    let logits = floats(IMAGES * 2 * CLASSES, |i| i as f32);
    let test_logits = floats(5 * 2 * CLASSES, |i| -(i as f32));
    safetensors([
        ("images", Dtype::U8, shape, images.as_slice()),
        ("logits", Dtype::F32, vec![IMAGES, 2, CLASSES], logits.as_slice()),
        ("test_logits", Dtype::F32, vec![5, 2, CLASSES], test_logits.as_slice()),
    ])
}

pub(crate) fn floats(n: usize, value: impl Fn(usize) -> f32) -> Vec<u8> {
    (0..n).flat_map(|i| value(i).to_le_bytes()).collect()
}

pub(crate) fn safetensors<'a>(tensors: impl IntoIterator<Item = (&'a str, Dtype, Vec<usize>, &'a [u8])>) -> Vec<u8> {
    let views = tensors
        .into_iter()
        .map(|(name, dtype, shape, data)| (name, TensorView::new(dtype, shape, data).unwrap()));
    safetensors::serialize(views, None).unwrap()
}
