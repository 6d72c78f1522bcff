//! From a file's bytes to pixels, bounded before anything is decoded.

use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;

use image::imageops::{self, FilterType};
use image::{DynamicImage, ImageDecoder, ImageReader, Limits};

use crate::{Error, FrameShape};

/// Bytes of an image file.
pub const MAX_FILE: u64 = 64 << 20;
/// Pixels of a side of a decoded image.
pub const MAX_SIDE: u32 = 16_384;
/// Bytes of a decoded image. A decoder may use as much again for itself (a progressive JPEG's coefficients).
pub const MAX_DECODED: u64 = 256 << 20;

/// Reads a regular file of at most `limit` bytes into `bytes`, whose room is reused.
pub(crate) fn read_bounded(path: &Path, limit: u64, bytes: &mut Vec<u8>) -> Result<(), Error> {
    let unreadable = |source| Error::Read {
        path: path.to_owned(),
        source,
    };
    // Asked before it is opened: opening a named pipe would wait for somebody to write to it.
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(Error::NotAFile { path: path.to_owned() });
    }
    bytes.clear();
    // The length is counted while reading: what the system says of a file may be older than the file.
    let file = File::open(path).map_err(unreadable)?;
    let length = file.take(limit + 1).read_to_end(bytes).map_err(unreadable)?;
    if length as u64 > limit {
        Err(Error::FileTooLarge { path: path.to_owned() })
    } else {
        Ok(())
    }
}

/// Decodes PNG, JPEG or WebP, by content rather than by name, and turns it upright if it says how.
pub(crate) fn decode(path: &Path, bytes: &[u8]) -> Result<DynamicImage, Error> {
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_DECODED);
    let decoded = || {
        let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
        reader.limits(limits.clone());
        let mut decoder = reader.into_decoder()?;
        limits.clone().reserve(decoder.total_bytes())?;
        let orientation = decoder.orientation()?;
        let mut image = DynamicImage::from_decoder(decoder)?;
        image.apply_orientation(orientation);
        Ok(image)
    };
    decoded().map_err(|source| Error::Decode {
        path: path.to_owned(),
        source,
    })
}

/// Brings an image to `shape`, into `pixels`: colour to grey by luminance or grey to three equal channels, transparency
/// dropped, then stretched (the aspect ratio is not kept) with a triangle filter: bilinear when it enlarges, averaging
/// over the whole footprint of a pixel when it shrinks.
pub(crate) fn fit(image: DynamicImage, shape: FrameShape, pixels: &mut Vec<u8>) {
    // A frame's sides are at most 4096.
    let (width, height) = (shape.width() as u32, shape.height() as u32);
    let same = (image.width(), image.height()) == (width, height);
    pixels.clear();
    if shape.channels() == 1 {
        let grey = image.into_luma8();
        let grey = if same {
            grey
        } else {
            imageops::resize(&grey, width, height, FilterType::Triangle)
        };
        pixels.extend_from_slice(&grey);
    } else {
        let colour = image.into_rgb8();
        let colour = if same {
            colour
        } else {
            imageops::resize(&colour, width, height, FilterType::Triangle)
        };
        pixels.extend_from_slice(&colour);
    }
}
