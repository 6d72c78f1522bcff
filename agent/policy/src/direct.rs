//! A policy's core modules, called without the layer of the component model.
//!
//! A call through wasmtime's component layer runs some 2,000 instructions of the host, of which between two frames most
//! have to be fetched from far away; a call of the core function behind it takes a quarter of the time. What the layer does for the few
//! types of the contract is done here as the component model's canonical ABI says: numbers cross as they are, lists and
//! texts through memory that the guest's `realloc` gives, and every place and length that a guest names is checked, in
//! the same order and with the same faults. While it gives memory, or tidies up after a call, a guest must not call the host.

use offramp_core::{AuditResult, ExitView, Outcome, Verdict};
use wasmtime::{
    Caller, Extern, Func, Instance, Memory, Module, ModuleExport, Store, Trap, TypedFunc, ValRaw, WasmParams,
    WasmResults,
};

use crate::facts::{ModelFacts, Parameters, Value};
use crate::fault::TooMuchState;
use crate::host::{Guest, HANDED_OVER, Level};
use crate::plan::{Export, ITEMS, Lift, Plan, Source};

/// [`ExitView`], field by field.
type View = (
    u32,
    u32,
    u32,
    f32,
    f32,
    f32,
    u32,
    f32,
    f32,
    f32,
    f32,
    u32,
    f32,
    f32,
    f32,
    f32,
);
/// [`Outcome`], field by field.
type Told = (u32, u32, f32, f32, f32, f32, f32, f32, u32, u32, u32);

/// A guest gave what the contract does not have.
fn broken(what: &'static str) -> wasmtime::Error {
    wasmtime::Error::msg(what)
}

/// Modules and what each imports, ready to be instantiated.
pub(crate) struct Parts {
    steps: Vec<(Module, Vec<Link>)>,
    memory: Place,
    realloc: Place,
    configure: Ends,
    decide: Place,
    observe: Option<Place>,
    save: Option<Ends>,
    restore: Option<Ends>,
}

/// An export, found already: which instance's, and where.
type Place = (usize, ModuleExport);

/// A function, and what is called once its results were read.
type Ends = (Place, Option<Place>);

enum Link {
    Export(Place),
    Log,
}

impl Parts {
    /// Puts compiled modules in the places that a plan has for them.
    pub(crate) fn new(plan: &Plan, module: impl FnMut(u32) -> Option<Module>) -> wasmtime::Result<Parts> {
        let absent = || broken("the plan has what no module has");
        let numbers = plan.instances.iter().map(|(number, _)| *number);
        let modules: Vec<Module> = numbers.map(module).collect::<Option<_>>().ok_or_else(absent)?;
        let place = |export: &Export| {
            let found = modules
                .get(export.instance)
                .and_then(|of| of.get_export_index(&export.name));
            found.map(|found| (export.instance, found)).ok_or_else(absent)
        };
        let ends = |lift: &Lift| -> wasmtime::Result<Ends> {
            let after = lift.post_return.as_ref().map(place).transpose()?;
            Ok((place(&lift.function)?, after))
        };
        let mut steps = Vec::new();
        for (module, (_, given)) in modules.iter().zip(&plan.instances) {
            if module.imports().len() > ITEMS {
                return Err(broken("a module imports very much"));
            }
            let imports = module.imports().map(|import| {
                let given = given.iter().find(|(name, _)| name == import.module());
                match given.and_then(|(_, given)| given.get(import.name())) {
                    Some(Source::Export(export)) => place(&export).map(Link::Export),
                    Some(Source::Log) => Ok(Link::Log),
                    None => Err(absent()),
                }
            });
            steps.push((module.clone(), imports.collect::<wasmtime::Result<_>>()?));
        }
        Ok(Parts {
            steps,
            memory: place(&plan.memory)?,
            realloc: place(&plan.realloc)?,
            configure: ends(&plan.configure)?,
            decide: place(&plan.decide)?,
            observe: plan.observe.as_ref().map(place).transpose()?,
            save: plan.save.as_ref().map(ends).transpose()?,
            restore: plan.restore.as_ref().map(ends).transpose()?,
        })
    }

