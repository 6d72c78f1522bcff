//! The part of `cargo metadata` that the rules read.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::process;

/// `cargo metadata --format-version 1`.
#[derive(Debug, Deserialize)]
pub struct Metadata {
    /// Every package of the graph.
    pub packages: Vec<Package>,
    /// Ids of our own.
    pub workspace_members: BTreeSet<String>,
    /// Who uses whom, with the features that the whole workspace asks for.
    pub resolve: Resolve,
    /// Where Cargo builds.
    pub target_directory: PathBuf,
    /// The folder of the root manifest.
    pub workspace_root: PathBuf,
}

/// A package.
#[derive(Debug, Deserialize)]
pub struct Package {
    /// Unique in the graph.
    pub id: String,
    /// As in its manifest.
    pub name: String,
    /// What its manifest names, used or not.
    pub dependencies: Vec<Dependency>,
    /// What each feature turns on.
    pub features: BTreeMap<String, Vec<String>>,
}

/// A dependency as a manifest names it.
#[derive(Debug, Deserialize)]
pub struct Dependency {
    /// The package.
    pub name: String,
    /// `None`: normal; else `build` or `dev`.
    pub kind: Option<String>,
    /// Whether a feature has to turn it on.
    pub optional: bool,
    /// What the manifest calls it, where that is not its name.
    pub rename: Option<String>,
}

/// The resolved graph.
#[derive(Debug, Deserialize)]
pub struct Resolve {
    /// One for each package.
    pub nodes: Vec<Node>,
}

/// A package in the graph.
#[derive(Debug, Deserialize)]
pub struct Node {
    /// Its package.
    pub id: String,
    /// Ids of the packages that it uses; of our own, for tests too.
    pub dependencies: Vec<String>,
}

impl Metadata {
    /// Asks Cargo about the workspace in the current folder.
    ///
    /// # Errors
    /// Cargo failed (a lock file that is out of date, for one), or its answer has another form.
    pub fn of_workspace() -> Result<Self> {
        let text = process::output(process::cargo().args(["metadata", "--format-version", "1", "--locked"]))?;
        serde_json::from_str(&text).context("`cargo metadata` printed something else than its format 1")
    }

    /// Our own packages.
    pub fn members(&self) -> impl Iterator<Item = &Package> {
        self.packages
            .iter()
            .filter(|package| self.workspace_members.contains(&package.id))
    }
}
