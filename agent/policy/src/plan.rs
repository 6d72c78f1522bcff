//! What a component comes down to: core modules, what each imports, and the core functions behind its exports.
//!
//! Tools put policies together in few ways: one module that does the work, and perhaps two small ones through which it
//! reaches the host's `log` before its memory is there. Where a component is put together like that, its modules can be
//! instantiated and called without the layer of the component model ([`direct`](crate::direct)). Any other has no plan
//! and runs as it came: every lifted function must be one of the contract, of which no two have the same type, so that
//! whatever is exported under a name of the contract is the function lifted under it.
//!
//! A plan is read from a file that nobody has checked yet, so that names and numbers of everything are bounded; the file
//! is compiled as a component afterwards, which checks it.

use std::sync::Arc;

use wasm_encoder::{ComponentExportKind, ComponentExportSection, ComponentSection as _};
use wasmparser::{
    BinaryReaderError, CanonicalFunction, CanonicalOption, ComponentAlias, ComponentExternalKind,
    ComponentOuterAliasKind, ComponentTypeRef, ExternalKind, Instance, Parser, Payload,
};

use crate::host::CORE_INSTANCES;
use crate::inspect::{GUEST, HOST, OBSERVER, STATE, split};

/// What core modules are exported as, a number behind it.
pub(crate) const MODULE: &str = "offramp-m";

/// Bytes of a name, at most.
const NAME: usize = 128;
/// Items of one kind, at most: aliases, arguments and exports of an instance, functions lifted or lowered, imports of a
/// module.
pub(crate) const ITEMS: usize = 256;

/// An export of a core instance: the place of that among those made of modules, and the name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Export {
    pub(crate) instance: usize,
    pub(crate) name: String,
}

/// What a core module's import is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Of an instance made before.
    Export(Export),
    /// The host's `log`.
    Log,
}

/// A core function behind a function of the contract, and what is to be called once its results were read.
#[derive(Clone, Debug)]
pub(crate) struct Lift {
    pub(crate) function: Export,
    pub(crate) post_return: Option<Export>,
}

/// Core modules, and what the functions of the contract are among their exports.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Of each instance in order: its module, and by name the instances or single items that it imports from.
    pub(crate) instances: Vec<(u32, Vec<(String, Given)>)>,
    pub(crate) memory: Export,
    pub(crate) realloc: Export,
    pub(crate) configure: Lift,
    pub(crate) decide: Export,
    pub(crate) observe: Option<Export>,
    pub(crate) save: Option<Lift>,
    pub(crate) restore: Option<Lift>,
}

/// What a module is given under a name.
#[derive(Clone, Debug)]
pub(crate) enum Given {
    /// All exports of an instance.
    Instance(usize),
    /// Items by name.
    Items(Arc<[(String, Source)]>),
}

impl Given {
    /// What an import of that name gets.
    pub(crate) fn get(&self, name: &str) -> Option<Source> {
        match self {
            Given::Instance(instance) => Some(Source::Export(Export {
                instance: *instance,
                name: name.to_owned(),
            })),
            Given::Items(items) => items
                .iter()
                .find(|(item, _)| item == name)
                .map(|(_, source)| source.clone()),
        }
    }
}

impl Plan {
    /// Reads how a component is put together; `None` where it is not as tools do it.
    pub(crate) fn of(component: &[u8]) -> Option<Plan> {
        let mut reader = Reader::default();
        reader.read(component).ok()??;
        reader.finish()
    }

    /// The component with its core modules among its exports, so that they are compiled with it and can be had. It has to
    /// be all of them: wasmtime takes a module that is not exported to be instantiated once, as the component does it,
    /// and binds it to what it imports there.
    pub(crate) fn exported(&self, component: &[u8]) -> Vec<u8> {
        let mut exports = ComponentExportSection::new();
        for module in 0..=self.instances.iter().map(|(module, _)| *module).max().unwrap_or(0) {
            exports.export(format!("{MODULE}{module}"), ComponentExportKind::Module, module, None);
        }
        let mut exported = component.to_vec();
        exports.append_to_component(&mut exported);
        exported
    }
}

/// The index spaces of a component, as far as they are read.
#[derive(Default)]
struct Reader {
    modules: u32,
    /// As given to modules; instances made of modules by their place among those.
    core_instances: Vec<Given>,
    made: Vec<(u32, Vec<(String, Given)>)>,
    core_functions: Vec<Option<Source>>,
    core_memories: Vec<Option<Source>>,
    core_tables: Vec<Option<Source>>,
    core_globals: Vec<Option<Source>>,
    /// Whether an instance is the host, and whether a function is its `log`.
    instances: Vec<bool>,
    functions: Vec<bool>,
    lifts: Vec<(Function, Export, Box<[CanonicalOption]>)>,
    lowers: Vec<Box<[CanonicalOption]>>,
}

