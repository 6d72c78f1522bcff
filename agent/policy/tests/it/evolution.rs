//! Versions of the contract: what was built for an older one runs on, and what is newer runs where it asks for
//! nothing new.

use offramp_core::{ExitView, Verdict};
use offramp_policy::{AbiVersion, Fault, Instance, LoadError, Parameters, RestoreError};

use crate::guests::{Guest, WIT, component, counter};
use crate::{host, model, outcome, view};

/// Built for 1.0.0, and never built again; and the confidence that is enough for each here.
const FROZEN: [(&[u8], f32); 2] = [
    (include_bytes!("../frozen/threshold-1.0.0.wasm"), 0.8),
    (include_bytes!("../frozen/patience-1.0.0.wasm"), 0.95),
];

fn start(component: &[u8]) -> Instance {
    let policy = host().load(component).unwrap();
    policy.configure(&model(), &Parameters::default()).unwrap()
}

#[test]
fn policies_built_for_1_0_decide_and_are_not_asked_for_more() {
    for (component, enough) in FROZEN {
        let policy = host().load(component).unwrap();
        assert_eq!(
            (policy.abi().to_string(), AbiVersion::OURS.to_string()),
            ("1.0.0".into(), "1.1.0".into())
        );
        let mut policy = policy.configure(&model(), &Parameters::default()).unwrap();
        for confidence in [0.1, 0.5, 0.79, 0.8, 0.99] {
            let seen = view(0, 3, confidence);
            let ruled = ExitView {
                threshold: enough,
                ..seen
            }
            .rule();
            assert_eq!(policy.decide(&seen), Ok(ruled), "{confidence}");
            assert_eq!(policy.observe(&outcome()), Ok(()));
        }
        assert_eq!(policy.save(), Ok(None));
        assert_eq!(policy.restore(b"1234"), Err(RestoreError::Stateless));
        assert_eq!(policy.ended(), None);
    }
}

#[test]
fn a_policy_that_looks_back_is_told_and_its_state_goes_to_the_next() {
    let mut old = start(&counter("old"));
    assert_eq!(old.decide(&view(0, 0, 0.5)), Ok(Verdict::GoOn));
    for _ in 0..6 {
        old.observe(&outcome()).unwrap();
    }
    assert_eq!(old.decide(&view(0, 0, 0.5)), Ok(Verdict::LeaveWithoutLearning));
    let saved = old.save().unwrap().unwrap();
    assert_eq!(saved, 6_u32.to_le_bytes());
    let mut new = start(&counter("new"));
    let refused = new.restore(b"123").unwrap_err();
    assert_eq!(refused, RestoreError::Refused { reason: "odd".into() });
    new.restore(&saved).unwrap();
    assert_eq!(new.decide(&view(0, 0, 0.5)), Ok(Verdict::LeaveWithoutLearning));
}

#[test]
fn all_facts_of_an_outcome_arrive() {
    // Traps unless every parameter is what `outcome` below says.
    let observe = "(if (i32.eqz (i32.and (i32.and
            (i32.and (i32.eq (local.get $exit) (i32.const 2)) (i32.eq (local.get $class) (i32.const 7)))
            (i32.and
                (i32.and (f32.eq (local.get 2) (f32.const 0.5)) (f32.eq (local.get 3) (f32.const 0.25)))
                (i32.and (f32.eq (local.get 4) (f32.const 8)) (f32.eq (local.get 5) (f32.const 16)))))
            (i32.and
                (i32.and (f32.eq (local.get 6) (f32.const 32)) (f32.eq (local.get 7) (f32.const 64)))
                (i32.and
                    (i32.eq (local.get $hurried) (i32.const 1))
                    (i32.and (i32.eqz (local.get $fault)) (i32.eq (local.get $audit) (i32.const 2)))))))
        (then unreachable))";
    let mut policy = start(
        &Guest {
            world: "stateful-policy",
            observe,
            ..Guest::default()
        }
        .component(),
    );
    let told = offramp_core::Outcome {
        exit: 2,
        class: 7,
        confidence: 0.5,
        cost: 0.25,
        latency: 8.0,
        interval: 16.0,
        energy: 32.0,
        temperature: 64.0,
        hurried: true,
        fault: false,
        audit: offramp_core::AuditResult::Differed,
    };
    assert_eq!(policy.observe(&told), Ok(()));
    let other = offramp_core::Outcome { fault: true, ..told };
    assert_eq!(policy.observe(&other), Err(Fault::Trap { reason: "unreachable" }));
}

/// The contract of a time to come: another version, and an interface more.
fn future(place: &str) -> String {
    let wit = WIT.replace("@1.1.0", "@1.2.0");
    let wit = wit.replacen(
        "    import host;\n",
        &format!("    import host;\n    {place} extra;\n"),
        1,
    );
    wit + "\n@since(version = 1.2.0)\ninterface extra {\n    more: func();\n}\n"
}

#[test]
fn a_policy_of_the_future_runs_where_it_offers_more() {
    let wit = future("export");
    let guest = Guest {
        wit: &wit,
        version: "1.2.0",
        world: "stateful-policy",
        decide: "i32.const 3",
        observe: "unreachable",
        fields: r#"(func (export "offramp:policy/extra@1.2.0#more") unreachable)"#,
        ..Guest::default()
    };
    let mut policy = start(&guest.component());
    assert_eq!(policy.decide(&view(0, 0, 0.5)), Ok(Verdict::Audit));
    assert!(policy.observe(&outcome()).is_err(), "what is known of it is asked");
}

#[test]
fn a_policy_of_the_future_is_refused_where_it_asks_for_more() {
    let wit = future("import");
    let guest = Guest {
        wit: &wit,
        version: "1.2.0",
        ..Guest::default()
    };
    let import = r#"(module (import "offramp:policy/extra@1.2.0" "more" (func $more))"#;
    let module = guest.module().replacen("(module", import, 1);
    let error = host().load(&component(&wit, "exit-policy", &module)).unwrap_err();
    assert!(
        matches!(&error, LoadError::UnknownImport { name } if name == "offramp:policy/extra@1.2.0"),
        "{error:?}"
    );
}
