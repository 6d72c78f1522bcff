//! The shipped policies, prebuilt and built anew; the threshold policy against the built-in rule.

use std::path::Path;
use std::process::Command;

use offramp_core::{AuditResult, ExitView, Outcome, Verdict};
use offramp_policy::{ConfigureError, Instance, LoadError, Parameters, PolicyHost, Value};
use offramp_policy_build::{Toolchain, component};
use offramp_proto::Digest;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::{host, model, view};

const THRESHOLD: &[u8] = include_bytes!("../../../../plugins/prebuilt/threshold.wasm");

/// A shipped policy: its name and component, the fuel of its dearest verdict and of its configuration, and two of its
/// parameters, which are shares.
struct Shipped {
    name: &'static str,
    component: &'static [u8],
    decide_fuel: u64,
    configure_fuel: u64,
    parameters: [&'static str; 2],
}

macro_rules! shipped {
    ($name:literal, $decide:literal, $configure:literal, $parameters:expr) => {
        Shipped {
            name: $name,
            component: include_bytes!(concat!("../../../../plugins/prebuilt/", $name, ".wasm")),
            decide_fuel: $decide,
            configure_fuel: $configure,
            parameters: $parameters,
        }
    };
}

/// Fuel is deterministic: other figures mean another component or another wasmtime.
const SHIPPED: [Shipped; 6] = [
    shipped!("threshold", 56, 1576, ["threshold", "threshold.1"]),
    shipped!("entropy", 41, 1558, ["limit", "limit.2"]),
    shipped!("patience", 53, 1376, ["threshold", "floor"]),
    shipped!("temporal", 51, 1379, ["threshold", "change"]),
    shipped!("budget", 44, 1504, ["floor", "gain"]),
    shipped!("deadline", 81, 1501, ["queue", "floor"]),
];

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
    let mut found = Vec::new();
    for shipped in SHIPPED {
        let report = host()
            .check(shipped.component, &model(), &Parameters::default())
            .unwrap();
        assert_eq!(report.digest, Digest::of(shipped.component));
        assert_eq!(report.abi.to_string(), "1.1.0");
        assert!(report.imports.is_empty(), "{:?}", report.imports);
        let mut exports = report.exports;
        exports.sort();
        let expected = ["guest", "observer", "state"].map(|name| format!("offramp:policy/{name}@1.1.0"));
        assert_eq!(exports, expected);
        assert!(report.bytes <= 20 * 1024, "{} bytes", report.bytes);
        assert_eq!(report.memory_bytes, 65536);
        assert!(report.decide_fuel <= 200);
        found.push((shipped.name, report.decide_fuel, report.configure_fuel));
    }
    let pinned = SHIPPED.map(|shipped| (shipped.name, shipped.decide_fuel, shipped.configure_fuel));
    assert_eq!(found, pinned);
}

#[test]
fn they_name_no_folder_of_the_machine_that_built_them() {
    let home = std::env::home_dir().map(|home| home.to_string_lossy().into_owned());
    let home = home.filter(|home| home.len() > 1);
    let project = env!("CARGO_MANIFEST_DIR");
    let signs = ["/home/", "/usr/", ".cargo", ".rs", project];
    for shipped in SHIPPED {
        let text = String::from_utf8_lossy(shipped.component);
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
    for shipped in SHIPPED {
        let module = toolchain.module(&policies.join(shipped.name), Some(&target)).unwrap();
        let rebuilt = component(&module).unwrap();
        // A share that every policy takes, whatever it is of.
        let share = || proptest::option::of(0.001..=1.0);
        let frames = proptest::collection::vec((any_view(), any_outcome()), 100);
        TestRunner::new(ProptestConfig::with_cases(48))
            .run(&(share(), share(), frames), |(first, second, frames)| {
                let [one, two] = shipped.parameters;
                let mut parameters = Vec::new();
                parameters.extend(first.map(|number| (one, Value::Number(number))));
                parameters.extend(second.map(|number| (two, Value::Number(number))));
                let mut old = configured(&host, shipped.component, &parameters).unwrap();
                let mut new = configured(&host, &rebuilt, &parameters).unwrap();
                for (view, outcome) in frames {
                    let verdict = old.decide(&view);
                    prop_assert!(verdict.is_ok(), "{}: {view:?}", shipped.name);
                    prop_assert_eq!(verdict, new.decide(&view), "{:?}", view);
                    prop_assert_eq!(old.observe(&outcome), Ok(()));
                    prop_assert_eq!(new.observe(&outcome), Ok(()));
                }
                let saved = old.save().unwrap();
                prop_assert_eq!(&saved, &new.save().unwrap());
                if let Some(saved) = saved {
                    // Whatever they have seen, they take up what they have saved.
                    prop_assert_eq!(new.restore(&saved), Ok(()));
                }
                Ok(())
            })
            .unwrap();
    }
}

/// An outcome with any bits in its floats.
fn any_outcome() -> impl Strategy<Value = Outcome> {
    (any::<[u32; 8]>(), any::<[bool; 4]>()).prop_map(|([exit, class, bits @ ..], [hurried, fault, audited, agreed])| {
        let [confidence, cost, latency, interval, energy, temperature] = bits.map(f32::from_bits);
        Outcome {
            exit: exit % 4,
            class,
            confidence,
            cost,
            latency,
            interval,
            energy,
            temperature,
            hurried,
            fault,
            audit: match (audited, agreed) {
                (false, _) => AuditResult::None,
                (true, true) => AuditResult::Agreed,
                (true, false) => AuditResult::Differed,
            },
        }
    })
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
    // A crate that runs no test at all would succeed as well.
    let passed = text
        .lines()
        .filter(|line| line.starts_with("test ") && line.ends_with("... ok"));
    assert_eq!(passed.count(), 18, "{text}");
}
