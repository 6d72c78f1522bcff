//! Features of labelled images, from the user's cache, or made and put there.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use offramp_bench::{Features, corrupt};
use offramp_camera::ImageSet;
use offramp_engine::Engine;
use offramp_model::Package;

use crate::{terminal, tool};

/// What is done to the images first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weather {
    /// Nothing.
    Fair,
    /// See [`corrupt`].
    Foul,
}

impl Weather {
    fn suffix(self) -> &'static str {
        match self {
            Self::Fair => "",
            Self::Foul => "-corrupted",
        }
    }
}

/// Features of the stream's and of the test images.
///
/// # Errors
/// When the images are missing, or the cache cannot be written.
pub(super) fn features(package: &Package, data: Option<&Path>, weather: Weather) -> anyhow::Result<[Features; 2]> {
    let cache = super::super::cache()?.join("features");
    let digest = package.digest();
    let suffix = weather.suffix();
    let paths = ["stream", "test"].map(|split| cache.join(format!("{}-{split}{suffix}.features", digest.short())));
    let read = |path: &Path| Features::read(path).ok().filter(|f| f.digest == *digest.as_bytes());
    if let (Some(stream), Some(test)) = (read(&paths[0]), read(&paths[1])) {
        return Ok([stream, test]);
    }
    let images = tool::images(package, data)?;
    fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let [stream, test] = [&images.stream, &images.evaluation].map(|set| extract(package, set, weather));
    let made = [stream?, test?];
    for (features, path) in made.iter().zip(&paths) {
        features.write(path)?;
    }
    Ok(made)
}

fn extract(package: &Package, images: &ImageSet, weather: Weather) -> anyhow::Result<Features> {
    let manifest = package.manifest();
    let mut engine = Engine::load(package)?;
    let mut frame = engine.frame();
    let mut pixels = Vec::new();
    let mut image = vec![0.0; manifest.input.values()];
    let widths = manifest.exits.iter().map(|exit| exit.features);
    let mut exits: Vec<(usize, Vec<f32>)> = widths.map(|c| (c, Vec::with_capacity(c * images.len()))).collect();
    let bar = terminal::progress(images.len() as u64, "features (once)");
    for index in 0..images.len() {
        pixels.clear();
        pixels.extend_from_slice(images.pixels(index).unwrap_or_default());
        if weather == Weather::Foul {
            corrupt(&mut pixels, manifest.input.height, manifest.input.width, index);
        }
        manifest.input.normalize(&pixels, &mut image);
        engine.start(&mut frame, &image)?;
        for (stage, (_, numbers)) in exits.iter_mut().enumerate() {
            numbers.extend_from_slice(engine.run_stage(stage, &mut frame)?);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(Features {
        digest: *package.digest().as_bytes(),
        classes: manifest.classes.len(),
        labels: images.labels().to_vec(),
        exits,
    })
}
