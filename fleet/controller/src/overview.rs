//! What the tables say, for people and programs: is everything alive, what does it cost, at what risk,
//! which policy runs where.
//!
//! - *Now* is the latest [`RECENT`] windows of a device, however long they are.
//! - *Cost* is a share: multiply-adds spent, over those that the whole network would have taken on the
//!   same frames. Audits and learning count as spent.
//! - *Disagreement* is the share of frames whose prediction differs from the last exit's. Its estimate
//!   is (audits that disagreed / audits) x (frames that left early / frames) over the run of the agent,
//!   because audits are drawn among frames that left early. Its bound is the device's own.
//! - *Saved* is what learning spares: what the device says that frozen heads would have cost on its latest audits, less
//!   what the learned ones would have, both at the operator's accuracy budget. Time is what a multiply-add takes there
//!   lately, energy what the board draws in that time.
//! - *Drift* is how far the classes are from those that the device usually sees, beyond chance.
//! - *Accuracy given up* is the device's own expected loss against the last exit, with its bound. Exits
//!   that disagree with the last one because they do better give up nothing.

use std::collections::BTreeMap;

use offramp_proto::{CameraReport, ControlReport};

use crate::store::{DesiredState, Device, Guard, Run, Selection, Store, StoreError, Window};

/// Windows of a device that count as now.
pub(crate) const RECENT: u32 = 10;
/// A living device that says nothing for this long is silent, in milliseconds, unless its windows are
/// long: then after three of them.
pub(crate) const SILENT_AFTER: u64 = 5 * 60 * 1000;

/// Audits before which nothing is said of what learning saves.
const TELLING: u64 = 64;
/// A device that surely saves less than this share profits nothing from learning.
const WORTHWHILE: f64 = 0.02;
/// Drift from which on a device sees something else than usual.
const DRIFTING: f64 = 0.25;
/// Deviations of a one-sided bound of 95 %.
const DEVIATIONS: f64 = 1.645;

/// Whether a device lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// Connected, and heard of lately.
    Alive,
    /// Connected as far as the broker knows, but nothing was heard for a while.
    Silent,
    /// Its connection is gone.
    Gone,
    /// It is kept apart, and does not count.
    Quarantined,
}

/// How far a device is with its desired state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Nothing was ever asked of it.
    Unmanaged,
    /// It reports the generation that it should have.
    InForce,
    /// It has not answered yet.
    Pending,
    /// It keeps the older one, and says why.
    Refused(String),
}

/// Share of frames whose prediction differs from the last exit's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Disagreement {
    /// Best guess, `0..=1`.
    pub(crate) estimate: f64,
    /// Upper bound, one-sided 95 %, `0..=1`.
    pub(crate) bound: f64,
    /// Audits behind both.
    pub(crate) audits: u64,
}

/// Accuracy given up against the last exit, in expectation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Loss {
    /// Best guess, `-1..=1`; negative where the exits do better.
    pub(crate) estimate: f64,
    /// Upper bound, one-sided 95 %, `-1..=1`.
    pub(crate) bound: f64,
}

/// What learning saves. Costs are shares of the whole network's, at one accuracy budget.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Saving {
    /// With the learned heads.
    pub(crate) learned: f64,
    /// With the frozen ones.
    pub(crate) frozen: f64,
    /// Standard error of their difference.
    pub(crate) error: f64,
    pub(crate) audits: u64,
    /// Milliseconds a frame.
    pub(crate) ms: Option<f64>,
    /// Millijoules a frame, where the board tells what it draws.
    pub(crate) mj: Option<f64>,
}

impl Saving {
    /// What is saved as a share of what frozen heads would have cost; below zero learning costs more.
    pub(crate) fn share(&self) -> f64 {
        1.0 - self.learned / self.frozen
    }

    /// Bounds of it, each one-sided at 95 %.
    pub(crate) fn bounds(&self) -> (f64, f64) {
        let doubt = DEVIATIONS * self.error / self.frozen;
        (self.share() - doubt, self.share() + doubt)
    }

