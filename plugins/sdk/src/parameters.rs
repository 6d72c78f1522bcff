use alloc::string::String;
use alloc::vec::Vec;
use core::ops::RangeInclusive;

use crate::{Parameter, Value};

/// The operator's parameters: take out those you know, then [`finish`](Self::finish).
#[derive(Debug)]
pub struct Parameters {
    rest: Vec<Parameter>,
}

impl From<Vec<Parameter>> for Parameters {
    fn from(rest: Vec<Parameter>) -> Self {
        Parameters { rest }
    }
}

impl Parameters {
    /// Takes out the parameter of that name, if it is set.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        let at = self.rest.iter().position(|parameter| parameter.name == name)?;
        Some(self.rest.swap_remove(at).value)
    }

    /// Takes out one number whose name is `prefix` and a whole number below `below`, as in `threshold.3`; gives that
    /// number with it. Call it until there is none.
    ///
    /// # Errors
    ///
    /// As [`take_number`](Self::take_number).
    pub fn take_numbered(
        &mut self,
        prefix: &str,
        below: u32,
        range: RangeInclusive<f64>,
        meaning: &str,
    ) -> Result<Option<(u32, f64)>, String> {
        let place = |parameter: &Parameter| index(parameter.name.strip_prefix(prefix)?, below);
        let Some((at, place)) = self.rest.iter().enumerate().find_map(|(at, p)| Some((at, place(p)?))) else {
            return Ok(None);
        };
        let name = self.rest[at].name.clone();
        let number = self.take_number(&name, range, meaning)?;
        Ok(number.map(|number| (place, number)))
    }

    /// Takes out the number of that name, if it is set. An integer counts as a number.
    ///
    /// # Errors
    ///
    /// When it is no number, or outside `range`. `meaning` says in the message what is allowed, as
    /// in "a number from 0 to 1".
    pub fn take_number(
        &mut self,
        name: &str,
        range: RangeInclusive<f64>,
        meaning: &str,
    ) -> Result<Option<f64>, String> {
        let number = match self.take(name) {
            None => return Ok(None),
            Some(Value::Number(number)) => number,
            #[expect(clippy::cast_precision_loss, reason = "the range below is what counts")]
            Some(Value::Integer(integer)) => integer as f64,
            Some(Value::Flag(_) | Value::Text(_)) => return Err(refusal(name, meaning)),
        };
        if range.contains(&number) {
            Ok(Some(number))
        } else {
            Err(refusal(name, meaning))
        }
    }

    /// Says that all known parameters are taken out.
    ///
    /// # Errors
    ///
    /// When one is left: it is unknown to the policy, perhaps misspelt.
    pub fn finish(self) -> Result<(), String> {
        match self.rest.first() {
            None => Ok(()),
            Some(unknown) => Err(["unknown parameter `", &unknown.name, "`"].concat()),
        }
    }
}

/// A whole number below a bound, written without superfluous zeros.
fn index(digits: &str, below: u32) -> Option<u32> {
    if digits.is_empty() || (digits.len() > 1 && digits.starts_with('0')) {
        return None;
    }
    let mut number = 0_u32;
    for digit in digits.bytes() {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10)?;
        number = number.checked_mul(10)?.checked_add(digit.into())?;
    }
    Some(number).filter(|number| *number < below)
}

/// Joined by hand: `format!` would double the size of a small policy.
fn refusal(name: &str, meaning: &str) -> String {
    ["parameter `", name, "` must be ", meaning].concat()
}

#[cfg(test)]
mod tests {
    use alloc::borrow::ToOwned;
    use alloc::vec;

    use super::*;

    fn one(name: &str, value: Value) -> Parameters {
        Parameters::from(vec![Parameter {
            name: name.to_owned(),
            value,
        }])
    }

    #[test]
    fn an_integer_counts_as_a_number() {
        let mut parameters = one("x", Value::Integer(1));
        assert_eq!(
            parameters.take_number("x", 0.0..=1.0, "a number from 0 to 1"),
            Ok(Some(1.0))
        );
        assert_eq!(parameters.finish(), Ok(()));
    }

    #[test]
    fn a_number_outside_its_range_or_nan_or_a_text_is_refused() {
        for value in [
            Value::Number(1.5),
            Value::Number(f64::NAN),
            Value::Text("0.5".to_owned()),
            Value::Flag(true),
        ] {
            let refused = one("x", value).take_number("x", 0.0..=1.0, "a number from 0 to 1");
            assert_eq!(refused, Err("parameter `x` must be a number from 0 to 1".to_owned()));
        }
    }

    #[test]
    fn numbered_parameters_are_taken_one_by_one_and_others_are_left() {
        let named = |name: &str| Parameter {
            name: name.to_owned(),
            value: Value::Number(0.5),
        };
        let mut parameters = Parameters::from(vec![
            named("limit"),
            named("limit.12"),
            named("limit.3"),
            named("limit.class.1"),
        ]);
        let mut take = |prefix| parameters.take_numbered(prefix, 20, 0.0..=1.0, "a number").unwrap();
        assert_eq!(take("limit."), Some((12, 0.5)));
        assert_eq!(take("limit."), Some((3, 0.5)));
        assert_eq!(take("limit."), None);
        assert_eq!(take("limit.class."), Some((1, 0.5)));
        assert!(parameters.take("limit").is_some());
        assert_eq!(parameters.finish(), Ok(()));
        for odd in [
            "limit.20",
            "limit.",
            "limit.03",
            "limit.-1",
            "limit.99999999999",
            "limit.x",
        ] {
            let mut parameters = one(odd, Value::Number(0.5));
            let none = parameters.take_numbered("limit.", 20, 0.0..=1.0, "a number").unwrap();
            assert!(none.is_none() && parameters.finish().is_err(), "{odd}");
        }
    }

    #[test]
    fn what_was_not_taken_is_named_as_unknown() {
        assert_eq!(
            one("y", Value::Flag(true)).finish(),
            Err("unknown parameter `y`".to_owned())
        );
    }
}
