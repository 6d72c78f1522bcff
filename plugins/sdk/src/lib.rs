//! Guest side of exit policies: write a policy in Rust, ship it as a WebAssembly component.
//!
//! A policy is a type that implements [`Policy`], named once to [`export_policy!`], in a library crate
//! that is `#![no_std]`:
//!
//! ```
//! extern crate alloc;
//!
//! use alloc::string::String;
//! use offramp_policy_sdk::{ExitView, ModelFacts, Parameters, Policy, Verdict, export_policy};
//!
//! /// Leaves where two exits in a row name the same class.
//! struct Agree;
//!
//! impl Policy for Agree {
//!     fn configure(_model: &ModelFacts, parameters: Parameters) -> Result<Self, String> {
//!         parameters.finish()?;
//!         Ok(Agree)
//!     }
//!
//!     fn decide(&mut self, view: &ExitView) -> Verdict {
//!         if view.agreement { Verdict::Leave } else { Verdict::GoOn }
//!     }
//! }
//!
//! export_policy!(Agree);
//! # fn main() {}
//! ```
//!
//! The crate is a plain library; `offramp-policy-build` makes the component of it. The contract,
//! field by field, is `plugins/wit/policy.wit`; the types here are generated from it. On wasm32 this
//! crate brings the global allocator and the panic handler (a panic is a trap: the device falls back
//! to its built-in rule and starts a new instance). Elsewhere it brings neither, and the policy is an
//! ordinary type that unit tests call directly.
#![no_std]

extern crate alloc;

mod export;
mod log;
mod parameters;
#[cfg(target_arch = "wasm32")]
mod runtime;

#[allow(clippy::all, clippy::pedantic, unreachable_pub, reason = "generated")]
#[doc(hidden)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../wit",
        world: "stateful-policy",
        pub_export_macro: true,
        export_macro_name: "export_component",
        default_bindings_module: "offramp_policy_sdk::bindings",
        runtime_path: "::wit_bindgen::rt",
    });
}

#[doc(hidden)]
pub use alloc::{string::String as __String, vec::Vec as __Vec};
pub use bindings::exports::offramp::policy::guest::{ExitView, ModelFacts, Parameter, Value, Verdict};
pub use bindings::exports::offramp::policy::observer::{Audit, Outcome};
#[doc(hidden)]
pub use export::Slot;
pub use log::{Level, log};
pub use parameters::Parameters;

use alloc::string::String;
use alloc::vec::Vec;

/// An exit policy. Two functions make one; the others are for policies that look back.
pub trait Policy: Sized {
    /// Makes the policy for a network, with the operator's parameters.
    ///
    /// # Errors
    ///
    /// A reason that the operator can act on, at most 4096 bytes. Refuse what you do not know:
    /// [`Parameters::finish`] does it for you.
    fn configure(model: &ModelFacts, parameters: Parameters) -> Result<Self, String>;

    /// Decides about one frame at one exit.
    ///
    /// Let the answer depend on nothing but the views seen so far: then a recorded trace replays to
    /// the same verdicts.
    fn decide(&mut self, view: &ExitView) -> Verdict;

    /// Hears what became of a frame, once it is done. Without it nothing is done.
    fn observe(&mut self, outcome: &Outcome) {
        let _ = outcome;
    }

    /// What the next version of this policy should know when it takes over: at most 65536 bytes, in a
    /// format of your own that begins with a version. Without it nothing is carried over.
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Takes up what another instance of this policy has [saved](Self::save), of an older version or
    /// a newer one. Comes right after [`configure`](Self::configure), and never with nothing.
    ///
    /// # Errors
    ///
    /// A reason for the device's log; the policy then begins afresh. Without this function all is
    /// refused.
    fn restore(&mut self, saved: &[u8]) -> Result<(), String> {
        let _ = saved;
        Err(String::from("this policy keeps no state"))
    }
}
