//! The keys that sign desired states: 32 secret bytes each, the oldest first, in a file that only its owner may read.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use offramp_proto::{PublicKey, SigningKey};

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
        "signing key {} has {found} bytes instead of 32 a key: restore it from a backup, or remove it to make a new key (devices then have to be given the new public key)",
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

/// The keys of a fleet.
#[derive(Debug)]
pub struct Keyring {
    path: PathBuf,
    /// The oldest first; never empty.
    keys: RwLock<Vec<Arc<SigningKey>>>,
}

impl Keyring {
    /// Reads the keys in `path`; makes a first one when there is no such file.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn load_or_generate(path: &Path) -> Result<Self, KeyError> {
        if !path.exists() {
            // Whoever comes first wins: what stands in the file is the key.
            write_new(path, &seed()?).map_err(|source| write_error(path, source))?;
        }
        Ok(Self {
            path: path.into(),
            keys: RwLock::new(load(path)?),
        })
    }

    /// With what devices verify: the oldest first.
    pub fn public(&self) -> Vec<PublicKey> {
        self.keys().iter().map(|key| key.public()).collect()
    }

    /// The youngest of them.
    pub fn newest(&self) -> PublicKey {
        self.keys().last().map(|key| key.public()).expect("a key")
    }

    fn keys(&self) -> Vec<Arc<SigningKey>> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The key of which this is the public part. Another controller may have added it to the file.
    pub(crate) fn find(&self, public: &PublicKey) -> Result<Option<Arc<SigningKey>>, KeyError> {
        let found = |keys: &[Arc<SigningKey>]| keys.iter().find(|key| key.public() == *public).cloned();
        if let Some(key) = found(&self.keys()) {
            return Ok(Some(key));
        }
        let keys = load(&self.path)?;
        let key = found(&keys);
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
        Ok(key)
    }

    /// Makes a new key, and keeps it.
    pub(crate) fn add(&self) -> Result<PublicKey, KeyError> {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let seed = seed()?;
        let mut bytes = fs::read(&self.path).map_err(|source| KeyError::Read {
            path: self.path.clone(),
            source,
        })?;
        bytes.extend_from_slice(&seed);
        replace(&self.path, &bytes).map_err(|source| write_error(&self.path, source))?;
        *keys = load(&self.path)?;
        Ok(SigningKey::from_seed(&seed).public())
    }
}

fn load(path: &Path) -> Result<Vec<Arc<SigningKey>>, KeyError> {
    let cannot_read = |source| KeyError::Read {
        path: path.into(),
        source,
    };
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = fs::metadata(path).map_err(cannot_read)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Exposed {
                path: path.into(),
                mode,
            });
        }
    }
    let bytes = fs::read(path).map_err(cannot_read)?;
    let (seeds, rest) = bytes.as_chunks::<32>();
    if seeds.is_empty() || !rest.is_empty() {
        return Err(KeyError::Length {
            path: path.into(),
            found: bytes.len() as u64,
        });
    }
    Ok(seeds.iter().map(|seed| Arc::new(SigningKey::from_seed(seed))).collect())
}

fn seed() -> Result<[u8; 32], KeyError> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|e| KeyError::Random(io::Error::other(e.to_string())))?;
    Ok(seed)
}

fn write_error(path: &Path, source: io::Error) -> KeyError {
    KeyError::Write {
        path: path.into(),
        source,
    }
}

/// Writes a file, which only its owner may read, in the place of another, whole or not at all.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = folder(path);
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    fs::File::open(folder)?.sync_all()
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Writes a new file, which only its owner may read, whole or not at all; one that is there already is left alone.
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = folder(path);
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
        let ring = Keyring::load_or_generate(&path).unwrap();
        let second = Keyring::load_or_generate(&path).unwrap();
        assert_eq!(ring.public(), second.public());
        let new = ring.add().unwrap();
        assert_eq!((ring.newest(), ring.public().len()), (new.clone(), 2));
        assert_eq!(
            second.find(&new).unwrap().unwrap().public(),
            new,
            "another one has added it"
        );
        let stranger = SigningKey::from_seed(&[1; 32]).public();
        assert!(second.find(&stranger).unwrap().is_none());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn key_that_others_may_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fleet.key");
        Keyring::load_or_generate(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = Keyring::load_or_generate(&path).unwrap_err();
        assert!(matches!(error, KeyError::Exposed { mode: 0o640, .. }), "{error}");
    }

    #[test]
    fn damaged_key_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fleet.key");
        fs::write(&path, b"short").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let error = Keyring::load_or_generate(&path).unwrap_err();
        assert!(matches!(error, KeyError::Length { found: 5, .. }), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"short");
    }
}
