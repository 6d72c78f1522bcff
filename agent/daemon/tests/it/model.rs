//! Models of the fleet: fetched, checked, taken up between two frames, and given back.

use std::path::Path;
use std::time::Duration;

use offramp_broker::{Broker, Persistence};
use offramp_fleet::{AddedModel, Answer, Controller, ModelUpload, Target};
use offramp_link::{Config, Inbox, Link, Publication};
use offramp_model::{Digest, MANIFEST, Package};
use offramp_proto::{
    ArtifactChunk, ArtifactRequest, CHUNK, Desired, DesiredModel, DeviceId, Generation, Kind, Reported, SigningKey,
    TenantId, Topic, decode, encode,
};
use offramp_test_support::{PATIENCE, temp_dir};
use tokio::time::timeout;

use crate::device::{Device, Running, said};
use crate::enrol::post;
use crate::kill::{controller, upload};

/// The embedded package with something changed in its manifest, as one file.
fn package(changes: &[(&str, &str)]) -> Vec<u8> {
    let zoo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/zoo/revcol-fashion");
    let folder = temp_dir();
    for entry in std::fs::read_dir(zoo).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let manifest = folder.path().join(MANIFEST);
    let mut text = std::fs::read_to_string(&manifest).unwrap();
    for (old, new) in changes {
        assert!(text.contains(old), "{old}");
        text = text.replacen(old, new, 1);
    }
    std::fs::write(manifest, text).unwrap();
    Package::pack(folder.path()).unwrap()
}

/// The same network under another version, whose classes are called differently.
fn second() -> Vec<u8> {
    package(&[
        ("version = 1", "version = 2"),
        ("\"t-shirt\", \"trouser\"", "\"T-SHIRT\", \"TROUSER\""),
        ("\"pullover\", \"dress\", \"coat\"", "\"PULLOVER\", \"DRESS\", \"COAT\""),
        (
            "\"sandal\", \"shirt\", \"sneaker\"",
            "\"SANDAL\", \"SHIRT\", \"SNEAKER\"",
        ),
        ("\"bag\", \"ankle-boot\"", "\"BAG\", \"ANKLE-BOOT\""),
    ])
}

async fn add(controller: &Controller, bytes: Vec<u8>, url: Option<&str>) -> AddedModel {
    let upload = ModelUpload {
        bytes: bytes.into(),
        url: url.map(Into::into),
    };
    controller.add_model(upload).await.unwrap()
}

/// Shows frames until the device has answered. Each gets its prediction. Gives the answer, and the labels in their order.
async fn answered(
    agent: &mut Running,
    device: &Device,
    controller: &Controller,
    id: &DeviceId,
    generation: Generation,
) -> (Answer, Vec<String>) {
    let mut labels = Vec::new();
    let look = async {
        for frame in 0.. {
            let predictions = agent.show([device.frame(frame)]);
            labels.push(predictions[0]["label"].as_str().unwrap().to_owned());
            let pause = Duration::from_millis(10);
            if let Ok(answer) = timeout(pause, controller.reported(id, generation)).await {
                return answer.unwrap();
            }
        }
        unreachable!("frames have no end")
    };
    let answer = timeout(PATIENCE, look).await.expect("the device answers");
    (answer, labels)
}

fn is_second(label: &str) -> bool {
    label.chars().any(char::is_uppercase)
}

