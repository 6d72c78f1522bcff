//! `offramp bench`: measurements that anybody can repeat.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use offramp_core::SplitMix64;

mod allocations;
mod cameras;
mod core;
mod engine;
mod policy;
mod specialization;
mod stream;

pub use self::core::{CoreBench, core};
pub use allocations::Counting;
pub use cameras::{CamerasBench, cameras};
pub use engine::{EngineBench, engine};
pub(super) use engine::{batch_time, stage_times};
pub use policy::{PolicyBench, policy};
pub use specialization::{SpecializationBench, specialization};
pub use stream::{StreamBench, stream};

/// Where what is made once is kept.
pub(super) fn cache() -> anyhow::Result<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
    let cache = cache.context("neither XDG_CACHE_HOME nor HOME is set: set one to a folder for what is made once")?;
    Ok(cache.join("offramp"))
}

/// An image of numbers from -1 to 1, the same for the same seed.
pub(super) fn random_image(values: usize, seed: u64) -> Vec<f32> {
    let mut random = SplitMix64(seed);
    (0..values)
        .map(|_| (random.next() >> 40) as f32 / 8_388_608.0 - 1.0)
        .collect()
}

/// Bytes of an image, the same for the same seed.
fn random_pixels(values: usize, seed: u64) -> Vec<u8> {
    let mut random = SplitMix64(seed);
    (0..values).map(|_| random.next() as u8).collect()
}

/// What Linux tells of a process's memory, in bytes: `VmRSS` is in use, `VmHWM` was at most.
fn memory(process: &str, field: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(1024 * line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?)
}

pub(super) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
