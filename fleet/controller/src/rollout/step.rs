use offramp_proto::BootId;

use super::gauge::{Gauge, Sums, Verdict, Wave, gauges};
use super::plan::Plan;
use crate::overview::share;
use crate::store::ArtifactKind;

/// Where a rollout stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Waves go out.
    Running,
    /// No wave goes out until somebody resumes it. Its gates still watch.
    Paused,
    /// Devices get back what they had.
    RollingBack,
    /// They all have been told to.
    RolledBack,
    /// A gate has failed; devices keep what they have.
    Stopped,
    /// Somebody has ended it; devices keep what they have.
    Aborted,
    /// Every device has the policy, and the last wave has passed.
    Done,
}

impl State {
    pub(crate) const ALL: [(Self, &'static str); 7] = [
        (Self::Running, "running"),
        (Self::Paused, "paused"),
        (Self::RollingBack, "rolling-back"),
        (Self::RolledBack, "rolled-back"),
        (Self::Stopped, "stopped"),
        (Self::Aborted, "aborted"),
        (Self::Done, "done"),
    ];

    /// Whether there is anything left for the controller to do.
    pub(crate) fn is_active(self) -> bool {
        matches!(self, Self::Running | Self::Paused | Self::RollingBack)
    }
}

/// How far a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum MemberState {
    /// Its turn has not come.
    Waiting,
    /// Its desired state names the policy.
    Ordered,
    /// It reports that the policy decides, or the model runs.
    InForce,
    /// It has given enough frames for long enough.
    Proven,
    /// It refused, gave the policy up, or was silent for too long.
    Failed,
    /// Its desired state is another one by now, and not of this rollout.
    Superseded,
    /// It was given back what it had.
    Reverted,
}

impl MemberState {
    pub(crate) const ALL: [(Self, &'static str); 7] = [
        (Self::Waiting, "waiting"),
        (Self::Ordered, "ordered"),
        (Self::InForce, "in-force"),
        (Self::Proven, "proven"),
        (Self::Failed, "failed"),
        (Self::Superseded, "superseded"),
        (Self::Reverted, "reverted"),
    ];
}

/// A rollout as it stands.
#[derive(Clone, Debug)]
pub(crate) struct Rollout {
    pub(crate) kind: ArtifactKind,
    pub(crate) plan: Plan,
    pub(crate) state: State,
    /// The wave that is out, and since when, in milliseconds since 1970.
    pub(crate) wave: u32,
    pub(crate) wave_since: u64,
}

/// A device of a rollout.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) device: String,
    pub(crate) state: MemberState,
    /// Why it failed.
    pub(crate) why: Option<String>,
    pub(crate) wave: Option<u32>,
    pub(crate) generation: u64,
    pub(crate) ordered_at: u64,
    pub(crate) was_alive: bool,
    pub(crate) in_force_at: u64,
    pub(crate) boot: Option<BootId>,
    pub(crate) restarts: u64,
    pub(crate) before: Sums,
    /// What is known of it now.
    pub(crate) now: Observed,
}

/// What is known of a device.
#[derive(Clone, Debug, Default)]
pub(crate) struct Observed {
    pub(crate) alive: bool,
    pub(crate) boot: Option<BootId>,
    /// The generation since which its desired state names the policy, or the model, that it names: other settings and
    /// keys change nothing of it.
    pub(crate) named_since: u64,
    /// The generation that it reports, and whether the desired policy decides there.
    pub(crate) reported: u64,
    pub(crate) by_desired: bool,
    /// What it refuses, and why.
    pub(crate) refused: Option<(u64, String)>,
    /// What its windows said since it got the policy.
    pub(crate) after: Sums,
}

/// What is to be done. Changes of a step belong together.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Change {
    /// Give the policy to a device, in this wave.
    Order { device: String, wave: u32 },
    /// A device has come to another state, for this reason where it failed.
    Settle {
        device: String,
        state: MemberState,
        why: Option<String>,
    },
    /// A device runs under another boot than before; a restart where it had one before.
    Boot {
        device: String,
        boot: BootId,
        restart: bool,
    },
    /// Give a device back what it had.
    Revert { device: String },
    /// The next wave begins.
    Wave(u32),
    /// The rollout comes to another state.
    Enter { state: State, reason: String },
}

/// Devices that are ordered or reverted in one step, at most: the database's writer has other work, too.
const BATCH: usize = 500;
/// Of so many devices that are out one must have been judged, proven or failed, before more go out.
const JUDGED: u64 = 5;

