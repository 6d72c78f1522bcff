//! The shipped packages in the engine, and what the engine refuses.

mod conformance;
#[cfg(feature = "onnxruntime")]
mod offload;
mod refusals;
mod running;
mod zoo;
