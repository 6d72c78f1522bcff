//! Policies on their way to devices.

use offramp_broker::{Broker, Persistence};
use offramp_fleet::{Controller, PushError, Target};
use offramp_link::Publication;
use offramp_proto::{
    ArtifactChunk, ArtifactRequest, CHUNK, Desired, DeviceId, Digest, Generation, Kind, decode, encode,
};

use crate::world::{Device, World, broker, component, soon, start, upload};

/// The next desired state of a device, checked with the controller's key.
pub(crate) async fn desired(device: &mut Device, controller: &Controller) -> Desired {
    let message = device.hear().await;
    assert_eq!(message.topic, device.topic(Kind::Desired));
    controller.public_key().verify(&message.payload).unwrap()
}

/// Asks for a part and reads the answer.
async fn fetch(device: &mut Device, digest: Digest, offset: u64, answer_to: Option<&str>) -> ArtifactChunk {
    let request = encode(&ArtifactRequest {
        digest,
        offset,
        chunks: 1,
    })
    .unwrap();
    let mut publication =
        Publication::new(device.topic(Kind::Request), request).correlated_by(offset.to_be_bytes().to_vec());
    if let Some(topic) = answer_to {
        publication = publication.answer_to(topic);
    }
    soon("the broker", device.link.publish(publication)).await.unwrap();
    let message = device.hear().await;
    assert_eq!(
        message.topic,
        answer_to.map_or_else(|| device.topic(Kind::Chunk), Into::into)
    );
    assert_eq!(message.correlation.as_deref(), Some(&offset.to_be_bytes()[..]));
    decode(&message.payload).unwrap()
}

#[tokio::test]
async fn pushed_policy_arrives_signed_and_whole_and_its_report_is_heard() {
    let world = World::new().await;
    let mut device = world.device("cam-1").await;
    let pushed = world.controller.push_policy(Target::All, upload(2)).await.unwrap();
    assert_eq!(pushed.generations[&device.id], Generation(1));

    let wanted = desired(&mut device, &world.controller).await;
    assert_eq!(
        (wanted.device.clone(), wanted.generation),
        (device.id.clone(), Generation(1))
    );
    let policy = wanted.policy.unwrap();
    assert_eq!(
        (policy.name.as_str(), policy.version, policy.digest),
        ("entropy", 2, pushed.digest)
    );
    assert_eq!(policy.parameters["limit"], offramp_proto::Parameter::Number(0.5));

    let below = format!("{}/0", device.topic(Kind::Chunk));
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < policy.size {
        // Both ways to be answered.
        let answer_to = (!bytes.is_empty()).then_some(below.as_str());
        let chunk = fetch(&mut device, policy.digest, bytes.len() as u64, answer_to).await;
        assert_eq!((chunk.offset, chunk.total), (bytes.len() as u64, policy.size));
        bytes.extend(chunk.data);
    }
    assert_eq!(Digest::of(&bytes), policy.digest);
    assert_eq!(bytes, component());
    assert!(bytes.len() > 2 * CHUNK);

    let report = device.reported(1, device.policy("entropy", 2), None);
    device.say(Kind::Reported, encode(&report).unwrap()).await;
    let answer = soon("the report", world.controller.reported(&device.id, Generation(1)))
        .await
        .unwrap();
    assert_eq!(answer.policy, ("entropy".to_owned(), 2));
    assert_eq!(answer.refused, None);
    world.controller.shutdown().await;
}

#[tokio::test]
async fn refusal_of_a_device_is_heard_with_its_reason() {
    let world = World::new().await;
    let device = world.device("cam-1").await;
    world.controller.push_policy(Target::All, upload(1)).await.unwrap();
    let report = device.reported(0, device.policy("built-in", 0), Some("lacks the export `decide`"));
    device.say(Kind::Reported, encode(&report).unwrap()).await;
    let answer = soon("the report", world.controller.reported(&device.id, Generation(1)))
        .await
        .unwrap();
    assert_eq!(answer.generation, Generation(0));
    assert_eq!(answer.refused.as_deref(), Some("lacks the export `decide`"));
    world.controller.shutdown().await;
}

