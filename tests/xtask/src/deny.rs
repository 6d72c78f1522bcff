//! cargo-deny: advisories, licences, bans and sources, as `deny.toml` says.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

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
    let path = process::path_with_tool(target, "cargo-deny", VERSION)?;
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
    let path = process::path_with_tool(target, "cargo-deny", VERSION)?;
    process::run(
        process::cargo()
            .args(["deny", "check", "bans", "licenses", "sources"])
            .env("PATH", path),
    )
}
