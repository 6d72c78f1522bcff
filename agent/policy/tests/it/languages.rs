//! The example policies in other languages, built by their own compilers.

use std::path::{Path, PathBuf};
use std::process::Command;

use offramp_core::{ExitView, Verdict};
use offramp_policy::{ConfigureError, Parameters, Value};
use offramp_policy_build::component;

use crate::{host, model, view};

fn example(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../plugins/examples")
        .join(file)
}

/// Whether a command succeeds.
fn succeeds(program: &str, arguments: &[&str]) -> bool {
    let output = Command::new(program).args(arguments).output();
    output.is_ok_and(|output| output.status.success())
}

/// As root on Debian, installs packages.
fn install(packages: &[&str]) -> bool {
    let root = Command::new("id").arg("-u").output();
    if !root.is_ok_and(|output| output.stdout.starts_with(b"0\n")) {
        return false;
    }
    let arguments = [&["install", "-y", "--no-install-recommends"], packages].concat();
    succeeds("apt-get", &arguments) || (succeeds("apt-get", &["update"]) && succeeds("apt-get", &arguments))
}

/// Builds into a file of this name and gives its bytes; nothing where the tool is not to be had, which is said.
fn built(name: &str, build: impl Fn(&str) -> bool, missing: &str, get: impl Fn() -> bool) -> Option<Vec<u8>> {
    let output = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let path = output.to_str().unwrap();
    if build(path) || (get() && build(path)) {
        return Some(std::fs::read(output).unwrap());
    }
    eprintln!("skipped: {missing}");
    None
}

/// Holds a module to what the examples do: sure at 0.9, or agreed at 0.6.
fn decides_as_the_examples_do(module: &[u8], takes_parameters: bool) {
    let host = host();
    let component = component(module).unwrap();
    let report = host.check(&component, &model(), &Parameters::default()).unwrap();
    assert!(report.imports.is_empty() && report.bytes < 8 * 1024, "{report:?}");
    let policy = host.load(&component).unwrap();
    let agrees = |parameters: &Parameters, threshold: f32, floor: f32| {
        let mut instance = policy.configure(&model(), parameters).unwrap();
        for step in 0..=1000_u16 {
            for agreement in [false, true] {
                let confidence = f32::from(step) / 1000.0;
                let view = ExitView {
                    agreement,
                    ..view(1, 3, confidence)
                };
                let leaves = confidence >= threshold || (agreement && confidence >= floor);
                let expected = if leaves { Verdict::Leave } else { Verdict::GoOn };
                assert_eq!(instance.decide(&view), Ok(expected), "{view:?}");
            }
        }
        assert_eq!(instance.decide(&view(1, 3, f32::NAN)), Ok(Verdict::GoOn));
    };
    agrees(&Parameters::default(), 0.9, 0.6);
    if takes_parameters {
        let parameters = [("threshold", Value::Number(0.7)), ("floor", Value::Integer(0))];
        agrees(&Parameters::new(parameters).unwrap(), 0.7, 0.0);
    }
    for parameter in [("treshold", Value::Number(0.5)), ("threshold", Value::Number(1.5))] {
        let parameters = Parameters::new([parameter]).unwrap();
        let refused = policy.configure(&model(), &parameters).unwrap_err();
        assert!(matches!(refused, ConfigureError::Refused { .. }), "{refused:?}");
    }
}

#[test]
fn a_policy_in_c() {
    let source = example("c/sure_or_agreed.c");
    let build = |output: &str| {
        let flags = [
            "--target=wasm32",
            "-O2",
            "-nostdlib",
            "-Wl,--no-entry",
            "-Wl,-z,stack-size=16384",
        ];
        let arguments = [&flags[..], &["-o", output, source.to_str().unwrap()]].concat();
        ["clang", "clang-14"].iter().any(|clang| succeeds(clang, &arguments))
    };
    let get = || install(&["clang", "lld"]);
    if let Some(module) = built(
        "c.wasm",
        build,
        "no clang and lld: install them (Debian: clang lld)",
        get,
    ) {
        decides_as_the_examples_do(&module, true);
    }
}

#[test]
fn a_policy_in_assemblyscript() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("assemblyscript");
    let compiler = folder.join("node_modules/.bin/asc");
    let source = example("assemblyscript/sure_or_agreed.ts");
    let build = |output: &str| {
        let arguments = ["-O", "--runtime", "stub", "--use", "abort=", "-o", output];
        let arguments = [&[source.to_str().unwrap()], &arguments[..]].concat();
        succeeds(compiler.to_str().unwrap(), &arguments)
    };
    let get = || {
        std::fs::create_dir_all(&folder).unwrap();
        succeeds(
            "npm",
            &["install", "--prefix", folder.to_str().unwrap(), "assemblyscript@0.28"],
        )
    };
    let missing = "no AssemblyScript: install Node.js, and `npm install assemblyscript`";
    if let Some(module) = built("assemblyscript.wasm", build, missing, get) {
        decides_as_the_examples_do(&module, true);
    }
}

#[test]
fn a_policy_written_by_hand() {
    let module = wat::parse_file(example("wat/sure_or_agreed.wat")).unwrap();
    decides_as_the_examples_do(&module, false);
}
