//! Which devices are meant: `site=north,model=revcol-*,!retired,state!=gone`.
//!
//! Terms that all hold, parted by commas: `KEY=VALUE`, `KEY!=VALUE`, `KEY` (has such a label) and `!KEY`. A value may be
//! several, parted by `|`, and `*` stands for any run of characters. What is no [`Fact`] is a label.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// Longest selector in bytes.
const MOST: usize = 1024;
/// Terms and values at most.
const MOST_TERMS: usize = 16;
/// Longest key or value in bytes.
const MOST_TEXT: usize = 63;
/// Labels of a device at most.
pub(crate) const MOST_LABELS: usize = 32;

/// What is known of a device without being told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fact {
    /// Its name.
    Device,
    /// Name of its model.
    Model,
    ModelVersion,
    /// Version of its agent.
    Agent,
    /// Name of the policy that it reports.
    Policy,
    PolicyVersion,
    /// `alive`, `silent`, `gone` or `quarantined`.
    State,
    /// One of what its build and board can do.
    Capability,
    /// A group that was given a name.
    Group,
}

impl Fact {
    const ALL: [(Self, &'static str); 9] = [
        (Self::Device, "device"),
        (Self::Model, "model"),
        (Self::ModelVersion, "model-version"),
        (Self::Agent, "agent"),
        (Self::Policy, "policy"),
        (Self::PolicyVersion, "policy-version"),
        (Self::State, "state"),
        (Self::Capability, "capability"),
        (Self::Group, "group"),
    ];

    fn named(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(_, known)| *known == name)
            .map(|(fact, _)| *fact)
    }
}

/// What a term speaks of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Fact(Fact),
    Label(String),
}

/// A condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Term {
    pub(crate) key: Key,
    /// Whether it must not hold.
    pub(crate) not: bool,
    /// One of these; none where it is enough to have it.
    pub(crate) values: Vec<String>,
}

/// Which devices are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selector(Vec<Term>);

/// A text that is no selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadSelector {
    #[error("a selector has at most {MOST} bytes and {MOST_TERMS} terms of as many values")]
    Long,
    #[error("`{0}` is no term of a selector")]
    Term(String),
    #[error("`{0}` is a fact, which every device has: give it a value")]
    Bare(String),
    #[error("`{0}` is no state")]
    State(String),
    #[error("`{0}`: a group is one name, without `*`")]
    Group(String),
}

impl BadSelector {
    /// What would be one.
    pub(crate) const HINT: &'static str = "e.g. site=north|south,model=revcol-*,!retired,state=alive; facts are device, model, \
         model-version, agent, policy, policy-version, state (alive, silent, gone, quarantined), capability and group";
}

/// A label that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadLabel {
    #[error("`{0}` cannot be a label: use 1 to {MOST_TEXT} letters, digits, `-`, `_` or `.`")]
    Key(String),
    #[error("`{0}` cannot be a label: the controller knows it of every device")]
    Fact(String),
    #[error(
        "`{0}` cannot be a label's value: use 1 to {MOST_TEXT} letters, digits, `-`, `_`, `.`, `:`, `/`, `@` or `+`"
    )]
    Value(String),
    #[error("a device has at most {MOST_LABELS} labels")]
    Many,
}

fn is_key(text: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (1..=MOST_TEXT).contains(&text.len()) && text.chars().all(good)
}

fn is_value(text: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.:/@+".contains(c);
    (1..=MOST_TEXT).contains(&text.len()) && text.chars().all(good)
}

fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Checks labels that are given, or taken away where there is no value.
pub(crate) fn check_labels(labels: &BTreeMap<String, Option<String>>) -> Result<(), BadLabel> {
    if labels.len() > MOST_LABELS {
        return Err(BadLabel::Many);
    }
    for (key, value) in labels {
        if !is_key(key) {
            return Err(BadLabel::Key(shown(key)));
        }
        if Fact::named(key).is_some() {
            return Err(BadLabel::Fact(key.clone()));
        }
        if let Some(value) = value.as_ref().filter(|value| !is_value(value)) {
            return Err(BadLabel::Value(shown(value)));
        }
    }
    Ok(())
}

impl Selector {
    pub(crate) fn terms(&self) -> &[Term] {
        &self.0
    }

    /// Those of its devices that can be given something.
    pub(crate) fn fit(mut self) -> Self {
        self.0.push(Term {
            key: Key::Fact(Fact::State),
            not: true,
            values: vec!["quarantined".into()],
        });
        self
    }

    /// The groups that it names.
    pub(crate) fn groups(&self) -> impl Iterator<Item = &str> {
        let of = |term: &'_ Term| term.key == Key::Fact(Fact::Group);
        self.0
            .iter()
            .filter(move |term| of(term))
            .flat_map(|term| &term.values)
            .map(String::as_str)
    }
}

impl FromStr for Term {
    type Err = BadSelector;

