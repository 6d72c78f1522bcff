//! The shipped packages in the engine, and what the engine refuses.

mod conformance;
mod gpu_script;
#[cfg(feature = "onnxruntime")]
mod offload;
mod refusals;
mod running;
mod zoo;
