//! `offramp policy check`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail};
use offramp_proto::Parameter;
use serde_json::json;

use super::{public_key, verify};
use crate::judge::Workshop;
use crate::{package, terminal};

/// Largest component in bytes that is read; the host's own limit is tighter.
pub const MAX_FILE: u64 = 64 * 1024 * 1024;

/// Reads a component.
///
/// # Errors
/// When the file cannot be read or is far too large.
pub fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let context = || format!("policy {} cannot be read", path.display());
    if fs::metadata(path).with_context(context)?.len() > MAX_FILE {
        bail!("policy {} is larger than {MAX_FILE} bytes", path.display());
    }
    fs::read(path).with_context(context)
}

/// Checks a component as a device would, and lets it decide about a grid of views of the embedded network.
///
/// # Errors
/// What is wrong with it.
pub fn check(path: &Path, parameters: &[String], trusted: Option<&str>, as_json: bool) -> anyhow::Result<()> {
    let component = read(path)?;
    let signed = trusted
        .map(|key| verify(path, &component, &public_key(key)?))
        .transpose()?;
    let parameters = parameters
        .iter()
        .map(|text| Parameter::parse(text))
        .collect::<Result<BTreeMap<_, _>, _>>()?;
    let workshop = Workshop::new(&package::embedded()?)?;
    let report = workshop
        .check(&component, &parameters)
        .with_context(|| format!("policy {} is refused", path.display()))?;
    if as_json {
        let object = json!({
            "digest": report.digest.to_string(), "bytes": report.bytes, "abi": report.abi.to_string(),
            "imports": report.imports, "exports": report.exports, "memory_bytes": report.memory_bytes,
            "configure_fuel": report.configure_fuel, "decide_fuel": report.decide_fuel, "views": report.views,
            "signed": signed.map(|signed| json!({"name": signed.name, "version": signed.version})),
        });
        return Ok(terminal::line(&object.to_string())?);
    }
    let view = &report.dearest_view;
    terminal::line(&format!("{} is a policy that this agent runs", path.display()))?;
    for (name, value) in [
        ("digest", report.digest.to_string()),
        ("size", format!("{} bytes", report.bytes)),
        ("contract", format!("offramp:policy@{}", report.abi)),
        ("imports", list(&report.imports)),
        ("exports", list(&report.exports)),
        ("memory", format!("{} kB at its start", report.memory_bytes / 1024)),
        ("configure", format!("{} fuel", report.configure_fuel)),
        (
            "decide",
            format!(
                "at most {} fuel over {} views (at exit {}, confidence {})",
                report.decide_fuel,
                report.views,
                view.exit + 1,
                view.confidence
            ),
        ),
    ] {
        terminal::line(&format!("  {name:<10} {value}"))?;
    }
    if let Some(signed) = signed {
        terminal::line(&format!("  {:<10} {} {}", "signed as", signed.name, signed.version))?;
    }
    Ok(())
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        "nothing".into()
    } else {
        names.join(", ")
    }
}
