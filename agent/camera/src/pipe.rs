//! Raw frames from a named pipe or a file as a camera.

use std::fs::File;
use std::path::{Path, PathBuf};

use tracing::info;

use crate::{Camera, Error, Frame, FrameShape, Raw};

/// What [`Raw`] is for a pipe that is open, for one that has a name: whoever writes may go and come again. A frame
/// that was not written to its end is passed over. A plain file ends with its last frame.
pub struct Pipe {
    path: PathBuf,
    /// Whether there may be more after an end.
    named: bool,
    shape: FrameShape,
    /// Open between the first byte and the end of what one writer writes.
    source: Option<Raw<File>>,
    next: u64,
    skipped: u64,
}

impl Pipe {
    /// A camera of frames of `shape`. It waits for a writer when the first frame is asked for, not here.
    ///
    /// # Errors
    /// [`Error::Read`] where there is nothing at the path, or nothing that can be looked at.
    pub fn open(path: &Path, shape: FrameShape) -> Result<Self, Error> {
        let metadata = path.metadata().map_err(|source| Error::Read {
            path: path.into(),
            source,
        })?;
        Ok(Self {
            path: path.into(),
            named: is_fifo(&metadata),
            shape,
            source: None,
            next: 0,
            skipped: 0,
        })
    }
}

#[cfg(unix)]
fn is_fifo(metadata: &std::fs::Metadata) -> bool {
    std::os::unix::fs::FileTypeExt::is_fifo(&metadata.file_type())
}

#[cfg(not(unix))]
fn is_fifo(_: &std::fs::Metadata) -> bool {
    false
}

impl Camera for Pipe {
    fn shape(&self) -> FrameShape {
        self.shape
    }

    /// # Errors
    /// The pipe cannot be opened or read any more; a file that ends inside a frame.
    fn next(&mut self, frame: &mut Frame) -> Result<bool, Error> {
        loop {
            let source = match &mut self.source {
                Some(source) => source,
                // Waits until somebody opens the other end.
                none => none.insert(Raw::new(
                    File::open(&self.path).map_err(|source| Error::Read {
                        path: self.path.clone(),
                        source,
                    })?,
                    self.shape,
                )),
            };
            match source.next(frame) {
                Ok(true) => {
                    frame.id = self.next;
                    self.next += 1;
                    return Ok(true);
                }
                Ok(false) if self.named => {}
                Err(Error::PartialFrame { .. }) if self.named => self.skipped += 1,
                ended => return ended,
            }
            info!(path = %self.path.display(), "who wrote to the pipe has gone; waiting for the next");
            self.source = None;
        }
    }

    fn skipped(&self) -> u64 {
        self.skipped
    }
}
