//! What is compared: settings of the learner, and where its targets come from.

use offramp_core::{GuardSettings, LearnerSettings, PriorSettings, Settings, Target};

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
    /// What it does with the stream.
    pub method: Method,
    /// Whether this is the poster's rule to the letter, at some learning rate.
    pub is_poster: bool,
}

/// What becomes of a stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Method {
    /// The core sees each frame once as it comes: what runs on devices.
    Online,
    /// As above, and it is measured at the threshold at which the guard arrived.
    Steered,
    /// Before the stream: so many passes over the subset's images with every frame run to the last exit.
    Trained {
        /// Passes.
        passes: usize,
    },
    /// After the stream: heads turned towards the means of what was predicted to be of each class.
    ClassMeans {
        /// Frames that a row of the head counts as.
        weight: f32,
    },
}

/// Text that names no variant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no setting of a variant: use KEY=NUMBER[,…] with {KEYS}")]
pub struct UnknownSetting(String);

/// What [`Variant::parse`] knows.
const KEYS: &str = "rate, whitened (0 or 1), soft, anchor, gate, gradient, prior, window, smoothing, doubt, last (0 or 1), audits, \
     budget, threshold-step, temperature-step, trial-every";

/// Nothing is audited, and nobody watches.
fn alone(settings: Settings) -> Settings {
    Settings {
        audit_rate: 0.0,
        guard: GuardSettings::IDLE,
        ..settings
    }
}

impl Variant {
    fn new(name: &str, about: &str, base: Settings, learner: LearnerSettings) -> Self {
        Self {
            name: name.into(),
            about: about.into(),
            settings: Settings { learner, ..base },
            labels: Labels::Own,
            method: Method::Online,
            is_poster: false,
        }
    }

    /// A variant that differs from `default` in some settings: `prior=0.4,rate=0.1`.
    ///
    /// # Errors
    /// When a setting is not known, or not a number.
    pub fn parse(text: &str, default: Settings) -> Result<Self, UnknownSetting> {
        let mut settings = default;
        for part in text.split(',') {
            let unknown = || UnknownSetting(part.chars().take(80).collect());
            let (key, value) = part.split_once('=').ok_or_else(unknown)?;
            let number: f32 = value.parse().map_err(|_| unknown())?;
            let learner = &mut settings.learner;
            match key.trim() {
                "rate" => learner.rate = number,
                "whitened" => learner.whitened = number != 0.0,
                "soft" => learner.target = Target::Soft { temperature: number },
                "anchor" => learner.anchor = number,
                "gate" => learner.gate = number,
                "gradient" => learner.max_gradient = number,
                "prior" => learner.prior.strength = number,
                "window" => learner.prior.window = number,
                "smoothing" => learner.prior.smoothing = number,
                "doubt" => learner.prior.doubt = number,
                "last" => learner.prior.on_last = number != 0.0,
                "audits" => settings.audit_rate = number,
                "budget" => settings.guard.accuracy_budget = number,
                "threshold-step" => settings.guard.threshold_step = number,
                "temperature-step" => settings.guard.temperature_step = number,
                "trial-every" => settings.guard.trial_every = number as u32,
                _ => return Err(unknown()),
            }
        }
        Ok(Self::new(text, "as given", settings, settings.learner))
    }

