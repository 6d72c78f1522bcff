use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use offramp_link::{Config, ConfigError, Inbox, Link, Publication, State, Will};
use offramp_proto::{
    Arm, ArtifactChunk, ArtifactRequest, Audits, Birth, BootId, ClassCount, ControlReport, Cost, Death, Desired,
    DesiredPolicy, DeviceId, Digest, ExitUse, Generation, GuardReport, Kind, LearnerReport, Message, ModelFacts,
    Parameter, PolicyReport, PolicySource, PublicKey, Reported, Sequence, Summary, TenantId, Topic, Window, decode,
    encode,
};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::{Phase, SwarmOptions};
use crate::store::now;

/// Frames of each summary.
pub const FRAMES: u64 = 100;
/// A part of an artifact that has not come by then is asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Multiply-adds of the whole made-up network.
const FULL: u64 = 50_000_000;

/// What a policy does to a simulated device, by its parameter `simulate`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Harm {
    /// Nothing.
    #[default]
    None,
    /// The device refuses it.
    Refuse,
    /// The device never answers.
    Silent,
    /// It fails until the device gives it up.
    GivesUp,
    /// It fails at every fifth frame.
    Faults,
    /// Frames go one exit further.
    Cost,
    /// Frames leave at other exits, at the same cost.
    Exits,
    /// One frame in five differs from the last exit.
    Disagreement,
    /// Accuracy is given up.
    Loss,
    /// The learner rolls back in every window.
    Rollbacks,
    /// The agent restarts with every third summary.
    Restarts,
}

impl Harm {
    /// All of them, by name.
    pub const ALL: [(Self, &'static str); 11] = [
        (Self::None, "none"),
        (Self::Refuse, "refuse"),
        (Self::Silent, "silent"),
        (Self::GivesUp, "gives-up"),
        (Self::Faults, "faults"),
        (Self::Cost, "cost"),
        (Self::Exits, "exits"),
        (Self::Disagreement, "disagreement"),
        (Self::Loss, "loss"),
        (Self::Rollbacks, "rollbacks"),
        (Self::Restarts, "restarts"),
    ];

    fn of(policy: &DesiredPolicy) -> Self {
        let Some(Parameter::Text(text)) = policy.parameters.get("simulate") else {
            return Self::None;
        };
        let found = Self::ALL.iter().find(|(_, name)| name == text);
        found.map_or(Self::None, |(harm, _)| *harm)
    }
}

/// A desired state whose policy is on its way.
struct Pending {
    generation: Generation,
    policy: DesiredPolicy,
    bytes: Vec<u8>,
}

pub(super) struct Device {
    id: DeviceId,
    tenant: TenantId,
    /// What it trusts.
    keys: Vec<PublicKey>,
    boot: BootId,
    boots: u32,
    link: Link,
    inbox: Inbox,
    interval: Duration,
    /// Where in the interval it sends.
    phase: Duration,
    sequence: u64,
    sent: u64,
    generation: Generation,
    policy: PolicyReport,
    refused: Option<(Generation, String)>,
    harm: Harm,
    pending: Option<Pending>,
}

impl Device {
    /// Connects, and is born.
    pub(super) async fn connect(options: &SwarmOptions, number: usize) -> Result<Self, ConfigError> {
        let id = DeviceId::new(format!("sim-{number:05}")).expect("a valid name");
        let digest = Digest::of(format!("{} {}", id, now()).as_bytes());
        let boot = BootId(digest.0[..16].try_into().expect("a digest is longer"));
        let topic = |kind| Topic::new(&options.tenant, &id, kind).to_string();
        let mut config = Config::new(options.broker.clone(), format!("offramp-{}-{id}", options.tenant));
        config.subscriptions = vec![Topic::downlink_filter(&options.tenant, &id)];
        config.window = 4;
        config.keep_alive = Duration::from_secs(60);
        config.connect_timeout = Duration::from_secs(60);
        config.publish_timeout = Duration::from_secs(60);
        let death = Death {
            device: id.clone(),
            boot,
        };
        config.will = Some(Will {
            topic: topic(Kind::Death),
            payload: encode(&death).expect("a death has no bounds to break").into(),
            retain: false,
        });
        let (link, inbox) = Link::connect(&config)?;
        let mut state = link.state();
        // An error means that the link is closed, which whatever follows will say.
        let _ = state.wait_for(|state| matches!(state, State::Connected { .. })).await;
        let mut device = Self {
            tenant: options.tenant.clone(),
            keys: vec![options.key.clone()],
            boot,
            boots: 0,
            link,
            inbox,
            interval: options.interval,
            phase: options.interval * number as u32 / options.devices.max(1) as u32,
            sequence: 0,
            sent: 0,
            generation: Generation(0),
            policy: PolicyReport {
                name: "threshold".into(),
                version: 1,
                digest: None,
                source: PolicySource::Desired,
                faults: 0,
            },
            refused: None,
            harm: Harm::None,
            pending: None,
            id,
        };
        device.be_born().await;
        Ok(device)
    }

