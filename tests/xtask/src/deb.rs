//! The agent as a package for Debian and its kin, JetPack's Ubuntu among them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::aarch64::{self, Aarch64};
use crate::process;

/// Installed where cargo-deb is missing. Newer ones on the path are used as they are.
const VERSION: &str = "3.8.0";
/// Without the tools of authors, and without the demo's broker and controller.
const FEATURES: [&str; 3] = ["--no-default-features", "--features", "onnxruntime"];

/// Has reference vectors: what another processor computes is compared with them.
const MODEL: &str = "revcol-cifar100";

/// Builds the package for an architecture as Debian calls it, and tries what is in it: a model must pass its check.
/// Prints where it lies.
///
/// # Errors
/// It cannot be built for that architecture here, or does not run.
pub fn build(target: &Path, architecture: &str) -> Result<()> {
    let cross = Cross::to(target, architecture)?;
    let triple = cross.triple();
    let path = process::path_with_tool(target, "cargo-deb", VERSION)?;
    let mut build = cross.cargo();
    build.args([
        "build",
        "--release",
        "--locked",
        "--package",
        "offramp",
        "--target",
        triple,
    ]);
    process::run(build.args(FEATURES))?;
    // One that was built before must not be taken for this one's.
    let folder = target.join("deb").join(architecture);
    if folder.exists() {
        std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut pack = cross.cargo();
    pack.args([
        "deb",
        "--no-build",
        "--strip",
        "--locked",
        "--package",
        "offramp",
        "--target",
        triple,
        "--output",
    ]);
    process::run(pack.arg(&folder).env("PATH", path))?;
    let package = only(&folder)?;
    let root = folder.join("root");
    process::run(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(&root))?;
    process::run(cross.run(&root.join("usr/bin/offramp")).args(["model", "check", MODEL]))
        .context("the program in the package does not run")?;
    println!("{}", package.display());
    Ok(())
}

/// Where it is built for.
enum Cross {
    Here,
    Aarch64(Aarch64),
}

impl Cross {
    fn to(target: &Path, architecture: &str) -> Result<Self> {
        let here = if cfg!(target_arch = "aarch64") {
            "arm64"
        } else {
            "amd64"
        };
        match architecture {
            "arm64" | "amd64" if architecture == here => Ok(Self::Here),
            "arm64" => Ok(Self::Aarch64(Aarch64::find(&target.join("portable"))?)),
            other => bail!("packages are built for {here} and arm64 here, not for {other}"),
        }
    }

    fn triple(&self) -> &'static str {
        match self {
            Self::Here if cfg!(target_arch = "x86_64") => "x86_64-unknown-linux-gnu",
            _ => aarch64::TARGET,
        }
    }

    fn cargo(&self) -> Command {
        match self {
            Self::Here => process::cargo_for_one_crate(),
            Self::Aarch64(cross) => cross.cargo(),
        }
    }

    fn run(&self, program: &Path) -> Command {
        match self {
            Self::Here => Command::new(program),
            Self::Aarch64(cross) => cross.emulate(program),
        }
    }
}

/// The only file of a folder.
fn only(folder: &Path) -> Result<PathBuf> {
    let mut files = std::fs::read_dir(folder)?;
    let first = files.next().context("cargo-deb made no package")??;
    Ok(first.path())
}
