//! `offramp bench core`: what the core does at an exit and what an update takes, beside the time that it takes to read
//! their weights once; and a call of the policy.

use std::hint::black_box;
use std::time::{Duration, Instant};

use clap::Args;
use offramp_core::{Core, Effect, Event, ExitView, Facts, Head, Micros, Settings, SplitMix64, Verdict};
use offramp_model::Package;
use serde_json::json;

use super::median;
use crate::judge::{PolicyJudge, PolicySource, Workshop};
use crate::lane::{Judge, Single};
use crate::package;
use crate::terminal::{self, Table};

/// Settings of the core bench.
#[derive(Args, Debug)]
pub struct CoreBench {
    /// Packages: directories or names.
    #[arg(default_values_t = ["revcol-cifar100".to_owned(), package::EMBEDDED.to_owned()])]
    packages: Vec<String>,
    /// Frames.
    #[arg(long, default_value_t = 4_000)]
    frames: usize,
    /// Print one JSON array, an object for each package.
    #[arg(long)]
    json: bool,
}

/// Work and what reading its weights once takes, in nanoseconds.
struct Work {
    name: String,
    bytes: usize,
    ns: f64,
    stream_ns: f64,
}

/// Reads memory as fast as this machine does: the sum keeps the compiler from leaving it out.
fn stream(isa: Streaming, memory: &[&[f32]]) {
    for part in memory {
        black_box(isa(part));
    }
}

type Streaming = fn(&[f32]) -> f32;

/// A frame that goes all the way: every exit is looked at, and all earlier exits are taught.
fn drive(core: &mut Core, exits: usize, features: &[Vec<f32>], number: u64, mut timed: impl FnMut(usize, Duration)) {
    let mut out = |_: Effect| ();
    let arrived = Event::FrameArrived {
        frame: number,
        random: u32::MAX,
        context: 0,
        facts: Facts::default(),
    };
    let fits = "the driver keeps to the order";
    core.handle(Micros(number), arrived, &mut out).expect(fits);
    for (exit, features) in features.iter().enumerate().take(exits) {
        let start = Instant::now();
        let event = Event::FeaturesReady { features };
        core.handle(Micros(number), event, &mut out).expect(fits);
        timed(exit, start.elapsed());
        if exit + 1 < exits {
            let event = Event::VerdictGiven {
                verdict: Verdict::GoOn,
                fault: false,
            };
            core.handle(Micros(number), event, &mut out).expect(fits);
        }
    }
    let start = Instant::now();
    core.learn();
    timed(exits, start.elapsed());
}

/// Features as a backbone gives them: ‖u‖² = C.
fn features(c: usize, random: &mut SplitMix64) -> Vec<f32> {
    let mut u: Vec<f32> = (0..c)
        .map(|_| (random.next() >> 40) as f32 / 8_388_608.0 - 1.0)
        .collect();
    let energy: f32 = u.iter().map(|x| x * x).sum();
    let scale = (c as f32 / energy).sqrt();
    u.iter_mut().for_each(|x| *x *= scale);
    u
}

fn works(package: &Package, frames: usize) -> anyhow::Result<Vec<Work>> {
    let network = package::network(package)?;
    let settings = package::settings(package);
    let settings = Settings {
        audit_rate: 0.0,
        learner: offramp_core::LearnerSettings {
            gate: 0.0,
            ..settings.learner
        },
        ..settings
    };
    let heads = network.heads.clone();
    // A whitener's matrix is as large as such a head's, and lies in memory as that does.
    let precisions = network.whiteners.iter().flatten().map(|whitener| {
        let c = whitener.features();
        Head::new(c, c, vec![0.5; c * c], vec![0.0; c])
    });
    let precisions: Vec<Head> = precisions.collect::<Result<_, _>>()?;
    let exits = heads.len();
    let mut core = Core::new(network, settings)?;
    let mut random = SplitMix64(5);
    let mut own = vec![Vec::with_capacity(frames); exits + 1];
    let mut streamed = vec![Vec::with_capacity(frames); exits + 1];
    let isa = offramp_engine::streaming();
    // What an update reads: the earlier heads, and what whitens their features.
    let update: Vec<&[f32]> = heads[..exits - 1]
        .iter()
        .map(Head::weights)
        .chain(
            precisions
                .iter()
                .map(Head::weights)
                .filter(|_| settings.learner.whitened),
        )
        .collect();
    for number in 0..frames {
        let features: Vec<Vec<f32>> = heads
            .iter()
            .map(|head| features(head.features(), &mut random))
            .collect();
        drive(&mut core, exits, &features, number as u64, |what, took| {
            own[what].push(took.as_nanos() as f64);
        });
        // In the same order, so that as much of it is in the caches.
        for (what, head) in heads.iter().enumerate() {
            let start = Instant::now();
            stream(isa, &[head.weights(), head.bias()]);
            streamed[what].push(start.elapsed().as_nanos() as f64);
        }
        let start = Instant::now();
        stream(isa, &update);
        streamed[exits].push(start.elapsed().as_nanos() as f64);
    }
    let mut bytes: Vec<usize> = heads
        .iter()
        .map(|head| 4 * (head.weights().len() + head.bias().len()))
        .collect();
    bytes.push(4 * update.iter().map(|part| part.len()).sum::<usize>());
    let rows = own.iter_mut().zip(&mut streamed).zip(bytes).enumerate();
    Ok(rows
        .map(|(what, ((own, streamed), bytes))| Work {
            name: if what == exits {
                "update of all earlier heads".into()
            } else {
                format!("verdict at exit {}", what + 1)
            },
            bytes,
            ns: median(own),
            stream_ns: median(streamed),
        })
        .collect())
}

