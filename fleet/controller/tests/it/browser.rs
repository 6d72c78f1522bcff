//! The page in a real browser. With `OFFRAMP_SCREENSHOTS=FOLDER` it leaves pictures to look at.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use offramp_fleet::{FRAMES, Harm, Swarm, SwarmOptions};
use offramp_proto::{Kind, encode};
use offramp_test_support::Chromium;
use serde_json::{Value, json};

use crate::http::request;
use crate::world::{World, component, soon, tenant, url};

const JSON: &str = "Content-Type: application/json";

/// The browser waits on its own thread, while the controller goes on.
fn wait<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}

fn picture(browser: &mut Chromium, name: &str) {
    let Some(folder) = std::env::var_os("OFFRAMP_SCREENSHOTS") else {
        return;
    };
    std::fs::create_dir_all(&folder).unwrap();
    for scheme in ["light", "dark"] {
        browser.scheme(scheme);
        browser.screenshot(&Path::new(&folder).join(format!("{name}-{scheme}.png")));
    }
    browser.scheme("light");
}

async fn token(world: &World) -> String {
    let body = json!({"name": "ada", "role": "admin"}).to_string();
    let made = request(world.address(), "POST", "/api/v1/tokens", &[JSON], body.as_bytes()).await;
    made.json()["token"].as_str().unwrap().to_owned()
}

