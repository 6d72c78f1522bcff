//! A started policy, by the short way where its component has one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use offramp_core::{ExitView, Outcome, Verdict};
use wasmtime::Store;
use wasmtime::component::{Component, Instance, InstancePre, Linker};

use crate::bindings::{guest, observer, parameters as lower, state};
use crate::direct::{Direct, Parts};
use crate::facts::{ModelFacts, Parameters};
use crate::fault::{Fault, TooMuchState};
use crate::host::{Guest, HANDED_OVER};
use crate::inspect::Inspection;
use crate::limits::Limits;
use crate::plan::{MODULE, Plan};
use crate::watchdog::Watchdog;

/// A component ready to be started, and where its functions are; those of optional interfaces only where it exports
/// them.
pub(crate) struct Shape {
    pre: InstancePre<Guest>,
    guest: guest::GuestIndices,
    observer: Option<observer::GuestIndices>,
    state: Option<state::GuestIndices>,
    /// Its core modules, where it is known how they go together.
    parts: Option<Parts>,
}

impl Shape {
    /// Holds a component against the contract.
    pub(crate) fn new(
        linker: &Linker<Guest>,
        component: &Component,
        inspection: &Inspection,
    ) -> wasmtime::Result<Shape> {
        let pre = linker.instantiate_pre(component)?;
        let observer = inspection.observes().then(|| observer::GuestIndices::new(&pre));
        let state = inspection.keeps_state().then(|| state::GuestIndices::new(&pre));
        Ok(Shape {
            guest: guest::GuestIndices::new(&pre)?,
            observer: observer.transpose()?,
            state: state.transpose()?,
            pre,
            parts: None,
        })
    }

    /// Starts it as the component that it is, which checks the types of what it exports, and then by a plan, which is the
    /// way from now on if it can be followed: its core functions must have the types that those come down to.
    pub(crate) fn try_out(&mut self, store: impl Fn() -> Store<Guest>, plan: Option<Plan>) -> wasmtime::Result<()> {
        let mut running = store();
        let (instance, _) = self.start_component(&mut running)?;
        let Some(plan) = plan else { return Ok(()) };
        // What is lifted is what is exported.
        let (observes, keeps_state) = (self.observer.is_some(), self.state.is_some());
        let lifted = [&plan.save, &plan.restore].map(Option::is_some);
        if plan.observe.is_some() != observes || lifted != [keeps_state; 2] {
            return Ok(());
        }
        let parts = Parts::new(&plan, |module| {
            instance.get_module(&mut running, &*format!("{MODULE}{module}"))
        });
        drop(running);
        match parts.and_then(|parts| parts.start(&mut store()).map(|_| parts)) {
            Ok(parts) => self.parts = Some(parts),
            // Not the component's fault, and so nothing to remember of it.
            Err(error) if Fault::of(&error) == Fault::Deadline || error.is::<wasmtime::PoolConcurrencyLimitError>() => {
                return Err(error);
            }
            Err(error) => tracing::debug!("no short way to a policy: {error:#}"),
        }
        Ok(())
    }

    /// Whether it has the short way.
    #[cfg(test)]
    pub(crate) fn is_direct(&self) -> bool {
        self.parts.is_some()
    }

    fn start_component(&self, store: &mut Store<Guest>) -> wasmtime::Result<(Instance, Functions)> {
        let instance = self.pre.instantiate(&mut *store)?;
        let observer = self.observer.as_ref().map(|it| it.load(&mut *store, &instance));
        let state = self.state.as_ref().map(|it| it.load(&mut *store, &instance));
        let functions = Functions::Component {
            guest: self.guest.load(&mut *store, &instance)?,
            observer: observer.transpose()?,
            state: state.transpose()?,
        };
        Ok((instance, functions))
    }

    /// The permit is given back after the store, whatever comes of it.
    pub(crate) fn start(&self, permit: Permit, mut store: Store<Guest>) -> wasmtime::Result<Running> {
        let functions = match &self.parts {
            Some(parts) => Functions::Direct(parts.start(&mut store)?),
            None => self.start_component(&mut store)?.1,
        };
        Ok(Running {
            store,
            functions,
            _permit: permit,
        })
    }
}

