//! Watches over what is learned, without labels, and takes back what does harm.
//!
//! # What it knows
//! A share of all frames, drawn at random, is **audited**: run to the last exit whatever was decided. Two
//! things are asked of an audited frame. Does the prediction **disagree** with the last exit's? And what
//! accuracy was given up, in expectation: the probability that the last exit, calibrated and corrected by
//! the prior, gives its own class, less the one that it gives the prediction (the **loss**)? The first
//! bounds the added error whatever the cause. The second can be negative: exits that have specialized
//! rightly disagree with a last exit that they beat, and disagreement alone would hold that against them.
//!
//! # What it does
//! - **Temperature** per exit: a small step per audit towards the temperature at which the exit's
//!   probabilities fit the last exit's best.
//! - **Threshold**: up where audits lose more than the operator's budget, down where they lose less.
//! - **Canaries**: the last audited frames, as features. Every so many audits the present heads become a
//!   **candidate**, which is tried on all canaries beside the heads that were last **promoted**. A
//!   candidate that loses accuracy beyond doubt, or costs more for nothing, is rolled back to those, and
//!   the learning rate is halved; otherwise it is promoted. After a few rollbacks everything learned is
//!   dropped and learning pauses.
//! - **Alarm**: where losses beyond the budget add up, the trial does not wait, and is held on the latest
//!   canaries only. A false alarm costs a trial and nothing else.
//!
//! A trial works on one canary per frame, so that no frame waits for a whole one.

use alloc::vec;
use alloc::vec::Vec;

use crate::cascade::Station;
use crate::context::Adapted;
use crate::control::Control;
use crate::head::Head;
use crate::math;

/// Settings of the guard.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GuardSettings {
    /// Accuracy that may be given up against the last exit, `0..=0.5`: what the operator sets.
    pub accuracy_budget: f32,
    /// Share of the whole network's multiply-adds that a frame may cost on average, `0..=1`; 1 is no
    /// ceiling. It goes before the budget: what it costs in accuracy is reported.
    pub cost_ceiling: f32,
    /// κ: step of the threshold per audit; 0 leaves it where it was set. Above 0.02 it wanders.
    pub threshold_step: f32,
    /// Step of the logarithm of a temperature per audit; 0 leaves temperatures alone.
    pub temperature_step: f32,
    /// Audits between two trials of what was learned; 0 is no trials.
    pub trial_every: u32,
    /// Rollbacks after which learning pauses; several promotions in a row make good for one.
    pub strikes: u32,
}

impl Default for GuardSettings {
    fn default() -> Self {
        Self {
            accuracy_budget: 0.01,
            cost_ceiling: 1.0,
            threshold_step: 0.005,
            temperature_step: 0.01,
            trial_every: 64,
            strikes: 3,
        }
    }
}

impl GuardSettings {
    /// Watches, and changes nothing.
    pub const IDLE: Self = Self {
        accuracy_budget: 0.01,
        cost_ceiling: 1.0,
        threshold_step: 0.0,
        temperature_step: 0.0,
        trial_every: 0,
        strikes: 3,
    };

    /// Whether every number is in its range.
    pub fn is_valid(&self) -> bool {
        (0.0..=0.5).contains(&self.accuracy_budget)
            && self.cost_ceiling > 0.0
            && self.cost_ceiling <= 1.0
            && (0.0..=0.1).contains(&self.threshold_step)
            && (0.0..=0.1).contains(&self.temperature_step)
            && self.strikes >= 1
    }
}

