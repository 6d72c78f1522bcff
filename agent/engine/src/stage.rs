//! One stage, checked against the manifest and prepared to run.

use std::io;

use offramp_kernels::{Buffers, Isa, Plan, Pool, Tensors, Turn};
use offramp_model::Stage as Declared;
use rayon::ThreadPoolBuilder;
use tract_onnx::pb::ModelProto;
use tract_onnx::prelude::multithread::{Executor, multithread_tract_scope};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::SimpleState;
use tract_onnx::tract_core::model::TypedModel;
use tract_onnx::tract_core::ops::TypedOp;
use tract_onnx::tract_hir::infer::Factoid as _;
use tract_onnx::tract_hir::internal::DimLike as _;

use crate::contain::contain;
use crate::error::{Cause, StageProblem};
use crate::graph;
use crate::lower::lower;
use crate::offload::Away;

/// Values in one tensor between two operators of a stage, at most.
pub const MAX_TENSOR_VALUES: usize = 32 << 20;

/// A plan's own scratch: which operators ran, and their results while needed.
type Session = SimpleState<TypedFact, Box<dyn TypedOp>>;

/// Where a state tensor for the next stage comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Handed {
    /// The graph's next output: they stand in the order of the state.
    Output,
    /// An input of the stage, passed on as it is.
    Input(usize),
}

/// A stage ready to run.
#[derive(Debug, Clone)]
pub(crate) struct Stage {
    runner: Runner,
    state: Vec<Handed>,
    /// Shapes of what it reads.
    reads: Vec<Shape>,
}

/// What runs a stage.
#[derive(Debug, Clone)]
enum Runner {
    /// Our own kernels.
    Fused { plan: Arc<Plan>, buffers: Buffers },
    /// tract, for graphs with operators that those do not have.
    Tract {
        plan: Arc<TypedRunnableModel>,
        session: Session,
    },
}

/// The threads that stages may use, shared by clones: whose turn it is has them to itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct Threads {
    kernels: Pool,
    /// tract's own, where it runs stages.
    tract: Executor,
}

impl Threads {
    /// So many, the calling one included; some of tract's own where there are stages for them.
    pub(crate) fn new(threads: usize, stages: &[Stage]) -> io::Result<Self> {
        let kernels = Pool::new(threads)?;
        let tract = if threads > 1 && !stages.iter().all(Stage::is_fused) {
            let builder = ThreadPoolBuilder::new().num_threads(threads);
            let pool = builder.thread_name(|number| format!("tract-{number}")).build();
            Executor::MultiThread(Arc::new(pool.map_err(io::Error::other)?))
        } else {
            Executor::SingleThread
        };
        Ok(Self { kernels, tract })
    }

    /// tract's, while nobody else has a turn: they serve all who ask at a time, and who finds them busy is faster alone.
    fn tract(&self) -> (Turn<'_>, Executor) {
        let turn = self.kernels.turn();
        let executor = if turn.threads() > 1 {
            self.tract.clone()
        } else {
            Executor::SingleThread
        };
        (turn, executor)
    }

    /// Those of our kernels.
    pub(crate) fn kernels(&self) -> &Pool {
        &self.kernels
    }
}

/// Which kernels an engine may use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Kernels {
    /// Our own where they know every operator of a stage, tract's elsewhere.
    #[default]
    Fused,
    /// tract's only: what ours are compared with.
    Tract,
}

/// The shape of a tensor between stages, batch axis included.
pub(crate) type Shape = Vec<usize>;

/// A stage and the shapes of the state it hands on.
pub(crate) struct Loaded {
    pub(crate) stage: Stage,
    pub(crate) handed: Vec<Shape>,
}

