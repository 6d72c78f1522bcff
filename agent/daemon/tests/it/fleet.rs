//! What the fleet may and may not do to a device.

use std::collections::BTreeMap;
use std::time::Duration;

use offramp_broker::{Broker, Persistence};
use offramp_fleet::{PolicyUpload, Target};
use offramp_link::{Config, Inbox, Link, Publication};
use offramp_proto::{
    Desired, DesiredPolicy, DeviceId, Digest, Generation, Kind, LogLevel, Reported, SigningKey, TenantId, Topic,
    decode, encode,
};
use offramp_test_support::{PATIENCE, free_port, temp_dir};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::device::{Device, said};
use crate::enrol::post;
use crate::kill::{controller, upload};

fn desired(device: &str, generation: u64) -> Desired {
    Desired::new(DeviceId::new(device).unwrap(), Generation(generation), 0)
}

/// Somebody who hears what a device reports; and the topic on which it is told what to do.
fn operator(broker: &str, device: &str) -> (Link, Inbox, String) {
    let (tenant, id) = (TenantId::new("default").unwrap(), DeviceId::new(device).unwrap());
    let mut config = Config::new(broker.parse().unwrap(), "operator");
    config.subscriptions = vec![Topic::new(&tenant, &id, Kind::Reported).to_string()];
    let (link, inbox) = Link::connect(&config).unwrap();
    (link, inbox, Topic::new(&tenant, &id, Kind::Desired).to_string())
}

/// The next report that fits.
async fn told(inbox: &mut Inbox, fits: impl Fn(&Reported) -> bool) -> Reported {
    let told = async {
        loop {
            let delivery = inbox.recv().await.expect("the link lives");
            let reported: Reported = decode(&delivery.message.payload).unwrap();
            delivery.acknowledge();
            if fits(&reported) {
                return reported;
            }
        }
    };
    timeout(PATIENCE, told).await.expect("it is reported")
}

