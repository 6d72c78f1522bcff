//! The messages. Field names on the wire are the names here; `offramp.cddl` is their contract.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::{BootId, DeviceId, Digest, Generation, Message, PublicKey, Sequence};

/// Bytes of an artifact in one chunk, the last one excepted.
pub const CHUNK: usize = 32 * 1024;
/// Most chunks that are asked for at once.
pub const MAX_CHUNKS: u64 = 16;
/// Largest artifact in bytes: a model package of 120 million weights and what goes with it.
pub const MAX_ARTIFACT: u64 = 512 * 1024 * 1024;
/// Largest piece of a trace in bytes.
pub const MAX_TRACE: usize = 48 * 1024;

/// Most keys that a device trusts.
pub const MAX_KEYS: usize = 8;
/// Largest request for a certificate, and largest certificate, in bytes of PEM text.
pub const MAX_CERTIFICATE: usize = 8 * 1024;

const MAX_EXITS: usize = 64;
const MAX_CLASSES: usize = 1024;
const MAX_TEXT: usize = 512;
const MAX_MAP: usize = 64;
const MAX_CAMERAS: usize = 64;

fn text(value: &str) -> bool {
    value.len() <= MAX_TEXT
}

fn check(all: &[(bool, &'static str)]) -> Result<(), &'static str> {
    all.iter().find(|(ok, _)| !ok).map_or(Ok(()), |(_, field)| Err(field))
}

/// What a device runs, told when its agent starts. Retained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Birth {
    /// The device.
    pub device: DeviceId,
    /// This run of its agent.
    pub boot: BootId,
    /// When the agent started, in milliseconds since 1970.
    pub started_at: u64,
    /// Version of the agent, e.g. `0.1.0`.
    pub agent: String,
    /// The model that it runs.
    pub model: ModelFacts,
    /// What this build can do and what board it is on, e.g. `tract`, `avx512`, `cores-6`, `memory-8GiB`.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// How often this run has told of its birth, this time included: whoever hears one of them twice can tell. Zero
    /// where it does not count; older agents do not.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub told: u64,
}

/// The facts of a model that the fleet needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelFacts {
    /// Name of the package.
    pub name: String,
    /// Version of the package.
    pub version: u64,
    /// Digest of its manifest.
    pub digest: Digest,
    /// Names of the classes, in label order.
    pub classes: Vec<String>,
    /// Multiply-adds of each stage.
    pub stage_macs: Vec<u64>,
}

/// Left with the broker as the will: it is published when the connection breaks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Death {
    /// The device.
    pub device: DeviceId,
    /// The run that ended; a receiver ignores it when a newer run has been born.
    pub boot: BootId,
}

/// A stretch of time in milliseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// First millisecond.
    pub start: u64,
    /// Millisecond after the last.
    pub end: u64,
}

/// Use of one exit in a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitUse {
    /// Frames whose prediction was taken here.
    pub taken: u64,
}

/// What a window's frames cost, audits included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Multiply-adds spent on stages, heads and learning.
    pub macs: u64,
    /// Of these, multiply-adds spent by audits after the prediction was out.
    pub audit_macs: u64,
    /// Multiply-adds that the whole network would have taken on the same frames.
    pub full_macs: u64,
    /// Microseconds spent in stages.
    pub stage_us: u64,
    /// Microseconds spent beside the stages: heads, policy, learning.
    pub overhead_us: u64,
}

/// Audits of a window: frames that left early and went on to the last exit to see whether it agrees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Audits {
    /// Audits done.
    pub run: u64,
    /// Audits in which the last exit named another class.
    pub disagreements: u64,
    /// Upper bound of the share of frames whose prediction differs from the last exit's, one-sided 95 %, `0..=1`,
    /// over the audits of this agent's run so far.
    pub bound: f32,
}

/// The learner at the end of a window.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LearnerReport {
    /// Updates of a head in the window.
    pub updates: u64,
    /// Frames in the window that could have taught but were refused by a gate.
    pub gated: u64,
    /// Times that heads were put back, in the window.
    pub rollbacks: u64,
    /// Per exit, the last included: ‖W − W⁰‖ / ‖W⁰‖.
    pub distance: Vec<f32>,
}