    /// Instantiates the modules, which runs their start functions.
    pub(crate) fn start(&self, store: &mut Store<Guest>) -> wasmtime::Result<Direct> {
        let mut made = Made(Vec::with_capacity(self.steps.len()));
        let mut log = None;
        for (module, links) in &self.steps {
            let mut imports: Vec<Extern> = Vec::with_capacity(links.len());
            for link in links {
                imports.push(match link {
                    Link::Log => (*log.get_or_insert_with(|| Func::wrap(&mut *store, log_of))).into(),
                    Link::Export(place) => made.get(store, place)?,
                });
            }
            made.0.push(Instance::new(&mut *store, module, &imports)?);
            if self.memory.0 + 1 == made.0.len() {
                let memory = made.memory(store, &self.memory)?;
                store.data_mut().memory = Some(memory);
            }
        }
        Ok(Direct {
            decide: *made.function::<View, u32>(store, &self.decide)?.func(),
            observe: self
                .observe
                .as_ref()
                .map(|place| made.function(store, place))
                .transpose()?,
            configure: made.lifted(store, &self.configure)?,
            save: self.save.as_ref().map(|ends| made.lifted(store, ends)).transpose()?,
            restore: self.restore.as_ref().map(|ends| made.lifted(store, ends)).transpose()?,
            memory: made.memory(store, &self.memory)?,
            realloc: made.function(store, &self.realloc)?,
        })
    }
}

/// Instances made so far.
struct Made(Vec<Instance>);

impl Made {
    fn get(&self, store: &mut Store<Guest>, (instance, export): &Place) -> wasmtime::Result<Extern> {
        let instance = self.0.get(*instance);
        let found = instance.and_then(|instance| instance.get_module_export(&mut *store, export));
        found.ok_or_else(|| broken("a module imports what no other exports"))
    }

    fn memory(&self, store: &mut Store<Guest>, place: &Place) -> wasmtime::Result<Memory> {
        let memory = self.get(store, place)?.into_memory();
        memory.ok_or_else(|| broken("the memory is none"))
    }

    fn function<P: WasmParams, R: WasmResults>(
        &self,
        store: &mut Store<Guest>,
        place: &Place,
    ) -> wasmtime::Result<TypedFunc<P, R>> {
        let function = self.get(store, place)?.into_func();
        let function = function.ok_or_else(|| broken("a function is none"))?;
        function.typed(&*store)
    }

    fn lifted<P: WasmParams>(&self, store: &mut Store<Guest>, (place, after): &Ends) -> wasmtime::Result<Lifted<P>> {
        Ok(Lifted {
            function: self.function(store, place)?,
            after: after.as_ref().map(|place| self.function(store, place)).transpose()?,
        })
    }
}

/// A function that gives the place of its results, and what is called once these were read.
struct Lifted<P> {
    function: TypedFunc<P, u32>,
    after: Option<TypedFunc<u32, ()>>,
}

/// The functions of a started policy.
pub(crate) struct Direct {
    /// Takes a [`View`] and gives a number.
    decide: Func,
    observe: Option<TypedFunc<Told, ()>>,
    configure: Lifted<(u32, u32, u32, u32, u32)>,
    save: Option<Lifted<()>>,
    restore: Option<Lifted<(u32, u32)>>,
    memory: Memory,
    realloc: TypedFunc<(u32, u32, u32, u32), u32>,
}

impl Direct {
    #[inline]
    pub(crate) fn decide(&self, store: &mut Store<Guest>, view: &ExitView) -> wasmtime::Result<Verdict> {
        // Every field named: one more does not compile.
        let ExitView {
            exit,
            exits,
            class,
            confidence,
            margin,
            entropy,
            agreement,
            change,
            cost,
            next_cost,
            time_left,
            queue_depth,
            temperature,
            power_budget,
            battery,
            threshold,
        } = *view;
        let float = |x: f32| ValRaw::f32(x.to_bits());
        let mut numbers = [
            ValRaw::u32(exit),
            ValRaw::u32(exits),
            ValRaw::u32(class),
            float(confidence),
            float(margin),
            float(entropy),
            ValRaw::u32(agreement.into()),
            float(change),
            float(cost),
            float(next_cost),
            float(time_left),
            ValRaw::u32(queue_depth),
            float(temperature),
            float(power_budget),
            float(battery),
            float(threshold),
        ];
        // The call with types looks at the type of every number, each time.
        // SAFETY: it was found to take these numbers and to give one when it started, and there is room for that.
        unsafe { self.decide.call_unchecked(store, &mut numbers)? };
        match numbers[0].get_u32() {
            0 => Ok(Verdict::GoOn),
            1 => Ok(Verdict::Leave),
            2 => Ok(Verdict::LeaveWithoutLearning),
            3 => Ok(Verdict::Audit),
            _ => Err(broken("a verdict that is none")),
        }
    }

