//! What weather, night and a cheap lens do to images.

use offramp_core::SplitMix64;

/// Spoils an image of `height` rows of `width` pixels: by its number with noise (a deviation of 20 of
/// 255), blur (the mean of 3×3 pixels), half of its contrast, or half of its light.
///
/// # Panics
/// When the pixels are not `height * width` times a number of channels.
pub fn corrupt(pixels: &mut [u8], height: usize, width: usize, number: usize) {
    let channels = pixels.len() / (height * width);
    assert_eq!(
        pixels.len(),
        height * width * channels,
        "an image has height x width x channels bytes"
    );
    match number % 4 {
        0 => {
            let mut random = SplitMix64(number as u64);
            for pixel in pixels {
                // Sixteen bytes at random: their sum has a deviation of 295.6 about 2040.
                let word = u128::from(random.next()) << 64 | u128::from(random.next());
                let sum: u32 = word.to_le_bytes().iter().map(|b| u32::from(*b)).sum();
                let noise = (sum as f32 - 2040.0) / 295.6 * 20.0;
                *pixel = (f32::from(*pixel) + noise) as u8;
            }
        }
        1 => {
            let sharp = pixels.to_vec();
            for (i, pixel) in pixels.iter_mut().enumerate() {
                let (row, column, channel) = (i / (width * channels), i / channels % width, i % channels);
                let (mut sum, mut n) = (0u32, 0);
                for r in row.saturating_sub(1)..(row + 2).min(height) {
                    for c in column.saturating_sub(1)..(column + 2).min(width) {
                        sum += u32::from(sharp[(r * width + c) * channels + channel]);
                        n += 1;
                    }
                }
                *pixel = (sum / n) as u8;
            }
        }
        2 => {
            let mean = pixels.iter().map(|p| u64::from(*p)).sum::<u64>() / pixels.len().max(1) as u64;
            for pixel in pixels {
                *pixel = ((u64::from(*pixel) + mean) / 2) as u8;
            }
        }
        _ => pixels.iter_mut().for_each(|pixel| *pixel /= 2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIDE: usize = 32;

    fn image() -> Vec<u8> {
        (0..SIDE * SIDE * 3).map(|i| (i * 7 % 251) as u8).collect()
    }

    fn spoiled(number: usize) -> Vec<u8> {
        let mut pixels = image();
        corrupt(&mut pixels, SIDE, SIDE, number);
        pixels
    }

    #[test]
    fn every_kind_changes_an_image_the_same_way_each_time() {
        for number in 0..4 {
            assert_ne!(spoiled(number), image(), "{number}");
            assert_eq!(spoiled(number), spoiled(number), "{number}");
        }
    }

    #[test]
    fn noise_has_its_deviation_and_no_bias() {
        let mut grey = vec![128; SIDE * SIDE * 3];
        corrupt(&mut grey, SIDE, SIDE, 0);
        let n = grey.len() as f64;
        let mean = grey.iter().map(|p| f64::from(*p)).sum::<f64>() / n;
        let variance = grey.iter().map(|p| (f64::from(*p) - mean).powi(2)).sum::<f64>() / n;
        // Noise is cut to whole numbers, which takes half a step.
        assert!(
            (mean - 127.5).abs() < 1.5 && (variance.sqrt() - 20.0).abs() < 1.0,
            "{mean} {variance}"
        );
    }

    #[test]
    fn blur_leaves_an_even_image_alone() {
        let mut even = vec![77; SIDE * SIDE * 3];
        corrupt(&mut even, SIDE, SIDE, 1);
        assert_eq!(even, vec![77; SIDE * SIDE * 3]);
    }
}
