//! The shipped threshold policy, prebuilt and built anew, against the built-in rule.

use std::path::Path;

use offramp_core::{ExitView, ThresholdRule, Verdict};
use offramp_policy::{ConfigureError, Instance, LoadError, Parameters, PolicyDigest, PolicyHost, Value};
use offramp_policy_build::{Toolchain, component};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::{host, model, view};

const PREBUILT: &[u8] = include_bytes!("../../../../plugins/prebuilt/threshold.wasm");

fn configured(host: &PolicyHost, component: &[u8], parameters: &[(&str, Value)]) -> Result<Instance, ConfigureError> {
    let parameters = Parameters::new(parameters.iter().cloned()).unwrap();
    host.load(component).unwrap().configure(&model(), &parameters)
}

#[test]
fn it_decides_as_the_built_in_rule_does() {
    let host = host();
    let parameters = [("threshold", Value::Number(0.6)), ("threshold.2", Value::Number(0.9))];
    let mut policy = configured(&host, PREBUILT, &parameters).unwrap();
    for exit in 0..3 {
        let rule = ThresholdRule {
            threshold: if exit == 2 { 0.9 } else { 0.6 },
        };
        for step in 0..=1000_u16 {
            let view = view(exit, 3, f32::from(step) / 1000.0);
            assert_eq!(policy.decide(&view), Ok(rule.decide(&view)), "{view:?}");
        }
        let unknown = view(exit, 3, f32::NAN);
        assert_eq!(policy.decide(&unknown), Ok(Verdict::GoOn));
    }
    assert_eq!(policy.decide(&view(3, 3, 0.0)), Ok(Verdict::Leave), "the last exit");
}

#[test]
fn its_default_threshold_is_0_8() {
    let mut policy = configured(&host(), PREBUILT, &[]).unwrap();
    assert_eq!(policy.decide(&view(0, 3, 0.79)), Ok(Verdict::GoOn));
    assert_eq!(policy.decide(&view(0, 3, 0.8)), Ok(Verdict::Leave));
}

#[test]
fn it_refuses_parameters_with_a_reason() {
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
        let error = configured(&host, PREBUILT, &[(name, value)]).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("the policy refuses its configuration: {reason}")
        );
    }
}

#[test]
fn it_is_small_in_bytes_memory_and_fuel() {
    let report = host().check(PREBUILT, &model(), &Parameters::default()).unwrap();
    assert_eq!(report.digest, PolicyDigest::of(PREBUILT));
    assert_eq!(report.abi.to_string(), "1.0.0");
    assert!(report.imports.is_empty(), "{:?}", report.imports);
    assert_eq!(report.exports, ["offramp:policy/guest@1.0.0"]);
    assert!(report.bytes <= 16 * 1024, "{} bytes", report.bytes);
    assert_eq!(report.memory_bytes, 65536);
    // Fuel is deterministic: another figure means another component or another wasmtime.
    assert_eq!((report.decide_fuel, report.configure_fuel), (39, 4730));
}

#[test]
fn it_names_no_folder_of_the_machine_that_built_it() {
    let text = String::from_utf8_lossy(PREBUILT);
    for sign in ["/home/", "/root/", "/usr/", ".cargo", ".rs"] {
        assert!(!text.contains(sign), "{sign}");
    }
}

#[test]
fn built_anew_it_decides_alike() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins/policies/threshold");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("policies");
    let toolchain = Toolchain::find_or_install().unwrap_or_else(|error| panic!("{error}"));
    let rebuilt = component(&toolchain.module(&source, Some(&target)).unwrap()).unwrap();

    let host = host();
    let mut runner = TestRunner::new(ProptestConfig::with_cases(64));
    let parameters = (
        proptest::option::of(0.0..=1.0),
        proptest::option::of(0.0..=1.0),
        0..3_u32,
    );
    let views = proptest::collection::vec(any_view(), 200);
    runner
        .run(&(parameters, views), |((all, one, exit), views)| {
            let mut parameters = Vec::new();
            let name = format!("threshold.{exit}");
            parameters.extend(all.map(|number| ("threshold", Value::Number(number))));
            parameters.extend(one.map(|number| (name.as_str(), Value::Number(number))));
            let mut old = configured(&host, PREBUILT, &parameters).unwrap();
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

/// A view with any bits in its floats.
fn any_view() -> impl Strategy<Value = ExitView> {
    let confidence = prop_oneof![0.0_f32..=1.0, any::<u32>().prop_map(f32::from_bits)];
    (
        0..6_u32,
        any::<[u32; 3]>(),
        confidence,
        any::<[u32; 9]>(),
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
            }
        })
}

#[test]
fn its_core_module_alone_is_not_mistaken_for_it() {
    // The first section of the component is its core module: number 1, then the length in LEB128.
    let start = PREBUILT[8..].windows(4).position(|bytes| bytes == b"\0asm").unwrap() + 8;
    assert!(matches!(host().load(&PREBUILT[start..]), Err(LoadError::CoreModule)));
}
