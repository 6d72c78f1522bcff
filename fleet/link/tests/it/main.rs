//! The link against real brokers, and against none.

mod brokers;
mod client;
mod lonely;
mod suite;
mod tls;
