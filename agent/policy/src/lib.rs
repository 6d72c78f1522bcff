//! The wasmtime host of exit-policy components.
