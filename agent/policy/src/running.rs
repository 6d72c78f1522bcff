//! A started policy, by the short way where its component has one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use offramp_core::{ExitView, Outcome, Verdict};
use wasmtime::Store;
use wasmtime::component::{Component, Instance, InstancePre, Linker};

use crate::bindings::{guest, observer, parameters as lower, state};
use crate::direct::{Direct, Parts};
use crate::facts::{ModelFacts, Parameters};
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

    /// Starts it as the component that it is, which checks the types of its functions, and then by a plan, which is the
    /// way from now on if it can be followed.
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
        let parts = Parts::new(plan, |module| modules.get(module as usize).cloned());
        drop(running);
        self.parts = parts.filter(|parts| parts.start(&mut store()).is_ok());
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

    pub(crate) fn start(&self, mut store: Store<Guest>, place: Place) -> wasmtime::Result<Running> {
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
        taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Place(Arc::clone(taken)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(crate) struct Running {
    pub(crate) store: Store<Guest>,
    functions: Functions,
    _place: Place,
}

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
mod tests {
    use offramp_core::{AuditResult, SplitMix64};

    use super::*;
    use crate::host::PolicyHost;
    use crate::limits::Limits;
    use crate::{ConfigureError, Instance, RestoreError, Value};

    const SHIPPED: [(&str, &[u8]); 8] = [
        ("threshold", include_bytes!("../../../plugins/prebuilt/threshold.wasm")),
        ("entropy", include_bytes!("../../../plugins/prebuilt/entropy.wasm")),
        ("patience", include_bytes!("../../../plugins/prebuilt/patience.wasm")),
        ("temporal", include_bytes!("../../../plugins/prebuilt/temporal.wasm")),
        ("budget", include_bytes!("../../../plugins/prebuilt/budget.wasm")),
        ("deadline", include_bytes!("../../../plugins/prebuilt/deadline.wasm")),
        ("threshold 1.0", include_bytes!("../tests/frozen/threshold-1.0.0.wasm")),
        ("patience 1.0", include_bytes!("../tests/frozen/patience-1.0.0.wasm")),
    ];

    fn model() -> ModelFacts {
        ModelFacts {
            classes: 10,
            exit_costs: vec![0.1, 0.4, 0.7, 1.0],
        }
    }

    /// The same policy by the short way and as the component that it is.
    fn both(file: &[u8]) -> [crate::Policy; 2] {
        let host = || PolicyHost::new(Limits::default()).unwrap();
        let (direct, component) = (host().load(file), host().load_by(file, |_| None));
        let both = [direct.unwrap(), component.unwrap()];
        assert_eq!(both.each_ref().map(|policy| policy.shape().is_direct()), [true, false]);
        both
    }

    /// Some frames, the same for the same seed: what is decided about them, and the fuel that it takes.
    fn frames(instance: &mut Instance, seed: u64) -> Vec<(Verdict, u64)> {
        let mut random = SplitMix64(seed);
        let mut number = move || (random.next() >> 40) as f32 / 16_777_216.0;
        let mut told = Vec::new();
        for frame in 0..300_u32 {
            let class = (number() * 10.0) as u32;
            for exit in 0..3 {
                let view = ExitView {
                    exit,
                    exits: 4,
                    class,
                    confidence: number(),
                    margin: number(),
                    entropy: number(),
                    agreement: number() > 0.5,
                    change: if frame % 7 == 0 { f32::NAN } else { number() },
                    cost: 0.2 * exit as f32,
                    next_cost: 0.3,
                    time_left: 100.0 * number() - 10.0,
                    queue_depth: frame % 3,
                    temperature: 20.0 + 80.0 * number(),
                    power_budget: f32::NAN,
                    battery: number(),
                    threshold: number(),
                };
                let verdict = instance.decide(&view).unwrap();
                told.push((verdict, instance.fuel()));
            }
            let outcome = Outcome {
                exit: frame % 4,
                class,
                confidence: number(),
                cost: number(),
                latency: 10.0 * number(),
                interval: 30.0,
                energy: number(),
                temperature: 100.0 * number(),
                hurried: number() > 0.9,
                fault: false,
                audit: [AuditResult::None, AuditResult::Agreed, AuditResult::Differed][frame as usize % 3],
            };
            instance.observe(&outcome).unwrap();
        }
        told
    }

    #[test]
    fn both_ways_decide_the_same_with_the_same_fuel_and_save_the_same() {
        for (name, file) in SHIPPED {
            let told = both(file).map(|policy| {
                let mut instance = policy.configure(&model(), &Parameters::default()).unwrap();
                let first = frames(&mut instance, 1);
                let saved = instance.save().unwrap();
                let mut next = policy.configure(&model(), &Parameters::default()).unwrap();
                let restored = saved.as_ref().map(|saved| next.restore(saved));
                (first, saved, restored, frames(&mut next, 2))
            });
            assert_eq!(told[0], told[1], "{name}");
            assert!(
                told[0].0.iter().any(|(verdict, _)| *verdict != told[0].0[0].0),
                "{name}"
            );
        }
    }

    #[test]
    fn both_ways_take_parameters_of_every_kind_and_pass_on_why_some_are_refused() {
        let parameters = |list: Vec<(&str, Value)>| Parameters::new(list).unwrap();
        let (_, threshold) = SHIPPED[0];
        let good = parameters(vec![
            ("threshold", Value::Number(0.25)),
            ("threshold.1", Value::Number(0.75)),
            ("threshold.class.3", Value::Number(1.0)),
        ]);
        let told = both(threshold).map(|policy| frames(&mut policy.configure(&model(), &good).unwrap(), 3));
        assert_eq!(told[0], told[1]);
        for bad in [
            ("threshold", Value::Text("grün".into())),
            ("threshold", Value::Flag(true)),
            ("threshold", Value::Number(-1.5)),
            ("wrong", Value::Integer(i64::MIN)),
        ] {
            let reasons = both(threshold).map(|policy| {
                let refused = policy.configure(&model(), &parameters(vec![bad.clone()]));
                match refused.map(drop) {
                    Err(ConfigureError::Refused { reason }) => reason,
                    other => panic!("{bad:?}: {other:?}"),
                }
            });
            assert_eq!(reasons[0], reasons[1]);
        }
        let refused = both(SHIPPED[3].1).map(|policy| {
            let mut instance = policy.configure(&model(), &Parameters::default()).unwrap();
            instance.restore(b"of another policy")
        });
        assert!(matches!(refused[0], Err(RestoreError::Refused { .. })), "{refused:?}");
        assert_eq!(refused[0], refused[1]);
    }
}
