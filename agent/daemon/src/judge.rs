//! Who decides at the exits: policies from files and from the fleet, by name.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use offramp_core::{ExitView, Outcome, Verdict};
use offramp_model::Package;
use offramp_policy::{
    BadParameter, Carry, CheckError, CheckReport, ConfigureError, EngineError, Instance, Ladder, LadderEvent,
    LadderRules, Limits, LoadError, ModelFacts, Parameters, Policy, PolicyHost,
};
use offramp_proto::{Digest, Generation, Parameter, PolicyReport, PolicySource as Rung};

use crate::lane::Judge;
use crate::machine;

/// A policy component and how it is to be configured.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicySource {
    /// Its name.
    pub name: String,
    /// Its version; 0 where nobody gave it one.
    pub version: u64,
    /// The component.
    pub bytes: Vec<u8>,
    /// Its parameters.
    pub parameters: BTreeMap<String, Parameter>,
}

/// The shipped policies by name, each with its component.
pub const SHIPPED: [(&str, &[u8]); 6] = [
    ("threshold", include_bytes!("../../../plugins/prebuilt/threshold.wasm")),
    ("entropy", include_bytes!("../../../plugins/prebuilt/entropy.wasm")),
    ("patience", include_bytes!("../../../plugins/prebuilt/patience.wasm")),
    ("temporal", include_bytes!("../../../plugins/prebuilt/temporal.wasm")),
    ("budget", include_bytes!("../../../plugins/prebuilt/budget.wasm")),
    ("deadline", include_bytes!("../../../plugins/prebuilt/deadline.wasm")),
];

impl PolicySource {
    /// The shipped policy of that name, if there is one.
    pub fn shipped(name: &str, parameters: BTreeMap<String, Parameter>) -> Option<Self> {
        let (name, bytes) = SHIPPED.iter().find(|(shipped, _)| *shipped == name)?;
        Some(Self {
            name: (*name).into(),
            version: 1,
            bytes: bytes.to_vec(),
            parameters,
        })
    }

    /// The shipped threshold policy: leave where the confidence reaches a threshold.
    pub fn threshold(parameters: BTreeMap<String, Parameter>) -> Self {
        Self::shipped("threshold", parameters).expect("it is in the table")
    }
}

/// Why a policy cannot decide here.
#[derive(Debug, thiserror::Error)]
pub enum SetUpError {
    /// WebAssembly does not run on this machine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The component is refused.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A parameter is out of bounds.
    #[error(transparent)]
    Parameter(#[from] BadParameter),
    /// The policy does not take its configuration.
    #[error(transparent)]
    Configure(#[from] ConfigureError),
}

/// Compiles and configures policies for one network.
pub struct Workshop {
    host: PolicyHost,
    facts: ModelFacts,
}

impl Workshop {
    /// A workshop for a package's network.
    ///
    /// # Errors
    /// When WebAssembly does not run on this machine.
    pub fn new(package: &Package) -> Result<Self, SetUpError> {
        let manifest = package.manifest();
        let total: u64 = manifest.stages.iter().map(|stage| stage.macs).sum();
        let mut spent = 0;
        let share = |macs: u64| {
            spent += macs;
            spent as f32 / total as f32
        };
        Self::for_facts(ModelFacts {
            classes: manifest.classes.len() as u32,
            exit_costs: manifest.stages.iter().map(|stage| stage.macs).map(share).collect(),
        })
    }

    /// A workshop for a network of which this is known.
    ///
    /// # Errors
    /// When WebAssembly does not run on this machine.
    pub fn for_facts(facts: ModelFacts) -> Result<Self, SetUpError> {
        Ok(Self {
            host: PolicyHost::new(Limits::default())?,
            facts,
        })
    }

    /// Facts of the network.
    pub fn facts(&self) -> &ModelFacts {
        &self.facts
    }

    /// Checks and compiles a policy.
    ///
    /// # Errors
    /// When it is refused.
    pub fn load(&self, component: &[u8]) -> Result<Policy, LoadError> {
        self.host.load(component)
    }

    /// Checks, compiles and configures a policy: some tens of milliseconds.
    ///
    /// # Errors
    /// See [`SetUpError`].
    pub fn prepare(&self, source: &PolicySource) -> Result<Chosen, SetUpError> {
        let mut one = self.prepare_for(source, 1)?;
        Ok(one.remove(0))
    }

    /// The same for several cameras: compiled once, and an instance for each, which shares nothing with the others.
    ///
    /// # Errors
    /// See [`SetUpError`].
    pub fn prepare_for(&self, source: &PolicySource, cameras: usize) -> Result<Vec<Chosen>, SetUpError> {
        let policy = self.host.load(&source.bytes)?;
        machine::give_memory_back();
        let parameters = Parameters::of(&source.parameters)?;
        let named = Named {
            name: source.name.clone(),
            version: source.version,
            digest: policy.digest(),
        };
        let chosen = (0..cameras).map(|_| {
            let instance = policy.configure(&self.facts, &parameters)?;
            let named = named.clone();
            Ok(Chosen { instance, named })
        });
        chosen.collect()
    }

    /// Examines a component without taking it up.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, component: &[u8], parameters: &BTreeMap<String, Parameter>) -> Result<CheckReport, CheckError> {
        let parameters = Parameters::of(parameters).map_err(|error| ConfigureError::Refused {
            reason: error.to_string(),
        })?;
        self.host.check(component, &self.facts, &parameters)
    }
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// What people call a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: u64,
    /// Digest of the component.
    pub digest: Digest,
}

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.name, self.version)
    }
}

