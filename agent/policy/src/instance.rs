use std::fmt;

use offramp_core::{ExitView, Outcome, Verdict};
use offramp_proto::Digest;

use crate::facts::{ModelFacts, Parameters};
use crate::fault::Fault;
use crate::host::printable;
use crate::policy::{ConfigureError, Policy, REASON_BYTES, RestoreError};
use crate::running::Running;

/// A configured policy that decides, for the frames of one camera.
pub struct Instance {
    /// What runs, or the fault that ended it.
    running: Result<Running, Fault>,
    decide_fuel: u64,
    policy: Policy,
    model: ModelFacts,
    parameters: Parameters,
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
        let running = self.running.as_mut().map_err(|fault| *fault)?;
        running.store.data_mut().verdict_asked();
        running.grant(self.decide_fuel);
        match running.decide(view) {
            Ok(verdict) => Ok(verdict),
            Err(error) => Err(self.end("decide", &error)),
        }
    }

    /// Tells what became of a frame, where the policy looks back; others are not asked.
    ///
    /// # Errors
    ///
    /// As [`decide`](Self::decide), under the same limits.
    pub fn observe(&mut self, outcome: &Outcome) -> Result<(), Fault> {
        let running = self.running.as_mut().map_err(|fault| *fault)?;
        if !running.observes() {
            return Ok(());
        }
        running.grant(self.decide_fuel);
        match running.observe(outcome) {
            Some(Err(error)) => Err(self.end("observe", &error)),
            Some(Ok(())) | None => Ok(()),
        }
    }

    /// What the next instance should know; `None` where the policy keeps no state, or has none to tell.
    ///
    /// # Errors
    ///
    /// As [`decide`](Self::decide), with the fuel of `configure`; [`Fault::State`] above
    /// [`Limits::state_bytes`](crate::Limits::state_bytes).
    pub fn save(&mut self) -> Result<Option<Vec<u8>>, Fault> {
        let limits = self.policy.shared().limits;
        let running = self.running.as_mut().map_err(|fault| *fault)?;
        running.grant(limits.configure_fuel);
        match running.save(&limits) {
            None => Ok(None),
            Some(Ok(saved)) => Ok(Some(saved).filter(|saved| !saved.is_empty())),
            Some(Err(error)) => Err(self.end("save", &error)),
        }
    }

    /// Hands over what another instance has [saved](Self::save). To come before the first verdict.
    ///
    /// # Errors
    ///
    /// When the policy keeps no state, refuses this one, or faults. What it has taken up of it until then is not
    /// known: [`restart`](Self::restart) begins afresh.
    pub fn restore(&mut self, saved: &[u8]) -> Result<(), RestoreError> {
        let limits = self.policy.shared().limits;
        let running = self.running.as_mut().map_err(|fault| *fault)?;
        running.grant(limits.configure_fuel);
        match running.restore(saved) {
            None => Err(RestoreError::Stateless),
            Some(Ok(Ok(()))) => Ok(()),
            Some(Ok(Err(reason))) => Err(RestoreError::Refused {
                reason: printable(&reason, REASON_BYTES),
            }),
            Some(Err(error)) => Err(RestoreError::Fault(self.end("restore", &error))),
        }
    }

    /// Ends it, and gives its memory back.
    pub(crate) fn stop(&mut self, fault: Fault) {
        self.running = Err(fault);
    }

    #[cold]
    fn end(&mut self, call: &str, error: &wasmtime::Error) -> Fault {
        let fault = Fault::of(error);
        tracing::debug!(policy = %self.policy.digest(), "{call} failed: {error:#}");
        self.stop(fault);
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

    /// Fuel that the latest [`decide`](Self::decide) used; 0 where a fault has ended the instance.
    #[must_use]
    pub fn fuel(&self) -> u64 {
        let used = self.fuel_used(self.decide_fuel);
        if self.ended().is_none() { used } else { 0 }
    }

    /// Fuel that the last call used, which had so much; before the first of starting and configuring.
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
