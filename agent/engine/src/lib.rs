//! Runs the stages of a model package one by one.
//!
//! An [`Engine`] holds the stages of one package, ready to run; a [`Frame`] is
//! one image on its way through them. [`Engine::start`] puts an image into a
//! frame, and each call of [`Engine::run_stage`] runs one stage and gives the
//! features of its exit. To leave early is to stop calling: a stage that is not
//! asked for is not run, and nothing of it is computed ahead.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let package = offramp_model::Package::read("", |_| None)?;
//! # let (image, leave_here) = (vec![0; 3072], |_: &[f32]| true);
//! let mut engine = offramp_engine::Engine::load(&package)?;
//! let mut frame = engine.frame();
//! let mut pixels = vec![0.0; package.manifest().input.values()];
//!
//! // For every image:
//! package.manifest().input.normalize(&image, &mut pixels);
//! engine.start(&mut frame, &pixels)?;
//! for stage in 0..engine.stages() {
//!     let features = engine.run_stage(stage, &mut frame)?;
//!     if leave_here(features) {
//!         break;
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The state between two stages goes from one to the next without a copy. All
//! work is done by the calling thread, and by those that [`Engine::with_threads`]
//! gives it (tract's own for stages that it runs); a clone of an engine shares the weights and serves another thread.
//!
//! **Loading checks.** A graph is decoded and looked through before the runtime
//! sees it: operators of convolutional networks only, finite weights, no
//! subgraphs, no data outside the file, no arithmetic on constants beyond casts
//! and reshapes, weights that are read a few times at most on average, so that what
//! a graph can make the loader allocate is bounded by its own size. Then every tensor's shape must be known, hold at most
//! [`MAX_TENSOR_VALUES`] values, and fit the manifest and the next stage, and
//! each stage is run once on zeros. A panic of the runtime on a graph that
//! passed all this is contained and reported like any other error. What is not
//! bounded is the time of one run: an engine trusts the arithmetic of a package,
//! as it must trust its weights, once the signature has been checked.
//!
//! A stage whose every operator has a kernel in `offramp-kernels` is run as a plan of those, with the widest vectors
//! that the machine has; any other by tract, which has also checked both. With [`Engine::offload`] stages go to ONNX
//! Runtime, and with it to a GPU, once that has shown to compute the same. No type of tract or ONNX Runtime is in this
//! crate's interface.

mod contain;
mod engine;
mod error;
mod graph;
mod lower;
mod offload;
mod stage;

pub use engine::{Engine, Frame, instructions, streaming};
pub use error::{Cause, LoadError, RunError, StageProblem};
pub use offload::{Offload, OffloadProblem, Progress, Provider, Refusal, RunBy, StageState, Survey};
pub use stage::{Kernels, MAX_TENSOR_VALUES};
