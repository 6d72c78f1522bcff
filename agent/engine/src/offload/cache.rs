//! The folder for what TensorRT has built: `MODEL/PROVIDER-VERSIONS-DEVICE/stage-N[-batch-B]`.
//!
//! `MODEL` is the package's digest, so that no engine meets a graph that it was not built from; `VERSIONS` are those of
//! ONNX Runtime, TensorRT and the driver. What is in the last folders is the providers' own. Where a session fails and
//! its folder holds anything, it gets an empty one and a second try; if that fails too, the folder was not to blame and
//! is put back. Of models, and of runtimes and devices of each, the most recently used few are kept.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::Provider;

/// Models kept in a cache, and folders kept of each.
const KEPT: usize = 4;
/// Touched whenever a folder is used, to know which one was used last.
const USED: &str = "used";

/// The folder of a stage, made and marked as used. What was used longest ago goes.
pub(super) fn folder(
    cache: &Path,
    model: &str,
    provider: Provider,
    versions: &str,
    device: u32,
    stage: usize,
    batch: usize,
) -> io::Result<PathBuf> {
    let model = cache.join(model);
    let runtime = model.join(plain(&format!("{provider}-{versions}-{}", device_name(device))));
    let of_batches = format!("stage-{stage}-batch-");
    let folder = runtime.join(match batch {
        1 => format!("stage-{stage}"),
        batch => format!("{of_batches}{batch}"),
    });
    fs::create_dir_all(&folder)?;
    if batch > 1 {
        // Those of another size are from when there were more cameras, or fewer.
        for entry in fs::read_dir(&runtime)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            if path != folder && name.is_some_and(|name| name.starts_with(&of_batches)) {
                fs::remove_dir_all(path)?;
            }
        }
    }
    for used in [&model, &runtime] {
        fs::write(used.join(USED), [])?;
    }
    keep_few(&model, |_| true)?;
    // Beside the models there may be what is not ours.
    keep_few(cache, |name| {
        name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
    })?;
    Ok(folder)
}

/// Puts what is in a stage's folder aside, so that the folder is empty; none where it is anyway.
pub(super) fn set_aside(folder: &Path) -> io::Result<Option<PathBuf>> {
    if fs::read_dir(folder)?.next().is_none() {
        return Ok(None);
    }
    let aside = folder.with_extension("aside");
    if aside.exists() {
        fs::remove_dir_all(&aside)?;
    }
    fs::rename(folder, &aside)?;
    fs::create_dir(folder)?;
    Ok(Some(aside))
}

/// Puts back what was set aside.
pub(super) fn put_back(folder: &Path, aside: &Path) -> io::Result<()> {
    fs::remove_dir_all(folder)?;
    fs::rename(aside, folder)
}

/// Removes all but the last used of the folders that are marked and whose names are `ours`.
fn keep_few(parent: &Path, ours: impl Fn(&str) -> bool) -> io::Result<()> {
    let mut folders: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let used = fs::metadata(entry.path().join(USED)).and_then(|mark| mark.modified());
        if let Ok(used) = used
            && entry.file_name().to_str().is_some_and(&ours)
        {
            folders.push((used, entry.path()));
        }
    }
    folders.sort();
    let surplus = folders.len().saturating_sub(KEPT);
    folders.iter().take(surplus).try_for_each(|(_, folder)| {
        match fs::remove_dir_all(folder) {
            // Another process on this cache was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    })
}

/// What engines are built for: the GPU by its model, as far as the driver tells without being loaded.
fn device_name(device: u32) -> String {
    let gpus = fs::read_dir("/proc/driver/nvidia/gpus").into_iter().flatten();
    let mut gpus: Vec<PathBuf> = gpus.filter_map(|entry| Some(entry.ok()?.path())).collect();
    gpus.sort();
    let information = gpus
        .get(device as usize)
        .and_then(|gpu| fs::read_to_string(gpu.join("information")).ok());
    let model = information.as_deref().and_then(|text| {
        text.lines()
            .find_map(|line| Some(line.strip_prefix("Model:")?.trim().to_owned()))
    });
    // A Jetson's GPU is part of the board.
    let board = || fs::read_to_string("/proc/device-tree/model").ok();
    model.or_else(board).unwrap_or_else(|| format!("device-{device}"))
}

/// A name that is safe in a path.
fn plain(name: &str) -> String {
    let keep = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
    name.trim_matches('\0').chars().map(keep).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_used_few_are_kept_and_nothing_of_others() {
        let cache = tempfile::tempdir().unwrap();
        let models: Vec<String> = (0..6).map(|n| format!("{n:064x}")).collect();
        fs::create_dir(cache.path().join("photos")).unwrap();
        for (age, model) in models.iter().enumerate().rev() {
            folder(cache.path(), model, Provider::TensorRt, "1.32.0", 0, 0, 1).unwrap();
            let mark = fs::File::options()
                .write(true)
                .open(cache.path().join(model).join(USED));
            let past = SystemTime::now() - std::time::Duration::from_secs(3600 * age as u64);
            mark.unwrap().set_modified(past).unwrap();
        }
        let kept: Vec<bool> = models.iter().map(|model| cache.path().join(model).exists()).collect();
        // The newest four, of which the first is the last that was made.
        assert_eq!(kept, [true, true, true, true, false, false]);
        assert!(cache.path().join("photos").exists());
    }

    #[test]
    fn two_that_make_room_at_the_same_time_do_not_disturb_each_other() {
        for _ in 0..50 {
            let cache = tempfile::tempdir().unwrap();
            for old in 0..20 {
                let model = cache.path().join(format!("{old:064x}")).join("stage-0");
                fs::create_dir_all(&model).unwrap();
                fs::write(model.with_file_name(USED), []).unwrap();
            }
            std::thread::scope(|scope| {
                for new in 20..22 {
                    let (cache, model) = (cache.path(), format!("{new:064x}"));
                    scope.spawn(move || folder(cache, &model, Provider::TensorRt, "1.32.0", 0, 0, 1).unwrap());
                }
            });
        }
    }

    #[test]
    fn batches_of_another_size_make_room() {
        let cache = tempfile::tempdir().unwrap();
        let model = "a".repeat(64);
        let stage = |stage, batch| folder(cache.path(), &model, Provider::TensorRt, "1.32.0", 0, stage, batch).unwrap();
        let (single, other, four) = (stage(1, 1), stage(2, 4), stage(1, 4));
        let eight = stage(1, 8);
        assert!(single.exists() && other.exists() && eight.exists() && !four.exists());
    }

    #[test]
    fn what_is_set_aside_leaves_an_empty_folder_and_can_be_put_back() {
        let cache = tempfile::tempdir().unwrap();
        let stage = folder(cache.path(), &"a".repeat(64), Provider::TensorRtRtx, "1.32.0", 1, 2, 1).unwrap();
        assert_eq!(set_aside(&stage).unwrap(), None);
        let is_empty = || fs::read_dir(&stage).unwrap().next().is_none();
        // What was set aside before, when the power went, is in nobody's way.
        for _ in 0..2 {
            fs::write(stage.join("engine"), b"damaged").unwrap();
            let aside = set_aside(&stage).unwrap().unwrap();
            assert!(is_empty() && aside.join("engine").exists());
        }
        put_back(&stage, &stage.with_extension("aside")).unwrap();
        assert_eq!(fs::read(stage.join("engine")).unwrap(), b"damaged");
    }
}
