//! What people see.

use offramp_proto::{Kind, encode};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::http::get;
use crate::world::{World, soon};

#[tokio::test]
async fn pages_show_the_fleet_and_its_devices() {
    let world = World::new().await;
    let device = world.device("cam-1").await;
    for sequence in 1..=20 {
        device
            .say(Kind::Summary, encode(&device.summary(sequence)).unwrap())
            .await;
    }
    world.until("the summaries", |s| s.ingested == 20).await;
    let fleet = get(world.address(), "/").await;
    assert_eq!(fleet.status, 200);
    for part in ["cam-1", "revcol", "40.0\u{202f}%", "threshold"] {
        assert!(fleet.body.contains(part), "{part}");
    }
    let page = get(world.address(), "/devices/cam-1?range=10m").await;
    assert_eq!(page.status, 200);
    assert_eq!(page.body.matches("class=\"drawing\"").count(), 3);

    device
        .say(Kind::Summary, encode(&device.guarded(21, true)).unwrap())
        .await;
    world.until("the summary", |s| s.ingested == 21).await;
    let fleet = get(world.address(), "/").await;
    assert!(fleet.body.contains("Learning paused: <a href=\"/devices/cam-1\">"));
    let page = get(world.address(), "/devices/cam-1?range=10m").await;
    assert_eq!(page.body.matches("class=\"drawing\"").count(), 4);
    assert!(page.body.contains("Learning is paused."));
    assert_eq!(page.body.matches(">learning-paused</span>").count(), 1);
    world.controller.shutdown().await;
}

#[tokio::test]
async fn texts_of_a_hostile_device_stay_texts() {
    let world = World::new().await;
    let device = world.device("cam-1").await;
    let hostile = "</title><script>alert(1)</script><img src=x onerror=alert(2)>\"'";
    let mut birth = device.birth();
    birth.agent = hostile.into();
    birth.model.name = hostile.into();
    birth.model.classes = vec![hostile.into(); 2];
    device.say(Kind::Birth, encode(&birth).unwrap()).await;
    let mut summary = device.summary(1);
    summary.policy.name = hostile.into();
    device.say(Kind::Summary, encode(&summary).unwrap()).await;
    let mut event = device.event(2);
    event.kind = hostile.into();
    event.message = hostile.into();
    device.say(Kind::Event, encode(&event).unwrap()).await;
    let report = device.reported(0, summary.policy.clone(), Some(hostile));
    device.say(Kind::Reported, encode(&report).unwrap()).await;
    world.until("everything", |s| s.received == 5).await;
    for path in ["/", "/devices/cam-1"] {
        let page = get(world.address(), path).await;
        assert_eq!(page.status, 200);
        assert!(page.body.contains("&lt;script&gt;alert(1)"), "{path}");
        assert_eq!(page.body.matches("<script").count(), 1, "{path}");
        assert_eq!(page.body.matches("<img").count(), 0, "{path}");
    }
    world.controller.shutdown().await;
}

#[tokio::test]
async fn nothing_foreign_can_be_loaded_and_files_are_kept() {
    let world = World::new().await;
    let page = get(world.address(), "/").await;
    let head = page.head.to_ascii_lowercase();
    assert!(head.contains("content-security-policy: default-src 'none'; style-src 'self'; script-src 'self'"));
    assert!(head.contains("frame-ancestors 'none'"));
    assert!(head.contains("x-content-type-options: nosniff"));
    assert!(head.contains("cache-control: no-store"));
    assert!(
        !page.body.contains("http://"),
        "only the address of the broker may be there"
    );
    assert!(!page.body.contains(" style="), "the policy forbids it");
    let style = page
        .body
        .split("href=\"")
        .find(|part| part.contains("style.css"))
        .unwrap();
    let style = get(world.address(), style.split('"').next().unwrap()).await;
    assert_eq!(style.status, 200);
    assert!(style.head.to_ascii_lowercase().contains("immutable"));
    world.controller.shutdown().await;
}

#[tokio::test]
async fn missing_page_is_told_as_a_page() {
    let world = World::new().await;
    for path in ["/nothing", "/devices/nobody", "/devices/%3Cscript%3E"] {
        let page = get(world.address(), path).await;
        assert_eq!(page.status, 404);
        assert!(page.body.contains("<h1>Not found</h1>"));
        assert!(!page.body.contains("<script>"));
    }
    world.controller.shutdown().await;
}

#[tokio::test]
async fn open_page_hears_of_news() {
    let world = World::new().await;
    let device = world.device("cam-1").await;
    let mut stream = TcpStream::connect(world.address()).await.unwrap();
    let request = format!("GET /changes HTTP/1.1\r\nHost: {}\r\n\r\n", world.address());
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut lines = BufReader::new(stream).lines();
    let mut next = async || loop {
        let line = soon("an event", lines.next_line()).await.unwrap().unwrap();
        if let Some(data) = line.strip_prefix("data: ") {
            return data.to_owned();
        }
    };
    assert_eq!(next().await, "1");
    device.say(Kind::Summary, encode(&device.summary(1)).unwrap()).await;
    assert_eq!(next().await, "2");
    // A page that waits does not hold up the end.
    soon("the end", world.controller.shutdown()).await;
}
