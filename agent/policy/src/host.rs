use offramp_proto::Digest;
use std::error::Error;
use std::io;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::{debug, error, info, warn};
use wasmtime::component::{Component, HasSelf, Linker};
use wasmtime::{
    Config, Engine, InstanceAllocationStrategy, Memory, PoolingAllocationConfig, ResourceLimiter, Store, WasmFeatures,
};

use crate::bindings::{StatefulPolicy, host};
use crate::cache::Cache;
use crate::fault::OverCap;
use crate::inspect::inspect;
use crate::limits::Limits;
use crate::plan::Plan;
use crate::policy::{LoadError, Policy};
use crate::running::{Permit, Shape};
use crate::watchdog::Watchdog;

pub(crate) use crate::bindings::host::Level;

/// Core instances, memories and tables of one policy: wit-component makes up to three core instances, one memory and two
/// tables.
pub(crate) const CORE_INSTANCES: u32 = 8;
const MEMORIES: u32 = 2;
const TABLES: u32 = 4;

/// Bytes that a guest hands over in one call: a log message, or the reason for a refusal.
pub(crate) const HANDED_OVER: usize = 4096;

/// Bytes of a log message that are kept.
const LOG_BYTES: usize = 256;

/// Log lines that a policy may write at once; each further one takes [`VERDICTS_PER_LINE`] verdicts.
const LOG_BURST: u32 = 32;
const VERDICTS_PER_LINE: u32 = 64;

