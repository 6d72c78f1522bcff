//! A shorter way to a component's core function.
//!
//! At each call of a component wasmtime 48 asks the core instance for the function behind it, and of a function that the
//! instance defines itself it puts all facts together anew, by searches through tables of the compiled code: a third
//! of a verdict's time. Of a function that the instance has imported, it takes what is there. So what is called for
//! every frame is led through one more core instance, which imports the function and exports it again. What a component
//! means does not change by that, whatever the function is.

use wasm_encoder::{
    Alias, Component, ComponentAliasSection, Encode, EntityType, ExportKind, ExportSection, ImportSection,
    InstanceSection, Module, ModuleArg, ModuleSection, RawSection, TypeSection, ValType,
};
use wasmparser::{
    BinaryReaderError, ComponentAlias, ComponentAliasSectionReader, ComponentExternalKind, ComponentOuterAliasKind,
    ComponentTypeRef, ExternalKind, Instance, Parser, Payload,
};

use crate::host::CORE_INSTANCES;
use crate::inspect::{GUEST, OBSERVER};

use ValType::{F32, I32};

/// A function of the contract that is called for every frame, as its numbers cross, in the order of the record's fields.
struct Call {
    interface: &'static str,
    function: &'static str,
    parameters: &'static [ValType],
    results: &'static [ValType],
}

const DECIDE: Call = Call {
    interface: GUEST,
    function: "#decide",
    parameters: &[
        I32, I32, I32, F32, F32, F32, I32, F32, F32, F32, F32, I32, F32, F32, F32, F32,
    ],
    results: &[I32],
};

const OBSERVE: Call = Call {
    interface: OBSERVER,
    function: "#observe",
    parameters: &[I32, I32, F32, F32, F32, F32, F32, F32, I32, I32, I32],
    results: &[],
};

impl Call {
    fn is(&self, export: &str) -> bool {
        export.starts_with(self.interface) && export.ends_with(self.function)
    }
}

/// The same component with detours for `decide`, and for `observe` where it has one; `None` where it is put together in
/// another way than tools do it, and is to be taken as it is.
pub(crate) fn shorten(component: &[u8]) -> Option<Vec<u8>> {
    let shorten = |component: &[u8], call| rewrite(component, call).ok().flatten();
    // What comes first has to be led first: the second detour counts from behind the first.
    let shortened = shorten(component, &DECIDE)?;
    let both = shorten(&shortened, &OBSERVE)
        .or_else(|| shorten(component, &OBSERVE).and_then(|observed| shorten(&observed, &DECIDE)));
    Some(both.unwrap_or(shortened))
}

fn rewrite(component: &[u8], call: &Call) -> Result<Option<Vec<u8>>, BinaryReaderError> {
    let mut written = Component::new();
    let (mut modules, mut instances, mut instantiated) = (0, 0, 0);
    let mut done = false;
    let mut depth = 0_u32;
    for payload in Parser::new(0).parse_all(component) {
        let payload = payload?;
        match &payload {
            Payload::End(_) => depth = depth.saturating_sub(1),
            _ if depth > 0 => {}
            // What follows would count from another place.
            Payload::ModuleSection { .. } | Payload::InstanceSection(_) if done => return Ok(None),
            Payload::ModuleSection { .. } => modules += 1,
            Payload::InstanceSection(section) => {
                for instance in section.clone() {
                    instances += 1;
                    instantiated += u32::from(matches!(instance?, Instance::Instantiate { .. }));
                }
            }
            Payload::ComponentImportSection(imports) => {
                for import in imports.clone() {
                    if let ComponentTypeRef::Module(_) = import?.ty {
                        return Ok(None);
                    }
                }
            }
            Payload::ComponentAliasSection(aliases) => {
                let Some(found) = find(aliases, call)? else {
                    return Ok(None);
                };
                if let Found::Call(at, instance, name) = found
                    && !done
                {
                    let data = &component[aliases.range()];
                    split(&mut written, data, aliases, at, |written| {
                        detour(written, call, [modules, instances], instance, name);
                    })?;
                    done = true;
                    continue;
                }
            }
            _ => {}
        }
        if depth == 0
            && let Some((id, range)) = payload.as_section()
        {
            // Where a module ends nobody has looked yet.
            let Some(data) = component.get(range) else {
                return Ok(None);
            };
            written.section(&RawSection { id, data });
        }
        if let Payload::ModuleSection { .. } | Payload::ComponentSection { .. } = payload {
            depth += 1;
        }
    }
    Ok((done && instantiated < CORE_INSTANCES).then(|| written.finish()))
}

enum Found<'a> {
    /// The place of the alias, the core instance, and the name of its export.
    Call(u32, u32, &'a str),
    Others,
}

/// Looks through a section; `None` where it names core modules.
fn find<'a>(aliases: &ComponentAliasSectionReader<'a>, call: &Call) -> Result<Option<Found<'a>>, BinaryReaderError> {
    let mut found = Found::Others;
    for (place, alias) in aliases.clone().into_iter().enumerate() {
        match alias? {
            ComponentAlias::Outer {
                kind: ComponentOuterAliasKind::CoreModule,
                ..
            }
            | ComponentAlias::InstanceExport {
                kind: ComponentExternalKind::Module,
                ..
            } => return Ok(None),
            ComponentAlias::CoreInstanceExport {
                kind: ExternalKind::Func,
                instance_index,
                name,
            } if call.is(name) => {
                found = Found::Call(place as u32, instance_index, name);
            }
            _ => {}
        }
    }
    Ok(Some(found))
}

