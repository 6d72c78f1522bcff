//! The state machine under a fleet that is made up: what devices do, and the passing of time.

use std::collections::BTreeMap;

use offramp_proto::BootId;
use proptest::prelude::*;

use crate::store::{ArtifactKind, Run};

use super::gauge::{Gauge, Loss, Sums, Verdict};
use super::plan::{Gates, Plan};
use super::step::{Change, Member, MemberState, Observed, Rollout, State, step};

/// What a device does with the policy.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Habit {
    alive: bool,
    /// Seconds until it reports; none: never.
    answers: Option<u64>,
    refuses: bool,
    /// Seconds after which it gives the policy up.
    gives_up: Option<u64>,
    /// Frames in a second under the policy.
    frames: u64,
    /// Seconds between restarts; 0 for none.
    restarts: u64,
    /// Multiplies what frames cost.
    dearer: f64,
    faults: u64,
    disagreements: u64,
    rollbacks: u64,
    loss: f64,
    /// Whether all frames go to the last exit.
    late: bool,
}

const GOOD: Habit = Habit {
    alive: true,
    answers: Some(2),
    refuses: false,
    gives_up: None,
    frames: 10,
    restarts: 0,
    dearer: 1.0,
    faults: 0,
    disagreements: 0,
    rollbacks: 0,
    loss: 0.001,
    late: false,
};

struct Fleet {
    rollout: Rollout,
    members: Vec<Member>,
    habits: Vec<Habit>,
    now: u64,
    generation: u64,
    /// How often each device was ordered and reverted.
    ordered: BTreeMap<String, (u32, u32)>,
    reason: String,
    gauges: Vec<Gauge>,
}

fn windows(frames: u64, habit: &Habit) -> Sums {
    let (first, last) = if habit.late {
        (0, frames)
    } else {
        (frames * 7 / 10, frames * 3 / 10)
    };
    Sums {
        run: Run {
            summaries: 1,
            frames,
            early: first,
            macs: (frames as f64 * 40.0 * habit.dearer) as u64,
            full_macs: frames * 100,
            audits: frames / 10,
            disagreements: habit.disagreements * frames / 1000,
        },
        rollbacks: habit.rollbacks,
        faults: habit.faults * frames / 1000,
        exits: vec![first, frames - first - last, last],
        saved: 0,
        loss: Some(Loss {
            estimate: habit.loss,
            doubt: 0.02,
        }),
    }
}

impl Fleet {
    fn new(plan: Plan, habits: Vec<Habit>) -> Self {
        let members = habits.iter().enumerate().map(|(number, habit)| Member {
            device: format!("cam-{number:03}"),
            state: MemberState::Waiting,
            why: None,
            wave: None,
            generation: 0,
            ordered_at: 0,
            was_alive: false,
            in_force_at: 0,
            boot: None,
            restarts: 0,
            before: Sums::default(),
            now: Observed {
                alive: habit.alive,
                boot: Some(BootId([1; 16])),
                ..Observed::default()
            },
        });
        Self {
            rollout: Rollout {
                kind: ArtifactKind::Policy,
                plan,
                state: State::Running,
                wave: 0,
                wave_since: 0,
            },
            members: members.collect(),
            habits,
            now: 0,
            generation: 7,
            ordered: BTreeMap::new(),
            reason: String::new(),
            gauges: vec![],
        }
    }

    /// A second goes by: devices do what they do, the machine takes a step, and its changes are made.
    fn tick(&mut self) {
        self.now += 1000;
        for (member, habit) in self.members.iter_mut().zip(&self.habits) {
            if member.wave.is_none() || !habit.alive || member.state == MemberState::Reverted {
                continue;
            }
            let since = (self.now - member.ordered_at) / 1000;
            let Some(answers) = habit.answers.filter(|after| since >= *after) else {
                continue;
            };
            if habit.refuses {
                member.now.refused = Some((member.generation, "too large".into()));
                continue;
            }
            member.now.reported = member.generation;
            member.now.by_desired = habit.gives_up.is_none_or(|after| since < answers + after);
            member.now.after.add(&windows(habit.frames, habit));
            if habit.restarts > 0 && since.is_multiple_of(habit.restarts) {
                member.now.boot = Some(BootId([since as u8; 16]));
            }
        }
        let (changes, gauges) = step(&self.rollout, &mut self.members, self.now);
        self.gauges = gauges;
        for change in changes {
            self.make(change);
        }
    }