/// Canaries that are kept.
const CANARIES: usize = 256;
/// Below this many a trial says nothing.
const MIN_CANARIES: usize = 48;
/// Loss in excess of budget and [`SLACK`], summed up over audits (a CUSUM), that is an alarm.
const ALARM: f32 = 2.0;
/// Loss beyond the budget that chance may bring for a while.
const SLACK: f32 = 0.05;
/// Least, and most, canaries of an alarm's trial: older ones may be of another scene.
const ALARM_CANARIES: (usize, usize) = (12, 32);
/// Features of canaries are kept as multiples of this; what does not fit is clipped.
const GRAIN: f32 = 1.0 / 2048.0;
/// Deviations of the mean beyond which a difference counts.
const DOUBT: f32 = 2.0;
/// Growth of the cost that counts as harm where nothing was gained.
const DEARER: f32 = 0.02;
/// Promotions in a row that make good for a rollback.
const FORGIVEN_AFTER: u32 = 8;
/// ln of the largest factor of a temperature, up or down.
const MAX_LOG_TEMPERATURE: f32 = 0.7;
/// Range of the threshold. Above 1 no frame leaves early.
const THRESHOLDS: (f32, f32) = (0.3, 1.01);
/// Step of the threshold per frame and share of cost above the ceiling.
const CEILING_STEP: f32 = 0.002;

/// An audited frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Audited<'a> {
    /// The class that was predicted.
    pub(crate) class: usize,
    /// What the early exits said.
    pub(crate) early: &'a [Station],
    /// What the last exit holds likely, corrected by the prior: K probabilities.
    pub(crate) posterior: &'a [f32],
    /// The last exit's own class.
    pub(crate) last_class: usize,
}

/// What a trial found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// The candidate is promoted.
    Promoted,
    /// The heads are those promoted last again.
    RolledBack,
    /// Everything learned is dropped, and nothing more is learned.
    Paused,
}

/// The guard of one context.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Guard {
    /// τ.
    pub(crate) threshold: f32,
    /// ln T of the early exits.
    pub(crate) log_temperatures: Vec<f32>,
    /// Factor of the learning rate.
    pub(crate) caution: f32,
    pub(crate) strikes: u32,
    /// Promotions since the last rollback.
    promotions: u32,
    pub(crate) paused: bool,
    /// Promoted last.
    pub(crate) good: Adapted,
    /// The threshold at that time: what bad heads did to it is taken back with them.
    pub(crate) good_threshold: f32,
    candidate: Adapted,
    trial: Option<Trial>,
    audits_since_trial: u32,
    /// Excess of the losses; see [`ALARM`].
    alarm: f32,
    canaries: Canaries,
    /// What learning is worth.
    pub(crate) control: Control,
    /// Of the canaries: loss of each as it was predicted.
    losses: Vec<f32>,
    /// Scratch, K numbers.
    logits: Vec<f32>,
    /// Scratch for what they come to.
    probabilities: Vec<f32>,
    /// Scratch, as many as the widest exit has features.
    features: Vec<f32>,
}

/// A trial on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Trial {
    next: usize,
    canaries: usize,
    /// The canary to begin with; then the one that came before it.
    newest: usize,
    /// Σ and Σ² of the candidate's expected accuracy less that of the promoted heads.
    gain: f32,
    gain_squared: f32,
    /// Σ of the costs.
    cost: [f32; 2],
}

/// The last audited frames, in a ring.
#[derive(Clone, Debug, PartialEq)]
struct Canaries {
    /// Per early exit its C.
    widths: Vec<usize>,
    classes: usize,
    /// Per canary: features of the early exits, in grains.
    features: Vec<i16>,
    /// Per canary: K posteriors, in 1/65535.
    posteriors: Vec<u16>,
    last_classes: Vec<u32>,
    next: usize,
    len: usize,
}

impl Canaries {
    fn new(base: &[Head]) -> Self {
        let widths: Vec<usize> = base[..base.len() - 1].iter().map(Head::features).collect();
        let classes = base[0].classes();
        Self {
            features: vec![0; CANARIES * widths.iter().sum::<usize>()],
            posteriors: vec![0; CANARIES * classes],
            last_classes: vec![0; CANARIES],
            widths,
            classes,
            next: 0,
            len: 0,
        }
    }

