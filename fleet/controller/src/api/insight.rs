//! `/insight`

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{ApiError, selection};
use crate::overview::Saving;
use crate::totals::{Named, Totals};
use crate::web::Fleet;

/// Classes that are named.
const CLASSES: usize = 10;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct InsightQuery {
    /// Only devices that this selector means.
    select: Option<String>,
}

/// What learning saves. Costs are shares of the whole network's, at one accuracy budget, on audited frames.
#[derive(Serialize, ToSchema)]
#[schema(as = Saving)]
pub(super) struct SavingView {
    /// Cost with the learned heads.
    learned: f64,
    /// Cost with the heads that the model came with.
    frozen: f64,
    /// Saved, as a share of the cost with frozen heads; below zero learning costs more.
    share: f64,
    /// Its bounds, each one-sided at 95 %.
    low: f64,
    high: f64,
    audits: u64,
    /// Milliseconds of stages saved a frame.
    ms_per_frame: Option<f64>,
    /// Millijoules saved a frame, where boards tell what they draw.
    mj_per_frame: Option<f64>,
}

impl From<Saving> for SavingView {
    fn from(saving: Saving) -> Self {
        let (low, high) = saving.bounds();
        Self {
            learned: saving.learned,
            frozen: saving.frozen,
            share: saving.share(),
            low,
            high,
            audits: saving.audits,
            ms_per_frame: saving.ms,
            mj_per_frame: saving.mj,
        }
    }
}

/// Devices that something holds for.
#[derive(Serialize, ToSchema)]
#[schema(as = NamedDevices)]
struct NamedView {
    count: u64,
    /// The first of them, by name.
    first: Vec<String>,
}

impl From<&Named> for NamedView {
    fn from(named: &Named) -> Self {
        Self {
            count: named.count,
            first: named.names.clone(),
        }
    }
}

#[derive(Serialize, ToSchema)]
struct ClassShare {
    class: String,
    share: f64,
}

/// Some devices in a few figures, over the latest windows of each.
#[derive(Serialize, ToSchema)]
#[schema(as = Figures)]
struct PartView {
    devices: u64,
    alive: u64,
    /// Multiply-adds spent over those of the whole network.
    cost_share: Option<f64>,
    saving: Option<SavingView>,
    disagreement: Option<f64>,
    /// Accuracy given up against the last exit, in expectation.
    given_up: Option<f64>,
    /// Devices on which learning surely saves less than 2 %.
    unprofitable: NamedView,
    /// Devices of which a quarter of the frames or more are of other classes than usual.
    drifting: NamedView,
    /// Devices whose learning has paused after harm.
    paused: NamedView,
    /// What is seen, the most frequent first.
    classes: Vec<ClassShare>,
}

impl From<&Totals> for PartView {
    fn from(totals: &Totals) -> Self {
        let classes = totals.classes(CLASSES).into_iter();
        Self {
            devices: totals.devices,
            alive: totals.alive,
            cost_share: totals.cost(),
            saving: totals.saving().map(SavingView::from),
            disagreement: totals.disagreement(),
            given_up: totals.loss(),
            unprofitable: (&totals.idle).into(),
            drifting: (&totals.drifting).into(),
            paused: (&totals.paused).into(),
            classes: classes
                .map(|(class, share)| ClassShare {
                    class: class.to_owned(),
                    share,
                })
                .collect(),
        }
    }
}

/// Devices that run one version of something.
#[derive(Serialize, ToSchema)]
struct VersionFigures {
    name: String,
    version: u64,
    #[serde(flatten)]
    figures: PartView,
}

/// Devices of one name.
#[derive(Serialize, ToSchema)]
struct NamedFigures {
    /// The group, or the label as `key=value`.
    name: String,
    #[serde(flatten)]
    figures: PartView,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Insight {
    all: PartView,
    policies: Vec<VersionFigures>,
    models: Vec<VersionFigures>,
    groups: Vec<NamedFigures>,
    /// Those with at most 32 values.
    labels: Vec<NamedFigures>,
}

/// Show what specialization is worth: over the fleet, and by policy, model, group and label
#[utoipa::path(get, path = "/insight", tag = "fleet", operation_id = "show_insight", params(InsightQuery), responses((status = OK, body = Insight)))]
pub(super) async fn fetch(
    State(shared): Fleet,
    query: Result<Query<InsightQuery>, QueryRejection>,
) -> Result<Json<Insight>, ApiError> {
    let Query(query) = query?;
    let selection = selection(&shared, query.select.as_deref()).await?;
    let figures = shared.totals.fetch(&shared.store, &selection).await?;
    let versions = |parts: &std::collections::BTreeMap<(String, u64), Totals>| {
        let parts = parts.iter().map(|((name, version), totals)| VersionFigures {
            name: name.clone(),
            version: *version,
            figures: totals.into(),
        });
        parts.collect()
    };
    // Groups are of the whole fleet: of a selection, only it is asked.
    let whole = query.select.is_none_or(|select| select.trim().is_empty());
    let (groups, _) = if whole { shared.groups().await? } else { (Vec::new(), 0) };
    Ok(Json(Insight {
        all: (&figures.all).into(),
        policies: versions(&figures.policies),
        models: versions(&figures.models),
        groups: groups
            .iter()
            .map(|(group, figures)| NamedFigures {
                name: group.name.clone(),
                figures: (&figures.all).into(),
            })
            .collect(),
        labels: figures
            .labels()
            .map(|(name, totals)| NamedFigures {
                name,
                figures: totals.into(),
            })
            .collect(),
    }))
}
