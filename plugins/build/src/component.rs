use wasm_encoder::{ExportKind, ExportSection, Module, RawSection};
use wasmparser::{ExternalKind, Parser, Payload};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// The contract.
const WIT: &str = include_str!("../../wit/policy.wit");
/// The functions of the contract, by their short names and in full.
const FUNCTIONS: [(&str, &str); 5] = [
    ("configure", "offramp:policy/guest@1.1.0#configure"),
    ("decide", "offramp:policy/guest@1.1.0#decide"),
    ("observe", "offramp:policy/observer@1.1.0#observe"),
    ("save", "offramp:policy/state@1.1.0#save"),
    ("restore", "offramp:policy/state@1.1.0#restore"),
];

/// A core module that is no exit policy.
#[derive(Debug, thiserror::Error)]
#[error(
    "the module is no exit policy ({reason}); in Rust, does the crate call `export_policy!`? In other languages, does it \
     export memory, `cabi_realloc` and the functions of the contract, by the names of `plugins/wit/policy.wit`?"
)]
pub struct ComponentError {
    reason: String,
}

/// Wraps a core module into a component, by the interface description that its bindings left in it. A module without
/// one, as other languages make them, is held to the contract's own: to its world `stateful-policy` where it looks back,
/// and otherwise to `exit-policy`. Its functions may have the names of the contract, or short ones (`decide`).
///
/// # Errors
///
/// When the module is malformed, lacks what it promises, or imports functions from outside the contract.
pub fn component(module: &[u8]) -> Result<Vec<u8>, ComponentError> {
    let refuse = |reason: String| ComponentError { reason };
    let mut module = module.to_vec();
    if !is_described(&module).map_err(|error| refuse(error.to_string()))? {
        let (named, world) = renamed(&module).map_err(|error| refuse(error.to_string()))?;
        module = named;
        describe(&mut module, world).map_err(|error| refuse(format!("{error:#}")))?;
    }
    ComponentEncoder::default()
        .validate(true)
        .module(&module)
        .and_then(|mut encoder| encoder.encode())
        .map_err(|error| refuse(format!("{error:#}")))
}

/// Whether bindings have left their description.
fn is_described(module: &[u8]) -> wasmparser::Result<bool> {
    for payload in Parser::new(0).parse_all(module) {
        if let Payload::CustomSection(section) = payload?
            && section.name().starts_with("component-type")
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The module with the names of the contract, where it has the short ones: not every language can write the others. And
/// the world that it is of.
fn renamed(module: &[u8]) -> wasmparser::Result<(Vec<u8>, &'static str)> {
    let mut out = Module::new();
    let mut world = "exit-policy";
    for payload in Parser::new(0).parse_all(module) {
        let payload = payload?;
        if let Payload::ExportSection(section) = payload {
            let mut exports = ExportSection::new();
            for export in section {
                let export = export?;
                let full = FUNCTIONS
                    .iter()
                    .find(|(short, full)| [*short, *full].contains(&export.name));
                let name = match (export.kind, full) {
                    (ExternalKind::Func, Some((_, full))) => full,
                    _ => export.name,
                };
                if name.contains("/observer@") || name.contains("/state@") {
                    world = "stateful-policy";
                }
                let kind = match export.kind {
                    ExternalKind::Func | ExternalKind::FuncExact => ExportKind::Func,
                    ExternalKind::Table => ExportKind::Table,
                    ExternalKind::Memory => ExportKind::Memory,
                    ExternalKind::Global => ExportKind::Global,
                    ExternalKind::Tag => ExportKind::Tag,
                };
                exports.export(name, kind, export.index);
            }
            out.section(&exports);
        } else if let Some((id, range)) = payload.as_section() {
            let data = &module[range];
            out.section(&RawSection { id, data });
        }
    }
    Ok((out.finish(), world))
}

fn describe(module: &mut Vec<u8>, world: &str) -> Result<(), Box<dyn std::error::Error>> {
    let mut resolve = Resolve::default();
    let package = resolve.push_source("policy.wit", WIT)?;
    let world = resolve.select_world(&[package], Some(world))?;
    embed_component_metadata(module, &resolve, world, StringEncoding::UTF8)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_functions_that_modules_are_renamed_to_are_the_contracts() {
        let version = WIT.split_once("package offramp:policy@").unwrap().1;
        let version = version.split_once(';').unwrap().0;
        for (short, full) in FUNCTIONS {
            let interface = full.strip_prefix("offramp:policy/");
            let (interface, rest) = interface.and_then(|rest| rest.split_once('@')).unwrap();
            assert_eq!(rest, format!("{version}#{short}"));
            let declared = WIT.split_once(&format!("interface {interface} {{")).unwrap().1;
            assert!(declared.contains(&format!("    {short}: func(")), "{full}");
        }
    }

    #[test]
    fn what_is_no_policy_is_refused_with_a_reason() {
        for module in [&b""[..], b"\0asm", b"\0asm\x01\0\0\0"] {
            assert!(
                component(module).unwrap_err().to_string().contains("no exit policy"),
                "{module:?}"
            );
        }
    }
}
