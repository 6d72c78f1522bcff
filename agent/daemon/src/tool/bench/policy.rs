//! What swapping policies costs the frames.

use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use anyhow::Context as _;
use offramp_core::Facts;
use offramp_model::Package;
use offramp_proto::Generation;

use super::random_pixels;
use crate::judge::{PolicyJudge, PolicySource, Workshop};
use crate::lane::Single;
use crate::package;

/// Times of frames without swaps and with them, in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Swaps {
    /// Frames of each kind.
    pub frames: usize,
    /// Swaps.
    pub swaps: usize,
    /// Median of a frame without swaps.
    pub p50_without: f64,
    /// Its 99th percentile.
    pub p99_without: f64,
    /// Median of a frame where policies are swapped.
    pub p50_with: f64,
    /// Its 99th percentile.
    pub p99_with: f64,
}

impl Swaps {
    /// The 99th percentile with swaps, by the one without.
    pub fn ratio(&self) -> f64 {
        self.p99_with / self.p99_without
    }
}

/// Runs rounds of so many frames each, in turn without and with a swap every so many frames. As in the agent, another
/// thread prepares the policies, and the frame that a swap falls to pays for taking it up.
///
/// # Errors
/// When the package does not run, or a policy does not.
pub fn swaps(package: &Package, rounds: usize, frames: usize, every: usize) -> anyhow::Result<Swaps> {
    let every = every.max(1);
    let workshop = Workshop::new(package)?;
    let sources = [PolicySource::threshold([].into()), PolicySource::patience([].into())];
    let mut judge = PolicyJudge::new(workshop.prepare(&sources[0])?);
    let mut single = Single::new(package, package::settings(package), 1)?;
    let images: Vec<_> = (0..64)
        .map(|seed| random_pixels(package.manifest().input.values(), seed))
        .collect();
    let (mut without, mut with) = (Vec::new(), Vec::new());
    let mut swaps = 0;
    thread::scope(|scope| {
        let (prepared, ready) = mpsc::sync_channel(1);
        let (workshop, sources) = (&workshop, &sources);
        // Ends when nobody takes another one.
        scope.spawn(move || {
            let mut turn = sources.iter().cycle().skip(1);
            while prepared
                .send(turn.next().map(|source| workshop.prepare(source)))
                .is_ok()
            {}
        });
        let mut number = 0;
        // One round to warm up.
        for round in 0..=rounds {
            for is_swapping in [false, true] {
                for frame in 0..frames {
                    let is_due = is_swapping && frame % every == 0;
                    let chosen = is_due.then(|| ready.recv().ok().flatten().context("no policy is prepared"));
                    let chosen = chosen.transpose()?.transpose()?;
                    let start = Instant::now();
                    if let Some(chosen) = chosen {
                        judge.swap(chosen, Generation(number));
                    }
                    single.run(number, &images[frame % images.len()], Facts::default(), &mut judge)?;
                    let us = start.elapsed().as_secs_f64() * 1e6;
                    while judge.next_step().is_some() {}
                    single.lane.learn();
                    number += 1;
                    if round > 0 {
                        swaps += usize::from(is_due);
                        if is_swapping { &mut with } else { &mut without }.push(us);
                    }
                }
            }
        }
        anyhow::Ok(())
    })?;
    Ok(Swaps {
        frames: with.len(),
        swaps,
        p50_without: quantile(&mut without, 0.5),
        p99_without: quantile(&mut without, 0.99),
        p50_with: quantile(&mut with, 0.5),
        p99_with: quantile(&mut with, 0.99),
    })
}

fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = (values.len() as f64 * share) as usize;
    values
        .get(at.min(values.len().saturating_sub(1)))
        .copied()
        .unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_counted_and_every_figure_is_a_time() {
        let package = package::open(package::EMBEDDED).unwrap();
        let found = swaps(&package, 2, 100, 50).unwrap();
        assert_eq!((found.frames, found.swaps), (200, 4));
        assert!(found.p50_without > 0.0 && found.p99_with >= found.p50_with && found.ratio() > 0.0);
    }
}
