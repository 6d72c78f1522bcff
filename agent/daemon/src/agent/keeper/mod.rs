//! The keeper: durable state, and everything that goes to and comes from the fleet.

mod desired;
mod models;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::Duration;

use offramp_core::Core;
use offramp_engine::Progress;
use offramp_link::{Config, Delivery, Inbox, Link, Publication, State, Will};
use offramp_model::Package;
use offramp_policy::LadderRules;
use offramp_proto::{
    Birth, BootId, ClassCount, Death, DesiredModel, DesiredPolicy, DeviceId, Digest, Event, Generation, Kind, Message,
    ModelFacts, PolicyReport, Reported, Sequence, Summary, TenantId, Topic, TraceSample, Window, decode, encode,
};
use offramp_store::{Depot, Limits, Opened, Roles, Store, StoreError};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};
use tracing::{debug, error, info, warn};

use crate::agent::board::Board;
use crate::agent::engines::{Engines, capabilities};
use crate::agent::fit::Fitter;
use crate::agent::pool::{Exchange, Replacement, unix_ms};
use crate::agent::renewal::{self, Renewal, RenewalError, Todo};
use crate::agent::trust::Trust;
use crate::agent::windows::Whole;
use crate::agent::{Options, Order, Report, SetLog, StartError};
use crate::judge::{PolicyJudge, PolicySource, Step, Workshop, chain};
use desired::{Pending, next_piece};
use models::{First, Models, Ready, Staged};

/// Records that are on their way to the broker at a time.
const BATCH: usize = 16;
/// Bytes of them.
const BATCH_BYTES: u64 = 128 * 1024;
/// How long the keeper waits for a chunk before it asks again.
const ASK_AGAIN: Duration = Duration::from_secs(3);
/// How long an agent that ends gives its outbox to empty.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Largest checkpoint of a camera: heads of every context, as they are and as they were found good. A model whose heads
/// take more is not for a device.
const CHECKPOINT_BYTES: u64 = 256 << 20;
/// Most classes in a message.
const MAX_CLASSES: usize = 1024;

/// What the keeper has done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Summaries written to the outbox.
    pub summaries: u64,
    /// Summaries that the broker has confirmed.
    pub sent: u64,
    /// Records that wait in the outbox.
    pub waiting: u64,
    /// Whether there is a connection to the broker.
    pub connected: bool,
    /// Generation of the desired state in force.
    pub generation: u64,
    /// Policies that took over, oldest first.
    pub swaps: Vec<Swap>,
    /// What runs each stage, and how its offload stands.
    pub engines: Vec<String>,
    /// Name and version of the model that runs.
    pub model: String,
}

/// A policy that took over between two frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swap {
    /// The policy before.
    pub from: String,
    /// The policy from then on.
    pub to: String,
    /// Number of the first frame that it decided.
    pub frame: u64,
}

/// Who this is, for every message.
#[derive(Clone)]
struct Identity {
    tenant: TenantId,
    device: DeviceId,
    boot: BootId,
}

impl Identity {
    fn topic(&self, kind: Kind) -> String {
        Topic::new(&self.tenant, &self.device, kind).to_string()
    }
}

/// A camera that runs.
struct Camera {
    /// Empty where there is one only.
    name: String,
    orders: Sender<Order>,
}

