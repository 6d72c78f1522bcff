//! The key that signs desired states: 32 secret bytes in a file that only its owner may read.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use offramp_proto::SigningKey;

/// What is wrong with the key file.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It is there but cannot be read.
    #[error("cannot read signing key {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It could not be made.
    #[error("cannot write signing key {}: check that its folder exists and is writable", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is something else.
    #[error(
        "signing key {} has {found} bytes instead of 32: restore it from a backup, or remove it to make a new key (devices then have to be given the new public key)",
        path.display()
    )]
    Length {
        /// The file.
        path: PathBuf,
        /// Bytes in it.
        found: u64,
    },
    /// Others than its owner may read it.
    #[error("signing key {} can be read by others (mode {mode:03o}): run `chmod 600` on it", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The system gave no random bytes.
    #[error("cannot make a signing key: the system gives no random bytes")]
    Random(#[source] io::Error),
}

/// Reads the key in `path`; makes one when there is none.
///
/// # Errors
/// See [`KeyError`].
pub fn load_or_generate(path: &Path) -> Result<SigningKey, KeyError> {
    match fs::metadata(path) {
        Ok(metadata) => load(path, &metadata),
        Err(error) if error.kind() == io::ErrorKind::NotFound => generate(path),
        Err(source) => Err(KeyError::Read {
            path: path.into(),
            source,
        }),
    }
}

fn load(path: &Path, metadata: &fs::Metadata) -> Result<SigningKey, KeyError> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Exposed {
                path: path.into(),
                mode,
            });
        }
    }
    let length = |found| KeyError::Length {
        path: path.into(),
        found,
    };
    if metadata.len() != 32 {
        return Err(length(metadata.len()));
    }
    let bytes = fs::read(path).map_err(|source| KeyError::Read {
        path: path.into(),
        source,
    })?;
    let seed: [u8; 32] = bytes.try_into().map_err(|b: Vec<u8>| length(b.len() as u64))?;
    Ok(SigningKey::from_seed(&seed))
}

fn generate(path: &Path) -> Result<SigningKey, KeyError> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|e| KeyError::Random(io::Error::other(e.to_string())))?;
    write_new(path, &seed).map_err(|source| KeyError::Write {
        path: path.into(),
        source,
    })?;
    // Whoever came first wins: what stands in the file is the key.
    load_or_generate(path)
}

/// Writes a new file, which only its owner may read, whole or not at all; one that is there already is left alone.
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // A temporary file is made with mode 0600.
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Ok(_) => fs::File::open(folder)?.sync_all(),
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error.error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn key_is_made_once_and_only_its_owner_may_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fleet.key");
        let first = load_or_generate(&path).unwrap().public().to_bytes();
        let second = load_or_generate(&path).unwrap().public().to_bytes();
        assert_eq!(first, second);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn key_that_others_may_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fleet.key");
        load_or_generate(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = load_or_generate(&path).unwrap_err();
        assert!(matches!(error, KeyError::Exposed { mode: 0o640, .. }), "{error}");
    }

    #[test]
    fn damaged_key_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fleet.key");
        fs::write(&path, b"short").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let error = load_or_generate(&path).unwrap_err();
        assert!(matches!(error, KeyError::Length { found: 5, .. }), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"short");
    }
}
