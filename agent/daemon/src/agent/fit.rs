//! What an agent makes of a model: an engine that runs its stages, and for each camera a lane.

use std::sync::Arc;
use std::thread::JoinHandle;

use offramp_camera::FrameShape;
use offramp_core::Settings;
use offramp_engine::{Engine, Offload};
use offramp_model::{Package, PackageError};
use offramp_proto::ModelFacts;
use tokio::sync::mpsc;

use crate::agent::trace::{self, TraceOptions};
use crate::agent::{Report, StartError};
use crate::evaluate::{CompareError, Compared};
use crate::judge::Workshop;
use crate::lane::{Lane, SetUpError};
use crate::{machine, package};

/// Most classes that a message names.
const MAX_CLASSES: usize = 1024;

/// What every model of this agent is fitted to.
pub(super) struct Fitter {
    /// Cameras by name, which may be empty where there is one only.
    pub(super) cameras: Vec<(String, FrameShape)>,
    /// Threads of an engine, the caller's included.
    pub(super) threads: usize,
    pub(super) offload: Option<Offload>,
    /// Decides which frames are audited.
    pub(super) seed: u64,
    pub(super) trace: Option<TraceOptions>,
    pub(super) reports: mpsc::Sender<Report>,
}

/// A model that is ready to run.
pub(super) struct Fitted {
    pub(super) facts: ModelFacts,
    pub(super) classes: Arc<[String]>,
    /// How its heads specialize, before the fleet has a say.
    pub(super) settings: Settings,
    pub(super) engine: Engine,
    pub(super) workshop: Workshop,
    /// One for each camera, with the model's own heads.
    pub(super) lanes: Vec<Lane>,
    /// Writes the lanes' traces; it ends when they are gone.
    pub(super) recording: Option<JoinHandle<()>>,
}

/// Why a model that came from the fleet does not run here.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unfit {
    /// The cameras, the engine or the system.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Its reference vectors.
    #[error(transparent)]
    Compare(#[from] CompareError),
    /// It computes something else here than where it was made.
    #[error("the stages do not compute here what they should: {0}")]
    Differs(Compared),
    /// The package.
    #[error(transparent)]
    Package(#[from] PackageError),
}

impl Fitter {
    /// Fits a package: some tenths of a second for a small network. It is refused where the cameras' frames do not fit.
    pub(super) fn fit(&self, package: &Package, settings: Settings) -> Result<Fitted, StartError> {
        let engine = self.load(package)?;
        self.finish(engine, package, settings)
    }

    fn load(&self, package: &Package) -> Result<Engine, StartError> {
        self.check(package)?;
        let engine = Engine::load(package).map_err(SetUpError::Engine)?;
        machine::give_memory_back();
        engine.with_threads(self.threads).map_err(StartError::Thread)
    }

    fn finish(&self, mut engine: Engine, package: &Package, settings: Settings) -> Result<Fitted, StartError> {
        if let Some(offload) = self.offload.clone()
            && let Err(problem) = engine.offload(package, offload)
        {
            let remedy = problem.remedy();
            tracing::error!(%problem, remedy, "stages are not offloaded: our own kernels run them");
        }
        let seeds = (0..self.cameras.len() as u64).map(|camera| self.seed.wrapping_add(camera));
        let lanes = seeds.map(|seed| Lane::new(package, settings, seed));
        let mut lanes = lanes.collect::<Result<Vec<Lane>, _>>()?;
        let recording = self.record(package, &mut lanes)?;
        let mut facts = package::facts(package);
        let classes = facts.classes.as_slice().into();
        facts.classes.truncate(MAX_CLASSES);
        Ok(Fitted {
            facts,
            classes,
            settings,
            engine,
            workshop: Workshop::new(package)?,
            lanes,
            recording,
        })
    }

    /// Fits a package that nobody has tried here: it must compute what its reference vectors say, where it has some.
    pub(super) fn fit_untried(&self, package: &Package, settings: Settings) -> Result<Fitted, Unfit> {
        let mut engine = self.load(package)?;
        // Before anything of it is offloaded, which has tolerances of its own.
        match Compared::of(&mut engine, package, 1)? {
            Some(compared) if !compared.is_sound() => Err(Unfit::Differs(compared)),
            _ => Ok(self.finish(engine, package, settings)?),
        }
    }

    fn record(&self, package: &Package, lanes: &mut [Lane]) -> Result<Option<JoinHandle<()>>, StartError> {
        let Some(wanted) = &self.trace else { return Ok(None) };
        let names: Vec<String> = self.cameras.iter().map(|(name, _)| name.clone()).collect();
        let header = trace::header(package, &lanes[0].core, wanted.features);
        let (recorders, thread) = trace::start(wanted, &header, &names, self.seed, self.reports.clone())?;
        for (lane, recorder) in lanes.iter_mut().zip(recorders) {
            lane.recorder = Some(recorder);
        }
        Ok(Some(thread))
    }

    fn check(&self, package: &Package) -> Result<(), StartError> {
        let input = &package.manifest().input;
        let reads = (input.height, input.width, input.channels);
        let odd = self
            .cameras
            .iter()
            .find(|(_, shape)| (shape.height(), shape.width(), shape.channels()) != reads);
        odd.map_or(Ok(()), |(name, camera)| {
            Err(StartError::Shape {
                name: name.clone(),
                camera: *camera,
                model: package.manifest().name.clone(),
                height: input.height,
                width: input.width,
                channels: input.channels,
            })
        })
    }
}
