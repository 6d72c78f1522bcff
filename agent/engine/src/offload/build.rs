//! Opens the sessions, one stage after another, and holds each against our own kernels.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use offramp_model::Package;

use super::library::{self, Runtime};
use super::session::{Graph, Running};
use super::{Offload, OffloadProblem, Offloaded, Provider, Survey, cache};
use crate::contain::contain;
use crate::error::Cause;
use crate::stage::{Handed, Held, Stage, Threads};

/// What is needed to open sessions: independent of the engine, which goes on meanwhile.
struct Builder {
    stages: Vec<Stage>,
    graphs: Vec<Graph>,
    /// Values of an image.
    values: usize,
    model: String,
    offload: Offload,
}

/// A stage as our own kernels run it on some images: what goes in, and what comes out.
pub(super) struct Example {
    pub(super) before: Vec<Held>,
    pub(super) after: Vec<Held>,
}

impl Builder {
    fn new(package: &Package, image: usize, stages: &[Stage], offload: Offload) -> Self {
        let manifest = package.manifest();
        let graphs = manifest.stages.iter().zip(&manifest.exits).zip(package.stages());
        let graphs = graphs.zip(stages).enumerate();
        let graphs = graphs.map(|(number, (((declared, exit), bytes), stage))| {
            // What one stage hands on is what the next reads; the last hands on nothing.
            let hands_on = stages.get(number + 1).map_or(&[][..], Stage::reads);
            let state = declared.state.iter().zip(hands_on).zip(stage.handed());
            let outputs = state.filter(|(_, source)| matches!(source, Handed::Output));
            let features = (declared.features.clone(), vec![1, exit.features]);
            Graph {
                bytes: bytes.to_vec(),
                reads: declared
                    .inputs
                    .iter()
                    .cloned()
                    .zip(stage.reads().iter().cloned())
                    .collect(),
                gives: std::iter::once(features)
                    .chain(outputs.map(|((name, shape), _)| (name.clone(), shape.clone())))
                    .collect(),
            }
        });
        Self {
            graphs: graphs.collect(),
            stages: stages.to_vec(),
            values: image,
            model: package.digest().to_string(),
            offload,
        }
    }

    /// So many images, each another.
    fn images(&self, count: u32) -> Vec<Held> {
        let image = |seed: u32| {
            let mut held = Held::default();
            held.start(&test_image(self.values, seed), true);
            held
        };
        (1..=count).map(image).collect()
    }

    fn run_here(&mut self, stage: usize, before: Vec<Held>) -> Result<Example, OffloadProblem> {
        let mut after = before.clone();
        let run = self.stages[stage].run(&mut after.iter_mut().collect::<Vec<_>>(), &Threads::default());
        run.map_err(|cause| OffloadProblem::Builder { cause })?;
        Ok(Example { before, after })
    }

    /// Lets a stage's session be built by the first provider that can.
    fn place(
        &self,
        runtime: &Runtime,
        stage: usize,
        asked: &[(Provider, Result<(), OffloadProblem>)],
        example: &Example,
        offloaded: &Arc<Offloaded>,
    ) {
        for (provider, asked) in asked {
            if offloaded.is_abandoned() {
                return;
            }
            offloaded.building(stage, *provider);
            let built = asked
                .clone()
                .and_then(|()| self.build(runtime, stage, *provider, example));
            match built {
                Ok(running) => return offloaded.publish(stage, running),
                Err(problem) => offloaded.refuse(stage, problem),
            }
        }
        offloaded.give_up(stage);
    }

    /// Lets a stage that has a session run batches, too, or says why it does not.
    fn add_batch(&self, runtime: &Runtime, stage: usize, example: &Example, offloaded: &Offloaded) {
        let Some(running) = offloaded.ready(stage) else { return };
        let (provider, graph) = (running.provider(), &self.graphs[stage]);
        let built = self
            .cache_folder(runtime, stage, provider, self.offload.batch)
            .and_then(|folder| {
                let refused = |cause| OffloadProblem::Refused { provider, cause };
                let batch = running
                    .open_batch(runtime, graph, &self.offload, &folder)
                    .map_err(refused)?;
                let handed = self.stages[stage].handed();
                let run = |images: &mut [&mut Held]| running.run_in(&batch, handed, images, |_| false);
                prove_batch(provider, graph, &self.offload, example, run)?;
                Ok(batch)
            });
        match built {
            Ok(batch) => {
                running.add(batch);
                offloaded.changed();
            }
            Err(problem) => {
                let cause = match problem {
                    OffloadProblem::Refused { cause, .. } => cause,
                    other => Cause::new(other),
                };
                offloaded.refuse(stage, OffloadProblem::NoBatches { provider, cause });
            }
        }
    }