#[tokio::test(flavor = "multi_thread")]
async fn another_model_takes_over_between_two_frames_survives_a_kill_and_goes_again() {
    let folder = temp_dir();
    let broker = Broker::start(([127, 0, 0, 1], 0).into(), Persistence::Memory)
        .await
        .unwrap();
    let controller = controller(&broker).await;
    let id = DeviceId::new("changing").unwrap();
    let url = format!("mqtt://{}", broker.address());
    let device = Device::new(folder.path(), "changing", Some((&url, &controller.public_key())));
    device.configure(&format!("[trace]\nfolder = {:?}\n", folder.path().join("traces")));
    let mut agent = device.start();
    let own = agent.show((0..40).map(|i| device.frame(i)));
    timeout(PATIENCE, controller.summaries_ingested(1)).await.unwrap();
    // A policy of the fleet that stays.
    let pushed = controller.push_policy(Target::All, upload(7, 0.95)).await.unwrap();
    answered(&mut agent, &device, &controller, &id, pushed.generations[&id]).await;

    // What comes not from its address comes from the controller.
    let added = add(&controller, second(), Some("https://127.0.0.1:9/model.tar")).await;
    assert_eq!((added.name.as_str(), added.version), ("revcol-fashion", 2));
    let wanted = Some((added.name, added.version));
    let pushed = controller.push_model(None, wanted).await.unwrap();
    let (answer, labels) = answered(&mut agent, &device, &controller, &id, pushed[&id]).await;
    assert_eq!((answer.refused, answer.policy), (None, ("threshold".into(), 7)));
    // It may have changed after the last of them.
    let changed = labels.iter().position(|label| is_second(label)).unwrap_or(labels.len());
    assert!(labels[changed..].iter().all(|label| is_second(label)), "{labels:?}");
    // The network is the same: so is what it sees.
    let again = agent.show((0..40).map(|i| device.frame(i)));
    for (own, again) in own.iter().zip(&again) {
        assert_eq!(own["class"], again["class"]);
        assert!(is_second(again["label"].as_str().unwrap()));
    }
    // It has proven itself once it has given a window.
    let seen = controller.statistics().ingested;
    timeout(PATIENCE, controller.summaries_ingested(seen + 2))
        .await
        .unwrap();
    let log = agent.kill();
    assert_eq!(said(&log, "another model runs").len(), 1, "{log:#?}");
    assert_eq!(said(&log, "the model has proven itself").len(), 1, "{log:#?}");
    assert_eq!(said(&log, "address gives it not").len(), 1, "{log:#?}");

    // It is there from the first frame on, and its heads are.
    let mut agent = device.start();
    let predictions = agent.show((0..10).map(|i| device.frame(i)));
    let label = predictions[0]["label"].as_str().unwrap();
    assert!(is_second(label), "{label}");
    let pushed = controller.push_model(None, None).await.unwrap();
    let (answer, labels) = answered(&mut agent, &device, &controller, &id, pushed[&id]).await;
    assert_eq!((answer.refused, answer.policy.1), (None, 7));
    assert!(labels.iter().is_sorted_by_key(|label| !is_second(label)), "{labels:?}");
    let predictions = agent.show((0..10).map(|i| device.frame(i)));
    assert!(!is_second(predictions[0]["label"].as_str().unwrap()));
    let log = agent.end();
    let restored: Vec<&str> = said(&log, "heads restored")
        .iter()
        .filter_map(|fields| fields["camera"].as_str())
        .collect();
    let [second, own] = restored[..] else {
        panic!("{log:#?}")
    };
    assert!(second.starts_with('@') && own.is_empty(), "{restored:?}");

    let outbox = device.store().outbox().unwrap();
    assert_eq!((outbox.records, outbox.dropped), (0, 0), "everything was sent");
    let statistics = controller.statistics();
    assert_eq!(
        statistics.ingested + statistics.events,
        outbox.last_sequence,
        "none lost, none counted twice"
    );
    // Traces of both models lie side by side, each whole.
    let mut models = Vec::new();
    for entry in std::fs::read_dir(folder.path().join("traces")).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        // Whoever was killed had not written all.
        if bytes.is_empty() {
            continue;
        }
        models.push(offramp_trace::Reader::new(&bytes[..]).unwrap().header().model_version);
    }
    models.sort_unstable();
    models.dedup();
    assert_eq!(models, [1, 2]);
    controller.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_cannot_run_is_refused_with_its_reason_and_frames_go_on() {
    let folder = temp_dir();
    let broker = Broker::start(([127, 0, 0, 1], 0).into(), Persistence::Memory)
        .await
        .unwrap();
    let controller = controller(&broker).await;
    let id = DeviceId::new("picky").unwrap();
    let url = format!("mqtt://{}", broker.address());
    let device = Device::new(folder.path(), "picky", Some((&url, &controller.public_key())));
    let mut agent = device.start();
    agent.show([device.frame(0)]);
    timeout(PATIENCE, controller.summaries_ingested(1)).await.unwrap();
    let cases = [
        (
            ("version = 1", "version = 2"),
            ("height = 28", "height = 32"),
            "frames of 28x28x1 where model revcol-fashion reads 32x28x1",
        ),
        (
            ("version = 1", "version = 3"),
            ("mean = [0.286]", "mean = [0.9]"),
            "do not compute here what they should",
        ),
    ];
    for (version, change, why) in cases {
        let added = add(&controller, package(&[version, change]), None).await;
        let pushed = controller
            .push_model(None, Some((added.name, added.version)))
            .await
            .unwrap();
        let (answer, labels) = answered(&mut agent, &device, &controller, &id, pushed[&id]).await;
        let refused = answer.refused.unwrap_or_default();
        assert!(refused.contains(why), "{refused}");
        assert!(labels.iter().all(|label| !is_second(label)));
    }
    let log = agent.end();
    assert!(said(&log, "another model runs").is_empty(), "{log:#?}");
    controller.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_three_packages_do_not_fit_the_one_to_go_back_to_goes() {
    let folder = temp_dir();
    let broker = Broker::start(([127, 0, 0, 1], 0).into(), Persistence::Memory)
        .await
        .unwrap();
    let controller = controller(&broker).await;
    let id = DeviceId::new("narrow").unwrap();
    let url = format!("mqtt://{}", broker.address());
    let device = Device::new(folder.path(), "narrow", Some((&url, &controller.public_key())));
    device.replace("[state]\n", "[state]\npackages_mb = 4\n");
    let mut agent = device.start();
    agent.show([device.frame(0)]);
    timeout(PATIENCE, controller.summaries_ingested(1)).await.unwrap();
    let kept = || {
        std::fs::read_dir(folder.path().join("offramp-state.redb.packages"))
            .unwrap()
            .count()
    };
    for (version, packages) in [(2, 1), (3, 2), (4, 2)] {
        let bytes = package(&[("version = 1", &format!("version = {version}"))]);
        assert!(
            (4 << 20) / 3 < bytes.len() && bytes.len() < (4 << 20) / 2,
            "two fit, three do not"
        );
        let added = add(&controller, bytes, None).await;
        let pushed = controller
            .push_model(None, Some((added.name, added.version)))
            .await
            .unwrap();
        let (answer, _) = answered(&mut agent, &device, &controller, &id, pushed[&id]).await;
        assert_eq!((answer.refused, kept()), (None, packages), "{version}");
    }
    agent.end();
    controller.shutdown().await;
}

/// A controller by hand, which gives out as many chunks as it is told.
struct Operator {
    link: Link,
    inbox: Inbox,
    id: DeviceId,
    bytes: Vec<u8>,
}

impl Operator {
    fn topic(&self, kind: Kind) -> String {
        Topic::new(&TenantId::new("default").unwrap(), &self.id, kind).to_string()
    }

    /// Answers requests until so many chunks are out. Gives the first offset that was asked for.
    async fn give(&mut self, chunks: u64) -> u64 {
        let (mut first, mut given) = (None, 0);
        while given < chunks {
            let delivery = timeout(PATIENCE, self.inbox.recv()).await.unwrap().unwrap();
            let request = decode::<ArtifactRequest>(&delivery.message.payload);
            delivery.acknowledge();
            let Ok(request) = request else { continue };
            first.get_or_insert(request.offset);
            let mut offset = request.offset as usize;
            for _ in 0..request.chunks.min(chunks - given) {
                let data = self.bytes[offset..self.bytes.len().min(offset + CHUNK)].to_vec();
                let chunk = ArtifactChunk {
                    digest: request.digest,
                    offset: offset as u64,
                    total: self.bytes.len() as u64,
                    hash: Digest::of(&data),
                    data,
                };
                offset += CHUNK;
                given += 1;
                let payload = encode(&chunk).unwrap();
                self.link
                    .publish(Publication::new(self.topic(Kind::Chunk), payload))
                    .await
                    .unwrap();
            }
        }
        first.unwrap()
    }

    /// Waits until this chunk is asked for: all before it have arrived.
    async fn asked_for(&mut self, chunk: u64) {
        let look = async {
            loop {
                let delivery = self.inbox.recv().await.unwrap();
                let request = decode::<ArtifactRequest>(&delivery.message.payload);
                delivery.acknowledge();
                if request.is_ok_and(|request| request.offset == chunk * CHUNK as u64) {
                    return;
                }
            }
        };
        timeout(PATIENCE, look).await.expect("it asks again");
    }

    async fn reported(&mut self, fits: impl Fn(&Reported) -> bool) -> Reported {
        let look = async {
            loop {
                let delivery = self.inbox.recv().await.unwrap();
                let reported = decode::<Reported>(&delivery.message.payload);
                delivery.acknowledge();
                if let Some(reported) = reported.ok().filter(&fits) {
                    return reported;
                }
            }
        };
        timeout(PATIENCE, look).await.expect("the device reports it")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_goes_on_where_it_was_after_a_kill_and_after_the_brokers_death() {
    let folder = temp_dir();
    let broker = Broker::start(([127, 0, 0, 1], 0).into(), Persistence::Memory)
        .await
        .unwrap();
    let address = broker.address();
    let url = format!("mqtt://{address}");
    let key = SigningKey::from_seed(&[5; 32]);
    let id = DeviceId::new("patient").unwrap();
    let bytes = second();
    let (chunks, model) = (
        bytes.len().div_ceil(CHUNK) as u64,
        DesiredModel {
            name: "revcol-fashion".into(),
            version: 2,
            digest: Digest::of(&bytes),
            size: bytes.len() as u64,
            url: None,
        },
    );
    let tenant = TenantId::new("default").unwrap();
    let mut config = Config::new(url.parse().unwrap(), "operator");
    config.subscriptions = [Kind::Request, Kind::Reported]
        .map(|kind| Topic::new(&tenant, &id, kind).to_string())
        .into();
    let (link, inbox) = Link::connect(&config).unwrap();
    let mut operator = Operator {
        link,
        inbox,
        id: id.clone(),
        bytes,
    };
    let device = Device::new(folder.path(), "patient", Some((&url, &key.public())));
    let mut agent = device.start();
    agent.show([device.frame(0)]);
    operator.reported(|reported| reported.generation == Generation(0)).await;
    let desired = Desired {
        model: Some(model),
        ..Desired::new(id, Generation(4), 0)
    };
    let signed = key.sign(&desired).unwrap();
    let publication = |operator: &Operator| Publication::new(operator.topic(Kind::Desired), signed.clone()).retained();
    operator.link.publish(publication(&operator)).await.unwrap();
    // A piece of 32 chunks is on the medium, and a bit more has come.
    assert!(chunks > 40);
    assert_eq!(operator.give(34).await, 0);
    operator.asked_for(34).await;
    agent.kill();

    // What may be torn is asked for again, the rest is not.
    let mut agent = device.start();
    agent.show([device.frame(1)]);
    let first = operator.give(6).await;
    assert_eq!(first, 32 * CHUNK as u64);
    operator.asked_for(38).await;
    // The broker dies, and with it what it knew.
    broker.shutdown().await.unwrap();
    let broker = Broker::start(address, Persistence::Memory).await.unwrap();
    let first = operator.give(chunks - 38).await;
    assert_eq!(first, 38 * CHUNK as u64, "nothing is fetched twice");
    let label = async {
        for frame in 2.. {
            let predictions = agent.show([device.frame(frame)]);
            if is_second(predictions[0]["label"].as_str().unwrap()) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, label).await.expect("the model is taken up");
    let reported = operator.reported(|reported| reported.generation == Generation(4)).await;
    assert_eq!(reported.refused, None);
    agent.end();
    operator.link.shutdown().await;
    broker.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_with_which_the_agent_always_ends_is_given_up() {
    let folder = temp_dir();
    let broker = Broker::start(([127, 0, 0, 1], 0).into(), Persistence::Memory)
        .await
        .unwrap();
    let controller = controller(&broker).await;
    let id = DeviceId::new("falling").unwrap();
    let url = format!("mqtt://{}", broker.address());
    let device = Device::new(folder.path(), "falling", Some((&url, &controller.public_key())));
    let mut agent = device.start();
    agent.show([device.frame(0)]);
    timeout(PATIENCE, controller.summaries_ingested(1)).await.unwrap();
    agent.end();
    // So long that no window ends before the agent does.
    device.replace("summary_seconds = 0.1", "summary_seconds = 1000");
    let mut agent = device.start();
    let added = add(&controller, second(), None).await;
    let wanted = Some((added.name, added.version));
    let pushed = controller.push_model(None, wanted.clone()).await.unwrap();
    answered(&mut agent, &device, &controller, &id, pushed[&id]).await;
    agent.kill();
    for _ in 0..3 {
        let mut agent = device.start();
        let predictions = agent.show([device.frame(0)]);
        assert!(is_second(predictions[0]["label"].as_str().unwrap()));
        agent.kill();
    }
    let mut agent = device.start();
    let predictions = agent.show([device.frame(0)]);
    assert!(
        !is_second(predictions[0]["label"].as_str().unwrap()),
        "its own model runs"
    );
    let look = async {
        loop {
            let answer = controller.reported(&id, pushed[&id]).await.unwrap();
            if let Some(refused) = answer.refused {
                return refused;
            }
            tokio::task::yield_now().await;
        }
    };
    let refused = timeout(PATIENCE, look).await.expect("the fleet hears of it");
    assert!(refused.contains("was given up"), "{refused}");
    // For good.
    agent.kill();
    let mut agent = device.start();
    let predictions = agent.show([device.frame(0)]);
    assert!(!is_second(predictions[0]["label"].as_str().unwrap()));
    // Who wants it again, gets it.
    let pushed = controller.push_model(None, wanted).await.unwrap();
    let (answer, _) = answered(&mut agent, &device, &controller, &id, pushed[&id]).await;
    assert_eq!(answer.refused, None);
    agent.end();
    controller.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_rolled_out_in_waves_and_stops_at_the_canary_that_refuses_it() {
    let broker = Broker::start(([127, 0, 0, 1], 0).into(), Persistence::Memory)
        .await
        .unwrap();
    let controller = controller(&broker).await;
    let url = format!("mqtt://{}", broker.address());
    let folders: Vec<_> = (0..3).map(|_| temp_dir()).collect();
    let devices: Vec<Device> = folders
        .iter()
        .enumerate()
        .map(|(i, folder)| {
            Device::new(
                folder.path(),
                &format!("cam-{i}"),
                Some((&url, &controller.public_key())),
            )
        })
        .collect();
    let mut agents: Vec<Running> = devices.iter().map(Device::start).collect();
    for (agent, device) in agents.iter_mut().zip(&devices) {
        agent.show((0..20).map(|i| device.frame(i)));
    }
    timeout(PATIENCE, controller.summaries_ingested(3)).await.unwrap();
    // Ten images tell nothing of costs: these are other ones than those before, which had taught the heads besides.
    let plan = serde_json::json!({
        "canary": 1, "factor": 2.0, "watch": 0, "frames": 10, "patience": 30, "gates": {"cost": null},
    });
    let mut ends = Vec::new();
    for (bytes, version) in [
        (
            package(&[("version = 1", "version = 3"), ("mean = [0.286]", "mean = [0.9]")]),
            3,
        ),
        (second(), 2),
    ] {
        let added = add(&controller, bytes, None).await;
        assert_eq!(added.version, version);
        let wanted = serde_json::json!({"model": added.name, "version": version, "plan": plan});
        let id = post(controller.address(), "/rollouts", &wanted)["id"].as_u64().unwrap();
        let address = format!("http://{}/api/v1/rollouts/{id}", controller.address());
        let end = async {
            for frame in 0.. {
                for (agent, device) in agents.iter_mut().zip(&devices) {
                    agent.show([device.frame(frame)]);
                }
                let answer = ureq::get(&address).call().unwrap().body_mut().read_to_string().unwrap();
                let rollout: serde_json::Value = serde_json::from_str(&answer).unwrap();
                if !["running", "rolling-back"].contains(&rollout["state"].as_str().unwrap()) {
                    return rollout;
                }
                tokio::task::yield_now().await;
            }
            unreachable!("frames have no end")
        };
        ends.push(timeout(PATIENCE, end).await.expect("the rollout ends"));
    }
    let [bad, good] = &ends[..] else { unreachable!() };
    assert_eq!(bad["state"], "rolled-back", "{bad}");
    assert!(bad["reason"].as_str().unwrap().contains("gate `failed`"), "{bad}");
    assert_eq!(
        (&bad["devices"]["waiting"], &bad["devices"]["reverted"]),
        (&2.into(), &1.into()),
        "{bad}"
    );
    assert_eq!(bad["model"], "revcol-fashion");
    assert_eq!(
        (&good["state"], &good["devices"]["proven"]),
        (&"done".into(), &3.into()),
        "{good}"
    );
    assert!(
        good["gauges"]
            .as_array()
            .unwrap()
            .iter()
            .all(|gauge| gauge["gate"] != "exits"),
        "{good}"
    );
    for (agent, device) in agents.iter_mut().zip(&devices) {
        let predictions = agent.show([device.frame(0)]);
        assert!(is_second(predictions[0]["label"].as_str().unwrap()));
    }
    for agent in agents {
        agent.end();
    }
    controller.shutdown().await;
}