impl Reader {
    fn read(&mut self, component: &[u8]) -> Result<Option<()>, BinaryReaderError> {
        let mut depth = 0_u32;
        for payload in Parser::new(0).parse_all(component) {
            let payload = payload?;
            match &payload {
                Payload::End(_) => depth = depth.saturating_sub(1),
                // What wraps an interface has no code of its own.
                Payload::ModuleSection { .. } | Payload::InstanceSection(_) | Payload::ComponentCanonicalSection(_)
                    if depth > 0 =>
                {
                    return Ok(None);
                }
                _ if depth > 0 => {}
                Payload::ModuleSection { .. } => self.modules += 1,
                Payload::InstanceSection(section) => {
                    for instance in section.clone() {
                        let Some(()) = self.core_instance(&instance?) else {
                            return Ok(None);
                        };
                    }
                }
                Payload::ComponentAliasSection(section) => {
                    for alias in section.clone() {
                        let Some(()) = self.alias(&alias?) else {
                            return Ok(None);
                        };
                    }
                }
                Payload::ComponentCanonicalSection(section) => {
                    for function in section.clone() {
                        let Some(()) = self.canonical(function?) else {
                            return Ok(None);
                        };
                    }
                }
                Payload::ComponentImportSection(section) => {
                    for import in section.clone() {
                        let import = import?;
                        match import.ty {
                            ComponentTypeRef::Instance(_) => {
                                let name = import.name.name.split('@').next();
                                self.instances.push(name == Some(HOST));
                            }
                            ComponentTypeRef::Type(_) => {}
                            _ => return Ok(None),
                        }
                    }
                }
                Payload::ComponentInstanceSection(section) => {
                    for instance in section.clone() {
                        instance?;
                        self.instances.push(false);
                    }
                }
                Payload::ComponentExportSection(section) => {
                    for export in section.clone() {
                        match export?.kind {
                            ComponentExternalKind::Instance => self.instances.push(false),
                            ComponentExternalKind::Func => self.functions.push(false),
                            ComponentExternalKind::Type => {}
                            _ => return Ok(None),
                        }
                    }
                }
                Payload::ComponentStartSection { .. } => return Ok(None),
                _ => {}
            }
            if let Payload::ModuleSection { unchecked_range, .. } | Payload::ComponentSection { unchecked_range, .. } =
                payload
            {
                // What is written behind the file would be taken for its rest.
                if unchecked_range.end > component.len() {
                    return Ok(None);
                }
                depth += 1;
            }
        }
        Ok(Some(()))
    }

    fn core_instance(&mut self, instance: &Instance<'_>) -> Option<()> {
        let given = match instance {
            Instance::Instantiate { module_index, args }
                if *module_index < self.modules && args.len() <= ITEMS && self.made.len() < CORE_INSTANCES as usize =>
            {
                let arguments = args.iter().map(|argument| {
                    is_short(argument.name)?;
                    let given = self.core_instances.get(argument.index as usize)?;
                    Some((argument.name.to_owned(), given.clone()))
                });
                let arguments = arguments.collect::<Option<_>>()?;
                self.made.push((*module_index, arguments));
                Given::Instance(self.made.len() - 1)
            }
            Instance::FromExports(exports) if exports.len() <= ITEMS => {
                let items = exports.iter().map(|export| {
                    is_short(export.name)?;
                    let space = self.space(export.kind)?;
                    let source = space.get(export.index as usize)?.clone()?;
                    Some((export.name.to_owned(), source))
                });
                Given::Items(items.collect::<Option<_>>()?)
            }
            Instance::Instantiate { .. } | Instance::FromExports(_) => return None,
        };
        self.core_instances.push(given);
        (self.core_instances.len() <= ITEMS).then_some(())
    }

    fn space(&mut self, kind: ExternalKind) -> Option<&mut Vec<Option<Source>>> {
        match kind {
            ExternalKind::Func => Some(&mut self.core_functions),
            ExternalKind::Memory => Some(&mut self.core_memories),
            ExternalKind::Table => Some(&mut self.core_tables),
            ExternalKind::Global => Some(&mut self.core_globals),
            _ => None,
        }
    }