    fn member(&mut self, device: &str) -> &mut Member {
        self.members.iter_mut().find(|m| m.device == device).unwrap()
    }

    fn make(&mut self, change: Change) {
        match change {
            Change::Order { device, wave } => {
                self.ordered.entry(device.clone()).or_default().0 += 1;
                self.generation += 1;
                let (now, generation) = (self.now, self.generation);
                let member = self.member(&device);
                assert_eq!(member.state, MemberState::Waiting);
                member.state = MemberState::Ordered;
                (member.wave, member.ordered_at, member.generation) = (Some(wave), now, generation);
                (member.was_alive, member.boot) = (member.now.alive, member.now.boot);
                member.before = windows(1000, &GOOD);
                member.now.named_since = generation;
            }
            Change::Settle { device, state, why } => {
                let now = self.now;
                let member = self.member(&device);
                (member.state, member.why) = (state, why);
                if state == MemberState::InForce {
                    member.in_force_at = now;
                }
            }
            // The machine has noted it in what it was given; the database does in its row.
            Change::Boot { .. } => {}
            Change::Revert { device } => {
                self.ordered.entry(device.clone()).or_default().1 += 1;
                self.member(&device).state = MemberState::Reverted;
            }
            Change::Wave(wave) => {
                (self.rollout.wave, self.rollout.wave_since) = (wave, self.now);
            }
            Change::Enter { state, reason } => {
                self.rollout.state = state;
                if !reason.is_empty() {
                    self.reason = reason;
                }
            }
        }
    }

    fn run(&mut self) -> State {
        for _ in 0..20_000 {
            self.tick();
            if !self.rollout.state.is_active() {
                break;
            }
        }
        self.rollout.state
    }

    fn out(&self) -> usize {
        self.members.iter().filter(|m| m.wave.is_some()).count()
    }

    fn count(&self, state: MemberState) -> usize {
        self.members.iter().filter(|m| m.state == state).count()
    }
}

fn plan() -> Plan {
    Plan {
        canary: 2,
        factor: 3.0,
        watch: 30,
        frames: 200,
        patience: 60,
        ..Plan::default()
    }
}

#[test]
fn a_good_policy_goes_out_in_waves_and_each_is_watched() {
    let mut fleet = Fleet::new(plan(), vec![GOOD; 40]);
    let mut reached = vec![];
    while fleet.rollout.state == State::Running {
        fleet.tick();
        if reached.last().is_none_or(|(out, _)| *out != fleet.out()) {
            reached.push((fleet.out(), fleet.now));
        }
    }
    let sizes: Vec<usize> = reached.iter().map(|(out, _)| *out).collect();
    assert_eq!(sizes, [2, 6, 18, 40]);
    for pair in reached.windows(2) {
        assert!(pair[1].1 - pair[0].1 >= 30_000, "a wave is watched: {reached:?}");
    }
    assert_eq!(
        (fleet.rollout.state, fleet.count(MemberState::Proven)),
        (State::Done, 40)
    );
    assert!(
        fleet.gauges.iter().all(|gauge| gauge.verdict == Verdict::Holds),
        "{:?}",
        fleet.gauges
    );
}

/// A rollout of a policy that is bad in one way ends at its canary, by the gate that is for it, and is rolled back.
fn stops(gate: &str, bad: Habit) {
    let mut fleet = Fleet::new(plan(), vec![bad; 20]);
    assert_eq!(fleet.run(), State::RolledBack, "{gate}: {}", fleet.reason);
    assert_eq!((fleet.out(), fleet.count(MemberState::Reverted)), (2, 2), "{gate}");
    assert!(
        fleet.reason.contains(&format!("wave 0: gate `{gate}`")),
        "{}",
        fleet.reason
    );
    // With the gate open, this one stops it not.
    let mut open = plan();
    let gates = &mut open.gates;
    let named = [
        ("failed", &mut gates.failed),
        ("cost", &mut gates.cost),
        ("exits", &mut gates.exits),
        ("disagreement", &mut gates.disagreement),
        ("loss", &mut gates.loss),
        ("faults", &mut gates.faults),
        ("rollbacks", &mut gates.rollbacks),
        ("restarts", &mut gates.restarts),
    ];
    for (name, bound) in named {
        if name == gate {
            *bound = None;
        }
    }
    let mut fleet = Fleet::new(open, vec![bad; 20]);
    assert_eq!(fleet.run(), State::Done, "{gate} is open: {}", fleet.reason);
    // And without rollback the devices keep it.
    let keep = Plan {
        roll_back: false,
        ..plan()
    };
    let mut fleet = Fleet::new(keep, vec![bad; 20]);
    assert_eq!(fleet.run(), State::Stopped);
    assert_eq!((fleet.out(), fleet.count(MemberState::Reverted)), (2, 0), "{gate}");
}

