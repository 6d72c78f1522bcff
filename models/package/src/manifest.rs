//! `model.toml`: what a package holds and how its parts fit together.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use offramp_proto::Digest;
use serde::{Deserialize, Serialize};

use crate::error::Problem;
use crate::input::Input;
use crate::limits;

/// The format that this crate reads.
pub const FORMAT: i64 = 1;
/// File name of the manifest.
pub const MANIFEST: &str = "model.toml";
/// File name of the heads.
pub const HEADS: &str = "heads.safetensors";
/// File name of the whiteners.
pub const WHITENERS: &str = "whiteners.safetensors";
/// File name of the conformance vectors.
pub const VECTORS: &str = "vectors.safetensors";

/// The manifest of a package. [`Manifest::parse`] gives one in which every
/// value is within [`limits`] and all parts fit together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Format number, [`FORMAT`].
    pub format: i64,
    /// Name: 1 to 64 of `a-z`, `0-9`, `-`, `_` and `.`, a letter or digit first.
    pub name: String,
    /// Version, 1 or more; grows with every release of the package.
    pub version: u32,
    /// What it is, for people.
    #[serde(default)]
    pub description: String,
    /// Licence of the weights.
    pub license: String,
    /// Names of the K classes, K ≥ 2, in the order of the logits.
    pub classes: Vec<String>,
    /// The image that the first stage reads.
    pub input: Input,
    /// Named subsets of the classes: indices in rising order.
    #[serde(default)]
    pub subsets: BTreeMap<String, Vec<u32>>,
    /// How heads specialize best, found by measuring this network; a package may leave it to the device.
    #[serde(default)]
    pub specialization: Option<Specialization>,
    /// How the package was made; free-form.
    #[serde(default)]
    pub provenance: toml::Table,
    /// The stages in the order in which they run.
    pub stages: Vec<Stage>,
    /// The exits: exit `e` sits behind stage `e`.
    pub exits: Vec<Exit>,
    /// Digest of every part but the manifest itself.
    pub digests: BTreeMap<String, Digest>,
}

/// One stage of the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// Its ONNX graph.
    pub file: String,
    /// Multiply-adds of one image in this stage alone, 1 or more.
    pub macs: u64,
    /// Names of the graph's inputs: the image for the first stage, for any other
    /// one input per state tensor of the stage before, in the same order.
    pub inputs: Vec<String>,
    /// Name of the graph's output with the exit's features, `[N, C]`.
    pub features: String,
    /// Names of the tensors handed to the next stage: outputs of the graph, or
    /// inputs of it that are passed on as they are. Empty for the last stage.
    pub state: Vec<String>,
}

/// Settings of the learner that were chosen for a network.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Specialization {
    /// Confidence from which frames leave early, 0 to 1.
    pub threshold: f32,
    /// η0 of the updates, 0 to 4; 0 leaves the heads alone.
    pub rate: f32,
    /// Whether updates run along whitened axes.
    pub whitened: bool,
    /// γ, the share of the correction by class frequencies, 0 to 1.
    pub prior: f32,
    /// Frames after which a frame has faded from the frequencies, 1 to 1e6.
    pub prior_window: f32,
    /// Frames of all classes alike that the frequencies are drawn back to, above 0, at most 1e6.
    pub prior_smoothing: f32,
    /// β, what it costs in confidence where the correction overrules an exit's own class, 0 to 100.
    pub prior_doubt: f32,
    /// Whether the last exit is corrected as well.
    #[serde(default)]
    pub prior_last: bool,
    /// Confidence that the last exit must have to teach, 0 to 1.
    pub gate: f32,
}

/// The exit behind a stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Exit {
    /// The stage that it sits behind.
    pub stage: usize,
    /// C, the number of features.
    pub features: usize,
    /// The temperature that is folded into the head; above 0.
    pub temperature: f32,
    /// Accuracy on the validation split, 0 to 1.
    pub validation_accuracy: f32,
    /// Accuracy on the test split, 0 to 1.
    pub test_accuracy: f32,
}

