//! Why a stage cannot be loaded or run.

use std::error::Error;
use std::fmt;

use crate::stage::MAX_TENSOR_VALUES;

/// A stage that is refused: of which package, which file, and why.
#[derive(Debug)]
pub struct LoadError {
    /// The package: its path, or the label it was read under.
    pub package: String,
    /// The file of the stage.
    pub part: String,
    /// What is wrong with it.
    pub problem: StageProblem,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "model package {}: {} {}", self.package, self.part, self.problem)
    }
}

impl Error for LoadError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.problem.source()
    }
}

/// What is wrong with a stage; reads on from the name of its file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StageProblem {
    /// Bytes that are no ONNX graph.
    #[error("is not an ONNX graph; it may be truncated: export the package again")]
    NotOnnx(#[source] Cause),
    /// A graph of more nodes or initializers than any network has.
    #[error("has {found} {what}, more than the {limit} allowed; is it the right file?")]
    TooLarge {
        /// Nodes or initializers.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there may be.
        limit: usize,
    },
    /// Operators that the engine does not run.
    #[error("uses operators that this engine does not run: {}; export it without them", .0.join(", "))]
    Unsupported(Vec<String>),
    /// A construct that the engine refuses.
    #[error("has {what} at node `{node}`, which this engine does not run; {remedy}")]
    Refused {
        /// The construct.
        what: &'static str,
        /// Where it is.
        node: String,
        /// What to do.
        remedy: &'static str,
    },
    /// NaN or infinity among the weights.
    #[error("has a number that is not finite in weights `{tensor}`; the training diverged or the file is damaged")]
    NotFinite {
        /// The name of the weights.
        tensor: String,
    },
    /// Inputs of the graph that are not those of the manifest.
    #[error("reads {found:?}, but the manifest says {expected:?}; export the package again")]
    Inputs {
        /// The graph's inputs.
        found: Vec<String>,
        /// The manifest's inputs of the stage.
        expected: Vec<String>,
    },
    /// An output or state tensor of the manifest that the graph does not have.
    #[error("gives no tensor `{tensor}`, which the manifest asks for; export the package again")]
    NoTensor {
        /// Its name.
        tensor: String,
    },
    /// A tensor of another shape or type than the manifest or the stage before
    /// asks for.
    #[error("has tensor `{tensor}` as {found}, but {expected} is needed; export the package again")]
    Shape {
        /// Its name.
        tensor: String,
        /// What the graph has.
        found: String,
        /// What is needed.
        expected: String,
    },
    /// A tensor larger than any network needs.
    #[error(
        "computes `{node}` with shape {shape:?}, more than the {MAX_TENSOR_VALUES} values allowed; \
         export it for a smaller input"
    )]
    TensorTooLarge {
        /// The node that computes it.
        node: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// A tensor whose shape is not known before the graph runs.
    #[error("computes `{node}` with a shape that depends on its values; export it with fixed shapes")]
    ShapeUnknown {
        /// The node that computes it.
        node: String,
    },
    /// A graph that the runtime does not accept.
    #[error("is no graph that this engine can run; export the package again, with opset 18 and fixed shapes")]
    Runtime(#[source] Cause),
}

/// A stage that could not be run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// An image of another size than the network reads.
    #[error("an image of {found} values, where the network reads {expected}: resize it first")]
    Image {
        /// Values given.
        found: usize,
        /// Values needed.
        expected: usize,
    },
    /// A stage that is not the frame's next: start the frame and run its stages
    /// in order.
    #[error("stage {asked} was asked for, but the frame {}", match .next {
        Some(next) => format!("is before stage {next}"),
        None => "has not been started or has passed the last stage".to_owned(),
    })]
    Order {
        /// The stage asked for.
        asked: usize,
        /// The stage that is the frame's next; none before its start and after
        /// the last stage.
        next: Option<usize>,
    },
    /// The runtime failed. The frame is over; the engine can go on with others.
    #[error("stage {stage} failed to run; check the package with `offramp model check`")]
    Runtime {
        /// The stage.
        stage: usize,
        /// What the runtime said.
        #[source]
        cause: Cause,
    },
}

/// What the runtime said, in its own words, cut to a bearable length.
#[derive(Clone, Debug)]
pub struct Cause(String);

impl Cause {
    const MAX_CHARS: usize = 500;

    pub(crate) fn new(error: impl fmt::Display) -> Cause {
        let text = error.to_string();
        match text.char_indices().nth(Cause::MAX_CHARS) {
            None => Cause(text),
            Some((end, _)) => Cause(format!("{} …", &text[..end])),
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Cause {}