/// A policy that is ready to decide.
#[derive(Debug)]
pub struct Chosen {
    /// The configured instance.
    instance: Instance,
    /// What it is called.
    pub named: Named,
}

/// A change of who decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// An ordered policy decides from this frame on.
    Swapped {
        /// The desired state that ordered it.
        generation: Generation,
        /// What decided before.
        from: String,
    },
    /// Something else that an operator wants to know.
    Other {
        /// What, as the kind of an event: `policy-faulted`, `policy-stepped-down`, `policy-retried`,
        /// `policy-restored`, `policy-state-lost`.
        kind: &'static str,
        /// Whether something went wrong.
        wrong: bool,
        /// One sentence for people.
        message: String,
    },
}

/// Decides by the policy in force, and by the built-in rule where that fails. See [`Ladder`].
#[derive(Debug)]
pub struct PolicyJudge {
    ladder: Ladder,
    /// In force; none: the built-in rule.
    current: Option<Named>,
    /// The good one before it, while the current one is on trial.
    before: Option<Named>,
    /// Comes into force with the next frame.
    next: Option<(Named, Generation)>,
    /// Was given up, and is tried again.
    given_up: Option<Named>,
    /// Whether the current one had been given up, and has not proven good since.
    is_retry: bool,
    /// Faulty frames since the current one came into force.
    faulty: u64,
    rung: Rung,
    budget: Option<Duration>,
    /// Verdicts until one is timed.
    untimed: u32,
    /// What the ladder told during a call; there is room for a proof or a step down, a swap and its state, and two
    /// of a failed restart.
    events: VecDeque<LadderEvent>,
    steps: VecDeque<Step>,
}

/// Of so many verdicts one is timed, until one is late: the clock takes half as long as a verdict.
const TIMED: u32 = 8;

impl PolicyJudge {
    /// A judge that decides by a policy from the first frame on.
    pub fn new(chosen: Chosen) -> Self {
        Self::with_rules(chosen, LadderRules::default())
    }

    /// The same under other rules.
    pub fn with_rules(chosen: Chosen, rules: LadderRules) -> Self {
        let mut ladder = Ladder::new(rules);
        ladder.swap(chosen.instance, Carry::Nothing);
        ladder.start_frame(&mut |_| ());
        let current = Some(chosen.named);
        Self {
            ladder,
            current,
            before: None,
            next: None,
            given_up: None,
            is_retry: false,
            faulty: 0,
            rung: Rung::Desired,
            budget: rules.budget,
            untimed: 0,
            events: VecDeque::with_capacity(6),
            steps: VecDeque::new(),
        }
    }

    /// Brings a policy into force with the next frame. A policy of the same name as the one in force takes up its
    /// state.
    pub fn swap(&mut self, chosen: Chosen, generation: Generation) {
        let same = |current: &Named| current.name == chosen.named.name;
        let carry = if self.current.as_ref().is_some_and(same) {
            Carry::State
        } else {
            Carry::Nothing
        };
        self.next = Some((chosen.named, generation));
        self.ladder.swap(chosen.instance, carry);
    }

    /// The next change that has not been told yet.
    pub fn next_step(&mut self) -> Option<Step> {
        self.steps.pop_front()
    }

    /// The policy in force, with a number of faults, for a summary.
    pub fn report(&self, faults: u64) -> PolicyReport {
        match &self.current {
            Some(named) => PolicyReport {
                name: named.name.clone(),
                version: named.version,
                digest: Some(named.digest),
                source: self.rung,
                faults,
            },
            None => PolicyReport {
                name: "built-in".into(),
                version: 0,
                digest: None,
                source: Rung::BuiltIn,
                faults,
            },
        }
    }

