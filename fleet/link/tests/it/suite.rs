//! What every broker must do. The tests know no broker; `brokers.rs` knows no test.

use std::time::Duration;

use offramp_link::{Link, Publication, PublishError, Reason, State, Will};
use offramp_test_support::{Direction, Mosquitto, Network};

use crate::brokers::{Embedded, MAX_PACKET, TestBroker};
use crate::client::{Client, config, within};

macro_rules! suite {
    ($($test:ident)*) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::within(super::$test::<super::Embedded>()).await;
            })*
        }
        mod mosquitto {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::within(super::$test::<super::Mosquitto>()).await;
            })*
        }
    };
}

suite! {
    a_retained_message_reaches_a_late_subscriber
    a_will_is_published_when_the_connection_breaks
    a_will_is_published_when_the_link_is_dropped
    a_will_is_not_published_after_a_shutdown
    messages_published_meanwhile_arrive_at_the_next_start
    messages_published_during_a_break_arrive_after_it
    messages_for_an_absent_client_outlive_a_broker_restart
    what_was_not_acknowledged_comes_again_and_the_rest_does_not
    a_filter_that_is_left_brings_what_was_kept_and_nothing_new
    a_publish_waits_for_its_confirmation
    an_unconfirmed_publish_is_sent_again
    an_unconfirmed_publish_outlives_a_broker_restart
    a_link_reconnects_after_a_broker_restart
    subscriptions_are_made_again_when_the_broker_forgot_them
    a_request_carries_where_and_how_to_answer
    a_message_too_large_for_the_link_is_refused
    a_message_too_large_for_the_broker_is_refused
    a_message_too_large_for_a_subscriber_passes_it_by
    a_slow_consumer_loses_nothing_and_holds_nothing_up
    a_full_inbox_delays_the_next_connection
    the_younger_of_two_clients_with_one_id_has_the_session
    many_publishers_share_a_link
}

async fn a_retained_message_reaches_a_late_subscriber<B: TestBroker>() {
    let broker = B::start().await;
    let controller = Client::publisher(broker.address()).await;
    controller.publish_retained("t/down/desired", "one").await;
    controller.publish_retained("t/down/desired", "two").await;

    let mut device = Client::watcher(broker.address(), "t/down/#").await;
    let message = device.message().await;
    assert_eq!((&*message.payload, message.retained), (&b"two"[..], true));

    controller.publish_retained("t/down/desired", "three").await;
    let message = device.message().await;
    assert_eq!((&*message.payload, message.retained), (&b"three"[..], false));
}

fn will() -> Will {
    Will {
        topic: "t/up/death".to_owned(),
        payload: "boot 7".into(),
        retain: true,
    }
}

async fn a_will_is_published_when_the_connection_breaks<B: TestBroker>() {
    let broker = B::start().await;
    let mut watcher = Client::watcher(broker.address(), "t/up/death").await;
    let network = Network::to(broker.address());
    let mut device = config(network.address(), "device");
    device.will = Some(will());
    let device = Client::connect(&device).await;

    network.take_down();
    assert_eq!(watcher.payload().await, "boot 7");
    device.disconnected().await;

    let mut late = config(broker.address(), "late");
    late.subscriptions = vec!["t/up/#".to_owned()];
    let mut late = Client::connect(&late).await;
    assert!(late.message().await.retained);
}

async fn a_will_is_published_when_the_link_is_dropped<B: TestBroker>() {
    let broker = B::start().await;
    let mut watcher = Client::watcher(broker.address(), "t/up/death").await;
    let mut device = config(broker.address(), "device");
    device.will = Some(will());
    drop(Client::connect(&device).await);
    assert_eq!(watcher.payload().await, "boot 7");
}

async fn a_will_is_not_published_after_a_shutdown<B: TestBroker>() {
    let broker = B::start().await;
    let mut watcher = Client::watcher(broker.address(), "t/up/#").await;
    let mut device_config = config(broker.address(), "device");
    device_config.will = Some(will());
    let device = Client::connect(&device_config).await;
    device.link.shutdown().await;
    assert_eq!(*device.link.state().borrow(), State::Closed);

    // A broker that had missed the goodbye would publish the will before it let the same client
    // in again.
    let device = Client::connect(&device_config).await;
    device.publish("t/up/birth", "boot 8").await;
    assert_eq!(watcher.payload().await, "boot 8");
}

