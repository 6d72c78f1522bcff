//! The tools: what they print, and how they refuse.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;

use offramp_camera::sample;
use offramp_test_support::{free_port, onnxruntime, temp_dir};
use serde_json::Value;

use crate::device::offramp;

const ZOO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/zoo");

fn run(arguments: &[&str]) -> Output {
    offramp().args(arguments).output().unwrap()
}

fn printed(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn refused(arguments: &[&str], why: &[&str]) {
    let output = run(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {errors}");
    assert!(errors.starts_with("error: ") && output.stdout.is_empty(), "{errors}");
    for why in why {
        assert!(errors.contains(why), "{arguments:?} should say `{why}`: {errors}");
    }
}

#[test]
fn every_shipped_package_passes_its_check() {
    for package in std::fs::read_dir(ZOO).unwrap() {
        let path = package.unwrap().path();
        let text = printed(&["model", "check", path.to_str().unwrap()]);
        assert!(
            text.contains("reference vectors") && text.contains("same class in 100.0 %"),
            "{text}"
        );
    }
}

#[test]
fn every_shipped_package_passes_its_check_in_onnx_runtime() {
    let library = onnxruntime();
    let on = ["--engine", "onnxruntime", "--library", library.to_str().unwrap()];
    for package in std::fs::read_dir(ZOO).unwrap() {
        let path = package.unwrap().path();
        let arguments = [&["model", "check", path.to_str().unwrap()], &on[..]].concat();
        // Without a choice of providers those that are not there are passed over.
        let output = run(&arguments);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}");
        for part in ["kernels of the stages: onnxruntime/cpu, ", "same class in 100.0 %"] {
            assert!(text.contains(part), "{text}");
        }
        let passed_over = String::from_utf8_lossy(&output.stderr);
        assert!(passed_over.contains("built without cuda: install"), "{passed_over}");
        let timed = printed(&[&arguments[..], &["--provider", "cpu", "--time"]].concat());
        assert!(timed.contains("ms per frame") && timed.contains("\nall "), "{timed}");
    }
}

#[test]
fn a_check_in_onnx_runtime_does_not_pass_on_our_own_kernels() {
    let library = onnxruntime();
    let library = library.to_str().unwrap();
    let cuda = [
        "model",
        "check",
        "--engine",
        "onnxruntime",
        "--library",
        library,
        "--provider",
        "cuda",
    ];
    let output = run(&cuda);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    for why in [
        "stage 1, 2, 3, 4: ONNX Runtime 1.32.0 was built without cuda",
        "`offramp doctor`",
    ] {
        assert!(errors.contains(why), "{errors}");
    }
    refused(&["model", "check", "--library", library], &["--engine onnxruntime"]);
    let output = run(&["model", "check", "--engine", "onnxruntime", "--provider", "gpu"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("tensorrt-rtx, cuda, cpu"));
}

/// The checks of `offramp doctor --json` by name: grade, and what was found with the remedy.
fn examined(arguments: &[&str], library: &str) -> (bool, BTreeMap<String, (String, String)>) {
    let mut command = offramp();
    command.env("ORT_DYLIB_PATH", library);
    let output = command.args(["doctor", "--json"]).args(arguments).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let able = report["able"].as_bool().unwrap();
    assert_eq!(output.status.code(), Some(i32::from(!able)));
    let checks = report["checks"].as_array().unwrap().iter().map(|check| {
        let text = |key: &str| check[key].as_str().unwrap_or_default().to_owned();
        (text("check"), (text("grade"), text("found") + "; " + &text("remedy")))
    });
    (able, checks.collect())
}

#[test]
fn the_doctor_tells_what_runs_here_and_what_would_help() {
    let folder = temp_dir();
    let config = folder.path().join("offramp.toml");
    let key = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
    let write = |rest: &str| {
        let text = format!(
            "[device]\nid = \"d\"\n[camera]\nsource = \"sample\"\n[fleet]\ncontroller_key = \"{key}\"\n\
             broker = \"mqtt://127.0.0.1:{}\"\n{rest}",
            free_port()
        );
        std::fs::write(&config, text).unwrap();
    };
    let arguments = ["--config", config.to_str().unwrap()];
    let library = onnxruntime();

    // What is only not there, and nobody asked for, is no fault; a broker that is down is.
    write("");
    let (able, found) = examined(&arguments, library.to_str().unwrap());
    assert!(able);
    let grade = |name: &str| found[name].0.as_str();
    for name in [
        "cores",
        "package",
        "stage 1",
        "onnxruntime",
        "onnxruntime/cpu",
        "webassembly",
        "state",
    ] {
        assert_eq!(grade(name), "ok", "{name}: {found:?}");
    }
    assert_eq!((grade("onnxruntime/cuda"), grade("broker")), ("missing", "warn"));
    assert!(found["onnxruntime/cuda"].1.contains("onnxruntime-gpu"), "{found:?}");
    assert!(found["onnxruntime"].1.contains("1.32.0 at /"), "{found:?}");

    // What the configuration asks for is.
    write("[engine]\nkind = \"onnxruntime\"\nproviders = [\"cuda\"]\n");
    let (able, found) = examined(&arguments, library.to_str().unwrap());
    assert!(able && found["onnxruntime/cuda"].0 == "warn" && !found.contains_key("onnxruntime/cpu"));
    let (able, found) = examined(&arguments, "/nowhere");
    assert!(able && found["onnxruntime"].0 == "warn", "{found:?}");
    assert!(
        found["onnxruntime"].1.contains("library at /nowhere; name the file"),
        "{found:?}"
    );

    // Without a place for its state an agent does not run; nor without a package.
    write("[state]\npath = \"no/such/folder/state.redb\"\n");
    let (able, found) = examined(&arguments, "/nowhere");
    assert!(!able && found["state"].0 == "fails" && found["state"].1.contains("state.path"));
    let (able, found) = examined(&["no-such-package"], "/nowhere");
    assert!(!able && found["package"].1.contains("no-such-package"));
    // A person reads the same.
    let text = printed(&["doctor"]);
    assert!(text.contains("ok       webassembly"), "{text}");
}

#[test]
fn show_and_eval_tell_of_the_embedded_package() {
    assert!(printed(&["model", "show"]).contains("ankle-boot"));
    let shown: Value = serde_json::from_str(&printed(&["model", "show", "--json"])).unwrap();
    let told: Value = serde_json::from_str(&printed(&["model", "eval", "--json"])).unwrap();
    let accuracy = told["exit_accuracy"].as_array().unwrap();
    assert_eq!(accuracy.len(), shown["exits"].as_array().unwrap().len());
    assert!(accuracy.last().unwrap().as_f64() > accuracy[0].as_f64(), "exits matter");
    // Thresholds rise, and with them the cost.
    let costs = told["cascade"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["report"]["cost_macs"].as_f64().unwrap());
    assert!(costs.is_sorted());
}

#[test]
fn a_package_that_was_tampered_with_is_refused_by_the_name_of_its_part() {
    let folder = temp_dir();
    for file in std::fs::read_dir(Path::new(ZOO).join("revcol-fashion")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    let stage = folder.path().join("stage-2.onnx");
    let mut bytes = std::fs::read(&stage).unwrap();
    bytes.truncate(bytes.len() - 1);
    std::fs::write(&stage, bytes).unwrap();
    refused(&["model", "check", folder.path().to_str().unwrap()], &["stage-2.onnx"]);
    refused(
        &["model", "check", "no-such-package"],
        &["no-such-package", "models/zoo"],
    );
}

#[test]
fn the_shipped_policy_passes_its_check_and_a_damaged_one_does_not() {
    let prebuilt = concat!(env!("CARGO_MANIFEST_DIR"), "/../../plugins/prebuilt/threshold.wasm");
    let text = printed(&["policy", "check", prebuilt, "--parameter", "threshold=0.7"]);
    assert!(text.contains("offramp:policy@1") && text.contains("fuel"), "{text}");
    refused(
        &["policy", "check", prebuilt, "--parameter", "threshold=7"],
        &["threshold"],
    );
    let folder = temp_dir();
    let damaged = folder.path().join("damaged.wasm");
    std::fs::write(&damaged, b"\0asm").unwrap();
    refused(&["policy", "check", damaged.to_str().unwrap()], &["damaged.wasm"]);
}

#[test]
fn an_image_folder_is_classified_into_json_lines_and_what_is_no_image_is_skipped() {
    let folder = temp_dir();
    let images = folder.path().join("images");
    std::fs::create_dir(&images).unwrap();
    let set = sample::evaluation().unwrap();
    for index in 0..5 {
        let shape = set.shape();
        let pixels = set.pixels(index).unwrap();
        let path = images.join(format!("{index}.png"));
        image::save_buffer(
            path,
            pixels,
            shape.width() as u32,
            shape.height() as u32,
            image::ColorType::L8,
        )
        .unwrap();
    }
    std::fs::write(images.join("3b.png"), b"no image").unwrap();
    let config = folder.path().join("offramp.toml");
    std::fs::write(
        &config,
        "[device]\nid = \"folder\"\n[camera]\nsource = \"folder\"\npath = \"images\"\n",
    )
    .unwrap();
    let text = printed(&["run", "--config", config.to_str().unwrap()]);
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<_> = lines.iter().map(|line| line["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["0.png", "1.png", "2.png", "3.png", "4.png"]);
    assert!(
        lines
            .iter()
            .all(|line| line["label"].is_string() && line["confidence"].as_f64() > Some(0.0))
    );
}

#[test]
fn a_wrong_configuration_is_refused_with_the_key_at_fault() {
    let folder = temp_dir();
    let config = folder.path().join("offramp.toml");
    let path = config.to_str().unwrap();
    for (text, why) in [
        ("[device]\nid = \"a/b\"\n[camera]\nsource = \"stdin\"\n", "a/b"),
        (
            "[device]\nid = \"a\"\n[camera]\nsource = \"stdin\"\n[learner]\nrat = 0.1\n",
            "rat",
        ),
        (
            "[device]\nid = \"a\"\n[camera]\nsource = \"stdin\"\n[learner]\nrate = 9.0\n",
            "learner",
        ),
        (
            "[device]\nid = \"a\"\n[camera]\nsource = \"stdin\"\n[state]\nsummary_seconds = 0\n",
            "summary_seconds",
        ),
        (
            "[device]\nid = \"a\"\n[camera]\nsource = \"stdin\"\n[fleet]\nbroker = \"mqtt://x\"\ncontroller_key = \"00\"\n",
            "controller_key",
        ),
        (
            "[device]\nid = \"a\"\n[camera]\nsource = \"stdin\"\n[context]\nhours = [18, 6]\n",
            "context.hours",
        ),
        (
            "[device]\nid = \"a\"\n[camera]\nsource = \"folder\"\npath = \"nowhere\"\n",
            "nowhere",
        ),
        (
            "[device]\nid = \"a\"\n[camera]\nsource = \"stdin\"\n[engine]\nlibrary = \"x.so\"\n",
            "kind = \"onnxruntime\"",
        ),
        (
            "[device]\nid = \"a\"\n[camera]\nsource = \"stdin\"\n\
             [engine]\nkind = \"onnxruntime\"\nproviders = [\"gpu\"]\n",
            "`gpu` is no provider; name one of tensorrt, tensorrt-rtx, cuda, cpu",
        ),
    ] {
        std::fs::write(&config, text).unwrap();
        refused(&["run", "--config", path], &[why]);
    }
    refused(&["run", "--config", "/no/such/file.toml"], &["/no/such/file.toml"]);
}