    /// All that the bench compares, the package's own settings first.
    pub fn all(default: Settings) -> Vec<Self> {
        let learner = default.learner;
        let own = |name: &str, about: &str, learner| Self::new(name, about, default, learner);
        let mut variants = vec![own("default", "the package's settings", learner)];
        variants.extend(Self::posters(default));
        variants.extend(Self::without_learning(default));
        for strength in [0.2, 0.35, 0.5] {
            let prior = PriorSettings {
                strength,
                ..learner.prior
            };
            let prior_only = LearnerSettings {
                rate: 0.0,
                prior,
                ..learner
            };
            variants.push(own(&format!("prior {strength}"), "class frequencies only", prior_only));
        }
        let learning = |rate| LearnerSettings {
            rate,
            whitened: true,
            prior: LearnerSettings::POSTER.prior,
            ..learner
        };
        for rate in [0.3, 1.0] {
            variants.push(own(
                &format!("learning {rate}"),
                "whitened updates only",
                learning(rate),
            ));
        }
        let mut changed = |name, about, change: &dyn Fn(&mut LearnerSettings)| {
            let mut settings = learning(0.3);
            change(&mut settings);
            variants.push(own(name, about, settings));
        };
        changed(
            "soft targets",
            "learning 0.3, taught the teacher's doubts as well",
            &|l| {
                l.target = Target::Soft { temperature: 0.5 };
            },
        );
        changed("anchored", "learning 0.3, pulled back by 0.001 an update", &|l| {
            l.anchor = 1e-3;
        });
        changed(
            "gated",
            "learning 0.3, taught only by a last exit that is 0.7 sure",
            &|l| l.gate = 0.7,
        );
        changed("bounded", "learning 0.3, gradients no longer than 0.5", &|l| {
            l.max_gradient = 0.5;
        });
        let mut other = learner;
        other.prior.on_last = !learner.prior.on_last;
        variants.push(if other.prior.on_last {
            own("prior on last", "default, the last exit corrected as well", other)
        } else {
            own("prior not on last", "default, the last exit left as it is", other)
        });
        for share in [0.1, 0.2, 0.4] {
            let about = "default, this share of its targets replaced at random";
            variants.push(Self {
                labels: Labels::Flipped(share),
                ..own(&format!("noise {share}"), about, learner)
            });
        }
        variants.push(Self {
            labels: Labels::True,
            ..own("oracle", "default, with the truth as the target", learner)
        });
        let ungated = LearnerSettings {
            gate: 0.0,
            ..learning(0.3)
        };
        let about = "heads trained on the stream's images with their labels, offline";
        variants.push(Self {
            labels: Labels::True,
            method: Method::Trained { passes: 10 },
            ..own("supervised", about, ungated)
        });
        variants
    }

    /// The poster to the letter, alone as it was.
    fn posters(default: Settings) -> impl Iterator<Item = Self> {
        [0.01, 0.03, 0.1, 0.3, 1.0].into_iter().map(move |rate| {
            let poster = LearnerSettings {
                rate,
                ..LearnerSettings::POSTER
            };
            Self {
                is_poster: true,
                ..Self::new(
                    &format!("poster {rate}"),
                    "the poster to the letter",
                    alone(default),
                    poster,
                )
            }
        })
    }

    /// What can be had with the heads that the package comes with, or without gradients.
    fn without_learning(default: Settings) -> [Self; 3] {
        let frozen = LearnerSettings {
            enabled: false,
            ..default.learner
        };
        // Ten times as many audits as the default has: its few would say too little of 3,000 frames.
        let audited = |guard| Settings {
            audit_rate: 0.05,
            guard,
            ..default
        };
        let threshold_only = GuardSettings {
            threshold_step: 0.02,
            ..GuardSettings::IDLE
        };
        let temperatures_only = GuardSettings {
            temperature_step: 0.02,
            ..GuardSettings::IDLE
        };
        let steered = "frozen heads, the threshold steered by audits of every 20th frame";
        let recalibrated = "frozen heads, recalibrated on audits of every 20th frame";
        let means = "heads turned towards the means of what was predicted";
        [
            Self {
                method: Method::Steered,
                ..Self::new("threshold", steered, audited(threshold_only), frozen)
            },
            Self::new("temperatures", recalibrated, audited(temperatures_only), frozen),
            Self {
                method: Method::ClassMeans { weight: 100.0 },
                ..Self::new("class means", means, alone(default), frozen)
            },
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variant_is_read_from_its_settings() {
        let variant = Variant::parse("prior=0.4,rate=0.1,audits=0.02", Settings::default()).unwrap();
        assert_eq!(variant.settings.learner.prior.strength, 0.4);
        assert_eq!(
            (variant.settings.learner.rate, variant.settings.audit_rate),
            (0.1, 0.02)
        );
        for bad in ["", "prior", "prior=x", "priro=0.4", "prior=0.4,,"] {
            assert!(Variant::parse(bad, Settings::default()).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_unique_and_the_packages_own_settings_come_first() {
        let variants = Variant::all(Settings::default());
        assert_eq!(variants[0].settings, Settings::default());
        let names: std::collections::BTreeSet<_> = variants.iter().map(|v| &v.name).collect();
        assert_eq!(names.len(), variants.len());
        assert!(variants.iter().all(|v| v.settings.is_valid()));
    }
}
