//! What a policy would do: it is replayed on the pieces of traces that devices share.
//!
//! A piece holds what the policy of that time saw and answered, so "today" and "foreseen" are of the same frames. Only
//! complete frames are scored, and stand for the others ([`Weights`]); a policy that looks back sees each piece from its
//! first frame on. Components are held to all that devices hold them to, and one forecast runs at a time.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use offramp_policy::{EngineError, Limits, ModelFacts, Parameters, Policy, PolicyHost};
use offramp_proto::{DeviceId, Digest, Parameter};
use offramp_trace::{Frame, Header, Hosted, Reader, Replay, TraceError, Weights};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::task::JoinError;
use utoipa::ToSchema;

use crate::rollout::{Foreseen, Gates, Gauge, foreseen};
use crate::store::{Piece, Store, StoreError};

/// Pieces that are replayed at most.
const MOST_PIECES: usize = 1000;
/// After this time no further piece is begun.
const PATIENCE: Duration = Duration::from_secs(15);
/// Scored frames of a model below which nothing is judged by them.
const FEW: u64 = 100;

/// What was made of frames, or would be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct Mix {
    /// Mean cost of a frame, as a share of the whole network.
    pub(crate) cost: Option<f64>,
    /// Share of the frames that leave at each exit.
    pub(crate) exits: Vec<f64>,
    /// Share of the predictions that are the last exit's.
    pub(crate) agreement: Option<f64>,
}

impl From<&Replay> for Mix {
    fn from(replay: &Replay) -> Self {
        Self {
            cost: replay.mean_cost(),
            exits: replay.mean_cost().map(|_| replay.exit_shares()).unwrap_or_default(),
            agreement: replay.agreement(),
        }
    }
}

/// What is foreseen for the devices of one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct ModelForecast {
    pub(crate) model: String,
    pub(crate) version: u64,
    /// Digest of its manifest.
    pub(crate) digest: String,
    /// Devices that have shared traces.
    pub(crate) devices: u64,
    /// Pieces that were replayed.
    pub(crate) pieces: u64,
    pub(crate) frames: u64,
    /// Frames of which all exits are known, which cost and exits are of.
    pub(crate) scored: u64,
    /// Frames that none of these stands for.
    pub(crate) not_represented: u64,
    /// What was done with them.
    pub(crate) today: Mix,
    /// What the policy would do.
    pub(crate) foreseen: Mix,
    /// Verdicts that the policy failed to give.
    pub(crate) faults: u64,
    /// The last failure.
    pub(crate) fault: Option<String>,
    /// Verdicts that are recorded.
    pub(crate) recorded: u64,
    /// Of these, how many would be others.
    pub(crate) changed: u64,
    /// Why the policy does not take this model.
    pub(crate) refused: Option<String>,
}

/// What is foreseen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct Forecast {
    /// For each model; empty where no device has shared traces.
    pub(crate) models: Vec<ModelForecast>,
    /// Pieces that there was no time for.
    pub(crate) left_out: u64,
}

impl Forecast {
    /// The gates that it can speak to, as they would measure: of each the worst of the models.
    pub(crate) fn gauges(&self, gates: &Gates) -> Vec<Gauge> {
        let of = self.models.iter().map(|model| {
            let faults = model.faults as f64 / model.frames.max(1) as f64;
            let known = model.scored >= FEW;
            let seen = Foreseen {
                cost: model.today.cost.zip(model.foreseen.cost).filter(|_| known),
                exits: if known {
                    (&model.today.exits, &model.foreseen.exits)
                } else {
                    (&[], &[])
                },
                agreement: model.today.agreement.zip(model.foreseen.agreement).filter(|_| known),
                faults,
                failed: model.refused.is_some(),
            };
            foreseen(gates, &seen)
        });
        let mut worst: BTreeMap<String, Gauge> = BTreeMap::new();
        for gauge in of.flatten() {
            match worst.get_mut(&gauge.gate) {
                Some(found) if found.value >= gauge.value => {}
                _ => {
                    worst.insert(gauge.gate.clone(), gauge);
                }
            }
        }
        worst.into_values().collect()
    }
}

/// Why nothing is foreseen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForecastError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("there is no policy `{0:.64}` {1}")]
    UnknownPolicy(String, u64),
    /// Devices would refuse it, too.
    #[error("policy `{name:.64}` {version} is no policy that a device would take: {why}")]
    Refused { name: String, version: u64, why: String },
    #[error("policies cannot be run on the controller's machine")]
    Engine(#[source] EngineError),
    /// It panicked, or the controller is ending.
    #[error("the replay stopped short")]
    Stopped(#[from] JoinError),
}

/// What is asked.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    pub(crate) policy: String,
    pub(crate) version: u64,
    pub(crate) parameters: BTreeMap<String, Parameter>,
    /// None for every device.
    pub(crate) devices: Option<Vec<DeviceId>>,
}

/// Replays policies.
pub(crate) struct Forecaster {
    host: OnceLock<Arc<PolicyHost>>,
    turn: Semaphore,
}

impl Default for Forecaster {
    fn default() -> Self {
        Self {
            host: OnceLock::new(),
            turn: Semaphore::new(1),
        }
    }
}