    /// Takes the place of the oldest; tells which.
    fn push(&mut self, audited: &Audited<'_>) -> usize {
        let at = self.next;
        self.next = (at + 1) % CANARIES;
        self.len = (self.len + 1).min(CANARIES);
        let stride: usize = self.widths.iter().sum();
        let mut slots = self.features[at * stride..][..stride].iter_mut();
        for station in audited.early {
            for (u, slot) in station.features.iter().zip(slots.by_ref()) {
                // The cast saturates, and makes 0 of NaN.
                *slot = libm::rintf(u / GRAIN) as i16;
            }
        }
        let slots = &mut self.posteriors[at * self.classes..][..self.classes];
        for (slot, q) in slots.iter_mut().zip(audited.posterior) {
            *slot = libm::rintf(q * 65535.0) as u16;
        }
        self.last_classes[at] = audited.last_class as u32;
        at
    }

    /// Writes the features of a canary at an early exit.
    fn features(&self, canary: usize, exit: usize, out: &mut [f32]) {
        let stride: usize = self.widths.iter().sum();
        let before: usize = self.widths[..exit].iter().sum();
        let grains = &self.features[canary * stride + before..][..self.widths[exit]];
        for (out, grain) in out.iter_mut().zip(grains) {
            *out = f32::from(*grain) * GRAIN;
        }
    }

    fn posterior(&self, canary: usize, class: usize) -> f32 {
        f32::from(self.posteriors[canary * self.classes + class]) / 65535.0
    }
}

/// What the guard needs to know of the network and the settings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules<'a> {
    pub(crate) settings: &'a GuardSettings,
    pub(crate) base: &'a [Head],
    /// Multiply-adds up to each exit as a share of all.
    pub(crate) costs: &'a [f32],
    /// β of the prior's correction, where there is one.
    pub(crate) doubt: Option<f32>,
    /// The threshold that was set. Trials are held at it: at the present one, which bad heads have driven
    /// up, nobody would leave early and bad heads would look as good as any.
    pub(crate) threshold: f32,
}

/// Moves a threshold towards where an audit of this loss belongs.
pub(crate) fn adapt_threshold(threshold: &mut f32, loss: f32, settings: &GuardSettings) {
    if settings.threshold_step > 0.0 {
        let moved = *threshold + settings.threshold_step * (loss - settings.accuracy_budget);
        *threshold = moved.clamp(THRESHOLDS.0, THRESHOLDS.1);
    }
}

/// Moves the logarithm of a temperature towards where probabilities p of logits z fit the posterior q better.
pub(crate) fn adapt_temperature(log: &mut f32, q: &[f32], p: &[f32], z: &[f32], settings: &GuardSettings) {
    // dCE/dlnT = Σ (q − p) z/T.
    let slope: f32 = q.iter().zip(p).zip(z).map(|((q, p), z)| (q - p) * z).sum::<f32>() / libm::expf(*log);
    let step = settings.temperature_step * slope.clamp(-5.0, 5.0);
    *log = (*log - step).clamp(-MAX_LOG_TEMPERATURE, MAX_LOG_TEMPERATURE);
}

impl Guard {
    pub(crate) fn new(base: &[Head], threshold: f32) -> Self {
        let early = &base[..base.len() - 1];
        Self {
            threshold,
            log_temperatures: vec![0.0; early.len()],
            caution: 1.0,
            strikes: 0,
            promotions: 0,
            paused: false,
            good: Adapted::new(base),
            good_threshold: threshold,
            candidate: Adapted::new(base),
            trial: None,
            audits_since_trial: 0,
            alarm: 0.0,
            canaries: Canaries::new(base),
            control: Control::new(base, threshold),
            losses: vec![0.0; CANARIES],
            logits: vec![0.0; base[0].classes()],
            probabilities: vec![0.0; base[0].classes()],
            features: vec![0.0; early.iter().map(Head::features).max().unwrap_or(0)],
        }
    }

