use offramp_core::{ExitView, Outcome, Verdict};

use crate::{Frame, Header};

/// Who is replayed: a policy in its host, or a rule.
pub trait Decider {
    /// The verdict at an exit; none where the policy failed and the built-in rule is to decide.
    fn decide(&mut self, view: &ExitView) -> Option<Verdict>;

    /// What became of the frame, as far as it is known.
    fn observe(&mut self, _outcome: &Outcome) {}
}

impl<F: FnMut(&ExitView) -> Verdict> Decider for F {
    fn decide(&mut self, view: &ExitView) -> Option<Verdict> {
        Some(self(view))
    }
}

/// What a policy makes of the frames of a trace, added up.
///
/// A frame from a device ends where the policy of that time let it leave: where another policy would go on, nobody knows
/// what it would have seen. Such frames are counted as unanswered and left out of all else, never guessed; frames that
/// were audited are complete.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Replay {
    /// Frames.
    pub frames: u64,
    /// Frames of which it went on past what was recorded.
    pub unanswered: u64,
    /// Answered frames that left at each exit.
    pub exits: Vec<u64>,
    /// Sum of the answered frames' costs, each as a share of the whole network.
    pub cost: f64,
    /// Answered frames whose true class is known.
    pub labelled: u64,
    /// Of these, frames whose prediction is right.
    pub right: u64,
    /// Answered frames that are complete, so that the last exit's class is known.
    pub complete: u64,
    /// Of these, frames whose prediction is the last exit's.
    pub agreed: u64,
    /// Verdicts that the policy failed to give.
    pub faults: u64,
    /// Verdicts that are recorded, up to where the frame left.
    pub recorded: u64,
    /// Of these, verdicts that were others than now.
    pub changed: u64,
}

impl Replay {
    /// Runs a policy over one more frame. Gives the exit that it takes, if that is known.
    pub fn add(&mut self, header: &Header, frame: &Frame, policy: &mut impl Decider) -> Option<usize> {
        let exits = header.exits();
        self.exits.resize(exits, 0);
        self.frames += 1;
        let mut left = None;
        for (exit, seen) in frame.exits.iter().enumerate() {
            if exit + 1 == exits {
                left = Some(exit);
                break;
            }
            let verdict = policy.decide(&seen.view);
            self.faults += u64::from(verdict.is_none());
            let verdict = verdict.unwrap_or_else(|| seen.view.rule());
            if let Some(recorded) = seen.verdict {
                self.recorded += 1;
                self.changed += u64::from(recorded != verdict);
            }
            if verdict != Verdict::GoOn {
                left = Some(exit);
                break;
            }
        }
        let Some(exit) = left else {
            self.unanswered += 1;
            return None;
        };
        policy.observe(&frame.outcome(header, exit));
        let class = frame.exits[exit].view.class;
        self.exits[exit] += 1;
        self.cost += f64::from(header.exit_costs[exit]);
        if let Some(label) = frame.label {
            self.labelled += 1;
            self.right += u64::from(u32::from(label) == class);
        }
        if let Some(last) = frame.exits.get(exits - 1) {
            self.complete += 1;
            self.agreed += u64::from(last.view.class == class);
        }
        Some(exit)
    }

    /// Frames that were answered.
    pub fn answered(&self) -> u64 {
        self.frames - self.unanswered
    }

    /// Mean cost of an answered frame, as a share of the whole network.
    pub fn mean_cost(&self) -> f64 {
        self.cost / self.answered().max(1) as f64
    }

    /// Share of right predictions among labelled frames; none without labels.
    pub fn accuracy(&self) -> Option<f64> {
        (self.labelled > 0).then(|| self.right as f64 / self.labelled as f64)
    }

    /// Share of predictions that are the last exit's, among complete frames; none without any.
    pub fn agreement(&self) -> Option<f64> {
        (self.complete > 0).then(|| self.agreed as f64 / self.complete as f64)
    }

    /// Adds what another replay has counted.
    pub fn join(&mut self, other: &Self) {
        self.exits.resize(self.exits.len().max(other.exits.len()), 0);
        for (sum, more) in self.exits.iter_mut().zip(&other.exits) {
            *sum += more;
        }
        self.frames += other.frames;
        self.unanswered += other.unanswered;
        self.cost += other.cost;
        self.labelled += other.labelled;
        self.right += other.right;
        self.complete += other.complete;
        self.agreed += other.agreed;
        self.faults += other.faults;
        self.recorded += other.recorded;
        self.changed += other.changed;
    }
}
