//! The keeper: durable state, and everything that goes to and comes from the fleet.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use offramp_core::Core;
use offramp_engine::{Engine, Progress};
use offramp_link::{Config, Delivery, Inbox, Link, Publication, State, Will};
use offramp_model::Package;
use offramp_proto::{
    ArtifactChunk, Birth, BootId, ClassCount, Death, Desired, DesiredPolicy, DeviceId, Event, Generation, Kind,
    Message, ModelFacts, PolicyReport, PolicySource as Deciding, Reported, Sequence, Summary, TenantId, Topic,
    TraceSample, decode, encode,
};
use offramp_store::{Limits, Opened, Roles, Store};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};
use tracing::{debug, error, info, warn};

use crate::agent::board::Board;
use crate::agent::engines::{Engines, capabilities};
use crate::agent::fetch::{Fetch, Progress as Fetched};
use crate::agent::pool::unix_ms;
use crate::agent::renewal::{self, Renewal, RenewalError, Todo};
use crate::agent::trust::Trust;
use crate::agent::windows::Whole;
use crate::agent::{Options, Order, Report, SetLog, StartError, apply_learner};
use crate::judge::{Chosen, PolicyJudge, PolicySource, Step, Workshop, chain};
use crate::package;

/// Records that are on their way to the broker at a time.
const BATCH: usize = 16;
/// Bytes of them.
const BATCH_BYTES: u64 = 128 * 1024;
/// How long the keeper waits for a chunk before it asks again.
const ASK_AGAIN: Duration = Duration::from_secs(3);
/// How long an agent that ends gives its outbox to empty.
const LAST_WORDS: Duration = Duration::from_secs(5);
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

/// A desired state that is being made real.
struct Pending {
    desired: Desired,
    signed: Vec<u8>,
    delivery: Delivery,
    fetch: Fetch,
}

/// A camera as it is set up: its heads are restored.
pub(crate) struct Kept<'a> {
    pub(crate) name: String,
    pub(crate) core: &'a mut Core,
    pub(crate) orders: Sender<Order>,
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
    started_at: u64,
    trust: Option<Trust>,
    config: Option<Config>,
    renewal: Option<Renewal>,
    link: Option<(Link, Inbox)>,
    store: Arc<Store>,
    workshop: Workshop,
    engines: Engines,
    board: Arc<Board>,
    cameras: Vec<Camera>,
    generation: Generation,
    policy: PolicyReport,
    /// The fleet's policy that decides, unless it has failed.
    in_force: Option<DesiredPolicy>,
    roles: Roles,
    /// What was refused, and why.
    refused: Option<(Option<Generation>, String)>,
    /// The policy of the configuration.
    own: PolicySource,
    pending: Option<Pending>,
    sending: JoinSet<Vec<u64>>,
    telling: JoinSet<()>,
    proving: JoinSet<Result<(), RenewalError>>,
    log: Option<SetLog>,
    summaries: BTreeMap<u64, ()>,
    counters: watch::Sender<Counters>,
}

