//! Rollouts to simulated devices over a real broker.

use std::net::SocketAddr;
use std::time::Duration;

use offramp_fleet::{FRAMES, Harm, Swarm, SwarmOptions};
use offramp_link::BrokerUrl;
use offramp_proto::Generation;
use offramp_test_support::{Mosquitto, free_port, temp_dir};
use serde_json::{Value, json};

use crate::http::{get, request};
use crate::served::Served;
use crate::world::{World, component, soon, tenant, url};

/// Devices that have told of themselves, so that there is something to compare with.
async fn swarm(world: &World, devices: usize) -> Swarm {
    let options = SwarmOptions {
        broker: url(&world.broker),
        tenant: tenant(),
        key: world.controller.public_key(),
        devices,
        interval: Duration::from_millis(50),
    };
    let swarm = soon("the swarm", Swarm::start(&options, || ())).await.unwrap();
    swarm.send(true);
    let enough = devices as u64 * 10;
    world.until("the windows before", |s| s.ingested >= enough).await;
    swarm
}

pub(crate) async fn post(address: SocketAddr, path: &str, body: &Value) -> (u16, Value) {
    let headers = ["Content-Type: application/json"];
    let answer = request(address, "POST", path, &headers, body.to_string().as_bytes()).await;
    (answer.status, answer.json())
}

pub(crate) async fn add(address: SocketAddr) {
    let path = "/api/v1/policies?name=entropy&version=7&target=none";
    let answer = request(address, "POST", path, &[], &component()).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.json()["devices"], json!([]), "nobody gets it");
}

/// Starts a rollout of the policy that does this harm.
pub(crate) async fn roll_out(address: SocketAddr, harm: Harm, plan: &Value) -> u64 {
    let (_, name) = Harm::ALL.into_iter().find(|(known, _)| *known == harm).unwrap();
    let wanted = json!({
        "policy": "entropy", "version": 7, "parameters": {"simulate": name}, "plan": plan,
    });
    let (status, answer) = post(address, "/api/v1/rollouts", &wanted).await;
    assert_eq!(status, 200, "{answer}");
    answer["id"].as_u64().unwrap()
}

/// Waits until a rollout is as it should be.
async fn until(world: &World, id: u64, enough: impl Fn(&Value) -> bool) -> Value {
    let mut statistics = world.controller.subscribe();
    let wait = async {
        loop {
            statistics.mark_unchanged();
            let rollout = get(world.address(), &format!("/api/v1/rollouts/{id}")).await.json();
            if enough(&rollout) {
                return rollout;
            }
            statistics.changed().await.expect("the controller lives");
        }
    };
    soon("the rollout", wait).await
}

pub(crate) fn is_over(rollout: &Value) -> bool {
    !["running", "paused", "rolling-back"].contains(&rollout["state"].as_str().unwrap())
}

