//! The agent's judge under policies that fail.

use offramp::judge::{PolicyJudge, PolicySource, Step, Workshop};
use offramp::lane::Judge as _;
use offramp_core::{ExitView, Verdict};
use offramp_proto::{Generation, PolicySource as Rung};

/// A policy that decides in `body`, and keeps `state` bytes over a swap.
fn policy(version: u64, body: &str, state: u32) -> PolicySource {
    let text = format!(
        r#"(module
            (memory (export "memory") 1)
            (global $next (mut i32) (i32.const 4096))
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
                (global.get $next)
                (global.set $next (i32.add (global.get $next) (local.get 3))))
            (func (export "offramp:policy/guest@1.1.0#configure") (param i32 i32 i32 i32 i32) (result i32) (i32.const 0))
            (func (export "offramp:policy/guest@1.1.0#decide")
                (param i32 i32 i32 f32 f32 f32 i32 f32 f32 f32 f32 i32 f32 f32 f32 f32) (result i32) {body})
            (func (export "offramp:policy/observer@1.1.0#observe")
                (param i32 i32 f32 f32 f32 f32 f32 f32 i32 i32 i32))
            (func (export "offramp:policy/state@1.1.0#save") (result i32)
                (i32.store (i32.const 64) (i32.const 128)) (i32.store (i32.const 68) (i32.const {state})) (i32.const 64))
            (func (export "offramp:policy/state@1.1.0#restore") (param i32 i32) (result i32)
                ;; Only its own kind of state.
                (i32.store8 (i32.const 64) (i32.ne (local.get 1) (i32.const {state})))
                (i32.store (i32.const 68) (i32.const 200)) (i32.store (i32.const 72) (i32.const 0))
                (i32.const 64)))"#
    );
    PolicySource {
        name: "made-up".into(),
        version,
        bytes: offramp_policy_build::component(&wat::parse_str(text).unwrap()).unwrap(),
        parameters: [].into(),
    }
}

const LEAVES: &str = "(i32.const 1)";
const FAILS: &str = "unreachable";

/// What is told until now: kinds of events, and whether something went wrong.
fn told(judge: &mut PolicyJudge) -> Vec<(&'static str, bool)> {
    std::iter::from_fn(|| judge.next_step())
        .map(|step| match step {
            Step::Swapped { .. } => ("swapped", false),
            Step::Other { kind, wrong, .. } => (kind, wrong),
        })
        .collect()
}

fn frames(judge: &mut PolicyJudge, count: usize) -> Vec<(Verdict, bool)> {
    let view = ExitView {
        exit: 0,
        exits: 3,
        class: 4,
        confidence: 0.2,
        margin: 0.1,
        entropy: 2.0,
        agreement: false,
        change: f32::NAN,
        cost: 0.2,
        next_cost: 0.3,
        time_left: f32::NAN,
        queue_depth: 0,
        temperature: f32::NAN,
        power_budget: f32::NAN,
        battery: f32::NAN,
        threshold: 0.9,
    };
    (0..count)
        .map(|_| {
            judge.start_frame();
            judge.decide(&view)
        })
        .collect()
}

fn workshop() -> Workshop {
    Workshop::new(&offramp::package::embedded().unwrap()).unwrap()
}

#[test]
fn a_failing_policy_is_told_of_and_given_up_for_the_last_good_one() {
    let workshop = workshop();
    let mut judge = PolicyJudge::new(workshop.prepare(&policy(1, LEAVES, 4)).unwrap());
    assert!(
        frames(&mut judge, 200)
            .iter()
            .all(|given| *given == (Verdict::Leave, false))
    );
    assert_eq!(told(&mut judge), []);
    judge.swap(workshop.prepare(&policy(2, FAILS, 4)).unwrap(), Generation(2));
    let first = frames(&mut judge, 1);
    assert_eq!(first, [(Verdict::GoOn, true)], "the built-in rule decides");
    assert_eq!(told(&mut judge), [("swapped", false), ("policy-faulted", true)]);
    frames(&mut judge, 20);
    let told = told(&mut judge);
    assert_eq!(told.last(), Some(&("policy-stepped-down", true)), "{told:?}");
    assert_eq!(frames(&mut judge, 1), [(Verdict::Leave, false)]);
    let report = judge.report(0);
    assert_eq!((report.version, report.source), (1, Rung::LastGood));
}

#[test]
fn a_state_that_is_not_taken_up_is_told_of_and_the_policy_decides_all_the_same() {
    let workshop = workshop();
    let mut judge = PolicyJudge::new(workshop.prepare(&policy(1, LEAVES, 4)).unwrap());
    frames(&mut judge, 200);
    judge.swap(workshop.prepare(&policy(2, LEAVES, 4)).unwrap(), Generation(2));
    frames(&mut judge, 1);
    assert_eq!(told(&mut judge), [("swapped", false)]);
    judge.swap(workshop.prepare(&policy(3, LEAVES, 8)).unwrap(), Generation(3));
    assert_eq!(frames(&mut judge, 1), [(Verdict::Leave, false)]);
    assert_eq!(told(&mut judge), [("swapped", false), ("policy-state-lost", true)]);
    assert_eq!(judge.report(0).version, 3);
}