/// The guard of the learner at the end of a window, in the context then in force.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GuardReport {
    /// Confidence from which a frame may leave early, `0..=1.01`.
    pub threshold: f32,
    /// Per early exit what its logits are divided by.
    pub temperatures: Vec<f32>,
    /// Accuracy given up against the last exit, in expectation over the latest audits, `-1..=1`; negative
    /// where the exits do better.
    pub loss: f32,
    /// Upper bound of it, one-sided 95 %.
    pub loss_bound: f32,
    /// Audits that `loss` rests on.
    pub audits: u64,
    /// Times in the window that heads were found good and kept as those to go back to.
    pub promotions: u64,
    /// Whether learning has stopped after repeated harm.
    pub paused: bool,
    /// Contexts that are remembered.
    pub contexts: u64,
    /// Bytes that heads, canaries and all else that is learned take.
    pub bytes: u64,
}

/// What some heads would have done with audited frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Arm {
    /// Multiply-adds up to where the frames would have left, as a share of the whole network's, `0..=1`, in the mean.
    pub cost: f32,
    /// Accuracy given up against the last exit, in expectation, `-1..=1`, in the mean.
    pub loss: f32,
}

/// What learning is worth: what the learned heads and those that the model came with would have cost on the latest
/// audited frames, each leaving where its confidence reaches a threshold that follows the accuracy budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ControlReport {
    /// Audited frames that it rests on: a random sample of all.
    pub audits: u64,
    /// With the learned heads.
    pub learned: Arm,
    /// With the frozen ones.
    pub frozen: Arm,
    /// Standard error of the difference of the costs.
    pub error: f32,
}

/// Frames that were given a class in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassCount {
    /// Index of the class.
    pub class: u32,
    /// Frames, clipped; classes below the minimum count are left out.
    pub count: u64,
}

/// Who decides at the exits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicySource {
    /// The policy of the desired state.
    Desired,
    /// The policy before it, after faults of the desired one.
    LastGood,
    /// The built-in threshold rule.
    BuiltIn,
}

/// The policy at the end of a window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicyReport {
    /// Its name, `built-in` for the built-in rule.
    pub name: String,
    /// Its version.
    pub version: u64,
    /// Digest of the component; none for the built-in rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// Which rung of the ladder it stands on.
    pub source: PolicySource,
    /// Verdicts in the window that failed and were given by the built-in rule instead.
    pub faults: u64,
}

/// One camera's part of a window, where a device has several.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CameraReport {
    /// Its name on the device.
    pub name: String,
    /// Frames whose prediction was given.
    pub frames: u64,
    /// Frames that were dropped.
    pub dropped: u64,
    /// Frames that left because their deadline was near.
    pub hurried: u64,
    /// Frames taken at each exit.
    pub exits: Vec<u64>,
    /// Multiply-adds spent.
    pub macs: u64,
    /// Multiply-adds that the whole network would have taken.
    pub full_macs: u64,
    /// Audits done.
    pub audits: u64,
    /// Audits in which the last exit named another class.
    pub disagreements: u64,
    /// Accuracy given up against the last exit, as in [`GuardReport`].
    pub loss: f32,
    /// Upper bound of it.
    pub loss_bound: f32,
    /// Whether learning has stopped after repeated harm.
    pub paused: bool,
}

/// What a device saw and did in a window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The device.
    pub device: DeviceId,
    /// The run of its agent.
    pub boot: BootId,
    /// Number of the record.
    pub sequence: Sequence,
    /// When.
    pub window: Window,
    /// Generation of the desired state in force.
    pub generation: Generation,
    /// Frames whose prediction was given.
    pub frames: u64,
    /// Frames that were dropped before or during their way.
    pub dropped: u64,
    /// Frames that left because their deadline was near.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub hurried: u64,
    /// Use of each exit; sums to `frames`.
    pub exits: Vec<ExitUse>,
    /// What it cost.
    pub cost: Cost,
    /// Audits and their outcome.
    pub audits: Audits,
    /// The learner.
    pub learner: LearnerReport,
    /// What watches over it; agents before 0.2 do not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<GuardReport>,
    /// What learning is worth; older agents do not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<ControlReport>,
    /// How far the predicted classes are from those that the device usually sees: total variation beyond chance,
    /// `0..=1`; of several cameras, the largest. Older agents do not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift: Option<f32>,
    /// Predicted classes, clipped.
    pub classes: Vec<ClassCount>,
    /// Who decides.
    pub policy: PolicyReport,
    /// Records that waited in the outbox when this one was written.
    pub outbox: u64,
    /// Board temperature in degrees Celsius, where the board tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Power that the board draws in watts, where it tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watts: Option<f32>,
    /// The parts of the cameras that have names. Counts add up to the summary's; of guards, the summary tells
    /// the one that is nearest to its bound.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cameras: Vec<CameraReport>,
    /// What runs each stage, e.g. `fused`, `tract`, `onnxruntime/tensorrt`; agents before 0.2 do not tell.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub engines: Vec<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde asks for it
