//! What one number over subsets does not tell: streams without a subset, very long ones, and changes.

use std::time::{Duration, Instant};

use offramp_core::{Core, GuardSettings, NetworkError, Prediction, Settings, SplitMix64};

use crate::curve::{Opinions, exit_costs};
use crate::replay::{Labels, Rule, Tally, replay};
use crate::stream::{Shown, shuffled};
use crate::study::{Study, frozen_settings, gains, mean};

/// A stream of all classes, which gives nothing to specialize on: changes at the deployed threshold, on all
/// test images.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Uniform {
    /// Accuracy after less before.
    pub accuracy_delta: f64,
    /// Cost after over cost before, less 1; upkeep included.
    pub cost_delta: f64,
}

/// A → B → A, with a context for each: right answers in each third of the stream, less those of frozen heads.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Change {
    /// In A, in B, and in A again, with one context for all.
    pub one_context: [f64; 3],
    /// The same with a context for each.
    pub own_contexts: [f64; 3],
    /// Share of A's gain at equal cost that is there 50 frames after its return, with a context for each.
    pub regained: f64,
}

/// 20,000 frames of one subset.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Long {
    /// Subset accuracy gained at equal cost after 5,000 frames and after all.
    pub gain: [f64; 2],
    /// The threshold at which the guard arrived.
    pub threshold: f64,
    /// Accuracy there, less that of running every frame to the last exit: what the guard was told to bound.
    pub against_last_exit: f64,
    /// The same at the threshold that was set, with frozen heads.
    pub frozen_against_last_exit: f64,
}

/// A learner whose every target is wrong, always in the same way: right answers in the stream, less those of
/// frozen heads.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Poisoned {
    /// Frames of the stream.
    pub frames: usize,
    /// With the guard: over the whole stream, and over its last quarter.
    pub guarded: [f64; 2],
    /// The same without a guard.
    pub unguarded: [f64; 2],
    /// Times that the guard took heads back.
    pub rollbacks: f64,
    /// Share of the streams at whose end learning was paused.
    pub paused: f64,
}

