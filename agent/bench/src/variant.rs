//! What is compared: settings of the learner, and where its targets come from.

use offramp_core::{LearnerSettings, PriorSettings, Settings, Target};

use crate::replay::Labels;

/// A way to specialize.
#[derive(Clone, Debug, PartialEq)]
pub struct Variant {
    /// Short, for tables and files.
    pub name: String,
    /// One line, for people.
    pub about: String,
    /// The core's settings.
    pub settings: Settings,
    /// Where the targets come from.
    pub labels: Labels,
    /// Passes over the stream's images with every frame run to the last exit, before anything is measured:
    /// training, where the other variants see each frame once as it comes.
    pub offline_passes: usize,
    /// Whether this is the poster's rule to the letter, at some learning rate.
    pub is_poster: bool,
}

/// No prior.
const NO_PRIOR: PriorSettings = PriorSettings {
    strength: 0.0,
    window: 500.0,
    smoothing: 100.0,
    doubt: 2.0,
    on_last: false,
};

impl Variant {
    fn new(name: &str, about: &str, base: Settings, learner: LearnerSettings) -> Self {
        Self {
            name: name.into(),
            about: about.into(),
            settings: Settings { learner, ..base },
            labels: Labels::Own,
            offline_passes: 0,
            is_poster: false,
        }
    }

    /// All that the bench compares, the package's own settings first.
    pub fn all(default: Settings) -> Vec<Self> {
        let learner = default.learner;
        let own = |name: &str, about: &str, learner| Self::new(name, about, default, learner);
        let prior_only = |strength| LearnerSettings {
            rate: 0.0,
            prior: PriorSettings {
                strength,
                ..learner.prior
            },
            ..learner
        };
        let learning_only = |rate| LearnerSettings {
            rate,
            whitened: true,
            prior: NO_PRIOR,
            ..learner
        };
        let mut variants = vec![own("default", "the package's settings", learner)];
        for rate in [0.01, 0.03, 0.1, 0.3, 1.0] {
            let poster = LearnerSettings {
                rate,
                ..LearnerSettings::POSTER
            };
            variants.push(Self {
                is_poster: true,
                ..own(&format!("poster {rate}"), "the poster to the letter", poster)
            });
        }
        for strength in [0.2, 0.35, 0.5] {
            variants.push(own(
                &format!("prior {strength}"),
                "class frequencies only",
                prior_only(strength),
            ));
        }
        for rate in [0.3, 1.0] {
            variants.push(own(
                &format!("learning {rate}"),
                "whitened updates only",
                learning_only(rate),
            ));
        }
        let soft = LearnerSettings {
            target: Target::Soft { temperature: 0.5 },
            ..learner
        };
        variants.push(own(
            "soft targets",
            "default, taught the teacher's doubts as well",
            soft,
        ));
        let anchored = LearnerSettings {
            anchor: 1e-3,
            ..learner
        };
        variants.push(own("anchored", "default, pulled back by 0.001 an update", anchored));
        let on_last = LearnerSettings {
            prior: PriorSettings {
                on_last: true,
                ..learner.prior
            },
            ..learner
        };
        variants.push(own(
            "prior on last",
            "default, the last exit corrected as well",
            on_last,
        ));
        for share in [0.1, 0.2, 0.4] {
            let flipped = own(
                &format!("noise {share}"),
                "default, this share of its targets replaced at random",
                learner,
            );
            variants.push(Self {
                labels: Labels::Flipped(share),
                ..flipped
            });
        }
        variants.push(Self {
            labels: Labels::True,
            ..own("oracle", "default, with the truth as the target", learner)
        });
        variants.push(Self {
            labels: Labels::True,
            offline_passes: 10,
            ..own(
                "supervised",
                "heads trained on the stream's images with their labels, offline",
                LearnerSettings {
                    gate: 0.0,
                    ..learning_only(0.3)
                },
            )
        });
        variants
    }
}
