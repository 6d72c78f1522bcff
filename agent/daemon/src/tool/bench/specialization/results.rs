//! What the bench prints.

use offramp_bench::{
    Interval, Long, Opinions, Outcome, Poisoned, Row, Study, SubsetChange, Uniform, Variant, frozen_settings,
    gain_over_poster, rows,
};
use serde_json::json;

use crate::terminal::{Table, percent};

/// Everything that is printed.
pub(super) struct Results {
    exits: Vec<f64>,
    rows: Vec<Row>,
    over_poster: Option<Interval>,
    scenes: Vec<Row>,
    uniform: Uniform,
    long: Long,
    change: SubsetChange,
    /// What is learned under the default, and under updates of the heads.
    poisoned: Vec<(String, Poisoned)>,
    learning_time_share: f64,
    learning_us: f64,
    bytes: u64,
}

impl Results {
    /// `frame_seconds` is the time of all stages of a frame.
    pub(super) fn of(
        study: &Study<'_>,
        variants: &[Variant],
        outcomes: &[Outcome],
        scenes: Vec<Row>,
        frame_seconds: f64,
    ) -> anyhow::Result<Self> {
        let settings = variants[0].settings;
        let frozen = study.core(frozen_settings())?;
        let all: Vec<usize> = (0..study.test.len()).collect();
        // Long streams and changes are shown on a few subsets: they say whether, not how much.
        let few: Vec<usize> = (0..study.subsets.len())
            .step_by(study.subsets.len().div_ceil(5))
            .collect();
        let poisoned = variants
            .iter()
            .filter(|v| ["default", "learning 0.3"].contains(&v.name.as_str()));
        let poisoned = poisoned.map(|v| Ok((v.name.clone(), study.poisoned(v.settings, &few)?)));
        let spent = study.learning_time(settings)?.as_secs_f64();
        Ok(Self {
            exits: Opinions::of(&frozen, study.test, &all).alone(),
            rows: rows(variants, outcomes),
            over_poster: gain_over_poster(variants, outcomes, 0),
            scenes,
            uniform: study.uniform(settings)?,
            long: study.long(settings, &few)?,
            change: study.change(settings, &few)?,
            poisoned: poisoned.collect::<anyhow::Result<_>>()?,
            learning_time_share: spent / frame_seconds,
            learning_us: spent * 1e6,
            bytes: study.core(settings)?.bytes(),
        })
    }

    pub(super) fn json(&self) -> serde_json::Value {
        let by_name = |rows: &[Row]| -> serde_json::Map<String, serde_json::Value> {
            rows.iter().map(|row| (row.name.clone(), json!(row))).collect()
        };
        let default = &self.rows[0];
        json!({
            "exit_accuracy": self.exits,
            "subset_gain": default.subset_gain, "all_loss": default.all_loss,
            "gain_over_poster": self.over_poster.map(|i| i.mean),
            "gain_over_poster_low": self.over_poster.map(|i| i.low),
            "mean_speedup": default.mean_speedup, "min_speedup": default.min_speedup, "all_cost": default.all_cost,
            "fixed_tau_cost": default.fixed_tau_cost, "fixed_tau_accuracy_gain": default.fixed_tau_accuracy_gain,
            "uniform_accuracy_delta": self.uniform.accuracy_delta, "uniform_cost_delta": self.uniform.cost_delta,
            "decay_20000": self.long.gain[1] / self.long.gain[0],
            "long": self.long, "change": self.change, "poisoned": self.poisoned.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
            "learning_time_share": self.learning_time_share, "learning_us": self.learning_us, "bytes": self.bytes,
            "variants": by_name(&self.rows), "streams": by_name(&self.scenes),
        })
    }

