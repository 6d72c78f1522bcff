//! `offramp-fleet set`

use std::str::FromStr;

use anyhow::ensure;
use clap::Args;
use offramp_proto::DeviceId;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::client::{Client, parse};
use super::{Server, print};

/// Settings hold until they are changed again, over the device's own configuration; `own` gives one back to it. Prints each
/// device with its new generation.
#[derive(Debug, Args)]
pub(super) struct Set {
    /// The devices.
    #[arg(value_name = "DEVICE")]
    devices: Vec<DeviceId>,
    /// Instead of names: those that this means, e.g. site=north or group=night.
    #[arg(long, value_name = "SELECTOR", conflicts_with = "devices")]
    select: Option<String>,
    /// Instead of names: every device that is known.
    #[arg(long, conflicts_with_all = ["devices", "select"])]
    all: bool,
    /// Whether heads are updated: on, off or own.
    #[arg(long, value_name = "on|off|own")]
    learning: Option<Setting<Switch>>,
    /// Learning rate, 0 to below 4.
    #[arg(long, value_name = "NUMBER|own")]
    rate: Option<Setting<f64>>,
    /// Share of frames that are audited, 0 to 1.
    #[arg(long, value_name = "SHARE|own")]
    audit_rate: Option<Setting<f64>>,
    /// Accuracy that may be given up against the last exit, 0 to 0.5.
    #[arg(long, value_name = "SHARE|own")]
    accuracy_budget: Option<Setting<f64>>,
    /// Share of the whole network that a frame may cost on average, above 0 to 1.
    #[arg(long, value_name = "SHARE|own")]
    cost_ceiling: Option<Setting<f64>>,
    /// What is logged: error, warn, info, debug, trace or own.
    #[arg(long, value_name = "LEVEL|own")]
    log: Option<Setting<String>>,
    #[command(flatten)]
    server: Server,
}

/// A value, or the device's own.
#[derive(Clone, Debug, PartialEq)]
enum Setting<T> {
    Own,
    Is(T),
}

#[derive(Clone, Debug, PartialEq)]
struct Switch(bool);

impl FromStr for Switch {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "on" | "true" => Ok(Self(true)),
            "off" | "false" => Ok(Self(false)),
            _ => Err("use on, off or own"),
        }
    }
}

impl<T: FromStr> FromStr for Setting<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "own" => Ok(Self::Own),
            text => text.parse().map(Self::Is),
        }
    }
}

impl<T> Setting<T> {
    fn json(self, value: impl FnOnce(T) -> Value) -> Value {
        match self {
            Self::Own => Value::Null,
            Self::Is(is) => value(is),
        }
    }
}

impl Set {
    pub(super) fn run(self) -> anyhow::Result<()> {
        #[derive(Deserialize)]
        struct Answer {
            devices: Vec<Changed>,
        }
        #[derive(Deserialize)]
        struct Changed {
            device: String,
            generation: u64,
        }
        ensure!(
            self.all || self.select.is_some() || !self.devices.is_empty(),
            "name devices, or use --select or --all"
        );
        let number = |number: f64| json!(number);
        let settings: Map<String, Value> = [
            ("enabled", self.learning.map(|s| s.json(|Switch(on)| json!(on)))),
            ("rate", self.rate.map(|s| s.json(number))),
            ("audit_rate", self.audit_rate.map(|s| s.json(number))),
            ("accuracy_budget", self.accuracy_budget.map(|s| s.json(number))),
            ("cost_ceiling", self.cost_ceiling.map(|s| s.json(number))),
            ("log", self.log.map(|s| s.json(|level| json!(level)))),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)))
        .collect();
        ensure!(
            !settings.is_empty(),
            "no setting is given: see `offramp-fleet set --help`"
        );
        let mut wanted = json!({"settings": settings});
        match &self.select {
            _ if self.all => wanted["all"] = json!(true),
            Some(select) => wanted["select"] = json!(select),
            None => wanted["devices"] = json!(self.devices.iter().map(DeviceId::as_str).collect::<Vec<_>>()),
        }
        let answer = Client::new(&self.server).post_json("/settings", &wanted)?;
        if self.server.json {
            return print(&format!("{answer}\n"));
        }
        let answer: Answer = parse(&answer)?;
        let lines = answer.devices.iter();
        print(
            &lines
                .map(|d| format!("{} {}\n", d.device, d.generation))
                .collect::<String>(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{Setting, Switch};

    #[test]
    fn a_setting_is_a_value_or_the_devices_own() {
        assert_eq!("own".parse(), Ok(Setting::<f32>::Own));
        assert_eq!("0.01".parse(), Ok(Setting::Is(0.01)));
        assert_eq!("off".parse(), Ok(Setting::Is(Switch(false))));
        assert!("maybe".parse::<Setting<Switch>>().is_err() && "x".parse::<Setting<f64>>().is_err());
    }
}
