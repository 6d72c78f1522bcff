//! Packages in files and directories.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::string::ToString as _;
use std::vec::Vec;

use crate::archive::read_whole;
use crate::error::{PackageError, Problem};
use crate::package::Package;

impl Package {
    /// Reads a package from a directory, or from one file ([`Package::pack`]), and checks all of it.
    ///
    /// # Errors
    /// What is wrong, and with which part; see [`Problem`].
    pub fn open(directory: &Path) -> Result<Package, PackageError> {
        if directory.is_file() {
            let bytes = read_whole(directory)?;
            return Package::unpack(&directory.display().to_string(), &bytes);
        }
        Package::read_bounded(&directory.display().to_string(), |name, limit| {
            match read_file(&directory.join(name), limit) {
                Ok(bytes) => bytes.map(|bytes| Some(Cow::Owned(bytes))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(Problem::Io(error)),
            }
        })
    }
}

/// Reads at most `limit` bytes. The size is judged before the content is read,
/// and again while it is: a file may grow, and a device has no size.
pub(crate) fn read_file(path: &Path, limit: usize) -> io::Result<Result<Vec<u8>, Problem>> {
    // Opening a pipe would wait for a writer.
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    if metadata.len() > limit as u64 {
        return Ok(Err(Problem::TooLarge {
            bytes: metadata.len(),
            limit,
        }));
    }
    let mut bytes = Vec::with_capacity(metadata.len() as usize);
    File::open(path)?.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > limit {
        return Ok(Err(Problem::TooLarge {
            bytes: bytes.len() as u64,
            limit,
        }));
    }
    Ok(Ok(bytes))
}
