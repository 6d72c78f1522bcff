//! Raw frames from a pipe as a camera.

use std::io::{ErrorKind, Read};

use crate::{Camera, Error, Frame, FrameShape};

/// Frames of height × width × channels bytes each, one after another, without anything between them: what
/// `ffmpeg -f rawvideo -pix_fmt gray` (or `rgb24`) writes.
pub struct Raw<R> {
    source: R,
    shape: FrameShape,
    next: u64,
    ended: bool,
}

impl<R: Read + Send> Raw<R> {
    /// Reads frames of `shape` from `source`. Each frame takes one `read` or more, so `source` needs no buffer.
    pub const fn new(source: R, shape: FrameShape) -> Self {
        Self {
            source,
            shape,
            next: 0,
            ended: false,
        }
    }
}

impl<R: Read + Send> Camera for Raw<R> {
    fn shape(&self) -> FrameShape {
        self.shape
    }

    /// # Errors
    /// The pipe failed, or ended inside a frame; the call after that says `false`.
    fn next(&mut self, frame: &mut Frame) -> Result<bool, Error> {
        if self.ended {
            return Ok(false);
        }
        let expected = self.shape.bytes();
        frame.pixels.resize(expected, 0);
        let mut got = 0;
        while got < expected {
            match self.source.read(&mut frame.pixels[got..]) {
                Ok(0) => {
                    self.ended = true;
                    if got == 0 {
                        return Ok(false);
                    }
                    return Err(Error::PartialFrame {
                        frame: self.next,
                        got,
                        expected,
                        shape: self.shape,
                    });
                }
                Ok(n) => got += n,
                Err(source) if source.kind() == ErrorKind::Interrupted => {}
                Err(source) => {
                    self.ended = true;
                    return Err(Error::Pipe {
                        frame: self.next,
                        source,
                    });
                }
            }
        }
        frame.id = self.next;
        frame.name.clear();
        frame.label = None;
        self.next += 1;
        Ok(true)
    }
}
