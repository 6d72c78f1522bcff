//! The history of a device as points in time, few enough to draw.
//!
//! Consecutive windows are joined, not bins of time: windows of any length make a smooth line, and a
//! pause stays a gap.

use std::collections::BTreeMap;

use crate::overview::{Loss, add_exits, share};
use crate::store::{History, Run, Window};

/// Most points in a series.
const MOST_POINTS: usize = 120;

/// Some consecutive windows as one.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Point {
    /// When the first began, in milliseconds since 1970.
    pub(crate) start: u64,
    /// When the last ended.
    pub(crate) end: u64,
    pub(crate) frames: u64,
    /// Share of each exit, `0..=1`; empty without frames.
    pub(crate) exits: Vec<f64>,
    /// Multiply-adds spent, over those of the whole network.
    pub(crate) cost: Option<f64>,
    /// Estimated disagreement over the run so far.
    pub(crate) estimate: Option<f64>,
    /// Its bound at the end.
    pub(crate) bound: f64,
    /// Accuracy given up, and its bound, at the end; none where the device does not tell.
    pub(crate) loss: Option<Loss>,
    /// Policy and its version at the end.
    pub(crate) policy: (String, u64),
}

/// A change of the policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Swap {
    /// Start of the first window with the new policy.
    pub(crate) at: u64,
    /// The new policy and its version.
    pub(crate) policy: (String, u64),
}

/// The points of a history.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Series {
    /// Points without a gap between them, stretch by stretch, in the order of time.
    pub(crate) stretches: Vec<Vec<Point>>,
    /// Changes of the policy.
    pub(crate) swaps: Vec<Swap>,
    /// Exits of the model.
    pub(crate) exits: usize,
}

impl Series {
    /// Joins the windows of a history.
    pub(crate) fn of(history: &History) -> Self {
        let mut series = Self::default();
        let together = history.windows.len().div_ceil(MOST_POINTS).max(1);
        let mut runs = history.before.clone();
        let mut group: Vec<&Window> = Vec::new();
        let mut last: Option<&Window> = None;
        for window in &history.windows {
            series.exits = series.exits.max(window.exits.len());
            if let Some(last) = last {
                let apart = is_gap(last, window);
                if apart || group.len() == together {
                    series.close(&mut group, &mut runs);
                }
                if apart {
                    series.stretches.push(Vec::new());
                }
                if (&last.policy, last.policy_version) != (&window.policy, window.policy_version) {
                    series.swaps.push(Swap {
                        at: window.start,
                        policy: (window.policy.clone(), window.policy_version),
                    });
                }
            }
            group.push(window);
            last = Some(window);
        }
        series.close(&mut group, &mut runs);
        series.stretches.retain(|stretch| !stretch.is_empty());
        series
    }

    /// Makes a point of the group and empties it.
    fn close(&mut self, group: &mut Vec<&Window>, runs: &mut BTreeMap<Vec<u8>, Run>) {
        let (Some(first), Some(last)) = (group.first(), group.last()) else {
            return;
        };
        let mut exits = Vec::new();
        let (mut frames, mut macs, mut full_macs) = (0u64, 0u64, 0u64);
        let mut estimate = None;
        for window in &**group {
            add_exits(&mut exits, &window.exits);
            frames = frames.saturating_add(window.frames);
            macs = macs.saturating_add(window.macs);
            full_macs = full_macs.saturating_add(window.full_macs);
            let run = runs.entry(window.boot.clone()).or_default();
            run.frames = run.frames.saturating_add(window.frames);
            run.early = run.early.saturating_add(window.early());
            run.audits = run.audits.saturating_add(window.audits);
            run.disagreements = run.disagreements.saturating_add(window.disagreements);
            estimate = run.disagreement();
        }
        let point = Point {
            start: first.start,
            end: last.end,
            frames,
            exits: exits.iter().filter_map(|taken| share(*taken, frames)).collect(),
            cost: share(macs, full_macs),
            estimate,
            bound: last.bound,
            loss: last.guard.and_then(|guard| guard.accuracy_given_up()),
            policy: (last.policy.clone(), last.policy_version),
        };
        match self.stretches.last_mut() {
            Some(stretch) => stretch.push(point),
            None => self.stretches.push(vec![point]),
        }
        group.clear();
    }

    /// All points in the order of time.
    pub(crate) fn points(&self) -> impl DoubleEndedIterator<Item = &Point> {
        self.stretches.iter().flatten()
    }

    /// First and last millisecond.
    pub(crate) fn span(&self) -> Option<(u64, u64)> {
        let start = self.points().map(|p| p.start).min()?;
        let end = self.points().map(|p| p.end).max()?;
        Some((start, end))
    }
}

