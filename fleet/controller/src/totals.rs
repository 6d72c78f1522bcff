//! The fleet in a few figures: what the first page says before it lists anything.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::overview::{DeviceOverview, Life, Progress, share};
use crate::store::{Selection, Store, StoreError, now};

/// Devices that are read at once.
const PAGE: u32 = 1000;
/// Up to here, figures are read anew whenever somebody asks.
const QUICK: Duration = Duration::from_millis(50);
/// Beyond it they are read behind the asker's back, and take this part of the time at most.
const SHARE: u32 = 20;
/// Selections whose figures are kept.
const MOST: usize = 32;

/// Devices that something holds for: how many, and the first by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) first: Option<String>,
    pub(crate) count: u64,
}

/// A mean over devices, each weighing as many frames as it gave lately.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Mean {
    sum: f64,
    frames: f64,
}

/// The fleet in a few figures.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Totals {
    pub(crate) devices: u64,
    pub(crate) alive: u64,
    pub(crate) silent: Named,
    pub(crate) gone: Named,
    /// Devices that are kept apart; they are in none of the other figures.
    pub(crate) quarantined: Named,
    pub(crate) paused: Named,
    /// Devices of which something is desired; of these, those that do it, refuse it, or have not answered.
    pub(crate) managed: u64,
    pub(crate) in_force: u64,
    pub(crate) refused: Named,
    pub(crate) pending: Named,
    macs: u64,
    full_macs: u64,
    disagreement: Mean,
    loss: Mean,
    /// The device with the highest bound of its disagreement, and that of the accuracy that it gives up.
    pub(crate) riskiest: Option<(String, f64)>,
    pub(crate) most_lossy: Option<(String, f64)>,
}

impl Named {
    fn add(&mut self, device: &str, holds: bool) {
        if holds {
            self.count += 1;
            self.first.get_or_insert_with(|| device.to_owned());
        }
    }
}

impl Mean {
    fn add(&mut self, value: f64, frames: u64) {
        self.sum += value * frames as f64;
        self.frames += frames as f64;
    }

    fn value(self) -> Option<f64> {
        (self.frames > 0.0).then(|| self.sum / self.frames)
    }
}

fn raise(highest: &mut Option<(String, f64)>, device: &str, bound: f64) {
    if highest.as_ref().is_none_or(|(_, most)| bound >= *most) {
        *highest = Some((device.to_owned(), bound));
    }
}

impl Totals {
    /// Adds a device; they come in the order of their names.
    pub(crate) fn add(&mut self, overview: &DeviceOverview) {
        let (name, recent) = (overview.device.device.as_str(), &overview.recent);
        self.quarantined.add(name, overview.life == Life::Quarantined);
        if overview.life == Life::Quarantined {
            return;
        }
        self.devices += 1;
        self.alive += u64::from(overview.life == Life::Alive);
        self.silent.add(name, overview.life == Life::Silent);
        self.gone.add(name, overview.life == Life::Gone);
        self.paused.add(name, overview.is_paused());
        self.managed += u64::from(overview.progress != Progress::Unmanaged);
        self.in_force += u64::from(overview.progress == Progress::InForce);
        self.refused
            .add(name, matches!(overview.progress, Progress::Refused(_)));
        self.pending.add(name, overview.progress == Progress::Pending);
        self.macs = self.macs.saturating_add(recent.macs);
        self.full_macs = self.full_macs.saturating_add(recent.full_macs);
        if let Some(disagreement) = overview.disagreement {
            self.disagreement.add(disagreement.estimate, recent.frames);
            raise(&mut self.riskiest, name, disagreement.bound);
        }
        if let Some(loss) = overview.loss() {
            self.loss.add(loss.estimate, recent.frames);
            raise(&mut self.most_lossy, name, loss.bound);
        }
    }

    /// Cost of the whole fleet now, over the devices that sent anything.
    pub(crate) fn cost(&self) -> Option<f64> {
        share(self.macs, self.full_macs)
    }

    /// Disagreement over the fleet.
    pub(crate) fn disagreement(&self) -> Option<f64> {
        self.disagreement.value()
    }

    /// Accuracy given up over the fleet.
    pub(crate) fn loss(&self) -> Option<f64> {
        self.loss.value()
    }

    async fn read(store: &Store, selection: &Selection) -> Result<Self, StoreError> {
        let mut totals = Self::default();
        let mut after = String::new();
        let now = now();
        loop {
            let page = store.overview_fetch(selection, &after, PAGE, now).await?;
            page.devices.iter().for_each(|device| totals.add(device));
            match page.devices.last() {
                Some(last) if page.cut => after.clone_from(&last.device.device),
                _ => return Ok(totals),
            }
        }
    }
}

/// The figures as they were read last.
#[derive(Debug)]
struct Held {
    totals: Arc<Totals>,
    read_at: Instant,
    took: Duration,
    /// Whether they are being read anew.
    busy: bool,
}

/// Reads the figures for whoever asks. Of a large fleet that takes a while, and so they are those of a moment ago.
#[derive(Clone, Debug, Default)]
pub(crate) struct TotalsCache(Arc<Mutex<Vec<Kept>>>);

/// The figures of some devices.
#[derive(Clone, Debug)]
struct Kept {
    selection: Selection,
    held: Arc<Mutex<Option<Held>>>,
}

impl TotalsCache {
    /// The figures of the devices that are meant.
    pub(crate) async fn fetch(&self, store: &Store, selection: &Selection) -> Result<Arc<Totals>, StoreError> {
        let kept = self.kept(selection).await;
        let mut held = kept.held.lock().await;
        if let Some(held) = held.as_mut().filter(|held| held.took > QUICK) {
            if !held.busy && held.read_at.elapsed() > held.took * SHARE {
                held.busy = true;
                let (kept, store) = (kept.clone(), store.clone());
                tokio::spawn(async move { kept.refresh(&store).await });
            }
            return Ok(Arc::clone(&held.totals));
        }
        // Whoever else asks meanwhile waits: it is quick, or the first time.
        let (totals, took) = timed(store, selection).await?;
        *held = Some(Held {
            totals: Arc::clone(&totals),
            read_at: Instant::now(),
            took,
            busy: false,
        });
        Ok(totals)
    }

    /// The place of some devices' figures, the one that was asked for last at the end; the first makes room.
    async fn kept(&self, selection: &Selection) -> Kept {
        let mut all = self.0.lock().await;
        let place = all.iter().position(|kept| kept.selection == *selection);
        let kept = match place {
            Some(place) => all.remove(place),
            None => Kept {
                selection: selection.clone(),
                held: Arc::default(),
            },
        };
        if all.len() >= MOST {
            all.remove(0);
        }
        all.push(kept.clone());
        kept
    }
}

impl Kept {
    async fn refresh(&self, store: &Store) {
        let read = timed(store, &self.selection).await;
        let mut held = self.held.lock().await;
        match read {
            Ok((totals, took)) => {
                *held = Some(Held {
                    totals,
                    read_at: Instant::now(),
                    took,
                    busy: false,
                });
            }
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the fleet's figures cannot be read"
                );
                // The next one who asks reads them itself, and hears of it.
                *held = None;
            }
        }
    }
}

async fn timed(store: &Store, selection: &Selection) -> Result<(Arc<Totals>, Duration), StoreError> {
    let start = Instant::now();
    let totals = Totals::read(store, selection).await?;
    Ok((Arc::new(totals), start.elapsed()))
}
