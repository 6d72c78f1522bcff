use offramp_core::{ExitView, Verdict};
use offramp_proto::Digest;

use crate::fault::Fault;
use crate::instance::Instance;

/// Drives the policies of one camera: swaps them between frames, and steps down when one fails.
///
/// The steps, downwards: the policy in force; after [`LadderRules::faults`] faulty frames in a row the
/// last good policy; when there is none, or when that fails as well, the built-in rule, until the next
/// [`swap`](Self::swap). A policy is good once it has decided [`LadderRules::trial`] frames in a row;
/// until then the good one before it is kept, as it was. A single fault costs one frame: the built-in
/// rule decides the rest of it, and a new instance of the same policy decides from the next frame on.
///
/// The caller says where a frame starts, frames come one at a time, and each exit is asked through
/// [`decide`](Self::decide):
///
/// ```no_run
/// # use offramp_core::{ExitView, Verdict};
/// # use offramp_policy::{Instance, Ladder, LadderRules};
/// # fn views() -> Vec<ExitView> { vec![] }
/// # fn arrived() -> Option<Instance> { None }
/// let mut ladder = Ladder::new(LadderRules::default());
/// loop {
///     if let Some(instance) = arrived() {
///         ladder.swap(instance); // at any time; in force from the next frame on
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
    next: Option<Instance>,
    frame: Frame,
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
}

impl Default for LadderRules {
    fn default() -> Self {
        LadderRules { trial: 100, faults: 3 }
    }
}

/// A step of a [`Ladder`], to be logged and reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// The policy is given up.
    SteppedDown {
        /// The policy.
        from: Digest,
        /// What decides from the next frame on; `None` is the built-in rule.
        to: Option<Digest>,
    },
}

impl Ladder {
    /// A ladder whose frames the built-in rule decides, until the first [`swap`](Self::swap).
    #[must_use]
    pub fn new(rules: LadderRules) -> Ladder {
        let rules = LadderRules {
            trial: rules.trial.max(1),
            faults: rules.faults.max(1),
        };
        Ladder {
            rules,
            active: None,
            good: None,
            trial_left: 0,
            faulty: 0,
            next: None,
            frame: Frame::Unasked,
        }
    }

    /// Brings a policy into force with the next frame. One that waits already is let go.
    pub fn swap(&mut self, instance: Instance) {
        self.next = Some(instance);
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
        if let Some(next) = self.next.take() {
            self.take_over(next, report);
        }
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

    fn count_good_frame(&mut self, report: &mut impl FnMut(LadderEvent)) {
        self.faulty = 0;
        let Some(active) = &self.active else { return };
        if self.trial_left > 0 {
            self.trial_left -= 1;
            if self.trial_left == 0 {
                self.good = None;
                report(LadderEvent::Proven {
                    policy: active.digest(),
                });
            }
        }
    }

    fn take_over(&mut self, next: Instance, report: &mut impl FnMut(LadderEvent)) {
        let before = self.active.take();
        let (from, to) = (before.as_ref().map(Instance::digest), next.digest());
        // One that is itself still on trial is not worth keeping: the good one stays.
        if self.trial_left == 0 {
            self.good = before;
        }
        self.active = Some(next);
        self.trial_left = self.rules.trial;
        self.faulty = 0;
        report(LadderEvent::Swapped { from, to });
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
            self.active = self.good.take();
            self.trial_left = 0;
            self.faulty = 0;
            report(LadderEvent::SteppedDown {
                from: policy,
                to: self.active.as_ref().map(Instance::digest),
            });
        }
    }
}
