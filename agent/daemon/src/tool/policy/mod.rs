//! `offramp policy`.

#[cfg(feature = "author")]
mod build;
mod check;
#[cfg(feature = "author")]
mod new;
mod sign;
pub(crate) mod test;
mod trace;

#[cfg(feature = "author")]
pub use build::{Build, build};
pub use check::{MAX_FILE, check, read};
#[cfg(feature = "author")]
pub use new::{New, new};
pub use sign::{Sign, public_key, sign, verify};
pub use test::{Test, test};
pub use trace::{Trace, trace};

use std::path::Path;

use crate::judge::SHIPPED;

/// The component of a shipped policy's name, or of a file.
fn component(policy: &str) -> anyhow::Result<Vec<u8>> {
    match SHIPPED.iter().find(|(name, _)| *name == policy) {
        Some((_, bytes)) => Ok(bytes.to_vec()),
        None => read(Path::new(policy)),
    }
}
