//! The wire contract between agents and the controller: identifiers, topics, messages, signatures.
//!
//! Everything travels as CBOR over MQTT v5 below `offramp/1/{tenant}/{device}/`: a device writes
//! `up/…` and reads `down/…`. The contract is published in `offramp.cddl` beside this crate, and
//! vectors of every protocol version are frozen in its tests.
//!
//! - **No images.** There is no type here that could carry a pixel.
//! - **Bounds.** A message is at most [`MAX_MESSAGE`] bytes; every list and string has a bound that
//!   [`decode`] checks, so that a decoded message is a valid one.
//! - **Evolution.** Unknown fields are ignored. Whoever stores or forwards a message keeps the bytes
//!   that arrived, so that what is unknown here is preserved.
//! - **Idempotence.** Every record carries (device, boot, sequence); repeats and late arrivals do no
//!   harm because the receiver upserts by it.
#![no_std]

extern crate alloc;

mod codec;
mod digest;
mod id;
mod message;
mod sign;
mod topic;

pub use codec::{DecodeError, MAX_MESSAGE, Message, decode, encode};
pub use digest::{Digest, InvalidDigest};
pub use id::{BootId, DeviceId, Generation, InvalidId, Sequence, TenantId};
pub use message::{
    Arm, ArtifactChunk, ArtifactRequest, Audits, Birth, CHUNK, CameraReport, ClassCount, ControlReport, Cost, Death,
    Desired, DesiredModel, DesiredPolicy, Event, ExitUse, GuardReport, InvalidParameter, LearnerReport,
    LearnerSettings, LogLevel, MAX_ARTIFACT, MAX_CERTIFICATE, MAX_CHUNKS, MAX_KEYS, MAX_TRACE, ModelFacts, Parameter,
    PolicyReport, PolicySource, PolicyStatement, RenewalAnswer, RenewalRequest, Reported, Summary, TraceSample, Window,
};
pub use sign::{InvalidKey, PublicKey, SignError, SigningKey, VerifyError, unverified};
pub use topic::{Kind, Topic, TopicError};

/// Version of the protocol that this crate speaks; the second level of every topic.
pub const PROTOCOL_VERSION: u32 = 1;