    /// Whether numbers from a checkpoint can be a guard's.
    pub(crate) fn is_sound(&self) -> bool {
        (0.0..=THRESHOLDS.1).contains(&self.threshold)
            && (0.0..=THRESHOLDS.1).contains(&self.good_threshold)
            && self.caution > 0.0
            && self.caution <= 1.0
            && self.log_temperatures.iter().all(|t| t.abs() <= MAX_LOG_TEMPERATURE)
    }

    /// Forgets everything, without giving back memory.
    pub(crate) fn reset(&mut self, base: &[Head], threshold: f32) {
        self.threshold = threshold;
        self.log_temperatures.fill(0.0);
        self.caution = 1.0;
        self.strikes = 0;
        self.promotions = 0;
        self.paused = false;
        self.good.reset(base);
        self.good_threshold = threshold;
        self.trial = None;
        self.audits_since_trial = 0;
        self.alarm = 0.0;
        (self.canaries.next, self.canaries.len) = (0, 0);
        self.control.reset(threshold);
    }

    /// What an early exit's logits are divided by; 1 for the last.
    pub(crate) fn temperature(&self, exit: usize) -> f32 {
        self.log_temperatures.get(exit).map_or(1.0, |log| libm::expf(*log))
    }

    /// Mean loss of the canaries, and its upper bound (normal, one-sided at 95 %); (0, 1) without any.
    pub(crate) fn loss(&self) -> (f32, f32) {
        let n = self.canaries.len;
        if n < 2 {
            return (0.0, 1.0);
        }
        let losses = &self.losses[..n];
        let mean = losses.iter().sum::<f32>() / n as f32;
        let squares: f32 = losses.iter().map(|l| (l - mean) * (l - mean)).sum();
        // A sample without any spread proves less than its deviation says: one more frame is given a loss of 1.
        let floor = 1.0 / n as f32;
        let spread = libm::sqrtf(squares / (n - 1) as f32 / n as f32);
        (mean, (mean + 1.645 * spread).max(mean + floor).min(1.0))
    }

    /// Audited frames that are kept.
    pub(crate) fn audited(&self) -> usize {
        self.canaries.len
    }

    pub(crate) fn bytes(&self) -> usize {
        let canaries = 2 * (self.canaries.features.len() + self.canaries.posteriors.len()) + 8 * CANARIES;
        self.good.bytes() + self.candidate.bytes() + canaries
    }

    /// Takes up an audited frame.
    pub(crate) fn audit(&mut self, audited: &Audited<'_>, settings: &GuardSettings) {
        let loss = audited.posterior[audited.last_class] - audited.posterior[audited.class];
        let at = self.canaries.push(audited);
        self.losses[at] = loss;
        self.alarm = (self.alarm + loss - settings.accuracy_budget - SLACK).max(0.0);
        adapt_threshold(&mut self.threshold, loss, settings);
        for (station, log) in audited.early.iter().zip(&mut self.log_temperatures) {
            let (p, z) = (&station.probabilities, &station.logits);
            adapt_temperature(log, audited.posterior, p, z, settings);
        }
        self.audits_since_trial += 1;
    }

    /// Takes up what a frame cost, as a share of the whole network.
    pub(crate) fn pay(&mut self, cost: f32, settings: &GuardSettings) {
        if settings.cost_ceiling < 1.0 && settings.threshold_step > 0.0 {
            let over = (cost - settings.cost_ceiling).max(0.0);
            self.threshold = (self.threshold - CEILING_STEP * over).clamp(THRESHOLDS.0, THRESHOLDS.1);
        }
    }

