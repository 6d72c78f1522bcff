use wasm_encoder::{ExportKind, ExportSection, Module, RawSection};
use wasmparser::{ExternalKind, Parser, Payload};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// The contract.
const WIT: &str = include_str!("../../wit/policy.wit");
/// The world of a module that says nothing of itself: the least that a policy is.
const WORLD: &str = "exit-policy";
/// The interface whose functions every policy exports.
const GUEST: &str = "offramp:policy/guest@1.1.0";

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
/// one, as other languages make them, is taken for one of the world `exit-policy`.
///
/// # Errors
///
/// When the module is malformed, lacks what it promises, or imports functions from outside the contract.
pub fn component(module: &[u8]) -> Result<Vec<u8>, ComponentError> {
    let refuse = |reason: String| ComponentError { reason };
    let mut module = module.to_vec();
    if !is_described(&module).map_err(|error| refuse(error.to_string()))? {
        module = renamed(&module).map_err(|error| refuse(error.to_string()))?;
        describe(&mut module).map_err(|error| refuse(format!("{error:#}")))?;
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

/// The module with the names of the contract, where it has the short ones: not every language can write the others.
fn renamed(module: &[u8]) -> wasmparser::Result<Vec<u8>> {
    let mut out = Module::new();
    for payload in Parser::new(0).parse_all(module) {
        let payload = payload?;
        if let Payload::ExportSection(section) = payload {
            let mut exports = ExportSection::new();
            for export in section {
                let export = export?;
                let name = match (export.kind, export.name) {
                    (ExternalKind::Func, short @ ("configure" | "decide")) => format!("{GUEST}#{short}"),
                    (_, name) => name.to_owned(),
                };
                let kind = match export.kind {
                    ExternalKind::Func | ExternalKind::FuncExact => ExportKind::Func,
                    ExternalKind::Table => ExportKind::Table,
                    ExternalKind::Memory => ExportKind::Memory,
                    ExternalKind::Global => ExportKind::Global,
                    ExternalKind::Tag => ExportKind::Tag,
                };
                exports.export(&name, kind, export.index);
            }
            out.section(&exports);
        } else if let Some((id, range)) = payload.as_section() {
            let data = &module[range];
            out.section(&RawSection { id, data });
        }
    }
    Ok(out.finish())
}

fn describe(module: &mut Vec<u8>) -> Result<(), Box<dyn std::error::Error>> {
    let mut resolve = Resolve::default();
    let package = resolve.push_source("policy.wit", WIT)?;
    let world = resolve.select_world(&[package], Some(WORLD))?;
    embed_component_metadata(module, &resolve, world, StringEncoding::UTF8)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interface_that_modules_are_renamed_to_is_the_contracts() {
        let version = WIT
            .split_once("package offramp:policy@")
            .unwrap()
            .1
            .split_once(';')
            .unwrap()
            .0;
        assert_eq!(GUEST, format!("offramp:policy/guest@{version}"));
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
