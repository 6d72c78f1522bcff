//! Specialization measured: streams, variants, curves, intervals, tables and pictures.
//!
//! The backbone is frozen, so that features are computed once ([`Features`]) and everything else is replayed
//! from them, through the very core that runs on devices ([`mod@replay`]).

mod bootstrap;
mod curve;
mod features;
mod replay;
mod study;
mod variant;

pub use bootstrap::{Interval, paired};
pub use curve::{Curve, Opinions, Point, exit_costs};
pub use features::{Features, FeaturesError};
pub use replay::{Labels, Shown, Tally, replay, shuffled};
pub use study::{COSTS, Change, Outcome, Study, TARGET_COSTS, frozen_settings};
pub use variant::Variant;
