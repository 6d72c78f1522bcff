//! Specialization measured: streams, variants, curves, intervals, tables and pictures.
//!
//! The backbone is frozen, so that features are computed once ([`Features`]) and everything else is replayed
//! from them, through the very core that runs on devices (`replay`).

mod bootstrap;
mod corrupt;
mod curve;
mod features;
mod means;
mod plot;
mod replay;
mod report;
mod scenes;
mod stream;
mod study;
mod trade_off;
mod variant;

pub use bootstrap::Interval;
pub use corrupt::corrupt;
pub use curve::{Curve, Opinions, Point};
pub use features::{Features, FeaturesError};
pub use plot::curves;
pub use replay::{Labels, Tally};
pub use report::{Row, csv, gain_over_poster, rows};
pub use scenes::{Change as SubsetChange, Long, Poisoned, Uniform};
pub use stream::{Order, Shown};
pub use study::{COSTS, Change, Outcome, Saving, Study, TARGET_COSTS, frozen_settings};
pub use trade_off::TradeOff;
pub use variant::{Method, UnknownSetting, Variant};
