//! Cascade, heads, learner, audits and summary of a multi-exit classifier: sans-I/O and deterministic.
//!
//! # Terms
//! - A **stage** is a part of the frozen backbone. It turns the state left by the stage before into a
//!   new state and a **feature** vector u ∈ R^C with ‖u‖² ≈ C.
//! - An **exit** follows each stage: its **head**, a linear classifier z = W u + b with W ∈ R^{K×C},
//!   gives a probability to each of the K classes.
//! - A **verdict** says at an exit whether the frame leaves there or goes on. The last exit is not asked.
//! - An **audit** is a frame that left early and is nevertheless run to the last exit, after its
//!   prediction is out, to see whether the last exit agrees.
//!
//! # Driving it
//! [`Core`] is a state machine for one camera: [`Event`]s go in, [`Effect`]s come out, and the driver
//! does what they order. It owns no clock, no threads, no randomness and no memory that grows with the
//! frames: time arrives as a number, and random words arrive with the frames. The same events give
//! bit-identical verdicts, predictions and heads on every target.
//!
//! One frame is on its way at a time. The whole contract:
//!
//! ```
//! use offramp_core::{Core, Effect, Event, Facts, Head, Micros, Network, Settings};
//!
//! # fn network() -> Network {
//! #     let head = || Head::new(2, 3, vec![1.0, 0.0, 0.0, 0.0, 1.0, 0.0], vec![0.0; 2]).unwrap();
//! #     Network { heads: vec![head(), head()], whiteners: vec![], stage_macs: vec![10, 10] }
//! # }
//! # fn run_stage(_stage: usize) -> [f32; 3] { [1.7, 0.1, 0.2] }
//! # fn clock() -> Micros { Micros(0) }
//! let mut core = Core::new(network(), Settings::default())?;
//! for frame in 0..3 {
//!     let arrived = Event::FrameArrived { frame, random: 0x9e37_79b9, context: 0, facts: Facts::default() };
//!     let mut todo = Vec::new();
//!     core.handle(clock(), arrived, &mut |effect| todo.push(effect))?;
//!     while let Some(effect) = todo.pop() {
//!         let features;
//!         let event = match effect {
//!             Effect::RunStage { stage } => {
//!                 features = run_stage(stage);
//!                 Event::FeaturesReady { features: &features }
//!             }
//!             Effect::Decide { view } => {
//!                 // A policy answers here; when it fails, the built-in rule does.
//!                 Event::VerdictGiven { verdict: view.rule(), fault: false }
//!             }
//!             Effect::Emit { prediction } => {
//!                 println!("frame {} is class {}", prediction.frame, prediction.class);
//!                 continue;
//!             }
//!             Effect::Finished { .. } => continue,
//!         };
//!         core.handle(clock(), event, &mut |effect| todo.push(effect))?;
//!     }
//!     core.learn(); // off the latency path; done at the next frame at the latest
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![no_std]

extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

mod audit;
mod cascade;
mod checkpoint;
mod context;
mod control;
mod drift;
mod guard;
mod head;
mod lanes;
mod learner;
mod math;
mod numbers;
mod prior;
mod random;
mod view;
mod whitener;
mod window;

pub use audit::upper_bound;
pub use cascade::{Core, Effect, Event, Facts, Micros, Misuse, Network, NetworkError, Prediction, Settings};
pub use checkpoint::{CheckpointError, fingerprint};
pub use guard::GuardSettings;
pub use head::{Head, HeadError};
pub use learner::{LearnerSettings, Target};
pub use prior::PriorSettings;
pub use random::SplitMix64;
pub use view::{AuditResult, ExitView, Outcome, Verdict};
pub use whitener::{Whitener, WhitenerError};
pub use window::WindowReport;
