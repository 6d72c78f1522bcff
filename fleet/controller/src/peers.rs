//! Several controllers on one database and one broker.
//!
//! All of them take in what devices say, each its share ([`subscriptions`]), and answer requests. What must be done once
//! (rollouts, publishing, tidying up) is the duty of one, who holds a lease on it; when it dies, another goes on. Of a
//! controller that has died the broker keeps a session with its share: who is on duty takes that over until it is empty,
//! and ends it.

use std::time::Duration;

use offramp_link::{Config, Link, State};
use offramp_proto::{DeviceId, Kind, TenantId, Topic};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::ingest::Ingest;
use crate::statistics::Statistics;
use crate::store::{Beat, Peer, Store, StoreError};

/// Between two signs of life.
const BEAT: Duration = Duration::from_secs(2);
/// For how long the duty is one's own without a sign of life.
const LEASE: Duration = Duration::from_secs(10);
/// A controller that is silent for so long is dead.
const DEAD: Duration = Duration::from_secs(12);
/// Before the lease ends by the database's clock, it has ended for whoever holds it.
const MARGIN: Duration = Duration::from_secs(2);
/// A session is empty when nothing has come out of it for so long.
const QUIET: Duration = Duration::from_secs(4);
/// How long taking over what a dead controller left may take at a time.
const ESTATE: Duration = Duration::from_secs(60);
/// For how long it does not come back meanwhile, if this one dies over it.
const CLAIM: Duration = Duration::from_secs(75);
/// How long reaching the broker in another's name may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// The name of the group at the broker that shares what devices say.
const GROUP: &str = "offramp";

/// Which topics a controller subscribes to. Of several, each gets a part of what is sent; what the broker keeps, it gives
/// to each, since it gives nothing of that to a group.
pub(crate) fn subscriptions(tenant: &TenantId, shared: bool) -> Vec<String> {
    if !shared {
        return vec![Topic::uplink_filter(tenant)];
    }
    let kept = [Kind::Birth, Kind::Reported].map(|kind| Topic::kind_filter(tenant, kind));
    let parts = [
        Kind::Death,
        Kind::Summary,
        Kind::Event,
        Kind::Trace,
        Kind::Request,
        Kind::Renewal,
    ];
    let parts = parts.map(|kind| format!("$share/{GROUP}/{}", Topic::kind_filter(tenant, kind)));
    kept.into_iter().chain(parts).collect()
}

/// The name of a controller's session at the broker.
pub(crate) fn client_id(tenant: &TenantId, name: Option<&DeviceId>) -> String {
    match name {
        Some(name) => format!("offramp-controller-{tenant}-{name}"),
        None => format!("offramp-controller-{tenant}"),
    }
}

/// Waits until something is this controller's duty. False when it stops.
pub(crate) async fn on_duty(duty: &mut watch::Receiver<bool>, stop: &mut watch::Receiver<bool>) -> bool {
    tokio::select! {
        // Errors mean that the controller was dropped.
        biased;
        _ = stop.wait_for(|stop| *stop) => false,
        on_duty = duty.wait_for(|on_duty| *on_duty) => on_duty.is_ok(),
    }
}

/// Takes a name among the controllers of a database, as soon as nobody uses what the one before has left.
pub(crate) async fn join(store: &Store, name: &DeviceId, address: &str) -> Result<(), StoreError> {
    let mut told = false;
    while !store.peer_join(name.as_str(), address).await? {
        if !std::mem::replace(&mut told, true) {
            tracing::info!(%name, "another controller takes over what this one had left; it takes a minute at most");
        }
        sleep(BEAT).await;
    }
    Ok(())
}

/// What the task works with.
pub(crate) struct Peers {
    pub(crate) tenant: TenantId,
    pub(crate) name: DeviceId,
    pub(crate) store: Store,
    pub(crate) duty: watch::Sender<bool>,
    /// How this controller reaches the broker.
    pub(crate) config: Config,
    /// Takes in what a dead controller left.
    pub(crate) ingest: Ingest,
    pub(crate) statistics: watch::Sender<Statistics>,
    pub(crate) stop: watch::Receiver<bool>,
}

