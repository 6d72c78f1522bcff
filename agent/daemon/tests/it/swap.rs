//! Policies that are swapped while frames run, and policies that fail while they do.

use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

use offramp::judge::{Chosen, PolicyJudge, PolicySource, Step, Workshop};
use offramp::lane::{Judge, Single};
use offramp::package;
use offramp_camera::sample;
use offramp_core::{ExitView, Facts, Outcome, Verdict};
use offramp_policy::LadderRules;
use offramp_proto::{Generation, Parameter, PolicySource as Rung};

use crate::cameras::settings;

/// The threshold policy, with one threshold for the first exit and another for the rest: half of it shows.
fn configuration(first: f64, others: f64) -> PolicySource {
    let number = |name: &str, number| (name.to_owned(), Parameter::Number(number));
    PolicySource::threshold([number("threshold", others), number("threshold.0", first)].into())
}

/// Writes down what is asked and answered in a frame, and what it is told became of it.
struct Witness {
    judge: PolicyJudge,
    frame: Vec<(ExitView, Verdict)>,
    outcomes: Vec<Outcome>,
    faults: usize,
}

impl Witness {
    fn new(chosen: Chosen) -> Self {
        Self {
            judge: PolicyJudge::new(chosen),
            frame: Vec::new(),
            outcomes: Vec::new(),
            faults: 0,
        }
    }
}

impl Judge for Witness {
    fn start_frame(&mut self) {
        self.frame.clear();
        self.judge.start_frame();
    }

    fn decide(&mut self, view: &ExitView) -> (Verdict, bool) {
        let (verdict, fault) = self.judge.decide(view);
        self.faults += usize::from(fault);
        self.frame.push((*view, verdict));
        (verdict, fault)
    }

    fn observe(&mut self, outcome: &Outcome) -> bool {
        self.outcomes.push(*outcome);
        self.judge.observe(outcome)
    }
}

#[test]
fn with_a_swap_every_50_frames_none_of_10000_is_lost_or_decided_by_half_a_configuration() {
    const FRAMES: u64 = 10_000;
    const EVERY: u64 = 50;
    let package = package::open(package::EMBEDDED).unwrap();
    let workshop = Workshop::new(&package).unwrap();
    let sources = [configuration(0.5, 0.99), configuration(0.97, 0.3)];
    // Each decides beside the agent, with an instance that is never swapped.
    let mut alone = sources
        .each_ref()
        .map(|source| PolicyJudge::new(workshop.prepare(source).unwrap()));
    let images = sample::stream().unwrap();
    let mut single = Single::new(&package, settings(&package), 1).unwrap();
    let mut witness = Witness::new(workshop.prepare(&sources[0]).unwrap());
    let (mut distinct, mut swaps, mut predictions) = (0, 0, 0);
    thread::scope(|scope| {
        let (order, orders) = sync_channel(1);
        let (workshop, sources) = (&workshop, &sources);
        // Prepares them while frames run, as the keeper does.
        scope.spawn(move || {
            for generation in 1..FRAMES / EVERY {
                let chosen = workshop.prepare(&sources[generation as usize % 2]).unwrap();
                order.send((chosen, Generation(generation))).unwrap();
            }
        });
        for number in 0..FRAMES {
            if number % EVERY == 0 && number > 0 {
                let (chosen, generation) = orders.recv().unwrap();
                witness.judge.swap(chosen, generation);
            }
            let pixels = images.pixels(number as usize % images.len()).unwrap();
            let prediction = single.run(number, pixels, Facts::default(), &mut witness).unwrap();
            single.lane.learn();
            assert_eq!(prediction.frame, number);
            predictions += 1;
            let told = witness.outcomes.last().unwrap();
            assert_eq!((told.exit, told.class), (prediction.exit, prediction.class));
            while let Some(step) = witness.judge.next_step() {
                assert!(matches!(step, Step::Swapped { .. }), "{step:?}");
                swaps += 1;
            }
            // All verdicts of the frame are those of the configuration that was ordered last.
            let ordered = (number / EVERY) as usize % 2;
            let matches = alone.each_mut().map(|judge| {
                let mut same = |(view, verdict): &(ExitView, Verdict)| judge.decide(view) == (*verdict, false);
                witness.frame.iter().all(&mut same)
            });
            assert!(matches[ordered], "frame {number}: {:?}", witness.frame);
            distinct += usize::from(!matches[1 - ordered]);
        }
    });
    assert_eq!((predictions, witness.faults), (FRAMES, 0));
    assert_eq!(witness.outcomes.len() as u64, FRAMES);
    assert_eq!(swaps, FRAMES / EVERY - 1);
    assert!(distinct > 1000, "the configurations differ in {distinct} frames only");
    assert_eq!(single.lane.core.close_window().dropped, 0);
}

