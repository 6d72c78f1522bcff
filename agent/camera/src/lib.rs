//! Frame sources: where images come from, at the size the model reads.
//!
//! A [`Camera`] fills a [`Frame`] that its caller owns with raw bytes, height × width × channels (HWC), 0–255, not yet
//! normalised. Five sources exist:
//!
//! | source | frames | allocates per frame |
//! |---|---|---|
//! | [`Playback`] of the embedded [`sample`] | Fashion-MNIST, 28×28×1, labelled | no |
//! | [`Playback`] of [`cifar`] | CIFAR-100 from mosaics, 32×32×3, labelled | no |
//! | [`Folder`] | PNG, JPEG and WebP files, resized | yes, to decode |
//! | [`Raw`] | bytes of a pipe | no |
//! | [`Pipe`] | bytes of a named pipe or a file | no |
//!
//! Everything from outside is bounded: a side of a decoded image by [`MAX_SIDE`], its pixels by [`MAX_DECODED`], a file
//! by [`MAX_FILE`], a folder by [`Folder::MAX_FILES`], a labelled set by [`ImageSet::MAX_IMAGES`]. What no bound covers
//! is time: a pipe that goes silent blocks [`Camera::next`] for as long as it is silent, so a camera belongs on a
//! thread of its own.

mod decode;
mod error;
mod folder;
mod frame;
mod mosaic;
mod pipe;
mod raw;
mod set;

pub mod cifar;
pub mod sample;

pub use decode::{MAX_DECODED, MAX_FILE, MAX_SIDE};
pub use error::Error;
pub use folder::Folder;
pub use frame::{Camera, Frame, FrameShape};
pub use pipe::Pipe;
pub use raw::Raw;
pub use set::{ImageSet, Playback};
