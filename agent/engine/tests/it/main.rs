//! The shipped packages in the engine, and what the engine refuses.

mod conformance;
mod refusals;
mod running;
mod zoo;