/// What is to be done now, and what the gates of the wave say.
pub(crate) fn step(rollout: &Rollout, members: &mut [Member], now: u64) -> (Vec<Change>, Vec<Gauge>) {
    let mut changes = Vec::new();
    for member in members.iter_mut() {
        watch(&rollout.plan, member, now, &mut changes);
    }
    let gauges = measure(rollout, members);
    match rollout.state {
        State::RollingBack => revert(members, &mut changes),
        State::Running | State::Paused => {
            if let Some(reason) = failure(rollout, members, &gauges) {
                let state = match rollout.plan.roll_back {
                    true => State::RollingBack,
                    false => State::Stopped,
                };
                changes.push(Change::Enter { state, reason });
            } else if rollout.state == State::Running {
                advance(rollout, members, now, &mut changes);
            }
        }
        State::RolledBack | State::Stopped | State::Aborted | State::Done => {}
    }
    (changes, gauges)
}

/// Follows one device that has been ordered.
fn watch(plan: &Plan, member: &mut Member, now: u64, changes: &mut Vec<Change>) {
    use MemberState::{Failed, InForce, Ordered, Proven, Superseded};
    if !matches!(member.state, Ordered | InForce | Proven) {
        return;
    }
    if let Some(boot) = member.now.boot
        && member.boot != Some(boot)
    {
        let restart = member.boot.is_some();
        member.boot = Some(boot);
        member.restarts += u64::from(restart);
        let device = member.device.clone();
        changes.push(Change::Boot { device, boot, restart });
    }
    let seen = &member.now;
    let patience = plan.patience * 1000;
    let in_force = seen.reported >= member.generation && seen.by_desired;
    let mut why = None;
    // Of a later generation it may be the settings that it refuses, and what is rolled out decides.
    let refuses = |generation: u64| generation == member.generation || generation > member.generation && !in_force;
    let next = if seen.named_since > member.generation {
        Superseded
    } else if let Some((_, reason)) = seen.refused.as_ref().filter(|(generation, _)| refuses(*generation)) {
        why = Some(reason.clone());
        Failed
    } else if seen.reported >= member.generation && !seen.by_desired {
        why = Some("it gave the policy up after faults".into());
        Failed
    } else {
        match member.state {
            Ordered if in_force => InForce,
            // Whoever was gone holds nothing up: what it should run waits for it at the broker.
            Ordered if member.was_alive && now.saturating_sub(member.ordered_at) > patience => {
                why = Some(format!("it did not answer within {} s", plan.patience));
                Failed
            }
            InForce => {
                let watched = now.saturating_sub(member.in_force_at);
                if watched >= plan.watch * 1000 && seen.after.run.frames >= plan.frames {
                    Proven
                } else if watched > plan.watch * 1000 + patience {
                    why = Some(format!(
                        "it gave {} frames of {} within {} s",
                        seen.after.run.frames,
                        plan.frames,
                        plan.watch + plan.patience
                    ));
                    Failed
                } else {
                    InForce
                }
            }
            state => state,
        }
    };
    if next == member.state {
        return;
    }
    member.state = next;
    if next == InForce {
        member.in_force_at = now;
    }
    changes.push(Change::Settle {
        device: member.device.clone(),
        state: next,
        why,
    });
}

/// What the gates say of the wave that is out.
fn measure(rollout: &Rollout, members: &[Member]) -> Vec<Gauge> {
    let reach = |wave: u32| rollout.plan.reach(wave, members.len()) as u64;
    let failed = members.iter().filter(|m| m.state == MemberState::Failed).count() as u64;
    let mut wave = Wave {
        other_model: rollout.kind == ArtifactKind::Model,
        failed_overall: share(failed, reach(rollout.wave)),
        planned: reach(rollout.wave) - rollout.wave.checked_sub(1).map_or(0, reach),
        ..Wave::default()
    };
    for member in members.iter().filter(|m| m.wave == Some(rollout.wave)) {
        let counts = match member.state {
            MemberState::Waiting | MemberState::Superseded => false,
            MemberState::Ordered => member.was_alive,
            _ => true,
        };
        if !counts {
            continue;
        }
        wave.devices += 1;
        wave.failed += u64::from(member.state == MemberState::Failed);
        wave.restarts += member.restarts;
        let after = &member.now.after;
        if after.run.frames > 0 {
            wave.before.add(&member.before);
            wave.after.add(after);
        }
        if let Some(loss) = after.loss {
            let (sum, doubts, telling) = wave.loss;
            wave.loss = (sum + loss.estimate, doubts + loss.doubt.powi(2), telling + 1);
        }
    }
    gauges(&rollout.plan.gates, &wave, rollout.plan.frames)
}

