//! Making a desired state real: verify it, fetch what it names, make that ready, store it, and only then order it.

use std::sync::Arc;

use offramp_link::{Delivery, Link};
use offramp_proto::{
    ArtifactChunk, Desired, DesiredPolicy, Digest, Generation, PolicyReport, PolicySource as Deciding, decode,
};
use offramp_store::{DepotError, Roles, StoreError};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::models::{Ready, Staged};
use super::{Engines, Keeper, clip};
use crate::agent::Order;
use crate::agent::fetch::{Fetch, Progress};
use crate::agent::pool::Replacement;
use crate::judge::{Chosen, PolicyJudge, PolicySource, chain};

/// A desired state that is being made real.
pub(super) struct Pending {
    desired: Desired,
    signed: Vec<u8>,
    delivery: Delivery,
    /// What is on its way here.
    pub(super) fetch: Option<Fetch>,
    begun: Instant,
    /// The component of its policy, once that is here.
    component: Option<Vec<u8>>,
}

/// The next piece of what comes from an address; waits for ever where nothing does.
pub(super) async fn next_piece(pending: &mut Option<Pending>) -> Result<Vec<u8>, String> {
    match pending.as_mut().and_then(|pending| pending.fetch.as_mut()) {
        Some(fetch) => fetch.piece().await,
        None => std::future::pending().await,
    }
}

/// Digest of a desired state's model.
fn model_of(desired: &Desired) -> Option<Digest> {
    desired.model.as_ref().map(|model| model.digest)
}

impl Keeper {
    pub(super) fn take_desired(&mut self, link: &Link, delivery: Delivery) {
        let signed = delivery.message.payload.to_vec();
        let Some(trust) = &self.trust else {
            return delivery.acknowledge();
        };
        let desired = match trust.verify(&signed) {
            Ok(desired) if desired.device == self.identity.device => desired,
            Ok(desired) => {
                let why = format!("the desired state is signed for device {}", desired.device);
                delivery.acknowledge();
                return self.refuse(link, None, why);
            }
            Err(error) => {
                delivery.acknowledge();
                return self.refuse(link, None, format!("the desired state is refused: {error}"));
            }
        };
        if desired.generation == self.generation {
            return delivery.acknowledge(); // told again at every connect
        }
        let pending = self.pending.as_ref().map(|pending| pending.desired.generation);
        let newest = pending.map_or(self.generation, |pending| pending.max(self.generation));
        if desired.generation < newest {
            delivery.acknowledge();
            let old = desired.generation;
            let why = format!("generation {old} is older than {newest}, which is in force or on its way");
            return self.refuse(link, Some(old), why);
        }
        // It is taken up once the model that is about to take over has done so.
        if self.staged.is_some() {
            if let Some(old) = self.postponed.replace(delivery) {
                old.acknowledge();
            }
            return;
        }
        if let Some(model) = &desired.model
            && let Some(why) = self.models.given_up(model, desired.generation)
        {
            delivery.acknowledge();
            let generation = desired.generation;
            return self.refuse(link, Some(generation), format!("generation {generation}: {why}"));
        }
        if let Some(pending) = &mut self.pending
            && pending.desired.generation == desired.generation
        {
            // Told again while it is being made real.
            std::mem::replace(&mut pending.delivery, delivery).acknowledge();
            return self.ask(link);
        }
        info!(generation = %desired.generation, "a new desired state");
        // What was pending is superseded: its delivery is dealt with.
        if let Some(old) = self.pending.replace(Pending {
            desired,
            signed,
            delivery,
            fetch: None,
            begun: Instant::now(),
            component: None,
        }) {
            old.delivery.acknowledge();
        }
        self.proceed(link);
    }

