//! What the demo ends with.

use serde::Serialize;

use crate::evaluate::Report;
use crate::terminal::{Table, macs, percent};
use crate::tool::model::shares;

/// Before and after.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Heads {
    /// The heads that the package came with.
    pub frozen: Report,
    /// The heads after the stream.
    pub specialized: Report,
}

/// How the swap went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PolicySwap {
    /// The policy before.
    pub from: String,
    /// The policy after.
    pub to: String,
    /// Frames of the whole run that got no prediction.
    pub frames_lost: u64,
}

/// What became of the summaries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Summaries {
    /// Confirmed by the broker.
    pub sent: u64,
    /// Counted by the controller.
    pub ingested: u64,
    /// Received again by the controller, and not counted.
    pub duplicates: u64,
}

/// What the demo showed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// On the images of the subset.
    pub subset: Heads,
    /// On all images.
    pub all: Heads,
    /// The push of the second policy.
    pub policy_swap: PolicySwap,
    /// From the device to the controller.
    pub summaries: Summaries,
}

impl Verdict {
    /// The table for a person.
    pub fn table(&self, subset: &str, frames: u64) -> String {
        let columns = [
            &self.subset.frozen,
            &self.subset.specialized,
            &self.all.frozen,
            &self.all.specialized,
        ];
        let mut table = Table::new(["", subset, "", "all classes", ""]);
        table.row(["", "frozen", "specialized", "frozen", "specialized"].map(str::to_owned));
        let mut row = |name: &str, show: &dyn Fn(&Report) -> String| {
            table.row(std::iter::once(name.to_owned()).chain(columns.iter().map(|report| show(report))));
        };
        row("images", &|r| r.images.to_string());
        row("accuracy", &|r| percent(r.accuracy));
        row("multiply-adds per frame", &|r| macs(r.cost_macs));
        row("time per frame", &|r| format!("{:.3} ms", r.cost_ms));
        row("left at exit 1/2/3/4 (%)", &|r| shares(&r.exit_share));
        row("differs from the last exit", &|r| percent(r.disagreement));
        let ratio = |heads: &Heads| heads.specialized.cost_macs / heads.frozen.cost_macs;
        format!(
            "\n{table}\ncost after / before: {:.2} on the subset, {:.2} on all classes\n\
             policy: {} after {}, {} of {frames} frames lost\n\
             summaries: {} sent, {} ingested, {} duplicates",
            ratio(&self.subset),
            ratio(&self.all),
            self.policy_swap.to,
            self.policy_swap.from,
            self.policy_swap.frames_lost,
            self.summaries.sent,
            self.summaries.ingested,
            self.summaries.duplicates
        )
    }
}
