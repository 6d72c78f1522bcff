//! The controller as a whole: its parts, started and ended together.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use offramp_link::{BrokerUrl, Config, ConfigError, Credentials, Link, State};
use offramp_proto::{DeviceId, Generation, PublicKey, TenantId};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use crate::access::LOCAL;
use crate::artifacts::{self, Artifacts, Held};
use crate::authority::{Authority, AuthorityError};
use crate::desired::{self, PolicyUpload, Publisher, PushError, Pushed, Target};
use crate::forecast::Forecaster;
use crate::ingest::Ingest;
use crate::key::{KeyError, Keyring};
use crate::models::{self, AddedModel, ModelError, ModelUpload};
use crate::peers::{self, Peers};
use crate::renewals::{self, Renewals};
use crate::retention::Retention;
use crate::rollout::Conductor;
use crate::statistics::Statistics;
use crate::store::{
    Act, Change, Commanded, Database, Group, Kept, NewRollout, ReportedState, Revocation, Started, Store, StoreError,
    Unfit, beside, now,
};
use crate::totals::{Figures, TotalsCache};
use crate::web;

/// Messages that the broker may hand over before the first is acknowledged: while the database writes one batch, the
/// next comes.
const WINDOW: u16 = 1000;
/// Messages that may wait here beyond that, of brokers that send more than they may: about 40 MB of summaries. Fewer than
/// there are packet identifiers: none of them stands for two.
const BACKLOG: usize = 48 * 1024;
/// How long the parts get to end by themselves.
const GRACE: Duration = Duration::from_secs(5);
/// Groups whose figures are shown: fewer than there is room to keep.
const MOST_GROUPS: usize = 24;
/// Pages that may wait for news at once.
const MOST_FOLLOWERS: usize = 64;

/// What a controller needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// The broker.
    pub broker: BrokerUrl,
    /// User and password at the broker, if it asks for them.
    pub credentials: Option<Credentials>,
    /// Certificates to trust at the broker instead of the system's.
    pub ca: Option<PathBuf>,
    /// File with the controller's certificate and key, for a broker that asks for them.
    pub identity: Option<PathBuf>,
    /// Where devices that enrol find the broker; none for where the controller does.
    pub device_broker: Option<BrokerUrl>,
    /// The fleet to look after.
    pub tenant: TenantId,
    /// Where data is kept.
    pub database: Database,
    /// Where signing key and authority are kept, made when they are missing: in files whose names begin so; none for
    /// [`Database::keys`]. Controllers that share a database share these, too.
    pub keys: Option<PathBuf>,
    /// Name of this controller among those that share a database, the same at every start; none for the machine's name.
    pub name: Option<DeviceId>,
    /// Where page and API are served; something else than a loopback address only when there is a token. Port 0 takes a
    /// free one.
    pub listen: SocketAddr,
    /// For how long certificates of devices hold that are made from now on; they are renewed in the last third.
    pub certificates_hold: Duration,
    /// For how long summaries and events are kept; none for ever. Totals stay.
    pub keep: Option<Duration>,
    /// For how long the sums of summaries by the hour are kept; none for ever.
    pub keep_hours: Option<Duration>,
}

impl Options {
    /// Options with a temporary database and a free port on the loopback interface.
    pub fn temporary(broker: BrokerUrl, tenant: TenantId) -> Self {
        Self {
            broker,
            credentials: None,
            ca: None,
            identity: None,
            device_broker: None,
            tenant,
            database: Database::Temporary,
            keys: None,
            name: None,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            certificates_hold: Duration::from_secs(365 * 24 * 3600),
            keep: None,
            keep_hours: None,
        }
    }
}

/// Why a controller did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The signing key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The fleet's authority cannot be used.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The link to the broker cannot work as it is configured.
    #[error("link to broker {broker} cannot work")]
    Link {
        /// The broker.
        broker: BrokerUrl,
        /// Why.
        #[source]
        source: ConfigError,
    },
    /// The address of the page is taken, or not one of this machine.
    #[error("cannot listen on {address}: choose another address, or port 0 for a free port")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Everybody in the network would be an admin.
    #[error(
        "no token was made yet, so that everybody who reaches {address} would be an admin: make one with \
         `offramp-fleet token create NAME --role admin --database FILE`, or listen on a loopback address"
    )]
    Open {
        /// The address.
        address: SocketAddr,
    },
}

