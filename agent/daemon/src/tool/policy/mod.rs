//! `offramp policy`.

mod check;

pub use check::{MAX_FILE, check, read};
