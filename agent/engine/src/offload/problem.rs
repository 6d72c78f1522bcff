//! Why something is not offloaded, and what would help.

use std::fmt;
use std::path::PathBuf;

use super::Provider;
use crate::error::Cause;

/// As version 0.5 of the plugin says.
const RTX_GPUS: &str = "the GPU must have compute capability 8.6, 8.9, or 12.0 or newer (not an A100, H100 or H200: \
                        take `cuda` or `tensorrt` there)";

/// What stands between a stage and ONNX Runtime. The message names the subject; [`Self::remedy`] says what would help.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OffloadProblem {
    /// This program has no way to the runtime.
    #[error("this program was built without ONNX Runtime")]
    NotBuilt,
    /// No library in any of the usual places.
    #[error("no ONNX Runtime library was found")]
    NoLibrary,
    /// A library was named that is not there.
    #[error("there is no ONNX Runtime library at {}", path.display())]
    NoSuchLibrary {
        /// The file or folder.
        path: PathBuf,
    },
    /// A file that cannot be loaded, or is another library.
    #[error("{} cannot be used as ONNX Runtime: {cause}", path.display())]
    NotTheLibrary {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: Cause,
    },
    /// A library of a version before the oldest that is supported.
    #[error("{} is ONNX Runtime {found}, older than 1.{oldest}", path.display())]
    TooOld {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: String,
        /// The minor version that is needed.
        oldest: u32,
    },
    /// Another library is in use: a process has one.
    #[error("{} cannot be used, because this process uses {}", path.display(), loaded.display())]
    AnotherLibrary {
        /// The library that was asked for.
        path: PathBuf,
        /// The one in use.
        loaded: PathBuf,
    },
    /// A provider's name that is none.
    #[error("`{name}` is no provider")]
    NoSuchProvider {
        /// The name.
        name: String,
    },
    /// A stage that the package does not have.
    #[error("there is no stage {stage}: the package has {stages}")]
    NoSuchStage {
        /// The stage.
        stage: usize,
        /// How many there are.
        stages: usize,
    },
    /// The library was compiled without the provider.
    #[error("ONNX Runtime {version} was built without {provider}")]
    NotInLibrary {
        /// The provider.
        provider: Provider,
        /// The library's version.
        version: String,
    },
    /// The plugin of the provider cannot be used, or it found no device.
    #[error("the plugin for {provider} cannot be used: {cause}")]
    Plugin {
        /// The provider.
        provider: Provider,
        /// Why.
        cause: Cause,
    },
    /// The provider does not accept the stage, or does not work on this machine.
    #[error("{provider} does not run it: {cause}")]
    Refused {
        /// The provider.
        provider: Provider,
        /// What it said.
        cause: Cause,
    },
    /// The provider computes something else than our own kernels do.
    #[error("{provider} computes `{tensor}` with a difference of {difference:.1e}, more than {tolerance:.0e}")]
    Differs {
        /// The provider.
        provider: Provider,
        /// The tensor.
        tensor: String,
        /// How far, as a share of its largest value.
        difference: f32,
        /// How far is allowed.
        tolerance: f32,
    },
    /// The provider runs the stage, but not on several images at a time.
    #[error("{provider} runs no batches: {cause}")]
    NoBatches {
        /// The provider.
        provider: Provider,
        /// Why.
        cause: Cause,
    },
    /// The provider ran the stage, and then failed.
    #[error("{provider} failed while running: {cause}")]
    FailedWhileRunning {
        /// The provider.
        provider: Provider,
        /// What it said.
        cause: Cause,
    },
    /// The thread that builds cannot be started, or broke off.
    #[error("the offload cannot be prepared: {cause}")]
    Builder {
        /// Why.
        cause: Cause,
    },
}

impl OffloadProblem {
    /// What would help.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            Self::NotBuilt => "build it with the feature `onnxruntime`".into(),
            Self::NoLibrary => "install it (`pip install onnxruntime-gpu`, or `onnxruntime` for the CPU) and name the \
                                library by `library` in [engine] or ORT_DYLIB_PATH"
                .into(),
            Self::NoSuchLibrary { .. } => "name the file libonnxruntime.so, or the folder that holds it".into(),
            Self::NotTheLibrary { .. } => {
                "name libonnxruntime.so of a release for this machine; `ldd` shows what it misses".into()
            }
            Self::TooOld { oldest, .. } => format!("install ONNX Runtime 1.{oldest} or newer"),
            Self::AnotherLibrary { .. } => "restart, to use another one".into(),
            Self::NoSuchProvider { .. } => {
                let names: Vec<_> = Provider::ALL.iter().map(|provider| provider.name()).collect();
                format!("name one of {}", names.join(", "))
            }
            Self::NoSuchStage { stages, .. } => format!("name stages from 0 to {}", stages.saturating_sub(1)),
            Self::NotInLibrary { provider, .. } => match provider {
                Provider::TensorRt | Provider::Cuda => {
                    "install a release that has it (`pip install onnxruntime-gpu`; on a Jetson NVIDIA's own)".into()
                }
                _ => "install a release that has it".into(),
            },
            Self::Plugin { .. } => format!(
                "install `onnxruntime-ep-nv-tensorrt-rtx-cu13` beside `onnxruntime`, import it once in Python, and \
                 have its folder in LD_LIBRARY_PATH; an NVIDIA driver is needed, and {RTX_GPUS}"
            ),
            Self::Refused { provider, .. } => match provider {
                Provider::TensorRt => "TensorRT, CUDA and cuDNN of the versions that the library was built for must \
                                       be in LD_LIBRARY_PATH, and an NVIDIA driver and GPU present"
                    .into(),
                Provider::Cuda => "CUDA and cuDNN of the versions that the library was built for must be in \
                                   LD_LIBRARY_PATH, and an NVIDIA driver and GPU present"
                    .into(),
                Provider::TensorRtRtx => RTX_GPUS.into(),
                Provider::Cpu => "leave this stage out of `stages`".into(),
            },
            Self::Differs { .. } => "leave `half` off, or this provider out of `providers`".into(),
            Self::NoBatches { .. } => {
                "nothing is lost but speed; export graphs with an open batch axis, or set `batch = 1`".into()
            }
            Self::FailedWhileRunning { .. } => {
                "restart to try again; if it comes back, leave this provider out of `providers`".into()
            }
            Self::Builder { .. } => "restart to try again".into(),
        }
    }
}

/// A problem, written with its remedy.
#[derive(Clone, Debug)]
pub struct Refusal(pub OffloadProblem);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0, self.0.remedy())
    }
}
