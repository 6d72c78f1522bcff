//! Runs exit policies: WebAssembly components of the contract `offramp:policy@1`
//! (`plugins/wit/policy.wit`), in wasmtime.
//!
//! [`PolicyHost::load`] checks and compiles a component into a [`Policy`]: tens of milliseconds, off
//! the path of frames. [`Policy::configure`] makes an [`Instance`] of it, which
//! [decides](Instance::decide) in well under a microsecond, without allocating. A [`Ladder`] drives
//! the instances of one camera: it swaps them between frames and steps down when one fails.
//!
//! # What a policy is held to
//!
//! A component comes from the network and is trusted with nothing. Each rule stands next to what it
//! does not cover, and what covers that. The numbers are [`Limits`].
//!
//! - **Size** is checked before anything is parsed, imports, exports and declared memory before
//!   anything is compiled. Compiling itself is not bounded in time, only by that size, the number of
//!   functions, the code, blocks and local variables of each, and by refusing nested components that instantiate
//!   others, which double at every step; it happens outside the path of frames.
//! - **Imports**: `offramp:policy/host` with `log`, and nothing else. No WASI, no clock, no random
//!   numbers: a policy computes from what it is shown. A log message above 4096 bytes is a fault, 256
//!   bytes of it are kept, and a policy that writes too many lines loses them.
//! - **Fuel** bounds the instructions of a call and is deterministic: the same component, calls and
//!   release of wasmtime use the same fuel. Bulk memory and table operations pay per byte and element.
//!   It is not time: an instruction that misses all caches costs the same fuel as one that does not,
//!   and `memory.grow` pays one unit however many pages it asks for. That is bounded by the memory
//!   cap, and by
//! - **the watchdog**, which ends a call that takes longer than the deadline. It looks at a call's
//!   loops and function entries, so one bulk operation runs to its end: at most the memory cap, well
//!   below a millisecond. It measures time on the wall: on a starved machine it may end an innocent
//!   call, which costs one frame decided by the built-in rule. It does not make verdicts differ
//!   otherwise.
//! - **Memory and tables** are capped over the whole instance; growing past the cap is a fault, not the
//!   -1 that WebAssembly would return. Wasmtime's own bookkeeping for an instance (a few kB, bounded by
//!   the number of core instances) and the compiled code (some ten times the component) come on top.
//! - **What crosses**: every place, length, text and number that a guest gives is checked, by wasmtime or, for components
//!   put together as tools do it, by this crate, which calls their core modules itself.
//! - **Stack** is capped; deeper recursion is a fault.
//! - **Floats** are deterministic (NaN canonicalised, no relaxed SIMD), so a trace replays bit for bit
//!   on another architecture.
//! - **Native code** is never taken from outside: components are always compiled here. The last ones are kept
//!   compiled by their digest, in memory only.
//! - **State** that a policy saves is bounded, and means nothing to the host. It goes to the next version of the
//!   policy only, which may refuse it.
//!
//! Not covered: a bug in wasmtime or Cranelift itself, and side channels through the CPU's caches. A
//! policy sees no secret worth reading that way.
//!
//! Interfaces beyond `guest` are optional: what a component does not export is not asked of it, so that the
//! components of contract 1.0 run on. The [`Ladder`] decides between policies: who is given up, and when it is
//! tried again.
//!
//! A fault takes the instance's memory and state with it: WebAssembly cannot be resumed. The policy can
//! be [started anew](Instance::restart).

mod bindings;
mod cache;
mod check;
mod direct;
mod facts;
mod fault;
mod host;
mod inspect;
mod instance;
mod ladder;
mod limits;
mod plan;
mod policy;
mod running;
mod watchdog;

#[cfg(test)]
#[path = "../tests/it/guests.rs"]
#[allow(dead_code, reason = "the tests outside use all of them")]
mod guests;

pub use check::{CheckError, CheckReport};
pub use facts::{BadParameter, ModelFacts, Parameters, Value};
pub use fault::Fault;
pub use host::{EngineError, PolicyHost};
pub use inspect::AbiVersion;
pub use instance::Instance;
pub use ladder::{Carry, CarryError, Ladder, LadderEvent, LadderRules, Why};
pub use limits::Limits;
pub use policy::{ConfigureError, LoadError, Policy, RestoreError};
