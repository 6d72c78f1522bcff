//! The agent's configuration file.
//!
//! Everything is read and checked before anything starts. Unknown keys are refused: a misspelt key
//! that is ignored is worse than an agent that does not start.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use offramp_core::Settings;
use offramp_engine::{Offload, Provider};
use offramp_proto::{DeviceId, Parameter, PublicKey, TenantId};
use serde::Deserialize;

use crate::agent::{BATCH, BoardSource, ContextSource, DropPolicy, MAX_CAMERAS, TraceOptions};
use crate::judge::SHIPPED;

/// Largest configuration file in bytes.
const MAX_FILE: u64 = 1024 * 1024;

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration {} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is no configuration.
    #[error("configuration {} is larger than {MAX_FILE} bytes: is it the right file?", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// Not TOML, an unknown key, or a value of another type.
    #[error("configuration {} is not valid", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what.
        #[source]
        source: toml::de::Error,
    },
    /// A value that cannot be.
    #[error("configuration {}: {key} {why}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong with it and what would be right.
        why: String,
    },
}

/// The agent's configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Who the device is.
    pub device: Device,
    /// The model.
    #[serde(default)]
    pub model: Model,
    /// Where frames come from, with one camera.
    pub camera: Option<Camera>,
    /// Where they come from, with several: by name.
    #[serde(default)]
    pub cameras: BTreeMap<String, Camera>,
    /// What runs the stages.
    #[serde(default)]
    pub engine: Engine,
    /// The policy that decides until the controller names another.
    #[serde(default)]
    pub policy: Policy,
    /// The learner.
    #[serde(default)]
    pub learner: Learner,
    /// What tells contexts apart.
    #[serde(default)]
    pub context: Context,
    /// What is known of the board.
    #[serde(default)]
    pub board: Board,
    /// Exit traces; none are recorded without it.
    pub trace: Option<Trace>,
    /// The fleet; without it the device works alone.
    pub fleet: Option<Fleet>,
    /// What survives a restart.
    #[serde(default)]
    pub state: State,
}

/// Who the device is.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Name, unique within the tenant.
    pub id: DeviceId,
    /// Owner of the fleet.
    #[serde(default = "default_tenant")]
    pub tenant: TenantId,
}

fn default_tenant() -> TenantId {
    TenantId::new("default").expect("a valid name")
}

/// The model.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// A shipped package's name or a package's directory.
    pub package: String,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            package: crate::package::EMBEDDED.into(),
        }
    }
}

/// What runs the model's stages, and on how many threads. The other keys go with ONNX Runtime.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Engine {
    /// Our own kernels, or ONNX Runtime besides.
    pub kind: EngineKind,
    /// Threads that run stages; without it as many as there are cores or cameras, whichever is less.
    pub threads: Option<usize>,
    /// Frames of several cameras that a thread runs at a time, at most.
    pub batch: usize,
    /// ONNX Runtime's library, or the folder that holds it.
    pub library: Option<PathBuf>,
    /// Providers in order of preference; those for GPUs without it.
    pub providers: Option<Vec<String>>,
    /// Stages that are offloaded, counted from 0; all without it.
    pub stages: Option<Vec<usize>>,
    /// Folder for what TensorRT has built; `offramp-engines` without it.
    pub cache: Option<PathBuf>,
    /// Less precise arithmetic, where a provider has it.
    pub half: Option<bool>,
    /// Number of the GPU.
    pub device: Option<u32>,
}

impl Default for Engine {
    fn default() -> Self {
        Self {
            kind: EngineKind::default(),
            threads: None,
            batch: BATCH,
            library: None,
            providers: None,
            stages: None,
            cache: None,
            half: None,
            device: None,
        }
    }
}

/// What runs the model's stages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// Our own kernels, and tract where those do not know an operator.
    #[default]
    Fused,
    /// ONNX Runtime, and our own kernels until it is ready and wherever it fails.
    OnnxRuntime,
}