fn is_zero(n: &u64) -> bool {
    *n == 0
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde asks for it
fn is_false(flag: &bool) -> bool {
    !flag
}

/// Something worth telling happened on a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// The device.
    pub device: DeviceId,
    /// The run of its agent.
    pub boot: BootId,
    /// Number of the record.
    pub sequence: Sequence,
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// What, e.g. `policy-swapped`, `policy-fault`, `desired-refused`. Text, so that new kinds do no harm.
    pub kind: String,
    /// One sentence for people.
    pub message: String,
    /// Facts for programs.
    #[serde(default)]
    pub facts: BTreeMap<String, String>,
}

/// What a device does about its desired state. Retained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reported {
    /// The device.
    pub device: DeviceId,
    /// The run of its agent.
    pub boot: BootId,
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// Newest desired state that is in force.
    pub generation: Generation,
    /// The policy in force.
    pub policy: PolicyReport,
    /// Why a newer desired state is not in force, e.g. what was wrong with its policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// The generation of that one, where it could be read; older agents do not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_generation: Option<Generation>,
    /// The keys that the device trusts; older agents do not tell.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trusts: Vec<PublicKey>,
}

/// A typed parameter of a policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Parameter {
    /// True or false.
    Flag(bool),
    /// A whole number.
    Integer(i64),
    /// A number.
    Number(f64),
    /// Text.
    Text(String),
}

/// Text that is not `NAME=VALUE`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("parameter `{0}` is not NAME=VALUE")]
pub struct InvalidParameter(String);

impl Parameter {
    /// Reads a parameter as a command line or a query gives it: `NAME=VALUE`.
    ///
    /// `true` and `false` are flags, whole numbers integers, other numbers numbers; the rest is text.
    ///
    /// # Errors
    /// When there is no name or no `=`.
    pub fn parse(text: &str) -> Result<(String, Self), InvalidParameter> {
        let (name, value) = text
            .split_once('=')
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(|| InvalidParameter(text.chars().take(80).collect()))?;
        let number = || value.parse().ok().filter(|n: &f64| n.is_finite());
        let parameter = match value {
            "true" => Self::Flag(true),
            "false" => Self::Flag(false),
            _ => value
                .parse()
                .map(Self::Integer)
                .ok()
                .or_else(|| number().map(Self::Number))
                .unwrap_or_else(|| Self::Text(value.into())),
        };
        Ok((name.into(), parameter))
    }
}

/// The policy that a device should run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DesiredPolicy {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: u64,
    /// Digest of the component.
    pub digest: Digest,
    /// Size of the component in bytes.
    pub size: u64,
    /// Its parameters.
    #[serde(default)]
    pub parameters: BTreeMap<String, Parameter>,
}

/// The model that a device should run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredModel {
    /// Its name, as its manifest has it.
    pub name: String,
    /// Its version, as its manifest has it.
    pub version: u64,
    /// Digest of the package as one file.
    pub digest: Digest,
    /// Size of that file in bytes.
    pub size: u64,
    /// Where else the file is, `https://…`; what comes from there is held to digest and size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// What a device writes into its log at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What went wrong.
    Error,
    /// What may go wrong.
    Warn,
    /// What happens.
    Info,
    /// How it happens.
    Debug,
    /// All of it.
    Trace,
}

impl LogLevel {
    /// Its name, as it is on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// Settings of the learner; what is absent is as the device's configuration has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LearnerSettings {
    /// Whether heads are updated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Learning rate η0, dimensionless, `0..4`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<f32>,
    /// Share of frames that are audited, `0..=1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit_rate: Option<f32>,
    /// Accuracy that may be given up against the last exit, `0..=0.5`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy_budget: Option<f32>,
    /// Share of the whole network that a frame may cost on average, above 0, at most 1 (no ceiling).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_ceiling: Option<f32>,
}

