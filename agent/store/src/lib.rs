//! The device's durable state, in one file: checkpoints of the heads, the desired state, policy
//! components, the outbox, and small values.
//!
//! # Constraints
//!
//! - One process and one [`Store`] per file; others are refused ([`OpenError::Busy`]). Calls block,
//!   so the daemon makes them from a thread of its own, never from the one that serves frames.
//! - Everything is bounded by [`Limits`], by default 41 MiB of content, and 8 MiB more for each camera
//!   after the first. The file of one camera grows to at most 128 MiB (a new one has 72 KiB) and does
//!   not shrink when content goes.
//! - The outbox holds 20 000 records or 16 MiB. Beyond, the oldest are dropped and counted
//!   ([`Appended::dropped`], [`OutboxStatus::dropped`]). It is read in batches, never as a whole.
//! - Sequences, checkpoint numbers and the boot counter are 64 bits wide and do not come to an end.
//!
//! # What is durable when
//!
//! Each call that changes something is one transaction: all of it or nothing, and on the medium
//! (one `fsync`) before the call returns. There is no "soon": a record whose sequence is known to
//! anybody outlives a cut of the power, and one that was acknowledged does not come back. A call
//! that changes nothing (the same desired state, an equal value) writes nothing.
//!
//! What a call writes decides how long flash lasts. In steady state, with a long outbox:
//!
//! | call | `fsync` | written |
//! |---|---|---|
//! | [`append`](Store::append) of 600 bytes | 1 | 32 KiB |
//! | [`acknowledge`](Store::acknowledge) of 32 records | 1 | 31 KiB |
//! | [`save_checkpoint`](Store::save_checkpoint) of 200 KiB | 1 | 280 KiB |
//!
//! One record each ten seconds, acknowledged one by one, and a checkpoint each ten minutes make
//! 0.6 GB a day, or 0.3 GB if acknowledgements are gathered: writing all of an 8 GB card once takes
//! two to four weeks. That is why nothing is written per frame. (A growing file costs one more
//! `fsync` now and then.)
//!
//! # Layout
//!
//! A [redb](https://docs.rs/redb) database: copy-on-write B-trees with checksums, two commit slots.
//! Its tables, of format 1:
//!
//! | table | key | value |
//! |---|---|---|
//! | `counters` | name | `u64`: `format`, `boots`, `checkpoint`, `artifact`, `sequence`, `outbox bytes`, `outbox dropped` |
//! | `checkpoints by camera` | camera, number | bytes; the two newest of each |
//! | `desired` | generation | the signed message as received; the newest |
//! | `artifacts` | SHA-256 | age, size |
//! | `artifact contents` | SHA-256 | bytes |
//! | `artifact roles` | `active`, `last good`, `pending`; of models `model active`, `model last good` | SHA-256 |
//! | `outbox` | sequence | topic suffix, payload |
//! | `values` | key | bytes |
//!
//! # Recovery
//!
//! - After a crash or a power cut, opening finds the last commit. Nothing is replayed; the time
//!   depends on the file's size alone, because every open reads the file once and verifies its
//!   checksums.
//! - A file that is damaged, no store at all, or of another format is renamed to `….unusable`
//!   (one is kept, for whoever wants to know) and a new store begins, so that a device never loops
//!   at boot for its history. [`Opened::Replaced`] tells. This includes a file whose making was
//!   interrupted by a power cut at the very first boot. Damage that hit only the newest commit may
//!   instead bring back the commit before.
//! - After a failure of the medium the store refuses everything ([`StoreError::FailedEarlier`]),
//!   reads included, because what is on the medium is unknown. Opening it again finds out.
//!
//! # Not supported
//!
//! Reading a newer format after a downgrade (the file is set aside), more than one device per file,
//! secrets (nothing is encrypted), and content larger than a [limit](Limits): model packages are
//! files of their own, in a [`Depot`] beside the store.

mod artifact;
mod checkpoint;
mod depot;
mod desired;
mod error;
mod layout;
mod limits;
mod open;
mod outbox;
#[cfg(test)]
mod tests;
mod value;

pub use artifact::{ModelRoles, Roles};
pub use checkpoint::Checkpoint;
pub use depot::{Depot, DepotError, PIECE, Part};
pub use desired::{Desired, DesiredChange};
pub use error::{OpenError, StoreError};
pub use limits::Limits;
pub use open::{Opened, Store};
pub use outbox::{Appended, OutboxStatus, Record};