/// Writes a section of aliases without the one at a place, and what stands for that one there.
fn split(
    written: &mut Component,
    data: &[u8],
    aliases: &ComponentAliasSectionReader<'_>,
    at: u32,
    instead: impl FnOnce(&mut Component),
) -> Result<(), BinaryReaderError> {
    let begin = aliases.range().start;
    let mut places = Vec::new();
    for alias in aliases.clone().into_iter_with_offsets() {
        places.push(alias?.0 - begin);
    }
    places.push(data.len());
    let part = |written: &mut Component, from: u32, to: u32| {
        if from < to {
            let mut section = Vec::new();
            (to - from).encode(&mut section);
            section.extend_from_slice(&data[places[from as usize]..places[to as usize]]);
            let id = wasm_encoder::ComponentSectionId::Alias.into();
            written.section(&RawSection { id, data: &section });
        }
    };
    part(written, 0, at);
    instead(written);
    part(written, at + 1, aliases.count());
    Ok(())
}

/// Writes the module that imports the function and exports it again, its instance, and the alias of what that exports.
/// So many modules and instances are there before.
fn detour(written: &mut Component, call: &Call, [modules, instances]: [u32; 2], instance: u32, name: &str) {
    let mut types = TypeSection::new();
    let (parameters, results) = (call.parameters.iter().copied(), call.results.iter().copied());
    types.ty().function(parameters, results);
    let mut imports = ImportSection::new();
    imports.import("", name, EntityType::Function(0));
    let mut exports = ExportSection::new();
    exports.export(name, ExportKind::Func, 0);
    let mut module = Module::new();
    module.section(&types).section(&imports).section(&exports);
    let mut instantiated = InstanceSection::new();
    instantiated.instantiate(modules, [("", ModuleArg::Instance(instance))]);
    let mut aliases = ComponentAliasSection::new();
    aliases.alias(Alias::CoreInstanceExport {
        instance: instances,
        kind: ExportKind::Func,
        name,
    });
    written
        .section(&ModuleSection(&module))
        .section(&instantiated)
        .section(&aliases);
}

#[cfg(test)]
mod tests {
    use wasmparser::Validator;

    use super::*;

    #[test]
    fn every_shipped_policy_has_its_detour_and_stays_valid() {
        for component in [
            &include_bytes!("../../../plugins/prebuilt/threshold.wasm")[..],
            include_bytes!("../../../plugins/prebuilt/entropy.wasm"),
            include_bytes!("../../../plugins/prebuilt/patience.wasm"),
            include_bytes!("../../../plugins/prebuilt/temporal.wasm"),
            include_bytes!("../../../plugins/prebuilt/budget.wasm"),
            include_bytes!("../../../plugins/prebuilt/deadline.wasm"),
        ] {
            let shortened = shorten(component).expect("made by our tool");
            Validator::new().validate_all(&shortened).unwrap();
            let instances = |component: &[u8]| {
                let sections = Parser::new(0).parse_all(component).map(Result::unwrap);
                let counts = sections.map(|section| match section {
                    Payload::InstanceSection(instances) => instances.count(),
                    _ => 0,
                });
                counts.sum::<u32>()
            };
            let observes = component.windows(8).any(|bytes| bytes == b"#observe");
            let more = instances(&shortened) - instances(component);
            assert_eq!(more, 1 + u32::from(observes));
        }
    }

    #[test]
    fn what_counts_on_from_the_detour_is_left_as_it_is() {
        let wat = |after: &str| {
            wat::parse_str(format!(
                r#"(component
                    (core module $m (func (export "offramp:policy/guest@1.0.0#decide")))
                    (core instance $i (instantiate $m))
                    (alias core export $i "offramp:policy/guest@1.0.0#decide" (core func $f))
                    {after})"#
            ))
            .unwrap()
        };
        assert!(shorten(&wat("")).is_some());
        assert_eq!(shorten(&wat("(core instance (instantiate $m))")), None);
        assert_eq!(shorten(&wat("(core module)")), None);
        assert_eq!(shorten(&wat("(component (core module))")).map(|_| ()), Some(()));
        assert_eq!(shorten(b"\0asm"), None);
        // One more would be one too many.
        let more = |count: u32| {
            let more = "(core instance (instantiate $m))".repeat(count as usize);
            let component = wat::parse_str(format!(
                r#"(component
                    (core module $m (func (export "offramp:policy/guest@1.0.0#decide")))
                    {more}
                    (core instance $i (instantiate $m))
                    (alias core export $i "offramp:policy/guest@1.0.0#decide" (core func $f)))"#
            ));
            shorten(&component.unwrap()).is_some()
        };
        assert!(more(CORE_INSTANCES - 2));
        assert!(!more(CORE_INSTANCES - 1));
        assert_eq!(shorten(&wat::parse_str("(component)").unwrap()), None);
    }
}
