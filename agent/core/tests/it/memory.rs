//! Frames do not allocate.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use offramp_core::{Core, Effect, Event, Facts, Head, Micros, Network, Settings, SplitMix64, Whitener};

/// Counts what a thread allocates.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const CLASSES: usize = 20;
const FEATURES: usize = 32;
const EXITS: usize = 3;

fn network(random: &mut SplitMix64) -> Network {
    let mut number = |scale: f32| ((random.next() >> 40) as f32 / 8_388_608.0 - 1.0) * scale;
    let heads = (0..EXITS).map(|_| {
        let weights = (0..CLASSES * FEATURES).map(|_| number(0.5)).collect();
        Head::new(CLASSES, FEATURES, weights, vec![0.0; CLASSES]).unwrap()
    });
    let identity = (0..FEATURES * FEATURES).map(|i| if i % (FEATURES + 1) == 0 { 1.0 } else { 0.0 });
    let whitener = Whitener::new(vec![0.0; FEATURES], identity.collect()).unwrap();
    Network {
        heads: heads.collect(),
        whiteners: vec![Some(whitener); EXITS - 1],
        stage_macs: vec![1_000; EXITS],
    }
}

/// A frame of random, normalised features in one of three contexts, its audit and its lesson included.
fn frame(core: &mut Core, random: &mut SplitMix64) {
    let mut features = [[0.0; FEATURES]; EXITS];
    for u in &mut features {
        u.fill_with(|| (random.next() >> 40) as f32 / 8_388_608.0 - 1.0);
        let norm = (u.iter().map(|x| x * x).sum::<f32>() / FEATURES as f32).sqrt();
        u.iter_mut().for_each(|x| *x /= norm);
    }
    let arrived = Event::FrameArrived {
        frame: 0,
        random: (random.next() >> 32) as u32,
        context: random.next() % 3,
        facts: Facts::default(),
    };
    let mut next = None;
    core.handle(Micros(0), arrived, &mut |effect| next = Some(effect))
        .unwrap();
    while let Some(effect) = next.take() {
        let event = match effect {
            Effect::RunStage { stage } => Event::FeaturesReady {
                features: &features[stage],
            },
            Effect::Decide { view } => Event::VerdictGiven {
                verdict: view.rule(),
                fault: false,
            },
            Effect::Emit { .. } | Effect::Finished => break,
        };
        core.handle(Micros(0), event, &mut |effect| match effect {
            Effect::Emit { .. } => {}
            order @ (Effect::RunStage { .. } | Effect::Decide { .. } | Effect::Finished) => next = Some(order),
        })
        .unwrap();
    }
    core.learn();
}

#[test]
fn frames_audits_lessons_trials_and_changes_of_context_do_not_allocate() {
    let mut random = SplitMix64(1);
    let mut settings = Settings {
        audit_rate: 0.2,
        threshold: 0.3,
        ..Settings::default()
    };
    settings.guard.trial_every = 16;
    settings.learner.gate = 0.0;
    let mut core = Core::new(network(&mut random), settings).unwrap();
    // Each context takes its memory when it comes up for the first time.
    (0..500).for_each(|_| frame(&mut core, &mut random));
    core.close_window();
    let bytes = core.bytes();
    let before = ALLOCATIONS.with(Cell::get);
    (0..20_000).for_each(|_| frame(&mut core, &mut random));
    assert_eq!(ALLOCATIONS.with(Cell::get) - before, 0);
    let report = core.close_window();
    assert!(
        report.audits.run > 1_000 && report.learner.updates > 1_000,
        "{report:?}"
    );
    assert!(report.guard.promotions + report.learner.rollbacks > 10, "{report:?}");
    assert_eq!(core.bytes(), bytes);
}