#[tokio::test]
async fn policy_reaches_the_named_devices_only() {
    let world = World::new().await;
    let (mut one, mut two) = (world.device("cam-1").await, world.device("cam-2").await);
    let named = Target::Devices(vec![two.id.clone()]);
    world.controller.push_policy(named, upload(1)).await.unwrap();
    assert_eq!(desired(&mut two, &world.controller).await.generation, Generation(1));
    world.controller.push_policy(Target::All, upload(2)).await.unwrap();
    // The first that the other device hears is the second push.
    let first = desired(&mut one, &world.controller).await;
    assert_eq!((first.generation, first.policy.unwrap().version), (Generation(1), 2));
    let second = desired(&mut two, &world.controller).await;
    assert_eq!((second.generation, second.policy.unwrap().version), (Generation(2), 2));

    let unknown = Target::Devices(vec![DeviceId::new("cam-9").unwrap()]);
    let error = world.controller.push_policy(unknown, upload(3)).await.unwrap_err();
    assert!(
        matches!(&error, PushError::UnknownDevices(devices) if devices.len() == 1),
        "{error}"
    );
    world.controller.shutdown().await;
}

#[tokio::test]
async fn artifact_that_is_not_there_is_answered_with_nothing() {
    let world = World::new().await;
    let mut device = world.device("cam-1").await;
    let chunk = fetch(&mut device, Digest::of(b"unknown"), 0, None).await;
    assert_eq!((chunk.total, chunk.data.len()), (0, 0));
    world.controller.shutdown().await;
}

#[tokio::test]
async fn device_cannot_have_the_controller_write_to_its_neighbour() {
    let world = World::new().await;
    let (device, mut neighbour) = (world.device("cam-1").await, world.device("cam-2").await);
    world
        .controller
        .push_policy(Target::Devices(vec![device.id.clone()]), upload(1))
        .await
        .unwrap();
    let request = ArtifactRequest {
        digest: Digest::of(&component()),
        offset: 0,
        chunks: 1,
    };
    let publication = Publication::new(device.topic(Kind::Request), encode(&request).unwrap())
        .answer_to(neighbour.topic(Kind::Desired));
    device.link.publish(publication).await.unwrap();
    world.until("the refusal", |s| s.refused == 1).await;
    // What the neighbour hears next is what the controller wants to tell it.
    world.controller.push_policy(Target::All, upload(1)).await.unwrap();
    assert_eq!(
        desired(&mut neighbour, &world.controller).await.generation,
        Generation(1)
    );
    world.controller.shutdown().await;
}

#[tokio::test]
async fn restart_keeps_everything_publishes_again_and_generations_go_on() {
    let world = World::new().await;
    let device = world.device("cam-1").await;
    world.controller.push_policy(Target::All, upload(1)).await.unwrap();
    device.say(Kind::Summary, encode(&device.summary(1)).unwrap()).await;
    world.until("the summary", |s| s.ingested == 1).await;
    let key = world.controller.public_key();
    world.controller.shutdown().await;
    let folder = world.folder;

    // Another broker, which knows nothing.
    let second_broker = broker().await;
    let controller = start(&second_broker, &folder).await;
    assert_eq!(controller.public_key(), key);
    let mut device = Device::connect(&second_broker, "cam-1").await;
    assert_eq!(desired(&mut device, &controller).await.generation, Generation(1));
    let pushed = controller.push_policy(Target::All, upload(2)).await.unwrap();
    assert_eq!(pushed.generations[&device.id], Generation(2));
    assert_eq!(desired(&mut device, &controller).await.generation, Generation(2));
    let frames = crate::http::get(controller.address(), "/api/v1/devices/cam-1")
        .await
        .json()["frames"]
        .clone();
    assert_eq!(frames, 100);
    controller.shutdown().await;
}

#[tokio::test]
async fn broker_that_forgot_is_told_again() {
    let world = World::new().await;
    world.device("cam-1").await;
    world.controller.push_policy(Target::All, upload(1)).await.unwrap();
    world.until("the first publication", |s| s.published == 1).await;
    let address = world.broker.address();
    world.broker.shutdown().await.unwrap();
    let broker = Broker::start(address, Persistence::Memory).await.unwrap();
    let mut device = Device::connect(&broker, "cam-1").await;
    assert_eq!(desired(&mut device, &world.controller).await.generation, Generation(1));
    world.controller.shutdown().await;
}
