//! The commands.

pub mod bench;
pub mod doctor;
pub mod enrol;
pub mod model;
pub mod policy;
pub mod run;
#[cfg(unix)]
mod service;

use offramp_camera::cifar::{self, Split};
use offramp_camera::{FrameShape, ImageSet};
use offramp_core::{GuardSettings, LearnerSettings, Settings, SplitMix64};
use offramp_model::Package;

/// Settings for measuring a package's heads as they are: nothing is learned, every frame is audited.
pub fn measuring(package: &Package, threshold: f32) -> Settings {
    let settings = crate::package::settings(package);
    let learner = LearnerSettings {
        enabled: false,
        ..settings.learner
    };
    Settings {
        threshold,
        audit_rate: 1.0,
        learner,
        guard: GuardSettings::IDLE,
        ..settings
    }
}

/// Labelled images for a package.
pub struct Images {
    /// Images that a device sees while it runs.
    pub stream: ImageSet,
    /// Images that it is measured on.
    pub evaluation: ImageSet,
}

/// Images of a pool in random order; all of them again once each was shown. None where the pool is empty.
pub fn shuffled(mut pool: Vec<u32>, frames: usize, random: &mut SplitMix64) -> Vec<u32> {
    let mut order = Vec::with_capacity(frames);
    while order.len() < frames && !pool.is_empty() {
        random.shuffle(&mut pool);
        order.extend(pool.iter().take(frames - order.len()));
    }
    order
}

/// The labelled images that a package was trained for: the embedded sample where they fit, CIFAR-100 below
/// `data` otherwise.
///
/// # Errors
/// When there are none.
pub fn images(package: &Package, data: Option<&std::path::Path>) -> anyhow::Result<Images> {
    use anyhow::{Context as _, bail};
    let manifest = package.manifest();
    let input = &manifest.input;
    let shape = FrameShape::new(input.height, input.width, input.channels)?;
    if package.label() == crate::package::EMBEDDED || manifest.name == crate::package::EMBEDDED {
        use offramp_camera::sample;
        return Ok(Images {
            stream: sample::stream()?,
            evaluation: sample::evaluation()?,
        });
    }
    let Some(data) = data else {
        bail!(
            "package {} needs its labelled images ({shape}, {} classes): give --data DIR, a folder with `cifar-100/`",
            manifest.name,
            manifest.classes.len()
        );
    };
    let folder = data.join("cifar-100");
    let load = |split| cifar::load(&folder, split).with_context(|| format!("the images of package {}", manifest.name));
    let images = Images {
        stream: load(Split::Stream)?,
        evaluation: load(Split::Evaluation)?,
    };
    if images.stream.shape() != shape {
        bail!(
            "images are {} where package {} reads {shape}",
            images.stream.shape(),
            manifest.name
        );
    }
    Ok(images)
}
