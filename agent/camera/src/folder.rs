//! A folder of image files as a camera.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use crate::decode::{self, MAX_FILE};
use crate::{Camera, Error, Frame, FrameShape};

/// The images of one folder, in the order of their names, each once.
///
/// Files whose names end in `.png`, `.jpg`, `.jpeg` or `.webp` (in any case) are taken; sub-folders are not entered.
/// The list is made when the folder is opened: a file that comes later is not seen, one that has gone is skipped.
pub struct Folder {
    folder: PathBuf,
    names: Vec<OsString>,
    shape: FrameShape,
    next: usize,
    skipped: u64,
    encoded: Vec<u8>,
}

impl Folder {
    /// Images of a folder.
    pub const MAX_FILES: usize = 100_000;

    /// Lists the images of `folder`; each will be brought to `shape`: stretched to its sides, colour to grey by
    /// luminance or grey to three equal channels.
    ///
    /// # Errors
    /// The folder cannot be read, holds no image, or more than [`MAX_FILES`](Self::MAX_FILES).
    pub fn open(folder: &Path, shape: FrameShape) -> Result<Self, Error> {
        let unreadable = |source| Error::Read {
            path: folder.to_owned(),
            source,
        };
        let mut names = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(unreadable)? {
            let name = entry.map_err(unreadable)?.file_name();
            if !is_image(&name) {
                continue;
            }
            if names.len() == Self::MAX_FILES {
                return Err(Error::TooManyFiles {
                    path: folder.to_owned(),
                });
            }
            names.push(name);
        }
        if names.is_empty() {
            return Err(Error::NoImages {
                path: folder.to_owned(),
            });
        }
        names.sort_unstable();
        Ok(Self {
            folder: folder.to_owned(),
            names,
            shape,
            next: 0,
            skipped: 0,
            encoded: Vec::new(),
        })
    }

    /// Images in the list, readable or not.
    #[must_use]
    pub fn files(&self) -> usize {
        self.names.len()
    }
}

fn is_image(name: &OsStr) -> bool {
    let extension = Path::new(name).extension();
    ["png", "jpg", "jpeg", "webp"]
        .iter()
        .any(|known| extension.is_some_and(|e| e.eq_ignore_ascii_case(known)))
}

impl Camera for Folder {
    fn shape(&self) -> FrameShape {
        self.shape
    }

    fn next(&mut self, frame: &mut Frame) -> Result<bool, Error> {
        while let Some(name) = self.names.get(self.next) {
            let id = self.next as u64;
            self.next += 1;
            let path = self.folder.join(name);
            let image = decode::read_bounded(&path, MAX_FILE, &mut self.encoded)
                .and_then(|()| decode::decode(&path, &self.encoded));
            match image {
                Ok(image) => {
                    decode::fit(image, self.shape, &mut frame.pixels);
                    frame.id = id;
                    frame.name.clear();
                    frame.name.push_str(&name.to_string_lossy());
                    frame.label = None;
                    return Ok(true);
                }
                Err(error) => {
                    self.skipped += 1;
                    let error: &(dyn std::error::Error + 'static) = &error;
                    tracing::warn!(error, skipped = self.skipped, "an image was skipped");
                }
            }
        }
        Ok(false)
    }

    fn skipped(&self) -> u64 {
        self.skipped
    }
}
