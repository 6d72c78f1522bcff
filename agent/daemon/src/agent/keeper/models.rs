//! Which model runs: the fleet's, or that of the device's configuration.
//!
//! A model of the fleet is on trial from before it is fitted until it has given a window with frames in it. An agent that
//! has tried it [`STARTS`] times and ended each time before that runs the model of the configuration, and the fleet hears
//! why.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use offramp_core::Settings;
use offramp_model::Package;
use offramp_proto::{Desired, DesiredModel, DesiredPolicy, Digest, Generation, ModelFacts};
use offramp_store::{Depot, ModelRoles, Store, StoreError};
use tracing::{info, warn};

use super::desired::source;
use super::{restore_heads, slot};
use crate::agent::engines::Engines;
use crate::agent::fit::{Fitted, Fitter, Unfit};
use crate::agent::trust::Trust;
use crate::agent::{Options, Reopen, StartError, Tune, apply_learner};
use crate::judge::{Chosen, PolicySource, Workshop, chain};

/// Where the store keeps the model that is on trial: its digest, and how often it was started.
const TRIAL: &str = "model on trial";
/// And the one that was given up: its digest, and the generation that wanted it.
const GIVEN_UP: &str = "model given up";
/// Starts without a window after which a model is given up.
const STARTS: u8 = 3;

/// Where models come from, and what they are fitted to.
pub(super) struct Models {
    pub(super) store: Arc<Store>,
    pub(super) depot: Arc<Depot>,
    pub(super) fitter: Fitter,
    pub(super) tune: Tune,
    pub(super) reopen: Reopen,
    pub(super) own_settings: Settings,
    pub(super) ca: Option<PathBuf>,
}

/// What runs when the agent starts.
pub(super) struct First {
    pub(super) fitted: Fitted,
    pub(super) chosen: Vec<Chosen>,
    pub(super) generation: Generation,
    pub(super) in_force: Option<DesiredPolicy>,
    pub(super) model: Option<DesiredModel>,
}

/// A model that is ready, with the policy that is to decide.
pub(super) struct Ready {
    pub(super) fitted: Fitted,
    pub(super) chosen: Vec<Chosen>,
}

/// A model that takes over as soon as the frames that are on their way are over.
pub(super) struct Staged {
    pub(super) model: Option<DesiredModel>,
    pub(super) facts: ModelFacts,
    pub(super) workshop: Workshop,
    pub(super) engines: Engines,
    pub(super) recording: Option<JoinHandle<()>>,
    pub(super) at: Instant,
}

impl Models {
    /// Takes up what the store holds, as far as it can be used.
    pub(super) fn first(
        &self,
        options: &Options,
        trust: Option<&mut Trust>,
        own: &Package,
    ) -> Result<First, StartError> {
        let mut desired = None;
        if let (Some(trust), Some(stored)) = (trust, self.store.desired()?) {
            match trust.verify(&stored.signed) {
                Ok(verified) => {
                    // A crash may have come between storing it and trusting its keys.
                    trust.take(&self.store, &verified.keys)?;
                    desired = Some(verified);
                }
                Err(error) => warn!(%error, "the stored desired state is ignored"),
            }
        }
        let mut model = None;
        let mut fitted = None;
        if let Some(wanted) = desired.as_ref().and_then(|desired| desired.model.clone()) {
            let generation = desired.as_ref().map_or(Generation(0), |desired| desired.generation);
            match self.stored(&wanted, generation)? {
                Ok(found) => {
                    fitted = Some(found);
                    model = Some(wanted);
                }
                // The generation stays 0: the broker's copy of the desired state brings the model again.
                Err(why) => {
                    warn!(
                        why,
                        model = wanted.name,
                        "the stored model cannot run; that of the configuration does"
                    );
                    desired = None;
                }
            }
        }
        let mut fitted = match fitted {
            Some(fitted) => fitted,
            None => self.fitter.fit(own, self.own_settings)?,
        };
        let cameras = self.fitter.cameras.len();
        let mut chosen = fitted.workshop.prepare_for(&options.policy, cameras)?;
        let (mut generation, mut in_force) = (Generation(0), None);
        if let Some(desired) = desired {
            let stored = desired.policy.as_ref().map(|policy| {
                let bytes = self.store.artifact(policy.digest).map_err(|error| chain(&error))?;
                let bytes = bytes.ok_or_else(|| format!("artifact {} is gone", policy.digest.short()))?;
                let prepared = fitted.workshop.prepare_for(&source(policy, bytes), cameras);
                prepared.map_err(|error| chain(&error))
            });
            match stored.transpose() {
                Ok(stored) => {
                    generation = desired.generation;
                    chosen = stored.unwrap_or(chosen);
                    in_force.clone_from(&desired.policy);
                }
                // As above.
                Err(why) => warn!(why, "the stored policy cannot decide; it will be fetched again"),
            }
            for lane in &mut fitted.lanes {
                apply_learner(&mut lane.core, &fitted.settings, desired.learner);
            }
            if let Some(set) = &options.log {
                set(desired.log);
            }
        }
        Ok(First {
            fitted,
            chosen,
            generation,
            in_force,
            model,
        })
    }

