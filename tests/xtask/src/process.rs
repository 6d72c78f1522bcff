//! Running other programs.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The Cargo that started this program, or the one on the path.
#[must_use]
pub fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
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