    fn alias(&mut self, alias: &ComponentAlias<'_>) -> Option<()> {
        match *alias {
            ComponentAlias::CoreInstanceExport {
                kind,
                instance_index,
                name,
            } => {
                is_short(name)?;
                let source = self.core_instances.get(instance_index as usize)?.get(name);
                let space = self.space(kind)?;
                space.push(source);
                return (space.len() <= ITEMS).then_some(());
            }
            ComponentAlias::InstanceExport {
                kind,
                instance_index,
                name,
            } => match kind {
                ComponentExternalKind::Func => {
                    let of_host = *self.instances.get(instance_index as usize)?;
                    self.functions.push(of_host && name == "log");
                }
                ComponentExternalKind::Instance => self.instances.push(false),
                ComponentExternalKind::Type => {}
                _ => return None,
            },
            ComponentAlias::Outer {
                kind: ComponentOuterAliasKind::Type | ComponentOuterAliasKind::CoreType,
                ..
            } => {}
            ComponentAlias::Outer { .. } => return None,
        }
        Some(())
    }

    fn canonical(&mut self, function: CanonicalFunction) -> Option<()> {
        match function {
            CanonicalFunction::Lift {
                core_func_index,
                options,
                ..
            } => {
                let Some(Source::Export(export)) = self.core_functions.get(core_func_index as usize)?.clone() else {
                    return None;
                };
                let function = of_contract(&export.name).filter(|_| options.len() <= ITEMS)?;
                self.lifts.push((function, export, options));
                self.functions.push(false);
            }
            CanonicalFunction::Lower { func_index, options } => {
                if !*self.functions.get(func_index as usize)? {
                    return None;
                }
                self.lowers.push(options);
                self.core_functions.push(Some(Source::Log));
            }
            _ => return None,
        }
        (self.lifts.len() <= ITEMS && self.lowers.len() <= ITEMS).then_some(())
    }

    fn finish(self) -> Option<Plan> {
        // One memory, and one function that gives of it.
        let (mut memory, mut realloc) = (None, None);
        let all = self.lifts.iter().map(|(.., options)| options).chain(&self.lowers);
        for option in all.flatten() {
            let (one, space, index) = match *option {
                CanonicalOption::UTF8 | CanonicalOption::PostReturn(_) => continue,
                CanonicalOption::Memory(index) => (&mut memory, &self.core_memories, index),
                CanonicalOption::Realloc(index) => (&mut realloc, &self.core_functions, index),
                _ => return None,
            };
            let export = export(space, index)?;
            if one.get_or_insert_with(|| export.clone()) != &export {
                return None;
            }
        }
        let plain = |lift: Lift| lift.post_return.is_none().then_some(lift.function);
        Some(Plan {
            memory: memory?,
            realloc: realloc?,
            configure: self.lift((GUEST, "configure"))??,
            decide: plain(self.lift((GUEST, "decide"))??)?,
            observe: match self.lift((OBSERVER, "observe"))? {
                Some(lift) => Some(plain(lift)?),
                None => None,
            },
            save: self.lift((STATE, "save"))?,
            restore: self.lift((STATE, "restore"))?,
            instances: self.made,
        })
    }

    /// The core function behind a function of the contract, if there is one; `None` where there are several.
    fn lift(&self, function: Function) -> Option<Option<Lift>> {
        let mut found = self.lifts.iter().filter(|(of, ..)| *of == function);
        let Some((_, function, options)) = found.next() else {
            return Some(None);
        };
        let mut post_return = None;
        for option in options {
            if let CanonicalOption::PostReturn(index) = option {
                post_return = Some(export(&self.core_functions, *index)?);
            }
        }
        let lift = Lift {
            function: function.clone(),
            post_return,
        };
        found.next().is_none().then_some(Some(lift))
    }
}

/// Nothing for a name that is longer than one of the contract or of a tool.
fn is_short(name: &str) -> Option<()> {
    (name.len() <= NAME).then_some(())
}

/// A function of the contract: its interface and its name there.
type Function = (&'static str, &'static str);

const CONTRACT: [Function; 5] = [
    (GUEST, "configure"),
    (GUEST, "decide"),
    (OBSERVER, "observe"),
    (STATE, "save"),
    (STATE, "restore"),
];

/// The function of the contract behind which tools put a core function of this name: `interface@version#function`.
fn of_contract(name: &str) -> Option<Function> {
    let (interface, function) = name.split_once('#')?;
    let (interface, version) = split(interface);
    version?;
    CONTRACT.into_iter().find(|known| *known == (interface, function))
}

