use std::time::Duration;

use offramp_core::{ExitView, Outcome, Verdict};
use offramp_proto::Digest;

use crate::fault::Fault;
use crate::instance::Instance;
use crate::policy::RestoreError;

/// Drives the policies of one camera: swaps them between frames, and steps down when one fails.
///
/// The steps, downwards: the policy in force; after [`LadderRules::faults`] faulty frames in a row, or when it
/// is too slow for [`LadderRules::budget`], the last good policy; when there is none, or when that fails as well,
/// the built-in rule. A policy is good once it has decided [`LadderRules::trial`] frames in a row;
/// until then the good one before it is kept, as it was. A single fault costs one frame: the built-in
/// rule decides the rest of it, and a new instance of the same policy decides from the next frame on.
///
/// Upwards: the policy that was given up is tried again, afresh, after a pause of [`LadderRules::pause`] frames, and
/// after twice as many each time it is given up again, until it has proven good or another is
/// [swapped in](Self::swap). Of two that were given up, this is the one that was ordered last.
///
/// The caller says where a frame starts, frames come one at a time, and each exit is asked through
/// [`decide`](Self::decide). The ladder has no clock: [`took`](Self::took) tells it how long that was.
///
/// ```no_run
/// # use offramp_core::{ExitView, Verdict};
/// # use offramp_policy::{Carry, Instance, Ladder, LadderRules};
/// # fn views() -> Vec<ExitView> { vec![] }
/// # fn arrived() -> Option<Instance> { None }
/// let mut ladder = Ladder::new(LadderRules::default());
/// loop {
///     if let Some(instance) = arrived() {
///         ladder.swap(instance, Carry::Nothing); // at any time; in force from the next frame on
///     }
///     ladder.start_frame(&mut |event| eprintln!("{event:?}"));
///     for view in views() {
///         let verdict = ladder.decide(&view, &mut |event| eprintln!("{event:?}"));
///         if verdict.unwrap_or_else(|| view.rule()) != Verdict::GoOn {
///             break;
///         }
///     }
/// }
/// ```
#[derive(Debug)]
pub struct Ladder {
    rules: LadderRules,
    /// Decides; without one, the built-in rule does.
    active: Option<Instance>,
    /// The good policy before the active one. Only while the active one is on trial.
    good: Option<Instance>,
    /// Frames in a row that the active policy still has to decide to be good; 0 when it is.
    trial_left: u32,
    /// Faulty frames in a row.
    faulty: u32,
    /// Comes into force with the next frame.
    next: Option<(Instance, Carry)>,
    /// Was given up, and is tried again.
    given_up: Option<Instance>,
    /// Frames until then.
    pause_left: u32,
    /// Frames of the pause after it is given up the next time.
    pause: u32,
    pace: Pace,
    /// Set when the active policy is to be given up at the end of the present frame.
    too_slow: Option<Why>,
    frame: Frame,
}

/// What is to become of the state of the policy before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carry {
    /// It is saved and handed to the new one: another version of the same policy.
    State,
    /// The new one begins afresh.
    Nothing,
}

/// How long the last verdicts of the active policy took.
#[derive(Debug)]
struct Pace {
    nanos: [u32; Pace::VERDICTS],
    verdicts: u32,
    /// A bit for each, set where it took too long; the newest is the lowest.
    slow: u64,
}

impl Pace {
    /// Verdicts that a policy is judged by.
    const VERDICTS: usize = 64;

    fn new() -> Pace {
        Pace {
            nanos: [0; Self::VERDICTS],
            verdicts: 0,
            slow: 0,
        }
    }

    /// Takes a verdict's time. Gives the median of the last ones when most of them took longer than the budget.
    #[inline]
    fn take(&mut self, took: Duration, budget: Duration) -> Option<Duration> {
        self.nanos[self.verdicts as usize % Self::VERDICTS] = u32::try_from(took.as_nanos()).unwrap_or(u32::MAX);
        self.slow = self.slow << 1 | u64::from(took > budget);
        self.verdicts = self.verdicts.wrapping_add(1);
        // Bits of verdicts that were not yet given are not set.
        (self.slow.count_ones() > Self::VERDICTS as u32 / 2).then(|| self.median())
    }

    #[cold]
    fn median(&self) -> Duration {
        let mut nanos = self.nanos;
        nanos.sort_unstable();
        Duration::from_nanos(nanos[Self::VERDICTS / 2].into())
    }
}

/// What became of the frame so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Frame {
    /// Nothing was asked yet.
    Unasked,
    /// The policy decided.
    Decided,
    /// The policy failed: the built-in rule decides the rest.
    Failed,
}

/// When a [`Ladder`] steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LadderRules {
    /// Frames in a row without a fault that make a policy good. At least 1.
    pub trial: u32,
    /// Faulty frames in a row after which a policy is given up. At least 1.
    pub faults: u32,
    /// Time that a verdict may take: a policy of whose last 64 more than half took longer is given up. `None`: any.
    pub budget: Option<Duration>,
    /// Frames after which a policy that was given up is tried again, the first time. At least 1.
    pub pause: u32,
    /// The same, at most: the pause doubles each time.
    pub longest_pause: u32,
}

