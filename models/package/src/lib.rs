//! Model packages: manifest, digests, reading and checking.
//!
//! A package is a network cut into stages, with an exit after each of them.
//! It is a directory of plain files (or the same files embedded in a binary):
//!
//! ```text
//! model.toml            the manifest: input, classes, stages, exits, digests
//! stage-0.onnx …        one ONNX graph per stage (names as the manifest says)
//! heads.safetensors     f32 tensors `exit-E.weight` [K, C] and `exit-E.bias` [K]
//! whiteners.safetensors optional: f32 tensors `exit-E.mean` [C] and `exit-E.precision` [C, C] of all exits but
//!                       the last, along which a device specializes heads
//! vectors.safetensors   optional: images and the logits they must give
//! ```
//!
//! The same files in one, as a package travels and is kept: an uncompressed tar
//! archive, in which nothing else lies.
//!
//! **Terms.** A *stage* is the part of the network between two exits. It reads
//! the image or the *state* tensors of the stage before, and gives the state
//! for the next one and the *features* `u` of its *exit*: C numbers. The exit's
//! *head* turns them into K logits `W u + b`; its temperature is already folded
//! into `W` and `b`. Exit `e` always belongs to stage `e`.
//!
//! **Constraints.** Whatever comes from a package is bounded before it is used;
//! [`limits`] holds the numbers. File names are plain names: no separators, no
//! leading dot, so a package cannot reach outside its directory. Every part is
//! listed in the manifest with its SHA-256, and a file that is not listed is
//! never read. A refused package is refused as a whole: [`Package::read`] gives
//! either a package in which everything fits or an error that names the package,
//! the part and the remedy.
//!
//! **What is not checked here.** The ONNX graphs are opaque bytes to this crate;
//! the engine checks them against the manifest when it loads them. Nor does a
//! digest say who made the package: signatures are checked where a package
//! arrives from outside.
//!
//! **Versions.** [`FORMAT`] is the only format there is. Unknown keys in the
//! manifest are ignored, so that a recipe can record more than this crate knows;
//! a change that an old reader must not ignore gets a new format number.
//!
//! The crate is `no_std` with `alloc`; the feature `std` adds
//! `Package::open`, which reads a directory or one file, and `Package::pack`.

#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

#[cfg(feature = "std")]
mod archive;
#[cfg(feature = "std")]
mod directory;
mod error;
mod heads;
mod input;
pub mod limits;
mod manifest;
mod package;
mod tensors;
mod vectors;
mod whiteners;

pub use error::{PackageError, Problem, TensorsError};
pub use heads::Head;
pub use input::Input;
pub use manifest::{Exit, FORMAT, HEADS, MANIFEST, Manifest, Specialization, Stage, VECTORS, WHITENERS};
pub use package::Package;
pub use vectors::{Logits, Vectors};
pub use whiteners::Whitener;

pub use offramp_proto::Digest;