impl Engine {
    /// What is to be offloaded, if anything is.
    pub fn offload(&self) -> Option<Offload> {
        if self.kind == EngineKind::Fused {
            return None;
        }
        let cache = self.cache.clone().unwrap_or_else(|| ENGINES.into());
        let default = Offload::new(cache);
        let providers = self.providers.as_ref();
        Some(Offload {
            library: self.library.clone(),
            // Their names were checked.
            providers: providers.map_or(default.providers.clone(), |names| {
                names.iter().filter_map(|name| name.parse().ok()).collect()
            }),
            stages: self.stages.clone(),
            half: self.half.unwrap_or(default.half),
            device: self.device.unwrap_or(default.device),
            threads: self.threads.unwrap_or(default.threads),
            batch: self.batch,
            cache: default.cache,
        })
    }

    /// What is wrong with it, and what would be right.
    fn fault(&self) -> Option<(&'static str, String)> {
        let plain = Self {
            threads: self.threads,
            batch: self.batch,
            ..Self::default()
        };
        if self.kind == EngineKind::Fused && *self != plain {
            let why = "takes keys other than `threads` and `batch` with kind = \"onnxruntime\" only";
            return Some(("engine", why.into()));
        }
        if let Some(providers) = &self.providers {
            let problem = providers.iter().find_map(|name| name.parse::<Provider>().err());
            if let Some(problem) = problem {
                return Some((
                    "engine.providers",
                    format!("must be known: {problem}; {}", problem.remedy()),
                ));
            }
            if providers.is_empty() {
                return Some(("engine.providers", "must name one at least".into()));
            }
        }
        if self.stages.as_ref().is_some_and(Vec::is_empty) {
            return Some(("engine.stages", "must name one at least; leave it out for all".into()));
        }
        if self.threads.is_some_and(|threads| !(1..=64).contains(&threads)) {
            return Some(("engine.threads", "must be between 1 and 64".into()));
        }
        if !(1..=64).contains(&self.batch) {
            return Some(("engine.batch", "must be between 1 and 64".into()));
        }
        None
    }
}

/// Where what TensorRT has built is kept.
const ENGINES: &str = "offramp-engines";

/// Where frames come from, and how they are served.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Camera {
    /// What kind of source it is.
    pub source: Source,
    /// Of a folder or a pipe.
    pub path: Option<PathBuf>,
    /// What becomes of a frame that comes while another one waits.
    #[serde(default)]
    pub drop: DropPolicy,
    /// Milliseconds from a frame's arrival to its prediction: as they end, the frame leaves where it is.
    pub deadline_ms: Option<f64>,
    /// Most frames a second that are taken from the source; all that it gives without it.
    pub frames_per_second: Option<f64>,
    /// What tells this camera's contexts apart, where not the same as for all.
    pub context: Option<Context>,
}

/// Kinds of sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The embedded sample.
    Sample,
    /// The images of a folder, by name.
    Folder,
    /// Raw frames on standard input: height × width × channels bytes each.
    Stdin,
    /// Raw frames from a named pipe, which may be opened for writing again and again, or from a file.
    Pipe,
}

impl Camera {
    /// What is wrong with it, and what would be right.
    fn fault(&self) -> Option<(&'static str, &'static str)> {
        let needs_path = matches!(self.source, Source::Folder | Source::Pipe);
        if needs_path != self.path.is_some() {
            return Some(if needs_path {
                ("path", "is missing: the folder with images, or the pipe")
            } else {
                ("path", "goes with source \"folder\" and \"pipe\" only")
            });
        }
        if self.deadline_ms.is_some_and(|ms| !(1.0..=600_000.0).contains(&ms)) {
            return Some(("deadline_ms", "must be between 1 and 600000"));
        }
        if self
            .frames_per_second
            .is_some_and(|fps| !(0.001..=10_000.0).contains(&fps))
        {
            return Some(("frames_per_second", "must be between 0.001 and 10000"));
        }
        None
    }

    /// Least time between two frames.
    pub fn frame_every(&self) -> Option<Duration> {
        self.frames_per_second.map(|fps| Duration::from_secs_f64(1.0 / fps))
    }