    /// Multiply-adds that were surely saved (95 %) where so many were taken.
    pub(crate) fn of_macs(&self, macs: u64) -> u64 {
        /// What frozen heads would have cost can have been four times as much.
        const MOST: f64 = 0.75;
        let share = self.bounds().0.clamp(0.0, MOST);
        // What is no number is nothing.
        (macs as f64 * share / (1.0 - share)) as u64
    }

    pub(crate) fn of(control: &ControlReport, recent: &Recent) -> Option<Self> {
        let [learned, frozen] = [control.learned.cost, control.frozen.cost].map(f64::from);
        if control.audits < TELLING || frozen <= 0.0 {
            return None;
        }
        let full = share(recent.full_macs, recent.frames);
        let ms = share(recent.stage_us, recent.macs).zip(full);
        let ms = ms.map(|(us, full)| us * full * (frozen - learned) / 1e3);
        Some(Self {
            learned,
            frozen,
            error: f64::from(control.error),
            audits: control.audits,
            ms,
            mj: ms.zip(recent.watts).map(|(ms, watts)| ms * watts),
        })
    }
}

/// What a device does now.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Recent {
    pub(crate) frames: u64,
    pub(crate) dropped: u64,
    /// Frames that left because their deadline was near.
    pub(crate) hurried: u64,
    pub(crate) macs: u64,
    pub(crate) full_macs: u64,
    /// Microseconds spent in stages.
    pub(crate) stage_us: u64,
    /// Mean drift, by frames; none where the device does not tell.
    pub(crate) drift: Option<f64>,
    /// Power that the board draws in watts, in the mean, where it tells.
    pub(crate) watts: Option<f64>,
    /// Frames taken at each exit.
    pub(crate) exits: Vec<u64>,
    /// Frames by class, the most frequent first.
    pub(crate) classes: Vec<(u32, u64)>,
    /// What each of several cameras does, by name.
    pub(crate) cameras: Vec<CameraReport>,
    /// What runs each stage, by the latest window.
    pub(crate) engines: Vec<String>,
}

/// Everything about one device.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DeviceOverview {
    pub(crate) device: Device,
    pub(crate) life: Life,
    pub(crate) recent: Recent,
    /// Frames over all runs.
    pub(crate) frames: u64,
    pub(crate) disagreement: Option<Disagreement>,
    /// At the end of the latest window; none when the device does not tell.
    pub(crate) guard: Option<Guard>,
    /// What learning saves; none before enough audits, and when the device does not tell.
    pub(crate) saving: Option<Saving>,
    pub(crate) desired: Option<DesiredState>,
    pub(crate) progress: Progress,
    /// The policy that it runs, as far as it said.
    pub(crate) running: Option<Running>,
}

/// A policy that runs on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Running {
    pub(crate) policy: String,
    pub(crate) version: u64,
    /// `desired`, `last-good` or `built-in`; none when only summaries told of it.
    pub(crate) source: Option<String>,
}

/// Everything about some devices, in the order of their names.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Overview {
    pub(crate) devices: Vec<DeviceOverview>,
    /// Whether more devices follow.
    pub(crate) cut: bool,
}

impl Recent {
    fn of(windows: &[Window]) -> Self {
        let mut recent = Self::default();
        let mut classes = BTreeMap::<u32, u64>::new();
        for window in windows {
            recent.frames = recent.frames.saturating_add(window.frames);
            recent.dropped = recent.dropped.saturating_add(window.dropped);
            recent.hurried = recent.hurried.saturating_add(window.hurried);
            recent.macs = recent.macs.saturating_add(window.macs);
            recent.full_macs = recent.full_macs.saturating_add(window.full_macs);
            recent.stage_us = recent.stage_us.saturating_add(window.stage_us);
            add_exits(&mut recent.exits, &window.exits);
            for (class, count) in &window.classes {
                let sum = classes.entry(*class).or_default();
                *sum = sum.saturating_add(*count);
            }
        }
        recent.drift = mean(windows, |window| window.drift);
        recent.watts = mean(windows, |window| window.watts);
        recent.cameras = cameras(windows);
        recent.engines = windows.first().map_or_else(Vec::new, |latest| latest.engines.clone());
        recent.classes = classes.into_iter().collect();
        recent
            .classes
            .sort_by_key(|(class, count)| (std::cmp::Reverse(*count), *class));
        recent
    }

