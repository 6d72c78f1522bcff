//! The windows of all cameras as one: a device's.

use offramp_core::{WindowReport, upper_bound};
use offramp_proto::{Arm, CameraReport, ClassCount, ControlReport, ExitUse, GuardReport, PolicyReport, PolicySource};

/// A window of one camera.
pub(crate) struct Part {
    /// May be empty where there is one camera only.
    pub(crate) camera: String,
    pub(crate) report: WindowReport,
    /// Frames that left because their deadline was near.
    pub(crate) hurried: u64,
    pub(crate) policy: PolicyReport,
}

/// A window of the device.
pub(crate) struct Whole {
    pub(crate) report: WindowReport,
    pub(crate) hurried: u64,
    pub(crate) policy: PolicyReport,
    /// The part of each camera that has a name.
    pub(crate) cameras: Vec<CameraReport>,
}

/// Adds windows up, over the run of an agent.
#[derive(Debug, Default)]
pub(crate) struct Sums {
    audits: u64,
    disagreements: u64,
}

impl Sums {
    /// One window of those that the cameras had at about the same time, in any order; a camera that has ended
    /// may have had two.
    ///
    /// Counts are added up. The learner's distances are the largest of any camera; of guards, the one is told that
    /// is nearest to its bound; of policies, the one that has stepped down furthest.
    ///
    /// # Panics
    /// Without parts.
    pub(crate) fn join(&mut self, parts: Vec<Part>) -> Whole {
        let mut cameras: Vec<CameraReport> = Vec::new();
        for part in &parts {
            add_camera(&mut cameras, part);
        }
        cameras.retain(|camera| !camera.name.is_empty());
        let mut parts = parts.into_iter();
        let first = parts.next().expect("an agent has a camera");
        let mut whole = Whole {
            report: first.report,
            hurried: first.hurried,
            policy: first.policy,
            cameras,
        };
        for part in parts {
            whole.hurried += part.hurried;
            add(&mut whole.report, part.report);
            let faults = whole.policy.faults + part.policy.faults;
            if rung(part.policy.source) > rung(whole.policy.source) {
                whole.policy = part.policy;
            }
            whole.policy.faults = faults;
        }
        let audits = &mut whole.report.audits;
        self.audits += audits.run;
        self.disagreements += audits.disagreements;
        audits.bound = upper_bound(self.disagreements, self.audits);
        whole
    }
}

fn rung(source: PolicySource) -> u8 {
    match source {
        PolicySource::Desired => 0,
        PolicySource::LastGood => 1,
        PolicySource::BuiltIn => 2,
    }
}

fn add_camera(cameras: &mut Vec<CameraReport>, part: &Part) {
    let report = &part.report;
    let place = cameras.binary_search_by(|camera| camera.name.as_str().cmp(&part.camera));
    let place = place.unwrap_or_else(|place| {
        let camera = CameraReport {
            name: part.camera.clone(),
            ..CameraReport::default()
        };
        cameras.insert(place, camera);
        place
    });
    let camera = &mut cameras[place];
    camera.frames += report.frames;
    camera.dropped += report.dropped;
    camera.hurried += part.hurried;
    camera.exits.resize(report.exits.len(), 0);
    for (sum, exit) in camera.exits.iter_mut().zip(&report.exits) {
        *sum += exit.taken;
    }
    camera.macs += report.cost.macs;
    camera.full_macs += report.cost.full_macs;
    camera.audits += report.audits.run;
    camera.disagreements += report.audits.disagreements;
    camera.loss = report.guard.loss;
    camera.loss_bound = report.guard.loss_bound;
    camera.paused = report.guard.paused;
}

/// The mean of two reports that weigh so many frames.
fn mean(first: ControlReport, second: ControlReport, frames: [u64; 2]) -> ControlReport {
    let all = (frames[0] + frames[1]).max(1) as f32;
    let [a, b] = frames.map(|frames| frames as f32 / all);
    let arm = |first: Arm, second: Arm| Arm {
        cost: (a * first.cost + b * second.cost).min(1.0),
        loss: (a * first.loss + b * second.loss).clamp(-1.0, 1.0),
    };
    ControlReport {
        audits: first.audits + second.audits,
        learned: arm(first.learned, second.learned),
        frozen: arm(first.frozen, second.frozen),
        error: (a * first.error).hypot(b * second.error),
    }
}

