//! COSE_Sign1 (RFC 9052) with Ed25519 around what a device must be able to trust.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use coset::{CborSerializable, CoseSign1, CoseSign1Builder, HeaderBuilder, iana};
use ed25519_dalek::{Signature, Signer};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{DecodeError, MAX_MESSAGE, Message, decode, encode};

/// Why a signed message is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// More bytes than any message may have.
    #[error("signed message of {0} bytes is larger than the {MAX_MESSAGE} allowed")]
    TooLarge(usize),
    /// Not a COSE_Sign1 object: nobody signed this.
    #[error("message is not signed: {0}")]
    NotSigned(String),
    /// Signed in a way that is not Ed25519 as we write it.
    #[error("message is signed with another algorithm than EdDSA")]
    Algorithm,
    /// The signature does not fit the content and the key.
    #[error("signature does not fit: the message was altered, or signed with a key that this device does not trust")]
    Signature,
    /// Rightly signed, but not the message that was expected.
    #[error(transparent)]
    Content(#[from] DecodeError),
}

/// Why a message could not be signed.
pub type SignError = DecodeError;

/// The controller's secret key.
pub struct SigningKey(ed25519_dalek::SigningKey);

impl SigningKey {
    /// A key from 32 secret, uniformly random bytes.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(seed))
    }

    /// The key with which devices verify.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// Encodes a message and wraps it in a COSE_Sign1 object.
    ///
    /// # Errors
    /// When the message is outside its bounds.
    pub fn sign<M: Message>(&self, message: &M) -> Result<Vec<u8>, SignError> {
        let header = HeaderBuilder::new().algorithm(iana::Algorithm::EdDSA).build();
        CoseSign1Builder::new()
            .protected(header)
            .payload(encode(message)?)
            .create_signature(M::NAME.as_bytes(), |bytes| self.0.sign(bytes).to_vec())
            .build()
            .to_vec()
            .map_err(|e| DecodeError::Malformed {
                subject: M::NAME,
                reason: e.to_string(),
            })
    }
}

impl core::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "SigningKey(public {:?})", self.public())
    }
}

/// The key with which a device verifies what its controller signed.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey(ed25519_dalek::VerifyingKey);

/// Text that is no Ed25519 public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no Ed25519 public key: 64 hexadecimal digits")]
pub struct InvalidKey;

impl core::str::FromStr for PublicKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        // A digest is 32 bytes in hexadecimal, too.
        let bytes: crate::Digest = text.parse().map_err(|_| InvalidKey)?;
        Self::from_bytes(&bytes.0).ok_or(InvalidKey)
    }
}

impl PublicKey {
    /// A key from its 32 bytes; none when they are no point of the curve.
    pub fn from_bytes(bytes: &[u8; 32]) -> Option<Self> {
        ed25519_dalek::VerifyingKey::from_bytes(bytes).ok().map(Self)
    }

    /// Its 32 bytes.
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// Checks the signature, then decodes the message.
    ///
    /// The name of the message is authenticated with it, so that one message is never taken for another.
    ///
    /// # Errors
    /// See [`VerifyError`].
    pub fn verify<M: Message>(&self, bytes: &[u8]) -> Result<M, VerifyError> {
        let signed = parse(bytes)?;
        let eddsa = coset::RegisteredLabelWithPrivate::Assigned(iana::Algorithm::EdDSA);
        if signed.protected.header.alg != Some(eddsa) {
            return Err(VerifyError::Algorithm);
        }
        signed.verify_signature(M::NAME.as_bytes(), |signature, content| {
            let signature = Signature::from_slice(signature).map_err(|_| VerifyError::Signature)?;
            self.0
                .verify_strict(content, &signature)
                .map_err(|_| VerifyError::Signature)
        })?;
        content(signed)
    }
}

/// What a signed message says, whoever signed it: for one that its signer has kept. Not for what came from outside.
///
/// # Errors
/// When it is no signed message of this kind.
pub fn unverified<M: Message>(bytes: &[u8]) -> Result<M, VerifyError> {
    content(parse(bytes)?)
}

fn parse(bytes: &[u8]) -> Result<CoseSign1, VerifyError> {
    if bytes.len() > MAX_MESSAGE {
        return Err(VerifyError::TooLarge(bytes.len()));
    }
    CoseSign1::from_slice(bytes).map_err(|e| VerifyError::NotSigned(e.to_string()))
}

fn content<M: Message>(signed: CoseSign1) -> Result<M, VerifyError> {
    let payload = signed
        .payload
        .ok_or_else(|| VerifyError::NotSigned("it carries no content".to_string()))?;
    Ok(decode(&payload)?)
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(&self.to_bytes())
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let bytes = serde_bytes::ByteBuf::deserialize(d)?;
        let bytes = bytes.as_slice().try_into().ok();
        bytes
            .and_then(Self::from_bytes)
            .ok_or_else(|| de::Error::custom(InvalidKey))
    }
}

impl core::fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.to_bytes().iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}