/// Times each call of another judge.
struct Timed<J> {
    judge: J,
    calls: Vec<f64>,
    last: Option<ExitView>,
}

/// Calls one after another.
const IN_A_ROW: u32 = 100_000;

impl<J: Judge> Judge for Timed<J> {
    fn start_frame(&mut self) {
        self.judge.start_frame();
    }

    fn decide(&mut self, view: &ExitView) -> (Verdict, bool) {
        // Twice: the first brings the clock itself back into the caches.
        black_box(Instant::now());
        let start = Instant::now();
        let verdict = self.judge.decide(view);
        self.calls.push(start.elapsed().as_nanos() as f64);
        self.last = Some(*view);
        verdict
    }
}

/// Nanoseconds of a call of the threshold policy, the clock's own taken off.
struct Call {
    /// Median while frames run, when the stages have pushed it out of the caches.
    between_frames: f64,
    /// 99th percentile of the same.
    high: f64,
    /// Mean of calls one after another.
    in_a_row: f64,
}

fn policy(package: &Package, frames: usize) -> anyhow::Result<Call> {
    let mut single = Single::new(package, package::settings(package), 1)?;
    let chosen = Workshop::new(package)?.prepare(&PolicySource::threshold([].into()))?;
    let mut judge = Timed {
        judge: PolicyJudge::new(chosen),
        calls: Vec::new(),
        last: None,
    };
    let mut random = SplitMix64(9);
    let mut pixels = vec![0; package.manifest().input.values()];
    for number in 0..frames {
        pixels.fill_with(|| random.next() as u8);
        single.run(number as u64, &pixels, Facts::default(), &mut judge)?;
        single.lane.learn();
    }
    let mut empty: Vec<f64> = (0..10_000)
        .map(|_| {
            let start = Instant::now();
            start.elapsed().as_nanos() as f64
        })
        .collect();
    let clock = median(&mut empty);
    let calls = &mut judge.calls;
    let middle = median(calls);
    let high = calls[calls.len() * 99 / 100];
    // At the first exit of the last frame, again and again.
    let view = judge.last.expect("frames have passed an exit");
    let start = Instant::now();
    for _ in 0..IN_A_ROW {
        black_box(judge.judge.decide(black_box(&view)));
    }
    Ok(Call {
        between_frames: middle - clock,
        high: high - clock,
        in_a_row: start.elapsed().as_nanos() as f64 / f64::from(IN_A_ROW),
    })
}

/// Runs the bench.
///
/// # Errors
/// When a package is refused.
pub fn core(bench: &CoreBench) -> anyhow::Result<()> {
    let mut objects = Vec::new();
    for name in &bench.packages {
        let package = package::open(name)?;
        let manifest = package.manifest();
        let works = works(&package, bench.frames)?;
        let call = policy(&package, bench.frames.min(1_000))?;
        if bench.json {
            let rows = works.iter().map(|work| {
                json!({"work": work.name, "bytes": work.bytes, "ns": work.ns, "stream_ns": work.stream_ns,
                    "ratio": work.ns / work.stream_ns})
            });
            objects.push(json!({
                "package": manifest.name, "works": rows.collect::<Vec<_>>(), "policy_ns": call.in_a_row,
                "policy_median_between_frames_ns": call.between_frames, "policy_p99_between_frames_ns": call.high,
            }));
            continue;
        }
        let mut table = Table::new([manifest.name.as_str(), "KiB", "ns", "streaming, ns", "ratio"]);
        for work in &works {
            table.row([
                work.name.clone(),
                format!("{:.0}", work.bytes as f64 / 1024.0),
                format!("{:.0}", work.ns),
                format!("{:.0}", work.stream_ns),
                format!("{:.2}", work.ns / work.stream_ns),
            ]);
        }
        terminal::line(&table.to_string())?;
        terminal::line(&format!(
            "threshold policy in WebAssembly, with fuel: {:.0} ns a call, one after another; between frames, out of \
             the caches, {:.0} ns at the median, {:.0} ns at the 99th percentile\n",
            call.in_a_row, call.between_frames, call.high
        ))?;
    }
    if bench.json {
        terminal::line(&json!(objects).to_string())?;
    }
    Ok(())
}
