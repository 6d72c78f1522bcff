//! Programs that tests need beside Rust.

use std::env;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

/// A program and the Debian package that holds it.
#[derive(Clone, Copy, Debug)]
pub struct Tool {
    /// Name of the executable.
    pub program: &'static str,
    /// Name of the package.
    pub package: &'static str,
}

/// Where Debian puts daemons; not in an ordinary user's `PATH`.
const SYSTEM_DIRECTORIES: [&str; 3] = ["/usr/sbin", "/usr/local/sbin", "/sbin"];

/// Where the program is, if it is installed.
pub fn find(tool: Tool) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(SYSTEM_DIRECTORIES.map(PathBuf::from))
        .chain(postgres_directories())
        .map(|directory| directory.join(tool.program))
        .find(|file| file.is_file())
}

/// Debian keeps a folder for each version of PostgreSQL. The newest first.
fn postgres_directories() -> Vec<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let number = |folder: &PathBuf| folder.file_name()?.to_str()?.parse::<u32>().ok();
    let mut folders: Vec<PathBuf> = versions.map(|entry| entry.path()).collect();
    folders.sort_by_key(|folder| std::cmp::Reverse(number(folder)));
    folders.into_iter().map(|folder| folder.join("bin")).collect()
}

/// Where the program is. If it is missing, it is installed, provided that this process is root on
/// a system with apt-get.
///
/// # Panics
/// If it is missing and cannot be installed, with what to install.
pub fn require(tool: Tool) -> PathBuf {
    if let Some(path) = find(tool) {
        return path;
    }
    // One at a time: tests run in parallel, and test binaries may too.
    let lock = File::create(env::temp_dir().join("offramp-test-install.lock")).expect("lock file");
    lock.lock().expect("the lock should be granted");
    if let Some(path) = find(tool) {
        return path;
    }
    if let Err(reason) = install(tool.package) {
        panic!(
            "this test needs `{}`, which is not installed, and installing it failed: {reason}\n\
             Install it with: sudo apt-get install {}",
            tool.program, tool.package
        );
    }
    find(tool).unwrap_or_else(|| panic!("package {} should have brought `{}`", tool.package, tool.program))
}

pub(crate) fn install(package: &str) -> Result<(), String> {
    let root = Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|id| id.stdout.trim_ascii() == b"0");
    if !root {
        return Err("this user may not install packages".to_owned());
    }
    for arguments in [
        vec!["update"],
        vec!["install", "-y", "--no-install-recommends", package],
    ] {
        let output = Command::new("apt-get")
            .args(["-o", "DPkg::Lock::Timeout=300"])
            .args(&arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .output()
            .map_err(|error| format!("apt-get: {error}"))?;
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            return Err(format!("apt-get {}: {errors}", arguments.join(" ")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Tool, find, require};

    #[test]
    fn an_installed_program_is_found() {
        let shell = Tool {
            program: "sh",
            package: "dash",
        };
        assert_eq!(find(shell), Some(require(shell)));
    }

    #[test]
    fn a_missing_program_is_not_found() {
        let tool = Tool {
            program: "offramp-no-such-program",
            package: "none",
        };
        assert_eq!(find(tool), None);
    }
}
