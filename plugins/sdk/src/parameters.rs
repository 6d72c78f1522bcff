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
    fn what_was_not_taken_is_named_as_unknown() {
        assert_eq!(
            one("y", Value::Flag(true)).finish(),
            Err("unknown parameter `y`".to_owned())
        );
    }
}