fn export(space: &[Option<Source>], index: u32) -> Option<Export> {
    match space.get(index as usize)? {
        Some(Source::Export(export)) => Some(export.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHIPPED: [&[u8]; 6] = [
        include_bytes!("../../../plugins/prebuilt/threshold.wasm"),
        include_bytes!("../../../plugins/prebuilt/entropy.wasm"),
        include_bytes!("../../../plugins/prebuilt/patience.wasm"),
        include_bytes!("../../../plugins/prebuilt/temporal.wasm"),
        include_bytes!("../../../plugins/prebuilt/budget.wasm"),
        include_bytes!("../../../plugins/prebuilt/deadline.wasm"),
    ];

    #[test]
    fn every_shipped_policy_has_a_plan_and_stays_valid_with_its_modules_exported() {
        for component in SHIPPED {
            let plan = Plan::of(component).expect("made by our tool");
            let exported = plan.exported(component);
            wasmparser::Validator::new().validate_all(&exported).unwrap();
            let observes = component.windows(8).any(|bytes| bytes == b"#observe");
            assert_eq!(plan.observe.is_some(), observes);
        }
    }

    /// A policy of one module, put together by hand.
    fn component(lift: &str, after: &str) -> Vec<u8> {
        let text = format!(
            r#"(component
                (core module $m
                    (func (export "offramp:policy/guest@1.0.0#decide"))
                    (func (export "offramp:policy/guest@1.0.0#configure"))
                    (func (export "realloc") (param i32 i32 i32 i32) (result i32) unreachable)
                    (memory (export "memory") 1))
                (core instance $i (instantiate $m))
                (alias core export $i "memory" (core memory $memory))
                (alias core export $i "realloc" (core func $realloc))
                (alias core export $i "offramp:policy/guest@1.0.0#decide" (core func $decide))
                (alias core export $i "offramp:policy/guest@1.0.0#configure" (core func $configure))
                (func $f (canon lift (core func $configure) (memory $memory) (realloc $realloc)))
                {lift}
                {after})"#
        );
        wat::parse_str(text).unwrap()
    }

    #[test]
    fn what_is_put_together_otherwise_has_no_plan() {
        let decide = "(func $g (canon lift (core func $decide)))";
        assert!(Plan::of(&component(decide, "")).is_some());
        assert!(Plan::of(&component("", "")).is_none(), "no decide");
        assert!(
            Plan::of(&component(&decide.repeat(2).replacen("$g", "", 1), "")).is_none(),
            "two of them"
        );
        let utf16 = "(func $g (canon lift (core func $decide) string-encoding=utf16))";
        assert!(Plan::of(&component(utf16, "")).is_none(), "another encoding");
        let second = r#"(core instance $j (instantiate $m)) (alias core export $j "memory" (core memory $other))
            (func $h (canon lift (core func $decide) (memory $other)))"#;
        assert!(Plan::of(&component(decide, second)).is_none(), "a second memory");
        let many = |count: u32| "(core instance (instantiate $m))".repeat(count as usize);
        assert!(Plan::of(&component(decide, &many(CORE_INSTANCES - 1))).is_some());
        assert!(
            Plan::of(&component(decide, &many(CORE_INSTANCES))).is_none(),
            "too many instances"
        );
        let other = r#"(alias core export $i "decide" (core func $x)) (func $h (canon lift (core func $x)))"#;
        assert!(
            Plan::of(&component(decide, other)).is_none(),
            "a function that is none of the contract's"
        );
        let newer = other.replace("decide", "offramp:policy/guest@2.0.0#decide");
        assert!(Plan::of(&component(decide, &newer)).is_none(), "one of another version");
        assert!(Plan::of(&component(decide, "(component)")).is_some());
        assert!(
            Plan::of(&component(decide, "(component (core module))")).is_none(),
            "code inside"
        );
        let named = |bytes: usize| format!(r#"(alias core export $i "{}" (core func))"#, "x".repeat(bytes));
        assert!(Plan::of(&component(decide, &named(NAME))).is_some());
        assert!(Plan::of(&component(decide, &named(NAME + 1))).is_none(), "a long name");
        let aliases = r#"(alias core export $i "realloc" (core func))"#.repeat(ITEMS);
        assert!(Plan::of(&component(decide, &aliases)).is_none(), "too many aliases");
        let items = r#"(export "realloc" (func $realloc))"#.to_owned();
        let bag = |items: &str| format!("(core instance {items})");
        assert!(Plan::of(&component(decide, &bag(&items))).is_some());
        let items: String = (0..=ITEMS)
            .map(|n| format!(r#"(export "f{n}" (func $realloc))"#))
            .collect();
        assert!(Plan::of(&component(decide, &bag(&items))).is_none(), "too many items");
        for damaged in [&b"\0asm"[..], b"", &component(decide, "")[..300]] {
            assert!(Plan::of(damaged).is_none());
        }
        // A component inside that says it goes on behind the end.
        let mut open = component(decide, "");
        open.extend_from_slice(&[4, 9]);
        open.extend_from_slice(b"\0asm\x0d\0\x01\0");
        assert!(Plan::of(&open).is_none());
    }
}