#[test]
fn every_gate_stops_its_own_harm_at_the_canary() {
    stops("failed", Habit { refuses: true, ..GOOD });
    stops("failed", Habit { answers: None, ..GOOD });
    stops(
        "failed",
        Habit {
            gives_up: Some(10),
            ..GOOD
        },
    );
    stops("failed", Habit { frames: 0, ..GOOD });
    stops("cost", Habit { dearer: 1.5, ..GOOD });
    stops(
        "exits",
        Habit {
            late: true,
            disagreements: 0,
            ..GOOD
        },
    );
    stops(
        "disagreement",
        Habit {
            disagreements: 100,
            ..GOOD
        },
    );
    stops("loss", Habit { loss: 0.05, ..GOOD });
    stops("faults", Habit { faults: 200, ..GOOD });
    stops("rollbacks", Habit { rollbacks: 1, ..GOOD });
    stops("restarts", Habit { restarts: 10, ..GOOD });
}

#[test]
fn gates_wait_for_enough_frames_and_enough_audits() {
    let gates = Gates::default();
    let habit = Habit { dearer: 3.0, ..GOOD };
    let wave = |frames: u64, habit: &Habit| super::gauge::Wave {
        devices: 1,
        before: windows(1000, &GOOD),
        after: windows(frames, habit),
        ..super::gauge::Wave::default()
    };
    let verdict = |gauges: Vec<Gauge>, name: &str| gauges.into_iter().find(|g| g.gate == name).unwrap().verdict;
    let cost = |frames| verdict(super::gauge::gauges(&gates, &wave(frames, &habit), 200), "cost");
    assert_eq!((cost(199), cost(200)), (Verdict::Unknown, Verdict::Fails));
    // One of ten audits is no proof; ten of a hundred are.
    let apart = Habit {
        disagreements: 10,
        ..GOOD
    };
    let differs = |frames| verdict(super::gauge::gauges(&gates, &wave(frames, &apart), 100), "disagreement");
    assert_eq!((differs(100), differs(1000)), (Verdict::Unknown, Verdict::Fails));
    // One device's estimate of a loss may be chance where that of four alike is none.
    let loses = |devices: u64| {
        let doubts = devices as f64 * 0.02_f64.powi(2);
        let wave = super::gauge::Wave {
            devices,
            loss: (devices as f64 * 0.035, doubts, devices),
            ..wave(1000, &GOOD)
        };
        verdict(super::gauge::gauges(&gates, &wave, 100), "loss")
    };
    assert_eq!((loses(1), loses(4)), (Verdict::Unknown, Verdict::Fails));
}

#[test]
fn who_is_gone_holds_nothing_up_and_is_not_the_canary() {
    let mut habits = vec![Habit { alive: false, ..GOOD }; 5];
    habits.extend([GOOD; 5]);
    let mut fleet = Fleet::new(plan(), habits);
    fleet.tick();
    let canaries: Vec<&str> = fleet
        .members
        .iter()
        .filter(|m| m.wave == Some(0))
        .map(|m| m.device.as_str())
        .collect();
    assert_eq!(canaries, ["cam-005", "cam-006"]);
    assert_eq!(fleet.run(), State::Done, "{}", fleet.reason);
    assert_eq!(
        (fleet.count(MemberState::Proven), fleet.count(MemberState::Ordered)),
        (5, 5)
    );
    assert!(fleet.reason.contains("5 were gone"), "{}", fleet.reason);
}

#[test]
fn a_rate_bounds_how_fast_a_wave_goes_out() {
    let slow = Plan {
        canary: 10,
        rate: 60,
        ..plan()
    };
    let mut fleet = Fleet::new(slow, vec![GOOD; 10]);
    for seconds in 1..=9 {
        fleet.tick();
        assert!(fleet.out() <= seconds + 1, "{} after {seconds} s", fleet.out());
    }
    assert_eq!(fleet.run(), State::Done);
}

