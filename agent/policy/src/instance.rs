use std::fmt;

use offramp_core::{ExitView, Outcome, Verdict};
use offramp_proto::Digest;
use wasmtime::Store;

use crate::bindings::Exports;
use crate::facts::{ModelFacts, Parameters};
use crate::fault::Fault;
use crate::host::{Guest, HANDED_OVER, printable};
use crate::policy::{ConfigureError, Policy, REASON_BYTES};
use crate::watchdog::Watchdog;

/// Why a policy does not take up what another instance of it has saved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// It does not know what to do with it.
    #[error("the policy refuses the state: {reason}")]
    Refused {
        /// Its own words, cut and without control characters.
        reason: String,
    },
    /// It faults.
    #[error(transparent)]
    Fault(#[from] Fault),
}

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
    pub(crate) exports: Exports,
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
        match exports.guest.call_decide(store, view.into()) {
            Ok(verdict) => Ok(verdict.into()),
            Err(error) => Err(self.end(&error)),
        }
    }

    /// Tells what became of a frame; nothing happens where the policy does not want to hear of it.
    ///
    /// # Errors
    ///
    /// As [`decide`](Self::decide).
    pub fn observe(&mut self, outcome: &Outcome) -> Result<(), Fault> {
        let Running { store, exports } = self.running.as_mut().map_err(|fault| *fault)?;
        let Some(observer) = &exports.observer else {
            return Ok(());
        };
        store.set_fuel(self.decide_fuel).expect("the engine meters fuel");
        store.set_epoch_deadline(Watchdog::GRANTED);
        observer
            .call_observe(store, outcome.into())
            .map_err(|error| self.end(&error))
    }

    /// What the policy wants the next instance to know, at most
    /// [`Limits::state_bytes`](crate::Limits::state_bytes); `None` where it keeps no state or has none.
    ///
    /// # Errors
    ///
    /// As [`decide`](Self::decide).
    pub fn save(&mut self) -> Result<Option<Vec<u8>>, Fault> {
        let limits = self.policy.shared().limits;
        let Running { store, exports } = self.running.as_mut().map_err(|fault| *fault)?;
        let Some(state) = &exports.state else {
            return Ok(None);
        };
        store.set_fuel(limits.configure_fuel).expect("the engine meters fuel");
        store.set_epoch_deadline(Watchdog::GRANTED);
        store.set_hostcall_fuel(HANDED_OVER.max(limits.state_bytes));
        let saved = state.call_save(&mut *store);
        store.set_hostcall_fuel(HANDED_OVER);
        match saved {
            Ok(saved) if saved.len() <= limits.state_bytes => Ok(Some(saved).filter(|saved| !saved.is_empty())),
            Ok(_) => Err(self.end_with(Fault::State)),
            Err(error) => match self.end(&error) {
                Fault::Contract => Err(self.end_with(Fault::State)),
                fault => Err(fault),
            },
        }
    }

    /// Hands over what another instance has saved; nothing happens where the policy keeps no state.
    ///
    /// # Errors
    ///
    /// When the policy refuses it or faults; it is to be [restarted](Self::restart) then.
    pub fn restore(&mut self, saved: &[u8]) -> Result<(), RestoreError> {
        let fuel = self.policy.shared().limits.configure_fuel;
        let Running { store, exports } = self.running.as_mut().map_err(|fault| *fault)?;
        let Some(state) = &exports.state else {
            return Ok(());
        };
        store.set_fuel(fuel).expect("the engine meters fuel");
        store.set_epoch_deadline(Watchdog::GRANTED);
        match state.call_restore(store, saved) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(reason)) => Err(RestoreError::Refused {
                reason: printable(&reason, REASON_BYTES),
            }),
            Err(error) => Err(self.end(&error).into()),
        }
    }

    #[cold]
    fn end(&mut self, error: &wasmtime::Error) -> Fault {
        tracing::debug!(policy = %self.policy.digest(), "a call failed: {error:#}");
        self.end_with(Fault::of(error))
    }

    fn end_with(&mut self, fault: Fault) -> Fault {
        self.running = Err(fault);
        fault
    }

    /// Lets go of what it takes, until it is [restarted](Self::restart).
    pub(crate) fn stop(&mut self) {
        self.running = Err(Fault::Restart);
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

    /// Fuel that the latest [`decide`](Self::decide) used; 0 where a fault has ended the instance.
    #[must_use]
    pub fn fuel(&self) -> u64 {
        let used = self.fuel_used(self.decide_fuel);
        if self.running.is_ok() { used } else { 0 }
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
