//! `cargo xtask CHORE`.

use std::process::ExitCode;

use anyhow::Result;
use xtask::{bare_metal, ci, deb, deny, metadata::Metadata, portable};

const USAGE: &str = "\
Usage: cargo xtask CHORE

  rules       check the dependency rules and the decision records
  bare-metal  build the no_std crates for a machine without an operating system
  portable    run the core's frozen trace unoptimised and on aarch64, where the bits must not differ, and the
              kernels' tests there
  deb [ARCH]  build the agent as a package for Debian's kin and try it; for a Jetson (arm64) without ARCH
  advisories  check the dependencies for open advisories (OFFRAMP_ADVISORIES: a script to run instead)
  ci          all of it, after rustfmt and with clippy, licences and bans";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    if let ["help" | "--help" | "-h"] = args[..] {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("{USAGE}");
            ExitCode::from(64)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// `false`: there is no such chore.
fn run(chore: &[&str]) -> Result<bool> {
    let metadata = Metadata::of_workspace()?;
    // Chores work on the whole workspace, wherever in it they are called.
    std::env::set_current_dir(&metadata.workspace_root)?;
    let target = &metadata.target_directory;
    match chore {
        ["rules"] => ci::rules(&metadata)?,
        ["bare-metal"] => bare_metal::build(target)?,
        ["portable"] => portable::check(target)?,
        ["deb"] => deb::build(target, "arm64")?,
        ["deb", architecture] => deb::build(target, architecture)?,
        ["advisories"] => deny::advisories(target)?,
        ["ci"] => ci::run(&metadata)?,
        _ => return Ok(false),
    }
    Ok(true)
}