impl Stage {
    /// Prepares a stage that reads tensors of these shapes, in the order of the
    /// manifest, and gives `features` numbers to its exit.
    pub(crate) fn load(
        bytes: &[u8],
        declared: &Declared,
        inputs: &[Shape],
        features: usize,
        kernels: Kernels,
    ) -> Result<Loaded, StageProblem> {
        let onnx = tract_onnx::onnx();
        let proto = graph::decode(&onnx, bytes)?;
        // What the graph says of the tensors inside is at best redundant.
        let onnx = onnx.with_ignore_value_info(true);
        let model = runtime(|| onnx.model_for_proto_model(&proto))?;
        let model = fix_inputs(model, declared, inputs)?;
        let (model, state) = select_outputs(model, declared)?;
        let model = analyse(model)?;

        let typed = runtime(|| model.into_typed())?;
        check_tensors(&typed)?;
        let outputs = check_outputs(&typed, declared, &state, features)?;
        let mut outputs = outputs.into_iter();
        let handed = state.iter().filter_map(|source| match *source {
            Handed::Output => outputs.next(),
            Handed::Input(place) => Some(inputs[place].clone()),
        });
        let handed: Vec<Shape> = handed.collect();
        let fused = match kernels {
            Kernels::Fused => contain(|| fuse(&proto, declared, inputs, &state)).unwrap_or_default(),
            Kernels::Tract => None,
        };
        if let Some(plan) = fused {
            let runner = Runner::Fused {
                plan: Arc::new(plan),
                buffers: Buffers::default(),
            };
            let mut stage = Stage {
                runner,
                state: state.clone(),
                reads: inputs.to_vec(),
            };
            // A plan that is not what tract has found the graph to be is not used.
            if stage
                .try_on_zeros(inputs)
                .is_ok_and(|given| given.fits(features, &handed))
            {
                return Ok(Loaded { stage, handed });
            }
        }
        let plan = runtime(|| {
            let options = RunOptions::default();
            typed.into_optimized()?.into_runnable_with_options(&options)
        })?;
        let runner = Runner::Tract {
            session: runtime(|| plan.spawn())?,
            plan,
        };
        let mut stage = Stage {
            runner,
            state,
            reads: inputs.to_vec(),
        };
        stage.try_on_zeros(inputs).map_err(StageProblem::Runtime)?;
        Ok(Loaded { stage, handed })
    }

    /// Runs the stage once: some operators check what they are given only when they run.
    fn try_on_zeros(&mut self, inputs: &[Shape]) -> Result<Held, Cause> {
        let mut zeros = Held {
            tensors: inputs.iter().map(|shape| vec![0.0; shape.iter().product()]).collect(),
            away: vec![None; inputs.len()],
            ..Held::default()
        };
        self.run(&mut [&mut zeros], &Threads::default())?;
        Ok(zeros)
    }

    /// Whether our own kernels run it.
    pub(crate) fn is_fused(&self) -> bool {
        matches!(self.runner, Runner::Fused { .. })
    }

    /// Where what it hands on comes from.
    pub(crate) fn handed(&self) -> &[Handed] {
        &self.state
    }

    /// Shapes of what it reads, batch axis first.
    #[cfg(feature = "onnxruntime")]
    pub(crate) fn reads(&self) -> &[Shape] {
        &self.reads
    }

    /// Runs the stage on one image, or on several at a time: each then holds its features, and what the next
    /// stage reads. Nothing of them may be away.
    pub(crate) fn run(&mut self, images: &mut [&mut Held], threads: &Threads) -> Result<(), Cause> {
        let outputs = 1 + self
            .state
            .iter()
            .filter(|source| matches!(source, Handed::Output))
            .count();
        images.iter_mut().for_each(|image| image.prepare(outputs));
        let run = match &mut self.runner {
            Runner::Fused { plan, buffers } => contain(|| plan.run(buffers, images, &threads.kernels)),
            Runner::Tract { plan, session } => {
                let mut each = images.iter_mut();
                let (_turn, executor) = threads.tract();
                let run = multithread_tract_scope(executor, || {
                    contain(|| each.try_for_each(|image| run_tract(session, &self.reads, image)))
                });
                let run = run.and_then(|run| run.map_err(said));
                if run.is_err() {
                    // The session may be left in the middle of a run.
                    *session = plan.spawn().map_err(said)?;
                }
                run
            }
        };
        images
            .iter_mut()
            .for_each(|image| image.hand_on(&self.state, std::iter::empty()));
        run
    }
}