pub(crate) struct Keeper {
    identity: Identity,
    model: ModelFacts,
    /// The fleet's model that runs; none: that of the configuration.
    model_in_force: Option<DesiredModel>,
    /// Whether nobody has seen it work yet.
    on_trial: bool,
    started_at: u64,
    /// How often it has told of its birth.
    born: u64,
    trust: Option<Trust>,
    config: Option<Config>,
    renewal: Option<Renewal>,
    link: Option<(Link, Inbox)>,
    store: Arc<Store>,
    workshop: Workshop,
    engines: Engines,
    board: Arc<Board>,
    cameras: Vec<Camera>,
    /// The newest desired state that was accepted, and the one in force: another model takes a moment.
    generation: Generation,
    told: Generation,
    policy: PolicyReport,
    rules: LadderRules,
    /// The fleet's policy that decides, unless it has failed.
    in_force: Option<DesiredPolicy>,
    roles: Roles,
    /// What was refused, and why.
    refused: Option<(Option<Generation>, String)>,
    /// The policy of the configuration.
    own: PolicySource,
    models: Arc<Models>,
    exchange: Arc<Exchange>,
    /// A model that is about to take over, and a desired state that waits for that.
    staged: Option<Staged>,
    postponed: Option<Delivery>,
    /// Writes the traces of the model that runs.
    recording: Option<JoinHandle<()>>,
    pending: Option<Pending>,
    /// Models that are made ready.
    fitting: JoinSet<(Generation, Result<Box<Ready>, String>)>,
    sending: JoinSet<Vec<u64>>,
    telling: JoinSet<()>,
    proving: JoinSet<Result<(), RenewalError>>,
    log: Option<SetLog>,
    summaries: BTreeMap<u64, ()>,
    counters: watch::Sender<Counters>,
}

impl Keeper {
    /// Opens the store and takes up what it holds: the model, the heads, the policy. Gives what runs first, too.
    pub(crate) fn open(
        mut options: Options,
        boot: BootId,
        own: &Package,
        fitter: Fitter,
        board: Arc<Board>,
        orders: Vec<Sender<Order>>,
        exchange: Arc<Exchange>,
    ) -> Result<(Self, Replacement), StartError> {
        let limits = Limits {
            checkpoint_bytes: CHECKPOINT_BYTES,
            // The heads of two models each.
            cameras: 2 * Limits::default().cameras,
            ..Limits::default()
        };
        let (store, opened) = Store::open(&options.state, limits)?;
        match &opened {
            Opened::Replaced { reason, kept } => {
                warn!(reason, kept = %kept.display(), "the store was unusable; a new one was made");
            }
            other => debug!(?other, "store"),
        }
        let trust = options.fleet.as_ref().map(|fleet| Trust::open(&store, &fleet.key));
        let mut trust = trust.transpose()?;
        let mut folder = options.state.clone().into_os_string();
        folder.push(".packages");
        let models = Models {
            store: Arc::new(store),
            depot: Arc::new(Depot::new(folder.into(), options.packages_bytes)),
            fitter,
            tune: options.tune.clone().unwrap_or_else(|| {
                let settings = options.settings;
                Arc::new(move |_| settings)
            }),
            reopen: options.reopen.take().unwrap_or_else(|| {
                // Without a fleet, no other model ever comes.
                let kept = options.fleet.is_some().then(|| own.clone());
                Arc::new(move || kept.clone().ok_or_else(|| "it was not kept".into()))
            }),
            own_settings: options.settings,
            ca: options.fleet.as_ref().and_then(|fleet| fleet.ca.clone()),
        };
        let First {
            mut fitted,
            chosen,
            generation,
            in_force,
            model,
        } = models.first(&options, trust.as_mut(), own)?;
        let names: Vec<String> = models.fitter.cameras.iter().map(|(name, _)| name.clone()).collect();
        let store = Arc::clone(&models.store);
        for (name, lane) in names.iter().zip(&mut fitted.lanes) {
            let slot = slot(name, model.as_ref().map(|model| model.digest));
            if options.forget {
                forget_heads(&store, &slot)?;
            } else {
                restore_heads(&store, &slot, &mut lane.core)?;
            }
        }

        let identity = Identity {
            tenant: options.tenant,
            device: options.device,
            boot,
        };
        let config = options.fleet.map(|fleet| {
            let mut config = Config::new(fleet.broker, format!("offramp-{}-{}", identity.tenant, identity.device));
            config.credentials = fleet.credentials;
            config.ca = fleet.ca;
            config.identity = fleet.identity;
            config.subscriptions = vec![Topic::downlink_filter(&identity.tenant, &identity.device)];
            let death = Death {
                device: identity.device.clone(),
                boot,
            };
            let payload = encode(&death).expect("a death has no bounds to break").into();
            config.will = Some(Will {
                topic: identity.topic(Kind::Death),
                payload,
                retain: false,
            });
            config
        });
        let identity_file = config.as_ref().and_then(|config| config.identity.as_ref());
        let renewal = identity_file.and_then(|file| {
            Renewal::open(&identity.device, file)
                .inspect_err(|error| warn!(error = chain(error), "the device's certificate is not renewed"))
                .ok()
        });
        let rules = options.policy_rules;
        let judges = chosen.into_iter().map(|chosen| PolicyJudge::with_rules(chosen, rules));
        let judges: Vec<PolicyJudge> = judges.collect();
        let policy = judges[0].report(0);
        let cameras = names.into_iter().zip(orders);
        let engines = Engines::of(fitted.engine.clone());
        let counters = Counters {
            generation: generation.0,
            engines: engines.in_short(),
            model: format!("{} {}", fitted.facts.name, fitted.facts.version),
            ..Counters::default()
        };
        let roles = store.roles()?;
        let on_trial = match &model {
            Some(model) => models.trial(model.digest)?.is_some(),
            None => false,
        };
        let keeper = Self {
            identity,
            model: fitted.facts,
            model_in_force: model,
            started_at: unix_ms(),
            born: 0,
            trust,
            config,
            renewal,
            link: None,
            on_trial,
            store,
            workshop: fitted.workshop,
            engines,
            board,
            cameras: cameras.map(|(name, orders)| Camera { name, orders }).collect(),
            generation,
            told: generation,
            policy,
            rules,
            in_force,
            roles,
            refused: None,
            own: options.policy,
            models: Arc::new(models),
            exchange,
            staged: None,
            postponed: None,
            recording: fitted.recording,
            pending: None,
            fitting: JoinSet::new(),
            sending: JoinSet::new(),
            telling: JoinSet::new(),
            proving: JoinSet::new(),
            log: options.log,
            summaries: BTreeMap::new(),
            counters: watch::Sender::new(counters),
        };
        let first = Replacement {
            engine: fitted.engine,
            classes: fitted.classes,
            settings: fitted.settings,
            lanes: fitted.lanes.into_iter().zip(judges).collect(),
        };
        Ok((keeper, first))
    }