/// Why the rollout has to stop.
fn failure(rollout: &Rollout, members: &[Member], gauges: &[Gauge]) -> Option<String> {
    let shut = gauges.iter().find(|gauge| gauge.verdict == Verdict::Fails)?;
    let reason = format!(
        "wave {}: gate `{}` is at {:.4}, and its bound is {}",
        rollout.wave,
        shut.gate,
        shut.value.unwrap_or(f64::NAN),
        shut.bound
    );
    if shut.gate != "failed" {
        return Some(reason);
    }
    let failed = members.iter().filter(|m| m.state == MemberState::Failed);
    let names: Vec<&str> = failed.take(5).map(|m| m.device.as_str()).collect();
    Some(format!("{reason} ({})", names.join(", ")))
}

/// Devices that may be ordered now.
fn allowance(rollout: &Rollout, members: &[Member], now: u64) -> usize {
    const MINUTE: u64 = 60_000;
    let rate = match rollout.plan.rate {
        0 => return usize::MAX,
        rate => rate as usize,
    };
    // Evenly over the minute; and what was missed, while it was paused or no controller ran, is not made up for.
    let minutes = now.saturating_sub(rollout.wave_since) as f64 / MINUTE as f64;
    let due = (minutes * rate as f64) as usize + 1;
    let in_wave = members.iter().filter(|m| m.wave == Some(rollout.wave)).count();
    let lately = |m: &&Member| m.wave.is_some() && m.ordered_at > now.saturating_sub(MINUTE);
    let in_minute = members.iter().filter(lately).count();
    due.saturating_sub(in_wave).min(rate.saturating_sub(in_minute))
}

/// How many devices must still be judged before more go out. Whoever is gone holds nothing up; but a fleet of which
/// nearly all are gone would have waiting, all at once, what hardly more than the canary has run.
pub(crate) fn awaited(out: u64, judged: u64) -> u64 {
    out.div_ceil(JUDGED).saturating_sub(judged)
}

/// Sends the wave out as far as the rate allows; once it has passed, the next one.
fn advance(rollout: &Rollout, members: &mut [Member], now: u64, changes: &mut Vec<Change>) {
    let is_of_it = |m: &Member| !matches!(m.state, MemberState::Waiting | MemberState::Superseded);
    let superseded = members.iter().filter(|m| m.state == MemberState::Superseded).count();
    let all = members.len() - superseded;
    let reach = rollout.plan.reach(rollout.wave, all);
    let out = members.iter().filter(|m| is_of_it(m)).count();
    if out < reach {
        let count = (reach - out).min(allowance(rollout, members, now)).min(BATCH);
        // Those first that are alive: a canary that is not there tells nothing. Then as they come, which is at random.
        let mut waiting: Vec<&Member> = members.iter().filter(|m| m.state == MemberState::Waiting).collect();
        waiting.sort_by_key(|member| !member.now.alive);
        changes.extend(waiting.into_iter().take(count).map(|member| Change::Order {
            device: member.device.clone(),
            wave: rollout.wave,
        }));
        return;
    }
    let is_settled = |m: &Member| match m.state {
        MemberState::Ordered => !m.was_alive,
        MemberState::InForce => !m.now.alive && !m.was_alive,
        _ => true,
    };
    let settled = members.iter().filter(|m| m.wave == Some(rollout.wave)).all(is_settled);
    let count = |state| members.iter().filter(|m| m.state == state).count();
    let judged = count(MemberState::Proven) + count(MemberState::Failed);
    if !settled || awaited(out as u64, judged as u64) > 0 {
        return;
    }
    if out < all {
        changes.push(Change::Wave(rollout.wave + 1));
        return;
    }
    let mut reason = format!("{} of {} devices proved it", count(MemberState::Proven), members.len());
    for (state, what) in [
        (MemberState::Ordered, "were gone and have it waiting"),
        (MemberState::Failed, "failed"),
        (MemberState::Superseded, "were given something else"),
    ] {
        if count(state) > 0 {
            reason.push_str(&format!("; {} {what}", count(state)));
        }
    }
    changes.push(Change::Enter {
        state: State::Done,
        reason,
    });
}

/// Gives devices back what they had.
fn revert(members: &[Member], changes: &mut Vec<Change>) {
    use MemberState::{Failed, InForce, Ordered, Proven};
    let have_it = members
        .iter()
        .filter(|m| matches!(m.state, Ordered | InForce | Proven | Failed));
    let reverts: Vec<Change> = have_it
        .map(|m| Change::Revert {
            device: m.device.clone(),
        })
        .collect();
    let left = reverts.len();
    changes.extend(reverts.into_iter().take(BATCH));
    if left <= BATCH {
        changes.push(Change::Enter {
            state: State::RolledBack,
            reason: String::new(),
        });
    }
}
