//! Packages that are read, and packages that are refused.

mod draft;
mod reading;
mod refusals;
