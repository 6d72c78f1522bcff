//! Policies on traces.

use offramp_core::{ExitView, Outcome, Verdict};
use offramp_trace::{Decider, Frame, Replay};

use crate::sample::{frame, header};

fn replayed(frames: &[Frame], policy: &mut impl Decider) -> (Replay, Vec<Option<usize>>) {
    let header = header(false);
    let mut replay = Replay::default();
    let exits = frames.iter().map(|frame| replay.add(&header, frame, policy)).collect();
    (replay, exits)
}

fn at(threshold: f32) -> impl FnMut(&ExitView) -> Verdict {
    move |view| ExitView { threshold, ..*view }.rule()
}

#[test]
fn a_policy_pays_for_the_exit_that_it_takes_and_is_right_where_that_exit_is() {
    let header = header(false);
    let frames = [
        frame(&header, 0, 3, &[(3, 0.9), (3, 0.9), (3, 0.9)]),
        frame(&header, 1, 3, &[(4, 0.6), (3, 0.8), (3, 0.9)]),
        frame(&header, 2, 5, &[(4, 0.2), (4, 0.3), (5, 0.4)]),
    ];
    let (replay, exits) = replayed(&frames, &mut at(0.7));
    assert_eq!(exits, [Some(0), Some(1), Some(2)]);
    assert_eq!(
        (replay.exits.as_slice(), replay.right, replay.agreed),
        (&[1, 1, 1][..], 3, 3)
    );
    assert!((replay.mean_cost() - 0.5).abs() < 1e-6);
    let (hasty, _) = replayed(&frames, &mut at(0.0));
    assert_eq!(
        (hasty.exits.as_slice(), hasty.accuracy(), hasty.agreement()),
        (&[3, 0, 0][..], Some(1.0 / 3.0), Some(1.0 / 3.0))
    );
}

#[test]
fn where_nobody_knows_what_came_next_nothing_is_guessed() {
    let header = header(false);
    // From a device: the policy of that time let the second leave at once.
    let mut frames = [
        frame(&header, 0, 3, &[(3, 0.6), (3, 0.9), (3, 0.9)]),
        frame(&header, 1, 3, &[(3, 0.6)]),
    ];
    frames[1].exits[0].verdict = Some(Verdict::Leave);
    let (replay, exits) = replayed(&frames, &mut at(0.7));
    assert_eq!(exits, [Some(1), None]);
    assert_eq!(
        (replay.frames, replay.unanswered, replay.labelled, replay.complete),
        (2, 1, 1, 1)
    );
    assert_eq!((replay.recorded, replay.changed), (1, 1));
    let (same, _) = replayed(&frames, &mut at(0.5));
    assert_eq!((same.unanswered, same.recorded, same.changed), (0, 1, 0));
}

#[test]
fn a_policy_hears_what_became_of_a_frame_as_far_as_that_is_known() {
    struct Listening(Vec<Outcome>);
    impl Decider for Listening {
        fn decide(&mut self, view: &ExitView) -> Option<Verdict> {
            (view.exit > 0).then_some(Verdict::Leave)
        }
        fn observe(&mut self, outcome: &Outcome) {
            self.0.push(*outcome);
        }
    }
    let header = header(false);
    let mut frames = [
        frame(&header, 0, 3, &[(3, 0.6), (4, 0.7), (3, 0.9)]),
        frame(&header, 1, 3, &[(3, 0.6), (4, 0.7), (3, 0.9)]),
    ];
    for (frame, taken) in frames.iter_mut().zip([1, 2]) {
        (frame.taken, frame.latency, frame.interval) = (Some(taken), 5.0, 100.0);
    }
    let mut policy = Listening(vec![]);
    let (replay, _) = replayed(&frames, &mut policy);
    assert_eq!(replay.faults, 2, "the rule decided where the policy failed");
    let told: Vec<_> = policy
        .0
        .iter()
        .map(|o| (o.exit, o.class, o.interval, o.latency.is_nan()))
        .collect();
    assert_eq!(told, [(1, 4, 100.0, false), (1, 4, 100.0, true)]);
}
