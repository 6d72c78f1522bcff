//! What one crate pulls in when it is built by itself in its smallest form.

use anyhow::{Result, ensure};

use super::{Broken, NeverPulledIn, matches};
use crate::process;

/// What `cargo tree` prints for the crate of a rule: one line a package, its depth before its name.
pub(super) fn tree(rule: &NeverPulledIn) -> Result<String> {
    let mut command = process::cargo_for_one_crate();
    // Procedural macros and what they use run while building, and are not part of the result.
    command.args(["tree", "--locked", "--package", rule.package, "--no-default-features"]);
    command.args([
        "--edges",
        "normal,no-proc-macro",
        "--prefix",
        "depth",
        "--format",
        "{p}",
    ]);
    if let Some(target) = rule.target {
        command.args(["--target", target]);
    }
    let tree = process::output(&mut command)?;
    let roots = tree.lines().filter(|line| line.starts_with('0')).count();
    ensure!(
        roots == 1,
        "`cargo tree --package {}` prints {roots} crates: unset resolver.feature-unification in Cargo's configuration",
        rule.package
    );
    Ok(tree)
}

/// The forbidden packages of a tree, each with the way to it. Cargo prints what a package uses where it first comes up,
/// so every package has a line with a whole path above it.
pub(super) fn check(rule: &NeverPulledIn, tree: &str) -> Vec<Broken> {
    let mut path: Vec<&str> = Vec::new();
    let mut broken: Vec<Broken> = Vec::new();
    for line in tree.lines() {
        let name = line.trim_start_matches(|c: char| c.is_ascii_digit());
        let depth = line[..line.len() - name.len()].parse().unwrap_or(0);
        path.truncate(depth);
        path.push(name.split(' ').next().unwrap_or(name));
        // Once a path is bad, what lies below adds nothing.
        let forbidden = |name: &&str| rule.never.iter().any(|pattern| matches(pattern, name));
        let Some((last, above)) = path.split_last() else {
            continue;
        };
        if forbidden(last) && !above.iter().any(forbidden) {
            broken.push(Broken {
                edge: path.join(" -> "),
                rule: rule.why.into(),
            });
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: NeverPulledIn = NeverPulledIn {
        package: "core",
        target: None,
        never: &["rand*", "tokio"],
        why: "core is deterministic",
    };

    fn edges(tree: &str) -> Vec<String> {
        check(&RULE, tree).into_iter().map(|broken| broken.edge).collect()
    }

    #[test]
    fn a_tree_without_forbidden_crates_passes() {
        assert!(edges("0core v0.1.0 (/x/core)\n1libm v0.2.16\n1tokio-util v0.7.0\n2libm v0.2.16 (*)\n").is_empty());
    }

    #[test]
    fn a_forbidden_crate_is_named_with_the_way_to_it_and_not_what_lies_below() {
        let tree =
            "0core v0.1.0\n1proto v0.1.0\n2signature v3.0.0\n3rand_core v0.9.0\n4rand_inner v0.1.0\n1tokio v1.0.0\n";
        assert_eq!(
            edges(tree),
            ["core -> proto -> signature -> rand_core", "core -> tokio"]
        );
        assert_eq!(check(&RULE, tree)[0].rule, "core is deterministic");
    }
}
