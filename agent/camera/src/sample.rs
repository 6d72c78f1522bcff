//! The embedded sample: 4,000 test images of Fashion-MNIST (28×28 grey, 10 kinds of clothing), so that the agent can
//! show its work with nothing but itself. No image is in both halves. The images are under the MIT licence that lies
//! beside them.

use std::path::Path;

use crate::mosaic::{Mosaic, label_records};
use crate::{Error, FrameShape, ImageSet};

/// Classes: labels are 0–9.
pub const CLASSES: u16 = 10;

const SHAPE: FrameShape = FrameShape {
    height: 28,
    width: 28,
    channels: 1,
};

/// The 2,000 images that a device learns on while it runs.
///
/// # Errors
/// None, unless this build is broken: the bytes are part of it.
pub fn stream() -> Result<ImageSet, Error> {
    read(
        "stream",
        include_bytes!("../sample/stream.png"),
        include_bytes!("../sample/stream.labels"),
    )
}

/// The 2,000 images that it is measured on.
///
/// # Errors
/// None, unless this build is broken: the bytes are part of it.
pub fn evaluation() -> Result<ImageSet, Error> {
    read(
        "evaluation",
        include_bytes!("../sample/evaluation.png"),
        include_bytes!("../sample/evaluation.labels"),
    )
}

fn read(name: &str, mosaic: &[u8], labels: &[u8]) -> Result<ImageSet, Error> {
    let picture = Path::new("embedded sample").join(name).with_extension("png");
    let mosaic = Mosaic::decode(&picture, mosaic, SHAPE)?;
    let path = picture.with_extension("labels");
    let mut set = ImageSet::empty(SHAPE);
    let records = label_records(&path, labels, 1)?;
    if records.len() > mosaic.tiles() {
        return Err(Error::TooFewTiles {
            path,
            labels: records.len(),
            tiles: mosaic.tiles(),
        });
    }
    for (image, record) in records.enumerate() {
        let label = record[0].into();
        if label >= CLASSES {
            return Err(Error::LabelOutOfRange {
                path,
                image,
                label,
                last: CLASSES - 1,
            });
        }
        set.push(mosaic.tile(image), label);
    }
    Ok(set)
}