    /// Multiply-adds spent over those of the whole network.
    pub(crate) fn cost(&self) -> Option<f64> {
        share(self.macs, self.full_macs)
    }
}

/// The mean of what windows tell, each weighing its frames.
fn mean(windows: &[Window], told: impl Fn(&Window) -> Option<f64>) -> Option<f64> {
    let told = windows.iter().filter_map(|w| Some((told(w)?, w.frames as f64)));
    let (sum, frames) = told.fold((0.0, 0.0), |(sum, all), (value, frames)| {
        (sum + value * frames, all + frames)
    });
    (frames > 0.0).then(|| sum / frames)
}

/// What each camera did in windows of which the latest is the first: sums, and the guard of the latest.
fn cameras(windows: &[Window]) -> Vec<CameraReport> {
    let mut cameras = BTreeMap::<&str, CameraReport>::new();
    for part in windows.iter().flat_map(|window| &window.cameras) {
        let camera = cameras.entry(&part.name).or_insert_with(|| CameraReport {
            name: part.name.clone(),
            loss: part.loss,
            loss_bound: part.loss_bound,
            paused: part.paused,
            ..CameraReport::default()
        });
        for (sum, more) in [
            (&mut camera.frames, part.frames),
            (&mut camera.dropped, part.dropped),
            (&mut camera.hurried, part.hurried),
            (&mut camera.macs, part.macs),
            (&mut camera.full_macs, part.full_macs),
            (&mut camera.audits, part.audits),
            (&mut camera.disagreements, part.disagreements),
        ] {
            *sum = sum.saturating_add(more);
        }
        add_exits(&mut camera.exits, &part.exits);
    }
    cameras.into_values().collect()
}

/// Adds counts per exit; a model with more exits makes the list longer.
pub(crate) fn add_exits(sum: &mut Vec<u64>, exits: &[u64]) {
    if sum.len() < exits.len() {
        sum.resize(exits.len(), 0);
    }
    for (sum, taken) in sum.iter_mut().zip(exits) {
        *sum = sum.saturating_add(*taken);
    }
}

/// A part of a whole; none of nothing.
pub(crate) fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

impl Run {
    /// Estimated share of frames whose prediction differs from the last exit's.
    pub(crate) fn disagreement(&self) -> Option<f64> {
        Some(share(self.disagreements, self.audits)? * share(self.early, self.frames)?)
    }
}

impl Guard {
    /// Accuracy given up; none before the first audit.
    pub(crate) fn accuracy_given_up(&self) -> Option<Loss> {
        // What is outside its range is nonsense that nothing here may stumble over.
        (self.audits > 0).then(|| Loss {
            estimate: self.loss.clamp(-1.0, 1.0),
            bound: self.loss_bound.clamp(-1.0, 1.0),
        })
    }
}

impl DeviceOverview {
    /// Accuracy given up now.
    pub(crate) fn loss(&self) -> Option<Loss> {
        self.guard?.accuracy_given_up()
    }

    /// Whether learning is surely worth nothing there.
    pub(crate) fn is_idle(&self) -> bool {
        self.saving.is_some_and(|saving| saving.bounds().1 < WORTHWHILE)
    }

    /// Whether it sees something else than usual.
    pub(crate) fn is_drifting(&self) -> bool {
        self.recent.drift.is_some_and(|drift| drift >= DRIFTING)
    }

    /// Whether its learning has paused, as far as it said.
    pub(crate) fn is_paused(&self) -> bool {
        self.guard.is_some_and(|guard| guard.paused)
    }

    /// The policy that it should run, when it runs another.
    pub(crate) fn wanted(&self) -> Option<(&str, u64)> {
        let (name, version) = self.desired.as_ref()?.policy.as_ref()?;
        let runs = self.running.as_ref().map(|r| (&r.policy, r.version));
        (runs != Some((name, *version))).then_some((name, *version))
    }

