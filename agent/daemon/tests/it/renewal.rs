//! A device gets its next certificate by itself, from a broker that lets nobody in without one.

use std::fs;
use std::path::Path;
use std::time::Duration;

use offramp_fleet::{Authority, Controller, Database, Options, acl};
use offramp_link::State;
use offramp_proto::TenantId;
use offramp_test_support::{Mosquitto, PATIENCE, free_port, temp_dir};
use tokio::time::timeout;

use crate::device::{Device, said};
use crate::enrol::{enrol, token};

/// A mosquitto for the fleet alone.
fn broker(folder: &Path, authority: &Authority, tenant: &TenantId, port: u16) -> Mosquitto {
    let (certificate, key) = authority.broker(&["localhost".into()]).unwrap();
    for (name, text) in [
        ("ca.pem", authority.certificate()),
        ("broker.pem", &certificate),
        ("broker.key", &key),
        ("acl", &acl::mosquitto(tenant)),
        ("crl.pem", &authority.revocations(&[]).unwrap()),
    ] {
        fs::write(folder.join(name), text).unwrap();
    }
    let controller = authority.controller().unwrap();
    offramp_fleet::write_private(&folder.join("controller.pem"), &controller).unwrap();
    Mosquitto::start_with(&acl::mosquitto_listener(port, folder))
}

/// A controller whose certificates hold for so long.
async fn controller(folder: &Path, port: u16, hold: Option<Duration>) -> Controller {
    let url = format!("mqtts://localhost:{port}").parse().unwrap();
    let usual = Options::temporary(url, TenantId::new("default").unwrap());
    let controller = Controller::start(Options {
        database: Database::File(folder.join("fleet.db")),
        ca: Some(folder.join("ca.pem")),
        identity: Some(folder.join("controller.pem")),
        certificates_hold: hold.unwrap_or(usual.certificates_hold),
        ..usual
    });
    let controller = controller.await.unwrap();
    let connected = |state: &State| matches!(state, State::Connected { .. });
    let mut state = controller.link();
    timeout(PATIENCE, state.wait_for(connected)).await.unwrap().unwrap();
    drop(state);
    controller
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_renews_its_certificate_while_frames_flow_and_no_record_is_lost() {
    let (folder, tenant) = (temp_dir(), TenantId::new("default").unwrap());
    let (path, port) = (folder.path(), free_port());
    let authority = Authority::load_or_generate(&path.join("fleet.db"), &tenant).unwrap();
    let mut mosquitto = tokio::task::block_in_place(|| broker(path, &authority, &tenant, port));

    // A certificate whose time is nearly over.
    let first = controller(path, port, Some(Duration::from_secs(3600))).await;
    let printed = tokio::task::block_in_place(|| {
        let address = first.address();
        enrol(path, &format!("http://{address}"), &token(address))
    });
    assert!(printed.status.success(), "{printed:?}");
    first.shutdown().await;
    let fleet = String::from_utf8(printed.stdout).unwrap();
    let (_, fleet) = fleet.split_once("[fleet]").unwrap();
    let identity = path.join("identity/device.pem");
    let before = fs::read_to_string(&identity).unwrap();

    let controller = controller(path, port, None).await;
    let device = Device::new(path, "gate-7", None);
    device.configure(&format!("[fleet]{fleet}"));
    let mut agent = device.start();
    agent.show((0..20).map(|i| device.frame(i)));
    let mut statistics = controller.subscribe();
    let renewed = statistics.wait_for(|s| s.renewals == 1);
    timeout(PATIENCE, renewed).await.unwrap().unwrap();
    // The event goes out over the new connection.
    let told = timeout(PATIENCE, async {
        while fs::read_to_string(&identity).unwrap() == before {
            agent.show([device.frame(0)]);
        }
        let seen = controller.statistics().ingested;
        agent.show((0..20).map(|i| device.frame(i)));
        statistics
            .wait_for(|s| s.ingested > seen && s.events > 0)
            .await
            .unwrap();
    });
    told.await.unwrap();
    assert!(!path.join("identity/device.pem.next").exists());

    // Whoever comes to a broker that starts anew shows what it has.
    tokio::task::block_in_place(|| {
        mosquitto.stop();
        mosquitto.resume();
    });
    let seen = controller.statistics().ingested;
    agent.show((0..20).map(|i| device.frame(i)));
    let ingested = timeout(PATIENCE, controller.summaries_ingested(seen + 1));
    ingested.await.unwrap().unwrap();

    let log = tokio::task::block_in_place(|| agent.end());
    assert_eq!(said(&log, "certificate renewed").len(), 1, "{log:#?}");
    assert!(said(&log, "not renewed").is_empty(), "{log:#?}");
    let outbox = device.store().outbox().unwrap();
    assert_eq!((outbox.records, outbox.dropped), (0, 0), "everything was sent");
    let mut statistics = controller.subscribe();
    let all = statistics.wait_for(|s| s.ingested + s.events == outbox.last_sequence);
    timeout(PATIENCE, all).await.unwrap().unwrap();
    controller.shutdown().await;
}