    /// The model that ran before, unless it ended the agent too often.
    fn stored(&self, model: &DesiredModel, generation: Generation) -> Result<Result<Fitted, String>, StoreError> {
        match self.try_once_more(model, generation)? {
            Ok(()) => Ok(self.fit(model).map_err(|error| chain(&error))),
            Err(why) => Ok(Err(why)),
        }
    }

    /// Counts a try with a model that is on trial: before it begins, since it may be the agent's end. Gives why there is
    /// none where it has been that too often.
    pub(super) fn try_once_more(
        &self,
        model: &DesiredModel,
        generation: Generation,
    ) -> Result<Result<(), String>, StoreError> {
        if let Some(why) = self.given_up(model, generation) {
            return Ok(Err(why));
        }
        match self.trial(model.digest)? {
            Some(STARTS..) => {
                let mut given_up = model.digest.0.to_vec();
                given_up.extend(generation.0.to_le_bytes());
                self.store.set_value(GIVEN_UP, &given_up)?;
                self.store.remove_value(TRIAL)?;
                let ModelRoles { last_good, .. } = self.store.model_roles()?;
                self.keep(None, last_good)?;
                Ok(Err(given_up_text(model)))
            }
            Some(starts) => self.set_trial(model.digest, starts + 1).map(Ok),
            // It has proven itself.
            None => Ok(Ok(())),
        }
    }

    /// How often a model was tried, if it is the one on trial.
    pub(super) fn trial(&self, digest: Digest) -> Result<Option<u8>, StoreError> {
        let trial = self.store.value(TRIAL)?;
        let trial = trial.as_deref().and_then(split).filter(|(of, _)| *of == digest);
        Ok(trial.and_then(|(_, starts)| starts.first().copied()))
    }

    /// Notes that a model is on trial.
    pub(super) fn set_trial(&self, digest: Digest, starts: u8) -> Result<(), StoreError> {
        let mut trial = digest.0.to_vec();
        trial.push(starts);
        self.store.set_value(TRIAL, &trial)
    }

    /// The agent ends in order, with a model that has not given a window: the start does not count.
    pub(super) fn stay_on_trial(&self, digest: Digest) {
        if let Err(error) = self.set_trial(digest, 0) {
            let error: &dyn std::error::Error = &error;
            warn!(error, "the start counts against the model");
        }
    }

    /// A model is about to be fitted for the first time, unless it is on trial already.
    pub(super) fn begin_trial(
        &self,
        model: &DesiredModel,
        generation: Generation,
    ) -> Result<Result<(), String>, StoreError> {
        if self.trial(model.digest)?.is_none() {
            self.set_trial(model.digest, 0)?;
        }
        self.try_once_more(model, generation)
    }

    /// A model was refused in order: what was on trial before it is again.
    pub(super) fn end_trial(&self, before: Option<Digest>) -> Result<(), StoreError> {
        match before {
            Some(digest) => self.set_trial(digest, 0),
            None => self.store.remove_value(TRIAL).map(drop),
        }
    }

    /// Why this model is not tried again for this generation or an older one, if it was given up.
    pub(super) fn given_up(&self, model: &DesiredModel, generation: Generation) -> Option<String> {
        let given_up = self.store.value(GIVEN_UP).ok().flatten()?;
        let (digest, of) = split(&given_up)?;
        let of = u64::from_le_bytes(of.try_into().ok()?);
        (digest == model.digest && generation.0 <= of).then(|| given_up_text(model))
    }

