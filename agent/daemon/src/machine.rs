//! What machine this is.

/// Its facts as the fleet selects devices by them: architecture, cores, memory and, where Linux tells, the board, e.g.
/// `aarch64`, `cores-6`, `memory-8GiB`, `board-NVIDIA-Jetson-Orin-Nano-Developer-Kit`.
pub(crate) fn facts() -> Vec<String> {
    let mut all = vec![std::env::consts::ARCH.to_owned()];
    if let Ok(cores) = std::thread::available_parallelism() {
        all.push(format!("cores-{cores}"));
    }
    if let Some((_, bytes)) = memory() {
        // A board keeps a part of its memory for itself.
        all.push(format!("memory-{}GiB", bytes.div_ceil(1 << 30)));
    }
    let board = std::fs::read_to_string("/proc/device-tree/model");
    all.extend(board.ok().and_then(|name| named("board", &name)));
    all
}

/// A name as one word.
fn named(what: &str, name: &str) -> Option<String> {
    let name: String = name.chars().filter(|c| !c.is_control()).take(100).collect();
    let words = name.split(|c: char| !(c.is_ascii_alphanumeric() || "._+".contains(c)));
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    (!words.is_empty()).then(|| format!("{what}-{}", words.join("-")))
}

/// Bytes of memory that are free, and all.
pub(crate) fn memory() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let kilobytes: u64 = line.trim_start_matches(':').split_whitespace().next()?.parse().ok()?;
        kilobytes.checked_mul(1024)
    };
    Some((field("MemAvailable")?, field("MemTotal")?))
}

/// Gives memory that was freed back to the system, where the C library keeps it otherwise: compiling a model or a policy
/// takes some 20 MB for a moment. Takes some milliseconds, and has a place after whatever did that.
pub(crate) fn give_memory_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it may be called at any time, by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_board_is_one_word() {
        let board = named("board", "NVIDIA Jetson Orin Nano (8\u{7}GB)\0");
        assert_eq!(board.as_deref(), Some("board-NVIDIA-Jetson-Orin-Nano-8GB"));
        assert_eq!(named("board", "\0"), None);
        assert!(facts().iter().all(|fact| !fact.is_empty() && fact.len() < 200));
        assert!(facts().len() >= 2);
    }
}
