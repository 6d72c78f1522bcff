//! The ladder, step by step and against a model.

use std::time::Duration;

use offramp_core::Verdict;
use offramp_policy::{
    Carry, Fault, GivenUpFor, Instance, Ladder, LadderEvent, LadderRules, Limits, Parameters, Policy, PolicyHost,
};
use offramp_proto::Digest;
use proptest::prelude::*;

use crate::guests::{class, puppet};
use crate::{host, model, unhurried, view};

/// Who was given up stays away.
const RULES: LadderRules = LadderRules {
    trial: 4,
    faults: 3,
    budget: Duration::from_millis(1),
    pause: u32::MAX,
    longest_pause: u32::MAX,
};

const TRAPPED: Fault = Fault::Trap { reason: "unreachable" };

fn failed(fault: Fault) -> GivenUpFor {
    GivenUpFor::Faults {
        frames: RULES.faults,
        fault,
    }
}

fn start(policy: &Policy) -> Instance {
    policy.configure(&model(), &Parameters::default()).unwrap()
}

/// Runs a frame whose exits show these classes; gives the verdicts and what was reported.
fn frame(ladder: &mut Ladder, classes: &[u32]) -> (Vec<Option<Verdict>>, Vec<LadderEvent>) {
    let mut events = Vec::new();
    ladder.start_frame(&mut |event| events.push(event));
    let mut verdicts = Vec::new();
    for (exit, class) in (0..).zip(classes) {
        verdicts.push(ladder.decide(&view(exit, *class, 0.5), &mut |event| events.push(event)));
    }
    (verdicts, events)
}

#[test]
fn without_a_policy_the_built_in_rule_decides() {
    let mut ladder = Ladder::new(RULES);
    assert_eq!(frame(&mut ladder, &[0, 1]), (vec![None, None], vec![]));
    assert_eq!(ladder.active(), None);
}

#[test]
fn a_swap_waits_for_the_next_frame() {
    let host = host();
    let policies = ["a", "b"].map(|name| host.load(&puppet(name)).unwrap());
    let [a, b] = policies.each_ref().map(Policy::digest);
    let mut ladder = Ladder::new(RULES);
    ladder.swap(start(&policies[0]), Carry::Nothing);
    assert_eq!(
        frame(&mut ladder, &[0]),
        (
            vec![Some(Verdict::GoOn)],
            vec![LadderEvent::Swapped { from: None, to: a }]
        )
    );
    ladder.swap(start(&policies[1]), Carry::Nothing);
    assert_eq!(ladder.active(), Some(a));
    let mut nothing = |event| panic!("{event:?}");
    assert_eq!(ladder.decide(&view(1, 3, 0.5), &mut nothing), Some(Verdict::Audit));
    assert_eq!(
        frame(&mut ladder, &[1]).1,
        [LadderEvent::Swapped { from: Some(a), to: b }]
    );
    assert_eq!(ladder.active(), Some(b));
}

#[test]
fn one_fault_costs_the_rest_of_one_frame() {
    let policy = host().load(&puppet("a")).unwrap();
    let mut ladder = Ladder::new(RULES);
    ladder.swap(start(&policy), Carry::Nothing);
    frame(&mut ladder, &[1]);
    let (verdicts, events) = frame(&mut ladder, &[0, class::TRAP, 0]);
    assert_eq!(verdicts, [Some(Verdict::GoOn), None, None]);
    let fault = LadderEvent::Faulted {
        policy: policy.digest(),
        fault: TRAPPED,
        in_a_row: 1,
    };
    assert_eq!(events, [fault]);
    assert_eq!(ladder.active(), None, "the built-in rule decides this frame");
    assert_eq!(frame(&mut ladder, &[1]), (vec![Some(Verdict::Leave)], vec![]));
}

