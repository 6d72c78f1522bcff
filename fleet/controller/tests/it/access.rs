//! Who may do what.

use std::net::SocketAddr;

use offramp_fleet::{Controller, Database, Options, Role, StartError, create_in_database};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

use crate::http::{Answer, get, request};
use crate::world::{World, broker, component, soon, tenant, url};

const JSON: &str = "Content-Type: application/json";
const FORM: &str = "Content-Type: application/x-www-form-urlencoded";

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}")
}

/// Asks with a token.
async fn ask(address: SocketAddr, method: &str, path: &str, token: &str, body: &Value) -> Answer {
    let headers = [&bearer(token), JSON];
    request(address, method, path, &headers, body.to_string().as_bytes()).await
}

/// Makes a token as somebody, or as whoever is on this machine.
async fn make(address: SocketAddr, by: Option<&str>, name: &str, role: &str) -> Answer {
    let body = json!({"name": name, "role": role});
    match by {
        Some(token) => ask(address, "POST", "/api/v1/tokens", token, &body).await,
        None => request(address, "POST", "/api/v1/tokens", &[JSON], body.to_string().as_bytes()).await,
    }
}

fn secret(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["token"].as_str().unwrap().to_owned()
}

fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    let mut lines = answer.head.lines().filter_map(|line| line.split_once(": "));
    lines
        .find(|(found, _)| found.eq_ignore_ascii_case(name))
        .map(|(_, value)| value)
}

async fn log_in(address: SocketAddr, token: &str, next: &str) -> Answer {
    let body = format!("token={token}&next={next}");
    request(address, "POST", "/login", &[FORM], body.as_bytes()).await
}