impl Keeper {
    /// Opens the store and takes up what it holds: heads into the cores, the policy into a judge for each.
    pub(crate) fn open(
        options: Options,
        boot: BootId,
        package: &Package,
        engine: Engine,
        board: Arc<Board>,
        mut cameras: Vec<Kept<'_>>,
    ) -> Result<(Self, Vec<PolicyJudge>), StartError> {
        let (store, opened) = Store::open(&options.state, limits(&options, &cameras))?;
        match &opened {
            Opened::Replaced { reason, kept } => {
                warn!(reason, kept = %kept.display(), "the store was unusable; a new one was made");
            }
            other => debug!(?other, "store"),
        }
        for camera in &mut cameras {
            if options.forget {
                forget_heads(&store, &camera.name)?;
            } else {
                restore_heads(&store, camera)?;
            }
        }

        let workshop = Workshop::new(package)?;
        let mut chosen = workshop.prepare_for(&options.policy, cameras.len())?;
        let trust = options.fleet.as_ref().map(|fleet| Trust::open(&store, &fleet.key));
        let trust = trust.transpose()?;
        let mut generation = Generation(0);
        let mut roles = Roles::default();
        let mut in_force = None;
        if let (Some(trust), Some(stored)) = (&trust, store.desired()?) {
            match trust.verify(&stored.signed) {
                Ok(desired) => {
                    let stored = desired.policy.as_ref().map(|policy| {
                        roles.active = Some(policy.digest);
                        stored_policy(&store, &workshop, policy, cameras.len())
                    });
                    match stored.transpose() {
                        Ok(stored) => {
                            generation = desired.generation;
                            chosen = stored.unwrap_or(chosen);
                            in_force.clone_from(&desired.policy);
                        }
                        // The generation stays 0: the broker's copy of the desired state brings the policy again.
                        Err(why) => warn!(why, "the stored policy cannot decide; it will be fetched again"),
                    }
                    for camera in &mut cameras {
                        apply_learner(camera.core, &options.settings, desired.learner);
                    }
                    if let Some(set) = &options.log {
                        set(desired.log);
                    }
                }
                Err(error) => warn!(%error, "the stored desired state is ignored"),
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
        let cameras = cameras
            .into_iter()
            .map(|Kept { name, orders, .. }| Camera { name, orders });
        let mut model = package::facts(package);
        model.classes.truncate(MAX_CLASSES);
        let engines = Engines::of(engine);
        let counters = Counters {
            generation: generation.0,
            engines: engines.in_short(),
            ..Counters::default()
        };
        let keeper = Self {
            identity,
            model,
            started_at: unix_ms(),
            trust,
            config,
            renewal,
            link: None,
            store: Arc::new(store),
            workshop,
            engines,
            board,
            cameras: cameras.collect(),
            generation,
            policy: judges[0].report(0),
            in_force,
            roles,
            refused: None,
            own: options.policy,
            pending: None,
            sending: JoinSet::new(),
            telling: JoinSet::new(),
            proving: JoinSet::new(),
            log: options.log,
            summaries: BTreeMap::new(),
            counters: watch::Sender::new(counters),
        };
        Ok((keeper, judges))
    }

    pub(crate) fn counters(&self) -> watch::Receiver<Counters> {
        self.counters.subscribe()
    }

    /// Starts the link, if there is a fleet. It connects in the background.
    pub(crate) fn connect(mut self, runtime: &tokio::runtime::Runtime) -> Result<Self, StartError> {
        if let Some(config) = &self.config {
            let _inside = runtime.enter();
            self.link = Some(Link::connect(config)?);
        }
        Ok(self)
    }

    /// Works until the cameras have ended.
    pub(crate) async fn run(mut self, mut from_seats: mpsc::Receiver<Report>) {
        let Some((mut link, mut inbox)) = self.link.take() else {
            while let Some(report) = from_seats.recv().await {
                if matches!(report, Report::Ended) {
                    return;
                }
                self.take_report(None, report);
            }
            return;
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
                    if let Some(pending) = &self.pending && asked.elapsed() >= ASK_AGAIN {
                        asked = Instant::now();
                        let request = pending.fetch.request();
                        self.ask(&link, &request);
                    }
                }
            }
        }
        self.leave(&link).await;
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
                let birth = Birth {
                    device: self.identity.device.clone(),
                    boot: self.identity.boot,
                    started_at: self.started_at,
                    agent: env!("CARGO_PKG_VERSION").into(),
                    model: self.model.clone(),
                    capabilities: capabilities(),
                };
                self.tell(link, Kind::Birth, &birth, true);
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
            Report::Window { whole, span } => {
                let Whole {
                    report,
                    hurried,
                    policy,
                    cameras,
                } = *whole;
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
                    generation: self.generation,
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
            }
            Report::Checkpoint { camera, heads } => {
                let name = &self.cameras[camera].name;
                if let Err(error) = self.store.save_checkpoint(name, &heads) {
                    error!(
                        camera = name,
                        error = &error as &dyn std::error::Error,
                        "the heads were not saved"
                    );
                }
            }
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
            generation: self.generation,
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

    fn ask(&mut self, link: &Link, request: &offramp_proto::ArtifactRequest) {
        let Ok(payload) = encode(request) else { return };
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

    fn take_desired(&mut self, link: &Link, delivery: Delivery) {
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
        if desired.generation < self.generation {
            delivery.acknowledge();
            let (old, new) = (desired.generation, self.generation);
            let why = format!("generation {old} is older than {new}, which is in force");
            return self.refuse(link, Some(old), why);
        }
        info!(generation = %desired.generation, "a new desired state");
        let Some(policy) = &desired.policy else {
            if desired.own_policy {
                let own = self.own.clone();
                self.install(link, &desired, &signed, &own, None);
            } else {
                self.accept(link, &desired, &signed, None);
            }
            return delivery.acknowledge();
        };
        // Other settings, or keys, are no reason to begin a policy anew that decides.
        if self.in_force.as_ref() == Some(policy) && self.policy.source == Deciding::Desired {
            self.accept(link, &desired, &signed, None);
            return delivery.acknowledge();
        }
        let fetch = Fetch::new(policy.digest, policy.size);
        match self.store.artifact(policy.digest) {
            Ok(Some(bytes)) => {
                let source = source(policy, bytes);
                self.install(link, &desired, &signed, &source, Some(&source.bytes));
                delivery.acknowledge();
            }
            Ok(None) => {
                let request = fetch.request();
                // What was pending is superseded: its delivery is dealt with.
                if let Some(old) = self.pending.replace(Pending {
                    desired,
                    signed,
                    delivery,
                    fetch,
                }) {
                    old.delivery.acknowledge();
                }
                self.ask(link, &request);
            }
            Err(error) => error!(error = &error as &dyn std::error::Error, "the store cannot be read"),
        }
    }

    fn take_chunk(&mut self, link: &Link, payload: &[u8]) {
        let chunk = match decode::<ArtifactChunk>(payload) {
            Ok(chunk) => chunk,
            Err(error) => return warn!(%error, "a chunk is refused and will be asked for again"),
        };
        let Some(mut pending) = self.pending.take() else { return };
        match pending.fetch.take(&chunk) {
            Fetched::Ignored => self.pending = Some(pending),
            Fetched::More => {
                let request = pending.fetch.request();
                self.pending = Some(pending);
                self.ask(link, &request);
            }
            Fetched::Complete(bytes) => {
                if let Some(policy) = &pending.desired.policy {
                    let source = source(policy, bytes);
                    self.install(link, &pending.desired, &pending.signed, &source, Some(&source.bytes));
                }
                pending.delivery.acknowledge();
            }
            Fetched::Failed(why) => {
                pending.delivery.acknowledge();
                let generation = pending.desired.generation;
                self.refuse(link, Some(generation), format!("generation {generation}: {why}"));
            }
        }
    }

    /// Compiles and configures a policy; only one that stands goes into the store, where it came from the fleet.
    fn install(
        &mut self,
        link: &Link,
        desired: &Desired,
        signed: &[u8],
        source: &PolicySource,
        component: Option<&[u8]>,
    ) {
        match self.workshop.prepare_for(source, self.cameras.len()) {
            Ok(chosen) => self.accept(link, desired, signed, Some((chosen, component))),
            Err(error) => {
                let (generation, why) = (desired.generation, chain(&error));
                let why = format!("generation {generation}: policy {}: {why}", source.name);
                self.refuse(link, Some(generation), why);
            }
        }
    }

    /// Makes a desired state durable, then orders it. After a crash in between, the next start finds it.
    fn accept(&mut self, link: &Link, desired: &Desired, signed: &[u8], policy: Option<(Vec<Chosen>, Option<&[u8]>)>) {
        let generation = desired.generation;
        if let Some(trust) = &mut self.trust
            && let Err(error) = trust.take(&self.store, &desired.keys)
        {
            let why = format!("generation {generation}: its keys cannot be stored: {}", chain(&error));
            return self.refuse(link, Some(generation), why);
        }
        let stored = || {
            if let Some((chosen, component)) = &policy {
                let digest = chosen[0].named.digest;
                if let Some(bytes) = component {
                    self.store.put_artifact(digest, bytes)?;
                }
                self.store.set_desired(generation.0, signed)?;
                let roles = Roles {
                    // The policy of the configuration needs no place in the store.
                    active: component.map(|_| digest),
                    last_good: self.roles.active,
                    pending: None,
                };
                self.store.set_roles(&roles)?;
                Ok(roles)
            } else {
                self.store.set_desired(generation.0, signed)?;
                Ok(self.roles)
            }
        };
        match stored() {
            Ok(roles) => self.roles = roles,
            Err(error) => {
                let error: offramp_store::StoreError = error;
                let why = format!("generation {generation} cannot be stored: {}", chain(&error));
                return self.refuse(link, Some(generation), why);
            }
        }
        self.generation = generation;
        self.refused = None;
        if let Some(set) = &self.log {
            set(desired.log);
        }
        for camera in &self.cameras {
            let _ = camera.orders.send(Order::Learner(desired.learner));
        }
        match policy {
            Some((chosen, _)) => {
                self.in_force.clone_from(&desired.policy);
                // Reported once a camera has taken it up.
                for (camera, chosen) in self.cameras.iter().zip(chosen) {
                    let chosen = Box::new(chosen);
                    let _ = camera.orders.send(Order::Swap { generation, chosen });
                }
            }
            None => {
                self.counters.send_modify(|counters| counters.generation = generation.0);
                self.tell_reported(link);
            }
        }
    }

    fn refuse(&mut self, link: &Link, generation: Option<Generation>, why: String) {
        warn!(why, "a desired state is refused");
        let refused = Some((generation, why));
        if self.refused != refused {
            if let Some((_, why)) = &refused {
                self.event("desired-refused", why.clone(), &[]);
            }
            self.refused = refused;
        }
        self.tell_reported(link);
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

/// What the store must have room for: the heads of every context, as they are and as they were found good.
fn limits(options: &Options, cameras: &[Kept<'_>]) -> Limits {
    /// A model whose heads take more is not for a device.
    const MOST: usize = 256 << 20;
    let defaults = Limits::default();
    let heads = cameras.iter().map(|camera| camera.core.checkpoint().len()).max();
    let needed = heads
        .unwrap_or(0)
        .saturating_mul(2 * options.settings.contexts)
        .min(MOST);
    Limits {
        checkpoint_bytes: defaults.checkpoint_bytes.max(needed as u64),
        ..defaults
    }
}

/// The newest checkpoint that fits the model; those that do not are discarded.
fn restore_heads(store: &Store, camera: &mut Kept<'_>) -> Result<(), StartError> {
    let name = &camera.name;
    for checkpoint in store.checkpoints(name)? {
        match camera.core.restore(&checkpoint.heads) {
            Ok(()) => {
                info!(camera = name, checkpoint = checkpoint.number, "heads restored");
                break;
            }
            Err(error) => {
                warn!(camera = name, checkpoint = checkpoint.number, %error, "heads not restored");
                store.discard_checkpoint(name, checkpoint.number)?;
            }
        }
    }
    Ok(())
}

fn forget_heads(store: &Store, camera: &str) -> Result<(), StartError> {
    for checkpoint in store.checkpoints(camera)? {
        info!(camera, checkpoint = checkpoint.number, "heads forgotten, as asked");
        store.discard_checkpoint(camera, checkpoint.number)?;
    }
    Ok(())
}

fn stored_policy(
    store: &Store,
    workshop: &Workshop,
    policy: &DesiredPolicy,
    cameras: usize,
) -> Result<Vec<Chosen>, String> {
    let digest = policy.digest;
    let bytes = store.artifact(digest).map_err(|error| chain(&error))?;
    let bytes = bytes.ok_or_else(|| format!("artifact {} is gone", policy.digest.short()))?;
    let source = source(policy, bytes);
    workshop.prepare_for(&source, cameras).map_err(|error| chain(&error))
}

fn source(policy: &DesiredPolicy, bytes: Vec<u8>) -> PolicySource {
    PolicySource {
        name: policy.name.clone(),
        version: policy.version,
        bytes,
        parameters: policy.parameters.clone(),
    }
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