    fn from_str(text: &str) -> Result<Self, BadSelector> {
        let bad = || BadSelector::Term(shown(text));
        let (key, not, values) = match (text.split_once("!="), text.split_once('=')) {
            (Some((key, values)), _) => (key, true, Some(values)),
            (None, Some((key, values))) => (key, false, Some(values)),
            (None, None) => match text.strip_prefix('!') {
                Some(key) => (key, true, None),
                None => (text, false, None),
            },
        };
        let key = key.trim();
        if !is_key(key) {
            return Err(bad());
        }
        let values: Vec<String> = values
            .into_iter()
            .flat_map(|all| all.split('|'))
            .map(|v| v.trim().to_owned())
            .collect();
        if values.len() > MOST_TERMS {
            return Err(BadSelector::Long);
        }
        if !values.iter().all(|value| is_value(&value.replace('*', "x"))) {
            return Err(bad());
        }
        let fact = Fact::named(key);
        match fact {
            Some(_) if values.is_empty() => return Err(BadSelector::Bare(key.to_owned())),
            Some(Fact::State) => {
                if let Some(value) = values
                    .iter()
                    .find(|value| !["alive", "silent", "gone", "quarantined"].contains(&value.as_str()))
                {
                    return Err(BadSelector::State(value.clone()));
                }
            }
            Some(Fact::Group) if values.len() != 1 || values[0].contains('*') => {
                return Err(BadSelector::Group(shown(text)));
            }
            _ => {}
        }
        Ok(Self {
            key: fact.map_or_else(|| Key::Label(key.to_owned()), Key::Fact),
            not,
            values,
        })
    }
}

impl FromStr for Selector {
    type Err = BadSelector;

    fn from_str(text: &str) -> Result<Self, BadSelector> {
        if text.len() > MOST {
            return Err(BadSelector::Long);
        }
        let terms = text.split(',').map(str::trim).filter(|term| !term.is_empty());
        let terms: Vec<Term> = terms.map(str::parse).collect::<Result<_, _>>()?;
        if terms.len() > MOST_TERMS {
            return Err(BadSelector::Long);
        }
        Ok(Self(terms))
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = match &self.key {
            Key::Fact(fact) => Fact::ALL
                .iter()
                .find(|(known, _)| known == fact)
                .map_or("", |(_, name)| name),
            Key::Label(key) => key,
        };
        let values = self.values.join("|");
        match (self.values.is_empty(), self.not) {
            (true, false) => f.write_str(key),
            (true, true) => write!(f, "!{key}"),
            (false, false) => write!(f, "{key}={values}"),
            (false, true) => write!(f, "{key}!={values}"),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, term) in self.0.iter().enumerate() {
            if number > 0 {
                f.write_str(",")?;
            }
            fmt::Display::fmt(term, f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn selectors_are_read_and_shown() {
        for (text, shown) in [
            ("", ""),
            ("site=north", "site=north"),
            (" site = north | south , !retired,", "site=north|south,!retired"),
            ("state!=gone,model=revcol-*,floor", "state!=gone,model=revcol-*,floor"),
            ("group=night,device!=gate-*|yard", "group=night,device!=gate-*|yard"),
        ] {
            let selector: Selector = text.parse().unwrap();
            assert_eq!(selector.to_string(), shown);
            assert_eq!(shown.parse::<Selector>().unwrap(), selector);
        }
    }

    #[test]
    fn what_is_none_is_refused_by_name() {
        for (text, named) in [
            ("site=", "`site=`"),
            ("=x", "`=x`"),
            ("a b=c", "`a b=c`"),
            ("site=%", "`site=%`"),
            ("state=asleep", "`asleep`"),
            ("model", "`model`"),
            ("!agent", "`agent`"),
            ("group=a|b", "`group=a|b`"),
            ("group=n*", "`group=n*`"),
            (&"a,".repeat(17), "16 terms"),
            (&"a".repeat(2000), "1024 bytes"),
        ] {
            let error = text.parse::<Selector>().unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn labels_keep_to_their_letters_and_leave_facts_alone() {
        let check = |key: &str, value: Option<&str>| check_labels(&[(key.to_owned(), value.map(Into::into))].into());
        assert!(check("site", Some("hall-3/door:2")).is_ok() && check("old.key", None).is_ok());
        for (key, value) in [
            ("", None),
            ("a b", None),
            ("model", Some("x")),
            ("site", Some("")),
            ("site", Some("a,b")),
        ] {
            assert!(check(key, value).is_err(), "{key} {value:?}");
        }
        let many = (0..33).map(|n| (format!("k{n}"), None)).collect();
        assert_eq!(check_labels(&many), Err(BadLabel::Many));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,80}") {
            if let Ok(selector) = text.parse::<Selector>() {
                prop_assert_eq!(selector.to_string().parse::<Selector>().unwrap(), selector);
            }
        }
    }
}
