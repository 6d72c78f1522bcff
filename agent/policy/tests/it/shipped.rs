//! The shipped policies, prebuilt and built anew; the threshold policy against the built-in rule.

use std::path::Path;
use std::process::Command;

use offramp_core::{ExitView, Verdict};
use offramp_policy::{ConfigureError, Instance, LoadError, Parameters, PolicyHost, Value};
use offramp_policy_build::{Toolchain, component};
use offramp_proto::Digest;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::{host, model, view};

const THRESHOLD: &[u8] = include_bytes!("../../../../plugins/prebuilt/threshold.wasm");
const PATIENCE: &[u8] = include_bytes!("../../../../plugins/prebuilt/patience.wasm");

fn configured(host: &PolicyHost, component: &[u8], parameters: &[(&str, Value)]) -> Result<Instance, ConfigureError> {
    let parameters = Parameters::new(parameters.iter().cloned()).unwrap();
    host.load(component).unwrap().configure(&model(), &parameters)
}

#[test]
fn threshold_decides_as_the_built_in_rule_does() {
    let host = host();
    let parameters = [("threshold", Value::Number(0.6)), ("threshold.2", Value::Number(0.9))];
    let mut policy = configured(&host, THRESHOLD, &parameters).unwrap();
    for exit in 0..3 {
        let threshold = if exit == 2 { 0.9 } else { 0.6 };
        for step in 0..=1000_u16 {
            let view = view(exit, 3, f32::from(step) / 1000.0);
            let ruled = ExitView { threshold, ..view }.rule();
            assert_eq!(policy.decide(&view), Ok(ruled), "{view:?}");
        }
        let unknown = view(exit, 3, f32::NAN);
        assert_eq!(policy.decide(&unknown), Ok(Verdict::GoOn));
    }
    assert_eq!(policy.decide(&view(3, 3, 0.0)), Ok(Verdict::Leave), "the last exit");
}

#[test]
fn threshold_is_the_devices_by_default() {
    let mut policy = configured(&host(), THRESHOLD, &[]).unwrap();
    for step in 0..=1000_u16 {
        let threshold = f32::from(step % 7) / 6.0;
        let view = ExitView {
            threshold,
            ..view(0, 3, f32::from(step) / 1000.0)
        };
        assert_eq!(policy.decide(&view), Ok(view.rule()), "{view:?}");
    }
}

#[test]
fn threshold_refuses_parameters_with_a_reason() {
    let host = host();
    for (name, value, reason) in [
        ("treshold", Value::Number(0.5), "unknown parameter `treshold`"),
        ("threshold.4", Value::Number(0.5), "unknown parameter `threshold.4`"),
        (
            "threshold",
            Value::Number(1.5),
            "parameter `threshold` must be a number from 0 to 1",
        ),
        (
            "threshold.1",
            Value::Integer(-1),
            "parameter `threshold.1` must be a number from 0 to 1",
        ),
        (
            "threshold",
            Value::Flag(true),
            "parameter `threshold` must be a number from 0 to 1",
        ),
        (
            "threshold",
            Value::Text("0.5".into()),
            "parameter `threshold` must be a number from 0 to 1",
        ),
    ] {
        let error = configured(&host, THRESHOLD, &[(name, value)]).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("the policy refuses its configuration: {reason}")
        );
    }
}

#[test]
fn they_are_small_in_bytes_memory_and_fuel() {
    // Fuel is deterministic: other figures mean another component or another wasmtime.
    for (component, decide_fuel, configure_fuel) in [(THRESHOLD, 43, 4730), (PATIENCE, 53, 1377)] {
        let report = host().check(component, &model(), &Parameters::default()).unwrap();
        assert_eq!(report.digest, Digest::of(component));
        assert_eq!(report.abi.to_string(), "1.0.0");
        assert!(report.imports.is_empty(), "{:?}", report.imports);
        assert_eq!(report.exports, ["offramp:policy/guest@1.0.0"]);
        assert!(report.bytes <= 16 * 1024, "{} bytes", report.bytes);
        assert_eq!(report.memory_bytes, 65536);
        assert_eq!(
            (report.decide_fuel, report.configure_fuel),
            (decide_fuel, configure_fuel)
        );
    }
}

