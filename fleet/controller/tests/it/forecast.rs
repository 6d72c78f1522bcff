//! Policies are replayed on what devices share before any device gets them.

use std::net::SocketAddr;

use offramp_core::Verdict;
use offramp_proto::{Kind, MAX_TRACE, TraceSample, encode};
use offramp_trace::{Frame, Header, Reader, Writer};
use serde_json::{Value, json};

use crate::http::{get, request};
use crate::world::{Device, World};

const SCENES: &[u8] = include_bytes!("../../../../models/zoo/revcol-fashion/scenes.trace");
pub(crate) const THRESHOLD: &[u8] = include_bytes!("../../../../plugins/prebuilt/threshold.wasm");

/// A camera's frames, as the built-in rule decided about them at this threshold.
fn recorded(threshold: f32) -> (Header, Vec<Frame>) {
    let mut reader = Reader::new(SCENES).unwrap();
    let mut frames = Vec::new();
    while let Some(mut frame) = reader.next_frame().unwrap() {
        let last = frame.exits.len() - 1;
        let leaves = |view: &offramp_core::ExitView| view.confidence >= threshold;
        let taken = frame.exits.iter().position(|seen| leaves(&seen.view)).unwrap_or(last);
        for (exit, seen) in frame.exits.iter_mut().enumerate() {
            seen.view.threshold = threshold;
            let verdict = if exit == taken { Verdict::Leave } else { Verdict::GoOn };
            seen.verdict = (exit <= taken && exit < last).then_some(verdict);
        }
        frame.taken = Some(taken as u8);
        frames.push(frame);
    }
    (reader.header().clone(), frames)
}

/// Pieces as a device sends them.
fn pieces(header: &Header, frames: &[Frame]) -> Vec<Vec<u8>> {
    let written = frames.chunks(300).map(|frames| {
        let mut writer = Writer::new(Vec::new(), header.clone()).unwrap();
        frames.iter().for_each(|frame| writer.push(frame).unwrap());
        writer.finish().unwrap()
    });
    written.inspect(|piece| assert!(piece.len() <= MAX_TRACE)).collect()
}

/// One piece.
pub(crate) fn piece() -> Vec<u8> {
    let (header, frames) = recorded(0.8);
    pieces(&header, &frames[..200]).remove(0)
}

async fn share(world: &World, device: &Device, traces: &[Vec<u8>]) {
    let (kept, received) = (
        world.controller.statistics().traces,
        world.controller.statistics().received,
    );
    for trace in traces {
        let sample = TraceSample {
            device: device.id.clone(),
            boot: device.boot,
            trace: trace.clone(),
        };
        device.say(Kind::Trace, encode(&sample).unwrap()).await;
    }
    let all = traces.len() as u64;
    world.until("the traces", |s| s.received == received + all).await;
    assert!(world.controller.statistics().traces <= kept + all);
}

async fn add(address: SocketAddr, name: &str, component: &[u8]) {
    let path = format!("/api/v1/policies?name={name}&version=1&target=none");
    assert_eq!(request(address, "POST", &path, &[], component).await.status, 200);
}

async fn start(address: SocketAddr, wanted: &Value) -> (u16, Value) {
    let headers = ["Content-Type: application/json"];
    let answer = request(
        address,
        "POST",
        "/api/v1/rollouts",
        &headers,
        wanted.to_string().as_bytes(),
    )
    .await;
    (answer.status, answer.json())
}

#[tokio::test]
async fn what_was_decided_is_decided_again_and_another_threshold_costs_what_it_costs() {
    let world = World::new().await;
    let address = world.address();
    add(address, "threshold", THRESHOLD).await;
    let path = "/api/v1/policies/threshold/1/replay";
    let nothing = get(address, path).await.json();
    assert_eq!(nothing, json!({"models": [], "left_out": 0}));

    let (header, frames) = recorded(0.8);
    let pieces = pieces(&header, &frames);
    assert!(pieces.len() > 2, "{}", pieces.len());
    let device = world.device("cam-1").await;
    share(&world, &device, &pieces).await;
    assert_eq!(world.controller.statistics().traces, pieces.len() as u64);
    share(&world, &device, &pieces[..1]).await;
    assert_eq!(
        world.controller.statistics().traces,
        pieces.len() as u64,
        "what comes twice is kept once"
    );

    let same = get(address, path).await.json();
    let model = &same["models"][0];
    let counts = [
        "devices",
        "pieces",
        "frames",
        "scored",
        "changed",
        "faults",
        "not_represented",
    ]
    .map(|key| model[key].as_u64());
    let all = frames.len() as u64;
    assert_eq!(counts, [1, pieces.len() as u64, all, all, 0, 0, 0].map(Some), "{model}");
    assert_eq!(model["today"], model["foreseen"]);
    // By hand.
    let cost: f64 = frames
        .iter()
        .map(|f| f64::from(header.exit_costs[usize::from(f.taken.unwrap())]))
        .sum();
    let cost = cost / all as f64;
    assert!(
        (model["today"]["cost"].as_f64().unwrap() - cost).abs() < 1e-9,
        "{model}"
    );

    // Never sure enough: every frame runs to the last exit, and no prediction differs from it.
    let wary = get(address, &format!("{path}?parameter=threshold=1")).await.json();
    let wary = &wary["models"][0];
    assert!(wary["foreseen"]["cost"].as_f64().unwrap() > cost && wary["changed"].as_u64().unwrap() > 0);
    assert!(wary["foreseen"]["agreement"].as_f64().unwrap() >= wary["today"]["agreement"].as_f64().unwrap());
    // The traces of another device are none of its.
    world.device("cam-2").await;
    let other = get(address, &format!("{path}?device=cam-2")).await.json();
    assert_eq!(other["models"], json!([]));
    world.controller.shutdown().await;
}