impl Manifest {
    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// [`Problem::Manifest`] where it is not TOML or lacks a key,
    /// [`Problem::Format`] where it is of another format, [`Problem::Field`]
    /// where a value breaks a rule or the parts do not fit together, and
    /// [`Problem::TooLarge`] and [`Problem::NotText`] for what is no manifest.
    pub fn parse(bytes: &[u8]) -> Result<Manifest, Problem> {
        if bytes.len() > limits::MANIFEST_BYTES {
            let limit = limits::MANIFEST_BYTES;
            return Err(Problem::TooLarge {
                bytes: bytes.len() as u64,
                limit,
            });
        }
        let text = core::str::from_utf8(bytes).map_err(Problem::NotText)?;
        // The format comes first: another format may have other keys.
        let Format { format } = toml::from_str(text).map_err(Problem::Manifest)?;
        if format != FORMAT {
            return Err(Problem::Format { found: format });
        }
        let manifest: Manifest = toml::from_str(text).map_err(Problem::Manifest)?;
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), Problem> {
        rule("name", &self.name, is_package_name(&self.name), || {
            format!(
                "1 to {} of a-z, 0-9, `-`, `_`, `.`, a letter or digit first",
                limits::NAME_BYTES
            )
        })?;
        rule("version", &self.version, self.version >= 1, || "1 or more".into())?;
        text("description", &self.description)?;
        text("license", &self.license)?;
        self.check_classes()?;
        self.input.check()?;
        self.check_stages()?;
        self.check_exits()?;
        self.check_specialization()?;
        self.check_digests()
    }

    fn check_classes(&self) -> Result<(), Problem> {
        count("classes", self.classes.len(), 2, limits::CLASSES)?;
        for (i, class) in self.classes.iter().enumerate() {
            text(&format!("classes[{i}]"), class)?;
        }
        count("subsets", self.subsets.len(), 0, limits::SUBSETS)?;
        for (name, members) in &self.subsets {
            rule("subsets", name, is_package_name(name), || "named like a package".into())?;
            let field = format!("subsets.{name}");
            count(&field, members.len(), 1, self.classes.len())?;
            let rising = members.windows(2).all(|pair| pair[0] < pair[1]);
            rule(&field, &"a list out of order", rising, || {
                "class indices in rising order, each once".into()
            })?;
            let known = members.iter().all(|&class| (class as usize) < self.classes.len());
            rule(&field, &"an index that is no class", known, || {
                format!("indices below {}", self.classes.len())
            })?;
        }
        Ok(())
    }

    fn check_stages(&self) -> Result<(), Problem> {
        count("stages", self.stages.len(), 1, limits::STAGES)?;
        let mut files = BTreeSet::new();
        for (i, stage) in self.stages.iter().enumerate() {
            let at = |key: &str| format!("stages[{i}].{key}");
            file_name(&at("file"), &stage.file)?;
            rule(&at("file"), &stage.file, files.insert(&stage.file), || {
                "used once".into()
            })?;
            rule(
                &at("macs"),
                &stage.macs,
                (1..=limits::MACS).contains(&stage.macs),
                || format!("1 to {}", limits::MACS),
            )?;
            tensor_names(&at("inputs"), &stage.inputs)?;
            tensor_names(&at("state"), &stage.state)?;
            tensor_names(&at("features"), core::slice::from_ref(&stage.features))?;
            let inputs = match i.checked_sub(1).map(|before| &self.stages[before]) {
                None => 1,
                Some(before) => before.state.len(),
            };
            rule(
                &at("inputs"),
                &format_args!("{} names", stage.inputs.len()),
                stage.inputs.len() == inputs,
                || match i {
                    0 => "one name, the image".into(),
                    _ => format!("{inputs} names, one per state tensor of the stage before"),
                },
            )?;
            let last = i + 1 == self.stages.len();
            rule(
                &at("state"),
                &format_args!("{} names", stage.state.len()),
                stage.state.is_empty() == last,
                || {
                    if last {
                        "empty for the last stage"
                    } else {
                        "what the next stage reads"
                    }
                    .into()
                },
            )?;
        }
        Ok(())
    }

