//! The protocol: for every variant, subset and seed, a stream, and what it changed on images that it did
//! not show.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use offramp_core::{Core, GuardSettings, LearnerSettings, Network, NetworkError, Settings, SplitMix64};

use crate::curve::{Curve, Opinions, Point, exit_costs};
use crate::features::Features;
use crate::means::ClassMeans;
use crate::replay::{Labels, Rule, Tally, replay};
use crate::stream::{Order, shuffled};
use crate::variant::{Method, Variant};

/// Costs, as shares of the whole network's, at which accuracies are compared. Fixed beforehand.
pub const COSTS: [f64; 3] = [0.3, 0.4, 0.6];
/// Costs whose frozen accuracy is the target at which costs are compared. Fixed beforehand.
pub const TARGET_COSTS: [f64; 3] = [0.4, 0.5, 0.6];

/// What is studied.
#[derive(Clone)]
pub struct Study<'a> {
    /// The package's heads, whiteners and costs.
    pub network: Network,
    /// Images that streams are drawn from.
    pub stream: &'a Features,
    /// Images on which everything is measured.
    pub test: &'a Features,
    /// Named subsets of the classes.
    pub subsets: Vec<(String, Vec<u16>)>,
    /// How they are shown.
    pub order: Order,
    /// Streams per subset.
    pub seeds: u64,
    /// Frames of a stream.
    pub frames: usize,
    /// Threshold at which frames leave while the stream runs, and the deployed one that is reported.
    pub threshold: f32,
    /// Frames after which the subset is measured on the way.
    pub checkpoints: Vec<usize>,
}

/// What one stream did under one variant.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Index of the variant.
    pub variant: usize,
    /// Index of the subset.
    pub subset: usize,
    /// Seed.
    pub seed: u64,
    /// The stream itself.
    pub tally: Tally,
    /// Learning and audits, per frame, as a share of the whole network.
    pub upkeep: f64,
    /// What the core says of its saving, where it has audits.
    pub saving: Option<Saving>,
    /// On the subset's test images.
    pub on_subset: Change,
    /// On all test images.
    pub on_all: Change,
    /// Subset accuracy gained at equal cost (mean over [`COSTS`]) after so many frames.
    pub on_the_way: Vec<f64>,
}

/// Multiply-adds that learning saves, as a share of those that frozen heads would have taken at the same accuracy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Saving {
    /// By the core's own audits, without labels.
    pub told: f64,
    /// On test images, with labels.
    pub found: f64,
}

/// Before and after.
#[derive(Clone, Debug)]
pub struct Change {
    /// Accuracy after less before at each of [`COSTS`].
    pub gain: [f64; 3],
    /// Cost before over cost after, at the accuracy that frozen heads reach at each of [`TARGET_COSTS`].
    pub speedup: [f64; 3],
    /// At the deployed threshold.
    pub fixed: [Point; 2],
    /// Frozen and adapted curve, upkeep included.
    pub curves: [Curve; 2],
    /// Share of images whose prediction differs from the last exit's, at the deployed threshold.
    pub disagreement: [f64; 2],
}

impl Change {
    fn between(frozen: &Opinions, adapted: &Opinions, costs: &[f64], upkeep: f64, thresholds: [f32; 2]) -> Self {
        let before = frozen.curve(costs);
        let after = adapted.curve(costs).dearer(upkeep);
        let speedup = TARGET_COSTS.map(|cost| {
            let target = before.accuracy_at(cost);
            let reference = before.cost_at(target).unwrap_or(cost);
            // Where it is never reached, the most that the curve reaches is what it costs.
            let dearest = after.0.last().map_or(1.0, |p| p.cost);
            reference / after.cost_at(target).unwrap_or(dearest)
        });
        let mut fixed = [frozen.at(thresholds[0], costs), adapted.at(thresholds[1], costs)];
        fixed[1].cost += upkeep;
        Self {
            gain: gains(&before, &after),
            speedup,
            fixed,
            curves: [before, after],
            disagreement: [frozen.disagreement(thresholds[0]), adapted.disagreement(thresholds[1])],
        }
    }

    /// Mean of the gains at equal cost.
    pub fn mean_gain(&self) -> f64 {
        mean(&self.gain)
    }

    /// Mean of the speed-ups at equal accuracy.
    pub fn mean_speedup(&self) -> f64 {
        mean(&self.speedup)
    }
}

