//! `offramp-fleet swarm`

use std::collections::HashMap;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Args;
use offramp_fleet::{Controller, Database, FRAMES, Options, Swarm, SwarmOptions};
use offramp_link::BrokerUrl;
use offramp_proto::TenantId;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::client::{Client, parse};
use super::serve::{LogFormat, start_log};
use super::{Server, print};

/// A broker or a controller that does not come up by then will not.
const STARTING: Duration = Duration::from_secs(20);
/// What has not arrived by then after the last summary was confirmed is lost.
const SETTLING: Duration = Duration::from_secs(60);
/// Between two looks at the page.
const PAGE: Duration = Duration::from_millis(500);

/// Without --broker and --url it starts a mosquitto and a controller of its own, with a database in a temporary
/// folder, and measures all of it on this machine. In the middle a policy is rolled out to all devices.
///
/// Devices are simulated, but speak the whole protocol, each over a connection of its own. The parameter `simulate` of
/// a policy has them misbehave, to see gates at work: refuse, silent, gives-up, faults, cost, exits, disagreement,
/// loss, rollbacks or restarts.
#[derive(Debug, Args)]
pub(super) struct SwarmArgs {
    /// How many devices.
    #[arg(long, default_value_t = 100)]
    devices: usize,
    /// For how long they send summaries.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Summaries of all devices together, in a second.
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
    /// Database of the controller that it starts, an empty one [default: a SQLite file in a temporary folder]
    #[arg(long, value_name = "FILE|URL", conflicts_with = "url")]
    database: Option<Database>,
    /// A broker that runs.
    #[arg(long, value_name = "URL", requires = "url", env = "OFFRAMP_BROKER")]
    broker: Option<BrokerUrl>,
    /// The controller that is connected to it.
    #[arg(long, requires = "broker", env = "OFFRAMP_FLEET_URL")]
    url: Option<String>,
    /// Secret of a token, where that controller asks for one.
    #[arg(
        long,
        value_name = "SECRET",
        requires = "url",
        env = "OFFRAMP_FLEET_TOKEN",
        hide_env_values = true
    )]
    token: Option<String>,
    /// Roll nothing out.
    #[arg(long)]
    no_rollout: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// What the swarm runs against.
struct Place {
    broker: BrokerUrl,
    broker_name: &'static str,
    client: Client,
    /// Ends with this program, in this order.
    controller: Option<Controller>,
    mosquitto: Option<Mosquitto>,
    _keys: Option<TempDir>,
}

