//! What the controller has done since it started.

use serde::Serialize;

/// Counts since the controller started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Statistics {
    /// Messages of any kind that arrived from devices.
    pub received: u64,
    /// Summaries that were new and are kept.
    pub ingested: u64,
    /// Summaries that were here already; they changed nothing.
    pub duplicates: u64,
    /// Events of devices that were new and are kept; not those that their summaries tell of.
    pub events: u64,
    /// Messages that were refused: malformed, oversized, out of bounds, in another device's name.
    pub refused: u64,
    /// Pieces of traces that were new and are kept.
    pub traces: u64,
    /// Certificates of devices that were renewed.
    pub renewals: u64,
    /// Parts of artifacts that were sent.
    pub chunks: u64,
    /// Desired states that were handed to the broker, those of the start included.
    pub published: u64,
    /// Steps of rollouts that changed something.
    pub rollout_steps: u64,
}