async fn messages_published_meanwhile_arrive_at_the_next_start<B: TestBroker>() {
    let broker = B::start().await;
    let controller = Client::publisher(broker.address()).await;
    let mut device_config = config(broker.address(), "device");
    device_config.subscriptions = vec!["t/down/#".to_owned()];

    let device = Client::start(&device_config);
    assert!(!device.connected().await, "no session before");
    device.link.shutdown().await;
    for n in 0..5 {
        controller.publish("t/down/request", &n.to_string()).await;
    }
    let mut device = Client::start(&device_config);
    assert!(device.connected().await, "the session of the start before");
    for n in 0..5 {
        assert_eq!(device.payload().await, n.to_string());
    }
    // The resumed session sends as well as it receives.
    device.publish("t/up/summary", "done").await;
}

async fn messages_published_during_a_break_arrive_after_it<B: TestBroker>() {
    let broker = B::start().await;
    let controller = Client::publisher(broker.address()).await;
    let network = Network::to(broker.address());
    let mut device = Client::watcher(network.address(), "t/down/#").await;

    network.take_down();
    device.disconnected().await;
    for n in 0..5 {
        controller.publish("t/down/request", &n.to_string()).await;
    }
    network.restore();
    for n in 0..5 {
        assert_eq!(device.payload().await, n.to_string());
    }
    assert!(device.connected().await);
}

async fn messages_for_an_absent_client_outlive_a_broker_restart<B: TestBroker>() {
    let mut broker = B::start().await;
    let mut device_config = config(broker.address(), "device");
    device_config.subscriptions = vec!["t/down/#".to_owned()];
    Client::connect(&device_config).await.link.shutdown().await;
    let controller = Client::publisher(broker.address()).await;
    controller.publish("t/down/request", "kept").await;
    controller.publish_retained("t/down/desired", "retained").await;
    controller.link.shutdown().await;

    broker.stop().await;
    broker.resume().await;

    let mut device = Client::start(&device_config);
    assert!(device.connected().await);
    let mut payloads = vec![device.payload().await, device.payload().await];
    payloads.sort();
    assert_eq!(payloads, ["kept", "retained"]);
}

async fn what_was_not_acknowledged_comes_again_and_the_rest_does_not<B: TestBroker>() {
    let broker = B::start().await;
    let controller = Client::publisher(broker.address()).await;
    let network = Network::to(broker.address());
    let mut device = Client::watcher(network.address(), "t/down/#").await;
    for n in 0..3 {
        controller.publish("t/down/request", &n.to_string()).await;
    }
    assert_eq!(device.payload().await, "0");
    let stale = device.delivery().await;
    assert!(!stale.message.duplicate);
    let forgotten = device.delivery().await;
    device.flush().await;

    network.take_down();
    device.disconnected().await;
    network.restore();
    // Acknowledging over a connection that is gone must not acknowledge another message on the next.
    device.connected().await;
    stale.acknowledge();
    drop(forgotten);
    for n in ["1", "2"] {
        let again = device.message().await;
        assert_eq!((&*again.payload, again.duplicate), (n.as_bytes(), true));
    }
    device.flush().await;

    controller.publish("t/down/request", "3").await;
    let new = device.message().await;
    assert_eq!((&*new.payload, new.duplicate), (&b"3"[..], false));
}

async fn a_filter_that_is_left_brings_what_was_kept_and_nothing_new<B: TestBroker>() {
    let broker = B::start().await;
    let controller = Client::publisher(broker.address()).await;
    let mut config = config(broker.address(), "device");
    config.subscriptions = vec!["t/down/a".to_owned(), "t/down/b".to_owned()];
    Client::connect(&config).await.link.shutdown().await;
    controller.publish("t/down/a", "kept").await;

    config.leaving = std::mem::replace(&mut config.subscriptions, vec!["t/down/end".to_owned()]);
    let mut heir = Client::connect(&config).await;
    assert_eq!(heir.payload().await, "kept");
    heir.flush().await;
    for topic in ["t/down/a", "t/down/b", "t/down/end"] {
        controller.publish(topic, topic).await;
    }
    assert_eq!(heir.payload().await, "t/down/end");
}

/// Waits until something is held up in this direction.
fn something_is_held(network: &Network, direction: Direction) {
    tokio::task::block_in_place(|| network.wait_until_held(direction));
}

async fn a_publish_waits_for_its_confirmation<B: TestBroker>() {
    let broker = B::start().await;
    let mut watcher = Client::watcher(broker.address(), "t/up/#").await;
    let network = Network::to(broker.address());
    let device = Client::publisher(network.address()).await;

    network.hold(Direction::Down);
    let publish = device.start_publishing("t/up/summary", "seven");
    assert_eq!(watcher.payload().await, "seven");
    something_is_held(&network, Direction::Down);
    assert!(
        !publish.is_finished(),
        "the broker has confirmed it, and the device does not know"
    );
    network.release(Direction::Down);
    publish.await.unwrap().unwrap();
}