#[tokio::test]
async fn a_rollout_that_would_fail_a_gate_does_not_start_unless_that_is_meant() {
    let world = World::new().await;
    let address = world.address();
    add(address, "threshold", THRESHOLD).await;
    let device = world.device("cam-1").await;
    let (header, frames) = recorded(0.5);
    share(&world, &device, &pieces(&header, &frames)).await;

    let dear = json!({"policy": "threshold", "version": 1, "parameters": {"threshold": 0.999}});
    let (status, answer) = start(address, &dear).await;
    let error = answer["error"].as_str().unwrap();
    assert_eq!(status, 409, "{answer}");
    assert!(
        error.contains("gate `cost` would fail") && error.contains("today"),
        "{error}"
    );
    assert!(answer["hint"].as_str().unwrap().contains("--no-replay"));
    assert_eq!(get(address, "/api/v1/rollouts").await.json()["rollouts"], json!([]));

    // One that takes no such parameter would be refused by every device.
    let wrong = json!({"policy": "threshold", "version": 1, "parameters": {"treshold": 0.5}});
    let (status, answer) = start(address, &wrong).await;
    assert_eq!(status, 409, "{answer}");
    let error = answer["error"].as_str().unwrap();
    assert!(error.contains("gate `failed`") && error.contains("treshold"), "{error}");

    let mut meant = dear.clone();
    meant["plan"] = json!({"gates": {"cost": null, "exits": null}});
    let (status, answer) = start(address, &meant).await;
    assert_eq!(status, 200, "{answer}");
    let id = &answer["id"];
    let rollout = get(address, &format!("/api/v1/rollouts/{id}")).await.json();
    let model = &rollout["forecast"]["models"][0];
    let (today, foreseen) = (&model["today"]["cost"], &model["foreseen"]["cost"]);
    assert!(foreseen.as_f64().unwrap() > 1.25 * today.as_f64().unwrap(), "{model}");
    let page = get(address, &format!("/rollouts/{id}")).await.body;
    assert!(page.contains("id=\"forecast\"") && page.contains("foreseen"));
    request(address, "POST", &format!("/api/v1/rollouts/{id}/abort"), &[], b"").await;

    let mut blind = dear;
    blind["replay"] = json!(false);
    let (status, answer) = start(address, &blind).await;
    assert_eq!(status, 200, "{answer}");
    let rollout = get(address, &format!("/api/v1/rollouts/{}", answer["id"])).await.json();
    assert_eq!(rollout["forecast"], Value::Null);
    world.controller.shutdown().await;
}

#[tokio::test]
async fn what_is_no_trace_or_no_policy_is_refused_with_a_reason() {
    let world = World::new().await;
    let address = world.address();
    let (device, other) = (world.device("cam-1").await, world.device("cam-2").await);
    let (header, frames) = recorded(0.8);
    let good = pieces(&header, &frames[..50]).remove(0);
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let mut featured = Vec::new();
    Writer::new(
        &mut featured,
        Header {
            features: vec![4; header.exits()],
            ..header.clone()
        },
    )
    .unwrap();
    let empty = pieces(&header, &frames[..1]).remove(0)[..good.len().min(40)].to_vec();
    let bad = [
        b"no trace".to_vec(),
        flipped,
        good[..good.len() - 1].to_vec(),
        featured,
        empty,
    ];
    share(&world, &device, &bad).await;
    let foreign = TraceSample {
        device: other.id.clone(),
        boot: other.boot,
        trace: good.clone(),
    };
    device.say(Kind::Trace, encode(&foreign).unwrap()).await;
    let large = TraceSample {
        trace: vec![0; 10],
        ..foreign
    };
    // Larger than any message may be.
    let mut bytes = encode(&large).unwrap();
    bytes.resize(MAX_TRACE * 2, 0);
    device.say(Kind::Trace, bytes).await;
    let refused = bad.len() as u64 + 2;
    let statistics = world.until("the refusals", |s| s.refused == refused).await;
    assert_eq!(statistics.traces, 0);

    share(&world, &device, &[good]).await;
    add(address, "broken", &crate::world::component()).await;
    let broken = get(address, "/api/v1/policies/broken/1/replay").await;
    assert_eq!(broken.status, 422, "{}", broken.body);
    assert!(
        broken.json()["error"]
            .as_str()
            .unwrap()
            .contains("no policy that a device would take")
    );
    let (status, _) = start(address, &json!({"policy": "broken", "version": 1})).await;
    assert_eq!(status, 422, "no device gets it");
    for path in [
        "/api/v1/policies/nobody/1/replay",
        "/api/v1/policies/broken/2/replay",
        "/api/v1/policies/broken/x/replay",
    ] {
        assert_eq!(get(address, path).await.status, 404, "{path}");
    }
    assert_eq!(
        get(address, "/api/v1/policies/broken/1/replay?parameter=x")
            .await
            .status,
        400
    );
    world.controller.shutdown().await;
}
