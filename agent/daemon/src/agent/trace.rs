//! Recording of exit traces: what policies saw and answered, into files that are bounded in number and size.
//!
//! A thread of its own writes: a frame is handed to it, or, where it is behind, left out and counted. When the disk fails
//! recording ends, which is logged and told to the fleet; frames go on.

use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use half::f16;
use offramp_core::{Core, ExitView, Facts, Outcome, SplitMix64, Verdict};
use offramp_model::Package;
use offramp_proto::Digest;
use offramp_trace::{Folder, Frame, Header, Seen, TraceError};
use tokio::sync::mpsc::Sender;

use crate::agent::Report;
use crate::agent::pool::unix_ms;
use crate::agent::sample::Sampler;
use crate::package;

/// Frames that wait to be written, of all cameras.
const WAITING: usize = 256;
/// How long a frame waits for its block to be full, at most.
const FLUSH: Duration = Duration::from_secs(10);

/// Where traces go, and how much of them.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceOptions {
    /// Folder of the files.
    pub folder: PathBuf,
    /// Bytes of a file, about.
    pub file_bytes: u64,
    /// Files that are kept of each camera.
    pub files: usize,
    /// Whether pooled features are recorded, too.
    pub features: bool,
    /// Share of the frames, `0..=1`, that are audited for the sake of the trace: what another policy would have seen is
    /// known of complete frames only.
    pub complete_share: f32,
    /// Bytes an hour, of all cameras together, that go to the fleet's controller, which replays policies on them; 0 for
    /// none.
    pub share_bytes: u64,
}

/// Collects what is to be recorded of a camera's frames.
pub(crate) struct Recorder {
    camera: usize,
    to_disk: SyncSender<(usize, Frame)>,
    features: bool,
    complete_share: f32,
    random: SplitMix64,
    frame: Frame,
    left_out: u64,
}

impl Recorder {
    /// Begins a frame.
    pub(crate) fn begin(&mut self, number: u64, facts: Facts) {
        self.frame.exits.clear();
        self.frame.number = number;
        self.frame.facts = Facts {
            // Each exit's view has its own.
            time_left: f32::NAN,
            ..facts
        };
    }

    /// How many exits of the frame it has seen.
    pub(crate) fn exits_seen(&self) -> usize {
        self.frame.exits.len()
    }

    /// Whether a frame that leaves is to be audited, so that it is complete.
    pub(crate) fn wants_audit(&mut self) -> bool {
        ((self.random.next() >> 40) as f32 / 16_777_216.0) < self.complete_share
    }

    /// Takes in an exit; the verdict and whether the built-in rule gave it, where one was asked for.
    pub(crate) fn see(&mut self, view: ExitView, verdict: Option<(Verdict, bool)>, features: &[f32]) {
        let features = if self.features { features } else { &[] };
        self.frame.exits.push(Seen {
            view,
            verdict: verdict.map(|(verdict, _)| verdict),
            by_rule: verdict.is_some_and(|(_, by_rule)| by_rule),
            features: features.iter().map(|number| f16::from_f32(*number)).collect(),
        });
    }

    /// Hands the frame over.
    pub(crate) fn finish(&mut self, outcome: &Outcome, policy: Option<Digest>) {
        let frame = Frame {
            policy: policy.map(Into::into),
            taken: Some(outcome.exit as u8),
            latency: outcome.latency,
            interval: outcome.interval,
            energy: outcome.energy,
            hurried: outcome.hurried,
            fault: outcome.fault,
            audit: outcome.audit,
            exits: std::mem::take(&mut self.frame.exits),
            ..self.frame
        };
        if let Err(TrySendError::Full(_)) = self.to_disk.try_send((self.camera, frame)) {
            self.left_out += 1;
            if self.left_out.is_power_of_two() {
                tracing::warn!(
                    frames = self.left_out,
                    "the disk is slow: frames were left out of the trace"
                );
            }
        }
    }
}

