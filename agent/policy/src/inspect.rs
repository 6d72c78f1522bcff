//! A look at a component file before anything of it is compiled.

use std::fmt;
use std::str::FromStr;

use wasmparser::{
    BinaryReaderError, ComponentExternalKind, ComponentInstance, Encoding, FunctionBody, Operator, Parser, Payload,
};

use crate::limits::Limits;
use crate::policy::LoadError;

const PACKAGE: &str = "offramp:policy";
pub(crate) const HOST: &str = "offramp:policy/host";
pub(crate) const GUEST: &str = "offramp:policy/guest";
pub(crate) const OBSERVER: &str = "offramp:policy/observer";
pub(crate) const STATE: &str = "offramp:policy/state";

/// Most local variables of a function: a register allocator's work grows with them, and a few bytes declare many.
const LOCALS: u64 = 4096;

/// The version of the contract that a policy is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AbiVersion {
    /// Changes with what breaks policies.
    pub major: u32,
    /// Changes with additions.
    pub minor: u32,
    /// Changes with neither.
    pub patch: u32,
}

impl AbiVersion {
    /// The version that this host implements; it runs every policy of this major version whose
    /// imports it knows.
    pub const OURS: AbiVersion = AbiVersion {
        major: 1,
        minor: 1,
        patch: 0,
    };
}

impl fmt::Display for AbiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl FromStr for AbiVersion {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut numbers = text.split('.').map(|number| number.parse().map_err(|_| ()));
        let mut next = || numbers.next().ok_or(()).flatten();
        let version = AbiVersion {
            major: next()?,
            minor: next()?,
            patch: next()?,
        };
        numbers.next().map_or(Ok(version), |_| Err(()))
    }
}

/// What a component says about itself.
#[derive(Clone, Debug)]
pub(crate) struct Inspection {
    pub(crate) abi: AbiVersion,
    pub(crate) imports: Vec<String>,
    pub(crate) exports: Vec<String>,
    /// Linear memory that it declares at its start, in bytes.
    pub(crate) memory_bytes: u64,
}

impl Inspection {
    /// Whether it looks back.
    pub(crate) fn observes(&self) -> bool {
        self.exports(OBSERVER)
    }

    /// Whether its state can be carried over.
    pub(crate) fn keeps_state(&self) -> bool {
        self.exports(STATE)
    }

    fn exports(&self, interface: &str) -> bool {
        self.exports
            .iter()
            .any(|name| matches!(split(name), (found, Some(_)) if found == interface))
    }
}

/// Most pairs of a local variable and a block that both are in one function, over all functions. Where blocks join,
/// the compiler may look at every variable: half a million take it some 0.7 s, and they fit into 18 kB.
const JOINS: u64 = 500_000;

/// Pairs of a variable that is used, parameters included, and a block of a function.
fn joins(body: &FunctionBody<'_>) -> Result<u64, BinaryReaderError> {
    let (mut variables, mut blocks) = (0_u64, 0_u64);
    for operator in body.get_operators_reader()? {
        match operator? {
            Operator::Block { .. } | Operator::Loop { .. } | Operator::If { .. } | Operator::TryTable { .. } => {
                blocks += 1;
            }
            Operator::LocalGet { local_index }
            | Operator::LocalSet { local_index }
            | Operator::LocalTee { local_index } => variables = variables.max(u64::from(local_index) + 1),
            _ => {}
        }
    }
    Ok(variables.saturating_mul(blocks))
}

/// Reads the outline of a component and holds it against the contract.
pub(crate) fn inspect(component: &[u8], limits: &Limits) -> Result<Inspection, LoadError> {
    let outline = Outline::read(component, limits)?;
    for name in &outline.imports {
        match split(name) {
            (HOST, version) => {
                version.ok_or_else(|| LoadError::Abi { found: name.clone() })?;
            }
            (other, _) if other.starts_with(PACKAGE) && other[PACKAGE.len()..].starts_with('/') => {
                return Err(LoadError::UnknownImport { name: name.clone() });
            }
            _ => return Err(LoadError::ForeignImport { name: name.clone() }),
        }
    }
    let guests = || outline.exports.iter().filter(|name| split(name).0 == GUEST);
    let abi = match (guests().find_map(|name| split(name).1), guests().next()) {
        (Some(abi), _) => abi,
        (None, Some(other)) => return Err(LoadError::Abi { found: other.clone() }),
        (None, None) => {
            let exports = if outline.exports.is_empty() {
                "nothing".into()
            } else {
                outline.exports.join(", ")
            };
            return Err(LoadError::NoPolicy { exports });
        }
    };
    if outline.memory_bytes > limits.memory_bytes as u64 {
        return Err(LoadError::Memory {
            bytes: outline.memory_bytes,
            limit: limits.memory_bytes,
        });
    }
    Ok(Inspection {
        abi,
        imports: outline.imports,
        exports: outline.exports,
        memory_bytes: outline.memory_bytes,
    })
}

