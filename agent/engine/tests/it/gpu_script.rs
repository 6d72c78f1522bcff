//! `tests/gpu/run.sh` with programs in place of the GPU's and ours: which providers it takes, and what makes it fail.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use offramp_test_support::temp_dir;

fn program(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// What the script says, and whether it succeeds, on a GPU of this capability; where the second start takes so long.
fn run(capability: &str, libraries: &str, second: &str) -> (bool, String) {
    let folder = temp_dir();
    let own = folder.path().display();
    program(folder.path(), "nvidia-smi", &format!("echo {capability}"));
    program(folder.path(), "ldconfig", "");
    // A start is the first where nothing is kept; the first takes two seconds.
    let offramp = format!(
        "[ \"$1\" = model ] || exit 0\n\
         echo \"RUNS $*\"\n\
         seconds=2.0; [ -d \"$XDG_CACHE_HOME\" ] && seconds={second}; mkdir -p \"$XDG_CACHE_HOME\"\n\
         echo \"  offloaded and held against our own kernels in $seconds s\""
    );
    program(folder.path(), "offramp", &offramp);
    fs::create_dir(folder.path().join("tensorrt")).unwrap();
    fs::write(folder.path().join("tensorrt/libnvinfer.so.10"), "").unwrap();
    let path = std::env::var("PATH").unwrap();
    let output = Command::new("sh")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/gpu/run.sh"))
        .env("PATH", format!("{own}:{path}"))
        .env("OFFRAMP", folder.path().join("offramp"))
        .env("ORT_DYLIB_PATH", "/installed/libonnxruntime.so")
        .env("LD_LIBRARY_PATH", libraries.replace("HERE", &own.to_string()))
        .env("PACKAGES", "net")
        .env_remove("PROVIDERS")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text.into_owned())
}

/// Providers in the order in which they were run, with how often.
fn providers(text: &str) -> Vec<(&str, usize)> {
    let mut found: Vec<(&str, usize)> = Vec::new();
    for line in text.lines().filter(|line| line.starts_with("RUNS")) {
        let name = line.split_once("--provider ").unwrap().1.split(' ').next().unwrap();
        match found.last_mut() {
            Some((last, count)) if *last == name => *count += 1,
            _ => found.push((name, 1)),
        }
    }
    found
}

#[test]
fn providers_are_those_that_the_gpu_and_the_libraries_have() {
    for (capability, rtx) in [
        ("8.6", true),
        ("8.9", true),
        ("12.0", true),
        ("9.0", false),
        ("8.0", false),
        ("10.0", false),
    ] {
        let (success, text) = run(capability, "/nowhere", "0.5");
        let expected = if rtx {
            vec![("cuda", 2), ("tensorrt-rtx", 2)]
        } else {
            vec![("cuda", 2)]
        };
        assert!(success && providers(&text) == expected, "{capability}: {text}");
        assert_eq!(text.contains("tensorrt-rtx is left out"), !rtx, "{text}");
    }
    // Wherever in the list of folders it is.
    for libraries in ["HERE/tensorrt", "HERE/tensorrt:/nowhere", "/nowhere:HERE/tensorrt"] {
        let (success, text) = run("9.0", libraries, "0.5");
        assert!(success && providers(&text) == [("cuda", 2), ("tensorrt", 4)], "{text}");
    }
}

#[test]
fn a_second_start_that_saves_nothing_is_a_failure() {
    let (success, text) = run("9.0", "HERE/tensorrt", "2.0");
    assert!(
        !success && text.contains("failed: net/tensorrt/second-start net/tensorrt--half/second-start"),
        "{text}"
    );
}