/// What a device should run. Travels signed ([`crate::SigningKey::sign`]), retained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Desired {
    /// The device that it is meant for: nobody can hand it to another.
    pub device: DeviceId,
    /// Rises with every change.
    pub generation: Generation,
    /// When it was signed, in milliseconds since 1970.
    pub issued_at: u64,
    /// The policy; none keeps the one in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<DesiredPolicy>,
    /// Whether the policy of the device's own configuration is to decide again. Not beside a policy; older agents
    /// keep the one in force.
    #[serde(default, skip_serializing_if = "is_false")]
    pub own_policy: bool,
    /// The model; none for that of the device's own configuration. Older agents keep the one that they have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<DesiredModel>,
    /// Settings of the learner.
    #[serde(default)]
    pub learner: LearnerSettings,
    /// What is logged; without it what the device was started with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<LogLevel>,
    /// The only keys to trust from now on, at most [`MAX_KEYS`]; without any, those that are trusted already.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<PublicKey>,
}

impl Desired {
    /// One that asks for nothing: all stays as the device has it.
    pub fn new(device: DeviceId, generation: Generation, issued_at: u64) -> Self {
        Self {
            device,
            generation,
            issued_at,
            policy: None,
            own_policy: false,
            model: None,
            learner: LearnerSettings::default(),
            log: None,
            keys: Vec::new(),
        }
    }
}

/// A device asks for a part of an artifact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ArtifactRequest {
    /// The artifact.
    pub digest: Digest,
    /// First byte wanted; a multiple of [`CHUNK`].
    pub offset: u64,
    /// Chunks wanted from there on, 1 to [`MAX_CHUNKS`], each in a message of its own; older agents ask for one.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub chunks: u64,
}

fn one() -> u64 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde asks for it
fn is_one(n: &u64) -> bool {
    *n == 1
}

/// A part of an artifact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ArtifactChunk {
    /// The artifact.
    pub digest: Digest,
    /// Place of the first byte.
    pub offset: u64,
    /// Size of the whole artifact in bytes.
    pub total: u64,
    /// Digest of `data`.
    pub hash: Digest,
    /// At most [`CHUNK`] bytes; empty when the controller does not have the artifact.
    #[serde(with = "serde_bytes")]
    pub data: Vec<u8>,
}

/// A piece of an exit trace: what policies saw and answered at the exits of some frames that follow each other. Never
/// pixels or features.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceSample {
    /// The device.
    pub device: DeviceId,
    /// Its run.
    pub boot: BootId,
    /// A whole trace in the format of `offramp-trace`, at most [`MAX_TRACE`] bytes.
    #[serde(with = "serde_bytes")]
    pub trace: Vec<u8>,
}

/// A device asks for its next certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewalRequest {
    /// The device.
    pub device: DeviceId,
    /// A request for a certificate (PKCS#10, RFC 2986) by the next key, PEM.
    pub request: String,
    /// Another one, by the key of the certificate in use, whose common name is [`RenewalRequest::proof_name`]: whoever
    /// could only speak in the device's name does not have it.
    pub proof: String,
}

impl RenewalRequest {
    /// The common name by which a proof speaks for a request.
    pub fn proof_name(request: &str) -> String {
        format!("{}", Digest::of(request.as_bytes()))
    }
}

/// The answer to a [`RenewalRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewalAnswer {
    /// Digest of the request's text.
    pub request: Digest,
    /// The certificate, PEM; none where it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// Why it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

impl ModelFacts {
    fn in_bounds(&self) -> bool {
        text(&self.name)
            && self.classes.len() <= MAX_CLASSES
            && self.classes.iter().all(|c| text(c))
            && self.stage_macs.len() <= MAX_EXITS
    }
}

impl PolicyReport {
    fn in_bounds(&self) -> bool {
        text(&self.name)
    }
}

impl Message for Birth {
    const NAME: &'static str = "birth";
    fn check(&self) -> Result<(), &'static str> {
        check(&[
            (text(&self.agent), "agent"),
            (self.model.in_bounds(), "model"),
            (
                self.capabilities.len() <= MAX_MAP && self.capabilities.iter().all(|c| text(c)),
                "capabilities",
            ),
        ])
    }
}