#[test]
fn a_new_policy_that_keeps_failing_gives_way_to_the_good_one_and_that_to_the_built_in_rule() {
    let host = host();
    let policies = ["good", "bad"].map(|name| host.load(&puppet(name)).unwrap());
    let [good, bad] = policies.each_ref().map(Policy::digest);
    let mut ladder = Ladder::new(RULES);
    ladder.swap(start(&policies[0]), Carry::Nothing);
    let events: Vec<_> = (0..5).flat_map(|_| frame(&mut ladder, &[1]).1).collect();
    assert_eq!(
        events,
        [
            LadderEvent::Swapped { from: None, to: good },
            LadderEvent::Proven { policy: good }
        ]
    );
    ladder.swap(start(&policies[1]), Carry::Nothing);
    let events: Vec<_> = (0..3).flat_map(|_| frame(&mut ladder, &[class::LOOP]).1).collect();
    let faulted = |policy, in_a_row| LadderEvent::Faulted {
        policy,
        fault: Fault::OutOfFuel,
        in_a_row,
    };
    assert_eq!(
        events,
        [
            LadderEvent::Swapped {
                from: Some(good),
                to: bad
            },
            faulted(bad, 1),
            faulted(bad, 2),
            faulted(bad, 3),
            LadderEvent::SteppedDown {
                from: bad,
                why: failed(Fault::OutOfFuel),
                to: Some(good)
            },
        ]
    );
    assert_eq!(frame(&mut ladder, &[1]), (vec![Some(Verdict::Leave)], vec![]));
    let events: Vec<_> = (0..4).flat_map(|_| frame(&mut ladder, &[class::LOOP]).1).collect();
    let down = LadderEvent::SteppedDown {
        from: good,
        why: failed(Fault::OutOfFuel),
        to: None,
    };
    assert_eq!(events, [faulted(good, 1), faulted(good, 2), faulted(good, 3), down]);
    assert_eq!(frame(&mut ladder, &[1]), (vec![None], vec![]));
    ladder.swap(start(&policies[0]), Carry::Nothing);
    assert_eq!(
        frame(&mut ladder, &[1]).0,
        [Some(Verdict::Leave)],
        "a swap brings it back"
    );
}

#[test]
fn a_policy_that_cannot_be_started_again_counts_as_failing() {
    let limits = Limits {
        instances: 1,
        ..unhurried()
    };
    let policy = PolicyHost::new(limits).unwrap().load(&puppet("a")).unwrap();
    let mut ladder = Ladder::new(RULES);
    ladder.swap(start(&policy), Carry::Nothing);
    frame(&mut ladder, &[class::TRAP]);
    let taken = start(&policy);
    let faulted = |in_a_row| LadderEvent::Faulted {
        policy: policy.digest(),
        fault: Fault::Restart,
        in_a_row,
    };
    assert_eq!(frame(&mut ladder, &[1]), (vec![None], vec![faulted(2)]));
    drop(taken);
    assert_eq!(frame(&mut ladder, &[1]), (vec![Some(Verdict::Leave)], vec![]));
}

/// What a ladder is to do, as a stack of policies: the last decides.
struct Model {
    stack: Vec<(Digest, bool)>,
    good_frames: u32,
    bad_frames: u32,
}

impl Model {
    fn active(&self) -> Option<Digest> {
        self.stack.last().map(|(policy, _)| *policy)
    }

    fn swap(&mut self, to: Digest) -> LadderEvent {
        let from = self.active();
        self.stack.retain(|(_, proven)| *proven);
        self.stack.push((to, false));
        (self.good_frames, self.bad_frames) = (0, 0);
        LadderEvent::Swapped { from, to }
    }

    fn good_frame(&mut self) -> Option<LadderEvent> {
        (self.good_frames, self.bad_frames) = (self.good_frames + 1, 0);
        let (policy, proven) = *self.stack.last()?;
        let now_proven = !proven && self.good_frames == RULES.trial;
        now_proven.then(|| {
            self.stack = vec![(policy, true)];
            LadderEvent::Proven { policy }
        })
    }

    fn bad_frame(&mut self) -> Vec<LadderEvent> {
        (self.good_frames, self.bad_frames) = (0, self.bad_frames + 1);
        let Some(policy) = self.active() else { return vec![] };
        let mut events = vec![LadderEvent::Faulted {
            policy,
            fault: TRAPPED,
            in_a_row: self.bad_frames,
        }];
        if self.bad_frames == RULES.faults {
            self.stack.pop();
            self.bad_frames = 0;
            events.push(LadderEvent::SteppedDown {
                from: policy,
                why: failed(TRAPPED),
                to: self.active(),
            });
        }
        events
    }
}

