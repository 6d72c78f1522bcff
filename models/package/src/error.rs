//! Why a package is refused.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::error::Error;
use core::fmt;

use crate::limits;
use crate::manifest::FORMAT;
use offramp_proto::Digest;

/// A package that is refused: which one, which part of it, and why.
#[derive(Debug)]
pub struct PackageError {
    /// The package: its path, or the label it was read under.
    pub package: String,
    /// The file in the package.
    pub part: String,
    /// What is wrong with the part.
    pub problem: Box<Problem>,
}

impl fmt::Display for PackageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "model package {}: {} {}", self.package, self.part, self.problem)
    }
}

impl Error for PackageError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.problem.source()
    }
}

/// What is wrong with a part; reads on from its name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The manifest or a part that it lists is not there.
    #[error("is missing; copy the whole package again")]
    Missing,
    /// A file larger than [`limits`] allows.
    #[error("is {bytes} bytes long, which is more than the {limit} allowed; is it the right file?")]
    TooLarge {
        /// Its size, as far as it was read.
        bytes: u64,
        /// The limit that it exceeds.
        limit: usize,
    },
    /// A file that cannot be read.
    #[cfg(feature = "std")]
    #[error("cannot be read; check that it is a file and its permissions")]
    Io(#[source] std::io::Error),
    /// Not a package as one file.
    #[cfg(feature = "std")]
    #[error("is no tar archive of a package; make one with `offramp model pack`")]
    Archive(#[source] std::io::Error),
    /// A file in an archive that cannot belong to a package.
    #[cfg(feature = "std")]
    #[error("is {0}; a package holds plain files, each once and with a plain name: pack it again")]
    Stray(&'static str),
    /// The manifest is not UTF-8.
    #[error("is not a text file; export the package again")]
    NotText(#[source] core::str::Utf8Error),
    /// The manifest is not TOML, or lacks a key, or a value has another type.
    #[error("is not a valid manifest; correct it or export the package again")]
    Manifest(#[source] toml::de::Error),
    /// A package of another format.
    #[error(
        "has format {found}, and this program reads format {FORMAT}; \
         update the program or export the package again"
    )]
    Format {
        /// The format number found.
        found: i64,
    },
    /// A value that breaks a rule.
    #[error("has {found} for `{field}`, which must be {rule}; export the package again")]
    Field {
        /// The value's place, as `stages[1].macs`.
        field: String,
        /// The value, or a short description of it.
        found: String,
        /// The rule that it breaks.
        rule: String,
    },
    /// A part that the manifest uses but lists no digest for.
    #[error("has no digest in the manifest; export the package again")]
    NoDigest,
    /// The file is not the one that the manifest was written for.
    #[error(
        "has digest {found}, but the manifest says {expected}: \
         it is damaged or was changed; copy the package again"
    )]
    Digest {
        /// As the manifest says.
        expected: Digest,
        /// Of the bytes at hand.
        found: Digest,
    },
    /// Not a safetensors file.
    #[error("is not a valid safetensors file; export the package again")]
    Tensors(#[source] TensorsError),
    /// A tensor that has to be there.
    #[error("has no tensor `{tensor}`; export the package again")]
    NoTensor {
        /// Its name.
        tensor: String,
    },
    /// A tensor of another type or shape.
    #[error(
        "has tensor `{tensor}` as {found} {found_shape:?}, \
         but the manifest asks for {expected} {expected_shape:?}; export the package again"
    )]
    Tensor {
        /// Its name.
        tensor: String,
        /// The element type found.
        found: String,
        /// The shape found.
        found_shape: Vec<usize>,
        /// The element type expected.
        expected: &'static str,
        /// The shape expected; 0 stands for any size.
        expected_shape: Vec<usize>,
    },
    /// NaN or infinity among the weights.
    #[error("has {value} at index {index} of tensor `{tensor}`; the training diverged or the file is damaged")]
    NotFinite {
        /// The tensor's name.
        tensor: String,
        /// Place of the first such value, in row-major order.
        index: usize,
        /// The value.
        value: f32,
    },
}

/// Why a safetensors file is refused.
#[derive(Debug, thiserror::Error)]
pub enum TensorsError {
    /// The header is longer than is allowed.
    #[error("its header is longer than {} bytes", limits::TENSORS_HEADER_BYTES)]
    HeaderTooLong,
    /// The file breaks the format.
    #[error("{0}")]
    Invalid(String),
}