    pub(super) fn text(&self, study: &Study<'_>) -> String {
        let exits: Vec<String> = self.exits.iter().map(|a| percent(*a)).collect();
        let on_the_way = study.checkpoints.iter().zip(&self.rows[0].gain_on_the_way);
        let on_the_way: Vec<String> = on_the_way
            .map(|(frames, share)| format!("{frames}: {:.0} %", share * 100.0))
            .collect();
        let over = self.over_poster.map_or_else(
            || "the poster's rule does not do as much harm at any rate tried".to_owned(),
            |i| {
                format!(
                    "{} points ({} to {}) ahead of the poster's rule at equal harm",
                    points(i.mean),
                    points(i.low),
                    points(i.high)
                )
            },
        );
        let scenes = if self.scenes.is_empty() {
            String::new()
        } else {
            format!("\nThe default on other streams:\n{}", table("stream", &self.scenes))
        };
        let segments = |s: &[f64; 3]| s.map(points).join(" ");
        let poisoned: Vec<String> = self.poisoned.iter().map(|(name, p)| in_words(name, p)).collect();
        let (long, poisoned) = (&self.long, poisoned.concat());
        format!(
            "exits: {}\n{} subsets, {} streams of {} frames each, threshold {}; accuracies in points at equal cost, \
             costs with learning and audits\n\n{}{scenes}\n\
             default: {over}\n\
             share of the gain after frames: {}\n\
             all classes alike: accuracy {}, cost {:+.1} %\n\
             20,000 frames of one subset: gain {} after 5,000, {} after 20,000; the guard has moved the threshold to \
             {:.3}, where accuracy is {} against the last exit (frozen heads at {}: {})\n\
             A, B, A again: accuracy in the stream {} (one context), {} (a context each); \
             {:.0} % of the gain 50 frames after the return\n\
             {poisoned}\
             learning and guard: {:.1} µs per frame, {:.2} % of the stages' time; {:.1} MB of memory per camera\n",
            exits.join(" "),
            study.subsets.len(),
            study.seeds,
            study.frames,
            study.threshold,
            table("variant", &self.rows),
            on_the_way.join(", "),
            points(self.uniform.accuracy_delta),
            self.uniform.cost_delta * 100.0,
            points(long.gain[0]),
            points(long.gain[1]),
            long.threshold,
            points(long.against_last_exit),
            study.threshold,
            points(long.frozen_against_last_exit),
            segments(&self.change.one_context),
            segments(&self.change.own_contexts),
            self.change.regained * 100.0,
            self.learning_us,
            self.learning_time_share * 100.0,
            self.bytes as f64 / 1e6,
        )
    }
}

fn in_words(name: &str, poisoned: &Poisoned) -> String {
    let [all, end] = poisoned.guarded.map(points);
    let [all_unguarded, end_unguarded] = poisoned.unguarded.map(points);
    format!(
        "{} frames with every target wrong, {name}: accuracy in the stream {all} ({end} in the last quarter) with the \
         guard ({:.1} rollbacks, {:.0} % of the streams paused), {all_unguarded} ({end_unguarded}) without\n",
        poisoned.frames,
        poisoned.rollbacks,
        poisoned.paused * 100.0,
    )
}

fn points(x: f64) -> String {
    format!("{:+.1}", x * 100.0)
}

fn table(what: &str, rows: &[Row]) -> Table {
    let mut table = Table::new([
        what,
        "subset gain",
        "95 %",
        "all lose",
        "speed-up",
        "least",
        "all cost",
        "at the threshold",
        "all there",
        "upkeep",
        "saves: told, found",
    ]);
    for row in rows {
        let interval = row.subset_gain_interval;
        table.row([
            row.name.clone(),
            points(row.subset_gain),
            format!("{}..{}", points(interval.low), points(interval.high)),
            format!("{:.2}", row.all_loss * 100.0),
            format!("{:.2}x", row.mean_speedup),
            format!("{:.2}x", row.min_speedup),
            format!("{:+.1} %", row.all_cost * 100.0),
            format!("x{:.2} {}", row.fixed_tau_cost, points(row.fixed_tau_accuracy_gain)),
            format!(
                "x{:.2} {}",
                row.all_fixed_tau_cost,
                points(row.all_fixed_tau_accuracy_gain)
            ),
            format!("{:.2} %", row.upkeep * 100.0),
            match row.saving_told.zip(row.saving_found) {
                Some((told, found)) => format!("{:.0} %, {:.0} %", told * 100.0, found * 100.0),
                None => "-".into(),
            },
        ]);
    }
    table
}