async fn an_unconfirmed_publish_is_sent_again<B: TestBroker>() {
    let broker = B::start().await;
    let mut watcher = Client::watcher(broker.address(), "t/up/#").await;
    let network = Network::to(broker.address());
    let device = Client::publisher(network.address()).await;

    network.hold(Direction::Down);
    let publish = device.start_publishing("t/up/summary", "seven");
    assert_eq!(watcher.payload().await, "seven");
    network.cut();
    network.release(Direction::Down);
    publish.await.unwrap().unwrap();
    assert_eq!(watcher.payload().await, "seven");
}

async fn an_unconfirmed_publish_outlives_a_broker_restart<B: TestBroker>() {
    let mut broker = B::start().await;
    let mut watcher = Client::watcher(broker.address(), "t/up/#").await;
    let network = Network::to(broker.address());
    let device = Client::publisher(network.address()).await;

    network.hold(Direction::Up);
    let publish = device.start_publishing("t/up/summary", "seven");
    something_is_held(&network, Direction::Up);
    broker.stop().await;
    network.cut();
    network.release(Direction::Up);
    broker.resume().await;
    publish.await.unwrap().unwrap();
    assert_eq!(watcher.payload().await, "seven");
}

async fn a_link_reconnects_after_a_broker_restart<B: TestBroker>() {
    let mut broker = B::start().await;
    let mut device = Client::watcher(broker.address(), "t/down/#").await;
    let controller = Client::publisher(broker.address()).await;

    broker.stop().await;
    device.disconnected().await;
    broker.resume().await;
    assert!(device.connected().await, "the broker kept its sessions");
    controller.publish("t/down/request", "after").await;
    assert_eq!(device.payload().await, "after");
}

async fn subscriptions_are_made_again_when_the_broker_forgot_them<B: TestBroker>() {
    let mut broker = B::start().await;
    let mut device = Client::watcher(broker.address(), "t/down/#").await;
    let controller = Client::publisher(broker.address()).await;

    broker.stop().await;
    device.disconnected().await;
    broker.forget();
    broker.resume().await;
    assert!(!device.connected().await, "the broker forgot its sessions");
    controller.publish("t/down/request", "after").await;
    assert_eq!(device.payload().await, "after");
}

async fn a_request_carries_where_and_how_to_answer<B: TestBroker>() {
    let broker = B::start().await;
    let mut server = Client::watcher(broker.address(), "t/up/request").await;
    let mut device = config(broker.address(), "device");
    device.subscriptions = vec!["t/down/answer".to_owned()];
    let mut device = Client::connect(&device).await;

    let request = Publication::new("t/up/request", "chunk 3")
        .answer_to("t/down/answer")
        .correlated_by(vec![0, 255, 7])
        .expires_after(Duration::from_secs(60));
    device.link.publish(request).await.unwrap();
    let request = server.message().await;
    assert_eq!(request.response_topic.as_deref(), Some("t/down/answer"));

    let answer =
        Publication::new(request.response_topic.unwrap(), "content").correlated_by(request.correlation.unwrap());
    server.link.publish(answer).await.unwrap();
    let answer = device.message().await;
    assert_eq!(&*answer.payload, b"content");
    assert_eq!(answer.correlation.as_deref(), Some(&[0, 255, 7][..]));
    assert_eq!(answer.response_topic, None);
}

async fn a_message_too_large_for_the_link_is_refused<B: TestBroker>() {
    let broker = B::start().await;
    let mut watcher = Client::watcher(broker.address(), "t/#").await;
    let mut device = config(broker.address(), "device");
    device.max_packet = 2000;
    let device = Client::connect(&device).await;
    // Fixed header 3, topic 2 + 3, packet identifier 2, properties 1.
    let fits = 2000 - 11;
    let error = device
        .link
        .publish(Publication::new("t/a", vec![1; fits + 1]))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            PublishError::TooLarge {
                bytes: 2001,
                limit: 2000,
                ..
            }
        ),
        "{error}"
    );

    device
        .link
        .publish(Publication::new("t/a", vec![1; fits]))
        .await
        .unwrap();
    assert_eq!(watcher.message().await.payload.len(), fits);
}