impl Study<'_> {
    /// A core with a variant's settings and nothing learned.
    ///
    /// # Errors
    /// When network and settings do not go together.
    pub fn core(&self, settings: Settings) -> Result<Core, NetworkError> {
        Core::new(self.network.clone(), settings)
    }

    /// A core with a variant's settings at the deployed threshold.
    pub(crate) fn deployed(&self, settings: Settings) -> Result<Core, NetworkError> {
        self.core(Settings {
            threshold: self.threshold,
            ..settings
        })
    }

    /// Multiply-adds of learning and audits per frame, as a share of the whole network's.
    pub(crate) fn upkeep(&self, core: &Core, tally: &Tally) -> f64 {
        (tally.learning_macs + tally.audit_macs) as f64 / (tally.frames.max(1) * core.full_macs()) as f64
    }

    /// Runs every variant on every subset and seed, on all cores of the machine. `progress` is called after
    /// each run.
    ///
    /// # Errors
    /// When network and settings do not go together.
    pub fn run(&self, variants: &[Variant], progress: impl Fn() + Sync) -> Result<Vec<Outcome>, NetworkError> {
        let frozen = self.core(frozen_settings())?;
        let costs = exit_costs(&frozen);
        let all: Vec<usize> = (0..self.test.len()).collect();
        let frozen_all = Opinions::of(&frozen, self.test, &all);
        let cases: Vec<(usize, usize, u64)> = (0..variants.len())
            .flat_map(|v| (0..self.subsets.len()).flat_map(move |s| (0..self.seeds).map(move |seed| (v, s, seed))))
            .collect();
        let next = AtomicUsize::new(0);
        let outcomes = Mutex::new(Vec::with_capacity(cases.len()));
        let work = || -> Result<(), NetworkError> {
            while let Some(&(variant, subset, seed)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                let outcome = self.case(&frozen, &frozen_all, &costs, variants, (variant, subset, seed))?;
                outcomes
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner)
                    .push(outcome);
                progress();
            }
            Ok(())
        };
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            workers
                .into_iter()
                .try_for_each(|worker| worker.join().expect("a worker does not panic"))
        })?;
        let mut outcomes = outcomes.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        outcomes.sort_by_key(|o| (o.variant, o.subset, o.seed));
        Ok(outcomes)
    }

    fn case(
        &self,
        frozen: &Core,
        frozen_all: &Opinions,
        costs: &[f64],
        variants: &[Variant],
        (index, subset, seed): (usize, usize, u64),
    ) -> Result<Outcome, NetworkError> {
        let variant = &variants[index];
        let classes = &self.subsets[subset].1;
        let mut random = SplitMix64(seed << 32 | subset as u64);
        let stream = self.order.stream(self.stream, classes, self.frames, &mut random);
        let members = self.test.of_classes(classes);
        let mut core = self.deployed(variant.settings)?;
        if let Method::Trained { passes } = variant.method {
            let images = self.stream.of_classes(classes).len();
            let lessons = shuffled(self.stream, classes, images * passes, &mut random);
            replay(
                &mut core,
                self.stream,
                &lessons,
                Rule::Never,
                Labels::True,
                &mut random,
                |_, _, _| (),
            );
            pause(&mut core)?;
        }
        let frozen_members = Opinions::of(frozen, self.test, &members);
        let before = frozen_members.curve(costs);
        let mut on_the_way = Vec::new();
        let mut means = ClassMeans::new(&self.network);
        let tally = replay(
            &mut core,
            self.stream,
            &stream,
            Rule::BuiltIn,
            variant.labels,
            &mut random,
            |n, prediction, core| {
                if matches!(variant.method, Method::ClassMeans { .. }) {
                    means.add(self.stream, stream[n - 1].image, prediction);
                }
                if self.checkpoints.contains(&n) {
                    let after = Opinions::of(core, self.test, &members).curve(costs);
                    on_the_way.push(mean(&gains(&before, &after)));
                }
            },
        );
        let upkeep = self.upkeep(&core, &tally);
        let mut thresholds = [self.threshold; 2];
        match variant.method {
            Method::Online | Method::Trained { .. } => {}
            Method::Steered => thresholds[1] = core.threshold(),
            Method::ClassMeans { weight } => {
                core = Core::new(means.network(weight), frozen_settings())?;
            }
        }
        let all: Vec<usize> = (0..self.test.len()).collect();
        let adapted_members = Opinions::of(&core, self.test, &members);
        let adapted_all = Opinions::of(&core, self.test, &all);
        let saving = tally.control.map(|[learned, frozen]| {
            let target = before.accuracy_at(f64::from(frozen));
            let after = adapted_members.curve(costs).cost_at(target);
            Saving {
                told: 1.0 - f64::from(learned / frozen),
                found: 1.0 - after.unwrap_or(1.0) / before.cost_at(target).unwrap_or(1.0),
            }
        });
        Ok(Outcome {
            variant: index,
            subset,
            seed,
            tally,
            upkeep,
            saving,
            on_subset: Change::between(&frozen_members, &adapted_members, costs, upkeep, thresholds),
            on_all: Change::between(frozen_all, &adapted_all, costs, upkeep, thresholds),
            on_the_way,
        })
    }
}

/// Accuracy gained at each of [`COSTS`].
pub(crate) fn gains(before: &Curve, after: &Curve) -> [f64; 3] {
    COSTS.map(|cost| after.accuracy_at(cost) - before.accuracy_at(cost))
}

pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Nothing is learned, nothing audited.
pub fn frozen_settings() -> Settings {
    Settings {
        audit_rate: 0.0,
        learner: LearnerSettings {
            enabled: false,
            ..LearnerSettings::default()
        },
        guard: GuardSettings::IDLE,
        ..Settings::default()
    }
}

/// Keeps what was learned, and learns no more.
fn pause(core: &mut Core) -> Result<(), NetworkError> {
    let mut settings = *core.settings();
    settings.learner.rate = 0.0;
    core.set_settings(settings)
}
