//! What a camera delivers, and how it is asked.

use crate::Error;

/// Height, width and channels of a frame, all of them in range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameShape {
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) channels: usize,
}

impl FrameShape {
    /// The longest side of a frame, in pixels.
    pub const MAX_SIDE: usize = 4096;

    /// A shape of 1–4096 rows, 1–4096 columns, and 1 (grey) or 3 (red, green, blue) channels.
    ///
    /// # Errors
    /// [`Error::Shape`] outside these ranges.
    pub fn new(height: usize, width: usize, channels: usize) -> Result<Self, Error> {
        let sides = 1..=Self::MAX_SIDE;
        if sides.contains(&height) && sides.contains(&width) && matches!(channels, 1 | 3) {
            Ok(Self {
                height,
                width,
                channels,
            })
        } else {
            Err(Error::Shape {
                height,
                width,
                channels,
            })
        }
    }

    /// Rows.
    #[must_use]
    pub const fn height(self) -> usize {
        self.height
    }

    /// Columns.
    #[must_use]
    pub const fn width(self) -> usize {
        self.width
    }

    /// Bytes of a pixel: 1 (grey) or 3 (red, green, blue).
    #[must_use]
    pub const fn channels(self) -> usize {
        self.channels
    }

    /// Bytes of a frame: height × width × channels.
    #[must_use]
    pub const fn bytes(self) -> usize {
        self.height * self.width * self.channels
    }
}

impl std::fmt::Display for FrameShape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}x{}", self.height, self.width, self.channels)
    }
}

/// One image and what is known of it. Reuse it from call to call: its buffers then stop growing after the first frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// Which image of the source this is, from 0: its place in a set, in a folder's sorted list, or in the pipe. An
    /// image that is played twice has the same id twice.
    pub id: u64,
    /// The file the image came from, without its folder; empty where a source has no names.
    pub name: String,
    /// The true class, where the source knows it.
    pub label: Option<u16>,
    /// Height × width × channels bytes, row by row, channels of a pixel side by side.
    pub pixels: Vec<u8>,
}

impl Frame {
    /// An empty frame with room for one image of this shape.
    #[must_use]
    pub fn for_shape(shape: FrameShape) -> Self {
        Self {
            pixels: Vec::with_capacity(shape.bytes()),
            ..Self::default()
        }
    }
}

/// A source of frames.
pub trait Camera: Send {
    /// The shape of every frame.
    fn shape(&self) -> FrameShape;

    /// Fills `frame` with the next image. `false`: the source has ended.
    ///
    /// # Errors
    /// The source itself failed and has no more frames. An image that cannot be read is not an error: it is skipped,
    /// logged with its name, and counted in [`skipped`](Self::skipped).
    fn next(&mut self, frame: &mut Frame) -> Result<bool, Error>;

    /// Images passed over so far because they could not be read.
    fn skipped(&self) -> u64 {
        0
    }
}