    pub(crate) fn counters(&self) -> watch::Receiver<Counters> {
        self.counters.subscribe()
    }

    /// Digest of the fleet's model that runs; none: that of the configuration does.
    fn model_digest(&self) -> Option<Digest> {
        self.model_in_force.as_ref().map(|model| model.digest)
    }

    /// Starts the link, if there is a fleet. It connects in the background.
    pub(crate) fn connect(mut self, runtime: &tokio::runtime::Runtime) -> Result<Self, StartError> {
        if let Some(config) = &self.config {
            let _inside = runtime.enter();
            self.link = Some(Link::connect(config)?);
        }
        Ok(self)
    }

    /// Works until the cameras have ended. Gives who writes the traces.
    pub(crate) async fn run(mut self, mut from_seats: mpsc::Receiver<Report>) -> Option<JoinHandle<()>> {
        let Some((mut link, mut inbox)) = self.link.take() else {
            while let Some(report) = from_seats.recv().await {
                if matches!(report, Report::Ended) {
                    break;
                }
                self.take_report(None, report);
            }
            return self.recording;
        };
        let mut state = link.state();
        let mut tick = interval(ASK_AGAIN);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut asked = Instant::now();
        self.state_changed(&link, &state.borrow_and_update().clone());
        loop {
            self.send_next(&link);
            tokio::select! {
                report = from_seats.recv() => match report {
                    Some(Report::Ended) | None => break,
                    Some(report) => self.take_report(Some(&link), report),
                },
                Some(delivery) = inbox.recv() => {
                    asked = Instant::now();
                    self.take_delivery(&link, delivery);
                }
                Ok(()) = state.changed() => {
                    let now = state.borrow_and_update().clone();
                    self.state_changed(&link, &now);
                }
                Some(sent) = self.sending.join_next() => self.sent(&sent.unwrap_or_default()),
                Some(_) = self.telling.join_next() => {}
                piece = next_piece(&mut self.pending) => {
                    asked = Instant::now();
                    self.take_piece(&link, piece);
                }
                Some(ready) = self.fitting.join_next() => match ready {
                    Ok((generation, ready)) => self.take_ready(&link, generation, ready),
                    Err(error) => error!(%error, "a model could not be made ready"),
                },
                Some(proof) = self.proving.join_next() => {
                    let proof = proof.unwrap_or_else(|error| Err(RenewalError::Unproven(error.to_string())));
                    if self.take_proof(proof) && let Some(config) = &self.config {
                        link.shutdown().await;
                        (link, inbox) = reconnect(config).await;
                        state = link.state();
                        state.mark_changed();
                    }
                }
                _ = tick.tick() => {
                    self.watch_engines();
                    self.renew(&link);
                    if asked.elapsed() >= ASK_AGAIN {
                        asked = Instant::now();
                        if let Some(fetch) = self.pending.as_mut().and_then(|pending| pending.fetch.as_mut()) {
                            fetch.slow_down();
                        }
                        self.ask(&link);
                    }
                }
            }
        }
        self.leave(&link).await;
        if let Some(digest) = self.model_digest().filter(|_| self.on_trial && self.staged.is_none()) {
            self.models.stay_on_trial(digest);
        }
        self.recording
    }

