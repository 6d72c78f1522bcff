//! The fleet in a few figures: what the first page says before it lists anything.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, watch};

use crate::Statistics;
use crate::overview::{DeviceOverview, Life, Progress, Recent, Saving, share};
use crate::store::{Selection, Store, StoreError, now};

/// Devices that are read at once.
const PAGE: u32 = 1000;
/// Up to here, figures are read anew whenever somebody asks.
const QUICK: Duration = Duration::from_millis(50);
/// Beyond it they are read behind the asker's back, and take this part of the time at most.
const SHARE: u32 = 20;
/// Selections whose figures are kept.
const MOST: usize = 32;

/// Names that are kept of devices that something holds for.
const NAMES: usize = 20;
/// Values of a label that are told apart: what has more does not sort a fleet.
const VALUES: usize = 32;
/// Policies, and models, that are told apart.
const KINDS: usize = 64;
/// Classes that are counted by name.
const CLASSES: usize = 4096;

/// Devices that something holds for: how many, and the first by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) names: Vec<String>,
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
    /// Devices on which learning is surely worth nothing, and those that see something else than usual.
    pub(crate) idle: Named,
    pub(crate) drifting: Named,
    saved: Saved,
    /// Frames of the latest windows, by the name of their class.
    classes: BTreeMap<String, u64>,
}

/// Sums of what learning saves, in multiply-adds and by frames.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Saved {
    learned: f64,
    frozen: f64,
    full: f64,
    variance: f64,
    audits: u64,
    ms: Mean,
    mj: Mean,
}

/// The fleet in a few figures, and each part of it that something tells from the others.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Figures {
    pub(crate) all: Totals,
    /// By name and version of the policy that runs.
    pub(crate) policies: BTreeMap<(String, u64), Totals>,
    /// By name and version of the model.
    pub(crate) models: BTreeMap<(String, u64), Totals>,
    /// By label: key, then value. None where it has too many values.
    labels: BTreeMap<String, Option<BTreeMap<String, Totals>>>,
}

impl Figures {
    /// Adds a device; they come in the order of their names.
    pub(crate) fn add(&mut self, overview: &DeviceOverview) {
        self.all.add(overview);
        if overview.life == Life::Quarantined {
            return;
        }
        let running = overview.running.as_ref().map(|r| (&r.policy, r.version));
        let model = overview.device.model.as_ref().map(|m| (&m.name, m.version));
        for (parts, part) in [(&mut self.policies, running), (&mut self.models, model)] {
            if let Some((name, version)) = part {
                let key = (name.clone(), version);
                if parts.len() < KINDS || parts.contains_key(&key) {
                    parts.entry(key).or_default().add(overview);
                }
            }
        }
        for (key, value) in &overview.device.labels {
            let values = self.labels.entry(key.clone()).or_insert_with(|| Some(BTreeMap::new()));
            if let Some(known) = values {
                if known.len() < VALUES || known.contains_key(value) {
                    known.entry(value.clone()).or_default().add(overview);
                } else {
                    *values = None;
                }
            }
        }
    }

    /// By label, as `key=value`.
    pub(crate) fn labels(&self) -> impl Iterator<Item = (String, &Totals)> {
        let told = self
            .labels
            .iter()
            .filter_map(|(key, values)| Some((key, values.as_ref()?)));
        told.flat_map(|(key, values)| {
            values
                .iter()
                .map(move |(value, totals)| (format!("{key}={value}"), totals))
        })
    }

    async fn read(store: &Store, selection: &Selection) -> Result<Self, StoreError> {
        let mut figures = Self::default();
        let mut after = String::new();
        let now = now();
        loop {
            let page = store.overview_fetch(selection, &after, PAGE, now).await?;
            page.devices.iter().for_each(|device| figures.add(device));
            match page.devices.last() {
                Some(last) if page.cut => after.clone_from(&last.device.device),
                _ => return Ok(figures),
            }
        }
    }
}

impl Named {
    fn add(&mut self, device: &str, holds: bool) {
        if holds {
            self.count += 1;
            if self.names.len() < NAMES {
                self.names.push(device.to_owned());
            }
        }
    }

