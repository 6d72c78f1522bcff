//! Heads as bytes, for the device's store.
//!
//! Layout, little-endian: magic `OFRH`, format `u16` = 1, exits `u16`, [`fingerprint`] of the base heads
//! `u64`; then per exit K `u32`, C `u32`, K·C weights and K biases as `f32`. Heads of another model are
//! refused by the fingerprint: features of one backbone mean nothing to heads of another.

use alloc::vec::Vec;

use crate::head::Head;

const MAGIC: [u8; 4] = *b"OFRH";
const FORMAT: u16 = 1;

/// Why a checkpoint is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// Not a checkpoint, cut off, or of a format that this version does not know.
    #[error("not a checkpoint of heads in format {FORMAT}")]
    Malformed,
    /// Made with other base heads.
    #[error("checkpoint belongs to another model")]
    OtherModel,
    /// A weight is NaN or infinite.
    #[error("checkpoint holds a weight that is not finite")]
    NotFinite,
}

/// FNV-1a of the bits of all weights: tells the heads of one model from another's.
pub fn fingerprint(heads: &[Head]) -> u64 {
    heads
        .iter()
        .flat_map(|head| head.weights().iter().chain(head.bias()))
        .fold(0xcbf2_9ce4_8422_2325, |hash, w| {
            (hash ^ u64::from(w.to_bits())).wrapping_mul(0x0000_0100_0000_01b3)
        })
}

pub(crate) fn encode(heads: &[Head], base: u64) -> Vec<u8> {
    let numbers: usize = heads.iter().map(|h| h.weights().len() + h.bias().len()).sum();
    let mut bytes = Vec::with_capacity(16 + 8 * heads.len() + 4 * numbers);
    bytes.extend(MAGIC);
    bytes.extend(FORMAT.to_le_bytes());
    bytes.extend((heads.len() as u16).to_le_bytes());
    bytes.extend(base.to_le_bytes());
    for head in heads {
        bytes.extend((head.classes() as u32).to_le_bytes());
        bytes.extend((head.features() as u32).to_le_bytes());
        bytes.extend(head.weights().iter().chain(head.bias()).flat_map(|w| w.to_le_bytes()));
    }
    bytes
}

/// Reads heads of the shapes of `base`.
pub(crate) fn decode(mut bytes: &[u8], base: &[Head]) -> Result<Vec<Head>, CheckpointError> {
    fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], CheckpointError> {
        let (head, rest) = bytes.split_first_chunk().ok_or(CheckpointError::Malformed)?;
        *bytes = rest;
        Ok(*head)
    }
    fn take_floats(bytes: &mut &[u8], n: usize) -> Result<Vec<f32>, CheckpointError> {
        let (head, rest) = bytes.split_at_checked(4 * n).ok_or(CheckpointError::Malformed)?;
        *bytes = rest;
        Ok(head.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }
    let b = &mut bytes;
    if take(b)? != MAGIC || u16::from_le_bytes(take(b)?) != FORMAT {
        return Err(CheckpointError::Malformed);
    }
    let exits = u16::from_le_bytes(take(b)?);
    if u64::from_le_bytes(take(b)?) != fingerprint(base) || usize::from(exits) != base.len() {
        return Err(CheckpointError::OtherModel);
    }
    let mut heads = Vec::with_capacity(base.len());
    for base in base {
        let (classes, features) = (
            u32::from_le_bytes(take(b)?) as usize,
            u32::from_le_bytes(take(b)?) as usize,
        );
        if (classes, features) != (base.classes(), base.features()) {
            return Err(CheckpointError::OtherModel);
        }
        let (weights, bias) = (take_floats(b, classes * features)?, take_floats(b, classes)?);
        heads.push(Head::new(classes, features, weights, bias).map_err(|_| CheckpointError::NotFinite)?);
    }
    if b.is_empty() {
        Ok(heads)
    } else {
        Err(CheckpointError::Malformed)
    }
}
