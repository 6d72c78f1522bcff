//! The fleet controller: takes in what devices say, keeps the registry, signs and publishes what they
//! should run, and shows all of it on a page and through an API.
//!
//! [`Controller::start`] runs all of it in this process; the program `offramp-fleet` is a thin shell
//! around it.
//!
//! # Promises
//!
//! - A summary counts once, however often and in whatever order it arrives, and is acknowledged to the
//!   broker only when it is on disk.
//! - A desired state is signed, its generation rises, and it is published again at every start.
//! - A rollout goes out in waves, stops by itself where a gate fails, and goes on where it was after a restart.
//! - Who asks is known before anything is answered, as soon as there is a token; until then only this machine is served.
//!   What changes something is refused when a browser sends it from another site.
//! - Nothing that a device sends stops the controller: what is malformed, oversized or sent in another
//!   device's name is refused, counted and logged.
//!
mod access;
pub mod acl;
mod api;
mod artifacts;
mod authority;
mod chart;
mod controller;
mod desired;
mod forecast;
mod ingest;
mod key;
mod metrics;
mod models;
mod named;
mod overview;
mod page;
mod peers;
mod renewals;
mod retention;
mod rollout;
mod selector;
mod series;
mod statistics;
mod store;
mod swarm;
mod totals;
mod web;

pub use access::{CreateError, Role, create_in_database};
pub use api::openapi;
pub use authority::{Authority, AuthorityError, CONTROLLER, Revoked, write_private};
pub use controller::{Answer, Controller, Options, StartError, key_path};
pub use desired::{MAX_POLICY, PolicyUpload, PushError, Pushed, Target};
pub use key::{KeyError, Keyring};
pub use models::{AddedModel, MAX_MODEL, ModelError, ModelUpload};
pub use page::utc;
pub use statistics::Statistics;
pub use store::{Database, InvalidPostgresUrl, PostgresUrl, StoreError};
pub use swarm::{FRAMES, Harm, Swarm, SwarmOptions};