    fn of(
        device: Device,
        windows: &[Window],
        runs: Option<&BTreeMap<Vec<u8>, Run>>,
        desired: Option<DesiredState>,
        now: u64,
    ) -> Self {
        let life = life(&device, windows.first(), now);
        let progress = progress(&device, desired.as_ref());
        let frames = runs.map_or(0, |runs| {
            runs.values().fold(0u64, |sum, run| sum.saturating_add(run.frames))
        });
        // Estimate and bound are of the run that spoke last.
        let disagreement = windows.first().and_then(|latest| {
            let run = runs?.get(&latest.boot)?;
            Some(Disagreement {
                estimate: run.disagreement()?,
                bound: latest.bound,
                audits: run.audits,
            })
        });
        let reported = device.reported.as_ref().map(|r| Running {
            policy: r.policy.clone(),
            version: r.version,
            source: Some(r.source.clone()),
        });
        let told = || {
            windows.first().map(|w| Running {
                policy: w.policy.clone(),
                version: w.policy_version,
                source: None,
            })
        };
        let recent = Recent::of(windows);
        let control = windows.first().and_then(|latest| latest.control.as_ref());
        Self {
            life,
            saving: control.and_then(|control| Saving::of(control, &recent)),
            recent,
            frames,
            disagreement,
            guard: windows.first().and_then(|latest| latest.guard),
            progress,
            desired,
            running: reported.or_else(told),
            device,
        }
    }
}

fn life(device: &Device, latest: Option<&Window>, now: u64) -> Life {
    let window = latest.map_or(0, |w| w.end.saturating_sub(w.start));
    let patience = SILENT_AFTER.max(window.saturating_mul(3));
    match device.alive {
        _ if device.quarantine.is_some() => Life::Quarantined,
        false => Life::Gone,
        true if now.saturating_sub(device.last_seen) > patience => Life::Silent,
        true => Life::Alive,
    }
}

fn progress(device: &Device, desired: Option<&DesiredState>) -> Progress {
    let Some(desired) = desired else {
        return Progress::Unmanaged;
    };
    let Some(reported) = &device.reported else {
        return Progress::Pending;
    };
    match &reported.refused {
        _ if reported.generation >= desired.generation => Progress::InForce,
        Some(reason) if reported.refuses(desired.generation, desired.issued_at) => Progress::Refused(reason.clone()),
        _ => Progress::Pending,
    }
}

impl Store {
    /// Everything about at most `limit` of the devices that are meant, from the one after `after` on, at a time
    /// in milliseconds since 1970.
    pub(crate) async fn overview_fetch(
        &self,
        selection: &Selection,
        after: &str,
        limit: u32,
        now: u64,
    ) -> Result<Overview, StoreError> {
        let mut names = self.select(selection, after, limit.saturating_add(1), now).await?;
        let cut = names.len() > limit as usize;
        names.truncate(limit as usize);
        if names.is_empty() {
            return Ok(Overview { devices: vec![], cut });
        }
        let these: Vec<&str> = names.iter().map(String::as_str).collect();
        let devices = self.device_list(&these).await?;
        let windows = self.window_latest(&these, RECENT).await?;
        let runs = self.run_list(&these).await?;
        let mut desired: BTreeMap<String, DesiredState> = self
            .desired_list(&these)
            .await?
            .into_iter()
            .map(|d| (d.device.clone(), d))
            .collect();
        let devices = devices
            .into_iter()
            .map(|device| {
                let windows = windows.get(&device.device).map(Vec::as_slice).unwrap_or_default();
                let runs = runs.get(&device.device);
                let desired = desired.remove(&device.device);
                DeviceOverview::of(device, windows, runs, desired, now)
            })
            .collect();
        Ok(Overview { devices, cut })
    }

    /// Everything about one device.
    pub(crate) async fn device_overview_fetch(
        &self,
        device: &str,
        now: u64,
    ) -> Result<Option<DeviceOverview>, StoreError> {
        let Some(found) = self.device_fetch(device).await? else {
            return Ok(None);
        };
        let windows = self.window_latest(&[device], RECENT).await?;
        let runs = self.run_list(&[device]).await?;
        let desired = self.desired_fetch(device).await?;
        let windows = windows.get(device).map(Vec::as_slice).unwrap_or_default();
        Ok(Some(DeviceOverview::of(found, windows, runs.get(device), desired, now)))
    }
}

