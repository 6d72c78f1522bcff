use std::fmt;

use wasmtime::Trap;

/// Why a call into a policy did not come to its end. The instance is gone with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Fault {
    /// It used up its fuel.
    #[error("the policy ran out of fuel: it computes too long, perhaps in an endless loop")]
    OutOfFuel,
    /// It took longer than its deadline.
    #[error("the policy took longer than its deadline")]
    Deadline,
    /// It asked for more memory or table elements than it may have.
    #[error("the policy asked for more memory than it may have")]
    Memory,
    /// It recursed too deep.
    #[error("the policy ran out of stack: it recurses too deep")]
    Stack,
    /// It trapped; a panic of a policy written in Rust is an `unreachable`.
    #[error("the policy trapped ({reason})")]
    Trap {
        /// WebAssembly's name for the trap.
        reason: &'static str,
    },
    /// It broke the contract: a verdict that is none, a message that is too long or no UTF-8.
    #[error("the policy broke the contract: it gave a value that is out of range")]
    Contract,
    /// It saved more than it may carry over.
    #[error("the policy saved more state than it may")]
    State,
    /// Most of its last verdicts took longer than its time budget.
    #[error("the policy took longer than its time budget for most of its verdicts")]
    Budget,
    /// After another fault it could not be made anew, though it could before.
    #[error("the policy could not be started again after a fault")]
    Restart,
}

/// The marker by which a refused growth is known again after it went through the guest.
#[derive(Debug)]
pub(crate) struct OverCap;

impl fmt::Display for OverCap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("memory or table grows past its cap")
    }
}

impl std::error::Error for OverCap {}

/// The marker of a state that is longer than it may be.
#[derive(Debug, thiserror::Error)]
#[error("more state than may be saved")]
pub(crate) struct TooMuchState;

impl Fault {
    pub(crate) fn of(error: &wasmtime::Error) -> Fault {
        if error.is::<OverCap>() {
            return Fault::Memory;
        }
        if error.is::<TooMuchState>() {
            return Fault::State;
        }
        let Some(trap) = error.downcast_ref::<Trap>() else {
            return Fault::Contract;
        };
        let reason = match trap {
            Trap::OutOfFuel => return Fault::OutOfFuel,
            Trap::Interrupt => return Fault::Deadline,
            Trap::StackOverflow => return Fault::Stack,
            Trap::UnreachableCodeReached => "unreachable",
            Trap::MemoryOutOfBounds => "out of bounds memory access",
            Trap::TableOutOfBounds => "out of bounds table access",
            Trap::IndirectCallToNull => "indirect call to null",
            Trap::BadSignature => "indirect call type mismatch",
            Trap::IntegerOverflow => "integer overflow",
            Trap::IntegerDivisionByZero => "integer divide by zero",
            Trap::BadConversionToInteger => "invalid conversion to integer",
            _ => "misuse of the component model",
        };
        Fault::Trap { reason }
    }
}
