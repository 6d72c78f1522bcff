//! Leaves in time: where the next stage would end after the frame's deadline, less a margin, the frame leaves; and the
//! more frames wait, the less sure it need be. All else is decided by a threshold.
//!
//! What a stage takes is learned: milliseconds for each share of the network's multiply-adds, a mean in which the latest
//! frame counts for a tenth. The device itself also sends a frame away that would miss its deadline; this policy does it
//! earlier, by its margin, and does not let a queue build up.
//!
//! | parameter | value | default |
//! |---|---|---|
//! | `margin` | number from 0 to 10000: milliseconds that should be left at the end | 1 |
//! | `queue` | number from 0 to 1: by how much the threshold comes down for each frame that waits | 0.05 |
//! | `floor` | number from 0 to 1: below this it does not come down | 0.3 |
//! | `ms` | number above 0: what the whole network takes, in milliseconds | learned |
//! | `threshold` | number from 0 to 1: confidence that is enough where nobody waits | the device's own |
#![no_std]

extern crate alloc;

use alloc::string::String;
use alloc::vec::Vec;

use offramp_policy_sdk::{ExitView, ModelFacts, Outcome, Parameters, Policy, Verdict, export_policy};

/// The format of the state.
const VERSION: u8 = 1;
/// What a network can take, in milliseconds: nothing else is learned.
const POSSIBLE: core::ops::RangeInclusive<f32> = 1e-6..=1e7;
/// What the latest frame counts for.
const FRESH: f32 = 0.1;

/// The policy, and what the whole network takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Deadline {
    margin: f32,
    queue: f32,
    floor: f32,
    /// NaN: the device's.
    threshold: f32,
    /// Whether the operator has said what the network takes.
    told: bool,
    /// Milliseconds of the whole network; NaN until a frame has shown it.
    ms: f32,
}

impl Policy for Deadline {
    fn configure(_: &ModelFacts, mut parameters: Parameters) -> Result<Self, String> {
        let share = "a number from 0 to 1";
        let margin = parameters.take_number("margin", 0.0..=10_000.0, "a number from 0 to 10000")?;
        let queue = parameters.take_number("queue", 0.0..=1.0, share)?;
        let floor = parameters.take_number("floor", 0.0..=1.0, share)?;
        let ms = parameters.take_number("ms", 0.001..=1e6, "a number from 0.001 to 1000000")?;
        let threshold = parameters.take_number("threshold", 0.0..=1.0, share)?;
        parameters.finish()?;
        Ok(Deadline {
            margin: margin.unwrap_or(1.0) as f32,
            queue: queue.unwrap_or(0.05) as f32,
            floor: floor.unwrap_or(0.3) as f32,
            threshold: threshold.map_or(f32::NAN, |threshold| threshold as f32),
            told: ms.is_some(),
            ms: ms.map_or(f32::NAN, |ms| ms as f32),
        })
    }

    fn decide(&mut self, view: &ExitView) -> Verdict {
        // Without a deadline, or before anything is known of the stages, this is NaN and no shortage.
        if view.time_left < view.next_cost * self.ms + self.margin {
            // Not sure of it: nothing should be learned from it.
            return Verdict::LeaveWithoutLearning;
        }
        let own = if self.threshold.is_nan() {
            view.threshold
        } else {
            self.threshold
        };
        let eased = own - self.queue * view.queue_depth as f32;
        // The floor is no reason to ask for more than the threshold itself.
        let threshold = eased.max(self.floor.min(own));
        if view.confidence >= threshold || view.exit + 1 >= view.exits {
            Verdict::Leave
        } else {
            Verdict::GoOn
        }
    }

    fn observe(&mut self, outcome: &Outcome) {
        let ms = outcome.latency / outcome.cost;
        if self.told || !POSSIBLE.contains(&ms) {
            return;
        }
        self.ms = if self.ms.is_nan() {
            ms
        } else {
            self.ms + FRESH * (ms - self.ms)
        };
    }

