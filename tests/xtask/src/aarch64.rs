//! Building for aarch64 Linux, and running what was built, on x86-64.
//!
//! It is run by qemu; its library comes from `rustup target add`, or else, ready-made, from Debian's package for that
//! architecture.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;
use crate::toolchain::{Toolchain, apt_install, debian_cargo};

/// What it is called.
pub(crate) const TARGET: &str = "aarch64-unknown-linux-gnu";
const LINKER: &str = "aarch64-linux-gnu-gcc";
const EMULATOR: &str = "qemu-aarch64-static";
/// Debian's packages of both, and of the C library to link with.
const CROSS_PACKAGES: [&str; 3] = ["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross", "qemu-user-static"];
/// Where they put the C library.
const CROSS_ROOT: &str = "/usr/aarch64-linux-gnu";
/// Debian's package of the compiler, and of its library for aarch64: both of one version.
const DEBIAN_RUSTC: &str = "rustc-web";
const DEBIAN_LIBRARY: &str = "libstd-rust-web-dev:arm64";

/// Compiler, linker and emulator.
#[derive(Debug)]
pub(crate) struct Aarch64 {
    /// Of Debian's compiler, where the one in use has no library for it.
    sysroot: Option<PathBuf>,
}

impl Aarch64 {
    /// Finds them, and installs what is missing where that is possible; a library of Debian's is kept in the folder.
    ///
    /// # Errors
    /// Something cannot be had; the message says what to install.
    pub(crate) fn find(folder: &Path) -> Result<Self> {
        if !runs(LINKER) || !runs(EMULATOR) {
            let installed = apt_install(&CROSS_PACKAGES);
            if !installed || !runs(LINKER) || !runs(EMULATOR) {
                bail!(
                    "`{LINKER}` and `{EMULATOR}` are needed: on Debian, as root, `apt-get install {}`",
                    CROSS_PACKAGES.join(" ")
                );
            }
        }
        let sysroot = match Toolchain::with_target(TARGET)? {
            Toolchain::Installed => None,
            Toolchain::Debian => Some(debian_library(folder)?),
        };
        Ok(Self { sysroot })
    }

    /// Cargo, for `--target` [`TARGET`].
    pub(crate) fn cargo(&self) -> Command {
        let mut cargo = match &self.sysroot {
            None => process::cargo_for_one_crate(),
            Some(sysroot) => {
                let mut cargo = debian_cargo();
                let mut flags = OsString::from("--sysroot=");
                flags.push(sysroot);
                cargo.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS", flags);
                cargo
            }
        };
        cargo.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", LINKER);
        let emulator = format!("{EMULATOR} -L {CROSS_ROOT}");
        cargo.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", emulator);
        cargo
    }

    /// Runs a program that was built.
    pub(crate) fn emulate(&self, program: &Path) -> Command {
        let mut emulator = Command::new(EMULATOR);
        emulator.args(["-L", CROSS_ROOT]).arg(program);
        emulator
    }
}

fn runs(program: &str) -> bool {
    process::succeeds(Command::new(program).arg("--version"))
}

/// The library for aarch64 of Debian's compiler: a folder to give as `--sysroot`.
fn debian_library(folder: &Path) -> Result<PathBuf> {
    let version = || process::output(Command::new("/usr/bin/rustc").arg("--version"));
    let root = |version: &str| folder.join(format!("library-{}", version.split(' ').nth(1).unwrap_or_default()));
    let known = root(&version()?);
    if known.exists() {
        return Ok(known.join("usr"));
    }
    // The library that is to be had fits the latest compiler.
    if !apt_install(&[DEBIAN_RUSTC]) {
        bail!("Debian's compiler cannot be upgraded: run `rustup target add {TARGET}`");
    }
    let root = root(&version()?);
    // Lists and caches of our own: the machine's packages stay those of its own architecture.
    let (lists, cache) = (folder.join("apt/lists"), folder.join("apt/cache"));
    for path in [lists.join("partial"), cache.join("archives/partial")] {
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    }
    let apt = |arguments: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.arg("-o").arg(format!("Dir::State::lists={}", lists.display()));
        apt.arg("-o").arg(format!("Dir::Cache={}", cache.display()));
        apt.args([
            "-o",
            "APT::Architectures::=amd64",
            "-o",
            "APT::Architectures::=arm64",
            "-q",
        ]);
        apt.args(arguments).current_dir(&cache);
        process::run(&mut apt)
    };
    apt(&["update"])?;
    apt(&["download", DEBIAN_LIBRARY])?;
    let package = fs::read_dir(&cache)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get downloaded no package")?;
    // What is cut off half-way must not be taken for whole.
    let partial = root.with_extension("partial");
    process::run(Command::new("dpkg").arg("-x").arg(&package).arg(&partial))?;
    fs::rename(&partial, &root).with_context(|| format!("cannot make {}", root.display()))?;
    fs::remove_file(&package).with_context(|| format!("cannot remove {}", package.display()))?;
    Ok(root.join("usr"))
}