    pub(crate) fn first(&self) -> Option<&str> {
        self.names.first().map(String::as_str)
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
        self.idle.add(name, overview.is_idle());
        self.drifting.add(name, overview.is_drifting());
        if let Some(saving) = &overview.saving {
            self.saved.add(saving, recent);
        }
        let names = overview.device.model.as_ref().map_or(&[][..], |model| &model.classes);
        for (class, frames) in &recent.classes {
            let Some(name) = names.get(*class as usize) else {
                continue;
            };
            if let Some(sum) = self.classes.get_mut(name) {
                *sum = sum.saturating_add(*frames);
            } else if self.classes.len() < CLASSES {
                self.classes.insert(name.clone(), *frames);
            }
        }
    }

    /// What learning saves over the fleet.
    pub(crate) fn saving(&self) -> Option<Saving> {
        let saved = &self.saved;
        (saved.frozen > 0.0).then(|| Saving {
            learned: saved.learned / saved.full,
            frozen: saved.frozen / saved.full,
            error: saved.variance.sqrt() / saved.full,
            audits: saved.audits,
            ms: saved.ms.value(),
            mj: saved.mj.value(),
        })
    }

    /// Classes by name and their share of the frames of which a class was told, the most frequent first.
    pub(crate) fn classes(&self, most: usize) -> Vec<(&str, f64)> {
        let all: u64 = self.classes.values().fold(0, |sum, frames| sum.saturating_add(*frames));
        let mut classes: Vec<_> = self.classes.iter().collect();
        classes.sort_by_key(|(name, frames)| (std::cmp::Reverse(**frames), *name));
        let shares = classes.into_iter().take(most);
        shares
            .filter_map(|(name, frames)| Some((name.as_str(), share(*frames, all)?)))
            .collect()
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
}

impl Saved {
    fn add(&mut self, saving: &Saving, recent: &Recent) {
        let full = recent.full_macs as f64;
        self.learned += saving.learned * full;
        self.frozen += saving.frozen * full;
        self.full += full;
        self.variance += (saving.error * full).powi(2);
        self.audits += saving.audits;
        for (mean, told) in [(&mut self.ms, saving.ms), (&mut self.mj, saving.mj)] {
            if let Some(told) = told {
                mean.add(told, recent.frames);
            }
        }
    }
}

/// The figures as they were read last.
#[derive(Debug)]
struct Held {
    figures: Arc<Figures>,
    read_at: Instant,
    took: Duration,
    /// What was heard of devices when they were.
    news: watch::Receiver<Statistics>,
    /// Whether they are being read anew.
    busy: bool,
}

/// Reads the figures for whoever asks. Of a large fleet that takes a while, and so they are those of a moment ago: whoever
/// was given some that were behind hears when there are others.
#[derive(Clone, Debug)]
pub(crate) struct TotalsCache {
    all: Arc<Mutex<Vec<Kept>>>,
    news: watch::Receiver<Statistics>,
    renewed: watch::Sender<()>,
}

/// The figures of some devices.
#[derive(Clone, Debug)]
struct Kept {
    selection: Selection,
    held: Arc<Mutex<Option<Held>>>,
}

impl TotalsCache {
    /// Figures of devices that are heard of as these statistics tell.
    pub(crate) fn new(news: watch::Receiver<Statistics>) -> Self {
        Self {
            all: Arc::default(),
            news,
            renewed: watch::Sender::new(()),
        }
    }

    /// Hears when figures have changed since somebody was given them.
    pub(crate) fn renewed(&self) -> watch::Receiver<()> {
        self.renewed.subscribe()
    }

