//! Exit traces: what a policy saw at the exits of a camera's frames and what it answered, so that other policies can be
//! judged by them. Never pixels; pooled features where they are asked for.
//!
//! - [`Header`], [`Frame`], [`Seen`]: what a trace holds.
//! - [`Writer`], [`Reader`]: the format; they know bytes, and no files.
//! - [`Folder`]: the files of a camera's trace on a device, bounded in number and size.
//! - `Hosted`, with the feature of that name: a policy in its host, to be replayed.
//! - [`Replay`]: runs a policy over a trace, and says what it would have cost and how often it would have been right;
//!   [`Weights`] make up for frames of which not all is known.
//!
//! # Format 1
//!
//! All numbers are little-endian. A file is a head and blocks, and nothing else.
//!
//! ```text
//! head:  "OFTR" | format u16 = 1 | 0 u16 | length u32 | CRC-32 u32 | header, CBOR
//! block: length u32 | frames u32 | CRC-32 u32 | frames
//! ```
//!
//! Limits: a header has at most 64 KiB, a block 1 MiB and 65,536 frames, a network 64 exits. A writer ends a block at
//! 32 KiB, so that a power cut costs that much. A CRC is over what follows it.
//!
//! A frame:
//!
//! ```text
//! flags u16 | exits seen u8 | exit taken u8 (255: none) | number u64
//! label u16                                          if flags & 1
//! policy, the first 8 bytes of its digest            if flags & 2; else that of the frame before, none in a block's first
//! latency f32 | interval f32 | energy f32            if flags & 4; else unknown
//! queue u32 | temperature f32 | budget f32 | battery f32   if flags & 8; else 0 and unknown
//! threshold f32                                      the same at all exits
//! per exit seen:
//!   verdict u8 | class u16 | confidence f32 | margin f32 | entropy f32 | change f32
//!   time left f32                                    if flags & 16; else no deadline
//!   C features f16                                   if flags & 32
//! ```
//!
//! Further flags: 64 hurried, 128 fault; 256 the audit agreed, 512 it differed. A verdict is 0 go on, 1 leave, 2 leave
//! without learning, 3 audit, 7 not asked; 8 more when the built-in rule gave it because the policy failed, and 16 more
//! where the exit agrees with the one before. What follows from the header (exits, cost, cost of the next stage) is not
//! stored. Floats keep their bits, but NaN is one NaN.
//!
//! # Damage
//!
//! What a power cut leaves of the last block, or what a worn flash made of any, is found by length and CRC. A reader
//! gives the frames before it, then the error, and ends: blocks are not looked for behind it.
//!
//! Not supported: other byte orders, appending to a file of another run.

mod codec;
mod error;
mod folder;
mod frame;
#[cfg(feature = "hosted")]
mod hosted;
mod reader;
mod replay;
mod writer;

pub use error::TraceError;
pub use folder::{Folder, files};
pub use frame::{Frame, Header, PolicyId, Seen};
#[cfg(feature = "hosted")]
pub use hosted::Hosted;
pub use reader::Reader;
pub use replay::{Decider, Replay, Weights};
pub use writer::Writer;

/// The format that is written.
pub const FORMAT: u16 = 1;
/// Most exits of a network.
pub const MAX_EXITS: usize = 64;

const MAGIC: [u8; 4] = *b"OFTR";
const MAX_HEADER: usize = 64 << 10;
const MAX_BLOCK: usize = 1 << 20;
const MAX_FRAMES: u32 = 1 << 16;
