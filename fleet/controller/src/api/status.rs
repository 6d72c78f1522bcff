//! `/status`

use axum::Json;
use axum::extract::State;
use offramp_link::State as LinkState;
use offramp_proto::PROTOCOL_VERSION;
use serde::Serialize;
use utoipa::ToSchema;

use super::ApiError;
use crate::statistics::Statistics;
use crate::store::Peer;
use crate::web::Fleet;

/// The controller as the API shows it.
#[derive(Serialize, ToSchema)]
pub(super) struct Status {
    version: &'static str,
    protocol: u32,
    tenant: String,
    started_at: u64,
    /// Key with which devices verify their desired states, hexadecimal.
    public_key: String,
    /// `sqlite` or `postgresql`.
    database: &'static str,
    broker: BrokerView,
    /// Of this controller.
    statistics: Statistics,
    /// Those that share the database, this one included; none where there can be one only.
    controllers: Vec<ControllerView>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Controller)]
struct ControllerView {
    name: String,
    version: String,
    /// Where it serves page and API.
    address: String,
    started_at: u64,
    /// Milliseconds since it was heard of; a dead one is forgotten when nothing is left of it at the broker.
    silent_ms: u64,
    /// Whether rollouts and publishing are its to do.
    on_duty: bool,
}

impl From<Peer> for ControllerView {
    fn from(peer: Peer) -> Self {
        Self {
            name: peer.name,
            version: peer.version,
            address: peer.address,
            started_at: peer.started_at,
            silent_ms: peer.silent_ms,
            on_duty: peer.on_duty,
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = Broker)]
struct BrokerView {
    url: String,
    connected: bool,
    /// Why it is not connected.
    reason: Option<String>,
}

/// Show the state of the controller: broker, messages, key
#[utoipa::path(get, path = "/status", tag = "fleet", operation_id = "status", responses((status = OK, body = Status)))]
pub(super) async fn fetch(State(shared): Fleet) -> Result<Json<Status>, ApiError> {
    let controllers = shared.store.peer_list().await?;
    let (connected, reason) = match &*shared.link.borrow() {
        LinkState::Connected { .. } => (true, None),
        LinkState::Connecting => (false, Some("connecting".to_owned())),
        LinkState::Disconnected { reason, .. } => (false, Some(reason.to_string())),
        LinkState::Closed => (false, Some("shutting down".to_owned())),
    };
    Ok(Json(Status {
        version: env!("CARGO_PKG_VERSION"),
        protocol: PROTOCOL_VERSION,
        tenant: shared.tenant.to_string(),
        started_at: shared.started_at,
        public_key: format!("{:?}", shared.public_key().await?),
        database: if shared.store.is_shared() {
            "postgresql"
        } else {
            "sqlite"
        },
        broker: BrokerView {
            url: shared.broker.to_string(),
            connected,
            reason,
        },
        statistics: *shared.statistics.borrow(),
        controllers: controllers.into_iter().map(ControllerView::from).collect(),
    }))
}
