//! Runs the core's frozen trace in every build that must give the same bits: unoptimised, and on another processor;
//! and there the kernels' tests, with that processor's vectors.
//!
//! The optimised build of this machine is the test command's.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::aarch64::{self, Aarch64};
use crate::process;

/// Runs the trace and the kernels' tests.
///
/// # Errors
/// The bits differ, a kernel computes something else, or a compiler or an emulator cannot be had.
pub fn check(target: &Path) -> Result<()> {
    // Apart from the workspace's build: features and profiles differ.
    let folder = target.join("portable");
    trace(&mut process::cargo_for_one_crate(), &folder, &["--profile", "dev"])?;
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        println!("aarch64 is compared where this runs on x86-64 and Linux");
        return Ok(());
    }
    let cross = Aarch64::find(&folder)?;
    trace(
        &mut cross.cargo(),
        &folder,
        &["--profile", "dev", "--target", aarch64::TARGET],
    )?;
    let release = ["--profile", "release", "--target", aarch64::TARGET];
    trace(&mut cross.cargo(), &folder, &release)?;
    test(
        &mut cross.cargo(),
        &folder,
        &release,
        &["offramp-core", "--lib", "lanes"],
    )
    .context("the core computes something else on aarch64")?;
    test(&mut cross.cargo(), &folder, &release, &["offramp-kernels", "--lib"])
        .context("kernels compute something else on aarch64, or cannot be run")
}

fn trace(cargo: &mut Command, folder: &Path, build: &[&str]) -> Result<()> {
    test(cargo, folder, build, &["offramp-core", "--test", "it", "portable"])
        .with_context(|| format!("the trace differs, or cannot be run, with {}", build.join(" ")))
}

fn test(cargo: &mut Command, folder: &Path, build: &[&str], what: &[&str]) -> Result<()> {
    cargo.arg("test").args(build).env("CARGO_TARGET_DIR", folder);
    process::run(cargo.args(["--locked", "--package"]).args(what))
}
