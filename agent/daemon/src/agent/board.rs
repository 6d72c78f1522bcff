//! What the board tells of itself: temperature, power drawn, charge of the battery, from Linux's sysfs.
//!
//! - **Temperature**: the hottest zone of `class/thermal` that can be read. Jetsons switch zones off with what they
//!   measure; such a zone does not answer, and does not count.
//! - **Power**: the board's monitor (`ina3221` of Jetsons, by `class/hwmon`): the channel that measures its input, or,
//!   on boards whose rails are measured one by one, the sum of them. Without one, a battery that discharges and says
//!   how fast.
//! - **Battery**: the first of `class/power_supply` that says how full it is.
//!
//! Sensors are looked for once, at the start, and read once a second by a thread of their own: some are behind slow
//! buses, and no frame waits for them. What cannot be read is unknown, which is NaN to policies.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

/// How often sensors are read.
const LOOK: Duration = Duration::from_secs(1);
/// Entries of a folder that are looked at.
const MAX_ENTRIES: usize = 256;
/// Channels of a power monitor, counted from 1; those of the ina3221 that measure end at 3.
const CHANNELS: std::ops::RangeInclusive<u32> = 1..=8;
/// Labels of the channel that measures a whole board's input.
const INPUTS: [&str; 3] = ["VDD_IN", "POM_5V_IN", "VIN"];
/// Temperatures that a board can have, in degrees Celsius: a sensor that is off or broken says others.
const POSSIBLE: std::ops::RangeInclusive<f32> = -60.0..=200.0;

/// What is known of a board, and where it is asked.
#[derive(Clone, Debug, PartialEq)]
pub struct BoardSource {
    /// Where sysfs is mounted.
    pub sysfs: PathBuf,
    /// Watts that the board may draw on average, for policies that keep to it.
    pub power_budget: Option<f32>,
}

impl Default for BoardSource {
    fn default() -> Self {
        Self {
            sysfs: "/sys".into(),
            power_budget: None,
        }
    }
}

/// The latest readings, for whoever looks.
#[derive(Debug)]
pub(crate) struct Board {
    temperature: Reading,
    watts: Reading,
    battery: Reading,
    power_budget: f32,
}

/// A number that one thread writes and others read; NaN while it is unknown.
#[derive(Debug)]
struct Reading(AtomicU32);

impl Reading {
    fn set(&self, value: Option<f32>) {
        self.0.store(value.unwrap_or(f32::NAN).to_bits(), Ordering::Relaxed);
    }

    fn get(&self) -> f32 {
        f32::from_bits(self.0.load(Ordering::Relaxed))
    }
}

impl Default for Reading {
    fn default() -> Self {
        Self(AtomicU32::new(f32::NAN.to_bits()))
    }
}

impl Board {
    /// Looks for sensors and reads them once; where there are any, a thread goes on until the switch is turned.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub(crate) fn watch(source: &BoardSource, stop: Arc<AtomicBool>) -> std::io::Result<Arc<Self>> {
        let board = Arc::new(Self {
            temperature: Reading::default(),
            watts: Reading::default(),
            battery: Reading::default(),
            power_budget: source.power_budget.unwrap_or(f32::NAN),
        });
        let sensors = Sensors::find(&source.sysfs);
        tracing::debug!(?sensors, "board");
        if sensors == Sensors::default() {
            return Ok(board);
        }
        board.look(&sensors);
        let read = Arc::clone(&board);
        let work = move || {
            while !stop.load(Ordering::Relaxed) {
                std::thread::park_timeout(LOOK);
                read.look(&sensors);
            }
        };
        std::thread::Builder::new().name("offramp-board".into()).spawn(work)?;
        Ok(board)
    }

    fn look(&self, sensors: &Sensors) {
        self.temperature.set(sensors.temperature());
        self.watts.set(sensors.watts());
        self.battery.set(sensors.battery());
    }

    /// Degrees Celsius, or NaN.
    pub(crate) fn temperature(&self) -> f32 {
        self.temperature.get()
    }

    /// Watts that the board draws, or NaN.
    pub(crate) fn watts(&self) -> f32 {
        self.watts.get()
    }

    /// Charge of the battery, `0..=1`, or NaN.
    pub(crate) fn battery(&self) -> f32 {
        self.battery.get()
    }

    /// Watts that it may draw, or NaN.
    pub(crate) fn power_budget(&self) -> f32 {
        self.power_budget
    }
}

