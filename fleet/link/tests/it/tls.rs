//! The link over TLS.

use std::path::{Path, PathBuf};
use std::process::Command;

use offramp_link::{Config, ConfigError, Link, Reason, State};
use offramp_test_support::{Mosquitto, Tool, free_port, require, temp_dir};

use crate::client::{Client, config, within};

const OPENSSL: Tool = Tool {
    program: "openssl",
    package: "openssl",
};

fn openssl(directory: &Path, arguments: &str) {
    let output = Command::new(require(OPENSSL))
        .args(arguments.split(' '))
        .current_dir(directory)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "openssl {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Makes a CA called `name` and returns its certificate.
fn authority(directory: &Path, name: &str) -> PathBuf {
    openssl(
        directory,
        &format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={name} \
             -addext basicConstraints=critical,CA:TRUE -keyout {name}.key -out {name}.pem"
        ),
    );
    directory.join(format!("{name}.pem"))
}

/// Makes a certificate for `localhost`.
fn certificate(directory: &Path, authority: &str) {
    openssl(
        directory,
        "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost -keyout broker.key -out broker.csr",
    );
    std::fs::write(directory.join("names"), "subjectAltName=DNS:localhost\n").unwrap();
    openssl(
        directory,
        &format!(
            "x509 -req -in broker.csr -CA {authority}.pem -CAkey {authority}.key -CAcreateserial -days 2 \
             -extfile names -out broker.pem"
        ),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_is_trusted_by_the_given_authority_only() {
    let directory = temp_dir();
    let path = directory.path();
    let ours = authority(path, "ours");
    let theirs = authority(path, "theirs");
    certificate(path, "ours");
    let port = free_port();
    let _broker = tokio::task::block_in_place(|| {
        Mosquitto::start_with(&format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\ncertfile {0}/broker.pem\nkeyfile {0}/broker.key",
            path.display()
        ))
    });
    let tls = |client_id, ca: &Path| Config {
        url: format!("mqtts://localhost:{port}").parse().unwrap(),
        ca: Some(ca.to_path_buf()),
        ..config(([127, 0, 0, 1], port).into(), client_id)
    };
    within(async {
        let mut trusting = tls("trusting", &ours);
        trusting.subscriptions = vec!["t".to_owned()];
        let mut trusting = Client::connect(&trusting).await;
        trusting.publish("t", "in private").await;
        assert_eq!(trusting.payload().await, "in private");

        let state = Client::start(&tls("doubting", &theirs)).disconnected().await;
        assert!(
            matches!(
                state,
                State::Disconnected {
                    reason: Reason::Tls { .. },
                    ..
                }
            ),
            "{state:?}"
        );
    })
    .await;

    // A certificate of its own, for a broker that asks for one.
    let exposed = path.join("broker.key");
    std::fs::set_permissions(&exposed, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let with = |identity: &Path| Config {
        identity: Some(identity.to_path_buf()),
        ..tls("client", &ours)
    };
    let error = Link::connect(&with(&exposed)).unwrap_err();
    assert!(
        matches!(error, ConfigError::IdentityExposed { mode: 0o644, .. }),
        "{error}"
    );
    std::fs::set_permissions(&exposed, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let error = Link::connect(&with(&exposed)).unwrap_err();
    assert!(matches!(error, ConfigError::IdentityContent { .. }), "{error}");
    let error = Link::connect(&Config {
        ca: None,
        ..with(&exposed)
    });
    assert!(matches!(error.unwrap_err(), ConfigError::IdentityContent { .. }));

    let empty = path.join("names");
    let error = Link::connect(&tls("careless", &empty)).unwrap_err();
    assert!(matches!(error, ConfigError::CaContent { path } if path == empty));
}