impl Message for Death {
    const NAME: &'static str = "death";
    fn check(&self) -> Result<(), &'static str> {
        Ok(())
    }
}

impl GuardReport {
    fn in_bounds(&self) -> bool {
        let numbers = [self.threshold, self.loss, self.loss_bound];
        self.temperatures.len() <= MAX_EXITS && self.temperatures.iter().chain(&numbers).all(|n| n.is_finite())
    }
}

impl ControlReport {
    fn in_bounds(&self) -> bool {
        let arms = [self.learned, self.frozen];
        let sound = |arm: &Arm| (0.0..=1.0).contains(&arm.cost) && (-1.0..=1.0).contains(&arm.loss);
        arms.iter().all(sound) && (0.0..=1.0).contains(&self.error)
    }
}

impl CameraReport {
    fn in_bounds(&self) -> bool {
        text(&self.name)
            && self.exits.len() <= MAX_EXITS
            && self.exits.iter().try_fold(0u64, |sum, taken| sum.checked_add(*taken)) == Some(self.frames)
            && self.disagreements <= self.audits
            && self.loss.is_finite()
            && self.loss_bound.is_finite()
    }
}

impl Message for Summary {
    const NAME: &'static str = "summary";
    fn check(&self) -> Result<(), &'static str> {
        let taken = self.exits.iter().try_fold(0u64, |sum, e| sum.checked_add(e.taken));
        check(&[
            (self.window.start <= self.window.end, "window"),
            (self.exits.len() <= MAX_EXITS && taken == Some(self.frames), "exits"),
            (self.cost.audit_macs <= self.cost.macs, "cost"),
            (
                self.audits.disagreements <= self.audits.run && (0.0..=1.0).contains(&self.audits.bound),
                "audits",
            ),
            (
                self.learner.distance.len() <= MAX_EXITS && self.learner.distance.iter().all(|d| d.is_finite()),
                "learner",
            ),
            (self.guard.as_ref().is_none_or(GuardReport::in_bounds), "guard"),
            (self.control.as_ref().is_none_or(ControlReport::in_bounds), "control"),
            (self.drift.is_none_or(|drift| (0.0..=1.0).contains(&drift)), "drift"),
            (self.classes.len() <= MAX_CLASSES, "classes"),
            (self.policy.in_bounds(), "policy"),
            (self.temperature.is_none_or(f32::is_finite), "temperature"),
            (self.watts.is_none_or(f32::is_finite), "watts"),
            (
                self.cameras.len() <= MAX_CAMERAS && self.cameras.iter().all(CameraReport::in_bounds),
                "cameras",
            ),
            (
                self.engines.len() <= MAX_EXITS && self.engines.iter().all(|engine| text(engine)),
                "engines",
            ),
        ])
    }
}

impl Message for Event {
    const NAME: &'static str = "event";
    fn check(&self) -> Result<(), &'static str> {
        check(&[
            (text(&self.kind), "kind"),
            (self.message.len() <= 4 * MAX_TEXT, "message"),
            (
                self.facts.len() <= MAX_MAP && self.facts.iter().all(|(k, v)| text(k) && text(v)),
                "facts",
            ),
        ])
    }
}

impl Message for Reported {
    const NAME: &'static str = "reported state";
    fn check(&self) -> Result<(), &'static str> {
        check(&[
            (self.policy.in_bounds(), "policy"),
            (self.refused.as_ref().is_none_or(|r| r.len() <= 4 * MAX_TEXT), "refused"),
            (self.trusts.len() <= MAX_KEYS, "trusts"),
        ])
    }
}

/// What the author of a policy vouches for. Signed ([`crate::SigningKey::sign`]), it lies in a file beside the component.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyStatement {
    /// Name of the policy.
    pub name: String,
    /// Its version, which rises with every change.
    pub version: u64,
    /// Digest of the component.
    pub digest: Digest,
    /// Size of the component in bytes.
    pub size: u64,
    /// The contract that it is built for, e.g. `offramp:policy@1.1.0`.
    pub contract: String,
}

impl Message for PolicyStatement {
    const NAME: &'static str = "policy statement";
    fn check(&self) -> Result<(), &'static str> {
        check(&[
            (text(&self.name) && !self.name.is_empty(), "name"),
            (self.size <= MAX_ARTIFACT, "size"),
            (text(&self.contract), "contract"),
        ])
    }
}

