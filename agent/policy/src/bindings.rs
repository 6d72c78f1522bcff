//! The contract as wasmtime sees it, generated from the WIT.

use offramp_core::{AuditResult, ExitView, Outcome, Verdict};

use crate::facts::{ModelFacts, Parameters, Value};

#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]
mod generated {
    // The widest world; of its exports, each interface is looked up by itself.
    wasmtime::component::bindgen!({
        path: "../../plugins/wit",
        world: "stateful-policy",
        imports: { default: trappable },
    });
}

pub(crate) use generated::StatefulPolicy;
pub(crate) use generated::exports::offramp::policy::{guest, observer, state};
pub(crate) use generated::offramp::policy::host;

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
