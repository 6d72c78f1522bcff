//! Packages that are read, and packages that are refused.

mod archive;
mod draft;
mod reading;
mod refusals;
