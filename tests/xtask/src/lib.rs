//! The project's own chores, run as `cargo xtask CHORE`.

mod aarch64;
pub mod adr;
pub mod bare_metal;
pub mod ci;
pub mod deb;
pub mod deny;
pub mod metadata;
pub mod portable;
pub mod process;
pub mod rules;
pub mod toolchain;
