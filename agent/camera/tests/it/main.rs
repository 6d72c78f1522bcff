//! What the frame sources deliver, on images that the tests make themselves, on the embedded sample, and on CIFAR-100
//! where `OFFRAMP_DATA` says where it lies.

mod allocations;
mod cifar;
mod folder;
mod hostile;
mod pipe;
mod raw;
mod sample;

use std::path::Path;

use image::{DynamicImage, ImageBuffer, Luma, Rgb};
use offramp_camera::{Camera, Frame, FrameShape};

fn shape(height: usize, width: usize, channels: usize) -> FrameShape {
    FrameShape::new(height, width, channels).unwrap()
}

/// Every frame that is left.
fn frames(camera: &mut dyn Camera) -> Vec<Frame> {
    let mut frames = Vec::new();
    let mut frame = Frame::default();
    while camera.next(&mut frame).unwrap() {
        frames.push(frame.clone());
    }
    frames
}

/// A grey picture; `pixel` is given column and row.
fn grey(width: u32, height: u32, pixel: impl Fn(u32, u32) -> u8) -> DynamicImage {
    ImageBuffer::from_fn(width, height, |x, y| Luma([pixel(x, y)])).into()
}

/// A colour picture; `pixel` is given column and row.
fn colour(width: u32, height: u32, pixel: impl Fn(u32, u32) -> [u8; 3]) -> DynamicImage {
    ImageBuffer::from_fn(width, height, |x, y| Rgb(pixel(x, y))).into()
}

fn save(image: &DynamicImage, folder: &Path, name: &str) {
    image.save(folder.join(name)).unwrap();
}
