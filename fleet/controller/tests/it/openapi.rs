//! The API is what its description says.

use std::collections::BTreeSet;

use offramp_proto::{Kind, encode};
use serde_json::{Value, json};

use crate::http::{Answer, request};
use crate::world::{World, component, model};

const COMMITTED: &str = include_str!("../../openapi.json");

#[test]
fn the_committed_description_is_that_of_the_code() {
    assert!(
        COMMITTED == offramp_fleet::openapi(),
        "the API has changed: look at the difference, and commit `offramp-fleet openapi > fleet/controller/openapi.json`"
    );
}

/// A description, and the operations that were held to it.
struct Held {
    api: Value,
    done: BTreeSet<String>,
}

impl Held {
    /// Asks, and holds the answer to what the description says of it.
    async fn ask(&mut self, world: &World, operation: &str, path: &str, body: &[u8]) -> Answer {
        let (method, route) = operation.split_once(' ').unwrap();
        let headers = ["Content-Type: application/json"];
        let answer = request(world.address(), method, &format!("/api/v1{path}"), &headers, body).await;
        let described = &self.api["paths"][route][method.to_lowercase()]["responses"];
        let status = answer.status.to_string();
        let (name, response) = match described.get(&status) {
            Some(response) => (status.as_str(), response),
            None if answer.status >= 400 => ("default", &described["default"]),
            None => panic!("{operation} answers {status}, which is not described"),
        };
        self.done.insert(operation.to_owned());
        if response["content"].is_null() {
            assert!(answer.body.is_empty(), "{operation}: {}", answer.body);
            return answer;
        }
        let pointer = format!(
            "#/paths/{}/{}/responses/{name}/content/application~1json/schema",
            route.replace('/', "~1"),
            method.to_lowercase()
        );
        let mut schema = self.api.clone();
        // What a pointer of a URL cannot hold as it is.
        schema["$ref"] = json!(pointer.replace('{', "%7B").replace('}', "%7D"));
        let schema = jsonschema::validator_for(&schema).unwrap();
        let json = answer.json();
        let errors: Vec<String> = schema
            .iter_errors(&json)
            .map(|e| format!("{}: {e}", e.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{operation} answers {json:#}\n{errors:#?}");
        answer
    }
}

#[tokio::test]
async fn every_operation_answers_as_it_is_described() {
    let world = World::new().await;
    let device = world.device("cam-1").await;
    let mut cameras = device.guarded(2, true);
    cameras.cameras = vec![offramp_proto::CameraReport {
        name: "door".into(),
        frames: 100,
        exits: vec![70, 20, 10],
        ..Default::default()
    }];
    cameras.engines = vec!["tract".into()];
    for summary in [device.summary(1), cameras] {
        device.say(Kind::Summary, encode(&summary).unwrap()).await;
    }
    device.say(Kind::Event, encode(&device.event(3)).unwrap()).await;
    let report = device.reported(0, device.policy("threshold", 1), Some("too large"));
    device.say(Kind::Reported, encode(&report).unwrap()).await;
    world.until("everything", |s| s.received == 5).await;

    let mut held = Held {
        api: serde_json::from_str(COMMITTED).unwrap(),
        done: BTreeSet::new(),
    };
    let get = [
        ("GET /status", "/status"),
        ("GET /whoami", "/whoami"),
        ("GET /devices", "/devices"),
        ("GET /devices/{device}", "/devices/cam-1"),
        ("GET /devices/{device}/summaries", "/devices/cam-1/summaries"),
        ("GET /events", "/events"),
    ];
    for (operation, path) in get {
        assert_eq!(held.ask(&world, operation, path, b"").await.status, 200, "{path}");
    }
    let apart = "POST /devices/{device}/quarantine";
    let path = "/devices/cam-1/quarantine";
    assert_eq!(
        held.ask(&world, apart, path, br#"{"reason": "stolen"}"#).await.status,
        200
    );
    assert_eq!(
        held.ask(&world, apart, path, br#"{"reason": "stolen"}"#).await.status,
        409
    );
    let free = "POST /devices/{device}/release";
    assert_eq!(held.ask(&world, free, "/devices/cam-1/release", b"").await.status, 200);
    assert_eq!(held.ask(&world, free, "/devices/nobody/release", b"").await.status, 404);
    let wanted = json!({"devices": ["cam-1"], "labels": {"site": "north", "old": null}}).to_string();
    assert_eq!(
        held.ask(&world, "POST /labels", "/labels", wanted.as_bytes())
            .await
            .status,
        200
    );
    assert_eq!(held.ask(&world, "POST /labels", "/labels", b"{}").await.status, 400);
    let group = "PUT /groups/{name}";
    for (selector, status) in [("site=north,state!=gone", 200), ("site=", 400)] {
        let wanted = json!({"selector": selector}).to_string();
        assert_eq!(
            held.ask(&world, group, "/groups/north", wanted.as_bytes()).await.status,
            status
        );
    }
    assert_eq!(held.ask(&world, "GET /groups", "/groups", b"").await.status, 200);
    let first = held.ask(&world, "GET /keys", "/keys", b"").await.json()["keys"][0]["key"].clone();
    let rotated = held.ask(&world, "POST /keys", "/keys", b"").await;
    assert_eq!((rotated.status, rotated.json()["devices"].as_u64()), (200, Some(1)));
    let (revoke, path) = (
        "POST /keys/{key}/revoke",
        format!("/keys/{}/revoke", first.as_str().unwrap()),
    );
    for (path, body, status) in [
        (path.as_str(), "{}", 409),
        ("/keys/none/revoke", "{}", 404),
        (&path, r#"{"force": 1}"#, 400),
        (&path, r#"{"force": true}"#, 200),
        (&path, "{}", 404),
    ] {
        let answer = held.ask(&world, revoke, path, body.as_bytes()).await;
        assert_eq!(answer.status, status, "{path} {body}: {answer:?}");
    }
    let settings = "POST /settings";
    for (wanted, status) in [
        (
            json!({"devices": ["cam-1"], "settings": {"accuracy_budget": 0.02, "log": null}}),
            200,
        ),
        (json!({"select": "site=north", "settings": {"enabled": false}}), 200),
        (json!({"all": true, "settings": {"log": "debug"}}), 200),
        (json!({"settings": {"log": "debug"}}), 400),
        (json!({"all": true, "settings": {}}), 400),
        (json!({"all": true, "settings": {"log": "loud"}}), 400),
        (json!({"all": true, "settings": {"accuracy_budget": 0.9}}), 400),
        (json!({"devices": ["nobody"], "settings": {"rate": 0.1}}), 404),
    ] {
        let answer = held
            .ask(&world, settings, "/settings", wanted.to_string().as_bytes())
            .await;
        assert_eq!(answer.status, status, "{wanted}: {answer:?}");
    }
    let insight = "GET /insight";
    assert_eq!(held.ask(&world, insight, "/insight", b"").await.status, 200);
    let path = "/insight?select=site%3Dnorth";
    assert_eq!(held.ask(&world, insight, path, b"").await.status, 200);
    let devices = "GET /devices";
    assert_eq!(
        held.ask(&world, devices, "/devices?select=group%3Dnorth", b"")
            .await
            .status,
        200
    );
    assert_eq!(
        held.ask(&world, devices, "/devices?select=group%3Dsouth", b"")
            .await
            .status,
        400
    );
    let remove = "DELETE /groups/{name}";
    assert_eq!(held.ask(&world, remove, "/groups/north", b"").await.status, 204);
    assert_eq!(held.ask(&world, remove, "/groups/north", b"").await.status, 404);
    let push = "POST /policies";
    let path = "/policies?name=entropy&version=7&parameter=limit=0.5";
    assert_eq!(held.ask(&world, push, path, &component()).await.status, 200);
    assert_eq!(held.ask(&world, push, path, b"no component").await.status, 415);
    let forecast = "GET /policies/{name}/{version}/replay";
    assert_eq!(
        held.ask(&world, forecast, "/policies/entropy/7/replay", b"")
            .await
            .status,
        200
    );
    let sample = offramp_proto::TraceSample {
        device: device.id.clone(),
        boot: device.boot,
        trace: crate::forecast::piece(),
    };
    device.say(Kind::Trace, encode(&sample).unwrap()).await;
    world.until("the trace", |s| s.traces == 1).await;
    assert_eq!(
        held.ask(&world, forecast, "/policies/entropy/7/replay", b"")
            .await
            .status,
        422
    );
    let threshold = "/policies?name=threshold&version=1&target=none";
    let added = held.ask(&world, push, threshold, crate::forecast::THRESHOLD).await;
    assert_eq!(added.status, 200);
    assert_eq!(
        held.ask(&world, forecast, "/policies/threshold/1/replay", b"")
            .await
            .status,
        200
    );
    let start = "POST /rollouts";
    let wanted = json!({
        "policy": "entropy", "version": 7, "plan": {"canary": 1, "gates": {"cost": null}}, "replay": false,
        "parameters": {"limit": 0.5, "strict": true, "name": "x", "count": 3},
    });
    let started = held
        .ask(&world, start, "/rollouts", wanted.to_string().as_bytes())
        .await;
    assert_eq!(started.status, 200, "{}", started.body);
    assert_eq!(held.ask(&world, start, "/rollouts", b"{}").await.status, 400);
    let id = started.json()["id"].as_u64().unwrap();
    for (operation, path) in [
        ("POST /rollouts/{id}/{act}", format!("/rollouts/{id}/pause")),
        ("GET /rollouts/{id}", format!("/rollouts/{id}")),
        ("GET /rollouts", "/rollouts".into()),
        ("GET /policies", "/policies".into()),
        ("GET /audit", "/audit".into()),
    ] {
        assert_eq!(held.ask(&world, operation, &path, b"").await.status, 200, "{path}");
    }
    let (add, package) = ("POST /models", model());
    for (path, body, status) in [
        ("/models?url=https://models.example/1.tar", &package[..], 200),
        ("/models", &package[..], 200),
        ("/models", b"no package", 422),
        ("/models?url=http://models.example/1.tar", &package[..], 400),
        ("/models?name=x", &package[..], 400),
    ] {
        let answer = held.ask(&world, add, path, body).await;
        assert_eq!(answer.status, status, "{path}: {answer:?}");
    }
    for (wanted, status) in [
        (json!({"model": "revcol-fashion", "version": 1}), 409),
        (json!({"model": "revcol-fashion", "version": 2}), 404),
        (
            json!({"model": "revcol-fashion", "version": 1, "parameters": {"limit": 1}}),
            400,
        ),
        (
            json!({"model": "revcol-fashion", "policy": "entropy", "version": 1}),
            400,
        ),
    ] {
        let answer = held
            .ask(&world, start, "/rollouts", wanted.to_string().as_bytes())
            .await;
        assert_eq!(answer.status, status, "{wanted}: {answer:?}");
    }
    let push = "POST /models/push";
    for (wanted, status) in [
        (
            json!({"model": "revcol-fashion", "version": 1, "devices": ["cam-1"]}),
            200,
        ),
        (json!({"own": true}), 200),
        (json!({}), 400),
        (json!({"model": "revcol-fashion", "version": 1, "own": true}), 400),
        (json!({"model": "revcol-fashion"}), 400),
        (json!({"model": "revcol-fashion", "version": 2}), 404),
        (
            json!({"model": "revcol-fashion", "version": 1, "devices": ["nobody"]}),
            404,
        ),
    ] {
        let answer = held
            .ask(&world, push, "/models/push", wanted.to_string().as_bytes())
            .await;
        assert_eq!(answer.status, status, "{wanted}: {answer:?}");
    }
    assert_eq!(held.ask(&world, "GET /models", "/models", b"").await.status, 200);
    for (operation, path) in [
        ("GET /devices/{device}", "/devices/nobody"),
        ("GET /rollouts/{id}", "/rollouts/999"),
        ("GET /events", "/events?limit=0"),
        ("POST /rollouts/{id}/{act}", "/rollouts/1/explode"),
    ] {
        assert!(held.ask(&world, operation, path, b"").await.status >= 400, "{path}");
    }

    let made = held.ask(&world, "POST /enrolments", "/enrolments", b"{}").await;
    assert_eq!(made.status, 200);
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
    let wanted = json!({"token": made.json()["token"], "device": "cam-7", "request": csr.pem().unwrap()});
    let enrolled = held
        .ask(&world, "POST /enrol", "/enrol", wanted.to_string().as_bytes())
        .await;
    assert_eq!(enrolled.status, 200, "{}", enrolled.body);

    let revoke = "POST /devices/{device}/revoke";
    for status in [200, 404] {
        let answer = held
            .ask(&world, revoke, "/devices/cam-7/revoke", br#"{"reason": "stolen"}"#)
            .await;
        assert_eq!(answer.status, status);
    }
    let list = held.ask(&world, "GET /revocations", "/revocations", b"").await.json();
    assert_eq!(list["revoked"], 1);

    // The last, because it closes the controller.
    assert_eq!(held.ask(&world, "GET /tokens", "/tokens", b"").await.status, 200);
    assert_eq!(
        held.ask(&world, "DELETE /tokens/{name}", "/tokens/nobody", b"")
            .await
            .status,
        404
    );
    let wanted = json!({"name": "ada", "role": "admin"}).to_string();
    assert_eq!(
        held.ask(&world, "POST /tokens", "/tokens", wanted.as_bytes())
            .await
            .status,
        200
    );
    assert_eq!(held.ask(&world, "GET /tokens", "/tokens", b"").await.status, 401);

    let all: BTreeSet<String> = held.api["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, item)| {
            let methods = ["get", "post", "put", "patch", "delete"].into_iter();
            let described = methods.filter(|method| !item[method].is_null());
            described.map(move |method| format!("{} {path}", method.to_uppercase()))
        })
        .collect();
    assert_eq!(held.done, all, "every operation is held to its description");
    world.controller.shutdown().await;
}