    /// Opens a session for a stage and lets it prove itself.
    fn build(
        &self,
        runtime: &Runtime,
        stage: usize,
        provider: Provider,
        example: &Example,
    ) -> Result<Running, OffloadProblem> {
        let folder = self.cache_folder(runtime, stage, provider, 1)?;
        let opened = self.open_and_compare(runtime, stage, provider, example, &folder);
        let damaged = matches!(
            opened,
            Err(OffloadProblem::Refused { .. } | OffloadProblem::Differs { .. })
        );
        if !damaged || folder.as_os_str() == "" {
            return opened;
        }
        // What was in the cache may be to blame: written half, or by something that calls itself the same.
        let Ok(Some(aside)) = cache::set_aside(&folder) else {
            return opened;
        };
        let again = self.open_and_compare(runtime, stage, provider, example, &folder);
        // At worst the folder is not as it was, and the next start builds anew.
        let _ = match again {
            Ok(_) => std::fs::remove_dir_all(&aside),
            Err(_) => cache::put_back(&folder, &aside),
        };
        again
    }

    /// Where the provider may keep what it builds; nowhere for those that build nothing.
    fn cache_folder(
        &self,
        runtime: &Runtime,
        stage: usize,
        provider: Provider,
        batch: usize,
    ) -> Result<PathBuf, OffloadProblem> {
        if matches!(provider, Provider::Cuda | Provider::Cpu) {
            return Ok(PathBuf::new());
        }
        let Offload { cache, device, .. } = &self.offload;
        let versions = runtime.versions(provider);
        let folder = cache::folder(cache, &self.model, provider, &versions, *device, stage, batch);
        folder.map_err(|error| OffloadProblem::Builder {
            cause: Cause::new(format_args!("the cache {}: {error}", cache.display())),
        })
    }

    fn open_and_compare(
        &self,
        runtime: &Runtime,
        stage: usize,
        provider: Provider,
        example: &Example,
        cache: &Path,
    ) -> Result<Running, OffloadProblem> {
        let refused = |cause| OffloadProblem::Refused { provider, cause };
        let graph = &self.graphs[stage];
        let running = Running::open(runtime, provider, graph, &self.offload, cache).map_err(refused)?;
        let handed = self.stages[stage].handed();
        let run = |image: &mut Held, stays| running.run(handed, &mut [image], |_| stays);
        prove(provider, graph, &self.offload, example, run)?;
        Ok(running)
    }

    /// The whole work. Ends early when nobody waits for it any more.
    fn run(&mut self, offloaded: &Arc<Offloaded>) -> Result<(), OffloadProblem> {
        let runtime = library::open(self.offload.library.as_deref())?;
        let asked = self
            .offload
            .providers
            .iter()
            .map(|&provider| (provider, contain(|| runtime.has(provider)).unwrap_or_else(builder)));
        let asked: Vec<(Provider, Result<(), OffloadProblem>)> = asked.collect();
        let mut held = self.images(1);
        for stage in 0..self.stages.len() {
            let example = self.run_here(stage, held)?;
            let wanted = self.offload.stages.as_ref();
            if wanted.is_none_or(|wanted| wanted.contains(&stage)) {
                self.place(runtime, stage, &asked, &example, offloaded);
            }
            if offloaded.is_abandoned() {
                return Ok(());
            }
            held = example.after;
        }
        if self.offload.batch > 1 {
            // Single images are served by now. Two, so that a batch shows that it tells them apart.
            let mut held = self.images(2);
            for stage in 0..self.stages.len() {
                let example = self.run_here(stage, held)?;
                self.add_batch(runtime, stage, &example, offloaded);
                if offloaded.is_abandoned() {
                    return Ok(());
                }
                held = example.after;
            }
        }
        Ok(())
    }
}

/// Holds what a session computes against our own kernels, when its state comes back and when it stays there, which the
/// session may not be able to: the features are compared then.
pub(super) fn prove(
    provider: Provider,
    graph: &Graph,
    offload: &Offload,
    example: &Example,
    run: impl Fn(&mut Held, bool) -> Result<(), Cause>,
) -> Result<(), OffloadProblem> {
    for stays in [false, true] {
        let mut found = example.before[0].clone();
        run(&mut found, stays).map_err(|cause| OffloadProblem::Refused { provider, cause })?;
        compare(provider, graph, offload, &found, &example.after[0], !stays)?;
    }
    Ok(())
}

