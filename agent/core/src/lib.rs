//! Cascade, heads, learner, audits and summary of a multi-exit classifier: sans-I/O and deterministic.
#![no_std]

extern crate alloc;

mod view;

pub use view::{ExitView, Verdict};