/// What an image has of a network so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Held {
    /// What the next stage reads, in the order of the manifest.
    pub(crate) tensors: Vec<Vec<f32>>,
    /// For each of these, what stands in for it where it is not in our memory.
    away: Vec<Option<Away>>,
    /// Of the stage before.
    pub(crate) features: Vec<f32>,
    /// The image itself, where it may have to start again.
    image: Vec<f32>,
    /// What a stage gives while it runs: the features, then the state.
    outputs: Vec<Vec<f32>>,
    /// What the stage before read.
    read: Vec<Vec<f32>>,
    read_away: Vec<Option<Away>>,
    /// Memory for the next outputs.
    spare: Vec<Vec<f32>>,
}

impl Held {
    /// Starts with an image, which may be kept to start again.
    pub(crate) fn start(&mut self, image: &[f32], keep: bool) {
        self.image.clear();
        if keep {
            self.image.extend_from_slice(image);
        }
        self.start_with(image);
    }

    fn start_with(&mut self, image: &[f32]) {
        self.away.clear();
        self.away.push(None);
        self.spare.append(&mut self.tensors);
        let mut tensor = self.spare.pop().unwrap_or_default();
        tensor.clear();
        tensor.extend_from_slice(image);
        self.tensors.push(tensor);
    }

    /// Goes back to the image that it was started with.
    pub(crate) fn restart(&mut self) {
        let image = std::mem::take(&mut self.image);
        self.start_with(&image);
        self.image = image;
    }

    /// Whether it knows the image that it was started with.
    pub(crate) fn can_restart(&self) -> bool {
        !self.image.is_empty()
    }

    /// Whether anything that the next stage reads is not in our memory.
    pub(crate) fn is_away(&self) -> bool {
        self.away.iter().any(Option::is_some)
    }

    /// One of the tensors that the next stage reads, here or away.
    #[cfg(feature = "onnxruntime")]
    pub(crate) fn read(&self, place: usize) -> (&[f32], Option<&Away>) {
        (&self.tensors[place], self.away[place].as_ref())
    }

    /// Whether it has as many features, and tensors as large, as a stage must leave.
    fn fits(&self, features: usize, handed: &[Shape]) -> bool {
        let lengths = handed.iter().map(|shape| shape.iter().product::<usize>());
        self.features.len() == features && self.tensors.iter().map(Vec::len).eq(lengths)
    }

    pub(crate) fn prepare(&mut self, outputs: usize) {
        self.outputs.push(std::mem::take(&mut self.features));
        while self.outputs.len() < outputs {
            self.outputs.push(self.spare.pop().unwrap_or_default());
        }
    }

    /// Makes of what was given what is read next. `away` is what stands in for the outputs, the features among them,
    /// that are not in our memory.
    pub(crate) fn hand_on(&mut self, state: &[Handed], away: impl IntoIterator<Item = Option<Away>>) {
        std::mem::swap(&mut self.tensors, &mut self.read);
        std::mem::swap(&mut self.away, &mut self.read_away);
        self.away.clear();
        let mut outputs = self.outputs.drain(..);
        let mut away = away.into_iter();
        self.features = outputs.next().unwrap_or_default();
        away.next();
        for source in state {
            let (tensor, away) = match *source {
                Handed::Output => (outputs.next().unwrap_or_default(), away.next().flatten()),
                Handed::Input(place) => (std::mem::take(&mut self.read[place]), self.read_away[place].take()),
            };
            self.tensors.push(tensor);
            self.away.push(away);
        }
        let unused = self.read.drain(..).filter(|tensor| tensor.capacity() > 0);
        self.spare.extend(unused);
    }
}

impl Tensors for Held {
    fn inputs(&mut self) -> &mut [Vec<f32>] {
        &mut self.tensors
    }

    fn outputs(&mut self) -> &mut [Vec<f32>] {
        &mut self.outputs
    }
}

