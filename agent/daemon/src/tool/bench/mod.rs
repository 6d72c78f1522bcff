//! `offramp bench`: measurements that anybody can repeat.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

mod engine;
mod specialization;

pub use engine::{EngineBench, engine};
pub use specialization::{SpecializationBench, specialization};

/// Where what is made once is kept.
fn cache() -> anyhow::Result<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
    let cache = cache.context("neither XDG_CACHE_HOME nor HOME is set: set one to a folder for what is made once")?;
    Ok(cache.join("offramp"))
}