/// Files that are read each time.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sensors {
    /// Thousandths of a degree.
    zones: Vec<PathBuf>,
    /// Millivolts and milliamperes, which multiply to microwatts and add up.
    rails: Vec<(PathBuf, PathBuf)>,
    battery: Option<PathBuf>,
}

impl Sensors {
    fn find(sysfs: &Path) -> Self {
        let zones = entries(&sysfs.join("class/thermal"), "thermal_zone");
        let monitors = entries(&sysfs.join("class/hwmon"), "hwmon")
            .into_iter()
            .filter(|folder| text(&folder.join("name")).is_some_and(|name| name == "ina3221"));
        let rails: Vec<(String, PathBuf, PathBuf)> = monitors.flat_map(|folder| rails(&folder)).collect();
        let input = rails.iter().any(|(label, ..)| INPUTS.contains(&label.as_str()));
        let counts = |label: &str| !input || INPUTS.contains(&label);
        let battery = entries(&sysfs.join("class/power_supply"), "")
            .into_iter()
            .find(|folder| {
                text(&folder.join("type")).is_some_and(|kind| kind == "Battery") && folder.join("capacity").exists()
            });
        Self {
            zones: zones.into_iter().map(|zone| zone.join("temp")).collect(),
            rails: rails
                .into_iter()
                .filter(|(label, ..)| counts(label))
                .map(|(_, volts, amperes)| (volts, amperes))
                .collect(),
            battery,
        }
    }

    fn temperature(&self) -> Option<f32> {
        let zones = self.zones.iter().filter_map(|zone| number(zone));
        let celsius = zones.map(|thousandths| (thousandths / 1e3) as f32);
        celsius.filter(|celsius| POSSIBLE.contains(celsius)).reduce(f32::max)
    }

    fn watts(&self) -> Option<f32> {
        let rails = self
            .rails
            .iter()
            .map(|(volts, amperes)| Some(number(volts)? * number(amperes)?));
        // A rail that does not answer would make the rest look like little.
        let microwatts = rails.sum::<Option<f64>>().filter(|_| !self.rails.is_empty());
        let discharging = || {
            let battery = self.battery.as_ref()?;
            let discharging = text(&battery.join("status")).is_some_and(|status| status == "Discharging");
            number(&battery.join("power_now")).filter(|_| discharging)
        };
        microwatts
            .or_else(discharging)
            .map(|microwatts| (microwatts / 1e6) as f32)
    }

    fn battery(&self) -> Option<f32> {
        let percent = number(&self.battery.as_ref()?.join("capacity"))?;
        Some((percent / 100.0).clamp(0.0, 1.0) as f32)
    }
}

/// The channels of a power monitor: label, millivolts, milliamperes.
fn rails(monitor: &Path) -> Vec<(String, PathBuf, PathBuf)> {
    let channel = |n| {
        let label = text(&monitor.join(format!("in{n}_label"))).unwrap_or_default();
        let (volts, amperes) = (
            monitor.join(format!("in{n}_input")),
            monitor.join(format!("curr{n}_input")),
        );
        (volts.exists() && amperes.exists()).then_some((label, volts, amperes))
    };
    CHANNELS.filter_map(channel).collect()
}

/// The entries of a folder whose names begin so, by name.
fn entries(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let named = entries
        .flatten()
        .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes()));
    let mut paths: Vec<PathBuf> = named.map(|entry| entry.path()).take(MAX_ENTRIES).collect();
    paths.sort();
    paths
}

