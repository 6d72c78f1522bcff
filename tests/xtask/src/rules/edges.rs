//! Which of our crates names which other.

use std::collections::BTreeSet;

use super::{Broken, Crate, Needs, SHARED_BY_TESTS};
use crate::metadata::{Dependency, Metadata, Package};

pub(super) fn check(metadata: &Metadata, table: &[Crate]) -> Vec<Broken> {
    let ours: BTreeSet<&str> = metadata.members().map(|package| package.name.as_str()).collect();
    let mut broken = Vec::new();
    for package in metadata.members() {
        let Some(rule) = table.iter().find(|rule| rule.name == package.name) else {
            broken.push(Broken {
                edge: package.name.clone(),
                rule: "every crate stands in the table CRATES of tests/xtask/src/rules.rs: add it".into(),
            });
            continue;
        };
        for dependency in &package.dependencies {
            // A crate may name itself, to test itself with a feature on.
            if ours.contains(dependency.name.as_str()) && dependency.name != package.name {
                broken.extend(check_edge(package, dependency, rule));
            }
        }
    }
    broken.extend(
        table
            .iter()
            .filter(|rule| !ours.contains(rule.name))
            .map(|rule| Broken {
                edge: rule.name.into(),
                rule:
                    "the table CRATES of tests/xtask/src/rules.rs names a crate that is not in the workspace: remove it"
                        .into(),
            }),
    );
    broken
}

fn check_edge(package: &Package, dependency: &Dependency, rule: &Crate) -> Option<Broken> {
    let Needs::Only(needs) = rule.needs else { return None };
    let to = dependency.name.as_str();
    let for_tests = dependency.kind.as_deref() == Some("dev");
    if needs.contains(&to) || for_tests && (rule.tests_use.contains(&to) || SHARED_BY_TESTS.contains(&to)) {
        return None;
    }
    let broken = |rule: String| {
        let kind = dependency
            .kind
            .as_ref()
            .map(|kind| format!(" ({kind})"))
            .unwrap_or_default();
        Some(Broken {
            edge: format!("{} -> {to}{kind}", package.name),
            rule,
        })
    };
    match rule.behind_features.iter().find(|(_, behind)| behind.contains(&to)) {
        Some((feature, _)) => {
            if for_tests {
                broken(format!(
                    "the tests have {to} through the feature `{feature}`: remove the dev-dependency"
                ))
            } else if !dependency.optional {
                broken(format!("{to} is optional, behind the feature `{feature}`"))
            } else if let Some(other) = turned_on_without(package, dependency, feature) {
                broken(format!(
                    "only the feature `{feature}` turns {to} on, but `{other}` does too"
                ))
            } else {
                None
            }
        }
        _ => broken(match needs {
            [] => format!("{} depends on no other crate of ours", rule.name),
            _ => format!(
                "{} depends on no other crate of ours than {}",
                rule.name,
                needs.join(", ")
            ),
        }),
    }
}

