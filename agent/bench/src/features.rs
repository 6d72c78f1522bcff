//! Features of labelled images at every exit: made once by running the backbone, which stays frozen, and
//! then replayed as often as needed.
//!
//! File, little-endian: magic `OFRF`, format `u16` = 1, exits `u16`, images `u32`, classes `u32`, digest of the
//! package 32 bytes; per exit C `u32`; per image its label `u16`; per exit N×C `f32`, image by image.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

const MAGIC: [u8; 4] = *b"OFRF";
const FORMAT: u16 = 1;
/// Bounds of what is read: no file of ours is near them.
const MAX_EXITS: usize = 64;
const MAX_IMAGES: usize = 1 << 20;
const MAX_FEATURES: usize = 1 << 14;

/// Why features cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FeaturesError {
    /// The file cannot be read or written.
    #[error("cannot read or write {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file is not one of ours, or of another format.
    #[error("{path} is no file of features in format {FORMAT}; remove it, and it is made again")]
    Format {
        /// The file.
        path: PathBuf,
    },
}

/// Features of N labelled images.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    /// Digest of the package that they were made with.
    pub digest: [u8; 32],
    /// K.
    pub classes: usize,
    /// The true class of each image.
    pub labels: Vec<u16>,
    /// Per exit C, and N×C numbers.
    pub exits: Vec<(usize, Vec<f32>)>,
}

impl Features {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// u of an image at an exit.
    pub fn of(&self, exit: usize, image: usize) -> &[f32] {
        let (c, numbers) = &self.exits[exit];
        &numbers[image * c..(image + 1) * c]
    }

    /// The images whose class is among `classes`.
    pub fn of_classes(&self, classes: &[u16]) -> Vec<usize> {
        (0..self.len()).filter(|i| classes.contains(&self.labels[*i])).collect()
    }

    /// Writes the file.
    ///
    /// # Errors
    /// [`FeaturesError::Io`].
    pub fn write(&self, path: &Path) -> Result<(), FeaturesError> {
        let write = || {
            let partial = path.with_extension("partial");
            let mut file = BufWriter::new(File::create(&partial)?);
            file.write_all(&MAGIC)?;
            file.write_all(&FORMAT.to_le_bytes())?;
            file.write_all(&(self.exits.len() as u16).to_le_bytes())?;
            file.write_all(&(self.len() as u32).to_le_bytes())?;
            file.write_all(&(self.classes as u32).to_le_bytes())?;
            file.write_all(&self.digest)?;
            for (c, _) in &self.exits {
                file.write_all(&(*c as u32).to_le_bytes())?;
            }
            for label in &self.labels {
                file.write_all(&label.to_le_bytes())?;
            }
            for number in self.exits.iter().flat_map(|(_, numbers)| numbers) {
                file.write_all(&number.to_le_bytes())?;
            }
            file.into_inner()?.sync_all()?;
            std::fs::rename(partial, path)
        };
        write().map_err(|source| FeaturesError::Io {
            path: path.to_owned(),
            source,
        })
    }

    /// Reads a file that [`Self::write`] wrote.
    ///
    /// # Errors
    /// See [`FeaturesError`].
    pub fn read(path: &Path) -> Result<Self, FeaturesError> {
        let format = || FeaturesError::Format { path: path.to_owned() };
        let io = |source| FeaturesError::Io {
            path: path.to_owned(),
            source,
        };
        let mut file = BufReader::new(File::open(path).map_err(io)?);
        let mut header = [0; 48];
        file.read_exact(&mut header).map_err(io)?;
        let number =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]) as usize;
        let exits = usize::from(u16::from_le_bytes([header[6], header[7]]));
        let (images, classes) = (number(8), number(12));
        let known = header[..4] == MAGIC && header[4..6] == FORMAT.to_le_bytes();
        if !known || exits > MAX_EXITS || images > MAX_IMAGES {
            return Err(format());
        }
        let mut read = |bytes: usize| -> Result<Vec<u8>, FeaturesError> {
            let mut data = vec![0; bytes];
            file.read_exact(&mut data).map_err(io)?;
            Ok(data)
        };
        let widths = read(4 * exits)?;
        let widths: Vec<usize> = widths
            .as_chunks()
            .0
            .iter()
            .map(|b| u32::from_le_bytes(*b) as usize)
            .collect();
        let labels = read(2 * images)?;
        let labels: Vec<u16> = labels.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b)).collect();
        if widths.iter().any(|c| *c > MAX_FEATURES) || labels.iter().any(|l| usize::from(*l) >= classes) {
            return Err(format());
        }
        let exits = widths.into_iter().map(|c| {
            let bytes = read(4 * c * images)?;
            let numbers = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            Ok((c, numbers))
        });
        Ok(Self {
            digest: header[16..48].try_into().expect("32 bytes"),
            classes,
            exits: exits.collect::<Result<_, _>>()?,
            labels,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_a_cut_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("some.features");
        let features = Features {
            digest: [7; 32],
            classes: 3,
            labels: vec![2, 0],
            exits: vec![(1, vec![0.5, -1.0]), (2, vec![1.0, 2.0, 3.0, 4.0])],
        };
        features.write(&path).unwrap();
        assert_eq!(Features::read(&path).unwrap(), features);
        assert_eq!(features.of(1, 1), [3.0, 4.0]);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert!(matches!(Features::read(&path), Err(FeaturesError::Io { .. })));
        std::fs::write(&path, [0; 64]).unwrap();
        assert!(matches!(Features::read(&path), Err(FeaturesError::Format { .. })));
    }
}
