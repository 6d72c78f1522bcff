//! The contract as wasmtime sees it, generated from the WIT.

use offramp_core::{AuditResult, ExitView, Outcome, Verdict};
use wasmtime::component::InstancePre;

use crate::facts::{ModelFacts, Parameters, Value};

#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]
mod generated {
    wasmtime::component::bindgen!({ path: "../../plugins/wit", world: "stateful-policy" });
}

pub(crate) use generated::StatefulPolicy;
pub(crate) use generated::offramp::policy::host;

use generated::exports::offramp::policy::{guest, observer, state};

/// The functions of a component, found by name. Of a policy that is built for an older version of the contract, or
/// that does not look back, only the first part is there.
pub(crate) struct Names {
    guest: guest::GuestIndices,
    observer: Option<observer::GuestIndices>,
    state: Option<state::GuestIndices>,
}

impl Names {
    /// Finds them; `observer` and `state` say whether the component exports these interfaces.
    pub(crate) fn find<T>(component: &InstancePre<T>, observer: bool, state: bool) -> wasmtime::Result<Self> {
        Ok(Self {
            guest: guest::GuestIndices::new(component)?,
            observer: observer.then(|| observer::GuestIndices::new(component)).transpose()?,
            state: state.then(|| state::GuestIndices::new(component)).transpose()?,
        })
    }

    pub(crate) fn of(
        &self,
        mut store: impl wasmtime::AsContextMut,
        instance: &wasmtime::component::Instance,
    ) -> wasmtime::Result<Exports> {
        let (observer, state) = (self.observer.as_ref(), self.state.as_ref());
        Ok(Exports {
            guest: self.guest.load(&mut store, instance)?,
            observer: observer.map(|names| names.load(&mut store, instance)).transpose()?,
            state: state.map(|names| names.load(&mut store, instance)).transpose()?,
        })
    }
}

/// The functions of an instance.
pub(crate) struct Exports {
    pub(crate) guest: guest::Guest,
    pub(crate) observer: Option<observer::Guest>,
    pub(crate) state: Option<state::Guest>,
}

impl From<&Outcome> for observer::Outcome {
    fn from(outcome: &Outcome) -> Self {
        let Outcome {
            exit,
            class,
            confidence,
            cost,
            latency,
            interval,
            energy,
            temperature,
            hurried,
            fault,
            audit,
        } = *outcome;
        observer::Outcome {
            exit,
            class,
            confidence,
            cost,
            latency,
            interval,
            energy,
            temperature,
            hurried,
            fault,
            audit: match audit {
                AuditResult::None => observer::Audit::None,
                AuditResult::Agreed => observer::Audit::Agreed,
                AuditResult::Differed => observer::Audit::Differed,
            },
        }
    }
}

impl From<&ExitView> for guest::ExitView {
    #[inline]
    fn from(view: &ExitView) -> Self {
        // Every field named on both sides: a field more on either does not compile.
        let ExitView {
            exit,
            exits,
            class,
            confidence,
            margin,
            entropy,
            agreement,
            change,
            cost,
            next_cost,
            time_left,
            queue_depth,
            temperature,
            power_budget,
            battery,
            threshold,
        } = *view;
        guest::ExitView {
            exit,
            exits,
            class,
            confidence,
            margin,
            entropy,
            agreement,
            change,
            cost,
            next_cost,
            time_left,
            queue_depth,
            temperature,
            power_budget,
            battery,
            threshold,
        }
    }
}

impl From<guest::Verdict> for Verdict {
    #[inline]
    fn from(verdict: guest::Verdict) -> Self {
        match verdict {
            guest::Verdict::GoOn => Verdict::GoOn,
            guest::Verdict::Leave => Verdict::Leave,
            guest::Verdict::LeaveWithoutLearning => Verdict::LeaveWithoutLearning,
            guest::Verdict::Audit => Verdict::Audit,
        }
    }
}

impl From<&ModelFacts> for guest::ModelFacts {
    fn from(model: &ModelFacts) -> Self {
        guest::ModelFacts {
            classes: model.classes,
            exit_costs: model.exit_costs.clone(),
        }
    }
}

pub(crate) fn parameters(parameters: &Parameters) -> Vec<guest::Parameter> {
    let parameter = |(name, value): (&str, &Value)| guest::Parameter {
        name: name.to_owned(),
        value: match value {
            Value::Flag(flag) => guest::Value::Flag(*flag),
            Value::Integer(integer) => guest::Value::Integer(*integer),
            Value::Number(number) => guest::Value::Number(*number),
            Value::Text(text) => guest::Value::Text(text.clone()),
        },
    };
    parameters.iter().map(parameter).collect()
}
