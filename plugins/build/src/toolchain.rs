use std::env;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::command::{output, succeeds};

pub(crate) const TARGET: &str = "wasm32-unknown-unknown";

/// Debian's packages that make step 3 of the crate's documentation work.
const PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

const DOWNLOAD_LIMIT: Duration = Duration::from_secs(300);
const INSTALL_LIMIT: Duration = Duration::from_secs(900);

/// A Rust toolchain that can compile a policy to WebAssembly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolchain {
    pub(crate) rust: Rust,
    pub(crate) library: Library,
}

/// A cargo and the rustc that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rust {
    pub(crate) cargo: PathBuf,
    pub(crate) rustc: PathBuf,
}

/// Where the standard library for WebAssembly comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Library {
    /// It is installed.
    Installed,
    /// It is compiled along, and this linker is used: the toolchain has none of its own.
    FromSource { linker: PathBuf },
}

/// No toolchain compiles to WebAssembly.
#[derive(Debug, thiserror::Error)]
#[error(
    "no Rust toolchain here compiles to WebAssembly. Install one of: \
     `rustup target add {TARGET}`; on Debian `apt-get install {}`. Tried:{tried}",
    PACKAGES.join(" ")
)]
pub struct NoToolchain {
    tried: String,
}

impl Toolchain {
    /// Looks for a toolchain; lets rustup fetch the target's standard library, but changes nothing else.
    ///
    /// # Errors
    ///
    /// When there is none, with what was tried and what to install.
    pub fn find() -> Result<Toolchain, NoToolchain> {
        let mut tried = String::new();
        Self::users(&mut tried)
            .or_else(|| Self::distribution(&mut tried))
            .ok_or(NoToolchain { tried })
    }

    /// Like [`find`](Self::find); where that fails and this runs as root on Debian, installs the
    /// distribution's compiler.
    ///
    /// # Errors
    ///
    /// When there is none and none could be installed, with what was tried and what to install.
    pub fn find_or_install() -> Result<Toolchain, NoToolchain> {
        let mut failure = match Self::find() {
            Ok(toolchain) => return Ok(toolchain),
            Err(failure) => failure,
        };
        if output(Command::new("id").arg("-u")).as_deref() == Some("0") {
            let _ = write!(failure.tried, "\n- `apt-get install {}`", PACKAGES.join(" "));
            let mut install = Command::new("apt-get");
            install
                .args(["install", "-y", "--no-install-recommends"])
                .args(PACKAGES);
            install.env("DEBIAN_FRONTEND", "noninteractive");
            // The lists of packages may be missing or stale: a fresh container has none, and an old one installs a
            // compiler that is too old without a word.
            for update in [false, true] {
                if update && !succeeds(Command::new("apt-get").arg("update"), DOWNLOAD_LIMIT) {
                    break;
                }
                if succeeds(&mut install, INSTALL_LIMIT)
                    && let Some(toolchain) = Self::distribution(&mut failure.tried)
                {
                    return Ok(toolchain);
                }
            }
        }
        Err(failure)
    }