/// What the parts share.
pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) key: Arc<Keyring>,
    /// The key that new devices were given when this controller started.
    public: PublicKey,
    pub(crate) tenant: TenantId,
    pub(crate) broker: BrokerUrl,
    pub(crate) device_broker: BrokerUrl,
    pub(crate) authority: Arc<Authority>,
    pub(crate) link: watch::Receiver<State>,
    pub(crate) statistics: watch::Receiver<Statistics>,
    pub(crate) stop: watch::Receiver<bool>,
    pub(crate) followers: Arc<Semaphore>,
    pub(crate) address: SocketAddr,
    pub(crate) started_at: u64,
    pub(crate) totals: TotalsCache,
    pub(crate) forecaster: Forecaster,
    /// Requests with a token or session that does not hold.
    pub(crate) denied: AtomicU64,
    wake: Arc<Notify>,
    told: Arc<Notify>,
}

impl Shared {
    pub(crate) async fn push_policy(
        &self,
        target: Target,
        upload: PolicyUpload,
        who: String,
    ) -> Result<Pushed, PushError> {
        let pushed = desired::push(&self.store, &self.key, target, upload, who).await?;
        self.wake.notify_one();
        Ok(pushed)
    }

    pub(crate) async fn push_model(
        &self,
        devices: Option<Vec<DeviceId>>,
        model: Option<(String, u64)>,
        who: String,
    ) -> Result<Vec<(DeviceId, Generation)>, ModelError> {
        let pushed = models::push(&self.store, &self.key, devices, model, who).await?;
        self.wake.notify_one();
        Ok(pushed)
    }

    /// Changes settings of devices.
    pub(crate) async fn change(
        &self,
        devices: Option<Vec<DeviceId>>,
        change: Change,
        who: String,
    ) -> Result<Result<Vec<(DeviceId, Generation)>, Unfit>, StoreError> {
        let key = Arc::clone(&self.key);
        let done = self.store.desired_change(key, devices, change, who, now()).await?;
        self.wake.notify_one();
        Ok(done)
    }

    /// The key that new devices are given.
    pub(crate) async fn public_key(&self) -> Result<PublicKey, StoreError> {
        Ok(self.store.key_newest().await?.unwrap_or_else(|| self.public.clone()))
    }

    /// Makes a new key, and introduces it to every device. Gives it, and how many are told.
    pub(crate) async fn rotate_key(&self, who: String) -> Result<(PublicKey, u64), StoreError> {
        let new = self.key.add()?;
        let ring = Arc::clone(&self.key);
        let told = self.store.key_introduce(ring, new.clone(), who, now()).await?;
        self.wake.notify_one();
        Ok((new, told))
    }

    /// Revokes a key.
    pub(crate) async fn revoke_key(&self, key: PublicKey, force: bool, who: String) -> Result<Revocation, StoreError> {
        let ring = Arc::clone(&self.key);
        let done = self.store.key_revoke(ring, key, force, who, now()).await?;
        self.wake.notify_one();
        Ok(done)
    }

    /// Begins a rollout; the conductor takes it from there.
    pub(crate) async fn start_rollout(&self, wanted: NewRollout) -> Result<Started, StoreError> {
        let started = self.store.rollout_start(wanted).await?;
        self.told.notify_one();
        Ok(started)
    }

    /// Groups by name with their figures, and how many more there are.
    pub(crate) async fn groups(&self) -> Result<(Vec<(Group, Arc<Figures>)>, usize), StoreError> {
        let mut all = self.store.group_list().await?;
        let cut = all.len().saturating_sub(MOST_GROUPS);
        all.truncate(MOST_GROUPS);
        let mut groups = Vec::with_capacity(all.len());
        for group in all {
            // Whoever removes or breaks a group meanwhile takes it out of the list.
            let selector = group.selector.parse().unwrap_or_default();
            if let Ok(selection) = self.store.resolve(selector).await? {
                let figures = self.totals.fetch(&self.store, &selection).await?;
                groups.push((group, figures));
            }
        }
        Ok((groups, cut))
    }

