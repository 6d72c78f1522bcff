//! What a package may hold at most. A package beyond any of these is refused.
//!
//! The numbers leave room for networks far larger than a device would run, and
//! keep what a hostile or damaged package can cost in memory and time small.

/// Bytes of `model.toml`.
pub const MANIFEST_BYTES: usize = 256 << 10;
/// Bytes of one part.
pub const PART_BYTES: usize = 256 << 20;
/// Bytes of all parts together.
pub const PACKAGE_BYTES: usize = 512 << 20;
/// Bytes of a package as one file.
pub const FILE_BYTES: usize = 512 << 20;
/// Parts listed in the manifest.
pub const PARTS: usize = 64;
/// Bytes of a file name, and of the package's name.
pub const NAME_BYTES: usize = 64;
/// Bytes of the description, the licence and each class name.
pub const TEXT_BYTES: usize = 1024;
/// Stages, and so exits.
pub const STAGES: usize = 16;
/// Inputs or state tensors of one stage.
pub const STATE_TENSORS: usize = 64;
/// Height and width of the input in pixels.
pub const SIDE: usize = 4096;
/// Channels of the input.
pub const CHANNELS: usize = 16;
/// Classes.
pub const CLASSES: usize = 16_384;
/// Features (C) of one exit.
pub const FEATURES: usize = 16_384;
/// Numbers in one head's weights: K times C.
pub const HEAD_WEIGHTS: usize = 32 << 20;
/// Subsets of the classes.
pub const SUBSETS: usize = 64;
/// Multiply-adds of one stage.
pub const MACS: u64 = 1_000_000_000_000;
/// Bytes of the header of a safetensors file.
pub const TENSORS_HEADER_BYTES: usize = 1 << 20;