/// The engine does not start on this machine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// WebAssembly cannot run with these limits on this machine.
    #[error("the WebAssembly engine does not start with these limits")]
    Engine(#[source] Box<dyn Error + Send + Sync>),
    /// No thread for the watchdog.
    #[error("cannot start the thread of the policy watchdog")]
    Watchdog(#[source] io::Error),
}

/// Loads policies. One for the process: it owns the pool of instances and the watchdog's thread, which
/// ends with the last policy and instance of the host.
pub struct PolicyHost {
    linker: Linker<Guest>,
    cache: Mutex<Cache>,
    shared: Arc<Shared>,
}

/// What policies and instances need of their host.
pub(crate) struct Shared {
    pub(crate) engine: Engine,
    pub(crate) limits: Limits,
    /// Instances that there are.
    taken: Arc<AtomicU32>,
    _watchdog: Watchdog,
}

impl PolicyHost {
    /// Starts the engine and the watchdog.
    ///
    /// # Errors
    ///
    /// When the machine does not run WebAssembly or lacks the address space for the pool.
    pub fn new(limits: Limits) -> Result<PolicyHost, EngineError> {
        let boxed = |error: wasmtime::Error| EngineError::Engine(error.into());
        let engine = Engine::new(&config(&limits)).map_err(boxed)?;
        let mut linker = Linker::new(&engine);
        StatefulPolicy::add_to_linker::<_, HasSelf<Guest>>(&mut linker, |guest| guest).map_err(boxed)?;
        let watchdog = Watchdog::start(engine.clone(), limits.deadline).map_err(EngineError::Watchdog)?;
        Ok(PolicyHost {
            linker,
            cache: Mutex::new(Cache::new(limits.cached_policies, limits.cached_bytes)),
            shared: Arc::new(Shared {
                engine,
                limits,
                taken: Arc::default(),
                _watchdog: watchdog,
            }),
        })
    }

    /// Checks a component file and compiles it. Takes tens of milliseconds, unless the same file was loaded
    /// lately: it is then known by its digest.
    ///
    /// # Errors
    ///
    /// When it is no component of the contract, damaged, or asks for what it may not have.
    pub fn load(&self, component: &[u8]) -> Result<Policy, LoadError> {
        self.load_by(component, Plan::of)
    }

    /// As [`load`](Self::load), by a plan that is made by this.
    pub(crate) fn load_by(
        &self,
        component: &[u8],
        plan: impl FnOnce(&[u8]) -> Option<Plan>,
    ) -> Result<Policy, LoadError> {
        let limits = &self.shared.limits;
        if component.len() > limits.component_bytes {
            return Err(LoadError::TooLarge {
                bytes: component.len(),
                limit: limits.component_bytes,
            });
        }
        let digest = Digest::of(component);
        if let Some(policy) = self.cache().get(digest) {
            return Ok(policy);
        }
        let inspection = inspect(component, limits)?;
        let compile = |component: &[u8]| Component::from_binary(&self.shared.engine, component);
        // As it came where it is put together unlike others, or not well: the error is then told of what came.
        let planned = plan(component).and_then(|plan| {
            let compiled = compile(&plan.exported(component)).ok()?;
            Some((compiled, Some(plan)))
        });
        let (compiled, plan) = planned
            .map_or_else(|| Ok((compile(component)?, None)), Ok)
            .map_err(|error: wasmtime::Error| LoadError::Invalid { source: error.into() })?;
        let shape = Shape::new(&self.linker, &compiled, &inspection)
            .map_err(|error| LoadError::Mismatch { source: error.into() })?;
        let shared = Arc::clone(&self.shared);
        let policy = Policy::new(shared, shape, plan, digest, component.len(), inspection)?;
        self.cache().put(policy.clone());
        Ok(policy)
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        // What it holds is whole after any panic: a policy goes in at once or not at all.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn config(limits: &Limits) -> Config {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(limits.instances)
        .total_core_instances(limits.instances.saturating_mul(CORE_INSTANCES))
        .total_memories(limits.instances.saturating_mul(MEMORIES))
        .total_tables(limits.instances.saturating_mul(TABLES))
        .max_core_instances_per_component(CORE_INSTANCES)
        .max_memories_per_component(MEMORIES)
        .max_tables_per_component(TABLES)
        .max_memory_size(limits.memory_bytes)
        .table_elements(limits.table_elements);

    let mut config = Config::new();
    config
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
        // Address space for the cap and no more, instead of 4 GiB for each memory: small boards have
        // kernels with 39 bits of it. Bounds are then checked by instructions.
        .memory_reservation(limits.memory_bytes as u64)
        .memory_guard_size(64 << 10)
        .guard_before_linear_memory(false)
        .consume_fuel(true)
        .epoch_interruption(true)
        .max_wasm_stack(limits.stack_bytes)
        .cranelift_nan_canonicalization(true)
        // A faulting policy is told by its trap; walking its stack would be most of a fault's cost.
        .wasm_backtrace_max_frames(None)
        .generate_address_map(false)
        .concurrency_support(false)
        .wasm_component_model(true);
    for absent in [
        WasmFeatures::MEMORY64,
        WasmFeatures::RELAXED_SIMD,
        WasmFeatures::THREADS,
    ] {
        config.wasm_features(absent, false);
    }
    config
}

impl Shared {
    pub(crate) fn store(&self, guest: Guest) -> Store<Guest> {
        let mut store = Store::new(&self.engine, guest);
        store.limiter(|guest| guest);
        store.set_hostcall_fuel(HANDED_OVER);
        store
    }

    /// For one more instance, if there may be one.
    pub(crate) fn permit(&self) -> Option<Permit> {
        Permit::of(&self.taken, self.limits.instances)
    }
}

/// The host's side of one instance: its caps, and its voice.
pub(crate) struct Guest {
    policy: Digest,
    memory_left: usize,
    elements_left: usize,
    log_credit: u32,
    /// Where its messages lie, if it is called directly.
    pub(crate) memory: Option<Memory>,
    /// Whether it must not call the host just now.
    pub(crate) silent: bool,
}

impl Guest {
    pub(crate) fn new(policy: Digest, limits: &Limits) -> Guest {
        Guest {
            policy,
            memory_left: limits.memory_bytes,
            elements_left: limits.table_elements,
            log_credit: LOG_BURST * VERDICTS_PER_LINE,
            memory: None,
            silent: false,
        }
    }

    /// Earns a little of the next log line.
    #[inline]
    pub(crate) fn verdict_asked(&mut self) {
        self.log_credit = (self.log_credit + 1).min(LOG_BURST * VERDICTS_PER_LINE);
    }

    /// Writes a line to the device's log, if it has not written too many.
    pub(crate) fn say(&mut self, level: Level, message: &str) {
        let Some(credit) = self.log_credit.checked_sub(VERDICTS_PER_LINE) else {
            return;
        };
        self.log_credit = credit;
        let policy = self.policy;
        let message = printable(message, LOG_BYTES);
        match level {
            Level::Error => error!(%policy, "{message}"),
            Level::Warn => warn!(%policy, "{message}"),
            Level::Info => info!(%policy, "{message}"),
            Level::Debug => debug!(%policy, "{message}"),
        }
    }
}

fn grow(left: &mut usize, current: usize, desired: usize) -> wasmtime::Result<bool> {
    let more = desired.saturating_sub(current);
    *left = left.checked_sub(more).ok_or_else(|| wasmtime::Error::new(OverCap))?;
    Ok(true)
}

impl ResourceLimiter for Guest {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        grow(&mut self.memory_left, current, desired)
    }

    fn table_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        grow(&mut self.elements_left, current, desired)
    }

    fn instances(&self) -> usize {
        CORE_INSTANCES as usize
    }

    fn memories(&self) -> usize {
        MEMORIES as usize
    }

    fn tables(&self) -> usize {
        TABLES as usize
    }
}

impl host::Host for Guest {
    fn log(&mut self, level: Level, message: String) -> wasmtime::Result<()> {
        // Where a call may hand over more, as `save` may, a message may not.
        if message.len() > HANDED_OVER {
            return Err(wasmtime::Error::msg("a log message above 4096 bytes"));
        }
        self.say(level, &message);
        Ok(())
    }
}

/// Text of a guest, fit for a log: cut, and without characters that command a terminal.
pub(crate) fn printable(text: &str, bytes: usize) -> String {
    let cut = &text[..text.floor_char_boundary(bytes)];
    cut.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_text_is_cut_between_characters_and_cannot_command_a_terminal() {
        assert_eq!(printable("\u{1b}[2Jgrün\n", 256), " [2Jgrün ");
        assert_eq!(printable("grün", 3), "gr");
    }

    #[test]
    fn log_lines_come_back_with_verdicts() {
        let limits = Limits::default();
        let mut guest = Guest::new(Digest::of(b""), &limits);
        let say = |guest: &mut Guest| {
            let before = guest.log_credit;
            guest.say(Level::Debug, "x");
            before != guest.log_credit
        };
        assert_eq!((0..100).filter(|_| say(&mut guest)).count(), 32);
        for _ in 0..64 {
            guest.verdict_asked();
        }
        assert!(say(&mut guest));
        assert!(!say(&mut guest));
    }
}
