//! A broker, a controller, and devices that do what they are told.

use std::net::SocketAddr;
use std::time::Duration;

use offramp_broker::{Broker, Persistence};
use offramp_fleet::{Controller, Database, Options, PolicyUpload, Statistics};
use offramp_link::{Config, Inbox, Link, Message, Publication, State};
use offramp_proto::{
    Audits, Birth, BootId, ClassCount, Cost, Death, DeviceId, Digest, Event, ExitUse, Generation, GuardReport, Kind,
    LearnerReport, ModelFacts, PolicyReport, PolicySource, Reported, Sequence, Summary, TenantId, Topic, Window,
    encode,
};
use tempfile::TempDir;

/// Longer than anything takes; only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for what must come.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

pub(crate) fn tenant() -> TenantId {
    TenantId::new("greenhouse").unwrap()
}

pub(crate) async fn broker() -> Broker {
    Broker::start(SocketAddr::from(([127, 0, 0, 1], 0)), Persistence::Memory)
        .await
        .unwrap()
}

/// A broker and a controller that is connected to it.
pub(crate) struct World {
    pub(crate) broker: Broker,
    pub(crate) controller: Controller,
    pub(crate) folder: TempDir,
}

impl World {
    pub(crate) async fn new() -> Self {
        let (broker, folder) = (broker().await, tempfile::tempdir().unwrap());
        let controller = start(&broker, &folder).await;
        Self {
            broker,
            controller,
            folder,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.controller.address()
    }

    /// Waits until what the controller has done is enough.
    pub(crate) async fn until(&self, what: &str, enough: impl FnMut(&Statistics) -> bool) -> Statistics {
        let mut statistics = self.controller.subscribe();
        *soon(what, statistics.wait_for(enough)).await.unwrap()
    }

    /// A device that is connected and born, and known to the controller.
    pub(crate) async fn device(&self, name: &str) -> Device {
        let received = self.controller.statistics().received;
        let device = Device::connect(&self.broker, name).await;
        device.say(Kind::Birth, encode(&device.birth()).unwrap()).await;
        self.until("the birth", |s| s.received > received).await;
        device
    }
}

pub(crate) async fn start(broker: &Broker, folder: &TempDir) -> Controller {
    let options = Options {
        database: Database::File(folder.path().join("fleet.db")),
        ..Options::temporary(url(broker), tenant())
    };
    let controller = Controller::start(options).await.unwrap();
    let connected = |state: &State| matches!(state, State::Connected { .. });
    soon("the broker", controller.link().wait_for(connected)).await.unwrap();
    controller
}

pub(crate) fn url(broker: &Broker) -> offramp_link::BrokerUrl {
    format!("mqtt://{}", broker.address()).parse().unwrap()
}

/// A device that speaks the protocol and nothing more.
pub(crate) struct Device {
    pub(crate) id: DeviceId,
    pub(crate) boot: BootId,
    pub(crate) link: Link,
    pub(crate) inbox: Inbox,
}

impl Device {
    pub(crate) async fn connect(broker: &Broker, name: &str) -> Self {
        let id = DeviceId::new(name).unwrap();
        let mut config = Config::new(url(broker), name);
        config.subscriptions = vec![Topic::downlink_filter(&tenant(), &id)];
        let (link, inbox) = Link::connect(&config).unwrap();
        let connected = |state: &State| matches!(state, State::Connected { .. });
        soon("the broker", link.state().wait_for(connected)).await.unwrap();
        Self {
            id,
            boot: BootId([1; 16]),
            link,
            inbox,
        }
    }

    pub(crate) fn topic(&self, kind: Kind) -> String {
        Topic::new(&tenant(), &self.id, kind).to_string()
    }

    pub(crate) async fn say(&self, kind: Kind, bytes: Vec<u8>) {
        let publication = Publication::new(self.topic(kind), bytes);
        let publication = if matches!(kind, Kind::Birth | Kind::Reported) {
            publication.retained()
        } else {
            publication
        };
        soon("the broker", self.link.publish(publication)).await.unwrap();
    }

    /// The next message, acknowledged.
    pub(crate) async fn hear(&mut self) -> Message {
        let delivery = soon("a message", self.inbox.recv()).await.unwrap();
        let message = delivery.message.clone();
        delivery.acknowledge();
        message
    }

