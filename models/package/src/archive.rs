//! Packages as one file.

use std::borrow::Cow;
use std::boxed::Box;
use std::collections::BTreeMap;
use std::io::{self, Cursor};
use std::path::Path;
use std::string::{String, ToString as _};
use std::vec::Vec;

use tar::{Archive, Builder, EntryType, Header};

use crate::directory::read_file;
use crate::error::{PackageError, Problem};
use crate::limits;
use crate::manifest::{MANIFEST, VECTORS, is_part};
use crate::package::Package;

/// What stands for the file in errors.
const WHOLE: &str = "the file";

impl Package {
    /// A checked package of a directory as one file: the manifest and what it lists, in that order. The same package
    /// gives the same bytes everywhere. What is one file already stays as it is.
    ///
    /// # Errors
    /// What is wrong with the package; see [`Problem`].
    pub fn pack(directory: &Path) -> Result<Vec<u8>, PackageError> {
        let package = Package::open(directory)?;
        if directory.is_file() {
            return read_whole(directory);
        }
        let refuse = |part: &str, problem| PackageError {
            package: package.label().to_string(),
            part: part.to_string(),
            problem: Box::new(problem),
        };
        let mut archive = Builder::new(Vec::new());
        let listed = package.manifest().digests.keys().map(String::as_str);
        for name in [MANIFEST].into_iter().chain(listed) {
            let bytes = match read_file(&directory.join(name), limits::PART_BYTES) {
                Ok(bytes) => bytes.map_err(|problem| refuse(name, problem))?,
                Err(error) if error.kind() == io::ErrorKind::NotFound && name == VECTORS => continue,
                Err(error) => return Err(refuse(name, Problem::Io(error))),
            };
            let mut header = Header::new_ustar();
            header.set_entry_type(EntryType::Regular);
            header.set_mode(0o644);
            header.set_size(bytes.len() as u64);
            let added = archive.append_data(&mut header, name, bytes.as_slice());
            added.map_err(|error| refuse(name, Problem::Io(error)))?;
        }
        archive
            .into_inner()
            .map_err(|error| refuse(MANIFEST, Problem::Io(error)))
    }

    /// Reads a package that is one file and checks all of it. Nothing of it is ever written to a disk.
    ///
    /// # Errors
    /// What is wrong, and with which part; see [`Problem`].
    pub fn unpack(label: &str, file: &[u8]) -> Result<Package, PackageError> {
        let parts = contents(label, file)?;
        Package::read(label, |name| {
            let part = parts.get(name)?;
            Some(Cow::Owned(part.to_vec()))
        })
    }
}

/// Reads a package that is one file; what is in it is not looked at.
pub(crate) fn read_whole(path: &Path) -> Result<Vec<u8>, PackageError> {
    let bytes = read_file(path, limits::FILE_BYTES).map_err(Problem::Io);
    bytes.and_then(|bytes| bytes).map_err(|problem| PackageError {
        package: path.display().to_string(),
        part: WHOLE.into(),
        problem: Box::new(problem),
    })
}

/// Where the parts lie, by their names.
fn contents<'f>(label: &str, file: &'f [u8]) -> Result<BTreeMap<String, &'f [u8]>, PackageError> {
    let refuse = |part: &str, problem| PackageError {
        package: label.to_string(),
        part: part.to_string(),
        problem: Box::new(problem),
    };
    let whole = |problem| refuse(WHOLE, problem);
    let damaged = |error| whole(Problem::Archive(error));
    if file.len() > limits::FILE_BYTES {
        return Err(whole(Problem::TooLarge {
            bytes: file.len() as u64,
            limit: limits::FILE_BYTES,
        }));
    }
    let mut archive = Archive::new(Cursor::new(file));
    let mut parts = BTreeMap::new();
    for entry in archive.entries_with_seek().map_err(damaged)? {
        let entry = entry.map_err(damaged)?;
        let path = entry.path_bytes();
        let kind = entry.header().entry_type();
        // As `tar -C DIRECTORY .` writes them.
        let name = path.strip_prefix(b"./").unwrap_or(&path);
        if kind.is_dir() && matches!(name, b"" | b".") {
            continue;
        }
        let name = String::from_utf8_lossy(&name[..name.len().min(2 * limits::NAME_BYTES)]).into_owned();
        if !kind.is_file() {
            return Err(refuse(&name, Problem::Stray("no plain file")));
        }
        if !is_part(&name) && name != MANIFEST {
            return Err(refuse(&name, Problem::Stray("a name that no part has")));
        }
        // One for the manifest itself.
        if parts.len() > limits::PARTS {
            return Err(refuse(&name, Problem::Stray("one file too many")));
        }
        let start = entry.raw_file_position();
        let bytes = start.checked_add(entry.size()).and_then(|end| {
            let range = usize::try_from(start).ok()?..usize::try_from(end).ok()?;
            file.get(range)
        });
        let Some(bytes) = bytes else {
            let cut = io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends within the file");
            return Err(refuse(&name, Problem::Archive(cut)));
        };
        if parts.insert(name.clone(), bytes).is_some() {
            return Err(refuse(&name, Problem::Stray("there twice")));
        }
    }
    Ok(parts)
}