#[derive(Clone, Debug)]
enum Step {
    Swap(usize),
    /// The classes at the frame's exits; 4 stands for a trap. A swap may come in between.
    Frame(Vec<u32>, Option<usize>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let class = prop_oneof![6 => 0..4_u32, 1 => Just(class::TRAP)];
    let classes = proptest::collection::vec(class, 0..4);
    let frame = (classes, proptest::option::weighted(0.05, 0..3_usize)).prop_map(|(c, s)| Step::Frame(c, s));
    let bad = Just(Step::Frame(vec![class::TRAP], None));
    let good = Just(Step::Frame(vec![1], None));
    let step = prop_oneof![1 => (0..3_usize).prop_map(Step::Swap), 4 => frame, 4 => bad, 5 => good];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn it_steps_as_the_model_does(steps in steps()) {
        thread_local! {
            static POLICIES: [Policy; 3] = {
                let host = host();
                ["a", "b", "c"].map(|name| host.load(&puppet(name)).unwrap())
            };
        }
        let policies = POLICIES.with(Clone::clone);
        let mut ladder = Ladder::new(RULES);
        let mut model = Model { stack: vec![], good_frames: 0, bad_frames: 0 };
        let mut waiting = None;
        // What the last frame ends with is reported when the next one starts.
        let mut concluded = None;
        for step in steps {
            let (classes, swap_within) = match step {
                Step::Swap(policy) => {
                    ladder.swap(start(&policies[policy]), Carry::Nothing);
                    waiting = Some(policy);
                    continue;
                }
                Step::Frame(classes, swap_within) => (classes, swap_within),
            };
            let mut expected: Vec<_> = concluded.take().into_iter().collect();
            expected.extend(waiting.take().map(|policy: usize| model.swap(policies[policy].digest())));
            let mut events = Vec::new();
            ladder.start_frame(&mut |event| events.push(event));
            prop_assert_eq!(ladder.active(), model.active());
            if let Some(policy) = swap_within {
                ladder.swap(start(&policies[policy]), Carry::Nothing);
                waiting = Some(policy);
            }
            let decides = model.active().is_some();
            let trap = classes.iter().position(|class| *class == class::TRAP).unwrap_or(classes.len());
            for (at, class) in classes.iter().enumerate() {
                let verdict = ladder.decide(&view(0, *class, 0.5), &mut |event| events.push(event));
                let answers = [Verdict::GoOn, Verdict::Leave, Verdict::LeaveWithoutLearning, Verdict::Audit];
                prop_assert_eq!(verdict, (decides && at < trap).then(|| answers[*class as usize]));
            }
            if decides && trap < classes.len() {
                expected.extend(model.bad_frame());
            } else if decides && !classes.is_empty() {
                concluded = model.good_frame();
            }
            prop_assert_eq!(events, expected);
        }
    }
}

#[test]
fn a_policy_that_was_given_up_is_tried_anew_after_pauses_that_double() {
    let policy = host().load(&puppet("a")).unwrap();
    let rules = LadderRules {
        pause: 5,
        longest_pause: 12,
        ..RULES
    };
    let mut ladder = Ladder::new(rules);
    ladder.swap(start(&policy), Carry::Nothing);
    let mut down_at = Vec::new();
    let mut anew_at = Vec::new();
    let mut show = |ladder: &mut Ladder, frames: std::ops::Range<u32>, classes: &[u32]| {
        for n in frames {
            for event in frame(ladder, classes).1 {
                match event {
                    LadderEvent::SteppedDown { .. } => down_at.push(n),
                    LadderEvent::TriedAnew { policy: anew, from } => {
                        assert_eq!((anew, from), (policy.digest(), None));
                        anew_at.push(n);
                    }
                    _ => {}
                }
            }
        }
    };
    show(&mut ladder, 0..40, &[class::TRAP]);
    assert_eq!(ladder.active(), None);
    show(&mut ladder, 40..60, &[1]);
    assert_eq!(ladder.active(), Some(policy.digest()), "it came back");
    // Proven, it waits as short as the first time.
    show(&mut ladder, 60..70, &[class::TRAP]);
    assert_eq!(anew_at, [7, 19, 33, 47, 67]);
    assert_eq!(down_at, [2, 9, 21, 35, 62, 69]);
}

#[test]
fn a_policy_that_takes_too_long_is_given_up_and_the_rest_of_its_frame_is_the_rules() {
    let host = host();
    let policies = ["good", "slow"].map(|name| host.load(&puppet(name)).unwrap());
    let mut ladder = Ladder::new(RULES);
    ladder.swap(start(&policies[0]), Carry::Nothing);
    (0..5).for_each(|_| drop(frame(&mut ladder, &[1])));
    ladder.swap(start(&policies[1]), Carry::Nothing);
    let late = RULES.budget + Duration::from_micros(1);
    let mut events = Vec::new();
    for verdicts in 1..=64 {
        let mut report = |event| events.push(event);
        ladder.start_frame(&mut report);
        assert!(ladder.decide(&view(0, 0, 0.5), &mut report).is_some());
        // Half of the time is allowed to be bad, not more.
        ladder.took(if verdicts <= 31 { RULES.budget } else { late }, &mut report);
        events.retain(|event| matches!(event, LadderEvent::SteppedDown { .. }));
        assert_eq!(events.is_empty(), verdicts < 64);
    }
    let down = LadderEvent::SteppedDown {
        from: policies[1].digest(),
        why: GivenUpFor::TooSlow {
            took: late,
            budget: RULES.budget,
        },
        to: None,
    };
    assert_eq!(events, [down], "the first was let go when the second was proven");
    assert_eq!(ladder.decide(&view(1, 0, 0.5), &mut |event| panic!("{event:?}")), None);
}