/// Starts recording for cameras of these names. Gives a recorder for each, and the thread that writes, which ends once
/// all recorders are gone.
///
/// # Errors
/// When the folder cannot be used, or the system refuses a thread.
pub(crate) fn start(
    options: &TraceOptions,
    header: &Header,
    cameras: &[String],
    seed: u64,
    reports: Sender<Report>,
) -> Result<(Vec<Recorder>, JoinHandle<()>), TraceError> {
    let folders = cameras.iter().map(|camera| {
        let header = Header {
            camera: camera.clone(),
            ..header.clone()
        };
        Folder::open(&options.folder, header, options.file_bytes, options.files)
    });
    let folders = folders.collect::<Result<Vec<_>, _>>()?;
    let (to_disk, frames) = mpsc::sync_channel(WAITING);
    let recorders = (0..cameras.len()).map(|camera| Recorder {
        camera,
        to_disk: to_disk.clone(),
        features: options.features,
        complete_share: options.complete_share,
        random: SplitMix64(seed.wrapping_add(camera as u64)),
        frame: Frame::default(),
        left_out: 0,
    });
    let recorders = recorders.collect();
    let samplers = if options.share_bytes > 0 {
        let each = (options.share_bytes / cameras.len().max(1) as u64).max(1);
        let now = Instant::now();
        let of = |camera: &String| {
            let camera = camera.clone();
            Sampler::new(
                Header {
                    camera,
                    ..header.clone()
                },
                each,
                now,
            )
        };
        cameras.iter().map(of).collect()
    } else {
        Vec::new()
    };
    let folder = options.folder.clone();
    let work = move || {
        if let Err(error) = write(folders, samplers, &frames, &reports) {
            let error: &dyn std::error::Error = &error;
            tracing::error!(error, folder = %folder.display(), "traces are not recorded any more");
            let cause = error.source().map_or_else(String::new, |cause| format!(": {cause}"));
            let message = format!("traces are not recorded any more: {error}{cause}");
            let kind = "trace-failed";
            if reports.blocking_send(Report::Told { kind, message }).is_err() {
                tracing::debug!("the agent has ended");
            }
        }
    };
    let thread = std::thread::Builder::new().name("offramp-trace".into()).spawn(work)?;
    Ok((recorders, thread))
}

fn write(
    mut folders: Vec<Folder>,
    mut samplers: Vec<Sampler>,
    frames: &Receiver<(usize, Frame)>,
    reports: &Sender<Report>,
) -> Result<(), TraceError> {
    let mut flushed = Instant::now();
    loop {
        match frames.recv_timeout(FLUSH) {
            Ok((camera, frame)) => {
                folders[camera].push(&frame, unix_ms())?;
                if let Some(sampler) = samplers.get_mut(camera)
                    && let Some(piece) = sampler.take(&frame, unix_ms(), Instant::now())?
                    // One that finds no room is one of many.
                    && reports.try_send(Report::Sample(piece)).is_err()
                {
                    tracing::debug!("a piece of a trace was left out");
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return folders.iter_mut().try_for_each(Folder::finish),
        }
        if flushed.elapsed() >= FLUSH {
            folders.iter_mut().try_for_each(Folder::flush)?;
            flushed = Instant::now();
        }
    }
}

/// What holds for all frames of a package's traces.
pub(crate) fn header(package: &Package, core: &Core, features: bool) -> Header {
    let manifest = package.manifest();
    let exits = manifest.exits.iter();
    let facts = package::facts(package);
    Header {
        model: facts.name,
        model_version: facts.version,
        model_digest: facts.digest,
        classes: manifest.classes.len() as u32,
        stage_macs: facts.stage_macs,
        exit_costs: core.exit_costs().to_vec(),
        features: exits.filter(|_| features).map(|exit| exit.features as u32).collect(),
        camera: String::new(),
        started_at: unix_ms(),
    }
}
