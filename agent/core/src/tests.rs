use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;

const CLASSES: usize = 4;
const FEATURES: usize = 4;
const EXITS: usize = 3;

/// Heads that read the class off the features, the sharper the later the exit.
fn network() -> Network {
    let head = |sharpness: f32| {
        let weights = (0..CLASSES * FEATURES).map(|i| if i / FEATURES == i % FEATURES { sharpness } else { 0.0 });
        Head::new(CLASSES, FEATURES, weights.collect(), vec![0.0; CLASSES]).unwrap()
    };
    Network {
        heads: vec![head(0.5), head(1.5), head(4.0)],
        stage_macs: vec![100, 200, 300],
    }
}

fn core(settings: Settings) -> Core {
    Core::new(network(), settings).unwrap()
}

/// Normalised features that point at a class.
fn pointing_at(class: usize) -> [f32; FEATURES] {
    let mut u = [0.0; FEATURES];
    u[class] = 2.0;
    u
}

/// Runs one frame with fixed features at each stage; tells the prediction and the stages that ran.
fn run(
    core: &mut Core,
    random: u32,
    features: &[[f32; FEATURES]; EXITS],
    verdicts: &[Verdict],
) -> (Prediction, Vec<usize>) {
    let (mut todo, mut stages, mut prediction, mut clock) = (Vec::new(), Vec::new(), None, 0);
    let arrived = Event::FrameArrived {
        frame: 7,
        random,
        facts: Facts::default(),
    };
    core.handle(Micros(0), arrived, &mut |e| todo.push(e)).unwrap();
    let mut finished = false;
    while !todo.is_empty() {
        clock += 10;
        match todo.remove(0) {
            Effect::RunStage { stage } => {
                stages.push(stage);
                core.handle(
                    Micros(clock),
                    Event::FeaturesReady {
                        features: &features[stage],
                    },
                    &mut |e| todo.push(e),
                )
                .unwrap();
            }
            Effect::Decide { view } => {
                let verdict = verdicts[view.exit as usize];
                core.handle(Micros(clock), Event::VerdictGiven { verdict, fault: false }, &mut |e| {
                    todo.push(e);
                })
                .unwrap();
            }
            Effect::Emit { prediction: p } => assert!(prediction.replace(p).is_none()),
            Effect::Finished => finished = true,
        }
    }
    assert!(finished);
    (prediction.unwrap(), stages)
}

#[test]
fn a_frame_that_leaves_skips_the_stages_behind_its_exit() {
    let mut core = core(Settings {
        audit_rate: 0.0,
        ..Settings::default()
    });
    let features = [pointing_at(1); EXITS];
    let (prediction, stages) = run(&mut core, 0, &features, &[Verdict::GoOn, Verdict::Leave]);
    assert_eq!((prediction.class, prediction.exit, stages), (1, 1, vec![0, 1]));
    assert_eq!(prediction.macs, 100 + 200 + 2 * 16);
}

#[test]
fn the_last_exit_is_not_asked() {
    let mut core = core(Settings {
        audit_rate: 0.0,
        ..Settings::default()
    });
    let (prediction, stages) = run(&mut core, 0, &[pointing_at(2); EXITS], &[Verdict::GoOn; 2]);
    assert_eq!((prediction.exit, stages), (2, vec![0, 1, 2]));
}

#[test]
fn an_audit_runs_the_rest_after_the_prediction_is_out_and_teaches_the_earlier_heads() {
    let mut core = core(Settings {
        audit_rate: 0.0,
        ..Settings::default()
    });
    let features = [pointing_at(0), pointing_at(0), pointing_at(3)];
    let before = core.heads().to_vec();
    let (prediction, stages) = run(&mut core, 0, &features, &[Verdict::Audit]);
    assert_eq!((prediction.class, prediction.exit, stages), (0, 0, vec![0, 1, 2]));
    core.learn();
    let report = core.close_window();
    assert_eq!(
        (report.audits.run, report.audits.disagreements, report.learner.updates),
        (1, 1, 2)
    );
    assert_eq!(report.cost.audit_macs, 200 + 300 + 2 * 16);
    assert!(core.heads()[0] != before[0] && core.heads()[1] != before[1]);
    assert_eq!(core.heads()[2], before[2], "the last exit has no teacher");
}

#[test]
fn audits_are_drawn_at_the_rate_that_is_set() {
    let mut core = core(Settings {
        audit_rate: 0.25,
        ..Settings::default()
    });
    let mut word = 1u32;
    for _ in 0..4_000 {
        word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        run(&mut core, word, &[pointing_at(1); EXITS], &[Verdict::Leave; 2]);
    }
    assert!((900..1_100).contains(&core.close_window().audits.run));
}

