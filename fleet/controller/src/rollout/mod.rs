//! Rollouts: a policy goes out in waves, and stops by itself where it does harm.
//!
//! - [`Plan`]: how large the waves are, how long each is watched, and the gates that it must pass.
//! - [`gauge`]: what the gates measure, from what devices said before and after.
//! - [`step`]: the state machine, without I/O: from what is known to what is to be done.
//! - [`Conductor`]: the task that drives it. All state is in the database, and each step is one transaction there, so
//!   that a controller that is killed goes on where it was and does nothing twice.
//!
//! A device's way: `waiting` → `ordered` (its desired state names the policy) → `in-force` (it reports so) → `proven`
//! (it gave enough frames for long enough). A device `failed` when it refuses, gives the policy up, or is silent for too
//! long; one that was gone when it was ordered holds nothing up. Whoever is given another desired state meanwhile is
//! `superseded` and no longer the rollout's.

mod conductor;
mod gauge;
mod plan;
mod step;

pub(crate) use conductor::Conductor;
pub(crate) use gauge::{Foreseen, Gauge, Loss, Sums, Verdict, foreseen};
pub(crate) use plan::{Gates, Plan};
pub(crate) use step::{Change, Member, MemberState, Observed, Rollout, State, awaited};

#[cfg(test)]
mod tests;
