use std::env;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::toolchain::{Library, TARGET, Toolchain};

/// The guest's stack: with a small policy's data it leaves memory at one page of 64 KiB.
const STACK_BYTES: u32 = 32 * 1024;

/// Why a policy crate gave no core module.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// No crate stands there.
    #[error("`{path}` is no crate; name the folder that holds the policy's Cargo.toml")]
    NoCrate {
        /// The folder.
        path: PathBuf,
    },
    /// Cargo does not run.
    #[error("cannot run `{cargo}`; is it installed?")]
    Cargo {
        /// The program.
        cargo: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The crate does not compile; cargo's messages stand on standard error.
    #[error("`{path}` does not compile; see cargo's messages above")]
    Compile {
        /// The crate's folder.
        path: PathBuf,
    },
    /// Cargo succeeded, but built no module.
    #[error("`{path}` gave no WebAssembly module; has the crate a library (src/lib.rs)?")]
    NoModule {
        /// The crate's folder.
        path: PathBuf,
    },
    /// The module cannot be read back.
    #[error("cannot read the module `{path}`")]
    Read {
        /// The module.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl Toolchain {
    /// Compiles the policy crate in the folder `policy` to a core module, with its release profile.
    ///
    /// Build outputs go to `target`, or where cargo puts them. Cargo's progress and messages go to
    /// standard error.
    ///
    /// # Errors
    ///
    /// When there is no crate, or it does not compile.
    pub fn module(&self, policy: &Path, target: Option<&Path>) -> Result<Vec<u8>, ModuleError> {
        let manifest = policy.join("Cargo.toml");
        if !manifest.is_file() {
            return Err(ModuleError::NoCrate {
                path: policy.to_owned(),
            });
        }
        let mut command = self.command(policy);
        command.arg("--manifest-path").arg(&manifest);
        if let Some(target) = target {
            command.arg("--target-dir").arg(target);
        }
        let output = command
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .map_err(|source| ModuleError::Cargo {
                cargo: self.rust.cargo.clone(),
                source,
            })?;
        if !output.status.success() {
            return Err(ModuleError::Compile {
                path: policy.to_owned(),
            });
        }
        let path = built_module(&output.stdout).ok_or_else(|| ModuleError::NoModule {
            path: policy.to_owned(),
        })?;
        std::fs::read(&path).map_err(|source| ModuleError::Read { path, source })
    }

    fn command(&self, policy: &Path) -> Command {
        let mut command = Command::new(&self.rust.cargo);
        // Whatever an outer cargo or the user's shell sets for the host is not meant for the guest.
        for variable in [
            "RUSTFLAGS",
            "CARGO_BUILD_TARGET",
            "CARGO_BUILD_RUSTFLAGS",
            "RUSTC_WORKSPACE_WRAPPER",
        ] {
            command.env_remove(variable);
        }
        command.env("CARGO_ENCODED_RUSTFLAGS", flags(policy));
        // The crate type is given here, so that the policy is a plain library to its own tests.
        command.args([
            "rustc",
            "--release",
            "--lib",
            "--crate-type",
            "cdylib",
            "--target",
            TARGET,
        ]);
        command.args(["--message-format", "json-render-diagnostics"]);
        if let Library::FromSource { linker } = &self.library {
            command.env("RUSTC_BOOTSTRAP", "1").arg("-Zbuild-std=core,alloc");
            command.env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker);
        }
        if self.rust.rustc.is_absolute() {
            command.env("RUSTC", &self.rust.rustc).env_remove("RUSTUP_TOOLCHAIN");
        }
        command
    }
}

/// Compiler flags, joined as cargo wants them. Folders of the machine are kept out of the module: a
/// policy that prints its panics would carry them.
fn flags(policy: &Path) -> OsString {
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cargo")));
    let policy = policy.canonicalize().unwrap_or_else(|_| policy.to_owned());
    let mut flags = OsString::from(format!("-Clink-arg=-zstack-size={STACK_BYTES}"));
    for (folder, name) in [(cargo_home, "/cargo"), (Some(policy), "/policy")] {
        if let Some(folder) = folder {
            flags.push("\u{1f}--remap-path-prefix=");
            flags.push(folder);
            flags.push("=");
            flags.push(name);
        }
    }
    flags
}

/// The module among cargo's JSON messages: the last one made.
fn built_module(messages: &[u8]) -> Option<PathBuf> {
    let artifacts = messages.split(|byte| *byte == b'\n').rev().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_slice(line).ok()?;
        let is_artifact = message["reason"] == "compiler-artifact";
        is_artifact.then_some(message)
    });
    artifacts
        .filter_map(|artifact| {
            let files = artifact["filenames"].as_array()?;
            let modules = files.iter().filter_map(|file| file.as_str());
            modules.filter(|file| file.ends_with(".wasm")).map(PathBuf::from).next()
        })
        .next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_is_found_among_cargos_messages() {
        let messages = br#"{"reason":"compiler-artifact","filenames":["/t/libsdk.rlib"]}
{"reason":"build-script-executed"}
{"reason":"compiler-artifact","filenames":["/t/policy.wasm"]}
{"reason":"build-finished","success":true}
"#;
        assert_eq!(built_module(messages), Some(PathBuf::from("/t/policy.wasm")));
        assert_eq!(built_module(b"no json\n"), None);
    }

    #[test]
    fn a_folder_without_a_crate_is_named() {
        let toolchain = Toolchain {
            rust: crate::toolchain::Rust {
                cargo: "cargo".into(),
                rustc: "rustc".into(),
            },
            library: Library::Installed,
        };
        let error = toolchain.module(Path::new("no/such/folder"), None).unwrap_err();
        assert!(matches!(error, ModuleError::NoCrate { path } if path == Path::new("no/such/folder")));
    }
}
