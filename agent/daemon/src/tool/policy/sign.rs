//! `offramp policy sign`: an author vouches for a component, in a file beside it.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use offramp_model::Package;
use offramp_proto::{Digest, MAX_MESSAGE, PolicyStatement, PublicKey, SigningKey};

use super::read;
use crate::judge::Workshop;
use crate::{package, terminal};

/// What is signed, and with what.
#[derive(Args, Debug)]
pub struct Sign {
    /// The component.
    file: PathBuf,
    /// File of the secret key: 64 hexadecimal digits.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Make the key first; its file must not be there.
    #[arg(long)]
    new_key: bool,
    /// Name of the policy; without it that of the file.
    #[arg(long)]
    name: Option<String>,
    /// Version of the policy: a higher one for each change.
    #[arg(long, default_value_t = 1)]
    version: u64,
    /// The signature; without it the component's file with `.sig` behind its name.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Signs a component that a device would take.
///
/// # Errors
/// When the component is refused, or key or signature cannot be read or written.
pub fn sign(sign: &Sign) -> anyhow::Result<()> {
    let component = read(&sign.file)?;
    let package: Package = package::embedded()?;
    let refused = || format!("policy {} is refused", sign.file.display());
    let policy = Workshop::new(&package)?.load(&component).with_context(refused)?;
    let key = if sign.new_key {
        make_key(&sign.key)?
    } else {
        read_key(&sign.key)?
    };
    let name = match (&sign.name, sign.file.file_stem()) {
        (Some(name), _) => name.clone(),
        (None, Some(stem)) => stem.to_string_lossy().into_owned(),
        (None, None) => bail!("the file has no name: give one with --name"),
    };
    let statement = PolicyStatement {
        name,
        version: sign.version,
        digest: Digest::of(&component),
        size: component.len() as u64,
        contract: format!("offramp:policy@{}", policy.abi()),
    };
    let output = sign.output.clone().unwrap_or_else(|| beside(&sign.file));
    let signed = key.sign(&statement)?;
    fs::write(&output, signed).with_context(|| format!("signature {} cannot be written", output.display()))?;
    let public: String = key
        .public()
        .to_bytes()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    terminal::line(&format!(
        "{}: {} {}, for devices whose `[policy] trusted_key` is\n{public}",
        output.display(),
        statement.name,
        statement.version
    ))?;
    Ok(())
}

/// Where a component's signature lies.
fn beside(component: &Path) -> PathBuf {
    let mut name = component.as_os_str().to_owned();
    name.push(".sig");
    name.into()
}

/// What the holder of a key says of a component, by the signature that lies beside it.
///
/// # Errors
/// When there is none, or it is of another key or another component.
pub fn verify(path: &Path, component: &[u8], key: &PublicKey) -> anyhow::Result<PolicyStatement> {
    let signature = beside(path);
    let missing = || {
        format!(
            "policy {} has no signature that can be read; make one with `offramp policy sign`",
            path.display()
        )
    };
    if fs::metadata(&signature).with_context(missing)?.len() > MAX_MESSAGE as u64 {
        bail!("signature {} is larger than any is", signature.display());
    }
    let signed = fs::read(&signature).with_context(missing)?;
    let refused = || format!("signature {} is refused", signature.display());
    let statement: PolicyStatement = key.verify(&signed).with_context(refused)?;
    if statement.digest != Digest::of(component) {
        bail!(
            "signature {} is of another component than {}: {} {}",
            signature.display(),
            path.display(),
            statement.name,
            statement.version
        );
    }
    Ok(statement)
}

/// A public key from its 64 hexadecimal digits.
///
/// # Errors
/// When it is none.
pub fn public_key(digits: &str) -> anyhow::Result<PublicKey> {
    digits.parse().with_context(|| format!("key `{digits}`"))
}

fn read_key(path: &Path) -> anyhow::Result<SigningKey> {
    let unread = || format!("key {} cannot be read; make one with --new-key", path.display());
    let text = fs::read_to_string(path).with_context(unread)?;
    let seed: Option<Digest> = text.trim().parse().ok();
    let seed = seed.with_context(|| format!("key {} is not 64 hexadecimal digits", path.display()))?;
    Ok(SigningKey::from_seed(&seed.0))
}

fn make_key(path: &Path) -> anyhow::Result<SigningKey> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).context("the system gives no random numbers")?;
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let unwritten = || format!("key {} cannot be made", path.display());
    let mut file = options.open(path).with_context(unwritten)?;
    let digits: String = seed.iter().map(|byte| format!("{byte:02x}")).collect();
    writeln!(file, "{digits}").with_context(unwritten)?;
    file.sync_all().with_context(unwritten)?;
    Ok(SigningKey::from_seed(&seed))
}
