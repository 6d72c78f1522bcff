//! The image that a network reads: its shape and how it is normalised.

use alloc::format;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::error::Problem;
use crate::limits;
use crate::manifest::{count, rule};

/// Shape and normalisation of the input image.
///
/// An image is `height` rows of `width` pixels of `channels` values, the
/// channels innermost (HWC). From a camera they are bytes; the network reads
/// `(byte / 255 − mean) / std` per channel as f32.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Input {
    /// Rows.
    pub height: usize,
    /// Pixels of a row.
    pub width: usize,
    /// Values of a pixel: 1 for grey, 3 for red, green, blue.
    pub channels: usize,
    /// Per channel: the mean of the values, which run from 0 to 1.
    pub mean: Vec<f32>,
    /// Per channel: the standard deviation, above 0.
    pub std: Vec<f32>,
}

impl Input {
    /// Number of values of an image: height × width × channels.
    #[must_use]
    pub fn values(&self) -> usize {
        self.height * self.width * self.channels
    }

    /// Normalises an image of bytes into what the first stage reads.
    ///
    /// # Panics
    /// Where `image` or `out` does not hold [`Input::values`] values.
    pub fn normalize(&self, image: &[u8], out: &mut [f32]) {
        assert_eq!(image.len(), self.values(), "an image of another shape");
        assert_eq!(out.len(), self.values(), "a buffer of another shape");
        for (channel, (mean, std)) in self.mean.iter().zip(&self.std).enumerate() {
            let scale = 1.0 / (255.0 * std);
            let shift = -mean / std;
            let bytes = image[channel..].iter().step_by(self.channels);
            let values = out[channel..].iter_mut().step_by(self.channels);
            for (value, &byte) in values.zip(bytes) {
                *value = f32::from(byte) * scale + shift;
            }
        }
    }

    pub(crate) fn check(&self) -> Result<(), Problem> {
        count("input.height", self.height, 1, limits::SIDE)?;
        count("input.width", self.width, 1, limits::SIDE)?;
        count("input.channels", self.channels, 1, limits::CHANNELS)?;
        count("input.mean", self.mean.len(), self.channels, self.channels)?;
        count("input.std", self.std.len(), self.channels, self.channels)?;
        for (i, &mean) in self.mean.iter().enumerate() {
            let kept = (-1000.0..=1000.0).contains(&mean);
            rule(&format!("input.mean[{i}]"), &mean, kept, || "-1000 to 1000".into())?;
        }
        for (i, &std) in self.std.iter().enumerate() {
            let kept = (1e-6..=1000.0).contains(&std);
            rule(&format!("input.std[{i}]"), &std, kept, || "0.000001 to 1000".into())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn every_byte_of_every_channel_is_normalised_by_its_own_mean_and_std() {
        let mean = vec![0.2, 0.5, 0.7];
        let std = vec![0.3, 1.0, 0.01];
        let input = Input {
            height: 16,
            width: 16,
            channels: 3,
            mean,
            std,
        };
        let image: Vec<u8> = (0..256).flat_map(|i| [i as u8, 255 - i as u8, 7]).collect();
        let mut out = vec![f32::NAN; input.values()];
        input.normalize(&image, &mut out);
        for (i, (&value, &byte)) in out.iter().zip(&image).enumerate() {
            let (mean, std) = (f64::from(input.mean[i % 3]), f64::from(input.std[i % 3]));
            let expected = (f64::from(byte) / 255.0 - mean) / std;
            assert!(
                (f64::from(value) - expected).abs() <= 1e-5 * expected.abs().max(1.0),
                "{i}"
            );
        }
    }
}
