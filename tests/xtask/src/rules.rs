//! The rules that the architecture rests on, as tables, and what checks them.
//!
//! Three questions are asked, each of the source that answers it exactly:
//! - which of our crates names which other in its manifest ([`CRATES`]; `cargo metadata`, declared dependencies, those
//!   of features that are off included);
//! - who reaches an outside crate that only one of ours may know ([`ONLY_THROUGH`]; `cargo metadata`, resolved graph);
//! - what a crate pulls in when it is built by itself in its smallest form ([`NEVER_PULLED_IN`]; `cargo tree`, because
//!   the graph of `cargo metadata` joins the features that the whole workspace asks for).

mod closure;
mod edges;
mod guarded;

use std::fmt;

use anyhow::Result;

use crate::metadata::Metadata;

/// Crates that are `no_std` + `alloc`, and run where there is no operating system.
pub const BARE_METAL: [&str; 4] = ["offramp-core", "offramp-model", "offramp-proto", "offramp-policy-sdk"];

/// The target that stands for "no operating system": a Cortex-M4F or M7F.
pub const BARE_METAL_TARGET: &str = "thumbv7em-none-eabihf";

/// One of our crates, and which others of ours its manifest may name.
#[derive(Clone, Copy, Debug)]
pub struct Crate {
    /// Its name.
    pub name: &'static str,
    /// What it may depend on.
    pub needs: Needs,
    /// What its own tests may use besides.
    pub tests_use: &'static [&'static str],
    /// What it may depend on besides, each as long as only this feature turns it on.
    pub behind_features: &'static [(&'static str, &'static [&'static str])],
}

/// What a crate may depend on.
#[derive(Clone, Copy, Debug)]
pub enum Needs {
    /// These crates of ours.
    Only(&'static [&'static str]),
    /// Any: it belongs to the tests, the only place that sees both the agent and the controller.
    Any,
}

const fn ours(name: &'static str, needs: &'static [&'static str]) -> Crate {
    Crate {
        name,
        needs: Needs::Only(needs),
        tests_use: &[],
        behind_features: &[],
    }
}

const fn tests(name: &'static str) -> Crate {
    Crate {
        name,
        needs: Needs::Any,
        tests_use: &[],
        behind_features: &[],
    }
}

/// Every crate of the workspace. What is not listed for a crate is forbidden to it; a crate that is not listed fails
/// the check, so that whoever adds one decides where it belongs.
pub const CRATES: &[Crate] = &[
    // Leaves: nothing of ours.
    ours("offramp-proto", &[]),
    ours("offramp-policy-sdk", &[]),
    ours("offramp-policy-build", &[]),
    ours("offramp-camera", &[]),
    ours("offramp-kernels", &[]),
    ours("offramp-broker", &[]),
    // Digests are the contract's.
    ours("offramp-model", &["offramp-proto"]),
    // The agent.
    ours("offramp-core", &["offramp-proto"]),
    ours("offramp-engine", &["offramp-core", "offramp-kernels", "offramp-model"]),
    ours("offramp-bench", &["offramp-core"]),
    Crate {
        tests_use: &["offramp-policy-build"],
        ..ours("offramp-policy", &["offramp-core", "offramp-proto"])
    },
    ours("offramp-store", &["offramp-core", "offramp-proto"]),
    Crate {
        // Who only reads or writes traces does without wasmtime.
        behind_features: &[("hosted", &["offramp-policy"])],
        ..ours("offramp-trace", &["offramp-core", "offramp-proto"])
    },
    Crate {
        // Who writes policies builds them with the agent's program, which a device does without.
        // The demo shows agent, broker and controller with one command from one binary; a device is built without it.
        behind_features: &[
            ("author", &["offramp-policy-build"]),
            ("demo", &["offramp-broker", "offramp-fleet"]),
        ],
        ..ours(
            "offramp",
            &[
                "offramp-bench",
                "offramp-camera",
                "offramp-core",
                "offramp-engine",
                "offramp-link",
                "offramp-model",
                "offramp-policy",
                // The shipped policies in native code, and what they are written with: `bench policy` times them.
                "offramp-policy-sdk",
                "offramp-proto",
                "offramp-store",
                "offramp-trace",
            ],
        )
    },
    // The controller's side.
    Crate {
        tests_use: &["offramp-broker"],
        ..ours("offramp-link", &["offramp-proto"])
    },
    Crate {
        tests_use: &["offramp-broker", "offramp-core"],
        ..ours(
            "offramp-fleet",
            // Policies and traces: what a rollout would do is replayed before it goes out (ADR 0019). Packages: what devices
            // would refuse is refused when it comes.
            &[
                "offramp-link",
                "offramp-model",
                "offramp-policy",
                "offramp-proto",
                "offramp-trace",
            ],
        )
    },
    // Only the tests see both sides.
    tests("offramp-test-support"),
    tests("xtask"),
];

/// What the tests of every crate may use.
pub const SHARED_BY_TESTS: &[&str] = &["offramp-test-support"];

/// Outside crates, and the one of ours that may reach them. The others use that one, so that replacing the outside
/// crate stays the work of one folder.
pub const ONLY_THROUGH: &[(&str, &str)] = &[
    ("wasmtime*", "offramp-policy"),
    ("tract*", "offramp-engine"),
    ("ort*", "offramp-engine"),
    ("rumqttc*", "offramp-link"),
    ("mqtt5*", "offramp-broker"),
];

/// What a crate never pulls in, not even through others.
#[derive(Clone, Copy, Debug)]
pub struct NeverPulledIn {
    /// The crate, built by itself without default features.
    pub package: &'static str,
    /// For this target; `None`: for the machine that asks.
    pub target: Option<&'static str>,
    /// Names; a last `*` stands for any ending.
    pub never: &'static [&'static str],
    /// The reason, as printed.
    pub why: &'static str,
}

