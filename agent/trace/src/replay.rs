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

/// What each frame of a trace counts for where policies are compared.
///
/// A frame from a device ends where the policy of that time let it leave: where another policy would go on, nobody knows
/// what it would have seen. Scoring a policy on the frames that it happens to answer flatters it, since what is left out
/// is the hard part, and a different part for each policy. So all are scored on the same frames, the complete ones, and
/// these stand for the others: a complete frame weighs as much as there are frames of its kind for each that is complete.
/// The kind is the exit that was taken, and whether the frame left for want of time or as one not to learn from: such
/// frames are never audited, and where none is complete they have no weight and are counted as not represented.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Weights {
    /// Per exit and kind: frames, and complete ones.
    counts: Vec<(u64, u64)>,
}

impl Weights {
    /// Weights for these frames of one trace.
    pub fn of(header: &Header, frames: &[Frame]) -> Self {
        let mut counts = vec![(0, 0); KINDS * header.exits() + 1];
        for frame in frames {
            let (all, complete) = &mut counts[kind(header, frame)];
            *all += 1;
            *complete += u64::from(frame.is_complete(header));
        }
        Self { counts }
    }

    /// What one of them counts for; 0 where it is not complete.
    pub fn weight(&self, header: &Header, frame: &Frame) -> f64 {
        if !frame.is_complete(header) {
            return 0.0;
        }
        let (all, complete) = self.counts.get(kind(header, frame)).copied().unwrap_or_default();
        all as f64 / complete.max(1) as f64
    }

    /// Frames that no complete one stands for.
    pub fn not_represented(&self) -> u64 {
        let lone = self.counts.iter().filter(|(_, complete)| *complete == 0);
        lone.map(|(all, _)| all).sum()
    }
}

const KINDS: usize = 2;

/// The place of a frame's kind; the last is that of frames of which no policy ran.
fn kind(header: &Header, frame: &Frame) -> usize {
    let taken = frame.taken.map(usize::from).filter(|taken| *taken < header.exits());
    let Some(taken) = taken else {
        return KINDS * header.exits();
    };
    let verdict = frame.exits.get(taken).and_then(|seen| seen.verdict);
    let unaudited = frame.hurried || verdict == Some(Verdict::LeaveWithoutLearning);
    KINDS * taken + usize::from(unaudited)
}

/// What a policy makes of the frames of a trace, added up.
///
/// It sees all frames, in their order; cost, exits and correctness are those of frames that have a weight ([`Weights`]).
/// Frames on which it goes on past what was recorded are counted as unanswered, and never guessed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Replay {
    /// Frames.
    pub frames: u64,
    /// Frames of which it went on past what was recorded.
    pub unanswered: u64,
    /// Frames that have a weight.
    pub scored: u64,
    /// Sum of their weights: the frames that they stand for.
    pub weight: f64,
    /// Weight of those that left at each exit.
    pub exits: Vec<f64>,
    /// Sum of their costs, each as a share of the whole network, times their weights.
    pub cost: f64,
    /// Weight of those whose true class is known.
    pub labelled: f64,
    /// Of these, weight of those whose prediction is right.
    pub right: f64,
    /// Weight of those whose prediction is the last exit's.
    pub agreed: f64,
    /// Verdicts that the policy failed to give.
    pub faults: u64,
    /// Verdicts that are recorded, up to where the frame left.
    pub recorded: u64,
    /// Of these, verdicts that were others than now.
    pub changed: u64,
}

impl Replay {
    /// Runs a policy over one more frame of this weight, 0 for one that is not scored. Gives the exit that it takes, if
    /// that is known.
    pub fn add(&mut self, header: &Header, frame: &Frame, weight: f64, policy: &mut impl Decider) -> Option<usize> {
        let exits = header.exits();
        self.exits.resize(exits, 0.0);
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
        self.score(header, frame, weight, exit);
        Some(exit)
    }

    /// What was recorded, scored on the same frames: nothing is decided anew.
    pub fn recorded(header: &Header, frames: &[Frame], weights: &Weights) -> Self {
        let mut replay = Self::default();
        for frame in frames {
            replay.exits.resize(header.exits(), 0.0);
            replay.frames += 1;
            match frame.taken.map(usize::from).filter(|exit| *exit < frame.exits.len()) {
                Some(exit) => replay.score(header, frame, weights.weight(header, frame), exit),
                None => replay.unanswered += 1,
            }
        }
        replay
    }

    /// Adds a later part.
    pub fn merge(&mut self, other: &Self) {
        self.exits.resize(self.exits.len().max(other.exits.len()), 0.0);
        for (sum, taken) in self.exits.iter_mut().zip(&other.exits) {
            *sum += taken;
        }
        self.frames += other.frames;
        self.unanswered += other.unanswered;
        self.scored += other.scored;
        self.weight += other.weight;
        self.cost += other.cost;
        self.labelled += other.labelled;
        self.right += other.right;
        self.agreed += other.agreed;
        self.faults += other.faults;
        self.recorded += other.recorded;
        self.changed += other.changed;
    }

    fn score(&mut self, header: &Header, frame: &Frame, weight: f64, exit: usize) {
        let class = frame.exits[exit].view.class;
        if let (Some(last), true) = (frame.exits.get(header.exits() - 1), weight > 0.0) {
            let given = |yes: bool| if yes { weight } else { 0.0 };
            self.scored += 1;
            self.weight += weight;
            self.exits[exit] += weight;
            self.cost += weight * f64::from(header.exit_costs[exit]);
            self.labelled += given(frame.label.is_some());
            self.right += given(frame.label.is_some_and(|label| u32::from(label) == class));
            self.agreed += given(last.view.class == class);
        }
    }

    /// Runs a policy over all frames of a trace.
    pub fn of(header: &Header, frames: &[Frame], weights: &Weights, policy: &mut impl Decider) -> Self {
        let mut replay = Self::default();
        for frame in frames {
            replay.add(header, frame, weights.weight(header, frame), policy);
        }
        replay
    }

    /// Mean cost of a frame, as a share of the whole network; none where no frame is scored.
    pub fn mean_cost(&self) -> Option<f64> {
        share(self.cost, self.weight)
    }

    /// Shares of the frames that leave at each exit.
    pub fn exit_shares(&self) -> Vec<f64> {
        let shares = self.exits.iter().map(|taken| taken / self.weight.max(1e-9));
        shares.collect()
    }

    /// Share of right predictions among labelled frames; none without labels.
    pub fn accuracy(&self) -> Option<f64> {
        share(self.right, self.labelled)
    }

    /// Share of predictions that are the last exit's; none where no frame is scored.
    pub fn agreement(&self) -> Option<f64> {
        share(self.agreed, self.weight)
    }
}

fn share(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then(|| part / whole)
}