    /// From a frame's arrival to its prediction.
    pub fn deadline(&self) -> Option<Duration> {
        self.deadline_ms.map(|ms| Duration::from_secs_f64(ms / 1e3))
    }
}

/// The policy that decides until the controller names another.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// A shipped policy; `threshold` without it.
    pub name: Option<String>,
    /// A component instead of a shipped policy.
    pub file: Option<PathBuf>,
    /// Public key (64 hexadecimal digits) whose signature the `file` must have, beside it.
    pub trusted_key: Option<String>,
    /// Its parameters.
    pub parameters: BTreeMap<String, Parameter>,
    /// Microseconds that a verdict may take: a policy of whose last 64 more than half took longer is given up.
    pub budget_us: Option<u32>,
}

/// The learner and its guard; what is not set is the model package's to say.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Learner {
    /// Accuracy that may be given up against the last exit: the one thing to set.
    pub accuracy_budget: Option<f32>,
    /// Share of the whole network that a frame may cost on average.
    pub cost_ceiling: Option<f32>,
    /// Whether anything is learned.
    pub enabled: Option<bool>,
    /// Learning rate η0.
    pub rate: Option<f32>,
    /// Share γ of the correction by class frequencies.
    pub prior: Option<f32>,
    /// Pull λ towards the base heads.
    pub anchor: Option<f32>,
    /// Share of frames that are audited.
    pub audit_rate: Option<f32>,
}

impl Learner {
    /// The settings of a package with what is set here.
    pub fn over(&self, package: Settings) -> Settings {
        fn set<T: Copy>(value: &mut T, wanted: Option<T>) {
            *value = wanted.unwrap_or(*value);
        }
        let mut settings = package;
        set(&mut settings.guard.accuracy_budget, self.accuracy_budget);
        set(&mut settings.guard.cost_ceiling, self.cost_ceiling);
        set(&mut settings.learner.enabled, self.enabled);
        set(&mut settings.learner.rate, self.rate);
        set(&mut settings.learner.prior.strength, self.prior);
        set(&mut settings.learner.anchor, self.anchor);
        set(&mut settings.audit_rate, self.audit_rate);
        settings
    }
}

/// What tells contexts apart; without either key there is one.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Context {
    /// Hours of the day, UTC, from which another context begins.
    pub hours: Option<Vec<u8>>,
    /// File whose first line names the context.
    pub file: Option<PathBuf>,
    /// Contexts that are remembered.
    pub remembered: Option<usize>,
}

impl Context {
    /// Who says which context it is.
    pub fn source(&self) -> ContextSource {
        match (&self.hours, &self.file) {
            (Some(hours), _) => ContextSource::Hours(hours.clone()),
            (None, Some(file)) => ContextSource::File(file.clone()),
            (None, None) => ContextSource::One,
        }
    }

    /// Contexts that are remembered: all that hours tell apart, or four.
    pub fn remembered(&self) -> usize {
        let hours = self.hours.as_ref().map_or(0, Vec::len);
        self.remembered.unwrap_or(hours.max(Settings::default().contexts))
    }

    /// What is wrong with it, and what would be right.
    fn fault(&self) -> Option<(&'static str, &'static str)> {
        if let Some(hours) = &self.hours {
            let rising = hours.is_sorted_by(|a, b| a < b);
            if hours.len() < 2 || !rising || hours.iter().any(|hour| *hour > 23) {
                return Some(("context.hours", "must be two or more hours from 0 to 23, rising"));
            }
        }
        if self.hours.is_some() && self.file.is_some() {
            return Some(("context", "takes `hours` or `file`, not both"));
        }
        if !(1..=64).contains(&self.remembered()) {
            return Some(("context.remembered", "must be between 1 and 64"));
        }
        None
    }
}

/// What is known of the board.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Board {
    /// Watts that the board may draw on average: policies that keep to a budget go by it.
    pub power_budget: Option<f32>,
    /// Where sysfs is mounted, if not at `/sys`: in a container, say.
    pub sysfs: Option<PathBuf>,
}

impl Board {
    /// Where the board is asked, and what it may draw.
    pub fn source(&self) -> BoardSource {
        let default = BoardSource::default();
        BoardSource {
            sysfs: self.sysfs.clone().unwrap_or(default.sysfs),
            power_budget: self.power_budget,
        }
    }
}