    fn save(&self) -> Vec<u8> {
        if self.told || self.ms.is_nan() {
            return Vec::new();
        }
        let mut saved = Vec::from([VERSION]);
        saved.extend(self.ms.to_le_bytes());
        saved
    }

    fn restore(&mut self, saved: &[u8]) -> Result<(), String> {
        let [VERSION, a, b, c, d] = *saved else {
            return Err("not a state of version 1".into());
        };
        let ms = f32::from_le_bytes([a, b, c, d]);
        if !POSSIBLE.contains(&ms) {
            return Err("a time that cannot be".into());
        }
        if !self.told {
            self.ms = ms;
        }
        Ok(())
    }
}

export_policy!(Deadline);

#[cfg(test)]
mod tests {
    use alloc::vec;

    use offramp_policy_sdk::{Audit, Parameter, Value};

    use super::*;

    fn configured(parameters: &[(&str, f64)]) -> Result<Deadline, String> {
        let model = ModelFacts {
            classes: 10,
            exit_costs: vec![0.25, 0.5, 0.75, 1.0],
        };
        let parameters = parameters.iter().map(|(name, value)| Parameter {
            name: (*name).into(),
            value: Value::Number(*value),
        });
        Deadline::configure(&model, Parameters::from(parameters.collect::<Vec<_>>()))
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

    fn hurrying(time_left: f32) -> ExitView {
        ExitView {
            time_left,
            ..view(0, 0.3)
        }
    }

    #[test]
    fn it_leaves_where_the_next_stage_would_not_be_done_in_time() {
        let mut policy = configured(&[("ms", 40.0), ("margin", 2.0)]).unwrap();
        // The next stage is a quarter: 10 ms.
        assert_eq!(policy.decide(&hurrying(11.9)), Verdict::LeaveWithoutLearning);
        assert_eq!(policy.decide(&hurrying(12.1)), Verdict::GoOn);
        assert_eq!(policy.decide(&hurrying(-5.0)), Verdict::LeaveWithoutLearning);
        assert_eq!(
            policy.decide(&hurrying(f32::NAN)),
            Verdict::GoOn,
            "there is no deadline"
        );
    }

    #[test]
    fn what_stages_take_is_learned_and_kept() {
        let mut policy = configured(&[]).unwrap();
        assert_eq!(policy.decide(&hurrying(3.0)), Verdict::GoOn, "nothing is known");
        let took = |latency| Outcome {
            latency,
            ..outcome(1, 3, 0.5)
        };
        policy.observe(&took(20.0));
        assert_eq!(
            policy.decide(&hurrying(3.0)),
            Verdict::LeaveWithoutLearning,
            "40 ms in all"
        );
        policy.observe(&took(f32::NAN));
        (0..100).for_each(|_| policy.observe(&took(2.0)));
        assert_eq!(policy.decide(&hurrying(3.0)), Verdict::GoOn, "faster now");
        let mut next = configured(&[("margin", 2.5)]).unwrap();
        next.restore(&policy.save()).unwrap();
        assert_eq!(next.decide(&hurrying(3.0)), Verdict::LeaveWithoutLearning);
        for odd in [
            &[][..],
            &[1, 0, 0, 0, 0],
            &[1, 0, 0, 0xc0, 0x7f],
            &[2, 0, 0, 0x80, 0x3f],
        ] {
            assert!(next.restore(odd).is_err());
        }
    }

    #[test]
    fn the_more_wait_the_less_sure_it_need_be_down_to_the_floor() {
        let mut policy = configured(&[("queue", 0.1), ("floor", 0.5)]).unwrap();
        let mut leaves = |queue_depth, confidence| {
            let view = ExitView {
                queue_depth,
                ..view(0, confidence)
            };
            policy.decide(&view) == Verdict::Leave
        };
        assert!(leaves(0, 0.8) && !leaves(0, 0.79));
        assert!(leaves(2, 0.61) && !leaves(2, 0.59));
        assert!(leaves(100, 0.5) && !leaves(100, 0.49));
    }
}