/// A mosquitto of our own, which ends with this value.
struct Mosquitto {
    child: Child,
    _folder: TempDir,
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl SwarmArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        start_log(LogFormat::Text, "warn");
        ensure!(self.devices > 0 && self.devices <= 100_000, "use 1 to 100000 devices");
        ensure!(self.rate > 0.0, "use a rate above 0");
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        runtime.context("cannot start the runtime")?.block_on(self.measure())
    }

    async fn measure(self) -> anyhow::Result<()> {
        let mut place = self.place().await?;
        let status: Value = parse(&place.client.away(|client| client.get("/status", &[])).await?)?;
        let text = |name: &str| status[name].as_str().unwrap_or_default().to_owned();
        let options = SwarmOptions {
            broker: place.broker.clone(),
            tenant: TenantId::new(text("tenant")).context("the controller names no tenant")?,
            key: text("public_key").parse().context("the controller names no key")?,
            devices: self.devices,
            interval: Duration::from_secs_f64(self.devices as f64 / self.rate),
        };
        let before = place.frames().await?;
        let mut connected = 0;
        let swarm = Swarm::start(&options, || {
            connected += 1;
            if connected % 1000 == 0 || connected == self.devices {
                eprintln!("{connected} of {} devices connected", self.devices);
            }
        })
        .await?;
        let stored_before = place.stored().await?;
        let begin = Instant::now();
        swarm.send(true);
        let pages = tokio::spawn(watch_page(place.client.clone(), Duration::from_secs(self.seconds)));
        let mut rollout_seconds = None;
        if !self.no_rollout {
            tokio::time::sleep(Duration::from_secs(self.seconds) / 4).await;
            rollout_seconds = Some(place.roll_out().await?);
            eprintln!("rollout done");
        }
        tokio::time::sleep(Duration::from_secs(self.seconds).saturating_sub(begin.elapsed())).await;
        swarm.send(false);
        let took = begin.elapsed();
        let stored_then = place.stored().await?.saturating_sub(stored_before);
        let page_ms = pages.await.context("the page was not watched")?;
        let sent_by_device = swarm.finish().await;
        let sent: u64 = sent_by_device.iter().map(|(_, sent)| sent).sum();
        place.settle(stored_before + sent).await?;

        let after = place.frames().await?;
        let (mut stored, mut lost, mut doubled) = (0, 0, 0);
        for (device, sent) in &sent_by_device {
            let frames = |of: &HashMap<String, u64>| of.get(device.as_str()).copied().unwrap_or(0);
            let kept = frames(&after).saturating_sub(frames(&before)) / FRAMES;
            stored += kept;
            lost += sent.saturating_sub(kept);
            doubled += kept.saturating_sub(*sent);
        }
        let row = json!({
            "devices": self.devices, "sent": sent, "stored": stored, "lost": lost, "doubled": doubled,
            "stored_per_second": stored_then as f64 / took.as_secs_f64(), "rollout_seconds": rollout_seconds,
            "page_ms_median": page_ms, "database": text("database"), "broker": place.broker_name,
        });
        if let Some(controller) = place.controller.take() {
            controller.shutdown().await;
        }
        drop(place.mosquitto.take());
        if self.json {
            return print(&format!("{row}\n"));
        }
        let mut text = String::new();
        for (name, value) in row.as_object().into_iter().flatten() {
            text.push_str(&format!("{name:<18} {value}\n"));
        }
        print(&text)
    }

    async fn place(&self) -> anyhow::Result<Place> {
        if let (Some(broker), Some(url)) = (&self.broker, &self.url) {
            return Ok(Place {
                broker: broker.clone(),
                broker_name: "given",
                client: Client::new(&Server {
                    url: url.clone(),
                    token: self.token.clone(),
                    json: false,
                }),
                controller: None,
                mosquitto: None,
                _keys: None,
            });
        }
        let (mosquitto, broker) = tokio::task::spawn_blocking(Mosquitto::start).await??;
        let broker: BrokerUrl = format!("mqtt://{broker}").parse().context("a loopback address")?;
        let tenant = TenantId::new("swarm").context("a valid name")?;
        let keys = tempfile::tempdir().context("cannot make a temporary folder")?;
        let options = Options {
            database: self.database.clone().unwrap_or(Database::Temporary),
            keys: Some(keys.path().join("swarm")),
            ..Options::temporary(broker.clone(), tenant)
        };
        let controller = Controller::start(options).await?;
        let connected = |state: &offramp_link::State| matches!(state, offramp_link::State::Connected { .. });
        let mut link = controller.link();
        tokio::time::timeout(STARTING, link.wait_for(connected))
            .await
            .context("the controller does not reach its broker")??;
        let url = format!("http://{}", controller.address());
        Ok(Place {
            broker,
            broker_name: "mosquitto",
            client: Client::new(&Server {
                url,
                token: None,
                json: false,
            }),
            controller: Some(controller),
            mosquitto: Some(mosquitto),
            _keys: Some(keys),
        })
    }
}

impl Place {
    /// Frames of every device, over all its runs.
    async fn frames(&self) -> anyhow::Result<HashMap<String, u64>> {
        let devices = self.client.away(|client| client.devices("")).await?;
        let frames = devices.iter().map(|device| {
            let name = device["device"].as_str().unwrap_or_default().to_owned();
            (name, device["frames"].as_u64().unwrap_or(0))
        });
        Ok(frames.collect())
    }

    /// Summaries that the controller has stored since it started.
    async fn stored(&self) -> anyhow::Result<u64> {
        let status: Value = parse(&self.client.away(|client| client.get("/status", &[])).await?)?;
        status["statistics"]["ingested"]
            .as_u64()
            .context("the controller does not count")
    }

