//! The ONNX Runtime library, out of the wheel that PyPI has.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::tool::{Tool, install, require};

/// Pinned, so that every machine tests the same: the version of tests/bench.
const VERSION: &str = "1.32.0";

const PYTHON: Tool = Tool {
    program: "python3",
    package: "python3",
};

/// The file of the library, with the CPU provider only. The first call on a machine fetches it with pip, as that is
/// configured for the user, into the user's cache; where Debian's Python lacks its venv module, that is installed as
/// in [`require`].
///
/// # Panics
/// If it cannot be fetched, with what to install.
pub fn onnxruntime() -> PathBuf {
    let folder = cache().join(format!("test-onnxruntime-{VERSION}"));
    fs::create_dir_all(folder.parent().expect("a folder has a parent")).expect("the user's cache should be writable");
    // One at a time: tests run in parallel, and test binaries may too.
    let lock = File::create(folder.with_extension("lock")).expect("lock file");
    lock.lock().expect("the lock should be granted");
    let done = folder.join("done");
    if !done.exists() {
        if let Err(reason) = fetch(&folder) {
            panic!(
                "this test needs ONNX Runtime {VERSION}, and fetching it failed: {reason}\n\
                 It comes with: python3 -m venv DIR && DIR/bin/pip install --no-deps onnxruntime=={VERSION}"
            );
        }
        File::create(&done).expect("the user's cache should be writable");
    }
    let name = format!("libonnxruntime.so.{VERSION}");
    let pythons = fs::read_dir(folder.join("lib")).expect("a Python environment");
    pythons
        .map(|python| python.expect("a readable folder").path())
        .map(|python| python.join("site-packages/onnxruntime/capi").join(&name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("{} should have brought {name}: remove it", folder.display()))
}

fn cache() -> PathBuf {
    let named = env::var_os("XDG_CACHE_HOME").filter(|folder| !folder.is_empty());
    let home = || Some(Path::new(&env::var_os("HOME")?).join(".cache"));
    named
        .map(PathBuf::from)
        .or_else(home)
        .unwrap_or_else(env::temp_dir)
        .join("offramp")
}

fn fetch(folder: &Path) -> Result<(), String> {
    let python = require(PYTHON);
    let venv = || run(Command::new(&python).args(["-m", "venv", "--clear"]).arg(folder));
    venv().or_else(|_| install("python3-venv").and_then(|()| venv()))?;
    let wanted = format!("onnxruntime=={VERSION}");
    run(Command::new(folder.join("bin/python")).args(["-m", "pip", "install", "--quiet", "--no-deps", &wanted]))
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    Err(format!("{command:?}: {out}{err}"))
}
