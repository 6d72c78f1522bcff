//! What programs ask.

use offramp_proto::{Kind, encode};

use crate::http::{Answer, get, request, send};
use crate::world::{World, component, upload};

/// An error has a status, a message and a hint.
fn is_error(answer: &Answer, status: u16, says: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    let json = answer.json();
    let error = json["error"].as_str().unwrap();
    assert!(error.contains(says), "{error}");
    assert!(!json["hint"].as_str().unwrap().is_empty());
}

#[tokio::test]
async fn devices_summaries_and_events_are_told() {
    let world = World::new().await;
    let device = world.device("cam-1").await;
    for sequence in 1..=3 {
        device
            .say(Kind::Summary, encode(&device.summary(sequence)).unwrap())
            .await;
    }
    device.say(Kind::Event, encode(&device.event(4)).unwrap()).await;
    let report = device.reported(0, device.policy("threshold", 1), None);
    device.say(Kind::Reported, encode(&report).unwrap()).await;
    world.until("everything", |s| s.received == 6).await;

    let found = get(world.address(), "/api/v1/devices/cam-1").await.json();
    assert_eq!(found["model"]["name"], "revcol");
    assert_eq!(found["classes"], serde_json::json!(["boot", "coat"]));
    assert_eq!(
        found["class_count"][0],
        serde_json::json!({"class": 0, "name": "boot", "count": 270})
    );
    assert_eq!(found["running"], serde_json::json!({"name": "threshold", "version": 1}));
    assert_eq!(found["recent"]["exit_share"], serde_json::json!([0.7, 0.2, 0.1]));
    assert_eq!(found["disagreement"]["bound"], 0.25);
    let estimate = found["disagreement"]["estimate"].as_f64().unwrap();
    assert!((estimate - 0.1 * 0.9).abs() < 1e-12, "{estimate}");

    let summaries = get(world.address(), "/api/v1/devices/cam-1/summaries?limit=2")
        .await
        .json();
    let summaries = summaries["summaries"].as_array().unwrap();
    assert_eq!(summaries.len(), 2);
    assert_eq!(summaries[0]["exits"], serde_json::json!([70, 20, 10]));
    assert_eq!(summaries[0]["temperature"], 41.5);
    let since = summaries[1]["window_end"].as_u64().unwrap();
    let rest = get(
        world.address(),
        &format!("/api/v1/devices/cam-1/summaries?since={since}"),
    )
    .await
    .json();
    assert_eq!(rest["summaries"].as_array().unwrap().len(), 1);
    assert_eq!(rest["summaries"][0]["sequence"], 3);

    let events = get(world.address(), "/api/v1/events?device=cam-1").await.json();
    assert_eq!(events["events"][0]["kind"], "policy-swapped");
    assert_eq!(events["events"][0]["facts"]["to"], "entropy 2");
    world.controller.shutdown().await;
}

#[tokio::test]
async fn guard_is_told_where_a_device_tells_of_it() {
    let world = World::new().await;
    let (device, old) = (world.device("cam-1").await, world.device("cam-2").await);
    old.say(Kind::Summary, encode(&old.summary(1)).unwrap()).await;
    for summary in [device.summary(1), device.guarded(2, false), device.guarded(3, true)] {
        device.say(Kind::Summary, encode(&summary).unwrap()).await;
    }
    let again = device.guarded(3, true);
    device.say(Kind::Summary, encode(&again).unwrap()).await;
    world.until("everything", |s| s.ingested + s.duplicates == 5).await;

    let summaries = get(world.address(), "/api/v1/devices/cam-1/summaries").await.json();
    assert_eq!(summaries["summaries"][0].get("guard"), None);
    let guard = serde_json::json!({
        "threshold": 0.75, "loss": -0.125, "loss_bound": 0.25, "audits": 256,
        "promotions": 1, "paused": false, "contexts": 1, "bytes": 2_600_000,
    });
    assert_eq!(summaries["summaries"][1]["guard"], guard);
    let devices = get(world.address(), "/api/v1/devices").await.json();
    assert_eq!(devices["devices"][0]["guard"]["paused"], true);
    assert_eq!(devices["devices"][1]["guard"], serde_json::Value::Null);

    let events = get(world.address(), "/api/v1/events").await.json();
    let events = events["events"].as_array().unwrap();
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(
        (events[0]["device"].as_str(), events[0]["kind"].as_str()),
        (Some("cam-1"), Some("learning-paused"))
    );
    assert_eq!(events[0]["at"], again.window.end);
    world.controller.shutdown().await;
}

#[tokio::test]
async fn devices_are_told_page_by_page() {
    let world = World::new().await;
    for name in ["cam-1", "cam-2", "cam-3"] {
        world.device(name).await;
    }
    let first = get(world.address(), "/api/v1/devices?limit=2").await.json();
    assert_eq!(first["devices"].as_array().unwrap().len(), 2);
    assert_eq!(first["next"], "cam-2");
    let second = get(world.address(), "/api/v1/devices?limit=2&after=cam-2").await.json();
    assert_eq!(second["devices"][0]["device"], "cam-3");
    assert_eq!(second["next"], serde_json::Value::Null);
    world.controller.shutdown().await;
}

