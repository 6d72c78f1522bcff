//! Leaves where enough exits in a row name the same class, or where one is sure by itself; at the last exit always.
//!
//! Source: "BERT Loses Patience: Fast and Robust Inference with Early Exit", Zhou, Xu, Ge, McAuley, Xu, Wei, 2020.
//!
//! | parameter | value | default |
//! |---|---|---|
//! | `patience` | whole number from 1: exits that must agree with the one before | 1 |
//! | `floor` | number from 0 to 1: confidence without which agreement does not count | 0.5 |
//! | `threshold` | number from 0 to 1: confidence that is enough by itself | 0.95 |
#![no_std]

extern crate alloc;

use alloc::string::String;

use offramp_policy_sdk::{ExitView, ModelFacts, Parameters, Policy, Verdict, export_policy};

/// The policy, and how often in a row the exits of the present frame have agreed.
#[derive(Clone, Debug, PartialEq)]
pub struct Patience {
    patience: u32,
    floor: f32,
    threshold: f32,
    agreed: u32,
}

impl Policy for Patience {
    fn configure(_: &ModelFacts, mut parameters: Parameters) -> Result<Self, String> {
        let share = "a number from 0 to 1";
        let patience = parameters
            .take_number("patience", 1.0..=64.0, "a whole number from 1 to 64")?
            .unwrap_or(1.0);
        if patience != f64::from(patience as u32) {
            return Err("parameter `patience` must be a whole number from 1 to 64".into());
        }
        let floor = parameters.take_number("floor", 0.0..=1.0, share)?.unwrap_or(0.5) as f32;
        let threshold = parameters.take_number("threshold", 0.0..=1.0, share)?.unwrap_or(0.95) as f32;
        parameters.finish()?;
        Ok(Patience {
            patience: patience as u32,
            floor,
            threshold,
            agreed: 0,
        })
    }

    fn decide(&mut self, view: &ExitView) -> Verdict {
        // The first exit of a frame agrees with nobody, which starts the count anew.
        self.agreed = if view.agreement && view.exit > 0 {
            self.agreed + 1
        } else {
            0
        };
        let patient = self.agreed >= self.patience && view.confidence >= self.floor;
        let sure = view.confidence >= self.threshold;
        if patient || sure || view.exit + 1 >= view.exits {
            Verdict::Leave
        } else {
            Verdict::GoOn
        }
    }
}

export_policy!(Patience);

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use offramp_policy_sdk::{Parameter, Value};

    use super::*;

    fn configured(parameters: &[(&str, Value)]) -> Result<Patience, String> {
        let model = ModelFacts {
            classes: 10,
            exit_costs: vec![0.2, 0.5, 0.8, 1.0],
        };
        let parameters = parameters.iter().map(|(name, value)| Parameter {
            name: (*name).into(),
            value: value.clone(),
        });
        Patience::configure(&model, Parameters::from(parameters.collect::<Vec<_>>()))
    }

    fn view(exit: u32, agreement: bool, confidence: f32) -> ExitView {
        ExitView {
            exit,
            exits: 4,
            class: 0,
            confidence,
            margin: f32::NAN,
            entropy: f32::NAN,
            agreement,
            change: f32::NAN,
            cost: 0.5,
            next_cost: 0.3,
            time_left: f32::NAN,
            queue_depth: 0,
            temperature: f32::NAN,
            power_budget: f32::NAN,
            battery: f32::NAN,
            threshold: 0.8,
        }
    }

    #[test]
    fn it_leaves_once_enough_exits_in_a_row_agree_and_counts_anew_for_each_frame() {
        let mut policy = configured(&[("patience", Value::Integer(2))]).unwrap();
        assert_eq!(policy.decide(&view(0, false, 0.6)), Verdict::GoOn);
        assert_eq!(policy.decide(&view(1, true, 0.6)), Verdict::GoOn);
        assert_eq!(policy.decide(&view(0, false, 0.6)), Verdict::GoOn);
        assert_eq!(policy.decide(&view(1, true, 0.6)), Verdict::GoOn);
        assert_eq!(policy.decide(&view(2, true, 0.6)), Verdict::Leave);
    }

    #[test]
    fn agreement_below_the_floor_does_not_count_and_sureness_is_enough_by_itself() {
        let mut policy = configured(&[]).unwrap();
        assert_eq!(policy.decide(&view(0, false, 0.96)), Verdict::Leave);
        assert_eq!(policy.decide(&view(1, true, 0.4)), Verdict::GoOn);
        assert_eq!(policy.decide(&view(1, true, f32::NAN)), Verdict::GoOn);
        assert_eq!(policy.decide(&view(3, false, f32::NAN)), Verdict::Leave);
    }

    #[test]
    fn a_patience_that_is_no_whole_number_is_refused() {
        for value in [Value::Number(1.5), Value::Integer(0), Value::Flag(true)] {
            assert!(configured(&[("patience", value)]).unwrap_err().contains("`patience`"));
        }
    }
}