#[test]
fn after_a_pause_no_more_go_out_in_a_minute_than_the_rate_allows() {
    let slow = Plan {
        canary: 50,
        rate: 10,
        ..plan()
    };
    let mut fleet = Fleet::new(slow, vec![GOOD; 50]);
    fleet.tick();
    fleet.rollout.state = State::Paused;
    (0..3600).for_each(|_| fleet.tick());
    assert_eq!(fleet.out(), 1);
    fleet.rollout.state = State::Running;
    let mut before = vec![fleet.out()];
    for second in 0..600 {
        fleet.tick();
        before.push(fleet.out());
        let minute_ago = before[before.len().saturating_sub(60)];
        assert!(fleet.out() - minute_ago <= 10, "{second}: {before:?}");
    }
    assert_eq!(fleet.run(), State::Done);
}

#[test]
fn a_fleet_that_is_gone_does_not_get_all_at_once_what_only_the_canary_has_run() {
    let mut fleet = Fleet::new(plan(), vec![GOOD; 100]);
    while fleet.count(MemberState::Proven) < 2 {
        fleet.tick();
    }
    let set = |fleet: &mut Fleet, alive: bool| {
        for (member, habit) in fleet.members.iter_mut().zip(&mut fleet.habits).skip(2) {
            (member.now.alive, habit.alive) = (alive, alive);
        }
    };
    set(&mut fleet, false);
    (0..5000).for_each(|_| fleet.tick());
    // Two judge a wave of six. Of eighteen that are out, four must be judged.
    assert_eq!((fleet.out(), fleet.rollout.state), (18, State::Running));
    assert_eq!(fleet.count(MemberState::Proven), 2);
    set(&mut fleet, true);
    assert_eq!(fleet.run(), State::Done, "{}", fleet.reason);
    assert_eq!(fleet.count(MemberState::Proven), 100);
}

#[test]
fn a_refusal_of_later_settings_is_none_of_what_is_rolled_out() {
    let refuses = |reported: bool| {
        let mut fleet = Fleet::new(plan(), vec![GOOD; 2]);
        while fleet.count(MemberState::InForce) < 2 {
            fleet.tick();
        }
        let member = &mut fleet.members[0];
        member.now.refused = Some((member.generation + 50, "a rate of 9".into()));
        if !reported {
            fleet.habits[0].answers = None;
            member.now.reported = 0;
        }
        fleet.run()
    };
    assert_eq!((refuses(true), refuses(false)), (State::Done, State::RolledBack));
}

#[test]
fn one_bad_device_of_many_does_not_stop_a_wave() {
    let mut habits = vec![GOOD; 60];
    habits[30] = Habit { refuses: true, ..GOOD };
    let mut fleet = Fleet::new(plan(), habits);
    assert_eq!(fleet.run(), State::Done, "{}", fleet.reason);
    assert_eq!(
        (fleet.count(MemberState::Proven), fleet.count(MemberState::Failed)),
        (59, 1)
    );
}

#[test]
fn devices_that_give_up_after_their_wave_has_passed_stop_the_next() {
    let late = Habit {
        gives_up: Some(40),
        ..GOOD
    };
    let mut habits = vec![GOOD; 20];
    habits[..2].fill(late);
    let mut fleet = Fleet::new(plan(), habits);
    assert_eq!(fleet.run(), State::RolledBack, "{}", fleet.reason);
    assert!(fleet.reason.contains("wave 1: gate `failed`"), "{}", fleet.reason);
    assert!(fleet.reason.contains("cam-000"), "{}", fleet.reason);
}

#[test]
fn while_it_is_paused_nothing_goes_out_but_a_failing_canary_is_still_taken_back() {
    let mut fleet = Fleet::new(plan(), vec![Habit { dearer: 2.0, ..GOOD }; 10]);
    fleet.tick();
    fleet.rollout.state = State::Paused;
    assert_eq!(fleet.run(), State::RolledBack);
    let mut fleet = Fleet::new(plan(), vec![GOOD; 10]);
    fleet.tick();
    fleet.rollout.state = State::Paused;
    (0..500).for_each(|_| fleet.tick());
    assert_eq!((fleet.out(), fleet.rollout.state), (2, State::Paused));
    fleet.rollout.state = State::Running;
    assert_eq!(fleet.run(), State::Done);
}

