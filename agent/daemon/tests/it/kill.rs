//! Kill -9 between any two frames: heads, policy and every summary come back, and nothing counts twice.

use std::time::Duration;

use offramp::judge::PolicySource;
use offramp_broker::{Broker, Persistence};
use offramp_core::SplitMix64;
use offramp_fleet::{Controller, PolicyUpload, Target};
use offramp_proto::{DeviceId, Generation, Parameter, TenantId};
use offramp_test_support::{PATIENCE, temp_dir};
use tokio::time::timeout;

use crate::device::{Device, said};

pub(crate) fn upload(version: u64, threshold: f64) -> PolicyUpload {
    let source = PolicySource::threshold([("threshold".to_owned(), Parameter::Number(threshold))].into());
    PolicyUpload {
        name: source.name,
        version,
        bytes: source.bytes,
        parameters: source.parameters,
    }
}

pub(crate) async fn controller(broker: &Broker) -> Controller {
    let url = format!("mqtt://{}", broker.address()).parse().unwrap();
    Controller::start(offramp_fleet::Options::temporary(
        url,
        TenantId::new("default").unwrap(),
    ))
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agent_comes_back_with_heads_policy_and_summaries_and_none_counts_twice() {
    let folder = temp_dir();
    let broker = Broker::start(([127, 0, 0, 1], 0).into(), Persistence::Memory)
        .await
        .unwrap();
    let controller = controller(&broker).await;
    let id = DeviceId::new("killed").unwrap();
    let url = format!("mqtt://{}", broker.address());
    let device = Device::new(folder.path(), "killed", Some((&url, &controller.public_key())));

    // A first run, until the pushed policy is in force.
    let mut agent = device.start();
    agent.show([device.frame(0)]);
    timeout(PATIENCE, controller.summaries_ingested(1)).await.unwrap();
    let pushed = controller.push_policy(Target::All, upload(7, 0.95)).await.unwrap();
    let generation = pushed.generations[&id];
    let answer = loop {
        // The swap happens between two frames, so frames must come.
        agent.show([device.frame(1)]);
        if let Ok(answer) = timeout(Duration::from_millis(20), controller.reported(&id, generation)).await {
            break answer.unwrap();
        }
    };
    assert_eq!(
        (answer.generation, answer.policy, answer.refused),
        (generation, ("threshold".to_owned(), 7), None)
    );
    agent.kill();

    // Killed after a random number of frames, again and again.
    let mut random = SplitMix64(11);
    for round in 0..6 {
        let mut agent = device.start();
        let frames = 1 + random.next() % 40;
        agent.show((0..frames).map(|i| device.frame((round * 40 + i) as usize)));
        let log = agent.kill();
        assert!(
            said(&log, "cannot").is_empty() && said(&log, "not restored").is_empty(),
            "{log:#?}"
        );
    }

    // The last run ends in order; everything that was ever written must have arrived once.
    let before = device.store();
    let (checkpoint, desired) = (before.checkpoints("").unwrap(), before.desired().unwrap().unwrap());
    assert!(!checkpoint.is_empty());
    assert_eq!(Generation(desired.generation), generation);
    drop(before);
    let mut agent = device.start();
    agent.show((0..30).map(|i| device.frame(i)));
    let log = agent.end();
    let restored = said(&log, "heads restored");
    assert_eq!(restored.len(), 1, "{log:#?}");
    assert_eq!(
        restored[0]["checkpoint"], checkpoint[0].number,
        "the newest checkpoint is taken up"
    );
    assert!(
        said(&log, "policy swapped").is_empty(),
        "the policy was there from the first frame on"
    );

    let outbox = device.store().outbox().unwrap();
    assert_eq!((outbox.records, outbox.dropped), (0, 0), "everything was sent");
    let statistics = controller.statistics();
    assert_eq!(
        statistics.ingested + statistics.events,
        outbox.last_sequence,
        "none lost, none counted twice"
    );
    controller.shutdown().await;
}

#[test]
fn an_agent_that_is_asked_to_end_stores_what_it_has() {
    let folder = temp_dir();
    let device = Device::new(folder.path(), "asked", None);
    // So long that none is due while it runs.
    device.replace("_seconds = 0.1", "_seconds = 1000");
    let mut agent = device.start();
    agent.show((0..30).map(|i| device.frame(i)));
    let log = agent.terminate();
    let ended = said(&log, "the camera has ended");
    assert_eq!((ended.len(), &ended[0]["predictions"]), (1, &30.into()), "{log:#?}");
    let store = device.store();
    assert_eq!(store.checkpoints("").unwrap().len(), 1);
    assert_eq!(store.outbox().unwrap().records, 1, "the last summary");
}
