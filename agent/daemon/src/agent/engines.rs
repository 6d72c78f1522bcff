//! Who runs the stages, and what of it there is to tell.

use offramp_engine::{Engine, Progress, StageState};

use crate::machine;

/// Who runs the stages, as far as it was told.
pub(super) struct Engines {
    engine: Engine,
    changes: u64,
    told: Vec<StageState>,
}

impl Engines {
    pub(super) fn of(engine: Engine) -> Self {
        let mut told = engine.stage_states();
        for state in &mut told {
            state.progress = Progress::NotWanted;
            state.refused.clear();
        }
        Self {
            changes: 0,
            told,
            engine,
        }
    }

    /// Stages of which there is something to tell.
    pub(super) fn news(&mut self) -> Vec<(usize, StageState)> {
        let changes = self.engine.changes();
        if std::mem::replace(&mut self.changes, changes) == changes {
            return Vec::new();
        }
        let now = self.engine.stage_states();
        let before = std::mem::replace(&mut self.told, now.clone());
        let both = now.into_iter().zip(before).enumerate();
        both.filter(|(_, (now, before))| {
            let facts = |state: &StageState| (state.run_by, state.batch, state.progress, state.refused.len());
            facts(now) != facts(before)
        })
        .map(|(stage, (now, _))| (stage, now))
        .collect()
    }

    /// For a summary.
    pub(super) fn in_short(&self) -> Vec<String> {
        let short = |state: &StageState| match state.progress {
            Progress::NotWanted | Progress::Working if state.batch > 1 => {
                format!("{}, {} at a time", state.run_by, state.batch)
            }
            Progress::NotWanted | Progress::Working => state.run_by.to_string(),
            Progress::Waiting => format!("{} (offload waits)", state.run_by),
            Progress::Building { provider, .. } => format!("{} (onnxruntime/{provider} is built)", state.run_by),
            Progress::Failed => format!("{} (not offloaded)", state.run_by),
        };
        self.told.iter().map(short).collect()
    }
}

/// What this build and this machine can do.
pub(super) fn capabilities() -> Vec<String> {
    let mut all = vec![
        "fused".to_owned(),
        offramp_engine::instructions().to_owned(),
        "tract".to_owned(),
    ];
    if cfg!(feature = "onnxruntime") {
        all.push("onnxruntime".to_owned());
    }
    all.extend(machine::facts());
    all
}