    /// Empties the outbox as far as a short time allows, then says goodbye.
    async fn leave(&mut self, link: &Link) {
        let deadline = Instant::now() + LAST_WORDS;
        loop {
            self.send_next(link);
            match timeout_at(deadline, self.sending.join_next()).await {
                Ok(Some(sent)) => self.sent(&sent.unwrap_or_default()),
                Ok(None) | Err(_) => break,
            }
        }
        let connected = matches!(&*link.state().borrow(), State::Connected { .. });
        if connected {
            let death = Death {
                device: self.identity.device.clone(),
                boot: self.identity.boot,
            };
            let payload = encode(&death).unwrap_or_default();
            let told = link.publish(Publication::new(self.identity.topic(Kind::Death), payload));
            let _ = timeout_at(deadline, told).await;
        }
        link.shutdown().await;
    }

    fn state_changed(&mut self, link: &Link, state: &State) {
        match state {
            State::Connected { session_resumed } => {
                info!(session_resumed, "connected to the broker");
                // A broker that took us for dead has published our will: it must hear that we live.
                self.tell_birth(link);
                self.tell_reported(link);
            }
            State::Disconnected { reason, retry_in } => {
                warn!(%reason, ?retry_in, "not connected to the broker; summaries wait in the outbox");
            }
            State::Connecting | State::Closed => {}
        }
        let connected = matches!(state, State::Connected { .. });
        self.counters.send_modify(|counters| counters.connected = connected);
    }

    fn tell_birth(&mut self, link: &Link) {
        self.born += 1;
        let birth = Birth {
            device: self.identity.device.clone(),
            boot: self.identity.boot,
            started_at: self.started_at,
            agent: env!("CARGO_PKG_VERSION").into(),
            model: self.model.clone(),
            capabilities: capabilities(),
            told: self.born,
        };
        self.tell(link, Kind::Birth, &birth, true);
    }

    // From the cameras.

