//! Labelled images in memory, and playing them in a chosen order.

use std::sync::Arc;

use crate::{Camera, Error, Frame, FrameShape};

/// Labelled images of one shape, all in memory.
#[derive(Clone, PartialEq, Eq)]
pub struct ImageSet {
    shape: FrameShape,
    pixels: Vec<u8>,
    labels: Vec<u16>,
}

impl ImageSet {
    /// Images of a set.
    pub const MAX_IMAGES: usize = 100_000;

    /// A set of images that lie one behind the other in `pixels`: height × width × channels bytes each.
    ///
    /// # Errors
    /// [`Error::Set`] where there are not as many as labels, or more than [`Self::MAX_IMAGES`].
    pub fn new(shape: FrameShape, pixels: Vec<u8>, labels: Vec<u16>) -> Result<Self, Error> {
        if labels.len() > Self::MAX_IMAGES || pixels.len() != labels.len() * shape.bytes() {
            return Err(Error::Set {
                labels: labels.len(),
                bytes: pixels.len(),
                shape,
            });
        }
        Ok(Self { shape, pixels, labels })
    }

    pub(crate) const fn empty(shape: FrameShape) -> Self {
        Self {
            shape,
            pixels: Vec::new(),
            labels: Vec::new(),
        }
    }

    /// `image` holds the rows of one image.
    pub(crate) fn push<'a>(&mut self, rows: impl Iterator<Item = &'a [u8]>, label: u16) {
        self.pixels.extend(rows.flatten());
        self.labels.push(label);
    }

    /// The shape of every image.
    #[must_use]
    pub const fn shape(&self) -> FrameShape {
        self.shape
    }

    /// Images in the set.
    #[must_use]
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether the set holds no image.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The class of each image, in order.
    #[must_use]
    pub fn labels(&self) -> &[u16] {
        &self.labels
    }

    /// The bytes (height × width × channels) of image `index`, counted from 0; `None` past the end.
    #[must_use]
    pub fn pixels(&self, index: usize) -> Option<&[u8]> {
        self.pixels.chunks_exact(self.shape.bytes()).nth(index)
    }

    /// The images whose class is one of `classes`, in order.
    #[must_use]
    pub fn of_classes(&self, classes: &[u16]) -> Vec<u32> {
        (0..)
            .zip(&self.labels)
            .filter(|(_, label)| classes.contains(label))
            .map(|(index, _)| index)
            .collect()
    }
}

impl std::fmt::Debug for ImageSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageSet")
            .field("shape", &self.shape)
            .field("images", &self.len())
            .finish_non_exhaustive()
    }
}

/// A camera that shows the images of a set in a given order, then ends.
pub struct Playback {
    set: Arc<ImageSet>,
    order: Vec<u32>,
    next: usize,
}

impl Playback {
    /// Plays the images of `set` that `order` names (from 0); an image may come more than once.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`]: `order` names an image past the end of the set.
    pub fn new(set: Arc<ImageSet>, order: Vec<u32>) -> Result<Self, Error> {
        match order.iter().find(|&&image| image as usize >= set.len()) {
            Some(&image) => Err(Error::NoSuchImage { image, len: set.len() }),
            None => Ok(Self { set, order, next: 0 }),
        }
    }

    /// Plays every image of `set` once, in order.
    #[must_use]
    pub fn whole(set: Arc<ImageSet>) -> Self {
        let order = (0..).take(set.len()).collect();
        Self { set, order, next: 0 }
    }

    /// Frames still to come.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.order.len() - self.next
    }
}

impl Camera for Playback {
    fn shape(&self) -> FrameShape {
        self.set.shape
    }

    fn next(&mut self, frame: &mut Frame) -> Result<bool, Error> {
        let Some(&image) = self.order.get(self.next) else {
            return Ok(false);
        };
        let pixels = self
            .set
            .pixels(image as usize)
            .expect("the order was checked against the set");
        self.next += 1;
        frame.id = image.into();
        frame.name.clear();
        frame.label = Some(self.set.labels[image as usize]);
        frame.pixels.clear();
        frame.pixels.extend_from_slice(pixels);
        Ok(true)
    }
}