    /// Does what comes next for the pending desired state: fetch something, make a model ready, or accept it.
    fn proceed(&mut self, link: &Link) {
        let Some(mut pending) = self.pending.take() else { return };
        let desired = &pending.desired;
        let other_model = model_of(desired) != self.model_digest();
        if let Some(model) = desired
            .model
            .as_ref()
            .filter(|model| other_model && !self.models.depot.has(model.digest))
        {
            let (digest, size, url) = (model.digest, model.size, model.url.clone());
            info!(
                model = model.name,
                version = model.version,
                bytes = size,
                "fetching a model"
            );
            return self.fetch(link, pending, digest, size, url);
        }
        // Other settings, or keys, are no reason to begin a policy anew that decides.
        let stays = desired.policy.is_none() && !desired.own_policy
            || self.in_force.is_some() && self.in_force == desired.policy && self.policy.source == Deciding::Desired;
        if stays && !other_model {
            let Pending {
                desired,
                signed,
                delivery,
                ..
            } = pending;
            self.accept(link, &desired, &signed, Change::Nothing);
            return delivery.acknowledge();
        }
        // One that stays is set up anew for another model.
        let policy = if stays {
            self.in_force.clone()
        } else {
            desired.policy.clone()
        };
        if let Some(policy) = policy.as_ref().filter(|_| pending.component.is_none()) {
            match self.store.artifact(policy.digest) {
                Ok(Some(bytes)) => pending.component = Some(bytes),
                Ok(None) => return self.fetch(link, pending, policy.digest, policy.size, None),
                Err(error) => {
                    self.pending = Some(pending);
                    return self.give_up_pending(link, &chain(&error));
                }
            }
        }
        let component = pending.component.clone();
        let source = match policy.zip(component) {
            Some((policy, bytes)) => source(&policy, bytes),
            None => self.own.clone(),
        };
        if other_model {
            if let Some(model) = &pending.desired.model {
                let tried = self.models.begin_trial(model, pending.desired.generation);
                if let Err(why) = tried.unwrap_or_else(|error| Err(chain(&error))) {
                    self.pending = Some(pending);
                    return self.give_up_pending(link, &why);
                }
            }
            let (models, desired) = (Arc::clone(&self.models), pending.desired.clone());
            self.fitting.spawn_blocking(move || {
                let ready = models.ready(&desired, &source).map(Box::new);
                (desired.generation, ready)
            });
            self.pending = Some(pending);
            return;
        }
        match self.workshop.prepare_for(&source, self.cameras.len()) {
            Ok(chosen) => {
                let change = Change::Policy(chosen, pending.component);
                self.accept(link, &pending.desired, &pending.signed, change);
                pending.delivery.acknowledge();
            }
            Err(error) => {
                self.pending = Some(pending);
                self.give_up_pending(link, &format!("policy {}: {}", source.name, chain(&error)));
            }
        }
    }

    fn fetch(&mut self, link: &Link, mut pending: Pending, digest: Digest, size: u64, url: Option<String>) {
        let begin = || -> Result<_, String> {
            let (models, wanted) = (&self.models, model_of(&pending.desired));
            let mut pinned = models.pinned().map_err(|error| chain(&error))?;
            pinned.extend(wanted);
            let part = match models.depot.begin(digest, size, &pinned) {
                // Better no way back than no way on.
                Err(DepotError::Full { .. }) => {
                    let active = self.model_digest();
                    models.let_go(active).map_err(|error| chain(&error))?;
                    let pinned: Vec<Digest> = active.into_iter().chain(wanted).collect();
                    models.depot.begin(digest, size, &pinned)
                }
                part => part,
            };
            part.map_err(|error| chain(&error))
        };
        match begin() {
            Ok(part) => {
                if part.have() > 0 {
                    info!(bytes = part.have(), of = size, "an artifact is here in part");
                }
                pending.fetch = Some(match url {
                    Some(url) => Fetch::from_address(part, url, self.models.ca.clone()),
                    None => Fetch::over_broker(part),
                });
                self.pending = Some(pending);
                self.ask(link);
            }
            Err(why) => {
                self.pending = Some(pending);
                self.give_up_pending(link, &why);
            }
        }
    }

    pub(super) fn take_chunk(&mut self, link: &Link, payload: &[u8]) {
        let chunk = match decode::<ArtifactChunk>(payload) {
            Ok(chunk) => chunk,
            Err(error) => return warn!(%error, "a chunk is refused and will be asked for again"),
        };
        let fetch = self.pending.as_mut().and_then(|pending| pending.fetch.as_mut());
        let Some(progress) = fetch.map(|fetch| fetch.take(&chunk)) else {
            return;
        };
        self.take_progress(link, progress);
    }

    /// Takes what comes from an address.
    pub(super) fn take_piece(&mut self, link: &Link, piece: Result<Vec<u8>, String>) {
        let Some(fetch) = self.pending.as_mut().and_then(|pending| pending.fetch.as_mut()) else {
            return;
        };
        let progress = match piece {
            Ok(bytes) => fetch.append(&bytes),
            Err(why) => Progress::Failed(why),
        };
        self.take_progress(link, progress);
    }

    fn take_progress(&mut self, link: &Link, progress: Progress) {
        match progress {
            Progress::Waiting => {}
            Progress::More => self.ask(link),
            Progress::Whole => self.take_whole(link),
            Progress::Failed(why) => self.not_fetched(link, &why),
        }
    }