    /// Waits until everything has arrived, or nothing has for a while.
    async fn settle(&self, sent: u64) -> anyhow::Result<()> {
        let (mut last, mut since) = (0, Instant::now());
        loop {
            let stored = self.stored().await?;
            if stored != last {
                (last, since) = (stored, Instant::now());
            }
            if stored >= sent && since.elapsed() > Duration::from_secs(2) || since.elapsed() > SETTLING {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Rolls a policy out to all devices. Gives the seconds from the start to its end.
    async fn roll_out(&self) -> anyhow::Result<f64> {
        // The version is the time: the swarm may have been here before.
        let version = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)?
            .as_secs();
        let mut component = b"\0asm\x0d\0\x01\0".to_vec();
        component.extend((0..20_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8));
        component.extend(version.to_be_bytes());
        let text = version.to_string();
        let add = move |client: &Client| {
            let query = [("name", "swarm"), ("version", text.as_str()), ("target", "none")];
            client.post("/policies", &query, &component)
        };
        self.client.away(add).await?;
        let begin = Instant::now();
        // Nothing is watched here: what is measured is the way to the devices and back.
        let wanted = json!({
            "policy": "swarm", "version": version,
            "plan": {"canary": 10, "factor": 1000, "watch": 0, "frames": 0, "patience": 600},
        });
        let start = move |client: &Client| client.post_json("/rollouts", &wanted);
        let answer = self.client.away(start).await?;
        let id = parse::<Value>(&answer)?["id"]
            .as_u64()
            .context("the controller gave no number")?;
        loop {
            // Without its devices: that answer is long.
            let listed: Value = parse(&self.client.away(|client| client.get("/rollouts", &[])).await?)?;
            let rollouts = listed["rollouts"].as_array();
            let ours = rollouts.and_then(|all| all.iter().find(|rollout| rollout["id"] == id));
            let state = ours.and_then(|rollout| rollout["state"].as_str()).unwrap_or("lost");
            match state {
                "done" => return Ok(begin.elapsed().as_secs_f64()),
                "running" => tokio::time::sleep(Duration::from_millis(250)).await,
                _ => anyhow::bail!("the rollout is {state}: {ours:?}"),
            }
        }
    }
}

/// Asks for the first page again and again. Gives the median time of an answer in milliseconds.
async fn watch_page(client: Client, time: Duration) -> f64 {
    let begin = Instant::now();
    let mut times = Vec::new();
    while begin.elapsed() < time {
        let start = Instant::now();
        if client.away(Client::page).await.is_ok() {
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        tokio::time::sleep(PAGE).await;
    }
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Mosquitto {
    fn start() -> anyhow::Result<(Self, SocketAddr)> {
        let remedy = "install it (Debian: apt-get install mosquitto), or give --broker and --url";
        let folders = std::env::var_os("PATH").unwrap_or_default();
        let program = std::env::split_paths(&folders)
            .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/usr/local/sbin")])
            .map(|folder| folder.join("mosquitto"))
            .find(|path| path.is_file())
            .with_context(|| format!("mosquitto is not on this machine: {remedy}"))?;
        let folder = tempfile::tempdir()?;
        // Free now; whoever takes it before mosquitto does makes it fail, and says so.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let config = folder.path().join("mosquitto.conf");
        let mut file = std::fs::File::create(&config)?;
        write!(
            file,
            "listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nset_tcp_nodelay true\n\
             max_queued_messages 0\nmax_inflight_messages 1000\nlog_dest stderr\nlog_type error\n"
        )?;
        let child = Command::new(&program)
            .arg("-c")
            .arg(&config)
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("{} does not start", program.display()))?;
        let mut this = Self { child, _folder: folder };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let begin = Instant::now();
        while TcpStream::connect(address).is_err() {
            ensure!(this.child.try_wait()?.is_none(), "mosquitto has ended: {remedy}");
            ensure!(begin.elapsed() < STARTING, "mosquitto does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok((this, address))
    }
}