/// Exit traces: what policies saw and answered, for judging others.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Trace {
    /// Folder of the files.
    pub folder: PathBuf,
    /// Size of a file in megabytes, about.
    pub file_mb: f64,
    /// Files that are kept of each camera; the oldest make room.
    pub files: usize,
    /// Whether pooled features are recorded, too.
    pub features: bool,
    /// Share of the frames that are audited for the sake of the trace.
    pub complete_share: f32,
    /// Kilobytes an hour that go to the fleet's controller; 0 for none.
    pub share_kb: u64,
}

impl Default for Trace {
    fn default() -> Self {
        Self {
            folder: "offramp-traces".into(),
            file_mb: 8.0,
            files: 4,
            features: false,
            complete_share: 0.02,
            share_kb: 0,
        }
    }
}

impl Trace {
    /// Where traces go, and how much of them.
    pub fn options(&self) -> TraceOptions {
        TraceOptions {
            folder: self.folder.clone(),
            file_bytes: (self.file_mb * 1e6) as u64,
            files: self.files,
            features: self.features,
            complete_share: self.complete_share,
            share_bytes: self.share_kb * 1000,
        }
    }

    /// What is wrong with it, and what would be right.
    fn fault(&self) -> Option<(&'static str, &'static str)> {
        if !(0.1..=1024.0).contains(&self.file_mb) {
            return Some(("trace.file_mb", "must be between 0.1 and 1024"));
        }
        if !(1..=1000).contains(&self.files) {
            return Some(("trace.files", "must be between 1 and 1000"));
        }
        if !(0.0..=1.0).contains(&self.complete_share) {
            return Some(("trace.complete_share", "must be between 0 and 1"));
        }
        if self.share_kb > 1_000_000 {
            return Some(("trace.share_kb", "must be at most 1000000"));
        }
        None
    }
}

/// The fleet.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fleet {
    /// URL of the broker: `mqtt://host:1883` or `mqtts://host:8883`.
    pub broker: String,
    /// The controller's public key as 64 hexadecimal digits (`offramp-fleet key` prints it).
    pub controller_key: String,
    /// User at the broker.
    pub username: Option<String>,
    /// File with the password at the broker.
    pub password_file: Option<PathBuf>,
    /// Certificate of the authority that signed the broker's, PEM.
    pub ca_file: Option<PathBuf>,
    /// Certificate and key of the device, PEM (`offramp enrol` makes it).
    pub identity_file: Option<PathBuf>,
}

/// What survives a restart.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct State {
    /// File of the device's store.
    pub path: PathBuf,
    /// Seconds between summaries.
    pub summary_seconds: f64,
    /// Seconds between checkpoints of the heads: what a power cut may cost, against wear of the flash.
    pub checkpoint_seconds: f64,
    /// Megabytes of model packages that come from the fleet and are kept in `PATH.packages`: the one in use, the one to
    /// go back to, and the one on its way.
    pub packages_mb: u32,
}

