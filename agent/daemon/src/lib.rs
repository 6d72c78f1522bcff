//! The Offramp agent and its tools, as a library for the binary `offramp` and for tests.

#[cfg(test)]
#[global_allocator]
static ALLOCATOR: tool::bench::Counting = tool::bench::Counting;

pub mod agent;
pub mod config;
#[cfg(feature = "demo")]
pub mod demo;
pub mod evaluate;
mod identity;
pub mod judge;
pub mod lane;
mod machine;
pub mod package;
pub mod terminal;
pub mod tool;