impl Peers {
    /// Runs until the controller stops, or another process has its name.
    pub(crate) async fn run(self) {
        let mut stop = self.stop.clone();
        let mut heard = Instant::now();
        let mut estates = JoinSet::new();
        loop {
            let asked = Instant::now();
            // A database that does not answer gives the duty to another when the lease ends: not later here.
            let ends = match *self.duty.borrow() {
                true => heard + LEASE - MARGIN,
                false => asked + LEASE,
            };
            match timeout_at(ends, self.store.peer_beat(self.name.as_str(), millis(LEASE))).await {
                Ok(Ok(Beat::OnDuty)) => {
                    heard = asked;
                    self.set(true);
                    self.look_after(&mut estates).await;
                }
                Ok(Ok(Beat::OffDuty)) => self.set(false),
                Ok(Ok(Beat::Replaced)) => {
                    self.set(false);
                    tracing::error!(name = %self.name, "another controller was started under this name: give each its own");
                    return;
                }
                Ok(Err(StoreError::Closed)) => return,
                Ok(Err(error)) => tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the other controllers cannot be told that this one lives"
                ),
                Err(_) => {
                    self.set(false);
                    tracing::error!("the database does not answer");
                }
            }
            tokio::select! {
                // An error means that the controller was dropped.
                _ = stop.wait_for(|stop| *stop) => break,
                () = sleep(BEAT) => {}
            }
            // Pages look again: another controller may have changed something.
            self.statistics.send_modify(|_| {});
        }
        self.set(false);
        if let Err(error) = self.store.peer_leave().await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the others have to wait for the lease to end"
            );
        }
    }

    fn set(&self, on_duty: bool) {
        self.duty.send_if_modified(|duty| {
            let changed = *duty != on_duty;
            if changed {
                let does = if on_duty {
                    "on duty: rollouts and publishing are done here"
                } else {
                    "off duty"
                };
                tracing::info!(name = %self.name, "{does}");
            }
            *duty = on_duty;
            changed
        });
    }

    /// Takes over what dead controllers have left at the broker, one after the other, beside everything else.
    async fn look_after(&self, estates: &mut JoinSet<()>) {
        while estates.try_join_next().is_some() {}
        if !estates.is_empty() {
            return;
        }
        let peers = match self.store.peer_list().await {
            Ok(peers) => peers,
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the other controllers are not known"
                );
                return;
            }
        };
        let is_other = |peer: &Peer| peer.name != self.name.as_str();
        let Some(dead) = peers.into_iter().find(|peer| is_other(peer) && is_dead(peer)) else {
            return;
        };
        let mut config = self.config.clone();
        config.client_id = client_id(&self.tenant, DeviceId::new(dead.name.as_str()).ok().as_ref());
        config.leaving = std::mem::take(&mut config.subscriptions);
        let (store, ingest) = (self.store.clone(), self.ingest.clone());
        estates.spawn(async move {
            tracing::warn!(
                controller = dead.name,
                "a controller is dead: what the broker keeps for it is taken over"
            );
            match inherit(&store, &config, ingest, &dead).await {
                Ok(()) => tracing::info!(controller = dead.name, "nothing is left of the dead controller"),
                Err(why) => tracing::warn!(controller = dead.name, why, "the dead controller is left alone for now"),
            }
        });
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn is_dead(peer: &Peer) -> bool {
    peer.silent_ms > millis(DEAD)
}

/// Takes in what the broker keeps for a dead controller, and ends its session. Says why, where it did not.
///
/// As long as that takes, the dead one does not come back: it waits for the claim to end, and so its session is never
/// used by two.
async fn inherit(store: &Store, config: &Config, ingest: Ingest, dead: &Peer) -> Result<(), String> {
    let claimed = store
        .peer_claim(dead.name.clone(), dead.run.clone(), millis(DEAD), millis(CLAIM))
        .await;
    if !claimed.map_err(|error| error.to_string())? {
        return Err("it is back".to_owned());
    }
    let done = timeout(ESTATE, settle(config, ingest)).await;
    let done = done.unwrap_or_else(|_| Err("there is more than can be taken over at once".to_owned()));
    let told = match done {
        Ok(()) => store.peer_forget(dead.name.clone(), dead.run.clone()).await,
        Err(_) => store.peer_renounce(dead.name.clone()).await,
    };
    told.map_err(|error| error.to_string())?;
    done
}

async fn settle(config: &Config, ingest: Ingest) -> Result<(), String> {
    // First without an end to the session: what is lost on the way comes again.
    let (link, mut inbox) = Link::connect(config).map_err(|error| error.to_string())?;
    let emptied = async {
        if connected(&link).await? {
            ingest.take_over(&mut inbox, QUIET).await;
        }
        match *link.state().borrow() {
            State::Connected { .. } => Ok(()),
            _ => Err("the connection in its name was lost".to_owned()),
        }
    };
    let emptied = emptied.await;
    link.shutdown().await;
    emptied?;
    let config = Config {
        session_expiry: Duration::ZERO,
        ..config.clone()
    };
    let (link, _inbox) = Link::connect(&config).map_err(|error| error.to_string())?;
    let ended = connected(&link).await;
    link.shutdown().await;
    ended.map(|_| ())
}

/// Waits for the broker. Gives whether it had kept the session.
async fn connected(link: &Link) -> Result<bool, String> {
    let mut state = link.state();
    let state = timeout(PATIENCE, state.wait_for(|state| !matches!(state, State::Connecting))).await;
    match state.map(|state| state.map(|state| state.clone())) {
        Ok(Ok(State::Connected { session_resumed })) => Ok(session_resumed),
        Ok(Ok(State::Disconnected { reason, .. })) => Err(reason.to_string()),
        _ => Err("the broker does not answer".to_owned()),
    }
}
