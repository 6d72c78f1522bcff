//! The one ONNX Runtime of this process: finding it, and what it has.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use ort::LoadDynamicError;
use ort::device::Device;
use ort::environment::Environment;
use ort::ep::{CUDA, ExecutionProvider as _, TensorRT};

use super::session::said;
use super::{OffloadProblem, Provider, lock};
use crate::contain::contain;
use crate::error::Cause;

/// The name under which the plugin for TensorRT for RTX gives its devices.
pub(super) const RTX: &str = "NvTensorRTRTXExecutionProvider";
const RTX_PLUGIN: &str = "libonnxruntime_providers_nv_tensorrt_rtx.so";
/// Where Python's package of the plugin puts it, seen from the folder of packages.
const RTX_PACKAGE: &str = "onnxruntime_ep_nv_tensorrt_rtx";
/// Linked to by the plugin, in this order, and lying beside it under names that the linker does not look for.
const RTX_NEEDS: [&str; 3] = [
    "libcudart.so.",
    "libtensorrt_rtx.so.1.",
    "libtensorrt_onnxparser_rtx.so.1.",
];

/// The library, loaded for as long as the process lives.
pub(super) struct Runtime {
    pub(super) environment: Environment,
    pub(super) path: PathBuf,
    pub(super) version: String,
    plugin: OnceLock<Result<(), OffloadProblem>>,
}

/// Finds and loads the library, once per process. A failure leaves the process as it was.
pub(super) fn open(wanted: Option<&Path>) -> Result<&'static Runtime, OffloadProblem> {
    static LOADED: Mutex<Option<&'static Runtime>> = Mutex::new(None);
    let mut loaded = lock(&LOADED);
    let named = match wanted.map(Path::to_owned).or_else(from_environment) {
        Some(path) => Some(file_at(&path)?),
        None => None,
    };
    if let Some(runtime) = *loaded {
        return match named {
            Some(path) if !same(&path, &runtime.path) => Err(OffloadProblem::AnotherLibrary {
                path,
                loaded: runtime.path.clone(),
            }),
            _ => Ok(runtime),
        };
    }
    let runtime = match named {
        Some(path) => load(path)?,
        None => search()?,
    };
    let runtime: &'static Runtime = Box::leak(Box::new(runtime));
    *loaded = Some(runtime);
    Ok(runtime)
}

fn from_environment() -> Option<PathBuf> {
    env::var_os("ORT_DYLIB_PATH")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
}

fn same(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// The library that a file or folder names.
fn file_at(path: &Path) -> Result<PathBuf, OffloadProblem> {
    let absent = || OffloadProblem::NoSuchLibrary { path: path.into() };
    let path = std::path::absolute(path).map_err(|_| absent())?;
    if path.is_dir() {
        in_folder(&path, "libonnxruntime.so").ok_or_else(absent)
    } else if path.is_file() {
        Ok(path)
    } else {
        Err(absent())
    }
}

/// The first file of a folder, by name, that begins so: `libonnxruntime.so` itself or one with a version behind it.
fn in_folder(folder: &Path, begins: &str) -> Option<PathBuf> {
    let names = fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let matching = names.filter(|path| path.is_file() && path.file_name().is_some_and(|name| starts(name, begins)));
    matching.min()
}

fn starts(name: &OsStr, begins: &str) -> bool {
    name.as_encoded_bytes().starts_with(begins.as_bytes())
}

/// Looks where the linker does, beside the program, and where distributions, archives and Python's packages put it.
fn search() -> Result<Runtime, OffloadProblem> {
    for name in ["libonnxruntime.so.1", "libonnxruntime.so"] {
        match load(name.into()) {
            // Not there, as far as the linker knows.
            Err(OffloadProblem::NotTheLibrary { .. }) => {}
            other => return other,
        }
    }
    let mut folders: Vec<PathBuf> = env::current_exe()
        .ok()
        .and_then(|program| Some(program.parent()?.to_owned()))
        .into_iter()
        .collect();
    folders.extend(
        [
            "/usr/local/lib",
            "/usr/lib",
            "/opt/onnxruntime/lib",
            "/usr/local/onnxruntime/lib",
        ]
        .map(PathBuf::from),
    );
    let prefixes = env::var_os("VIRTUAL_ENV")
        .into_iter()
        .chain(["/usr/local", "/usr"].map(OsString::from));
    for prefix in prefixes {
        for python in entries(&Path::new(&prefix).join("lib"), "python3") {
            for packages in ["site-packages", "dist-packages"] {
                folders.push(python.join(packages).join("onnxruntime/capi"));
            }
        }
    }
    let found = folders.iter().find_map(|folder| in_folder(folder, "libonnxruntime.so"));
    load(found.ok_or(OffloadProblem::NoLibrary)?)
}

fn entries(folder: &Path, begins: &str) -> Vec<PathBuf> {
    let Ok(read) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut found: Vec<_> = read
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| starts(name, begins)))
        .collect();
    found.sort();
    found
}

