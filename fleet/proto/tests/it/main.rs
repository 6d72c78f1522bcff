//! The contract, held from outside: frozen vectors, the published CDDL, hostile bytes.

mod hostile;
mod sample;
mod signed;
mod vectors;