const fn deterministic(package: &'static str) -> NeverPulledIn {
    NeverPulledIn {
        package,
        target: Some(BARE_METAL_TARGET),
        never: &["tokio*", "wasmtime*", "tract*", "rand*", "getrandom", "fastrand"],
        why: "no_std crates are deterministic: no runtime, no engine, no source of chance",
    }
}

/// Closures that are checked.
pub const NEVER_PULLED_IN: &[NeverPulledIn] = &[
    deterministic(BARE_METAL[0]),
    deterministic(BARE_METAL[1]),
    deterministic(BARE_METAL[2]),
    deterministic(BARE_METAL[3]),
    NeverPulledIn {
        package: "offramp",
        target: None,
        never: &[
            "offramp-fleet",
            "offramp-broker",
            "offramp-policy-build",
            "mqtt5*",
            "sqlx*",
            "axum*",
        ],
        why: "an agent built for a device (--no-default-features) carries neither controller nor broker, and builds no \
              policies",
    },
    NeverPulledIn {
        package: "offramp-fleet",
        target: None,
        never: &[
            "offramp",
            "offramp-engine",
            "offramp-store",
            "offramp-camera",
            "offramp-broker",
        ],
        why: "of the agent, the controller has the host of policies and the replay of traces, and nothing else",
    },
];

/// A rule that the tree breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The offending dependency, from crate to crate.
    pub edge: String,
    /// The rule, and where to change it.
    pub rule: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n    {}", self.edge, self.rule)
    }
}

/// Every rule that the workspace in the current folder, whose `metadata` this is, breaks.
///
/// # Errors
/// Cargo could not tell what a crate pulls in.
pub fn check(metadata: &Metadata) -> Result<Vec<Broken>> {
    let mut broken = edges::check(metadata, CRATES);
    broken.extend(guarded::check(metadata, ONLY_THROUGH));
    for rule in NEVER_PULLED_IN {
        broken.extend(closure::check(rule, &closure::tree(rule)?));
    }
    Ok(broken)
}

/// Whether `name` is `pattern`, or starts with it where it ends in `*`.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    }
}