#[test]
fn a_teacher_that_is_not_sure_does_not_teach() {
    let settings = LearnerSettings {
        gate: 0.9,
        ..LearnerSettings::default()
    };
    let mut core = core(Settings {
        audit_rate: 0.0,
        learner: settings,
        ..Settings::default()
    });
    let unsure = [0.5, 0.5, 0.0, 0.0];
    run(&mut core, 0, &[unsure; EXITS], &[Verdict::GoOn; 2]);
    core.learn();
    let report = core.close_window();
    assert_eq!((report.learner.updates, report.learner.gated), (0, 1));
    assert_eq!(core.heads(), network().heads);
}

#[test]
fn a_verdict_may_forbid_learning() {
    let mut core = core(Settings {
        audit_rate: 0.0,
        ..Settings::default()
    });
    run(
        &mut core,
        0,
        &[pointing_at(1); EXITS],
        &[Verdict::GoOn, Verdict::LeaveWithoutLearning],
    );
    core.learn();
    assert_eq!(core.heads(), network().heads);
}

#[test]
fn learning_makes_the_first_exit_surer_of_what_is_often_seen() {
    let mut core = core(Settings {
        audit_rate: 0.0,
        ..Settings::default()
    });
    let features = [pointing_at(1); EXITS];
    run(&mut core, 0, &features, &[Verdict::GoOn; 2]);
    let before = core.probabilities(0).unwrap()[1];
    for _ in 0..200 {
        run(&mut core, 0, &features, &[Verdict::GoOn; 2]);
    }
    assert!(core.probabilities(0).unwrap()[1] > before + 0.1);
}

#[test]
fn a_head_beyond_its_bound_is_put_back() {
    let settings = LearnerSettings {
        max_distance: 1e-6,
        ..LearnerSettings::default()
    };
    let mut core = core(Settings {
        audit_rate: 0.0,
        learner: settings,
        ..Settings::default()
    });
    run(&mut core, 0, &[pointing_at(1); EXITS], &[Verdict::GoOn; 2]);
    core.learn();
    assert_eq!(core.close_window().learner.rollbacks, 2);
    assert_eq!(core.heads(), network().heads);
}

#[test]
fn features_that_are_not_finite_lose_the_frame_and_nothing_else() {
    let mut core = core(Settings::default());
    for bad in [[f32::NAN; FEATURES], [f32::INFINITY; FEATURES], [1e20; FEATURES]] {
        core.handle(
            Micros(0),
            Event::FrameArrived {
                frame: 0,
                random: 0,
                facts: Facts::default(),
            },
            &mut |_| (),
        )
        .unwrap();
        let error = core
            .handle(Micros(1), Event::FeaturesReady { features: &bad }, &mut |_| ())
            .unwrap_err();
        assert_eq!(error, Misuse::Features { stage: 0 });
    }
    let (prediction, _) = run(&mut core, u32::MAX, &[pointing_at(1); EXITS], &[Verdict::Leave; 2]);
    assert_eq!(prediction.class, 1);
    assert_eq!(core.close_window().dropped, 3);
}

#[test]
fn events_out_of_order_change_nothing() {
    let mut core = core(Settings::default());
    let verdict = Event::VerdictGiven {
        verdict: Verdict::Leave,
        fault: false,
    };
    assert!(matches!(
        core.handle(Micros(0), verdict, &mut |_| ()),
        Err(Misuse::OutOfOrder(_))
    ));
    let arrived = Event::FrameArrived {
        frame: 0,
        random: 0,
        facts: Facts::default(),
    };
    core.handle(Micros(0), arrived, &mut |_| ()).unwrap();
    assert!(matches!(
        core.handle(Micros(0), arrived, &mut |_| ()),
        Err(Misuse::OutOfOrder(_))
    ));
    let u = pointing_at(0);
    let mut effects = Vec::new();
    core.handle(Micros(0), Event::FeaturesReady { features: &u }, &mut |e| {
        effects.push(e);
    })
    .unwrap();
    assert!(matches!(effects[..], [Effect::Decide { .. }]));
}

#[test]
fn the_view_tells_what_the_policy_needs() {
    let mut core = core(Settings::default());
    let mut views = Vec::new();
    for class in [0, 0, 1] {
        let arrived = Event::FrameArrived {
            frame: 0,
            random: u32::MAX,
            facts: Facts {
                queue_depth: 3,
                ..Facts::default()
            },
        };
        core.handle(Micros(0), arrived, &mut |_| ()).unwrap();
        let u = pointing_at(class);
        core.handle(Micros(0), Event::FeaturesReady { features: &u }, &mut |e| {
            if let Effect::Decide { view } = e {
                views.push(view);
            }
        })
        .unwrap();
        core.handle(Micros(0), Event::FrameLost, &mut |_| ()).unwrap();
    }
    let view = views[0];
    assert_eq!((view.exit, view.exits, view.class, view.queue_depth), (0, 3, 0, 3));
    assert!(
        (view.confidence - 0.475_36).abs() < 1e-4 && (view.margin - 0.300_49).abs() < 1e-4,
        "{view:?}"
    );
    assert!((view.cost - 1.0 / 6.0).abs() < 1e-6 && (view.next_cost - 2.0 / 6.0).abs() < 1e-6);
    assert!(!view.agreement && view.change.is_nan());
    assert_eq!((views[1].change, views[2].change), (0.0, 1.0));
}