    /// Fits a model of the depot.
    fn fit(&self, model: &DesiredModel) -> Result<Fitted, NoModel> {
        let bytes = self.depot.read(model.digest)?.ok_or(NoModel::Gone)?;
        let label = format!("{} {}", model.name, model.version);
        let package = Package::unpack(&label, &bytes).map_err(Unfit::Package)?;
        drop(bytes);
        let manifest = package.manifest();
        if (manifest.name.as_str(), u64::from(manifest.version)) != (model.name.as_str(), model.version) {
            return Err(NoModel::Other(manifest.name.clone(), manifest.version.into()));
        }
        let settings = (self.tune)(&package);
        Ok(self.fitter.fit_untried(&package, settings)?)
    }

    /// Makes the model and the policy of a desired state ready: takes some tenths of a second, or more for a large one.
    pub(super) fn ready(&self, desired: &Desired, policy: &PolicySource) -> Result<Ready, String> {
        let make = || -> Result<Fitted, NoModel> {
            match &desired.model {
                Some(model) => self.fit(model),
                None => {
                    let own = (self.reopen)().map_err(NoModel::Own)?;
                    Ok(self.fitter.fit(&own, self.own_settings).map_err(Unfit::Start)?)
                }
            }
        };
        // Packages come from outside, and graphs can do much: one that panics is one that is refused.
        let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(make));
        let made = made.map_err(|_| "the model cannot be loaded: that has failed without an answer".to_owned())?;
        let mut fitted = made.map_err(|error| {
            let name = desired
                .model
                .as_ref()
                .map_or("of the configuration", |model| &model.name);
            format!("model {name}: {}", chain(&error))
        })?;
        let prepared = fitted.workshop.prepare_for(policy, self.fitter.cameras.len());
        let chosen = prepared.map_err(|error| format!("policy {}: {}", policy.name, chain(&error)))?;
        let digest = desired.model.as_ref().map(|model| model.digest);
        for ((name, _), lane) in self.fitter.cameras.iter().zip(&mut fitted.lanes) {
            // What a camera has learned with this model before comes back.
            let restored = restore_heads(&self.store, &slot(name, digest), &mut lane.core);
            restored.map_err(|error| chain(&error))?;
            apply_learner(&mut lane.core, &fitted.settings, desired.learner);
        }
        Ok(Ready { fitted, chosen })
    }

    /// Notes which models must stay, and removes the others.
    pub(super) fn keep(&self, active: Option<Digest>, last_good: Option<Digest>) -> Result<(), StoreError> {
        self.store.set_model_roles(&ModelRoles { active, last_good })?;
        let kept: Vec<Digest> = [active, last_good].into_iter().flatten().collect();
        if let Err(error) = self.depot.keep(&kept) {
            let error: &dyn std::error::Error = &error;
            warn!(error, "packages that nobody needs stay");
        }
        Ok(())
    }

    /// Lets go of the model to go back to, where there is no room for another beside it.
    pub(super) fn let_go(&self, active: Option<Digest>) -> Result<(), StoreError> {
        self.store.set_model_roles(&ModelRoles {
            active,
            last_good: None,
        })
    }

    /// The models that must stay.
    pub(super) fn pinned(&self) -> Result<Vec<Digest>, StoreError> {
        let ModelRoles { active, last_good } = self.store.model_roles()?;
        Ok([active, last_good].into_iter().flatten().collect())
    }

    /// A model on trial has worked. Another one that is being fitted stays on trial.
    pub(super) fn passed(&self, digest: Digest) {
        let passed = self.trial(digest).and_then(|trial| match trial {
            Some(_) => self.end_trial(None),
            None => Ok(()),
        });
        match passed {
            Ok(()) => info!("the model has proven itself"),
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                warn!(error, "the model stays on trial");
            }
        }
    }
}

fn given_up_text(model: &DesiredModel) -> String {
    format!(
        "model {} {} was given up: the agent has tried it {STARTS} times and ended before it gave a window",
        model.name, model.version
    )
}

/// A digest and what follows it.
fn split(value: &[u8]) -> Option<(Digest, &[u8])> {
    let (digest, rest) = value.split_at_checked(32)?;
    Some((Digest(digest.try_into().ok()?), rest))
}

/// Why there is no model.
#[derive(Debug, thiserror::Error)]
enum NoModel {
    #[error(transparent)]
    Depot(#[from] offramp_store::DepotError),
    #[error("it is not here any more")]
    Gone,
    #[error("it is {0} {1}, and another one was signed")]
    Other(String, u64),
    #[error("{0}")]
    Own(String),
    #[error(transparent)]
    Unfit(#[from] Unfit),
}
