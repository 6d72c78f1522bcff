//! CBOR in and out, bounded.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::{Serialize, de::DeserializeOwned};

/// Largest message in bytes, checked before a byte of it is decoded.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// Why bytes are not a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// More bytes than any message may have.
    #[error("message of {0} bytes is larger than the {MAX_MESSAGE} allowed")]
    TooLarge(usize),
    /// Not CBOR, too deeply nested, cut off, followed by more, or of another shape.
    #[error("not a {subject}: {reason}")]
    Malformed {
        /// The message that was expected.
        subject: &'static str,
        /// What the decoder found.
        reason: String,
    },
    /// A list, string or number beyond what the contract allows.
    #[error("{subject}: {field} is outside its bounds")]
    OutOfBounds {
        /// The message that was expected.
        subject: &'static str,
        /// The field at fault.
        field: &'static str,
    },
}

/// A type that travels.
pub trait Message: Serialize + DeserializeOwned {
    /// Name of the message in the contract.
    const NAME: &'static str;

    /// Checks the bounds that the type itself cannot express; names the first field at fault.
    fn check(&self) -> Result<(), &'static str>;
}

/// Encodes a message.
///
/// # Errors
/// When the message is outside its own bounds: what cannot be decoded is never sent.
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, DecodeError> {
    message.check().map_err(|field| DecodeError::OutOfBounds {
        subject: M::NAME,
        field,
    })?;
    let bytes = serde_cbor::to_vec(message).map_err(|e| DecodeError::Malformed {
        subject: M::NAME,
        reason: e.to_string(),
    })?;
    if bytes.len() > MAX_MESSAGE {
        Err(DecodeError::TooLarge(bytes.len()))
    } else {
        Ok(bytes)
    }
}

/// Decodes and checks a message; unknown fields are ignored.
///
/// # Errors
/// See [`DecodeError`]. Never panics, and never allocates more than a small multiple of the input.
pub fn decode<M: Message>(bytes: &[u8]) -> Result<M, DecodeError> {
    if bytes.len() > MAX_MESSAGE {
        return Err(DecodeError::TooLarge(bytes.len()));
    }
    let message: M = serde_cbor::from_slice(bytes).map_err(|e| DecodeError::Malformed {
        subject: M::NAME,
        reason: e.to_string(),
    })?;
    message.check().map_err(|field| DecodeError::OutOfBounds {
        subject: M::NAME,
        field,
    })?;
    Ok(message)
}