fn plan() -> Value {
    json!({"canary": 2, "factor": 2.0, "watch": 0, "frames": 5 * FRAMES, "patience": 20})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_policy_reaches_every_device_and_the_log_tells_the_way() {
    let world = World::new().await;
    let address = world.address();
    add(address).await;
    let swarm = swarm(&world, 6).await;
    let id = roll_out(address, Harm::None, &plan()).await;
    let done = until(&world, id, is_over).await;
    assert_eq!(
        (&done["state"], &done["devices"]["proven"]),
        (&json!("done"), &json!(6)),
        "{done}"
    );
    assert_eq!(done["created_by"], "local");
    let waves: Vec<u64> = done["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|member| member["wave"].as_u64().unwrap())
        .collect();
    let of = |wave| waves.iter().filter(|w| **w == wave).count();
    assert_eq!((of(0), of(1), of(2)), (2, 2, 2), "{waves:?}");
    assert!(
        done["gauges"]
            .as_array()
            .unwrap()
            .iter()
            .all(|gauge| gauge["verdict"] == "holds"),
        "{done}"
    );

    let log = get(address, &format!("/api/v1/audit?rollout={id}")).await.json();
    let entries: Vec<(String, String)> = log["entries"]
        .as_array()
        .unwrap()
        .iter()
        .rev()
        .map(|e| (e["who"].as_str().unwrap().into(), e["what"].as_str().unwrap().into()))
        .collect();
    let expected = [
        ("local", "rollout.start"),
        ("controller", "rollout.wave"),
        ("controller", "rollout.wave"),
        ("controller", "rollout.done"),
    ];
    assert_eq!(entries, expected.map(|(who, what)| (who.to_owned(), what.to_owned())));

    // And back, by hand.
    let (status, answer) = post(address, &format!("/api/v1/rollouts/{id}/roll-back"), &json!({})).await;
    assert_eq!(status, 200, "{answer}");
    let back = until(&world, id, is_over).await;
    assert_eq!(
        (&back["state"], &back["devices"]["reverted"]),
        (&json!("rolled-back"), &json!(6))
    );
    // They had no policy of the fleet: their own one decides again.
    let device = offramp_proto::DeviceId::new("sim-00003").unwrap();
    let report = soon("the report", world.controller.reported(&device, Generation(2)))
        .await
        .unwrap();
    assert_eq!(report.policy, ("threshold".to_owned(), 1));
    swarm.finish().await;
    world.controller.shutdown().await;
}

/// A policy that does harm stops at the canary by itself, at the gate that is for it, and devices get back what they
/// had.
async fn stops(harm: Harm, gate: &str) {
    let world = World::new().await;
    let address = world.address();
    add(address).await;
    let swarm = swarm(&world, 6).await;
    let mut plan = plan();
    if harm == Harm::Silent {
        plan["patience"] = json!(1);
    }
    let id = roll_out(address, harm, &plan).await;
    let over = until(&world, id, is_over).await;
    assert_eq!(over["state"], "rolled-back", "{over}");
    let reason = over["reason"].as_str().unwrap();
    assert!(reason.contains(&format!("wave 0: gate `{gate}`")), "{reason}");
    let devices = &over["devices"];
    assert_eq!(
        (&devices["waiting"], &devices["reverted"]),
        (&json!(4), &json!(2)),
        "{over}"
    );
    for member in over["members"].as_array().unwrap() {
        if member["state"] == "reverted" {
            let device = offramp_proto::DeviceId::new(member["device"].as_str().unwrap()).unwrap();
            let report = soon("the report", world.controller.reported(&device, Generation(2)))
                .await
                .unwrap();
            assert_eq!((report.policy.0.as_str(), report.refused), ("threshold", None));
        }
    }
    swarm.finish().await;
    world.controller.shutdown().await;
}

macro_rules! stops {
    ($($name:ident: $harm:ident, $gate:literal;)*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            stops(Harm::$harm, $gate).await;
        }
    )*};
}