impl Message for Desired {
    const NAME: &'static str = "desired state";
    fn check(&self) -> Result<(), &'static str> {
        let policy = self.policy.as_ref().is_none_or(|p| {
            text(&p.name)
                && p.size <= MAX_ARTIFACT
                && p.parameters.len() <= MAX_MAP
                && p.parameters.iter().all(|(k, v)| {
                    text(k)
                        && match v {
                            Parameter::Flag(_) | Parameter::Integer(_) => true,
                            Parameter::Number(n) => n.is_finite(),
                            Parameter::Text(t) => text(t),
                        }
                })
        });
        let model = self.model.as_ref().is_none_or(|model| {
            let url = model.url.as_ref();
            text(&model.name)
                && model.size <= MAX_ARTIFACT
                && url.is_none_or(|url| text(url) && url.starts_with("https://"))
        });
        check(&[
            (policy, "policy"),
            (!(self.own_policy && self.policy.is_some()), "own_policy"),
            (model, "model"),
            (self.keys.len() <= MAX_KEYS, "keys"),
            (
                self.learner.rate.is_none_or(|r| (0.0..4.0).contains(&r)),
                "learner.rate",
            ),
            (
                self.learner.audit_rate.is_none_or(|r| (0.0..=1.0).contains(&r)),
                "learner.audit_rate",
            ),
            (
                self.learner.accuracy_budget.is_none_or(|b| (0.0..=0.5).contains(&b)),
                "learner.accuracy_budget",
            ),
            (
                self.learner.cost_ceiling.is_none_or(|c| c > 0.0 && c <= 1.0),
                "learner.cost_ceiling",
            ),
        ])
    }
}

impl Message for ArtifactRequest {
    const NAME: &'static str = "artifact request";
    fn check(&self) -> Result<(), &'static str> {
        check(&[
            (
                self.offset < MAX_ARTIFACT && self.offset.is_multiple_of(CHUNK as u64),
                "offset",
            ),
            ((1..=MAX_CHUNKS).contains(&self.chunks), "chunks"),
        ])
    }
}

impl Message for TraceSample {
    const NAME: &'static str = "piece of a trace";
    fn check(&self) -> Result<(), &'static str> {
        check(&[(self.trace.len() <= MAX_TRACE, "trace")])
    }
}

impl Message for RenewalRequest {
    const NAME: &'static str = "renewal request";
    fn check(&self) -> Result<(), &'static str> {
        check(&[
            (self.request.len() <= MAX_CERTIFICATE, "request"),
            (self.proof.len() <= MAX_CERTIFICATE, "proof"),
        ])
    }
}

impl Message for RenewalAnswer {
    const NAME: &'static str = "renewal answer";
    fn check(&self) -> Result<(), &'static str> {
        let certificate = self.certificate.as_ref();
        check(&[
            (certificate.is_none_or(|c| c.len() <= MAX_CERTIFICATE), "certificate"),
            (self.refused.as_ref().is_none_or(|why| text(why)), "refused"),
            (certificate.is_some() != self.refused.is_some(), "refused"),
        ])
    }
}

impl Message for ArtifactChunk {
    const NAME: &'static str = "artifact chunk";
    fn check(&self) -> Result<(), &'static str> {
        let end = self.offset.checked_add(self.data.len() as u64);
        check(&[
            (self.total <= MAX_ARTIFACT, "total"),
            (self.data.len() <= CHUNK, "data"),
            (
                self.offset.is_multiple_of(CHUNK as u64) && end.is_some_and(|e| e <= self.total),
                "offset",
            ),
            (Digest::of(&self.data) == self.hash, "hash"),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_get_the_type_that_their_value_has() {
        let read = |text| Parameter::parse(text).unwrap().1;
        assert_eq!(read("a=true"), Parameter::Flag(true));
        assert_eq!(read("a=-3"), Parameter::Integer(-3));
        assert_eq!(read("a=0.85"), Parameter::Number(0.85));
        assert_eq!(read("a=1e400"), Parameter::Text("1e400".into()));
        assert_eq!(read("a=NaN"), Parameter::Text("NaN".into()));
        assert_eq!(read("a="), Parameter::Text(String::new()));
        assert_eq!(read("a=b=c"), Parameter::Text("b=c".into()));
        assert!(Parameter::parse("a").is_err());
        assert!(Parameter::parse("=1").is_err());
    }
}
