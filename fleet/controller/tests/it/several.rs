//! Several controllers on one PostgreSQL and one broker.

use std::net::SocketAddr;
use std::time::Duration;

use offramp_fleet::{FRAMES, Harm};
use offramp_link::BrokerUrl;
use offramp_test_support::{Mosquitto, Postgres, free_port, temp_dir};
use serde_json::{Value, json};

use crate::http::get;
use crate::rollout::{add, is_over, roll_out};
use crate::served::Served;
use crate::world::soon;

fn on_duty(status: &Value) -> Option<&str> {
    let controllers = status["controllers"].as_array().unwrap();
    controllers.iter().find(|c| c["on_duty"] == true)?["name"].as_str()
}

async fn ingested(served: &Served) -> u64 {
    served.status().await["statistics"]["ingested"].as_u64().unwrap()
}

/// Frames of every device, by the sum of all pages.
async fn frames(address: SocketAddr) -> Vec<(String, u64)> {
    let page = get(address, "/api/v1/devices?limit=1000").await.json();
    let devices = page["devices"].as_array().unwrap().iter();
    let frames = devices.map(|d| (d["device"].as_str().unwrap().to_owned(), d["frames"].as_u64().unwrap()));
    frames.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_of_a_thousand_survives_the_death_of_one_of_two_controllers_and_of_the_database_and_nothing_is_lost()
{
    const DEVICES: usize = 1000;
    let mut postgres = Postgres::start();
    let database = postgres.database();
    let folder = temp_dir();
    let keys = folder.path().join("fleet").display().to_string();
    let mosquitto = Mosquitto::start_with("max_queued_messages 0");
    let broker: BrokerUrl = format!("mqtt://{}", mosquitto.address()).parse().unwrap();
    let start = |name: &str| {
        let arguments = ["--database", &database, "--keys", &keys, "--name", name];
        Served::start(&arguments, &broker, free_port())
    };
    let mut controllers = [("north", start("north")), ("south", start("south"))];
    // Either can be asked for anything.
    add(controllers[1].1.address()).await;
    let status = controllers[0]
        .1
        .ask_until("/api/v1/status", |status| on_duty(status).is_some())
        .await;
    let swarm = controllers[0].1.swarm(&broker, DEVICES).await;
    let known = async {
        while ingested(&controllers[0].1).await + ingested(&controllers[1].1).await < 2 * DEVICES as u64 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    soon("the devices", known).await;
    for (name, controller) in &controllers {
        assert!(ingested(controller).await > 100, "{name} gets its share");
    }

    // The one that is not on duty is told to begin, and the one that is dies in the middle.
    controllers.sort_by_key(|(name, _)| on_duty(&status) != Some(name));
    let [(name, mut leader), (_, follower)] = controllers;
    let plan = json!({"canary": 10, "factor": 3.0, "watch": 0, "frames": FRAMES, "patience": 300});
    let id = roll_out(follower.address(), Harm::None, &plan).await;
    let proven = |at_least: u64| move |rollout: &Value| rollout["devices"]["proven"].as_u64().unwrap() >= at_least;
    follower.until(id, proven(10)).await;
    leader.process.kill();
    follower.until(id, proven(90)).await;
    postgres.kill();
    postgres.resume();
    let healthy = async {
        while get(follower.address(), "/healthz").await.status != 200 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    soon("the database", healthy).await;
    let done = follower.until(id, is_over).await;
    assert_eq!(
        (&done["state"], &done["devices"]["proven"]),
        (&json!("done"), &json!(DEVICES)),
        "{}",
        done["reason"]
    );
    // Each was ordered once.
    let members = done["members"].as_array().unwrap();
    assert!(members.iter().all(|member| member["generation"] == 1));
    let log = get(follower.address(), &format!("/api/v1/audit?rollout={id}&limit=1000"))
        .await
        .json();
    let waves = log["entries"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|e| e["what"] == "rollout.wave");
    assert_eq!(waves.count() as u64, done["wave"].as_u64().unwrap());

    // What the broker kept for the dead one is taken over.
    let alone = |status: &Value| status["controllers"].as_array().unwrap().len() == 1;
    follower.ask_until("/api/v1/status", alone).await;
    // It comes back, and gets its share again.
    let back = start(name);
    let share = |status: &Value| status["statistics"]["ingested"].as_u64().unwrap() > 100;
    back.ask_until("/api/v1/status", share).await;
    let sent = swarm.finish().await;
    let all: u64 = sent.iter().map(|(_, sent)| sent * FRAMES).sum();
    let complete = async {
        loop {
            let frames = frames(follower.address()).await;
            if frames.iter().map(|(_, frames)| frames).sum::<u64>() >= all {
                return frames;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let frames = soon("every summary", complete).await;
    for (device, sent) in sent {
        let (_, stored) = frames.iter().find(|(name, _)| *name == device.as_str()).unwrap();
        assert_eq!(*stored, sent * FRAMES, "{device}: none lost, none doubled");
    }
}
