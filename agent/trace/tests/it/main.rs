//! Traces as whoever reads and writes them sees them.

mod damage;
mod folder;
mod format;
mod replay;
mod sample;
