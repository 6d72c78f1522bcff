//! A driver and a network of random numbers, for tests that look at a core from outside.

use offramp_core::{Core, Effect, Event, Facts, Head, Micros, Network, SplitMix64, Whitener};

pub(crate) const CLASSES: usize = 20;
pub(crate) const FEATURES: usize = 32;
pub(crate) const EXITS: usize = 3;

/// Heads of random weights; the first `known` exits come with a whitener that leaves features as they are.
pub(crate) fn network(random: &mut SplitMix64, known: usize) -> Network {
    let heads = (0..EXITS).map(|_| {
        let weights = (0..CLASSES * FEATURES).map(|_| number(random) * 0.5).collect();
        Head::new(CLASSES, FEATURES, weights, vec![0.0; CLASSES]).unwrap()
    });
    let heads = heads.collect();
    let identity = (0..FEATURES * FEATURES).map(|i| if i % (FEATURES + 1) == 0 { 1.0 } else { 0.0 });
    let whitener = Whitener::new(vec![0.0; FEATURES], identity.collect()).unwrap();
    Network {
        heads,
        whiteners: vec![Some(whitener); known],
        stage_macs: vec![1_000; EXITS],
    }
}

/// From -1 to 1.
pub(crate) fn number(random: &mut SplitMix64) -> f32 {
    (random.next() >> 40) as f32 / 8_388_608.0 - 1.0
}

/// A frame whose features point somewhere at random, its audit included; what was learned is up to the caller.
/// `see` is shown every effect.
pub(crate) fn frame(core: &mut Core, random: &mut SplitMix64, context: u64, mut see: impl FnMut(&Effect)) {
    let mut features = [[0.0; FEATURES]; EXITS];
    for u in &mut features {
        u.fill_with(|| number(random));
        let mut energy = 0.0;
        u.iter().for_each(|x| energy += x * x);
        let norm = (energy / FEATURES as f32).sqrt();
        u.iter_mut().for_each(|x| *x /= norm);
    }
    let arrived = Event::FrameArrived {
        frame: 0,
        random: (random.next() >> 32) as u32,
        context,
        facts: Facts::default(),
    };
    let mut next = None;
    let mut step = |core: &mut Core, event: Event<'_>, next: &mut Option<Effect>| {
        core.handle(Micros(0), event, &mut |effect| {
            see(&effect);
            if !matches!(effect, Effect::Emit { .. }) {
                *next = Some(effect);
            }
        })
        .unwrap();
    };
    step(core, arrived, &mut next);
    while let Some(effect) = next.take() {
        let event = match effect {
            Effect::RunStage { stage } => Event::FeaturesReady {
                features: &features[stage],
            },
            Effect::Decide { view } => Event::VerdictGiven {
                verdict: view.rule(),
                fault: false,
            },
            Effect::Emit { .. } | Effect::Finished { .. } => break,
        };
        step(core, event, &mut next);
    }
}
