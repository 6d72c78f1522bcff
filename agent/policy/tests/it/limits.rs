//! The limits, each in force.

use std::time::Duration;

use offramp_core::Verdict;
use offramp_policy::{CheckError, ConfigureError, Fault, Limits, LoadError, Parameters, PolicyHost};

use crate::guests::{Guest, class, puppet};
use crate::{host, model, told, unhurried, view};

#[test]
fn the_watchdog_ends_a_loop_that_has_fuel_for_ever() {
    let limits = Limits {
        decide_fuel: u64::MAX,
        configure_fuel: u64::MAX,
        deadline: Duration::from_millis(5),
        ..Limits::default()
    };
    let host = PolicyHost::new(limits).unwrap();
    // Loading is timed as well; a loaded machine may need a second try.
    let policy = (0..100).find_map(|_| host.load(&puppet("p")).ok()).unwrap();
    let mut instance = (0..100)
        .find_map(|_| policy.configure(&model(), &Parameters::default()).ok())
        .unwrap();
    // The watchdog lives as long as an instance does.
    drop((host, policy));
    assert_eq!(instance.decide(&view(0, class::LOOP, 0.5)), Err(Fault::Deadline));
}

#[test]
fn memory_counts_over_all_memories_of_an_instance() {
    let policy = host().load(
        &Guest {
            pages: 32,
            ..Guest::default()
        }
        .component(),
    );
    assert!(policy.is_ok(), "all that is allowed is allowed: {policy:?}");
    let two = Guest {
        pages: 20,
        fields: "(memory 20)",
        ..Guest::default()
    };
    let error = host().load(&two.component()).unwrap_err();
    assert!(matches!(error, LoadError::Memory { bytes: 2_621_440, .. }), "{error:?}");
}

#[test]
fn memory_that_grows_call_by_call_meets_the_cap() {
    // From 1 page by 8 at each call; 32 are allowed.
    let decide = "(drop (memory.grow (i32.const 8))) i32.const 0";
    let guest = Guest {
        decide,
        ..Guest::default()
    };
    let policy = host().load(&guest.component()).unwrap();
    let mut instance = policy.configure(&model(), &Parameters::default()).unwrap();
    for _ in 0..3 {
        assert_eq!(instance.decide(&view(0, 0, 0.5)), Ok(Verdict::GoOn));
    }
    assert_eq!(instance.decide(&view(0, 0, 0.5)), Err(Fault::Memory));
}

#[test]
fn a_module_that_is_instantiated_over_and_over_is_refused() {
    // Declares 1 MiB once and takes it three times.
    let policy = Guest::default().component();
    let hoard = wat::parse_str(
        "(component (core module $m (memory 16)) (core instance (instantiate $m))
            (core instance (instantiate $m)) (core instance (instantiate $m)))",
    )
    .unwrap();
    // Nested into the policy: a section of its own (4 is a component), and another that instantiates it.
    let nested = [&policy[..], &section(4, &hoard), &section(5, &[1, 0, 1, 0])].concat();
    let error = host().load(&nested).unwrap_err();
    assert!(matches!(error, LoadError::Invalid { .. }), "{error:?}");
    assert!(told(&error).contains("4 Wasm linear memories"), "{}", told(&error));
}

/// A section of a component: its number, its length in LEB128, its content.
fn section(id: u8, content: &[u8]) -> Vec<u8> {
    let mut section = vec![id];
    let mut length = content.len();
    while length >= 0x80 {
        section.push(length as u8 | 0x80);
        length >>= 7;
    }
    section.push(length as u8);
    section.extend_from_slice(content);
    section
}

#[test]
fn instances_are_counted_and_come_back_when_dropped_or_ended() {
    let limits = Limits {
        instances: 2,
        ..unhurried()
    };
    let host = PolicyHost::new(limits).unwrap();
    let policy = host.load(&puppet("p")).unwrap();
    let configure = || policy.configure(&model(), &Parameters::default());
    let mut first = configure().unwrap();
    let second = configure().unwrap();
    let error = configure().unwrap_err();
    assert!(matches!(error, ConfigureError::Exhausted { instances: 2 }), "{error:?}");
    assert!(matches!(
        host.load(&puppet("q")),
        Err(LoadError::Exhausted { instances: 2 })
    ));
    drop(second);
    let third = configure().unwrap();
    assert_eq!(
        first.decide(&view(0, class::TRAP, 0.5)),
        Err(Fault::Trap { reason: "unreachable" })
    );
    let fourth = configure().unwrap();
    assert!(matches!(first.restart(), Err(ConfigureError::Exhausted { .. })));
    drop((third, fourth));
    first.restart().unwrap();
    assert_eq!(first.decide(&view(0, 1, 0.5)), Ok(Verdict::Leave));
}

#[test]
fn two_instances_share_no_state() {
    // Counts its own calls: the third verdict is `audit`.
    let decide = "(global.set $count (i32.add (global.get $count) (i32.const 1))) (global.get $count)";
    let guest = Guest {
        decide,
        fields: "(global $count (mut i32) (i32.const 0))",
        ..Guest::default()
    };
    let policy = host().load(&guest.component()).unwrap();
    let mut one = policy.configure(&model(), &Parameters::default()).unwrap();
    let mut other = policy.configure(&model(), &Parameters::default()).unwrap();
    assert_eq!(one.decide(&view(0, 0, 0.5)), Ok(Verdict::Leave));
    assert_eq!(one.decide(&view(0, 0, 0.5)), Ok(Verdict::LeaveWithoutLearning));
    assert_eq!(other.decide(&view(0, 0, 0.5)), Ok(Verdict::Leave));
    assert_eq!(one.decide(&view(0, 0, 0.5)), Ok(Verdict::Audit));
}

#[test]
fn a_check_names_the_view_at_which_a_policy_fails() {
    // Traps at exit 2.
    let decide = "(if (i32.eq (local.get $exit) (i32.const 2)) (then unreachable)) i32.const 0";
    let guest = Guest {
        decide,
        ..Guest::default()
    };
    let error = host()
        .check(&guest.component(), &model(), &Parameters::default())
        .unwrap_err();
    let CheckError::Decide { view, fault } = error else {
        panic!("{error:?}");
    };
    assert_eq!((view.exit, fault), (2, Fault::Trap { reason: "unreachable" }));
}

#[test]
fn a_check_finds_the_dearest_verdict() {
    // Loops 1000 times where the confidence is 0.75.
    let decide = "(local $n i32)
        (if (f32.eq (local.get $confidence) (f32.const 0.75)) (then
            (local.set $n (i32.const 1000))
            (loop $l (local.set $n (i32.sub (local.get $n) (i32.const 1))) (br_if $l (local.get $n)))))
        i32.const 0";
    let guest = Guest {
        decide,
        ..Guest::default()
    };
    let report = host()
        .check(&guest.component(), &model(), &Parameters::default())
        .unwrap();
    assert_eq!(report.dearest_view.confidence, 0.75);
    assert!((4000..8000).contains(&report.decide_fuel), "{report:?}");
    assert_eq!(report.exports, ["offramp:policy/guest@1.1.0"]);
    assert_eq!(report.memory_bytes, 65536);
    assert_eq!(report.views, 6 * 6 * 4 * 2);
}
