use crate::error::OpenError;

/// How much the store keeps. All sizes are in bytes.
///
/// The defaults add up to 41 MiB of content with one camera, for which the file may take up to 128 MiB:
/// values have pages of powers of two, and a commit writes beside what it replaces. Each further camera
/// may add two checkpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most records the outbox holds before the oldest are dropped. Default 20 000: more than two
    /// days of one summary each ten seconds.
    pub outbox_records: u64,
    /// Most bytes (topics and payloads) the outbox holds before the oldest are dropped. Default
    /// 16 MiB.
    pub outbox_bytes: u64,
    /// Largest single record (topic and payload). Default 192 KiB, which fits an MQTT packet of
    /// 256 KiB with all its properties.
    pub record_bytes: u64,
    /// Largest checkpoint; two are kept for each camera. Default 4 MiB.
    pub checkpoint_bytes: u64,
    /// Most cameras that have checkpoints. Default 16.
    pub cameras: u64,
    /// Largest desired state. Default 256 KiB.
    pub desired_bytes: u64,
    /// All artifacts together. Default 16 MiB.
    pub artifact_bytes: u64,
    /// Most values. Default 128.
    pub values: u64,
    /// Largest value, key included. Default 4 KiB.
    pub value_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        const KIB: u64 = 1024;
        Self {
            outbox_records: 20_000,
            outbox_bytes: 16 * KIB * KIB,
            record_bytes: 192 * KIB,
            checkpoint_bytes: 4 * KIB * KIB,
            cameras: 16,
            desired_bytes: 256 * KIB,
            artifact_bytes: 16 * KIB * KIB,
            values: 128,
            value_bytes: 4 * KIB,
        }
    }
}

impl Limits {
    /// A limit of zero would make an operation fail always, and an outbox smaller than its largest
    /// record could never hold it.
    pub(crate) fn check(&self) -> Result<(), OpenError> {
        let at_least = [
            ("outbox_records", self.outbox_records, 1),
            ("record_bytes", self.record_bytes, 1),
            ("outbox_bytes", self.outbox_bytes, self.record_bytes),
            ("checkpoint_bytes", self.checkpoint_bytes, 1),
            ("cameras", self.cameras, 1),
            ("desired_bytes", self.desired_bytes, 1),
            ("artifact_bytes", self.artifact_bytes, 1),
            ("values", self.values, 1),
            ("value_bytes", self.value_bytes, 1),
        ];
        for (name, value, least) in at_least {
            if value < least {
                return Err(OpenError::Limit { name, value, least });
            }
        }
        Ok(())
    }
}
