//! Frame times while policies are swapped, beside frame times without.

use std::sync::mpsc::{self, Receiver};
use std::time::Instant;

use offramp_camera::sample;
use offramp_core::Facts;
use offramp_proto::{Generation, Parameter};

use super::super::median;
use crate::judge::{Chosen, PolicyJudge, PolicySource, SetUpError, Workshop};
use crate::lane::Single;
use crate::package;
use crate::tool::measuring;

/// Frames between two swaps.
pub(super) const EVERY: usize = 50;
/// Frames of a round; a round with swaps and one without take turns.
const ROUND: usize = 500;

/// Frame times in microseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Swaps {
    /// Frames with swaps among them; as many ran without.
    pub(super) frames: usize,
    pub(super) swaps: usize,
    /// 99th percentile without.
    pub(super) without: f64,
    /// 99th percentile with swaps.
    pub(super) with: f64,
    /// Their ratio: median of rounds.
    pub(super) ratio: f64,
}

/// Compiles and configures policies while frames run, as the keeper's thread does.
fn prepare(workshop: Workshop, swaps: usize) -> Receiver<Result<Chosen, SetUpError>> {
    let (ready, taken) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        for n in 0..swaps {
            let name = if n % 2 == 0 { "patience" } else { "threshold" };
            let parameters = [("threshold".to_owned(), Parameter::Number(0.9))].into();
            let source = PolicySource::shipped(name, parameters).expect("it is shipped");
            if ready.send(workshop.prepare(&source)).is_err() {
                return;
            }
        }
    });
    taken
}

/// Runs the embedded network over its sample, in turns with and without a swap every [`EVERY`] frames.
pub(super) fn swaps(frames: usize) -> anyhow::Result<Swaps> {
    let package = package::embedded()?;
    let mut settings = measuring(&package, 0.9);
    settings.audit_rate = 0.0;
    let mut single = Single::new(&package, settings, 1)?;
    let images = sample::stream()?;
    let parameters = [("threshold".to_owned(), Parameter::Number(0.9))].into();
    let mut judge = PolicyJudge::new(Workshop::new(&package)?.prepare(&PolicySource::threshold(parameters))?);
    let rounds = frames.div_ceil(ROUND).max(1);
    let ready = prepare(Workshop::new(&package)?, rounds * ROUND / EVERY);
    let (mut all, mut ratios) = ([Vec::new(), Vec::new()], Vec::new());
    for round in 0..rounds {
        let mut high = [0.0; 2];
        for (swapping, all) in all.iter_mut().enumerate() {
            let mut times = Vec::with_capacity(ROUND);
            for n in 0..ROUND {
                if swapping == 1 && n % EVERY == 0 {
                    // Waits where the preparing is slower than frames: that is not a frame's time.
                    judge.swap(ready.recv()??, Generation(1));
                }
                let pixels = images
                    .pixels((round * ROUND + n) % images.len())
                    .expect("it is one of them");
                let start = Instant::now();
                single.run(n as u64, pixels, Facts::default(), &mut judge)?;
                times.push(start.elapsed().as_secs_f64() * 1e6);
                while judge.next_step().is_some() {}
            }
            high[swapping] = percentile(&mut times);
            all.append(&mut times);
        }
        ratios.push(high[1] / high[0]);
    }
    Ok(Swaps {
        frames: rounds * ROUND,
        swaps: rounds * ROUND / EVERY,
        without: percentile(&mut all[0]),
        with: percentile(&mut all[1]),
        ratio: median(&mut ratios),
    })
}

fn percentile(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() * 99 / 100).copied().unwrap_or(f64::NAN)
}