impl Default for LadderRules {
    fn default() -> Self {
        LadderRules {
            trial: 100,
            faults: 3,
            budget: Some(Duration::from_millis(1)),
            pause: 1000,
            longest_pause: 256_000,
        }
    }
}

/// Why a policy was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// It failed in too many frames in a row.
    #[error("it failed in {frames} frames in a row; the last time, {fault}")]
    Faults {
        /// How many.
        frames: u32,
        /// How, the last time.
        fault: Fault,
    },
    /// Most of its last 64 verdicts took too long.
    #[error("it is too slow: half of its last 64 verdicts took {median:?} or longer, where {budget:?} are allowed")]
    TooSlow {
        /// What half of them took, or longer.
        median: Duration,
        /// What they may take.
        budget: Duration,
    },
}

/// Why state was not carried over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CarryError {
    /// The old policy failed to save it.
    #[error("the old one did not save it")]
    Save(#[source] Fault),
    /// The new policy did not take it up.
    #[error("the new one did not take it up")]
    Restore(#[source] RestoreError),
}

/// A step of a [`Ladder`], to be logged and reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LadderEvent {
    /// Another policy decides from this frame on.
    Swapped {
        /// What decided before; `None` is the built-in rule.
        from: Option<Digest>,
        /// What decides now.
        to: Digest,
    },
    /// The new policy has taken up the state of the old one.
    Carried {
        /// The new policy.
        policy: Digest,
        /// Size of the state.
        bytes: usize,
    },
    /// It has not, and begins afresh.
    NotCarried {
        /// The new policy.
        policy: Digest,
        /// Why.
        why: CarryError,
    },
    /// A policy that was given up decides again, on trial, from this frame on.
    Retried {
        /// What decided before; `None` is the built-in rule.
        from: Option<Digest>,
        /// The policy.
        policy: Digest,
    },
    /// The policy in force is good; the one before it was let go.
    Proven {
        /// The policy.
        policy: Digest,
    },
    /// The policy failed: the built-in rule decides the rest of this frame.
    Faulted {
        /// The policy.
        policy: Digest,
        /// How.
        fault: Fault,
        /// Faulty frames in a row, this one included.
        in_a_row: u32,
    },
    /// The policy is given up.
    SteppedDown {
        /// The policy.
        from: Digest,
        /// What decides from the next frame on; `None` is the built-in rule.
        to: Option<Digest>,
        /// Why.
        why: Why,
    },
}

impl Ladder {
    /// A ladder whose frames the built-in rule decides, until the first [`swap`](Self::swap).
    #[must_use]
    pub fn new(rules: LadderRules) -> Ladder {
        let rules = LadderRules {
            trial: rules.trial.max(1),
            faults: rules.faults.max(1),
            pause: rules.pause.max(1),
            ..rules
        };
        Ladder {
            rules,
            active: None,
            good: None,
            trial_left: 0,
            faulty: 0,
            next: None,
            given_up: None,
            pause_left: 0,
            pause: rules.pause,
            pace: Pace::new(),
            too_slow: None,
            frame: Frame::Unasked,
        }
    }

    /// Brings a policy into force with the next frame. One that waits already is let go.
    pub fn swap(&mut self, instance: Instance, carry: Carry) {
        self.next = Some((instance, carry));
    }

    /// The policy that decides the present frame; `None` is the built-in rule.
    #[must_use]
    pub fn active(&self) -> Option<Digest> {
        match self.frame {
            Frame::Failed => None,
            Frame::Unasked | Frame::Decided => self.active.as_ref().map(Instance::digest),
        }
    }

    /// Starts a frame. All swaps and restarts happen here.
    pub fn start_frame(&mut self, report: &mut impl FnMut(LadderEvent)) {
        let ended = std::mem::replace(&mut self.frame, Frame::Unasked);
        if let Some(why) = self.too_slow.take() {
            self.step_down(why, report);
        } else if ended == Frame::Decided {
            self.count_good_frame(report);
        }
        self.pause_left = self.pause_left.saturating_sub(1);
        if let Some((next, carry)) = self.next.take() {
            self.take_over(next, carry, report);
        } else if self.pause_left == 0
            && let Some(policy) = self.given_up.take()
        {
            self.retry(policy, report);
        }
        if let Err(fault) = self.revive() {
            self.fail(fault, report);
        }
    }

    /// Asks the policy about an exit of the present frame; `None` when the built-in rule is to decide.
    #[inline]
    pub fn decide(&mut self, view: &ExitView, report: &mut impl FnMut(LadderEvent)) -> Option<Verdict> {
        if self.frame == Frame::Failed {
            return None;
        }
        match self.active.as_mut()?.decide(view) {
            Ok(verdict) => {
                self.frame = Frame::Decided;
                Some(verdict)
            }
            Err(fault) => {
                self.fail(fault, report);
                None
            }
        }
    }