stops! {
    a_policy_that_devices_refuse_stops_at_the_canary: Refuse, "failed";
    a_policy_that_devices_do_not_answer_to_stops_at_the_canary: Silent, "failed";
    a_policy_that_is_given_up_stops_at_the_canary: GivesUp, "failed";
    a_policy_that_fails_now_and_then_stops_at_the_canary: Faults, "faults";
    a_policy_that_costs_more_stops_at_the_canary: Cost, "cost";
    a_policy_that_moves_the_exits_stops_at_the_canary: Exits, "exits";
    a_policy_that_disagrees_more_stops_at_the_canary: Disagreement, "disagreement";
    a_policy_that_gives_up_accuracy_stops_at_the_canary: Loss, "loss";
    a_policy_that_makes_the_learner_roll_back_stops_at_the_canary: Rollbacks, "rollbacks";
    a_policy_that_crashes_agents_stops_at_the_canary: Restarts, "restarts";
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_goes_into_quarantine_has_failed() {
    let world = World::new().await;
    let address = world.address();
    add(address).await;
    let swarm = swarm(&world, 4).await;
    let mut plan = plan();
    plan["watch"] = json!(600);
    let id = roll_out(address, Harm::None, &plan).await;
    let watched = until(&world, id, |rollout| rollout["devices"]["in-force"] == 2).await;
    let members = watched["members"].as_array().unwrap();
    let canary = members.iter().find(|member| member["state"] == "in-force").unwrap();
    let path = format!("/api/v1/devices/{}/quarantine", canary["device"].as_str().unwrap());
    let (status, answer) = post(address, &path, &json!({"reason": "stolen"})).await;
    assert_eq!(status, 200, "{answer}");
    let over = until(&world, id, is_over).await;
    assert_eq!(over["state"], "rolled-back", "{over}");
    assert!(over["reason"].as_str().unwrap().contains("gate `failed`"), "{over}");
    swarm.finish().await;
    world.controller.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pause_resume_and_abort_do_what_they_say_and_nonsense_is_refused() {
    let world = World::new().await;
    let address = world.address();
    let none = json!({"policy": "entropy", "version": 7});
    let (status, answer) = post(address, "/api/v1/rollouts", &none).await;
    assert_eq!(status, 404, "there is no such policy: {answer}");
    add(address).await;
    let (status, answer) = post(address, "/api/v1/rollouts", &none).await;
    assert_eq!(status, 409, "there is no device: {answer}");
    let swarm = swarm(&world, 4).await;
    for (bad, status) in [
        (json!({"policy": "entropy", "version": 7, "plan": {"canary": 0}}), 400),
        (json!({"policy": "entropy", "version": 7, "plan": {"canaries": 1}}), 400),
        (json!({"policy": "entropy", "version": 7, "devices": ["nobody"]}), 404),
        (json!({"policy": "entropy", "version": 7, "devices": ["../x"]}), 400),
        (json!({"policy": "entropy", "version": 7, "who": "ada"}), 400),
        (
            json!({"policy": "entropy", "version": 7, "parameters": {"a": "x".repeat(600)}}),
            400,
        ),
        (json!([]), 400),
    ] {
        let (got, answer) = post(address, "/api/v1/rollouts", &bad).await;
        assert_eq!(got, status, "{bad}: {answer}");
        assert!(answer["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{answer}");
    }

    // Watched for an hour: it does not end by itself.
    let slow = json!({"canary": 2, "watch": 3600});
    let id = roll_out(address, Harm::None, &slow).await;
    until(&world, id, |rollout| rollout["devices"]["in-force"] == 2).await;
    let (status, answer) = post(address, "/api/v1/rollouts", &none).await;
    assert_eq!(status, 409, "its devices are in hand: {answer}");
    let tell = async |act: &str| post(address, &format!("/api/v1/rollouts/{id}/{act}"), &json!({})).await;
    assert_eq!(tell("resume").await.0, 409);
    assert_eq!(tell("explode").await.0, 404);
    assert_eq!(tell("pause?reason=%20").await.0, 400);
    assert_eq!(tell("pause?reason=it%20is%20night").await.1["state"], "paused");
    let log = get(address, &format!("/api/v1/audit?rollout={id}&limit=1"))
        .await
        .json();
    assert_eq!(log["entries"][0]["detail"], "it is night");
    assert_eq!(tell("pause").await.0, 409);
    assert_eq!(tell("resume").await.1["state"], "running");
    assert_eq!(tell("abort").await.1["state"], "aborted");
    assert_eq!(tell("resume").await.0, 409);
    let (status, _) = post(address, "/api/v1/rollouts/99/abort", &json!({})).await;
    assert_eq!(status, 404);
    // What devices have they keep; the others never get it.
    let over = get(address, &format!("/api/v1/rollouts/{id}")).await.json();
    assert_eq!(
        (&over["devices"]["in-force"], &over["devices"]["waiting"]),
        (&json!(2), &json!(2))
    );
    swarm.finish().await;
    world.controller.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_of_a_thousand_survives_the_death_of_controller_and_broker_and_does_nothing_twice() {
    const DEVICES: usize = 1000;
    let folder = temp_dir();
    let mut mosquitto = Mosquitto::start_with("max_queued_messages 0");
    let broker: BrokerUrl = format!("mqtt://{}", mosquitto.address()).parse().unwrap();
    let port = free_port();
    let database = folder.path().join("fleet.db").display().to_string();
    let mut served = Served::start(&["--database", &database], &broker, port);
    let address = served.address();
    add(address).await;
    let swarm = served.swarm(&broker, DEVICES).await;
    let known = |status: &Value| status["statistics"]["ingested"].as_u64().unwrap() >= 2 * DEVICES as u64;
    served.ask_until("/api/v1/status", known).await;

    // The broker's death looks like that of all devices for a while: their restarts are none, and nobody is judged by
    // it.
    let plan = json!({"canary": 10, "factor": 3.0, "watch": 0, "frames": FRAMES, "patience": 300});
    let id = roll_out(address, Harm::None, &plan).await;
    let proven = |at_least: u64| move |rollout: &Value| rollout["devices"]["proven"].as_u64().unwrap() >= at_least;
    served.until(id, proven(10)).await;
    served.process.kill();
    served = Served::start(&["--database", &database], &broker, port);
    served.until(id, proven(90)).await;
    mosquitto.kill();
    mosquitto.resume();
    served.until(id, proven(300)).await;
    served.process.kill();
    served = Served::start(&["--database", &database], &broker, port);
    let done = served.until(id, is_over).await;
    assert_eq!(
        (&done["state"], &done["devices"]["proven"]),
        (&json!("done"), &json!(DEVICES)),
        "{}",
        done["reason"]
    );

    // Each was ordered once: generation 1 for every device, and one entry for each wave.
    let members = done["members"].as_array().unwrap();
    assert!(members.iter().all(|member| member["generation"] == 1));
    let log = get(address, &format!("/api/v1/audit?rollout={id}&limit=1000"))
        .await
        .json();
    let count = |what: &str| {
        let entries = log["entries"].as_array().unwrap();
        entries.iter().filter(|entry| entry["what"] == what).count()
    };
    assert_eq!(
        (count("rollout.start"), count("rollout.done"), count("device.failed")),
        (1, 1, 0)
    );
    assert_eq!(count("rollout.wave") as u64, done["wave"].as_u64().unwrap());
    // And no summary counts twice, whoever died. (What a broker had confirmed and not handed on dies with it.)
    let sent = swarm.finish().await;
    let page = get(address, "/api/v1/devices?limit=1000").await.json();
    let devices = page["devices"].as_array().unwrap();
    for (device, sent) in sent {
        let stored = devices.iter().find(|d| d["device"] == device.as_str()).unwrap();
        assert!(stored["frames"].as_u64().unwrap() <= sent * FRAMES, "{device}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_of_devices_cost_and_rollouts() {
    let world = World::new().await;
    let address = world.address();
    add(address).await;
    let swarm = swarm(&world, 3).await;
    let id = roll_out(address, Harm::None, &plan()).await;
    until(&world, id, is_over).await;
    let answer = get(address, "/metrics").await;
    assert!(
        answer
            .head
            .to_ascii_lowercase()
            .contains("application/openmetrics-text"),
        "{}",
        answer.head
    );
    let has = |line: &str| {
        let found = answer.body.lines().any(|l| l == line);
        assert!(found, "{line} is not in\n{}", answer.body);
    };
    has("offramp_devices{state=\"alive\"} 3");
    has("offramp_desired_devices{progress=\"in-force\"} 3");
    has("offramp_cost_share 0.4");
    has("offramp_rollout_devices{rollout=\"1\",policy=\"entropy 7\",rollout_state=\"done\",state=\"proven\"} 3");
    swarm.finish().await;
    world.controller.shutdown().await;
}
