//! `offramp policy new`: a project that builds, with all it needs but a compiler.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;

/// Longest name of a policy.
const MAX_NAME: usize = 64;

const SDK_MANIFEST: &str = include_str!("../../../../../plugins/sdk/Cargo.toml");
const WIT: &str = include_str!("../../../../../plugins/wit/policy.wit");
const TEMPLATE: &str = include_str!("../../../../../plugins/template/lib.rs");

macro_rules! sdk {
    ($($file:literal),*) => {
        [$(($file, include_str!(concat!("../../../../../plugins/sdk/src/", $file)))),*]
    };
}

/// The SDK's sources, as they are in this program's own repository.
const SDK: [(&str, &str); 5] = sdk!("export.rs", "lib.rs", "log.rs", "parameters.rs", "runtime.rs");

/// What is made.
#[derive(Args, Debug)]
pub struct New {
    /// Name of the policy: small letters, digits and `-`.
    name: String,
    /// Folder to make; without it, one of the policy's name here.
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
    /// Use the SDK in this folder instead of a copy inside the project.
    #[arg(long, value_name = "DIR")]
    sdk: Option<PathBuf>,
}

/// Makes the project.
///
/// # Errors
/// When the name is none, the folder is there, or a file cannot be written.
pub fn new(new: &New) -> anyhow::Result<()> {
    let name = new.name.as_str();
    let letters = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    if name.len() > MAX_NAME || !name.bytes().all(letters) || !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        bail!("`{name}` is no name for a policy: up to {MAX_NAME} small letters, digits and `-`, a letter first");
    }
    let folder = new.path.clone().unwrap_or_else(|| name.into());
    if folder.exists() {
        bail!(
            "{} is there already: give another name, or another folder with --path",
            folder.display()
        );
    }
    let sdk = match &new.sdk {
        None => PathBuf::from("sdk"),
        Some(sdk) => fs::canonicalize(sdk).with_context(|| format!("no SDK in {}", sdk.display()))?,
    };
    let mut files = vec![
        ("Cargo.toml".to_owned(), manifest(name, &sdk)),
        ("src/lib.rs".into(), TEMPLATE.into()),
        ("offramp.toml".into(), config(name)),
        ("README.md".into(), readme(name)),
        (
            ".gitignore".into(),
            format!("/target\n/{name}.wasm\n/offramp-state.redb*\n"),
        ),
    ];
    if new.sdk.is_none() {
        files.push(("sdk/Cargo.toml".into(), sdk_manifest()));
        files.extend(SDK.map(|(file, text)| (format!("sdk/src/{file}"), text.into())));
        files.push(("wit/policy.wit".into(), WIT.into()));
    }
    for (file, text) in files {
        write(&folder.join(file), &text)?;
    }
    eprintln!("{} is made. Next:\n\n  offramp policy build {0}", folder.display());
    Ok(())
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let context = || format!("{} cannot be written", path.display());
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(context)?;
    }
    fs::write(path, text).with_context(context)
}

fn manifest(name: &str, sdk: &Path) -> String {
    format!(
        r#"[package]
name = "{name}"
version = "0.1.0"
edition = "2024"
publish = false

# Policies are compiled for WebAssembly, whatever else is built around them.
[workspace]

[dependencies]
offramp-policy-sdk = {{ path = "{}" }}

[profile.release]
opt-level = "s"
lto = true
codegen-units = 1
panic = "abort"
strip = true
"#,
        sdk.display()
    )
}

/// The SDK's manifest outside its workspace.
fn sdk_manifest() -> String {
    let dependencies = SDK_MANIFEST.split_once("[dependencies]").map_or("", |(_, rest)| rest);
    format!(
        r#"[package]
name = "offramp-policy-sdk"
version = "{}"
edition = "2024"
rust-version = "{}"
license = "Apache-2.0 OR MIT"
publish = false

[dependencies]{dependencies}"#,
        env!("CARGO_PKG_VERSION"),
        env!("CARGO_PKG_RUST_VERSION")
    )
}

/// A device that shows the embedded sample.
fn config(name: &str) -> String {
    format!(
        r#"[device]
id = "bench-1"

[camera]
source = "sample"

[policy]
file = "{name}.wasm"
parameters = {{ lead = 0.4 }}
"#
    )
}

fn readme(name: &str) -> String {
    format!(
        "# {name}

An exit policy for Offramp: at each exit of a frame it decides whether to leave there. It is `src/lib.rs`; what it sees is \
described field by field in `wit/policy.wit`.

```
cargo test                          # its unit tests, as ordinary Rust
offramp policy build                # makes {name}.wasm; says what is missing where it cannot
offramp policy check {name}.wasm    # as a device would: imports, exports, fuel of its dearest verdict
offramp policy test {name}.wasm     # on recorded traces, beside the built-in rule
offramp run --config offramp.toml   # on an agent that shows the built-in sample
```

`offramp.toml` is a device's configuration, with the policy and its parameters below `[policy]`. To roll it out to a fleet: `offramp-fleet policy push {name}.wasm --name {name} --version 1`.
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_files_of_the_sdk_go_along() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins/sdk/src");
        let mut there: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        there.sort();
        assert_eq!(there, SDK.map(|(file, _)| file));
        assert!(sdk_manifest().contains("wit-bindgen"), "with what it depends on");
        assert!(!sdk_manifest().contains("workspace = true"));
    }
}