    pub(crate) fn observes(&self) -> bool {
        self.observe.is_some()
    }

    /// `None` where the policy does not look back.
    pub(crate) fn observe(&self, store: &mut Store<Guest>, outcome: &Outcome) -> Option<wasmtime::Result<()>> {
        let observe = self.observe.as_ref()?;
        let Outcome {
            exit,
            class,
            confidence,
            cost,
            latency,
            interval,
            energy,
            temperature,
            hurried,
            fault,
            audit,
        } = *outcome;
        let audit = match audit {
            AuditResult::None => 0,
            AuditResult::Agreed => 1,
            AuditResult::Differed => 2,
        };
        let told = (
            exit,
            class,
            confidence,
            cost,
            latency,
            interval,
            energy,
            temperature,
            hurried.into(),
            fault.into(),
            audit,
        );
        Some(observe.call(store, told))
    }

    pub(crate) fn configure(
        &self,
        store: &mut Store<Guest>,
        model: &ModelFacts,
        parameters: &Parameters,
    ) -> wasmtime::Result<Result<(), String>> {
        /// A name and a variant: two numbers of 32 bits, the variant's case, and a case's value of up to 64 bits.
        const PARAMETER: usize = 24;
        const CASE: usize = 8;
        const VALUE: usize = 16;
        let costs: Vec<u8> = model.exit_costs.iter().flat_map(|cost| cost.to_le_bytes()).collect();
        let costs = self.hand_over(store, &costs, 4)?;
        let list = self.allocate(store, PARAMETER * parameters.iter().len(), 8)?;
        for (place, (name, value)) in parameters.iter().enumerate() {
            let at = list as usize + place * PARAMETER;
            self.hand_over_text(store, name, at)?;
            let case = match value {
                Value::Flag(_) => 0,
                Value::Integer(_) => 1,
                Value::Number(_) => 2,
                Value::Text(_) => 3,
            };
            self.write(store, at + CASE, &[case])?;
            match value {
                Value::Flag(flag) => self.write(store, at + VALUE, &[u8::from(*flag)])?,
                Value::Integer(integer) => self.write(store, at + VALUE, &integer.to_le_bytes())?,
                Value::Number(number) => self.write(store, at + VALUE, &number.to_le_bytes())?,
                Value::Text(text) => self.hand_over_text(store, text, at + VALUE)?,
            }
        }
        let (exits, parameters) = (model.exit_costs.len() as u32, parameters.iter().len() as u32);
        let arguments = (model.classes, costs, exits, list, parameters);
        self.call(store, &self.configure, arguments, Self::result)
    }

    /// What the guest saves, of which more than `limit` bytes are [`TooMuchState`]; `None` where it keeps no state.
    pub(crate) fn save(&self, store: &mut Store<Guest>, limit: usize) -> Option<wasmtime::Result<Vec<u8>>> {
        let save = self.save.as_ref()?;
        Some(
            self.call(store, save, (), |direct, store, at| {
                let saved = direct.list(store, at)?;
                // What tidies up afterwards is called all the same.
                Ok((saved.len() <= limit).then(|| saved.to_vec()))
            })
            .and_then(|saved| saved.ok_or_else(|| wasmtime::Error::new(TooMuchState))),
        )
    }

    /// `None` where the guest keeps no state.
    pub(crate) fn restore(
        &self,
        store: &mut Store<Guest>,
        saved: &[u8],
    ) -> Option<wasmtime::Result<Result<(), String>>> {
        let restore = self.restore.as_ref()?;
        let handed_over = self.hand_over(store, saved, 1);
        Some(handed_over.and_then(|at| self.call(store, restore, (at, saved.len() as u32), Self::result)))
    }

    /// Calls a function that leaves its results in memory, and reads them.
    fn call<P: WasmParams, T>(
        &self,
        store: &mut Store<Guest>,
        lifted: &Lifted<P>,
        arguments: P,
        read: impl FnOnce(&Self, &Store<Guest>, u32) -> wasmtime::Result<T>,
    ) -> wasmtime::Result<T> {
        let at = lifted.function.call(&mut *store, arguments)?;
        if at % 4 != 0 {
            return Err(broken("results at a place that is not theirs"));
        }
        let results = read(self, store, at)?;
        if let Some(after) = &lifted.after {
            silently(store, |store| after.call(store, at))?;
        }
        Ok(results)
    }