/// The line in a file of sysfs.
fn text(path: &Path) -> Option<String> {
    let mut text = String::new();
    fs::File::open(path).ok()?.take(256).read_to_string(&mut text).ok()?;
    Some(text.trim().to_owned())
}

fn number(path: &Path) -> Option<f64> {
    text(path)?.parse().ok().filter(|number: &f64| number.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sysfs with these files.
    fn sysfs(files: &[(&str, &str)]) -> (tempfile::TempDir, Sensors) {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join("class").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }
        let sensors = Sensors::find(folder.path());
        (folder, sensors)
    }

    #[test]
    fn the_hottest_zone_that_answers_is_the_boards_temperature() {
        let (folder, sensors) = sysfs(&[
            ("thermal/thermal_zone0/temp", "41500"),
            ("thermal/thermal_zone1/temp", "58250"),
            ("thermal/thermal_zone2/temp", "-256000"),
            ("thermal/thermal_zone3/temp", ""),
            ("thermal/cooling_device0/temp", "99000"),
        ]);
        assert_eq!(sensors.temperature(), Some(58.25));
        fs::remove_file(folder.path().join("class/thermal/thermal_zone1/temp")).unwrap();
        assert_eq!(sensors.temperature(), Some(41.5));
    }

    #[test]
    fn power_is_the_boards_input_where_that_is_measured_else_the_sum_of_its_rails() {
        let rail = |n: u32, label: &'static str, millivolts, milliamperes| {
            [("label", label), ("input", millivolts)]
                .map(|(what, text)| (format!("hwmon/hwmon3/in{n}_{what}"), text))
                .into_iter()
                .chain([(format!("hwmon/hwmon3/curr{n}_input"), milliamperes)])
                .collect::<Vec<(String, &str)>>()
        };
        let of = |rails: Vec<Vec<(String, &'static str)>>| {
            let mut files = vec![
                ("hwmon/hwmon3/name".to_owned(), "ina3221"),
                ("hwmon/hwmon1/name".to_owned(), "nvme"),
            ];
            files.extend(rails.into_iter().flatten());
            let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), *text)).collect();
            let (_folder, sensors) = sysfs(&files);
            sensors.watts()
        };
        let nano = vec![
            rail(1, "VDD_IN", "5000", "1400"),
            rail(2, "VDD_CPU_GPU_CV", "5000", "600"),
        ];
        assert_eq!(of(nano), Some(7.0));
        let agx = vec![
            rail(1, "VDD_GPU_SOC", "19000", "500"),
            rail(2, "VDD_CPU_CV", "19000", "250"),
        ];
        assert_eq!(of(agx), Some(14.25));
        let broken = vec![
            rail(1, "VDD_GPU_SOC", "19000", "500"),
            rail(2, "VDD_CPU_CV", "19000", ""),
        ];
        assert_eq!(of(broken), None);
    }

    #[test]
    fn a_battery_tells_its_charge_and_its_power_while_it_discharges() {
        let battery = |status| {
            sysfs(&[
                ("power_supply/AC/type", "Mains"),
                ("power_supply/BAT0/type", "Battery"),
                ("power_supply/BAT0/capacity", "83"),
                ("power_supply/BAT0/status", status),
                ("power_supply/BAT0/power_now", "6500000"),
            ])
        };
        let (_folder, sensors) = battery("Discharging");
        assert_eq!((sensors.battery(), sensors.watts()), (Some(0.83), Some(6.5)));
        let (_folder, sensors) = battery("Charging");
        assert_eq!((sensors.battery(), sensors.watts()), (Some(0.83), None));
    }

    #[test]
    fn what_a_board_does_not_tell_is_unknown() {
        let folder = tempfile::tempdir().unwrap();
        let source = BoardSource {
            sysfs: folder.path().into(),
            power_budget: Some(10.0),
        };
        let board = Board::watch(&source, Arc::default()).unwrap();
        assert!(board.temperature().is_nan() && board.watts().is_nan() && board.battery().is_nan());
        assert_eq!(board.power_budget().to_bits(), 10.0_f32.to_bits());
    }
}