/// Whether nothing is known of the time between two windows.
fn is_gap(before: &Window, after: &Window) -> bool {
    let length = |w: &Window| w.end.saturating_sub(w.start);
    let usual = length(before).max(length(after)).max(1000);
    after.start.saturating_sub(before.end) > usual.saturating_mul(3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Guard;

    fn window(sequence: u64, start: u64, exits: &[u64], audits: (u64, u64)) -> Window {
        let frames = exits.iter().sum();
        Window {
            device: "cam".into(),
            boot: vec![1; 16],
            sequence,
            start,
            end: start + 1000,
            frames,
            exits: exits.to_vec(),
            macs: frames * 40,
            full_macs: frames * 100,
            audits: audits.0,
            disagreements: audits.1,
            bound: 0.5,
            rollbacks: 0,
            guard: None,
            control: None,
            drift: None,
            watts: None,
            stage_us: 0,
            classes: vec![],
            policy: if sequence < 3 { "a" } else { "b" }.into(),
            policy_version: 1,
            dropped: 0,
            hurried: 0,
            cameras: Vec::new(),
            engines: Vec::new(),
        }
    }

    fn history(windows: Vec<Window>) -> History {
        History {
            windows,
            before: BTreeMap::new(),
        }
    }

    #[test]
    fn windows_become_points_with_shares_and_running_disagreement() {
        let series = Series::of(&history(vec![
            window(1, 0, &[5, 5], (4, 1)),
            window(2, 1000, &[10, 0], (4, 1)),
            window(3, 2000, &[0, 0], (0, 0)),
        ]));
        assert_eq!(series.stretches.len(), 1);
        let points: Vec<_> = series.points().collect();
        assert_eq!(points[0].exits, [0.5, 0.5]);
        assert_eq!(points[0].cost, Some(0.4));
        assert_eq!(points[0].estimate, Some(0.25 * 0.5));
        assert_eq!(points[1].estimate, Some(0.25 * 0.75));
        assert!(points[2].exits.is_empty());
        assert_eq!(points[2].cost, None);
        assert_eq!(
            series.swaps,
            [Swap {
                at: 2000,
                policy: ("b".into(), 1)
            }]
        );
        assert_eq!(series.span(), Some((0, 3000)));
    }

    #[test]
    fn accuracy_given_up_is_that_at_the_end_of_a_point() {
        let mut windows: Vec<_> = (0..2 * MOST_POINTS as u64)
            .map(|i| window(i, i * 1000, &[1], (0, 0)))
            .collect();
        windows[1].guard = Some(Guard {
            threshold: 0.8,
            loss: 0.01,
            loss_bound: 0.02,
            audits: 50,
            promotions: 0,
            paused: false,
            contexts: 1,
            bytes: 1000,
        });
        let series = Series::of(&history(windows));
        let losses: Vec<_> = series.points().map(|p| p.loss.map(|l| (l.estimate, l.bound))).collect();
        assert_eq!(losses[..2], [Some((0.01, 0.02)), None]);
    }

    #[test]
    fn what_came_before_counts_in_the_running_disagreement() {
        let mut history = history(vec![window(1, 0, &[5, 5], (4, 1))]);
        let before = Run {
            frames: 10,
            early: 5,
            audits: 4,
            disagreements: 3,
            ..Run::default()
        };
        history.before.insert(vec![1; 16], before);
        let series = Series::of(&history);
        assert_eq!(series.stretches[0][0].estimate, Some(0.5 * 0.5));
    }

    #[test]
    fn pause_is_a_gap_and_a_late_window_is_not() {
        let series = Series::of(&history(vec![
            window(1, 0, &[1], (0, 0)),
            window(2, 1500, &[1], (0, 0)),
            window(3, 60_000, &[1], (0, 0)),
        ]));
        let lengths: Vec<_> = series.stretches.iter().map(Vec::len).collect();
        assert_eq!(lengths, [2, 1]);
    }

    #[test]
    fn long_histories_are_joined_and_lose_no_frame() {
        let windows = (0..1000).map(|i| window(i, i * 1000, &[3, 1], (0, 0))).collect();
        let series = Series::of(&history(windows));
        assert!(series.points().count() <= MOST_POINTS);
        assert_eq!(series.points().map(|p| p.frames).sum::<u64>(), 4000);
        assert_eq!(series.span(), Some((0, 1_000_000)));
    }

    #[test]
    fn history_without_windows_has_no_span() {
        let series = Series::of(&history(vec![]));
        assert_eq!(series.span(), None);
    }
}
