use std::fmt;

use offramp_core::{ExitView, Verdict};
use wasmtime::Store;

use crate::bindings::ExitPolicy;
use crate::digest::PolicyDigest;
use crate::facts::{ModelFacts, Parameters};
use crate::fault::Fault;
use crate::host::Guest;
use crate::policy::{ConfigureError, Policy};
use crate::watchdog::Watchdog;

/// A configured policy that decides, for the frames of one camera.
pub struct Instance {
    store: Store<Guest>,
    exports: ExitPolicy,
    decide_fuel: u64,
    /// The fault that ended it.
    ended: Option<Fault>,
    policy: Policy,
    model: ModelFacts,
    parameters: Parameters,
    configure_fuel_used: u64,
}

impl Instance {
    pub(crate) fn new(
        policy: Policy,
        store: Store<Guest>,
        exports: ExitPolicy,
        model: ModelFacts,
        parameters: Parameters,
    ) -> Instance {
        let limits = policy.shared().limits;
        let configure_fuel_used = limits.configure_fuel - fuel_left(&store);
        let decide_fuel = limits.decide_fuel;
        Instance {
            store,
            exports,
            decide_fuel,
            ended: None,
            policy,
            model,
            parameters,
            configure_fuel_used,
        }
    }

    /// Decides about one frame at one exit.
    ///
    /// # Errors
    ///
    /// When the call does not come to its end. The instance is gone then and gives the same fault
    /// again; [`again`](Self::again) makes a new one.
    #[inline]
    pub fn decide(&mut self, view: &ExitView) -> Result<Verdict, Fault> {
        if let Some(fault) = self.ended {
            return Err(fault);
        }
        self.store.data_mut().verdict_asked();
        self.store.set_fuel(self.decide_fuel).expect("the engine meters fuel");
        self.store.set_epoch_deadline(Watchdog::GRANTED);
        match self
            .exports
            .offramp_policy_guest()
            .call_decide(&mut self.store, view.into())
        {
            Ok(verdict) => Ok(verdict.into()),
            Err(error) => Err(self.end(&error)),
        }
    }

    #[cold]
    fn end(&mut self, error: &wasmtime::Error) -> Fault {
        let fault = Fault::of(error);
        tracing::debug!(policy = %self.policy.digest(), "decide failed: {error:#}");
        self.ended = Some(fault);
        fault
    }

    /// Whether a fault ended it.
    #[must_use]
    pub fn ended(&self) -> Option<Fault> {
        self.ended
    }

    /// Makes a new instance of the same policy with the same configuration; its state starts afresh.
    ///
    /// # Errors
    ///
    /// As [`Policy::configure`].
    pub fn again(&self) -> Result<Instance, ConfigureError> {
        self.policy.configure(&self.model, &self.parameters)
    }

    /// What the policy is known by.
    #[must_use]
    pub fn digest(&self) -> PolicyDigest {
        self.policy.digest()
    }

    /// Fuel that the last [`decide`](Self::decide) used.
    pub(crate) fn decide_fuel_used(&self) -> u64 {
        self.decide_fuel - fuel_left(&self.store)
    }

    /// Fuel that starting and configuring it used.
    pub(crate) fn configure_fuel_used(&self) -> u64 {
        self.configure_fuel_used
    }
}

fn fuel_left(store: &Store<Guest>) -> u64 {
    store.get_fuel().expect("the engine meters fuel")
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance")
            .field("policy", &self.digest())
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}
