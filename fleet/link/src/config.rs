//! What a link needs to know.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rumqttc::tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use rumqttc::{AckMode, Broker, LastWill, MqttOptions, NetworkOptions, QoS, TlsConfiguration, Transport};

use crate::backoff::Backoff;
use crate::error::ConfigError;
use crate::url::BrokerUrl;
use crate::volatile::VolatileSession;

/// What a link needs to know. [`Config::new`] fills in the defaults.
#[derive(Clone, Debug)]
pub struct Config {
    /// The broker.
    pub url: BrokerUrl,
    /// Names the session at the broker: one per device and role, the same at every start.
    pub client_id: String,
    /// User name and password, if the broker asks for them.
    pub credentials: Option<Credentials>,
    /// Certificates in PEM form to trust instead of the system's; only with `mqtts://`.
    pub ca: Option<PathBuf>,
    /// File with this client's certificate, those between it and its authority, and its private key, in PEM form, for a
    /// broker that asks for them; only with `mqtts://`. Nobody but its owner may read it. It is read when the link is
    /// made.
    pub identity: Option<PathBuf>,
    /// Topic filters to receive from, with QoS 1.
    ///
    /// A filter that an earlier start used and this one does not stays subscribed until the
    /// session expires, unless it is among those that are left; its messages must be ignored.
    pub subscriptions: Vec<String>,
    /// Topic filters of an earlier start of this client that are given up, before the others are subscribed.
    pub leaving: Vec<String>,
    /// What the broker publishes when the connection breaks or this process dies.
    pub will: Option<Will>,
    /// How long the broker keeps the session without a connection: its subscriptions and the
    /// messages that came meanwhile. Whole seconds. Default: one day.
    pub session_expiry: Duration,
    /// A broker or path that is silent for one to two times this long counts as lost. Whole
    /// seconds, 1 to 65535. Default 30 s.
    pub keep_alive: Duration,
    /// How long connecting may take, and confirming the subscriptions once more. Default 10 s.
    pub connect_timeout: Duration,
    /// How long a publish waits for a connection, room in it and its confirmation, all together.
    /// Default 30 s.
    pub publish_timeout: Duration,
    /// Delays between attempts to connect.
    pub backoff: Backoff,
    /// Largest packet in bytes, both ways. Default 256 KiB. The broker may allow less; larger ones
    /// it discards for this client instead of sending them.
    pub max_packet: u32,
    /// Messages in flight each way: received and not acknowledged, published and not confirmed; of the latter fewer where
    /// the broker allows fewer. 1 to 1000. Default 32.
    pub window: u16,
    /// Messages beyond the window that may wait in the inbox: what an earlier connection brought, and what a broker
    /// sends that does not keep to the window (mosquitto 2.0, out of a backlog). What finds no room comes again over a
    /// new connection, so that a reader of much should have room for much. At least the window is used. Default 32.
    pub backlog: usize,
    /// Seed of the delays' jitter. It must differ between devices.
    pub seed: u64,
}

/// User name and password. Not shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(…)")
    }
}

/// What the broker publishes, with QoS 1, when the connection ends without an orderly
/// [`shutdown`](crate::Link::shutdown).
///
/// It is handed over with each connection and may be published although the client is long back:
/// its payload should say which run of the client it speaks of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Will {
    /// Where to.
    pub topic: String,
    /// What; at most 65535 bytes.
    pub payload: Bytes,
    /// Whether the broker keeps it for later subscribers.
    pub retain: bool,
}

impl Config {
    /// A configuration with the defaults named at each field: no credentials, no subscriptions, no
    /// will, and a seed that is made of the client id.
    pub fn new(url: BrokerUrl, client_id: impl Into<String>) -> Self {
        let client_id = client_id.into();
        // FNV-1a.
        let seed = client_id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self {
            url,
            client_id,
            credentials: None,
            ca: None,
            identity: None,
            subscriptions: Vec::new(),
            leaving: Vec::new(),
            will: None,
            session_expiry: Duration::from_secs(24 * 60 * 60),
            keep_alive: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            publish_timeout: Duration::from_secs(30),
            backoff: Backoff::default(),
            max_packet: 256 * 1024,
            window: 32,
            backlog: 32,
            seed,
        }
    }