impl Forecaster {
    /// What a policy would do on these devices.
    pub(crate) async fn ask(&self, store: &Store, question: Question) -> Result<Forecast, ForecastError> {
        let Question {
            policy: name,
            version,
            parameters,
            devices,
        } = question;
        let component = store.policy_component(&name, version).await?;
        let component = component.ok_or_else(|| ForecastError::UnknownPolicy(name.clone(), version))?;
        let only: Option<HashSet<String>> = devices.map(|all| all.iter().map(ToString::to_string).collect());
        let mut pieces = store.trace_list().await?;
        pieces.retain(|(_, device)| only.as_ref().is_none_or(|only| only.contains(device)));
        if pieces.is_empty() {
            return Ok(Forecast::default());
        }
        let refused = |why: String| ForecastError::Refused {
            name: name.clone(),
            version,
            why,
        };
        let _turn = self.turn.acquire().await.expect("nobody closes it");
        let start = Instant::now();
        let host = Arc::clone(self.host()?);
        let compiled = tokio::task::spawn_blocking(move || host.load(&component)).await?;
        let compiled = Arc::new(compiled.map_err(|error| refused(chain(&error)))?);
        let parameters = Parameters::of(&parameters).map_err(|error| refused(error.to_string()))?;
        let parameters = Arc::new(parameters);

        let mut groups: BTreeMap<Digest, Group> = BTreeMap::new();
        let (mut left_out, all) = (0, pieces.len());
        for (place, (id, device)) in pieces.into_iter().enumerate() {
            if place >= MOST_PIECES || start.elapsed() > PATIENCE {
                left_out = (all - place) as u64;
                break;
            }
            // It may have made room for a newer one meanwhile.
            let Some(bytes) = store.trace_fetch(id).await? else {
                continue;
            };
            let (compiled, parameters) = (Arc::clone(&compiled), Arc::clone(&parameters));
            let part = tokio::task::spawn_blocking(move || replay(&bytes, &compiled, &parameters)).await?;
            match part {
                Ok(part) => groups.entry(part.header.model_digest).or_default().add(device, part),
                Err(error) => tracing::warn!(piece = id, %error, "a trace cannot be read"),
            }
        }
        Ok(Forecast {
            models: groups.into_values().filter_map(Group::finish).collect(),
            left_out,
        })
    }

    fn host(&self) -> Result<&Arc<PolicyHost>, ForecastError> {
        if let Some(host) = self.host.get() {
            return Ok(host);
        }
        let host = PolicyHost::new(Limits::default()).map_err(ForecastError::Engine)?;
        Ok(self.host.get_or_init(|| Arc::new(host)))
    }
}

/// What came of a piece.
struct Part {
    header: Header,
    today: Replay,
    foreseen: Result<(Replay, Option<String>), String>,
    not_represented: u64,
}

fn replay(bytes: &[u8], policy: &Policy, parameters: &Parameters) -> Result<Part, TraceError> {
    let (header, frames) = read(bytes)?;
    let weights = Weights::of(&header, &frames);
    let facts = ModelFacts {
        classes: header.classes,
        exit_costs: header.stage_shares(),
    };
    let foreseen = match Hosted::new(policy, &facts, parameters) {
        Ok(mut hosted) => {
            let replay = Replay::of(&header, &frames, &weights, &mut hosted);
            Ok((replay, hosted.fault().map(|fault| fault.to_string())))
        }
        Err(error) => Err(chain(&error)),
    };
    Ok(Part {
        today: Replay::recorded(&header, &frames, &weights),
        foreseen,
        not_represented: weights.not_represented(),
        header,
    })
}

fn read(bytes: &[u8]) -> Result<(Header, Vec<Frame>), TraceError> {
    let mut reader = Reader::new(bytes)?;
    let mut frames = Vec::new();
    while let Some(frame) = reader.next_frame()? {
        frames.push(frame);
    }
    Ok((reader.header().clone(), frames))
}

/// The pieces of one model, added up.
#[derive(Default)]
struct Group {
    header: Option<Header>,
    devices: BTreeSet<String>,
    pieces: u64,
    today: Replay,
    foreseen: Replay,
    not_represented: u64,
    fault: Option<String>,
    refused: Option<String>,
}

impl Group {
    fn add(&mut self, device: String, part: Part) {
        self.devices.insert(device);
        self.pieces += 1;
        self.today.merge(&part.today);
        self.not_represented += part.not_represented;
        match part.foreseen {
            Ok((replay, fault)) => {
                self.foreseen.merge(&replay);
                self.fault = fault.or(self.fault.take());
            }
            Err(why) => self.refused = Some(why),
        }
        self.header = Some(part.header);
    }

    fn finish(self) -> Option<ModelForecast> {
        let header = self.header?;
        Some(ModelForecast {
            model: header.model,
            version: header.model_version,
            digest: header.model_digest.to_string(),
            devices: self.devices.len() as u64,
            pieces: self.pieces,
            frames: self.today.frames,
            scored: self.foreseen.scored,
            not_represented: self.not_represented,
            today: Mix::from(&self.today),
            foreseen: Mix::from(&self.foreseen),
            faults: self.foreseen.faults,
            fault: self.fault,
            recorded: self.foreseen.recorded,
            changed: self.foreseen.changed,
            refused: self.refused,
        })
    }
}

/// Looks through a piece that a device sends.
///
/// # Errors
/// When it is no trace, damaged, empty, or holds more than it may.
pub(crate) fn examine(device: &DeviceId, bytes: Vec<u8>, at: u64) -> Result<Piece, BadPiece> {
    let (header, frames) = read(&bytes)?;
    if !header.features.is_empty() {
        return Err(BadPiece::Features);
    }
    if frames.is_empty() {
        return Err(BadPiece::Empty);
    }
    Ok(Piece {
        device: device.to_string(),
        model: header.model,
        model_version: header.model_version,
        model_digest: header.model_digest,
        frames: frames.len() as u64,
        at,
        bytes,
    })
}

/// Why a piece of a trace is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadPiece {
    #[error("its trace cannot be read")]
    Trace(#[from] TraceError),
    #[error("its trace holds features, which devices keep to themselves")]
    Features,
    #[error("its trace holds no frame")]
    Empty,
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
