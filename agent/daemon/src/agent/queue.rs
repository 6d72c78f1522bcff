//! Which frames are run next: those at the stage of the frame that is due first, as many at a time as wait there.
//!
//! A camera has one frame on its way at most, so that none can crowd out another: whoever waits is overtaken at
//! most once by each frame that is due before its own.

use std::time::Instant;

/// Frames that wait for a stage.
pub(crate) struct Queue<T> {
    stages: Vec<Vec<Waiting<T>>>,
}

struct Waiting<T> {
    due: Instant,
    frame: T,
}

impl<T> Queue<T> {
    pub(crate) fn new(stages: usize) -> Self {
        Self {
            stages: (0..stages).map(|_| Vec::new()).collect(),
        }
    }

    /// Frames that wait.
    pub(crate) fn len(&self) -> usize {
        self.stages.iter().map(Vec::len).sum()
    }

    /// Adds a frame that needs this stage.
    pub(crate) fn push(&mut self, stage: usize, due: Instant, frame: T) {
        self.stages[stage].push(Waiting { due, frame });
    }

    /// Takes up to `most` frames that need the same stage: those of the frame that is due first, in the order in
    /// which they are due. Gives the stage, and `None` where nothing waits.
    pub(crate) fn take(&mut self, most: usize, into: &mut Vec<T>) -> Option<usize> {
        let first = |waiting: &Vec<Waiting<T>>| waiting.iter().map(|w| w.due).min();
        let urgent = self.stages.iter().enumerate().filter_map(|(s, w)| Some((first(w)?, s)));
        // Of two that are due at the same moment the one that is further: it is almost done.
        let (_, stage) = urgent.min_by_key(|(due, stage)| (*due, std::cmp::Reverse(*stage)))?;
        let waiting = &mut self.stages[stage];
        waiting.sort_by_key(|w| w.due);
        let taken = most.min(waiting.len());
        into.extend(waiting.drain(..taken).map(|w| w.frame));
        Some(stage)
    }

    /// Takes all frames that have not begun.
    pub(crate) fn take_unbegun(&mut self, into: &mut Vec<T>) {
        into.extend(self.stages[0].drain(..).map(|w| w.frame));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use offramp_core::SplitMix64;

    use super::*;

    fn at(origin: Instant, ms: u64) -> Instant {
        origin + Duration::from_millis(ms)
    }

    #[test]
    fn the_stage_of_the_most_urgent_frame_runs_with_all_that_wait_there() {
        let origin = Instant::now();
        let mut queue = Queue::new(3);
        for (stage, due, frame) in [(0, 5, "a"), (1, 4, "b"), (0, 3, "c"), (2, 9, "d"), (0, 8, "e")] {
            queue.push(stage, at(origin, due), frame);
        }
        let mut taken = Vec::new();
        assert_eq!(queue.take(2, &mut taken), Some(0));
        assert_eq!(taken, ["c", "a"], "not more than fit, and those due first");
        taken.clear();
        assert_eq!(queue.take(2, &mut taken), Some(1));
        assert_eq!((taken.as_slice(), queue.len()), (&["b"][..], 2));
        taken.clear();
        queue.take_unbegun(&mut taken);
        assert_eq!(taken, ["e"]);
        taken.clear();
        assert_eq!(queue.take(2, &mut taken), Some(2));
        assert_eq!(queue.take(2, &mut taken), None);
    }

    /// Cameras that are never done, one of them always in a hurry: nobody waits for longer than it takes to run
    /// everybody else once.
    #[test]
    fn no_camera_starves_under_overload() {
        const CAMERAS: usize = 12;
        const STAGES: usize = 4;
        for seed in 0..20 {
            let mut random = SplitMix64(seed);
            let origin = Instant::now();
            let mut queue = Queue::new(STAGES);
            // The first camera's deadline is a tenth of the others'.
            let due = |camera: usize, now: u64| at(origin, now + if camera == 0 { 10 } else { 100 });
            let mut now = 0;
            for camera in 0..CAMERAS {
                queue.push(0, due(camera, now), (camera, now));
            }
            let mut done = [0u64; CAMERAS];
            let mut batch = Vec::new();
            for _ in 0..5_000 {
                let stage = queue.take(4, &mut batch).unwrap();
                now += 1 + batch.len() as u64;
                for (camera, arrived) in batch.drain(..) {
                    if stage + 1 == STAGES || random.next().is_multiple_of(2) {
                        done[camera] += 1;
                        let took = now - arrived;
                        assert!(took < 500, "seed {seed}: camera {camera} waited for {took} ms");
                        queue.push(0, due(camera, now), (camera, now));
                    } else {
                        queue.push(stage + 1, due(camera, arrived), (camera, arrived));
                    }
                }
            }
            let others = &done[1..];
            let (least, most) = (others.iter().min().unwrap(), others.iter().max().unwrap());
            assert!(
                most - least < most / 5,
                "seed {seed}: cameras alike are served alike: {done:?}"
            );
        }
    }
}