impl Default for State {
    fn default() -> Self {
        Self {
            path: "offramp-state.redb".into(),
            summary_seconds: 60.0,
            checkpoint_seconds: 60.0,
            packages_mb: 1024,
        }
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn open(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read {
            path: path.into(),
            source,
        };
        if fs::metadata(path).map_err(read)?.len() > MAX_FILE {
            return Err(ConfigError::TooLarge { path: path.into() });
        }
        Self::parse(path, &fs::read_to_string(path).map_err(read)?)
    }

    /// Checks the text of a file; relative paths are taken from the file's folder.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let mut config: Self = toml::from_str(text).map_err(|source| ConfigError::Parse {
            path: path.into(),
            source,
        })?;
        let wrong = |key: &str, why: &str| {
            Err(ConfigError::Value {
                path: path.into(),
                key: key.into(),
                why: why.into(),
            })
        };
        if config.camera.is_some() != config.cameras.is_empty() {
            return wrong(
                "camera",
                "must be there, for one camera, or `[cameras.NAME]` for each of several, not both",
            );
        }
        let named = |name: &String| name.len() <= 64 && DeviceId::new(name.clone()).is_ok();
        if config.cameras.len() > MAX_CAMERAS || !config.cameras.keys().all(named) {
            return wrong(
                "cameras",
                &format!("may be {MAX_CAMERAS} at most, named by up to 64 letters, digits, `-` and `_`"),
            );
        }
        let piped = config
            .all_cameras()
            .filter(|(_, camera)| camera.source == Source::Stdin);
        if piped.count() > 1 {
            return wrong("cameras", "share one standard input: give each a pipe of its own");
        }
        for (name, camera) in config.all_cameras() {
            let own = camera.context.as_ref().and_then(Context::fault);
            if let Some((key, why)) = camera.fault().or(own) {
                let table = if name.is_empty() {
                    "camera".into()
                } else {
                    format!("cameras.{name}")
                };
                return wrong(&format!("{table}.{key}"), why);
            }
        }
        if config
            .engine
            .threads
            .is_some_and(|threads| !(1..=64).contains(&threads))
        {
            return wrong("engine.threads", "must be between 1 and 64");
        }
        if !(1..=64).contains(&config.engine.batch) {
            return wrong("engine.batch", "must be between 1 and 64");
        }
        if !config.learner.over(Settings::default()).is_valid() {
            return wrong(
                "learner",
                "is out of range: accuracy_budget 0 to 0.5, cost_ceiling above 0 to 1, rate 0 to 4, prior 0 to 1, \
                 anchor 0 to 1, audit_rate 0 to 1",
            );
        }
        if config
            .policy
            .budget_us
            .is_some_and(|budget| !(10..=1_000_000).contains(&budget))
        {
            return wrong("policy.budget_us", "must be between 10 and 1000000");
        }
        if let Some(key) = &config.policy.trusted_key {
            if config.policy.file.is_none() {
                return wrong(
                    "policy.trusted_key",
                    "goes with a `file`: the shipped policies are in the program",
                );
            }
            if key.parse::<PublicKey>().is_err() {
                return wrong(
                    "policy.trusted_key",
                    "is no Ed25519 public key: 64 hexadecimal digits, as `offramp policy sign` prints them",
                );
            }
        }
        if let Some(name) = &config.policy.name {
            if config.policy.file.is_some() {
                return wrong("policy", "takes the `name` of a shipped policy or a `file`, not both");
            }
            if !SHIPPED.iter().any(|(shipped, _)| shipped == name) {
                let names = SHIPPED.map(|(name, _)| name).join(", ");
                return wrong(
                    "policy.name",
                    &format!("must be one of {names}; others come from a `file`"),
                );
            }
        }
        if let Some((key, why)) = config.context.fault() {
            return wrong(key, why);
        }
        if config
            .board
            .power_budget
            .is_some_and(|watts| !(0.1..=10_000.0).contains(&watts))
        {
            return wrong("board.power_budget", "must be between 0.1 and 10000 watts");
        }
        if let Some((key, why)) = config.trace.as_ref().and_then(Trace::fault) {
            return wrong(key, why);
        }
        if let Some((key, why)) = config.engine.fault() {
            return wrong(key, &why);
        }
        for (key, seconds) in [
            ("state.summary_seconds", config.state.summary_seconds),
            ("state.checkpoint_seconds", config.state.checkpoint_seconds),
        ] {
            if !(0.1..=86_400.0).contains(&seconds) {
                return wrong(key, "must be between 0.1 and 86400");
            }
        }
        if let Some(fleet) = &config.fleet
            && fleet.key().is_none()
        {
            return wrong(
                "fleet.controller_key",
                "is no Ed25519 public key: 64 hexadecimal digits, as `offramp-fleet key` prints them",
            );
        }
        let folder = path.parent().unwrap_or(Path::new("."));
        let absolute = |path: &mut PathBuf| *path = folder.join(&*path);
        absolute(&mut config.state.path);
        config.policy.file.iter_mut().for_each(absolute);
        config.board.sysfs.iter_mut().for_each(absolute);
        config.trace.iter_mut().for_each(|trace| absolute(&mut trace.folder));
        config.context.file.iter_mut().for_each(absolute);
        if config.engine.kind == EngineKind::OnnxRuntime {
            config.engine.library.iter_mut().for_each(absolute);
            absolute(config.engine.cache.get_or_insert_with(|| ENGINES.into()));
        }
        for camera in config.camera.iter_mut().chain(config.cameras.values_mut()) {
            camera.path.iter_mut().for_each(absolute);
            let contexts = camera.context.iter_mut();
            contexts.filter_map(|context| context.file.as_mut()).for_each(absolute);
        }
        if let Some(fleet) = &mut config.fleet {
            fleet
                .password_file
                .iter_mut()
                .chain(&mut fleet.ca_file)
                .chain(&mut fleet.identity_file)
                .for_each(absolute);
        }
        Ok(config)
    }

    /// Contexts that are remembered of each camera: as many as the one needs that tells most apart.
    pub fn remembered(&self) -> usize {
        let own = self.all_cameras().filter_map(|(_, camera)| camera.context.as_ref());
        let all = own.chain([&self.context]).map(Context::remembered);
        all.max().unwrap_or(1)
    }

    /// The cameras by name, which is empty where there is one.
    pub fn all_cameras(&self) -> impl Iterator<Item = (&str, &Camera)> {
        let one = self.camera.iter().map(|camera| ("", camera));
        one.chain(self.cameras.iter().map(|(name, camera)| (name.as_str(), camera)))
    }
}