    fn current_name(&self) -> String {
        self.current
            .as_ref()
            .map_or_else(|| "built-in".into(), Named::to_string)
    }

    /// Takes what the ladder has told during a call.
    fn take_all(&mut self) {
        while let Some(event) = self.events.pop_front() {
            self.take(event);
        }
    }

    fn take(&mut self, event: LadderEvent) {
        match event {
            LadderEvent::Swapped { .. } => {
                let Some((named, generation)) = self.next.take() else {
                    return;
                };
                let from = self.current_name();
                // The ladder keeps the first good one while policies on trial replace each other.
                let replaced = self.current.replace(named);
                self.before = self.before.take().or(replaced);
                self.given_up = None;
                self.is_retry = false;
                self.faulty = 0;
                self.rung = Rung::Desired;
                self.steps.push_back(Step::Swapped { generation, from });
            }
            LadderEvent::Carried { policy, bytes } => {
                tracing::info!(%policy, bytes, "the policy has taken up the state of the one before");
            }
            LadderEvent::NotCarried { why, .. } => {
                let why = chain(&why);
                self.tell(
                    "policy-state-lost",
                    true,
                    format!("policy {} begins afresh: {why}", self.current_name()),
                );
            }
            LadderEvent::Retried { .. } => {
                let Some(named) = self.given_up.take() else { return };
                let from = self.current_name();
                self.before = self.current.replace(named);
                self.is_retry = true;
                self.faulty = 0;
                self.rung = Rung::Desired;
                let message = format!("policy {} is tried again, after {from}", self.current_name());
                self.tell("policy-retried", false, message);
            }
            LadderEvent::Proven { .. } => {
                self.before = None;
                self.given_up = None;
                if std::mem::take(&mut self.is_retry) {
                    let message = format!("policy {} decides well again", self.current_name());
                    self.tell("policy-restored", false, message);
                }
            }
            LadderEvent::Faulted {
                policy,
                fault,
                in_a_row,
            } => {
                tracing::debug!(%policy, %fault, in_a_row, "the policy failed; the built-in rule decides this frame");
                self.faulty += 1;
                // The first, the second, the fourth, the eighth …: a policy that fails now and then floods nothing.
                if self.faulty.is_power_of_two() {
                    let message = format!(
                        "policy {} failed, and the built-in rule decided: {fault} ({} since it came into force)",
                        self.current_name(),
                        self.faulty
                    );
                    self.tell("policy-faulted", true, message);
                }
            }
            LadderEvent::SteppedDown { to, why, .. } => {
                let from = self.current_name();
                let given_up = self.current.take();
                // Of two that were given up, the one that was ordered last is tried again.
                self.given_up = self.given_up.take().or(given_up);
                self.current = self.before.take().filter(|_| to.is_some());
                self.is_retry = false;
                self.faulty = 0;
                self.rung = if self.current.is_some() {
                    Rung::LastGood
                } else {
                    Rung::BuiltIn
                };
                let message = format!("policy {from} is given up: {why}; {} decides", self.current_name());
                self.tell("policy-stepped-down", true, message);
            }
        }
    }

    fn tell(&mut self, kind: &'static str, wrong: bool, message: String) {
        self.steps.push_back(Step::Other { kind, wrong, message });
    }
}

impl Judge for PolicyJudge {
    fn start_frame(&mut self) {
        self.ladder.start_frame(&mut |event| self.events.push_back(event));
        self.take_all();
    }

    fn decide(&mut self, view: &ExitView) -> (Verdict, bool) {
        let start = (self.untimed == 0).then(Instant::now);
        let verdict = self.ladder.decide(view, &mut |event| self.events.push_back(event));
        match start.map(|start| start.elapsed()) {
            None => self.untimed -= 1,
            Some(took) => {
                let late = self.budget.is_some_and(|budget| took > budget);
                self.untimed = if late { 0 } else { TIMED - 1 };
                if verdict.is_some() {
                    self.ladder.took(took);
                }
            }
        }
        self.take_all();
        match verdict {
            Some(verdict) => (verdict, false),
            None => (view.rule(), self.current.is_some()),
        }
    }

    fn policy(&self) -> Option<Digest> {
        self.ladder.active()
    }

    fn observe(&mut self, outcome: &Outcome) -> bool {
        let failed = self.ladder.observe(outcome, &mut |event| self.events.push_back(event));
        self.take_all();
        failed
    }
}
