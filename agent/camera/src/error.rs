//! What can go wrong with a source of frames.

use std::path::PathBuf;

use crate::decode::{MAX_DECODED, MAX_FILE, MAX_SIDE};
use crate::{Folder, FrameShape, ImageSet};

/// Why a source cannot deliver frames, or why an image was passed over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A frame shape out of range.
    #[error(
        "frame shape {height}x{width}x{channels}: sides must be 1 to {max}, channels 1 or 3",
        max = FrameShape::MAX_SIDE
    )]
    Shape {
        /// Rows asked for.
        height: usize,
        /// Columns asked for.
        width: usize,
        /// Channels asked for.
        channels: usize,
    },
    /// Images in memory that are not as many as their labels, or too many.
    #[error(
        "{bytes} bytes are not {labels} images of {shape}, or these are more than {}",
        ImageSet::MAX_IMAGES
    )]
    Set {
        /// Labels given.
        labels: usize,
        /// Bytes given.
        bytes: usize,
        /// The shape of each image.
        shape: FrameShape,
    },
    /// A file or folder could not be read.
    #[error("{}: cannot be read; check that it exists and its permissions", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Something that is not a regular file: a pipe, a device, a folder.
    #[error("{}: not a regular file", path.display())]
    NotAFile {
        /// Its path.
        path: PathBuf,
    },
    /// A file of more than [`MAX_FILE`] bytes.
    #[error("{}: larger than {} MiB; make it smaller", path.display(), MAX_FILE >> 20)]
    FileTooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The bytes are not an image that can be decoded within [`MAX_SIDE`] and [`MAX_DECODED`].
    #[error(
        "{}: not a PNG, JPEG or WebP image of at most {MAX_SIDE} pixels a side and {} MiB decoded",
        path.display(),
        MAX_DECODED >> 20
    )]
    Decode {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        source: image::ImageError,
    },
    /// A folder without a file whose name ends in `.png`, `.jpg`, `.jpeg` or `.webp`.
    #[error("{}: holds no .png, .jpg, .jpeg or .webp file", path.display())]
    NoImages {
        /// The folder.
        path: PathBuf,
    },
    /// A folder with too many images.
    #[error("{}: holds more than {} images; split it", path.display(), Folder::MAX_FILES)]
    TooManyFiles {
        /// The folder.
        path: PathBuf,
    },
    /// A mosaic that is not made of whole tiles of the expected shape.
    #[error("{}: {width}x{height} pixels of {color} is not a mosaic of {tile} tiles", path.display())]
    Mosaic {
        /// The mosaic.
        path: PathBuf,
        /// Its columns.
        width: u32,
        /// Its rows.
        height: u32,
        /// What a pixel of it is, in the decoder's word.
        color: String,
        /// The shape that each tile should have.
        tile: FrameShape,
    },
    /// The mosaics hold fewer images than there are labels.
    #[error("{}: {labels} images are labelled, the mosaics beside it hold {tiles}; fetch the data again", path.display())]
    TooFewTiles {
        /// The file of labels.
        path: PathBuf,
        /// Images that it labels.
        labels: usize,
        /// Tiles found.
        tiles: usize,
    },
    /// A file of labels whose length is no whole number of records, or that is too long.
    #[error(
        "{}: {bytes} bytes are not 1 to {} records of {record}",
        path.display(),
        ImageSet::MAX_IMAGES
    )]
    Labels {
        /// The file.
        path: PathBuf,
        /// Its length in bytes, or the first length that is too long.
        bytes: usize,
        /// Bytes of a record.
        record: usize,
    },
    /// A label that names no class.
    #[error("{}: image {image} has label {label}, classes are 0 to {last}", path.display())]
    LabelOutOfRange {
        /// The file of labels.
        path: PathBuf,
        /// The image, from 0.
        image: usize,
        /// Its label.
        label: u16,
        /// The last class.
        last: u16,
    },
    /// A playback order that names an image the set does not have.
    #[error("image {image} was asked for, the set holds {len}")]
    NoSuchImage {
        /// The image asked for, from 0.
        image: u32,
        /// Images in the set.
        len: usize,
    },
    /// The pipe ended inside a frame.
    #[error("raw frame {frame} ends after {got} of {expected} bytes; send whole frames of {shape} bytes")]
    PartialFrame {
        /// The frame, from 0.
        frame: u64,
        /// Bytes that came.
        got: usize,
        /// Bytes of a frame.
        expected: usize,
        /// The shape of a frame.
        shape: FrameShape,
    },
    /// The pipe failed.
    #[error("raw frame {frame} cannot be read")]
    Pipe {
        /// The frame, from 0.
        frame: u64,
        /// What the system said.
        source: std::io::Error,
    },
}