    /// The user's Rust, where its WebAssembly library is installed or rustup can add it.
    fn users(tried: &mut String) -> Option<Toolchain> {
        let rust = Rust {
            cargo: env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from),
            rustc: env::var_os("RUSTC").map_or_else(|| "rustc".into(), PathBuf::from),
        };
        let Some(root) = rust.sysroot() else {
            let _ = write!(tried, "\n- `{}`: does not run", rust.rustc.display());
            return None;
        };
        if !has_library(&root) {
            let _ = write!(tried, "\n- `{}`: lacks {TARGET}", rust.rustc.display());
            let mut add = Command::new("rustup");
            add.args(["target", "add", TARGET]);
            // Under `cargo run` this names the toolchain in use, which is the one to extend.
            if let Some(name) = env::var_os("RUSTUP_TOOLCHAIN") {
                add.arg("--toolchain").arg(name);
            }
            if !succeeds(&mut add, DOWNLOAD_LIMIT) || !has_library(&root) {
                let _ = write!(tried, "\n- `rustup target add {TARGET}`: failed");
                return None;
            }
        }
        Some(Toolchain {
            rust,
            library: Library::Installed,
        })
    }

    /// A Rust of the distribution, in whatever version it stands, that is new enough.
    pub(crate) fn distribution(tried: &mut String) -> Option<Toolchain> {
        let mut folders = vec![PathBuf::from("/usr/bin")];
        if let Ok(entries) = std::fs::read_dir("/usr/lib") {
            let versioned = entries
                .flatten()
                .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"rust-"));
            folders.extend(versioned.map(|entry| entry.path().join("bin")));
        }
        folders.iter().find_map(|folder| {
            let rust = Rust {
                cargo: folder.join("cargo"),
                rustc: folder.join("rustc"),
            };
            if !rust.cargo.exists() || !rust.rustc.exists() {
                return None;
            }
            let mut passed_over = |why: &str| {
                let _ = write!(tried, "\n- `{}`: {why}", rust.rustc.display());
                None
            };
            let (Some(version), Some(root)) = (rust.version(), rust.sysroot()) else {
                return passed_over("does not run");
            };
            if version < oldest() {
                return passed_over("too old");
            }
            if has_library(&root) {
                return Some(Toolchain {
                    rust,
                    library: Library::Installed,
                });
            }
            if !root.join("lib/rustlib/src/rust/library/core").exists() {
                return passed_over("lacks the target's library and its sources");
            }
            let Some(linker) = linker(&root) else {
                return passed_over("has the library's sources, but there is no `rust-lld` or `wasm-ld`");
            };
            Some(Toolchain {
                rust,
                library: Library::FromSource { linker },
            })
        })
    }
}

impl Rust {
    fn sysroot(&self) -> Option<PathBuf> {
        output(Command::new(&self.rustc).args(["--print", "sysroot"])).map(PathBuf::from)
    }

    fn version(&self) -> Option<(u32, u32)> {
        let text = output(Command::new(&self.rustc).arg("--version"))?;
        version(text.split_whitespace().nth(1)?)
    }
}

/// The first two numbers of a version.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The oldest Rust that the SDK compiles with: the one that this crate asks for.
fn oldest() -> (u32, u32) {
    version(env!("CARGO_PKG_RUST_VERSION")).expect("the workspace states its Rust version as two numbers")
}

fn has_library(sysroot: &Path) -> bool {
    sysroot.join("lib/rustlib").join(TARGET).join("lib").is_dir()
}

/// A linker for WebAssembly: that of this toolchain, of the user's, or of LLVM.
fn linker(sysroot: &Path) -> Option<PathBuf> {
    let users = output(Command::new("rustc").args(["--print", "sysroot"])).map(PathBuf::from);
    let in_sysroots = [Some(sysroot.to_owned()), users]
        .into_iter()
        .flatten()
        .find_map(|root| {
            let hosts = std::fs::read_dir(root.join("lib/rustlib")).ok()?;
            hosts
                .flatten()
                .map(|host| host.path().join("bin/rust-lld"))
                .find(|linker| linker.exists())
        });
    let on_path = || {
        let path = env::var_os("PATH")?;
        env::split_paths(&path)
            .map(|folder| folder.join("wasm-ld"))
            .find(|linker| linker.exists())
    };
    in_sysroots.or_else(on_path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_compared_by_its_first_two_numbers() {
        assert_eq!(version("1.96.0"), Some((1, 96)));
        assert_eq!(version("1.100.0-nightly"), Some((1, 100)));
        assert_eq!(version("1.95"), Some((1, 95)));
        assert_eq!(version("unknown"), None);
        assert!(oldest() >= (1, 85));
    }

    #[test]
    fn the_error_says_what_to_install_and_what_was_tried() {
        let error = NoToolchain {
            tried: "\n- `rustc`: does not run".to_owned(),
        }
        .to_string();
        assert!(error.contains("rustup target add wasm32-unknown-unknown"), "{error}");
        assert!(
            error.contains("apt-get install rustc-web cargo-web rust-web-src"),
            "{error}"
        );
        assert!(error.ends_with("- `rustc`: does not run"), "{error}");
    }
}