    fn check_exits(&self) -> Result<(), Problem> {
        let stages = self.stages.len();
        rule(
            "exits",
            &format_args!("{} exits", self.exits.len()),
            self.exits.len() == stages,
            || format!("{stages} exits, one per stage"),
        )?;
        for (i, exit) in self.exits.iter().enumerate() {
            let at = |key: &str| format!("exits[{i}].{key}");
            rule(&at("stage"), &exit.stage, exit.stage == i, || {
                format!("{i}: exits follow the stages")
            })?;
            count(&at("features"), exit.features, 1, limits::FEATURES)?;
            let weights = exit.features.saturating_mul(self.classes.len());
            rule(&at("features"), &exit.features, weights <= limits::HEAD_WEIGHTS, || {
                format!("such that the head has at most {} weights", limits::HEAD_WEIGHTS)
            })?;
            let t = exit.temperature;
            rule(&at("temperature"), &t, t.is_finite() && t > 0.0, || "above 0".into())?;
            for (key, accuracy) in [
                ("validation_accuracy", exit.validation_accuracy),
                ("test_accuracy", exit.test_accuracy),
            ] {
                rule(&at(key), &accuracy, (0.0..=1.0).contains(&accuracy), || "0 to 1".into())?;
            }
        }
        Ok(())
    }

    fn check_specialization(&self) -> Result<(), Problem> {
        let Some(s) = &self.specialization else {
            return Ok(());
        };
        for (key, value, most) in [
            ("threshold", s.threshold, 1.0),
            ("rate", s.rate, 4.0),
            ("prior", s.prior, 1.0),
            ("gate", s.gate, 1.0),
            ("prior_window", s.prior_window, 1e6),
            ("prior_smoothing", s.prior_smoothing, 1e6),
            ("prior_doubt", s.prior_doubt, 100.0),
        ] {
            let kept = (0.0..=most).contains(&value);
            rule(&format!("specialization.{key}"), &value, kept, || {
                format!("0 to {most}")
            })?;
        }
        Ok(())
    }

    fn check_digests(&self) -> Result<(), Problem> {
        count("digests", self.digests.len(), 1, limits::PARTS)?;
        for name in self.digests.keys() {
            file_name("digests", name)?;
        }
        Ok(())
    }
}

/// As much of a manifest as tells its format.
#[derive(Deserialize)]
struct Format {
    format: i64,
}

pub(crate) fn rule(
    field: &str,
    found: &dyn fmt::Display,
    kept: bool,
    rule: impl FnOnce() -> String,
) -> Result<(), Problem> {
    if kept {
        return Ok(());
    }
    // What was found goes into messages and logs: not at any length.
    let found = found.to_string().chars().take(limits::NAME_BYTES).collect::<String>();
    Err(Problem::Field {
        field: field.to_string(),
        found: format!("`{found}`"),
        rule: rule(),
    })
}

pub(crate) fn count(field: &str, found: usize, min: usize, max: usize) -> Result<(), Problem> {
    rule(field, &found, (min..=max).contains(&found), || {
        format!("{min} to {max}")
    })
}

fn text(field: &str, text: &str) -> Result<(), Problem> {
    let kept = text.len() <= limits::TEXT_BYTES && !text.chars().any(char::is_control);
    rule(field, &text, kept, || {
        format!("at most {} bytes without control characters", limits::TEXT_BYTES)
    })
}

fn tensor_names(field: &str, names: &[String]) -> Result<(), Problem> {
    count(field, names.len(), 0, limits::STATE_TENSORS)?;
    let mut seen = BTreeSet::new();
    for name in names {
        let kept = (1..=limits::NAME_BYTES).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_graphic())
            && seen.insert(name);
        rule(field, name, kept, || {
            format!(
                "tensor names of 1 to {} visible ASCII characters, each once",
                limits::NAME_BYTES
            )
        })?;
    }
    Ok(())
}

/// Whether a name stays inside the package's directory on every system.
pub(crate) fn is_part(name: &str) -> bool {
    (1..=limits::NAME_BYTES).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && !name.starts_with('.')
        && !name.ends_with('.')
        && name != MANIFEST
}

fn file_name(field: &str, name: &str) -> Result<(), Problem> {
    rule(field, &name, is_part(name), || {
        format!(
            "a plain file name: at most {} letters, digits, `-`, `_` and `.`, no dot at either end, not {MANIFEST}",
            limits::NAME_BYTES
        )
    })
}

fn is_package_name(name: &str) -> bool {
    name.len() <= limits::NAME_BYTES
        && name
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.'))
        && name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
}
