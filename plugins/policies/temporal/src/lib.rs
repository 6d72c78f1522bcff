//! A still scene repeats the last answer: where the first exit's features hardly change from frame to frame, and it names
//! the class that the last frame was given, the frame leaves there, however sure that exit is. All else is decided by a
//! threshold, and every now and then a still scene is, too.
//!
//! Repeated answers teach nothing: a scene that stands still for an hour is one scene.
//!
//! | parameter | value | default |
//! |---|---|---|
//! | `change` | number from 0 to 2: change of the first exit's features (`‖u − u′‖² / 2C`) up to which a scene is still | 0.1 |
//! | `every` | whole number from 1: frames after which a still scene is looked at anew | 10 |
//! | `threshold` | number from 0 to 1: confidence that is enough by itself | the device's own |
#![no_std]

extern crate alloc;

use alloc::string::String;
use alloc::vec::Vec;

use offramp_policy_sdk::{ExitView, ModelFacts, Outcome, Parameters, Policy, Verdict, export_policy};

/// The format of the state.
const VERSION: u8 = 1;

/// The policy, and the last answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Temporal {
    change: f32,
    every: u32,
    /// NaN: the device's.
    threshold: f32,
    /// Class of the last frame.
    last: Option<u32>,
    /// How often in a row it was repeated.
    repeated: u32,
    /// Whether the present frame repeats it.
    repeating: bool,
}

impl Policy for Temporal {
    fn configure(_: &ModelFacts, mut parameters: Parameters) -> Result<Self, String> {
        let change = parameters.take_number("change", 0.0..=2.0, "a number from 0 to 2")?;
        let every = parameters.take_number("every", 1.0..=1e6, "a whole number from 1 to 1000000")?;
        let threshold = parameters.take_number("threshold", 0.0..=1.0, "a number from 0 to 1")?;
        parameters.finish()?;
        Ok(Temporal {
            change: change.unwrap_or(0.1) as f32,
            every: every.unwrap_or(10.0) as u32,
            threshold: threshold.map_or(f32::NAN, |threshold| threshold as f32),
            last: None,
            repeated: 0,
            repeating: false,
        })
    }

    fn decide(&mut self, view: &ExitView) -> Verdict {
        if view.exit == 0 {
            // An unknown change is NaN, and no stillness.
            let still = view.change <= self.change && self.last == Some(view.class);
            self.repeating = still && self.repeated + 1 < self.every;
            if self.repeating {
                return Verdict::LeaveWithoutLearning;
            }
        }
        let threshold = if self.threshold.is_nan() {
            view.threshold
        } else {
            self.threshold
        };
        if view.confidence >= threshold || view.exit + 1 >= view.exits {
            Verdict::Leave
        } else {
            Verdict::GoOn
        }
    }

    fn observe(&mut self, outcome: &Outcome) {
        // One that was sent away, or decided without this policy, is no answer to be repeated.
        self.last = (!outcome.hurried && !outcome.fault).then_some(outcome.class);
        self.repeated = if self.repeating { self.repeated + 1 } else { 0 };
        self.repeating = false;
    }

    fn save(&self) -> Vec<u8> {
        let Some(last) = self.last else {
            return Vec::new();
        };
        let mut saved = Vec::from([VERSION]);
        saved.extend(last.to_le_bytes());
        saved.extend(self.repeated.to_le_bytes());
        saved
    }

    fn restore(&mut self, saved: &[u8]) -> Result<(), String> {
        let [VERSION, a, b, c, d, e, f, g, h] = *saved else {
            return Err("not a state of version 1".into());
        };
        self.last = Some(u32::from_le_bytes([a, b, c, d]));
        self.repeated = u32::from_le_bytes([e, f, g, h]);
        Ok(())
    }
}

export_policy!(Temporal);

#[cfg(test)]
mod tests {
    use alloc::vec;

    use offramp_policy_sdk::{Audit, Parameter, Value};

    use super::*;

    fn configured(parameters: &[(&str, f64)]) -> Result<Temporal, String> {
        let model = ModelFacts {
            classes: 10,
            exit_costs: vec![0.25, 0.5, 0.75, 1.0],
        };
        let parameters = parameters.iter().map(|(name, value)| Parameter {
            name: (*name).into(),
            value: Value::Number(*value),
        });
        Temporal::configure(&model, Parameters::from(parameters.collect::<Vec<_>>()))
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

    fn outcome(exit: u32, class: u32, cost: f32) -> Outcome {
        Outcome {
            exit,
            class,
            confidence: 0.9,
            cost,
            latency: f32::NAN,
            interval: f32::NAN,
            energy: f32::NAN,
            temperature: f32::NAN,
            hurried: false,
            fault: false,
            audit: Audit::None,
        }
    }

    fn still(class: u32, change: f32) -> ExitView {
        ExitView {
            class,
            change,
            ..view(0, 0.3)
        }
    }

    #[test]
    fn a_still_scene_repeats_the_answer_that_a_later_exit_gave() {
        let mut policy = configured(&[]).unwrap();
        assert_eq!(
            policy.decide(&still(3, f32::NAN)),
            Verdict::GoOn,
            "there is no last answer"
        );
        policy.observe(&outcome(3, 3, 1.0));
        assert_eq!(policy.decide(&still(3, 0.05)), Verdict::LeaveWithoutLearning);
        policy.observe(&outcome(0, 3, 0.25));
        assert_eq!(policy.decide(&still(3, 0.5)), Verdict::GoOn, "something moves");
        assert_eq!(
            policy.decide(&still(4, 0.05)),
            Verdict::GoOn,
            "it looks like something else"
        );
        assert_eq!(policy.decide(&still(3, f32::NAN)), Verdict::GoOn);
    }

    #[test]
    fn a_still_scene_is_looked_at_anew_now_and_then() {
        let mut policy = configured(&[("every", 4.0)]).unwrap();
        policy.observe(&outcome(3, 3, 1.0));
        let repeats: Vec<bool> = (0..8)
            .map(|_| {
                let repeats = policy.decide(&still(3, 0.01)) == Verdict::LeaveWithoutLearning;
                policy.observe(&outcome(0, 3, 0.25));
                repeats
            })
            .collect();
        assert_eq!(repeats, [true, true, true, false, true, true, true, false]);
    }

    #[test]
    fn an_answer_that_the_deadline_forced_is_not_repeated() {
        let mut policy = configured(&[]).unwrap();
        let forced = Outcome {
            hurried: true,
            ..outcome(0, 3, 0.25)
        };
        policy.observe(&forced);
        assert_eq!(policy.decide(&still(3, 0.01)), Verdict::GoOn);
    }

    #[test]
    fn the_last_answer_goes_over_to_the_next_version() {
        let mut policy = configured(&[]).unwrap();
        assert!(policy.save().is_empty());
        policy.observe(&outcome(3, 3, 1.0));
        let mut next = configured(&[("change", 0.2)]).unwrap();
        next.restore(&policy.save()).unwrap();
        assert_eq!(next.decide(&still(3, 0.15)), Verdict::LeaveWithoutLearning);
        for odd in [&[][..], &[2, 0, 0, 0, 0, 0, 0, 0, 0], &[1, 0, 0]] {
            assert!(next.restore(odd).is_err());
        }
    }
}
