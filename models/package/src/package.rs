//! A package that was read and checked.

use alloc::borrow::Cow;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::error::{PackageError, Problem};
use crate::heads::Head;
use crate::limits;
use crate::manifest::{HEADS, MANIFEST, Manifest, VECTORS, WHITENERS};
use crate::vectors::Vectors;
use crate::whiteners::Whitener;
use offramp_proto::Digest;

/// A checked package: manifest, heads, and the bytes of the stages.
///
/// It keeps the stages' bytes in memory; drop it once an engine has loaded them.
#[derive(Debug, Clone)]
pub struct Package {
    label: String,
    manifest: Manifest,
    digest: Digest,
    heads: Vec<Head>,
    whiteners: Vec<Whitener>,
    stages: Vec<Cow<'static, [u8]>>,
    vectors: Option<Cow<'static, [u8]>>,
}

impl Package {
    /// Reads a package from named files in memory and checks all of it.
    ///
    /// `files` gives the bytes of a file by its name and is asked for the
    /// manifest and for every file that the manifest lists. `label` stands for
    /// the package in errors.
    ///
    /// A package may go without its `vectors.safetensors`, even where the
    /// manifest lists it: they only serve to test engines.
    ///
    /// # Errors
    /// What is wrong, and with which part; see [`Problem`].
    pub fn read(
        label: &str,
        mut files: impl FnMut(&str) -> Option<Cow<'static, [u8]>>,
    ) -> Result<Package, PackageError> {
        Package::read_bounded(label, |name, limit| match files(name) {
            Some(bytes) if bytes.len() > limit => Err(Problem::TooLarge {
                bytes: bytes.len() as u64,
                limit,
            }),
            found => Ok(found),
        })
    }

    /// As [`Package::read`], with files that can fail to be read, each of which
    /// must refuse to give more bytes than it is told.
    pub(crate) fn read_bounded(
        label: &str,
        mut files: impl FnMut(&str, usize) -> Result<Option<Cow<'static, [u8]>>, Problem>,
    ) -> Result<Package, PackageError> {
        let refuse = |part: &str, problem| PackageError {
            package: label.to_string(),
            part: part.to_string(),
            problem: Box::new(problem),
        };
        let (manifest, digest) = files(MANIFEST, limits::MANIFEST_BYTES)
            .and_then(|bytes| bytes.ok_or(Problem::Missing))
            .and_then(|bytes| Ok((Manifest::parse(&bytes)?, Digest::of(&bytes))))
            .map_err(|problem| refuse(MANIFEST, problem))?;

        let mut parts = BTreeMap::new();
        let mut room = limits::PACKAGE_BYTES;
        for (name, &expected) in &manifest.digests {
            let bytes = files(name, room.min(limits::PART_BYTES))
                .and_then(|bytes| match bytes {
                    Some(bytes) => check_digest(&bytes, expected).map(|()| Some(bytes)),
                    None if name == VECTORS => Ok(None),
                    None => Err(Problem::Missing),
                })
                .map_err(|problem| refuse(name, problem))?;
            if let Some(bytes) = bytes {
                room -= bytes.len();
                parts.insert(name.as_str(), bytes);
            }
        }

        // A part that the manifest uses but does not list has no digest.
        let mut take = |name: &str| parts.remove(name).ok_or_else(|| refuse(name, Problem::NoDigest));
        let stages = manifest
            .stages
            .iter()
            .map(|stage| take(&stage.file))
            .collect::<Result<_, _>>()?;
        let heads = Head::read_all(&take(HEADS)?, &manifest).map_err(|problem| refuse(HEADS, problem))?;
        let vectors = parts.remove(VECTORS);
        let whiteners = parts
            .remove(WHITENERS)
            .map(|bytes| Whitener::read_all(&bytes, &manifest))
            .transpose()
            .map_err(|problem| refuse(WHITENERS, problem))?
            .unwrap_or_default();
        Ok(Package {
            label: label.to_string(),
            manifest,
            digest,
            heads,
            whiteners,
            stages,
            vectors,
        })
    }

    /// What stands for the package in messages: its path, or the label it was
    /// read under.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The manifest.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The digest of the manifest, and so, as that lists the digests of all
    /// parts, of the whole package.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The heads, one per exit.
    #[must_use]
    pub fn heads(&self) -> &[Head] {
        &self.heads
    }

    /// The whiteners of all exits but the last; none where the package ships none.
    #[must_use]
    pub fn whiteners(&self) -> &[Whitener] {
        &self.whiteners
    }

    /// The ONNX graphs of the stages, in the order of the manifest.
    pub fn stages(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.stages.iter().map(|bytes| &**bytes)
    }

    /// The conformance vectors; `None` where the package goes without.
    ///
    /// # Errors
    /// What is wrong with `vectors.safetensors`; see [`Problem`].
    pub fn vectors(&self) -> Result<Option<Vectors>, PackageError> {
        let read = |bytes: &Cow<'static, [u8]>| Vectors::read(bytes, &self.manifest);
        self.vectors
            .as_ref()
            .map(read)
            .transpose()
            .map_err(|problem| PackageError {
                package: self.label.clone(),
                part: VECTORS.to_string(),
                problem: Box::new(problem),
            })
    }
}

fn check_digest(bytes: &[u8], expected: Digest) -> Result<(), Problem> {
    let found = Digest::of(bytes);
    if found == expected {
        Ok(())
    } else {
        Err(Problem::Digest { expected, found })
    }
}
