//! The description of the API, made from the handlers and the types of their answers.

use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, RefOr, ResponseBuilder, Schema};
use utoipa::{Modify, OpenApi as _, ToSchema};

use super::error::Refusal;
use crate::rollout::{MemberState, State};

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Offramp fleet controller",
        description = "What a fleet of early-exit classifiers sees, costs and runs. Times are milliseconds since 1970, \
                       shares are 0 to 1, digests and boots hexadecimal. Lists have a limit; what is wrong is told as \
                       `{\"error\": …, \"hint\": …}`. A controller for which a token was made asks for one; a viewer may \
                       do what is a GET, an operator everything but what is said to need an admin.",
        license(name = "Apache-2.0 OR MIT", identifier = "Apache-2.0 OR MIT"),
    ),
    components(schemas(Refusal)),
    security(("token" = []), ("session" = [])),
    modifiers(&Ways),
    tags(
        (name = "fleet", description = "Devices: what they are, see and cost"),
        (name = "rollouts", description = "Policies, and how they go out"),
        (name = "access", description = "Who may do what, and who did"),
    ),
)]
struct Described;

/// The ways in.
struct Ways;

impl Modify for Ways {
    fn modify(&self, api: &mut OpenApi) {
        let components = api.components.get_or_insert_default();
        let token = Http::builder().scheme(HttpAuthScheme::Bearer).build();
        components.add_security_scheme("token", SecurityScheme::Http(token));
        let session = ApiKey::Cookie(ApiKeyValue::new("offramp_session"));
        components.add_security_scheme("session", SecurityScheme::ApiKey(session));
    }
}

/// What the description begins with; the routes are added to it.
pub(super) fn begin() -> OpenApi {
    Described::openapi()
}

/// Adds what every route may answer.
pub(super) fn complete(mut api: OpenApi) -> OpenApi {
    let refusal = RefOr::Ref(Ref::from_schema_name(Refusal::name()));
    let content = ContentBuilder::new().schema(Some(refusal)).build();
    let refused = ResponseBuilder::new()
        .description("What is wrong, and what to do about it")
        .content("application/json", content)
        .build();
    for item in api.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            let responses = &mut operation.responses.responses;
            responses.insert("default".into(), RefOr::T(refused.clone()));
        }
    }
    api
}

/// Text that is one of these.
fn one_of(names: impl IntoIterator<Item = &'static str>) -> RefOr<Schema> {
    let texts = ObjectBuilder::new().schema_type(SchemaType::Type(Type::String));
    texts.enum_values(Some(names)).build().into()
}

pub(super) fn rollout_state() -> RefOr<Schema> {
    one_of(State::ALL.map(|(_, name)| name))
}

pub(super) fn member_state() -> RefOr<Schema> {
    one_of(MemberState::ALL.map(|(_, name)| name))
}

pub(super) fn life() -> RefOr<Schema> {
    one_of(["alive", "silent", "gone", "quarantined"])
}

pub(super) fn progress() -> RefOr<Schema> {
    one_of(["unmanaged", "in-force", "pending", "refused"])
}

/// A typed parameter of a policy: true or false, a number, or text.
#[derive(ToSchema)]
#[allow(dead_code, reason = "stands in the description for a type of another crate")]
#[schema(as = Parameter)]
#[serde(untagged)]
pub(super) enum ParameterSchema {
    Flag(bool),
    Number(f64),
    Text(String),
}

/// One camera's part of a window, where a device has several.
#[derive(ToSchema)]
#[allow(dead_code, reason = "stands in the description for a type of another crate")]
#[schema(as = CameraReport)]
pub(super) struct CameraSchema {
    /// Its name on the device.
    name: String,
    frames: u64,
    dropped: u64,
    hurried: u64,
    /// Frames taken at each exit.
    exits: Vec<u64>,
    macs: u64,
    full_macs: u64,
    audits: u64,
    disagreements: u64,
    loss: f64,
    loss_bound: f64,
    paused: bool,
}