/// The cookie of a login, as a header.
async fn session(address: SocketAddr, token: &str) -> String {
    let login = log_in(address, token, "/").await;
    assert_eq!(login.status, 303, "{login:?}");
    let cookie = header(&login, "set-cookie").unwrap();
    for part in ["HttpOnly", "SameSite=Strict"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    format!("Cookie: {}", cookie.split(';').next().unwrap())
}

#[tokio::test]
async fn the_first_token_closes_the_controller() {
    let world = World::new().await;
    let address = world.address();
    let who = get(address, "/api/v1/whoami").await.json();
    assert_eq!(who, json!({"name": "local", "role": "admin", "login": false}));
    assert!(get(address, "/").await.body.contains("No login"));

    for (role, says) in [("viewer", 409), ("operator", 409), ("king", 400)] {
        assert_eq!(make(address, None, "ada", role).await.status, says, "{role}");
    }
    for name in ["", "local", "controller", "../ada", "a b"] {
        assert_eq!(make(address, None, name, "admin").await.status, 400, "{name}");
    }
    assert_eq!(get(address, "/api/v1/devices").await.status, 200, "still open");

    let ada = secret(&make(address, None, "ada", "admin").await);
    let refused = get(address, "/api/v1/devices").await;
    assert_eq!(
        (refused.status, header(&refused, "www-authenticate")),
        (401, Some("Bearer"))
    );
    assert!(refused.json()["hint"].as_str().unwrap().contains("OFFRAMP_FLEET_TOKEN"));
    for path in ["/metrics", "/changes", "/api/v1/openapi.json", "/api/v1/nothing"] {
        assert_eq!(get(address, path).await.status, 401, "{path}");
    }
    let page = get(address, "/devices/cam-1?range=10m").await;
    let login = "/login?next=/devices/cam-1%3Frange%3D10m";
    assert_eq!((page.status, header(&page, "location")), (303, Some(login)));
    assert_eq!(get(address, "/healthz").await.status, 200);
    assert!(get(address, "/login").await.body.contains("type=\"password\""));

    let who = ask(address, "GET", "/api/v1/whoami", &ada, &Value::Null).await.json();
    assert_eq!(who, json!({"name": "ada", "role": "admin", "login": true}));
    // With a login, the controller may have any name.
    let headers = ["Host: fleet.example", &bearer(&ada)];
    let named = crate::http::send(address, "GET", "/api/v1/devices", &headers, b"").await;
    assert_eq!(named.status, 200);
    world.controller.shutdown().await;
}

#[tokio::test]
async fn roles_allow_what_they_say_and_the_log_names_who_did_it() {
    let world = World::new().await;
    let address = world.address();
    world.device("cam-1").await;
    let ada = secret(&make(address, None, "ada", "admin").await);
    let (viewer, operator) = (
        secret(&make(address, Some(&ada), "wall", "viewer").await),
        secret(&make(address, Some(&ada), "ci", "operator").await),
    );
    assert_eq!(
        make(address, Some(&ada), "ci", "viewer").await.status,
        409,
        "names are taken once"
    );

    let push = |token: String| async move {
        let path = "/api/v1/policies?name=entropy&version=7";
        request(address, "POST", path, &[&bearer(&token)], &component()).await
    };
    let refused = push(viewer.clone()).await;
    assert_eq!(refused.status, 403);
    assert_eq!(refused.json()["error"], "`wall` is viewer; this needs operator");
    assert_eq!(push(operator.clone()).await.status, 200);
    for token in [&viewer, &operator] {
        assert_eq!(
            ask(address, "GET", "/api/v1/devices", token, &Value::Null).await.status,
            200
        );
        assert_eq!(
            ask(address, "GET", "/api/v1/tokens", token, &Value::Null).await.status,
            403
        );
        assert_eq!(
            ask(address, "DELETE", "/api/v1/tokens/ada", token, &Value::Null)
                .await
                .status,
            403
        );
        assert_eq!(make(address, Some(token), "eve", "admin").await.status, 403);
    }
    let wanted = json!({"policy": "entropy", "version": 7});
    assert_eq!(
        ask(address, "POST", "/api/v1/rollouts", &viewer, &wanted).await.status,
        403
    );
    let started = ask(address, "POST", "/api/v1/rollouts", &operator, &wanted).await;
    assert_eq!(started.status, 200, "{started:?}");
    let id = started.json()["id"].as_u64().unwrap();
    let pause = format!("/api/v1/rollouts/{id}/pause");
    assert_eq!(ask(address, "POST", &pause, &viewer, &Value::Null).await.status, 403);
    assert_eq!(ask(address, "POST", &pause, &ada, &Value::Null).await.status, 200);

    let log = ask(address, "GET", "/api/v1/audit", &viewer, &Value::Null).await.json();
    let mut found: Vec<String> = log["entries"]
        .as_array()
        .unwrap()
        .iter()
        .rev()
        .filter(|e| e["who"] != "controller")
        .map(|e| format!("{} {} {}", e["who"], e["what"], e["subject"]).replace('"', ""))
        .collect();
    found.retain(|entry| !entry.starts_with("controller"));
    let expected = [
        "local token.create token ada".to_owned(),
        "ada token.create token wall".into(),
        "ada token.create token ci".into(),
        "ci policy.push policy entropy 7".into(),
        format!("ci rollout.start rollout {id}"),
        format!("ada rollout.pause rollout {id}"),
    ];
    assert_eq!(found, expected);
    world.controller.shutdown().await;
}

#[tokio::test]
async fn a_stolen_token_is_refused_from_its_revocation_on() {
    let world = World::new().await;
    let address = world.address();
    let ada = secret(&make(address, None, "ada", "admin").await);
    let stolen = secret(&make(address, Some(&ada), "laptop", "operator").await);
    let cookie = session(address, &stolen).await;
    assert_eq!(request(address, "GET", "/", &[&cookie], b"").await.status, 200);

    // A page that is open when it happens.
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let mut lines = BufReader::new(stream).lines();
    let open = format!("GET /changes HTTP/1.1\r\nHost: {address}\r\n{cookie}\r\n\r\n");
    lines.get_mut().write_all(open.as_bytes()).await.unwrap();
    while !soon("news", lines.next_line())
        .await
        .unwrap()
        .unwrap()
        .starts_with("data:")
    {}

    let revoked = ask(address, "DELETE", "/api/v1/tokens/laptop", &ada, &Value::Null).await;
    assert_eq!(revoked.status, 204, "{revoked:?}");
    for path in ["/api/v1/devices", "/metrics"] {
        assert_eq!(
            ask(address, "GET", path, &stolen, &Value::Null).await.status,
            401,
            "{path}"
        );
    }
    let path = "/api/v1/policies?name=entropy&version=7";
    let push = request(address, "POST", path, &[&bearer(&stolen)], &component()).await;
    assert_eq!(push.status, 401);
    assert_eq!(log_in(address, &stolen, "/").await.status, 401);
    let page = request(address, "GET", "/", &[&cookie], b"").await;
    assert_eq!((page.status, header(&page, "location")), (303, Some("/login")));
    // The open page hears of nothing more: the next message of a device ends it.
    world.device("cam-1").await;
    let end = async {
        loop {
            let line = lines.next_line().await.unwrap().unwrap();
            assert!(!line.starts_with("data: "), "{line}");
            if line == "0" {
                // The last chunk.
                break;
            }
        }
    };
    soon("the end of the stream", end).await;

    let metrics = ask(address, "GET", "/metrics", &ada, &Value::Null).await.body;
    let denied = metrics
        .lines()
        .find_map(|l| l.strip_prefix("offramp_requests_denied_total "));
    assert_eq!(
        denied,
        Some("5"),
        "each with a token, or its session, that does not hold"
    );
    let policies = ask(address, "GET", "/api/v1/policies", &ada, &Value::Null).await.json();
    assert_eq!(policies["policies"], json!([]), "nothing was pushed");

    // Told twice it is as it should be; the last admin stays.
    assert_eq!(
        ask(address, "DELETE", "/api/v1/tokens/laptop", &ada, &Value::Null)
            .await
            .status,
        204
    );
    assert_eq!(
        ask(address, "DELETE", "/api/v1/tokens/nobody", &ada, &Value::Null)
            .await
            .status,
        404
    );
    assert_eq!(
        ask(address, "DELETE", "/api/v1/tokens/ada", &ada, &Value::Null)
            .await
            .status,
        409
    );
    world.controller.shutdown().await;
}

#[tokio::test]
async fn a_session_acts_only_from_our_own_page_and_ends_with_the_logout() {
    let world = World::new().await;
    let address = world.address();
    world.device("cam-1").await;
    let ada = secret(&make(address, None, "ada", "admin").await);
    for wrong in ["", "offramp_", &format!("{ada}0"), "%00"] {
        let login = log_in(address, wrong, "/").await;
        assert_eq!(login.status, 401, "{wrong}");
        assert!(login.body.contains("does not hold") && header(&login, "set-cookie").is_none());
    }
    let login = log_in(address, &ada, "//evil.example").await;
    assert_eq!(header(&login, "location"), Some("/"), "no way to another site");
    let cookie = session(address, &ada).await;
    let page = request(address, "GET", "/", &[&cookie], b"").await;
    assert!(page.body.contains("ada") && page.body.contains("Log out"));

    let path = "/api/v1/policies?name=entropy&version=7&target=none";
    let added = request(address, "POST", path, &[&bearer(&ada)], &component()).await;
    assert_eq!(added.status, 200);
    let wanted = json!({"policy": "entropy", "version": 7});
    let id = ask(address, "POST", "/api/v1/rollouts", &ada, &wanted).await.json()["id"].clone();
    let page = request(address, "GET", &format!("/rollouts/{id}"), &[&cookie], b"").await;
    assert!(page.body.contains(&format!("action=\"/rollouts/{id}/pause\"")));
    let pause = format!("/rollouts/{id}/pause");
    let ours = format!("Origin: http://{address}");
    for foreign in [
        "Accept: */*",
        "Origin: http://evil.example",
        "Origin: null",
        "Sec-Fetch-Site: cross-site",
    ] {
        let refused = request(address, "POST", &pause, &[&cookie, foreign], b"").await;
        assert_eq!(refused.status, 403, "{foreign}");
    }
    let state = || async {
        let rollout = ask(address, "GET", &format!("/api/v1/rollouts/{id}"), &ada, &Value::Null).await;
        rollout.json()["state"].clone()
    };
    assert_eq!(state().await, "running");
    let paused = request(address, "POST", &pause, &[&cookie, &ours], b"").await;
    assert_eq!(
        (paused.status, header(&paused, "location")),
        (303, Some(&*format!("/rollouts/{id}")))
    );
    assert_eq!(state().await, "paused");

    let out = request(address, "POST", "/logout", &[&cookie, &ours], b"").await;
    assert_eq!((out.status, header(&out, "location")), (303, Some("/login")));
    assert!(header(&out, "set-cookie").unwrap().contains("Max-Age=0"));
    assert_eq!(request(address, "GET", "/", &[&cookie], b"").await.status, 303);
    world.controller.shutdown().await;
}

#[tokio::test]
async fn the_network_is_served_only_when_there_is_a_token() {
    let (broker, folder) = (broker().await, tempfile::tempdir().unwrap());
    let database = Database::File(folder.path().join("fleet.db"));
    let options = Options {
        database: database.clone(),
        listen: SocketAddr::from(([0, 0, 0, 0], 0)),
        ..Options::temporary(url(&broker), tenant())
    };
    let refused = Controller::start(options.clone()).await.err().unwrap();
    assert!(matches!(refused, StartError::Open { .. }), "{refused}");
    assert!(refused.to_string().contains("offramp-fleet token create"), "{refused}");

    let error = create_in_database(&database, &tenant(), "wall", Role::Viewer).await;
    assert!(error.unwrap_err().to_string().contains("admin"));
    let ada = create_in_database(&database, &tenant(), "ada", Role::Admin)
        .await
        .unwrap();
    let controller = soon("the controller", Controller::start(options)).await.unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], controller.address().port()));
    assert_eq!(get(address, "/api/v1/devices").await.status, 401);
    assert_eq!(
        ask(address, "GET", "/api/v1/devices", &ada, &Value::Null).await.status,
        200
    );
    let error = create_in_database(&database, &tenant(), "eve", Role::Admin)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("used by another controller"), "{error}");
    controller.shutdown().await;
}