    /// Takes how long the last verdict took.
    #[inline]
    pub fn took(&mut self, time: Duration) {
        let Some(budget) = self.rules.budget else { return };
        if let Some(median) = self.pace.take(time, budget)
            && self.frame == Frame::Decided
        {
            self.too_slow = Some(Why::TooSlow { median, budget });
        }
    }

    /// Tells the policy in force what became of the present frame, which is done. One that has failed is started
    /// anew first. Gives whether it failed at this.
    pub fn observe(&mut self, outcome: &Outcome, report: &mut impl FnMut(LadderEvent)) -> bool {
        if self.revive().is_err() {
            // Told when the next frame starts, if it is still so.
            return false;
        }
        let Some(Err(fault)) = self.active.as_mut().map(|active| active.observe(outcome)) else {
            return false;
        };
        // A frame fails once.
        if self.frame != Frame::Failed {
            self.fail(fault, report);
        }
        true
    }

    fn count_good_frame(&mut self, report: &mut impl FnMut(LadderEvent)) {
        self.faulty = 0;
        let Some(active) = &self.active else { return };
        if self.trial_left > 0 {
            self.trial_left -= 1;
            if self.trial_left == 0 {
                self.good = None;
                self.given_up = None;
                self.pause = self.rules.pause;
                report(LadderEvent::Proven {
                    policy: active.digest(),
                });
            }
        }
    }

    fn take_over(&mut self, next: Instance, carry: Carry, report: &mut impl FnMut(LadderEvent)) {
        let (from, to) = (self.active.as_ref().map(Instance::digest), next.digest());
        let saved = match (carry, &mut self.active) {
            (Carry::State, Some(active)) => active.save().map_err(CarryError::Save).transpose(),
            (Carry::Nothing, _) | (_, None) => None,
        };
        self.put_on_trial(next);
        self.given_up = None;
        self.pause = self.rules.pause;
        report(LadderEvent::Swapped { from, to });
        let (Some(saved), Some(active)) = (saved, &mut self.active) else {
            return;
        };
        let carried = saved.and_then(|saved| {
            active.restore(&saved).map_err(CarryError::Restore)?;
            Ok(saved.len())
        });
        report(match carried {
            Ok(bytes) => LadderEvent::Carried { policy: to, bytes },
            Err(why) => {
                if let CarryError::Restore(RestoreError::Refused { .. }) = why {
                    // What it took up of it until then is not known. It is started anew, as after a fault.
                    active.stop(Fault::Restart);
                }
                LadderEvent::NotCarried { policy: to, why }
            }
        });
    }

    /// Brings back what was given up.
    fn retry(&mut self, policy: Instance, report: &mut impl FnMut(LadderEvent)) {
        let (from, digest) = (self.active.as_ref().map(Instance::digest), policy.digest());
        self.put_on_trial(policy);
        report(LadderEvent::Retried { from, policy: digest });
    }

    fn put_on_trial(&mut self, policy: Instance) {
        let before = self.active.replace(policy);
        // One that is itself still on trial is not worth keeping: the good one stays.
        if self.trial_left == 0 {
            self.good = before;
        }
        self.trial_left = self.rules.trial;
        self.faulty = 0;
        self.pace = Pace::new();
    }

    /// Starts a policy that a fault ended anew.
    fn revive(&mut self) -> Result<(), Fault> {
        let Some(active) = self.active.as_mut().filter(|active| active.ended().is_some()) else {
            return Ok(());
        };
        active.restart().map_err(|error| {
            tracing::debug!(policy = %active.digest(), "restart failed: {error}");
            Fault::Restart
        })
    }

    #[cold]
    fn fail(&mut self, fault: Fault, report: &mut impl FnMut(LadderEvent)) {
        self.frame = Frame::Failed;
        self.too_slow = None;
        let Some(active) = &self.active else { return };
        let policy = active.digest();
        self.faulty += 1;
        report(LadderEvent::Faulted {
            policy,
            fault,
            in_a_row: self.faulty,
        });
        if self.trial_left > 0 {
            self.trial_left = self.rules.trial;
        }
        if self.faulty >= self.rules.faults {
            let frames = self.faulty;
            self.step_down(Why::Faults { frames, fault }, report);
        }
    }

    #[cold]
    fn step_down(&mut self, why: Why, report: &mut impl FnMut(LadderEvent)) {
        let Some(mut policy) = self.active.take() else { return };
        policy.stop(match why {
            Why::Faults { fault, .. } => fault,
            Why::TooSlow { .. } => Fault::Budget,
        });
        self.active = self.good.take();
        self.trial_left = 0;
        self.faulty = 0;
        self.pace = Pace::new();
        report(LadderEvent::SteppedDown {
            from: policy.digest(),
            to: self.active.as_ref().map(Instance::digest),
            why,
        });
        if self.given_up.is_none() {
            self.given_up = Some(policy);
            self.pause_left = self.pause;
            self.pause = self.pause.saturating_mul(2).min(self.rules.longest_pause);
        }
    }
}
