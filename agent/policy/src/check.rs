//! What can be said of a policy before it meets a frame.

use offramp_core::ExitView;
use offramp_proto::Digest;

use crate::facts::{ModelFacts, Parameters};
use crate::fault::Fault;
use crate::host::PolicyHost;
use crate::inspect::AbiVersion;
use crate::policy::{ConfigureError, LoadError};

/// What [`PolicyHost::check`] found out.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckReport {
    /// What the policy is known by.
    pub digest: Digest,
    /// Size of the component file in bytes.
    pub bytes: usize,
    /// The version of the contract that it is built for.
    pub abi: AbiVersion,
    /// The interfaces that it imports.
    pub imports: Vec<String>,
    /// The interfaces that it exports.
    pub exports: Vec<String>,
    /// Linear memory at its start, in bytes.
    pub memory_bytes: u64,
    /// Fuel that starting and configuring it takes.
    pub configure_fuel: u64,
    /// Fuel of the dearest verdict that was seen.
    pub decide_fuel: u64,
    /// The view that was decided for it.
    pub dearest_view: ExitView,
    /// Number of views that were decided.
    pub views: usize,
}

/// Why a policy is not fit.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// It does not load.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// It does not configure.
    #[error(transparent)]
    Configure(#[from] ConfigureError),
    /// It fails to decide.
    #[error("the policy fails to decide at exit {} with confidence {}", view.exit, view.confidence)]
    Decide {
        /// About which view.
        view: Box<ExitView>,
        /// How.
        #[source]
        fault: Fault,
    },
}

impl PolicyHost {
    /// Loads a component, configures it and lets it decide over a grid of views: each exit, with facts
    /// at their bounds, in between and unknown.
    ///
    /// The fuel is that of the dearest verdict on the grid, which no other verdict need keep to.
    ///
    /// # Errors
    ///
    /// At the first step that fails.
    pub fn check(
        &self,
        component: &[u8],
        model: &ModelFacts,
        parameters: &Parameters,
    ) -> Result<CheckReport, CheckError> {
        let policy = self.load(component)?;
        let mut instance = policy.configure(model, parameters)?;
        let limits = policy.shared().limits;
        let inspection = policy.inspection();
        let mut report = CheckReport {
            digest: policy.digest(),
            bytes: policy.bytes(),
            abi: policy.abi(),
            imports: inspection.imports.clone(),
            exports: inspection.exports.clone(),
            memory_bytes: inspection.memory_bytes,
            configure_fuel: instance.fuel_used(limits.configure_fuel),
            decide_fuel: 0,
            dearest_view: first_view(model),
            views: 0,
        };
        for view in grid(model) {
            instance.decide(&view).map_err(|fault| CheckError::Decide {
                view: Box::new(view),
                fault,
            })?;
            report.views += 1;
            let fuel = instance.fuel_used(limits.decide_fuel);
            if fuel > report.decide_fuel {
                report.decide_fuel = fuel;
                report.dearest_view = view;
            }
        }
        Ok(report)
    }
}

/// A view of the first exit with all that a device may not know unknown.
fn first_view(model: &ModelFacts) -> ExitView {
    ExitView {
        exit: 0,
        exits: u32::try_from(model.exit_costs.len()).unwrap_or(u32::MAX),
        class: 0,
        confidence: f32::NAN,
        margin: f32::NAN,
        entropy: f32::NAN,
        agreement: false,
        change: f32::NAN,
        cost: f32::NAN,
        next_cost: f32::NAN,
        time_left: f32::NAN,
        queue_depth: 0,
        temperature: f32::NAN,
        power_budget: f32::NAN,
        battery: f32::NAN,
        threshold: f32::NAN,
    }
}

/// Exits in order, as in a frame; at each, the facts together at their lowest, in between, at their
/// highest and unknown, and each confidence with either agreement.
fn grid(model: &ModelFacts) -> impl Iterator<Item = ExitView> {
    /// Confidence, entropy as a share of its largest, change, time left, temperature, power, battery, threshold.
    const FACTS: [[f32; 8]; 6] = [
        [f32::NAN; 8],
        [0.0, 1.0, 0.0, -1000.0, -40.0, 0.0, 0.0, 1.01],
        [0.25, 0.8, 0.1, 0.0, 20.0, 1.0, 0.1, 0.9],
        [0.5, 0.5, 0.5, 5.0, 60.0, 7.0, 0.5, 0.7],
        [0.75, 0.3, 1.0, 33.0, 85.0, 15.0, 0.9, 0.5],
        [1.0, 0.0, 2.0, 1000.0, 125.0, 60.0, 1.0, 0.3],
    ];
    #[expect(clippy::cast_precision_loss, reason = "classes are few")]
    let largest_entropy = (model.classes as f32).ln();
    let classes = model.classes.max(1);
    let first = first_view(model);
    let costs = model.exit_costs.clone();
    let frames = FACTS
        .into_iter()
        .flat_map(|facts| FACTS.into_iter().map(move |others| (facts, others)));
    frames.flat_map(move |(facts, others)| {
        let costs = costs.clone();
        (0..first.exits).flat_map(move |exit| {
            let cost = costs[exit as usize];
            let next = costs.get(exit as usize + 1).map_or(0.0, |next| next - cost);
            [false, true].map(|agreement| ExitView {
                exit,
                class: exit % classes,
                confidence: facts[0],
                margin: facts[0],
                entropy: facts[1] * largest_entropy,
                agreement: agreement && exit > 0,
                change: others[2],
                cost,
                next_cost: next,
                time_left: others[3],
                queue_depth: u32::from(agreement) * 16,
                temperature: others[4],
                power_budget: others[5],
                battery: others[6],
                threshold: others[7],
                ..first
            })
        })
    })
}