    /// Lets a device out of quarantine.
    pub(crate) async fn release(&self, device: DeviceId, who: String) -> Result<Kept, StoreError> {
        let done = self.store.release(Arc::clone(&self.key), device, who, now()).await?;
        self.wake.notify_one();
        Ok(done)
    }

    /// Tells a rollout what to do.
    pub(crate) async fn command_rollout(
        &self,
        id: u64,
        act: Act,
        who: String,
        why: String,
    ) -> Result<Commanded, StoreError> {
        let done = self.store.rollout_command(id, act, who, why, now()).await?;
        self.told.notify_one();
        Ok(done)
    }
}

/// A running controller.
///
/// Dropping it stops its parts where they stand, which loses nothing; [`Controller::shutdown`] ends them
/// in order.
pub struct Controller {
    shared: Arc<Shared>,
    link: Link,
    /// The link over which the controller speaks.
    voice: Link,
    stop: watch::Sender<bool>,
    parts: JoinSet<&'static str>,
    /// Who waits for the duty must not take its end for an answer.
    _duty: watch::Sender<bool>,
    /// Removed with the controller.
    _temporary: Option<TempDir>,
}

/// A device's answer to its desired state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Newest desired state that is in force.
    pub generation: Generation,
    /// Name and version of the policy in force.
    pub policy: (String, u64),
    /// Why a newer one is not.
    pub refused: Option<String>,
}

impl Controller {
    /// Opens the database and the page, and starts to connect to the broker. Returns when page and API
    /// are served; the broker need not be there yet.
    ///
    /// # Errors
    /// See [`StartError`].
    ///
    /// # Panics
    /// Outside a tokio runtime with time and I/O enabled.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        // Boxed: connecting and migrating are most of this future.
        let (store, temporary) = Box::pin(Store::open(&options.database, &options.tenant)).await?;
        let name = store.is_shared().then(|| options.name.unwrap_or_else(host_name));
        let mut config = Config::new(options.broker.clone(), peers::client_id(&options.tenant, name.as_ref()));
        config.subscriptions = peers::subscriptions(&options.tenant, store.is_shared());
        config.window = WINDOW;
        config.credentials = options.credentials;
        config.ca = options.ca;
        config.identity = options.identity;
        config.backlog = BACKLOG;

        let keys = match (&options.keys, &temporary) {
            (Some(keys), _) => keys.clone(),
            (None, Some(folder)) => folder.path().join("fleet"),
            (None, None) => options.database.keys(),
        };
        if !options.listen.ip().is_loopback() && store.is_open().await? {
            return Err(StartError::Open {
                address: options.listen,
            });
        }
        let key = Keyring::load_or_generate(&key_path(&keys))?;
        store.claim_keys(&key, now()).await?;
        let public = store.key_newest().await?.unwrap_or_else(|| key.newest());
        let authority = Authority::load_or_generate(&keys, &options.tenant)?.for_devices(options.certificates_hold);
        let authority = Arc::new(authority);
        let cannot_listen = |source| StartError::Listen {
            address: options.listen,
            source,
        };
        let listener = TcpListener::bind(options.listen).await.map_err(cannot_listen)?;
        let address = listener.local_addr().map_err(cannot_listen)?;
        if let Some(name) = &name {
            peers::join(&store, name, &address.to_string()).await?;
        }
        let connect = |config: &Config| {
            Link::connect(config).map_err(|source| StartError::Link {
                broker: options.broker.clone(),
                source,
            })
        };
        let (link, inbox) = connect(&config)?;
        // What is said has a connection of its own: its confirmations do not wait behind what thousands of devices say.
        let mut speaking = config.clone();
        speaking.client_id.push_str("-out");
        speaking.subscriptions.clear();
        let (voice, _) = connect(&speaking)?;

