//! `offramp policy build`: a component of a policy's crate, or of a core module from another language.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use offramp_policy_build::{Toolchain, component};
use offramp_proto::Digest;

use super::read;
use crate::terminal;

/// What is built.
#[derive(Args, Debug)]
pub struct Build {
    /// The policy's folder, or a core module that another compiler has made.
    #[arg(default_value = ".")]
    policy: PathBuf,
    /// The component; without it NAME.wasm in the policy's folder, named as the folder is.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// On Debian, as root: install the distribution's compiler where there is none.
    #[arg(long)]
    install: bool,
}

/// Builds it.
///
/// # Errors
/// When there is no compiler, which says what to install; when it does not compile, or is no policy.
pub fn build(build: &Build) -> anyhow::Result<()> {
    let path = &build.policy;
    let (module, output) = if path.is_file() {
        let Some(output) = &build.output else {
            bail!("{} is a module: say with -o where its component goes", path.display());
        };
        (read(path)?, output.clone())
    } else {
        let folder = std::fs::canonicalize(path).with_context(|| format!("no folder {}", path.display()))?;
        let output = build.output.clone().map_or_else(|| named_as(&folder), Ok)?;
        let toolchain = if build.install {
            Toolchain::find_or_install()?
        } else {
            Toolchain::find()?
        };
        (toolchain.module(&folder, None)?, output)
    };
    let component = component(&module).with_context(|| format!("no policy can be made of {}", path.display()))?;
    std::fs::write(&output, &component).with_context(|| format!("{} cannot be written", output.display()))?;
    let (bytes, digest) = (component.len(), Digest::of(&component));
    Ok(terminal::line(&format!(
        "{}: {bytes} bytes, {digest}",
        output.display()
    ))?)
}

/// `gate/gate.wasm` for the folder `gate`.
fn named_as(folder: &Path) -> anyhow::Result<PathBuf> {
    let name = folder
        .file_name()
        .context("the folder has no name: say with -o where the component goes")?;
    Ok(folder.join(name).with_extension("wasm"))
}