fn load(path: PathBuf) -> Result<Runtime, OffloadProblem> {
    let not_it = |cause| OffloadProblem::NotTheLibrary {
        path: path.clone(),
        cause,
    };
    let builder = contain(|| ort::init_from(&path)).map_err(not_it)?;
    let builder = builder.map_err(|error| match error {
        LoadDynamicError::BadVersion { version_str, .. } => OffloadProblem::TooOld {
            path: path.clone(),
            found: version_str,
            oldest: ort::MINOR_VERSION,
        },
        error => not_it(Cause::new(match error {
            LoadDynamicError::Dlopen { error, .. } => error.to_string(),
            error => error.to_string(),
        })),
    })?;
    let builder = builder.with_name("offramp").with_telemetry(false);
    // What goes wrong comes back as an error and is told once; the runtime's own lines are for who asks for them.
    let builder = if env::var_os("ORT_LOG").is_none() {
        builder.with_logger(std::sync::Arc::new(|_, _: &str, _: &str, _: &str, _: &str| ()))
    } else {
        builder
    };
    let environment = contain(|| builder.build()).and_then(|built| built.map_err(|error| said(&error)));
    Ok(Runtime {
        environment: environment.map_err(not_it)?,
        version: version(&path),
        path,
        plugin: OnceLock::new(),
    })
}

/// The library's version, as far as it says: its file is named after it, or it knows its minor version.
fn version(path: &Path) -> String {
    file_version(path).unwrap_or_else(|| {
        ort::util::probe(path).map_or_else(|| "of unknown version".into(), |minor| format!("1.{minor}"))
    })
}

/// The three numbers after which the file of a library is named.
fn file_version(path: &Path) -> Option<String> {
    let file = path.canonicalize().unwrap_or_else(|_| path.into());
    let (_, version) = file.file_name()?.to_str()?.rsplit_once(".so.")?;
    (version.matches('.').count() == 2).then(|| version.to_owned())
}

/// The version in what the kernel tells of NVIDIA's driver.
fn driver_version(text: &str) -> Option<&str> {
    let is_version = |word: &&str| word.contains('.') && word.bytes().all(|b| b == b'.' || b.is_ascii_digit());
    text.split_whitespace().find(is_version)
}

/// Where TensorRT is installed, besides LD_LIBRARY_PATH.
fn system_folders() -> impl Iterator<Item = PathBuf> {
    let of_machine = format!("/usr/lib/{}-linux-gnu", env::consts::ARCH);
    [
        "/usr/local/lib",
        "/usr/local/tensorrt/lib",
        &of_machine,
        "/usr/lib64",
        "/usr/lib",
    ]
    .map(PathBuf::from)
    .into_iter()
}

/// Where the plugin may lie, by the library's file and LD_LIBRARY_PATH. An empty one means the working directory, and
/// so does a library that the linker found by its name: nothing is loaded from there.
fn plugin_folders(library: &Path, linker: &OsStr) -> impl Iterator<Item = PathBuf> {
    let beside = library.parent().unwrap_or(Path::new(""));
    let beside = [beside.to_owned(), beside.join("../..").join(RTX_PACKAGE)];
    let folders = beside.into_iter().chain(env::split_paths(linker));
    folders.filter(|folder| folder.is_absolute())
}

