//! Who a device is, at a real broker with the rules and certificates that we make for it.

use std::path::{Path, PathBuf};
use std::process::Command;

use offramp_fleet::{Authority, Controller, Database, Options};
use offramp_link::{Config, Inbox, Link, Publication, State};
use offramp_proto::{BootId, Death, DeviceId, Kind, TenantId, Topic, encode};
use offramp_test_support::{Mosquitto, Postgres, free_port};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};

use crate::http::{Answer, request};
use crate::world::{broker, soon, tenant, url};

const JSON: &str = "Content-Type: application/json";

/// A mosquitto as `offramp-fleet broker` sets it up, and the controller that it is for.
struct Fleet {
    controller: Controller,
    folder: tempfile::TempDir,
    port: u16,
    mosquitto: Mosquitto,
}

impl Fleet {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::File(folder.path().join("fleet.db"));
        Self::start_on(folder, database).await
    }

    async fn start_on(folder: tempfile::TempDir, database: Database) -> Self {
        let (keys, out, port) = (
            folder.path().join("fleet.db"),
            folder.path().join("broker"),
            free_port(),
        );
        let made = Command::new(env!("CARGO_BIN_EXE_offramp-fleet"))
            .args([
                "broker",
                "--host",
                "localhost",
                "--host",
                "127.0.0.1",
                "--tenant",
                "greenhouse",
            ])
            .args(["--port", &port.to_string()])
            .arg("--out")
            .arg(&out)
            .arg("--keys")
            .arg(&keys)
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let told = String::from_utf8(made.stderr).unwrap();
        assert!(told.contains(&format!("mqtts://localhost:{port}")), "{told}");
        let listener = std::fs::read_to_string(out.join("offramp-greenhouse.conf")).unwrap();
        let mosquitto = tokio::task::block_in_place(|| Mosquitto::start_with(&listener));
        let options = Options {
            database,
            keys: Some(keys),
            ca: Some(out.join("ca.pem")),
            identity: Some(out.join("controller.pem")),
            ..Options::temporary(format!("mqtts://localhost:{port}").parse().unwrap(), tenant())
        };
        let controller = Controller::start(options).await.unwrap();
        let connected = |state: &State| matches!(state, State::Connected { .. });
        soon("the broker", controller.link().wait_for(connected)).await.unwrap();
        Self {
            controller,
            folder,
            port,
            mosquitto,
        }
    }

    async fn post(&self, path: &str, body: &Value) -> Answer {
        let body = body.to_string();
        request(
            self.controller.address(),
            "POST",
            &format!("/api/v1{path}"),
            &[JSON],
            body.as_bytes(),
        )
        .await
    }

    async fn token(&self, wanted: &Value) -> String {
        let made = self.post("/enrolments", wanted).await;
        assert_eq!(made.status, 200, "{made:?}");
        made.json()["token"].as_str().unwrap().to_owned()
    }

    /// Enrols a device, which is given a label; gives its file.
    async fn enrol(&self, name: &str) -> PathBuf {
        let token = self.token(&json!({"labels": {"site": "north"}})).await;
        let key = KeyPair::generate().unwrap();
        let answer = self
            .post("/enrol", &json!({"token": token, "device": name, "request": csr(&key)}))
            .await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let answer = answer.json();
        assert_eq!(
            (answer["tenant"].as_str(), answer["device"].as_str()),
            (Some("greenhouse"), Some(name))
        );
        assert_eq!(answer["broker"], format!("mqtts://localhost:{}", self.port));
        identity(self.folder.path(), name, answer["certificate"].as_str().unwrap(), &key)
    }

    fn config(&self, client: &str, identity: Option<&Path>) -> Config {
        let mut config = Config::new(format!("mqtts://localhost:{}", self.port).parse().unwrap(), client);
        config.ca = Some(self.folder.path().join("broker/ca.pem"));
        config.identity = identity.map(Into::into);
        config
    }

    async fn connect(&self, config: &Config) -> (Link, Inbox) {
        let (link, inbox) = Link::connect(config).unwrap();
        let connected = |state: &State| matches!(state, State::Connected { .. });
        soon("the broker", link.state().wait_for(connected)).await.unwrap();
        (link, inbox)
    }
}

