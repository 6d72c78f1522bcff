//! `/status`

use axum::Json;
use axum::extract::State;
use offramp_link::State as LinkState;
use offramp_proto::PROTOCOL_VERSION;
use serde::Serialize;
use utoipa::ToSchema;

use crate::statistics::Statistics;
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
    broker: BrokerView,
    statistics: Statistics,
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
pub(super) async fn fetch(State(shared): Fleet) -> Json<Status> {
    let (connected, reason) = match &*shared.link.borrow() {
        LinkState::Connected { .. } => (true, None),
        LinkState::Connecting => (false, Some("connecting".to_owned())),
        LinkState::Disconnected { reason, .. } => (false, Some(reason.to_string())),
        LinkState::Closed => (false, Some("shutting down".to_owned())),
    };
    Json(Status {
        version: env!("CARGO_PKG_VERSION"),
        protocol: PROTOCOL_VERSION,
        tenant: shared.tenant.to_string(),
        started_at: shared.started_at,
        public_key: format!("{:?}", shared.key.public()),
        broker: BrokerView {
            url: shared.broker.to_string(),
            connected,
            reason,
        },
        statistics: *shared.statistics.borrow(),
    })
}
