//! What a policy is configured with.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use offramp_proto::Parameter;

/// Facts of the network that a policy decides for.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelFacts {
    /// Number of classes K.
    pub classes: u32,
    /// For each exit, first to last, the multiply-adds spent on a frame that leaves there, as a share
    /// of the whole network: above 0, increasing, the last 1.
    pub exit_costs: Vec<f32>,
}

/// The value of a parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// True or false.
    Flag(bool),
    /// A whole number.
    Integer(i64),
    /// A number, finite.
    Number(f64),
    /// Text, at most [`Parameters::MAX_TEXT`] bytes.
    Text(String),
}

/// The parameters that an operator set, within the bounds that the contract promises to policies.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parameters(BTreeMap<String, Value>);

/// A parameter out of bounds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadParameter {
    /// More than [`Parameters::MAX_COUNT`].
    #[error("more than {} policy parameters", Parameters::MAX_COUNT)]
    TooMany,
    /// Empty or longer than [`Parameters::MAX_NAME`] bytes.
    #[error("the policy parameter name `{name}` is not 1 to {} bytes long", Parameters::MAX_NAME)]
    Name {
        /// The name, cut to its bound.
        name: String,
    },
    /// Given twice.
    #[error("the policy parameter `{name}` is given twice")]
    Twice {
        /// Its name.
        name: String,
    },
    /// NaN, infinite, or a text longer than [`Parameters::MAX_TEXT`] bytes.
    #[error(
        "the policy parameter `{name}` is no finite number and no text of at most {} bytes",
        Parameters::MAX_TEXT
    )]
    Value {
        /// Its name.
        name: String,
    },
}

impl Parameters {
    /// Most parameters.
    pub const MAX_COUNT: usize = 64;
    /// Longest name in bytes.
    pub const MAX_NAME: usize = 64;
    /// Longest text in bytes.
    pub const MAX_TEXT: usize = 1024;

    /// Takes parameters that come from outside.
    ///
    /// # Errors
    ///
    /// At the first that is out of bounds.
    pub fn new<N: Into<String>>(list: impl IntoIterator<Item = (N, Value)>) -> Result<Self, BadParameter> {
        let mut map = BTreeMap::new();
        for (name, value) in list {
            let name = name.into();
            if name.is_empty() || name.len() > Self::MAX_NAME {
                return Err(BadParameter::Name {
                    name: name.chars().take(Self::MAX_NAME).collect(),
                });
            }
            let in_bounds = match &value {
                Value::Flag(_) | Value::Integer(_) => true,
                Value::Number(number) => number.is_finite(),
                Value::Text(text) => text.len() <= Self::MAX_TEXT,
            };
            if !in_bounds {
                return Err(BadParameter::Value { name });
            }
            if map.len() == Self::MAX_COUNT {
                return Err(BadParameter::TooMany);
            }
            match map.entry(name) {
                Entry::Vacant(entry) => entry.insert(value),
                Entry::Occupied(entry) => {
                    return Err(BadParameter::Twice {
                        name: entry.key().clone(),
                    });
                }
            };
        }
        Ok(Parameters(map))
    }

    /// Parameters as they travel.
    ///
    /// # Errors
    ///
    /// At the first that is out of bounds.
    pub fn of(parameters: &BTreeMap<String, Parameter>) -> Result<Self, BadParameter> {
        Self::new(parameters.iter().map(|(name, value)| {
            let value = match value {
                Parameter::Flag(flag) => Value::Flag(*flag),
                Parameter::Integer(n) => Value::Integer(*n),
                Parameter::Number(n) => Value::Number(*n),
                Parameter::Text(text) => Value::Text(text.clone()),
            };
            (name.clone(), value)
        }))
    }

    /// Names and values, by name.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_out_of_bounds_are_refused_by_name() {
        let refused = |name: &str, value| Parameters::new([(name, value)]).unwrap_err().to_string();
        assert!(refused("", Value::Flag(true)).contains("not 1 to 64 bytes"));
        assert!(refused(&"x".repeat(65), Value::Flag(true)).contains("not 1 to 64 bytes"));
        for value in [
            Value::Number(f64::NAN),
            Value::Number(f64::INFINITY),
            Value::Text("x".repeat(1025)),
        ] {
            assert!(refused("x", value).contains("`x` is no finite number"));
        }
        let twice = Parameters::new([("x", Value::Integer(1)), ("x", Value::Integer(2))]);
        assert_eq!(twice, Err(BadParameter::Twice { name: "x".into() }));
        let many = Parameters::new((0..65).map(|n| (n.to_string(), Value::Integer(n))));
        assert_eq!(many, Err(BadParameter::TooMany));
    }
}
