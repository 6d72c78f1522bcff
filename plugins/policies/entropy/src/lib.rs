//! Leaves at the first exit whose probabilities are concentrated enough: whose entropy is at most a share of the
//! largest possible, ln K; at the last exit always.
//!
//! Source: "BranchyNet: Fast Inference via Early Exiting from Deep Neural Networks", Teerapittayanon, McDanel, Kung, 2016.
//!
//! | parameter | value | default |
//! |---|---|---|
//! | `limit` | number from 0 to 1: entropy by ln K up to which a frame leaves, for every exit | 0.1 |
//! | `limit.N` | the same for exit N (0 is the first) | that of `limit` |
#![no_std]

extern crate alloc;

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use offramp_policy_sdk::{ExitView, ModelFacts, Parameters, Policy, Verdict, export_policy};

const DEFAULT: f64 = 0.1;
const MEANING: &str = "a number from 0 to 1";

/// The policy: the largest entropy in nats that may leave, for each exit.
#[derive(Clone, Debug, PartialEq)]
pub struct Entropy {
    nats: Vec<f32>,
}

impl Policy for Entropy {
    fn configure(model: &ModelFacts, mut parameters: Parameters) -> Result<Self, String> {
        let largest = libm::log(f64::from(model.classes));
        let limit = parameters.take_number("limit", 0.0..=1.0, MEANING)?.unwrap_or(DEFAULT);
        let mut nats = vec![(limit * largest) as f32; model.exit_costs.len()];
        while let Some((exit, own)) = parameters.take_numbered("limit.", nats.len() as u32, 0.0..=1.0, MEANING)? {
            nats[exit as usize] = (own * largest) as f32;
        }
        parameters.finish()?;
        Ok(Entropy { nats })
    }

    fn decide(&mut self, view: &ExitView) -> Verdict {
        let limit = self.nats.get(view.exit as usize);
        // An unknown entropy is NaN and below no limit.
        if limit.is_none_or(|limit| view.entropy <= *limit) || view.exit + 1 >= view.exits {
            Verdict::Leave
        } else {
            Verdict::GoOn
        }
    }
}

export_policy!(Entropy);

#[cfg(test)]
mod tests {
    use offramp_policy_sdk::{Parameter, Value};

    use super::*;

    fn configured(parameters: &[(&str, f64)]) -> Result<Entropy, String> {
        let model = ModelFacts {
            classes: 10,
            exit_costs: vec![0.25, 0.5, 0.75, 1.0],
        };
        let parameters = parameters.iter().map(|(name, value)| Parameter {
            name: (*name).into(),
            value: Value::Number(*value),
        });
        Entropy::configure(&model, Parameters::from(parameters.collect::<Vec<_>>()))
    }

    fn view(exit: u32, confidence: f32) -> ExitView {
        ExitView {
            exit,
            exits: 4,
            class: 3,
            confidence,
            margin: f32::NAN,
            entropy: f32::NAN,
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
    fn it_leaves_where_the_entropy_is_a_small_enough_share_of_the_largest() {
        let mut policy = configured(&[("limit", 0.2), ("limit.1", 0.5)]).unwrap();
        let mut leaves = |exit, share: f32| {
            let view = ExitView {
                entropy: share * libm::logf(10.0),
                ..view(exit, 0.5)
            };
            policy.decide(&view) == Verdict::Leave
        };
        assert!(leaves(0, 0.19) && !leaves(0, 0.21));
        assert!(leaves(1, 0.49) && !leaves(1, 0.51));
        assert!(!leaves(0, f32::NAN) && leaves(3, 1.0) && leaves(3, f32::NAN));
    }

    #[test]
    fn what_it_does_not_know_is_refused_by_name() {
        assert_eq!(
            configured(&[("limit.4", 0.5)]),
            Err("unknown parameter `limit.4`".into())
        );
        assert_eq!(
            configured(&[("limit", 1.5)]),
            Err("parameter `limit` must be a number from 0 to 1".into())
        );
    }
}