async fn ask(world: &World, token: &str, method: &str, path: &str, body: &[u8]) -> Value {
    let headers = [&format!("Authorization: Bearer {token}"), JSON];
    let answer = request(world.address(), method, &format!("/api/v1{path}"), &headers, body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

fn log_in(browser: &mut Chromium, address: SocketAddr, token: &str) {
    browser.open(&format!("http://{address}/devices/cam-1"));
    // The field has the focus: nobody needs a mouse.
    browser.until("location.pathname === '/login' && document.activeElement?.id === 'token'");
    browser.type_text("offramp_wrong");
    browser.press("Enter");
    let refused = "document.querySelector('#trouble')?.textContent.includes('does not hold')";
    browser.until(&format!("{refused} && document.activeElement?.id === 'token'"));
    browser.type_text(token);
    browser.press("Enter");
    browser.until("location.pathname === '/devices/cam-1' && document.querySelector('#live').dataset.state === 'on'");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_logs_in_sees_news_and_logs_out() {
    let world = World::new().await;
    let device = world.device("cam-1").await;
    for sequence in 1..=20 {
        device
            .say(Kind::Summary, encode(&device.guarded(sequence, false)).unwrap())
            .await;
    }
    world.until("the summaries", |s| s.ingested == 20).await;
    let (address, token) = (world.address(), token(&world).await);
    let mut browser = wait(Chromium::start);
    wait(|| {
        browser.open(&format!("http://{address}/"));
        browser.until("location.pathname === '/login'");
        picture(&mut browser, "login");
        log_in(&mut browser, address, &token);
        picture(&mut browser, "device");
        assert_eq!(browser.run("document.cookie"), "", "no script sees the session");

        // Kept apart by button, and let go.
        browser.click("#apart summary");
        browser.click("#reason");
        browser.type_text("lost on the way");
        browser.press("Enter");
        browser.until("document.querySelector('.banner.bad')?.textContent.includes('lost on the way')");
        picture(&mut browser, "quarantine");
        browser.click("form[action$='/release'] button");
        browser.until("document.querySelector('#apart') && !document.querySelector('.banner.bad')");

        // From the insight to a model's version.
        browser.open(&format!("http://{address}/insight"));
        browser.until("document.querySelector('#by-model tbody th a')");
        picture(&mut browser, "insight");
        browser.click("#by-model tbody th a");
        browser.until("location.pathname.startsWith('/models/') && document.querySelector('#devices tbody th a')");
        picture(&mut browser, "model");

        browser.open(&format!("http://{address}/"));
        browser.until("document.querySelector('#live').dataset.state === 'on'");
        picture(&mut browser, "fleet");
        // The first tab stop is the way past the head.
        browser.press("Tab");
        assert_eq!(browser.run("document.activeElement.textContent"), "Skip to content");
        assert!(
            browser
                .run("document.querySelector('.top .who').innerText")
                .to_string()
                .contains("ada")
        );
        let unnamed = "[...document.querySelectorAll('button, input:not([type=hidden]), a')].filter((e) => \
                       !(e.textContent.trim() || e.ariaLabel || e.labels?.length)).length";
        assert_eq!(browser.run(unnamed), 0, "a screen reader has a name for everything");
    });

    // News arrive by themselves.
    let before = wait(|| browser.run("document.querySelector('main').innerText"));
    device
        .say(Kind::Summary, encode(&device.guarded(21, true)).unwrap())
        .await;
    wait(|| {
        browser.until("document.querySelector('main').innerText.includes('Learning paused')");
        assert!(!before.to_string().contains("Learning paused"));

        browser.click(".top .who button");
        browser.until("location.pathname === '/login'");
        browser.open(&format!("http://{address}/"));
        browser.until("location.pathname === '/login'");
        assert_eq!(browser.problems(), Vec::<String>::new());
    });
    world.controller.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_screen_answers_and_a_rollout_is_told_what_to_do() {
    let world = World::new().await;
    let options = SwarmOptions {
        broker: url(&world.broker),
        tenant: tenant(),
        key: world.controller.public_key(),
        devices: 12,
        interval: std::time::Duration::from_millis(100),
    };
    let swarm = soon("the swarm", Swarm::start(&options, || ())).await.unwrap();
    swarm.send(true);
    world.until("windows", |s| s.ingested > 60).await;
    world.device("cam-1").await;
    let (address, token) = (world.address(), token(&world).await);
    ask(
        &world,
        &token,
        "POST",
        "/policies?name=entropy&version=7&target=none",
        &component(),
    )
    .await;
    let (_, harmless) = Harm::ALL.into_iter().find(|(harm, _)| *harm == Harm::None).unwrap();
    let devices: Vec<String> = ask(&world, &token, "GET", "/devices", b"").await["devices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|device| device["device"].as_str().unwrap().to_owned())
        .filter(|name| name != "cam-1")
        .collect();
    let wanted = json!({
        "policy": "entropy", "version": 7, "parameters": {"simulate": harmless}, "devices": devices,
        // Long enough that it is still under way when it is paused.
        "plan": {"canary": 2, "factor": 2.0, "watch": 600, "frames": FRAMES, "patience": 900},
    });
    let id = ask(&world, &token, "POST", "/rollouts", wanted.to_string().as_bytes()).await["id"].clone();
    let mut browser = wait(Chromium::start);
    wait(|| {
        log_in(&mut browser, address, &token);
        browser.open(&format!("http://{address}/"));
        browser.until("document.querySelector('#rollouts .progress')");
        picture(&mut browser, "first-screen");
        // Is all alive; what is saved, and at what risk; what is rolled out: without scrolling.
        let below = "[...document.querySelectorAll('#answers, #rollouts')]\
                     .filter((e) => e.getBoundingClientRect().bottom > innerHeight).map((e) => e.id).join()";
        assert_eq!(browser.run(below), "");
        assert_eq!(
            browser.run("document.querySelectorAll('#answers, #rollouts').length"),
            2
        );

        browser.click("#rollouts a");
        browser.until(&format!("location.pathname === '/rollouts/{id}'"));
        picture(&mut browser, "rollout");
        browser.click(&format!("form[action='/rollouts/{id}/pause'] button"));
        browser.until("document.querySelector('#rollout .chip')?.textContent === 'paused'");
        // What cannot be taken back asks twice.
        let hidden =
            format!("document.querySelector(\"form[action='/rollouts/{id}/roll-back'] button\").checkVisibility()");
        assert_eq!(browser.run(&hidden), false);
        browser.run("document.querySelector('#careful-roll-back summary').focus()");
        browser.press("Enter");
        browser.until(&hidden);
        browser.click("#careful-roll-back input");
        browser.type_text("cameras dark");
        // News come meanwhile: what is being written stays, and so does the place where it goes on.
        let field = "document.querySelector('#careful-roll-back input')";
        browser.run(&format!("{field}.setSelectionRange(8, 8)"));
        browser.run("document.querySelector('#rollout h1').dataset.old = true");
        browser.until("!document.querySelector('#rollout [data-old]')");
        assert_eq!(browser.run(&format!("document.activeElement === {field}")), true);
        browser.type_text("went ");
        assert_eq!(browser.run(&format!("{field}.value")), "cameras went dark");
        picture(&mut browser, "rollout-careful");
        browser.click(&format!("form[action='/rollouts/{id}/roll-back'] button"));
        browser.until("document.querySelector('#rollout .chip')?.textContent === 'rolled-back'");
        assert_eq!(browser.problems(), Vec::<String>::new());
    });
    let log = ask(&world, &token, "GET", &format!("/audit?rollout={id}"), b"").await;
    let by_ada: Vec<&str> = log["entries"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|e| e["who"] == "ada")
        .map(|e| e["what"].as_str().unwrap())
        .collect();
    assert_eq!(by_ada, ["rollout.roll-back", "rollout.pause", "rollout.start"]);
    let why = |what: &str| {
        log["entries"]
            .as_array()
            .unwrap()
            .iter()
            .find(|e| e["what"] == what)
            .unwrap()["detail"]
            .clone()
    };
    assert_eq!(
        (why("rollout.roll-back"), why("rollout.pause")),
        ("cameras went dark".into(), "".into())
    );
    swarm.finish().await;
    world.controller.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_page_cannot_use_the_session() {
    let world = World::new().await;
    world.device("cam-1").await;
    let (address, token) = (world.address(), token(&world).await);
    ask(
        &world,
        &token,
        "POST",
        "/policies?name=entropy&version=7&target=none",
        &component(),
    )
    .await;
    let wanted = json!({"policy": "entropy", "version": 7}).to_string();
    let id = ask(&world, &token, "POST", "/rollouts", wanted.as_bytes()).await["id"].clone();
    // On the same host, so that the browser sends the cookie along: only the port differs.
    let evil = TcpListener::bind("127.0.0.1:0").unwrap();
    let evil_address = evil.local_addr().unwrap();
    let page = format!(
        "<form method=post action=http://{address}/rollouts/{id}/abort></form><form method=post action=http://{address}/logout></form>"
    );
    std::thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        for stream in evil.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n";
            let _ = write!(stream, "{head}Content-Length: {}\r\n\r\n{page}", page.len());
        }
    });
    let mut browser = wait(Chromium::start);
    wait(|| {
        log_in(&mut browser, address, &token);
        for form in [0, 1] {
            browser.open(&format!("http://{evil_address}/"));
            browser.run(&format!("document.forms[{form}].submit()"));
            browser.until("document.body.innerText.includes('a page of another site')");
        }
        // The session is still there.
        browser.open(&format!("http://{address}/rollouts/{id}"));
        browser.until("document.querySelector('#rollout .chip')?.textContent === 'running'");
    });
    world.controller.shutdown().await;
}
