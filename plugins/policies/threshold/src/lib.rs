//! Leaves at the first exit whose confidence reaches a threshold; at the last exit always.
//!
//! | parameter | value | default |
//! |---|---|---|
//! | `threshold` | number from 0 to 1, for every exit and class | the device's own, which follows from the accuracy that its operator allows to give up |
//! | `threshold.N` | number from 0 to 1, for exit N (0 is the first) | that of `threshold` |
//! | `threshold.class.N` | number from 0 to 1, for class N at every exit: it counts instead of the others | none |
#![no_std]

extern crate alloc;

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use offramp_policy_sdk::{ExitView, ModelFacts, Parameters, Policy, Verdict, export_policy};

/// No threshold of one's own: the device's holds.
const DEVICE: f32 = f32::NAN;
const MEANING: &str = "a number from 0 to 1";

/// The policy: one threshold for each exit, and those of single classes.
#[derive(Clone, Debug, PartialEq)]
pub struct Threshold {
    exits: Vec<f32>,
    /// By class.
    classes: Vec<(u32, f32)>,
}

impl Policy for Threshold {
    fn configure(model: &ModelFacts, mut parameters: Parameters) -> Result<Self, String> {
        let all = parameters
            .take_number("threshold", 0.0..=1.0, MEANING)?
            .map_or(DEVICE, |number| number as f32);
        let mut exits = vec![all; model.exit_costs.len()];
        while let Some((exit, own)) = parameters.take_numbered("threshold.", exits.len() as u32, 0.0..=1.0, MEANING)? {
            exits[exit as usize] = own as f32;
        }
        let mut classes: Vec<(u32, f32)> = Vec::new();
        while let Some((class, own)) =
            parameters.take_numbered("threshold.class.", model.classes, 0.0..=1.0, MEANING)?
        {
            // They are few, and sorting by the library would double the policy's size.
            let place = classes.partition_point(|(other, _)| *other < class);
            classes.insert(place, (class, own as f32));
        }
        parameters.finish()?;
        Ok(Threshold { exits, classes })
    }

    fn decide(&mut self, view: &ExitView) -> Verdict {
        let Some(own) = self.exits.get(view.exit as usize) else {
            return Verdict::Leave;
        };
        let mut threshold = if own.is_nan() { view.threshold } else { *own };
        if let Ok(place) = self.classes.binary_search_by_key(&view.class, |(class, _)| *class) {
            threshold = self.classes[place].1;
        }
        // An unknown confidence is NaN and reaches no threshold.
        if view.confidence >= threshold || view.exit + 1 >= view.exits {
            Verdict::Leave
        } else {
            Verdict::GoOn
        }
    }
}

export_policy!(Threshold);

#[cfg(test)]
mod tests {
    use offramp_policy_sdk::{Parameter, Value};

    use super::*;

    fn configured(parameters: &[(&str, Value)]) -> Result<Threshold, String> {
        let model = ModelFacts {
            classes: 10,
            exit_costs: vec![0.2, 0.5, 1.0],
        };
        let parameters = parameters.iter().map(|(name, value)| Parameter {
            name: (*name).into(),
            value: value.clone(),
        });
        Threshold::configure(&model, Parameters::from(parameters.collect::<Vec<_>>()))
    }

    fn view(exit: u32, confidence: f32) -> ExitView {
        ExitView {
            exit,
            exits: 3,
            class: 0,
            confidence,
            margin: f32::NAN,
            entropy: f32::NAN,
            agreement: false,
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
    fn an_exit_of_its_own_threshold_overrides_the_common_one_and_a_class_both() {
        let number = Value::Number;
        let parameters = [
            ("threshold", number(0.5)),
            ("threshold.1", number(0.9)),
            ("threshold.class.7", number(0.95)),
            ("threshold.class.2", number(0.3)),
        ];
        let mut policy = configured(&parameters).unwrap();
        let mut leaves_at = |exit, class, confidence| {
            let view = ExitView {
                class,
                ..view(exit, confidence)
            };
            policy.decide(&view) == Verdict::Leave
        };
        assert!(leaves_at(0, 0, 0.5) && !leaves_at(0, 0, 0.49));
        assert!(leaves_at(1, 0, 0.9) && !leaves_at(1, 0, 0.89));
        for exit in 0..2 {
            assert!(leaves_at(exit, 7, 0.95) && !leaves_at(exit, 7, 0.94));
            assert!(leaves_at(exit, 2, 0.3) && !leaves_at(exit, 2, 0.29));
        }
    }

    #[test]
    fn it_leaves_where_the_threshold_is_reached_and_at_the_last_exit() {
        let mut policy = configured(&[]).unwrap();
        assert_eq!(policy.decide(&view(0, 0.79)), Verdict::GoOn);
        assert_eq!(policy.decide(&view(0, 0.8)), Verdict::Leave);
        assert_eq!(policy.decide(&view(1, f32::NAN)), Verdict::GoOn);
        assert_eq!(policy.decide(&view(2, 0.0)), Verdict::Leave);
        assert_eq!(policy.decide(&view(2, f32::NAN)), Verdict::Leave);
    }

    #[test]
    fn unknown_and_out_of_range_parameters_are_refused_by_name() {
        for (name, value, reason) in [
            ("treshold", Value::Number(0.5), "unknown parameter `treshold`"),
            ("threshold.3", Value::Number(0.5), "unknown parameter `threshold.3`"),
            (
                "threshold.class.10",
                Value::Number(0.5),
                "unknown parameter `threshold.class.10`",
            ),
            (
                "threshold",
                Value::Number(1.01),
                "parameter `threshold` must be a number from 0 to 1",
            ),
            (
                "threshold.0",
                Value::Flag(true),
                "parameter `threshold.0` must be a number from 0 to 1",
            ),
        ] {
            assert_eq!(configured(&[(name, value)]), Err(reason.into()));
        }
    }
}