    /// Sends a piece of a trace, if there is a broker: one that is missed is one of many.
    fn share(&mut self, link: Option<&Link>, trace: Vec<u8>) {
        let Some(link) = link.filter(|link| matches!(&*link.state().borrow(), State::Connected { .. })) else {
            return;
        };
        let sample = TraceSample {
            device: self.identity.device.clone(),
            boot: self.identity.boot,
            trace,
        };
        self.tell(link, Kind::Trace, &sample, false);
    }

    fn take_report(&mut self, link: Option<&Link>, report: Report) {
        self.watch_engines();
        match report {
            Report::Sample(trace) => self.share(link, trace),
            Report::Window { whole, span } => self.take_window(*whole, span),
            Report::Replaced {
                window,
                heads,
                policy,
                frame,
            } => {
                if let Some((whole, span)) = window {
                    self.take_window(*whole, span);
                }
                for (camera, heads) in heads {
                    self.save_heads(camera, &heads);
                }
                self.take_over(link, policy, frame);
            }
            Report::Checkpoint { camera, heads } => self.save_heads(camera, &heads),
            Report::Policy {
                camera,
                step,
                policy,
                frame,
            } => {
                self.take_step(camera, step, &policy, frame);
                self.policy = policy;
                if let Some(link) = link {
                    self.tell_reported(link);
                }
            }
            Report::Told { kind, message } => self.event(kind, message, &[]),
            Report::Ended => {}
        }
    }

    fn take_window(&mut self, whole: Whole, span: Window) {
        let Whole {
            report,
            hurried,
            policy,
            cameras,
        } = whole;
        let frames = report.frames;
        self.policy = PolicyReport {
            faults: 0,
            ..policy.clone()
        };
        let mut classes = report.classes;
        most_frequent(&mut classes, MAX_CLASSES);
        let summary = Summary {
            device: self.identity.device.clone(),
            boot: self.identity.boot,
            sequence: Sequence(0),
            window: span,
            generation: self.told,
            frames: report.frames,
            dropped: report.dropped,
            hurried,
            exits: report.exits,
            cost: report.cost,
            audits: report.audits,
            learner: report.learner,
            guard: Some(report.guard),
            control: Some(report.control),
            drift: Some(report.drift),
            classes,
            policy,
            outbox: self.counters.borrow().waiting,
            temperature: Some(self.board.temperature()).filter(|celsius| celsius.is_finite()),
            watts: Some(self.board.watts()).filter(|watts| watts.is_finite()),
            cameras,
            engines: self.engines.in_short(),
        };
        if let Some(sequence) = self.append(Kind::Summary, |sequence| Summary { sequence, ..summary }) {
            debug!(sequence, "summary");
            self.summaries.insert(sequence, ());
            self.counters.send_modify(|counters| counters.summaries += 1);
        }
        if let Some(digest) = self
            .model_digest()
            .filter(|_| self.on_trial && frames > 0 && self.staged.is_none())
        {
            self.on_trial = false;
            self.models.passed(digest);
        }
    }

    fn save_heads(&self, camera: usize, heads: &[u8]) {
        let slot = slot(&self.cameras[camera].name, self.model_digest());
        if let Err(error) = self.store.save_checkpoint(&slot, heads) {
            error!(
                camera = slot,
                error = &error as &dyn std::error::Error,
                "the heads were not saved"
            );
        }
    }

    /// Tells what has changed in who runs the stages.
    fn watch_engines(&mut self) {
        let news = self.engines.news();
        if news.is_empty() {
            return;
        }
        let engines = self.engines.in_short();
        self.counters.send_modify(|counters| counters.engines = engines);
        for (stage, state) in news {
            let failed = state.progress == Progress::Failed;
            if failed {
                warn!(stage, %state, "a stage is not offloaded");
            } else {
                info!(stage, %state, "engine");
            }
            let kind = match state.progress {
                Progress::Failed => "stage-not-offloaded",
                Progress::Working => "stage-offloaded",
                Progress::NotWanted | Progress::Waiting | Progress::Building { .. } => continue,
            };
            let facts = [("stage", stage.to_string()), ("engine", state.run_by.to_string())];
            self.event(kind, format!("stage {} runs in {state}", stage + 1), &facts);
        }
    }

