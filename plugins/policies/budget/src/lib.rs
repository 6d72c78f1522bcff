//! Keeps power, temperature or cost under a limit: the threshold comes down as long as what is measured is over its
//! limit, and goes back up to the device's own, never above it.
//!
//! After each frame an integrating controller moves the offset by `gain` times the worst relative excess over the limits
//! that are set; between the bounds -1.01 and 0 nothing winds up. Where several are set, the one that is exceeded most
//! counts. Without any, it is the threshold policy.
//!
//! | parameter | value | default |
//! |---|---|---|
//! | `watts` | number above 0: mean power of the board | the device's power budget, where it has one |
//! | `celsius` | number from 0 to 120: temperature of the board; 10 degrees over count as twice the limit | none |
//! | `cost` | number above 0, to 1: mean multiply-adds of a frame, as a share of the whole network | none |
//! | `gain` | number from 0.0001 to 1: change of the threshold for each frame at twice the limit | 0.01 |
//! | `floor` | number from 0 to 1: confidence below which no frame leaves early, whatever it costs | 0 |
#![no_std]

extern crate alloc;

use alloc::string::String;
use alloc::vec::Vec;

use offramp_policy_sdk::{ExitView, ModelFacts, Outcome, Parameters, Policy, Verdict, export_policy};

/// The format of the state.
const VERSION: u8 = 1;
/// The offset at which every frame that reaches the floor leaves at once.
const LOWEST: f32 = -1.01;
/// Degrees over the limit that count as twice the limit.
const DEGREES: f32 = 10.0;
/// Largest excess that counts in one frame: a single figure should not throw the threshold about.
const MOST: f32 = 4.0;

/// The policy. A limit that is not set is NaN.
#[derive(Clone, Debug, PartialEq)]
pub struct Budget {
    watts: f32,
    celsius: f32,
    cost: f32,
    gain: f32,
    floor: f32,
    /// What the device may draw, by the latest frame.
    power_budget: f32,
    /// Added to the threshold.
    offset: f32,
}

impl Budget {
    /// The worst excess by its limit; `None` where nothing is limited and measured.
    fn excess(&self, outcome: &Outcome) -> Option<f32> {
        let watts = if self.watts.is_nan() {
            self.power_budget
        } else {
            self.watts
        };
        let power = outcome.energy / (outcome.interval / 1e3);
        let all = [
            power / watts - 1.0,
            (outcome.temperature - self.celsius) / DEGREES,
            outcome.cost / self.cost - 1.0,
        ];
        all.into_iter().filter(|excess| excess.is_finite()).reduce(f32::max)
    }
}

impl Policy for Budget {
    fn configure(_: &ModelFacts, mut parameters: Parameters) -> Result<Self, String> {
        let set = |number: Option<f64>| number.map_or(f32::NAN, |number| number as f32);
        let watts = parameters.take_number("watts", 0.01..=100_000.0, "a number from 0.01 to 100000")?;
        let celsius = parameters.take_number("celsius", 0.0..=120.0, "a number from 0 to 120")?;
        let cost = parameters.take_number("cost", 0.001..=1.0, "a number from 0.001 to 1")?;
        let gain = parameters.take_number("gain", 0.0001..=1.0, "a number from 0.0001 to 1")?;
        let floor = parameters.take_number("floor", 0.0..=1.0, "a number from 0 to 1")?;
        parameters.finish()?;
        Ok(Budget {
            watts: set(watts),
            celsius: set(celsius),
            cost: set(cost),
            gain: gain.unwrap_or(0.01) as f32,
            floor: floor.unwrap_or(0.0) as f32,
            power_budget: f32::NAN,
            offset: 0.0,
        })
    }

    fn decide(&mut self, view: &ExitView) -> Verdict {
        self.power_budget = view.power_budget;
        let threshold = (view.threshold + self.offset).max(self.floor);
        if view.confidence >= threshold || view.exit + 1 >= view.exits {
            Verdict::Leave
        } else {
            Verdict::GoOn
        }
    }

    fn observe(&mut self, outcome: &Outcome) {
        if let Some(excess) = self.excess(outcome) {
            self.offset = (self.offset - self.gain * excess.min(MOST)).clamp(LOWEST, 0.0);
        }
    }

    fn save(&self) -> Vec<u8> {
        let mut saved = Vec::from([VERSION]);
        saved.extend(self.offset.to_le_bytes());
        saved
    }

