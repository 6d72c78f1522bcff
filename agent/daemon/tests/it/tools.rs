//! The tools: what they print, and how they refuse.

use std::path::Path;
use std::process::Output;

use offramp_camera::sample;
use offramp_test_support::temp_dir;
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
    ] {
        std::fs::write(&config, text).unwrap();
        refused(&["run", "--config", path], &[why]);
    }
    refused(&["run", "--config", "/no/such/file.toml"], &["/no/such/file.toml"]);
}