/// Splits `interface@version`; the version only when it is one that this host runs.
pub(crate) fn split(name: &str) -> (&str, Option<AbiVersion>) {
    let (interface, version) = name.split_once('@').unwrap_or((name, ""));
    (
        interface,
        version
            .parse()
            .ok()
            .filter(|version: &AbiVersion| version.major == AbiVersion::OURS.major),
    )
}

#[derive(Default)]
struct Outline {
    imports: Vec<String>,
    exports: Vec<String>,
    memory_bytes: u64,
}

impl Outline {
    fn read(component: &[u8], limits: &Limits) -> Result<Outline, LoadError> {
        let malformed = |source: wasmparser::BinaryReaderError| LoadError::Malformed {
            source: Box::new(source),
        };
        let mut outline = Outline::default();
        let mut depth = 0_u32;
        let mut functions = 0_u32;
        let mut pairs = 0_u64;
        let dear = |what, found: u64, limit: u64| {
            let dear = LoadError::TooDear { what, found, limit };
            if found > limit { Err(dear) } else { Ok(()) }
        };
        for payload in Parser::new(0).parse_all(component) {
            match payload.map_err(malformed)? {
                Payload::Version {
                    encoding: Encoding::Module,
                    ..
                } if depth == 0 => {
                    return Err(LoadError::CoreModule);
                }
                Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
                Payload::End(_) => depth = depth.saturating_sub(1),
                Payload::ComponentImportSection(imports) if depth == 0 => {
                    for import in imports {
                        outline.imports.push(import.map_err(malformed)?.name.name.to_owned());
                    }
                }
                Payload::ComponentExportSection(exports) if depth == 0 => {
                    for export in exports {
                        let export = export.map_err(malformed)?;
                        // A type or a function of that name is not the interface.
                        if export.kind == ComponentExternalKind::Instance {
                            outline.exports.push(export.name.name.to_owned());
                        }
                    }
                }
                // Components that instantiate one another double at every step, in few bytes. Of nested ones, only
                // those that wrap an interface are needed, and they instantiate no other.
                Payload::ComponentInstanceSection(instances) if depth > 0 => {
                    for instance in instances {
                        if let ComponentInstance::Instantiate { .. } = instance.map_err(malformed)? {
                            dear("instantiations by a nested component", 1, 0)?;
                        }
                    }
                }
                Payload::CodeSectionStart { count, .. } => {
                    functions = functions.saturating_add(count);
                    dear("functions", functions.into(), limits.functions.into())?;
                }
                Payload::CodeSectionEntry(body) => {
                    let bytes = body.range().len() as u64;
                    dear("bytes in a function", bytes, limits.function_bytes as u64)?;
                    let mut locals = 0_u64;
                    for group in body.get_locals_reader().map_err(malformed)? {
                        locals += u64::from(group.map_err(malformed)?.0);
                    }
                    dear("local variables in a function", locals, LOCALS)?;
                    pairs = pairs.saturating_add(joins(&body).map_err(malformed)?);
                    dear("pairs of a local variable and a block", pairs, JOINS)?;
                }
                Payload::MemorySection(memories) => {
                    for memory in memories {
                        let memory = memory.map_err(malformed)?;
                        let page = 1_u64 << memory.page_size_log2.unwrap_or(16).min(16);
                        let bytes = memory.initial.saturating_mul(page);
                        outline.memory_bytes = outline.memory_bytes.saturating_add(bytes);
                    }
                }
                _ => {}
            }
        }
        Ok(outline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_versions_of_our_major_number_are_taken() {
        assert_eq!(
            split("offramp:policy/guest@1.4.2"),
            (
                GUEST,
                Some(AbiVersion {
                    major: 1,
                    minor: 4,
                    patch: 2
                })
            )
        );
        for other in [
            "offramp:policy/guest@2.0.0",
            "offramp:policy/guest@1.0.0-rc",
            "offramp:policy/guest@1",
            "x",
        ] {
            assert_eq!(split(other).1, None, "{other}");
        }
    }
}