    /// The figures of the devices that are meant.
    pub(crate) async fn fetch(&self, store: &Store, selection: &Selection) -> Result<Arc<Figures>, StoreError> {
        let kept = self.kept(selection).await;
        let mut held = kept.held.lock().await;
        if let Some(held) = held.as_mut().filter(|held| held.took > QUICK) {
            let rest = (held.took * SHARE).saturating_sub(held.read_at.elapsed());
            if !held.busy && (rest.is_zero() || is_behind(&held.news)) {
                held.busy = true;
                let (cache, kept, store) = (self.clone(), kept.clone(), store.clone());
                tokio::spawn(async move {
                    tokio::time::sleep(rest).await;
                    cache.refresh(&kept, &store).await;
                });
            }
            return Ok(Arc::clone(&held.figures));
        }
        // Whoever else asks meanwhile waits: it is quick, or the first time.
        let read = self.read(store, selection).await?;
        Ok(Arc::clone(&held.insert(read).figures))
    }

    /// The place of some devices' figures, the one that was asked for last at the end; the first makes room.
    async fn kept(&self, selection: &Selection) -> Kept {
        let mut all = self.all.lock().await;
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

    /// Reads figures that somebody was given already, and tells of it if devices were heard of meanwhile.
    async fn refresh(&self, kept: &Kept, store: &Store) {
        let read = self.read(store, &kept.selection).await;
        let mut held = kept.held.lock().await;
        let behind = held.as_ref().is_some_and(|held| is_behind(&held.news));
        match read {
            Ok(read) => *held = Some(read),
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the fleet's figures cannot be read"
                );
                // The next one who asks reads them itself, and hears of it.
                *held = None;
            }
        }
        drop(held);
        if behind {
            self.renewed.send_replace(());
        }
    }

    async fn read(&self, store: &Store, selection: &Selection) -> Result<Held, StoreError> {
        let mut news = self.news.clone();
        // What is heard of from here on may be missing in them.
        news.mark_unchanged();
        let start = Instant::now();
        let figures = Figures::read(store, selection).await?;
        Ok(Held {
            figures: Arc::new(figures),
            read_at: Instant::now(),
            took: start.elapsed(),
            news,
            busy: false,
        })
    }
}

/// Whether devices were heard of since. A controller that ends hears of none.
fn is_behind(news: &watch::Receiver<Statistics>) -> bool {
    news.has_changed().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use offramp_proto::{BootId, Death, DeviceId, TenantId};

    use super::*;
    use crate::store::{Arrival, Database, Record};

    #[tokio::test]
    async fn whoever_was_given_figures_that_were_behind_hears_when_there_are_others() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::File(folder.path().join("fleet.db"));
        let tenant = TenantId::new("t").unwrap();
        let (store, _) = Store::open(&database, &tenant).await.unwrap();
        let (statistics, news) = watch::channel(Statistics::default());
        let cache = TotalsCache::new(news);
        let selection = Selection::default();
        assert_eq!(cache.fetch(&store, &selection).await.unwrap().all.devices, 0);
        // As if the fleet were so large that it takes long.
        let kept = cache.kept(&selection).await;
        kept.held.lock().await.as_mut().unwrap().took = QUICK * 2;

        let mut renewed = cache.renewed();
        let death = Death {
            device: DeviceId::new("cam").unwrap(),
            boot: BootId([1; 16]),
        };
        let arrival = Arrival {
            at: 1,
            retained: false,
            record: Record::Death(death),
            raw: vec![0xa0],
        };
        store.arrival_insert(vec![arrival].into()).await.unwrap();
        statistics.send_modify(|statistics| statistics.received += 1);
        let behind = cache.fetch(&store, &selection).await.unwrap();
        assert_eq!(behind.all.devices, 0, "nobody waits for them");
        renewed.changed().await.unwrap();
        assert_eq!(cache.fetch(&store, &selection).await.unwrap().all.devices, 1);

        // Where nothing was heard of, there is nothing to tell.
        let mut held = kept.held.lock().await;
        let held_now = held.as_mut().unwrap();
        (held_now.took, held_now.read_at) = (QUICK * 2, Instant::now() - QUICK * 2 * SHARE);
        drop(held);
        cache.fetch(&store, &selection).await.unwrap();
        while kept.held.lock().await.as_ref().unwrap().busy {
            tokio::task::yield_now().await;
        }
        assert!(!renewed.has_changed().unwrap());
    }
}
