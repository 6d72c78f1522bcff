//! Topics: `offramp/1/{tenant}/{device}/{up|down}/{kind}`.

use alloc::format;
use alloc::string::String;

use crate::{DeviceId, PROTOCOL_VERSION, TenantId};

/// What a topic carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Retained; a [`crate::Birth`] whenever the agent starts.
    Birth,
    /// The will; a [`crate::Death`].
    Death,
    /// A [`crate::Summary`] per window.
    Summary,
    /// A [`crate::Event`] when something worth telling happened.
    Event,
    /// Retained; a [`crate::Reported`] whenever it changes.
    Reported,
    /// A [`crate::TraceSample`] now and then, where the device shares its traces.
    Trace,
    /// A [`crate::ArtifactRequest`]; the answer goes to its response topic.
    Request,
    /// A [`crate::RenewalRequest`], when the device's certificate comes near its end.
    Renewal,
    /// Retained; a signed [`crate::Desired`].
    Desired,
    /// A [`crate::ArtifactChunk`], the answer to a request.
    Chunk,
    /// A [`crate::RenewalAnswer`].
    Certificate,
}

const KINDS: [(Kind, &str); 11] = [
    (Kind::Birth, "up/birth"),
    (Kind::Death, "up/death"),
    (Kind::Summary, "up/summary"),
    (Kind::Event, "up/event"),
    (Kind::Reported, "up/reported"),
    (Kind::Trace, "up/trace"),
    (Kind::Request, "up/request"),
    (Kind::Renewal, "up/renewal"),
    (Kind::Desired, "down/desired"),
    (Kind::Chunk, "down/chunk"),
    (Kind::Certificate, "down/certificate"),
];

impl Kind {
    /// The last two levels of the topic.
    pub fn path(self) -> &'static str {
        KINDS
            .iter()
            .find(|(kind, _)| *kind == self)
            .map_or("", |(_, path)| path)
    }
}

/// A topic taken apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Topic {
    /// Owner of the fleet.
    pub tenant: TenantId,
    /// The device that the topic belongs to.
    pub device: DeviceId,
    /// What it carries.
    pub kind: Kind,
}

/// Why a topic is not one of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// Another protocol or another version of ours.
    #[error("topic `{0}` is not below `offramp/{PROTOCOL_VERSION}/`")]
    Foreign(String),
    /// The tenant or device is no valid name.
    #[error(transparent)]
    Name(#[from] crate::InvalidId),
    /// The last levels are unknown to this version.
    #[error("topic `{0}` ends in a kind that protocol version {PROTOCOL_VERSION} does not know")]
    UnknownKind(String),
}

impl Topic {
    /// The topic of `kind` of a device.
    pub fn new(tenant: &TenantId, device: &DeviceId, kind: Kind) -> Self {
        Self {
            tenant: tenant.clone(),
            device: device.clone(),
            kind,
        }
    }

    /// Takes a topic's name apart.
    pub fn parse(name: &str) -> Result<Self, TopicError> {
        let shown = || name.chars().take(200).collect::<String>();
        let mut levels = name.splitn(5, '/');
        let mut level = || levels.next().unwrap_or_default();
        let (root, version) = (level(), level());
        if root != "offramp" || version.parse() != Ok(PROTOCOL_VERSION) {
            return Err(TopicError::Foreign(shown()));
        }
        let tenant = TenantId::new(level())?;
        let device = DeviceId::new(level())?;
        let path = level();
        let kind = KINDS
            .iter()
            .find(|(_, p)| *p == path)
            .ok_or_else(|| TopicError::UnknownKind(shown()))?
            .0;
        Ok(Self { tenant, device, kind })
    }

    /// Filter for everything that a tenant's devices write.
    pub fn uplink_filter(tenant: &TenantId) -> String {
        format!("offramp/{PROTOCOL_VERSION}/{tenant}/+/up/#")
    }

    /// Filter for one kind of what a tenant's devices write.
    pub fn kind_filter(tenant: &TenantId, kind: Kind) -> String {
        format!("offramp/{PROTOCOL_VERSION}/{tenant}/+/{}", kind.path())
    }

    /// Filter for everything that is meant for a device.
    pub fn downlink_filter(tenant: &TenantId, device: &DeviceId) -> String {
        format!("offramp/{PROTOCOL_VERSION}/{tenant}/{device}/down/#")
    }
}

impl core::fmt::Display for Topic {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "offramp/{PROTOCOL_VERSION}/{}/{}/{}",
            self.tenant,
            self.device,
            self.kind.path()
        )
    }
}
