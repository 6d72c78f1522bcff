//! The shipped packages, and ways to spoil them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use offramp_engine::{Engine, LoadError};
use offramp_model::{Digest, MANIFEST, Package};

use prost::Message as _;
use tract_onnx::pb::{GraphProto, ModelProto};

pub(crate) const FASHION: &str = "revcol-fashion";
pub(crate) const CIFAR100: &str = "revcol-cifar100";

fn directory(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../models/zoo")
        .join(name)
}

pub(crate) fn package(name: &str) -> Package {
    Package::open(&directory(name)).unwrap()
}

/// The files of a package, to be changed and sealed again.
pub(crate) struct Files {
    manifest: toml::Table,
    parts: BTreeMap<String, Vec<u8>>,
}

impl Files {
    pub(crate) fn of(name: &str) -> Files {
        let directory = directory(name);
        let manifest: toml::Table = std::fs::read_to_string(directory.join(MANIFEST))
            .unwrap()
            .parse()
            .unwrap();
        let names = manifest["digests"].as_table().unwrap().keys();
        let parts = names
            .map(|name| (name.clone(), std::fs::read(directory.join(name)).unwrap()))
            .collect();
        Files { manifest, parts }
    }

    /// The bytes of a stage.
    pub(crate) fn stage(&mut self, stage: usize) -> &mut Vec<u8> {
        self.parts.get_mut(&format!("stage-{stage}.onnx")).unwrap()
    }

    /// Changes the graph of a stage.
    pub(crate) fn graph(mut self, stage: usize, change: impl FnOnce(&mut GraphProto)) -> Files {
        let bytes = self.stage(stage);
        let mut model = ModelProto::decode(bytes.as_slice()).unwrap();
        change(model.graph.as_mut().unwrap());
        *bytes = model.encode_to_vec();
        self
    }

    /// Changes the version of a stage's operator set.
    #[cfg(feature = "onnxruntime")]
    pub(crate) fn opset(mut self, stage: usize, version: i64) -> Files {
        let bytes = self.stage(stage);
        let mut model = ModelProto::decode(bytes.as_slice()).unwrap();
        model.opset_import[0].version = version;
        *bytes = model.encode_to_vec();
        self
    }

    /// The manifest's table of a stage.
    pub(crate) fn declared(&mut self, stage: usize) -> &mut toml::Table {
        self.manifest["stages"][stage].as_table_mut().unwrap()
    }

    /// The package, with the digests of the files as they are now.
    pub(crate) fn package(mut self) -> Package {
        let digests = self.manifest["digests"].as_table_mut().unwrap();
        for (name, bytes) in &self.parts {
            digests.insert(name.clone(), Digest::of(bytes).to_string().into());
        }
        let manifest = self.manifest.to_string().into_bytes();
        let parts = self.parts;
        Package::read("spoilt", |name| match name {
            MANIFEST => Some(Cow::Owned(manifest.clone())),
            name => parts.get(name).cloned().map(Cow::Owned),
        })
        .unwrap()
    }

    pub(crate) fn load(self) -> Result<Engine, LoadError> {
        Engine::load(&self.package())
    }
}
