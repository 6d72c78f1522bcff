use std::time::Duration;

use offramp_core::{ExitView, Outcome, Verdict};
use offramp_proto::Digest;

use crate::fault::Fault;
use crate::instance::Instance;

/// Drives the policies of one camera: swaps them between frames, and steps down when one fails.
///
/// The steps, downwards: the policy in force; after [`LadderRules::faults`] faulty frames in a row, or
/// when more than half of its latest verdicts took longer than [`LadderRules::budget`], the last good
/// policy; when there is none, or when that fails as well, the built-in rule. A policy is good once it
/// has decided [`LadderRules::trial`] frames in a row; until then the good one before it is kept, as it
/// was. A single fault costs one frame: the built-in rule decides the rest of it, and a new instance of
/// the same policy decides from the next frame on.
///
/// And up again: a policy that was given up is tried anew after [`LadderRules::pause`] frames; each time
/// that it fails again the pause doubles, up to [`LadderRules::longest_pause`]. The next
/// [`swap`](Self::swap) forgets it.
///
/// The caller says where a frame starts, frames come one at a time, and each exit is asked through
/// [`decide`](Self::decide):
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
    pace: Pace,
    /// What was given up, and when it is tried anew.
    given_up: Option<GivenUp>,
    /// Frames that the next policy to be given up has to wait.
    pause: u32,
    /// Comes into force with the next frame.
    next: Option<(Instance, Carry)>,
    frame: Frame,
}

/// A policy that waits for another chance.
#[derive(Debug)]
struct GivenUp {
    instance: Instance,
    frames_left: u32,
}

/// What a policy takes over from the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carry {
    /// What that one has saved: it is another version, or another configuration, of the same policy.
    State,
    /// Nothing.
    Nothing,
}

/// Whether the latest verdicts kept to the budget.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    /// A bit for each, the latest the lowest: whether it took too long.
    late: u64,
    /// How many are known.
    known: u32,
}

