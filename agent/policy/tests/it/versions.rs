//! Policies of other versions of the contract: what was once built runs, frozen as it was.

use offramp_core::{AuditResult, Outcome, Verdict};
use offramp_policy::{Carry, Ladder, LadderRules, Parameters, Value};

use crate::guests::{Guest, WIT};
use crate::{host, model, view};

/// Built by the SDK of 1.0.0 from the shipped policies of that time.
const THRESHOLD: &[u8] = include_bytes!("../frozen/threshold-1.0.0.wasm");
const PATIENCE: &[u8] = include_bytes!("../frozen/patience-1.0.0.wasm");
const WIT_1_0: &str = include_str!("../frozen/policy-1.0.0.wit");

pub(crate) fn outcome(class: u32) -> Outcome {
    Outcome {
        exit: 1,
        class,
        confidence: 0.9,
        cost: 0.4,
        latency: 3.0,
        interval: 100.0,
        energy: 0.5,
        temperature: 50.0,
        hurried: false,
        fault: false,
        audit: AuditResult::None,
    }
}

#[test]
fn a_policy_of_1_0_decides_and_is_not_asked_for_what_came_later() {
    let host = host();
    for component in [THRESHOLD, PATIENCE] {
        let policy = host.load(component).unwrap();
        assert_eq!(policy.abi().to_string(), "1.0.0");
        let parameters = Parameters::new([("threshold", Value::Number(0.6))]).unwrap();
        let mut instance = policy.configure(&model(), &parameters).unwrap();
        assert_eq!(instance.decide(&view(0, 3, 0.5)), Ok(Verdict::GoOn));
        assert_eq!(instance.decide(&view(1, 3, 0.7)), Ok(Verdict::Leave));
        assert_eq!(instance.observe(&outcome(3)), Ok(()));
        assert_eq!(instance.save(), Ok(None));
        assert_eq!(instance.restore(b"of a later version"), Ok(()));
        assert_eq!(instance.decide(&view(1, 3, 0.7)), Ok(Verdict::Leave));
    }
}

#[test]
fn a_policy_of_1_0_is_replaced_by_one_of_1_1_and_back() {
    let host = host();
    let old = host.load(THRESHOLD).unwrap();
    let new = host.load(&Guest::default().component()).unwrap();
    let mut ladder = Ladder::new(LadderRules::default());
    for policy in [&old, &new, &old] {
        ladder.swap(
            policy.configure(&model(), &Parameters::default()).unwrap(),
            Carry::State,
        );
        ladder.start_frame(&mut |_| ());
        assert_eq!(ladder.active(), Some(policy.digest()));
        assert!(
            ladder
                .decide(&view(0, 3, 0.5), &mut |event| panic!("{event:?}"))
                .is_some()
        );
    }
}

#[test]
fn what_1_0_promised_is_still_promised() {
    // Every line of an interface or type of 1.0 is one of today's, in the same order.
    let code = |text: &'static str| {
        let lines = text.lines().map(str::trim);
        lines.filter(|line| !line.is_empty() && !line.starts_with("///") && !line.starts_with('@'))
    };
    let mut today = code(WIT);
    for line in code(WIT_1_0).filter(|line| !line.starts_with("package ")) {
        assert!(today.any(|newer| newer == line), "`{line}` of 1.0 is gone or has moved");
    }
}

#[test]
fn a_later_minor_version_with_an_interface_of_its_own_runs_without_it() {
    let wit = WIT
        .replace("@1.1.0", "@1.2.0")
        .replace("    export guest;", "    export guest;\n    export later;")
        .replace(
            "/// An exit policy.\n",
            "interface later { more: func() -> u32; }\n\n/// An exit policy.\n",
        );
    let guest = Guest {
        wit: &wit,
        version: "1.2.0",
        decide: "i32.const 1",
        fields: r#"(func (export "offramp:policy/later@1.2.0#more") (result i32) (i32.const 7))"#,
        ..Guest::default()
    };
    let policy = host().load(&guest.component()).unwrap();
    let mut instance = policy.configure(&model(), &Parameters::default()).unwrap();
    assert_eq!(instance.decide(&view(0, 0, 0.5)), Ok(Verdict::Leave));
}

#[test]
fn the_same_component_is_compiled_once_and_others_do_not_get_its_code() {
    let host = host();
    fn guest(decide: &str) -> Vec<u8> {
        let guest = Guest {
            decide,
            ..Guest::default()
        };
        guest.component()
    }
    let verdict = |component: &[u8]| {
        let policy = host.load(component).unwrap();
        let mut instance = policy.configure(&model(), &Parameters::default()).unwrap();
        instance.decide(&view(0, 0, 0.5)).unwrap()
    };
    let [go_on, leave] = ["i32.const 0", "i32.const 1"].map(guest);
    for _ in 0..3 {
        assert_eq!((verdict(&go_on), verdict(&leave)), (Verdict::GoOn, Verdict::Leave));
    }
    let first = host.load(&go_on).unwrap();
    assert!(first.shares_code_with(&host.load(&go_on).unwrap()));
    // More than are kept push it out; it is compiled again, and decides as before.
    for n in 0..20 {
        let decide = format!("(drop (i32.const {n})) i32.const 1");
        assert_eq!(verdict(&guest(&decide)), Verdict::Leave);
    }
    assert!(!first.shares_code_with(&host.load(&go_on).unwrap()));
    assert_eq!(verdict(&go_on), Verdict::GoOn);
}
