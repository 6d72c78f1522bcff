//! What only a whole program can see of the core.

mod drive;
mod memory;
mod portable;
