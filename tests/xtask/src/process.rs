//! Running other programs.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The Cargo that started this program, or the one on the path.
#[must_use]
pub fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Cargo's switch for giving a crate the features that the whole workspace asks for.
pub(crate) const FEATURE_UNIFICATION: &str = "CARGO_RESOLVER_FEATURE_UNIFICATION";

/// Like [`cargo`], for a command about one crate with the features that it asks for itself, whatever the shell says.
#[must_use]
pub fn cargo_for_one_crate() -> Command {
    let mut cargo = cargo();
    cargo.env_remove(FEATURE_UNIFICATION);
    cargo
}

/// Runs a command to its end and returns what it wrote to standard output; its standard error is passed on.
///
/// # Errors
/// It could not be started, failed, or did not write UTF-8.
pub fn output(command: &mut Command) -> Result<String> {
    let shown = show(command);
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("`{shown}` cannot be started"))?;
    if !output.status.success() {
        bail!("`{shown}` failed ({})", output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{shown}` did not print text"))
}

/// Runs a command to its end, its output passed on.
///
/// # Errors
/// It could not be started, or failed.
pub fn run(command: &mut Command) -> Result<()> {
    let shown = show(command);
    let status = command
        .status()
        .with_context(|| format!("`{shown}` cannot be started"))?;
    if !status.success() {
        bail!("`{shown}` failed ({status})");
    }
    Ok(())
}

/// Whether a command can be started and succeeds; its output is dropped.
#[must_use]
pub fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

/// A search path on which a tool of Cargo's is found; installs it below `target` where it is not.
pub(crate) fn path_with_tool(target: &Path, name: &str, version: &str) -> Result<OsString> {
    let root = target.join("tools");
    let path = env::var_os("PATH").unwrap_or_default();
    // The folder comes last: one of the user's own goes first.
    let folders: Vec<PathBuf> = env::split_paths(&path).chain([root.join("bin")]).collect();
    let path = env::join_paths(folders).context("PATH has an entry that cannot be passed on")?;
    if !succeeds(Command::new(name).arg("--version").env("PATH", &path)) {
        let mut install = cargo();
        install
            .args(["install", name, "--version", version, "--locked", "--debug", "--root"])
            .arg(&root);
        run(install.env("CARGO_TARGET_DIR", root.join("build")))
            .with_context(|| format!("{name} is missing; install it with `cargo install {name} --locked`"))?;
    }
    Ok(path)
}

/// The command as one would type it, the program without its folder.
fn show(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program());
    let program = program.file_name().unwrap_or(command.get_program());
    std::iter::once(program)
        .chain(command.get_args())
        .map(|part| part.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}
