//! Builds exit policies into WebAssembly components.