    /// Does one canary's worth of a trial, and begins one where it is time. A finding is already carried out
    /// on `adapted`.
    pub(crate) fn work(&mut self, adapted: &mut Adapted, rules: &Rules<'_>) -> Option<Finding> {
        let Some(mut trial) = self.trial.take() else {
            self.trial = self.due(rules.settings.trial_every);
            if self.trial.is_some() {
                self.candidate.copy_from(adapted);
            }
            return None;
        };
        let canary = (trial.newest + CANARIES - trial.next) % CANARIES;
        let (tried, cost) = self.try_on(canary, true, rules);
        let (known, known_cost) = self.try_on(canary, false, rules);
        let gain = tried - known;
        trial.gain += gain;
        trial.gain_squared += gain * gain;
        trial.cost[0] += cost;
        trial.cost[1] += known_cost;
        trial.next += 1;
        if trial.next < trial.canaries {
            self.trial = Some(trial);
            return None;
        }
        Some(self.judge(&trial, adapted, rules))
    }

    /// A trial, where it is time for one: every so many audits, or at once where losses add up.
    fn due(&mut self, every: u32) -> Option<Trial> {
        let known = self.canaries.len;
        let (fewest, most) = ALARM_CANARIES;
        let canaries = if every == 0 || self.paused {
            return None;
        } else if self.audits_since_trial >= every && known >= MIN_CANARIES {
            known
        } else if self.alarm > ALARM && known >= fewest {
            known.min(most)
        } else {
            return None;
        };
        self.audits_since_trial = 0;
        self.alarm = 0.0;
        Some(Trial {
            canaries,
            newest: (self.canaries.next + CANARIES - 1) % CANARIES,
            ..Trial::default()
        })
    }

    fn judge(&mut self, trial: &Trial, adapted: &mut Adapted, rules: &Rules<'_>) -> Finding {
        let n = trial.canaries as f32;
        let mean = trial.gain / n;
        let variance = (trial.gain_squared / n - mean * mean).max(0.0);
        let doubt = DOUBT * libm::sqrtf(variance / n);
        let dearer = trial.cost[0] > trial.cost[1] * (1.0 + DEARER) && mean <= doubt;
        if mean >= -doubt && !dearer {
            self.promotions += 1;
            if self.promotions >= FORGIVEN_AFTER {
                self.promotions = 0;
                self.strikes = self.strikes.saturating_sub(1);
                self.caution = (self.caution * 2.0).min(1.0);
            }
            self.good.copy_from(&self.candidate);
            self.good_threshold = self.threshold;
            return Finding::Promoted;
        }
        self.promotions = 0;
        self.strikes += 1;
        self.caution /= 2.0;
        if self.strikes >= rules.settings.strikes {
            self.paused = true;
            self.good.reset(rules.base);
            self.good_threshold = rules.threshold;
            self.threshold = rules.threshold;
            self.log_temperatures.fill(0.0);
            adapted.copy_from(&self.good);
            return Finding::Paused;
        }
        self.threshold = self.good_threshold;
        adapted.copy_from(&self.good);
        Finding::RolledBack
    }

    /// Expected accuracy and cost of a canary under the candidate or the promoted heads, leaving where the
    /// confidence reaches the threshold.
    fn try_on(&mut self, canary: usize, candidate: bool, rules: &Rules<'_>) -> (f32, f32) {
        let adapted = if candidate { &self.candidate } else { &self.good };
        for (exit, head) in adapted.heads.iter().enumerate() {
            let u = &mut self.features[..head.features()];
            self.canaries.features(canary, exit, u);
            head.logits(u, &mut self.logits);
            let scale = libm::expf(-self.log_temperatures[exit]);
            let shift = rules.doubt.map(|doubt| math::Shift {
                offsets: adapted.prior.offsets(),
                doubt,
            });
            let math::Top { class, confidence, .. } = math::top(&self.logits, scale, shift, &mut self.probabilities);
            if confidence >= rules.threshold {
                return (self.canaries.posterior(canary, class), rules.costs[exit]);
            }
        }
        let class = self.canaries.last_classes[canary] as usize;
        (self.canaries.posterior(canary, class), 1.0)
    }
}