/// One of the instances that there may be at a time, until it is dropped.
pub(crate) struct Permit(Arc<AtomicU32>);

impl Permit {
    /// One of so many, if not all are taken.
    pub(crate) fn of(taken: &Arc<AtomicU32>, most: u32) -> Option<Permit> {
        let more = |taken: u32| (taken < most).then_some(taken + 1);
        taken.fetch_update(Ordering::Acquire, Ordering::Relaxed, more).ok()?;
        Some(Permit(Arc::clone(taken)))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

pub(crate) struct Running {
    pub(crate) store: Store<Guest>,
    functions: Functions,
    _permit: Permit,
}

#[expect(clippy::large_enum_variant, reason = "the large one is the usual one")]
enum Functions {
    Direct(Direct),
    Component {
        guest: guest::Guest,
        observer: Option<observer::Guest>,
        state: Option<state::Guest>,
    },
}

impl Running {
    pub(crate) fn configure(
        &mut self,
        model: &ModelFacts,
        parameters: &Parameters,
    ) -> wasmtime::Result<Result<(), String>> {
        match &self.functions {
            Functions::Direct(direct) => direct.configure(&mut self.store, model, parameters),
            Functions::Component { guest, .. } => {
                guest.call_configure(&mut self.store, &model.into(), &lower(parameters))
            }
        }
    }

    #[inline]
    pub(crate) fn decide(&mut self, view: &ExitView) -> wasmtime::Result<Verdict> {
        match &self.functions {
            Functions::Direct(direct) => direct.decide(&mut self.store, view),
            Functions::Component { guest, .. } => guest.call_decide(&mut self.store, view.into()).map(Into::into),
        }
    }

    /// Whether it looks back.
    pub(crate) fn observes(&self) -> bool {
        match &self.functions {
            Functions::Direct(direct) => direct.observes(),
            Functions::Component { observer, .. } => observer.is_some(),
        }
    }

    /// `None` where it does not look back.
    pub(crate) fn observe(&mut self, outcome: &Outcome) -> Option<wasmtime::Result<()>> {
        let store = &mut self.store;
        match &self.functions {
            Functions::Direct(direct) => direct.observe(store, outcome),
            Functions::Component { observer, .. } => {
                let observer = observer.as_ref()?;
                Some(observer.call_observe(store, outcome.into()))
            }
        }
    }

    /// What it saves, of which too much is [`TooMuchState`]; `None` where it keeps no state.
    pub(crate) fn save(&mut self, limits: &Limits) -> Option<wasmtime::Result<Vec<u8>>> {
        let (store, limit) = (&mut self.store, limits.state_bytes);
        match &self.functions {
            Functions::Direct(direct) => direct.save(store, limit),
            Functions::Component { state, .. } => {
                let state = state.as_ref()?;
                // What it gives lies in its memory, which is capped; so it can be told apart by its length.
                store.set_hostcall_fuel(limits.memory_bytes);
                let saved = state.call_save(&mut *store);
                store.set_hostcall_fuel(HANDED_OVER);
                Some(saved.and_then(|saved| match saved.len() > limit {
                    true => Err(wasmtime::Error::new(TooMuchState)),
                    false => Ok(saved),
                }))
            }
        }
    }

    /// `None` where it keeps no state.
    pub(crate) fn restore(&mut self, saved: &[u8]) -> Option<wasmtime::Result<Result<(), String>>> {
        let store = &mut self.store;
        match &self.functions {
            Functions::Direct(direct) => direct.restore(store, saved),
            Functions::Component { state, .. } => {
                let state = state.as_ref()?;
                Some(state.call_restore(store, saved))
            }
        }
    }

    /// Fuel and time for a call.
    #[inline]
    pub(crate) fn grant(&mut self, fuel: u64) {
        grant(&mut self.store, fuel);
    }
}

/// Fuel and time for a call.
#[inline]
pub(crate) fn grant(store: &mut Store<Guest>, fuel: u64) {
    store.set_fuel(fuel).expect("the engine meters fuel");
    store.set_epoch_deadline(Watchdog::GRANTED);
}

#[cfg(test)]
mod tests;
