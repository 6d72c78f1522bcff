//! CIFAR-100 from a folder of mosaics.
//!
//! The folder holds `train.labels` and `test.labels`, two bytes an image (coarse class 0–19, fine class 0–99), and the
//! images in that order as tiles of 32×32 RGB, row by row, in `train_00.webp`, `train_01.webp` … (or `.png`; lossless).
//! The last mosaic may have tiles left over.

use std::path::Path;

use crate::decode::{self, MAX_FILE};
use crate::mosaic::{Mosaic, label_records};
use crate::{Error, FrameShape, ImageSet};

/// Fine classes: labels are 0–99.
pub const CLASSES: u16 = 100;

const SHAPE: FrameShape = FrameShape {
    height: 32,
    width: 32,
    channels: 3,
};

/// Images of each fine class that train the network, in file order from the first.
const TRAIN: usize = 370;
/// Images of each fine class after those, that temperatures and recipes are chosen on.
const VALIDATION: usize = 30;

/// A part of the data set. Of each fine class, in file order, the first 370 training images train, the next 30
/// validate, and the others (100 of 500) are streamed. What a network was fitted on is never streamed: it is
/// over-confident there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// What the network is trained on: 37,000 images.
    Train,
    /// What temperatures and recipes are chosen on: 3,000 images.
    Validation,
    /// What a device sees and learns on: 10,000 images.
    Stream,
    /// What it is measured on: the test images.
    Evaluation,
}

impl Split {
    const fn file(self) -> &'static str {
        match self {
            Self::Train | Self::Validation | Self::Stream => "train",
            Self::Evaluation => "test",
        }
    }

    /// Whether the image that is number `rank` (from 0) of its class in the file belongs here.
    const fn takes(self, rank: usize) -> bool {
        match self {
            Self::Train => rank < TRAIN,
            Self::Validation => rank >= TRAIN && rank < TRAIN + VALIDATION,
            Self::Stream => rank >= TRAIN + VALIDATION,
            Self::Evaluation => true,
        }
    }
}

/// Reads one split of the data set in `folder`, labelled with fine classes, in file order. Decodes one mosaic at a time
/// and keeps only the images of the split: 31 MB for [`Split::Stream`].
///
/// # Errors
/// A file is missing, too large or not what it should be; the message names it.
pub fn load(folder: &Path, split: Split) -> Result<ImageSet, Error> {
    let path = folder.join(split.file()).with_extension("labels");
    let mut labels = Vec::new();
    decode::read_bounded(&path, MAX_FILE, &mut labels)?;
    let mut images = label_records(&path, &labels, 2)?
        .map(|record| u16::from(record[1]))
        .enumerate();
    let total = images.len();

    let mut set = ImageSet::empty(SHAPE);
    let mut seen = [0; CLASSES as usize];
    let mut bytes = Vec::new();
    for number in 0.. {
        if images.len() == 0 {
            break;
        }
        let picture = mosaic_path(folder, split.file(), number).ok_or_else(|| Error::TooFewTiles {
            path: path.clone(),
            labels: total,
            tiles: total - images.len(),
        })?;
        decode::read_bounded(&picture, MAX_FILE, &mut bytes)?;
        let mosaic = Mosaic::decode(&picture, &bytes, SHAPE)?;
        for (tile, (image, label)) in (0..mosaic.tiles()).zip(images.by_ref()) {
            let Some(rank) = seen.get_mut(usize::from(label)) else {
                return Err(Error::LabelOutOfRange {
                    path,
                    image,
                    label,
                    last: CLASSES - 1,
                });
            };
            if split.takes(*rank) {
                set.push(mosaic.tile(tile), label);
            }
            *rank += 1;
        }
    }
    Ok(set)
}

fn mosaic_path(folder: &Path, split: &str, number: usize) -> Option<std::path::PathBuf> {
    ["webp", "png"]
        .iter()
        .map(|end| folder.join(format!("{split}_{number:02}.{end}")))
        .find(|path| path.is_file())
}
