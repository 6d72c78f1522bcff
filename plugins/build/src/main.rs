//! `offramp-policy-build POLICY -o FILE`: makes a component of a policy crate.

use std::error::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs, io};

use offramp_policy_build::{Toolchain, component};

const USAGE: &str = "usage: offramp-policy-build POLICY -o FILE
Builds the policy crate in the folder POLICY into the WebAssembly component FILE.";

fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let [policy, option, file] = arguments.as_slice() else {
        eprintln!("{USAGE}");
        return ExitCode::from(64);
    };
    if option != "-o" {
        eprintln!("{USAGE}");
        return ExitCode::from(64);
    }
    match build(Path::new(policy), Path::new(file)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprintln!("caused by: {error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn build(policy: &Path, file: &Path) -> Result<(), Box<dyn Error>> {
    // Beside the outputs of an outer cargo, whose folder may be locked.
    let target = env::var_os("CARGO_TARGET_DIR").map(|folder| PathBuf::from(folder).join("policies"));
    let module = Toolchain::find_or_install()?.module(policy, target.as_deref())?;
    let component = component(&module)?;
    fs::write(file, &component)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot write `{}`: {error}", file.display())))?;
    eprintln!("{}: {} bytes", file.display(), component.len());
    Ok(())
}
