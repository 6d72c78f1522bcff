//! Models: packages are added to the library, and made the desired ones of devices.

use std::sync::Arc;

use bytes::Bytes;
use offramp_model::{Package, PackageError};
use offramp_proto::{DeviceId, Digest, MAX_ARTIFACT};

use crate::desired::PushError;
use crate::store::{NewModel, Store, StoreError, now};

/// Largest model package in bytes, as one file.
pub const MAX_MODEL: usize = MAX_ARTIFACT as usize;

/// A model package to add.
#[derive(Clone, Debug)]
pub struct ModelUpload {
    /// The package as one file (`offramp model pack`), at most [`MAX_MODEL`] bytes.
    pub bytes: Bytes,
    /// Where else devices find this very file: `https://…`. What is missing there comes from the controller.
    pub url: Option<String>,
}

/// A model of the library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedModel {
    /// Its name, as its manifest has it.
    pub name: String,
    /// Its version, as its manifest has it.
    pub version: u64,
    /// Digest of the package as one file.
    pub digest: Digest,
    /// Bytes of the file.
    pub size: u64,
}

/// Why a model was not added or given to devices. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The package is refused.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// The name is not one of a model.
    #[error("model name `{}` is not valid: use 1 to 64 letters, digits, `-`, `_` or `.`", .0.chars().take(80).collect::<String>())]
    Name(String),
    /// The address is not one that devices would take.
    #[error("address `{}` is not valid: use https://… of at most 512 bytes", .0.chars().take(80).collect::<String>())]
    Address(String),
    /// The name and version mean another package already.
    #[error("model `{name}` {version} is another package already ({}): raise the version in its manifest", digest.short())]
    VersionTaken {
        /// The name.
        name: String,
        /// The version.
        version: u64,
        /// What they mean.
        digest: Digest,
    },
    /// There is no such model in the library.
    #[error("there is no model `{0}` {1}")]
    Unknown(String, u64),
    /// The devices.
    #[error(transparent)]
    Devices(PushError),
    /// The database refused.
    #[error("model could not be kept")]
    Store(#[from] StoreError),
}

/// Checks a package whole and keeps it.
pub(crate) async fn add(store: &Store, upload: ModelUpload, who: String) -> Result<AddedModel, ModelError> {
    let ModelUpload { bytes, url } = upload;
    if let Some(url) = url
        .as_ref()
        .filter(|url| !url.starts_with("https://") || url.len() > 512)
    {
        return Err(ModelError::Address(url.clone()));
    }
    // Reading it takes as long as hashing some hundred megabytes: not on a thread that others wait for.
    let file = bytes.clone();
    let read = tokio::task::spawn_blocking(move || {
        let package = Package::unpack("the file", &file)?;
        let manifest = package.manifest();
        let named = (manifest.name.clone(), u64::from(manifest.version), package.digest());
        Ok::<_, PackageError>((named, Digest::of(&file)))
    });
    let ((name, version, manifest), digest) = read.await.map_err(|_| StoreError::Closed)??;
    // The rules for names are those for devices.
    if DeviceId::new(name.as_str()).is_err() {
        return Err(ModelError::Name(name));
    }
    let taken = store
        .model_fetch(&name, version)
        .await?
        .and_then(|kept| kept.artifact.digest);
    if let Some(taken) = taken.filter(|taken| *taken != digest) {
        return Err(ModelError::VersionTaken {
            name,
            version,
            digest: taken,
        });
    }
    store.artifact_prepare(digest, &bytes).await?;
    let size = bytes.len() as u64;
    let model = NewModel {
        name: name.clone(),
        version,
        digest,
        manifest,
        url,
        who,
        now: now(),
    };
    let kept = store.model_insert(model, size).await?;
    if kept != digest {
        return Err(ModelError::VersionTaken {
            name,
            version,
            digest: kept,
        });
    }
    tracing::info!(model = name, version, digest = %digest.short(), bytes = size, "model added");
    Ok(AddedModel {
        name,
        version,
        digest,
        size,
    })
}

/// Makes a model of the library the desired one of devices; without one that of their own configurations.
pub(crate) async fn push(
    store: &Store,
    key: &Arc<crate::key::Keyring>,
    devices: Option<Vec<DeviceId>>,
    model: Option<(String, u64)>,
    who: String,
) -> Result<Vec<(DeviceId, offramp_proto::Generation)>, ModelError> {
    let done = store
        .desired_model(Arc::clone(key), devices, model.clone(), who, now())
        .await?;
    match (done, model) {
        (Some(done), _) => done.map_err(|unfit| ModelError::Devices(unfit.into())),
        (None, Some((name, version))) => Err(ModelError::Unknown(name, version)),
        (None, None) => Ok(Vec::new()),
    }
}
