//! Builds the `no_std` crates for a machine without an operating system: what only looks like `no_std`, fails here.

use std::path::Path;

use anyhow::{Context, Result};

use crate::process;
use crate::rules::{BARE_METAL, BARE_METAL_TARGET};
use crate::toolchain::Toolchain;

/// Builds each of [`BARE_METAL`] by itself without default features, so that none lives off another's.
///
/// # Errors
/// One does not build, or no toolchain for the target is to be had.
pub fn build(target: &Path) -> Result<()> {
    let toolchain = Toolchain::with_target(BARE_METAL_TARGET)?;
    println!("{toolchain}");
    for package in BARE_METAL {
        let mut cargo = toolchain.cargo();
        // Whether it builds is the question: unoptimised, the macros that run meanwhile are built much sooner.
        cargo.args(["build", "--profile", "dev", "--locked", "--package", package]);
        cargo.args(["--no-default-features", "--target", BARE_METAL_TARGET]);
        // Apart from the host's build, whose lock and artefacts another compiler would disturb.
        cargo.env("CARGO_TARGET_DIR", target.join("bare-metal"));
        process::run(&mut cargo).with_context(|| format!("{package} does not build for {BARE_METAL_TARGET}"))?;
    }
    Ok(())
}