/// A stage in our own kernels, where they know all of it.
fn fuse(proto: &ModelProto, declared: &Declared, inputs: &[Shape], state: &[Handed]) -> Option<Plan> {
    let inputs: Vec<(&str, &[usize])> = declared
        .inputs
        .iter()
        .zip(inputs)
        .map(|(name, shape)| (name.as_str(), shape.as_slice()))
        .collect();
    let given = declared.state.iter().zip(state);
    let given = given.filter(|(_, source)| matches!(source, Handed::Output));
    let outputs: Vec<&str> = std::iter::once(&declared.features)
        .chain(given.map(|(name, _)| name))
        .map(String::as_str)
        .collect();
    lower(proto.graph.as_ref()?, &inputs, &outputs, Isa::best())
}

/// Runs tract on copies of what a stage reads.
fn run_tract(session: &mut Session, reads: &[Shape], image: &mut Held) -> TractResult<()> {
    let inputs = reads
        .iter()
        .zip(&image.tensors)
        .map(|(shape, tensor)| Tensor::from_shape(shape, tensor).map(IntoTValue::into_tvalue));
    let results = session.run(inputs.collect::<TractResult<_>>()?)?;
    for (output, result) in image.outputs.iter_mut().zip(results) {
        let view = result.try_as_plain_ram()?;
        output.clear();
        output.extend_from_slice(view.as_slice::<f32>()?);
    }
    Ok(())
}

/// An error of the runtime with its causes.
#[allow(clippy::needless_pass_by_value)] // it is passed to `map_err`
pub(crate) fn said(error: TractError) -> Cause {
    Cause::new(format_args!("{error:#}"))
}

/// Calls the runtime; whatever goes wrong in it is the graph's fault.
fn runtime<T>(call: impl FnOnce() -> TractResult<T>) -> Result<T, StageProblem> {
    contain(call)
        .and_then(|done| done.map_err(said))
        .map_err(StageProblem::Runtime)
}

/// Orders the graph's inputs as the manifest does and fixes their shapes.
fn fix_inputs(
    mut model: InferenceModel,
    declared: &Declared,
    shapes: &[Shape],
) -> Result<InferenceModel, StageProblem> {
    let names = |model: &InferenceModel| {
        let outlets = model.inputs.iter();
        outlets
            .map(|outlet| model.node(outlet.node).name.clone())
            .collect::<Vec<_>>()
    };
    let found = names(&model);
    let mut sorted = (found.clone(), declared.inputs.clone());
    sorted.0.sort_unstable();
    sorted.1.sort_unstable();
    if sorted.0 != sorted.1 {
        return Err(StageProblem::Inputs {
            found,
            expected: declared.inputs.clone(),
        });
    }
    runtime(|| model.set_input_names(&declared.inputs))?;
    for (place, (name, shape)) in declared.inputs.iter().zip(shapes).enumerate() {
        let needed = InferenceFact::dt_shape(f32::datum_type(), shape);
        let own = runtime(|| model.input_fact(place).cloned())?;
        // The batch axis carries a symbol in the graph.
        let fits = own.datum_type.unify(&needed.datum_type).is_ok()
            && own
                .shape
                .rank()
                .concretize()
                .is_none_or(|rank| rank as usize == shape.len())
            && shape.iter().enumerate().all(|(axis, &size)| {
                let dim = own.shape.dim(axis).and_then(|dim| dim.concretize());
                dim.and_then(|dim| dim.to_usize().ok()).is_none_or(|dim| dim == size)
            });
        if !fits {
            return Err(StageProblem::Shape {
                tensor: name.clone(),
                found: format!("{own:?}"),
                expected: describe(shape),
            });
        }
        runtime(|| model.set_input_fact(place, needed))?;
    }
    Ok(model)
}

/// Makes the features and then the state the outputs of the model.
fn select_outputs(
    mut model: InferenceModel,
    declared: &Declared,
) -> Result<(InferenceModel, Vec<Handed>), StageProblem> {
    let find = |name: &str| {
        let outlets = model.outputs.iter();
        outlets
            .copied()
            .find(|&outlet| model.outlet_label(outlet) == Some(name))
            .ok_or_else(|| StageProblem::NoTensor {
                tensor: name.to_owned(),
            })
    };
    let mut outputs = vec![find(&declared.features)?];
    let mut state = Vec::new();
    for name in &declared.state {
        state.push(match declared.inputs.iter().position(|input| input == name) {
            Some(place) => Handed::Input(place),
            None => {
                outputs.push(find(name)?);
                Handed::Output
            }
        });
    }
    runtime(|| model.select_output_outlets(&outputs))?;
    Ok((model, state))
}

