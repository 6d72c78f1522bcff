use offramp_core::{ExitView, Outcome, Verdict};
use offramp_policy::{ConfigureError, Fault, Instance, ModelFacts, Parameters, Policy};

use crate::Decider;

/// A policy's instance in its host, and the fuel that its verdicts took.
#[derive(Debug)]
pub struct Hosted {
    instance: Instance,
    /// Of each verdict, in their order.
    fuel: Vec<u64>,
    fault: Option<Fault>,
}

impl Hosted {
    /// Configures a policy for a network.
    ///
    /// # Errors
    /// When it does not take its configuration.
    pub fn new(policy: &Policy, facts: &ModelFacts, parameters: &Parameters) -> Result<Self, ConfigureError> {
        Ok(Self {
            instance: policy.configure(facts, parameters)?,
            fuel: Vec::new(),
            fault: None,
        })
    }

    /// The last fault, if there was one.
    pub fn fault(&self) -> Option<Fault> {
        self.fault
    }

    /// The fuel of each verdict.
    pub fn into_fuel(self) -> Vec<u64> {
        self.fuel
    }

    /// Begins afresh after a fault, as a device does with the next frame.
    fn failed(&mut self, fault: Fault) {
        self.fault = Some(fault);
        // What cannot be started again goes on failing, frame by frame.
        let _ = self.instance.restart();
    }
}

impl Decider for Hosted {
    fn decide(&mut self, view: &ExitView) -> Option<Verdict> {
        match self.instance.decide(view) {
            Ok(verdict) => {
                self.fuel.push(self.instance.fuel());
                Some(verdict)
            }
            Err(fault) => {
                self.failed(fault);
                None
            }
        }
    }

    fn observe(&mut self, outcome: &Outcome) {
        if let Err(fault) = self.instance.observe(outcome) {
            self.failed(fault);
        }
    }
}
