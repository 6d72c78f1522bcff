//! Finding a compiler for a target other than this machine's.
//!
//! `rustup target add` is asked first. Where its server cannot be reached, Debian's compiler builds `core` and `alloc`
//! from Debian's source package; it is called by its path and its version does not matter, since Debian moves it.

use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::process;

/// Debian's packages of a compiler that is recent enough, Cargo, and the library's source.
const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_SOURCE: &str = "/usr/lib/rustlib/src/rust/library";

/// A way to build for a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Toolchain {
    /// The compiler in use has the target's library.
    Installed,
    /// Debian's compiler, which builds `core` and `alloc` itself.
    Debian,
}

impl Toolchain {
    /// Finds a way to build for `target`, installing what is missing where that is possible.
    ///
    /// # Errors
    /// There is none; the message says what to install.
    pub fn with_target(target: &str) -> Result<Self> {
        if rustup_has(target) || process::succeeds(Command::new("rustup").args(["target", "add", target])) {
            return Ok(Self::Installed);
        }
        if !debian_is_installed() {
            apt_install(&DEBIAN_PACKAGES);
        }
        if !debian_is_installed() {
            bail!(
                "no compiler for {target}: run `rustup target add {target}`, or on Debian, as root, `apt-get install {}`",
                DEBIAN_PACKAGES.join(" ")
            );
        }
        Ok(Self::Debian)
    }

    /// Cargo of this toolchain.
    #[must_use]
    pub fn cargo(self) -> Command {
        match self {
            Self::Installed => process::cargo_for_one_crate(),
            Self::Debian => {
                let mut cargo = debian_cargo();
                // `-Z` on a stable compiler: the library is built by the compiler that it came with.
                cargo.env("RUSTC_BOOTSTRAP", "1").arg("-Zbuild-std=core,alloc");
                cargo
            }
        }
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Installed => "compiler: the one in use",
            Self::Debian => "compiler: Debian's, with core and alloc from source",
        })
    }
}

/// Debian's Cargo with Debian's compiler.
pub(crate) fn debian_cargo() -> Command {
    let mut cargo = Command::new(DEBIAN_CARGO);
    cargo.env("RUSTC", DEBIAN_RUSTC);
    // Set by Cargo and rustup for this program; meant for another compiler.
    for variable in [
        "RUSTUP_TOOLCHAIN",
        process::FEATURE_UNIFICATION,
        "RUSTC_WRAPPER",
        "RUSTDOC",
        "LD_LIBRARY_PATH",
    ] {
        cargo.env_remove(variable);
    }
    cargo
}

/// Installs or upgrades Debian's packages; `false` where this is not root, or not Debian.
pub(crate) fn apt_install(packages: &[&str]) -> bool {
    let install = ["install", "-q", "-y", "--no-install-recommends"];
    process::succeeds(Command::new("apt-get").args(["update", "-q"]))
        && process::succeeds(Command::new("apt-get").args(install).args(packages))
}

fn rustup_has(target: &str) -> bool {
    let list = Command::new("rustup").args(["target", "list", "--installed"]).output();
    list.is_ok_and(|list| String::from_utf8_lossy(&list.stdout).lines().any(|line| line == target))
}

fn debian_is_installed() -> bool {
    [DEBIAN_CARGO, DEBIAN_RUSTC, DEBIAN_SOURCE]
        .iter()
        .all(|path| Path::new(path).exists())
}
