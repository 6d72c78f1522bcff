//! A device becomes one of a fleet.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Output;

use offramp::config::Config;
use offramp_broker::{Broker, Persistence};
use offramp_test_support::temp_dir;
use serde_json::{Value, json};

use crate::device::offramp;
use crate::kill::controller;

/// Asks a controller.
pub(crate) fn post(address: SocketAddr, path: &str, body: &Value) -> Value {
    let mut stream = TcpStream::connect(address).unwrap();
    let body = body.to_string();
    let head = format!("POST /api/v1{path} HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/json\r\n");
    write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.split("\r\n").next().unwrap().contains(" 200 "), "{answer}");
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

/// Makes a token as `offramp-fleet enrol` does.
pub(crate) fn token(address: SocketAddr) -> String {
    post(address, "/enrolments", &json!({}))["token"]
        .as_str()
        .unwrap()
        .to_owned()
}

pub(crate) fn enrol(folder: &Path, url: &str, token: &str) -> Output {
    let mut command = offramp();
    command.current_dir(folder).args(["enrol", url, "--device", "gate-7"]);
    command.env("OFFRAMP_ENROL_TOKEN", token).output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_enrols_once_and_its_configuration_is_printed() {
    let folder = temp_dir();
    let broker = Broker::start(([127, 0, 0, 1], 0).into(), Persistence::Memory)
        .await
        .unwrap();
    let controller = controller(&broker).await;
    let (address, key) = (controller.address(), controller.public_key());
    tokio::task::block_in_place(|| {
        let (token, url) = (token(address), format!("http://{address}"));
        let far = enrol(folder.path(), "http://fleet.example", &token);
        assert!(
            !far.status.success() && String::from_utf8_lossy(&far.stderr).contains("https://"),
            "{far:?}"
        );
        let wrong = enrol(folder.path(), &url, "offramp_guessed");
        assert!(
            String::from_utf8_lossy(&wrong.stderr).contains("no such enrolment token"),
            "{wrong:?}"
        );

        let done = enrol(folder.path(), &url, &token);
        assert!(done.status.success(), "{done:?}");
        let printed = String::from_utf8(done.stdout).unwrap();
        let file = folder.path().join("offramp.toml");
        let config = Config::parse(&file, &format!("{printed}\n[camera]\nsource = \"sample\"\n")).unwrap();
        assert_eq!(
            (config.device.id.as_str(), config.device.tenant.as_str()),
            ("gate-7", "default")
        );
        let fleet = config.fleet.unwrap();
        assert_eq!(fleet.broker, format!("mqtt://{}", broker.address()));
        assert_eq!(fleet.key(), Some(key));
        let identity = fleet.identity_file.unwrap();
        assert_eq!(identity.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let pem = std::fs::read_to_string(&identity).unwrap();
        assert!(pem.contains("BEGIN CERTIFICATE") && pem.contains("BEGIN PRIVATE KEY"));
        assert!(
            std::fs::read_to_string(fleet.ca_file.unwrap())
                .unwrap()
                .contains("BEGIN CERTIFICATE")
        );
        let names: Vec<_> = std::fs::read_dir(folder.path().join("identity")).unwrap().collect();
        assert_eq!(names.len(), 2, "{names:?}");

        let again = enrol(folder.path(), &url, &token);
        assert_eq!(again.status.code(), Some(1));
        assert!(
            String::from_utf8_lossy(&again.stderr).contains("was used already"),
            "{again:?}"
        );
        assert_eq!(std::fs::read_to_string(&identity).unwrap(), pem, "what it has stays");
    });
    controller.shutdown().await;
}