    pub(crate) fn birth(&self) -> Birth {
        Birth {
            device: self.id.clone(),
            boot: self.boot,
            started_at: 1_700_000_000_000 + u64::from(self.boot.0[0]),
            agent: "0.1.0".into(),
            model: ModelFacts {
                name: "revcol".into(),
                version: 3,
                digest: Digest([5; 32]),
                classes: vec!["boot".into(), "coat".into()],
                stage_macs: vec![10, 20, 30],
            },
            capabilities: vec!["tract".into()],
            told: 0,
        }
    }

    pub(crate) fn death(&self) -> Death {
        Death {
            device: self.id.clone(),
            boot: self.boot,
        }
    }

    pub(crate) fn summary(&self, sequence: u64) -> Summary {
        let start = 1_700_000_000_000 + sequence * 1000;
        Summary {
            device: self.id.clone(),
            boot: self.boot,
            sequence: Sequence(sequence),
            window: Window {
                start,
                end: start + 1000,
            },
            generation: Generation(0),
            frames: 100,
            dropped: 0,
            exits: vec![ExitUse { taken: 70 }, ExitUse { taken: 20 }, ExitUse { taken: 10 }],
            cost: Cost {
                macs: 4000,
                audit_macs: 100,
                full_macs: 10_000,
                stage_us: 900,
                overhead_us: 10,
            },
            audits: Audits {
                run: 10,
                disagreements: 1,
                bound: 0.25,
            },
            learner: LearnerReport::default(),
            guard: None,
            classes: vec![ClassCount { class: 0, count: 90 }],
            policy: self.policy("threshold", 1),
            outbox: 0,
            temperature: Some(41.5),
            control: None,
            drift: None,
            watts: None,
            hurried: 0,
            cameras: Vec::new(),
            engines: Vec::new(),
        }
    }

    /// A summary that tells of the guard.
    pub(crate) fn guarded(&self, sequence: u64, paused: bool) -> Summary {
        let guard = GuardReport {
            threshold: 0.75,
            temperatures: vec![1.0, 1.5],
            loss: -0.125,
            loss_bound: 0.25,
            audits: 256,
            promotions: 1,
            paused,
            contexts: 1,
            bytes: 2_600_000,
        };
        Summary {
            guard: Some(guard),
            ..self.summary(sequence)
        }
    }

    pub(crate) fn event(&self, sequence: u64) -> Event {
        Event {
            device: self.id.clone(),
            boot: self.boot,
            sequence: Sequence(sequence),
            at: 1_700_000_000_000,
            kind: "policy-swapped".into(),
            message: "Swapped to entropy 2.".into(),
            facts: [("to".to_owned(), "entropy 2".to_owned())].into(),
        }
    }

    pub(crate) fn reported(&self, generation: u64, policy: PolicyReport, refused: Option<&str>) -> Reported {
        Reported {
            device: self.id.clone(),
            boot: self.boot,
            at: 1,
            generation: Generation(generation),
            policy,
            refused: refused.map(Into::into),
            refused_generation: None,
            trusts: Vec::new(),
        }
    }

    pub(crate) fn policy(&self, name: &str, version: u64) -> PolicyReport {
        PolicyReport {
            name: name.into(),
            version,
            digest: None,
            source: PolicySource::Desired,
            faults: 0,
        }
    }
}

/// Bytes that begin as a component does, over two chunks long.
pub(crate) fn component() -> Vec<u8> {
    let mut bytes = b"\0asm\x0d\0\x01\0".to_vec();
    bytes.extend((0..2 * offramp_proto::CHUNK + 500).map(|i| (i % 251) as u8));
    bytes
}

/// A model package, as one file.
pub(crate) fn model() -> Vec<u8> {
    let zoo = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/zoo/revcol-fashion");
    offramp_model::Package::pack(&zoo).unwrap()
}

pub(crate) fn upload(version: u64) -> PolicyUpload {
    PolicyUpload {
        name: "entropy".into(),
        version,
        bytes: component(),
        parameters: [("limit".to_owned(), offramp_proto::Parameter::Number(0.5))].into(),
    }
}