/// Holds what a session for a batch computes against our own kernels: for as many images as it takes, of two kinds in
/// turns, and for one less.
pub(super) fn prove_batch(
    provider: Provider,
    graph: &Graph,
    offload: &Offload,
    example: &Example,
    run: impl Fn(&mut [&mut Held]) -> Result<(), Cause>,
) -> Result<(), OffloadProblem> {
    for images in [offload.batch, offload.batch - 1] {
        let mut all: Vec<Held> = example.before.iter().cycle().take(images).cloned().collect();
        run(&mut all.iter_mut().collect::<Vec<_>>()).map_err(|cause| OffloadProblem::Refused { provider, cause })?;
        for (found, expected) in all.iter().zip(example.after.iter().cycle()) {
            compare(provider, graph, offload, found, expected, true)?;
        }
    }
    Ok(())
}

/// Whether an image is where our own kernels have brought it, with its state or by its features alone.
fn compare(
    provider: Provider,
    graph: &Graph,
    offload: &Offload,
    found: &Held,
    expected: &Held,
    with_state: bool,
) -> Result<(), OffloadProblem> {
    let tolerance = provider.tolerance(offload.half);
    let tensors = found.tensors.iter().zip(&expected.tensors);
    let tensors = tensors.take(if with_state { usize::MAX } else { 0 });
    let features = (&found.features, &expected.features);
    for (place, (found, expected)) in std::iter::once(features).chain(tensors).enumerate() {
        let difference = difference(found, expected);
        if difference.is_nan() || difference > tolerance {
            let tensor = match place.checked_sub(1) {
                None => graph.gives[0].0.clone(),
                Some(place) => format!("state {place}"),
            };
            return Err(OffloadProblem::Differs {
                provider,
                tensor,
                difference,
                tolerance,
            });
        }
    }
    Ok(())
}

fn builder(cause: Cause) -> Result<(), OffloadProblem> {
    Err(OffloadProblem::Builder { cause })
}

/// Values as a normalised image has them; always the same for a seed, which is not 0.
fn test_image(values: usize, seed: u32) -> Vec<f32> {
    let mut random = 0x9e37_79b9_u32.wrapping_mul(seed);
    let next = || {
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        // 16 bits, from -2 to 2.
        f32::from((random >> 16) as u16) / 16384.0 - 2.0
    };
    std::iter::repeat_with(next).take(values).collect()
}

/// How far values are apart, as a share of the largest that is expected, or of 1. NaN where one is found.
pub(super) fn difference(found: &[f32], expected: &[f32]) -> f32 {
    if found.len() != expected.len() {
        return f32::INFINITY;
    }
    let scale = expected.iter().fold(1f32, |largest, value| largest.max(value.abs()));
    let apart = found
        .iter()
        .zip(expected)
        .map(|(found, expected)| (found - expected).abs());
    // `max` would pass over a NaN.
    apart.fold(0f32, |worst, apart| {
        if apart.is_nan() {
            apart
        } else if worst.is_nan() {
            worst
        } else {
            worst.max(apart)
        }
    }) / scale
}

pub(crate) fn start(
    package: &Package,
    image: usize,
    stages: &[Stage],
    offload: Offload,
    offloaded: Arc<Offloaded>,
) -> Result<(), OffloadProblem> {
    let mut work = Builder::new(package, image, stages, offload);
    let thread = thread::Builder::new().name("offload".into());
    let spawned = thread.spawn(move || {
        let done = contain(|| work.run(&offloaded)).unwrap_or_else(builder);
        if let Err(problem) = done {
            offloaded.refuse_rest(&problem);
        }
        offloaded.settle();
    });
    let cause = |error| OffloadProblem::Builder {
        cause: Cause::new(error),
    };
    spawned.map(drop).map_err(cause)
}

/// Tries every provider on the first stage.
pub(crate) fn survey(package: &Package, image: usize, stages: &[Stage], offload: &Offload) -> Survey {
    let runtime = match contain(|| library::open(offload.library.as_deref())) {
        Ok(Ok(runtime)) => runtime,
        Ok(Err(problem)) => {
            return Survey {
                library: Err(problem),
                providers: Vec::new(),
            };
        }
        Err(cause) => {
            return Survey {
                library: Err(OffloadProblem::Builder { cause }),
                providers: Vec::new(),
            };
        }
    };
    let mut work = Builder::new(package, image, stages, offload.clone());
    let before = work.images(1);
    let example = work.run_here(0, before);
    let try_out = |provider: Provider| {
        let tried = contain(|| {
            runtime.has(provider)?;
            let example = example.as_ref().map_err(Clone::clone)?;
            work.build(runtime, 0, provider, example).map(drop)
        });
        (provider, tried.unwrap_or_else(builder))
    };
    Survey {
        library: Ok((runtime.path.clone(), runtime.version.clone())),
        providers: offload.providers.iter().map(|&provider| try_out(provider)).collect(),
    }
}