/// Infers every shape, and checks their sizes before anything is computed.
fn analyse(mut model: InferenceModel) -> Result<InferenceModel, StageProblem> {
    runtime(|| model.analyse(false))?;
    for node in model.nodes() {
        for output in &node.outputs {
            if let Some(shape) = output.fact.shape.concretize() {
                let shape: Option<Shape> = shape.iter().map(|dim| dim.to_usize().ok()).collect();
                check_size(&node.name, shape.as_deref())?;
            }
        }
    }
    Ok(model)
}

fn check_tensors(model: &TypedModel) -> Result<(), StageProblem> {
    for node in model.nodes() {
        for output in &node.outputs {
            check_size(&node.name, output.fact.shape.as_concrete())?;
        }
    }
    Ok(())
}

fn check_size(node: &str, shape: Option<&[usize]>) -> Result<(), StageProblem> {
    let node = || node.to_owned();
    let shape = shape.ok_or_else(|| StageProblem::ShapeUnknown { node: node() })?;
    let values = shape.iter().try_fold(1usize, |values, &size| values.checked_mul(size));
    match values {
        Some(values) if values <= MAX_TENSOR_VALUES => Ok(()),
        _ => Err(StageProblem::TensorTooLarge {
            node: node(),
            shape: shape.to_vec(),
        }),
    }
}

/// Checks the features' shape and gives the shapes of the other outputs.
fn check_outputs(
    model: &TypedModel,
    declared: &Declared,
    state: &[Handed],
    features: usize,
) -> Result<Vec<Shape>, StageProblem> {
    let facts = runtime(|| {
        (0..model.outputs.len())
            .map(|place| model.output_fact(place))
            .collect::<TractResult<Vec<_>>>()
    })?;
    let handed = declared
        .state
        .iter()
        .zip(state)
        .filter(|(_, source)| matches!(source, Handed::Output));
    let names = std::iter::once(&declared.features).chain(handed.map(|(name, _)| name));
    let mut shapes = Vec::new();
    for (name, fact) in names.zip(facts) {
        let shape = fact.shape.as_concrete().unwrap_or_default().to_vec();
        let needed = if shapes.is_empty() {
            vec![1, features]
        } else {
            shape.clone()
        };
        if fact.datum_type != f32::datum_type() || shape != needed {
            return Err(StageProblem::Shape {
                tensor: name.clone(),
                found: format!("{fact:?}"),
                expected: describe(&needed),
            });
        }
        shapes.push(shape);
    }
    shapes.remove(0);
    Ok(shapes)
}

/// A shape as the runtime writes it.
fn describe(shape: &[usize]) -> String {
    let sizes: Vec<_> = shape.iter().map(ToString::to_string).collect();
    format!("{},F32", sizes.join(","))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use offramp_model::Package;

    use super::*;
    use crate::Engine;

    #[test]
    fn tract_has_threads_where_it_runs_stages_and_nobody_else_has_them() {
        let zoo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/zoo/revcol-fashion");
        let package = Package::open(&zoo).unwrap();
        let threads = |kernels, threads| {
            let engine = Engine::load_with(&package, kernels).unwrap();
            Threads::new(threads, &engine.stages).unwrap()
        };
        let many = |executor: &Executor| match executor {
            Executor::MultiThread(pool) => pool.current_num_threads(),
            _ => 1,
        };
        assert_eq!(many(&threads(Kernels::Fused, 2).tract().1), 1);
        assert_eq!(many(&threads(Kernels::Tract, 1).tract().1), 1);
        let threads = threads(Kernels::Tract, 2);
        let (turn, executor) = threads.tract();
        assert_eq!((many(&executor), many(&threads.tract().1)), (2, 1));
        drop(turn);
        assert_eq!(many(&threads.tract().1), 2);
    }
}
