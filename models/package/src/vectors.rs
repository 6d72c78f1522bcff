//! Conformance vectors: images and the logits that an engine must give for them.

use alloc::vec::Vec;

use crate::error::Problem;
use crate::manifest::Manifest;
use crate::tensors::Tensors;

/// What the training recipe computed, for engines to be held against.
#[derive(Debug, Clone, PartialEq)]
pub struct Vectors {
    /// Images, each of height × width × channels bytes (HWC).
    pub images: Vec<u8>,
    /// The logits of those images.
    pub logits: Logits,
    /// The logits of the first images of the data set's test split, for those
    /// who have the data set: its images are not in the package.
    pub test_logits: Option<Logits>,
}

/// Logits per image, exit and class.
#[derive(Debug, Clone, PartialEq)]
pub struct Logits {
    /// Number of images.
    pub images: usize,
    /// E, the number of exits.
    pub exits: usize,
    /// K, the number of classes.
    pub classes: usize,
    /// images × E × K values.
    pub values: Vec<f32>,
}

impl Logits {
    /// The K logits of an image at an exit.
    ///
    /// # Panics
    /// Where there is no such image or exit.
    #[must_use]
    pub fn at(&self, image: usize, exit: usize) -> &[f32] {
        assert!(exit < self.exits, "exit {exit} of {}", self.exits);
        let row = image * self.exits + exit;
        &self.values[row * self.classes..][..self.classes]
    }
}

impl Vectors {
    pub(crate) fn read(bytes: &[u8], manifest: &Manifest) -> Result<Vectors, Problem> {
        let tensors = Tensors::read(bytes)?;
        let input = &manifest.input;
        let (images, shape) = tensors.bytes("images", &[0, input.height, input.width, input.channels])?;
        let (exits, classes) = (manifest.exits.len(), manifest.classes.len());
        let logits = |tensor: &str, images: usize| {
            let values = tensors.finite(tensor, &[images, exits, classes])?;
            Ok::<_, Problem>(Logits {
                images,
                exits,
                classes,
                values,
            })
        };
        let test_images = tensors.rows("test_logits").filter(|&rows| rows > 0);
        Ok(Vectors {
            images,
            logits: logits("logits", shape[0])?,
            test_logits: test_images.map(|rows| logits("test_logits", rows)).transpose()?,
        })
    }
}