#[test]
fn a_checkpoint_brings_the_heads_back_to_the_bit() {
    let mut core = core(Settings::default());
    for class in [1, 2, 1, 3] {
        run(&mut core, 0, &[pointing_at(class); EXITS], &[Verdict::GoOn; 2]);
    }
    core.learn();
    let bytes = core.checkpoint();
    let mut other = Core::new(network(), Settings::default()).unwrap();
    other.restore(&bytes).unwrap();
    assert_eq!(other.heads(), core.heads());

    let mut foreign = network();
    foreign.heads[0] = Head::new(CLASSES, FEATURES, vec![0.5; 16], vec![0.0; 4]).unwrap();
    let mut foreign = Core::new(foreign, Settings::default()).unwrap();
    assert_eq!(foreign.restore(&bytes), Err(CheckpointError::OtherModel));
    let mut poisoned = bytes.clone();
    let at = bytes.len() - 4;
    poisoned[at..].copy_from_slice(&f32::NAN.to_le_bytes());
    assert_eq!(other.restore(&poisoned), Err(CheckpointError::NotFinite));
    assert_eq!(other.heads(), core.heads());
}

/// Trace and heads of a seeded stream, hashed: the same on every target, or the core is not deterministic.
#[test]
fn a_seeded_stream_gives_the_frozen_heads_bit_for_bit() {
    let mut core = core(Settings {
        audit_rate: 0.1,
        ..Settings::default()
    });
    let mut word = 1u32;
    let mut next = || {
        word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        word
    };
    for _ in 0..500 {
        let features = [0; EXITS].map(|_| {
            let mut u = [0; FEATURES].map(|_| (next() >> 8) as f32 / 8_388_608.0 - 1.0);
            u[1] += 1.0;
            let norm = libm::sqrtf(math::dot(&u, &u) / FEATURES as f32);
            u.map(|u| u / norm)
        });
        let verdicts = [0; EXITS].map(|_| {
            if next() & 0x10000 == 0 {
                Verdict::Leave
            } else {
                Verdict::GoOn
            }
        });
        run(&mut core, next(), &features, &verdicts);
    }
    core.learn();
    assert_eq!(
        alloc::format!("{:016x}", checkpoint::fingerprint(core.heads())),
        "e22206e3218f8bde"
    );
}

proptest! {
    #[test]
    fn restoring_any_bytes_never_panics_and_never_takes_up_a_bad_head(
        mut bytes in Just(core(Settings::default()).checkpoint()),
        cut in 0usize..400,
        flips in prop::collection::vec((0usize..400, any::<u8>()), 0..8),
    ) {
        for (at, with) in flips {
            let at = at % bytes.len();
            bytes[at] ^= with;
        }
        bytes.truncate(cut);
        let mut core = core(Settings::default());
        let _ = core.restore(&bytes);
        prop_assert!(core.heads().iter().all(Head::is_finite));
    }

    #[test]
    fn every_frame_is_predicted_once_and_the_window_adds_up(
        frames in prop::collection::vec((any::<u32>(), 0usize..CLASSES, prop::array::uniform2(0u8..4)), 1..60),
        audit_rate in 0f32..=1.0,
    ) {
        let mut core = core(Settings { audit_rate, ..Settings::default() });
        for (random, class, verdicts) in &frames {
            let verdicts = verdicts.map(|v| match v {
                0 => Verdict::GoOn,
                1 => Verdict::Leave,
                2 => Verdict::LeaveWithoutLearning,
                _ => Verdict::Audit,
            });
            run(&mut core, *random, &[pointing_at(*class); EXITS], &verdicts);
        }
        let report = core.close_window();
        prop_assert_eq!(report.frames, frames.len() as u64);
        prop_assert_eq!(report.exits.iter().map(|e| e.taken).sum::<u64>(), report.frames);
        prop_assert!(report.cost.audit_macs <= report.cost.macs);
        prop_assert!(report.audits.disagreements <= report.audits.run);
        prop_assert!(core.heads().iter().all(Head::is_finite));
        prop_assert_eq!(core.close_window().frames, 0);
    }
}
