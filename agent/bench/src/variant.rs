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

/// Text that names no variant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no setting of a variant: use KEY=NUMBER[,…] with {KEYS}")]
pub struct UnknownSetting(String);

/// What [`Variant::parse`] knows.
const KEYS: &str =
    "rate, whitened (0 or 1), soft, anchor, gate, prior, window, smoothing, doubt, last (0 or 1), audits";

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
                "prior" => learner.prior.strength = number,
                "window" => learner.prior.window = number,
                "smoothing" => learner.prior.smoothing = number,
                "doubt" => learner.prior.doubt = number,
                "last" => learner.prior.on_last = number != 0.0,
                "audits" => settings.audit_rate = number,
                _ => return Err(unknown()),
            }
        }
        Ok(Self::new(text, "as given", settings, settings.learner))
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
            ..learning_only(0.3)
        };
        variants.push(own(
            "soft targets",
            "learning 0.3, taught the teacher's doubts as well",
            soft,
        ));
        let anchored = LearnerSettings {
            anchor: 1e-3,
            ..learning_only(0.3)
        };
        variants.push(own(
            "anchored",
            "learning 0.3, pulled back by 0.001 an update",
            anchored,
        ));
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