    /// Checks everything that can be checked without a broker.
    pub(crate) fn options(&self) -> Result<MqttOptions, ConfigError> {
        self.check()?;
        let window = self.window;
        let mut network = NetworkOptions::new();
        // Packets are small and each is waited for.
        network.set_tcp_nodelay(true);
        // The event loop measures connecting as a whole; this is a limit for TCP alone.
        network.set_connection_timeout(self.connect_timeout.as_secs().max(1));

        let mut options = MqttOptions::new(self.client_id.clone(), Broker::tcp(self.url.host(), self.url.port()));
        options
            .set_transport(self.transport()?)
            .set_clean_start(false)
            .set_session_expiry_interval(Some(seconds(self.session_expiry)))
            .set_keep_alive(u16::try_from(self.keep_alive.as_secs()).unwrap_or(u16::MAX))
            .set_connect_timeout(self.connect_timeout)
            .set_max_packet_size(Some(self.max_packet))
            .set_receive_maximum(Some(window))
            .set_outgoing_inflight_upper_limit(window)
            .set_ack_mode(AckMode::Manual)
            .set_session_store_arc(Arc::new(VolatileSession::new(self)))
            .set_network_options(network);
        if let Some(Credentials { username, password }) = &self.credentials {
            options.set_credentials(username.clone(), Bytes::from(password.clone().into_bytes()));
        }
        if let Some(will) = &self.will {
            options.set_last_will(LastWill::new(
                will.topic.clone(),
                will.payload.to_vec(),
                QoS::AtLeastOnce,
                will.retain,
                None,
            ));
        }
        Ok(options)
    }

    fn check(&self) -> Result<(), ConfigError> {
        if self.client_id.is_empty() {
            return Err(ConfigError::NoClientId);
        }
        let mut texts = vec![("the client id", self.client_id.as_str())];
        if let Some(Credentials { username, password }) = &self.credentials {
            texts.push(("the user name", username));
            texts.push(("the password", password));
        }
        if let Some(will) = &self.will {
            if will.topic.is_empty() || !rumqttc::valid_topic(&will.topic) {
                return Err(ConfigError::WillTopic(will.topic.clone()));
            }
            if will.payload.len() > usize::from(u16::MAX) {
                return Err(ConfigError::Unfit("the will's payload"));
            }
            texts.push(("the will's topic", &will.topic));
        }
        for filter in self.subscriptions.iter().chain(&self.leaving) {
            if !rumqttc::valid_filter(filter) {
                return Err(ConfigError::Filter(filter.clone()));
            }
            texts.push(("a topic filter", filter));
        }
        for (name, text) in texts {
            if text.len() > usize::from(u16::MAX) || text.contains('\0') {
                return Err(ConfigError::Unfit(name));
            }
        }
        let ranges = [
            ("keep_alive (s)", self.keep_alive.as_secs(), 1, u64::from(u16::MAX)),
            ("window", u64::from(self.window), 1, 1000),
            // The smallest that leaves room for a topic; MQTT's largest.
            ("max_packet", u64::from(self.max_packet), 1024, 268_435_455),
        ];
        for (name, value, least, most) in ranges {
            if !(least..=most).contains(&value) {
                return Err(ConfigError::Range {
                    name,
                    value,
                    least,
                    most,
                });
            }
        }
        Ok(())
    }

    fn transport(&self) -> Result<Transport, ConfigError> {
        if !self.url.tls() {
            return match (&self.ca, &self.identity) {
                (Some(_), _) => Err(ConfigError::CaWithoutTls),
                (None, Some(_)) => Err(ConfigError::IdentityWithoutTls),
                (None, None) => Ok(Transport::tcp()),
            };
        }
        let identity = self.identity.as_deref().map(read_identity).transpose()?;
        let Some(path) = &self.ca else {
            if identity.is_some() {
                return Err(ConfigError::IdentityWithoutCa);
            }
            return Transport::try_tls_with_default_config()
                .map_err(|source| ConfigError::Roots { source: source.into() });
        };
        let ca = std::fs::read(path).map_err(|source| ConfigError::CaFile {
            path: path.clone(),
            source,
        })?;
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&ca).collect();
        if certificates.is_ok_and(|certificates| !certificates.is_empty()) {
            return Ok(Transport::tls_with_config(TlsConfiguration::Simple {
                ca,
                alpn: None,
                client_auth: identity,
            }));
        }
        Err(ConfigError::CaContent { path: path.clone() })
    }
}

/// Certificates and key, both in the bytes of one file.
fn read_identity(path: &Path) -> Result<(Vec<u8>, Vec<u8>), ConfigError> {
    let cannot_read = |source| ConfigError::IdentityFile {
        path: path.into(),
        source,
    };
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(path).map_err(cannot_read)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(ConfigError::IdentityExposed {
                path: path.into(),
                mode,
            });
        }
    }
    let pem = std::fs::read(path).map_err(cannot_read)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let has_certificate = certificates.is_ok_and(|certificates| !certificates.is_empty());
    if has_certificate && PrivateKeyDer::from_pem_slice(&pem).is_ok() {
        Ok((pem.clone(), pem))
    } else {
        Err(ConfigError::IdentityContent { path: path.into() })
    }
}

pub(crate) fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}
