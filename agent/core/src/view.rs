//! What an exit policy sees at an exit, and what it answers.

/// The facts of one frame at one exit, handed to the exit policy.
///
/// Sixteen scalars at most, so that the record crosses into a WebAssembly guest as plain
/// parameters. A fact that the device does not know is `NaN` (floats) or zero (counts).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExitView {
    /// Index of this exit, `0..exits`.
    pub exit: u32,
    /// Number of exits of the network.
    pub exits: u32,
    /// Class with the largest probability at this exit, `0..K`.
    pub class: u32,
    /// Largest probability, `0..=1`.
    pub confidence: f32,
    /// Largest less second-largest probability, `0..=1`.
    pub margin: f32,
    /// Entropy of the probabilities in nats, `0..=ln K`.
    pub entropy: f32,
    /// Whether the previous exit named the same class; `false` at the first exit.
    pub agreement: bool,
    /// Change against this camera's previous frame: ‖u − u′‖² / 2C at this exit, about `0..=2`; `NaN` when unknown.
    pub change: f32,
    /// Multiply-adds spent on this frame so far, as a share of the whole network, `0..=1`.
    pub cost: f32,
    /// Multiply-adds of the next stage, as a share of the whole network, `0..=1`.
    pub next_cost: f32,
    /// Time to this frame's deadline in milliseconds; negative when missed, `NaN` without one.
    pub time_left: f32,
    /// Frames that wait behind this one.
    pub queue_depth: u32,
    /// Temperature of the board in degrees Celsius; `NaN` when unknown.
    pub temperature: f32,
    /// Power that may be drawn, in watts; `NaN` without a budget.
    pub power_budget: f32,
    /// Charge of the battery, `0..=1`; `NaN` without one.
    pub battery: f32,
    /// Confidence from which the guard holds leaving safe, `0..=1.01`.
    pub threshold: f32,
}

/// A policy's answer at an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Run the next stage.
    GoOn,
    /// Take this exit's prediction.
    Leave,
    /// Take this exit's prediction, but do not learn from it.
    LeaveWithoutLearning,
    /// Take this exit's prediction and run the remaining stages as an audit of it.
    Audit,
}

impl ExitView {
    /// The built-in rule: leave where the confidence reaches the threshold.
    ///
    /// It decides where no policy is configured, and whenever a policy fails.
    pub fn rule(&self) -> Verdict {
        if self.confidence >= self.threshold {
            Verdict::Leave
        } else {
            Verdict::GoOn
        }
    }
}

/// What the last exit said of a frame that left before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AuditResult {
    /// It was not asked, or the frame left there.
    #[default]
    None,
    /// It named the class that was predicted.
    Agreed,
    /// It named another one.
    Differed,
}

/// What became of a frame, told to the policy once the frame is done, its audit included.
///
/// A fact that the device does not know is `NaN`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Index of the exit that was taken, `0..exits`.
    pub exit: u32,
    /// The predicted class, `0..K`.
    pub class: u32,
    /// Its probability, `0..=1`.
    pub confidence: f32,
    /// Multiply-adds up to the prediction, as a share of the whole network, `0..=1`.
    pub cost: f32,
    /// From the frame's arrival to its prediction, in milliseconds.
    pub latency: f32,
    /// From the previous frame's end to this one's, in milliseconds; `NaN` for the first.
    pub interval: f32,
    /// Energy that the board drew in this interval, in joules.
    pub energy: f32,
    /// Temperature of the board in degrees Celsius.
    pub temperature: f32,
    /// Whether the device had it leave because its deadline was near, whatever the policy said.
    pub hurried: bool,
    /// Whether the built-in rule decided, because the policy had failed.
    pub fault: bool,
    /// What an audit found, if there was one.
    pub audit: AuditResult,
}