/// A feature that turns an optional dependency on without the help of `allowed`.
fn turned_on_without<'a>(package: &'a Package, dependency: &Dependency, allowed: &str) -> Option<&'a str> {
    let called = dependency.rename.as_ref().unwrap_or(&dependency.name);
    let turns_on = |item: &String| {
        item.strip_prefix("dep:").is_some_and(|name| name == called)
            || item.split_once('/').is_some_and(|(name, _)| name == called)
    };
    // Whatever names `allowed` turns it on by way of it, which is what the rule asks for.
    package
        .features
        .iter()
        .find(|(name, items)| *name != allowed && items.iter().any(turns_on))
        .map(|(name, _)| name.as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::ours;
    use super::*;

    /// A workspace of the crates `a` (with these dependencies and features), `b` and `c`.
    fn workspace(dependencies: &Value, features: &Value) -> Metadata {
        let package = |name: &str, dependencies: &Value, features: &Value| json!({"id": name, "name": name, "dependencies": dependencies, "features": features});
        serde_json::from_value(json!({
            "packages": [
                package("a", dependencies, features),
                package("b", &json!([]), &json!({})),
                package("c", &json!([]), &json!({})),
                package("serde", &json!([]), &json!({})),
            ],
            "workspace_members": ["a", "b", "c"],
            "resolve": {"nodes": []},
            "target_directory": "target",
            "workspace_root": ".",
        }))
        .unwrap()
    }

    fn dependency(name: &str, kind: Option<&str>, optional: bool) -> Value {
        json!({"name": name, "kind": kind, "optional": optional, "rename": null})
    }

    const TABLE: &[Crate] = &[ours("a", &["b"]), ours("b", &[]), ours("c", &[])];
    const TABLE_WITH_DEMO: &[Crate] = &[
        Crate {
            behind_features: &[("demo", &["c"])],
            ..ours("a", &["b"])
        },
        ours("b", &[]),
        ours("c", &[]),
    ];

    fn edges_of(broken: &[Broken]) -> Vec<&str> {
        broken.iter().map(|b| b.edge.as_str()).collect()
    }

    #[test]
    fn allowed_and_outside_dependencies_pass() {
        let dependencies = json!([dependency("b", None, false), dependency("serde", None, false)]);
        assert_eq!(check(&workspace(&dependencies, &json!({})), TABLE), []);
    }

    #[test]
    fn an_edge_that_is_not_in_the_table_is_named_with_its_rule() {
        for (kind, edge) in [
            (None, "a -> c"),
            (Some("build"), "a -> c (build)"),
            (Some("dev"), "a -> c (dev)"),
        ] {
            let broken = check(&workspace(&json!([dependency("c", kind, false)]), &json!({})), TABLE);
            assert_eq!(edges_of(&broken), [edge]);
            assert_eq!(broken[0].rule, "a depends on no other crate of ours than b");
        }
    }

    #[test]
    fn an_optional_edge_counts_although_its_feature_is_off() {
        let broken = check(
            &workspace(&json!([dependency("c", None, true)]), &json!({"x": ["dep:c"]})),
            TABLE,
        );
        assert_eq!(edges_of(&broken), ["a -> c"]);
    }

    #[test]
    fn what_only_tests_may_use_is_no_licence_to_depend_on_it() {
        let table = &[
            Crate {
                tests_use: &["c"],
                ..ours("a", &[])
            },
            ours("b", &[]),
            ours("c", &[]),
        ];
        assert_eq!(
            check(
                &workspace(&json!([dependency("c", Some("dev"), false)]), &json!({})),
                table
            ),
            []
        );
        let broken = check(&workspace(&json!([dependency("c", None, false)]), &json!({})), table);
        assert_eq!(edges_of(&broken), ["a -> c"]);
    }

    #[test]
    fn a_crate_missing_from_the_table_and_one_missing_from_the_workspace_are_both_named() {
        let table = &[ours("a", &["b"]), ours("b", &[]), ours("d", &[])];
        assert_eq!(edges_of(&check(&workspace(&json!([]), &json!({})), table)), ["c", "d"]);
    }

    #[test]
    fn a_dependency_behind_its_feature_passes_even_when_the_feature_is_a_default() {
        let dependencies = json!([dependency("c", None, true)]);
        let features = json!({"default": ["demo"], "demo": ["dep:c"]});
        assert_eq!(check(&workspace(&dependencies, &features), TABLE_WITH_DEMO), []);
    }

    #[test]
    fn a_dependency_that_must_be_behind_a_feature_may_not_be_plain() {
        let broken = check(
            &workspace(&json!([dependency("c", None, false)]), &json!({})),
            TABLE_WITH_DEMO,
        );
        assert_eq!(edges_of(&broken), ["a -> c"]);
        assert!(broken[0].rule.contains("`demo`"), "{}", broken[0].rule);
    }

    #[test]
    fn a_second_feature_that_turns_it_on_is_named() {
        let dependencies = json!([dependency("c", None, true)]);
        for features in [
            json!({"demo": ["dep:c"], "other": ["dep:c"]}),
            json!({"demo": ["dep:c"], "other": ["c/tls"]}),
            json!({"demo": ["dep:c"], "default": ["other"], "other": ["dep:c"]}),
        ] {
            let broken = check(&workspace(&dependencies, &features), TABLE_WITH_DEMO);
            assert_eq!(edges_of(&broken), ["a -> c"], "{features}");
            assert!(broken[0].rule.contains("`other`"), "{}", broken[0].rule);
        }
    }
}
