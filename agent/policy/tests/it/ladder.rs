//! The ladder, step by step and against a model.

use std::time::Duration;

use offramp_core::Verdict;
use offramp_policy::{
    Carry, CarryError, Fault, Instance, Ladder, LadderEvent, LadderRules, Limits, Parameters, Policy, PolicyHost,
    RestoreError, Why,
};
use offramp_proto::Digest;
use proptest::prelude::*;

use crate::guests::{class, counter, puppet};
use crate::{host, model, outcome, unhurried, view};

const RULES: LadderRules = LadderRules {
    trial: 4,
    faults: 3,
    budget: Some(Duration::from_millis(1)),
    pause: 1000,
    longest_pause: 4000,
};

const TRAPPED: Fault = Fault::Trap { reason: "unreachable" };

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
    let looped = Why::Faults {
        frames: 3,
        fault: Fault::OutOfFuel,
    };
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
                to: Some(good),
                why: looped
            },
        ]
    );
    assert_eq!(frame(&mut ladder, &[1]), (vec![Some(Verdict::Leave)], vec![]));
    let events: Vec<_> = (0..4).flat_map(|_| frame(&mut ladder, &[class::LOOP]).1).collect();
    let down = LadderEvent::SteppedDown {
        from: good,
        to: None,
        why: looped,
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

/// Rules under which a policy is soon tried again.
const EAGER: LadderRules = LadderRules {
    trial: 2,
    faults: 1,
    pause: 2,
    longest_pause: 4,
    ..RULES
};

#[test]
fn a_policy_that_was_given_up_comes_back_after_pauses_that_double_up_to_a_bound() {
    let host = host();
    let policies = ["good", "bad"].map(|name| host.load(&puppet(name)).unwrap());
    let [good, bad] = policies.each_ref().map(Policy::digest);
    let mut ladder = Ladder::new(EAGER);
    ladder.swap(start(&policies[0]), Carry::Nothing);
    (0..3).for_each(|_| drop(frame(&mut ladder, &[1])));
    ladder.swap(start(&policies[1]), Carry::Nothing);
    frame(&mut ladder, &[class::TRAP]);
    let back = LadderEvent::Retried {
        from: Some(good),
        policy: bad,
    };
    for pause in [2, 4, 4] {
        for waited in 1..pause {
            assert_eq!(
                frame(&mut ladder, &[1]),
                (vec![Some(Verdict::Leave)], vec![]),
                "{waited} of {pause}"
            );
            assert_eq!(ladder.active(), Some(good));
        }
        let (_, events) = frame(&mut ladder, &[class::TRAP]);
        assert_eq!(events[0], back);
        assert!(
            matches!(events[..], [_, LadderEvent::Faulted { .. }, LadderEvent::SteppedDown { to: Some(to), .. }] if to == good),
            "{events:?}"
        );
    }
    let events: Vec<_> = (0..6).flat_map(|_| frame(&mut ladder, &[1]).1).collect();
    assert_eq!(events, [back, LadderEvent::Proven { policy: bad }]);
    assert_eq!(ladder.active(), Some(bad));
    // It has proven good: the next pause is short again.
    frame(&mut ladder, &[class::TRAP]);
    let events: Vec<_> = (0..2).flat_map(|_| frame(&mut ladder, &[1]).1).collect();
    assert_eq!(
        events,
        [LadderEvent::Retried {
            from: None,
            policy: bad
        }]
    );
}

#[test]
fn a_policy_that_is_ordered_takes_the_place_of_one_that_was_given_up() {
    let host = host();
    let policies = ["a", "b"].map(|name| host.load(&puppet(name)).unwrap());
    let mut ladder = Ladder::new(EAGER);
    ladder.swap(start(&policies[0]), Carry::Nothing);
    frame(&mut ladder, &[class::TRAP]);
    ladder.swap(start(&policies[1]), Carry::Nothing);
    let events: Vec<_> = (0..10).flat_map(|_| frame(&mut ladder, &[1]).1).collect();
    let to = policies[1].digest();
    assert_eq!(
        events,
        [
            LadderEvent::Swapped { from: None, to },
            LadderEvent::Proven { policy: to }
        ]
    );
}

#[test]
fn a_policy_most_of_whose_last_verdicts_took_too_long_is_given_up_with_the_figure() {
    let policy = host().load(&puppet("slow")).unwrap();
    let mut ladder = Ladder::new(RULES);
    ladder.swap(start(&policy), Carry::Nothing);
    let mut verdict = |millis| {
        let (verdicts, mut events) = frame(&mut ladder, &[1]);
        if verdicts == [Some(Verdict::Leave)] {
            ladder.took(Duration::from_millis(millis));
        }
        events.retain(|event| matches!(event, LadderEvent::SteppedDown { .. }));
        events
    };
    // Half of them may take long.
    let events: Vec<_> = (0..500).flat_map(|n| verdict(if n % 2 == 0 { 3 } else { 1 })).collect();
    assert_eq!(events, []);
    let events: Vec<_> = (0..5).flat_map(|_| verdict(2)).collect();
    let down = LadderEvent::SteppedDown {
        from: policy.digest(),
        to: None,
        why: Why::TooSlow {
            median: Duration::from_millis(2),
            budget: Duration::from_millis(1),
        },
    };
    assert_eq!(events, [down]);
}

#[test]
fn state_goes_to_the_next_version_where_the_caller_says_so() {
    let host = host();
    let policies = ["1", "2", "3"].map(|name| host.load(&counter(name)).unwrap());
    let mut ladder = Ladder::new(RULES);
    let mut run = |policy: usize, carry| {
        ladder.swap(start(&policies[policy]), carry);
        let (verdicts, events) = frame(&mut ladder, &[1]);
        assert!(!ladder.observe(&outcome(), &mut |event| panic!("{event:?}")));
        (verdicts, events.into_iter().last().unwrap())
    };
    let [one, two, three] = policies.each_ref().map(Policy::digest);
    let swapped = |from, to| LadderEvent::Swapped { from, to };
    assert_eq!(
        run(0, Carry::State),
        (vec![Some(Verdict::GoOn)], swapped(None, one)),
        "there is none yet"
    );
    let carried = LadderEvent::Carried { policy: two, bytes: 4 };
    assert_eq!(run(1, Carry::State), (vec![Some(Verdict::Leave)], carried));
    assert_eq!(
        run(2, Carry::Nothing),
        (vec![Some(Verdict::GoOn)], swapped(Some(two), three))
    );
}

#[test]
fn a_policy_that_refuses_the_state_begins_afresh() {
    let host = host();
    let old = host.load(&counter("old")).unwrap();
    // Takes it up, then refuses it.
    let new = crate::guests::Guest {
        world: "stateful-policy",
        decide: "global.get $verdict",
        restore: "(global.set $verdict (i32.const 3)) i32.const 16",
        fields: r#"(global $verdict (mut i32) (i32.const 1)) (data (i32.const 16) "\01\00\00\00\20\00\00\00\03\00\00\00")
            (data (i32.const 32) "new")"#,
        ..crate::guests::Guest::default()
    };
    let new = host.load(&new.component()).unwrap();
    let mut ladder = Ladder::new(RULES);
    ladder.swap(start(&old), Carry::State);
    frame(&mut ladder, &[1]);
    ladder.swap(start(&new), Carry::State);
    let why = CarryError::Restore(RestoreError::Refused { reason: "new".into() });
    let refused = LadderEvent::NotCarried {
        policy: new.digest(),
        why,
    };
    let (verdicts, events) = frame(&mut ladder, &[1]);
    assert_eq!((verdicts, events.last()), (vec![Some(Verdict::Leave)], Some(&refused)));
}

#[test]
fn a_frame_that_a_policy_fails_to_look_back_at_is_a_faulty_one() {
    let guest = crate::guests::Guest {
        world: "stateful-policy",
        observe: "unreachable",
        ..crate::guests::Guest::default()
    };
    let policy = host().load(&guest.component()).unwrap();
    let mut ladder = Ladder::new(RULES);
    ladder.swap(start(&policy), Carry::Nothing);
    let mut events = Vec::new();
    for _ in 0..3 {
        frame(&mut ladder, &[1]);
        assert!(ladder.observe(&outcome(), &mut |event| events.push(event)));
    }
    let down = LadderEvent::SteppedDown {
        from: policy.digest(),
        to: None,
        why: Why::Faults {
            frames: 3,
            fault: TRAPPED,
        },
    };
    assert_eq!(events.len(), 4);
    assert_eq!(events.last(), Some(&down));
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
                to: self.active(),
                why: Why::Faults {
                    frames: RULES.faults,
                    fault: TRAPPED,
                },
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
