//! Mosaics: many images of one shape as tiles of one picture, row by row, in the order of a file of labels.

use std::path::Path;

use image::{ColorType, DynamicImage};

use crate::{Error, FrameShape, ImageSet, decode};

/// The tiles of one decoded picture.
pub(crate) struct Mosaic {
    picture: DynamicImage,
    tile: FrameShape,
    columns: usize,
    rows: usize,
}

impl Mosaic {
    /// Decodes `bytes`, which must be whole tiles of exactly this shape, 8 bits a channel: pixels are never converted,
    /// since that would quietly change the data set.
    pub(crate) fn decode(path: &Path, bytes: &[u8], tile: FrameShape) -> Result<Self, Error> {
        let picture = decode::decode(path, bytes)?;
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        let color = if tile.channels() == 1 {
            ColorType::L8
        } else {
            ColorType::Rgb8
        };
        if picture.color() != color || !width.is_multiple_of(tile.width()) || !height.is_multiple_of(tile.height()) {
            return Err(Error::Mosaic {
                path: path.to_owned(),
                width: picture.width(),
                height: picture.height(),
                color: format!("{:?}", picture.color()),
                tile,
            });
        }
        let (columns, rows) = (width / tile.width(), height / tile.height());
        Ok(Self {
            picture,
            tile,
            columns,
            rows,
        })
    }

    pub(crate) const fn tiles(&self) -> usize {
        self.columns * self.rows
    }

    /// The rows of tile `index`, which is below [`tiles`](Self::tiles).
    pub(crate) fn tile(&self, index: usize) -> impl Iterator<Item = &[u8]> {
        let (line, row) = (self.picture.as_bytes(), self.tile.width() * self.tile.channels());
        let (top, left) = (index / self.columns * self.tile.height(), index % self.columns * row);
        let stride = self.columns * row;
        (top..top + self.tile.height()).map(move |y| &line[y * stride + left..][..row])
    }
}

/// The records of a file of labels: at least one, at most [`ImageSet::MAX_IMAGES`].
pub(crate) fn label_records<'a>(
    path: &Path,
    bytes: &'a [u8],
    record: usize,
) -> Result<std::slice::ChunksExact<'a, u8>, Error> {
    let images = bytes.len() / record;
    if !bytes.len().is_multiple_of(record) || images == 0 || images > ImageSet::MAX_IMAGES {
        return Err(Error::Labels {
            path: path.to_owned(),
            bytes: bytes.len(),
            record,
        });
    }
    Ok(bytes.chunks_exact(record))
}