impl Fleet {
    /// The controller's key.
    pub fn key(&self) -> Option<PublicKey> {
        self.controller_key.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offload(engine: &str) -> Option<Offload> {
        let text = format!("[device]\nid = \"a\"\n[camera]\nsource = \"stdin\"\n{engine}");
        Config::parse(Path::new("/etc/offramp/offramp.toml"), &text)
            .unwrap()
            .engine
            .offload()
    }

    #[test]
    fn stages_are_offloaded_where_that_is_asked_for_and_to_gpus_by_default() {
        assert_eq!(offload(""), None);
        assert_eq!(offload("[engine]\nkind = \"fused\"\n"), None);
        let default = Offload {
            batch: BATCH,
            ..Offload::new("/etc/offramp/offramp-engines".into())
        };
        assert_eq!(offload("[engine]\nkind = \"onnxruntime\"\n"), Some(default.clone()));
        assert!(!default.providers.contains(&Provider::Cpu));
        let all = "[engine]\nkind = \"onnxruntime\"\nlibrary = \"lib\"\nproviders = [\"cuda\", \"cpu\"]\nstages = [2]\n\
                   cache = \"/var/cache/engines\"\nhalf = true\ndevice = 1\nthreads = 2\nbatch = 4\n";
        let expected = Offload {
            library: Some("/etc/offramp/lib".into()),
            providers: vec![Provider::Cuda, Provider::Cpu],
            stages: Some(vec![2]),
            cache: "/var/cache/engines".into(),
            half: true,
            device: 1,
            threads: 2,
            batch: 4,
        };
        assert_eq!(offload(all), Some(expected));
    }

    #[test]
    fn the_configuration_that_a_package_installs_is_accepted_with_and_without_what_it_proposes() {
        let path = Path::new("/etc/offramp/offramp.toml");
        let installed = include_str!("../debian/offramp.toml");
        let config = Config::parse(path, installed).unwrap();
        assert_eq!(config.state.path, Path::new("/var/lib/offramp/state.redb"));
        assert!(config.fleet.is_none());
        let proposed: Vec<&str> = installed
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(rest) if rest.starts_with('[') || rest.contains(" = ") => rest,
                _ => line,
            })
            .collect();
        // The base point: some key.
        let key = format!("58{}", "66".repeat(31));
        let all = proposed.join("\n").replace('…', &key);
        let config = Config::parse(path, &all).unwrap();
        assert!(config.model.package.starts_with("/var/lib/offramp/"));
        assert!(config.fleet.unwrap().key().is_some());
    }
}
