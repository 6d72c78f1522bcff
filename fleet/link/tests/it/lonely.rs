//! The link without a broker, and with wrong configurations.

use std::time::Duration;

use offramp_link::{Config, ConfigError, Link, Publication, PublishError, Reason, State, Will};
use offramp_test_support::{Direction, Mosquitto, Network, free_port, temp_dir};

use crate::client::{Client, config, within};

#[tokio::test]
async fn without_a_broker_publishing_fails_with_the_reason() {
    within(async {
        let mut config = config(([127, 0, 0, 1], free_port()).into(), "device");
        config.publish_timeout = Duration::from_millis(200);
        let client = Client::start(&config);
        let state = client.disconnected().await;
        assert!(
            matches!(
                state,
                State::Disconnected {
                    reason: Reason::Unreachable { .. },
                    ..
                }
            ),
            "{state:?}"
        );
        let error = client.link.publish(Publication::new("t", "x")).await.unwrap_err();
        assert!(matches!(error, PublishError::NotSent { .. }), "{error}");
    })
    .await;
}

#[tokio::test]
async fn a_closed_link_publishes_nothing() {
    within(async {
        let address = ([127, 0, 0, 1], free_port()).into();
        let mut client = Client::start(&config(address, "device"));
        let waiting = client.link.publish(Publication::new("t", "x"));
        let (waited, ()) = tokio::join!(waiting, client.link.shutdown());
        assert!(matches!(waited, Err(PublishError::Closed { .. })), "{waited:?}");
        let late = client.link.publish(Publication::new("t", "x")).await;
        assert!(matches!(late, Err(PublishError::Closed { .. })), "{late:?}");
        assert!(client.inbox.recv().await.is_none());
        assert_eq!(client.state(|_| true).await, State::Closed);
    })
    .await;
}

#[tokio::test]
async fn a_broker_that_never_answers_is_unreachable() {
    within(async {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let mut config = config(listener.local_addr().unwrap(), "device");
        config.connect_timeout = Duration::from_millis(100);
        let state = Client::start(&config).disconnected().await;
        assert!(
            matches!(
                state,
                State::Disconnected {
                    reason: Reason::Unreachable { .. },
                    ..
                }
            ),
            "{state:?}"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_falls_silent_is_lost_after_two_keep_alives() {
    within(async {
        let broker = tokio::task::block_in_place(Mosquitto::start);
        let network = Network::to(broker.address());
        let mut config = config(network.address(), "device");
        config.keep_alive = Duration::from_secs(1);
        let client = Client::connect(&config).await;
        network.hold(Direction::Down);
        let state = client.disconnected().await;
        assert!(
            matches!(
                state,
                State::Disconnected {
                    reason: Reason::Lost { .. },
                    ..
                }
            ),
            "{state:?}"
        );
        network.release(Direction::Down);
        client.connected().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_wants_credentials_rejects_wrong_ones() {
    within(async {
        let broker = tokio::task::block_in_place(|| Mosquitto::start_with("allow_anonymous false"));
        let state = Client::start(&config(broker.address(), "device")).disconnected().await;
        assert!(
            matches!(&state, State::Disconnected { reason: Reason::Rejected { code }, .. } if code == "NotAuthorized"),
            "{state:?}"
        );
    })
    .await;
}

#[tokio::test]
async fn what_cannot_work_is_named_before_anything_is_connected() {
    let broken = |change: &dyn Fn(&mut Config)| {
        let mut config = config(([127, 0, 0, 1], 1).into(), "device");
        change(&mut config);
        Link::connect(&config).unwrap_err()
    };
    let will = |topic: &str, length| Will {
        topic: topic.to_owned(),
        payload: vec![0; length].into(),
        retain: false,
    };
    let missing = temp_dir().path().join("ca.pem");
    assert!(matches!(broken(&|c| c.client_id.clear()), ConfigError::NoClientId));
    assert!(matches!(
        broken(&|c| c.client_id = "a\0".into()),
        ConfigError::Unfit("the client id")
    ));
    assert!(matches!(broken(&|c| c.subscriptions.push("a/#/b".into())), ConfigError::Filter(f) if f == "a/#/b"));
    assert!(matches!(broken(&|c| c.will = Some(will("a/+", 1))), ConfigError::WillTopic(t) if t == "a/+"));
    assert!(matches!(
        broken(&|c| c.will = Some(will("a", 65_536))),
        ConfigError::Unfit("the will's payload")
    ));
    assert!(matches!(
        broken(&|c| c.keep_alive = Duration::ZERO),
        ConfigError::Range { value: 0, .. }
    ));
    assert!(matches!(
        broken(&|c| c.window = 0),
        ConfigError::Range { name: "window", .. }
    ));
    assert!(matches!(
        broken(&|c| c.max_packet = 100),
        ConfigError::Range { value: 100, .. }
    ));
    assert!(matches!(
        broken(&|c| c.ca = Some(missing.clone())),
        ConfigError::CaWithoutTls
    ));
    let tls = |c: &mut Config| {
        c.url = "mqtts://localhost".parse().unwrap();
        c.ca = Some(missing.clone());
    };
    assert!(matches!(broken(&tls), ConfigError::CaFile { path, .. } if path == missing));
}
