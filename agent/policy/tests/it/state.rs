//! Policies that look back and whose state outlives them, and those that misbehave while they do.

use offramp_core::Verdict;
use offramp_policy::{Carry, Fault, GivenUpFor, Instance, Ladder, LadderEvent, LadderRules, Parameters, RestoreError};

use crate::guests::looking_back;
use crate::versions::outcome;
use crate::{host, model, view};

/// Decides by the class of the last frame.
const DECIDE: &str = "global.get $seen";
const OBSERVE: &str = "(global.set $seen (local.get $class))";
/// Four bytes.
const SAVE: &str = "(i32.store (i32.const 64) (global.get $seen))
    (i32.store (i32.const 72) (i32.const 64))
    (i32.store (i32.const 76) (i32.const 4))
    i32.const 72";
const RESTORE: &str = "(global.set $seen (i32.load (local.get $at))) i32.const 0";

const TRAPPED: Fault = Fault::Trap { reason: "unreachable" };

fn start(component: &[u8]) -> Instance {
    let policy = host().load(component).unwrap();
    policy.configure(&model(), &Parameters::default()).unwrap()
}

/// A policy whose words for a refusal stand at address 128.
fn refusing() -> String {
    // `err`, and the address and length of the reason.
    "(i32.store8 (i32.const 96) (i32.const 1))
     (i32.store (i32.const 100) (i32.const 128))
     (i32.store (i32.const 104) (i32.const 3))
     (i32.store (i32.const 128) (i32.const 0x646c6f)) ;; old
     i32.const 96"
        .into()
}

#[test]
fn a_policy_hears_of_frames_and_hands_what_it_knows_to_the_next_instance() {
    let component = looking_back(DECIDE, OBSERVE, SAVE, RESTORE);
    let mut first = start(&component);
    assert_eq!(first.decide(&view(0, 0, 0.5)), Ok(Verdict::GoOn));
    first.observe(&outcome(3)).unwrap();
    assert_eq!(first.decide(&view(0, 0, 0.5)), Ok(Verdict::Audit));
    let saved = first.save().unwrap().unwrap();
    assert_eq!(saved, [3, 0, 0, 0]);
    let mut second = start(&component);
    second.restore(&saved).unwrap();
    assert_eq!(second.decide(&view(0, 0, 0.5)), Ok(Verdict::Audit));
}

#[test]
fn a_state_of_64_kib_is_carried_and_one_byte_more_is_a_fault() {
    let save = |bytes: u32| {
        format!(
            "(if (i32.lt_u (memory.size) (i32.const 4)) (then (drop (memory.grow (i32.const 3)))))
             (i32.store (i32.const 72) (i32.const 1024))
             (i32.store (i32.const 76) (i32.const {bytes}))
             i32.const 72"
        )
    };
    let mut most = start(&looking_back(DECIDE, OBSERVE, &save(65_536), RESTORE));
    assert_eq!(most.save().unwrap().unwrap().len(), 65_536);
    for bytes in [65_537, 131_072, u32::MAX >> 1] {
        let mut more = start(&looking_back(DECIDE, OBSERVE, &save(bytes), RESTORE));
        assert_eq!(more.save(), Err(Fault::State), "{bytes} bytes");
        assert_eq!(more.decide(&view(0, 0, 0.5)), Err(Fault::State), "it is gone");
        more.restart().unwrap();
        assert_eq!(more.decide(&view(0, 0, 0.5)), Ok(Verdict::GoOn));
    }
}

#[test]
fn a_message_in_the_log_is_as_short_as_ever_after_a_large_state() {
    // `save` may hand over 64 KiB, `log` 4: the one does not loosen the other.
    let save = "(i32.store (i32.const 72) (i32.const 1024)) (i32.store (i32.const 76) (i32.const 20000)) i32.const 72";
    let decide = "(call $log (i32.const 3) (i32.const 1024) (i32.const 5000)) i32.const 0";
    let mut instance = start(&looking_back(decide, OBSERVE, save, RESTORE));
    assert_eq!(instance.save().unwrap().unwrap().len(), 20_000);
    assert_eq!(instance.decide(&view(0, 0, 0.5)), Err(Fault::Contract));
}