#[test]
fn a_device_that_was_given_something_else_is_let_go() {
    let mut fleet = Fleet::new(plan(), vec![GOOD; 6]);
    fleet.tick();
    fleet.members[0].now.named_since = 99;
    assert_eq!(fleet.run(), State::Done);
    assert_eq!(
        (fleet.count(MemberState::Superseded), fleet.count(MemberState::Proven)),
        (1, 5)
    );
}

fn habit() -> impl Strategy<Value = Habit> {
    let chance = |rare: f64| prop::bool::weighted(rare);
    (
        chance(0.9),
        chance(0.05),
        chance(0.05),
        chance(0.05),
        chance(0.05),
        0..4_u64,
    )
        .prop_map(|(alive, silent, refuses, gives_up, dear, delay)| Habit {
            alive,
            answers: (!silent).then_some(delay),
            refuses,
            gives_up: gives_up.then_some(delay * 20),
            dearer: if dear { 4.0 } else { 1.0 },
            ..GOOD
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_devices_do_it_ends_orders_nobody_twice_and_never_reaches_too_far(
        habits in proptest::collection::vec(habit(), 1..60),
        canary in 1..5_u32,
        factor in 1.1..6.0_f64,
        rate in prop_oneof![Just(0_u32), 1..600_u32],
        roll_back in any::<bool>(),
    ) {
        let plan = Plan { canary, factor, rate, roll_back, ..plan() };
        let all = habits.len();
        let mut fleet = Fleet::new(plan, habits);
        for _ in 0..20_000 {
            fleet.tick();
            prop_assert!(fleet.out() <= fleet.rollout.plan.reach(fleet.rollout.wave, all));
            if !fleet.rollout.state.is_active() {
                break;
            }
        }
        if fleet.rollout.state == State::Running {
            // Too few are there to judge it.
            let judged = fleet.count(MemberState::Proven) + fleet.count(MemberState::Failed);
            prop_assert!(5 * judged < fleet.out() && fleet.out() > judged);
            return Ok(());
        }
        prop_assert!(!fleet.rollout.state.is_active(), "{:?}", fleet.rollout.state);
        for (device, (ordered, reverted)) in &fleet.ordered {
            prop_assert!(*ordered == 1 && *reverted <= 1, "{device}");
        }
        match fleet.rollout.state {
            State::RolledBack => prop_assert_eq!(fleet.count(MemberState::Reverted), fleet.out()),
            State::Done => prop_assert_eq!(fleet.out(), all),
            state => prop_assert_eq!(state, State::Stopped),
        }
        prop_assert!(!fleet.reason.is_empty());
    }
}

#[test]
fn counts_beyond_all_measure_are_measured() {
    let most = Sums {
        exits: vec![u64::MAX, u64::MAX],
        ..windows(1000, &GOOD)
    };
    let mut all = most.clone();
    all.run.frames = u64::MAX;
    all.add(&all.clone());
    let wave = super::gauge::Wave {
        devices: 1,
        before: most,
        after: all,
        ..super::gauge::Wave::default()
    };
    assert!(!super::gauge::gauges(&Gates::default(), &wave, 1).is_empty());
}

#[test]
fn plans_have_defaults_and_bounds() {
    let plan: Plan = serde_json::from_str(r#"{"canary": 3, "gates": {"cost": null}}"#).unwrap();
    assert_eq!((plan.canary, plan.gates.cost, plan.gates.exits), (3, None, Some(0.3)));
    assert_eq!(plan.check(), Ok(()));
    assert!(serde_json::from_str::<Plan>(r#"{"canarys": 3}"#).is_err());
    for (bad, field) in [
        (r#"{"canary": 0}"#, "canary"),
        (r#"{"factor": 1.0}"#, "factor"),
        (r#"{"patience": 0}"#, "patience"),
        (r#"{"gates": {"exits": 1.5}}"#, "exits"),
        (r#"{"gates": {"restarts": -1}}"#, "restarts"),
    ] {
        let plan: Plan = serde_json::from_str(bad).unwrap();
        assert!(plan.check().unwrap_err().to_string().contains(field), "{bad}");
    }
}
