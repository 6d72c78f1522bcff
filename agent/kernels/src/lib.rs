//! Plans of fused operators over f32 maps, with the widest vectors that the machine has.
//!
//! A [`Draft`] takes operators one by one, in the order in which they are to run; [`Draft::plan`] makes of them
//! a [`Plan`]: biases, activations and sums go into the operator before them, weights are packed for an
//! instruction set, and tensors share a few buffers. Maps are kept as height × width × channels.
//!
//! ```
//! use offramp_kernels::{Activation, Buffers, Draft, Isa, Linear, Pool, Tensors, Work};
//!
//! struct Image(Vec<Vec<f32>>, Vec<Vec<f32>>);
//!
//! impl Tensors for Image {
//!     fn inputs(&mut self) -> &mut [Vec<f32>] {
//!         &mut self.0
//!     }
//!     fn outputs(&mut self) -> &mut [Vec<f32>] {
//!         &mut self.1
//!     }
//! }
//!
//! let mut draft = Draft::default();
//! let x = draft.input(2);
//! let sum = Linear { weights: vec![1.0, 1.0], inputs: 2, bias: vec![0.5], activation: Activation::None };
//! let y = draft.compute(Work::Linear(sum), x, 1);
//! let plan = draft.plan(&[y], Isa::best());
//!
//! let mut image = Image(vec![vec![1.0, 2.0]], vec![vec![]]);
//! plan.run(&mut Buffers::default(), &mut [&mut image], &Pool::default());
//! assert_eq!(image.1, [[3.5]]);
//! ```
//!
//! A [`Pool`] has threads that help the calling one with the steps that are worth it. How many there are, and
//! which of them does what, does not show in the result: a value comes out of the same operations in the same
//! order, to the bit. Between instruction sets bits differ.

mod arithmetic;
mod draft;
mod layout;
mod peak;
mod plan;
mod pool;
mod simd;

pub use arithmetic::{Activation, Depthwise, Map, Norm, Window};
pub use draft::{Draft, Id, Linear, Work};
pub use peak::{peak, read};
pub use plan::{Buffers, Plan, Tensors};
pub use pool::{Pool, Turn};
pub use simd::Isa;

#[cfg(test)]
mod tests;