impl Runtime {
    /// Whether the library has a provider; not whether the machine has what that needs.
    pub(super) fn has(&self, provider: Provider) -> Result<(), OffloadProblem> {
        let compiled_in = match provider {
            Provider::Cpu => true,
            Provider::Cuda => CUDA::is_available().unwrap_or(false),
            Provider::TensorRt => TensorRT::is_available().unwrap_or(false),
            Provider::TensorRtRtx => return self.plugin.get_or_init(|| self.load_plugin()).clone(),
        };
        if compiled_in {
            Ok(())
        } else {
            Err(OffloadProblem::NotInLibrary {
                provider,
                version: self.version.clone(),
            })
        }
    }

    /// The versions of all that an engine is built by and for, as far as files tell: the library's, that of the provider's
    /// TensorRT, and the driver's.
    pub(super) fn versions(&self, provider: Provider) -> String {
        let linker = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
        let begins = match provider {
            Provider::TensorRtRtx => "libtensorrt_rtx.so.",
            _ => "libnvinfer.so.",
        };
        let mut folders = plugin_folders(&self.path, &linker).chain(system_folders());
        let tensorrt = folders.find_map(|folder| entries(&folder, begins).iter().find_map(|file| file_version(file)));
        let driver = fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
        let versions = [
            Some(self.version.as_str()),
            tensorrt.as_deref(),
            driver_version(&driver),
        ];
        versions.into_iter().flatten().collect::<Vec<_>>().join("-")
    }

    /// The GPUs that the plugin for TensorRT for RTX found.
    pub(super) fn rtx_devices(&self) -> impl Iterator<Item = Device<'_>> {
        let devices = self.environment.devices();
        devices.filter(|device| device.ep().is_ok_and(|provider| provider == RTX))
    }

    fn load_plugin(&self) -> Result<(), OffloadProblem> {
        let fail = |cause: String| {
            Err(OffloadProblem::Plugin {
                provider: Provider::TensorRtRtx,
                cause: Cause::new(cause),
            })
        };
        let linker = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
        let mut folders = plugin_folders(&self.path, &linker);
        let Some(folder) = folders.find(|folder| folder.join(RTX_PLUGIN).is_file()) else {
            return fail(format!(
                "{RTX_PLUGIN} was found neither beside the library nor in LD_LIBRARY_PATH"
            ));
        };
        for needed in RTX_NEEDS {
            if let Some(file) = in_folder(&folder, needed)
                && let Err(error) = ort::util::preload_dylib(&file)
            {
                return fail(error.to_string());
            }
        }
        let registered = contain(|| {
            self.environment
                .register_ep_library("NvTensorRtRtx", folder.join(RTX_PLUGIN))
        });
        match registered.and_then(|registered| registered.map_err(|error| said(&error))) {
            Err(cause) => fail(cause.to_string()),
            Ok(()) if self.rtx_devices().next().is_none() => fail("it found no GPU that it supports".into()),
            Ok(()) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_names_and_from_the_driver() {
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("libnvinfer.so.10.9.0");
        fs::write(&library, []).unwrap();
        std::os::unix::fs::symlink(&library, folder.path().join("libnvinfer.so.10")).unwrap();
        for name in entries(folder.path(), "libnvinfer.so.") {
            assert_eq!(file_version(&name).as_deref(), Some("10.9.0"));
        }
        assert_eq!(file_version(&folder.path().join("libnvinfer.so")), None);
        for (text, expected) in [
            (
                "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023",
                Some("535.104.05"),
            ),
            (
                "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  560.35.03  Release Build",
                Some("560.35.03"),
            ),
            ("", None),
        ] {
            assert_eq!(driver_version(text), expected);
        }
    }

    #[test]
    fn no_plugin_is_loaded_from_the_working_directory() {
        let folders = |library: &str, linker: &str| -> Vec<PathBuf> {
            plugin_folders(Path::new(library), OsStr::new(linker)).collect()
        };
        assert!(folders("libonnxruntime.so.1", "").is_empty());
        let beside = [
            PathBuf::from("/p/onnxruntime/capi"),
            PathBuf::from("/p/onnxruntime/capi/../..").join(RTX_PACKAGE),
        ];
        assert_eq!(folders("/p/onnxruntime/capi/libonnxruntime.so", ":lib:"), beside);
        assert_eq!(
            folders("libonnxruntime.so.1", "/opt/rtx::."),
            [PathBuf::from("/opt/rtx")]
        );
    }
}