    fn take_step(&mut self, camera: usize, step: Step, policy: &PolicyReport, frame: u64) {
        let camera = self.cameras[camera].name.clone();
        let mut facts = vec![("frame", frame.to_string())];
        let mut of = String::new();
        if !camera.is_empty() {
            of = format!(" of camera {camera}");
            facts.push(("camera", camera.clone()));
        }
        match step {
            Step::Swapped { generation, from } => {
                let to = format!("{} {}", policy.name, policy.version);
                info!(camera, from, to, frame, %generation, "policy swapped");
                facts.extend([("from", from.clone()), ("to", to.clone())]);
                self.event(
                    "policy-swapped",
                    format!("{to} decides from frame {frame}{of} on, after {from}"),
                    &facts,
                );
                self.counters.send_modify(|counters| {
                    counters.swaps.push(Swap { from, to, frame });
                    counters.generation = generation.0;
                });
            }
            Step::Other { kind, wrong, message } => {
                if wrong {
                    warn!(camera, frame, message, "policy");
                } else {
                    info!(camera, frame, message, "policy");
                }
                self.event(kind, format!("{message}{of}"), &facts);
            }
        }
    }

    // To the fleet.

    /// Puts a record into the outbox under the next sequence.
    fn append<M: Message + Clone>(&mut self, kind: Kind, record: impl FnOnce(Sequence) -> M) -> Option<u64> {
        let appended = self.store.append(kind.path(), |sequence| {
            encode(&record(Sequence(sequence))).unwrap_or_else(|error| {
                error!(%error, "a record is outside its own bounds; an empty one is sent in its place");
                Vec::new()
            })
        });
        match appended {
            Ok(appended) => {
                if appended.dropped > 0 {
                    warn!(
                        records = appended.dropped,
                        "the outbox is full; its oldest records were dropped"
                    );
                }
                self.count_waiting();
                Some(appended.sequence)
            }
            Err(error) => {
                error!(error = &error as &dyn std::error::Error, "a record was not stored");
                None
            }
        }
    }

    fn event(&mut self, kind: &str, message: String, facts: &[(&str, String)]) {
        let event = Event {
            device: self.identity.device.clone(),
            boot: self.identity.boot,
            sequence: Sequence(0),
            at: unix_ms(),
            kind: kind.into(),
            message: clip(message),
            facts: facts.iter().map(|(k, v)| ((*k).into(), v.clone())).collect(),
        };
        self.append(Kind::Event, |sequence| Event { sequence, ..event });
    }

    fn count_waiting(&self) {
        if let Ok(outbox) = self.store.outbox() {
            self.counters.send_if_modified(|counters| {
                std::mem::replace(&mut counters.waiting, outbox.records) != outbox.records
            });
        }
    }

    /// Sends the oldest records, if none are on their way.
    fn send_next(&mut self, link: &Link) {
        if !self.sending.is_empty() || !matches!(&*link.state().borrow(), State::Connected { .. }) {
            return;
        }
        let records = match self.store.records_after(0, BATCH, BATCH_BYTES) {
            Ok(records) if records.is_empty() => return,
            Ok(records) => records,
            Err(error) => return error!(error = &error as &dyn std::error::Error, "the outbox cannot be read"),
        };
        let link = link.clone();
        let prefix = format!(
            "offramp/{}/{}/{}",
            offramp_proto::PROTOCOL_VERSION,
            self.identity.tenant,
            self.identity.device
        );
        self.sending.spawn(async move {
            let mut publishes = JoinSet::new();
            for record in records {
                let (link, topic) = (link.clone(), format!("{prefix}/{}", record.topic));
                publishes.spawn(async move {
                    let sent = link.publish(Publication::new(topic, record.payload)).await;
                    sent.map(|()| record.sequence)
                        .inspect_err(|error| debug!(%error, "a record stays in the outbox"))
                        .ok()
                });
            }
            publishes.join_all().await.into_iter().flatten().collect()
        });
    }