impl Study<'_> {
    /// See [`Uniform`]; the mean over seeds.
    ///
    /// # Errors
    /// When network and settings do not go together.
    pub fn uniform(&self, settings: Settings) -> Result<Uniform, NetworkError> {
        let frozen = self.core(frozen_settings())?;
        let costs = exit_costs(&frozen);
        let all: Vec<usize> = (0..self.test.len()).collect();
        let before = Opinions::of(&frozen, self.test, &all).at(self.threshold, &costs);
        let classes: Vec<u16> = (0..self.test.classes as u16).collect();
        let mut sum = Uniform::default();
        for seed in 0..self.seeds {
            let mut random = SplitMix64(seed ^ 0x5eed);
            let stream = shuffled(self.stream, &classes, self.frames, &mut random);
            let mut core = self.deployed(settings)?;
            let tally = self.show(&mut core, &stream, &mut random);
            let after = Opinions::of(&core, self.test, &all).at(self.threshold, &costs);
            let upkeep = self.upkeep(&core, &tally);
            sum.accuracy_delta += (after.accuracy - before.accuracy) / self.seeds as f64;
            sum.cost_delta += ((after.cost + upkeep) / before.cost - 1.0) / self.seeds as f64;
        }
        Ok(sum)
    }

    /// See [`Long`]; the mean over subsets.
    ///
    /// # Errors
    /// When network and settings do not go together.
    pub fn long(&self, settings: Settings, subsets: &[usize]) -> Result<Long, NetworkError> {
        const FRAMES: [usize; 2] = [5_000, 20_000];
        let frozen = self.core(frozen_settings())?;
        let costs = exit_costs(&frozen);
        let mut sum = Long::default();
        let n = subsets.len() as f64;
        for &subset in subsets {
            let classes = &self.subsets[subset].1;
            let members = self.test.of_classes(classes);
            let before = Opinions::of(&frozen, self.test, &members);
            let curve = before.curve(&costs);
            let mut random = SplitMix64(subset as u64);
            let stream = shuffled(self.stream, classes, FRAMES[1], &mut random);
            let mut core = self.deployed(settings)?;
            let each = |at: usize, _: &Prediction, core: &Core| {
                if let Some(at) = FRAMES.iter().position(|frames| *frames == at) {
                    let after = Opinions::of(core, self.test, &members).curve(&costs);
                    sum.gain[at] += mean(&gains(&curve, &after)) / n;
                }
            };
            let (rule, labels) = (Rule::BuiltIn, Labels::Own);
            replay(&mut core, self.stream, &stream, rule, labels, &mut random, each);
            let after = Opinions::of(&core, self.test, &members);
            let lost = |opinions: &Opinions, threshold: f32| {
                opinions.at(threshold, &costs).accuracy - opinions.at(f32::INFINITY, &costs).accuracy
            };
            sum.threshold += f64::from(core.threshold()) / n;
            sum.against_last_exit += lost(&after, core.threshold()) / n;
            sum.frozen_against_last_exit += lost(&before, self.threshold) / n;
        }
        Ok(sum)
    }

    /// See [`Poisoned`]; the mean over subsets.
    ///
    /// # Errors
    /// When network and settings do not go together.
    pub fn poisoned(&self, settings: Settings, subsets: &[usize]) -> Result<Poisoned, NetworkError> {
        const FRAMES: usize = 40_000;
        let mut sum = Poisoned {
            frames: FRAMES,
            ..Poisoned::default()
        };
        let n = subsets.len() as f64;
        for &subset in subsets {
            let stream = shuffled(
                self.stream,
                &self.subsets[subset].1,
                FRAMES,
                &mut SplitMix64(subset as u64),
            );
            let parts = [&stream[..FRAMES * 3 / 4], &stream[FRAMES * 3 / 4..]];
            let accuracies = |core: &mut Core, labels: Labels| {
                let mut random = SplitMix64(subset as u64 ^ 0xbad);
                let [most, end] = parts.map(|part| {
                    let tally = replay(
                        core,
                        self.stream,
                        part,
                        Rule::BuiltIn,
                        labels,
                        &mut random,
                        |_, _, _| (),
                    );
                    (tally.accuracy(), tally.rollbacks)
                });
                ([0.75 * most.0 + 0.25 * end.0, end.0], most.1 + end.1)
            };
            let (frozen, _) = accuracies(&mut self.deployed(frozen_settings())?, Labels::Own);
            let mut core = self.deployed(settings)?;
            let (guarded, rollbacks) = accuracies(&mut core, Labels::Swapped);
            let idle = Settings {
                guard: GuardSettings::IDLE,
                ..settings
            };
            let (unguarded, _) = accuracies(&mut self.deployed(idle)?, Labels::Swapped);
            for part in 0..2 {
                sum.guarded[part] += (guarded[part] - frozen[part]) / n;
                sum.unguarded[part] += (unguarded[part] - frozen[part]) / n;
            }
            sum.rollbacks += rollbacks as f64 / n;
            sum.paused += f64::from(u8::from(core.is_paused())) / n;
        }
        Ok(sum)
    }

    /// See [`Change`]; the mean over pairs of subsets that follow each other.
    ///
    /// # Errors
    /// When network and settings do not go together.
    pub fn change(&self, settings: Settings, subsets: &[usize]) -> Result<Change, NetworkError> {
        const BACK: usize = 50;
        let costs = exit_costs(&self.core(frozen_settings())?);
        let n = subsets.len() as f64;
        let mut sum = Change::default();
        for (i, &a) in subsets.iter().enumerate() {
            let b = subsets[(i + 1) % subsets.len()];
            let mut random = SplitMix64(a as u64 ^ 0xaba);
            let parts = [a, b, a].map(|s| shuffled(self.stream, &self.subsets[s].1, self.frames, &mut random));
            let members = self.test.of_classes(&self.subsets[a].1);
            let frozen = self.core(frozen_settings())?;
            let before = Opinions::of(&frozen, self.test, &members).curve(&costs);
            let gain = |core: &Core| {
                let after = Opinions::of(core, self.test, &members).curve(&costs);
                mean(&gains(&before, &after))
            };
            let reference = self.segments(&mut self.deployed(frozen_settings())?, &parts, [0; 3], |_, _, _| ())?;
            let one = self.segments(&mut self.deployed(settings)?, &parts, [0; 3], |_, _, _| ())?;
            let (mut left, mut back) = (0.0, 0.0);
            let own = self.segments(&mut self.deployed(settings)?, &parts, [1, 2, 1], |part, frame, core| {
                if part == 0 && frame == self.frames {
                    left = gain(core);
                } else if part == 2 && frame == BACK {
                    back = gain(core);
                }
            })?;
            for part in 0..3 {
                sum.one_context[part] += (one[part] - reference[part]) / n;
                sum.own_contexts[part] += (own[part] - reference[part]) / n;
            }
            // Where nothing was gained, nothing was to be regained.
            sum.regained += if left > 0.0 { back / left } else { 1.0 } / n;
        }
        Ok(sum)
    }

    /// Accuracy in each part of a stream.
    fn segments(
        &self,
        core: &mut Core,
        parts: &[Vec<Shown>; 3],
        contexts: [u64; 3],
        mut each: impl FnMut(usize, usize, &Core),
    ) -> Result<[f64; 3], NetworkError> {
        let mut accuracy = [0.0; 3];
        for (part, stream) in parts.iter().enumerate() {
            let context = contexts[part];
            let stream: Vec<Shown> = stream.iter().map(|shown| Shown { context, ..*shown }).collect();
            let mut random = SplitMix64(part as u64);
            let tell = |n: usize, _: &Prediction, core: &Core| each(part, n, core);
            accuracy[part] = replay(
                core,
                self.stream,
                &stream,
                Rule::BuiltIn,
                Labels::Own,
                &mut random,
                tell,
            )
            .accuracy();
        }
        Ok(accuracy)
    }

    /// Mean time per frame that learning and guard take on a subset's stream.
    ///
    /// # Errors
    /// When network and settings do not go together.
    pub fn learning_time(&self, settings: Settings) -> Result<Duration, NetworkError> {
        let mut random = SplitMix64(3);
        let stream = shuffled(self.stream, &self.subsets[0].1, self.frames, &mut random);
        let mut core = self.deployed(settings)?;
        let mut spent = Duration::ZERO;
        for shown in &stream {
            crate::replay::frame(&mut core, self.stream, *shown, Rule::BuiltIn, &mut random);
            let start = Instant::now();
            core.learn();
            spent += start.elapsed();
        }
        Ok(spent / stream.len().max(1) as u32)
    }

    fn show(&self, core: &mut Core, stream: &[Shown], random: &mut SplitMix64) -> Tally {
        replay(
            core,
            self.stream,
            stream,
            Rule::BuiltIn,
            Labels::Own,
            random,
            |_, _, _| (),
        )
    }
}