#[test]
fn a_policy_is_told_what_became_of_each_frame() {
    let package = package::open(package::EMBEDDED).unwrap();
    let images = sample::stream().unwrap();
    let settings = offramp_core::Settings {
        audit_rate: 1.0,
        ..settings(&package)
    };
    let mut single = Single::new(&package, settings, 1).unwrap();
    let chosen = Workshop::new(&package)
        .unwrap()
        .prepare(&configuration(0.9, 0.9))
        .unwrap();
    let mut witness = Witness::new(chosen);
    let mut costs = Vec::new();
    for number in 0..300 {
        let pixels = images.pixels(number).unwrap();
        let facts = Facts {
            temperature: 47.0,
            ..Facts::default()
        };
        let prediction = single.run(number as u64, pixels, facts, &mut witness).unwrap();
        let told = *witness.outcomes.last().unwrap();
        assert_eq!(
            (told.exit, told.class, told.confidence),
            (prediction.exit, prediction.class, prediction.confidence)
        );
        assert_eq!(told.latency, prediction.latency_us as f32 / 1e3);
        assert_eq!((told.temperature, told.fault, told.hurried), (47.0, false, false));
        assert_eq!(told.interval.is_nan(), number == 0);
        assert!(number == 0 || told.interval > 0.0);
        // Audited is what left early.
        let audited = told.audit != offramp_core::AuditResult::None;
        assert_eq!(audited, prediction.exit < 3);
        costs.push((told.exit, told.cost));
    }
    let report = single.lane.core.close_window();
    let differed = |told: &&Outcome| told.audit == offramp_core::AuditResult::Differed;
    assert_eq!(
        report.audits.disagreements,
        witness.outcomes.iter().filter(differed).count() as u64
    );
    costs.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    costs.dedup();
    assert_eq!(costs.len(), 4, "one cost for each exit: {costs:?}");
    assert_eq!(costs[3].1, 1.0);
}

#[test]
fn a_policy_that_is_too_slow_is_given_up_comes_back_and_each_step_is_told() {
    let package = package::open(package::EMBEDDED).unwrap();
    let images = sample::stream().unwrap();
    let mut single = Single::new(&package, settings(&package), 1).unwrap();
    let chosen = Workshop::new(&package)
        .unwrap()
        .prepare(&configuration(1.0, 1.0))
        .unwrap();
    // Nothing is as fast as that: it goes after 33 verdicts, and has proven good before.
    let rules = LadderRules {
        trial: 5,
        budget: Some(Duration::ZERO),
        pause: 20,
        ..LadderRules::default()
    };
    let mut judge = PolicyJudge::with_rules(chosen, rules);
    let mut told = Vec::new();
    for number in 0..100 {
        let pixels = images.pixels(number).unwrap();
        single.run(number as u64, pixels, Facts::default(), &mut judge).unwrap();
        while let Some(step) = judge.next_step() {
            told.push((step, judge.report(0)));
        }
    }
    let told: Vec<_> = told
        .iter()
        .map(|(step, report)| {
            let Step::Other { kind, wrong, message } = step else {
                panic!("{step:?}");
            };
            (*kind, *wrong, message.as_str(), report.name.as_str(), report.source)
        })
        .collect();
    let (down, retried, restored) = (told[0], told[1], told[2]);
    assert_eq!(
        (down.0, down.1, down.3, down.4),
        ("policy-stepped-down", true, "built-in", Rung::BuiltIn)
    );
    assert!(
        down.2
            .starts_with("policy threshold 1 is given up: it is too slow: half of its last 64 verdicts took ")
            && down.2.ends_with("; built-in decides"),
        "{}",
        down.2
    );
    assert_eq!(
        retried,
        (
            "policy-retried",
            false,
            "policy threshold 1 is tried again, after built-in",
            "threshold",
            Rung::Desired
        )
    );
    assert_eq!(
        restored,
        (
            "policy-restored",
            false,
            "policy threshold 1 decides well again",
            "threshold",
            Rung::Desired
        )
    );
    assert_eq!(told[3].0, "policy-stepped-down");
}
