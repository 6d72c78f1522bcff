//! Times the stages of packages on one thread.
//!
//! ```text
//! cargo run --release -p offramp-engine --example stages -- models/zoo/revcol-fashion
//! ```

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use offramp_engine::Engine;
use offramp_model::Package;

const ROUNDS: usize = 300;

fn main() -> Result<(), Box<dyn Error>> {
    for path in std::env::args().skip(1) {
        let start = Instant::now();
        let package = Package::open(Path::new(&path))?;
        let opened = start.elapsed();
        let mut engine = Engine::load(&package)?;
        let loaded = start.elapsed();

        let pixels: Vec<f32> = (0..package.manifest().input.values())
            .map(|i| (i % 17) as f32 / 8.0 - 1.0)
            .collect();
        let mut frame = engine.frame();
        let mut times = vec![Vec::with_capacity(ROUNDS); engine.stages()];
        for _ in 0..ROUNDS {
            engine.start(&mut frame, &pixels)?;
            for (stage, times) in times.iter_mut().enumerate() {
                let start = Instant::now();
                engine.run_stage(stage, &mut frame)?;
                times.push(start.elapsed());
            }
        }
        println!(
            "{path}: read and checked in {opened:.1?}, loaded in {:.1?}",
            loaded - opened
        );
        let (mut best, mut median) = (Duration::ZERO, Duration::ZERO);
        for (declared, times) in package.manifest().stages.iter().zip(&mut times) {
            times.sort_unstable();
            let (fastest, middle) = (times[0], times[ROUNDS / 2]);
            best += fastest;
            median += middle;
            let rate = declared.macs as f64 * 2.0 / fastest.as_secs_f64() / 1e9;
            println!(
                "  {:14} best {fastest:9.1?}  median {middle:9.1?}  {rate:6.1} GFLOP/s",
                declared.file
            );
        }
        println!("  {:14} best {best:9.1?}  median {median:9.1?}", "all stages");
    }
    Ok(())
}
