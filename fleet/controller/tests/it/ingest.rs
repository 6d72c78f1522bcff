//! What devices send.

use offramp_link::Publication;
use offramp_proto::{BootId, DeviceId, Kind, MAX_MESSAGE, encode};

use crate::http::get;
use crate::world::{Device, World, start};

#[tokio::test]
async fn born_device_is_alive_and_its_summaries_count_once() {
    let world = World::new().await;
    let device = world.device("cam-1").await;
    for sequence in [1, 2, 2, 1, 3] {
        device
            .say(Kind::Summary, encode(&device.summary(sequence)).unwrap())
            .await;
    }
    let statistics = world.until("the summaries", |s| s.ingested + s.duplicates == 5).await;
    assert_eq!(
        (statistics.ingested, statistics.duplicates, statistics.refused),
        (3, 2, 0)
    );
    assert_eq!(world.controller.summaries_ingested(3).await.unwrap().ingested, 3);
    let found = get(world.address(), "/api/v1/devices/cam-1").await.json();
    assert_eq!(found["state"], "alive");
    assert_eq!(found["frames"], 300);
    assert_eq!(found["recent"]["cost_share"], 0.4);
    world.controller.shutdown().await;
}

#[tokio::test]
async fn death_counts_only_for_the_run_that_was_born_last() {
    let world = World::new().await;
    let mut device = world.device("cam-1").await;
    let old_death = encode(&device.death()).unwrap();
    device.boot = BootId([2; 16]);
    device.say(Kind::Birth, encode(&device.birth()).unwrap()).await;
    device.say(Kind::Death, old_death).await;
    world.until("the old death", |s| s.received == 3).await;
    assert_eq!(
        get(world.address(), "/api/v1/devices/cam-1").await.json()["state"],
        "alive"
    );
    device.say(Kind::Death, encode(&device.death()).unwrap()).await;
    world.until("the death", |s| s.received == 4).await;
    assert_eq!(
        get(world.address(), "/api/v1/devices/cam-1").await.json()["state"],
        "gone"
    );
    world.controller.shutdown().await;
}

#[tokio::test]
async fn what_is_wrong_is_refused_and_the_rest_goes_on() {
    let world = World::new().await;
    let device = world.device("cam-1").await;
    let summary = encode(&device.summary(1)).unwrap();

    device.say(Kind::Summary, b"not CBOR".to_vec()).await;
    device.say(Kind::Summary, summary[..summary.len() - 1].to_vec()).await;
    device.say(Kind::Summary, vec![0x9f; 5000]).await; // lists in lists
    device
        .say(
            Kind::Summary,
            vec![0x9b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        )
        .await; // a huge list
    device.say(Kind::Summary, vec![0; MAX_MESSAGE + 1]).await;
    device.say(Kind::Event, summary.clone()).await; // another message
    let mut out_of_bounds = device.summary(2);
    out_of_bounds.frames += 1;
    device
        .say(Kind::Summary, serde_cbor::to_vec(&out_of_bounds).unwrap())
        .await;
    let mut another = device.summary(3);
    another.device = DeviceId::new("cam-2").unwrap();
    device.say(Kind::Summary, encode(&another).unwrap()).await;
    let mut beyond = device.summary(4);
    beyond.sequence.0 = u64::MAX;
    device.say(Kind::Summary, encode(&beyond).unwrap()).await;
    let mut countless = device.summary(5);
    (countless.frames, countless.exits) = (u64::MAX, vec![offramp_proto::ExitUse { taken: u64::MAX }]);
    device.say(Kind::Summary, encode(&countless).unwrap()).await;
    let mut endless = device.summary(6);
    endless.window.end = u64::MAX;
    device.say(Kind::Summary, encode(&endless).unwrap()).await;
    let unknown = Publication::new("offramp/1/greenhouse/cam-1/up/telepathy", summary.clone());
    device.link.publish(unknown).await.unwrap();
    device.say(Kind::Summary, summary).await;

    let statistics = world.until("all messages", |s| s.received == 14).await;
    assert_eq!((statistics.refused, statistics.ingested), (12, 1));
    let devices = get(world.address(), "/api/v1/devices").await.json();
    assert_eq!(devices["devices"].as_array().unwrap().len(), 1);
    world.controller.shutdown().await;
}

#[tokio::test]
async fn what_came_while_the_controller_was_away_is_taken_in_afterwards() {
    let World {
        broker,
        controller,
        folder,
    } = World::new().await;
    controller.shutdown().await;
    let device = Device::connect(&broker, "cam-1").await;
    for sequence in 1..=40 {
        device
            .say(Kind::Summary, encode(&device.summary(sequence)).unwrap())
            .await;
    }
    let controller = start(&broker, &folder).await;
    let world = World {
        broker,
        controller,
        folder,
    };
    let statistics = world.until("the summaries", |s| s.ingested == 40).await;
    assert_eq!(statistics.duplicates, 0);
    world.controller.shutdown().await;
}

#[tokio::test]
async fn controller_that_dies_misses_nothing_and_counts_nothing_twice() {
    let World {
        broker,
        controller,
        folder,
    } = World::new().await;
    let device = Device::connect(&broker, "cam-1").await;
    for sequence in 1..100 {
        device
            .say(Kind::Summary, encode(&device.summary(sequence)).unwrap())
            .await;
    }
    // Not shut down: it stands somewhere between message, commit and acknowledgement.
    drop(controller);
    for sequence in 100..=200 {
        device
            .say(Kind::Summary, encode(&device.summary(sequence)).unwrap())
            .await;
    }
    let controller = start_when_free(&broker, &folder).await;
    let world = World {
        broker,
        controller,
        folder,
    };
    let frames = || async { get(world.address(), "/api/v1/devices/cam-1").await.json()["frames"].as_u64() };
    let mut statistics = world.controller.subscribe();
    while frames().await != Some(20_000) {
        crate::world::soon("the rest", statistics.changed()).await.unwrap();
    }
    let summaries = get(world.address(), "/api/v1/devices/cam-1/summaries?limit=1000")
        .await
        .json();
    let sequences: Vec<_> = summaries["summaries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["sequence"].as_u64())
        .collect();
    assert_eq!(sequences, (1..=200).map(Some).collect::<Vec<_>>());
    world.controller.shutdown().await;
}

/// The database is free when the last task of the dropped controller has let go of it.
async fn start_when_free(broker: &offramp_broker::Broker, folder: &tempfile::TempDir) -> offramp_fleet::Controller {
    use std::fs::File;
    let lock = folder.path().join("fleet.db.lock");
    let lock = File::open(lock).unwrap();
    tokio::task::spawn_blocking(move || lock.lock().unwrap()).await.unwrap();
    start(broker, folder).await
}