    fn sent(&mut self, sequences: &[u64]) {
        if let Err(error) = self.store.acknowledge(sequences) {
            return error!(
                error = &error as &dyn std::error::Error,
                "sent records stay in the outbox and will be sent again"
            );
        }
        let summaries = sequences
            .iter()
            .filter(|sequence| self.summaries.remove(sequence).is_some())
            .count();
        self.counters.send_modify(|counters| counters.sent += summaries as u64);
        self.count_waiting();
    }

    /// Publishes something that is true now and needs no outbox: it is told again at the next connect.
    fn tell(&mut self, link: &Link, kind: Kind, message: &impl Message, retain: bool) {
        let payload = match encode(message) {
            Ok(payload) => payload,
            Err(error) => return error!(%error, "not told"),
        };
        let mut publication = Publication::new(self.identity.topic(kind), payload);
        if retain {
            publication = publication.retained();
        }
        let link = link.clone();
        self.telling.spawn(async move {
            if let Err(error) = link.publish(publication).await {
                debug!(%error, "not told; it will be at the next connect");
            }
        });
    }

    fn tell_reported(&mut self, link: &Link) {
        let reported = Reported {
            device: self.identity.device.clone(),
            boot: self.identity.boot,
            at: unix_ms(),
            generation: self.told,
            policy: self.policy.clone(),
            refused: self.refused.clone().map(|(_, why)| clip(why)),
            refused_generation: self.refused.as_ref().and_then(|(generation, _)| *generation),
            trusts: self
                .trust
                .as_ref()
                .map(|trust| trust.keys().to_vec())
                .unwrap_or_default(),
        };
        self.tell(link, Kind::Reported, &reported, true);
    }

    /// Asks the controller for what comes next of what is fetched from it.
    fn ask(&mut self, link: &Link) {
        let fetch = self.pending.as_mut().and_then(|pending| pending.fetch.as_mut());
        let Some(fetch) = fetch.filter(|fetch| !fetch.has_address()) else {
            return;
        };
        let request = fetch.request();
        let Ok(payload) = encode(&request) else { return };
        let publication = Publication::new(self.identity.topic(Kind::Request), payload)
            .answer_to(self.identity.topic(Kind::Chunk))
            .correlated_by(request.digest.0.to_vec());
        let link = link.clone();
        self.telling.spawn(async move {
            if let Err(error) = link.publish(publication).await {
                debug!(%error, "a request was not sent; it will be again");
            }
        });
    }

    // The device's certificate.

    /// Does what a renewal needs now, if anything.
    fn renew(&mut self, link: &Link) {
        let connected = matches!(&*link.state().borrow(), State::Connected { .. });
        let Some(renewal) = self.renewal.as_mut().filter(|_| connected) else {
            return;
        };
        match renewal.todo(i64::try_from(unix_ms() / 1000).unwrap_or(0)) {
            Ok(Some(Todo::Ask(request))) => {
                info!("asking for the next certificate");
                self.tell(link, Kind::Renewal, &request, false);
            }
            Ok(Some(Todo::Prove)) => self.prove(),
            Ok(None) => {}
            Err(error) => self.not_renewed(&error),
        }
    }

    fn take_certificate(&mut self, payload: &[u8]) {
        let Some(renewal) = &mut self.renewal else { return };
        let answer = match decode(payload) {
            Ok(answer) => answer,
            Err(error) => return warn!(%error, "an answer to a renewal is refused and will be asked for again"),
        };
        match renewal.take(answer) {
            Ok(true) => self.prove(),
            Ok(false) => {}
            Err(error) => self.not_renewed(&error),
        }
    }

