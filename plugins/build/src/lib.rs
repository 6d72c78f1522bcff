//! Builds exit policies into WebAssembly components.
//!
//! A policy is a Rust library crate that depends on `offramp-policy-sdk`. [`Toolchain::find`] looks
//! for a compiler that can make WebAssembly of it, [`Toolchain::module`] compiles it to a core module,
//! and [`component`] wraps that into a component. The same from the command line:
//!
//! ```text
//! cargo run --release -p offramp-policy-build -- plugins/policies/threshold -o threshold.wasm
//! ```
//!
//! # Which compiler
//!
//! The first of these that is there:
//!
//! 1. the user's own Rust with the standard library of `wasm32-unknown-unknown`;
//! 2. the same, after `rustup target add wasm32-unknown-unknown` where rustup can fetch it;
//! 3. a Rust of the distribution (Debian's `rustc-web`, in whatever version it stands) with that
//!    library, or with the library's sources, which are then compiled along
//!    (`-Zbuild-std`, under `RUSTC_BOOTSTRAP=1`: cargo has no stable name for it).
//!
//! [`Toolchain::find_or_install`] also installs Debian's packages where it runs as root.

mod command;
mod component;
mod module;
mod toolchain;

pub use component::{ComponentError, component};
pub use module::ModuleError;
pub use toolchain::{NoToolchain, Toolchain};
