//! Finding a model package: the embedded default, a shipped one, a directory, or a file.

use std::borrow::Cow;
use std::path::Path;

use offramp_core::{Head, HeadError, Network, Settings, Whitener};
use offramp_model::{Package, PackageError};
use offramp_proto::ModelFacts;

/// Name of the package inside this binary.
pub const EMBEDDED: &str = "revcol-fashion";

/// Folder of the shipped packages, in a checkout.
const ZOO: &str = "models/zoo";

/// Why there is no package.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Neither embedded, nor in the zoo, nor a directory.
    #[error(
        "no model package `{0}`: give the embedded `{EMBEDDED}`, a directory with a model.toml, its one file, or a name in {ZOO}"
    )]
    NotFound(String),
    /// The package is refused.
    #[error(transparent)]
    Refused(#[from] PackageError),
}

/// Opens the package of a name or directory.
///
/// # Errors
/// See [`OpenError`].
pub fn open(name: &str) -> Result<Package, OpenError> {
    let path = Path::new(name);
    let in_zoo = Path::new(ZOO).join(name);
    if path.is_dir() || path.is_file() {
        Ok(Package::open(path)?)
    } else if name == EMBEDDED {
        Ok(embedded()?)
    } else if in_zoo.is_dir() {
        Ok(Package::open(&in_zoo)?)
    } else {
        Err(OpenError::NotFound(name.into()))
    }
}

/// The package inside this binary.
///
/// # Errors
/// None, unless this build is broken.
pub fn embedded() -> Result<Package, PackageError> {
    macro_rules! files {
        ($($name:literal),*) => {
            |name: &str| match name {
                $($name => Some(&include_bytes!(concat!("../../../models/zoo/revcol-fashion/", $name))[..]),)*
                _ => None,
            }
        };
    }
    let files = files!(
        "model.toml",
        "stage-0.onnx",
        "stage-1.onnx",
        "stage-2.onnx",
        "stage-3.onnx",
        "heads.safetensors",
        "whiteners.safetensors"
    );
    Package::read(EMBEDDED, |name| files(name).map(Cow::Borrowed))
}

/// What the core needs of a package.
///
/// # Errors
/// None for a package that was read: its heads are checked.
pub fn network(package: &Package) -> Result<Network, HeadError> {
    let heads = package.heads().iter();
    let heads = heads.map(|h| Head::new(h.classes, h.features, h.weight.clone(), h.bias.clone()));
    let stage_macs = package.manifest().stages.iter().map(|stage| stage.macs).collect();
    let whiteners = package.whiteners().iter();
    Ok(Network {
        heads: heads.collect::<Result<_, _>>()?,
        // Their shapes are checked and their numbers finite.
        whiteners: whiteners
            .map(|w| Whitener::new(w.mean.clone(), w.precision.clone()).ok())
            .collect(),
        stage_macs,
    })
}

/// How the package's heads specialize best: its own settings, where it has some.
pub fn settings(package: &Package) -> Settings {
    let mut settings = Settings::default();
    if let Some(chosen) = package.manifest().specialization {
        settings.threshold = chosen.threshold;
        let learner = &mut settings.learner;
        learner.rate = chosen.rate;
        learner.whitened = chosen.whitened;
        learner.gate = chosen.gate;
        learner.prior.strength = chosen.prior;
        learner.prior.window = chosen.prior_window;
        learner.prior.smoothing = chosen.prior_smoothing;
        learner.prior.doubt = chosen.prior_doubt;
        learner.prior.on_last = chosen.prior_last;
    }
    settings
}

/// What the fleet needs of a package.
pub fn facts(package: &Package) -> ModelFacts {
    let manifest = package.manifest();
    ModelFacts {
        name: manifest.name.clone(),
        version: manifest.version.into(),
        digest: package.digest(),
        classes: manifest.classes.clone(),
        stage_macs: manifest.stages.iter().map(|stage| stage.macs).collect(),
    }
}
