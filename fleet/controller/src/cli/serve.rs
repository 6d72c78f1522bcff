//! `offramp-fleet serve`

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use offramp_fleet::{Controller, Options};
use offramp_link::{BrokerUrl, Credentials};
use offramp_proto::{DeviceId, TenantId};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::Place;

const DAY: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Args)]
pub(super) struct Serve {
    /// The MQTT v5 broker: mqtt://HOST[:PORT], or mqtts:// for TLS.
    #[arg(
        long,
        value_name = "URL",
        default_value = "mqtt://127.0.0.1:1883",
        env = "OFFRAMP_BROKER"
    )]
    broker: BrokerUrl,
    /// User at the broker.
    #[arg(
        long,
        value_name = "NAME",
        requires = "password_file",
        env = "OFFRAMP_FLEET_USERNAME"
    )]
    username: Option<String>,
    /// File with the password at the broker.
    #[arg(
        long,
        value_name = "FILE",
        requires = "username",
        env = "OFFRAMP_FLEET_PASSWORD_FILE"
    )]
    password_file: Option<PathBuf>,
    /// Certificate of the authority that the broker's is of, instead of the system's.
    #[arg(long, value_name = "FILE", env = "OFFRAMP_FLEET_CA")]
    ca: Option<PathBuf>,
    /// Certificate and key of the controller, for a broker that asks for them (`offramp-fleet broker` makes both).
    #[arg(long, value_name = "FILE", env = "OFFRAMP_FLEET_IDENTITY")]
    identity: Option<PathBuf>,
    /// Where devices that enrol find the broker [default: where the controller does].
    #[arg(long, value_name = "URL", env = "OFFRAMP_FLEET_DEVICE_BROKER")]
    device_broker: Option<BrokerUrl>,
    #[command(flatten)]
    place: Place,
    /// Name of this controller among those that share a PostgreSQL database, the same at every start [default: the
    /// machine's name]
    #[arg(long, value_name = "NAME", env = "OFFRAMP_FLEET_NAME")]
    name: Option<DeviceId>,
    /// Where to serve page and API. While no token was made, whoever reaches them may do everything: then it must be a
    /// loopback address. Beyond one, put a proxy with HTTPS before it.
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "127.0.0.1:8470",
        env = "OFFRAMP_FLEET_LISTEN"
    )]
    listen: SocketAddr,
    /// Name of the fleet on the broker.
    #[arg(long, value_name = "NAME", default_value = "default", env = "OFFRAMP_TENANT")]
    tenant: TenantId,
    /// Days for which a device's certificate holds; it renews it in the last third.
    #[arg(
        long,
        value_name = "DAYS",
        default_value_t = 365,
        value_parser = clap::value_parser!(u32).range(1..=3650),
        env = "OFFRAMP_FLEET_CERTIFICATE_DAYS"
    )]
    certificate_days: u32,
    /// Days for which the sums of summaries by the hour are kept; 0 for ever.
    #[arg(long, value_name = "DAYS", default_value_t = 730, env = "OFFRAMP_FLEET_KEEP_HOURS")]
    keep_hours: u32,
    /// Days for which summaries and events are kept; 0 for ever. Totals, desired states and the audit log stay.
    #[arg(long, value_name = "DAYS", default_value_t = 30, env = "OFFRAMP_FLEET_KEEP")]
    keep: u32,
    /// How to write the log. What is logged follows RUST_LOG, e.g. `offramp_fleet=debug`.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log: LogFormat,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum LogFormat {
    Text,
    Json,
}

impl Serve {
    pub(super) fn run(self) -> anyhow::Result<()> {
        start_log(self.log, "info");
        let password = self.password_file.as_ref().map(|file| {
            let text = std::fs::read_to_string(file);
            text.with_context(|| format!("cannot read the password in {}", file.display()))
        });
        let credentials = self
            .username
            .zip(password.transpose()?)
            .map(|(username, password)| Credentials {
                username,
                password: password.trim_end_matches(['\r', '\n']).to_owned(),
            });
        let options = Options {
            broker: self.broker,
            credentials,
            ca: self.ca,
            identity: self.identity,
            device_broker: self.device_broker,
            tenant: self.tenant,
            keys: self.place.keys,
            database: self.place.database,
            name: self.name,
            listen: self.listen,
            certificates_hold: DAY * self.certificate_days,
            keep: (self.keep > 0).then(|| DAY * self.keep),
            keep_hours: (self.keep_hours > 0).then(|| DAY * self.keep_hours),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        runtime.context("cannot start the runtime")?.block_on(serve(options))
    }
}

async fn serve(options: Options) -> anyhow::Result<()> {
    if !options.listen.ip().is_loopback() {
        tracing::warn!(listen = %options.listen, "page and API are served without encryption: let a proxy do HTTPS");
    }
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut controller = Controller::start(options).await?;
    tracing::info!("page and API on http://{}", controller.address());
    tracing::info!("devices verify with the key {:?}", controller.public_key());
    let failed = tokio::select! {
        part = controller.failed() => Some(part),
        interrupted = tokio::signal::ctrl_c() => {
            interrupted.context("cannot listen for SIGINT")?;
            None
        }
        _ = terminate.recv() => None,
    };
    tracing::info!("stopping");
    controller.shutdown().await;
    match failed {
        Some(part) => Err(anyhow::anyhow!("a part of the controller ended by itself: {part}")),
        None => Ok(()),
    }
}

pub(super) fn start_log(format: LogFormat, usual: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(usual));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_target(false).init(),
        LogFormat::Json => log.json().init(),
    }
}
