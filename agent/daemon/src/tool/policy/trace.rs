//! `offramp policy trace`: labelled traces, complete to the last exit.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use offramp_camera::ImageSet;
use offramp_core::{ExitView, Facts, SplitMix64, Verdict};
use offramp_model::Package;
use offramp_trace::{Frame, Seen, Writer};

use crate::agent::trace::header;
use crate::lane::{Judge, Single};
use crate::tool::{images, measuring, shuffled};
use crate::{package, terminal};

/// How many frames a scene has, at least and at most.
const SCENE: (u64, u64) = (4, 24);
/// Largest change of a pixel from frame to frame of a scene.
const NOISE: u64 = 6;

/// What is traced.
#[derive(Args, Debug)]
pub struct Trace {
    /// A directory with a model.toml, a name in models/zoo, or the embedded `revcol-fashion`.
    #[arg(default_value = package::EMBEDDED)]
    package: String,
    /// The file.
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Folder with `cifar-100/`, for packages whose images are not embedded.
    #[arg(long, value_name = "DIR", env = "OFFRAMP_DATA")]
    data: Option<PathBuf>,
    /// Frames.
    #[arg(long, default_value_t = 2_000)]
    frames: usize,
    /// Show each image for a while, noisy and moved by a pixel now and then, as a still scene is.
    #[arg(long)]
    scenes: bool,
    /// Seed of the order, and of scenes.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Goes on at every exit, and keeps what it saw.
#[derive(Default)]
struct Looking(Vec<ExitView>);

impl Judge for Looking {
    fn start_frame(&mut self) {
        self.0.clear();
    }

    fn decide(&mut self, view: &ExitView) -> (Verdict, bool) {
        self.0.push(*view);
        (Verdict::GoOn, false)
    }
}

/// What is shown: an image, and whether it is disturbed.
fn order(set: &ImageSet, trace: &Trace, random: &mut SplitMix64) -> Vec<u32> {
    let pool = (0..set.len() as u32).collect();
    if !trace.scenes {
        return shuffled(pool, trace.frames, random);
    }
    let images = shuffled(pool, trace.frames, random);
    let mut order = Vec::with_capacity(trace.frames);
    for image in images {
        let frames = SCENE.0 + random.next() % (SCENE.1 - SCENE.0 + 1);
        order.extend(std::iter::repeat_n(image, frames as usize));
        if order.len() >= trace.frames {
            break;
        }
    }
    order.truncate(trace.frames);
    order
}

/// The image a little otherwise: noise everywhere, and one pixel to the side in one frame of four.
fn disturb(pixels: &mut [u8], channels: usize, random: &mut SplitMix64) {
    if random.next().is_multiple_of(4) {
        pixels.rotate_right(channels);
    }
    for pixel in pixels {
        let change = (random.next() % (2 * NOISE + 1)) as i16 - NOISE as i16;
        *pixel = (i16::from(*pixel) + change).clamp(0, 255) as u8;
    }
}

/// Writes the trace.
///
/// # Errors
/// When there are no labelled images, or the file cannot be written.
pub fn trace(trace: &Trace) -> anyhow::Result<()> {
    let package = package::open(&trace.package)?;
    let frames = write(&package, trace)?;
    eprintln!("{}: {frames} frames", trace.output.display());
    Ok(())
}

fn write(package: &Package, trace: &Trace) -> anyhow::Result<usize> {
    let set = images(package, trace.data.as_deref())?.evaluation;
    let mut single = Single::new(package, measuring(package, package::settings(package).threshold), 1)?;
    let partial = trace.output.with_extension("partial");
    let write = || context(&trace.output);
    let file = File::create(&partial).with_context(write)?;
    let header = header(package, &single.lane.core, false);
    let channels = package.manifest().input.channels;
    let mut writer = Writer::new(BufWriter::new(file), header).with_context(write)?;
    let mut random = SplitMix64(trace.seed);
    let order = order(&set, trace, &mut random);
    let bar = terminal::progress(order.len() as u64, "frames");
    let mut looking = Looking::default();
    let mut pixels = Vec::new();
    for (number, image) in order.iter().enumerate() {
        pixels.clear();
        pixels.extend_from_slice(set.pixels(*image as usize).unwrap_or_default());
        if trace.scenes {
            disturb(&mut pixels, channels, &mut random);
        }
        single.run(number as u64, &pixels, Facts::default(), &mut looking)?;
        let last = looking.0.len();
        looking.0.extend(single.lane.core.view_at(last, &Facts::default()));
        let exits = looking.0.drain(..).map(|view| Seen {
            view,
            verdict: None,
            by_rule: false,
            features: Vec::new(),
        });
        let frame = Frame {
            number: number as u64,
            label: set.labels().get(*image as usize).copied(),
            exits: exits.collect(),
            ..Frame::default()
        };
        writer.push(&frame).with_context(write)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    writer.finish().with_context(write)?;
    std::fs::rename(&partial, &trace.output).with_context(write)?;
    Ok(order.len())
}

fn context(path: &Path) -> String {
    format!("trace {} cannot be written", path.display())
}