#[test]
fn a_trap_or_a_loop_in_any_export_ends_the_instance_and_nothing_else() {
    for (body, fault) in [
        ("unreachable", TRAPPED),
        ("(loop $l (br $l)) unreachable", Fault::OutOfFuel),
    ] {
        let mut observing = start(&looking_back(DECIDE, body, SAVE, RESTORE));
        assert_eq!(observing.observe(&outcome(1)), Err(fault));
        assert_eq!(observing.decide(&view(0, 0, 0.5)), Err(fault));
        let mut saving = start(&looking_back(DECIDE, OBSERVE, body, RESTORE));
        assert_eq!(saving.save(), Err(fault));
        let mut restoring = start(&looking_back(DECIDE, OBSERVE, SAVE, body));
        assert_eq!(restoring.restore(&[1]), Err(RestoreError::Fault(fault)));
        for mut ended in [observing, saving, restoring] {
            ended.restart().unwrap();
            assert_eq!(ended.decide(&view(0, 0, 0.5)), Ok(Verdict::GoOn));
        }
    }
}

/// A ladder in whose policy's state the class 2 stands, and what it reports when that is swapped for another.
fn swapped_for(component: &[u8], carry: Carry) -> (Ladder, Vec<LadderEvent>) {
    let mut ladder = Ladder::new(LadderRules::default());
    let mut events = Vec::new();
    ladder.swap(start(&looking_back(DECIDE, OBSERVE, SAVE, RESTORE)), carry);
    ladder.start_frame(&mut |_| ());
    ladder.observe(&outcome(2), &mut |event| panic!("{event:?}"));
    ladder.swap(start(component), carry);
    ladder.start_frame(&mut |event| events.push(event));
    (ladder, events)
}

#[test]
fn state_goes_over_a_swap_where_the_caller_says_so() {
    // Another version: it decides otherwise.
    let newer = looking_back("(i32.add (global.get $seen) (i32.const 1))", OBSERVE, SAVE, RESTORE);
    let (mut ladder, events) = swapped_for(&newer, Carry::State);
    let policy = ladder.active().unwrap();
    assert!(matches!(events[0], LadderEvent::Swapped { .. }));
    assert_eq!(events[1..], [LadderEvent::Carried { policy, bytes: 4 }]);
    assert_eq!(ladder.decide(&view(0, 0, 0.5), &mut |_| ()), Some(Verdict::Audit));
    let (mut ladder, events) = swapped_for(&newer, Carry::Nothing);
    assert_eq!(events.len(), 1);
    assert_eq!(ladder.decide(&view(0, 0, 0.5), &mut |_| ()), Some(Verdict::Leave));
}

#[test]
fn a_policy_that_does_not_take_up_the_state_begins_afresh_and_the_reason_is_told() {
    // Both have taken up half of it before they give up.
    let half = "(global.set $seen (i32.load (local.get $at)))";
    for (restore, reason) in [
        (format!("{half} {}", refusing()), "the policy refuses the state: old"),
        (format!("{half} unreachable"), "the policy trapped (unreachable)"),
    ] {
        let (mut ladder, events) = swapped_for(&looking_back(DECIDE, OBSERVE, SAVE, &restore), Carry::State);
        let policy = ladder.active().unwrap();
        let why = reason.to_owned();
        assert_eq!(events[1..], [LadderEvent::NotCarried { policy, why }]);
        let verdict = ladder.decide(&view(0, 0, 0.5), &mut |event| panic!("{event:?}"));
        assert_eq!(verdict, Some(Verdict::GoOn));
    }
}

#[test]
fn a_policy_that_cannot_save_is_replaced_all_the_same() {
    let mut ladder = Ladder::new(LadderRules::default());
    ladder.swap(
        start(&looking_back(DECIDE, OBSERVE, "unreachable", RESTORE)),
        Carry::State,
    );
    ladder.start_frame(&mut |_| ());
    ladder.swap(start(&looking_back(DECIDE, OBSERVE, SAVE, RESTORE)), Carry::State);
    let mut events = Vec::new();
    ladder.start_frame(&mut |event| events.push(event));
    let policy = ladder.active().unwrap();
    let why = "it could not be saved: the policy trapped (unreachable)".to_owned();
    assert_eq!(events[1..], [LadderEvent::NotCarried { policy, why }]);
}

#[test]
fn a_policy_that_fails_whenever_it_looks_back_is_given_up() {
    let policy = start(&looking_back(DECIDE, "unreachable", SAVE, RESTORE));
    let mut ladder = Ladder::new(LadderRules::default());
    ladder.swap(policy, Carry::Nothing);
    let mut events = Vec::new();
    for _ in 0..3 {
        ladder.start_frame(&mut |event| events.push(event));
        assert!(
            ladder.decide(&view(0, 0, 0.5), &mut |_| ()).is_some(),
            "frames are decided"
        );
        ladder.observe(&outcome(1), &mut |event| events.push(event));
    }
    let given_up = GivenUpFor::Faults {
        frames: 3,
        fault: TRAPPED,
    };
    assert!(matches!(events.last(), Some(LadderEvent::SteppedDown { why, to: None, .. }) if *why == given_up));
}