        let (stop, stopped) = watch::channel(false);
        let (statistics, statistics_receiver) = watch::channel(Statistics::default());
        let (requests, requests_receiver) = mpsc::channel(artifacts::QUEUE);
        let (renewals, renewals_receiver) = mpsc::channel(renewals::QUEUE);
        let shared = Arc::new(Shared {
            store: store.clone(),
            key: Arc::new(key),
            public,
            tenant: options.tenant.clone(),
            authority: Arc::clone(&authority),
            device_broker: options.device_broker.unwrap_or_else(|| options.broker.clone()),
            broker: options.broker,
            link: link.state(),
            statistics: statistics_receiver.clone(),
            stop: stopped.clone(),
            followers: Arc::new(Semaphore::new(MOST_FOLLOWERS)),
            address,
            started_at: now(),
            totals: TotalsCache::new(statistics_receiver),
            forecaster: Forecaster::default(),
            denied: AtomicU64::new(0),
            wake: Arc::new(Notify::new()),
            told: Arc::new(Notify::new()),
        });
        // Without others, everything is this one's duty.
        let (duty, on_duty) = watch::channel(name.is_none());
        let ingest = Ingest {
            tenant: options.tenant.clone(),
            store: store.clone(),
            requests,
            renewals,
            statistics: statistics.clone(),
            stop: stopped.clone(),
        };
        let conductor = Conductor {
            store: store.clone(),
            key: Arc::clone(&shared.key),
            told: Arc::clone(&shared.told),
            publish: Arc::clone(&shared.wake),
            statistics: statistics.clone(),
            duty: on_duty.clone(),
            stop: stopped.clone(),
        };
        let peers = name.map(|name| Peers {
            tenant: options.tenant.clone(),
            name,
            store: store.clone(),
            duty: duty.clone(),
            config,
            ingest: ingest.clone(),
            statistics: statistics.clone(),
            stop: stopped.clone(),
        });
        let retention = Retention {
            store: store.clone(),
            keep: options.keep,
            keep_hours: options.keep_hours,
            duty: on_duty.clone(),
            stop: stopped,
        };
        let artifacts = Artifacts {
            tenant: options.tenant.clone(),
            store: store.clone(),
            link: voice.clone(),
            statistics: statistics.clone(),
            held: Held::default(),
        };
        let renewals = Renewals {
            tenant: options.tenant.clone(),
            store: store.clone(),
            authority,
            link: voice.clone(),
            statistics: statistics.clone(),
        };
        let publisher = Publisher {
            tenant: options.tenant,
            store,
            link: voice.clone(),
            wake: Arc::clone(&shared.wake),
            statistics,
            duty: on_duty,
        };
        let serve = web::serve(listener, Arc::clone(&shared));
        let mut parts = JoinSet::new();
        parts.spawn(async {
            ingest.run(inbox).await;
            "ingest"
        });
        parts.spawn(async {
            artifacts.run(requests_receiver).await;
            "artifacts"
        });
        parts.spawn(async {
            renewals.run(renewals_receiver).await;
            "renewals"
        });
        parts.spawn(async {
            publisher.run().await;
            "publisher"
        });
        parts.spawn(async {
            conductor.run().await;
            "rollouts"
        });
        if let Some(peers) = peers {
            parts.spawn(async {
                peers.run().await;
                "the place among the other controllers"
            });
        }
        parts.spawn(async {
            retention.run().await;
            "retention"
        });
        parts.spawn(async {
            serve.await;
            "page"
        });
        Ok(Self {
            shared,
            link,
            voice,
            stop,
            parts,
            _duty: duty,
            _temporary: temporary,
        })
    }

    /// Where page and API are served.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// The key with which new devices verify their desired states, as of this controller's start.
    pub fn public_key(&self) -> PublicKey {
        self.shared.public.clone()
    }

    /// State of the link to the broker, and a way to wait for its changes.
    pub fn link(&self) -> watch::Receiver<State> {
        self.link.state()
    }

    /// Keeps a policy and makes it the desired one of the target. Returns when that is durable; it is
    /// published as soon as there is a broker.
    ///
    /// # Errors
    /// See [`PushError`].
    pub async fn push_policy(&self, target: Target, upload: PolicyUpload) -> Result<Pushed, PushError> {
        self.shared.push_policy(target, upload, LOCAL.into()).await
    }

    /// Checks a model package whole and keeps it, for [`Controller::push_model`] and rollouts.
    ///
    /// # Errors
    /// See [`ModelError`].
    pub async fn add_model(&self, upload: ModelUpload) -> Result<AddedModel, ModelError> {
        models::add(&self.shared.store, upload, LOCAL.into()).await
    }

    /// Makes a model of the library, by name and version, the desired one of devices, or of all that are known; without
    /// one that of their own configurations. Gives the new generation of each device.
    ///
    /// # Errors
    /// See [`ModelError`].
    pub async fn push_model(
        &self,
        devices: Option<Vec<DeviceId>>,
        model: Option<(String, u64)>,
    ) -> Result<BTreeMap<DeviceId, Generation>, ModelError> {
        let pushed = self.shared.push_model(devices, model, LOCAL.into()).await?;
        Ok(pushed.into_iter().collect())
    }

    /// What was done since the start.
    pub fn statistics(&self) -> Statistics {
        *self.shared.statistics.borrow()
    }

    /// What was done since the start, and a way to wait for its changes.
    pub fn subscribe(&self) -> watch::Receiver<Statistics> {
        self.shared.statistics.clone()
    }

    /// Waits until so many summaries are kept since the start. None when the controller ended before.
    pub async fn summaries_ingested(&self, count: u64) -> Option<Statistics> {
        let mut statistics = self.subscribe();
        statistics.wait_for(|s| s.ingested >= count).await.ok().map(|s| *s)
    }

    /// Waits until a device reports that a generation is in force, or why it is not.
    ///
    /// # Errors
    /// When the database cannot be read, or the controller ends before.
    pub async fn reported(&self, device: &DeviceId, generation: Generation) -> Result<Answer, StoreError> {
        let mut statistics = self.subscribe();
        loop {
            // Seen before the database is read, so that no later change is missed.
            statistics.mark_unchanged();
            let issued_at = self
                .shared
                .store
                .desired_fetch(device.as_str())
                .await?
                .map_or(0, |d| d.issued_at);
            let reported = self
                .shared
                .store
                .device_fetch(device.as_str())
                .await?
                .and_then(|d| d.reported);
            if let Some(answer) = reported.and_then(|r| answer(r, generation, issued_at)) {
                return Ok(answer);
            }
            statistics.changed().await.map_err(|_| StoreError::Closed)?;
        }
    }

    /// Returns when a part of the controller has ended by itself, with its name: then the rest should be
    /// shut down. Cancel safe.
    pub async fn failed(&mut self) -> String {
        match self.parts.join_next().await {
            Some(Ok(part)) => part.to_owned(),
            Some(Err(error)) => error.to_string(),
            None => "all".to_owned(),
        }
    }

    /// Ends everything in order: says goodbye to the broker, keeps what has arrived, closes the database.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        tokio::join!(self.link.shutdown(), self.voice.shutdown());
        let all_ended = async { while self.parts.join_next().await.is_some() {} };
        if tokio::time::timeout(GRACE, all_ended).await.is_err() {
            tracing::warn!(parts = self.parts.len(), "stopped although not everything had ended");
            self.parts.shutdown().await;
        }
        self.shared.store.clone().close().await;
    }
}

fn answer(reported: ReportedState, generation: Generation, issued_at: u64) -> Option<Answer> {
    let in_force = reported.generation >= generation.0;
    let refused = reported.refuses(generation.0, issued_at);
    (in_force || refused).then_some(Answer {
        generation: Generation(reported.generation),
        policy: (reported.policy, reported.version),
        refused: reported.refused,
    })
}

/// The name of this machine, as far as it can be one of a controller.
fn host_name() -> DeviceId {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    DeviceId::new(name.trim()).unwrap_or_else(|_| DeviceId::new("controller").expect("a valid name"))
}

/// Where the signing key of a database is kept.
pub fn key_path(database: &std::path::Path) -> PathBuf {
    beside(database, ".key")
}
