//! Policies on traces.

use offramp_core::{ExitView, Outcome, Verdict};
use offramp_trace::{Decider, Frame, Replay, Weights};

use crate::sample::{frame, header};

fn replayed(frames: &[Frame], policy: &mut impl Decider) -> (Replay, Vec<Option<usize>>) {
    let header = header(false);
    let mut replay = Replay::default();
    let weights = Weights::of(&header, frames);
    let exits = frames
        .iter()
        .map(|frame| replay.add(&header, frame, weights.weight(&header, frame), policy))
        .collect();
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
        (&[1.0, 1.0, 1.0][..], 3.0, 3.0)
    );
    assert!((replay.mean_cost().unwrap() - 0.5).abs() < 1e-6);
    let (hasty, _) = replayed(&frames, &mut at(0.0));
    assert_eq!(
        (hasty.exits.as_slice(), hasty.accuracy(), hasty.agreement()),
        (&[3.0, 0.0, 0.0][..], Some(1.0 / 3.0), Some(1.0 / 3.0))
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
    (frames[0].taken, frames[1].taken) = (Some(2), Some(0));
    frames[1].exits[0].verdict = Some(Verdict::Leave);
    let (replay, exits) = replayed(&frames, &mut at(0.7));
    assert_eq!(exits, [Some(1), None]);
    assert_eq!(
        (replay.frames, replay.unanswered, replay.scored, replay.labelled),
        (2, 1, 1, 1.0)
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

/// A device's trace of frames whose whole story is known elsewhere: those that left early are cut, but for an audited
/// share.
#[test]
fn complete_frames_stand_for_those_that_left_early() {
    let header = header(false);
    let mut random = 7_u64;
    let mut next = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 40) as f32 / 16_777_216.0
    };
    let whole: Vec<Frame> = (0..20_000)
        .map(|number| {
            let sure = next();
            let wrong = next() > sure;
            frame(
                &header,
                number,
                3,
                &[(if wrong { 4 } else { 3 }, sure), (3, (sure + 0.2).min(1.0)), (3, 1.0)],
            )
        })
        .collect();
    let cut: Vec<Frame> = whole
        .iter()
        .map(|frame| {
            let mut frame = frame.clone();
            let taken = frame.exits.iter().position(|seen| seen.view.confidence >= 0.6).unwrap();
            frame.taken = Some(taken as u8);
            frame.exits[taken].verdict = (taken < 2).then_some(Verdict::Leave);
            if next() > 0.1 {
                frame.exits.truncate(taken + 1);
            }
            frame.label = None;
            frame
        })
        .collect();
    for threshold in [0.3, 0.6, 0.9] {
        let (truth, _) = replayed(&whole, &mut at(threshold));
        let (found, _) = replayed(&cut, &mut at(threshold));
        assert!(found.scored < 10_000);
        let off = [
            truth.mean_cost().unwrap() - found.mean_cost().unwrap(),
            truth.agreement().unwrap() - found.agreement().unwrap(),
        ];
        assert!(off.iter().all(|off| off.abs() < 0.02), "at {threshold}: {off:?}");
        assert!((found.weight - 20_000.0).abs() < 1.0, "{}", found.weight);
    }
}

#[test]
fn frames_that_nothing_stands_for_are_counted() {
    let header = header(false);
    let mut frames = [
        frame(&header, 0, 3, &[(3, 0.6), (3, 0.9), (3, 0.9)]),
        frame(&header, 1, 3, &[(3, 0.6)]),
        frame(&header, 2, 3, &[(3, 0.6)]),
    ];
    (frames[0].taken, frames[0].exits[0].verdict) = (Some(0), Some(Verdict::Audit));
    (frames[1].taken, frames[1].exits[0].verdict) = (Some(0), Some(Verdict::Leave));
    (frames[2].taken, frames[2].hurried) = (Some(0), true);
    let weights = Weights::of(&header, &frames);
    assert_eq!(
        frames.each_ref().map(|frame| weights.weight(&header, frame)),
        [2.0, 0.0, 0.0]
    );
    assert_eq!(weights.not_represented(), 1);
}
