use std::fmt;

use offramp_core::{ExitView, Verdict};
use offramp_proto::Digest;
use wasmtime::Store;

use crate::bindings::ExitPolicy;
use crate::facts::{ModelFacts, Parameters};
use crate::fault::Fault;
use crate::host::Guest;
use crate::policy::{ConfigureError, Policy};
use crate::watchdog::Watchdog;

/// A configured policy that decides, for the frames of one camera.
pub struct Instance {
    /// What runs, or the fault that ended it.
    running: Result<Running, Fault>,
    decide_fuel: u64,
    policy: Policy,
    model: ModelFacts,
    parameters: Parameters,
}

pub(crate) struct Running {
    pub(crate) store: Store<Guest>,
    pub(crate) exports: ExitPolicy,
}

impl Instance {
    pub(crate) fn new(policy: Policy, running: Running, model: ModelFacts, parameters: Parameters) -> Instance {
        let decide_fuel = policy.shared().limits.decide_fuel;
        Instance {
            running: Ok(running),
            decide_fuel,
            policy,
            model,
            parameters,
        }
    }

    /// Decides about one frame at one exit.
    ///
    /// # Errors
    ///
    /// When the call does not come to its end. What ran is gone then, with its memory: further calls
    /// give the same fault, until [`restart`](Self::restart).
    #[inline]
    pub fn decide(&mut self, view: &ExitView) -> Result<Verdict, Fault> {
        let Running { store, exports } = self.running.as_mut().map_err(|fault| *fault)?;
        store.data_mut().verdict_asked();
        store.set_fuel(self.decide_fuel).expect("the engine meters fuel");
        store.set_epoch_deadline(Watchdog::GRANTED);
        match exports.offramp_policy_guest().call_decide(store, view.into()) {
            Ok(verdict) => Ok(verdict.into()),
            Err(error) => Err(self.end(&error)),
        }
    }

    #[cold]
    fn end(&mut self, error: &wasmtime::Error) -> Fault {
        let fault = Fault::of(error);
        tracing::debug!(policy = %self.policy.digest(), "decide failed: {error:#}");
        self.running = Err(fault);
        fault
    }

    /// The fault that ended it, if one did.
    #[must_use]
    pub fn ended(&self) -> Option<Fault> {
        self.running.as_ref().err().copied()
    }

    /// Starts the same policy anew with the same configuration; its state begins afresh.
    ///
    /// # Errors
    ///
    /// As [`Policy::configure`]; the instance stays as it was.
    pub fn restart(&mut self) -> Result<(), ConfigureError> {
        self.running = Ok(self.policy.run(&self.model, &self.parameters)?);
        Ok(())
    }

    /// What the policy is known by.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.policy.digest()
    }

    /// Fuel that the last call used: of [`decide`](Self::decide), or before the first of starting and
    /// configuring.
    pub(crate) fn fuel_used(&self, budget: u64) -> u64 {
        let left = |running: &Running| running.store.get_fuel().expect("the engine meters fuel");
        self.running.as_ref().map_or(budget, |running| budget - left(running))
    }
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance")
            .field("policy", &self.digest())
            .field("ended", &self.ended())
            .finish_non_exhaustive()
    }
}