/// The device's floor is what it has stored, not what runs; and it trusts no key that an older word names.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_desired_state_brings_no_revoked_key_back_even_where_the_stored_one_cannot_run() {
    let folder = temp_dir();
    let broker = Broker::start(([127, 0, 0, 1], 0).into(), Persistence::Memory)
        .await
        .unwrap();
    let url = format!("mqtt://{}", broker.address());
    let [revoked, key] = [5, 6].map(|seed| SigningKey::from_seed(&[seed; 32]));
    let naming = |generation, keys: &[&SigningKey]| Desired {
        keys: keys.iter().map(|key| key.public()).collect(),
        ..desired("floor", generation)
    };
    let device = Device::new(folder.path(), "floor", Some((&url, &revoked.public())));
    // The last word that the old key signed names the new one, and a policy that is gone; a crash came before the new
    // key was kept.
    let gone = Desired {
        policy: Some(DesiredPolicy {
            name: "gone".into(),
            version: 1,
            digest: Digest::of(b"gone"),
            size: 4,
            parameters: BTreeMap::new(),
        }),
        ..naming(9, &[&key])
    };
    device.store().set_desired(9, &revoked.sign(&gone).unwrap()).unwrap();
    let (link, mut inbox, topic) = operator(&url, "floor");
    let mut agent = device.start();
    agent.show([device.frame(0)]);
    let first = told(&mut inbox, |_| true).await;
    assert_eq!((first.generation, first.trusts), (Generation(0), vec![key.public()]));

    let say = |signed: Vec<u8>| Publication::new(topic.clone(), signed);
    let replayed = key.sign(&naming(8, &[&revoked, &key])).unwrap();
    link.publish(say(replayed)).await.unwrap();
    let refused = told(&mut inbox, |reported| reported.refused.is_some()).await;
    assert_eq!(refused.refused_generation, Some(Generation(8)), "{:?}", refused.refused);
    assert_eq!(refused.trusts, [key.public()]);
    link.publish(say(revoked.sign(&naming(10, &[])).unwrap()))
        .await
        .unwrap();
    let distrusts = |reported: &Reported| {
        reported
            .refused
            .as_ref()
            .is_some_and(|why| why.contains("does not trust"))
    };
    told(&mut inbox, distrusts).await;
    link.publish(say(key.sign(&naming(10, &[])).unwrap())).await.unwrap();
    told(&mut inbox, |reported| reported.generation == Generation(10)).await;
    agent.end();
    link.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_desired_state_that_is_unsigned_altered_foreign_or_old_is_refused_with_its_reason() {
    let folder = temp_dir();
    let broker = Broker::start(([127, 0, 0, 1], 0).into(), Persistence::Memory)
        .await
        .unwrap();
    let url = format!("mqtt://{}", broker.address());
    let key = SigningKey::from_seed(&[5; 32]);
    let (link, mut inbox, topic) = operator(&url, "wary");
    let device = Device::new(folder.path(), "wary", Some((&url, &key.public())));
    let mut agent = device.start();
    agent.show([device.frame(0)]);
    // It reports as soon as it is subscribed: what is published before that is not for it.
    timeout(PATIENCE, inbox.recv()).await.unwrap().unwrap().acknowledge();

    let mut altered = key.sign(&desired("wary", 9)).unwrap();
    let last = altered.len() - 1;
    altered[last] ^= 1;
    let cases = [
        (encode(&desired("wary", 9)).unwrap(), 0, Some("not signed")),
        (altered, 0, Some("altered")),
        (
            SigningKey::from_seed(&[6; 32]).sign(&desired("wary", 9)).unwrap(),
            0,
            Some("does not trust"),
        ),
        (
            key.sign(&desired("other", 9)).unwrap(),
            0,
            Some("signed for device other"),
        ),
        (
            vec![0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            0,
            Some("not signed"),
        ),
        (key.sign(&desired("wary", 9)).unwrap(), 9, None),
        (key.sign(&desired("wary", 8)).unwrap(), 9, Some("older than 9")),
    ];
    for (payload, generation, refusal) in cases {
        link.publish(Publication::new(topic.clone(), payload)).await.unwrap();
        let reported = told(&mut inbox, |reported| match (&reported.refused, refusal) {
            (Some(why), Some(expected)) => why.contains(expected),
            (None, None) => reported.generation == Generation(generation),
            _ => false,
        })
        .await;
        assert_eq!(reported.generation, Generation(generation), "{refusal:?}");
        // What cannot be trusted has no generation.
        let told = reported.refused_generation;
        assert_eq!(told, refusal.filter(|why| why.contains("older")).map(|_| Generation(8)));
        assert_eq!(reported.policy.name, "threshold");
    }
    assert_eq!(agent.show([device.frame(1)]).len(), 1, "frames go on");
    // The policy of the configuration takes over again, as a swap between two frames.
    let of_its_own = Desired {
        own_policy: true,
        ..desired("wary", 10)
    };
    link.publish(Publication::new(topic, key.sign(&of_its_own).unwrap()))
        .await
        .unwrap();
    let swapped = async {
        loop {
            agent.show([device.frame(2)]);
            let Ok(delivery) = timeout(Duration::from_millis(20), inbox.recv()).await else {
                continue;
            };
            let delivery = delivery.expect("the link lives");
            let reported: Reported = decode(&delivery.message.payload).unwrap();
            delivery.acknowledge();
            if reported.generation == Generation(10) {
                return reported;
            }
        }
    };
    let reported = timeout(PATIENCE, swapped).await.unwrap();
    assert_eq!((reported.policy.name.as_str(), reported.refused), ("threshold", None));
    agent.end();
    link.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_cannot_run_is_refused_with_its_reason_and_frames_go_on() {
    let folder = temp_dir();
    let broker = Broker::start(([127, 0, 0, 1], 0).into(), Persistence::Memory)
        .await
        .unwrap();
    let controller = controller(&broker).await;
    let url = format!("mqtt://{}", broker.address());
    let id = DeviceId::new("picky").unwrap();
    let device = Device::new(folder.path(), "picky", Some((&url, &controller.public_key())));
    let mut agent = device.start();
    agent.show([device.frame(0)]);
    timeout(PATIENCE, controller.summaries_ingested(1)).await.unwrap();

    let good = upload(2, 0.5);
    let truncated = good.bytes[..good.bytes.len() / 2].to_vec();
    let refused = [
        (
            PolicyUpload {
                name: "cut".into(),
                bytes: truncated,
                ..upload(1, 0.5)
            },
            "damaged",
        ),
        (
            PolicyUpload {
                parameters: [("threshold".to_owned(), offramp_proto::Parameter::Number(7.0))].into(),
                ..upload(2, 0.5)
            },
            "threshold",
        ),
    ];
    for (policy, why) in refused {
        // A controller may refuse what is plainly no component before any device sees it.
        let name = policy.name.clone();
        let pushed = match controller.push_policy(Target::All, policy).await {
            Ok(pushed) => pushed,
            Err(error) => {
                assert!(!error.to_string().is_empty());
                continue;
            }
        };
        let answer = timeout(PATIENCE, controller.reported(&id, pushed.generations[&id]))
            .await
            .unwrap()
            .unwrap();
        let said = answer.refused.unwrap_or_else(|| panic!("{name} was taken"));
        assert!(said.contains(why), "{said}");
        assert_eq!(agent.show([device.frame(1)]).len(), 1);
    }

    // A good one is taken up afterwards.
    let pushed = controller.push_policy(Target::All, upload(3, 0.5)).await.unwrap();
    loop {
        agent.show([device.frame(2)]);
        let reported = timeout(
            Duration::from_millis(20),
            controller.reported(&id, pushed.generations[&id]),
        )
        .await;
        if let Ok(answer) = reported {
            let answer = answer.unwrap();
            assert_eq!((answer.policy.1, answer.refused), (3, None));
            break;
        }
    }
    agent.end();
    controller.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_broker_frames_go_on_and_summaries_wait_until_there_is_one() {
    let folder = temp_dir();
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], free_port()));
    let url = format!("mqtt://{address}");
    let key = SigningKey::from_seed(&[5; 32]);
    let device = Device::new(folder.path(), "lonely", Some((&url, &key.public())));
    let mut agent = device.start();
    assert_eq!(agent.show((0..40).map(|i| device.frame(i))).len(), 40);
    let log = agent.end();
    assert!(!said(&log, "summaries wait in the outbox").is_empty());
    let waiting = device.store().outbox().unwrap().records;
    assert!(waiting > 0);

    let broker = Broker::start(address, Persistence::Memory).await.unwrap();
    let controller = controller(&broker).await;
    let mut agent = device.start();
    agent.show([device.frame(0)]);
    timeout(PATIENCE, controller.summaries_ingested(waiting)).await.unwrap();
    agent.end();
    assert_eq!(device.store().outbox().unwrap().records, 0);
    assert_eq!(controller.statistics().duplicates, 0);
    controller.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_replaced_by_word_of_the_old_one_which_then_says_nothing_more() {
    let folder = temp_dir();
    let broker = Broker::start(([127, 0, 0, 1], 0).into(), Persistence::Memory)
        .await
        .unwrap();
    let url = format!("mqtt://{}", broker.address());
    let [old, new, thief] = [5, 6, 7].map(|seed| SigningKey::from_seed(&[seed; 32]));
    let (link, mut inbox, topic) = operator(&url, "wary");
    let device = Device::new(folder.path(), "wary", Some((&url, &old.public())));
    let with_keys = |generation, keys: &[&SigningKey]| Desired {
        keys: keys.iter().map(|key| key.public()).collect(),
        log: Some(LogLevel::Debug),
        ..desired("wary", generation)
    };
    let mut agent = device.start();
    agent.show([device.frame(0)]);
    let mut told = async |trusts: &[&SigningKey], generation: u64, refused: bool| {
        let wanted: Vec<_> = trusts.iter().map(|key| key.public()).collect();
        let until = async {
            loop {
                let delivery = inbox.recv().await.expect("the link lives");
                let reported: Reported = decode(&delivery.message.payload).unwrap();
                delivery.acknowledge();
                let is = (reported.generation, reported.refused.is_some());
                if reported.trusts == wanted && is == (Generation(generation), refused) {
                    return;
                }
            }
        };
        timeout(PATIENCE, until)
            .await
            .unwrap_or_else(|_| panic!("generation {generation}, refused {refused}, was not reported"));
    };
    told(&[&old], 0, false).await;
    for (by, desired, trusts, generation, refused) in [
        (&old, with_keys(1, &[&old, &new]), &[&old, &new][..], 1, false),
        (&new, with_keys(2, &[]), &[&old, &new], 2, false),
        (&thief, with_keys(9, &[&thief]), &[&old, &new], 2, true),
        (&new, with_keys(3, &[&new]), &[&new], 3, false),
        // Stolen, or replayed.
        (&old, with_keys(9, &[&old]), &[&new], 3, true),
    ] {
        let payload = by.sign(&desired).unwrap();
        link.publish(Publication::new(topic.clone(), payload)).await.unwrap();
        told(trusts, generation, refused).await;
    }
    let log = agent.end();
    // The log follows the desired state: what a debugger wants to know is written.
    assert!(log.iter().any(|line| line["level"] == "DEBUG"), "{log:#?}");
    // Also after a restart.
    let mut agent = device.start();
    agent.show([device.frame(0)]);
    told(&[&new], 3, false).await;
    let payload = old.sign(&with_keys(10, &[&old])).unwrap();
    link.publish(Publication::new(topic, payload)).await.unwrap();
    told(&[&new], 3, true).await;
    agent.end();
    link.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_and_keys_change_under_a_policy_that_goes_on() {
    let folder = temp_dir();
    let broker = Broker::start(([127, 0, 0, 1], 0).into(), Persistence::Memory)
        .await
        .unwrap();
    let controller = controller(&broker).await;
    let (address, old) = (controller.address(), controller.public_key());
    let id = DeviceId::new("tuned").unwrap();
    let url = format!("mqtt://{}", broker.address());
    let device = Device::new(folder.path(), "tuned", Some((&url, &old)));
    let mut agent = device.start();
    agent.show([device.frame(0)]);
    timeout(PATIENCE, controller.summaries_ingested(1)).await.unwrap();
    let mut in_force = async |generation: Generation| loop {
        // A swap happens between two frames, so frames must come.
        agent.show([device.frame(1)]);
        if let Ok(answer) = timeout(Duration::from_millis(20), controller.reported(&id, generation)).await {
            let answer = answer.unwrap();
            assert_eq!((answer.generation, answer.refused), (generation, None));
            return answer.policy.1;
        }
    };
    let ask = |path: String, body: Value| tokio::task::block_in_place(|| post(address, &path, &body));

    let pushed = controller.push_policy(Target::All, upload(7, 0.95)).await.unwrap();
    let Generation(first) = pushed.generations[&id];
    assert_eq!(in_force(Generation(first)).await, 7);
    let wanted = json!({"all": true, "settings": {"accuracy_budget": 0.03, "enabled": false}});
    let changed = ask("/settings".into(), wanted);
    assert_eq!(changed["devices"][0]["generation"], first + 1);
    assert_eq!(in_force(Generation(first + 1)).await, 7);
    let rotated = ask("/keys".into(), json!({}));
    assert_eq!(rotated["devices"], 1);
    assert_eq!(in_force(Generation(first + 2)).await, 7);
    let revoked = ask(format!("/keys/{old:?}/revoke"), json!({}));
    assert_eq!((&revoked["devices"], &revoked["left"]), (&json!(1), &json!(0)));
    assert_eq!(in_force(Generation(first + 3)).await, 7);
    let pushed = controller.push_policy(Target::All, upload(8, 0.9)).await.unwrap();
    assert_eq!(in_force(pushed.generations[&id]).await, 8);

    let log = agent.end();
    assert_eq!(
        said(&log, "policy swapped").len(),
        2,
        "only another policy is one: {log:#?}"
    );
    let told = said(&log, "keys of the controller");
    let last = told.last().unwrap()["keys"].as_str().unwrap().to_owned();
    assert_eq!(
        (told.len(), last),
        (2, format!("[{}]", rotated["key"].as_str().unwrap()))
    );
    // A restart has the settings, the key and the policy.
    let mut agent = device.start();
    agent.show([device.frame(0)]);
    let answer = timeout(PATIENCE, controller.reported(&id, Generation(first + 4))).await;
    assert_eq!(answer.unwrap().unwrap().policy.1, 8);
    let log = agent.end();
    assert!(
        said(&log, "refused").is_empty() && said(&log, "ignored").is_empty(),
        "{log:#?}"
    );
    controller.shutdown().await;
}