#[cfg(test)]
mod tests {
    use offramp_proto::Arm;

    use super::*;
    use crate::store::{Quarantine, ReportedState, Wanted};
    use crate::totals::Totals;

    const NOW: u64 = 1_000_000_000;

    fn device(alive: bool, last_seen: u64) -> Device {
        Device {
            device: "cam".into(),
            first_seen: 0,
            last_seen,
            alive,
            boot: None,
            started_at: None,
            agent: None,
            model: None,
            capabilities: vec![],
            reported: None,
            labels: [].into(),
            quarantine: None,
            certificate_ends: None,
        }
    }

    fn window(length: u64, frames: u64, bound: f64) -> Window {
        Window {
            device: "cam".into(),
            boot: vec![1; 16],
            sequence: 1,
            start: 0,
            end: length,
            frames,
            exits: vec![frames - frames / 4, frames / 4],
            macs: frames * 30,
            full_macs: frames * 100,
            stage_us: frames * 500,
            audits: 0,
            disagreements: 0,
            bound,
            rollbacks: 0,
            guard: None,
            control: None,
            drift: None,
            watts: None,
            classes: vec![(3, 5), (1, 5), (2, 9)],
            policy: "threshold".into(),
            policy_version: 1,
            dropped: 0,
            hurried: 0,
            cameras: Vec::new(),
            engines: Vec::new(),
        }
    }

    fn reported(generation: u64, at: u64, refused: Option<&str>) -> Device {
        let reported = ReportedState {
            refused_generation: None,
            at,
            generation,
            policy: "threshold".into(),
            version: 1,
            source: "desired".into(),
            refused: refused.map(Into::into),
        };
        Device {
            reported: Some(reported),
            ..device(true, NOW)
        }
    }

    fn desired(generation: u64, issued_at: u64) -> DesiredState {
        DesiredState {
            device: "cam".into(),
            generation,
            issued_at,
            policy: Some(("entropy".into(), 2)),
            model: None,
            settings: Wanted::default(),
            signed: vec![],
        }
    }

    #[test]
    fn device_is_silent_after_five_minutes_or_three_of_its_windows() {
        let minutes = |m: u64| NOW - m * 60_000;
        let hour = window(3_600_000, 1, 0.0);
        assert_eq!(life(&device(true, minutes(4)), None, NOW), Life::Alive);
        assert_eq!(life(&device(true, minutes(6)), None, NOW), Life::Silent);
        assert_eq!(life(&device(true, minutes(170)), Some(&hour), NOW), Life::Alive);
        assert_eq!(life(&device(true, minutes(190)), Some(&hour), NOW), Life::Silent);
        assert_eq!(life(&device(false, NOW), None, NOW), Life::Gone);
        // Its clock is not asked, but ours may have been set back.
        assert_eq!(life(&device(true, NOW + 5), None, NOW), Life::Alive);
    }

    #[test]
    fn refusal_counts_only_when_it_came_after_the_desired_state() {
        let is = |device: &Device, desired: Option<&DesiredState>| progress(device, desired);
        assert_eq!(is(&reported(1, 5, None), None), Progress::Unmanaged);
        assert_eq!(is(&device(true, NOW), Some(&desired(1, 10))), Progress::Pending);
        assert_eq!(is(&reported(1, 20, None), Some(&desired(1, 10))), Progress::InForce);
        assert_eq!(
            is(&reported(2, 20, Some("old")), Some(&desired(1, 10))),
            Progress::InForce
        );
        assert_eq!(is(&reported(0, 20, None), Some(&desired(1, 10))), Progress::Pending);
        assert_eq!(
            is(&reported(0, 5, Some("bad")), Some(&desired(1, 10))),
            Progress::Pending
        );
        assert_eq!(
            is(&reported(0, 20, Some("bad")), Some(&desired(1, 10))),
            Progress::Refused("bad".into())
        );
    }

    fn overview(name: &str, windows: &[Window], run: Run) -> DeviceOverview {
        let device = Device {
            device: name.into(),
            ..device(true, NOW)
        };
        let runs = [
            (vec![1; 16], run),
            (
                vec![2; 16],
                Run {
                    frames: 5,
                    ..Run::default()
                },
            ),
        ]
        .into();
        DeviceOverview::of(device, windows, Some(&runs), None, NOW)
    }