    /// Memory of the guest's.
    fn allocate(&self, store: &mut Store<Guest>, bytes: usize, align: u32) -> wasmtime::Result<u32> {
        let bytes = u32::try_from(bytes).map_err(|_| broken("more than a memory holds"))?;
        let at = silently(store, |store| self.realloc.call(store, (0, 0, align, bytes)))?;
        if at % align != 0 {
            return Err(broken("memory at a place that is not aligned"));
        }
        slice(self.memory.data(&*store), at, bytes)?;
        Ok(at)
    }

    /// Puts bytes into memory of the guest's.
    fn hand_over(&self, store: &mut Store<Guest>, bytes: &[u8], align: u32) -> wasmtime::Result<u32> {
        let at = self.allocate(store, bytes.len(), align)?;
        self.write(store, at as usize, bytes)?;
        Ok(at)
    }

    /// Puts a text into memory of the guest's, and its place and length where it is looked for.
    fn hand_over_text(&self, store: &mut Store<Guest>, text: &str, at: usize) -> wasmtime::Result<()> {
        let place = self.hand_over(store, text.as_bytes(), 1)?;
        self.write(store, at, &place.to_le_bytes())?;
        self.write(store, at + 4, &(text.len() as u32).to_le_bytes())
    }

    fn write(&self, store: &mut Store<Guest>, at: usize, bytes: &[u8]) -> wasmtime::Result<()> {
        let written = self.memory.write(store, at, bytes);
        written.map_err(|_| broken("memory that is none"))
    }

    /// The bytes of a list, or of a text, whose place and length lie at a place.
    fn list<'s>(&self, store: &'s Store<Guest>, at: u32) -> wasmtime::Result<&'s [u8]> {
        let memory = self.memory.data(store);
        let number = |at: u32| {
            let bytes = slice(memory, at, 4)?;
            Ok::<u32, wasmtime::Error>(
                bytes
                    .iter()
                    .rev()
                    .fold(0, |number, byte| number << 8 | u32::from(*byte)),
            )
        };
        let next = at.checked_add(4).ok_or_else(|| broken("results beyond the memory"))?;
        slice(memory, number(at)?, number(next)?)
    }

    /// Nothing, or a text that says why not.
    fn result(&self, store: &Store<Guest>, at: u32) -> wasmtime::Result<Result<(), String>> {
        // Both cases take as much, which has to be there.
        let case = slice(self.memory.data(store), at, 12)?[0];
        match case {
            0 => Ok(Ok(())),
            1 => {
                let reason = self.list(store, at + 4)?;
                if reason.len() > HANDED_OVER {
                    return Err(broken("a reason above 4096 bytes"));
                }
                let reason = str::from_utf8(reason).map_err(|_| broken("a reason that is no UTF-8"))?;
                Ok(Err(reason.to_owned()))
            }
            _ => Err(broken("a result that is neither of both")),
        }
    }
}

/// Calls what must not call the host.
fn silently<T>(
    store: &mut Store<Guest>,
    call: impl FnOnce(&mut Store<Guest>) -> wasmtime::Result<T>,
) -> wasmtime::Result<T> {
    store.data_mut().silent = true;
    let called = call(store);
    store.data_mut().silent = false;
    called
}

fn slice(memory: &[u8], at: u32, len: u32) -> wasmtime::Result<&[u8]> {
    let (at, len) = (at as usize, len as usize);
    let bytes = memory.get(at..).and_then(|rest| rest.get(..len));
    bytes.ok_or_else(|| broken("a place beyond the memory"))
}

/// The host's `log`, of a level and the place and length of a message.
fn log_of(mut caller: Caller<'_, Guest>, level: u32, at: u32, len: u32) -> wasmtime::Result<()> {
    if caller.data().silent {
        return Err(Trap::CannotLeaveComponent.into());
    }
    let level = match level {
        0 => Level::Error,
        1 => Level::Warn,
        2 => Level::Info,
        3 => Level::Debug,
        _ => return Err(broken("a level that is none")),
    };
    let memory = caller
        .data()
        .memory
        .ok_or_else(|| broken("a message before there is a memory"))?;
    let (memory, guest) = memory.data_and_store_mut(&mut caller);
    let message = slice(memory, at, len)?;
    if message.len() > HANDED_OVER {
        return Err(broken("a log message above 4096 bytes"));
    }
    let message = str::from_utf8(message).map_err(|_| broken("a log message that is no UTF-8"))?;
    guest.say(level, message);
    Ok(())
}
