//! cargo-deny: advisories, licences, bans and sources, as `deny.toml` says.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;

/// Installed where cargo-deny is missing. Newer ones on the path are used as they are.
const VERSION: &str = "0.20.2";

/// A script to run instead of fetching the database of advisories, for machines that cannot.
pub const SCRIPT: &str = "OFFRAMP_ADVISORIES";

/// Checks that no dependency has an open advisory or was withdrawn.
///
/// # Errors
/// One has, or cargo-deny could not be installed, or the database not fetched.
pub fn advisories(target: &Path) -> Result<()> {
    let path = path_with_deny(target)?;
    // The script may be offline, and cargo-deny reads the manifests of all packages, for whatever target.
    process::run(process::cargo().args(["fetch", "--locked"]))?;
    match std::env::var_os(SCRIPT) {
        Some(script) => process::run(Command::new(script).env("PATH", path)),
        None => process::run(process::cargo().args(["deny", "check", "advisories"]).env("PATH", path)),
    }
}

/// Checks what the other sections of `deny.toml` ask for.
///
/// # Errors
/// A dependency breaks a rule, or cargo-deny could not be installed.
pub fn bans_licenses_sources(target: &Path) -> Result<()> {
    let path = path_with_deny(target)?;
    process::run(
        process::cargo()
            .args(["deny", "check", "bans", "licenses", "sources"])
            .env("PATH", path),
    )
}

/// A search path on which `cargo deny` is found; installs it below `target` where it is not.
fn path_with_deny(target: &Path) -> Result<OsString> {
    let root = target.join("tools");
    let path = std::env::var_os("PATH").unwrap_or_default();
    // The folder comes last: a cargo-deny of the user's own goes first.
    let folders: Vec<PathBuf> = std::env::split_paths(&path).chain([root.join("bin")]).collect();
    let path = std::env::join_paths(folders).context("PATH has an entry that cannot be passed on")?;
    if !process::succeeds(process::cargo().args(["deny", "--version"]).env("PATH", &path)) {
        let mut install = process::cargo();
        install
            .args([
                "install",
                "cargo-deny",
                "--version",
                VERSION,
                "--locked",
                "--debug",
                "--root",
            ])
            .arg(&root);
        process::run(install.env("CARGO_TARGET_DIR", root.join("build")))
            .context("cargo-deny is missing; install it with `cargo install cargo-deny --locked`")?;
    }
    Ok(path)
}
