//! The same trace gives the same bits, whatever the machine and however the compiler was told to optimise.
//!
//! What is frozen here is asked of debug and release, on x86-64 and on aarch64 (`cargo xtask portable`).

use std::fmt::Write as _;

use offramp_core::{Core, Effect, Settings, SplitMix64, Target};

use crate::drive::{frame, network};

/// FNV-1a.
struct Hash(u64);

impl Hash {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

/// Digests of verdicts, heads and summaries after frames in changing contexts, with everything on.
fn digests(target: Target) -> [String; 3] {
    let mut random = SplitMix64(7);
    let mut settings = Settings {
        audit_rate: 0.1,
        threshold: 0.4,
        contexts: 2,
        ..Settings::default()
    };
    let learner = &mut settings.learner;
    (learner.rate, learner.gate, learner.anchor, learner.target) = (0.2, 0.1, 1e-4, target);
    // One exit's whitener is known, the other's is measured.
    learner.measure = 200;
    settings.guard.trial_every = 16;
    let mut core = Core::new(network(&mut random, 1), settings).unwrap();
    let [mut verdicts, mut heads, mut summaries] = [Hash::new(), Hash::new(), Hash::new()];
    let mut text = String::new();
    let mut trials = 0;
    for n in 1..=4_000 {
        // The third context takes the place of one of the others now and then.
        let context = if n % 1_000 == 0 { 2 } else { n / 700 % 2 };
        frame(&mut core, &mut random, context, |effect| {
            // A float's shortest decimal stands for its bits.
            text.clear();
            match effect {
                // What it tells stands in the effects before it; it was frozen when it told nothing.
                Effect::Finished { .. } => text.push_str("Finished"),
                Effect::RunStage { .. } | Effect::Decide { .. } | Effect::Emit { .. } => {
                    write!(text, "{effect:?}").unwrap();
                }
            }
            verdicts.add(text.as_bytes());
        });
        core.learn();
        if n % 400 == 0 {
            let report = core.close_window();
            trials += report.guard.promotions + report.learner.rollbacks;
            text.clear();
            write!(text, "{report:?}").unwrap();
            summaries.add(text.as_bytes());
            heads.add(&core.checkpoint());
        }
    }
    assert!(trials > 3, "the guard must have something to do");
    [verdicts, heads, summaries].map(|hash| format!("{:016x}", hash.0))
}

#[test]
fn the_same_trace_gives_the_same_bits_everywhere() {
    assert_eq!(
        digests(Target::Hard),
        ["cadd71cef39726f7", "0055d3f40669d9d8", "e803e0aa2668ba85"]
    );
    assert_eq!(
        digests(Target::Soft { temperature: 0.5 }),
        ["6e06d71419d53211", "e14afbb05944320c", "c8c195d7c58a4b3d"]
    );
}