    fn take_whole(&mut self, link: &Link) {
        let Some(pending) = &mut self.pending else { return };
        let Some(fetch) = pending.fetch.take() else { return };
        let (digest, had_address) = (fetch.digest(), fetch.has_address());
        match fetch.finish(&self.models.depot) {
            Ok(bytes) => {
                let seconds = pending.begun.elapsed().as_secs_f64();
                info!(digest = %digest.short(), bytes = bytes.len(), seconds, "an artifact is here");
                if Some(digest) != model_of(&pending.desired) {
                    pending.component = Some(bytes);
                }
                self.proceed(link);
            }
            Err(error) if had_address => self.fall_back(link, &chain(&error)),
            Err(error) => self.give_up_pending(link, &chain(&error)),
        }
    }

    /// What does not come from its address comes from the controller.
    fn not_fetched(&mut self, link: &Link, why: &str) {
        let fetch = self.pending.as_mut().and_then(|pending| pending.fetch.take());
        match fetch {
            Some(fetch) if fetch.has_address() => self.fall_back(link, why),
            _ => self.give_up_pending(link, why),
        }
    }

    fn fall_back(&mut self, link: &Link, why: &str) {
        let Some(pending) = self.pending.take() else { return };
        warn!(why, "the model's address gives it not; the controller is asked");
        match pending.desired.model.clone() {
            Some(model) => self.fetch(link, pending, model.digest, model.size, None),
            None => self.pending = Some(pending),
        }
    }

    fn give_up_pending(&mut self, link: &Link, why: &str) {
        let Some(pending) = self.pending.take() else { return };
        let generation = pending.desired.generation;
        self.refuse(link, Some(generation), format!("generation {generation}: {why}"));
        pending.delivery.acknowledge();
    }

    /// A model is ready, or is none.
    pub(super) fn take_ready(&mut self, link: &Link, generation: Generation, ready: Result<Box<Ready>, String>) {
        let Some(pending) = self.pending.take() else { return };
        if pending.desired.generation != generation {
            debug!(%generation, "a model is ready that nobody wants any more");
            self.pending = Some(pending);
            return;
        }
        match ready {
            Ok(ready) => {
                let change = Change::Model(ready, pending.component);
                self.accept(link, &pending.desired, &pending.signed, change);
            }
            Err(why) => {
                let on_trial = self.model_digest().filter(|_| self.on_trial);
                if let Err(error) = self.models.end_trial(on_trial) {
                    warn!(
                        error = &error as &dyn std::error::Error,
                        "a refused model stays on trial"
                    );
                }
                self.refuse(link, Some(generation), format!("generation {generation}: {why}"));
            }
        }
        pending.delivery.acknowledge();
    }

    /// Makes a desired state durable, then orders it. After a crash in between, the next start finds it.
    fn accept(&mut self, link: &Link, desired: &Desired, signed: &[u8], change: Change) {
        let generation = desired.generation;
        match self.make_durable(desired, signed, &change) {
            Ok(roles) => self.roles = roles,
            Err(error) => {
                let why = format!("generation {generation} cannot be stored: {}", chain(&error));
                return self.refuse(link, Some(generation), why);
            }
        }
        // Only now: the store has refused what is older than it, and what is older may name keys that were revoked since.
        if let Some(trust) = &mut self.trust
            && let Err(error) = trust.take(&self.store, &desired.keys)
        {
            warn!(
                error = &error as &dyn std::error::Error,
                "the next start takes the keys from the desired state"
            );
        }
        self.generation = generation;
        self.refused = None;
        if let Some(set) = &self.log {
            set(desired.log);
        }
        if !matches!(change, Change::Nothing) && (desired.policy.is_some() || desired.own_policy) {
            self.in_force.clone_from(&desired.policy);
        }
        // The lanes of another model have it already.
        if !matches!(change, Change::Model(..)) {
            for camera in &self.cameras {
                let _ = camera.orders.send(Order::Learner(desired.learner));
            }
        }
        match change {
            Change::Policy(chosen, _) => {
                self.told = generation;
                // Reported once a camera has taken it up.
                for (camera, chosen) in self.cameras.iter().zip(chosen) {
                    let chosen = Box::new(chosen);
                    let _ = camera.orders.send(Order::Swap { generation, chosen });
                }
            }
            Change::Nothing => {
                self.told = generation;
                self.counters.send_modify(|counters| counters.generation = generation.0);
                self.tell_reported(link);
            }
            Change::Model(ready, _) => self.stage(desired, *ready),
        }
    }

