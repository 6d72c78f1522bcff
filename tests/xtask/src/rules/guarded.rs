//! Outside crates that one crate of ours keeps to itself.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Broken, matches};
use crate::metadata::Metadata;

/// Looks from each of our crates through outside crates only: what it reaches by way of another of ours is found when
/// that one is looked at. What tests use counts too.
pub(super) fn check(metadata: &Metadata, only_through: &[(&str, &str)]) -> Vec<Broken> {
    let names: BTreeMap<&str, &str> = metadata
        .packages
        .iter()
        .map(|package| (package.id.as_str(), package.name.as_str()))
        .collect();
    let uses: BTreeMap<&str, &[String]> = metadata
        .resolve
        .nodes
        .iter()
        .map(|node| (node.id.as_str(), node.dependencies.as_slice()))
        .collect();
    let mut broken = Vec::new();
    for member in metadata.members() {
        let mut seen = BTreeSet::from([member.id.as_str()]);
        let mut open = VecDeque::from([vec![member.id.as_str()]]);
        while let Some(path) = open.pop_front() {
            for next in uses[path[path.len() - 1]].iter().map(String::as_str) {
                if metadata.workspace_members.contains(next) || !seen.insert(next) {
                    continue;
                }
                let path: Vec<&str> = path.iter().copied().chain([next]).collect();
                match only_through.iter().find(|(guarded, _)| matches(guarded, names[next])) {
                    Some((_, holder)) if *holder == member.name => {}
                    Some((guarded, holder)) => broken.push(Broken {
                        edge: path.iter().map(|id| names[id]).collect::<Vec<_>>().join(" -> "),
                        rule: format!("{guarded} is reached through {holder} only: use that"),
                    }),
                    None => open.push_back(path),
                }
            }
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn graph(edges: &[(&str, &[&str])]) -> Metadata {
        let package =
            |name: &str| json!({"id": format!("id of {name}"), "name": name, "dependencies": [], "features": {}});
        let node = |(name, uses): &(&str, &[&str])| {
            let uses: Vec<_> = uses.iter().map(|name| format!("id of {name}")).collect();
            json!({"id": format!("id of {name}"), "dependencies": uses})
        };
        serde_json::from_value(json!({
            "packages": edges.iter().map(|(name, _)| package(name)).collect::<Vec<_>>(),
            "workspace_members": ["id of policy", "id of daemon"],
            "resolve": {"nodes": edges.iter().map(node).collect::<Vec<_>>()},
            "target_directory": "target",
            "workspace_root": ".",
        }))
        .unwrap()
    }

    const RULES: &[(&str, &str)] = &[("wasmtime*", "policy")];

    #[test]
    fn the_holder_reaches_it_and_others_use_the_holder() {
        let graph = graph(&[
            ("policy", &["wasmtime"]),
            ("daemon", &["policy", "log"]),
            ("wasmtime", &["wasmtime-environ"]),
            ("wasmtime-environ", &[]),
            ("log", &[]),
        ]);
        assert_eq!(check(&graph, RULES), []);
    }

    #[test]
    fn a_direct_use_by_another_crate_is_named() {
        let graph = graph(&[
            ("policy", &["wasmtime"]),
            ("daemon", &["policy", "wasmtime"]),
            ("wasmtime", &[]),
        ]);
        let broken = check(&graph, RULES);
        assert_eq!(broken.len(), 1);
        assert_eq!(broken[0].edge, "daemon -> wasmtime");
        assert_eq!(broken[0].rule, "wasmtime* is reached through policy only: use that");
    }

    #[test]
    fn a_use_through_an_outside_crate_is_named_with_its_path() {
        let graph = graph(&[
            ("policy", &[]),
            ("daemon", &["plugins"]),
            ("plugins", &["wasmtime-environ", "plugins-macro"]),
            ("plugins-macro", &["plugins"]),
            ("wasmtime-environ", &[]),
        ]);
        let edges: Vec<_> = check(&graph, RULES).into_iter().map(|broken| broken.edge).collect();
        assert_eq!(edges, ["daemon -> plugins -> wasmtime-environ"]);
    }
}
