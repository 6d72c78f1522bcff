//! What a camera has learned as bytes, for the device's store.
//!
//! Layout, little-endian: magic `OFRH`, format `u16` = 2, early exits `u16`, [`fingerprint`] of the base heads
//! `u64`, contexts `u32`; then per context, the least recently entered first: its key `u64`; of its guard the
//! threshold, that at the last promotion, and caution `f32`, strikes `u32`, whether it is paused `u32`, and ln T of each early exit `f32`; what is in
//! force, and what was promoted last, each as K counts of the prior `f32`, and per early exit K `u32`, C `u32`,
//! K·C weights and K biases `f32`. Canaries are not kept: audits bring others.
//!
//! Heads of another model are refused by the fingerprint: features of one backbone mean nothing to heads of
//! another.

use alloc::vec::Vec;

use crate::cascade::Settings;
use crate::context::{Adapted, Contexts};
use crate::guard::Guard;
use crate::head::Head;
use crate::prior::Prior;

const MAGIC: [u8; 4] = *b"OFRH";
const FORMAT: u16 = 2;
/// Most contexts in a checkpoint.
pub(crate) const MAX_CONTEXTS: usize = 64;

/// Why a checkpoint is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// Not a checkpoint, cut off, or of a format that this version does not know.
    #[error("not a checkpoint of heads in format {FORMAT}")]
    Malformed,
    /// Made with other base heads.
    #[error("checkpoint belongs to another model")]
    OtherModel,
    /// A weight is NaN or infinite, or a count is impossible.
    #[error("checkpoint holds a number that cannot be")]
    Number,
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

pub(crate) fn encode(contexts: &Contexts, base: u64) -> Vec<u8> {
    let heads = &contexts.adapted().heads;
    let numbers: usize = heads.iter().map(|h| h.weights().len() + h.bias().len() + 2).sum();
    let classes = contexts.adapted().prior.counts().len();
    let mut bytes = Vec::with_capacity(20 + contexts.len() * (8 + 4 * (classes + numbers)));
    bytes.extend(MAGIC);
    bytes.extend(FORMAT.to_le_bytes());
    bytes.extend((heads.len() as u16).to_le_bytes());
    bytes.extend(base.to_le_bytes());
    bytes.extend((contexts.len() as u32).to_le_bytes());
    for context in contexts.by_age() {
        bytes.extend(context.key.to_le_bytes());
        let guard = &context.guard;
        bytes.extend(guard.threshold.to_le_bytes());
        bytes.extend(guard.good_threshold.to_le_bytes());
        bytes.extend(guard.caution.to_le_bytes());
        bytes.extend(guard.strikes.to_le_bytes());
        bytes.extend(u32::from(guard.paused).to_le_bytes());
        bytes.extend(guard.log_temperatures.iter().flat_map(|t| t.to_le_bytes()));
        for adapted in [&context.adapted, &guard.good] {
            bytes.extend(adapted.prior.counts().iter().flat_map(|n| n.to_le_bytes()));
            for head in &adapted.heads {
                bytes.extend((head.classes() as u32).to_le_bytes());
                bytes.extend((head.features() as u32).to_le_bytes());
                bytes.extend(head.weights().iter().chain(head.bias()).flat_map(|w| w.to_le_bytes()));
            }
        }
    }
    bytes
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], CheckpointError> {
    let (head, rest) = bytes.split_first_chunk().ok_or(CheckpointError::Malformed)?;
    *bytes = rest;
    Ok(*head)
}

fn take_number(bytes: &mut &[u8]) -> Result<u32, CheckpointError> {
    take(bytes).map(u32::from_le_bytes)
}

fn take_floats(bytes: &mut &[u8], n: usize) -> Result<Vec<f32>, CheckpointError> {
    let (head, rest) = bytes.split_at_checked(4 * n).ok_or(CheckpointError::Malformed)?;
    *bytes = rest;
    Ok(head.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

fn take_adapted(b: &mut &[u8], base: &[Head], settings: &Settings) -> Result<Adapted, CheckpointError> {
    let counts = take_floats(b, base[0].classes())?;
    let prior = Prior::from_counts(counts, &settings.learner.prior).ok_or(CheckpointError::Number)?;
    let mut heads = Vec::with_capacity(base.len());
    for base in &base[..base.len() - 1] {
        let (classes, features) = (take_number(b)? as usize, take_number(b)? as usize);
        if (classes, features) != (base.classes(), base.features()) {
            return Err(CheckpointError::OtherModel);
        }
        let (weights, bias) = (take_floats(b, classes * features)?, take_floats(b, classes)?);
        heads.push(Head::new(classes, features, weights, bias).map_err(|_| CheckpointError::Number)?);
    }
    Ok(Adapted { heads, prior })
}

fn take_guard(b: &mut &[u8], base: &[Head]) -> Result<Guard, CheckpointError> {
    let mut guard = Guard::new(base, f32::from_bits(take_number(b)?));
    guard.good_threshold = f32::from_bits(take_number(b)?);
    guard.caution = f32::from_bits(take_number(b)?);
    guard.strikes = take_number(b)?;
    guard.paused = take_number(b)? != 0;
    guard.log_temperatures = take_floats(b, base.len() - 1)?;
    if guard.is_sound() {
        Ok(guard)
    } else {
        Err(CheckpointError::Number)
    }
}

/// Reads what was learned over `base`: keys, heads and guards, the least recently entered first, at least one.
pub(crate) fn decode(
    mut bytes: &[u8],
    base: &[Head],
    settings: &Settings,
) -> Result<Vec<(u64, Adapted, Guard)>, CheckpointError> {
    let b = &mut bytes;
    if take(b)? != MAGIC || u16::from_le_bytes(take(b)?) != FORMAT {
        return Err(CheckpointError::Malformed);
    }
    let early = u16::from_le_bytes(take(b)?);
    if u64::from_le_bytes(take(b)?) != fingerprint(base) || usize::from(early) + 1 != base.len() {
        return Err(CheckpointError::OtherModel);
    }
    let contexts = take_number(b)? as usize;
    if !(1..=MAX_CONTEXTS).contains(&contexts) {
        return Err(CheckpointError::Malformed);
    }
    let mut saved: Vec<(u64, Adapted, Guard)> = Vec::with_capacity(contexts);
    for _ in 0..contexts {
        let key = u64::from_le_bytes(take(b)?);
        let mut guard = take_guard(b, base)?;
        let adapted = take_adapted(b, base, settings)?;
        guard.good = take_adapted(b, base, settings)?;
        if saved.iter().any(|(other, ..)| *other == key) {
            return Err(CheckpointError::Malformed);
        }
        saved.push((key, adapted, guard));
    }
    if b.is_empty() {
        Ok(saved)
    } else {
        Err(CheckpointError::Malformed)
    }
}