impl Pace {
    /// Takes in a verdict; whether the policy is too slow.
    fn is_too_slow(&mut self, late: bool) -> bool {
        self.late = self.late << 1 | u64::from(late);
        self.known = (self.known + 1).min(u64::BITS);
        self.known == u64::BITS && self.late.count_ones() > u64::BITS / 2
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
    /// Time that a verdict may take; of the latest 64 that were timed, half may take longer.
    pub budget: Duration,
    /// Frames after which a policy that was given up is tried anew, the first time. At least 1.
    pub pause: u32,
    /// Frames after which it is tried anew at the latest.
    pub longest_pause: u32,
}

impl Default for LadderRules {
    fn default() -> Self {
        LadderRules {
            trial: 100,
            faults: 3,
            budget: Duration::from_millis(1),
            pause: 500,
            longest_pause: 64_000,
        }
    }
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
    /// The new policy has taken up what the one before it saved.
    Carried {
        /// The new policy.
        policy: Digest,
        /// How much.
        bytes: usize,
    },
    /// The new policy begins afresh, though it is another version of the one before it.
    NotCarried {
        /// The new policy.
        policy: Digest,
        /// Why.
        why: String,
    },
    /// A policy that was given up decides again, on trial.
    TriedAnew {
        /// The policy.
        policy: Digest,
        /// What decided meanwhile; `None` is the built-in rule.
        from: Option<Digest>,
    },
    /// The policy is given up.
    SteppedDown {
        /// The policy.
        from: Digest,
        /// Why.
        why: GivenUpFor,
        /// What decides from the next frame on; `None` is the built-in rule.
        to: Option<Digest>,
    },
}

/// Why a policy was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GivenUpFor {
    /// So many faulty frames in a row.
    #[error("{frames} frames in a row failed, the last because {fault}")]
    Faults {
        /// Frames.
        frames: u32,
        /// The last fault.
        fault: Fault,
    },
    /// It costs more than its budget of time.
    #[error("its verdicts take {} µs, where {} are allowed", took.as_micros(), budget.as_micros())]
    TooSlow {
        /// What the latest verdict took.
        took: Duration,
        /// [`LadderRules::budget`].
        budget: Duration,
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
            pace: Pace::default(),
            given_up: None,
            pause: rules.pause,
            active: None,
            good: None,
            trial_left: 0,
            faulty: 0,
            next: None,
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
        if ended == Frame::Decided {
            self.count_good_frame(report);
        }
        if let Some((next, carry)) = self.next.take() {
            self.take_over(next, carry, report);
        }
        self.try_anew(report);
        self.revive(report);
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

    /// Says how long the latest verdict took. Not every one need be told: a few of many will do.
    pub fn took(&mut self, time: Duration, report: &mut impl FnMut(LadderEvent)) {
        let budget = self.rules.budget;
        if self.frame == Frame::Decided && self.pace.is_too_slow(time > budget) {
            // Whoever is next decides whole frames.
            self.frame = Frame::Failed;
            self.give_up(GivenUpFor::TooSlow { took: time, budget }, report);
        }
    }

    /// Tells the policy what became of the frame. A fault counts as one of this frame.
    pub fn observe(&mut self, outcome: &Outcome, report: &mut impl FnMut(LadderEvent)) {
        let Some(active) = &mut self.active else { return };
        // An instance that a fault has ended is made anew with the next frame.
        if active.ended().is_none()
            && let Err(fault) = active.observe(outcome)
        {
            self.fail(fault, report);
        }
    }

    fn count_good_frame(&mut self, report: &mut impl FnMut(LadderEvent)) {
        self.faulty = 0;
        let Some(active) = &self.active else { return };
        if self.trial_left > 0 {
            self.trial_left -= 1;
            if self.trial_left == 0 {
                self.good = None;
                self.pause = self.rules.pause;
                report(LadderEvent::Proven {
                    policy: active.digest(),
                });
            }
        }
    }

    fn take_over(&mut self, mut next: Instance, carry: Carry, report: &mut impl FnMut(LadderEvent)) {
        let mut before = self.active.take();
        let (from, to) = (before.as_ref().map(Instance::digest), next.digest());
        let carried = match (carry, &mut before) {
            (Carry::State, Some(before)) => carry_over(before, &mut next),
            (Carry::State | Carry::Nothing, _) => None,
        };
        self.given_up = None;
        self.pause = self.rules.pause;
        self.put_on_trial(next, before);
        report(LadderEvent::Swapped { from, to });
        if let Some(event) = carried {
            report(event);
        }
    }

    fn put_on_trial(&mut self, next: Instance, before: Option<Instance>) {
        // One that is itself still on trial is not worth keeping: the good one stays.
        if self.trial_left == 0 {
            self.good = before;
        }
        self.active = Some(next);
        self.trial_left = self.rules.trial;
        self.faulty = 0;
        self.pace = Pace::default();
    }

    /// Gives a policy that was given up another chance, once its pause is over.
    fn try_anew(&mut self, report: &mut impl FnMut(LadderEvent)) {
        let Some(waiting) = &mut self.given_up else { return };
        waiting.frames_left = waiting.frames_left.saturating_sub(1);
        if waiting.frames_left > 0 {
            return;
        }
        let Some(GivenUp { mut instance, .. }) = self.given_up.take() else {
            return;
        };
        // It begins afresh: what it knew may be what made it fail.
        if let Err(error) = instance.restart() {
            tracing::debug!(policy = %instance.digest(), "restart failed: {error}");
            self.wait(instance);
            return;
        }
        let before = self.active.take();
        let (policy, from) = (instance.digest(), before.as_ref().map(Instance::digest));
        self.put_on_trial(instance, before);
        report(LadderEvent::TriedAnew { policy, from });
    }

    /// Has a policy wait for another chance, longer each time.
    fn wait(&mut self, mut instance: Instance) {
        instance.stop();
        self.given_up = Some(GivenUp {
            instance,
            frames_left: self.pause,
        });
        self.pause = self
            .pause
            .saturating_mul(2)
            .min(self.rules.longest_pause.max(self.rules.pause));
    }

    /// Starts a policy that a fault ended anew.
    fn revive(&mut self, report: &mut impl FnMut(LadderEvent)) {
        let Some(active) = self.active.as_mut().filter(|active| active.ended().is_some()) else {
            return;
        };
        if let Err(error) = active.restart() {
            tracing::debug!(policy = %active.digest(), "restart failed: {error}");
            self.fail(Fault::Restart, report);
        }
    }

    #[cold]
    fn fail(&mut self, fault: Fault, report: &mut impl FnMut(LadderEvent)) {
        self.frame = Frame::Failed;
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
            self.give_up(GivenUpFor::Faults { frames, fault }, report);
        }
    }

    #[cold]
    fn give_up(&mut self, why: GivenUpFor, report: &mut impl FnMut(LadderEvent)) {
        let Some(active) = self.active.take() else { return };
        let from = active.digest();
        self.active = self.good.take();
        self.trial_left = 0;
        self.faulty = 0;
        self.pace = Pace::default();
        // Where two have failed, the one that was asked for waits, not the one that stood in for it.
        if self.given_up.is_none() {
            self.wait(active);
        }
        report(LadderEvent::SteppedDown {
            from,
            why,
            to: self.active.as_ref().map(Instance::digest),
        });
    }
}

/// Hands the state of a policy over to another version of it; nothing to report where there is none.
fn carry_over(before: &mut Instance, next: &mut Instance) -> Option<LadderEvent> {
    let policy = next.digest();
    let handed = match before.save() {
        Ok(None) => return None,
        Ok(Some(saved)) => next
            .restore(&saved)
            .map(|()| saved.len())
            .map_err(|error| error.to_string()),
        Err(fault) => Err(format!("it could not be saved: {fault}")),
    };
    Some(match handed {
        Ok(bytes) => LadderEvent::Carried { policy, bytes },
        Err(why) => {
            // It may have taken up half of it. Should this fail, the next frame tries again and reports.
            let _ = next.restart();
            LadderEvent::NotCarried { policy, why }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_too_slow_once_more_than_half_of_many_verdicts_were_late() {
        let mut pace = Pace::default();
        assert!((0..64).all(|_| !pace.is_too_slow(false)));
        let late = (0..64).map(|_| pace.is_too_slow(true));
        assert_eq!(late.filter(|slow| !slow).count(), 32);
        let mut new = Pace::default();
        assert!((0..63).all(|_| !new.is_too_slow(true)), "too few are known");
        assert!(new.is_too_slow(true));
    }
}
