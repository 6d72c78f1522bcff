//! A started policy, by the short way where its component has one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use offramp_core::{ExitView, Outcome, Verdict};
use wasmtime::Store;
use wasmtime::component::{Component, Instance, InstancePre, Linker};

use crate::bindings::{guest, observer, parameters as lower, state};
use crate::direct::{Direct, Parts};
use crate::facts::{ModelFacts, Parameters};
use crate::fault::Fault;
use crate::host::{Guest, HANDED_OVER};
use crate::inspect::Inspection;
use crate::plan::{MODULE, Plan};

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
        let Some(mut plan) = plan else { return Ok(()) };
        // What it does not export is not asked of it.
        plan.observe = plan.observe.filter(|_| self.observer.is_some());
        if self.state.is_none() {
            (plan.save, plan.restore) = (None, None);
        }
        let wanted = (self.observer.is_some(), self.state.is_some(), self.state.is_some());
        if (plan.observe.is_some(), plan.save.is_some(), plan.restore.is_some()) != wanted {
            return Ok(());
        }
        let mut modules = Vec::new();
        for number in 0.. {
            let Some(module) = instance.get_module(&mut running, &*format!("{MODULE}{number}")) else {
                break;
            };
            modules.push(module);
        }
        let parts = Parts::new(&plan, |module| modules.get(module as usize).cloned());
        drop(running);
        let Some(parts) = parts else { return Ok(()) };
        match parts.start(&mut store()) {
            Ok(_) => self.parts = Some(parts),
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

    /// The place is given back after the store, whatever comes of it.
    pub(crate) fn start(&self, place: Place, mut store: Store<Guest>) -> wasmtime::Result<Running> {
        let functions = match &self.parts {
            Some(parts) => Functions::Direct(parts.start(&mut store)?),
            None => self.start_component(&mut store)?.1,
        };
        Ok(Running {
            store,
            functions,
            _place: place,
        })
    }
}

/// A place among the instances that there may be at a time; given back when it is dropped.
pub(crate) struct Place(Arc<AtomicU32>);

impl Place {
    /// One of so many, if one is free.
    pub(crate) fn of(taken: &Arc<AtomicU32>, most: u32) -> Option<Place> {
        let more = |taken: u32| (taken < most).then_some(taken + 1);
        taken.fetch_update(Ordering::Acquire, Ordering::Relaxed, more).ok()?;
        Some(Place(Arc::clone(taken)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

pub(crate) struct Running {
    pub(crate) store: Store<Guest>,
    functions: Functions,
    _place: Place,
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

    /// Nothing where it does not look back.
    pub(crate) fn observe(&mut self, outcome: &Outcome) -> wasmtime::Result<()> {
        match &self.functions {
            Functions::Direct(direct) => direct.observe(&mut self.store, outcome),
            Functions::Component { observer, .. } => match observer {
                Some(observer) => observer.call_observe(&mut self.store, outcome.into()),
                None => Ok(()),
            },
        }
    }

    /// Whether it can be asked for state, and given some.
    pub(crate) fn keeps_state(&self) -> bool {
        match &self.functions {
            Functions::Direct(direct) => direct.keeps_state(),
            Functions::Component { state, .. } => state.is_some(),
        }
    }

    /// What it saves, nothing where it keeps no state; `None` where that is longer than `limit` bytes. Its memory, of
    /// which it may hand over all, is capped.
    pub(crate) fn save(&mut self, limit: usize, memory: usize) -> wasmtime::Result<Option<Vec<u8>>> {
        match &self.functions {
            Functions::Direct(direct) => direct.save(&mut self.store, limit),
            Functions::Component { state: None, .. } => Ok(Some(Vec::new())),
            Functions::Component { state: Some(state), .. } => {
                self.store.set_hostcall_fuel(memory);
                let saved = state.call_save(&mut self.store);
                self.store.set_hostcall_fuel(HANDED_OVER);
                saved.map(|saved| Some(saved).filter(|saved| saved.len() <= limit))
            }
        }
    }

    /// An error where it [keeps no state](Self::keeps_state).
    pub(crate) fn restore(&mut self, saved: &[u8]) -> wasmtime::Result<Result<(), String>> {
        match &self.functions {
            Functions::Direct(direct) => direct.restore(&mut self.store, saved),
            Functions::Component { state, .. } => match state {
                Some(state) => state.call_restore(&mut self.store, saved),
                None => Err(wasmtime::Error::msg("the policy keeps no state")),
            },
        }
    }
}

#[cfg(test)]
mod tests;