    fn prove(&mut self) {
        if let Some((renewal, config)) = self.renewal.as_ref().zip(self.config.as_ref()) {
            self.proving.spawn(renewal::prove(renewal.proof(config)));
        }
    }

    /// Whether there is another certificate from now on.
    fn take_proof(&mut self, proof: Result<(), RenewalError>) -> bool {
        let Some(renewal) = &mut self.renewal else { return false };
        match proof.and_then(|()| renewal.proven()) {
            Ok(end) => {
                info!(end, "certificate renewed");
                let facts = [("end", end.clone())];
                self.event(
                    "certificate-renewed",
                    format!("the new certificate holds until {end}"),
                    &facts,
                );
                true
            }
            Err(error) => {
                self.not_renewed(&error);
                false
            }
        }
    }

    fn not_renewed(&mut self, error: &RenewalError) {
        let why = chain(error);
        warn!(why, "the certificate is not renewed");
        self.event("certificate-not-renewed", clip(why), &[]);
    }

    // From the fleet.

    fn take_delivery(&mut self, link: &Link, delivery: Delivery) {
        let topic = Topic::parse(&delivery.message.topic);
        match topic.map(|topic| topic.kind) {
            Ok(Kind::Desired) => self.take_desired(link, delivery),
            Ok(Kind::Chunk) => {
                self.take_chunk(link, &delivery.message.payload);
                delivery.acknowledge();
            }
            Ok(Kind::Certificate) => {
                self.take_certificate(&delivery.message.payload);
                delivery.acknowledge();
            }
            Ok(kind) => {
                debug!(?kind, "not for a device");
                delivery.acknowledge();
            }
            Err(error) => {
                debug!(%error, "ignored");
                delivery.acknowledge();
            }
        }
    }
}

/// Comes back with the certificate that has taken the place of the other; the session has waited at the broker.
async fn reconnect(config: &Config) -> (Link, Inbox) {
    loop {
        match Link::connect(config) {
            Ok(link) => return link,
            // The file was read a moment ago.
            Err(error) => error!(
                error = &error as &dyn std::error::Error,
                "no connection with the new certificate"
            ),
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// Where the store keeps the heads of a camera: of the model of the configuration under its name alone.
fn slot(camera: &str, model: Option<Digest>) -> String {
    model.map_or_else(|| camera.to_owned(), |model| format!("{camera}@{}", model.short()))
}

/// The newest checkpoint that fits the model; those that do not are discarded.
fn restore_heads(store: &Store, slot: &str, core: &mut Core) -> Result<(), StoreError> {
    for checkpoint in store.checkpoints(slot)? {
        match core.restore(&checkpoint.heads) {
            Ok(()) => {
                info!(camera = slot, checkpoint = checkpoint.number, "heads restored");
                break;
            }
            Err(error) => {
                warn!(camera = slot, checkpoint = checkpoint.number, %error, "heads not restored");
                store.discard_checkpoint(slot, checkpoint.number)?;
            }
        }
    }
    Ok(())
}

fn forget_heads(store: &Store, slot: &str) -> Result<(), StoreError> {
    for checkpoint in store.checkpoints(slot)? {
        info!(
            camera = slot,
            checkpoint = checkpoint.number,
            "heads forgotten, as asked"
        );
        store.discard_checkpoint(slot, checkpoint.number)?;
    }
    Ok(())
}

/// Keeps the most frequent classes, in the order of their indices.
fn most_frequent(classes: &mut Vec<ClassCount>, most: usize) {
    if classes.len() > most {
        classes.sort_by_key(|c| std::cmp::Reverse(c.count));
        classes.truncate(most);
        classes.sort_by_key(|c| c.class);
    }
}

/// What a message has room for.
fn clip(mut text: String) -> String {
    const ROOM: usize = 1024;
    if text.len() > ROOM {
        let end = (0..=ROOM).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
    text
}