async fn a_message_too_large_for_the_broker_is_refused<B: TestBroker>() {
    let broker = B::start().await;
    let mut watcher = Client::watcher(broker.address(), "t/#").await;
    let mut device = config(broker.address(), "device");
    device.max_packet = 4 * u32::try_from(MAX_PACKET).unwrap();
    let device = Client::connect(&device).await;
    let error = device
        .link
        .publish(Publication::new("t/a", vec![1; MAX_PACKET]))
        .await
        .unwrap_err();
    assert!(
        matches!(error, PublishError::TooLarge { limit: MAX_PACKET, .. }),
        "{error}"
    );

    device.publish("t/a", "small").await;
    assert_eq!(watcher.payload().await, "small");
    assert!(matches!(*device.link.state().borrow(), State::Connected { .. }));
}

async fn a_message_too_large_for_a_subscriber_passes_it_by<B: TestBroker>() {
    let broker = B::start().await;
    let mut device = config(broker.address(), "device");
    device.subscriptions = vec!["t/#".to_owned()];
    device.max_packet = 2000;
    let mut device = Client::connect(&device).await;
    let controller = Client::publisher(broker.address()).await;

    controller
        .link
        .publish(Publication::new("t/a", vec![1; 4000]))
        .await
        .unwrap();
    controller.publish("t/a", "small").await;
    assert_eq!(device.payload().await, "small");
    assert!(matches!(*device.link.state().borrow(), State::Connected { .. }));
}

const WINDOW: u16 = 4;

async fn slow_device(network: &Network) -> Client {
    let mut device = config(network.address(), "device");
    device.subscriptions = vec!["t/down/#".to_owned()];
    device.window = WINDOW;
    Client::connect(&device).await
}

async fn a_slow_consumer_loses_nothing_and_holds_nothing_up<B: TestBroker>() {
    let broker = B::start().await;
    let network = Network::to(broker.address());
    let mut device = slow_device(&network).await;
    let controller = Client::publisher(broker.address()).await;
    for n in 0..20 {
        controller.publish("t/down/request", &n.to_string()).await;
    }
    // Nobody has taken anything, and the connection goes on all the same.
    for n in 0..20 {
        device.publish("t/up/summary", &n.to_string()).await;
    }
    let mut next = 0;
    while next < 20 {
        let n: u32 = device.payload().await.parse().unwrap();
        assert!(n <= next, "{next} was lost before {n}");
        if n == next {
            next += 1;
        } else {
            assert!(!B::KEEPS_RECEIVE_MAXIMUM, "{n} came again");
        }
    }
    if B::KEEPS_RECEIVE_MAXIMUM {
        assert_eq!(network.accepted(), 1, "one connection throughout");
    }
}

async fn a_full_inbox_delays_the_next_connection<B: TestBroker>() {
    let broker = B::start().await;
    let network = Network::to(broker.address());
    let mut device = slow_device(&network).await;
    let controller = Client::publisher(broker.address()).await;
    for n in 0..10 {
        controller.publish("t/down/request", &n.to_string()).await;
    }
    // The inbox takes one window of each of two connections; the third must wait.
    let full = |state: &State| {
        matches!(
            state,
            State::Disconnected {
                reason: Reason::InboxFull,
                ..
            }
        )
    };
    let mut breaks = 0;
    loop {
        device.flush().await;
        network.take_down();
        let state = device.disconnected().await;
        network.restore();
        breaks += 1;
        let state = if full(&state) {
            state
        } else {
            device
                .state(|state| full(state) || matches!(state, State::Connected { .. }))
                .await
        };
        if full(&state) {
            break;
        }
        assert!(breaks < 100, "{state:?}");
    }
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < 10 {
        seen.insert(device.payload().await);
    }
    device.connected().await;
}

async fn the_younger_of_two_clients_with_one_id_has_the_session<B: TestBroker>() {
    let broker = B::start().await;
    let mut same = config(broker.address(), "device");
    same.backoff.first = Duration::from_secs(1000);
    same.backoff.longest = same.backoff.first;
    let older = Client::connect(&same).await;
    let younger = Client::start(&same);
    assert!(younger.connected().await, "the session of the older");
    older.disconnected().await;
    younger.publish("t", "x").await;
}

async fn many_publishers_share_a_link<B: TestBroker>() {
    let broker = B::start().await;
    let mut watcher = Client::watcher(broker.address(), "t/#").await;
    let mut device = config(broker.address(), "device");
    device.window = WINDOW;
    let device = Client::connect(&device).await;
    let publish = |link: Link, n: u32| async move {
        link.publish(Publication::new(format!("t/{n}"), n.to_string()))
            .await
            .unwrap();
    };
    let tasks: Vec<_> = (0..100)
        .map(|n| tokio::spawn(publish(device.link.clone(), n)))
        .collect();
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < 100 {
        seen.insert(watcher.payload().await);
    }
    for task in tasks {
        task.await.unwrap();
    }
}