#[tokio::test]
async fn status_and_health_are_told() {
    let world = World::new().await;
    let status = get(world.address(), "/api/v1/status").await.json();
    assert_eq!(status["tenant"], "greenhouse");
    assert_eq!(status["broker"]["connected"], true);
    assert_eq!(
        status["public_key"].as_str().unwrap(),
        format!("{:?}", world.controller.public_key())
    );
    assert_eq!(status["statistics"]["ingested"], 0);
    let health = get(world.address(), "/healthz").await;
    assert_eq!((health.status, health.body.as_str()), (200, "ok\n"));
    world.controller.shutdown().await;
}

#[tokio::test]
async fn policy_is_pushed_through_the_api() {
    let world = World::new().await;
    world.device("cam-1").await;
    let path = "/api/v1/policies?name=entropy&version=2&parameter=limit%3D0.5&device=cam-1";
    let pushed = request(world.address(), "POST", path, &[], &component()).await;
    assert_eq!(pushed.status, 200, "{pushed:?}");
    assert_eq!(
        pushed.json()["devices"],
        serde_json::json!([{"device": "cam-1", "generation": 1}])
    );
    let policies = get(world.address(), "/api/v1/policies").await.json();
    let policy = &policies["policies"][0];
    assert_eq!(
        (policy["name"].as_str(), policy["version"].as_u64()),
        (Some("entropy"), Some(2))
    );
    assert_eq!(policy["digest"], pushed.json()["digest"]);
    assert_eq!(
        (policy["desired"].as_u64(), policy["reported"].as_u64()),
        (Some(1), Some(0))
    );
    let device = get(world.address(), "/api/v1/devices/cam-1").await.json();
    assert_eq!(device["progress"], "pending");
    world.controller.shutdown().await;
}

#[tokio::test]
async fn wrong_pushes_are_refused_with_a_hint() {
    let world = World::new().await;
    world.device("cam-1").await;
    let address = world.address();
    let push = |query: &'static str, body: Vec<u8>| async move {
        request(address, "POST", &format!("/api/v1/policies{query}"), &[], &body).await
    };
    is_error(&push("", component()).await, 400, "name is missing");
    is_error(&push("?name=a", component()).await, 400, "version is missing");
    is_error(&push("?name=a&version=x", component()).await, 400, "version");
    is_error(&push("?name=a%2Fb&version=1", component()).await, 400, "policy name");
    is_error(
        &push("?name=a&version=1&parameter=x", component()).await,
        400,
        "NAME=VALUE",
    );
    is_error(
        &push("?name=a&version=1&force=yes", component()).await,
        400,
        "unknown parameter",
    );
    is_error(
        &push("?name=a&version=1&device=..%2Fx", component()).await,
        400,
        "device",
    );
    is_error(&push("?name=a&version=1&device=cam-9", component()).await, 404, "cam-9");
    is_error(
        &push("?name=a&version=1", b"\0asm\x01\0\0\0".to_vec()).await,
        415,
        "core module",
    );
    is_error(
        &push("?name=a&version=1", vec![]).await,
        415,
        "not a WebAssembly component",
    );
    let mut large = component();
    large.resize(offramp_fleet::MAX_POLICY + 1, 0);
    is_error(&push("?name=a&version=1", large.clone()).await, 413, "bytes");
    large.resize(offramp_fleet::MAX_POLICY + 2, 0);
    is_error(&push("?name=a&version=1", large).await, 413, "larger");
    world
        .controller
        .push_policy(offramp_fleet::Target::All, upload(1))
        .await
        .unwrap();
    is_error(
        &push("?name=entropy&version=1", b"\0asm\x0d\0\x01\0other".to_vec()).await,
        409,
        "another component",
    );
    assert_eq!(
        get(address, "/api/v1/policies").await.json()["policies"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    world.controller.shutdown().await;
}

#[tokio::test]
async fn wrong_questions_are_refused_with_a_hint() {
    let world = World::new().await;
    let address = world.address();
    is_error(
        &get(address, "/api/v1/devices/nobody").await,
        404,
        "never been heard of",
    );
    is_error(
        &get(address, "/api/v1/devices/nobody/summaries").await,
        404,
        "never been heard of",
    );
    is_error(&get(address, "/api/v1/devices?limit=0").await, 400, "limit");
    is_error(&get(address, "/api/v1/events?limit=1001").await, 400, "limit");
    is_error(&get(address, "/api/v1/events?since=yesterday").await, 400, "");
    is_error(&get(address, "/api/v1/nothing").await, 404, "no such resource");
    world.controller.shutdown().await;
}

#[tokio::test]
async fn pages_of_other_sites_can_neither_push_nor_read() {
    let world = World::new().await;
    world.device("cam-1").await;
    let address = world.address();
    let path = "/api/v1/policies?name=a&version=1";
    for header in [
        "Sec-Fetch-Site: cross-site",
        "Origin: http://evil.example",
        "Origin: null",
    ] {
        is_error(
            &request(address, "POST", path, &[header], &component()).await,
            403,
            "another site",
        );
    }
    // A name of another's that points here.
    is_error(
        &send(address, "GET", "/api/v1/status", &["Host: evil.example"], b"").await,
        403,
        "name",
    );
    assert_eq!(
        get(address, "/api/v1/policies").await.json()["policies"],
        serde_json::json!([])
    );
    let own = format!("Origin: http://{address}");
    let pushed = request(
        address,
        "POST",
        path,
        &[&own, "Sec-Fetch-Site: same-origin"],
        &component(),
    )
    .await;
    assert_eq!(pushed.status, 200, "{pushed:?}");
    world.controller.shutdown().await;
}