    /// Runs until the swarm ends. Gives its name and the summaries that were confirmed.
    pub(super) async fn run(mut self, mut phases: watch::Receiver<Phase>, total: Arc<AtomicU64>) -> (DeviceId, u64) {
        let mut ticks = interval_at(Instant::now() + self.phase, self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut again = tokio::time::interval(ASK_AGAIN);
        loop {
            let phase = *phases.borrow_and_update();
            if phase == Phase::Ending {
                break;
            }
            tokio::select! {
                biased;
                changed = phases.changed() => if changed.is_err() {
                    break;
                },
                delivery = self.inbox.recv() => {
                    let Some(delivery) = delivery else { break };
                    let message = delivery.message.clone();
                    match Topic::parse(&message.topic).map(|topic| topic.kind) {
                        Ok(Kind::Desired) => self.take_desired(&message.payload).await,
                        Ok(Kind::Chunk) => self.take_chunk(&message.payload).await,
                        _ => {}
                    }
                    delivery.acknowledge();
                }
                _ = again.tick(), if self.pending.is_some() => self.ask().await,
                _ = ticks.tick(), if phase == Phase::Sending => {
                    if self.summarize().await {
                        self.sent += 1;
                        total.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        }
        self.link.shutdown().await;
        (self.id, self.sent)
    }

    /// Publishes until the broker has confirmed it, as an outbox does. False when the link is closed.
    async fn tell<M: Message>(&self, kind: Kind, message: &M, retained: bool) -> bool {
        let payload = encode(message).expect("what a simulated device says is within its bounds");
        let topic = Topic::new(&self.tenant, &self.id, kind).to_string();
        loop {
            let publication = Publication::new(topic.clone(), payload.clone());
            let publication = if retained { publication.retained() } else { publication };
            match self.link.publish(publication).await {
                Ok(()) => return true,
                Err(_) if *self.link.state().borrow() == State::Closed => return false,
                Err(error) => tracing::debug!(device = %self.id, %error, "told again"),
            }
        }
    }

    async fn be_born(&mut self) {
        let birth = Birth {
            device: self.id.clone(),
            boot: self.boot,
            started_at: now(),
            agent: "simulated".into(),
            model: ModelFacts {
                name: "revcol-simulated".into(),
                version: 1,
                digest: Digest::of(b"simulated"),
                classes: (0..10).map(|class| format!("class {class}")).collect(),
                stage_macs: vec![FULL / 5, FULL / 5, 3 * FULL / 10, 3 * FULL / 10],
            },
            capabilities: vec!["simulated".into()],
            told: 0,
        };
        self.tell(Kind::Birth, &birth, true).await;
        self.report().await;
    }

    async fn report(&mut self) {
        let reported = Reported {
            device: self.id.clone(),
            boot: self.boot,
            at: now(),
            generation: self.generation,
            policy: self.policy.clone(),
            refused: self.refused.as_ref().map(|(_, why)| why.clone()),
            refused_generation: self.refused.as_ref().map(|(generation, _)| *generation),
            trusts: self.keys.clone(),
        };
        self.tell(Kind::Reported, &reported, true).await;
    }

    async fn take_desired(&mut self, signed: &[u8]) {
        let verified = self.keys.iter().find_map(|key| key.verify::<Desired>(signed).ok());
        let Some(desired) = verified else {
            return tracing::warn!(device = %self.id, "a desired state is not signed by the controller");
        };
        if desired.device != self.id || desired.generation <= self.generation {
            return;
        }
        self.pending = None;
        if !desired.keys.is_empty() {
            self.keys.clone_from(&desired.keys);
        }
        match desired.policy {
            None => {
                self.generation = desired.generation;
                self.harm = Harm::None;
                if desired.own_policy {
                    (self.policy.name, self.policy.version, self.policy.digest) = ("threshold".into(), 1, None);
                    self.policy.source = PolicySource::Desired;
                }
                self.refused = None;
                self.report().await;
            }
            Some(policy) => {
                if Harm::of(&policy) == Harm::Silent {
                    return;
                }
                self.pending = Some(Pending {
                    generation: desired.generation,
                    policy,
                    bytes: Vec::new(),
                });
                self.ask().await;
            }
        }
    }

    /// Asks for the next part of the policy.
    async fn ask(&self) {
        let Some(pending) = &self.pending else { return };
        let request = ArtifactRequest {
            digest: pending.policy.digest,
            offset: pending.bytes.len() as u64,
            chunks: 1,
        };
        let payload = encode(&request).expect("an offset of whole chunks");
        let topic = |kind| Topic::new(&self.tenant, &self.id, kind).to_string();
        let publication = Publication::new(topic(Kind::Request), payload)
            .answer_to(topic(Kind::Chunk))
            .correlated_by(request.digest.0.to_vec());
        // What is lost is asked for again.
        let _ = self.link.publish(publication).await;
    }

    async fn take_chunk(&mut self, payload: &[u8]) {
        let (Some(pending), Ok(chunk)) = (&mut self.pending, decode::<ArtifactChunk>(payload)) else {
            return;
        };
        if chunk.digest != pending.policy.digest || chunk.offset != pending.bytes.len() as u64 {
            return;
        }
        pending.bytes.extend_from_slice(&chunk.data);
        if (pending.bytes.len() as u64) < pending.policy.size && !chunk.data.is_empty() {
            return self.ask().await;
        }
        let Some(Pending {
            generation,
            policy,
            bytes,
        }) = self.pending.take()
        else {
            return;
        };
        let harm = Harm::of(&policy);
        if harm == Harm::Refuse || Digest::of(&bytes) != policy.digest {
            self.refused = Some((generation, "the policy cannot be compiled".into()));
        } else {
            self.generation = generation;
            self.refused = None;
            self.harm = harm;
            self.policy.source = PolicySource::Desired;
            (self.policy.name, self.policy.version) = (policy.name, policy.version);
            self.policy.digest = Some(policy.digest);
            if harm == Harm::GivesUp {
                self.policy.source = PolicySource::BuiltIn;
            }
        }
        self.report().await;
    }

    /// Sends a summary. False when it was not confirmed.
    async fn summarize(&mut self) -> bool {
        self.sequence += 1;
        if self.harm == Harm::Restarts && self.sequence.is_multiple_of(3) {
            self.boots += 1;
            let next = Digest::of(&[&self.boot.0[..], &self.boots.to_be_bytes()].concat());
            self.boot = BootId(next.0[..16].try_into().expect("a digest is longer"));
            self.be_born().await;
        }
        let summary = self.summary();
        self.tell(Kind::Summary, &summary, false).await
    }

    fn summary(&self) -> Summary {
        // Of 100 frames.
        let exits = match self.harm {
            Harm::Cost => [20, 20, 20, 40],
            Harm::Exits => [25, 60, 10, 5],
            _ => [60, 15, 10, 15],
        };
        let shares = [20, 40, 70, 100];
        let macs = exits
            .iter()
            .zip(shares)
            .map(|(taken, share)| taken * share * FULL / 100);
        let (macs, end) = (macs.sum(), now());
        let is = |harm: Harm, yes: u64| if self.harm == harm { yes } else { 0 };
        Summary {
            device: self.id.clone(),
            boot: self.boot,
            sequence: Sequence(self.sequence),
            window: Window {
                start: end.saturating_sub(self.interval.as_millis() as u64),
                end,
            },
            generation: self.generation,
            frames: FRAMES,
            dropped: 0,
            hurried: 0,
            exits: exits.map(|taken| ExitUse { taken }).to_vec(),
            cost: Cost {
                macs,
                audit_macs: 0,
                full_macs: FRAMES * FULL,
                stage_us: FRAMES * 900,
                overhead_us: FRAMES * 20,
            },
            audits: Audits {
                run: 10,
                disagreements: is(Harm::Disagreement, 3),
                bound: 0.02,
            },
            learner: LearnerReport {
                updates: 40,
                gated: 10,
                rollbacks: is(Harm::Rollbacks, 1),
                distance: vec![0.02, 0.01, 0.01, 0.0],
            },
            guard: Some(GuardReport {
                threshold: 0.8,
                temperatures: vec![1.0; 3],
                loss: if self.harm == Harm::Loss { 0.06 } else { 0.002 },
                loss_bound: 0.08,
                audits: 300,
                promotions: 0,
                paused: false,
                contexts: 1,
                bytes: 1_200_000,
            }),
            control: Some(ControlReport {
                audits: 256,
                learned: Arm { cost: 0.4, loss: 0.009 },
                frozen: Arm { cost: 0.5, loss: 0.01 },
                error: 0.01,
            }),
            drift: Some(0.02),
            classes: (0..4).map(|class| ClassCount { class, count: 25 }).collect(),
            policy: PolicyReport {
                faults: is(Harm::Faults, 20),
                ..self.policy.clone()
            },
            outbox: 1,
            temperature: Some(48.0),
            watts: Some(7.5),
            cameras: Vec::new(),
            engines: vec!["fused".into(); 4],
        }
    }
}
