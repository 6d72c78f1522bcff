//! The contract, held from outside.
