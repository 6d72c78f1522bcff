//! Stages of fused operators: what tract is not fast enough at.
//!
//! [`lower`] turns a checked graph into a [`Plan`] of steps over a few buffers; [`kernels`] has the arithmetic,
//! written once over [`simd`] and run with the widest vectors that the machine has.

mod kernels;
mod lower;
mod plan;
mod simd;

pub(crate) use lower::lower;
pub(crate) use plan::{Buffers, Plan, Tensors};
pub(crate) use simd::Isa;

#[cfg(test)]
mod tests;
