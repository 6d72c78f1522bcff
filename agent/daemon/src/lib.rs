//! The Offramp agent and its tools.