fn csr(key: &KeyPair) -> String {
    CertificateParams::default()
        .serialize_request(key)
        .unwrap()
        .pem()
        .unwrap()
}

fn identity(folder: &Path, name: &str, certificate: &str, key: &KeyPair) -> PathBuf {
    let file = folder.join(format!("{name}.pem"));
    offramp_fleet::write_private(&file, &format!("{certificate}{}", key.serialize_pem())).unwrap();
    file
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_speaks_and_hears_in_its_own_name_only() {
    in_its_own_name_only(Fleet::start().await).await;
}

/// Their share of what devices send is theirs to read.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_speaks_and_hears_in_its_own_name_only_to_one_of_several_controllers() {
    let postgres = tokio::task::block_in_place(Postgres::shared);
    let database = Database::Postgres(postgres.database().parse().unwrap());
    in_its_own_name_only(Fleet::start_on(tempfile::tempdir().unwrap(), database).await).await;
}

async fn in_its_own_name_only(fleet: Fleet) {
    let (first, second) = (fleet.enrol("cam-1").await, fleet.enrol("cam-2").await);
    let (one, two) = (DeviceId::new("cam-1").unwrap(), DeviceId::new("cam-2").unwrap());
    // It wants to hear what is meant for the other, and for the controller.
    let mut config = fleet.config("cam-1", Some(&first));
    config.subscriptions = vec![
        Topic::downlink_filter(&tenant(), &one),
        Topic::downlink_filter(&tenant(), &two),
        Topic::uplink_filter(&tenant()),
        "#".into(),
    ];
    let (link, mut inbox) = fleet.connect(&config).await;
    let device = |id: &DeviceId| {
        // Only what it would say is used.
        let birth = offramp_proto::Birth {
            device: id.clone(),
            boot: offramp_proto::BootId([7; 16]),
            started_at: 1_700_000_000_000,
            agent: "0.1.0".into(),
            model: offramp_proto::ModelFacts {
                name: "revcol".into(),
                version: 1,
                digest: offramp_proto::Digest([5; 32]),
                classes: vec!["boot".into(), "coat".into()],
                stage_macs: vec![10, 20],
            },
            capabilities: Vec::new(),
            told: 0,
        };
        encode(&birth).unwrap()
    };
    // In the other's name; a broker may confirm it or not, and tells nobody.
    let other = Topic::new(&tenant(), &two, Kind::Birth).to_string();
    let _ = link.publish(Publication::new(other, device(&two))).await;
    let foreign = Topic::new(&TenantId::new("other").unwrap(), &one, Kind::Birth).to_string();
    let _ = link.publish(Publication::new(foreign, device(&one))).await;
    let own = Topic::new(&tenant(), &one, Kind::Birth).to_string();
    soon("the broker", link.publish(Publication::new(own, device(&one))))
        .await
        .unwrap();
    let mut statistics = fleet.controller.subscribe();
    let known = soon("the birth", statistics.wait_for(|s| s.received >= 1))
        .await
        .unwrap()
        .received;
    assert_eq!(known, 1, "what was said in other names has not arrived");
    let death = Death {
        device: one.clone(),
        boot: BootId([7; 16]),
    };
    let own = Topic::new(&tenant(), &one, Kind::Death).to_string();
    soon(
        "the broker",
        link.publish(Publication::new(own, encode(&death).unwrap())),
    )
    .await
    .unwrap();
    let known = soon("the death", statistics.wait_for(|s| s.received >= 2))
        .await
        .unwrap()
        .received;
    assert_eq!(known, 2);
    let devices = request(fleet.controller.address(), "GET", "/api/v1/devices", &[], b"")
        .await
        .json();
    assert_eq!(devices["devices"].as_array().unwrap().len(), 1);
    assert_eq!(devices["devices"][0]["device"], "cam-1");
    assert_eq!(devices["devices"][0]["labels"], json!({"site": "north"}));

    // What is meant for the other does not reach it, and what is meant for it does.
    let (speaker, _inbox) = fleet
        .connect(&fleet.config(
            "second-controller",
            Some(&fleet.folder.path().join("broker/controller.pem")),
        ))
        .await;
    for (id, text) in [(&two, "for cam-2"), (&one, "for cam-1")] {
        let topic = Topic::new(&tenant(), id, Kind::Desired).to_string();
        soon("the broker", speaker.publish(Publication::new(topic, text)))
            .await
            .unwrap();
    }
    let delivery = soon("the message", inbox.recv()).await.unwrap();
    assert_eq!(&delivery.message.payload[..], b"for cam-1");
    drop(second);
    link.shutdown().await;
    speaker.shutdown().await;
    fleet.controller.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_no_certificate_of_this_fleet_stays_outside() {
    let fleet = Fleet::start().await;
    // Another tenant's authority, which has given a certificate to a device of the same name.
    let elsewhere = tempfile::tempdir().unwrap();
    let other = TenantId::new("other").unwrap();
    let database = elsewhere.path().join("fleet.db");
    let theirs = Options {
        database: Database::File(database.clone()),
        ..Options::temporary(url(&broker().await), other.clone())
    };
    let their_controller = Controller::start(theirs).await.unwrap();
    let body = json!({"device": "cam-1"}).to_string();
    let token = request(
        their_controller.address(),
        "POST",
        "/api/v1/enrolments",
        &[JSON],
        body.as_bytes(),
    )
    .await;
    let key = KeyPair::generate().unwrap();
    let body = json!({"token": token.json()["token"], "device": "cam-1", "request": csr(&key)}).to_string();
    let answer = request(
        their_controller.address(),
        "POST",
        "/api/v1/enrol",
        &[JSON],
        body.as_bytes(),
    )
    .await;
    let certificate = answer.json()["certificate"].as_str().unwrap().to_owned();
    let foreign = identity(elsewhere.path(), "cam-1", &certificate, &key);
    assert_ne!(
        Authority::load_or_generate(&database, &other).unwrap().certificate(),
        std::fs::read_to_string(fleet.folder.path().join("broker/ca.pem")).unwrap()
    );

    for (what, identity) in [
        ("another tenant's certificate", Some(foreign.as_path())),
        ("no certificate", None),
    ] {
        let (link, _inbox) = Link::connect(&fleet.config("cam-1", identity)).unwrap();
        let mut state = link.state();
        let settled = |state: &State| matches!(state, State::Connected { .. } | State::Disconnected { .. });
        let state = soon(what, state.wait_for(settled)).await.unwrap().clone();
        assert!(matches!(state, State::Disconnected { .. }), "{what}: {state:?}");
        link.shutdown().await;
    }
    assert_eq!(fleet.controller.statistics().received, 0);
    their_controller.shutdown().await;
    fleet.controller.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_certificate_opens_nothing_and_a_new_one_does() {
    let mut fleet = Fleet::start().await;
    let (stolen, other) = (fleet.enrol("cam-1").await, fleet.enrol("cam-2").await);
    let (link, _inbox) = fleet.connect(&fleet.config("cam-1", Some(&stolen))).await;
    link.shutdown().await;

    let url = format!("http://{}", fleet.controller.address());
    let tell = async |arguments: &[&str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_offramp-fleet"));
        let output = command.args(arguments).args(["--url", &url]).output().await.unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let told = tell(&["revoke", "cam-1", "--reason", "stolen"]).await;
    assert_eq!(told, "1 certificate of cam-1 revoked\n");
    let list = tell(&["crl"]).await;
    std::fs::write(fleet.folder.path().join("broker/crl.pem"), list).unwrap();
    tokio::task::block_in_place(|| {
        fleet.mosquitto.stop();
        fleet.mosquitto.resume();
    });

    let (link, _inbox) = Link::connect(&fleet.config("cam-1", Some(&stolen))).unwrap();
    let mut state = link.state();
    let settled = |state: &State| matches!(state, State::Connected { .. } | State::Disconnected { .. });
    let state = soon("an answer", state.wait_for(settled)).await.unwrap().clone();
    assert!(matches!(state, State::Disconnected { .. }), "{state:?}");
    link.shutdown().await;
    // Others go on, and the device comes back with a new one.
    let (link, _inbox) = fleet.connect(&fleet.config("cam-2", Some(&other))).await;
    link.shutdown().await;
    let token = fleet.token(&json!({"device": "cam-1"})).await;
    let key = KeyPair::generate().unwrap();
    let wanted = json!({"token": token, "device": "cam-1", "request": csr(&key)});
    let answer = fleet.post("/enrol", &wanted).await.json();
    let new = identity(
        fleet.folder.path(),
        "cam-1-new",
        answer["certificate"].as_str().unwrap(),
        &key,
    );
    let (link, _inbox) = fleet.connect(&fleet.config("cam-1", Some(&new))).await;
    link.shutdown().await;
    fleet.controller.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enrolment_token_holds_once_for_whom_it_was_made() {
    let fleet = Fleet::start().await;
    let key = KeyPair::generate().unwrap();
    let enrol = |token: &str, device: &str| json!({"token": token, "device": device, "request": csr(&key)});
    let token = fleet.token(&json!({"device": "cam-1"})).await;
    for (body, status, says) in [
        (enrol("offramp_guessed", "cam-1"), 401, "no such enrolment token"),
        (enrol(&token, "cam-2"), 403, "for another device"),
        (enrol(&token, "../cam-1"), 400, ""),
        (enrol(&token, "offramp-controller"), 400, "controller's name"),
        (
            json!({"token": token, "device": "cam-1", "request": "no request"}),
            400,
            "PKCS#10",
        ),
    ] {
        let answer = fleet.post("/enrol", &body).await;
        assert_eq!(answer.status, status, "{answer:?}");
        assert!(answer.json()["error"].as_str().unwrap().contains(says), "{answer:?}");
    }
    assert_eq!(
        fleet.post("/enrol", &enrol(&token, "cam-1")).await.status,
        200,
        "refusals used nothing up"
    );
    let again = fleet.post("/enrol", &enrol(&token, "cam-1")).await;
    assert_eq!(
        (again.status, again.json()["error"].as_str()),
        (401, Some("the enrolment token was used already"))
    );

    // Nobody takes the name of a device with a token for any.
    let any = fleet.token(&json!({})).await;
    assert_eq!(fleet.post("/enrol", &enrol(&any, "cam-1")).await.status, 409);
    assert_eq!(fleet.post("/enrol", &enrol(&any, "cam-2")).await.status, 200);
    let anew = fleet.token(&json!({"device": "cam-1", "hours": 1})).await;
    assert_eq!(fleet.post("/enrol", &enrol(&anew, "cam-1")).await.status, 200);
    for hours in [0, 2161] {
        assert_eq!(fleet.post("/enrolments", &json!({"hours": hours})).await.status, 400);
    }

    // Devices come without a token of people; making one needs an operator.
    let admin = json!({"name": "ada", "role": "admin"});
    assert_eq!(fleet.post("/tokens", &admin).await.status, 200);
    assert_eq!(fleet.post("/enrolments", &json!({})).await.status, 401);
    assert_eq!(
        fleet.post("/enrol", &enrol("offramp_guessed", "cam-3")).await.status,
        401
    );
    fleet.controller.shutdown().await;
}
