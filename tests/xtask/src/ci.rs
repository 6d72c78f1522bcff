//! What CI runs besides the tests.

use std::time::Instant;

use anyhow::{Result, bail};

use crate::metadata::Metadata;
use crate::{adr, bare_metal, deny, portable, process, rules};

type Step<'a> = (&'a str, &'a dyn Fn() -> Result<()>);

/// Runs every step, prints how long each took, and fails if one did: a run shows all that is wrong.
///
/// # Errors
/// Names the steps that failed; why stands in the output.
pub fn run(metadata: &Metadata) -> Result<()> {
    let target = &metadata.target_directory;
    let cargo = |args: &str| process::run(process::cargo().args(args.split(' ')));
    run_steps(&[
        ("fmt", &|| cargo("fmt --all --check")),
        ("rules", &|| rules(metadata)),
        ("clippy", &|| {
            cargo("clippy --release --locked --workspace --all-targets -- -D warnings")
        }),
        // What a device is built with: the demo is a default feature.
        ("clippy of the device's agent", &|| {
            cargo("clippy --release --locked --package offramp --no-default-features -- -D warnings")
        }),
        ("bare-metal", &|| bare_metal::build(target)),
        ("portable", &|| portable::check(target)),
        ("advisories", &|| deny::advisories(target)),
        ("bans, licences, sources", &|| deny::bans_licenses_sources(target)),
    ])
}

/// Checks the dependency rules and the decision records.
///
/// # Errors
/// A rule is broken; each is printed with the offending edge.
pub fn rules(metadata: &Metadata) -> Result<()> {
    let broken = rules::check(metadata)?;
    let records = adr::check(&metadata.workspace_root.join("docs/adr"))?;
    for broken in &broken {
        println!("{broken}");
    }
    for record in &records {
        println!("{record}");
    }
    match broken.len() + records.len() {
        0 => {
            println!("the dependency rules and the decision records hold");
            Ok(())
        }
        count => bail!("{count} rules are broken"),
    }
}

fn run_steps(steps: &[Step<'_>]) -> Result<()> {
    let mut failed = Vec::new();
    for (name, step) in steps {
        println!("== {name}");
        let start = Instant::now();
        let result = step();
        let seconds = start.elapsed().as_secs_f64();
        match result {
            Ok(()) => println!("== {name}: ok, {seconds:.1} s"),
            Err(error) => {
                println!("== {name}: FAILED, {seconds:.1} s: {error:#}");
                failed.push(*name);
            }
        }
    }
    if failed.is_empty() {
        Ok(())
    } else {
        bail!("failed: {}", failed.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn a_failing_step_does_not_hide_the_later_ones_and_is_named() {
        let ran = RefCell::new(Vec::new());
        let error = run_steps(&[
            ("first", &|| bail!("broken")),
            ("second", &|| {
                ran.borrow_mut().push("second");
                Ok(())
            }),
        ])
        .unwrap_err();
        assert_eq!(ran.into_inner(), ["second"]);
        assert_eq!(error.to_string(), "failed: first");
    }
}