    fn make_durable(&self, desired: &Desired, signed: &[u8], change: &Change) -> Result<Roles, StoreError> {
        let named = match change {
            Change::Nothing => None,
            Change::Policy(chosen, component) => Some((chosen[0].named.digest, component)),
            Change::Model(ready, component) => Some((ready.chosen[0].named.digest, component)),
        };
        if let Some((digest, Some(bytes))) = named {
            self.store.put_artifact(digest, bytes)?;
        }
        if let Change::Model(..) = change {
            match &desired.model {
                Some(model) => self.models.set_trial(model.digest, 0)?,
                None => self.models.end_trial(None)?,
            }
            self.models.keep(model_of(desired), self.model_digest())?;
        }
        self.store.set_desired(desired.generation.0, signed)?;
        let Some((digest, component)) = named else {
            return Ok(self.roles);
        };
        // The policy of the configuration needs no place in the store.
        let active = component.as_ref().map(|_| digest);
        if active == self.roles.active {
            return Ok(self.roles);
        }
        let roles = Roles {
            active,
            last_good: self.roles.active,
            pending: None,
        };
        self.store.set_roles(&roles)?;
        Ok(roles)
    }

    /// Hands a model over to the cameras.
    fn stage(&mut self, desired: &Desired, ready: Ready) {
        let Ready { fitted, chosen } = ready;
        let judges = chosen
            .into_iter()
            .map(|chosen| PolicyJudge::with_rules(chosen, self.rules));
        let lanes = fitted.lanes.into_iter().zip(judges).collect();
        self.staged = Some(Staged {
            model: desired.model.clone(),
            facts: fitted.facts,
            workshop: fitted.workshop,
            engines: Engines::of(fitted.engine.clone()),
            recording: fitted.recording,
            at: std::time::Instant::now(),
        });
        self.exchange.offer(Replacement {
            engine: fitted.engine,
            classes: fitted.classes,
            settings: fitted.settings,
            lanes,
        });
    }

    /// The model that was staged runs.
    pub(super) fn take_over(&mut self, link: Option<&Link>, policy: Option<PolicyReport>, frame: u64) {
        let Some(staged) = self.staged.take() else { return };
        let from = format!("{} {}", self.model.name, self.model.version);
        let to = format!("{} {}", staged.facts.name, staged.facts.version);
        let waited_ms = staged.at.elapsed().as_secs_f64() * 1e3;
        info!(from, to, frame, waited_ms, generation = %self.generation, "another model runs");
        self.model = staged.facts;
        self.on_trial = staged.model.is_some();
        self.model_in_force = staged.model;
        self.workshop = staged.workshop;
        self.engines = staged.engines;
        // The one before ends by itself: its recorders are gone.
        self.recording = staged.recording;
        self.told = self.generation;
        self.policy = policy.unwrap_or_else(|| self.policy.clone());
        let facts = [("from", from.clone()), ("to", to.clone()), ("frame", frame.to_string())];
        let message = format!("model {to} runs from frame {frame} on, after {from}");
        self.event("model-replaced", message, &facts);
        let (generation, engines) = (self.generation.0, self.engines.in_short());
        self.counters.send_modify(|counters| {
            counters.model = to;
            counters.generation = generation;
            counters.engines = engines;
        });
        if let Some(link) = link {
            self.tell_birth(link);
            self.tell_reported(link);
            if let Some(delivery) = self.postponed.take() {
                self.take_desired(link, delivery);
            }
        }
    }

    pub(super) fn refuse(&mut self, link: &Link, generation: Option<Generation>, why: String) {
        warn!(why, "a desired state is refused");
        let refused = Some((generation, why));
        if self.refused != refused {
            if let Some((_, why)) = &refused {
                self.event("desired-refused", clip(why.clone()), &[]);
            }
            self.refused = refused;
        }
        self.tell_reported(link);
    }
}

/// What an accepted desired state changes beside settings.
enum Change {
    Nothing,
    /// Another policy, with its component where it came from the fleet.
    Policy(Vec<Chosen>, Option<Vec<u8>>),
    /// Another model, with the policy that decides from then on.
    Model(Box<Ready>, Option<Vec<u8>>),
}

pub(super) fn source(policy: &DesiredPolicy, bytes: Vec<u8>) -> PolicySource {
    PolicySource {
        name: policy.name.clone(),
        version: policy.version,
        bytes,
        parameters: policy.parameters.clone(),
    }
}