    #[test]
    fn disagreement_is_scaled_to_all_frames_and_frames_are_of_all_runs() {
        let run = Run {
            frames: 1000,
            early: 800,
            audits: 50,
            disagreements: 5,
            ..Run::default()
        };
        let overview = overview("cam", &[window(1000, 40, 0.2), window(1000, 60, 0.3)], run);
        assert_eq!(overview.frames, 1005);
        assert_eq!(overview.recent.cost(), Some(0.3));
        assert_eq!(overview.recent.exits, [75, 25]);
        assert_eq!(overview.recent.classes, [(2, 18), (1, 10), (3, 10)]);
        let disagreement = overview.disagreement.unwrap();
        assert!((disagreement.estimate - 0.1 * 0.8).abs() < 1e-12);
        assert_eq!((disagreement.bound, disagreement.audits), (0.2, 50));
    }

    #[test]
    fn without_audits_nothing_is_said_of_disagreement() {
        let run = Run {
            frames: 1000,
            early: 800,
            ..Run::default()
        };
        assert_eq!(overview("cam", &[window(1000, 40, 1.0)], run).disagreement, None);
        assert_eq!(overview("cam", &[], Run::default()).disagreement, None);
    }

    fn guard(loss: f64, loss_bound: f64, audits: u64, paused: bool) -> Guard {
        Guard {
            threshold: 0.8,
            loss,
            loss_bound,
            audits,
            promotions: 0,
            paused,
            contexts: 1,
            bytes: 1000,
        }
    }

    fn guarded(name: &str, frames: u64, guard: Guard) -> DeviceOverview {
        let latest = Window {
            guard: Some(guard),
            ..window(1000, frames, 0.1)
        };
        overview(name, &[latest], Run::default())
    }

    #[test]
    fn accuracy_given_up_is_that_of_the_latest_window() {
        let device = guarded("cam", 100, guard(-0.01, 0.02, 256, true));
        let loss = device.loss().unwrap();
        assert_eq!((loss.estimate, loss.bound), (-0.01, 0.02));
        assert!(device.is_paused());
        // Before the first audit, and where the device does not tell.
        assert_eq!(guarded("cam", 100, guard(0.0, 1.0, 0, false)).loss(), None);
        let old = overview("cam", &[window(1000, 40, 0.2)], Run::default());
        assert_eq!((old.loss(), old.is_paused()), (None, false));
        let odd = guarded("cam", 100, guard(-1e30, 1e30, 9, false)).loss().unwrap();
        assert_eq!((odd.estimate, odd.bound), (-1.0, 1.0));
    }

    fn saving(name: &str, [learned, frozen]: [f32; 2], error: f32, drift: f64) -> DeviceOverview {
        let arm = |cost| Arm { cost, loss: 0.0 };
        let latest = Window {
            control: Some(ControlReport {
                audits: 256,
                learned: arm(learned),
                frozen: arm(frozen),
                error,
            }),
            drift: Some(drift),
            watts: Some(8.0),
            ..window(1000, 100, 0.1)
        };
        overview(name, &[latest], Run::default())
    }

    #[test]
    fn what_learning_saves_is_told_in_compute_time_and_energy() {
        let device = saving("cam", [0.25, 0.5], 0.03125, 0.0);
        let saved = device.saving.unwrap();
        assert_eq!(saved.share(), 0.5);
        let (low, high) = saved.bounds();
        assert!((low - (0.5 - 1.645 / 16.0)).abs() < 1e-9 && (high - (0.5 + 1.645 / 16.0)).abs() < 1e-9);
        // At least 0.397 of what frozen heads would have taken.
        assert_eq!(saved.of_macs(1000), (1000.0 * low / (1.0 - low)) as u64);
        let sure_of = |costs, error| saving("cam", costs, error, 0.0).saving.unwrap().of_macs(1000);
        assert_eq!(sure_of([0.25, 0.5], 0.5), 0, "nothing is sure");
        assert_eq!((sure_of([0.5, 0.25], 0.0), sure_of([0.0, 0.5], 0.0)), (0, 3000));
        assert_eq!(sure_of([0.5, 0.5], f32::NAN), 0);
        // 500 us for 30 multiply-adds of 100.
        assert!((saved.ms.unwrap() - 0.5 / 30.0 * 25.0).abs() < 1e-9);
        assert!((saved.mj.unwrap() - 8.0 * saved.ms.unwrap()).abs() < 1e-9);
        assert!(!device.is_idle() && !device.is_drifting());
        // Not before there is enough to tell.
        let early = ControlReport {
            audits: TELLING - 1,
            ..ControlReport::default()
        };
        assert_eq!(Saving::of(&early, &device.recent), None);
        assert_eq!(Saving::of(&ControlReport { audits: 99, ..early }, &device.recent), None);
    }

