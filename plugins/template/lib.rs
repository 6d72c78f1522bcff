//! Leaves at the first exit whose best class leads the second by enough; at the last exit always.
//!
//! | parameter | value | default |
//! |---|---|---|
//! | `lead` | number from 0 to 1: largest probability less the second-largest | 0.5 |
#![no_std]

extern crate alloc;

use alloc::string::String;

use offramp_policy_sdk::{ExitView, ModelFacts, Parameters, Policy, Verdict, export_policy};

/// The policy: whatever it is to remember between frames goes in here.
#[derive(Clone, Debug, PartialEq)]
pub struct Lead {
    lead: f32,
}

impl Policy for Lead {
    /// Runs once. Take out the parameters that you know; `finish` refuses the others by name.
    fn configure(_model: &ModelFacts, mut parameters: Parameters) -> Result<Self, String> {
        let lead = parameters.take_number("lead", 0.0..=1.0, "a number from 0 to 1")?;
        parameters.finish()?;
        Ok(Lead {
            lead: lead.unwrap_or(0.5) as f32,
        })
    }

    /// Runs at each exit of each frame but the last. What the device does not know is NaN, and no comparison with NaN
    /// holds: write them so that the frame then goes on.
    fn decide(&mut self, view: &ExitView) -> Verdict {
        if view.margin >= self.lead {
            Verdict::Leave
        } else {
            Verdict::GoOn
        }
    }
}

export_policy!(Lead);

#[cfg(test)]
mod tests {
    use alloc::vec;

    use offramp_policy_sdk::{Parameter, Value};

    use super::*;

    fn configured(name: &str, value: f64) -> Result<Lead, String> {
        let model = ModelFacts {
            classes: 10,
            exit_costs: vec![0.25, 0.5, 0.75, 1.0],
        };
        let parameter = Parameter {
            name: name.into(),
            value: Value::Number(value),
        };
        Lead::configure(&model, Parameters::from(vec![parameter]))
    }

    /// The first exit of a frame; the device knows nothing of itself.
    fn view(margin: f32) -> ExitView {
        ExitView {
            exit: 0,
            exits: 4,
            class: 3,
            confidence: 0.6,
            margin,
            entropy: 1.0,
            agreement: false,
            change: f32::NAN,
            cost: 0.25,
            next_cost: 0.25,
            time_left: f32::NAN,
            queue_depth: 0,
            temperature: f32::NAN,
            power_budget: f32::NAN,
            battery: f32::NAN,
            threshold: 0.8,
        }
    }

    #[test]
    fn it_leaves_where_the_lead_is_large_enough() {
        let mut policy = configured("lead", 0.3).unwrap();
        assert_eq!(policy.decide(&view(0.3)), Verdict::Leave);
        assert_eq!(policy.decide(&view(0.29)), Verdict::GoOn);
        assert_eq!(policy.decide(&view(f32::NAN)), Verdict::GoOn);
    }

    #[test]
    fn a_misspelt_parameter_is_refused() {
        assert_eq!(configured("laed", 0.3), Err("unknown parameter `laed`".into()));
    }
}
