use offramp_proto::Digest;
use std::error::Error;
use std::fmt;
use std::sync::Arc;
use wasmtime::Store;

use crate::facts::{ModelFacts, Parameters};
use crate::fault::Fault;
use crate::host::{Guest, Shared, printable};
use crate::inspect::{AbiVersion, Inspection};
use crate::instance::Instance;
use crate::plan::Plan;
use crate::running::{Running, Shape, grant};

/// Longest reason for a refusal that is passed on, in bytes.
pub(crate) const REASON_BYTES: usize = 512;

/// Why a component is no policy for this device. Nothing of it has decided anything.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file is larger than allowed.
    #[error("the policy is {bytes} bytes; at most {limit} are allowed")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// [`Limits::component_bytes`](crate::Limits::component_bytes).
        limit: usize,
    },
    /// No WebAssembly, or damaged.
    #[error("the policy is no WebAssembly file, or it is damaged; transfer or build it again")]
    Malformed {
        /// What is wrong, and where.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// A core module.
    #[error(
        "the policy is a core module, not a component; make one of it with offramp-policy-build or \
         `wasm-tools component new`"
    )]
    CoreModule,
    /// An import from outside the contract, such as WASI.
    #[error("the policy imports `{name}`; a policy gets nothing but `offramp:policy/host` (build it without WASI)")]
    ForeignImport {
        /// The import.
        name: String,
    },
    /// An import of the contract's package that this host does not have.
    #[error(
        "the policy imports `{name}`, which this device does not have; update the device, or build it for {}",
        AbiVersion::OURS
    )]
    UnknownImport {
        /// The import.
        name: String,
    },
    /// Another version of the contract.
    #[error(
        "the policy is built for `{found}`; this device runs version {}.x of the contract. Build it with the \
         matching SDK",
        AbiVersion::OURS.major
    )]
    Abi {
        /// The interface with its version.
        found: String,
    },
    /// No policy at all.
    #[error("the policy does not export `offramp:policy/guest`; it exports {exports}")]
    NoPolicy {
        /// The interfaces that it exports.
        exports: String,
    },
    /// More memory at its start than allowed.
    #[error("the policy starts with {bytes} bytes of memory; at most {limit} are allowed")]
    Memory {
        /// What it declares.
        bytes: u64,
        /// [`Limits::memory_bytes`](crate::Limits::memory_bytes).
        limit: usize,
    },
    /// Compiling it would take too long.
    #[error("the policy has {found} {what}; at most {limit} are allowed, for compiling it takes time")]
    TooDear {
        /// What there is too much of.
        what: &'static str,
        /// How much it has, or more.
        found: u64,
        /// How much is allowed.
        limit: u64,
    },
    /// Not valid, or it uses what is switched off or capped.
    #[error("the policy is no valid component within this device's limits")]
    Invalid {
        /// What is wrong.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// Functions that are not those of the contract.
    #[error("the policy's functions are not those of the contract; build it from the WIT of this version")]
    Mismatch {
        /// Which and how.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// Its start function faults.
    #[error("the policy fails as soon as it is started")]
    Start(#[source] Fault),
    /// The pool of instances is empty.
    #[error("all {instances} policy instances of this device are in use; drop some, or raise the limit")]
    Exhausted {
        /// [`Limits::instances`](crate::Limits::instances).
        instances: u32,
    },
}

/// Why a policy was not configured.
#[derive(Debug, thiserror::Error)]
pub enum ConfigureError {
    /// It refuses the parameters or the network.
    #[error("the policy refuses its configuration: {reason}")]
    Refused {
        /// Its own words, cut and without control characters.
        reason: String,
    },
    /// It faults.
    #[error("the policy fails while it is configured")]
    Fault(#[source] Fault),
    /// The pool of instances is empty.
    #[error("all {instances} policy instances of this device are in use; drop some, or raise the limit")]
    Exhausted {
        /// [`Limits::instances`](crate::Limits::instances).
        instances: u32,
    },
}

/// Why a policy did not take up what another instance had saved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// It keeps no state: it does not export `offramp:policy/state`.
    #[error("the policy keeps no state")]
    Stateless,
    /// It refuses what was saved.
    #[error("the policy refuses what was saved: {reason}")]
    Refused {
        /// Its own words, cut and without control characters.
        reason: String,
    },
    /// It faults.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// A policy that has been checked and compiled. Cloning is cheap.
#[derive(Clone)]
pub struct Policy(Arc<Compiled>);

struct Compiled {
    shared: Arc<Shared>,
    shape: Shape,
    digest: Digest,
    bytes: usize,
    inspection: Inspection,
}

impl Policy {
    /// Starts an instance and throws it away, to see its types checked and its start function end.
    pub(crate) fn new(
        shared: Arc<Shared>,
        mut shape: Shape,
        plan: Option<Plan>,
        digest: Digest,
        bytes: usize,
        inspection: Inspection,
    ) -> Result<Policy, LoadError> {
        let exhausted = || LoadError::Exhausted {
            instances: shared.limits.instances,
        };
        let permit = shared.permit().ok_or_else(exhausted)?;
        let tried = shape.try_out(|| fresh(&shared, digest), plan);
        drop(permit);
        tried.map_err(|error| match Start::of(error) {
            Start::Exhausted => exhausted(),
            Start::Mismatch(error) => LoadError::Mismatch { source: error.into() },
            Start::Fault(fault) => LoadError::Start(fault),
        })?;
        Ok(Policy(Arc::new(Compiled {
            shared,
            shape,
            digest,
            bytes,
            inspection,
        })))
    }

    /// What the policy is known by.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.0.digest
    }

    /// The version of the contract that it is built for.
    #[must_use]
    pub fn abi(&self) -> AbiVersion {
        self.0.inspection.abi
    }

    #[cfg(test)]
    pub(crate) fn shape(&self) -> &Shape {
        &self.0.shape
    }

    /// Whether both are one and the same compiled code.
    #[cfg(test)]
    pub(crate) fn is(&self, other: &Policy) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Size of the component file.
    pub(crate) fn bytes(&self) -> usize {
        self.0.bytes
    }

    pub(crate) fn inspection(&self) -> &Inspection {
        &self.0.inspection
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.0.shared
    }

    /// Makes an instance that decides for a network. Takes some ten microseconds, bounded by
    /// [`Limits::configure_fuel`](crate::Limits::configure_fuel) and the deadline.
    ///
    /// # Errors
    ///
    /// When the policy refuses the parameters or the network, or faults.
    pub fn configure(&self, model: &ModelFacts, parameters: &Parameters) -> Result<Instance, ConfigureError> {
        let running = self.run(model, parameters)?;
        Ok(Instance::new(self.clone(), running, model.clone(), parameters.clone()))
    }

    pub(crate) fn run(&self, model: &ModelFacts, parameters: &Parameters) -> Result<Running, ConfigureError> {
        let mut running = self.start().map_err(|error| match error {
            Start::Exhausted => ConfigureError::Exhausted {
                instances: self.shared().limits.instances,
            },
            Start::Mismatch(_) => ConfigureError::Fault(Fault::Contract),
            Start::Fault(fault) => ConfigureError::Fault(fault),
        })?;
        match running.configure(model, parameters) {
            Ok(Ok(())) => Ok(running),
            Ok(Err(reason)) => Err(ConfigureError::Refused {
                reason: printable(&reason, REASON_BYTES),
            }),
            Err(error) => {
                tracing::debug!(policy = %self.digest(), "configure failed: {error:#}");
                Err(ConfigureError::Fault(Fault::of(&error)))
            }
        }
    }

    /// A new instance, with the fuel and time of `configure`.
    fn start(&self) -> Result<Running, Start> {
        let shared = self.shared();
        let permit = shared.permit().ok_or(Start::Exhausted)?;
        let started = self.0.shape.start(permit, fresh(shared, self.digest()));
        started.map_err(Start::of)
    }
}

/// A store with the fuel and time of `configure`.
fn fresh(shared: &Shared, policy: Digest) -> Store<Guest> {
    let mut store = shared.store(Guest::new(policy, &shared.limits));
    grant(&mut store, shared.limits.configure_fuel);
    store
}

enum Start {
    Exhausted,
    Mismatch(wasmtime::Error),
    Fault(Fault),
}

impl Start {
    fn of(error: wasmtime::Error) -> Start {
        if error.is::<wasmtime::PoolConcurrencyLimitError>() {
            return Start::Exhausted;
        }
        match Fault::of(&error) {
            Fault::Contract => Start::Mismatch(error),
            fault => Start::Fault(fault),
        }
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Policy").field(&self.digest()).finish()
    }
}