    #[test]
    fn fleet_names_devices_that_profit_nothing_and_those_that_drift() {
        let fleet = totals(&[
            saving("a", [0.25, 0.5], 0.01, 0.1),
            saving("b", [0.5, 0.5], 0.001, 0.5),
            saving("c", [0.5, 0.5], 0.05, 0.0),
            overview("old", &[window(1000, 600, 0.2)], Run::default()),
        ]);
        assert_eq!(fleet.idle.names, ["b"], "of c nothing is sure");
        assert_eq!(fleet.drifting.names, ["b"]);
        let saved = fleet.saving().unwrap();
        assert!((saved.share() - (1.0 - 1.25 / 1.5)).abs() < 1e-9);
        assert!((saved.error - (0.01f64.powi(2) + 0.001f64.powi(2) + 0.05f64.powi(2)).sqrt() / 3.0).abs() < 1e-6);
        assert!((saved.ms.unwrap() - 0.5 / 30.0 * 25.0 / 3.0).abs() < 1e-9);
    }

    fn totals(devices: &[DeviceOverview]) -> Totals {
        let mut totals = Totals::default();
        devices.iter().for_each(|device| totals.add(device));
        totals
    }

    #[test]
    fn fleet_weighs_devices_by_their_frames_and_names_the_riskiest() {
        let run = |disagreements| Run {
            frames: 100,
            early: 100,
            audits: 10,
            disagreements,
            ..Run::default()
        };
        let fleet = totals(&[
            overview("a", &[window(1000, 300, 0.2)], run(1)),
            overview("b", &[window(1000, 100, 0.4)], run(5)),
            overview("c", &[], Run::default()),
        ]);
        assert!((fleet.disagreement().unwrap() - (0.1 * 300.0 + 0.5 * 100.0) / 400.0).abs() < 1e-12);
        assert_eq!(fleet.riskiest.as_ref().unwrap().0, "b");
        assert_eq!(fleet.cost(), Some(0.3));
        assert_eq!(fleet.alive, 3);
    }

    #[test]
    fn a_device_in_quarantine_is_named_and_counts_in_nothing() {
        let mut apart = guarded("b", 100, guard(0.5, 0.6, 50, true));
        apart.life = Life::Quarantined;
        let mut fleet = totals(&[guarded("a", 300, guard(0.02, 0.03, 256, false)), apart]);
        let alone = totals(&[guarded("a", 300, guard(0.02, 0.03, 256, false))]);
        assert_eq!((fleet.quarantined.count, fleet.quarantined.first()), (1, Some("b")));
        fleet.quarantined = alone.quarantined.clone();
        assert_eq!(fleet, alone);
        let quarantined = Device {
            quarantine: Some(Quarantine {
                at: 1,
                reason: "stolen".into(),
            }),
            ..device(true, NOW)
        };
        assert_eq!(life(&quarantined, None, NOW), Life::Quarantined);
    }

    #[test]
    fn fleet_tells_the_accuracy_given_up_and_where_most() {
        let fleet = totals(&[
            guarded("a", 300, guard(0.02, 0.03, 256, false)),
            guarded("b", 100, guard(-0.02, 0.05, 50, false)),
            overview("old", &[window(1000, 600, 0.2)], Run::default()),
        ]);
        assert!((fleet.loss().unwrap() - 0.01).abs() < 1e-12);
        assert_eq!(fleet.most_lossy, Some(("b".into(), 0.05)));
    }
}