fn add(sum: &mut WindowReport, part: WindowReport) {
    // A camera without audits says nothing.
    sum.control = match (sum.control.audits, part.control.audits) {
        (_, 0) => sum.control,
        (0, _) => part.control,
        _ => mean(sum.control, part.control, [sum.frames, part.frames]),
    };
    sum.frames += part.frames;
    sum.dropped += part.dropped;
    sum.faults += part.faults;
    for (ExitUse { taken }, more) in sum.exits.iter_mut().zip(part.exits) {
        *taken += more.taken;
    }
    sum.cost.macs += part.cost.macs;
    sum.cost.audit_macs += part.cost.audit_macs;
    sum.cost.full_macs += part.cost.full_macs;
    sum.cost.stage_us += part.cost.stage_us;
    sum.cost.overhead_us += part.cost.overhead_us;
    sum.audits.run += part.audits.run;
    sum.audits.disagreements += part.audits.disagreements;
    sum.learner.updates += part.learner.updates;
    sum.learner.gated += part.learner.gated;
    sum.learner.rollbacks += part.learner.rollbacks;
    for (most, distance) in sum.learner.distance.iter_mut().zip(part.learner.distance) {
        *most = most.max(distance);
    }
    sum.drift = sum.drift.max(part.drift);
    let (guard, other) = (&mut sum.guard, part.guard);
    let promotions = guard.promotions + other.promotions;
    let contexts = guard.contexts + other.contexts;
    let bytes = guard.bytes + other.bytes;
    // A bound without audits says nothing.
    let risk = |guard: &GuardReport| (guard.paused, guard.audits > 0, guard.loss_bound);
    if risk(&other) > risk(guard) {
        *guard = other;
    }
    (guard.promotions, guard.contexts, guard.bytes) = (promotions, contexts, bytes);
    for ClassCount { class, count } in part.classes {
        match sum.classes.binary_search_by_key(&class, |known| known.class) {
            Ok(place) => sum.classes[place].count += count,
            Err(place) => sum.classes.insert(place, ClassCount { class, count }),
        }
    }
}

#[cfg(test)]
mod tests {
    use offramp_proto::{Audits, Cost, LearnerReport};

    use super::*;

    fn part(camera: &str, frames: u64, classes: &[(u32, u64)], loss_bound: f32, source: PolicySource) -> Part {
        let classes = classes.iter().map(|&(class, count)| ClassCount { class, count });
        Part {
            camera: camera.into(),
            report: WindowReport {
                frames,
                dropped: 1,
                faults: 2,
                exits: vec![ExitUse { taken: frames - 3 }, ExitUse { taken: 3 }],
                cost: Cost {
                    macs: 10 * frames,
                    full_macs: 30 * frames,
                    ..Cost::default()
                },
                audits: Audits {
                    run: 20,
                    disagreements: 1,
                    bound: 0.5,
                },
                learner: LearnerReport {
                    distance: vec![loss_bound, 0.0],
                    ..LearnerReport::default()
                },
                guard: GuardReport {
                    loss_bound,
                    audits: if loss_bound < 1.0 { 20 } else { 0 },
                    contexts: 1,
                    ..GuardReport::default()
                },
                control: ControlReport {
                    audits: if loss_bound < 1.0 { 20 } else { 0 },
                    learned: Arm {
                        cost: loss_bound,
                        loss: 0.0,
                    },
                    frozen: Arm { cost: 0.5, loss: 0.25 },
                    error: 0.03,
                },
                drift: loss_bound,
                classes: classes.collect(),
            },
            hurried: 4,
            policy: PolicyReport {
                name: camera.into(),
                version: 1,
                digest: None,
                source,
                faults: 2,
            },
        }
    }

    #[test]
    fn windows_add_up_and_the_camera_in_trouble_shows() {
        let parts = vec![
            part("gate", 100, &[(1, 60), (7, 40)], 0.01, PolicySource::Desired),
            part("yard", 50, &[(1, 20), (3, 30)], 0.03, PolicySource::LastGood),
            part("new", 3, &[], 1.0, PolicySource::Desired),
        ];
        let mut sums = Sums::default();
        let whole = sums.join(parts);
        let report = &whole.report;
        assert_eq!((report.frames, report.dropped, report.cost.macs), (153, 3, 1530));
        assert_eq!(
            (report.exits[0].taken, report.exits[1].taken, whole.hurried),
            (144, 9, 12)
        );
        let classes: Vec<_> = report.classes.iter().map(|c| (c.class, c.count)).collect();
        assert_eq!(classes, [(1, 80), (3, 30), (7, 40)]);
        assert_eq!((report.guard.loss_bound, report.guard.contexts), (0.03, 3));
        assert_eq!(report.learner.distance, [1.0, 0.0]);
        assert_eq!((whole.policy.name.as_str(), whole.policy.faults), ("yard", 6));
        assert_eq!(report.audits.bound, upper_bound(3, 60));
        let control = report.control;
        assert_eq!(report.drift, 1.0);
        assert_eq!((control.audits, control.frozen.cost), (40, 0.5));
        assert!((control.learned.cost - (0.01 * 100.0 + 0.03 * 50.0) / 150.0).abs() < 1e-6);
        assert!((control.error - 0.03 * 5f32.sqrt() / 3.0).abs() < 1e-6);
        let frames: Vec<_> = whole.cameras.iter().map(|c| (c.name.as_str(), c.frames)).collect();
        assert_eq!(frames, [("gate", 100), ("new", 3), ("yard", 50)]);
    }

    #[test]
    fn the_only_camera_is_the_device_and_bounds_cover_the_run() {
        let mut sums = Sums::default();
        for n in 1..4 {
            let whole = sums.join(vec![part("", 10, &[], 0.0, PolicySource::Desired)]);
            assert!(whole.cameras.is_empty());
            assert_eq!(whole.report.audits.bound, upper_bound(n, 20 * n));
        }
    }
}