    fn restore(&mut self, saved: &[u8]) -> Result<(), String> {
        let [VERSION, a, b, c, d] = *saved else {
            return Err("not a state of version 1".into());
        };
        let offset = f32::from_le_bytes([a, b, c, d]);
        if !(LOWEST..=0.0).contains(&offset) {
            return Err("an offset that cannot be".into());
        }
        self.offset = offset;
        Ok(())
    }
}

export_policy!(Budget);

#[cfg(test)]
mod tests {
    use alloc::vec;

    use offramp_policy_sdk::{Audit, Parameter, Value};

    use super::*;

    fn configured(parameters: &[(&str, f64)]) -> Result<Budget, String> {
        let model = ModelFacts {
            classes: 10,
            exit_costs: vec![0.25, 0.5, 0.75, 1.0],
        };
        let parameters = parameters.iter().map(|(name, value)| Parameter {
            name: (*name).into(),
            value: Value::Number(*value),
        });
        Budget::configure(&model, Parameters::from(parameters.collect::<Vec<_>>()))
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

    /// Frames whose confidence at every exit is one of 0 to 0.99 in turn; gives the mean cost of the last half.
    fn mean_cost(policy: &mut Budget, frames: u32) -> f32 {
        let mut sum = 0.0;
        for frame in 0..frames {
            let confidence = (frame * 37 % 100) as f32 / 100.0;
            let exit = (0..4)
                .find(|exit| policy.decide(&view(*exit, confidence)) == Verdict::Leave)
                .unwrap();
            let cost = (exit + 1) as f32 / 4.0;
            policy.observe(&outcome(exit, 3, cost));
            if frame >= frames / 2 {
                sum += cost;
            }
        }
        sum / (frames / 2) as f32
    }

    #[test]
    fn mean_cost_settles_at_its_limit_and_an_idle_limit_changes_nothing() {
        let unlimited = mean_cost(&mut configured(&[]).unwrap(), 4_000);
        assert!((unlimited - 0.85).abs() < 0.01, "{unlimited}");
        for limit in [0.4, 0.6] {
            let mean = mean_cost(&mut configured(&[("cost", limit)]).unwrap(), 4_000);
            assert!((mean - limit as f32).abs() < 0.02, "{mean} where {limit} is allowed");
        }
        let mut idle = configured(&[("cost", 0.95)]).unwrap();
        assert!((mean_cost(&mut idle, 4_000) - unlimited).abs() < 0.01);
    }

    #[test]
    fn the_boards_power_budget_is_the_default_and_the_worst_limit_counts() {
        let drawing = |watts: f32, celsius: f32| Outcome {
            energy: watts * 0.1,
            interval: 100.0,
            temperature: celsius,
            ..outcome(3, 3, 1.0)
        };
        let offset = |policy: &Budget| policy.offset;
        let mut policy = configured(&[("celsius", 70.0)]).unwrap();
        policy.observe(&drawing(20.0, 40.0));
        assert_eq!(offset(&policy), 0.0, "cool, and nothing is known of a power budget");
        let budgeted = ExitView {
            power_budget: 10.0,
            ..view(0, 0.5)
        };
        policy.decide(&budgeted);
        policy.observe(&drawing(20.0, 40.0));
        assert!((offset(&policy) + 0.01).abs() < 1e-6, "twice the watts");
        policy.observe(&drawing(5.0, 90.0));
        assert!((offset(&policy) + 0.03).abs() < 1e-6, "20 degrees too warm");
        policy.observe(&drawing(5.0, 60.0));
        assert!(
            (offset(&policy) + 0.025).abs() < 1e-6,
            "half the watts, 10 degrees below"
        );
    }

    #[test]
    fn nothing_winds_up_and_the_floor_holds() {
        let mut policy = configured(&[("cost", 0.001), ("floor", 0.4)]).unwrap();
        for _ in 0..10_000 {
            policy.observe(&outcome(3, 3, 1.0));
        }
        assert_eq!(policy.decide(&view(0, 0.41)), Verdict::Leave);
        assert_eq!(policy.decide(&view(0, 0.39)), Verdict::GoOn);
        let mut free = configured(&[("cost", 0.5)]).unwrap();
        free.restore(&policy.save()).unwrap();
        // Half the limit, frame by frame: back to the device's own within so many.
        for _ in 0..203 {
            free.observe(&outcome(0, 3, 0.25));
        }
        assert_eq!(free.offset, 0.0);
        for odd in [&[][..], &[1, 0, 0, 0xc0, 0x7f], &[1, 0, 0, 0, 0x40], &[9, 0, 0, 0, 0]] {
            assert!(free.restore(odd).is_err());
        }
    }
}