#[test]
fn they_name_no_folder_of_the_machine_that_built_them() {
    let home = std::env::home_dir().map(|home| home.to_string_lossy().into_owned());
    let home = home.filter(|home| home.len() > 1);
    let project = env!("CARGO_MANIFEST_DIR");
    let signs = ["/home/", "/usr/", ".cargo", ".rs", project];
    for component in [THRESHOLD, PATIENCE] {
        let text = String::from_utf8_lossy(component);
        for sign in signs.into_iter().chain(home.as_deref()) {
            assert!(!text.contains(sign), "{sign}");
        }
    }
}

#[test]
fn built_anew_they_decide_alike() {
    let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins/policies");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("policies");
    let toolchain = Toolchain::find_or_install().unwrap_or_else(|error| panic!("{error}"));
    let host = host();
    for (policy, prebuilt, second_parameter) in
        [("threshold", THRESHOLD, "threshold.1"), ("patience", PATIENCE, "floor")]
    {
        let module = toolchain.module(&policies.join(policy), Some(&target)).unwrap();
        let rebuilt = component(&module).unwrap();
        let number = || proptest::option::of(0.0..=1.0);
        let views = proptest::collection::vec(any_view(), 200);
        TestRunner::new(ProptestConfig::with_cases(64))
            .run(&(number(), number(), views), |(first, second, views)| {
                let mut parameters = Vec::new();
                parameters.extend(first.map(|number| ("threshold", Value::Number(number))));
                parameters.extend(second.map(|number| (second_parameter, Value::Number(number))));
                let mut old = configured(&host, prebuilt, &parameters).unwrap();
                let mut new = configured(&host, &rebuilt, &parameters).unwrap();
                for view in views {
                    let verdict = old.decide(&view);
                    prop_assert!(verdict.is_ok(), "{view:?}");
                    prop_assert_eq!(verdict, new.decide(&view), "{:?}", view);
                }
                Ok(())
            })
            .unwrap();
    }
}

/// A view with any bits in its floats.
fn any_view() -> impl Strategy<Value = ExitView> {
    let confidence = prop_oneof![0.0_f32..=1.0, any::<u32>().prop_map(f32::from_bits)];
    (
        0..6_u32,
        any::<[u32; 3]>(),
        confidence,
        any::<[u32; 10]>(),
        any::<bool>(),
    )
        .prop_map(|(exit, [exits, class, queue_depth], confidence, bits, agreement)| {
            let [
                margin,
                entropy,
                change,
                cost,
                next_cost,
                time_left,
                temperature,
                power_budget,
                battery,
                threshold,
            ] = bits.map(f32::from_bits);
            ExitView {
                exit,
                exits: if exits % 2 == 0 { 4 } else { exits },
                class,
                confidence,
                margin,
                entropy,
                agreement,
                change,
                cost,
                next_cost,
                time_left,
                queue_depth,
                temperature,
                power_budget,
                battery,
                threshold,
            }
        })
}

#[test]
fn a_core_module_alone_is_not_mistaken_for_its_component() {
    // The first section of the component is its core module: number 1, then the length in LEB128.
    let start = THRESHOLD[8..].windows(4).position(|bytes| bytes == b"\0asm").unwrap() + 8;
    assert!(matches!(host().load(&THRESHOLD[start..]), Err(LoadError::CoreModule)));
}

/// They are a workspace of their own, which `cargo test --workspace` does not see.
#[test]
fn their_own_tests_pass() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins/policies/Cargo.toml");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("policies");
    let output = Command::new(env!("CARGO"))
        .args(["test", "--release", "--locked", "--manifest-path"])
        .arg(&manifest)
        .arg("--target-dir")
        .arg(&target)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    // Three of each: one that runs no test at all would succeed as well.
    let passed = text
        .lines()
        .filter(|line| line.starts_with("test ") && line.ends_with("... ok"));
    assert_eq!(passed.count(), 6, "{text}");
}
