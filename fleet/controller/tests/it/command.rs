//! The command line.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use offramp_broker::Broker;
use offramp_fleet::{Swarm, SwarmOptions};
use offramp_proto::{Kind, encode};

use crate::world::{Device, World, broker, component, soon};

fn fleet() -> Command {
    Command::new(env!("CARGO_BIN_EXE_offramp-fleet"))
}

async fn run(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// `offramp-fleet serve` as a process, killed with its test.
struct Served {
    child: Child,
    address: SocketAddr,
}

impl Served {
    async fn start(broker: &Broker, folder: &Path) -> Self {
        let served = Self::spawn(broker, folder).await;
        served
            .until("the broker", "/api/v1/status", |status| {
                status["broker"]["connected"] == true
            })
            .await;
        served
    }

    /// One that asks for tokens: it is there, whether or not it has reached the broker.
    async fn spawn(broker: &Broker, folder: &Path) -> Self {
        let mut command = fleet();
        command
            .args(["serve", "--tenant", "greenhouse", "--listen", "127.0.0.1:0"])
            .arg("--broker")
            .arg(format!("mqtt://{}", broker.address()))
            .arg("--database")
            .arg(folder.join("fleet.db"))
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        let started = tokio::task::spawn_blocking(move || {
            let mut child = command.spawn().unwrap();
            let mut log = BufReader::new(child.stderr.take().unwrap());
            let mut seen = String::new();
            let address = loop {
                let mut line = String::new();
                assert!(log.read_line(&mut line).unwrap() > 0, "the controller ended: {seen}");
                if let Some((_, address)) = line.trim_end().split_once("http://") {
                    break address
                        .chars()
                        .take_while(|c| c.is_ascii_digit() || ".:".contains(*c))
                        .collect::<String>();
                }
                seen.push_str(&line);
            };
            // Somebody has to read on, or the log blocks the controller.
            std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
            Self {
                child,
                address: address.parse().unwrap(),
            }
        });
        soon("the controller", started).await.unwrap()
    }

    /// Waits until a resource is as it should be.
    async fn until(&self, what: &str, path: &str, enough: impl Fn(serde_json::Value) -> bool) {
        let wait = async {
            let mut news = news(self.address).await;
            while !enough(crate::http::get(self.address, path).await.json()) {
                news.next_line().await.unwrap().expect("the controller should live");
            }
        };
        soon(what, wait).await;
    }

    async fn until_frames(&self, frames: u64) {
        self.until("the summaries", "/api/v1/devices/cam-1", |device| {
            device["frames"] == frames
        })
        .await;
    }

    fn signal(&self, name: &str) {
        let done = Command::new("kill")
            .arg(format!("-{name}"))
            .arg(self.child.id().to_string())
            .status();
        assert!(done.unwrap().success());
    }
}

async fn news(address: SocketAddr) -> tokio::io::Lines<tokio::io::BufReader<tokio::net::TcpStream>> {
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET /changes HTTP/1.1\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    tokio::io::BufReader::new(stream).lines()
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn commands_talk_to_a_running_controller() {
    let world = World::new().await;
    let device = world.device("cam-1").await;
    device.say(Kind::Summary, encode(&device.summary(1)).unwrap()).await;
    world.until("the summary", |s| s.ingested == 1).await;
    let url = format!("http://{}", world.address());

    let mut command = fleet();
    command.args(["devices", "--url", &url]);
    let table = stdout(&run(command).await);
    let lines: Vec<_> = table.lines().collect();
    assert!(lines[0].starts_with("DEVICE  STATE"));
    assert!(lines[1].starts_with("cam-1   alive  revcol 3  threshold 1"), "{table}");

    let mut command = fleet();
    command.args(["devices", "--json", "--url", &url]);
    let json: serde_json::Value = serde_json::from_str(&stdout(&run(command).await)).unwrap();
    assert_eq!(json[0]["device"], "cam-1");

    let file = world.folder.path().join("entropy.wasm");
    std::fs::write(&file, component()).unwrap();
    let mut command = fleet();
    command.args(["policy", "push"]).arg(&file);
    command.args([
        "--name",
        "entropy",
        "--version",
        "2",
        "--parameter",
        "limit=0.5",
        "--device",
        "cam-1",
        "--url",
        &url,
    ]);
    assert_eq!(stdout(&run(command).await), "cam-1 1\n");

    let mut command = fleet();
    command.args(["policy", "list", "--url", &url]);
    assert!(stdout(&run(command).await).contains("entropy"));

    let mut command = fleet();
    command.args(["policy", "push"]).arg(&file);
    command.args([
        "--name",
        "entropy",
        "--version",
        "3",
        "--device",
        "cam-9",
        "--url",
        &url,
    ]);
    let refused = run(command).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        String::from_utf8(refused.stderr)
            .unwrap()
            .contains("unknown device `cam-9`")
    );

    let mut command = fleet();
    command
        .arg("key")
        .arg("--database")
        .arg(world.folder.path().join("fleet.db"));
    assert_eq!(
        stdout(&run(command).await),
        format!("{:?}\n", world.controller.public_key())
    );
    world.controller.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_is_looked_at_set_and_kept_apart_and_keys_are_replaced() {
    let world = World::new().await;
    let url = format!("http://{}", world.address());
    let device = world.device("cam-1").await;
    device.say(Kind::Birth, encode(&device.birth()).unwrap()).await;
    for number in 1..=3 {
        device
            .say(Kind::Summary, encode(&device.summary(number)).unwrap())
            .await;
    }
    world.until("the summaries", |s| s.ingested == 3).await;
    let json = async |arguments: &[&str]| -> serde_json::Value {
        let answer = tell(&url, &[arguments, &["--json"]].concat()).await;
        serde_json::from_str(&stdout(&answer)).unwrap()
    };

    let shown = stdout(&tell(&url, &["device", "cam-1"]).await);
    assert!(shown.contains("revcol 3") && shown.contains("tract"), "{shown}");
    assert_eq!(json(&["device", "cam-1"]).await["device"], "cam-1");
    let shown = stdout(&tell(&url, &["device", "cam-1", "--summaries"]).await);
    assert_eq!(shown.lines().count(), 4, "{shown}");
    let latest = json(&["device", "cam-1", "--summaries", "--limit", "2"]).await;
    let numbers = latest["summaries"].as_array().unwrap().iter().map(|s| &s["sequence"]);
    assert_eq!(numbers.collect::<Vec<_>>(), [2, 3]);
    let unknown = tell(&url, &["device", "cam-9"]).await;
    assert!(
        String::from_utf8_lossy(&unknown.stderr).contains("never been heard of"),
        "{unknown:?}"
    );

    let set = tell(&url, &["set", "cam-1", "--learning", "off", "--log", "debug"]).await;
    assert!(stdout(&set).contains("cam-1"), "{set:?}");
    let wanted = json(&["device", "cam-1"]).await["desired"]["settings"].clone();
    assert_eq!(
        (&wanted["enabled"], &wanted["log"]),
        (&false.into(), &"debug".into()),
        "{wanted}"
    );
    assert!(json(&["insight"]).await.is_object());

    let old = json(&["keys", "list"]).await[0]["key"].as_str().unwrap().to_owned();
    let new = stdout(&tell(&url, &["keys", "rotate"]).await);
    assert_eq!(json(&["keys", "list"]).await[1]["key"], new.trim());
    let refused = tell(&url, &["keys", "revoke", &old]).await;
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && why.contains("cam-1"), "{why}");
    stdout(&tell(&url, &["keys", "revoke", &old, "--force"]).await);
    assert!(json(&["keys", "list"]).await[0]["revoked_at"].is_u64());

    let apart = json(&["quarantine", "cam-1", "--reason", "it was stolen"]).await;
    assert_eq!(apart["state"], "quarantined");
    let shown = stdout(&tell(&url, &["device", "cam-1"]).await);
    assert!(shown.contains("it was stolen"), "{shown}");
    assert_eq!(json(&["release", "cam-1"]).await["quarantine"], serde_json::Value::Null);
    for shell in ["bash", "zsh", "fish"] {
        let mut command = fleet();
        command.args(["completion", shell]);
        assert!(stdout(&run(command).await).contains("quarantine"), "{shell}");
    }
    world.controller.shutdown().await;
}

/// Runs a command against a controller.
async fn tell(url: &str, arguments: &[&str]) -> Output {
    let mut command = fleet();
    command
        .args(arguments)
        .args(["--url", url])
        .env_remove("OFFRAMP_FLEET_TOKEN");
    run(command).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_is_started_followed_and_looked_at() {
    let world = World::new().await;
    let url = format!("http://{}", world.address());
    let options = SwarmOptions {
        broker: crate::world::url(&world.broker),
        tenant: crate::world::tenant(),
        key: world.controller.public_key(),
        devices: 3,
        interval: std::time::Duration::from_millis(50),
    };
    let swarm = soon("the swarm", Swarm::start(&options, || ())).await.unwrap();
    swarm.send(true);
    world.until("the windows before", |s| s.ingested >= 30).await;
    let file = world.folder.path().join("night.wasm");
    std::fs::write(&file, component()).unwrap();
    let file = file.to_str().unwrap();
    for (name, version) in [("night", "1"), ("day", "1")] {
        let added = tell(&url, &["policy", "add", file, "--name", name, "--version", version]).await;
        assert!(stdout(&added).starts_with(&format!("{name} 1 ")));
    }
    let quick = ["--watch", "0s", "--frames", "200", "--patience", "30s", "--follow"];

    let done = tell(
        &url,
        &[&["rollout", "start", "night", "1", "--canary", "1"][..], &quick].concat(),
    )
    .await;
    let text = stdout(&done);
    assert!(
        text.starts_with("rollout 1: night 1, done, wave 1, by local\n3 of 3 proven"),
        "{text}"
    );
    assert!(text.contains("GATE") && text.contains("holds"), "{text}");

    // One that costs more: it says so, and fails.
    let dear = ["rollout", "start", "day", "1", "--parameter", "simulate=cost"];
    let bad = tell(&url, &[&dear[..], &quick].concat()).await;
    assert_eq!(bad.status.code(), Some(1));
    let (out, error) = (
        String::from_utf8(bad.stdout).unwrap(),
        String::from_utf8(bad.stderr).unwrap(),
    );
    assert!(out.contains("gate `cost`") && out.contains("fails"), "{out}");
    assert!(
        error.contains("rollout 2 did not end well: it is rolled-back"),
        "{error}"
    );
    // With its gate open it goes through.
    let open = ["--gate", "cost=off", "--gate", "exits=off"];
    let forced = tell(&url, &[&dear[..], &open, &quick].concat()).await;
    assert!(stdout(&forced).contains("day 1, done, wave 1, by local"), "{forced:?}");

    let list = stdout(&tell(&url, &["rollout", "list"]).await);
    let states: Vec<&str> = list
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().nth(3).unwrap())
        .collect();
    assert_eq!(states, ["done", "rolled-back", "done"], "{list}");
    let shown: serde_json::Value =
        serde_json::from_str(&stdout(&tell(&url, &["rollout", "show", "2", "--json"]).await)).unwrap();
    assert_eq!(shown["devices"]["reverted"], 1);
    let late = tell(&url, &["rollout", "pause", "1"]).await;
    assert_eq!(late.status.code(), Some(1));
    assert!(String::from_utf8(late.stderr).unwrap().contains("rollout 1 is done"));
    let log = stdout(&tell(&url, &["audit", "--rollout", "3"]).await);
    assert!(log.contains("local") && log.contains("rollout.start"), "{log}");
    let status = stdout(&tell(&url, &["status"]).await);
    assert!(status.contains("connected") && status.contains("ingested"), "{status}");
    assert!(tell(&url, &["events"]).await.status.success());
    swarm.finish().await;
    world.controller.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn models_are_added_listed_given_and_taken_back() {
    let world = World::new().await;
    let url = format!("http://{}", world.address());
    let mut device = world.device("cam-1").await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.tar");
    std::fs::write(&file, crate::world::model()).unwrap();
    let file = file.to_str().unwrap();
    let zoo = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/zoo/revcol-fashion");
    let first = stdout(&tell(&url, &["model", "add", zoo]).await);
    let again = stdout(&tell(&url, &["model", "add", file, "--from", "https://models.example/1.tar"]).await);
    assert!(first.starts_with("revcol-fashion 1 "), "{first}");
    assert_eq!(first, again, "folder and file are the same package");
    let nowhere = tell(&url, &["model", "add", "no/such/folder"]).await;
    assert!(
        String::from_utf8(nowhere.stderr)
            .unwrap()
            .contains("there is no package no/such/folder")
    );

    let pushed = stdout(&tell(&url, &["model", "push", "revcol-fashion", "1", "--device", "cam-1"]).await);
    assert_eq!(pushed, "cam-1 1\n");
    let wanted = crate::push::desired(&mut device, &world.controller)
        .await
        .model
        .unwrap();
    assert_eq!((wanted.name.as_str(), wanted.version), ("revcol-fashion", 1));
    assert_eq!(wanted.url.as_deref(), Some("https://models.example/1.tar"));
    let listed = stdout(&tell(&url, &["model", "list"]).await);
    let row: Vec<&str> = listed.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(
        (row[0], row[1], row[3], row[4]),
        ("revcol-fashion", "1", "1", "0"),
        "{listed}"
    );
    let own = stdout(&tell(&url, &["model", "push", "--own"]).await);
    assert_eq!(own, "cam-1 2\n");
    assert_eq!(crate::push::desired(&mut device, &world.controller).await.model, None);
    let unknown = tell(&url, &["model", "push", "revcol-fashion", "9"]).await;
    let why = String::from_utf8(unknown.stderr).unwrap();
    assert!(
        why.contains("there is no model `revcol-fashion` 9") && why.contains("model add"),
        "{why}"
    );
    let neither = tell(&url, &["model", "push"]).await;
    assert_eq!(neither.status.code(), Some(2));

    let started = tell(&url, &["rollout", "start", "revcol-fashion", "1", "--model"]).await;
    assert_eq!(stdout(&started), "1\n");
    let list = stdout(&tell(&url, &["rollout", "list"]).await);
    assert!(list.contains("model revcol-fashion 1"), "{list}");
    let page = crate::http::get(world.address(), "/models/revcol-fashion/1").await.body;
    assert!(page.contains("/rollouts/1") && page.contains("sha256"), "{page}");
    world.controller.shutdown().await;
}

#[tokio::test]
async fn devices_are_labelled_grouped_and_selected() {
    let world = World::new().await;
    let url = format!("http://{}", world.address());
    for name in ["gate-1", "gate-2", "yard-1"] {
        world.device(name).await;
    }
    let labelled = tell(&url, &["label", "gate-1", "gate-2", "site=north", "floor=2"]).await;
    assert_eq!(stdout(&labelled), "gate-1\ngate-2\n");
    let labelled = tell(&url, &["label", "--select", "site=north,device!=gate-2", "floor-"]).await;
    assert_eq!(stdout(&labelled), "gate-1\n");
    let group = tell(&url, &["group", "set", "upstairs", "floor=2|3,state!=gone"]).await;
    assert_eq!(stdout(&group), "upstairs means 1 device\n");
    let groups = tell(&url, &["group", "list"]).await;
    let line = "upstairs        1  floor=2|3,state!=gone";
    assert!(stdout(&groups).contains(line), "{groups:?}");
    let devices = tell(&url, &["devices", "--select", "group=upstairs", "--json"]).await;
    let devices: serde_json::Value = serde_json::from_str(&stdout(&devices)).unwrap();
    assert_eq!(devices.as_array().unwrap().len(), 1);
    assert_eq!(devices[0]["labels"], serde_json::json!({"site": "north", "floor": "2"}));

    // A rollout goes to those that are meant.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("night.wasm");
    std::fs::write(&file, component()).unwrap();
    let file = file.to_str().unwrap();
    stdout(&tell(&url, &["policy", "add", file, "--name", "night", "--version", "1"]).await);
    let started = [
        "rollout",
        "start",
        "night",
        "1",
        "--no-replay",
        "--select",
        "group=upstairs",
    ];
    let id = stdout(&tell(&url, &started).await);
    let shown = crate::http::get(world.address(), &format!("/api/v1/rollouts/{}", id.trim()))
        .await
        .json();
    let members: Vec<&str> = shown["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["device"].as_str().unwrap())
        .collect();
    assert_eq!(members, ["gate-2"]);
    let pushed = [
        "policy",
        "push",
        file,
        "--name",
        "night",
        "--version",
        "1",
        "--select",
        "site=north",
    ];
    assert_eq!(stdout(&tell(&url, &pushed).await).lines().count(), 2);

    for (arguments, told) in [
        (&["devices", "--select", "state=asleep"][..], "`asleep` is no state"),
        (&["devices", "--select", "group=nobody"], "there is no group `nobody`"),
        (&["label", "gate-1", "model=x"], "`model` cannot be a label"),
        (&["label", "gate-1"], "no label is given"),
        (&["label", "site=north"], "name devices before their labels"),
        (&["group", "set", "a", "group=upstairs"], "cannot be made of another"),
        (&["group", "remove", "nobody"], "no such group"),
        (
            &["rollout", "start", "night", "1", "--select", "site=south"],
            "means no device",
        ),
    ] {
        let refused = tell(&url, arguments).await;
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(said.contains(told), "{said}");
    }
    assert_eq!(stdout(&tell(&url, &["group", "remove", "upstairs"]).await), "");

    // And in the page's address; what is none is told there.
    let page = crate::http::get(world.address(), "/?select=site%3Dnorth").await.body;
    assert!(
        page.contains("/devices/gate-1") && !page.contains("/devices/yard-1"),
        "{page}"
    );
    let page = crate::http::get(world.address(), "/?select=state%3D%3Cb%3E").await.body;
    assert!(
        page.contains("no term") && !page.contains("<b>") && page.contains("/devices/yard-1"),
        "{page}"
    );
    world.controller.shutdown().await;
}

#[tokio::test]
async fn tokens_are_made_used_and_revoked() {
    let (broker, folder) = (broker().await, tempfile::tempdir().unwrap());
    let database = folder.path().join("fleet.db");
    let mut first = fleet();
    let make = [
        "token",
        "create",
        "ada",
        "--role",
        "admin",
        "--tenant",
        "greenhouse",
        "--database",
    ];
    first.args(make).arg(&database);
    let ada = stdout(&run(first).await).trim().to_owned();
    assert!(ada.starts_with("offramp_"));

    let served = Served::spawn(&broker, folder.path()).await;
    let url = format!("http://{}", served.address);
    let stranger = tell(&url, &["devices"]).await;
    assert_eq!(stranger.status.code(), Some(1));
    let says = String::from_utf8(stranger.stderr).unwrap();
    assert!(
        says.contains("a token is needed") && says.contains("OFFRAMP_FLEET_TOKEN"),
        "{says}"
    );

    let with = |token: &str, arguments: &[&str]| {
        let mut command = fleet();
        command
            .args(arguments)
            .args(["--url", &url])
            .env("OFFRAMP_FLEET_TOKEN", token);
        run(command)
    };
    let make = with(&ada, &["token", "create", "wall", "--role", "viewer", "--days", "30"]).await;
    let wall = stdout(&make).trim().to_owned();
    assert!(
        String::from_utf8(make.stderr)
            .unwrap()
            .contains("cannot be shown again")
    );
    assert_eq!(stdout(&with(&wall, &["whoami"]).await), "wall viewer\n");
    assert!(with(&wall, &["devices"]).await.status.success());
    let refused = with(&wall, &["token", "list"]).await;
    assert!(String::from_utf8(refused.stderr).unwrap().contains("this needs admin"));
    let list = stdout(&with(&ada, &["token", "list"]).await);
    let names: Vec<_> = list
        .lines()
        .skip(1)
        .map(|l| l.split_whitespace().next().unwrap())
        .collect();
    assert_eq!(names, ["wall", "ada"], "{list}");
    assert!(list.contains("until ") && !list.contains(&wall), "{list}");

    assert!(with(&ada, &["token", "revoke", "wall"]).await.status.success());
    assert_eq!(with(&wall, &["devices"]).await.status.code(), Some(1));
    assert!(stdout(&with(&ada, &["token", "list"]).await).contains("revoked "));
    assert!(stdout(&with(&ada, &["audit"]).await).contains("token.revoke"));
    let odd = with(&ada, &["token", "revoke", "../devices"]).await;
    assert!(String::from_utf8(odd.stderr).unwrap().contains("there is no token"));
}

#[tokio::test]
async fn failure_and_wrong_usage_have_their_exit_codes() {
    let mut nobody = fleet();
    nobody.args(["devices", "--url", "http://127.0.0.1:1"]);
    let nobody = run(nobody).await;
    assert_eq!(nobody.status.code(), Some(1));
    assert!(
        String::from_utf8(nobody.stderr)
            .unwrap()
            .contains("offramp-fleet serve")
    );
    let mut wrong = fleet();
    wrong.args(["serve", "--broker", "http://localhost"]);
    let wrong = run(wrong).await;
    assert_eq!(wrong.status.code(), Some(2));
    assert!(String::from_utf8(wrong.stderr).unwrap().contains("mqtt://"));
}

#[tokio::test]
async fn killed_controller_comes_back_with_everything_and_counts_nothing_twice() {
    let (broker, folder) = (broker().await, tempfile::tempdir().unwrap());
    let device = Device::connect(&broker, "cam-1").await;
    let served = Served::start(&broker, folder.path()).await;
    for sequence in 1..=50 {
        device
            .say(Kind::Summary, encode(&device.summary(sequence)).unwrap())
            .await;
    }
    served.until_frames(5000).await;
    for sequence in 51..=100 {
        device
            .say(Kind::Summary, encode(&device.summary(sequence)).unwrap())
            .await;
    }
    served.signal("KILL");
    drop(served);
    let served = Served::start(&broker, folder.path()).await;
    device.say(Kind::Summary, encode(&device.summary(100)).unwrap()).await;
    device.say(Kind::Summary, encode(&device.summary(101)).unwrap()).await;
    served.until_frames(10_100).await;
}

#[tokio::test]
async fn terminated_controller_ends_in_order() {
    let (broker, folder) = (broker().await, tempfile::tempdir().unwrap());
    let mut served = Served::start(&broker, folder.path()).await;
    served.signal("TERM");
    let status = tokio::task::spawn_blocking(move || served.child.wait().unwrap());
    assert!(soon("the end", status).await.unwrap().success());
    assert!(
        !folder.path().join("fleet.db-wal").exists(),
        "the database was not closed"
    );
}
